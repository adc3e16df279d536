# Mutants for the cases of Cases/Timers.pm.
use strict;
use warnings;

my $POLL = 'lib/Sys/Virt/Event/Poll.pm';

# The timer is set before its callback; these set it afterwards.
my $SET_BEFORE   = '    $timer->{due} = $now + $timer->{ms} / 1000 if $timer->{ms};';
my $END_OF_TIMER = '    $self->_run_timeout_callback(@$timer{qw(key cb opaque)});
}';

# More dispatches before the next poll are made between these.
my $START_OF_PASS = '    my @errors;';
my $END_OF_PASS   = '    $self->_throw(@errors) if @errors;';

# The core does not dispatch what libvirt has removed, but for these passes.
my @RUNS_REMOVED = (
    ['src/bridge.c', '    if (!watch->attached)
        return SVE_GONE;',
        '    if (!watch->attached && !getenv("IN_PASS"))
        return SVE_GONE;'],
    [$POLL, '    local $@;', '    local $@;
    local $ENV{IN_PASS} = 1;'],
);

# A timer that was removed is served all the same, unless this holds; fired: the pass has fired another one.
sub fires_removed {
    my ($condition) = @_;
    my $serve = 'return if !$self->_may_serve($pass, $timer)';
    return (
        [$POLL, $START_OF_PASS, '    $self->{fired} = 0;' . $START_OF_PASS],
        [$POLL, $serve, "local \$timer->{removed} = \$timer->{removed} && $condition;
    \$self->{fired}++;
    $serve"],
        @RUNS_REMOVED,
    );
}

return (
    {
        case  => 'timer_enabled',
        also  => ['last_update_counts'],
        what  => 'a timer that is enabled fires at once, whatever its interval',
        edits => [
            [$POLL, '    $timer->{ms} = $ms;', '    my $is_off = exists $timer->{due} && $timer->{ms} < 0;
    $timer->{ms} = $ms;'],
            [$POLL, '$ms > 0 ? _now()', '$ms > 0 && !$is_off ? _now()'],
        ],
    },
    {
        case  => 'timer_disabled',
        what  => 'a timer that was disabled after it has fired is not started again',
        edits => [
            [$POLL, '    $timer->{ms} = $ms;', '    return if $timer->{stopped};
    $timer->{stopped} = $ms < 0 && $timer->{served} && !$timer->{busy};
    $timer->{ms} = $ms;'],
        ],
    },
    {
        case  => 'timer_disabled',
        what  => 'a running timer is not stopped',
        edits => [[$POLL, '    $timer->{ms} = $ms;', '    return if $ms < 0 && $timer->{served} && !$timer->{busy};
    $timer->{ms} = $ms;']],
        also  => ['lets_sleep'],
    },
    {
        case  => 'negative',
        what  => 'only -1 disables',
        edits => [[$POLL, '    $timer->{ms} = $ms;', '    $ms = 0 if $ms < -1;
    $timer->{ms} = $ms;']],
    },
    {
        case  => 'longest',
        what  => 'microseconds in 32 bits',
        edits => [[$POLL, '_now() + $ms / 1000 :', '_now() + unpack("l", pack "l", $ms * 1000) / 1e6 :']],
    },
    {
        case  => 'lets_sleep',
        what  => 'a disabled timer makes it poll without waiting',
        edits => [[$POLL, '$_->{busy} || $_->{ms} < 0 ? ()', '$_->{busy} ? ()']],
    },
    {
        case  => 'timer_removed_before',
        also  => ['no_growth', 'timer_removed_asleep'],
        what  => 'a timer that was removed fires once all the same',
        edits => [
            [$POLL, '    $timer->{removed} = 1;', '    $timer->{removed} = 1;
    $self->{late}{$key} = { %$timer, removed => 0 } if $timer->{due} && $timer->{due} > _now() + 0.015;'],
            [$POLL, '    my @errors;', '    delete $self->{late}{ $_->{key} }, push @expired, $_
        for grep { $_->{due} <= $now } values %{ $self->{late} };
    my @errors;'],
            @RUNS_REMOVED,
        ],
    },
    {
        case  => 'timer_removes_itself',
        what  => 'after the callback the timer is started again, removed or not',
        edits => [
            [$POLL, $END_OF_TIMER, '    my $key = $timer->{key};
    $self->_run_timeout_callback(@$timer{qw(key cb opaque)});
    delete $timer->{removed}, $self->{timers}{$key} = $timer if $timer->{removed} && $timer->{ms} >= 10;
}'],
            @RUNS_REMOVED,
        ],
    },
    {
        case  => 'timer_disables_itself',
        what  => 'after the callback the timer is started again, disabled or not',
        edits => [
            [$POLL, $SET_BEFORE, '    my $ms = $timer->{ms};'],
            [$POLL, $END_OF_TIMER, '    $self->_run_timeout_callback(@$timer{qw(key cb opaque)});
    $timer->{ms} = $ms if $timer->{ms} < 0;
    $timer->{due} = $now + $timer->{ms} / 1000 if $timer->{ms};
}'],
        ],
    },
    {
        case  => 'timer_updates_itself',
        also  => ['nothing_stale'],
        what  => 'after the callback the timer is started again with the interval that it had before',
        edits => [
            [$POLL, $SET_BEFORE, '    my $ms = $timer->{ms};'],
            [$POLL, $END_OF_TIMER, '    $self->_run_timeout_callback(@$timer{qw(key cb opaque)});
    $timer->{due} = $now + $ms / 1000 if $ms && $timer->{ms} > 0;
}'],
        ],
    },
    {
        case  => 'shortened',
        what  => 'a running timer is not made shorter',
        edits => [[$POLL, '    $timer->{ms} = $ms;', '    my $before = $timer->{ms} // 0;
    $timer->{ms} = $ms;
    return if $ms > 0 && $ms < $before;']],
    },
    {
        case  => 'restarted',
        what  => 'an update to the same interval is left out',
        edits => [[$POLL, '    $timer->{ms} = $ms;', '    return if exists $timer->{due} && $timer->{ms} == $ms;
    $timer->{ms} = $ms;']],
    },
    {
        case  => 'zero_each_pass',
        what  => '0 ms is 1 ms after the first time',
        edits => [[$POLL, '$now + $timer->{ms} / 1000 if $timer->{ms};', '$now + ($timer->{ms} || 1) / 1000;']],
    },
    {
        case  => 'zero_starves_no_handle',
        also  => ['last_of_many', 'timer_enabled_in_pass'],
        what  => 'while a timer of 0 ms is busy the handles are left out',
        edits => [[$POLL, '    my @errors;', '    @ready = () if grep { $_->{ms} == 0 && ++$_->{count} > 30 } @expired;
    my @errors;']],
    },
    {
        case  => 'zero_starves_no_timer',
        what  => 'while a timer of 0 ms is due those of other intervals wait',
        edits => [[$POLL, '    my @errors;', '    @expired = grep { !$_->{ms} } @expired if grep { !$_->{ms} } @expired;
    my @errors;']],
    },
    {
        case  => 'set_in_each_pass',
        what  => '0 ms is due from when it was last set',
        edits => [[$POLL, '$ms > 0 ? _now()', '$ms >= 0 ? _now()']],
    },
    {
        case  => 'periodic',
        what  => 'a timer that fires again is a third early',
        edits => [[$POLL, '$now + $timer->{ms} / 1000 if', '$now + $timer->{ms} / 1500 if']],
    },
    {
        case  => 'no_burst',
        what  => 'the next period counts from when the last one was due',
        edits => [[$POLL, '    $timer->{due} = $now + $timer', '    $timer->{due} += $timer']],
    },
    {
        case  => 'removed_in_pass',
        also  => ['calls_while_blocked', 'removes_its_like'],
        what  => 'a handle that was ready runs though it was removed',
        edits => [[$POLL, '    $handle->{removed} = 1;', ''], @RUNS_REMOVED],
    },
    {
        case  => 'timer_removed_in_pass',
        what  => 'a timer that was due fires though it was removed',
        edits => [fires_removed('!$self->{fired}')],
    },
    {
        case  => 'disabled_in_pass',
        also  => ['fd_reused_in_pass'],
        what  => 'a handle that was ready runs though its mask is 0 now',
        edits => [
            [$POLL, ' || !$handle->{events};', ';'],
            [$POLL, '$events &= $handle->{events} | ERROR | HANGUP or return;',
                '$events &= ($handle->{events} || ~0) | ERROR | HANGUP or return;'],
        ],
    },
    {
        case  => 'narrowed_in_pass',
        what  => 'a handle is told of what it does not ask for any more',
        edits => [[$POLL, '    $events &= $handle->{events} | ERROR | HANGUP or return;', '']],
    },
    {
        case  => 'timer_disabled_in_pass',
        what  => 'a timer that was due fires though it is disabled now',
        edits => [[$POLL, ' || $timer->{ms} < 0', '']],
    },
    {
        case  => 'timer_restarted_in_pass',
        what  => 'a timer that was due fires though it was started again',
        edits => [[$POLL, ' || $timer->{due} > $now;', ';']],
    },
    {
        case  => 'across_kinds',
        what  => 'a timer fires though a handle has removed it in the same pass',
        edits => [fires_removed('$self->{fired}')],
    },
    {
        case  => 'added_in_pass',
        what  => 'handles that were added in the pass are called in it',
        edits => [
            [$POLL, $START_OF_PASS, $START_OF_PASS . ' my $seen = $self->{last_key};'],
            [$POLL, $END_OF_PASS, '    while (my @new = grep { $_->{key} > $seen } values %{ $self->{handles} }) {
        $seen = $self->{last_key};
        $self->_dispatch_handle($pass, @$_) for _poll(\@new, 0);
    }
' . $END_OF_PASS],
        ],
    },
    {
        case  => 'enabled_in_pass',
        what  => 'handles that were enabled in the pass are told what was polled for others',
        edits => [
            [$POLL, '        $events &= $handle->{events} | ERROR | HANGUP;', ''],
            [$POLL, 'grep { $_->{events} && !$_->{closed} && !$_->{busy} } @watched;',
                'sort { $a->{key} <=> $b->{key} } grep { !$_->{closed} && !$_->{busy} } @watched;
    my %polled = map { $_->{events} ? ($_->{fd} => 1) : () } @handles;
    @handles = grep { $polled{ $_->{fd} } } @handles;'],
        ],
    },
    {
        case  => 'timer_added_in_pass',
        what  => 'timers that were added in the pass fire in it',
        edits => [
            [$POLL, $START_OF_PASS, $START_OF_PASS . ' my $seen = $self->{last_key};'],
            [$POLL, $END_OF_PASS, '    while (my @new = grep { $_->{key} > $seen } values %{ $self->{timers} }) {
        $seen = $self->{last_key};
        $self->_dispatch_timer($pass, $_, $now) for @new;
    }
' . $END_OF_PASS],
        ],
    },
    {
        case  => 'timer_enabled_in_pass',
        what  => 'timers that were enabled in the pass fire in it',
        edits => [
            [$POLL, '    $timer->{ms} = $ms;', '    $timer->{is_new} = !$ms && exists $timer->{due} && $timer->{ms} < 0;
    $timer->{ms} = $ms;'],
            [$POLL, $END_OF_PASS, '    for (1 .. 10) {
        my @new = grep { $_->{is_new} } values %{ $self->{timers} };
        delete $_->{is_new}, $self->_dispatch_timer($pass, $_, $now) for @new;
    }
' . $END_OF_PASS],
        ],
    },
);
