package Sys::Virt::Event::Poll;
use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

use Carp ();
use IO::Poll qw(POLLIN POLLOUT POLLERR POLLHUP POLLNVAL);
use Sys::Virt::Event ();

our @ISA = ('Sys::Virt::EventImpl');

# Both distributions have a file of that name.
defined &Sys::Virt::Event::watches
    or die "$INC{'Sys/Virt/Event.pm'} is the file of Sys::Virt, installed over the one of"
    . " Sys-Virt-Event: install Sys-Virt-Event again\n";

# Bits of libvirt's event masks.
use constant { READABLE => 1, WRITABLE => 2, ERROR => 4, HANGUP => 8 };

sub new {
    my ($class, @unknown) = @_;
    Carp::croak("Cannot make $class: there is no option $unknown[0]") if @unknown;
    return bless { handles => {}, timers => {}, last_key => 0, stopped => 0 }, $class;
}

sub loop { $_[0] }

# Tells Sys::Virt::Event that this class does not run on for the sake of the wake watch alone.
sub _knows_wake { 1 }

# What libvirt asks for. A handle or timer is a hash; its key is what libvirt's id stands for.

sub add_handle {
    my ($self, $fd, $events, $cb, $opaque, $ff) = @_;
    my $key = ++$self->{last_key};
    $self->{handles}{$key} = {
        key => $key, fd => $fd, events => $events, cb => $cb, opaque => $opaque, ff => $ff,
        wake => Sys::Virt::Event::_is_wake($opaque),
    };
    return $key;
}

sub update_handle {
    my ($self, $key, $events) = @_;
    my $handle = $self->{handles}{$key} or return;
    $handle->{events} = $events;
    $handle->{closed} = 0;
    return;
}

sub remove_handle {
    my ($self, $key) = @_;
    my $handle = delete $self->{handles}{$key} or return -1;
    $handle->{removed} = 1;
    $self->_free_callback_opaque($handle->{ff}, $handle->{opaque});
    return 0;
}

sub add_timeout {
    my ($self, $ms, $cb, $opaque, $ff) = @_;
    my $key = ++$self->{last_key};
    $self->{timers}{$key} = { key => $key, cb => $cb, opaque => $opaque, ff => $ff };
    $self->update_timeout($key, $ms);
    return $key;
}

sub update_timeout {
    my ($self, $key, $ms) = @_;
    my $timer = $self->{timers}{$key} or return;
    $timer->{ms} = $ms;
    $timer->{due} = $ms < 0 ? undef : Sys::Virt::Event::_now() + $ms / 1000;
    return;
}

sub remove_timeout {
    my ($self, $key) = @_;
    my $timer = delete $self->{timers}{$key} or return -1;
    $timer->{removed} = 1;
    $self->_free_callback_opaque($timer->{ff}, $timer->{opaque});
    return 0;
}

# What the program runs.

sub run_once {
    my ($self, $max_seconds) = @_;
    return $self->_pass($max_seconds, 0);
}

sub run {
    my ($self) = @_;
    local $self->{stopped} = 0;
    1 while !$self->{stopped} && $self->run_once;
    return;
}

sub stop { $_[0]{stopped} = 1; return }

sub run_for {
    my ($self, $seconds) = @_;
    $self->run_until(sub { 0 }, $seconds);
    return;
}

sub run_until {
    my ($self, $code, $seconds) = @_;
    my $end = defined $seconds ? Sys::Virt::Event::_now() + $seconds : undef;
    local $self->{stopped} = 0;
    until ($code->()) {
        my $left = defined $end ? $end - Sys::Virt::Event::_now() : undef;
        return 0 if $self->{stopped} || defined $left && $left <= 0;
        $self->_pass($left, defined $end) or return 0;
    }
    return 1;
}

# One iteration. What is ready is collected before anything is called, so that what a callback
# adds waits for the next one. False, at once, when there is nothing to wait for, unless $sleep.
sub _pass {
    my ($self, $max_seconds, $sleep) = @_;
    my @handles = grep { $_->{events} && !$_->{closed} && !$_->{busy} } values %{ $self->{handles} };
    my @due = sort { $a <=> $b } map { $_->{due} // () } grep { !$_->{busy} } values %{ $self->{timers} };
    return 0 if !$sleep && !@due && !grep { !$_->{wake} } @handles;

    my @wait = map { $_ - Sys::Virt::Event::_now() } @due ? $due[0] : ();
    push @wait, $max_seconds if defined $max_seconds;
    my @ready = _poll(\@handles, (sort { $a <=> $b } @wait)[0]);
    my $now = Sys::Virt::Event::_now();
    my @expired = sort { $a->{due} <=> $b->{due} || $a->{key} <=> $b->{key} }
        grep { defined $_->{due} && $_->{due} <= $now && !$_->{busy} } values %{ $self->{timers} };

    my @errors;
    for (@ready) {
        my ($handle, $events) = @$_;
        eval { $self->_dispatch_handle($handle, $events); 1 } or push @errors, $@;
    }
    for my $timer (@expired) {
        eval { $self->_dispatch_timer($timer, $now); 1 } or push @errors, $@;
    }
    _throw(@errors) if @errors;
    return 1;
}

# Handles with events, those of one poll entry in one call.
sub _poll {
    my ($handles, $seconds) = @_;
    my @polled = map {
        ($_->{fd}, ($_->{events} & READABLE ? POLLIN : 0) | ($_->{events} & WRITABLE ? POLLOUT : 0))
    } @$handles;
    # A fraction of a millisecond is rounded up, or the last one would be spent polling.
    my $ms = !defined $seconds ? -1 : $seconds <= 0 ? 0 : $seconds > 1e6 ? 1e9 : int($seconds * 1000) + 1;
    # On a signal there is nothing ready; perl has run the handler by then.
    return if IO::Poll::_poll($ms, @polled) <= 0;
    my @ready;
    for my $handle (@$handles) {
        my (undef, $bits) = splice @polled, 0, 2;
        my $events = ($bits & POLLIN ? READABLE : 0) | ($bits & POLLOUT ? WRITABLE : 0)
            | ($bits & (POLLERR | POLLNVAL) ? ERROR : 0) | ($bits & POLLHUP ? HANGUP : 0);
        # Nothing will ever change on a closed fd: it is reported once.
        $handle->{closed} = 1 if $bits & POLLNVAL;
        push @ready, [$handle, $events] if $events;
    }
    return @ready;
}

# A callback earlier in the pass may have removed or disabled what was ready.
sub _dispatch_handle {
    my ($self, $handle, $events) = @_;
    return if $handle->{removed} || !$handle->{events} || $handle->{busy};
    $events &= $handle->{events} | ERROR | HANGUP or return;
    local $handle->{busy} = 1;
    $self->_run_handle_callback(@$handle{qw(key fd)}, $events, @$handle{qw(cb opaque)});
}

sub _dispatch_timer {
    my ($self, $timer, $now) = @_;
    return if $timer->{removed} || !defined $timer->{due} || $timer->{due} > $now || $timer->{busy};
    $timer->{due} = $now + $timer->{ms} / 1000;
    local $timer->{busy} = 1;
    $self->_run_timeout_callback(@$timer{qw(key cb opaque)});
}

# $SIG{__DIE__} has seen the exception already.
sub _throw {
    my ($first, @others) = @_;
    warn $_ for @others;
    local $SIG{__DIE__};
    die $first;
}

1;
