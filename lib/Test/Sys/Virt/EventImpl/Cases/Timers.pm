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

case 0 => 'enabled_and_disabled', timer => {
    rule   => 'a disabled timer fires when it gets an interval, until it gets -1',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my @fired;
    my $id = $t->timer(-1, sub { push @fired, now() });
    $t->run_fully(0.03);
    is_deeply \@fired, [], 'disabled';
    my $start = now();
    $t->update_timeout($id, 100);
    $t->until(sub { @fired });
    cmp_ok $fired[0] // 0, '>=', $start + 0.099, 'enabled: it fires, not before its time';
    $t->update_timeout($id, 10);
    $t->until(sub { @fired > 3 });
    cmp_ok scalar @fired, '>', 3, 'it goes on';
    $t->update_timeout($id, -1);
    my $count = @fired;
    $t->run_fully(0.03);
    is scalar @fired, $count, 'disabled again';
};

case 0 => 'timer_removed_before', timer => {
    rule   => 'a timer removed before it is due does not fire, others do',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my ($removed, $kept) = map { $t->add_timeout(20) } 1, 2;
    is $t->remove_timeout($removed), 0, 'removed';
    $t->until(sub { $t->count(timer => $kept) > 1 });
    cmp_ok $t->count(timer => $kept), '>', 1, 'the other fires';
    is $t->count(timer => $removed), 0;
};

case 0 => 'timer_removes_itself', timer => {
    rule   => 'a timer that removes itself has fired once',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my @ids = map { $t->add_timeout($_, in_callback => [[remove_timeout => 'self']]) } 0, 10;
    $t->until(sub { $t->count('timer') >= 2 });
    $t->run_fully(0.03);
    $t->passes(3);
    is_deeply [sort $t->dispatched], [sort map { "timer $_" } @ids];
    is_deeply [map { $_->{result} } $t->entries('remove_timeout')], [0, 0], 'the removals returned 0';
};

case 0 => 'shortened', timer => {
    rule   => 'a shorter interval counts at once',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my $fired;
    my $id = $t->timer(3000, sub { $fired //= now() });
    $t->run(0.02);
    my $start = now();
    $t->update_timeout($id, 60);
    my $clock = $t->add_timeout(1500);
    $t->until(sub { $fired || $t->count(timer => $clock) });
    is $t->count(timer => $clock), 0, 'it did not wait for the 3000 ms';
    cmp_ok $fired // 0, '>=', $start + 0.059, 'and was not early';
};

case 0 => 'restarted', timer => {
    rule   => 'an update restarts the interval, even to the same value',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my $fired;
    my $id = $t->timer(120, sub { $fired //= now() });
    my $updated;
    for (1 .. 3) {
        $t->run_fully(0.06);
        undef $fired;
        $updated = now();
        $t->update_timeout($id, 120);
    }
    $t->until(sub { $fired });
    cmp_ok $fired - $updated, '>=', 0.119, 'it fired the whole interval after the last update';
};

case 0 => 'starves_nothing', timer => {
    rule   => 'a 0 ms timer fires in each pass, and starves nothing',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my $busy   = $t->add_timeout(0);
    my $handle = $t->add_handle($reader, READABLE);
    my $timer  = $t->add_timeout(15);
    my @gone   = ($t->add_handle($reader, 0), $t->add_timeout(-1), $t->add_timeout(0));
    $t->remove_handle($gone[0]);
    $t->remove_timeout($_) for @gone[1, 2];
    $t->until(sub {
        $t->count(timer => $timer) >= 2 && $t->count(handle => $handle) >= 20 && $t->count(timer => $busy) >= 20
    });
    cmp_ok $t->count(timer => $timer), '>=', 2, 'another timer';
    cmp_ok $t->count(handle => $handle), '>=', 20, 'a handle';
    is $t->count('ff'), 3, 'free functions';
    cmp_ok $t->count(timer => $busy), '>=', $t->count(handle => $handle) - 1, 'in each pass';
};

case 0 => 'set_in_each_pass', timer => {
    rule   => 'a timer that each pass sets to 0 ms fires, as the streams of libvirt need it',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my @before = map { $t->add_timeout(-1) } 1, 2;
    my $handle = $t->add_handle($reader, READABLE);
    my $timer  = $t->add_timeout(0);
    my @after  = map { $t->add_timeout(-1) } 1, 2;
    my ($of_handle, $of_timer) = ([$before[0], $after[0]], [$before[1], $after[1]]);
    $t->on_handle($handle, map { [update_timeout => $_, 0] } @$of_handle);
    $t->on_timeout($timer, map { [update_timeout => $_, 0] } @$of_timer);
    $t->until(sub { !grep { $t->count(timer => $_) < 3 } @before, @after });
    is grep({ $t->count(timer => $_) >= 3 } @$of_handle), 2, 'by a handle';
    is grep({ $t->count(timer => $_) >= 3 } @$of_timer), 2, 'by a timer';
};

case 0 => 'negative', timer => {
    rule   => 'any negative interval disables',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my @ids = map { $t->add_timeout($_) } -2, -100, -2**31, 0, 5, 0;
    $t->update_timeout($ids[3], -2);
    $t->update_timeout($ids[4], -100);
    my $fires = pop @ids;
    $t->until(sub { $t->count(timer => $fires) > 5 });
    $t->run_fully(0.03);
    is_deeply [grep { $_ ne "timer $fires" } $t->dispatched], [], 'none of them fired';
};

case 0 => 'periodic', timer => {
    rule   => 'a timer fires again and again, never early',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my ($start, @fired, $end) = now();
    my $id = $t->timer(30, sub { push @fired, now() - $start });
    $t->timer(310, sub { $end //= @fired });
    $t->until(sub { $end });
    cmp_ok $end, '>=', 5, 'most of 10 times in 310 ms';
    is_deeply [grep { $fired[$_] < 0.030 * ($_ + 1) - 0.001 } 0 .. $#fired], [], 'each time after its period';
};

# A timer that is late by many periods fires once, and no more often than time allows afterwards.
case 0 => 'no_burst', timer => {
    rule   => 'periods missed while the process was suspended are not made up for',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my $fired = 0;
    $t->timer(30, sub { $fired++ });
    $t->until(sub { $fired });
    my $parent = $$;
    $fired = 0;
    my $start = now();
    defined(my $pid = fork) or die "Cannot fork: $!";
    if (!$pid) {
        kill STOP => $parent;
        pause(0.4);
        kill CONT => $parent;
        POSIX::_exit(0);
    }
    waitpid $pid, 0;
    $t->until(sub { $fired >= 3 });
    my $awake = now() - $start - 0.4;
    cmp_ok $awake, '>=', 0, 'it was suspended';
    cmp_ok $fired, '<=', $awake / 0.03 + 2, "$fired times, in $awake s, and not a dozen times more";
    cmp_ok $fired, '>=', 3, 'it goes on';
};

# The order of things in one pass.

case 0 => 'removed_in_pass', order => {
    rule   => 'a watch removed by an earlier callback of the pass does not run',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my @pipes = map { [ready_pipe()] } 1 .. 5;
    my @ids   = map { $t->add_handle($_->[0], READABLE) } @pipes;
    for my $id (@ids) {
        $t->on_handle($id, [update_handle => 'self', 0], map { [remove_handle => $_] } grep { $_ != $id } @ids);
    }
    $t->until(sub { $t->count('handle') });
    $t->passes(5);
    is $t->count('handle'), 1, 'one of five ran';
    is_deeply [map { $_->{result} } $t->entries('remove_handle')], [(0) x 4], 'it removed the others';
    is $t->count('ff'), 4, 'they were freed';
};

case 0 => 'disabled_in_pass', order => {
    rule   => 'a watch or timer disabled by an earlier callback of the pass does not run',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my @pipes = map { [ready_pipe()] } 1 .. 5;
    my @ids   = map { $t->add_handle($_->[0], READABLE) } @pipes;
    $t->on_handle($_, map { [update_handle => $_, 0] } @ids) for @ids;
    $t->until(sub { $t->count('handle') });
    $t->passes(5);
    is $t->count('handle'), 1, 'one of five handles ran';
    my @timers = map { $t->add_timeout(1) } 1 .. 5;
    $t->on_timeout($_, map { [update_timeout => $_, -1] } @timers) for @timers;
    pause(0.01);
    $t->until(sub { $t->count('timer') });
    $t->passes(5);
    is $t->count('timer'), 1, 'one of five timers fired';
};

case 0 => 'removed_timer_in_pass', order => {
    rule   => 'a timer removed by another one that was due with it does not fire',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my @ids = map { $t->add_timeout($_) } 1, 0, 3, 0, 2;
    for my $id (@ids) {
        $t->on_timeout($id, [update_timeout => 'self', -1], map { [remove_timeout => $_] } grep { $_ != $id } @ids);
    }
    pause(0.01);
    $t->until(sub { $t->count('timer') });
    $t->passes(5);
    is $t->count('timer'), 1, 'one of five fired';
    is $t->count('ff'), 4, 'the others were freed';
};

case 0 => 'across_kinds', order => {
    rule   => 'a timer removes a handle that was ready with it, or the reverse',
    source => '',
    harm   => '',
    advice => '',
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
    is $t->count('ff'), 1, 'the other was freed';
};

# Each callback removes its own watch and adds the next. If there was no poll in between, the handle that is always
# ready would be missing between the links of the chain.
sub chain_is_polled {
    my ($t, $what, $handle) = @_;
    $t->until(sub { $t->count('ff') >= 10 });
    my $story = join '', map { $_ eq "handle $handle" ? '-' : /^ff/ ? '' : 'x' } $t->story;
    is $story =~ tr/x//, 10, "$what: all links of the chain ran";
    unlike $story, qr/xxx/, '... none of them in the pass in which it was added';
    return;
}

case 0 => 'added_in_pass', order => {
    rule   => 'what a callback adds waits for the next poll',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my ($more, $more_writer) = ready_pipe();
    my $handle = $t->add_handle($reader, READABLE);

    my (@timers, @handles);
    for (1 .. 10) {
        @timers  = ([remove_timeout => 'self'], @timers ? [add_timeout => 0, in_callback => [@timers]] : ());
        @handles = ([remove_handle => 'self'], @handles ? [add_handle => $more, READABLE, in_callback => [@handles]] : ());
    }
    $t->add_timeout(0, in_callback => \@timers);
    chain_is_polled($t, 'timers', $handle);
    $t->forget_log;
    $t->add_handle($more, READABLE, in_callback => \@handles);
    chain_is_polled($t, 'handles', $handle);
};

case 0 => 'enabled_in_pass', order => {
    rule   => 'what a callback enables waits for the next poll',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my $handle = $t->add_handle($reader, READABLE);
    my @timers = map { $t->add_timeout(-1) } 1 .. 10;
    for my $n (0 .. 9) {
        $t->on_timeout($timers[$n], [remove_timeout => 'self'], $n < 9 ? [update_timeout => $timers[$n + 1], 0] : ());
    }
    $t->update_timeout($timers[0], 0);
    chain_is_polled($t, 'timers', $handle);
};

1;
