package Test::Sys::Virt::EventImpl::Emulator;

# A private hypervisor: libvirt's qemu driver inside the test's own process (qemu:///embed), where libvirt's threads
# call the event loop. The virtual machines are emulated in software. A process opens it only after enter(), which
# makes it an ordinary user with a root directory of its own. All is gone with the test, however that ends.

use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

use Carp qw(croak);
use Config;
use Cwd ();
use DynaLoader ();
use File::Path qw(remove_tree);
use File::Spec;
use POSIX ();
use Test::Sys::Virt::EventImpl::Companion;
use Test::Sys::Virt::EventImpl::Private;
use Time::HiRes qw(sleep time);

use constant {
    END_LIMIT              => 5,
    PR_SET_PDEATHSIG       => 1,
    PR_SET_CHILD_SUBREAPER => 36,
};

# The number of prctl(2) by machine and size of a pointer. Elsewhere an emulator's end may be seen late.
my %PRCTL = ('x86_64-8' => 157, 'aarch64-8' => 167);

# No log daemon, no confinement, nothing that needs root.
my $QEMU_CONF = <<'CONF';
stdio_handler = "file"
security_driver = "none"
security_default_confined = 0
namespaces = []
cgroup_controllers = []
remember_owner = 0
dynamic_ownership = 0
CONF

sub why_not {
    return 'this is not Linux' if $^O ne 'linux';
    return 'qemu-system-i386 and qemu-system-x86_64 are not installed (Debian: qemu-system-x86)' if !_emulator();
    return 'libvirt has no qemu driver here (Debian: libvirt-daemon-driver-qemu)' if !driver('qemu');
    return '/sys is not mounted, where libvirt reads of the processors' if !-r '/sys/devices/system/cpu/online';
    return undef;
}

# A machine of the 32 bit one is started in a sixth of the time.
sub _emulator {
    for my $name (qw(qemu-system-i386 qemu-system-x86_64)) {
        my ($path) = grep { -x } map { File::Spec->rel2abs("$_/$name") } File::Spec->path;
        return $path if $path;
    }
    return undef;
}

# The module of libvirt's for a kind of its drivers.
sub driver {
    my ($name) = @_;
    my @dirs = map { "$_/libvirt/connection-driver" } '/usr/lib64', @DynaLoader::dl_library_path;
    unshift @dirs, $ENV{LIBVIRT_DRIVER_DIR} if defined $ENV{LIBVIRT_DRIVER_DIR};
    my ($path) = grep { -e } map { "$_/libvirt_driver_$name.so" } @dirs;
    return $path;
}

# In the test itself; the processes that it forks share what the first of them has learned about the emulator.
sub start {
    my ($class) = @_;
    my $why_not = $class->why_not;
    croak "Cannot start emulator: $why_not" if $why_not;
    my $dir = private_dir('virtemu-XXXXXX');
    mkdir "$dir/cache" or croak "Cannot make $dir/cache: $!";
    give_away("$dir/cache");
    return bless {
        dir       => $dir,
        emulator  => _emulator(),
        companion => Test::Sys::Virt::EventImpl::Companion->start(sub { _companion($_[0], $dir) }),
    }, $class;
}

sub _companion {
    my ($test, $dir) = @_;
    Test::Sys::Virt::EventImpl::Companion::order($test);
    _end_processes_in($dir);
    remove_tree($dir);
    return;
}

sub _end_processes_in {
    my ($dir) = @_;
    my $end = time + END_LIMIT;
    while (my @pids = _processes_in($dir)) {
        kill KILL => @pids;
        last if time > $end;
        sleep 0.005;
    }
    return;
}

# An emulator has the directory on its command line, a process that has opened the uri has files in it. A zombie
# has neither.
sub _processes_in {
    my ($dir) = @_;
    my @pids;
    for my $proc (grep { $_ ne "/proc/$$" } glob '/proc/[0-9]*') {
        my $is_in = _content("$proc/cmdline") =~ m{\Q$dir\E/}
            || grep { (readlink($_) // '') =~ m{\A\Q$dir\E/} } glob "$proc/fd/*";
        push @pids, $proc =~ /(\d+)\z/ if $is_in;
    }
    return @pids;
}

# What is in a file; nothing, if it cannot be read.
sub _content {
    my ($file) = @_;
    open my $in, '<', $file or return '';
    return do { local $/; <$in> } // '';
}

# Goes on in a child of this process, as an ordinary user whose home is the root directory. Everything that is loaded
# later must be readable by that user, or below the current directory. The process itself stays behind until the child
# has ended, and ends likewise. It also is the parent of all emulators: libvirt takes an emulator for alive until
# somebody has waited for it, which the process 1 of a container may never do.
sub enter {
    my ($self) = @_;
    croak 'Cannot enter emulator: this process has done so already' if $self->{root};
    my ($parent, $root) = ($$, "$self->{dir}/$$");
    _make_root($root, "$self->{dir}/cache");
    _prctl(PR_SET_CHILD_SUBREAPER, 1);
    # libvirt waits for the processes that it starts.
    $SIG{CHLD} = 'DEFAULT';
    defined(my $pid = fork) or croak "Cannot fork: $!";
    $self->_stay_behind($pid, $root) if $pid;

    _reach_from_here();
    become_ordinary();
    _prctl(PR_SET_PDEATHSIG, POSIX::SIGKILL());
    POSIX::_exit(1) if getppid != $parent;
    live_in($root);
    # libvirt may write to the monitor of an emulator that has just ended.
    $SIG{PIPE}    = 'IGNORE';
    $self->{root} = $root;
    return $self;
}

# Modules below the current directory are found from there, where the way to it is barred, as in /root.
sub _reach_from_here {
    my $here = Cwd::getcwd();
    @INC = map { ref() ? $_ : s{\A\Q$here\E/}{}r } @INC;
    return;
}

sub _make_root {
    my ($root, $cache) = @_;
    for my $dir ($root, "$root/etc") {
        mkdir $dir or croak "Cannot make $dir: $!";
    }
    symlink $cache, "$root/cache" or croak "Cannot make $root/cache: $!";
    open my $out, '>', "$root/etc/qemu.conf" or croak "Cannot write $root/etc/qemu.conf: $!";
    print $out $QEMU_CONF;
    close $out or croak "Cannot write $root/etc/qemu.conf: $!";
    give_away($root, "$root/etc", "$root/etc/qemu.conf");
    return;
}

sub _prctl {
    my (@args) = @_;
    my ($machine) = (POSIX::uname())[4];
    my $number = $PRCTL{"$machine-$Config{ptrsize}"} or return;
    syscall $number, @args, 0, 0, 0;
    return;
}

# Nothing of this interpreter may run at our end: no DESTROY, no END.
sub _stay_behind {
    my ($self, $child, $root) = @_;
    Test::Sys::Virt::EventImpl::Util::default_signals();
    my $status = 0;
    while ((my $pid = wait) > 0) {
        next if $pid != $child;
        $status = $?;
        last;
    }
    _end_processes_in($root);
    1 while waitpid(-1, POSIX::WNOHANG()) > 0;
    $self->stop;
    kill $status & 127, $$ if $status & 127;
    POSIX::_exit($status >> 8);
}

sub uri { return 'qemu:///embed?root=' . $_[0]->_root }

sub _root {
    my ($self) = @_;
    return $self->{root} // croak 'Cannot use emulator: enter was not called';
}

# A machine without disk, network and screen. Its devices => '<interface .../>' are added.
sub domain_xml {
    my ($self, %opt) = @_;
    my $name    = $opt{name}    // 'small';
    my $devices = $opt{devices} // '';
    return <<"XML";
<domain type='qemu'>
  <name>$name</name>
  <memory unit='MiB'>8</memory>
  <vcpu>1</vcpu>
  <os><type arch='i686' machine='pc'>hvm</type></os>
  <devices>
    <emulator>$self->{emulator}</emulator>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    $devices
  </devices>
</domain>
XML
}

# The process id of a running machine's emulator, undef if there is none.
sub pid {
    my ($self, $name) = @_;
    return _content($self->_root . "/run/qemu/$name.pid") =~ /\A(\d+)/ ? $1 : undef;
}

# The process ids of all emulators of this process, also those that libvirt asks what the emulator can do.
sub pids {
    my ($self) = @_;
    return _processes_in($self->_root);
}

# What an emulator has said, and how it was called.
sub log {
    my ($self, $name) = @_;
    return _content($self->_root . "/log/qemu/$name.log");
}

# As if the machine had crashed. Returns when the emulator is gone.
sub crash {
    my ($self, $name) = @_;
    my $pid = $self->pid($name) // croak "Cannot crash $name: it does not run";
    kill KILL => $pid or croak "Cannot crash $name: $!";
    my $end = time + END_LIMIT;
    sleep 0.001 until _content("/proc/$pid/cmdline") eq '' or time > $end;
    return;
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
