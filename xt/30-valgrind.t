# The core tests under valgrind's memcheck: no invalid access, no use of what was not set, nothing lost.
use strict;
use warnings;

use lib 'xt/lib';
use AuthorTest;
use Cwd qw(getcwd);
use Test::More;

# The others run the same code in loops, or with daemons, for longer than valgrind makes sense.
my @tests = map { glob "t/$_-*.t" } 10, 20, 22, 30, 40, 45 .. 49, 52, 62, 63;

my $top     = getcwd();
my $reports = work_dir();

# Quiet, it writes nothing but reports.
my @valgrind = (
    'valgrind', '--quiet', '--vgdb=no', '--leak-check=full', '--show-leak-kinds=definite', '--errors-for-leak-kinds=definite',
    '--num-callers=40', "--suppressions=$top/xt/valgrind.supp", "--log-file=$reports/report.%p",
    '--trace-children=yes', '--trace-children-skip=*/libvirtd,*/qemu-system-*',
);
tests_pass($top, \@valgrind, \@tests, limit => 900, env => { PERL_DESTRUCT_LEVEL => 2, TEST_SLOW => 10 });

my @reports = grep { length } map { open my $in, '<', $_ or die "$_: $!"; local $/; <$in> } glob "$reports/report.*";
is join("\n", @reports), '', 'no report';
cmp_ok scalar(() = glob "$reports/report.*"), '>=', @tests, '... of at least as many processes as tests';

done_testing;
