package Test::Sys::Virt::EventImpl::Cases::Virt;

# Sys::Virt on the loop, in this process: test:///default.

use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

use Test::More;
use Test::Sys::Virt::EventImpl::Case;
use Test::Sys::Virt::EventImpl::Util;
use Time::HiRes ();

suite virt => 'Sys::Virt and test:///default', needs => [qw(sys_virt)];

use constant NETWORK_XML => '<network><name>contract</name><bridge name="virbr7"/></network>';
use constant DOMAIN_XML => '<domain type="test"><name>contract</name><memory>1024</memory><os><type>hvm</type></os></domain>';
use constant POOL_XML => '<pool type="dir"><name>contract</name><target><path>/contract</path></target></pool>';

case 0 => 'all_in_one_run', virt => {
    rule   => 'one run after a call delivers all events of the call',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my $c = $t->connect;
    my @seen;
    my $note = sub { my ($class) = @_; return sub { push @seen, "$class $_[2]" } };
    $c->domain_event_register(sub { push @seen, 'old-style' });
    $c->domain_event_register_any(undef, Sys::Virt::Domain::EVENT_ID_LIFECYCLE(), $note->('domain'));
    $c->network_event_register_any(undef, Sys::Virt::Network::EVENT_ID_LIFECYCLE(), $note->('network'));
    $c->storage_pool_event_register_any(undef, Sys::Virt::StoragePool::EVENT_ID_LIFECYCLE(), $note->('pool'));
    $t->add_timeout(10_000);
    my $delivers = sub {
        my ($what, $call, @expected) = @_;
        @seen = ();
        $call->();
        is_deeply \@seen, [], "$what: nothing during the call";
        $t->run(0.05);
        is_deeply [sort @seen], [sort @expected], '... all by one run';
    };
    my ($domain, $network, $pool);
    $delivers->('define and start a domain', sub { ($domain = $c->define_domain(DOMAIN_XML))->create },
        'old-style', 'domain 0', 'old-style', 'domain 2');
    $delivers->('suspend it, and define a network', sub { $domain->suspend; $network = $c->define_network(NETWORK_XML) },
        'old-style', 'domain 3', 'network 0');
    $delivers->('start the network and a pool', sub { $network->create; $pool = $c->define_storage_pool(POOL_XML) },
        'network 2', 'pool 0');
    $delivers->('end everything', sub { $domain->destroy; $domain->undefine; $network->destroy; $pool->undefine },
        'old-style', 'domain 5', 'old-style', 'domain 1', 'network 3', 'pool 1');
};

case 0 => 'node_device', virt => {
    rule   => 'events of node devices arrive as well',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my $c = $t->connect;
    my @seen;
    $c->node_device_event_register_any(undef, Sys::Virt::NodeDevice::EVENT_ID_LIFECYCLE(), sub { push @seen, $_[2] });
    my $device = $c->create_node_device(<<'XML');
<device><parent>scsi_host1</parent><capability type='scsi_host'><capability type='fc_host'>
<wwnn>1000000023452345</wwnn><wwpn>1000000023452345</wwpn></capability></capability></device>
XML
    $device->destroy;
    $t->run(0.05);
    is_deeply \@seen, [Sys::Virt::NodeDevice::EVENT_CREATED(), Sys::Virt::NodeDevice::EVENT_DELETED()];
};

case 0 => 'idle', virt => {
    rule   => 'the loop is idle before and after, and not meanwhile',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my $watches = $t->count_watches;
    my $c = $t->connect;
    my @seen;
    my $callback = $c->domain_event_register_any(undef, Sys::Virt::Domain::EVENT_ID_LIFECYCLE(), sub { push @seen, $_[2] });
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

case 0 => 'refused', virt => {
    rule   => 'a connection works on after the loop has refused its timer',
    source => '',
    harm   => '',
    advice => '',
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
    like join('', $t->warnings), qr/add_timeout.*no room/s, '... with a warning that says why';
    is scalar(my @domains = $c->list_all_domains), 1, 'the next call works';
    $refuse = 0;
    is exception_of { $register->() }, undef, 'then registering works';
    my $domain = $c->define_domain(DOMAIN_XML);
    $t->until(sub { @seen });
    is_deeply \@seen, [0], 'and events arrive';
}, needs => ['object'];

1;
