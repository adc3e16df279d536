package Sys::Virt::Event::Mojo;
use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

use Scalar::Util ();
use Sys::Virt::Event::Loop ();

our @ISA = ('Sys::Virt::Event::Loop');

sub _needs          { (Mojolicious => '7.37') }
sub _loop_option    { 'reactor' }
sub _wants_handles  { 'tied' }
sub _ends_by_itself { 1 }
sub _watches_hold   { 1 }

sub _find_loop {
    my ($self, $reactor) = @_;
    require Mojo::IOLoop;
    $reactor //= Mojo::IOLoop->singleton->reactor;
    return $reactor if !$reactor->isa('Mojo::Reactor::EV');
    require Sys::Virt::Event::EV;
    bless $self, _class_on_ev(ref $self);
    return $self->_find_loop;
}

# That reactor runs EV's default loop, for which there is a class already. A subclass of this one keeps its methods, but
# for those that an adapter has.
sub _class_on_ev {
    my ($class) = @_;
    return 'Sys::Virt::Event::EV' if $class eq __PACKAGE__;
    my $on_ev = $class . '::OnEV';
    no strict 'refs';
    @{"${on_ev}::ISA"} = ($class, 'Sys::Virt::Event::EV');
    *{"${on_ev}::$_"} = Sys::Virt::Event::EV->can($_)
        for qw(loop _wants_handles _ends_by_itself _watches_hold _find_loop _watch _unwatch _timer _cancel _iterate);
    return $on_ev;
}

# A reset with the option freeze, as in a child of Mojo::IOLoop::Subprocess, gives the singleton another reactor.
sub loop {
    my ($self) = @_;
    my $loop = $self->SUPER::loop;
    return $loop if $self->{given} || $self->isa('Sys::Virt::Event::EV');
    my $reactor = Mojo::IOLoop->singleton->reactor;
    return $loop if $reactor == $loop;
    $self->{loop} = $reactor;
    $self->_arm_all;
    return $reactor;
}

sub _watch {
    my ($self, $file, $read, $write, $code) = @_;
    my $reactor = $self->loop;
    my ($watcher, $guard) = $self->_guarded($reactor);
    $reactor->io($file => sub { $guard && $code->() })->watch($file, $read, $write);
    return $watcher;
}

sub _unwatch {
    my ($self, $watcher, $file) = @_;
    $watcher->{is_done} = 1;
    $watcher->{reactor}->remove($file);
    return;
}

sub _timer {
    my ($self, $seconds, $code) = @_;
    my $reactor = $self->loop;
    my ($watcher, $guard) = $self->_guarded($reactor);
    $watcher->{id} = $reactor->timer($seconds => sub { $guard->{watcher}{is_done} = 1; $code->() });
    return $watcher;
}

sub _cancel {
    my ($self, $watcher) = @_;
    $watcher->{is_done} = 1;
    $watcher->{reactor}->remove($watcher->{id});
    return;
}

# A reactor that is reset drops its code without a word. What that code holds is told then.
sub _guarded {
    my ($self, $reactor) = @_;
    my $watcher = { reactor => $reactor };
    my $guard = bless { loop => $self, watcher => $watcher }, 'Sys::Virt::Event::Mojo::Guard';
    Scalar::Util::weaken($guard->{loop});
    return ($watcher, $guard);
}

sub Sys::Virt::Event::Mojo::Guard::DESTROY {
    my ($guard) = @_;
    return if $guard->{watcher}{is_done} || !$guard->{loop} || ${^GLOBAL_PHASE} eq 'DESTRUCT';
    local ($@, $!, $?);
    eval { $guard->{loop}->_arm_all; 1 } or warn $@;
    return;
}

# The reactor itself does not tell that it had nothing to wait for.
sub _iterate {
    my ($self) = @_;
    my $reactor = $self->{loop};
    return 0 if $reactor->isa('Mojo::Reactor::Poll') && !grep { %{ $reactor->{$_} || {} } } qw(io timers);
    $reactor->one_tick;
    return 1;
}

1;
