# libvirt's contract on the adapters, on every loop that Debian has.
use strict;
use warnings;

use lib 't/lib';

use Test::More;
use Test::Sys::Virt::EventImpl;
use VirtTest::Adapters;

for my $adapter (adapters(all => 1)) {
    my @missing = missing_modules($adapter);
    is "@missing", '', "$adapter->{name}: nothing is missing" or next;
    eventimpl_ok(
        VirtTest::Adapters::maker($adapter),
        name => $adapter->{name}, skip => VirtTest::Adapters::skips_of($adapter)
    );
}

done_testing;
