use strict;
use warnings;

use lib 't/lib';

# Wall clocks that a test can set. Poll must not look at them.
my $shift;
BEGIN {
    $shift = 0;
    *CORE::GLOBAL::time = sub () { CORE::time() + $shift };
}

use IO::Poll ();
use POSIX ();
use Test::More;
use Time::HiRes ();
use VirtTest;
use Test::Sys::Virt::EventImpl::CApi;
use Sys::Virt::Event qw(add_handle update_handle remove_handle add_timeout update_timeout remove_timeout);
use Sys::Virt::Event::Poll;

# What is particular to Sys::Virt::Event::Poll; libvirt's contract is in 50-contract-poll.t.

use constant { READABLE => 1, WRITABLE => 2, ERROR => 4, HANGUP => 8 };

watchdog(60);

# How often the loop has polled, a wait being a poll that was allowed to sleep.
my ($polls, $waits) = (0, 0);
{
    no warnings 'redefine';
    my $poll = \&IO::Poll::_poll;
    *IO::Poll::_poll = sub {
        $polls++;
        $waits++ if $_[0] != 0;
        return &$poll;
    };
    my $time = \&Time::HiRes::time;
    *Time::HiRes::time = sub () { $time->() + $shift };
}

my $loop = Sys::Virt::Event::Poll->new->register;
my @warnings;
$SIG{__WARN__} = sub { push @warnings, @_ };

sub now { return Time::HiRes::clock_gettime(Time::HiRes::CLOCK_MONOTONIC()) }

sub put_byte { syswrite $_[0], '.' or die "Cannot write: $!" }
sub get_byte { sysread $_[0], my $byte, 1 or die "Cannot read: $!" }

sub ready_pipe {
    my ($reader, $writer) = pipe_pair();
    put_byte($writer);
    return ($reader, $writer);
}

# A subtest after which nothing is registered, and nothing was said that it did not ask for.
sub part {
    my ($name, $code) = @_;
    subtest $name => sub {
        my $error = exception_of {
            local $SIG{ALRM} = sub { die "it hangs\n" };
            alarm VirtTest::patience(15);
            $code->();
        };
        alarm 0;
        is $error, undef, 'it came to its end';
        $_->{kind} eq 'handle' ? remove_handle($_->{id}) : remove_timeout($_->{id}) for Sys::Virt::Event::watches();
        ok Sys::Virt::Event::drain(5), 'all is freed';
        Test::Sys::Virt::EventImpl::CApi::events();
        is_deeply [splice @warnings], [], 'no other warnings';
    };
    return;
}

part 'new' => sub {
    isa_ok $loop, 'Sys::Virt::EventImpl';
    is $loop->loop, $loop, 'loop is itself';
    like exception_of { Sys::Virt::Event::Poll->new(timeout => 1) }, qr/^Cannot make .*timeout.* at \Q$0\E /, 'options';
};

part 'run_once tells whether there is something to wait for' => sub {
    my ($reader, $writer) = pipe_pair();
    ok !$loop->run_once, 'nothing';
    ok !$loop->run_once(5), 'nothing, with a limit';
    my $off = add_timeout(-1, sub { });
    ok !$loop->run_once, 'a disabled timer';
    my $deaf = add_handle($reader, 0, sub { });
    ok !$loop->run_once, 'a handle of mask 0';
    update_handle($deaf, READABLE);
    ok $loop->run_once(0), 'a handle';
    update_handle($deaf, 0);
    update_timeout($off, 60_000);
    ok $loop->run_once(0.001), 'a timer';
    update_timeout($off, -1);

    my $left = 3;
    my $timer = add_timeout(1, sub { remove_timeout($_[0]) if !--$left });
    1 while $loop->run_once;
    is $left, 0, '"1 while $loop->run_once" ends with the last timer';
    update_handle($deaf, READABLE);
    put_byte($writer);
    close $writer;
    my @events;
    remove_handle($deaf);
    my $own = add_handle($reader, READABLE, sub {
        push @events, $_[2];
        $_[2] & READABLE ? get_byte($reader) : remove_handle($_[0]);
    });
    1 while $loop->run_once;
    is_deeply \@events, [READABLE | HANGUP, HANGUP], '... and with the last handle';
};

part 'the wake watch does not count' => sub {
    Test::Sys::Virt::EventImpl::CApi::spawn([sleep_ms => 30],
        [add_timeout => 0, in_callback => [[remove_timeout => 'self']]])->join;
    my $passes = 0;
    $passes++ while $loop->run_once;
    my @log = grep { $_->{what} ne 'remove_timeout' } Test::Sys::Virt::EventImpl::CApi::events();
    is_deeply [map { $_->{what} } @log], ['timer', 'ff'], 'what another thread has added runs';
    cmp_ok $passes, '<', 10, 'then the loop ends';
};

part 'run and stop' => sub {
    my $fired = 0;
    my $timer = add_timeout(1, sub { $loop->stop if ++$fired == 3 });
    $loop->run;
    is $fired, 3, 'stop ends run, after the pass';
    my $nested = 0;
    update_timeout($timer, -1);
    my $other = add_timeout(0, sub {
        update_timeout($_[0], -1);
        update_timeout($timer, 0);
        $fired = 0;
        $loop->run;
        $nested = $fired;
        $fired = 2;
    });
    $loop->run;
    is_deeply [$nested, $fired], [3, 3], 'each stop ends the innermost run';
    $loop->stop;
    update_timeout($timer, -1);
    my $left = 2;
    update_timeout($other, -1);
    add_timeout(0, sub { remove_timeout($_[0]) if !--$left });
    $loop->run;
    is $left, 0, 'run ends when nothing is left; a stop from before it does not count';
};

part 'run_for' => sub {
    my $start = now();
    ($polls, $waits) = (0, 0);
    $loop->run_for(0.1);
    cmp_ok now() - $start, '>=', 0.1, 'waits, even if nothing is registered';
    cmp_ok $polls, '<=', 5, 'asleep';
    my $fired = 0;
    add_timeout(10, sub { $fired++ });
    $start = now();
    $loop->run_for(0.05);
    cmp_ok now() - $start, '>=', 0.05, 'lasts as long with a timer';
    cmp_ok $fired, '>=', 1, '... that fires meanwhile';
    add_timeout(0, sub { $loop->stop });
    $start = now();
    $loop->run_for(30);
    cmp_ok now() - $start, '<', 20, 'stop ends it early';
};

part 'run_until' => sub {
    my $fired = 0;
    my $timer = add_timeout(2, sub { $fired++ });
    ok $loop->run_until(sub { $fired >= 3 }, 10), 'true when the condition holds';
    is $fired, 3, '... looked at after each pass';
    $polls = 0;
    ok $loop->run_until(sub { 1 }, 10), 'true at once';
    is $polls, 0, '... without a pass';
    my $start = now();
    ok !$loop->run_until(sub { 0 }, 0.05), 'false when the time is over';
    cmp_ok now() - $start, '>=', 0.05, '... not before';
    $fired = 0;
    ok $loop->run_until(sub { $fired }), 'without a limit';
    my $stopper = add_timeout(0, sub { $loop->stop });
    ok !$loop->run_until(sub { 0 }), 'false when stopped';
    remove_timeout($_) for $timer, $stopper;
    ok !$loop->run_until(sub { 0 }), 'false when nothing is left to wait for';
};

part 'exact events, all in one call' => sub {
    my @seen;
    my $watch = sub {
        my ($what, $handle, $mask, @expected) = @_;
        @seen = ();
        my $id = add_handle($handle, $mask, sub { push @seen, $_[2]; update_handle($_[0], 0) });
        $loop->run_once(0) for 1 .. 3;
        is_deeply \@seen, \@expected, $what;
        remove_handle($id);
    };
    my ($ours, $theirs) = socket_pair();
    $watch->('socket, READABLE, nothing there', $ours, READABLE);
    $watch->('socket, both, nothing there', $ours, READABLE | WRITABLE, WRITABLE);
    put_byte($theirs);
    $watch->('socket, both', $ours, READABLE | WRITABLE, READABLE | WRITABLE);
    $watch->('socket, WRITABLE', $ours, WRITABLE, WRITABLE);
    $watch->('socket, HANGUP', $ours, HANGUP);
    close $theirs;
    $watch->('closed socket, READABLE', $ours, READABLE, READABLE | HANGUP);
    $watch->('closed socket, both', $ours, READABLE | WRITABLE, READABLE | WRITABLE | HANGUP);
    $watch->('closed socket, WRITABLE', $ours, WRITABLE, WRITABLE | HANGUP);
    $watch->('closed socket, HANGUP', $ours, HANGUP, HANGUP);
    $watch->('closed socket, ERROR', $ours, ERROR, HANGUP);
    $watch->('closed socket, mask 0', $ours, 0);

    my ($reader, $writer) = ready_pipe();
    $watch->('pipe, READABLE', $reader, READABLE, READABLE);
    close $writer;
    $watch->('closed pipe, READABLE', $reader, READABLE, READABLE | HANGUP);
    get_byte($reader);
    $watch->('empty closed pipe, READABLE', $reader, READABLE, HANGUP);
    ($reader, $writer) = pipe_pair();
    $watch->('write end, WRITABLE', $writer, WRITABLE, WRITABLE);
    close $reader;
    $watch->('broken write end, WRITABLE', $writer, WRITABLE, WRITABLE | ERROR);
    $watch->('broken write end, READABLE', $writer, READABLE, ERROR);
};

part 'mask 0 costs nothing' => sub {
    my ($ours, $theirs) = socket_pair();
    my $calls = 0;
    my $id = add_handle($ours, READABLE, sub { $calls++ });
    update_handle($id, 0);
    put_byte($theirs);
    close $theirs;
    $polls = 0;
    $loop->run_for(0.05);
    is $calls, 0, 'silent';
    cmp_ok $polls, '<=', 3, 'the loop sleeps';
};

part '0 ms timers starve nothing' => sub {
    my ($reader, $writer) = ready_pipe();
    my %calls = map { $_ => 0 } qw(one two handle timer);
    add_timeout(0, sub { $calls{ $_[0] }++ });
    my @zero = map { my $name = $_; add_timeout(0, sub { $calls{$name}++ }) } qw(one two);
    add_handle($reader, READABLE, sub { $calls{handle}++ });
    add_timeout(3, sub { $calls{timer}++ });
    ok $loop->run_until(sub { $calls{timer} >= 3 && $calls{handle} >= 20 }, 10), 'handles and other timers go on';
    my %before = %calls;
    $loop->run_once for 1 .. 10;
    is_deeply [map { $calls{$_} - $before{$_} } qw(one two handle)], [10, 10, 10], 'each fires once in each pass';
    ok $loop->run_once(60), 'and the loop does not sleep';
};

part 'a closed fd' => sub {
    my ($reader, $writer) = pipe_pair();
    my ($other, $other_writer) = pipe_pair();
    my @events;
    my $id = add_handle($reader, READABLE, sub { push @events, $_[2] });
    add_handle($other, READABLE, sub { });
    my $fd = fileno $reader;
    close $reader;
    $loop->run_once(0) for 1 .. 3;
    is_deeply \@events, [ERROR], 'ERROR, once';
    $polls = 0;
    $loop->run_for(0.05);
    cmp_ok $polls, '<=', 3, 'then the loop sleeps';
    update_handle($id, WRITABLE);
    $loop->run_once(0) for 1 .. 3;
    is_deeply \@events, [ERROR, ERROR], 'once more after an update';
    POSIX::dup2(fileno $other, $fd);
    put_byte($other_writer);
    update_handle($id, READABLE);
    $loop->run_once(0);
    is_deeply \@events, [ERROR, ERROR, READABLE], 'it works again when the fd is open again';
    POSIX::close($fd);
    remove_handle($id);

    # Both are reported by one poll, and the first of them runs the loop.
    my @pairs = map { [pipe_pair()] } 1 .. 5;
    my %count;
    for my $pair (@pairs) {
        add_handle($pair->[0], READABLE, sub { $count{ $_[0] } .= $_[2]; $loop->run_once(0) if keys %count == 1 });
    }
    close $_->[0] for @pairs;
    $loop->run_once(0) for 1 .. 3;
    is_deeply [values %count], [(ERROR) x 5], 'each of five got ERROR, once, though the loop was run inside';
};

part 'exceptions' => sub {
    my ($reader, $writer) = ready_pipe();
    my @order;
    my $dies = 0;
    local $SIG{__DIE__} = sub { $dies++ };
    my $error = { an => 'object' };
    my $handle = add_handle($reader, READABLE, sub { push @order, 'handle'; die $error });
    my @timers = map { my $n = $_; add_timeout($n, sub { push @order, "timer $n"; die "timer $n\n" if $n < 3 }) } 1 .. 4;
    select undef, undef, undef, 0.01;
    my $thrown = exception_of { $loop->run_once };
    is_deeply \@order, ['handle', map { "timer $_" } 1 .. 4], 'the pass is finished';
    is $thrown, $error, 'before its first exception leaves';
    is_deeply [splice @warnings], ["timer 1\n", "timer 2\n"], 'the others are warnings';
    is $dies, 3, '$SIG{__DIE__} saw each once';
    remove_timeout($_) for @timers;
    @order = ();
    $thrown = exception_of { $loop->$_(5) } and is $thrown, $error, "it leaves $_" for qw(run_once run_for run);
    $thrown = exception_of { $loop->run_until(sub { 0 }, 5) };
    is $thrown, $error, 'it leaves run_until';
    is_deeply \@order, [('handle') x 4], 'the watch lives on';
    update_handle($handle, 0);
    like exception_of { $loop->run_until(sub { die "condition\n" }) }, qr/^condition/, 'that of a condition, too';
    my $stops = add_timeout(0, sub { $loop->stop });
    $loop->run;
    pass 'run works after that';
};

part 'the clock is monotonic' => sub {
    my @fired;
    my $start = now();
    my $timer = add_timeout(20, sub { push @fired, now() - $start });
    for my $jump (0, 3600, -7200, 1e9) {
        $shift = $jump;
        $loop->run_for(0.06);
    }
    $shift = 0;
    cmp_ok scalar @fired, '>=', 4, 'it fires, wherever the wall clocks jump';
    is_deeply [grep { $fired[$_] < 0.020 * ($_ + 1) - 0.001 } 0 .. $#fired], [], 'and is never early';
    cmp_ok now() - $start, '>=', 0.24, 'run_for lasts as long as it should';
};

part 'a run inside a callback' => sub {
    my ($reader, $writer) = ready_pipe();
    my ($depth, %calls) = 0;
    my $nest = sub {
        my ($what) = @_;
        $calls{$what}++;
        $depth++;
        if ($depth == 1) {
            $polls = 0;
            $loop->run_for(0.05);
            $calls{"polls in $what"} = $polls;
            ok !$loop->run_once, "$what: a busy watch is nothing to wait for" if 2 >= (() = Sys::Virt::Event::watches());
        }
        $depth--;
    };
    my $handle = add_handle($reader, READABLE, sub { $nest->('handle') });
    $loop->run_once;
    is $calls{handle}, 1, 'a handle is not dispatched inside itself';
    cmp_ok $calls{'polls in handle'}, '<=', 3, '... nor does it keep the loop from sleeping';
    update_handle($handle, 0);
    my $timer = add_timeout(0, sub { $nest->('timer') });
    $loop->run_once;
    is $calls{timer}, 1, 'a timer is not dispatched inside itself';
    cmp_ok $calls{'polls in timer'}, '<=', 3, '... nor does it keep the loop from sleeping';
    $loop->run_once;
    is $calls{timer}, 2, '... but it fires again afterwards';
    update_timeout($timer, -1);

    my @pipes = map { [ready_pipe()] } 1 .. 5;
    my (%others, $nested, $fired);
    for my $pipe (@pipes) {
        add_handle($pipe->[0], READABLE, sub {
            my ($id) = @_;
            # Whichever comes first.
            $loop->run_until(sub { $fired && keys %others == 4 }, 10) if !$nested++;
            get_byte($pipe->[0]) if !$others{$id}++;
        });
    }
    add_timeout(10, sub { $fired = keys %others });
    $loop->run_once;
    is_deeply [values %others], [(1) x 5], 'other handles run inside, and not once more for the same byte';
    cmp_ok $fired, '>=', 1, 'another timer fires inside';
};

# Every call from a callback of each kind, for itself, for one that is ready in the same pass, and for one that is not.
part 'calls from callbacks' => sub {
    my %calls = (
        handle  => [map({ [update_handle => $_] } 0, READABLE, WRITABLE), ['remove_handle']],
        timeout => [map({ [update_timeout => $_] } -1, 0, 60_000), ['remove_timeout']],
    );
    my $wrong = 0;
    my $tried = 0;
    for my $caller (qw(handle timeout)) {
        for my $kind (qw(handle timeout)) {
            for my $call (@{ $calls{$kind} }) {
                for my $target (qw(self ready quiet)) {
                    next if $target eq 'self' && $kind ne $caller;
                    $tried++;
                    my $problem = one_call($caller, $kind, $call, $target) // next;
                    diag "@$call of a $target $kind in a $caller: $problem";
                    $wrong++;
                }
            }
        }
    }
    is $tried, 40, 'all combinations were tried';
    is $wrong, 0, 'all have the right effect';
};

# The pipe at hand is always readable. Returns what was wrong.
sub one_call {
    my ($caller, $kind, $call, $target) = @_;
    my ($reader, $writer) = ready_pipe();
    my ($name, @value) = @$call;
    my %add = (
        handle  => sub { Test::Sys::Virt::EventImpl::CApi::add_handle($reader, $_[0] ? READABLE : 0) },
        timeout => sub { Test::Sys::Virt::EventImpl::CApi::add_timeout($_[0] ? 0 : -1) },
    );
    my %what = (handle => 'handle', timeout => 'timer');
    # Some before the caller and some after it, so that the target is met on either side.
    my @targets = $target eq 'self' ? () : map { $add{$kind}->($target eq 'ready') } 1, 2;
    my $self = $add{$caller}->(1);
    push @targets, $target eq 'self' ? $self : map { $add{$kind}->($target eq 'ready') } 1, 2;
    my $done = add_timeout(-1, sub { });
    "Test::Sys::Virt::EventImpl::CApi"->can("on_$caller")->($self, map { [$name => $_, @value] } @targets);
    Test::Sys::Virt::EventImpl::CApi::events();
    $loop->run_once(0) for 1 .. 4;

    my @log = Test::Sys::Virt::EventImpl::CApi::events();
    my ($called) = grep { $log[$_]{what} eq "$what{$caller}" && $log[$_]{id} == $self } 0 .. $#log;
    return 'the caller did not run' if !defined $called;
    my $removes = $name =~ /^remove/;
    my $is_on   = !$removes && ($value[0] == 0 ? $kind eq 'timeout' : $value[0] == READABLE);
    my $problem;
    for my $id (@targets) {
        my @freed = grep { $_->{what} eq 'ff' && $_->{id} == $id } @log;
        my @later = grep { $_->{what} eq $what{$kind} && $_->{id} == $id } @log[$called + 1 .. $#log];
        $problem = 'freed ' . @freed . ' times' if @freed != $removes;
        $problem = 'it ran later' if @later && !$is_on;
        $problem = 'it did not run later' if !@later && $is_on;
    }
    # The caller repeats its calls each time it runs; what is gone is gone.
    my %left = map { $_ => 1 } $done, $self, @targets;
    delete @left{@targets} if $removes;
    my @watches = map { $_->{id} } Sys::Virt::Event::watches();
    $problem = "@watches are registered" if "@watches" ne join ' ', sort { $a <=> $b } keys %left;
    for (Sys::Virt::Event::watches()) {
        $_->{kind} eq 'handle' ? remove_handle($_->{id}) : remove_timeout($_->{id});
    }
    return $problem;
}

sub n_called {
    return scalar grep { $_->{what} eq 'handle' || $_->{what} eq 'timer' } Test::Sys::Virt::EventImpl::CApi::events();
}

part 'callbacks that add' => sub {
    my ($reader, $writer) = ready_pipe();
    my @ops = ([remove_handle => 'self'], [add_handle => $reader, READABLE, in_callback => [[remove_handle => 'self']]],
        [add_timeout => 0, in_callback => [[remove_timeout => 'self']]]);
    Test::Sys::Virt::EventImpl::CApi::add_handle($reader, READABLE, in_callback => \@ops);
    Test::Sys::Virt::EventImpl::CApi::add_timeout(0, in_callback => [[remove_timeout => 'self'], @ops[1, 2]]);
    $loop->run_once(0);
    is n_called(), 2, 'what is added waits';
    $loop->run_once(0);
    is n_called(), 4, 'for the next pass';
    ok !$loop->run_once, 'nothing is left';
};

part 'hundreds of watches' => sub {
    my @pipes = map { [pipe_pair()] } 1 .. 200;
    my (%handles, %timers);
    my @ids = map { my $reader = $_->[0]; add_handle($reader, READABLE, sub { get_byte($reader); $handles{ $_[0] }++ }) } @pipes;
    my @timers = map { add_timeout($_ % 3 ? -1 : $_ % 20, sub { $timers{ $_[0] }++; remove_timeout($_[0]) }) } 1 .. 300;
    my @ready  = grep { $_ % 7 == 0 } 0 .. $#pipes;
    put_byte($pipes[$_][1]) for @ready;
    $loop->run_once(0);
    is_deeply \%handles, { map { $ids[$_] => 1 } @ready }, 'all that are ready run in one pass, and no others';
    $loop->run_until(sub { keys %timers >= 100 }, 10);
    is_deeply \%timers, { map { $timers[$_] => 1 } grep { ($_ + 1) % 3 == 0 } 0 .. 299 }, 'so do the timers that are due';
};

done_testing;
