package Test::Sys::Virt::EventImpl::Daemon;

# A private libvirtd with its own directories, run as an ordinary user even when the test is root: as root it would
# want the system's pid files. A companion process owns it, so it ends with the test, and so does its directory.

use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

use Carp qw(croak);
use File::Path qw(remove_tree);
use File::Spec;
use IO::Select;
use IO::Socket::UNIX;
use POSIX ();
use Time::HiRes qw(sleep time);
use Test::Sys::Virt::EventImpl::Util ();
use Test::Sys::Virt::EventImpl::Companion;
use Test::Sys::Virt::EventImpl::Private;

use constant {
    START_LIMIT => 10,
    STOP_LIMIT  => 5,
};

sub why_not {
    return 'this user is not in the password file, which libvirtd wants' if !defined getpwuid ordinary_user();
    return undef if _libvirtd();
    return 'libvirtd is not installed (Debian: libvirt-daemon)';
}

sub _libvirtd {
    my ($path) = grep { -x } map { "$_/libvirtd" } File::Spec->path, '/usr/sbin', '/usr/local/sbin';
    return $path;
}

# conf => { keepalive_interval => 2 }: more lines for libvirtd.conf.
sub start {
    my ($class, %opt) = @_;
    my $libvirtd = _libvirtd() or croak 'Cannot start libvirtd: ' . $class->why_not;
    my $dir      = private_dir('virttest-XXXXXX');
    _write_conf("$dir/conf", $opt{conf});
    my $self = bless { dir => $dir }, $class;
    $self->{companion} = Test::Sys::Virt::EventImpl::Companion->start(sub { _companion($_[0], $libvirtd, $dir) });
    return $self->_launched;
}

# A new libvirtd on the same socket; the old one is stopped if it still runs.
sub restart {
    my ($self) = @_;
    print { $self->{companion}->socket } "restart\n";
    return $self->_launched;
}

sub _launched {
    my ($self) = @_;
    local $/ = "\n";
    my $pid = readline $self->{companion}->socket;
    croak 'Cannot start libvirtd: its companion process has ended' if !defined $pid;
    chomp($self->{pid} = $pid);
    return $self->wait_ready;
}

sub _write_conf {
    my ($file, $more) = @_;
    my %conf = (
        unix_sock_rw_perms => '0777',
        auth_unix_rw       => 'none',
        auth_unix_ro       => 'none',
        log_outputs        => '3:stderr',
        %{ $more || {} },
    );
    open my $out, '>', $file or croak "Cannot write $file: $!";
    for my $key (sort keys %conf) {
        # The permissions are octal digits, but a string to libvirtd.
        my $value = $conf{$key} =~ /^(?:0|[1-9]\d*)$/ ? $conf{$key} : qq("$conf{$key}");
        print $out "$key = $value\n";
    }
    close $out or croak "Cannot write $file: $!";
    chmod 0644, $file;
    return;
}

# The companion's life: run a libvirtd until the test says "restart", or ends.
sub _companion {
    my ($test, $libvirtd, $dir) = @_;
    my $order;
    do {
        defined(my $pid = fork) or die "Cannot fork: $!\n";
        _exec($libvirtd, $dir) if !$pid;
        print $test "$pid\n";
        $order = Test::Sys::Virt::EventImpl::Companion::order($test);
        _end($pid);
    } while $order eq "restart\n";
    remove_tree($dir);
    return;
}

sub _exec {
    my ($libvirtd, $dir) = @_;
    POSIX::setsid();
    delete $SIG{PIPE};
    open STDERR, '>>', "$dir/log" or POSIX::_exit(1);
    become_ordinary();
    live_in($dir);
    chdir $dir;
    exec {$libvirtd} $libvirtd, '-f', "$dir/conf" or die "Cannot run $libvirtd: $!\n";
}

sub _end {
    my ($pid) = @_;
    kill $_ => $pid for qw(CONT TERM);
    my $end = time + STOP_LIMIT;
    my $gone;
    sleep 0.005 until $gone = waitpid($pid, POSIX::WNOHANG()) or time > $end;
    # Also what libvirtd itself has started.
    kill KILL => -$pid;
    waitpid $pid, 0 if !$gone;
    return;
}

sub pid    { return $_[0]{pid} }
sub socket { return "$_[0]{dir}/libvirt/libvirt-sock" }
sub uri    { return 'test+unix:///default?socket=' . $_[0]->socket }

# STOP (returns when all its threads stand), CONT, TERM, KILL. A daemon ended this way stays a zombie until stop or
# restart, so its pid is nobody else's.
sub signal {
    my ($self, $name) = @_;
    kill $name => $self->{pid} or croak "Cannot send SIG$name to libvirtd: $!";
    sleep 0.001 until $name ne 'STOP' or !grep { !/[TXZ]/ } $self->_states;
    return $self;
}

# Returns the object once libvirtd answers a request; the socket exists well before.
sub wait_ready {
    my ($self) = @_;
    my $end = time + Test::Sys::Virt::EventImpl::Util::patience(START_LIMIT);
    until ($self->_answers($end - time)) {
        my $why = !$self->is_alive ? 'it has ended' : time > $end ? 'it does not answer' : undef;
        if ($why) {
            my $log = $self->log;
            $self->stop;
            croak "Cannot start libvirtd: $why; its log:\n$log";
        }
        sleep 0.01;
    }
    return $self;
}

# One call of libvirt's RPC that needs no login: REMOTE_PROC_AUTH_LIST.
sub _answers {
    my ($self, $seconds) = @_;
    local $SIG{PIPE} = 'IGNORE';
    my $client = IO::Socket::UNIX->new(Peer => $self->socket) or return 0;
    syswrite $client, pack 'N7', 28, 0x20008086, 1, 66, 0, 0, 0;
    return IO::Select->new($client)->can_read($seconds) && sysread $client, my $reply, 4;
}

# A zombie is not alive.
sub is_alive {
    my ($self) = @_;
    return grep { !/[XZ]/ } $self->_states;
}

# One letter for each thread, as in ps.
sub _states {
    my ($self) = @_;
    return map { Test::Sys::Virt::EventImpl::Util::first_line($_) =~ /\) (\w)/ } glob "/proc/$self->{pid}/task/*/stat";
}

# What libvirtd has said so far.
sub log {
    my ($self) = @_;
    open my $in, '<', "$self->{dir}/log" or return "(no log: $!)\n";
    return join '', <$in>;
}

# Also when the object is destroyed. The companion takes the directory away.
sub stop {
    my ($self) = @_;
    $self->{companion}->stop if $self->{companion};
    return;
}

sub DESTROY { $_[0]->stop }

sub CLONE_SKIP { return 1 }

1;
