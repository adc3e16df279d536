# One example of Sys::Virt opens a window of Gtk with the screen of a virtual machine: on its own module and on ours.
use 5.016;
use strict;
use warnings;

use lib qw(t/lib xt/lib);

use AuthorTest;
use File::Spec;
use Test::More;
use Test::Sys::Virt::EventImpl::Companion;
use Test::Sys::Virt::EventImpl::Daemon;
use Test::Sys::Virt::EventImpl::Emulator;
use Test::Sys::Virt::EventImpl::Private qw(give_away);
use Test::Sys::Virt::EventImpl::Util qw(now patience pause);
use VirtTest;
use VirtTest::DropIn;

my $example = '/usr/share/doc/libsys-virt-perl/examples/open-console.pl';
plan skip_all => "there is no $example (Debian: libsys-virt-perl)" if !-e $example;
for my $module (qw(Daemon Emulator)) {
    my $why_not = "Test::Sys::Virt::EventImpl::$module"->why_not;
    plan skip_all => $why_not if $why_not;
}
for my $program (['Xvfb', 'xvfb'], ['xwininfo', 'x11-utils']) {
    my ($name, $package) = @$program;
    plan skip_all => "$name is not installed (Debian: $package)" if !grep { -x "$_/$name" } File::Spec->path;
}
plan skip_all => 'Gtk3 is not installed (Debian: libgtk3-perl)' if !grep { -e "$_/Gtk3.pm" } grep { !ref } @INC;
watchdog(120);

my $daemon = Test::Sys::Virt::EventImpl::Daemon->start;
my $home   = $daemon->socket =~ s{/libvirt/[^/]+\z}{}r;
my $user   = VirtTest::DropIn->new($home);

# No log daemon and no confinement, which are the system's.
open my $out, '>', "$home/libvirt/qemu.conf" or die "Cannot write: $!\n";
print $out qq{stdio_handler = "file"\nsecurity_driver = "none"\nnamespaces = []\ncgroup_controllers = []\n};
close $out or die "Cannot write: $!\n";
give_away("$home/libvirt/qemu.conf");
$daemon->restart;

# A screen, and the end of the machine, which outlives its libvirtd.
my $companion = Test::Sys::Virt::EventImpl::Companion->start(sub {
    my ($test) = @_;
    my $pid = open my $number, '-|', 'exec Xvfb -displayfd 1 -nolisten tcp -noreset 2>/dev/null'
        or die "Cannot run Xvfb: $!\n";
    print $test scalar readline $number;
    Test::Sys::Virt::EventImpl::Companion::order($test);
    kill TERM => $pid;
    waitpid $pid, 0;
    Test::Sys::Virt::EventImpl::Emulator::_end_processes_in($home);
});
chomp($ENV{DISPLAY} = ':' . readline $companion->socket);

my $MACHINE = <<'XML';
<domain type='qemu'>
  <name>vm-vnc</name><memory unit='MiB'>8</memory>
  <os><type arch='i686' machine='pc'>hvm</type></os>
  <devices>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    <graphics type='vnc'><listen type='none'/></graphics>
    <video><model type='cirrus'/></video>
  </devices>
</domain>
XML
my $started = $user->run('theirs', '-e',
    'use Sys::Virt; print Sys::Virt->new(uri => "qemu:///session")->create_domain(shift)->get_name', $MACHINE);
is "$started->{stdout}$started->{stderr}", 'vm-vnc', 'a machine';

# That of a machine without a disk. Its window is smaller until it has come.
use constant SCREEN => '720x400';

sub size_of_window {
    my $end = now() + patience(20);
    my $size;
    until (defined $size && $size eq SCREEN || now() > $end) {
        pause(0.1);
        my $windows = run_of([qw(xwininfo -root -tree)], limit => 10)->{output};
        ($size) = $windows =~ /"open-console\.pl".*? (\d{3,}x\d{3,})\+/;
    }
    return $size;
}

for my $module (qw(ours theirs)) {
    my $program = $user->start($module, $example);
    is size_of_window(), SCREEN, "$module: the screen of the machine is in its window";
    $program->signal('TERM');
    is $program->errors . $program->status, 'signal 15', '... and nothing said';
}

done_testing;
