use strict;
use warnings;

use lib 't/lib';
use Test::More;
use VirtTest::CApi;
use VirtTest::Contract qw(run_cases);

# libvirt's contract on a loop as a program may have one. Arguments choose suites.

if (my $why = VirtTest::CApi->why_not) { plan skip_all => $why }

require VirtTest::SelectLoop;

run_cases(
    name => 'SelectLoop',
    make => sub { VirtTest::SelectLoop->new },
    run  => sub { my ($impl, $seconds) = @_; $impl->run_once($seconds) },
    @ARGV ? (suites => [@ARGV]) : (),
);

done_testing;
