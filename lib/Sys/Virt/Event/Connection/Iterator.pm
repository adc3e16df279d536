package Sys::Virt::Event::Connection::Iterator;
use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

our @CARP_NOT = qw(Sys::Virt::Event::Connection);

use Carp ();
use Scalar::Util ();
use Sys::Virt::Event ();

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
        if !Sys::Virt::Event::_is_code($code);
    return $self->_ask({ event => $code, end => sub { $code->($_[0]) } });
}

sub next_p {
    my ($self) = @_;
    require Mojo::Promise;
    my $promise = Sys::Virt::Event::Connection::Iterator::Promise->new;
    $self->_ask({
        event   => sub { $promise->resolve(@_) }, end => sub { $promise->reject($_[1]) },
        is_over => sub { $promise->{is_settled} },
    });
    return $promise;
}

# One that knows at once when somebody else has settled it. Callbacks of a promise come later.
{
    package    # of this file alone
        Sys::Virt::Event::Connection::Iterator::Promise;
    our @ISA = ('Mojo::Promise');
    sub resolve { my ($self, @values) = @_; return _settled($self)->SUPER::resolve(@values) }
    sub reject  { my ($self, @values) = @_; return _settled($self)->SUPER::reject(@values) }

    # They can be methods of the class.
    sub _settled { my ($self) = @_; $self->{is_settled} = 1 if ref $self; return $self }
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
    local ($@, $SIG{__DIE__});
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
        my ($code, @answer) = @$events ? ($question->{event}, @{ shift @$events }) : ($question->{end}, $self->{ended});
        eval { $code->($self->{conn}, @answer); 1 } or $self->{conn}->_report($@);
    }
    return;
}

1;

__END__

=encoding UTF-8

=head1 NAME

Sys::Virt::Event::Connection::Iterator - the events of a connection, one after another

=head1 SYNOPSIS

=for test program
test: suspended
test: resumed

  use strict;
  use warnings;
  use Sys::Virt::Event::Poll -register;
  use Sys::Virt::Event::Connection;

  my $uri  = 'test:///default';
  my $conn = Sys::Virt::Event::Connection->new(uri => $uri);
  my $it = $conn->events('domain/lifecycle');
  my $domain = $conn->open->virt->get_domain_by_name('test');
  $domain->suspend;
  $domain->resume;

  my $again;
  $it->next($again = sub {
      my ($conn, $event, $domain) = @_;
      print "$event->{name}: $event->{type}\n";
      return $it->next($again) if $event->{type} ne 'resumed';
      Sys::Virt::Event::registered()->stop;
  });
  Sys::Virt::Event::registered()->run;
  undef $again;

=head1 DESCRIPTION

C<< $conn->events($what, \%filter) >> of L<Sys::Virt::Event::Connection> makes it. From that moment on events wait in
it until somebody asks for them. None falls between two questions. There is no limit to how many can wait.

It holds its connection. It ends with C<cancel>, when the last reference to it is gone, and when the connection is
closed by C<close> or lost for good. What waits in it then can still be taken.

=head1 METHODS

=head2 new($conn, $what, \%filter)

Is what C<< $conn->events >> calls.

=head2 next($code)

Calls C<< $code->($conn, $event, $object) >> with the next event, now or when it comes; after the end, with the
connection alone. Code that asks for the next event does not run inside itself, so it can do that any number of times.

=head2 next_p()

Returns a L<Mojo::Promise>, which is resolved with the same three values, or rejected after the end, with a text that
starts with C<Cannot take the next event:>. Dies if L<Mojolicious> is not installed.

A promise that is settled otherwise, as by its C<timeout>, takes no event. One that the program has only forgotten takes
the next, for a promise cannot be cancelled: so does the loser of C<< Mojo::Promise->race >>. Give the promise itself a
time limit instead.

=head2 next_f()

The same with a L<Future>. If libvirt lives in the loop of L<IO::Async>, it is that loop's kind, so that C<get> and
C<await> run the loop. A future that was cancelled takes no event. Dies if L<Future> is not installed.

=head2 cancel()

Ends it. Returns nothing.

=head1 SEE ALSO

L<Sys::Virt::Event::Connection>.

=head1 AUTHOR AND LICENSE

The Sys-Virt-Event developers. This program is free software; you can redistribute it and/or modify it under the same
terms as Perl itself.

=cut
