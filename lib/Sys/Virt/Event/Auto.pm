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
sub run_for     { my ($self, @args) = @_; return $self->_become->run_for(@args) }
sub run_until   { my ($self, @args) = @_; return $self->_become->run_until(@args) }

sub _become {
    my ($self) = @_;
    my $class = _choice();
    my $file  = $class =~ s{::}{/}gr . '.pm';
    require $file;
    my $new  = $class->new(%{ $self->{options} });
    my $wake = $self->{wake};
    my $key  = $self->{last_key};
    %$self = (%$new, was_auto => 1, last_key => $key);
    bless $self, $class;
    if ($wake) {
        # It keeps the key by which it is known.
        $self->{last_key} = $wake->{key} - 1;
        $self->add_handle(@$wake{qw(fd events cb opaque ff)});
        $self->{last_key} = $key;
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
