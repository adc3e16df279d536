package Sys::Virt::Event::POE;
use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

use Fcntl ();
use Scalar::Util ();
use Sys::Virt::Event::Loop ();

our @ISA = ('Sys::Virt::Event::Loop');

sub _needs          { (POE => '1.350') }
sub _ends_by_itself { 1 }
sub _watches_hold   { 1 }

# One closed file descriptor would end all watching of a loop on select(2), hence the duplicates. The wake watch is never
# closed, and must become that of the child in a child.
sub _wants_handles { my ($self, $is_wake) = @_; return $is_wake ? 'tied' : 'dup' }

# The kernel is there as soon as it is loaded. A program that has not loaded it itself has nothing in it that must run.
sub _find_loop {
    my ($self) = @_;
    my $is_new = !$INC{'POE/Kernel.pm'};
    require POE::Kernel;
    POE::Kernel->import;
    require POE::Session;
    _need_not_run($POE::Kernel::poe_kernel) if $is_new;
    return $POE::Kernel::poe_kernel;
}

# Keeps the kernel from complaining at the end that its method run was never called. What POE's manual has for that, to
# call it once before there are sessions, waits for the program's child processes.
sub _need_not_run {
    my ($kernel) = @_;
    ${ $kernel->[POE::Kernel::KR_RUN()] } |= POE::Kernel::KR_RUN_CALLED();
    return;
}

# All is done in a session, which goes when it has nothing to wait for, or when the kernel is stopped. It is nobody's
# child: it would keep its parent.
sub _session {
    my ($self) = @_;
    return $self->{session} if $self->{session};
    Scalar::Util::weaken(my $weak_self = $self);
    POE::Session->create(inline_states => {
        _start => sub {
            my ($kernel, $session) = @_[POE::Session::KERNEL(), POE::Session::SESSION()];
            Scalar::Util::weaken($weak_self->{session} = $session);
            $kernel->detach_myself;
            $kernel->sig(DIE => 'die');
            $kernel->yield('start');
        },
        _stop => sub { $weak_self->_on_stop if $weak_self },
        start => sub { $weak_self->_arm_all if $weak_self },
        call  => sub { $_[POE::Session::ARG0()]->() },
        ready => sub { $weak_self->_deliver($_[POE::Session::ARG2()]) if $weak_self },
        due   => sub { $weak_self->_deliver($_[POE::Session::ARG0()]) if $weak_self },
        die   => sub {
            my ($kernel, $session, $info) = @_[POE::Session::KERNEL(), POE::Session::SESSION(), POE::Session::ARG1()];
            $kernel->sig_handled if ref $info eq 'HASH' && $info->{dest_session} == $session;
        },
    });
    return $self->{session};
}

# Where it had something to wait for it was the kernel that was stopped. Had that been done by a callback, what is armed
# for libvirt after the callback would keep the kernel running.
sub _on_stop {
    my ($self) = @_;
    $self->{is_stopped} = $self->{delivering}
        && ($self->{hold} || grep { $_->{watcher} || $_->{host} } values %{ $self->{ports} }, values %{ $self->{timers} });
    delete $self->{session};
    $self->_disarm_all;
    return;
}

# An exception in a session would end it.
sub _in_session {
    my ($self, $code) = @_;
    return if $self->{is_stopped};
    local ($@, $!);
    my ($result, $error);
    $self->{loop}->call($self->_session, call => sub { eval { $result = $code->(); 1 } or $error = $@ });
    die $error if defined $error;
    return $result;
}

# POE makes what it watches non-blocking, and a duplicate shares that with libvirt's own.
sub _watch {
    my ($self, $file, $read, $write, $code) = @_;
    my $kernel  = $self->{loop};
    my $watcher = { code => $code };
    $self->_in_session(sub {
        my $flags = tied *$file ? undef : fcntl $file, Fcntl::F_GETFL(), 0;
        $kernel->select_read($file, ready => $watcher) if $read;
        $kernel->select_write($file, ready => $watcher) if $write;
        fcntl $file, Fcntl::F_SETFL(), $flags + 0 if defined $flags;
    });
    return $watcher;
}

sub _unwatch {
    my ($self, $watcher, $file) = @_;
    $watcher->{is_done} = 1;
    $self->_in_session(sub { $self->{loop}->select($file) }) if $self->{session};
    return;
}

sub _timer {
    my ($self, $seconds, $code) = @_;
    my $watcher = { code => $code, is_timer => 1 };
    $watcher->{id} = $self->_in_session(sub { $self->{loop}->delay_set(due => $seconds, $watcher) });
    return $watcher;
}

sub _cancel {
    my ($self, $watcher) = @_;
    $watcher->{is_done} = 1;
    $self->_in_session(sub { $self->{loop}->alarm_remove($watcher->{id}) }) if $self->{session};
    return;
}

# What is delivered may have been in the queue for a while.
sub _deliver {
    my ($self, $watcher) = @_;
    return if $watcher->{is_done};
    $watcher->{is_done} = 1 if $watcher->{is_timer};
    $self->{delivering}++;
    eval { $watcher->{code}->(); 1 } or $self->_report($@);
    $self->{delivering}--;
    $self->_disarm_all if !$self->{delivering} && delete $self->{is_stopped};
    return;
}

# To all sessions that watch for exceptions. The one of ours sees to it that none is ended by it.
sub _report {
    my ($self, $error) = @_;
    return warn $error if $self->{is_stopped};
    my $kernel   = $self->{loop};
    my $session  = $self->_session;
    my %watching = $kernel->_data_sig_watchers('DIE');
    delete $watching{ $session->ID };
    return warn $error if !%watching;
    my ($file, $line) = (__FILE__, __LINE__);
    $kernel->signal($kernel, DIE => {
        source_session => $session, dest_session => $session, event => 'libvirt', from_state => undef,
        file => $file, line => $line, error_str => $error,
    });
    return;
}

sub _iterate {
    my ($self) = @_;
    my $kernel = $self->{loop};
    _need_not_run($kernel);
    if (($self->{pid} //= $$) != $$) {
        $self->{pid} = $$;
        $kernel->has_forked;
    }
    # Without sessions it would clean up for its end.
    return $kernel->_data_ses_count && $kernel->run_one_timeslice;
}

1;
