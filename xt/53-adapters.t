# libvirt's contract on the adapters, on every loop that Debian has; and that each case which is excepted must be.
# Arguments: which, by a part of the name.
use strict;
use warnings;

use lib 't/lib';

use Test::More;
use Test::Sys::Virt::EventImpl qw(eventimpl_ok eventimpl_verdicts);
use VirtTest::Adapters qw(adapters missing_modules skips_of);

my ($which) = (@ARGV, '');

for my $adapter (grep { $_->{name} =~ /\Q$which/ } adapters(all => 1)) {
    my @missing = missing_modules($adapter);
    is "@missing", '', "$adapter->{name}: nothing is missing" or next;
    my $make = VirtTest::Adapters::maker($adapter);
    my $skip = skips_of($adapter);
    eventimpl_ok($make, name => $adapter->{name}, skip => $skip);
    my @verdicts = %$skip ? eventimpl_verdicts($make, cases => [keys %$skip]) : ();
    is_deeply [map { $_->{name} } grep { $_->{verdict} eq 'passed' } @verdicts], [], '... and what is excepted fails';
}

done_testing;
