# Rule 10: processes that fork, and share libvirt's sockets from then on. What libvirt has registered is, in the first
# half, the C helper's: a handle on a socket, as connections are; in the second half libvirt's own.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";

use Config;
use Test::More;
use Test::Sys::Virt::EventImpl::Daemon;
use VirtTest qw(watchdog fresh_perl has_epoll);
use VirtTest::Adapters qw(adapter_classes is_limited);

watchdog(150);

my $PRELUDE = <<'PERL';
use strict;
use warnings;
use POSIX ();
use Sys::Virt::Event qw(adopt forget is_idle watches registered drain);
use Sys::Virt::Event::Poll;
use Test::Sys::Virt::EventImpl::CApi;
use Test::Sys::Virt::EventImpl::Util;
use VirtTest::Adapters qw(is_limited);

my ($class, $uri) = @ARGV;
# It may come anywhere, given time.
$SIG{__WARN__} = sub { tell_test("warning: $_[0]") if $_[0] !~ / stay silent/ };
eval "require $class" or die;
my $loop = $class->new;
$loop->register;

# In one write: several processes tell.
sub tell_test { my ($line) = @_; chomp $line; POSIX::write(1, "$line\n", length($line) + 1) }

# Passes of the loop meanwhile.
sub run_until {
    my ($condition) = @_;
    my ($passes, $end) = (0, now() + patience(15));
    my $is_met = sub { $passes++; return $condition->() };
    my $is_in_time = $loop->can('run_until') ? $loop->run_until($is_met, patience(15)) : do {
        $loop->run_once(1) until $is_met->() || now() > $end;
        now() <= $end;
    };
    $is_in_time or tell_test('too late'), POSIX::_exit(1);
    return $passes;
}
sub run_shortly { $loop->can('run_until') ? $loop->run_for(0.001) : $loop->run_once(0) }

sub ticks {
    my ($count, $ms) = @_;
    my $ticks = 0;
    my $id = Sys::Virt::Event::add_timeout($ms // 5, sub { $ticks++ });
    my $passes = run_until(sub { $ticks >= $count });
    Sys::Virt::Event::remove_timeout($id);
    return $passes;
}

# What the helper's callbacks and free functions have seen since it was last asked.
sub told { return join ' ', map { $_->{what} } Test::Sys::Virt::EventImpl::CApi::events() }
my $heard = '';
sub hears { return $heard .= told() }

sub put { syswrite $_[0], $_[1] // '.' }
sub get { sysread $_[0], my $byte, 1; return $byte }

sub child(&) {
    my ($code) = @_;
    defined(my $pid = fork) or die "Cannot fork: $!";
    return $pid if $pid;
    alarm 60;
    eval { $code->(); 1 } or tell_test("died: $@");
    POSIX::_exit(0);
}
sub wait_for { waitpid $_[0], 0; tell_test("the child ended with $?") if $? }
PERL

my $SHARED = $PRELUDE . <<'PERL';
my ($ours, $theirs) = socket_pair();
my ($reader, $writer) = pipe_pair();
my $id = Test::Sys::Virt::EventImpl::CApi::add_handle($ours, 1, read => 1);
my $timer = Test::Sys::Virt::EventImpl::CApi::add_timeout(-1);
PERL

my @LOOPS = ('Sys::Virt::Event::Poll', has_epoll() ? 'VirtTest::EpollLoop' : (), adapter_classes());

my $script_is_ok = sub {
    my ($name, $script, $expected, @args) = @_;
    my $run = fresh_perl($script, args => \@args, includes => ["$FindBin::Bin/lib"], timeout => 40);
    is_deeply [sort split /\n/, $run->{stdout}], [sort @$expected], $name or diag $run->{stdout};
    is_deeply [@$run{qw(stderr exit signal timed_out)}], ['', 0, 0, 0], "... and it ended well";
};

my $in_loops = sub {
    my ($name, $code, @expected) = @_;
    my $are_methods_replaced = $code =~ /->can\('update_handle'\)/;
    $script_is_ok->("$name, in $_", $SHARED . $code, \@expected, $_)
        for grep { !$are_methods_replaced || !is_limited($_, 'replaced methods') } @LOOPS;
};

$in_loops->('a handle of libvirt is silent in the child, and does not keep it busy', <<'PERL',
put($theirs);
wait_for(child {
    my $passes = ticks(20);
    tell_test("child: $passes passes") if $passes > 200 && !is_limited($class, 'many passes');
    tell_test('child: ' . told());
});
run_until(\&hears);
tell_test("parent: $heard");
put($theirs);
run_until(sub { hears() =~ /handle.*handle/ });
PERL
    'child: ', 'parent: handle',
);

$in_loops->('a handle stays silent when another thread updates it', <<'PERL',
put($theirs);
wait_for(child {
    Test::Sys::Virt::EventImpl::CApi::spawn([update_handle => $id, 3]);
    ticks(20);
    tell_test('child: ' . told());
});
run_until(\&hears);
tell_test("parent: $heard");
PERL
    'child: ', 'parent: handle',
);

# Its own wake watch needs two. What other threads ask for waits for the owner's next call, until the parent's bell, which
# rings for both, is the occasion to make one.
$in_loops->('a child without free file descriptors', <<'PERL',
my @fds;
while (defined(my $fd = POSIX::dup(0))) { push @fds, $fd }
my $child = child {
    POSIX::close($_) for @fds;
    Test::Sys::Virt::EventImpl::CApi::spawn([update_timeout => $timer, 1]);
    ticks(2);
    run_until(\&hears);
    tell_test('child: ' . ($heard =~ /^(?:timer ?)+$/ ? 'the timer' : $heard));
    Test::Sys::Virt::EventImpl::CApi::update_timeout($timer, -1);
    told();
    get($reader);
    ticks(20);
    $heard = '';
    Test::Sys::Virt::EventImpl::CApi::spawn([update_timeout => $timer, 0]);
    run_until(\&hears);
    tell_test('child: woken');
};
POSIX::close($_) for @fds;
Test::Sys::Virt::EventImpl::CApi::spawn([update_timeout => $timer, 0]);
ticks(2);
run_until(\&hears);
Test::Sys::Virt::EventImpl::CApi::update_timeout($timer, -1);
put($writer);
wait_for($child);
told();
ticks(2);
tell_test('parent: ' . told());
PERL
    'child: the timer', 'child: woken', 'parent: ',
);

$in_loops->('what the program has added, and timers of libvirt, go on', <<'PERL',
my $read = 0;
Sys::Virt::Event::add_handle($reader, 1, sub { get($reader); $read++ });
wait_for(child {
    put($writer);
    Test::Sys::Virt::EventImpl::CApi::update_timeout($timer, 1);
    run_until(sub { hears() && $read });
    tell_test('child: ' . ($heard =~ /^(?:timer ?)+$/ ? 'the timer' : $heard));
});
ticks(3);
tell_test("parent: $read" . told());
PERL
    'child: the timer', 'parent: 0',
);

# The process that starts it all waits for the parent at the end only, so it is a zombie all the time.
$in_loops->('the child goes on when the parent is gone', <<'PERL',
child {
    put($theirs);
    run_until(\&hears);
    tell_test("child: $heard");
    Test::Sys::Virt::EventImpl::CApi::update_handle($id, 0);
    put($theirs);
    ticks(3);
    tell_test('masked: ' . told());
    Test::Sys::Virt::EventImpl::CApi::update_handle($id, 1);
    run_until(\&told);
    Test::Sys::Virt::EventImpl::CApi::remove_handle($id);
    $heard = '';
    run_until(sub { hears() =~ /ff/ });
};
POSIX::_exit(0);
PERL
    'child: handle', 'masked: ',
);

$in_loops->('... also when it is another program', <<'PERL',
my $pid = child {
    close $writer;
    put($theirs);
    run_until(\&hears);
    tell_test("child: $heard");
};
close $reader;
require Fcntl;
fcntl $writer, Fcntl::F_SETFD(), 0;
exec $^X, '-e', 'waitpid shift, 0', $pid;
PERL
    'child: handle',
);

$in_loops->('... and the child of a child, whether or not the one between them is', <<'PERL',
wait_for(child {
    child {
        put($theirs);
        ticks(3);
        tell_test('before: ' . told());
        put($writer);
        run_until(\&hears);
        tell_test("after: $heard");
    };
});
get($reader);
POSIX::_exit(0);
PERL
    'before: ', 'after: handle',
);

# Each of the two sees the other end.
$in_loops->('of several children one goes on, and the next when that is gone', <<'PERL',
my @ends = socket_pair();
for my $number (0, 1) {
    child {
        close $ends[!$number];
        my $other_ended = 0;
        Sys::Virt::Event::add_handle($ends[$number], 1, sub { Sys::Virt::Event::remove_handle($_[0]); $other_ended = 1 });
        run_until(sub { hears() || $other_ended });
        if (!$other_ended) {
            put($theirs), ticks(3) for 1 .. 3;
            tell_test('one: ' . ($heard .= ' ' . told()));
            return;
        }
        tell_test("other: $heard");
        put($theirs);
        run_until(\&hears);
        tell_test("other: $heard");
    };
}
put($theirs);
POSIX::_exit(0);
PERL
    'one: handle handle handle handle', 'other: ', 'other: handle',
);

$script_is_ok->('a warning, once', $SHARED . <<'PERL',
wait_for(child {
    my $warnings = 0;
    local $SIG{__WARN__} = sub { $warnings++; tell_test('warning: ' . $_[0] =~ s/ at \S+ line \d+\.\n//r) };
    run_until(sub { $warnings });
    ticks(1, 1500);
});
ticks(1, 10);
PERL
    ['warning: Connections that were opened before this process was forked stay silent, as long as the other process '
    . 'lives: call Sys::Virt::Event::adopt() to take them over, or forget()'],
    'Sys::Virt::Event::Poll',
);

$in_loops->('adopt', <<'PERL',
adopt();
wait_for(child {
    put($theirs);
    ticks(3);
    tell_test('before: ' . told());
    adopt();
    adopt();
    run_until(\&hears);
    tell_test("after: $heard");
    # Now it is this process that shares with its child.
    wait_for(child {
        put($theirs);
        ticks(3);
        tell_test('its child: ' . told());
    });
    run_until(\&told);
});
PERL
    'before: ', 'after: handle', 'its child: ',
);

# Its parent is gone, but for the other child that waits for that the one that adopts is there.
$script_is_ok->('adopt, among children whose parent is gone', $SHARED . <<'PERL',
my @ends = socket_pair();
child {
    close $ends[1];
    get($reader) if !close $writer;
    sysread $reader, my $byte, 1;              # the parent's end
    adopt();
    put($ends[0]);
    put($theirs);
    run_until(\&hears);
    tell_test("one: $heard");
    get($ends[0]);
};
child {
    close $ends[0];
    close $writer;
    get($ends[1]);
    ticks(1, 1100);
    tell_test('other: ' . told());
    put($ends[1]);
};
close $_ for @ends;
POSIX::_exit(0);
PERL
    ['one: handle', 'other: '], 'Sys::Virt::Event::Poll',
);

$in_loops->('forget', <<'PERL',
my $own = Sys::Virt::Event::add_timeout(-1, sub { });
forget();
tell_test('parent: ' . watches());
wait_for(child {
    ticks(1);
    forget();
    forget();
    tell_test('left: ' . join ' ', map { $_->{id} == $own ? 'own' : $_->{id} } watches());
    put($theirs);
    ticks(3);
    tell_test('run: ' . told());
    tell_test('removed: ' . Test::Sys::Virt::EventImpl::CApi::remove_handle($id));
    tell_test('written: ' . (defined syswrite $ours, 'x'));
    Sys::Virt::Event::remove_timeout($own);
    tell_test('idle: ' . is_idle());
    told();
    my $other = $class->new->register;
    $loop = $other;
    my $new = Test::Sys::Virt::EventImpl::CApi::add_handle($reader, 1, read => 1);
    put($writer);
    run_until(\&hears);
    tell_test("new: $heard");
});
run_until(\&hears);
tell_test("parent: $heard");
PERL
    'parent: 3', 'left: own', 'run: ', 'removed: -1', 'written: ', 'idle: 1', 'new: handle', 'parent: handle',
);

# libvirt masks a socket before it writes to it.
$in_loops->('a child that uses a socket of its parent does not reach the server', <<'PERL',
wait_for(child {
    Test::Sys::Virt::EventImpl::CApi::update_handle($id, 0);
    tell_test('written: ' . (defined syswrite $ours, 'x'));
    Test::Sys::Virt::EventImpl::CApi::update_handle($id, 1);
    run_until(\&hears);
    tell_test('its end is seen: ' . ($heard =~ /^handle/ ? 1 : 0));
});
$theirs->blocking(0);
tell_test('read: ' . (get($theirs) // ''));
put($theirs);
run_until(\&told);
PERL
    'written: ', 'its end is seen: 1', 'read: ',
);

# A pipe, as of a stream, is only left alone.
$in_loops->('what is no socket stays silent', <<'PERL',
my $pipe = Test::Sys::Virt::EventImpl::CApi::add_handle($reader, 1, read => 1);
wait_for(child {
    Test::Sys::Virt::EventImpl::CApi::update_handle($pipe, $_) for 0, 1;
    put($writer);
    ticks(3);
    tell_test('child: ' . told());
});
run_until(\&hears);
tell_test("parent: $heard");
PERL
    'child: ', 'parent: handle',
);

$in_loops->('a socket is cut off even where there are no more fds', <<'PERL',
ticks(1);    # a host loop may load what timers take
wait_for(child {
    my $is_limited = is_limited($class, 'children without fds');
    my $is_warned;
    $SIG{__WARN__} = sub {
        my $is_expected = $is_limited && $_[0] =~ /^Cannot update handle: .* Couldn't open epollfd: /;
        $is_expected ? $is_warned = 1 : tell_test("warning: $_[0]");
    };
    my @files;
    while (open my $file, '<', '/dev/null') { push @files, $file }
    Test::Sys::Virt::EventImpl::CApi::update_handle($id, 0);
    tell_test('no warning') if $is_limited && !$is_warned;
    tell_test('written: ' . (defined syswrite $ours, 'x'));
});
$theirs->blocking(0);
tell_test('read: ' . (get($theirs) // ''));
PERL
    'written: ', 'read: ',
);

$in_loops->('what has taken the number of a closed socket is left alone', <<'PERL',
my $fd = fileno $ours;
wait_for(child {
    my ($one, $other) = socket_pair();
    POSIX::dup2(fileno $other, $fd);
    forget();
    put($one);
    POSIX::read($fd, my $byte, 1);
    tell_test("read: $byte");
});
PERL
    'read: .',
);

$in_loops->('a thread of the child does not reach the server either', <<'PERL',
wait_for(child {
    Test::Sys::Virt::EventImpl::CApi::run_blocked([update_handle => $id, 0]);
    tell_test('written: ' . (defined syswrite $ours, 'x'));
    ticks(3);
});
PERL
    'written: ',
);

$in_loops->('methods that use the API when their handles are masked off', <<'PERL',
my $more = Test::Sys::Virt::EventImpl::CApi::add_handle($theirs, 1);
no strict 'refs';
no warnings 'redefine';
my $its_class = ref $loop;    # that of another loop, on which the host's runs
my $update = $loop->can('update_handle');
*{"${its_class}::update_handle"} = sub {
    Sys::Virt::Event::remove_timeout(Sys::Virt::Event::add_timeout(-1, sub { }));
    tell_test("masked: $_[2]");
    &$update;
};
wait_for(child { ticks(3) });
PERL
    ('masked: 0') x 2,
);

$in_loops->('calls of threads that the parent has not carried out yet are not the child\'s', <<'PERL',
Test::Sys::Virt::EventImpl::CApi::remove_handle($id);
Test::Sys::Virt::EventImpl::CApi::remove_timeout($timer);
run_shortly();
told();
Test::Sys::Virt::EventImpl::CApi::run_blocked([add_timeout => 1], [remove_timeout => \-1], [add_timeout => 1]);
wait_for(child {
    tell_test('child: ' . (is_idle() ? 'idle' : 'not idle'));
    ticks(10);
    tell_test('child: ' . told());
});
ticks(1);
run_until(sub { hears() =~ /timer/ && $heard =~ /ff/ });
tell_test('parent: both');
PERL
    'child: idle', 'child: ', 'parent: both',
);

SKIP: {
    skip 'this perl has no ithreads', 2 if !$Config{useithreads};
    $script_is_ok->('a fork in another thread than the one of the loop', $SHARED . <<'PERL',
use threads;
put($theirs);
threads->create(sub {
    wait_for(child {
        tell_test('registered: ' . (defined registered() ? 1 : 0));
        $loop = $class->new->register;
        tell_test('watches: ' . watches());
        ticks(3);
        tell_test('run: ' . told());
    });
})->join;
run_until(\&told);
PERL
        ['registered: 0', 'watches: 0', 'run: '], 'Sys::Virt::Event::Poll',
    );
}

$script_is_ok->('exceptions', <<'PERL',
use Sys::Virt::Event;
for my $function (qw(adopt forget)) {
    no strict 'refs';
    eval { &{"Sys::Virt::Event::$function"}() } or print $@;
}
Sys::Virt::Event::register_default();
for my $function (qw(adopt forget)) {
    no strict 'refs';
    eval { &{"Sys::Virt::Event::$function"}() } or print $@;
}
eval { Sys::Virt::Event::adopt(1) } or print $@;
PERL
    [
        'Cannot adopt: no event loop is registered at -e line 4.',
        'Cannot forget: no event loop is registered at -e line 4.',
        'Cannot adopt: after register_default libvirt keeps its handles to itself at -e line 9.',
        'Cannot forget: after register_default libvirt keeps its handles to itself at -e line 9.',
        'Usage: Sys::Virt::Event::adopt() at -e line 11.',
    ],
);

SKIP: {
    my $why = eval { require Sys::Virt } ? Test::Sys::Virt::EventImpl::Daemon->why_not : 'Sys::Virt is not installed';
    skip $why, 1 if $why;
    my $daemon = Test::Sys::Virt::EventImpl::Daemon->start;
    my $connected = $PRELUDE . <<'PERL';
use Sys::Virt;
use SecondClient;
use constant LIFECYCLE => Sys::Virt::Domain::EVENT_ID_LIFECYCLE();
my $other = $uri =~ /unix/ ? SecondClient->start($uri) : undef;
my $conn = Sys::Virt->new(uri => $uri);
my @seen;
sub watch_lifecycle { $conn->domain_event_register_any(undef, LIFECYCLE, sub { push @seen, $_[2] }) }
sub in_both { $other->does($_) for qw(suspend resume) }
PERL

    # A connection without handlers is closed when its object goes.
    $script_is_ok->("children end, in $_: the parent stays connected and loses no event", $connected . <<'PERL',
my %end = (
    'by exit' => sub { exit 0 },
    'by _exit' => sub { POSIX::_exit(0) },
    'by exec' => sub { exec $^X, '-e', 1 },
    'by an exception' => sub { open STDERR, '>', '/dev/null'; die "of the child\n" },
    'after an undef' => sub { undef $conn },
    'after a call' => sub { eval { $conn->get_hostname } and tell_test('it could call') },
    'after a run' => sub { ticks(3); tell_test("seen: @seen") if @seen; exit 0 },
    'after forget' => sub { forget(); ticks(3); exit 0 },
    'from inside a sub' => sub { my $mine = $conn; undef $conn; exit 0 },
);
for my $watching (0, 1) {
    watch_lifecycle() if $watching;
    for my $how (sort keys %end) {
        in_both();
        defined(my $pid = fork) or die "Cannot fork: $!";
        if (!$pid) {
            $SIG{__DIE__} = 'DEFAULT';
            $end{$how}->();
            exit 0;
        }
        in_both();
        waitpid $pid, 0;
        tell_test("$how: $?") if $? && $how !~ /exception/;
        eval { $conn->get_hostname; 1 } or tell_test("$how: the parent has lost its connection: $@");
        next if !$watching;
        run_until(sub { @seen >= 4 });
        tell_test("$how: @seen") if "@seen" ne '3 4 3 4';
        @seen = ();
    }
}
tell_test('done');
PERL
        ['done'], $_, $daemon->uri,
    ) for @LOOPS;

    # What a daemon does: the parent ends, the child closes all fds that it does not know of.
    my $daemonized = $connected . <<'PERL';
watch_lifecycle();
my $ticks = 0;
Sys::Virt::Event::add_timeout(5, sub { $ticks++ });
run_shortly();
if (fork) {
    # The other client serves the child from now on.
    $other->{starter} = 0 if $other;
    END_OF_PARENT;
}
POSIX::setsid();
POSIX::close(0);
my %keep = map { $_ => 1 } 1, 2, $other ? map({ fileno $other->{$_} } qw(in out)) : (), grep { defined } map { $_->{fd} } watches();
# A loop of epoll's or so has its own fd, which it could make anew.
POSIX::close($_) for grep { !$keep{$_} && (readlink("/proc/self/fd/$_") // '') !~ /eventpoll/ } open_fds();
POSIX::open('/dev/null') for 1 .. 5;
run_until(sub { $ticks >= 3 });
$other->{starter} = $$ if $other;
my $domain;
$other ? in_both() : do { $domain = $conn->get_domain_by_name('test'); $domain->suspend; $domain->resume };
run_until(sub { @seen >= 2 });
tell_test("events: @seen");
tell_test('calls: ' . $conn->num_of_domains);
tell_test('silent: ' . grep { $_->{kind} eq 'handle' && !$_->{events} } watches());
PERL
    for my $uri ('test:///default', $daemon->uri) {
        for my $end ('POSIX::_exit(0)', 'exit 0', 'kill KILL => $$') {
            my $script = $daemonized =~ s{END_OF_PARENT}{$end}r;
            my $run = fresh_perl($script, args => ['Sys::Virt::Event::Poll', $uri], includes => ["$FindBin::Bin/lib"]);
            is $run->{stdout}, "events: 3 4\ncalls: 1\nsilent: 0\n",
                "connect, then daemonize, the parent ends by $end: ticks and events go on, on $uri";
            is $run->{stderr}, '', '... quietly';
        }
    }
}

done_testing;
