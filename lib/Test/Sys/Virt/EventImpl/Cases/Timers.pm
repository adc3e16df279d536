package Test::Sys::Virt::EventImpl::Cases::Timers;

# Timers, and the order of what happens in one pass.

use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

use Test::More;
use Test::Sys::Virt::EventImpl::Case;
use Test::Sys::Virt::EventImpl::Util;

suite timer => 'Timers';
suite order => 'The order of things in one pass';

case 40 => 'timer_enabled', timer => {
    rule   => 'a disabled timer does not fire; given an interval it does, not before its time',
    source => 'tests/eventtest.c; src/util/virevent.c, virEventAddTimeout',
    harm   => 'libvirt adds the timer that delivers its events with -1 ms and enables it when an event is queued'
        . ' (src/conf/object_event.c). If that comes to nothing the program never hears of an event.',
    advice => 'Start a timer of -1 ms in update_timeout, from the time it is then: a time cached before is too old',
}, sub {
    my ($t) = @_;
    my @fired;
    my $id = $t->timer(-1, sub { push @fired, now() });
    $t->run_fully(0.03);
    is_deeply \@fired, [], 'disabled';
    # A loop that takes the time once a pass has an old one now.
    pause(0.05);
    my $start = now();
    $t->update_timeout($id, 40);
    $t->until(sub { @fired });
    cmp_ok $fired[0] // 0, '>=', $start + 0.039, 'enabled: it fires, not before its time';
};

case 41 => 'timer_disabled', timer => {
    rule   => 'a timer set to -1 ms stops, and goes on when it is given an interval again',
    source => 'tests/eventtest.c; src/util/virevent.c, virEventUpdateTimeout',
    harm   => 'libvirt switches the timers of its events and streams off and on all the time. One that does not stop'
        . ' is called for nothing for ever, one that does not start again ends the flow of events.',
    advice => 'Make update_timeout stop a timer at -1, keep its record, and start it again at 0 or more',
}, sub {
    my ($t) = @_;
    my $id = $t->add_timeout(5);
    $t->until(sub { $t->count(timer => $id) >= 2 });
    for my $round (1, 2) {
        $t->update_timeout($id, -1);
        my $count = $t->count(timer => $id);
        cmp_ok $count, '>', 0, 'it fires';
        $t->run_fully(0.02);
        is $t->count(timer => $id), $count, "disabled: it has stopped ($round)";
        $t->update_timeout($id, 5);
        $t->until(sub { $t->count(timer => $id) > $count });
        cmp_ok $t->count(timer => $id), '>', $count, "enabled: it goes on ($round)";
    }
};

case 42 => 'negative', timer => {
    rule   => 'any negative interval disables a timer, not only -1',
    source => 'src/util/vireventglib.c, which tests for interval >= 0',
    harm   => 'A loop that knows -1 alone gives the others to select or poll as a time: an error, a wait without end,'
        . ' or a timer that is always overdue and makes the loop spin.',
    advice => 'Compare the interval with < 0, not with == -1',
}, sub {
    my ($t) = @_;
    my @ids = map { $t->add_timeout($_) } -2, -100, -2**31, 0, 5, 0;
    $t->update_timeout($ids[3], -2);
    $t->update_timeout($ids[4], -100);
    my $fires = pop @ids;
    $t->until(sub { $t->count(timer => $fires) > 5 });
    $t->run_fully(0.02);
    is_deeply [grep { $_ ne "timer $fires" } $t->dispatched], [], 'none of them fired';
    cmp_ok $t->count(timer => $fires), '>', 5, 'one of 0 ms did';
};

case 43 => 'longest', timer => {
    rule   => 'the longest interval, 2147483647 ms, is a long time',
    source => 'libvirt/libvirt-event.h, virEventAddTimeoutFunc: the interval is an int',
    harm   => 'Intervals come from the program, as that of keepalive does, and are large where somebody means never.'
        . ' One that overflows on its way to poll or select is over at once: the loop spins, or a limit that was'
        . ' meant as hours is no wait at all.',
    advice => 'Compute times as numbers of seconds, and limit what you hand to the system call',
}, sub {
    my ($t) = @_;
    my @ids = map { $t->add_timeout($_) } 2**31 - 1, 2**31 - 2, 1;
    $t->update_timeout($ids[2], 2**31 - 1);
    my $clock = $t->add_timeout(5);
    $t->until(sub { $t->count(timer => $clock) > 2 });
    cmp_ok $t->count(timer => $clock), '>', 2, 'a short one fires';
    is_deeply [grep { $_ ne "timer $clock" } $t->dispatched], [], 'the long ones do not';
};

case 44 => 'lets_sleep', timer => {
    rule   => 'while no timer is due the loop sleeps',
    source => 'src/conf/object_event.c: a connection with callbacks has a timer of -1 ms at most times',
    harm   => 'Each program that waits for events has such a disabled timer. A loop that polls without waiting as'
        . ' long as it is there uses a whole processor for nothing.',
    advice => 'Leave disabled timers out when you compute how long to wait',
}, sub {
    my ($t) = @_;
    $t->add_timeout($_) for -1, 60_000;
    my $disabled = $t->add_timeout(0);
    $t->run(0.01);
    $t->update_timeout($disabled, -1);
    cmp_ok $t->busy_share(0.2), '<', 1 / 4, 'the share of a processor that it uses: it sleeps';
};

case 45 => 'timer_removed_before', timer => {
    rule   => 'a timer removed before it is due does not fire, others do',
    source => 'tests/eventtest.c',
    harm   => 'What a timer is to work on goes away with it. libvirt removes the timer of keepalive when a connection'
        . ' is closed, and a late call would be about a client that has been freed.',
    advice => 'Stop the timer in remove_timeout, and forget its record',
}, sub {
    my ($t) = @_;
    my ($removed, $kept) = map { $t->add_timeout(25) } 1, 2;
    is $t->remove_timeout($removed), 0, 'removed';
    $t->until(sub { $t->count(timer => $kept) > 1 });
    cmp_ok $t->count(timer => $kept), '>', 1, 'the other fires';
    is $t->count(timer => $removed), 0, 'the removed one does not';
};

case 46 => 'timer_removes_itself', timer => {
    rule   => 'a timer that removes itself in its callback has fired once',
    source => 'tests/eventtest.c',
    harm   => 'A loop that sets the timer anew after the callback brings it back to life: it fires for ever, with the'
        . ' memory of its owner long given away, and no one has an id to stop it.',
    advice => 'After the callback, look whether the timer is still registered before you touch it',
}, sub {
    my ($t) = @_;
    my @ids = map { $t->add_timeout($_, in_callback => [[remove_timeout => 'self']]) } 0, 10;
    $t->until(sub { $t->count('timer') >= 2 });
    $t->run_fully(0.02);
    $t->passes(3);
    is_deeply [sort $t->dispatched], [sort map { "timer $_" } @ids], 'each once';
    is_deeply [map { $_->{result} } $t->entries('remove_timeout')], [0, 0], 'the removals returned 0';
};

case 47 => 'timer_disables_itself', timer => {
    rule   => 'a timer that disables itself in its callback has fired once, until it is enabled again',
    source => 'src/conf/object_event.c, virObjectEventStateFlush',
    harm   => 'This is how libvirt delivers events: the timer is set to 0 ms by the first, and its callback sets it'
        . ' to -1 before it calls the handlers. A loop that starts it again after the callback spins from the first'
        . ' event on.',
    advice => 'Set the time of the next call before the callback, so that what the callback sets stays',
}, sub {
    my ($t) = @_;
    my @ids = map { $t->add_timeout($_, in_callback => [[update_timeout => 'self', -1]]) } 0, 5;
    for my $round (1, 2) {
        $t->until(sub { $t->count('timer') >= 2 * $round });
        $t->run_fully(0.02);
        $t->passes(3);
        is_deeply [map { $t->count(timer => $_) } @ids], [$round, $round], "once each ($round)";
        $t->update_timeout($_, 5) for @ids;
    }
};

case 48 => 'timer_updates_itself', timer => {
    rule   => 'the interval that a timer is given by its own callback counts from then on',
    source => 'src/rpc/virkeepalive.c, virKeepAliveTimerInternal',
    harm   => 'The timer of keepalive sets its next call in its callback, according to when the peer was last heard.'
        . ' With the old interval instead, pings go out late and a dead peer is noticed late, or the callback runs'
        . ' again and again for nothing.',
    advice => 'Set the time of the next call before the callback, so that what the callback sets stays',
}, sub {
    my ($t) = @_;
    my (@fired, $id);
    $id = $t->timer(5, sub {
        push @fired, now();
        Sys::Virt::Event::update_timeout($id, 60) if @fired == 1;
    });
    $t->until(sub { @fired >= 2 });
    cmp_ok $fired[1] - $fired[0], '>=', 0.059, 'it waited for the 60 ms that it set, not for 5 ms';
};

case 49 => 'shortened', timer => {
    rule   => 'a shorter interval counts at once, not when the running one is over',
    source => 'src/util/vireventglib.c, virEventGLibTimeoutUpdate',
    harm   => 'A timer that is to fire soon fires when its old time is over, perhaps hours later. With libvirt that'
        . ' is an event, a part of a stream or the ping of a keepalive that comes too late.',
    advice => 'Stop the running timer in update_timeout and start it anew from now',
}, sub {
    my ($t) = @_;
    my $fired;
    my $id = $t->timer(3000, sub { $fired //= now() });
    $t->run(0.01);
    my $start = now();
    $t->update_timeout($id, 60);
    my $clock = $t->add_timeout(1500);
    $t->until(sub { $fired || $t->count(timer => $clock) });
    is $t->count(timer => $clock), 0, 'it did not wait for the 3000 ms';
    cmp_ok $fired // 0, '>=', $start + 0.059, 'and was not early';
};

case 50 => 'restarted', timer => {
    rule   => 'an update restarts the interval, even to the same value',
    source => 'src/util/vireventglib.c, virEventGLibTimeoutUpdate; src/rpc/virkeepalive.c, virKeepAliveCheckMessage',
    harm   => 'Each packet that libvirt receives updates the timer of keepalive to the same number of ms, to put it'
        . ' off. If the interval runs on it wakes the program for nothing, and a limit that a program renews with'
        . ' each sign of life expires in the midst of work.',
    advice => 'Restart the timer in update_timeout whatever the new interval is',
}, sub {
    my ($t) = @_;
    my $fired;
    my $id = $t->timer(80, sub { $fired //= now() });
    my $updated;
    for (1 .. 2) {
        $t->run_fully(0.05);
        undef $fired;
        $updated = now();
        $t->update_timeout($id, 80);
    }
    $t->until(sub { $fired });
    cmp_ok $fired - $updated, '>=', 0.079, 'it fired the whole interval after the last update';
};

# What else runs while a timer of 0 ms does. $is_done->() ends the wait.
sub beside_busy_timer {
    my ($t, $is_done) = @_;
    my $busy = $t->add_timeout(0);
    # A fast loop has passed so often before another timer is due, and a process may have to wait for the processor.
    my $end = now() + patience(0.5);
    $t->until(sub { $is_done->($busy) || $t->count(timer => $busy) >= 2000 && now() > $end });
    cmp_ok $t->count(timer => $busy), '>', 0, 'it fires';
    return $busy;
}

case 51 => 'zero_each_pass', timer => {
    rule   => 'a 0 ms timer fires in each pass',
    source => 'src/util/virevent.c, virEventAddTimeout',
    harm   => 'To libvirt 0 ms means as soon as possible: it delivers events and the data of streams that way. A'
        . ' timer that fires once only, or some ms later each time, loses the rest of a stream, or makes it slow.',
    advice => 'Treat 0 as due in each pass of the loop, again and again',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my $handle = $t->add_handle($reader, READABLE);
    my $busy = beside_busy_timer($t, sub { $t->count(handle => $handle) >= 20 });
    cmp_ok $t->count(timer => $busy), '>=', $t->count(handle => $handle) - 1, 'as often as a handle that is ready';
};

case 52 => 'zero_starves_no_handle', timer => {
    rule   => 'a 0 ms timer keeps no handle from being served',
    source => 'src/rpc/virnetclientstream.c, virNetClientStreamEventTimerUpdate: a writable stream is a timer of 0 ms',
    harm   => 'While a stream can be written its timer fires in each pass. If the socket is not read meanwhile, no'
        . ' reply, no event and no ping of the server comes through, and the server breaks the connection off.',
    advice => 'Poll the handles in each pass, also when a timer is due already',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my $handle = $t->add_handle($reader, READABLE);
    beside_busy_timer($t, sub { $t->count(handle => $handle) >= 50 });
    cmp_ok $t->count(handle => $handle), '>=', 50, 'a handle is served';
};

case 53 => 'zero_starves_no_timer', timer => {
    rule   => 'a 0 ms timer keeps no other timer from firing',
    source => 'src/rpc/virnetclientstream.c, virNetClientStreamEventTimerUpdate: a writable stream is a timer of 0 ms',
    harm   => 'While a stream can be written its timer fires in each pass. If that holds up other timers, events wait'
        . ' until the stream is done, and keepalive does not notice a dead peer.',
    advice => 'Run all timers that are due in a pass, not only the first',
}, sub {
    my ($t) = @_;
    my $timer = $t->add_timeout(5);
    my $other;
    beside_busy_timer($t, sub {
        $other //= $t->add_timeout(0);
        return $t->count(timer => $timer) >= 2 && $t->count(timer => $other) >= 5;
    });
    cmp_ok $t->count(timer => $timer), '>=', 2, 'one of 5 ms fires';
    cmp_ok $t->count(timer => $other), '>=', 5, 'another of 0 ms fires';
};

case 54 => 'set_in_each_pass', timer => {
    rule   => 'a timer fires that a handle sets to 0 ms again in each pass',
    source => 'src/rpc/virnetclientstream.c, virNetClientStreamEventTimerUpdate, which each packet runs',
    harm   => 'Each packet of a stream that libvirt reads sets the timer of the stream to 0 ms. If that puts its call'
        . ' off to the next pass, the program sees nothing of the stream while packets come in, and they pile up in'
        . ' memory.'
        . ' libvirt\'s own loop has this fault.',
    advice => 'Make a timer of 0 ms due at once, and keep it so when it is set to 0 ms again',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my $before = $t->add_timeout(-1);
    my $handle = $t->add_handle($reader, READABLE);
    my $after  = $t->add_timeout(-1);
    $t->on_handle($handle, map { [update_timeout => $_, 0] } $before, $after);
    $t->until(sub { $t->count(handle => $handle) >= 500 || !grep { $t->count(timer => $_) < 3 } $before, $after });
    is grep({ $t->count(timer => $_) >= 3 } $before, $after), 2, 'one that was added before the handle, and one after';
};

case 55 => 'periodic', timer => {
    rule   => 'a timer fires again and again, each time not before its period is over',
    source => 'src/util/virevent.c, virEventAddTimeout',
    harm   => "A timer stays on until somebody stops it: libvirt's streams and the programs that add timers count on"
        . " that, and stand still if it fires once only. One that fires early ends limits, such as those of"
        . " keepalive, before their time.",
    advice => 'Start the timer again each time, from now, and round waits up to the next ms',
}, sub {
    my ($t) = @_;
    my ($start, @fired);
    # A machine that was busy with something else gets another chance.
    for (1 .. 3) {
        my $is_over;
        $start = now();
        @fired = ();
        my @timers = ($t->timer(20, sub { push @fired, now() - $start }), $t->timer(210, sub { $is_over = 1 }));
        $t->until(sub { $is_over });
        Sys::Virt::Event::remove_timeout($_) for @timers;
        last if @fired >= 5;
    }
    cmp_ok scalar @fired, '>=', 5, 'most of 10 times in 210 ms';
    is_deeply [grep { $fired[$_] < 0.020 * ($_ + 1) - 0.001 } 0 .. $#fired], [], 'each time after its period';
};

# A timer that is late by many periods fires once, and no more often than time allows afterwards.
case 56 => 'no_burst', timer => {
    rule   => 'periods missed while the process was stopped are not made up for',
    source => 'src/util/vireventglib.c: the next period of a GLib timeout counts from now',
    harm   => 'After Ctrl-Z, or in a debugger, the calls for all missed periods come at once. A'
        . ' program that asks libvirt for something every second does so thousands of times, while its connections'
        . ' wait to be read.',
    advice => 'Count the next period from now, not from when the last was due',
}, sub {
    my ($t) = @_;
    my $fired = 0;
    $t->timer(20, sub { $fired++ });
    $t->until(sub { $fired });
    my $parent = $$;
    $fired = 0;
    my $start = now();
    defined(my $pid = fork) or die "Cannot fork: $!";
    if (!$pid) {
        kill STOP => $parent;
        pause(0.3);
        kill CONT => $parent;
        POSIX::_exit(0);
    }
    waitpid $pid, 0;
    $t->until(sub { $fired >= 3 });
    my $awake = now() - $start - 0.3;
    cmp_ok $awake, '>=', 0, 'it was stopped';
    cmp_ok $fired, '<=', $awake / 0.02 + 2, "$fired times, in $awake s, and not a dozen times more";
    cmp_ok $fired, '>=', 3, 'it goes on';
};

# The order of things in one pass.

# Calls $code->(the id, the others) for each.
sub others_of {
    my ($ids, $code) = @_;
    for my $id (@$ids) {
        $code->($id, grep { $_ != $id } @$ids);
    }
    return;
}

# The first one that runs keeps the others from it: whichever that is, no other is seen.
sub one_of_them {
    my ($t, $kind) = @_;
    $t->until(sub { $t->count($kind) });
    $t->passes(5);
    my %ran = map { $_->{id} => 1 } $t->entries($kind);
    is keys %ran, 1, 'one of them ran';
    return;
}

case 57 => 'removed_in_pass', order => {
    rule   => 'a watch removed by an earlier callback of the pass does not run',
    source => 'tests/eventtest.c',
    harm   => 'A callback of libvirt may end a connection or a stream whose own socket was ready in the same poll.'
        . ' The call for that one then works on memory that is being freed: the program crashes, now and then.',
    advice => 'Before each callback of a pass look whether its watch is still registered',
}, sub {
    my ($t) = @_;
    my @pipes = map { [ready_pipe()] } 1 .. 5;
    my @ids   = map { $t->add_handle($_->[0], READABLE) } @pipes;
    others_of(\@ids, sub { $t->on_handle($_[0], map { [remove_handle => $_] } @_[1 .. 4]) });
    one_of_them($t, 'handle');
};

case 58 => 'timer_removed_in_pass', order => {
    rule   => 'a timer removed by another one that was due with it does not fire',
    source => 'tests/eventtest.c',
    harm   => 'The callback of a keepalive closes a connection, and removes the timers that belong to it. If one of'
        . ' these is called later in the same pass it works on memory that is being freed.',
    advice => 'Before each timer of a pass look whether it is still registered',
}, sub {
    my ($t) = @_;
    my @ids = map { $t->add_timeout($_) } 1, 0, 3, 0, 2;
    others_of(\@ids, sub {
        $t->on_timeout($_[0], [update_timeout => 'self', -1], map { [remove_timeout => $_] } @_[1 .. 4]);
    });
    pause(0.01);
    one_of_them($t, 'timer');
};

case 59 => 'disabled_in_pass', order => {
    rule   => 'a watch whose mask an earlier callback of the pass has set to 0 does not run',
    source => 'src/rpc/virnetclient.c: the mask is 0 while a call waits for its reply',
    harm   => 'A callback that makes a call of libvirt takes the socket out of the loop, as the call reads it by'
        . ' itself. What was ready in the same poll has been read by then, and the late callback waits for locks, or'
        . ' for data.',
    advice => 'Before each callback of a pass look at the mask that its watch has now',
}, sub {
    my ($t) = @_;
    my @pipes = map { [ready_pipe()] } 1 .. 5;
    my @ids   = map { $t->add_handle($_->[0], READABLE) } @pipes;
    others_of(\@ids, sub { $t->on_handle($_[0], map { [update_handle => $_, 0] } @_[1 .. 4]) });
    one_of_them($t, 'handle');
};

case 60 => 'narrowed_in_pass', order => {
    rule   => 'a watch is not told of an event that an earlier callback of the pass has taken from its mask',
    source => 'src/util/vireventglib.c, virEventGLibHandleUpdate: the watch is polled anew with its new mask',
    harm   => 'A watch that waits to write only is told that it can read what somebody else has read meanwhile. Its'
        . ' callback reads all the same, and on a blocking fd the program hangs.',
    advice => 'Before each callback of a pass mask its events with what its watch asks for now',
}, sub {
    my ($t) = @_;
    my @pairs = map { [socket_pair()] } 1 .. 3;
    put_byte($_->[1]) for @pairs;
    my @ids = map { $t->add_handle($_->[0], READABLE | WRITABLE) } @pairs;
    others_of(\@ids, sub { $t->on_handle($_[0], map { [update_handle => $_, WRITABLE] } @_[1, 2]) });
    $t->until(sub { $t->count('handle') >= 6 });
    my %can_read = map { $_->{id} => 1 } grep { $_->{events} & READABLE } $t->entries('handle');
    is keys %can_read, 1, 'one of three can read';
};

case 61 => 'timer_disabled_in_pass', order => {
    rule   => 'a timer disabled by another one that was due with it does not fire',
    source => 'src/util/vireventglib.c, virEventGLibTimeoutUpdate',
    harm   => 'libvirt switches a timer off when there is nothing left for it to do, be it a stream that has been'
        . ' read to its end. A call that comes all the same is about a stream that may be closed.',
    advice => 'Before each timer of a pass look whether it is still enabled',
}, sub {
    my ($t) = @_;
    my @ids = map { $t->add_timeout(1) } 1 .. 5;
    others_of(\@ids, sub { $t->on_timeout($_[0], map { [update_timeout => $_, -1] } @_[1 .. 4]) });
    pause(0.01);
    one_of_them($t, 'timer');
};

case 62 => 'timer_restarted_in_pass', order => {
    rule   => 'a timer restarted by another one that was due with it waits for its new interval',
    source => 'src/util/vireventglib.c, virEventGLibTimeoutUpdate; src/rpc/virkeepalive.c, virKeepAliveCheckMessage',
    harm   => 'What was put off is called all the same. After a long callback a limit is overdue, and the sign of'
        . ' life that renews it is there to be read: the program gives up what is alive.',
    advice => 'Before each timer of a pass look at the time at which it is due now',
}, sub {
    my ($t) = @_;
    my @ids = map { $t->add_timeout(1) } 1 .. 5;
    others_of(\@ids, sub { $t->on_timeout($_[0], map { [update_timeout => $_, 60_000] } @_[1 .. 4]) });
    pause(0.01);
    one_of_them($t, 'timer');
};

case 63 => 'across_kinds', order => {
    rule   => 'a handle removed by a timer that was due with it does not run; the same the other way round',
    source => 'src/rpc/virnetclient.c: keepalive and socket end each other',
    harm   => 'Handle and timer of one connection end each other. If the other still runs in that pass it works on'
        . ' memory that is being freed.',
    advice => 'Before each callback of a pass, be it of a handle or a timer, look whether it is still registered',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my $handle = $t->add_handle($reader, READABLE);
    my $timer  = $t->add_timeout(0);
    $t->on_handle($handle, [update_handle => 'self', 0], [remove_timeout => $timer]);
    $t->on_timeout($timer, [update_timeout => 'self', -1], [remove_handle => $handle]);
    $t->until(sub { $t->dispatched });
    $t->passes(5);
    my @dispatched = $t->dispatched;
    is @dispatched, 1, 'one of the two ran';
};

# Each callback of a chain sets the next one free. If there was no poll in between, the handle that is always ready
# would be missing between the links of the chain.
sub chain_is_polled {
    my ($t, $handle) = @_;
    my @story;
    $t->until(sub { 10 <= grep { $_ ne "handle $handle" } @story = $t->dispatched });
    my $story = join '', map { $_ eq "handle $handle" ? '-' : 'x' } @story;
    cmp_ok $story =~ tr/x//, '>=', 10, 'all links of the chain ran';
    # What is not called in its turn may be called with the next.
    unlike $story, qr/xxxx/, 'none of them in the pass in which it became ready';
    return;
}

case 64 => 'added_in_pass', order => {
    rule   => 'a handle that a callback adds waits for the next poll',
    source => 'src/util/vireventpoll.c of libvirt before 6.1, virEventPollDispatchHandles: only what was polled',
    harm   => 'A loop that calls what was added meanwhile says that an fd is ready that it has never looked at: the'
        . ' callback reads, and hangs. A chain of such adds keeps the loop from ever polling again.',
    advice => 'Collect what is ready before the first callback, and call only that',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my ($more, $more_writer) = ready_pipe();
    my $handle = $t->add_handle($reader, READABLE);
    my @ops;
    for (1 .. 10) {
        @ops = ([remove_handle => 'self'], @ops ? [add_handle => $more, READABLE, in_callback => [@ops]] : ());
    }
    $t->add_handle($more, READABLE, in_callback => \@ops);
    chain_is_polled($t, $handle);
};

case 65 => 'enabled_in_pass', order => {
    rule   => 'a handle that a callback enables hears only of what is ready then',
    source => 'src/util/vireventglib.c, virEventGLibHandleUpdate: a watch that was off is polled from the next pass on',
    harm   => 'With two watches on one fd, the first reads what is there and hands over to the second. Told of the'
        . ' data that is gone, the second reads as well, and on a blocking fd the program hangs.',
    advice => 'Call in a pass only what was enabled when the pass polled',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my $before = $t->add_handle($reader, 0);
    my $first  = $t->add_handle($reader, READABLE, read => 1);
    my $after  = $t->add_handle($reader, 0);
    my @others = ($before, $after);
    $t->on_handle($first, [update_handle => 'self', 0], map { [update_handle => $_, READABLE] } @others);
    $t->on_handle($_, [update_handle => 'self', 0]) for @others;
    $t->until(sub { $t->count(handle => $first) });
    $t->passes(3);
    is_deeply [$t->dispatched], ["handle $first"], 'the one that was enabled has read the data';
    put_byte($writer);
    $t->until(sub { $t->count('handle') >= 3 });
    is_deeply [map { $t->count(handle => $_) } @others], [1, 1], 'the others hear of the next';
};

case 66 => 'timer_added_in_pass', order => {
    rule   => 'a timer that a callback adds waits for the next pass, also one of 0 ms',
    source => 'src/util/vireventpoll.c of libvirt before 6.1, virEventPollDispatchTimeouts: only those there before',
    harm   => 'Callbacks that put off their work by adding a timer of 0 ms, and do so again, keep such a loop from'
        . ' ever polling: the sockets of libvirt are not read any more, and the server breaks the connections off.',
    advice => 'Collect the timers that are due before the first callback, and call only these',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my $handle = $t->add_handle($reader, READABLE);
    my @ops;
    for (1 .. 10) {
        @ops = ([remove_timeout => 'self'], @ops ? [add_timeout => 0, in_callback => [@ops]] : ());
    }
    $t->add_timeout(0, in_callback => \@ops);
    chain_is_polled($t, $handle);
};

case 67 => 'timer_enabled_in_pass', order => {
    rule   => 'a timer that a callback enables waits for the next pass, also with 0 ms',
    source => 'src/conf/object_event.c: handlers of events cause further events, which set the timer to 0 ms',
    harm   => 'A handler that causes an event in its turn keeps such a loop in one pass for ever: the sockets of'
        . ' libvirt are not read any more, and the server breaks the connections off.',
    advice => 'Collect the timers that are due before the first callback, and call only these',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my $handle = $t->add_handle($reader, READABLE);
    my @timers = map { $t->add_timeout(-1) } 1, 2;
    $t->on_timeout($timers[$_], [update_timeout => 'self', -1], [update_timeout => $timers[1 - $_], 0]) for 0, 1;
    $t->update_timeout($timers[0], 0);
    chain_is_polled($t, $handle);
};

1;
