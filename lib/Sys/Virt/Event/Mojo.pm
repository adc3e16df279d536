package Sys::Virt::Event::Mojo;
use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

use Scalar::Util ();
use Sys::Virt::Event::Loop ();

our @ISA = ('Sys::Virt::Event::Loop');

sub _needs          { (Mojolicious => '7.37') }
sub _loop_option    { 'reactor' }
sub _loop_class     { 'Mojo::Reactor' }
sub _wants_handles  { 'tied' }
sub _ends_by_itself { 1 }
sub _watches_hold   { 1 }

sub _find_loop {
    my ($self, $reactor) = @_;
    require Mojo::IOLoop;
    $reactor //= Mojo::IOLoop->singleton->reactor;
    # That reactor runs EV's default loop.
    return $reactor->isa('Mojo::Reactor::EV') ? $self->_work_as(__PACKAGE__, 'Sys::Virt::Event::EV') : $reactor;
}

# A signal does not end a pass of the reactor, so stop in a handler of %SIG would wait for something to happen.
sub stop {
    my ($self) = @_;
    $self->_timer(0, sub { }) if $self->{loop};
    return $self->SUPER::stop;
}

# A reset with the option freeze, as in a child of Mojo::IOLoop::Subprocess, gives the singleton another reactor.
sub loop {
    my ($self) = @_;
    my $loop = $self->SUPER::loop;
    return $loop if $self->{given} || $self->isa('Sys::Virt::Event::EV');
    my $reactor = Mojo::IOLoop->singleton->reactor;
    return $loop if $reactor == $loop;
    $self->{loop} = $reactor;
    $self->_arm_all;
    return $reactor;
}

sub _watch {
    my ($self, $file, $read, $write, $code) = @_;
    my $reactor = $self->loop;
    my ($watcher, $guard) = $self->_guarded($reactor);
    $reactor->io($file => Sys::Virt::Event::_held(sub { $guard && $code->() }))->watch($file, $read, $write);
    return $watcher;
}

sub _unwatch {
    my ($self, $watcher, $file) = @_;
    $watcher->{is_done} = 1;
    $watcher->{reactor}->remove($file);
    return;
}

sub _timer {
    my ($self, $seconds, $code) = @_;
    my $reactor = $self->loop;
    my ($watcher, $guard) = $self->_guarded($reactor);
    $watcher->{id} = $reactor->timer(
        $seconds => Sys::Virt::Event::_held(sub { $guard->{watcher}{is_done} = 1; $code->() }),
    );
    return $watcher;
}

sub _cancel {
    my ($self, $watcher) = @_;
    $watcher->{is_done} = 1;
    $watcher->{reactor}->remove($watcher->{id});
    return;
}

# A reactor that is reset drops its code without a word. What that code holds is told then.
sub _guarded {
    my ($self, $reactor) = @_;
    my $watcher = { reactor => $reactor };
    my $guard = bless { loop => $self, watcher => $watcher }, 'Sys::Virt::Event::Mojo::Guard';
    Scalar::Util::weaken($guard->{loop});
    return ($watcher, $guard);
}

sub Sys::Virt::Event::Mojo::Guard::DESTROY {
    my ($guard) = @_;
    return if $guard->{watcher}{is_done} || !$guard->{loop} || ${^GLOBAL_PHASE} eq 'DESTRUCT';
    local ($@, $!, $?);
    eval { $guard->{loop}->_arm_all; 1 } or warn $@;
    return;
}

# The reactor itself does not tell that it had nothing to wait for.
sub _iterate {
    my ($self) = @_;
    my $reactor = $self->{loop};
    return 0 if $reactor->isa('Mojo::Reactor::Poll') && !grep { %{ $reactor->{$_} || {} } } qw(io timers);
    $reactor->one_tick;
    return 1;
}

1;

__END__

=encoding UTF-8

=head1 NAME

Sys::Virt::Event::Mojo - libvirt in the event loop of Mojolicious

=head1 SYNOPSIS

=for test program
test: event 3, detail 0

  use strict;
  use warnings;
  use Mojo::IOLoop;
  use Sys::Virt;
  use Sys::Virt::Event::Mojo;

  # First the loop, then the connections.
  Sys::Virt::Event::Mojo->new->register;
  my $conn = Sys::Virt->new(uri => 'test:///default');

  my $lifecycle = Sys::Virt::Domain::EVENT_ID_LIFECYCLE;
  $conn->domain_event_register_any(undef, $lifecycle, sub {
      my ($conn, $domain, $event, $detail) = @_;
      print $domain->get_name, ": event $event, detail $detail\n";
      Mojo::IOLoop->stop;
  });

  Mojo::IOLoop->timer(0.1 => sub {
      $conn->get_domain_by_name('test')->suspend;
  });
  Mojo::IOLoop->start;

=head1 DESCRIPTION

Has libvirt's file descriptors and timers watched by a L<Mojo::Reactor>, so that connections, streams and their events
work in any program that runs L<Mojo::IOLoop>: a L<Mojolicious> application, say. Events are delivered by
the loop; calls still wait for their answer, and the loop with them.

The reactor is looked for when libvirt wants its first watch, not earlier: that is when the first connection is opened.
Mojo::IOLoop is loaded then, if it was not before.

Where the reactor is L<Mojo::Reactor::EV>, the object becomes one of L<Sys::Virt::Event::EV>, since both run EV's
default loop. Its manual holds from then on, notably for exceptions and cost. An object of a subclass becomes one of a
subclass of both, and keeps the methods that it has.

Signals, threads and all else are as described in L<Sys::Virt::Event>. All times are in seconds, and may have a
fraction.

=head1 METHODS

=head2 new(%options)

Returns a new object. The options are described below. An option that does not exist, a missing L<Mojolicious> or one
older than 7.37 is an exception that starts with C<Cannot make Sys::Virt::Event::Mojo:>.

=head2 register(%options)

Makes it libvirt's event loop, and returns it: see L<Sys::Virt::Event/register($impl, %options)>. Call it before the
first connection is opened. C<use Sys::Virt::Event::Mojo -register;> makes an object without options and registers it,
unless one of this class is registered already.

=head2 loop()

Returns the reactor; on EV it is EV's default loop. Where libvirt has not wanted anything watched yet, the
reactor is looked for now.

=head2 run_for($seconds)

Runs the reactor for so many seconds, or until C<stop> is called. Returns nothing. This and the next are for
scripts, and may be called while the program's own loop runs, as in a callback. C<< Mojo::IOLoop->stop >> ends the
program's loop, and not these.

=head2 run_until($code, $seconds)

Runs the reactor until C<< $code->() >> returns true. It is called before the first pass of the reactor and after each.
Returns true then, and false when so many seconds are over first, or C<stop> was called. Without a number there is no
limit, but then it also returns false when the reactor has nothing to wait for.

=head2 stop()

Ends the innermost C<run_for> or C<run_until> that is running, after the pass that is under way. When none is running
it does nothing. Returns nothing.

=head1 OPTIONS

=over

=item reactor => $reactor

The L<Mojo::Reactor> to use. By default it is that of the singleton, C<< Mojo::IOLoop->singleton->reactor >>.

=item hold_loop => 0

See below.

=back

=head1 WHAT KEEPS THE LOOP RUNNING

C<< Mojo::IOLoop->start >> returns when its reactor has nothing to wait for. As long as libvirt has anything
registered it goes on, until C<< Mojo::IOLoop->stop >> is called, even if libvirt's timers are all switched off. Those
of a connection to C<test:///default> mostly are. What libvirt has is removed when the connection is closed.

With C<< hold_loop => 0 >> timers that are switched off do not keep it. Timers that are on do, and so do file
descriptors, of which each connection to a server has one. The reactor knows of no others. Then libvirt's own
threads, where there are any, do not wake the loop unless a file descriptor of libvirt's is watched, too: what they ask
for is done when the program or the loop next turns to libvirt.

=head1 RESETS

C<< Mojo::IOLoop->reset >> drops all that the reactor has, as does C<reset> of the reactor. What libvirt has is
put back at once, and no event is lost. The loop does stop, as always.

With the option C<freeze> the singleton gets another reactor. What libvirt has is moved there when libvirt next changes
something, or the program calls one of the methods above. It is not moved if the old reactor is on EV, of which a
process has but one.

=head1 EXCEPTIONS

An exception of a callback is an event of the reactor, C<error>, with the text C<I/O watcher failed:> or C<Timer
failed:> and the exception. The reactor of the singleton prints it as a warning. A reactor that was reset has no
subscribers any more, and throws it out of C<start>: see L<Mojo::EventEmitter/emit>. The watch or timer lives on, and
so do all others. When several callbacks on one file descriptor die at once, the first exception is the error, the
others are warnings.

On EV it goes to C<$EV::DIED>, which prints a warning.

Of their own, C<run_for> and C<run_until> die with C<Cannot run:> and the reason, if the number of seconds is none.

=head1 SIGNALS

A handler in C<%SIG> runs at once, and may call C<stop>. Where it is this module that loads Mojo::IOLoop, a handler of
the program for SIGPIPE stays.

=head1 FORK

The general rules are in L<Sys::Virt::Event/FORK>. A child can use the loop that was registered before, and open
connections of its own. The parent loses nothing to it.

L<Mojo::Server::Prefork> (hypnotoad) forks its workers without a reset. Open connections in the workers: in a
hook or a timer that runs there, or with the first request. To register before the fork or in each worker is the same.
A connection that the manager has opened is silent in the workers.

A child of L<Mojo::IOLoop::Subprocess> has a new reactor. The connections of its parent are of no use in it. Events of
connections that it has opened itself arrive if it runs C<run_for> or C<run_until>. Where
the parent's reactor is on EV C<< Mojo::IOLoop->start >> does not deliver them, since the new reactor is not.

=head1 COST

That libvirt changes what it watches a file descriptor for, as around each call, takes no system call, and mostly
leaves the reactor alone. A file descriptor that is ready takes one additional poll(2), which waits for nothing and
tells what exactly has happened. A timer is added to the reactor each time that it is due, and each time that it is set
to an earlier time.

File descriptors are not duplicated, and a reactor has one watcher for each. So the program cannot let the reactor
watch one for itself that it has also given to L<Sys::Virt::Event/add_handle($fd_or_handle, $events, $code)>.

=head1 LIMITS

What has an underscore in its name is a case of the kit, L<Test::Sys::Virt::EventImpl>. All others are passed. Those on
EV are limits of L<Sys::Virt::Event::EV>, which has more.

=for test text

  what                  on    reason
  --------------------  ----  -------------------------------------------
  closed_fd             EV    with EV's epoll: the kernel drops a closed
  forgotten streams           file descriptor from an epoll set without a
                              word, so its handle is not told of an
                              error; nor is that of a stream which has
                              ended, and whose callback was left in place
  order_per_id          EV    C serves in place of the object, so methods
  refused_late                that a program replaces in a class later
  methods_die                 are not called
  error_survives
  replaced methods
  sleep after a signal  Poll  the reactor goes on waiting after a handler
                              in %SIG has run, so run_until does not ask
                              its code before something happens
  handlers that die     Poll  the reactor is written in Perl: what it is
                              at work on may be lost when a handler in
                              %SIG dies in the midst of it; libvirt's
                              timers are then set anew
  timers of 0 ms        Poll  one that a callback of a handle sets is due
                              in the same tick: the reactor turns to its
                              timers last
  SIGPIPE               all   Mojo::IOLoop has it ignored when it is
                              loaded, so it ends no program

=head1 SEE ALSO

L<Sys::Virt::Event>, L<Sys::Virt::Event::EV>, L<Mojo::IOLoop>, L<Mojo::Reactor>

F<examples/mojo.pl> in the distribution is a web server that shows events as they come.

=head1 AUTHOR AND LICENSE

The Sys-Virt-Event developers. This module is free software; you can redistribute it and/or modify it under the same
terms as Perl itself.

=cut
