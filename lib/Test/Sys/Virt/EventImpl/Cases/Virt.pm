package Test::Sys::Virt::EventImpl::Cases::Virt;

# Sys::Virt on the loop, in this process: test:///default.

use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

use Test::More;
use Test::Sys::Virt::EventImpl::Case;
use Test::Sys::Virt::EventImpl::Util;

suite virt => 'Sys::Virt and test:///default', needs => [qw(sys_virt)];

use constant NETWORK_XML => '<network><name>contract</name><bridge name="virbr7"/></network>';
use constant DOMAIN_XML =>
    '<domain type="test"><name>contract</name><memory>1024</memory><os><type>hvm</type></os></domain>';
use constant POOL_XML => '<pool type="dir"><name>contract</name><target><path>/contract</path></target></pool>';

use constant SCREENSHOT => '/usr/share/libvirt/test-screenshot.png';
use constant NODE_DEVICE_XML => <<'XML';
<device><parent>scsi_host1</parent><capability type='scsi_host'><capability type='fc_host'>
<wwnn>1000000023452345</wwnn><wwpn>1000000023452345</wwpn></capability></capability></device>
XML

case 145 => 'all_in_one_run', virt => {
    rule   => 'one run after a call delivers all events of the call, and not earlier',
    source => 'tests/objecteventtest.c of libvirt, which runs one iteration after each call',
    harm   => 'libvirt arms a timer of 0 ms when it has queued events. Where that takes several runs, a program '
        . 'that runs its loop once after each call is always behind, and at its end loses the last events.',
    advice => 'run a timer of 0 ms in the next pass, without waiting, whenever it was set',
}, sub {
    my ($t) = @_;
    my $c = $t->connect;
    my @seen;
    my $note = sub { my ($class) = @_; return sub { push @seen, "$class $_[2]" } };
    $c->domain_event_register(sub { push @seen, 'old-style' });
    $c->domain_event_register_any(undef, Sys::Virt::Domain::EVENT_ID_LIFECYCLE(), $note->('domain'));
    $c->network_event_register_any(undef, Sys::Virt::Network::EVENT_ID_LIFECYCLE(), $note->('network'));
    $c->storage_pool_event_register_any(undef, Sys::Virt::StoragePool::EVENT_ID_LIFECYCLE(), $note->('pool'));
    $c->node_device_event_register_any(undef, Sys::Virt::NodeDevice::EVENT_ID_LIFECYCLE(), $note->('device'));
    $t->add_timeout(10_000);
    my $delivers = sub {
        my ($what, $call, @expected) = @_;
        @seen = ();
        $call->();
        is_deeply \@seen, [], "$what: nothing during the call";
        $t->run(0.05);
        # It may have returned early, as something else happened.
        $t->run(0.05) if !@seen;
        is_deeply [sort @seen], [sort @expected], '... all by one run';
    };
    my ($domain, $network, $pool);
    $delivers->('define and start a domain', sub { ($domain = $c->define_domain(DOMAIN_XML))->create },
        'old-style', 'domain 0', 'old-style', 'domain 2');
    $delivers->('suspend it, and define a network',
        sub { $domain->suspend; $network = $c->define_network(NETWORK_XML) }, 'old-style', 'domain 3', 'network 0');
    $delivers->('start the network and a pool', sub { $network->create; $pool = $c->define_storage_pool(POOL_XML) },
        'network 2', 'pool 0');
    $delivers->('create and destroy a device', sub { $c->create_node_device(NODE_DEVICE_XML)->destroy },
        'device 0', 'device 1');
    $delivers->('end everything', sub { $domain->destroy; $domain->undefine; $network->destroy; $pool->undefine },
        'old-style', 'domain 5', 'old-style', 'domain 1', 'network 3', 'pool 1');
};

case 146 => 'event_of_handler', virt => {
    rule   => 'an event that a handler causes is delivered as well',
    source => 'src/conf/object_event.c, virObjectEventStateFlush, which disables its timer and then calls the '
        . 'handlers',
    harm   => 'libvirt arms the timer of events for the first event of an empty queue only, here in the callback of '
        . 'that very timer. A loop that loses this delivers no event any more: the queue is never empty again.',
    advice => 'set the timer for its next time before its callback is called, and nothing afterwards',
}, sub {
    my ($t) = @_;
    my $c = $t->connect;
    my ($domain) = $c->list_all_domains;
    my @seen;
    $c->domain_event_register_any(undef, Sys::Virt::Domain::EVENT_ID_LIFECYCLE(), sub {
        push @seen, $_[2];
        $domain->resume if @seen == 1;
    });
    $domain->suspend;
    $t->until(sub { @seen >= 2 });
    is_deeply \@seen, [Sys::Virt::Domain::EVENT_SUSPENDED(), Sys::Virt::Domain::EVENT_RESUMED()];
};

case 147 => 'stream', virt => {
    rule   => 'a stream that is read when its callback says so is read to its end',
    source => 'src/util/virfdstream.c: a handle that is updated and removed inside its own callback',
    harm   => 'Screenshots, consoles and volumes come through streams. Where the loop misses a part, the program '
        . 'waits for ever; where it polls a stream that was removed, it burns time or watches the fd of '
        . 'somebody else.',
    advice => 'report READABLE as long as there is something to read, and HANGUP at the end',
}, sub {
    my ($t) = @_;
    my $c = $t->connect;
    # It is a file of libvirt's, which packagers may have left out.
    my $size = -s SCREENSHOT or return pass('libvirt was installed without ' . SCREENSHOT);
    my ($domain) = $c->list_all_domains;
    my $stream = $c->new_stream(Sys::Virt::Stream::NONBLOCK());
    $domain->screenshot($stream, 0);
    my ($got, $calls, $is_over) = (0, 0, 0);
    $stream->add_callback(Sys::Virt::Stream::EVENT_READABLE(), sub {
        $calls++;
        my $count = $stream->recv(my $data, 4096);
        $got += $count if $count > 0;
        return if $count;
        $stream->remove_callback;
        $stream->finish;
        $is_over = 1;
    });
    $t->until(sub { $is_over });
    is $got, $size, 'all of it';
    cmp_ok $calls, '>', 1, '... in pieces';
    my $count = $calls;
    $t->passes(3);
    is $calls, $count, 'and the callback is not called any more';
};

case 148 => 'idle', virt => {
    rule   => 'the loop is idle before and after, and not meanwhile',
    source => 'tests/test_aio.py of libvirt-python',
    harm   => 'Programs run their loop until it is idle to close connections properly. A watch that is never '
        . 'removed keeps them running, and keeps the connection in memory.',
    advice => 'remove what libvirt wants removed, be it enabled or not',
}, sub {
    my ($t) = @_;
    my $watches = $t->count_watches;
    my $c = $t->connect;
    my @seen;
    my $lifecycle = Sys::Virt::Domain::EVENT_ID_LIFECYCLE();
    my $callback  = $c->domain_event_register_any(undef, $lifecycle, sub { push @seen, $_[2] });
    cmp_ok $watches->(), '>', 0, 'a callback needs the loop';
    my $domain = $c->define_domain(DOMAIN_XML);
    $domain->create;
    $domain->destroy;
    $t->until(sub { @seen >= 3 });
    is_deeply \@seen, [0, 2, 5], 'defined, started, stopped';
    cmp_ok $watches->(), '>', 0, 'it is needed as long as there is the callback';
    $c->domain_event_deregister_any($callback);
    undef $c;
    undef $domain;
    $t->until(sub { !$watches->() });
    is $watches->(), 0, 'nothing is left when all is gone';
}, needs => ['object'];

case 149 => 'refused', virt => {
    rule   => 'a connection works on after the loop has refused its timer',
    source => 'src/conf/object_event.c, virObjectEventStateRegisterID: "could not initialize domain event timer"',
    harm   => "An exception that leaves the loop's method would jump over the C code of libvirt, whose locks stay "
        . 'locked: the next call on the connection hangs for ever.',
    advice => "nothing to do in the loop: Sys::Virt::Event stops the exception; Sys::Virt's own module does not",
}, sub {
    my ($t) = @_;
    my $c = $t->connect;
    my $refuse = 1;
    $t->override(add_timeout => sub {
        my ($original, $impl, @args) = @_;
        die "no room\n" if $refuse;
        return $impl->$original(@args);
    });
    my @seen;
    my $register = sub {
        return $c->domain_event_register_any(undef, Sys::Virt::Domain::EVENT_ID_LIFECYCLE(), sub { push @seen, $_[2] });
    };
    ok defined exception_of { $register->() }, 'registering a callback fails';
    like join('', $t->warnings), qr/no room/, '... with a warning that says why';
    is scalar(my @domains = $c->list_all_domains), 1, 'the next call works';
    $refuse = 0;
    is exception_of { $register->() }, undef, 'then registering works';
    my $domain = $c->define_domain(DOMAIN_XML);
    $t->until(sub { @seen });
    is_deeply \@seen, [0], 'and events arrive';
}, needs => ['object'], limit => 6;

1;
