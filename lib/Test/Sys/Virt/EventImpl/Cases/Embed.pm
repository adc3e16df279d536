package Test::Sys::Virt::EventImpl::Cases::Embed;

# A hypervisor in this process, qemu:///embed: libvirt's own threads call the loop.

use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

use Test::More;
use Test::Sys::Virt::EventImpl::Case;
use Test::Sys::Virt::EventImpl::Emulator;
use Test::Sys::Virt::EventImpl::Util;

suite embed => 'Sys::Virt and a private qemu:///embed', needs => [qw(sys_virt emulator)],
    fixture => sub { Test::Sys::Virt::EventImpl::Emulator->start };

# What EVENT_ID_LIFECYCLE tells.
my %EVENTS = (
    '0/0' => 'defined', '1/0' => 'undefined', '2/0' => 'started', '3/0' => 'suspended', '4/0' => 'resumed',
    '5/1' => 'destroyed', '5/5' => 'failed',
);

# Opens the connection; each event is appended to the array, with the id of the thread if that is not the main one.
# Returns what closes it.
sub open_emulator {
    my ($t, $events) = @_;
    # What the class of the loop loads may be readable by this user only.
    $t->make if !$t->is_default;
    $t->fixture->enter;
    my $watches = $t->is_default ? sub { 0 } : $t->count_watches;
    my $c = $t->connect($t->fixture->uri);
    my $id = $c->domain_event_register_any(undef, Sys::Virt::Domain::EVENT_ID_LIFECYCLE(), sub {
        my (undef, undef, $event, $detail) = @_;
        my $thread = thread_id() == $$ ? '' : ' in a foreign thread';
        # An emulator that is killed may be told as shut down first.
        push @$events, $EVENTS{"$event/$detail"} . $thread if $event != 6;
    });
    # A callback that is still registered keeps the connection open.
    my $close = sub {
        $c->domain_event_deregister_any($id);
        undef $c;
        $t->until(sub { !$watches->() });
        is $watches->(), 0, 'nothing is registered with the loop any more';
        is_deeply [$t->fixture->pids], [], 'no emulator is left';
    };
    return ($c, $close);
}

# The kernel's id of the thread that runs this.
sub thread_id { return readlink('/proc/thread-self') =~ m{(\d+)\z} ? $1 : 0 }

case 158 => 'vm_events', embed => {
    rule   => 'the events of a virtual machine arrive in order, in the thread of the loop',
    source => 'src/qemu/qemu_process.c and src/conf/object_event.c, virObjectEventStateQueue',
    harm   => 'The threads that libvirt makes for a virtual machine call update_timeout when there is an event. A'
        . ' module that enters Perl there crashes the program when the first machine starts.',
    advice => 'Nothing to do in the loop: the module queues the calls of other threads, and wakes it',
}, sub {
    my ($t) = @_;
    my @events;
    my ($c, $close) = open_emulator($t, \@events);
    my $domain = $c->define_domain($t->fixture->domain_xml);
    $t->until(sub { @events });
    is_deeply [splice @events], ['defined'], 'defined';
    $domain->create;
    cmp_ok thread_count(), '>', 1, 'there are other threads while it runs';
    $domain->suspend;
    $domain->resume;
    $domain->destroy;
    $domain->undefine;
    ok $t->until(sub { @events >= 6 }), 'all is told';
    is_deeply \@events, [qw(resumed started suspended resumed destroyed undefined)], '... in order';
    undef $domain;
    $close->();
}, limit => 30;

case 159 => 'vm_crash', embed => {
    rule   => 'a loop that sleeps is woken when an emulator dies',
    source => 'src/qemu/qemu_driver.c, processMonitorEOFEvent',
    harm   => 'Only threads of libvirt know of the crash. A loop that they cannot wake shows it when something else'
        . ' happens, perhaps never.',
    advice => 'Watch the handle that the module adds for itself like any other: it wakes the loop',
}, sub {
    my ($t) = @_;
    my @events;
    my ($c, $close) = open_emulator($t, \@events);
    my $domain = $c->create_domain($t->fixture->domain_xml);
    $t->until(sub { @events >= 2 });
    is_deeply [splice @events], ['resumed', 'started'], 'started';
    # Nothing else wakes the loop before that.
    my $clock = $t->timer(1500, sub { push @events, 'clock' });
    $t->fixture->crash('small');
    $t->until(sub { @events }, 1.6);
    is $events[0], 'failed', 'the crash came first';
    Sys::Virt::Event::remove_timeout($clock);
    undef $domain;
    $close->();
}, limit => 30;

case 160 => 'vm_rounds', embed => {
    rule   => 'machines that start and die leave nothing behind',
    source => 'src/qemu/qemu_process.c, qemuProcessStop',
    harm   => 'A host that starts machines all day runs out of file descriptors, or its loop slows down with what was'
        . ' never removed.',
    advice => 'Forget a watch in remove_handle and remove_timeout, also when another thread asked for it',
}, sub {
    my ($t) = @_;
    my @events;
    my ($c, $close) = open_emulator($t, \@events);
    my $domain = $c->define_domain($t->fixture->domain_xml);
    my @fds;
    for my $round (1 .. 4) {
        $t->until(sub { @events });
        @events = ();
        $domain->create;
        $t->fixture->crash('small');
        $t->until(sub { @events >= 3 });
        is_deeply \@events, ['resumed', 'started', 'failed'], "round $round";
        push @fds, scalar(my @open = open_fds());
    }
    cmp_ok $fds[0], '>', 2, 'fds can be counted';
    is_deeply \@fds, [($fds[0]) x @fds], 'none is lost';
    undef $domain;
    $close->();
}, limit => 30;

1;
