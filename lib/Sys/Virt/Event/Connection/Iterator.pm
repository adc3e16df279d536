package Sys::Virt::Event::Connection::Iterator;
use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

our @CARP_NOT = qw(Sys::Virt::Event::Connection);

use Carp ();
use overload ();
use Scalar::Util ();
use Sys::Virt::Event ();

sub CLONE_SKIP { 1 }

# Events wait here for those who ask, or the other way round. $conn->events(...) makes it.
sub new {
    my ($class, $conn, @what) = @_;
    my $self = bless { conn => $conn, events => [], asking => [] }, $class;
    Scalar::Util::weaken(my $weak = $self);
    $self->{id} = $conn->on(@what, sub {
        my ($conn, @event) = @_;
        my $self = $weak or return;
        push @{ $self->{events} }, \@event;
        $self->_serve;
    });
    Scalar::Util::weaken($conn->{iterators}{ $self->{id} } = $self);
    return $self;
}

sub next {
    my ($self, $code) = @_;
    Carp::croak('Cannot take the next event: the argument is not a code reference')
        if ref $code ne 'CODE' && !(Scalar::Util::blessed($code) && overload::Method($code, '&{}'));
    return $self->_ask({ event => $code, end => sub { $code->($_[0]) } });
}

sub next_p {
    my ($self) = @_;
    require Mojo::Promise;
    my $promise = Mojo::Promise->new;
    $self->_ask({ event => sub { $promise->resolve(@_) }, end => sub { $promise->reject($_[1]) } });
    return $promise;
}

# Of the loop that libvirt lives in where that has its own kind of futures: those can be waited for.
sub next_f {
    my ($self) = @_;
    my $loop = Sys::Virt::Event::registered();
    my $host = ref $loop && $loop->can('loop') ? $loop->loop : undef;
    my $future = Scalar::Util::blessed($host) && $host->can('new_future') ? $host->new_future : do {
        require Future;
        Future->new;
    };
    $self->_ask({
        event => sub { $future->done(@_) }, end => sub { $future->fail($_[1]) }, is_over => sub { $future->is_ready },
    });
    return $future;
}

sub cancel {
    my ($self) = @_;
    $self->_end('it was cancelled');
    return;
}

sub DESTROY {
    my ($self) = @_;
    return if ${^GLOBAL_PHASE} eq 'DESTRUCT';
    local $@;
    eval { $self->_end('it was cancelled') };
    return;
}

sub _ask {
    my ($self, $question) = @_;
    push @{ $self->{asking} }, $question;
    $self->_serve;
    return;
}

sub _end {
    my ($self, $why) = @_;
    return if defined $self->{ended};
    $self->{ended} = "Cannot take the next event: $why";
    $self->{conn}->off($self->{id});
    delete $self->{conn}{iterators}{ $self->{id} };
    $self->_serve;
    return;
}

# Code that asks for the next event does not run inside itself, however many there are.
sub _serve {
    my ($self) = @_;
    return if $self->{is_serving};
    local $self->{is_serving} = 1;
    my ($events, $asking) = @$self{qw(events asking)};
    while (@$asking && (@$events || defined $self->{ended})) {
        my $question = shift @$asking;
        next if $question->{is_over} && $question->{is_over}->();
        if (@$events) { $question->{event}->($self->{conn}, @{ shift @$events }) }
        else          { $question->{end}->($self->{conn}, $self->{ended}) }
    }
    return;
}

1;
