# libvirt's contract on the adapters, on one loop each; xt/53-adapters.t has all. Arguments: which, by a part of the
# name, and the suites.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";

use Test::More;
use Test::Sys::Virt::EventImpl;
use VirtTest::Adapters;

my ($which, @suites) = @ARGV;
for my $adapter (grep { !defined $which || $_->{name} =~ /\Q$which/ } adapters(all => defined $which)) {
    SKIP: {
        my @missing = missing_modules($adapter);
        skip "$adapter->{name}: @missing is not installed", 1 if @missing;
        eventimpl_ok(
            VirtTest::Adapters::maker($adapter),
            name => $adapter->{name}, skip => $adapter->{skip} || {}, @suites ? (suites => \@suites) : ()
        );
    }
}

done_testing;
