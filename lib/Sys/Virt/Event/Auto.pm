package Sys::Virt::Event::Auto;
use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

use Carp ();
use mro ();
use Scalar::Util ();
use Sys::Virt::Event::Loop ();

our @ISA = ('Sys::Virt::Event::Loop');

# The module that loads a loop, and the adapter for it.
my %ADAPTER = (
    'EV'              => 'Sys::Virt::Event::EV',
    'Mojo::IOLoop'    => 'Sys::Virt::Event::Mojo',
    'IO::Async::Loop' => 'Sys::Virt::Event::IOAsync',
    'AnyEvent'        => 'Sys::Virt::Event::AnyEvent',
    'POE::Kernel'     => 'Sys::Virt::Event::POE',
    'Glib'            => 'Sys::Virt::Event::Glib',
);

# What the back-end of a loop is for, by the last part of its name.
my %LOOP = (
    EV => 'EV', Glib => 'Glib', POE => 'POE::Kernel', AnyEvent => 'AnyEvent', AnyEvent2 => 'AnyEvent',
    IOAsync => 'IO::Async::Loop', IO_Async => 'IO::Async::Loop', Mojo => 'Mojo::IOLoop', Mojo_IOLoop => 'Mojo::IOLoop',
);

sub import {
    my ($class, @words) = @_;
    my $registered = Sys::Virt::Event::registered();
    @words = grep { $_ ne '-register' } @words if Scalar::Util::blessed($registered) && _was_auto($registered);
    return $class->SUPER::import(@words);
}

sub _was_auto { $_[0]->isa('Sys::Virt::Event::Loop') && $_[0]{was_auto} }

sub new {
    my ($class, @options) = @_;
    my $self = $class->SUPER::new(@options);
    $self->{options} = {@options};
    return $self;
}

# Whatever needs the loop makes the object one of the class that has it, and is done by that class.

sub add_handle {
    my ($self, @args) = @_;
    return $self->SUPER::add_handle(@args) if Sys::Virt::Event::_is_wake($args[3]);
    return $self->_become->add_handle(@args);
}

sub add_timeout { my ($self, @args) = @_; return $self->_become->add_timeout(@args) }
sub loop        { my ($self)        = @_; return $self->_become->loop }
sub run_until   { my ($self, @args) = @_; return $self->_become->run_until(@args) }

sub _become {
    my ($self) = @_;
    my $class = _choice();
    my $file  = $class =~ s{::}{/}gr . '.pm';
    require $file;
    my $new  = $class->new(%{ $self->{options} });
    my $wake = $self->{wake};
    %$self = (%$new, was_auto => 1);
    bless $self, $class;
    if ($wake) {
        # It keeps the key by which it is known.
        $self->{last_key} = $wake->{key} - 1;
        $self->add_handle(@$wake{qw(fd events cb opaque ff)});
    }
    return $self;
}

# The class for what the program has loaded so far.
sub _choice {
    my %runs_on = _loaded();
    # AnyEvent looks for a loop when it is used first, and takes one that is there.
    delete $runs_on{AnyEvent} if keys %runs_on > 1 && !$AnyEvent::MODEL;
    my %root = map { _root($_, \%runs_on) => 1 } keys %runs_on;
    my @roots = sort keys %root;
    Carp::croak('Cannot choose an event loop: the program has loaded ', join(' and ', @roots), '; register ',
        join(' or ', @ADAPTER{@roots})) if @roots > 1;
    return @roots ? $ADAPTER{ $roots[0] } : 'Sys::Virt::Event::Poll';
}

sub _root {
    my ($loop, $runs_on) = @_;
    my $lower = $runs_on->{$loop};
    return defined $lower ? _root($lower, $runs_on) : $loop;
}

# The loops that are loaded, each with the one that it runs on if it does not stand on its own. All this is asked of
# what is there: nothing is loaded, and no loop is made.
sub _loaded {
    my %runs_on;
    $runs_on{EV} = undef if $INC{'EV.pm'};
    # These two make GLib's default context run on EV.
    $runs_on{Glib} = $INC{'EV/Glib.pm'} || $INC{'Glib/EV.pm'} ? 'EV' : undef if $INC{'Glib.pm'};
    $runs_on{AnyEvent} = _lower($AnyEvent::MODEL) if $INC{'AnyEvent.pm'};
    $runs_on{'Mojo::IOLoop'} = $INC{'Mojo/IOLoop.pm'}
        ? _lower(ref Mojo::IOLoop->singleton->reactor) : _lower_of('Mojo/Reactor')
        if $INC{'Mojo/Reactor.pm'};
    $runs_on{'IO::Async::Loop'} = $IO::Async::Loop::ONE_TRUE_LOOP
        ? _lower(ref $IO::Async::Loop::ONE_TRUE_LOOP) : _lower_of('IO/Async/Loop')
        if $INC{'IO/Async/Loop.pm'};
    $runs_on{'POE::Kernel'} = _lower(POE::Kernel->can('poe_kernel_loop') && POE::Kernel->poe_kernel_loop)
        if $INC{'POE/Kernel.pm'};
    return %runs_on;
}

# By the class of a back-end.
sub _lower {
    my ($class) = @_;
    return if !$class;
    my ($lower) = map { /::(\w+)\z/ && $LOOP{$1} || () } @{ mro::get_linear_isa($class) };
    return $lower;
}

# By the back-ends that are loaded, where it cannot be known yet which one is used.
sub _lower_of {
    my ($folder) = @_;
    my ($lower) = map { $LOOP{$_} } grep { $INC{"$folder/$_.pm"} } sort keys %LOOP;
    return $lower;
}

1;

__END__

=encoding UTF-8

=head1 NAME

Sys::Virt::Event::Auto - libvirt's events in whatever loop the program runs

=head1 SYNOPSIS

=for test program
test: event 3, detail 0

  use strict;
  use warnings;
  use EV;                               # or another loop
  use Sys::Virt;
  use Sys::Virt::Event::Auto -register;

  my $conn = Sys::Virt->new(uri => 'test:///default');

  my $lifecycle = Sys::Virt::Domain::EVENT_ID_LIFECYCLE;
  $conn->domain_event_register_any(undef, $lifecycle, sub {
      my ($conn, $domain, $event, $detail) = @_;
      print $domain->get_name, ": event $event, detail $detail\n";
      EV::break();
  });

  $conn->get_domain_by_name('test')->suspend;
  EV::run();

=head1 DESCRIPTION

For modules that do not know in what program they are used. When libvirt asks for the first watch, which is when the
first connection is opened, this looks at what event loop the program has loaded, and becomes an object of the class
for it:

=for test text

  EV                Sys::Virt::Event::EV
  Mojo::IOLoop      Sys::Virt::Event::Mojo
  IO::Async::Loop   Sys::Virt::Event::IOAsync
  AnyEvent          Sys::Virt::Event::AnyEvent
  POE::Kernel       Sys::Virt::Event::POE
  Glib              Sys::Virt::Event::Glib
  none of them      Sys::Virt::Event::Poll

From then on L<Sys::Virt::Event/registered()> returns the same object, which is of that class, and the manual of that
class holds.

A program that knows its loop names the class for it. So does one whose loop is none of these.

=head1 LOOPS ON LOOPS

Loops run on other loops: AnyEvent and Mojo on EV, IO::Async on Glib, and so on. Several loops that run on one are one.
Of them the lowest is chosen, which all of them run: with Mojo on EV it is EV. (An exception in a callback then goes
where users of EV look, not where those of Mojo do. Name Sys::Virt::Event::Mojo where that matters.)

What runs on what is known once a loop has been chosen by the upper one: AnyEvent's model, the reactor of Mojo's
singleton, the loop of C<< IO::Async::Loop->new >>, POE's loop. Before that the loaded modules tell: where
IO::Async::Loop::Glib is loaded, it is taken for the loop of IO::Async. AnyEvent that is loaded but not used does not
count, unless it is alone.

Two loops that are loaded and have nothing to do with each other are an exception:

=for test messages

  Cannot choose an event loop: the program has loaded EV and Glib;
      register Sys::Virt::Event::EV or Sys::Virt::Event::Glib

It is thrown by the functions of L<Sys::Virt::Event> that add a watch, and by the methods below. When libvirt itself
wants a watch it is a warning, and what libvirt makes of it is the connection's business: it opens without events, or
no handler can be registered with it. Nothing is chosen then; the next watch is another try.

=head1 METHODS

=head2 new(%options)

Returns an object that is not registered yet. The option C<hold_loop> is passed on to C<new> of the chosen class.
Others are exceptions, which start with C<Cannot make Sys::Virt::Event::Auto:>.

=head2 register(%options)

Makes it libvirt's event loop, and returns it: see L<Sys::Virt::Event/register($impl, %options)>. Call it before the
first connection is opened. C<use Sys::Virt::Event::Auto -register> makes an object without options and registers it.

=head2 loop(), run_for($seconds), run_until($code, $seconds), stop()

As those of the chosen class. The first three choose, if that was not done yet.

=head2 add_handle($fd, $events, $cb, $opaque, $ff), add_timeout($ms, $cb, $opaque, $ff)

What libvirt calls: see L<Sys::Virt::Event/METHODS A LOOP PROVIDES>. The first call chooses.

=head1 WHAT KEEPS THE LOOP RUNNING, EXCEPTIONS, FORK, COST

All of this is that of the chosen class. The choice itself is made once, and costs nothing after that.

=head1 LIMITS

Those of the chosen class. A subclass of this one is left behind when the choice is made.

=head1 SEE ALSO

L<Sys::Virt::Event>, L<Sys::Virt::Event::Loop>, L<Sys::Virt::Event::EV>, L<Sys::Virt::Event::Glib>,
L<Sys::Virt::Event::Poll>, L<Sys::Virt::Event::Manual>

=head1 AUTHOR AND LICENSE

The Sys-Virt-Event developers. This module is free software; you can redistribute it and/or modify it under the same
terms as Perl itself.

=cut
