# The examples of Sys::Virt, run where they are installed, on the module that it has and on ours: they do the same.
# SYS_VIRT_EXAMPLES is another directory that has them.
use 5.016;
use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";

use SecondClient ();
use Test::More;
use Test::Sys::Virt::EventImpl::Daemon;
use Test::Sys::Virt::EventImpl::Emulator;
use Test::Sys::Virt::EventImpl::Private qw(give_away);
use VirtTest qw(:DEFAULT text_of write_text);
use VirtTest::DropIn;

if (my $why = VirtTest::DropIn::why_not()) { plan skip_all => $why }
if (my $why = Test::Sys::Virt::EventImpl::Daemon->why_not) { plan skip_all => $why }
my @places = $ENV{SYS_VIRT_EXAMPLES} // map { "/usr/share/doc/$_/examples" } qw(libsys-virt-perl perl-Sys-Virt);
my ($examples) = grep { -e "$_/events.pl" } @places;
if (!$examples) {
    die "There is no events.pl in @places\n" if defined $ENV{SYS_VIRT_EXAMPLES};
    plan skip_all => "the examples of Sys::Virt are not installed: there is no events.pl in @places";
}

watchdog(120);

my $daemon = Test::Sys::Virt::EventImpl::Daemon->start;
my $home   = $daemon->socket =~ s{/libvirt/[^/]+\z}{}r;
my $user   = VirtTest::DropIn->new($home);
my $uri    = file_of('node.xml', <<'XML');
<node>
  <domain type='test'>
    <name>vm1</name><uuid>4dea22b3-1d52-d8f3-2516-782e98ab3fa0</uuid><memory>65536</memory><vcpu>2</vcpu>
    <iothreads>2</iothreads><os><type>hvm</type></os>
    <devices>
      <disk type='file'><source file='/disk'/><target dev='vda'/></disk>
      <interface type='network'><mac address='52:54:00:00:00:01'/><source network='default'/></interface>
    </devices>
  </domain>
  <network>
    <name>default</name><bridge name='virbr0'/>
    <ip address='192.168.122.1' netmask='255.255.255.0'>
      <dhcp><range start='192.168.122.128' end='192.168.122.253'/></dhcp>
    </ip>
  </network>
  <cpu>
    <nodes>1</nodes><sockets>1</sockets><cores>2</cores><threads>1</threads><active>2</active><mhz>1000</mhz>
  </cpu>
  <memory>3072000</memory>
  <device>
    <name>net_0</name><parent>computer</parent>
    <capability type='net'><interface>eth0</interface></capability>
  </device>
</node>
XML
# The name and the password that auth.pl answers with.
my $locked = file_of('auth.xml', "<node><auth><user password='123456'>test</user></auth></node>");
$user->set_default_uri($uri);

# A file of the user's, as a host of libvirt's test driver.
sub file_of {
    my ($name, $text) = @_;
    write_file("$home/$name", $text);
    return "test://$home/$name";
}

sub write_file {
    my ($file, $text) = @_;
    write_text($file, $text);
    give_away($file);
    return $file;
}

sub read_file {
    my ($file) = @_;
    return -e $file ? text_of($file) : "(no $file)";
}

# What differs from run to run on either module.
sub steady {
    my ($result) = @_;
    return { map { $_ => $result->{$_} =~ s/cpuTime: \K\d+/(time)/gr } qw(stdout stderr status) };
}

sub is_same_on_both {
    my ($file, @arguments) = @_;
    my ($ours, $theirs) = $user->run_on_both("$examples/$file", @arguments);
    is_deeply steady($ours), steady($theirs), "$file does the same on both";
    my $expected = VirtTest::DropIn::FUNCTIONS;
    is "$ours->{functions} $theirs->{functions}", "@$expected{qw(ours theirs)}", '... each with functions of its own';
    return $ours;
}

# Examples without events: what shows that they have come to what they are about, and their arguments. libvirt's test
# driver does not migrate, and has no pages to give.
my %PLAIN = (
    'auth.pl'         => [qr/^VMM type: TEST$/m, $locked],
    'devices.pl'      => [qr/^NIC: net_0$/m, $uri],
    'dom-fsinfo.pl'   => [qr{^vda1 \(ext4\) at /$}m, $uri, 'vm1'],
    'dom-ifinfo.pl'   => [qr/^Interface testnet0$/m, $uri, 'vm1'],
    'dom-migrate.pl'  => [qr/migration is not supported/, $uri, 'vm1', 'test:///default', 'vda'],
    'dom-stats.pl'    => [qr/^Guest vm1\n  State: 1$/m, $uri, 'vm1'],
    'dump-info.pl'    => [qr/^  ID: 1 'vm1'$/m, $uri],
    'dump-xml.pl'     => [qr{^  <name>vm1</name>$}m, $uri, 'vm1'],
    'emulator-pin.pl' => [qr/^0:1:/m, $uri],
    'fs-freeze.pl'    => [qr/^Addr /m, $uri, 'vm1', '/'],
    'hv-stat.pl'      => [qr/ vm1 +running /, $uri],
    'iothreadinfo.pl' => [qr/^    number: 2$/m, $uri],
    'node-alloc.pl'   => [qr/virNodeAllocPages/, $uri, '4=1'],
    'node-cpu.pl'     => [qr/^CPUs total /m, $uri],
    'node-devlist.pl' => [qr/^net_0: < computer$/m],
    'node-info.pl'    => [qr/^  core2duo$/m, $uri],
    'send-key.pl'     => [qr/^Addr /m, $uri, 'vm1'],
    'vcpuinfo.pl'     => [qr/^    number: 1$/m, $uri],
);

sub does_its_work {
    my ($file) = @_;
    my ($sign, @arguments) = @{ $PLAIN{$file} };
    my $result = is_same_on_both($file, @arguments);
    like "$result->{stdout}$result->{stderr}", $sign, '... and what it is for';
}

subtest 'examples without events' => sub {
    does_its_work($_) for grep { $_ ne 'node-info.pl' } sort keys %PLAIN;
    SKIP: {
        my $has_xpath = grep { -e "$_/XML/XPath.pm" } grep { !ref } @INC;
        skip 'XML::XPath is not installed (Debian: libxml-xpath-perl)', 1 if !$has_xpath;
        does_its_work('node-info.pl');
    }
};

# Examples that read or write a volume of qemu:///session, those with "nonblock" by events of its stream. The arguments
# are that volume and a file.
my %VOLUME = (
    map({ ("vol-$_.pl" => []) } map { ("download$_", "upload$_") } '', '-all', '-nonblock'),
    'vol-sparse.pl' => ['qemu:///session', '--download'],
);
my @drivers_missing = grep { !Test::Sys::Virt::EventImpl::Emulator::driver($_) } qw(qemu storage);
my $CONTENT = pack 'N*', 1 .. 25_000;

my $POOL = <<'PERL';
use Sys::Virt;
my $pool = Sys::Virt->new(uri => 'qemu:///session')->create_storage_pool(shift);
$pool->create_volume("<volume><name>$_</name><capacity>100000</capacity></volume>") for @ARGV;
print map { "$_\n" } sort map { $_->get_name } $pool->list_volumes;
PERL

subtest 'examples with volumes' => sub {
    plan skip_all => "libvirt has no driver here for @drivers_missing" if @drivers_missing;
    my $pool = "$home/pool";
    mkdir $pool or die "Cannot make $pool: $!\n";
    give_away($pool);
    my @volumes = ('full', map { ("$_-ours", "$_-theirs") } grep { /upload/ } sort keys %VOLUME);
    my $made = $user->run('theirs', '-e', $POOL,
        "<pool type='dir'><name>pool</name><target><path>$pool</path></target></pool>", @volumes);
    is $made->{stdout}, join('', map { "$_\n" } sort @volumes), 'volumes' or diag $made->{stderr};
    write_file("$pool/full", $CONTENT);
    write_file("$home/file", $CONTENT);
    for my $file (sort keys %VOLUME) {
        my $is_upload = $file =~ /upload/;
        my $target    = ($is_upload ? $pool : $home) . "/$file-MODULE";
        my @arguments = $is_upload ? ($target, "$home/file") : ("$pool/full", $target);
        my $result    = is_same_on_both($file, @{ $VOLUME{$file} }, @arguments);
        is "$result->{stderr}$result->{status}", '0', '... and ends well';
        ok read_file($target =~ s/MODULE/$_/r) eq $CONTENT, "... having moved all, on $_" for qw(ours theirs);
    }
};

# Starts events.pl, which goes on until its connection is closed. It tells nothing until it is told something.
sub started_events {
    my ($module, $other) = @_;
    my $program = $user->start($module, "$examples/events.pl", $daemon->uri);
    my $line;
    for (1 .. 100) {
        $other->does($_) for qw(suspend resume);
        last if defined($line = eval { $program->line(0.1) });
    }
    $other->does($_) for qw(destroy create);
    $line = $program->line until !defined $line || $line =~ / 2 0\z/;
    return $program;
}

my @DONE   = qw(suspend resume shutdown create);
my @EVENTS = ('3 0', '4 0', '5 0', '2 0');

subtest 'events.pl' => sub {
    my %lines;
    for my $module (qw(ours theirs)) {
        my $other   = SecondClient->start($daemon->uri);
        my $program = started_events($module, $other);
        push @{ $lines{$module} }, map { $other->does($_); $program->line } @DONE;
        $other->stop;
        $daemon->signal('KILL');
        my $end = VirtTest::DropIn::result_of($program);
        push @{ $lines{$module} }, split /\n/, $end->{stdout};
        is "$end->{stderr}$end->{status}", '0', "on $module it ends well when its connection is closed";
        is $end->{functions}, VirtTest::DropIn::FUNCTIONS->{$module}, '... with functions of its own';
        $daemon->restart;
    }
    is_deeply $lines{ours}, $lines{theirs}, 'it prints the same on both';
    my @expected = map { $daemon->uri . " test $_" } @EVENTS;
    is_deeply $lines{ours}, [@expected, 'Closed reason=1'], '... all that happens';

    for my $signal (qw(INT TERM)) {
        my $other    = SecondClient->start($daemon->uri);
        my @programs = map { started_events($_, $other) } qw(ours theirs);
        $_->signal($signal) for @programs;
        my ($ours, $theirs) = map { $_->status } @programs;
        is $ours, $theirs, "SIG$signal does the same on both";
        like $ours, qr/\Asignal \d+\z/, '... it ends them';
    }
};

# Where there is KVM it would start a machine, and crash in Sys::Virt 9.0.0 while that runs. So its name is taken.
subtest 'save-restore.pl' => sub {
    plan skip_all => "libvirt has no driver here for @drivers_missing" if grep { /qemu/ } @drivers_missing;
    $user->run('theirs', '-e', 'use Sys::Virt; Sys::Virt->new(uri => "qemu:///session")->define_domain(shift)', <<'XML');
<domain type='qemu'>
  <name>perl-demo</name><uuid>4dea22b3-1d52-d8f3-2516-782e98ab3fa1</uuid><memory>65536</memory>
  <os><type arch='i686'>hvm</type></os>
</domain>
XML
    my $result = is_same_on_both('save-restore.pl');
    is $result->{stdout}, "Starting a transient guest\n", '... which is to get to its machine';
};

# The window of open-console.pl is opened in xt/31-open-console.t. Those that are new must at least compile, and
# dhcp-leases.pl, which opens qemu:///system: nothing here is about the machine's own libvirtd.
my %is_known = map { $_ => 1 } keys %PLAIN, keys %VOLUME, qw(events.pl save-restore.pl open-console.pl);

subtest 'the other examples' => sub {
    for my $file (grep { !$is_known{$_} } map { s{.*/}{}r } glob "$examples/*.pl") {
        my ($ours, $theirs) = $user->run_on_both('-c', "$examples/$file");
        is $ours->{stderr}, "$examples/$file syntax OK\n", "$file compiles";
        is $theirs->{stderr}, $ours->{stderr}, '... on both';
        unlike read_file("$examples/$file"), qr/Sys::Virt::Event|EVENT_ID/, '... and has no events';
    }
};

done_testing;
