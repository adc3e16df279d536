package Sys::Virt::Event::EV;
use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

use Sys::Virt::Event::Loop ();

our @ISA = ('Sys::Virt::Event::Loop');

sub _needs          { (EV => '4.15') }
sub _loop_option    { 'loop' }
sub _ends_by_itself { 1 }

sub _find_loop {
    my ($self, $loop) = @_;
    require EV;
    return $loop // EV::default_loop();
}

# All that follows is for a Sys::Virt::Event that was built without EV, or for another version of it.
sub _hand_over {
    my ($self) = @_;
    return defined &Sys::Virt::Event::_serve_by_ev
        && eval { Sys::Virt::Event::_serve_by_ev($self, $self->{loop}, $self->{hold_loop}) };
}

# What is libvirt's does not keep the loop running; what does is a timer that is there for that.

sub _watch {
    my ($self, $fd, $read, $write, $code) = @_;
    my $watcher = $self->{loop}->io($fd, ($read ? EV::READ() : 0) | ($write ? EV::WRITE() : 0), $code);
    $watcher->keepalive(0);
    return $watcher;
}

sub _unwatch { $_[1]->stop }

sub _timer {
    my ($self, $seconds, $code, $holds) = @_;
    $self->{loop}->now_update;
    my $watcher = $self->{loop}->timer($seconds, 0, $code);
    $watcher->keepalive(0) if !$holds;
    return $watcher;
}

sub _cancel { $_[1]->stop }

# In a nested run libev calls what the outer one has found first, and then waits: what was waited for may be done.
sub _iterate {
    my ($self) = @_;
    my $loop = $self->{loop};
    return $loop->run($loop->pending_count ? EV::RUN_NOWAIT() : EV::RUN_ONCE());
}

1;
