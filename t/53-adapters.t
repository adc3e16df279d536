# libvirt's contract on the adapters, on one loop each, several side by side; xt/53-adapters.t has all loops. Arguments:
# which, by a part of the name, and the suites.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";

use SideBySide qw(side_by_side);
use Test::More;
use Test::Sys::Virt::EventImpl qw(eventimpl_verdicts);
use VirtTest qw(watchdog);
use VirtTest::Adapters;

watchdog(600);

my ($which, @suites) = @ARGV;
my @adapters = grep { !defined $which || $_->{name} =~ /\Q$which/ } adapters(all => defined $which);
my @missing  = grep { missing_modules($_) } @adapters;
@adapters = grep { !missing_modules($_) } @adapters;
plan skip_all => 'no host loop is installed' if !@adapters;

my @verdicts = side_by_side(map {
    my $adapter = $_;
    sub {
        [eventimpl_verdicts(
            VirtTest::Adapters::maker($adapter), skip => VirtTest::Adapters::skips_of($adapter), @suites ? (suites => \@suites) : ()
        )]
    }
} @adapters);

for my $adapter (@adapters) {
    my $verdicts = shift @verdicts;
    subtest $adapter->{name} => sub {
        for my $case (@$verdicts) {
            my $name = "$case->{number} $case->{name}: $case->{rule}";
            SKIP: {
                skip "$case->{name}: $case->{text}", 1 if $case->{verdict} eq 'skipped';
                ok $case->{verdict} eq 'passed', $name or diag $case->{text};
            }
        }
    };
}
for my $adapter (@missing) {
    SKIP: { skip "$adapter->{name}: " . join(' and ', missing_modules($adapter)) . ' not installed', 1 }
}

done_testing;
