#!/usr/bin/perl
# Shuts a machine down and waits until it is off, for use from cron:
#     perl examples/shut-down.pl qemu:///system NAME SECONDS
use strict;
use warnings;
use Sys::Virt::Event::Poll -register;
use Sys::Virt::Event::Connection;

my ($uri, $name, $seconds) = @ARGV;
my $conn = Sys::Virt::Event::Connection->new(uri => $uri)->open;
exit 0 if $conn->wait_state($name, 'shutoff', timeout => 0);
$conn->virt->get_domain_by_name($name)->shutdown;
$conn->wait_state($name, 'shutoff', timeout => $seconds) or die "$name is still on after $seconds seconds\n";
