package Sys::Virt::Event::Tool::Output;
use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

use Errno ();
use IO::Poll ();
use POSIX ();
use Sys::Virt::Event ();
use Time::HiRes ();

# An output of a program that lives in an event loop. What its reader does not take yet waits here while the loop
# goes on, so that servers still get their answers; from a certain amount on, all waits. The file's flags are not
# touched, others may share it: a write is no larger than what a pipe that has room at all takes at once. A terminal
# with room may take less, and the write would wait for the rest: it is opened anew, with flags of its own.

use constant {
    MOST_WAITING => 64 * 1024 * 1024,    # bytes
    PIECE        => POSIX::PIPE_BUF(),
};

# failed: called with errno, once, when nobody reads any more or nothing can be written. signals: a reference to the
# number of signals that came; one more ends all waiting.
sub new {
    my ($class, $handle, %opt) = @_;
    my $has_reader = -p $handle || -S $handle || -t $handle;
    $handle = _opened_anew($handle) // $handle if -t $handle;
    my $fd = fileno $handle;
    my $self = bless { %opt, handle => $handle, fd => $fd, waiting => '', has_reader => $has_reader }, $class;
    # A reader that has gone is not to be noticed at the next event only.
    $self->{hangup} = Sys::Virt::Event::add_handle($fd,
        Sys::Virt::Event::HANDLE_ERROR() | Sys::Virt::Event::HANDLE_HANGUP(), sub { $self->_fail(Errno::EPIPE()) })
        if $has_reader;
    # Where it was closed at the start, perl has one of its own files there, and nobody can write to that.
    $self->_fail($! + 0) if !$has_reader && !defined syswrite $handle, '';
    return $self;
}

# Opening the master of a pseudoterminal would make another one.
sub _opened_anew {
    my ($handle) = @_;
    my $name = POSIX::ttyname(fileno $handle) // return;
    return if $name =~ /ptmx\z/;
    sysopen my $own, $name, POSIX::O_WRONLY() | POSIX::O_NOCTTY() | POSIX::O_NONBLOCK() or return;
    return $own;
}

sub put {
    my ($self, $bytes) = @_;
    return if $self->{has_failed};
    if (!$self->{has_reader} && $self->{waiting} eq '') {
        my $count = syswrite $self->{handle}, $bytes;
        return if ($count // 0) == length $bytes;
        substr $bytes, 0, $count, '' if $count;
    }
    $self->{waiting} .= $bytes;
    $self->_write if !$self->{writable};
    $self->_wait(MOST_WAITING) if length $self->{waiting} > MOST_WAITING;
    return;
}

# Waits until all is written; with a number of seconds, so long at most. Returns how many bytes are left.
sub finish {
    my ($self, $seconds) = @_;
    $self->_wait(0, $seconds);
    Sys::Virt::Event::remove_handle($_) for grep { defined } delete @$self{qw(hangup writable)};
    return length $self->{waiting};
}

# Until no more than so many bytes are left.
sub _wait {
    my ($self, $most, $seconds) = @_;
    my $end = defined $seconds ? Time::HiRes::time() + $seconds : undef;
    my $signals = ${ $self->{signals} };
    while (length $self->{waiting} > $most && $signals == ${ $self->{signals} }) {
        my $ms = defined $end ? 1000 * ($end - Time::HiRes::time()) : -1;
        last if defined $end && $ms <= 0;
        $self->_write if $self->_is_ready($ms);
    }
    return;
}

# As much as can be written without waiting.
sub _write {
    my ($self) = @_;
    while (length $self->{waiting}) {
        last if $self->{has_reader} && !$self->_is_ready(0);
        my $count = syswrite $self->{handle}, $self->{waiting}, $self->{has_reader} ? PIECE : length $self->{waiting};
        if    (defined $count)               { substr $self->{waiting}, 0, $count, '' }
        elsif ($!{EAGAIN})                   { last }
        elsif (!$!{EINTR})                   { return $self->_fail($! + 0) }
    }
    $self->_watch(length $self->{waiting});
    return;
}

sub _is_ready {
    my ($self, $ms) = @_;
    return IO::Poll::_poll($ms, my $fd = $self->{fd}, my $events = IO::Poll::POLLOUT()) > 0;
}

sub _watch {
    my ($self, $is_waiting) = @_;
    if ($is_waiting) {
        $self->{writable}
            //= Sys::Virt::Event::add_handle($self->{fd}, Sys::Virt::Event::HANDLE_WRITABLE(), sub { $self->_write });
    } elsif (defined $self->{writable}) {
        Sys::Virt::Event::remove_handle(delete $self->{writable});
    }
    return;
}

sub _fail {
    my ($self, $errno) = @_;
    return if $self->{has_failed}++;
    $self->{waiting} = '';
    $self->_watch(0);
    # It would be told again and again.
    Sys::Virt::Event::remove_handle(delete $self->{hangup}) if defined $self->{hangup};
    $self->{failed}->($errno);
    return;
}

1;
