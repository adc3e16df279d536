package VirtTest::SelectLoop;

# A loop written from the contract alone, unlike Sys::Virt::Event::Poll wherever that is possible: records in plain
# arrays, their references as keys, an exception leaves at once, libvirt's tokens are freed in the next pass.

use strict;
use warnings;

use IO::Poll qw(POLLIN POLLOUT POLLERR POLLHUP POLLNVAL);
use Sys::Virt::EventImpl;
use Time::HiRes qw(clock_gettime CLOCK_MONOTONIC);

our @ISA = ('Sys::Virt::EventImpl');

# libvirt's bit, those of poll that mean it, and whether it must be asked for.
my @BITS = ([1, POLLIN, 1], [2, POLLOUT, 1], [4, POLLERR | POLLNVAL, 0], [8, POLLHUP, 0]);

sub new { return bless { handles => [], timers => [], removed => [] }, $_[0] }

sub add_handle {
    my ($self, $fd, $events, @tokens) = @_;
    push @{ $self->{handles} }, { fd => $fd, events => $events, tokens => \@tokens };
    return $self->{handles}[-1];
}

sub update_handle {
    my ($self, $handle, $events) = @_;
    @$handle{qw(events closed)} = ($events, 0);
    return;
}

sub remove_handle {
    my ($self, $handle) = @_;
    $handle->{events} = 0;
    return $self->_remove(handles => $handle);
}

sub add_timeout {
    my ($self, $ms, @tokens) = @_;
    push @{ $self->{timers} }, { tokens => \@tokens };
    $self->update_timeout($self->{timers}[-1], $ms);
    return $self->{timers}[-1];
}

sub update_timeout {
    my ($self, $timer, $ms) = @_;
    @$timer{qw(ms due)} = ($ms, $ms < 0 ? 9**9**9 : clock_gettime(CLOCK_MONOTONIC) + $ms / 1000);
    return;
}

sub remove_timeout {
    my ($self, $timer) = @_;
    $timer->{due} = 9**9**9;
    return $self->_remove(timers => $timer);
}

sub _remove {
    my ($self, $list, $record) = @_;
    @{ $self->{$list} } = grep { $_ != $record } @{ $self->{$list} };
    push @{ $self->{removed} }, $record;
    return 0;
}

# One pass. What an exception leaves undone is still ready, or due, in the next.
sub run_once {
    my ($self, $max_seconds) = @_;
    while (my $record = shift @{ $self->{removed} }) {
        $self->_free_callback_opaque(@{ $record->{tokens} }[2, 1]);
    }
    my @handles = grep { $_->{events} && !$_->{closed} && !$_->{busy} } @{ $self->{handles} };
    my @timers  = grep { !$_->{busy} } @{ $self->{timers} };
    my ($first) = sort { $a <=> $b } map { $_->{due} } @timers;
    my $seconds = ($first // 9**9**9) - clock_gettime(CLOCK_MONOTONIC);
    $seconds = $max_seconds if defined $max_seconds && $max_seconds < $seconds;

    my @poll = map { ($_->{fd}, ($_->{events} & 1 && POLLIN) | ($_->{events} & 2 && POLLOUT)) } @handles;
    my $count = IO::Poll::_poll($seconds <= 0 ? 0 : $seconds > 1e6 ? -1 : $seconds * 1000 + 1, @poll);
    my $now = clock_gettime(CLOCK_MONOTONIC);
    my $pass = ++$self->{passes};
    @timers = sort { $a->{due} <=> $b->{due} } grep { $_->{due} <= $now } @timers;
    for my $timer (@timers) {
        $now = clock_gettime(CLOCK_MONOTONIC);
        next if $timer->{due} > $now;
        $timer->{due} = $now + $timer->{ms} / 1000;
        local $timer->{busy} = 1;
        $self->_run_timeout_callback($timer, @{ $timer->{tokens} }[0, 1]);
    }
    for my $index ($count > 0 ? 0 .. $#handles : ()) {
        # A callback has run the loop: what was ready before that may be no longer.
        last if $self->{passes} != $pass;
        my ($handle, $got) = ($handles[$index], $poll[2 * $index + 1]);
        my $events = 0;
        $events |= $_->[0] for grep { $got & $_->[1] && (!$_->[2] || $handle->{events} & $_->[0]) } @BITS;
        next if !$handle->{events} || !$events;
        $handle->{closed} = $got & POLLNVAL;
        local $handle->{busy} = 1;
        $self->_run_handle_callback($handle, $handle->{fd}, $events, @{ $handle->{tokens} }[0, 1]);
    }
    return;
}

1;
