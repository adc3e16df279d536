package Sys::Virt::Event::Poll;
use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

use Carp ();
use IO::Poll qw(POLLIN POLLOUT POLLERR POLLHUP POLLNVAL);
use List::Util ();
use Sys::Virt::Event ();
use Sys::Virt::Event::Loop ();

# It is its own host loop: what it shares with the adapters is what programs call.
our @ISA = ('Sys::Virt::Event::Loop');

BEGIN { *_now = \&Sys::Virt::Event::Loop::_now }

# Bits of libvirt's event masks; CLOSED is of this file only.
use constant { READABLE => 1, WRITABLE => 2, ERROR => 4, HANGUP => 8, CLOSED => 16 };

sub _holds_by_default { 0 }

sub loop { $_[0] }

# What libvirt asks for. A handle or timer is a hash; its key is what libvirt's id stands for.

sub add_handle {
    my ($self, $fd, $events, $cb, $opaque, $ff) = @_;
    my $key = ++$self->{last_key};
    $self->{handles}{$key} = {
        key => $key, fd => $fd, events => $events, cb => $cb, opaque => $opaque, ff => $ff, served => 0,
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
    $self->{timers}{$key} = { key => $key, ms => -1, cb => $cb, opaque => $opaque, ff => $ff, served => 0 };
    $self->update_timeout($key, $ms);
    return $key;
}

sub update_timeout {
    my ($self, $key, $ms) = @_;
    my $timer = $self->{timers}{$key} or return;
    $timer->{ms} = $ms;
    # 0 ms is due in each pass, however often it is set again meanwhile.
    $timer->{due} = $ms > 0 ? _now() + $ms / 1000 : 0;
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
    $self->_check_seconds($max_seconds);
    return $self->_pass($max_seconds, 0);
}

sub run {
    my ($self) = @_;
    local $self->{stopped} = 0;
    1 while !$self->{stopped} && $self->run_once;
    return;
}

sub run_until {
    my ($self, $code, $seconds) = @_;
    $self->_check_condition($code);
    $self->_check_seconds($seconds);
    my $end = defined $seconds ? _now() + $seconds : undef;
    local $self->{stopped} = 0;
    until ($code->()) {
        my $left = defined $end ? $end - _now() : undef;
        return 0 if $self->{stopped} || defined $left && $left <= 0;
        $self->_pass($left, defined $end) or return 0;
    }
    return 1;
}

# One iteration. What is ready is collected before anything is called, so that what a callback
# adds waits for the next one. False, at once, when there is nothing to wait for, unless $sleep.
sub _pass {
    my ($self, $max_seconds, $sleep) = @_;
    # A signal handler may remove what grep, map or sort are at work on: these hold no references.
    my @watched = values %{ $self->{handles} };
    my @timed = values %{ $self->{timers} };
    my @handles = grep { $_->{events} && !$_->{closed} && !$_->{busy} } @watched;
    my @due = map { $_->{busy} || $_->{ms} < 0 ? () : $_->{due} } @timed;
    my @holding = grep { !$_->{wake} } $self->{hold_loop} ? (@watched, @timed) : @handles;
    my $nothing = !$sleep && !@due && !@holding;

    my @wait = map { $_ - _now() } List::Util::min(@due) // ();
    push @wait, $max_seconds if defined $max_seconds;
    my @ready = _poll(\@handles, $nothing ? 0 : List::Util::min(@wait));
    return 0 if $nothing && !@ready;
    my ($now, $pass) = (_now(), ++$self->{passes});
    @timed = values %{ $self->{timers} };
    my @expired = sort { $a->{due} <=> $b->{due} || $a->{key} <=> $b->{key} }
        grep { !$_->{busy} && $_->{ms} >= 0 && $_->{due} <= $now } @timed;

    my @errors;
    local $@;
    # A signal handler may die between two callbacks: that is the one to throw.
    eval {
        for (@ready) {
            my ($handle, $events) = @$_;
            eval { $self->_dispatch_handle($pass, $handle, $events); 1 } or push @errors, $@;
        }
        for my $timer (@expired) {
            eval { $self->_dispatch_timer($pass, $timer, $now); 1 } or push @errors, $@;
        }
        1;
    } or unshift @errors, $@;
    $self->_throw(@errors) if @errors;
    return 1;
}

# Handles with their events.
sub _poll {
    my ($handles, $seconds) = @_;
    # Each fd once: poll(2) takes no more entries than a process can have fds.
    my %mask;
    $mask{ $_->{fd} } |= ($_->{events} & READABLE ? POLLIN : 0) | ($_->{events} & WRITABLE ? POLLOUT : 0)
        for @$handles;
    my @polled = %mask;
    # A fraction of a millisecond is rounded up, or the last one would be spent polling.
    my $ms = !defined $seconds ? -1 : $seconds <= 0 ? 0 : $seconds > 1e6 ? 1e9 : int($seconds * 1000) + 1;
    my $count = IO::Poll::_poll($ms, @polled);
    # On a signal there is nothing ready; perl has run the handler by then.
    Carp::croak("Cannot poll: $!") if $count < 0 && !$!{EINTR};
    return if $count <= 0;
    my %bits = @polled;
    my @ready;
    for my $handle (@$handles) {
        my $bits = $bits{ $handle->{fd} };
        my $events = ($bits & POLLIN ? READABLE : 0) | ($bits & POLLOUT ? WRITABLE : 0)
            | ($bits & (POLLERR | POLLNVAL) ? ERROR : 0) | ($bits & POLLHUP ? HANGUP : 0);
        $events &= $handle->{events} | ERROR | HANGUP;
        $events |= CLOSED if $bits & POLLNVAL;
        push @ready, [$handle, $events] if $events;
    }
    return @ready;
}

# A callback earlier in the pass may have removed or disabled what was ready, or run a pass of its
# own that has served it.
sub _dispatch_handle {
    my ($self, $pass, $handle, $events) = @_;
    return if !$self->_may_serve($pass, $handle) || !$handle->{events};
    # Nothing will ever change on a closed fd: it is reported once.
    $handle->{closed} = 1 if $events & CLOSED;
    $events &= $handle->{events} | ERROR | HANGUP or return;
    local $handle->{busy} = 1;
    $self->_run_handle_callback(@$handle{qw(key fd)}, $events, @$handle{qw(cb opaque)});
}

sub _dispatch_timer {
    my ($self, $pass, $timer, $now) = @_;
    return if !$self->_may_serve($pass, $timer) || $timer->{ms} < 0 || $timer->{due} > $now;
    $timer->{due} = $now + $timer->{ms} / 1000 if $timer->{ms};
    local $timer->{busy} = 1;
    $self->_run_timeout_callback(@$timer{qw(key cb opaque)});
}

sub _may_serve {
    my ($self, $pass, $watch) = @_;
    return 0 if $watch->{removed} || $watch->{busy} || $watch->{served} > $pass;
    $watch->{served} = $self->{passes};
    return 1;
}

1;

__END__

=encoding UTF-8

=head1 NAME

Sys::Virt::Event::Poll - a small event loop for libvirt

=head1 SYNOPSIS

=for test program
test: event 3, detail 0

  use strict;
  use warnings;
  use Sys::Virt;
  use Sys::Virt::Event::Poll;

  # First the loop, then the connections.
  my $loop = Sys::Virt::Event::Poll->new->register;
  my $conn = Sys::Virt->new(uri => 'test:///default');

  my $lifecycle = Sys::Virt::Domain::EVENT_ID_LIFECYCLE;
  $conn->domain_event_register_any(undef, $lifecycle, sub {
      my ($conn, $domain, $event, $detail) = @_;
      print $domain->get_name, ": event $event, detail $detail\n";
      $loop->stop;
  });

  $conn->get_domain_by_name('test')->suspend;
  $loop->run;

=head1 DESCRIPTION

An event loop for programs that have no other: it watches what libvirt wants watched, by poll(2), and what the
program itself adds by the functions of L<Sys::Virt::Event>. Signals, exceptions, threads and forks are as described
there.

It is also a pattern for loops of your own. Its source is short, and follows every rule of
L<Sys::Virt::Event/WRITING A LOOP>.

All times are in seconds, and may have a fraction. The clock is monotonic, where the system has one.

=head1 METHODS

=head2 new(%options)

Returns a new loop. There is one option:

=over

=item hold_loop

Whether what has nothing to do keeps C<run> running: timers that are not armed, and handles with an event mask of 0,
as an idle connection to C<test:///default> has. Default 0.

=back

Any other is an exception, C<< Cannot make Sys::Virt::Event::Poll: there is no option I<name> >>.

=head2 register(%options)

Makes it libvirt's event loop, and returns it: see L<Sys::Virt::Event/register($impl, %options)>. Call it before the
first connection is opened.

=head2 loop()

Returns the event loop that does the work, which is the object itself.

=head2 run_once($max_seconds)

One pass: waits until a handle is ready or a timer is due, and calls the callbacks of all that are. With a number it
waits at most so long; with 0 it does not wait.

Returns true, or false at once when there is nothing to wait for: no handle with an event mask other than 0, and no
timer that is armed; with C<hold_loop>, nothing registered at all. The wake watch, by which libvirt's threads wake the
loop, does not count. So C<< 1 while $loop->run_once >> ends when nothing is left to do. An open connection to a server
is something to wait for. Connections to C<test:///default> are not, once their events have been delivered.

=head2 run()

Passes, until C<stop> is called or there is nothing to wait for. Returns nothing.

=head2 stop()

Ends the innermost C<run>, C<run_for> or C<run_until> that is running, after the pass that is under way. When none
is running it does nothing. Returns nothing.

=head2 run_for($seconds)

Passes for so many seconds, or until C<stop> is called. Where there is nothing to wait for it sleeps. Returns
nothing.

=head2 run_until($code, $seconds)

Passes until C<< $code->() >> returns true. It is called before the first pass and after each. Returns true then,
and false when so many seconds are over first, or C<stop> was called. Without a number there is no limit, but then
it also returns false as soon as there is nothing to wait for.

=head2 add_handle($fd, $events, $cb, $opaque, $ff)

This and the next five are what libvirt calls: see L<Sys::Virt::Event/METHODS A LOOP PROVIDES>. Programs use the
functions of these names in L<Sys::Virt::Event>. Returns the key.

=head2 update_handle($key, $events)

Changes what is watched for, at once.

=head2 remove_handle($key)

Forgets the handle. Returns 0, or -1 if there is none.

=head2 add_timeout($ms, $cb, $opaque, $ff)

Like add_handle. The interval is in milliseconds.

=head2 update_timeout($key, $ms)

Changes the interval, and starts it anew.

=head2 remove_timeout($key)

Forgets the timer. Returns 0, or -1 if there is none.

=head1 EXCEPTIONS

An exception of a callback does not end the pass. When all that was ready has been called, the first exception leaves
C<run_once>, and with it C<run>, C<run_for> or C<run_until>; others of the same pass are warnings. The loop can be run
again afterwards. Timers and handles stay registered. A signal handler that dies between two callbacks ends the pass:
its exception is the one that is thrown.

Of its own the loop dies with C<Cannot run: number of seconds soon is not a number>, and with C<Cannot poll:> and the
system's reason where poll(2) fails.

=head1 SIGNALS

A signal ends the wait, and handlers in C<%SIG> run then; C<run> goes on. They may call C<stop>, or die. A handler
that runs in the moment before the wait begins does not end it: see L<Sys::Virt::Event/SIGNALS>.

=head1 CLOSED FILE DESCRIPTORS

A handle whose file descriptor was closed without removing the handle is reported as HANDLE_ERROR, once. After that
it is left alone until it is updated.

=head1 NESTED RUNS

A callback may run the loop. Its own handle or timer is passed over meanwhile, and neither woken nor waited for. All
others go on.

=head1 SEE ALSO

L<Sys::Virt::Event>, L<Sys::Virt::Event::Auto>, L<Sys::Virt>

=head1 AUTHOR AND LICENSE

The Sys-Virt-Event developers. This module is free software; you can redistribute it and/or modify it under the same
terms as Perl itself.

=cut
