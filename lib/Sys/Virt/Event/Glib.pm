package Sys::Virt::Event::Glib;
use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

use Carp ();
use List::Util ();
use Sys::Virt::Event::Loop ();

our @ISA = ('Sys::Virt::Event::Loop');

sub _needs       { (Glib => '1.220') }
sub _loop_option { 'context' }
sub _loop_class  { 'Glib::MainContext' }

# Perl's Glib has no way to attach a source to another context than the default one. C has.
sub new {
    my ($class, @options) = @_;
    my $self    = $class->SUPER::new(@options);
    my $context = $self->{given} // return $self;
    return $self if ${$context} == ${ Glib::MainContext->default };
    Carp::croak("Cannot make $class: Sys::Virt::Event was built without GLib's headers, ",
        "so it can watch in the default context only") if !defined &Sys::Virt::Event::_watch_by_glib;
    $self->{is_by_c} = 1;
    Sys::Virt::Event::_held(\&_have_reporter)->();
    return $self;
}

sub _find_loop {
    my ($self, $context) = @_;
    require Glib;
    return $context // Glib::MainContext->default;
}

# A source that is being called is out of its context for that time, and gone if the call dies. So what is called is
# always a source that has its successor already: then other handles of the file descriptor go on in a nested run, and
# Glib can have the exception. Glib complains of a closed file descriptor, so for that there is a timer.
sub _watch {
    my ($self, $fd, $read, $write, $code) = @_;
    return Sys::Virt::Event::_watch_by_glib($self->{loop}, $fd, $read, $write, $code) if $self->{is_by_c};
    my $conditions = Glib::IOCondition->new([$read ? 'in' : (), $write ? 'out' : (), qw(err hup nval)]);
    my ($source, $call);
    my $start = sub {
        $source = Sys::Virt::Event::_poll_fd($fd, 0) & Sys::Virt::Event::Loop::CLOSED
            ? Glib::Timeout->add(0, $call) : Glib::IO->add_watch($fd, $conditions, $call);
    };
    $call = Sys::Virt::Event::_held(sub {
        $start->();
        $code->();
        return 0;
    });
    $start->();
    # The two hold each other.
    return sub {
        Glib::Source->remove($source);
        undef $call;
    };
}

# What is by C ends where it is no longer held.
sub _unwatch { $_[1]->() if !$_[0]{is_by_c} }

# In whole milliseconds, rounded up: a fraction would be spent polling. Glib's number has 32 bits.
sub _timer {
    my ($self, $seconds, $code) = @_;
    my $ms = $seconds > 0 ? List::Util::min(1e9, int($seconds * 1000) + 1) : 0;
    return Sys::Virt::Event::_timer_by_glib($self->{loop}, $ms, $code) if $self->{is_by_c};
    return Glib::Timeout->add($ms, Sys::Virt::Event::_held(sub { $code->(); return 0 }));
}

sub _cancel { Glib::Source->remove($_[1]) if !$_[0]{is_by_c} }

# What C calls with an exception. The handlers of Glib->install_exception_handler are called by Perl's Glib alone, for
# what its own callbacks throw.
sub _have_reporter {
    return if defined &_report;
    my $class = 'Sys::Virt::Event::Glib::Thrower';
    my %signals = (thrown => { param_types => ['Glib::Scalar'] });
    Glib::Type->register_object('Glib::Object', $class, signals => \%signals);
    my $thrower = $class->new;
    $thrower->signal_connect(thrown => sub { die $_[1] });
    *_report = Sys::Virt::Event::_held(sub {
        local ($_, $SIG{__DIE__});
        $thrower->signal_emit(thrown => $_[0]);
    }, 1);
    return;
}

# Two things that would jump over GLib, which aborts later on. Perl's Glib runs handlers in %SIG itself, which may die:
# they wait for the end of the iteration, or for Perl code in it. And it sets $_ to tell of an exception, which may
# stand for something that is read-only.
sub _iterate {
    my ($self) = @_;
    $self->{iterate} ||= Sys::Virt::Event::_held(sub { local $_; $_[0]->iteration(1) }, 1);
    $self->{iterate}->($self->{loop});
    return 1;
}

1;

__END__

=encoding UTF-8

=head1 NAME

Sys::Virt::Event::Glib - libvirt's events in GLib's main loop

=head1 SYNOPSIS

=for test program
test: event 3, detail 0

  use strict;
  use warnings;
  use Glib;
  use Sys::Virt;
  use Sys::Virt::Event::Glib -register;

  my $main = Glib::MainLoop->new;
  my $conn = Sys::Virt->new(uri => 'test:///default');

  my $lifecycle = Sys::Virt::Domain::EVENT_ID_LIFECYCLE;
  $conn->domain_event_register_any(undef, $lifecycle, sub {
      my ($conn, $domain, $event, $detail) = @_;
      print $domain->get_name, ": event $event, detail $detail\n";
      $main->quit;
  });

  $conn->get_domain_by_name('test')->suspend;
  $main->run;

=head1 DESCRIPTION

Lets libvirt watch its file descriptors and timers in GLib's main loop, by L<Glib>: for programs that run C<<
Glib::MainLoop->run >>, or something that runs on GLib, such as Gtk's main loop, or AnyEvent or IO::Async where they
have chosen Glib. Signals, threads and forks are as described in L<Sys::Virt::Event>.

libvirt's own loop, that of L<Sys::Virt::Event/register_default()>, is GLib's default context too. This class differs
from it: an exception in a callback goes to GLib's exception handlers and nothing is lost by it, callbacks can run the
loop, watches can be listed, and forked children are safe.

Glib is loaded when libvirt asks for the first watch, if the program has not done so by then.

=head1 METHODS

=head2 new(%options)

Returns an object that is not registered yet. Options:

=over 4

=item context => $context

The Glib::MainContext. Default: C<< Glib::MainContext->default >>. Perl's Glib can watch in that one only, so for
others there is code in C, which is there if GLib's headers were when Sys::Virt::Event was built.

=item hold_loop => 1 or 0

As with any adapter, but it makes no difference here: see L</WHAT KEEPS THE LOOP RUNNING>.

=back

Exceptions start with C<Cannot make Sys::Virt::Event::Glib:>. The reasons are an unknown option, a context that is
none, another context than the default one where this was built without GLib's headers, and a Glib that is missing or
older than 1.220.

=head2 register(%options)

Makes it libvirt's event loop, and returns it: see L<Sys::Virt::Event/register($impl, %options)>. Call it before the
first connection is opened. C<use Sys::Virt::Event::Glib -register> makes an object without options and registers it.

=head2 loop()

Returns the Glib::MainContext.

=head2 run_for($seconds)

Runs the context for so many seconds, or until C<stop> is called. Returns nothing.

=head2 run_until($code, $seconds)

Runs the context until C<< $code->() >> returns true. It is called before the first iteration and after each. Returns
true then, and false when so many seconds are over first, or C<stop> was called. Without a number there is no limit.

=head2 stop()

Ends the innermost C<run_for> or C<run_until> that is running. A Glib::MainLoop that the program runs is ended by its
own C<quit>. Returns nothing.

=head1 WHAT KEEPS THE LOOP RUNNING

A Glib::MainLoop runs until it is told to quit, whether there is something to wait for or not. So does C<run_until>.

=head1 PRIORITIES

libvirt's handles and timers have GLib's default priority, as libvirt gives them in its own loop. Idle sources have
their turn when libvirt has nothing to do.

=head1 EXCEPTIONS

An exception of a callback is Glib's, as that of any callback is: it goes to the handlers of
C<< Glib->install_exception_handler >>, and is a warning if there are none. The handle or timer stays. So no exception
leaves C<run_for> or C<run_until>.

If one wake finds several handles on one file descriptor whose callbacks die, the first exception is thrown, and the
others are warnings.

=head1 SIGNALS

In C<run_for> and C<run_until> a handler in C<%SIG> runs at once, and may die or call C<stop>. In a Glib::MainLoop that
the program runs it may call C<quit>, but must not die.

=head1 NESTED RUNS

A callback may run a main loop. Its own handle or timer is passed over meanwhile, and all others go on, also those on
the same file descriptor.

=head1 FORK

Both processes can run the loop after a fork. What holds for connections is in L<Sys::Virt::Event/FORK>.

=head1 COST

To change what a file descriptor is watched for, a source is removed and another one added, which are some five system
calls in the default context. libvirt switches its watch off and on with each call to a server; that is not done before
it makes a difference, so mostly it costs nothing. When a file descriptor is ready, there is one poll(2) beyond GLib's
own; in the default context its source is added anew, too: six more small system calls. A timer is added anew each time
it is due.

=head1 LIMITS

Every case of the kit, L<Test::Sys::Virt::EventImpl>, is passed.

=for test text

  what           on               reason
  -------------  ---------------  ---------------------------------------
  MainLoop->run  default context  a handler in %SIG that dies jumps over
                                  GLib's C code: run ends with its
                                  exception, but from then on handlers
                                  wait until some Perl code is called,
                                  and GLib may abort in a nested run
  MainLoop->run  another context  handlers in %SIG wait until some Perl
                                  code is called

=head1 SEE ALSO

L<Sys::Virt::Event>, L<Sys::Virt::Event::Loop>, L<Glib>, L<Glib::MainLoop>

=head1 AUTHOR AND LICENSE

The Sys-Virt-Event developers. This module is free software; you can redistribute it and/or modify it under the same
terms as Perl itself.

=cut
