package Sys::Virt::Event::AnyEvent;
use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

use Scalar::Util ();
use Sys::Virt::Event::Loop ();

# Until AnyEvent has chosen its loop, which it does once and for all.
our @ISA = ('Sys::Virt::Event::Loop');

# What the loops that have an adapter of their own take as their loop.
my %ADAPTER = (
    EV      => ['Sys::Virt::Event::EV',      sub { EV::default_loop() }],
    Glib    => ['Sys::Virt::Event::Glib',    sub { undef }],
    IOAsync => ['Sys::Virt::Event::IOAsync', sub { $AnyEvent::Impl::IOAsync::LOOP }],
    POE     => ['Sys::Virt::Event::POE',     sub { undef }],
);

# The oldest with AE::log and with _poll, by which condition variables wait.
sub _needs       { (AnyEvent => '6.01') }
sub _loop_option { () }

sub _find_loop {
    my ($self) = @_;
    require AnyEvent;
    my $model = AnyEvent::detect();
    my $known = $ADAPTER{ $model =~ s/^AnyEvent::Impl:://r };
    my ($adapter, $loop) = @{ $known || ['Sys::Virt::Event::AnyEvent::Any', sub { $model }] };
    require $adapter =~ s{::}{/}gr . '.pm' if $known;
    @ISA = ($adapter);
    # EV has more for objects of that very class.
    bless $self, $adapter if $model eq 'AnyEvent::Impl::EV' && ref $self eq __PACKAGE__;
    my $find_loop = $adapter->can('_find_loop');
    return $self->$find_loop($loop->());
}

package    # of this file alone
    Sys::Virt::Event::AnyEvent::Any;

our @ISA = ('Sys::Virt::Event::Loop');

# Some loops mind a file descriptor that was closed, or stop at it.
sub _wants_handles { 'dup' }

sub _find_loop { $_[1] }

sub _watch {
    my ($self, $file, $read, $write, $code) = @_;
    my $call = $self->_guarded($code);
    return [map { AE::io($file, $_, $call) } $read ? 0 : (), $write ? 1 : ()];
}

sub _unwatch { @{ $_[1] } = () }

# AnyEvent's own loop hands on what a callback throws. Others end a watch then, or the program: there it is logged.
sub _guarded {
    my ($self, $code) = @_;
    return Sys::Virt::Event::_held($self->{loop} eq 'AnyEvent::Impl::Perl' ? $code
        : sub { eval { $code->(); 1 } or AE::log(error => "$@") });
}

sub _timer {
    my ($self, $seconds, $code) = @_;
    return $self->_soon($code) if !$seconds;
    AE::now_update();
    return AE::timer($seconds, 0, $self->_guarded($code));
}

# AnyEvent's own loop looks at no file in an iteration in which a timer is due, and calls timers as long as there are
# such. What is to be called in the next iteration is called for a file that can always be written to, so that all
# others have their turn.
sub _soon {
    my ($self, $code) = @_;
    my $soon  = $self->{soon} ||= { turn => 0, queue => [] };
    my $entry = { code => $code, turn => $soon->{turn} };
    push @{ $soon->{queue} }, $entry;
    if (!$soon->{watcher}) {
        pipe $soon->{reader}, $soon->{writer} or die "Cannot make pipe: $!\n";
        Scalar::Util::weaken(my $weak_self = $self);
        $soon->{watcher} = AE::io($soon->{writer}, 1, $self->_guarded(sub { $weak_self->_on_soon if $weak_self }));
    }
    return $entry;
}

# A nested run goes on with what the outer one has left.
sub _on_soon {
    my ($self) = @_;
    my $soon  = $self->{soon};
    my $queue = $soon->{queue};
    my $turn  = ++$soon->{turn};
    while (@$queue && $queue->[0]{turn} < $turn) {
        my $code = delete shift(@$queue)->{code};
        $code->() if $code;
    }
    delete @$soon{qw(watcher reader writer)} if !@$queue;
    return;
}

sub _cancel { delete $_[1]{code} if ref $_[1] eq 'HASH' }

# Event runs handlers in %SIG amid its own C code, and may crash where one dies there. They wait for the end of the
# iteration, or for Perl code in it.
sub _iterate {
    my ($self) = @_;
    $self->{iterate} ||= Sys::Virt::Event::_held(AnyEvent->can('_poll'), 1);
    $self->{iterate}->();
    return 1;
}

1;

__END__

=encoding UTF-8

=head1 NAME

Sys::Virt::Event::AnyEvent - libvirt's events in whatever loop AnyEvent uses

=head1 SYNOPSIS

=for test program
test: event 3, detail 0

  use strict;
  use warnings;
  use AnyEvent;
  use Sys::Virt;
  use Sys::Virt::Event::AnyEvent -register;

  my $done = AnyEvent->condvar;
  my $conn = Sys::Virt->new(uri => 'test:///default');

  my $lifecycle = Sys::Virt::Domain::EVENT_ID_LIFECYCLE;
  $conn->domain_event_register_any(undef, $lifecycle, sub {
      my ($conn, $domain, $event, $detail) = @_;
      print $domain->get_name, ": event $event, detail $detail\n";
      $done->send;
  });

  $conn->get_domain_by_name('test')->suspend;
  $done->recv;

=head1 DESCRIPTION

Lets libvirt watch its file descriptors and timers in the loop that L<AnyEvent> uses, whichever that is. Signals,
threads and forks are as described in L<Sys::Virt::Event>.

AnyEvent chooses its loop when it is first used, or, if the program has not used it by then, when libvirt asks for the
first watch. So a program can load a loop of its own after it has registered this class. AnyEvent itself is not loaded
before that either.

Some of its loops have a class of their own here, which then does the work. All that its manual says holds:

=over 4

=item EV

L<Sys::Virt::Event::EV>, with EV's default loop. The object then is one of that class, if its class was this one.

=item Glib

L<Sys::Virt::Event::Glib>.

=item IO::Async

L<Sys::Virt::Event::IOAsync>, with the loop that AnyEvent uses by then.

=item POE

L<Sys::Virt::Event::POE>.

=back

The others, AnyEvent's own loop in Perl and Event among them, are driven by AnyEvent's functions. Of these, those two
are tried.

=head1 METHODS

=head2 new(%options)

Returns an object that is not registered yet. It has one option:

=over 4

=item hold_loop => 1 or 0

Whether what libvirt watches, even if it is but a timer that is switched off, keeps a loop running that would end. The
default is 1. See L</WHAT KEEPS THE LOOP RUNNING>.

=back

Exceptions start with C<Cannot make Sys::Virt::Event::AnyEvent:>. The reasons are an unknown option, and an AnyEvent
that is missing or older than 6.01.

=head2 register(%options)

Makes it libvirt's event loop, and returns it: see L<Sys::Virt::Event/register($impl, %options)>. Call it before the
first connection is opened. C<use Sys::Virt::Event::AnyEvent -register> makes an object without options and registers
it.

=head2 loop()

Returns the loop of the class that does the work, such as EV's. Where there is none it returns the name of AnyEvent's
class for the loop, such as C<AnyEvent::Impl::Perl>.

=head2 run_for($seconds)

Runs the loop for so many seconds, or until C<stop> is called. Returns nothing. Unlike AnyEvent's C<recv>, this and
C<run_until> can be called in a callback while the program waits for something.

=head2 run_until($code, $seconds)

Runs the loop until C<< $code->() >> returns true. It is called before the first iteration and after each. Returns true
then, and false when so many seconds are over first, or C<stop> was called. Without a number there is no limit.

=head2 stop()

Ends the innermost C<run_for> or C<run_until> that is running. Returns nothing.

=head1 WHAT KEEPS THE LOOP RUNNING

C<recv> waits until its condition variable is sent to, whether there is something else to wait for or not, so hold_loop
makes no difference. It makes one where the program runs a loop by that loop's own means and it ends by itself, as
C<EV::run> does: see the manual of the class that does the work. With Event what is watched keeps the loop running.

=head1 EXCEPTIONS

What becomes of an exception of a callback depends on the loop:

=over 4

=item *

AnyEvent's own loop in Perl: it leaves C<recv>, C<run_for> or C<run_until>.

=item *

A loop with a class of its own here: see its manual.

=item *

Any other: it is logged by C<AE::log>, as an error, and so is a warning, unless the program has changed what AnyEvent
logs.

=back

In each case the handle or timer stays, and the loop can be run again. If one wake finds several handles on one file
descriptor whose callbacks die, the first exception is thrown, and the others are warnings.

=head1 NESTED RUNS

A callback may run the loop. Its own handle or timer is passed over meanwhile, and all others go on.

=head1 SIGNALS

A handler in C<%SIG> runs at once, and may call C<stop>; C<run_until> then asks its code. C<< AnyEvent->signal >> is the
better way, above all in C<recv> with Event, which may crash where a handler dies. For other loops see their manuals.

=head1 FORK

Both processes can run the loop after a fork. What holds for connections is in L<Sys::Virt::Event/FORK>.

=head1 COST

Where another class does the work it costs what that costs, and nothing more.

Otherwise each file descriptor that is watched is a duplicate: one system call and one file descriptor more for each.
AnyEvent's watchers cannot be changed, so to change what is watched for is to make new ones, without a system call in
AnyEvent's own loop. libvirt switches its watch off and on with each call to a server; that is not done before it
makes a difference, so mostly it costs nothing. When a file descriptor is ready, there is one poll(2) beyond the
loop's own. Timers cost no system call, but those of 0 ms do: a pipe that can be written to is watched as long as
there are any, so that they are called in each iteration and keep nobody else waiting. libvirt delivers events by such
a timer.

=head1 LIMITS

What has an underscore in its name is a case of the kit, L<Test::Sys::Virt::EventImpl>. All others are passed. Those on
loops with a class of their own are limits of that class, which may have more.

=for test text

  what                  on            reason
  --------------------  ------------  -----------------------------------
  closed_fd             Perl, Event,  a duplicate of the file descriptor
                        IOAsync, POE  is watched, which stays open when
                                      that is closed; no other watch
                                      suffers from it
  order_per_id          EV            C serves in place of the object, so
  refused_late                        methods that a program replaces in
  methods_die                         a class later are not called
  error_survives
  replaced methods
  handlers that die     Perl, Event,  the loop is written in Perl, of
                        IOAsync, POE  Event what it loads late: what it
                                      is at work on may be lost when a
                                      handler in %SIG dies in the midst
                                      of it, a timer that is due, say;
                                      on Event, perl 5.40 makes a warning
                                      of what the handler throws
  many passes           Event, POE    the loop polls on for the last
                                      millisecond before a timer is due
  timers of 0 ms        IOAsync       one that a callback of a handle
                                      sets is due in the same pass: the
                                      loop turns to its timers last
  children without fds  IOAsync       with IO::Async::Loop::Epoll: the
                                      epoll set of a child takes a file
                                      descriptor: a child that can have
                                      none watches nothing, and is warned
  SIGPIPE               all           AnyEvent has it do nothing, unless
                                      the program has a handler or
                                      ignores it, so it ends no program

=head1 SEE ALSO

L<Sys::Virt::Event>, L<Sys::Virt::Event::Loop>, L<AnyEvent>, L<AE>

=head1 AUTHOR AND LICENSE

The Sys-Virt-Event developers. This module is free software; you can redistribute it and/or modify it under the same
terms as Perl itself.

=cut
