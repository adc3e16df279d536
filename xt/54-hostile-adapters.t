# What is hostile to a loop, on all adapters and on every loop that Debian has: signals, nested runs, the end of the
# program, daemons, forks. The rest of that is in the kit. Arguments: which, by a part of the name.
use strict;
use warnings;

use lib 'xt/lib', 't/lib';

use AuthorTest;
use Cwd qw(getcwd);
use Test::More;
use VirtTest::Adapters;

my ($which) = (@ARGV, '');
my @tests = map { "t/$_.t" } qw(41-signals 44-nested 64-end 66-hostile-daemon 67-fork);

for my $adapter (grep { $_->{name} =~ /\Q$which/ } adapters(all => 1)) {
    subtest $adapter->{name} => sub {
        my @missing = missing_modules($adapter);
        is "@missing", '', 'nothing is missing' or return;
        tests_pass(getcwd(), [], \@tests, limit => 300, env => { TEST_ADAPTER => $adapter->{name} });
    };
}

done_testing;
