package VirtTest::EpollLoop;

# libvirt's event loop on Linux epoll, by syscall(), written by somebody who knew nothing but the manual of
# Sys::Virt::Event. The six methods only write down what is wanted; run_once brings the kernel up to date before it
# sleeps.

use strict;
use warnings;
use Sys::Virt::Event ();    # no import: its functions are named as the methods here
use parent 'Sys::Virt::EventImpl';
use Errno qw(EBADF EEXIST EINTR ENOENT EPERM);
use List::Util qw(min);
use POSIX ();
use Time::HiRes qw(clock_gettime CLOCK_MONOTONIC);
require 'syscall.ph';

use constant {
    R => Sys::Virt::Event::HANDLE_READABLE(), W => Sys::Virt::Event::HANDLE_WRITABLE(),
    E => Sys::Virt::Event::HANDLE_ERROR(),    H => Sys::Virt::Event::HANDLE_HANGUP(),
    EP_IN => 1, EP_OUT => 4, EP_ERR => 8, EP_HUP => 16,
    ADD => 1, DEL => 2, MOD => 3,
    # struct epoll_event is packed on x86_64 only: mask, (pad,) fd, 0
    EVENT => (POSIX::uname())[4] eq 'x86_64' ? 'LLL' : 'Lx4LL',
    ROOM  => 64,
};
use constant SIZE => length pack EVENT, 0, 0, 0;

sub now { return clock_gettime(CLOCK_MONOTONIC) }

sub new {
    my ($class) = @_;
    my $self = bless { watch => {}, serial => 0, tick => 0, pass => 0, kernel => {} }, $class;
    $self->_open_epoll;
    return $self;
}

sub DESTROY { my ($self) = @_; POSIX::close($self->{ep}) if defined $self->{ep} }

sub _open_epoll {
    my ($self) = @_;
    POSIX::close(delete $self->{ep}) if defined $self->{ep};
    my $ep = syscall(&SYS_epoll_create1, 0x80000);    # EPOLL_CLOEXEC
    die "epoll_create1: $!\n" if $ep < 0;
    @$self{qw(ep kernel pid)} = ($ep, {}, $$);        # kernel: fd => mask it has
}

sub _ctl {
    my ($self, $op, $fd, $mask) = @_;
    my $event = pack EVENT, $mask, $fd, 0;
    return syscall(&SYS_epoll_ctl, $self->{ep}, $op, $fd + 0, $event) == 0;
}

# --- what libvirt wants. A key is a serial number.

sub _add {
    my ($self, %watch) = @_;
    my $key = ++$self->{serial};
    $self->{watch}{$key} = { %watch, key => $key, tick => 0 };
    return $key;
}

sub add_handle {
    my ($self, $fd, $mask, $cb, $opaque, $ff) = @_;
    return $self->_add(fd => $fd, mask => $mask, cb => $cb, opaque => $opaque, ff => $ff);
}

sub update_handle {
    my ($self, $key, $mask) = @_;
    my $watch = $self->{watch}{$key} or return;
    @$watch{qw(mask dead)} = ($mask, 0);
}

sub add_timeout {
    my ($self, $ms, $cb, $opaque, $ff) = @_;
    my $key = $self->_add(cb => $cb, opaque => $opaque, ff => $ff);
    $self->update_timeout($key, $ms);
    return $key;
}

sub update_timeout {
    my ($self, $key, $ms) = @_;
    my $watch = $self->{watch}{$key} or return;
    @$watch{qw(every due set)} = ($ms / 1000, $ms < 0 ? undef : now() + $ms / 1000, $self->{pass});
}

sub _remove {
    my ($self, $key) = @_;
    my $watch = delete $self->{watch}{$key} or return;
    $watch->{gone} = 1;
    my $fd = $watch->{fd};
    # The fd may be closed as soon as this returns: take it from the kernel's list now.
    $self->_ctl(DEL, $fd, 0)
        if defined $fd && !grep({ defined $_->{fd} && $_->{fd} == $fd } values %{ $self->{watch} })
        && defined delete $self->{kernel}{$fd};
    $self->_free_callback_opaque(@$watch{qw(ff opaque)});
}
sub remove_handle  { &_remove }
sub remove_timeout { &_remove }

# --- running

# Brings epoll's list up to date. Returns fds that are closed, and fds that epoll
# does not take since they are always ready (plain files).
sub _sync {
    my ($self, $handles) = @_;
    my (%want, %closed, %always);
    $want{ $_->{fd} } |= ($_->{mask} & R && EP_IN) | ($_->{mask} & W && EP_OUT) for @$handles;
    for my $fd (keys %{ $self->{kernel} }) {
        next if exists $want{$fd};
        delete $self->{kernel}{$fd};
        $self->_ctl(DEL, $fd, 0);
    }
    while (my ($fd, $mask) = each %want) {
        # MOD also if nothing changed: it finds fds that were closed or replaced.
        my $known = exists $self->{kernel}{$fd};
        my $done = $self->_ctl($known ? MOD : ADD, $fd, $mask);
        $done = $self->_ctl(ADD, $fd, $mask) if !$done && $known && $! == ENOENT;
        $done = $self->_ctl(MOD, $fd, $mask) if !$done && !$known && $! == EEXIST;
        if ($done) { $self->{kernel}{$fd} = $mask }
        elsif ($! == EPERM) { $always{$fd} = $mask & (EP_IN | EP_OUT) }
        elsif ($! == EBADF) { $closed{$fd} = 1; delete $self->{kernel}{$fd} }
        else { die "epoll_ctl $fd: $!\n" }
    }
    return (\%closed, \%always);
}

# One pass, waiting at most $max_seconds (undef: as long as it takes).
sub run_once {
    my ($self, $max_seconds) = @_;
    my $pass = ++$self->{pass};
    $self->_open_epoll if $self->{pid} != $$;    # a child: the list is its parent's, too
    # What is off, closed, or in its callback right now (a nested run) is left out.
    my @all     = values %{ $self->{watch} };    # grep holds no references, and a signal handler may remove some
    my @on      = grep { !$_->{busy} } @all;
    my @handles = grep { $_->{mask} && !$_->{dead} } grep { defined $_->{fd} } @on;
    my @timers  = grep { defined $_->{due} } @on;

    my ($closed, $always) = $self->_sync(\@handles);
    my $ready = { %$always, map { $_ => EP_ERR } keys %$closed };
    my $wait = min($max_seconds // (), grep({ $_ } values %$ready) ? 0 : (), map { $_->{due} - now() } @timers);
    my $ms = !defined $wait ? -1 : $wait <= 0 ? 0 : min(int(1000 * $wait) + 1, 0x7fffffff);

    my $events = "\0" x (SIZE * ROOM);
    my $count = syscall(&SYS_epoll_wait, $self->{ep}, $events, ROOM, $ms);
    die "epoll_wait: $!\n" if $count < 0 && $! != EINTR;
    my $stray;
    for my $n (0 .. $count - 1) {
        my ($bits, $fd) = unpack EVENT, substr $events, $n * SIZE, SIZE;
        if (exists $self->{kernel}{$fd}) { $ready->{$fd} |= $bits } else { $stray = 1 }
    }
    $self->_open_epoll if $stray;    # closed here, but held open by a duplicate: start anew

    # Longest not called first, so one that dies each time starves nobody.
    my $now = now();
    my @due = sort { $a->{tick} <=> $b->{tick} || $a->{key} <=> $b->{key} }
        grep({ $ready->{ $_->{fd} } } @handles), grep { $_->{due} <= $now } @timers;
    my $start = $self->{tick};
    for my $watch (@due) {
        next if $watch->{gone} || $watch->{busy} || $watch->{tick} > $start;    # ran in a nested pass
        if (!defined $watch->{fd}) {
            # switched off, or started anew, in this pass or a nested one
            next if !defined $watch->{due} || $watch->{due} > $now || $watch->{set} >= $pass;
            $watch->{due} = $now + $watch->{every};
        }
        my $bits = defined $watch->{fd} ? $self->_bits($watch, $ready->{ $watch->{fd} }, $closed) || next : 0;
        $watch->{tick} = ++$self->{tick};
        local $watch->{busy} = 1;
        if ($bits) { $self->_run_handle_callback(@$watch{qw(key fd)}, $bits, @$watch{qw(cb opaque)}) }
        else       { $self->_run_timeout_callback(@$watch{qw(key cb opaque)}) }
    }
    return;
}

sub _bits {
    my ($self, $watch, $bits, $closed) = @_;
    my $mask = $watch->{mask} or return 0;
    $watch->{dead} = 1 if $closed->{ $watch->{fd} };
    return ($bits & EP_IN && $mask & R) | ($bits & EP_OUT && $mask & W) | ($bits & EP_ERR && E) | ($bits & EP_HUP && H);
}

sub run_for {
    my ($self, $seconds) = @_;
    my $end = now() + $seconds;
    while ((my $left = $end - now()) > 0) { $self->run_once($left) }
}

1;
