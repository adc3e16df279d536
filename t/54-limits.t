# The tables of limits in the adapters' manuals, from which other tests take what they except: each row is about
# something that a test looks at, on a loop that there is.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";

use Test::More;
use Test::Sys::Virt::EventImpl qw(eventimpl_cases);
use VirtTest qw(text_of);
use VirtTest::Adapters qw(adapters limits_of);
use VirtTest::Limits qw(table rows);

my %adapters_of;
push @{ $adapters_of{ $_->{manual} // $_->{class} } }, $_ for adapters(all => 1);

my %is_case = map { $_->{name} => 1 } eventimpl_cases();
my %rows    = map { $_ => [rows($_)] } keys %adapters_of;

# What the tests ask about, or have as their subject.
my $tests = join '', map { text_of($_) } glob "$FindBin::Bin/*.t";
my %is_asked = map { $_ => 1 } $tests =~ /\bis_limited\(\$\w+, '([^']+)'\)/g;
my %is_told  = map { $_ => 1 } $tests =~ /^prints ["'](.+?): /mg;

for my $class (sort keys %adapters_of) {
    my @rows = @{ $rows{$class} };
    ok @rows > 0, "$class has a table of its limits";
    is_deeply [grep { length > 73 } table($class)], [], '... that a manual page of 80 columns has room for';
    is_deeply [grep { !length $_->{reason} } @rows], [], '... with a reason in each row';

    my %is_on = map { $_ => 1 } 'all', map { @{ $_->{on} } } @{ $adapters_of{$class} };
    is_deeply [grep { !$is_on{$_} } map { @{ $_->{on} } } @rows], [], '... on loops that are tested';
    my @names = map { @{ $_->{names} } } @rows;
    is_deeply [grep { !$is_case{$_} && !$is_asked{$_} && !$is_told{$_} } @names], [], '... about what is tested';
}

my %is_named = map { $_ => 1 } map { @{ $_->{names} } } map { @$_ } values %rows;
is_deeply [grep { !$is_named{$_} } sort keys %is_asked], [], 'what the tests except is in some table';

my ($epoll, $select) = map { my $name = $_; grep { $_->{name} eq $name } adapters(all => 1) } 'EV on epoll', 'EV on select';
ok limits_of($epoll)->{closed_fd} && !limits_of($select)->{closed_fd}, 'a limit holds for the loops that its row has';

done_testing;
