package VirtTest::Loop;

# A loop written by hand, as a program would, that does nothing of its own accord: it remembers what it was asked, and
# calls back when the test says so. Loads nothing: the test loads Sys::Virt::Event.
#
#     my $loop = VirtTest::Loop->new;
#     $loop->on(update_timeout => sub { my ($loop, $key, $ms) = @_; die });    until on(update_timeout => undef)
#     $loop->dispatch($loop->latest);

use strict;
use warnings;

our @ISA = ('Sys::Virt::Event');

sub new {
    my ($class) = @_;
    return bless { on => {}, calls => [], watches => {}, last_key => 0 }, $class;
}

# What a method does besides; what an add or remove does and returns instead.
sub on { my ($self, $method, $code) = @_; $self->{on}{$method} = $code; return $self }

# The calls since the last time, as [method => arguments], without tokens.
sub calls { my ($self) = @_; return splice @{ $self->{calls} } }

# The watch asked for last, be it still there or not: a hash of kind, key, fd, value, cb, opaque, ff.
sub latest { return $_[0]{latest} }

sub dispatch {
    my ($self, $watch, $events) = @_;
    return $self->_run_timeout_callback(@$watch{qw(key cb opaque)}) if $watch->{kind} eq 'timeout';
    return $self->_run_handle_callback(@$watch{qw(key fd)}, $events // 1, @$watch{qw(cb opaque)});
}

sub _add {
    my ($kind, $self, @args) = @_;
    my %watch = (kind => $kind, key => ++$self->{last_key});
    @watch{qw(cb opaque ff)} = splice @args, -3;
    @watch{ $kind eq 'handle' ? qw(fd value) : 'value' } = @args;
    push @{ $self->{calls} }, ["add_$kind", @args];
    $self->{latest} = \%watch;
    my $code = $self->{on}{"add_$kind"};
    return $code->($self, @args) if $code;
    $self->{watches}{ $watch{key} } = \%watch;
    return $watch{key};
}

sub _update {
    my ($kind, $self, $key, $value) = @_;
    push @{ $self->{calls} }, ["update_$kind", $key, $value];
    my $watch = $self->{watches}{$key};
    $watch->{value} = $value if $watch;
    my $code = $self->{on}{"update_$kind"};
    $code->($self, $key, $value) if $code;
    return;
}

sub _remove {
    my ($kind, $self, $key) = @_;
    push @{ $self->{calls} }, ["remove_$kind", $key];
    delete $self->{watches}{$key};
    my $code = $self->{on}{"remove_$kind"};
    return $code ? $code->($self, $key) : 0;
}

sub add_handle     { return _add(handle => @_) }
sub update_handle  { return _update(handle => @_) }
sub remove_handle  { return _remove(handle => @_) }
sub add_timeout    { return _add(timeout => @_) }
sub update_timeout { return _update(timeout => @_) }
sub remove_timeout { return _remove(timeout => @_) }

1;
