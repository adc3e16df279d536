# The kit catches broken loops: each mutant fails its case. With AUTHOR_TESTING, no unrelated case fails with it.
use strict;
use warnings;

use lib 't/lib';
use SideBySide qw(side_by_side);
use Test::More;
use Test::Sys::Virt::EventImpl qw(eventimpl_cases);
use VirtTest;
use VirtTest::Mutants;

# What fails on a loop that does nothing would wait for it.
use constant SLOW => 0.4;

my @mutants = VirtTest::Mutants::all();
my %named   = map { $_ => 1 } @ARGV;
@mutants = grep { $named{ $_->{case} } } @mutants if %named;

my %caught = map { $_->{case} => 1 } @mutants;
is_deeply [grep { !$caught{$_} } map { $_->{name} } eventimpl_cases()], [], 'each case has a mutant' if !%named;

my (@judged, %why);
for my $mutant (@mutants) {
    my ($case) = grep { $_->{name} eq $mutant->{case} } Test::Sys::Virt::EventImpl::Case::all();
    my $why = Test::Sys::Virt::EventImpl::Case::why_not($case, { make => 1 });
    defined $why ? push @{ $why{$why} }, $mutant : push @judged, $mutant;
}
for my $why (sort keys %why) {
    SKIP: { skip $why, scalar @{ $why{$why} } }
}

my @failing = side_by_side(map {
    my $mutant = $_;
    sub {
        my @failing = eval { VirtTest::Mutants::failing($mutant, slow => SLOW, chosen($mutant)) };
        return [@failing, $@ || ()];
    };
} @judged);
for my $n (0 .. $#judged) {
    my ($mutant, @failed) = ($judged[$n], @{ $failing[$n] });
    my %may_fail = map { $_ => 1 } @{ $mutant->{also} || [] };
    is join("\n", grep { !$may_fail{$_} } @failed), $mutant->{case}, "$mutant->{case}: $mutant->{what}";
}

done_testing;

sub chosen {
    my ($mutant) = @_;
    return (cases => [$mutant->{case}]) if !$ENV{AUTHOR_TESTING};
    my $own = (map { $_->{suite} } grep { $_->{name} eq $mutant->{case} } eventimpl_cases())[0];
    my %suites = map { $_->{suite} => 1 } grep { $_->{suite} !~ /^(?:remote|embed)\z/ } eventimpl_cases();
    return (suites => [sort keys %{ { %suites, $own => 1 } }]);
}
