# What no other test comes to: a table with collisions, a full or half-closed wake pipe, no fds left, a watch that goes
# with its last token, seconds that are no number, tokens in a thread, the last moments of the program.
use 5.016;
use strict;
use warnings;

use lib 't/lib';
use Config;
use POSIX ();
use Test::More;

use Sys::Virt::Event qw(:all);
use Sys::Virt::Event::Poll;
use VirtTest;
use Test::Sys::Virt::EventImpl::CApi;
use VirtTest::Child;
use VirtTest::Loop;

BEGIN { *CApi:: = *Test::Sys::Virt::EventImpl::CApi:: }

watchdog(60);

sub is_readable { my ($fd) = @_; vec(my $bits = '', $fd, 1) = 1; return scalar select $bits, undef, undef, 0 }
sub names { return join ' ', map { $_->[0] } @_ }
sub ids { return join ' ', map { $_->{id} } watches() }

# Ids that are 16 apart share a chain of the table, as long as it is small.
my @left = in_child {
    VirtTest::Loop->new->register(wake => 0);
    my @seen;
    for my $first (0 .. 2) {
        my @ids = map {
            my $id = add_timeout(-1, sub { });
            remove_timeout(add_timeout(-1, sub { })) for 1 .. 15;
            $id;
        } 0 .. 2;
        remove_timeout($ids[$first]);
        my @others = grep { $_ != $ids[$first] } @ids;
        push @seen, ids() eq "@others" ? 'the others' : ids();
        update_timeout($_, 7) for @others;
        push @seen, join ' ', map { $_->{ms} } watches();
        remove_timeout($_) for @others;
        push @seen, ids();
    }
    @seen;
};
is_deeply \@left, [('the others', '7 7', '') x 3], 'each of three watches in one chain of the table can be removed';

# The limit of a connection's own calls: one at a time, in this process.
my @limits = in_child {
    my @seen = Sys::Virt::Event::_end_limit();
    push @seen, Sys::Virt::Event::_limit_calls(1e300, 1, 2), Sys::Virt::Event::_limit_calls(1, 1, 2);
    return map { $_ ? 1 : 0 } @seen, Sys::Virt::Event::_end_limit(), Sys::Virt::Event::_end_limit();
};
is_deeply \@limits, [0, 1, 0, 0, 0], 'a limit that is not there is not ended, and there is one at a time';

# A pipe that is full is readable, and what comes then is not lost.
my @full = in_child {
    my $loop = VirtTest::Loop->new->register(wake => 1);
    my $wake = $loop->latest;
    my $written = 0;
    while (my $bytes = POSIX::write($wake->{fd} + 1, 'x' x 4096, 4096)) { $written += $bytes }
    $loop->calls;
    CApi::run_blocked([add_timeout => 5]);
    $loop->dispatch($wake);
    ($written > 4096, names($loop->calls), is_readable($wake->{fd}));
};
is_deeply \@full, [1, 'add_timeout', 0], 'a call of another thread while the wake pipe is full';

# A program that closes the reading end alone gets a new pipe, and the writing end is not left behind.
my @renewed = in_child {
    my $loop = VirtTest::Loop->new->register(wake => 1);
    my $wake = $loop->latest;
    my @before = open_fds();
    POSIX::close($wake->{fd});
    $loop->calls;
    $loop->dispatch($wake);
    my @after = open_fds();
    CApi::run_blocked([add_timeout => 5]);
    (names($loop->calls), @after - @before, is_readable($loop->latest->{fd}));
};
is_deeply \@renewed, ['remove_handle add_handle', 0, 1], 'the reading end of the wake pipe is closed';

# Without a fd for it there is no wake watch; there is one as soon as it can be had.
{
    my $script = <<'EOT';
use Sys::Virt::Event qw(:all); use VirtTest::Loop; use POSIX ();
sub names { print join(' ', map { $_->[0] } @_), "\n" }
my @fds; while (defined(my $fd = POSIX::dup(0))) { push @fds, $fd }
my $loop = VirtTest::Loop->new->register(wake => 1);
my $id = add_timeout(5, sub { print "called\n" });
$loop->dispatch($loop->latest);
names($loop->calls);
POSIX::close($_) for @fds;
update_timeout($id, 6);
names($loop->calls);
EOT
    my @perl = ($^X, (map { "-I$_" } grep { !ref } @INC), '-e', $script);
    open my $out, '-|', 'sh', '-c', 'ulimit -n 64 && exec "$@"', 'sh', @perl or die "Cannot run sh: $!";
    is join('', <$out>), "called\nadd_timeout\nupdate_timeout add_handle\n", 'no fd is left for the wake watch';
}

# Its callback takes away all that holds the watch but the call itself.
my @gone = in_child {
    my $loop = VirtTest::Loop->new->register(wake => 0);
    my $id = CApi::add_timeout(5, null_ff => 1, in_callback => [[remove_timeout => 'self']]);
    my $key = $loop->latest->{key};
    delete $loop->{latest};
    $loop->_run_timeout_callback(@{ $loop->{watches}{$key} }{qw(key cb opaque)});
    (ids(), names($loop->calls), map { "$_->{what} $_->{id}" } grep { $_->{id} == $id } CApi::events());
};
is_deeply \@gone, ['', 'add_timeout remove_timeout', 'timer 1', 'remove_timeout 1'],
    'a watch that goes with its last token while its callback runs';

# No limit, said with undef.
is_deeply [in_child {
    register_default();
    my $called = 0;
    my $id = add_timeout(0, sub { $called++; remove_timeout($_[0]) });
    run_default(undef);
    return ($called, drain(undef) ? 'idle' : 'not idle');
}], [1, 'idle'], 'run_default and drain take undef for no limit';

# What is no number of seconds, for Poll.
for my $method (qw(run_once run_for run_until)) {
    for my $bad ('soon', 'nan') {
        my @args = $method eq 'run_until' ? (sub { 0 }, $bad) : $bad;
        like exception_of { Sys::Virt::Event::Poll->new->$method(@args) },
            qr/\ACannot run: number of seconds $bad is not a number at \Q$0\E line [0-9]+\.\n\z/, "$method: $bad";
    }
}

for my $bad (undef, 'done', {}) {
    for my $class (qw(Poll EV)) {
        my $loop = eval { require "Sys/Virt/Event/$class.pm"; "Sys::Virt::Event::$class"->new } or next;
        like exception_of { $loop->run_until($bad, 0) },
            qr/\ACannot run: the condition is not a code reference at \Q$0\E line [0-9]+\.\n\z/,
            "run_until of $class: " . ($bad // 'undef');
    }
}

{
    package Condition;
    use overload '&{}' => sub { my ($self) = @_; die "no code today\n" if !$$self; return $$self };
}
is +Sys::Virt::Event::Poll->new->run_until(bless \(my $code = sub { 1 }), 'Condition'), 1, 'a condition is an object';
is exception_of { Sys::Virt::Event::Poll->new->run_until(bless \(my $code = 0), 'Condition') }, "no code today\n",
    '... that dies';

# The last moments: perl takes globals away, and their destructors run.
for my $case (
    ['eval { add_timeout(5, sub { }); 1 } or print $@ =~ s/ at .*//sr',
        'Cannot add timeout: the event loop refused it', 'an add'],
    ['$protected->(); print "went on"', 'went on', 'protected code that dies'],
) {
    my ($destructor, $printed, $what) = @$case;
    my $r = fresh_perl(<<"EOT");
use Sys::Virt::Event qw(:all); use VirtTest::Loop;
our \$protected = protect(sub { die "too late\\n" });
sub Last::DESTROY { $destructor }
my \$loop = VirtTest::Loop->new->register;
our \$last = bless [], 'Last';
exit 3;
EOT
    is "$r->{stdout}; $r->{stderr}; $r->{exit}", "$printed; ; 3", "$what in the last moments of the program";
}

SKIP: {
    skip 'this perl has no ithreads', 2 if !$Config{useithreads};
    my $r = fresh_perl(<<'EOT', switches => ['-Mthreads']);
use lib 't/lib'; use Sys::Virt::Event qw(:all); use VirtTest::Loop;
my $loop = VirtTest::Loop->new->register(wake => 0);
my $called = 0;
my $id = add_timeout(5, sub { $called++ });
my $watch = $loop->latest;
sub said { my ($what, $call) = @_; print "$what: ", eval { $call->() // 'quiet' } // $@ =~ s/ at .*//sr, "\n" }
threads->create(sub {
    said(callback => sub { $loop->dispatch($watch); undef });
    said(free => sub { $loop->_free_callback_opaque(@$watch{qw(ff opaque)}); undef });
    said(watches => sub { watches() });
    said(is_idle => sub { is_idle() });
    print "called: $called\n";
})->join;
$loop->dispatch($watch);
print "called by the owner: $called\n";
EOT
    is $r->{stdout}, <<'EOT', 'in another thread a token is inert, and questions are refused';
callback: quiet
free: quiet
watches: Cannot list watches: the event loop belongs to another thread
is_idle: Cannot tell whether idle: the event loop belongs to another thread
called: 0
called by the owner: 1
EOT
    is $r->{stderr}, '', '... without noise';
}

done_testing;
