package Sys::Virt::Event::EV;
use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

use Sys::Virt::Event::Loop ();

our @ISA = ('Sys::Virt::Event::Loop');

my @METHODS = (
    map({ ("${_}_handle", "${_}_timeout") } qw(add update remove)),
    qw(_run_handle_callback _run_timeout_callback _free_callback_opaque),
);

sub _needs          { (EV => '4.15') }
sub _loop_option    { 'loop' }
sub _loop_class     { 'EV::Loop' }
sub _ends_by_itself { 1 }

sub _find_loop {
    my ($self, $loop) = @_;
    require EV;
    return $loop // EV::default_loop();
}

# All that follows is for subclasses with methods of their own, and for a Sys::Virt::Event that was built without EV, or
# for another version of it.
sub _hand_over {
    my ($self) = @_;
    return 0 if $self->{is_ours} || grep { $self->can($_) != Sys::Virt::Event::Loop->can($_) } @METHODS;
    local ($@, $SIG{__DIE__});
    my $is_served = defined &Sys::Virt::Event::_serve_by_ev
        && eval { Sys::Virt::Event::_serve_by_ev($self, $self->{loop}, $self->{hold_loop}) };
    $self->{is_ours} = !$is_served;
    return $is_served;
}

# EV sees to that by itself, for its default loop; not in every build.
sub _mend_loop { $_[0]{loop}->loop_fork }

# What is libvirt's does not keep the loop running; what does is a timer that is there for that.

sub _watch {
    my ($self, $fd, $read, $write, $code) = @_;
    my $watcher = $self->{loop}->io($fd, ($read ? EV::READ() : 0) | ($write ? EV::WRITE() : 0), $code);
    $watcher->keepalive(0);
    return $watcher;
}

sub _unwatch { $_[1]->stop }

sub _timer {
    my ($self, $seconds, $code, $holds) = @_;
    $self->{loop}->now_update;
    my $watcher = $self->{loop}->timer($seconds, 0, $code);
    $watcher->keepalive(0) if !$holds;
    return $watcher;
}

sub _cancel { $_[1]->stop }

# In a nested run libev calls what the outer one has found first, and then waits: what was waited for may be done.
sub _iterate {
    my ($self) = @_;
    my $loop = $self->{loop};
    return $loop->run($loop->pending_count ? EV::RUN_NOWAIT() : EV::RUN_ONCE());
}

1;

__END__

=encoding UTF-8

=head1 NAME

Sys::Virt::Event::EV - libvirt in the event loop of EV

=head1 SYNOPSIS

=for test program
test: event 3, detail 0

  use strict;
  use warnings;
  use EV;
  use Sys::Virt;
  use Sys::Virt::Event::EV -register;

  my $conn = Sys::Virt->new(uri => 'test:///default');
  my $lifecycle = Sys::Virt::Domain::EVENT_ID_LIFECYCLE;
  $conn->domain_event_register_any(undef, $lifecycle, sub {
      my ($conn, $domain, $event, $detail) = @_;
      print $domain->get_name, ": event $event, detail $detail\n";
      EV::break;
  });

  my $timer = EV::timer 0.1, 0, sub {
      $conn->get_domain_by_name('test')->suspend;
  };
  EV::run;

=head1 DESCRIPTION

Programs that run L<EV> get libvirt's events in its loop. So do those whose own loop runs on EV's:
L<Sys::Virt::Event::AnyEvent>, L<Sys::Virt::Event::Mojo> and L<Sys::Virt::Event::Auto> find that out, and become
objects of this class.

Where EV was there when Sys::Virt::Event was built, libvirt's file descriptors and timers are watchers of libev, from
C: nothing of Perl is between EV and libvirt, and the methods of the object are not called. Else the same is done in
Perl, at some cost; so it is for objects of a subclass with methods of its own that libvirt's calls, or the loop's,
would come to.

Signals, threads, and what a program can do in a callback are as described in L<Sys::Virt::Event>.

=head1 METHODS

=head2 new(%options)

Returns a new object. EV is not loaded before libvirt wants something watched. Options:

=over

=item loop

The L<EV::Loop> to use. Default: EV's default loop.

=item hold_loop

Whether C<EV::run> goes on as long as libvirt has anything registered, be it idle, as the timer of a connection to
C<test:///default> is most of the time. Default 1. With 0 nothing of libvirt's keeps it running.

=back

Any other is an exception, C<< Cannot make Sys::Virt::Event::EV: there is no option I<name> >>. So is a missing EV, and
one that is older than 4.15.

=head2 register(%options)

Makes it libvirt's event loop, and returns it: see L<Sys::Virt::Event/register($impl, %options)>. In short:
C<use Sys::Virt::Event::EV -register>, which does nothing if such an object is registered already.

=head2 loop()

Returns the L<EV::Loop>.

=head2 run_for($seconds)

Runs the loop for so many seconds, or until C<stop> is called. See L<Sys::Virt::Event::Loop/METHODS> for this and the
next two. A program that calls C<EV::run> needs none of them.

=head2 run_until($code, $seconds)

Runs the loop until C<< $code->() >> is true, and returns true then; false when so many seconds are over.

=head2 stop()

Ends the innermost C<run_for> or C<run_until> that is running.

=head1 WHAT KEEPS THE LOOP RUNNING

C<EV::run> returns when no watcher is active. Those of libvirt count, and with them the connections that are open,
unless C<hold_loop> is 0. What wakes the loop for libvirt's own threads does not count.

=head1 EXCEPTIONS

An exception of a callback goes where EV sends those of its own: to C<$EV::DIED>, which finds it in C<$@>. By default
that is a warning. The watch stays registered.

=head1 SIGNALS

In C<run_for> and C<run_until> handlers in C<%SIG> run at once, and may die or call C<stop>. In C<EV::run> use
C<EV::signal>.

=head1 FORK

As described in L<Sys::Virt::Event/FORK>. Loops that were made by C<< EV::Loop->new >> are told of the fork, too, if
they serve libvirt.

=head1 COST

From C, what libvirt changes costs no system call: libev tells the kernel once an iteration, and only what is
different. A file descriptor that is ready costs one poll(2), which finds out for what.

=head1 LIMITS

What has an underscore in its name is a case of the kit, L<Test::Sys::Virt::EventImpl>. All others are passed.

=for test text

  what               on      reason
  -----------------  ------  --------------------------------------------
  closed_fd          epoll   the kernel drops a closed file descriptor
  forgotten streams          from an epoll set without a word, so its
                             handle is not told of an error; nor is that
                             of a stream which has ended, and whose
                             callback was left in place
  order_per_id       from C  C serves in place of the object, so methods
  refused_late               that a program replaces in a class later are
  methods_die                not called
  error_survives
  replaced methods
  EV::run            all     a handler in %SIG runs when the next watcher
                             of Perl's is called, which may be long after
                             the signal

Other cases that look at what the methods of the object do make a subclass of it first, which is served in Perl.

=head1 SEE ALSO

L<Sys::Virt::Event>, L<EV>

=head1 AUTHOR AND LICENSE

The Sys-Virt-Event developers. This module is free software; you can redistribute it and/or modify it under the same
terms as Perl itself.

=cut
