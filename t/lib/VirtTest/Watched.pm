package VirtTest::Watched;

# A loop under observation: it is of a class that a program could have, and besides counts what it dispatches, remembers
# its tokens without keeping them, and acknowledges free functions when it is told to.
#
#     my $loop = VirtTest::Watched->over('OldLoop', acks => 'never');

use strict;
use warnings;

use mro;
use Scalar::Util qw(refaddr weaken);
use Sys::Virt::Event ();    # no import: its functions are named as the methods here
use VirtTest qw(patience);

# A registered loop of a class derived from $base. acks: at_once (inside remove_*, if that is where the base does it),
# later (before the next pass) or never.
sub over {
    my (undef, $base, %opt) = @_;
    my $class = "VirtTest::Watched::$base";
    { no strict 'refs'; @{"${class}::ISA"} = (__PACKAGE__, $base) }
    my $loop = $class->new;
    $loop->register;
    @$loop{qw(acks unacknowledged tokens dispatched passes)} = ($opt{acks} // 'at_once', [], {}, 0, 0);
    return $loop;
}

sub add_handle  { my ($self, @args) = @_; $self->_remember(@args[2 .. 4]); return $self->next::method(@args) }
sub add_timeout { my ($self, @args) = @_; $self->_remember(@args[1 .. 3]); return $self->next::method(@args) }

# libvirt masks the handle of a connection while a call is under way: the code is run in the midst of the next one.
sub in_next_call { my ($self, $code) = @_; $self->{in_next_call} = $code; return }

sub update_handle {
    my ($self, $key, $events) = @_;
    $self->next::method($key, $events);
    my $code = $events ? undef : delete $self->{in_next_call};
    $code->() if $code;
    return;
}

sub _remember {
    my ($self, $cb, $opaque, $ff) = @_;
    # The wake watch stays as long as the loop is registered.
    return if Sys::Virt::Event::_is_wake($opaque);
    weaken($self->{tokens}{ refaddr $_ } = $_) for grep { ref } $cb, $opaque, $ff;
    return;
}

# How many tokens somebody holds.
sub tokens { my ($self) = @_; return scalar grep { defined } values %{ $self->{tokens} } }

sub _run_handle_callback  { my ($self, @args) = @_; $self->{dispatched}++; return $self->next::method(@args) }
sub _run_timeout_callback { my ($self, @args) = @_; $self->{dispatched}++; return $self->next::method(@args) }

sub _free_callback_opaque {
    my ($self, @args) = @_;
    return $self->next::method(@args) if $self->{acks} eq 'at_once';
    push @{ $self->{unacknowledged} }, [@args] if $self->{acks} eq 'later';
    return;
}

sub acknowledge {
    my ($self) = @_;
    local $self->{acks} = 'at_once';
    while (my $args = shift @{ $self->{unacknowledged} }) {
        $self->_free_callback_opaque(@$args);
    }
    return;
}

# Passes until the code returns true; then true, or false after so many seconds. Any loop can do it, as the time is a
# timer of libvirt's.
sub wait_for {
    my ($self, $code, $seconds) = @_;
    my $is_over = 0;
    my $clock   = Sys::Virt::Event::add_timeout(1000 * ($seconds // patience(20)), sub { $is_over = 1 });
    my $done;
    until (($done = $code->()) || $is_over) {
        $self->acknowledge;
        $self->{passes}++;
        $self->_run_once;
    }
    Sys::Virt::Event::remove_timeout($clock);
    $self->acknowledge;
    return $done ? 1 : 0;
}

# Adapters run until something is so.
sub _run_once {
    my ($self) = @_;
    return $self->run_once if $self->can('run_once');
    my $checks = 0;
    return $self->run_until(sub { $checks++ });
}

sub linger { my ($self, $seconds) = @_; $self->wait_for(sub { 0 }, $seconds); return }

1;
