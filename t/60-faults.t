# Each fault of the module in Sys::Virt that is known (peers.md): one script, run by a perl of its own on our module,
# where it must do the right thing, and on the installed Sys::Virt, to see that it bites.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";

use POSIX ();
use SideBySide qw(side_by_side);
use Test::More;
use VirtTest qw(watchdog fresh_perl);
use Test::Sys::Virt::EventImpl::Daemon;

use constant {
    LIMIT      => 15,
    # How long a script may take that hangs.
    HANG_LIMIT => 4,
    # What is known about.
    VERSION    => '9.0.0',
};

watchdog(120);

# Our module must serve without Sys::Virt too; then the rows that need no connection are run.
my $PRELUDE = <<'PERL';
use strict; use warnings;
BEGIN { eval { require Sys::Virt } }
use Time::HiRes qw(sleep);
use OldLoop;
$| = 1;
$SIG{__WARN__} = sub { print "warning: $_[0]" };
# What the code threw, or what it returned, on a line.
sub outcome(&) {
    my ($code) = @_;
    my @result = eval { $code->() };
    print $@ ? "exception: $@" : "done: @result";
    print "\n" if !$@;
}
PERL

my $AT = qr/ at \S+ line \d+\.\z/;

# ours: what each line of the output matches. bites: given the result, true if the installed Sys::Virt shows the fault.
# hangs: there the script takes until it is killed. own: the script stops the daemon, so that it needs one to itself.
my @FAULTS = (
    {
        row => '2', name => 'a loop that frees inside remove_handle, on a remote connection', daemon => 1, hangs => 1,
        script => <<'PERL',
my $loop = OldLoop->new;
my $conn = Sys::Virt->new(uri => $ARGV[0]);
print 'domains: ', $conn->num_of_domains, "\n";
undef $conn;
print "closed\n";
1 while $loop->run_once;
print scalar(@{ $loop->{handles} }), " handles\n";
PERL
        ours  => [qr/^domains: 1$/, qr/^closed$/, qr/^0 handles$/],
        bites => sub { $_[0]{timed_out} && $_[0]{stdout} eq "domains: 1\n" },
    },
    (map { my ($what, $tokens, $culprit) = @$_; {
        row => '3', name => "the handle helper with $what",
        script => <<"PERL",
my \$loop = OldLoop->new;
outcome { \$loop->_run_handle_callback(1, 0, 1, $tokens) };
PERL
        ours  => [qr/^exception: Cannot run handle callback: \Q$culprit\E .*$AT/],
        bites => sub { $_[0]{signal} == POSIX::SIGSEGV() },
    } } ['undef', 'undef, undef', '$cb'], ['references to strings', '\"x", \"y"', '$cb']),
    (map { my ($what, $tokens) = @$_; {
        row => '3', name => "the helper that frees with $what",
        script => <<"PERL",
my \$loop = OldLoop->new;
outcome { \$loop->_free_callback_opaque($tokens) };
PERL
        ours  => [qr/^exception: Cannot free callback opaque: \$ff .*$AT/],
        bites => sub { $_[0]{signal} == POSIX::SIGSEGV() },
    } } ['references to numbers', '\4711, \4712'], ['integers', '4711, 4712']),
    {
        row => '4', name => 'free twice',
        script => <<'PERL',
{
    package Twice;
    our @ISA = 'OldLoop';
    sub free { my ($self, $record) = @_; $self->SUPER::free($record) for 1, 2 }
}
sub Freed::DESTROY { print "freed\n" }
my $loop = Twice->new;
my $id   = do { my $guard = bless [], 'Freed'; Sys::Virt::Event::add_timeout(-1, sub { $guard }) };
print "added\n";
outcome { Sys::Virt::Event::remove_timeout($id); 'removed' };
PERL
        ours  => [qr/^added$/, qr/^freed$/, qr/^done: removed$/],
        bites => sub { $_[0]{stdout} =~ /unreferenced scalar/ || $_[0]{signal} },
    },
    {
        row => '4', name => 'dispatch after free',
        script => <<'PERL',
my $loop = OldLoop->new;
my $id   = Sys::Virt::Event::add_timeout(-1, do { my $calls = 0; sub { $calls++; print "called\n" } });
my ($record) = @{ $loop->{timeouts} };
outcome { Sys::Virt::Event::remove_timeout($id); 'removed' };
outcome { $loop->_run_timeout_callback($record->{timer}, $record->{cb}, $record->{opaque}); 'quiet' };
PERL
        ours  => [qr/^done: removed$/, qr/^done: quiet$/],
        bites => sub { $_[0]{stdout} !~ /quiet/ },
    },
    {
        row => '5', name => 'register($a), register($b)',
        script => <<'PERL',
my $first = OldLoop::Traced->new;
my $id    = Sys::Virt::Event::add_timeout(-1, sub { });
my $second;
outcome { $second = OldLoop::Traced->new; 'accepted' };
Sys::Virt::Event::update_timeout($id, 77);
print 'first saw ',  join(', ', @{ $first->{trace} }), "\n";
print 'second saw ', join(', ', @{ $second->{trace} || [] }), "\n" if $second;
Sys::Virt::Event::remove_timeout($id);
outcome { $second = OldLoop::Traced->new; 'accepted' };
Sys::Virt::Event::add_timeout(-1, sub { });
print 'second saw ', join(', ', @{ $second->{trace} || [] }), "\n";
PERL
        ours => [
            qr/^exception: Cannot register: .*OldLoop::Traced, still has 1 timeout\b.*$AT/,
            qr/^first saw add_timeout -1 -> T1, update_timeout T1 77$/,
            qr/^done: accepted$/,
            qr/^second saw add_timeout -1 -> T1$/,
        ],
        bites => sub { $_[0]{stdout} =~ /^done: accepted\n.*^second saw update_timeout unknown/ms },
    },
    {
        row => '6', name => 'register($a), register_default(), run_default()', hangs => 1,
        script => <<'PERL',
my $loop = OldLoop->new;
outcome { Sys::Virt::Event::register_default(); 'success' };
outcome { Sys::Virt::Event::run_default(); 'success' };
PERL
        ours => [
            qr/^exception: Cannot register default: an object is registered .*$AT/,
            qr/^exception: Cannot run default: register_default was not called$AT/,
        ],
        bites => sub { $_[0]{timed_out} && $_[0]{stdout} eq "done: success\n" },
    },
    (map { my ($what, $return, $reason, $incumbent_says) = @$_; {
        row => '7', name => "an impl whose add_handle returns $what",
        script => <<"PERL",
{
    package Refusing;
    our \@ISA = 'OldLoop';
    sub add_handle { return $return }
    sub add_timeout { return $return }
}
my \$loop = Refusing->new;
outcome { 'id ' . Sys::Virt::Event::add_handle(0, 1, sub { }) };
outcome { 'id ' . Sys::Virt::Event::add_timeout(10, sub { }) };
PERL
        ours => [
            qr/^exception: Cannot add handle: Refusing::add_handle \Q$reason\E/,
            qr/^exception: Cannot add timeout: Refusing::add_timeout \Q$reason\E/,
        ],
        bites => sub { 2 == (() = $_[0]{stdout} =~ /^$incumbent_says$/gm) },
    } } ['nothing', '', 'returned undef', 'done: id 0'],
        ['undef', 'undef', 'returned undef', 'done: id 0'],
        ['-5', '-5', 'returned -5', 'exception: .*code: 0, message: Unknown problem']),
    {
        row => '8', name => 'a callback that is no code',
        script => <<'PERL',
my $loop = OldLoop->new;
outcome { Sys::Virt::Event::add_handle(0, 1, 'notcode'); 'accepted' };
print scalar(@{ $loop->{handles} }), " handles\n";
PERL
        ours  => [qr/^exception: Cannot add handle: callback "notcode" is not a code reference$AT/, qr/^0 handles$/],
        bites => sub { $_[0]{stdout} =~ /^done: accepted/ },
    },
    {
        row => '8', name => 'a negative fd',
        script => <<'PERL',
my $loop = OldLoop->new;
outcome { Sys::Virt::Event::add_handle(-5, 1, sub { }); 'accepted' };
print scalar(@{ $loop->{handles} }), " handles\n";
PERL
        ours  => [qr/^exception: Cannot add handle: file descriptor -5 is negative$AT/, qr/^0 handles$/],
        bites => sub { $_[0]{stdout} =~ /^done: accepted/ },
    },
    {
        row => '9', name => 'remove_handle(9999)',
        script => <<'PERL',
my $loop = OldLoop->new;
outcome { Sys::Virt::Event::remove_handle(9999); 'success' };
PERL
        ours  => [qr/^exception: Cannot remove handle: .*\b9999\b.*$AT/],
        bites => sub { $_[0]{stdout} eq "done: success\n" },
    },
    {
        row => '9', name => "an impl whose remove_handle returns -1",
        script => <<'PERL',
{
    package Failing;
    our @ISA = 'OldLoop';
    sub remove_handle { my ($self, $watch) = @_; $self->SUPER::remove_handle($watch); return -1 }
}
my $loop = Failing->new;
my $id   = Sys::Virt::Event::add_handle(0, 1, sub { });
outcome { Sys::Virt::Event::remove_handle($id); 'removed' };
outcome { Sys::Virt::Event::remove_handle($id); 'removed' };
PERL
        ours => [
            qr/^warning: Cannot remove handle: Failing::remove_handle returned -1$AT/,
            qr/^done: removed$/,
            qr/^exception: Cannot remove handle: no handle with id 1 /,
        ],
        bites => sub { $_[0]{stdout} eq "done: removed\n" x 2 },
    },
    {
        row => '10', name => 'die in update_handle of the impl', daemon => 1, hangs => 1,
        script => <<'PERL',
our $die = 0;
{
    package Dying;
    our @ISA = 'OldLoop';
    sub update_handle { my ($self, @args) = @_; $self->SUPER::update_handle(@args); die "oops\n" if $::die-- > 0 }
}
my $loop = Dying->new;
my $conn = Sys::Virt->new(uri => $ARGV[0]);
$die = 1;
outcome { $conn->num_of_domains };
outcome { $conn->num_of_domains };
PERL
        ours => [
            qr/^warning: Cannot update handle: Dying::update_handle died: oops$/,
            (qr/^done: 1$/) x 2,
        ],
        bites => sub { $_[0]{timed_out} && $_[0]{stdout} eq "exception: oops\n" },
    },
    {
        row => '10', name => 'die in add_timeout of the impl', daemon => 1, hangs => 1,
        script => <<'PERL',
our $die = 0;
{
    package Dying;
    our @ISA = 'OldLoop';
    sub add_timeout { my ($self, @args) = @_; die "oops\n" if $::die-- > 0; $self->SUPER::add_timeout(@args) }
}
my $loop = Dying->new;
my $conn = Sys::Virt->new(uri => $ARGV[0]);
$die = 1;
sub watch { $conn->domain_event_register_any(undef, Sys::Virt::Domain::EVENT_ID_LIFECYCLE(), sub { }) }
outcome { 'id ' . watch() };
outcome { $conn->num_of_domains };
outcome { 'id ' . watch() };
PERL
        ours => [
            qr/^warning: Cannot add timeout: Dying::add_timeout died: oops$/,
            qr/^exception: libvirt error code: 1, message: .*could not initialize domain event timer/,
            qr/^done: 1$/,
            qr/^done: id \d+$/,
        ],
        bites => sub { $_[0]{timed_out} && $_[0]{stdout} eq "exception: oops\n" },
    },
    {
        row => '11', name => "die in add_timeout's callback under the default loop",
        script => <<'PERL',
Sys::Virt::Event::register_default();
my ($calls, $passes) = (0, 0);
Sys::Virt::Event::add_timeout(1, sub { die "oops\n" if ++$calls == 1 });
Sys::Virt::Event::add_timeout(1, sub { $passes++ });
while ($calls < 3 && $passes < 100) {
    eval { Sys::Virt::Event::run_default(); 1 } or print "exception: $@";
}
print "called ", $calls < 3 ? 'never again' : 'again', "\n";
PERL
        ours  => [qr/^exception: oops$/, qr/^called again$/],
        bites => sub { $_[0]{stdout} eq "exception: oops\ncalled never again\n" },
    },
    {
        row => '12', name => 'alarm and die around a slow call', daemon => 1, own => 1, hangs => 1,
        # The child lets the daemon go on, once the alarm has been raised: the call has to return first.
        script => <<'PERL',
my ($uri, $daemon) = @ARGV;
my $loop = OldLoop->new;
my $conn = Sys::Virt->new(uri => $uri);
kill STOP => $daemon;
sub is_stopped { open my $in, '<', $_[0] or return 1; return readline($in) =~ /\) [TXZ]/ }
sleep 0.01 until !grep { !is_stopped($_) } glob "/proc/$daemon/task/*/stat";
if (!fork) { sleep 0.6; kill CONT => $daemon; exec 'true' }
$SIG{ALRM} = sub { die "alarm\n" };
my $sent = Time::HiRes::time();
Time::HiRes::alarm(0.2);
outcome { $conn->num_of_domains; 'no alarm' };
print 'after ', Time::HiRes::time() - $sent >= 0.2 ? 'the alarm' : 'less', "\n";
outcome { $conn->num_of_domains };
wait;
PERL
        ours  => [qr/^exception: alarm$/, qr/^after the alarm$/, qr/^done: 1$/],
        bites => sub { $_[0]{timed_out} && $_[0]{stdout} eq "exception: alarm\nafter the alarm\n" },
    },
    {
        row => '13', name => 'pass $cb, then undef $cb',
        script => <<'PERL',
my $loop = OldLoop->new;
my $cb   = sub { print "called\n" };
Sys::Virt::Event::add_timeout(0, $cb);
undef $cb;
outcome { $loop->run_once };
PERL
        ours  => [qr/^called$/, qr/^done: 1$/],
        bites => sub { $_[0]{stdout} !~ /^called/m },
    },
    {
        row => '14', name => 'the message when nothing is registered',
        script => <<'PERL',
outcome { Sys::Virt::Event::add_timeout(10, sub { }) };
outcome { Sys::Virt::Event::add_handle(0, 1, sub { }) };
PERL
        ours => [
            qr/^exception: Cannot add timeout: no event loop is registered$AT/,
            qr/^exception: Cannot add handle: no event loop is registered$AT/,
        ],
        bites => sub { $_[0]{stdout} =~ /^exception: libvirt error code: 0, message: Unknown problem/ },
    },
    {
        row => '16', name => 'a remote connection that outlives the impl at exit', daemon => 1, exit => 3,
        script => <<'PERL',
# perl takes the loop apart first, and $Sys::Virt::Event::eventimpl is undefined by then.
my $loop = OldLoop->new(free_later => 1);
$loop->{conn} = Sys::Virt->new(uri => $ARGV[0]);
print 'domains: ', $loop->{conn}->num_of_domains, "\n";
exit 3;
PERL
        ours  => [qr/^domains: 1$/],
        bites => sub { $_[0]{stdout} =~ /\(in cleanup\) Can't call method/ },
    },
);

# What the incumbent is, if it is there; a copy of ours in its place is not it.
my $probe = fresh_perl('require Sys::Virt; require Sys::Virt::Event;'
    . ' print Sys::Virt->VERSION, Sys::Virt::Event->can("watches") ? " replaced" : ""', installed => 1);
my $has_sys_virt = $probe->{exit} == 0 && !$probe->{signal};
my $incumbent    = $has_sys_virt && $probe->{stdout} !~ /replaced/ ? $probe->{stdout} : undef;
diag 'no half with the installed Sys::Virt: ', $has_sys_virt ? 'our module is installed over it' : 'there is none'
    if !defined $incumbent;

my $no_daemon = Test::Sys::Virt::EventImpl::Daemon->why_not;
my ($shared, @daemons);

# A coderef that runs the script.
sub run_of {
    my ($fault, $installed) = @_;
    my @args;
    if ($fault->{daemon}) {
        my $daemon = $fault->{own} ? Test::Sys::Virt::EventImpl::Daemon->start : ($shared ||= Test::Sys::Virt::EventImpl::Daemon->start);
        push @daemons, $daemon;
        @args = ($daemon->uri, $daemon->pid);
    }
    my $limit = $installed && $fault->{hangs} ? HANG_LIMIT : LIMIT;
    return sub {
        return fresh_perl($PRELUDE . $fault->{script}, args => \@args, installed => $installed, timeout => $limit);
    };
}

my @runnable = grep { !$_->{daemon} || $has_sys_virt && !$no_daemon } @FAULTS;
my @hanging  = grep { defined $incumbent && $_->{hangs} } @runnable;
my @ending   = grep { defined $incumbent && !$_->{hangs} } @runnable;

# Those that hang take no CPU: they are under way while the others come and go.
$_->{hanging} = SideBySide->start(run_of($_, 1)) for @hanging;
my @results = side_by_side((map { run_of($_, 1) } @ending), (map { run_of($_, 0) } @runnable));
$_->{on_incumbent} = shift @results             for @ending;
$_->{on_ours}      = shift @results             for @runnable;
$_->{on_incumbent} = delete($_->{hanging})->result for @hanging;

for my $fault (@FAULTS) {
    subtest "row $fault->{row}: $fault->{name}" => sub {
        plan skip_all => $has_sys_virt ? $no_daemon : 'Sys::Virt is not installed' if !$fault->{on_ours};
        check_ours($fault, $fault->{on_ours});
        check_incumbent($fault, $fault->{on_incumbent}) if $fault->{on_incumbent};
    };
}

sub check_ours {
    my ($fault, $result) = @_;
    ok !$result->{timed_out}, 'ours: it ends';
    is $result->{signal}, 0, 'ours: it does not crash';
    is $result->{exit}, $fault->{exit} || 0, 'ours: exit code';
    is $result->{stderr}, '', 'ours: nothing is said on stderr';
    my @lines = split /\n/, $result->{stdout};
    is @lines, @{ $fault->{ours} }, 'ours: as many lines as there should be' or diag $result->{stdout};
    like shift @lines, $_, "ours: matches $_" for @{ $fault->{ours} };
}

sub check_incumbent {
    my ($fault, $result) = @_;
    my $shows = $fault->{bites}->($result);
    my $said  = "exit $result->{exit}, signal $result->{signal}, timed out $result->{timed_out}:"
        . "\n$result->{stdout}$result->{stderr}";
    if ($incumbent eq VERSION) {
        ok $shows, "Sys::Virt $incumbent has the fault" or diag $said;
    } elsif (!$shows) {
        diag "Sys::Virt $incumbent does not have fault $fault->{row}, $fault->{name}; $said";
    }
}

done_testing;
