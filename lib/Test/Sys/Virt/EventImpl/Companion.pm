package Test::Sys::Virt::EventImpl::Companion;

# A process beside the test that cleans up after it, however the test ends: it sees the test go. It is no member of
# the test's process group, so it survives ^C and the harness's kills, and it holds none of the test's files, so
# connections and pipes close when the test closes them.

use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

use Carp qw(croak);
use Errno qw(EINTR);
use IO::Select;
use POSIX ();
use Time::HiRes qw(time);
use Test::Sys::Virt::EventImpl::Util ();

# The process that the companion serves.
my $test;

# $code->($peer) runs in the companion, and should end when order($peer) says so.
sub start {
    my ($class, $code) = @_;
    $test = $$;
    my ($ours, $theirs) = Test::Sys::Virt::EventImpl::Util::socket_pair();
    defined(my $pid = fork) or croak "Cannot fork: $!";
    _run($code, $theirs) if !$pid;
    return bless { pid => $pid, starter => $$, socket => $ours }, $class;
}

# Nothing of the interpreter that was forked may run at our end: no DESTROY, no END, no flush.
sub _run {
    my ($code, $peer) = @_;
    eval {
        POSIX::setsid();
        Test::Sys::Virt::EventImpl::Util::default_signals();
        $SIG{PIPE} = 'IGNORE';
        my $null = POSIX::open('/dev/null', POSIX::O_RDWR());
        POSIX::dup2($null, $_) for 0, 1;
        POSIX::close($_) for grep { $_ > 2 && $_ != fileno $peer } Test::Sys::Virt::EventImpl::Util::open_fds();
        $code->($peer);
        1;
    } or print STDERR $@;
    POSIX::_exit(0);
}

# In the companion: the line that the test has sent; '' if the test called it off or is gone; undef after so many
# seconds. A child of the test may hold our socket open for longer than the test lives, hence the look at getppid.
sub order {
    my ($peer, $seconds) = @_;
    my $end = time + ($seconds // 9**9**9);
    while (getppid == $test) {
        my $left = $end - time;
        return undef if $left <= 0;
        local $/ = "\n";
        return readline($peer) // '' if IO::Select->new($peer)->can_read($left < 1 ? $left : 1);
    }
    return '';
}

# The filehandle to the companion.
sub socket { return $_[0]{socket} }

# Shutdown, not close, since other children of the test may hold the same socket.
sub stop {
    my ($self) = @_;
    return if $self->{starter} != $$;
    my $pid = delete $self->{pid} or return;
    local ($?, $!, $@);
    # During global destruction the socket may already be gone, which does the same.
    shutdown $self->{socket}, 2 if $self->{socket};
    1 while waitpid($pid, 0) == -1 && $! == EINTR;
    return;
}

sub DESTROY { $_[0]->stop }

sub CLONE_SKIP { return 1 }

1;
