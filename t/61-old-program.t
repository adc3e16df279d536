# Programs as they were written for the module in Sys::Virt. Each runs, unchanged, on that one and on ours, and what it
# prints is compared: the calls of its loop's six methods, in order, with their values, and its events.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";

use SecondClient qw(clients_of);
use SideBySide qw(side_by_side);
use Test::More;
use Time::HiRes qw(sleep time);
use VirtTest qw(watchdog fresh_perl patience);
use Test::Sys::Virt::EventImpl::Daemon;

watchdog(120);

# Lines that start with "ours:" are printed on our module only.
my $PRELUDE = <<'PERL';
use strict; use warnings;
use Sys::Virt;
use OldLoop;
use SecondClient;
$| = 1;
$SIG{__WARN__} = sub { print "warning: $_[0]" };

sub print_event {
    my ($conn, $dom, $event, $detail) = @_;
    print 'event: ', $dom->get_name, " $event $detail\n";
}

sub sockets { return scalar grep { (readlink || '') =~ /^socket:/ } glob '/proc/self/fd/*' }

# What is left over: [sockets before].
sub print_rest {
    my ($before) = @_;
    Sys::Virt::Event->can('is_idle') or return;
    print 'ours: ', scalar(Sys::Virt::Event::watches()), ' watches, ', Sys::Virt::Event::is_idle() ? 'idle' : 'busy', "\n";
    print 'ours: ', sockets() - $before, " sockets\n";
}
PERL

my %SCRIPT = (
    # One run_once for each event.
    test => <<'PERL',
my $before = sockets();
my $loop = OldLoop::Traced->new(to => \*STDOUT);
print "registered\n";
my $conn = Sys::Virt->new(address => $ARGV[0]);
my $id = $conn->domain_event_register_any(undef, Sys::Virt::Domain::EVENT_ID_LIFECYCLE, \&print_event);
my ($dom) = $conn->list_domains;
for my $method (qw(suspend resume shutdown create destroy)) {
    $dom->$method;
    print "did $method\n";
    print 'run_once: ', $loop->run_once, "\n";
}
$conn->domain_event_deregister_any($id);
undef $dom;
undef $conn;
print "closed\n";
my $passes = 0;
$passes++ while $passes < 100 && $loop->run_once;
print "$passes passes\n";
print_rest($before);
PERL
    # The loop that frees inside remove_* hangs at the undef $conn on Sys::Virt.
    remote => <<'PERL',
my ($uri, @options) = @ARGV;
my $other = SecondClient->start($uri);
my $before = sockets();
my $loop = OldLoop::Traced->new(to => \*STDOUT, @options);
print "registered\n";
my $conn = Sys::Virt->new(uri => $uri);
print "open\n";
my $events = 0;
my $id = $conn->domain_event_register_any(undef, Sys::Virt::Domain::EVENT_ID_LIFECYCLE,
    sub { $events++; print_event(@_) });
print 'domains ', $conn->num_of_domains, "\n";
print 'keepalive ', $conn->set_keep_alive(60, 5) || 0, "\n";
for my $method (qw(suspend resume destroy create)) {
    $other->does($method);
    print "did $method\n";
    my $want = $events + 1;
    until ($events >= $want) { print 'run_once: ', $loop->run_once, "\n" }
    print 'domains ', $conn->num_of_domains, "\n";
}
$conn->domain_event_deregister_any($id);
print "deregistered\n";
undef $conn;
print "closed\n";
my $passes = 0;
$passes++ while $passes < 100 && $loop->run_once;
print "$passes passes\n";
print_rest($before);
PERL
    # Both sides of the keepalive.
    keepalive => <<'PERL',
my ($uri) = @ARGV;
my $loop = OldLoop::Traced->new(to => \*STDOUT, free_later => 1);
my $conn = Sys::Virt->new(uri => $uri);
print 'keepalive ', $conn->set_keep_alive(2, 5) || 0, "\n";
print 'run_once: ', $loop->run_once, "\n" for 1 .. 2;
print 'alive ', $conn->is_alive ? 1 : 0, "\n";
undef $conn;
1 while $loop->run_once;
print "ended\n";
PERL
    # Events of the connection's own calls come during the call or later: only the events can be compared.
    own_events => <<'PERL',
my ($uri, @options) = @ARGV;
my $loop = OldLoop->new(@options);
my $conn = Sys::Virt->new(uri => $uri);
my $events = 0;
my $id = $conn->domain_event_register_any(undef, Sys::Virt::Domain::EVENT_ID_LIFECYCLE,
    sub { $events++; print_event(@_) });
my $dom = $conn->get_domain_by_name('test');
for my $method (qw(suspend resume destroy create)) {
    my $want = $events + 1;
    $dom->$method;
    $loop->run_once while $events < $want;
}
$conn->domain_event_deregister_any($id);
undef $dom;
undef $conn;
1 while $loop->run_once;
print "ended\n";
PERL
    default_events => <<'PERL',
my ($uri) = @ARGV;
Sys::Virt::Event::register_default();
my $conn = Sys::Virt->new(uri => $uri);
my $events = 0;
my $id = $conn->domain_event_register_any(undef, Sys::Virt::Domain::EVENT_ID_LIFECYCLE,
    sub { $events++; print_event(@_) });
my ($dom) = $conn->list_domains;
for my $method (qw(suspend resume destroy create)) {
    my $want = $events + 1;
    $dom->$method;
    Sys::Virt::Event::run_default() while $events < $want;
}
$conn->domain_event_deregister_any($id);
print "ended\n";
PERL
    # Each step waits for what it is about, so that the output is always the same.
    default_own => <<'PERL',
Sys::Virt::Event::register_default();
pipe my $reader, my $writer or die;
my (%count, %last);
my $timer = Sys::Virt::Event::add_timeout(5, sub { $count{timer}++; @last{qw(timer args)} = ($_[0], scalar @_) });
Sys::Virt::Event::run_default() while ($count{timer} || 0) < 3;
print 'timer: ', $last{args}, ' arguments, the id is ', $last{timer} == $timer ? 'right' : 'wrong', "\n";
Sys::Virt::Event::update_timeout($timer, -1);

my $handle = Sys::Virt::Event::add_handle(fileno $reader, Sys::Virt::Event::HANDLE_READABLE, sub {
    my ($id, $fd, $events) = @_;
    sysread $reader, my $got, 1;
    $count{handle}++;
    print "handle: $got, events $events, the fd is ", $fd == fileno $reader ? 'right' : 'wrong', "\n";
    $last{handle} = $id;
});
$count{timer} = 0;
syswrite $writer, 'a';
Sys::Virt::Event::run_default() while !$count{handle};
print 'handle: the id is ', $last{handle} == $handle ? 'right' : 'wrong', "\n";
print "timer: $count{timer} calls while it was disabled\n";

Sys::Virt::Event::update_handle($handle, 0);
syswrite $writer, 'b';
Sys::Virt::Event::update_timeout($timer, 5);
Sys::Virt::Event::run_default() while $count{timer} < 3;
print "handle: $count{handle} call, as its mask is 0\n";
Sys::Virt::Event::update_handle($handle, 1);
Sys::Virt::Event::run_default() while $count{handle} < 2;
Sys::Virt::Event::remove_handle($handle);
syswrite $writer, 'c';
$count{timer} = 0;
Sys::Virt::Event::run_default() while $count{timer} < 3;
print "handle: $count{handle} calls, as it was removed\n";
Sys::Virt::Event::remove_timeout($timer);
my $other = Sys::Virt::Event::add_timeout(5, sub { $count{other}++ });
$count{timer} = 0;
Sys::Virt::Event::run_default() while ($count{other} || 0) < 3;
print "timer: $count{timer} calls, as it was removed\n";
PERL
);

my $probe = fresh_perl('require Sys::Virt; require Sys::Virt::Event;'
    . ' print Sys::Virt->VERSION, Sys::Virt::Event->can("watches") ? " replaced" : ""', installed => 1);
plan skip_all => 'Sys::Virt is not installed' if $probe->{exit} || $probe->{signal};
my $incumbent = $probe->{stdout} !~ /replaced/ ? $probe->{stdout} : undef;
diag 'nothing to compare with: our module is installed over the one in Sys::Virt' if !defined $incumbent;

my $has_daemon = !Test::Sys::Virt::EventImpl::Daemon->why_not;

# Scripts run at the same time, so each has a daemon of its own, whose domain it changes. The daemon sends no pings:
# they would be in the trace.
my (@names, @runs);
sub plan_run {
    my ($name, $script, %opt) = @_;
    my $daemon = $opt{remote} && Test::Sys::Virt::EventImpl::Daemon->start(conf => { keepalive_interval => 1000 });
    my @args   = ($daemon ? $daemon->uri : 'test:///default', @{ $opt{args} || [] });
    my $code   = $PRELUDE . ($opt{before} || '') . $SCRIPT{$script};
    push @names, $name;
    push @runs, sub {
        my $result = fresh_perl($code, args => \@args, installed => $opt{installed}, timeout => $opt{timeout});
        # What is left of the keepalive's interval, in whole seconds of the clock.
        $result->{stdout} =~ s/^(update_timeout T\d) \d+000$/$1 (left)/mg;
        $result->{common} = join '', grep { !/^ours:/ } $result->{stdout} =~ /.*\n/g;
        $result->{own}    = join '', grep { /^ours:/ } $result->{stdout} =~ /.*\n/g;
        $result->{clients} = clients_left($daemon) if $daemon;
        return $result;
    };
}

# The daemon notices after a while that a client has gone.
sub clients_left {
    my ($daemon) = @_;
    my $end = time + patience(5);
    sleep 0.01 while clients_of($daemon) && time < $end;
    return clients_of($daemon);
}

my @LATER = (free_later => 1);

for my $on (qw(ours theirs)) {
    my $installed = $on eq 'theirs';
    next if $installed && !defined $incumbent;
    plan_run("test $on", 'test', installed => $installed);
    plan_run("default_own $on", 'default_own', installed => $installed);
    plan_run("default_test $on", 'default_events', installed => $installed);
    next if !$has_daemon;
    my @remote = (installed => $installed, remote => 1);
    plan_run("remote $on", 'remote', @remote, timeout => $installed ? 4 : 20);
    plan_run("remote_later $on", 'remote', @remote, args => \@LATER);
    plan_run("keepalive $on", 'keepalive', @remote);
    plan_run("own_events $on", 'own_events', @remote, args => $installed ? \@LATER : []);
    plan_run("default_remote $on", 'default_events', @remote);
}
my $EVENT_IMPL = "\@OldLoop::ISA = 'Sys::Virt::EventImpl';\n";
plan_run('test_impl ours', 'test', before => $EVENT_IMPL);
plan_run('remote_impl ours', 'remote', before => $EVENT_IMPL, remote => 1) if $has_daemon;

my %result;
@result{@names} = side_by_side(@runs);

# From 9.5 on theirs wants another parent class, and says so: the one difference that is meant.
sub without_deprecation {
    my ($theirs) = @_;
    return $theirs->{common} =~ s/^warning: DEC?PRECATION WARNING: .*\n//mgr;
}

sub is_same_as_theirs {
    my ($name) = @_;
    my $theirs = $result{"$name theirs"} or return;
    is $result{"$name ours"}{common}, without_deprecation($theirs), "the same on Sys::Virt $incumbent";
}

sub ends_well {
    my ($result) = @_;
    ok !$result->{timed_out}, 'it ends';
    is "$result->{exit} $result->{signal}", '0 0', 'with exit code 0';
    is $result->{stderr}, '', 'and nothing said';
    unlike $result->{stdout}, qr/^warning/m, 'and without a warning';
    is $result->{clients}, 0, 'the daemon has no client any more' if exists $result->{clients};
}

sub frees_all {
    my ($result) = @_;
    is $result->{own}, "ours: 0 watches, idle\nours: 0 sockets\n", 'nothing is left';
}

sub events_of { return [$_[0]{common} =~ /^event: (.*)/mg] }

# Suspended; resumed; stopped, shut down; started; stopped, destroyed.
my @TEST_EVENTS   = ('test 3 0', 'test 4 0', 'test 5 0', 'test 2 0', 'test 5 1');
my @REMOTE_EVENTS = ('test 3 0', 'test 4 0', 'test 5 1', 'test 2 0');

subtest 'own loop on test:///default' => sub {
    my $ours = $result{'test ours'};
    ends_well($ours);
    frees_all($ours);
    # One run_once for each event, and nothing to run at the end.
    my @methods = qw(suspend resume shutdown create destroy);
    is $ours->{common}, join('',
        "registered\nadd_timeout -1 -> T1\n",
        (map { ;
            "update_timeout T1 0\ndid $methods[$_]\n", "update_timeout T1 -1\nevent: $TEST_EVENTS[$_]\nrun_once: 1\n"
        } 0 .. $#methods),
        "remove_timeout T1\nclosed\n0 passes\n"), 'its events and calls';
    is_same_as_theirs('test');
    is $result{'test_impl ours'}{stdout}, $ours->{stdout}, 'the same with Sys::Virt::EventImpl as the parent';
};

subtest 'own loop on a libvirtd' => sub {
    plan skip_all => Test::Sys::Virt::EventImpl::Daemon->why_not if !$has_daemon;
    my $ours = $result{'remote ours'};
    ends_well($ours);
    frees_all($ours);
    is_deeply events_of($ours), \@REMOTE_EVENTS, 'its events';
    like $ours->{common}, qr/^closed\n0 passes\n\z/m, 'run_once returns nothing at the end';

    # contract.md 2.6
    my $call = "update_handle H1 0\n(?:update_timeout T2 \\(left\\)\n){3}update_handle H1 1\n";
    like $ours->{common}, qr/^registered\nadd_handle fd 1 -> H1\n(?:update_handle H1 0\nupdate_handle H1 1\n)+open\n/,
        'trace: open';
    like $ours->{common},
        qr/^open\nadd_timeout -1 -> T1\nupdate_handle H1 0\nupdate_handle H1 1\nupdate_handle H1 0\nupdate_handle H1 1\ndomains 1\n/m,
        'trace: register for events, call';
    is 4, (() = $ours->{common} =~ /^did \w+\nupdate_timeout T2 \(left\)\nupdate_timeout T1 0\nupdate_timeout T1 -1\nevent: /mg),
        'trace: events';
    is 4, (() = $ours->{common} =~ /^${call}domains \d\n/mg), 'trace: calls';
    like $ours->{common}, qr/^domains 1\nremove_timeout T1\n${call}deregistered\n${call}remove_handle H1\nremove_timeout T2\nclosed\n/m,
        'trace: deregister, close';

    is $result{'remote_later ours'}{stdout}, $ours->{stdout}, 'the same if the loop frees later';
    is $result{'remote_impl ours'}{stdout}, $ours->{stdout}, 'the same with Sys::Virt::EventImpl as the parent';
    is_same_as_theirs('remote_later');

    my $theirs = $result{'remote theirs'} or return;
    my $common = without_deprecation($theirs);
    is substr($ours->{common}, 0, length $common), $common,
        "the same on Sys::Virt $incumbent as far as it comes";
};

subtest 'keepalive in an own loop' => sub {
    plan skip_all => Test::Sys::Virt::EventImpl::Daemon->why_not if !$has_daemon;
    my $ours = $result{'keepalive ours'};
    ends_well($ours);
    my $ping = "update_timeout T1 (left)\nupdate_handle H1 0\nupdate_timeout T1 (left)\nupdate_handle H1 1\nrun_once: 1\n";
    my $pong = "update_timeout T1 (left)\nrun_once: 1\n";
    like $ours->{common}, qr/^keepalive 0\n\Q$ping$pong\Ealive 1\n/m, 'a ping and its answer';
    is_same_as_theirs('keepalive');
};

for (
    ['events of own calls on a libvirtd',   'own_events',     1],
    ["libvirt's loop on test:///default",   'default_test',   0],
    ["libvirt's loop on a libvirtd",        'default_remote', 1],
) {
    my ($title, $name, $needs_daemon) = @$_;
    subtest $title => sub {
        plan skip_all => Test::Sys::Virt::EventImpl::Daemon->why_not if $needs_daemon && !$has_daemon;
        ends_well($result{"$name ours"});
        is_deeply events_of($result{"$name ours"}), \@REMOTE_EVENTS, 'the events';
        is_same_as_theirs($name);
    };
}

subtest "libvirt's loop with handles and timers of the program" => sub {
    ends_well($result{'default_own ours'});
    is $result{'default_own ours'}{common}, <<'TEXT', 'what it saw';
timer: 1 arguments, the id is right
handle: a, events 1, the fd is right
handle: the id is right
timer: 0 calls while it was disabled
handle: 1 call, as its mask is 0
handle: b, events 1, the fd is right
handle: 2 calls, as it was removed
timer: 0 calls, as it was removed
TEXT
    is_same_as_theirs('default_own');
};

done_testing;
