package Sys::Virt::Event::Glib;
use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

use Carp ();
use List::Util ();
use Scalar::Util ();
use Sys::Virt::Event::Loop ();

our @ISA = ('Sys::Virt::Event::Loop');

sub _needs       { (Glib => '1.220') }
sub _loop_option { 'context' }

# Perl's Glib has no way to attach a source to another context.
sub new {
    my ($class, @options) = @_;
    my $self    = $class->SUPER::new(@options);
    my $context = $self->{given} // return $self;
    Carp::croak("Cannot make $class: the context is no Glib::MainContext")
        if !Scalar::Util::blessed($context) || !$context->isa('Glib::MainContext');
    Carp::croak("Cannot make $class: Glib can watch in its default context only")
        if ${$context} != ${ Glib::MainContext->default };
    return $self;
}

sub _find_loop {
    require Glib;
    return Glib::MainContext->default;
}

# A source that is being called is out of its context for that time, and gone if the call dies. So what is called is
# always a source that has its successor already: then other handles of the file descriptor go on in a nested run, and
# Glib can have the exception. Glib complains of a closed file descriptor, so for that there is a timer.
sub _watch {
    my ($self, $fd, $read, $write, $code) = @_;
    my $conditions = Glib::IOCondition->new([$read ? 'in' : (), $write ? 'out' : (), qw(err hup nval)]);
    my ($source, $call);
    my $start = sub {
        $source = Sys::Virt::Event::_poll_fd($fd, 0) & Sys::Virt::Event::Loop::CLOSED
            ? Glib::Timeout->add(0, $call) : Glib::IO->add_watch($fd, $conditions, $call);
    };
    $call = sub {
        $start->();
        $code->();
        return 0;
    };
    $start->();
    # The two hold each other.
    return sub {
        Glib::Source->remove($source);
        undef $call;
    };
}

sub _unwatch { $_[1]->() }

# In whole milliseconds, rounded up: a fraction would be spent polling. Glib's number has 32 bits.
sub _timer {
    my ($self, $seconds, $code) = @_;
    my $ms = $seconds > 0 ? List::Util::min(1e9, int($seconds * 1000) + 1) : 0;
    return Glib::Timeout->add($ms, sub { $code->(); return 0 });
}

sub _cancel { Glib::Source->remove($_[1]) }

sub _iterate {
    my ($self) = @_;
    $self->{loop}->iteration(1);
    return 1;
}

1;
