package Sys::Virt::Event::Tool::Demo;
use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

use Sys::Virt ();

# The demonstration: calls on objects that libvirt's test driver makes up, one a step. The events come through the loop,
# as they do from any other program's calls on a real server.

# Pairs: what is done, and the code that does it.
sub steps {
    my ($virt) = @_;
    my $domain = $virt->get_domain_by_name('test');
    my $network = $virt->get_network_by_name('default');
    my $pool = $virt->get_storage_pool_by_name('default-pool');
    my ($defined, $device);
    return (
        ['suspend the domain',      sub { $domain->suspend }],
        ['resume the domain',       sub { $domain->resume }],
        ['give it a title',         sub { _set_title($domain, 'A demonstration') }],
        ['destroy the domain',      sub { $domain->destroy }],
        ['start the domain',        sub { $domain->create }],
        ['stop the network',        sub { $network->destroy }],
        ['start the network',       sub { $network->create }],
        ['stop the storage pool',   sub { $pool->destroy }],
        ['start the storage pool',  sub { $pool->create }],
        ['refresh it',              sub { $pool->refresh }],
        ['create a node device',    sub { $device = $virt->create_node_device(_device_xml()) }],
        ['destroy the node device', sub { $device->destroy }],
        ['define another domain',   sub { $defined = $virt->define_domain(_domain_xml()) }],
        ['undefine it',             sub { $defined->undefine }],
    );
}

sub _set_title {
    my ($domain, $title) = @_;
    return $domain->set_metadata(Sys::Virt::Domain::METADATA_TITLE(), $title);
}

sub _domain_xml {
    return "<domain type='test'><name>demo</name><memory unit='MiB'>64</memory><os><type>hvm</type></os></domain>";
}

sub _device_xml {
    return "<device><parent>scsi_host1</parent><capability type='scsi_host'><capability type='fc_host'>"
        . '<wwnn>2000000012341234</wwnn><wwpn>1000000012341234</wwpn></capability></capability></device>';
}

1;
