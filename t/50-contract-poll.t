use strict;
use warnings;

use lib 't/lib';
use Test::More;
use VirtTest::CApi;
use VirtTest::Contract qw(run_cases);

# libvirt's contract on the loop of this distribution. Arguments choose suites.

if (my $why = VirtTest::CApi->why_not) { plan skip_all => $why }

require Sys::Virt::Event::Poll;

run_cases(
    name => 'Poll',
    make => sub { Sys::Virt::Event::Poll->new },
    run  => sub { my ($impl, $seconds) = @_; $impl->run_for($seconds) },
    @ARGV ? (suites => [@ARGV]) : (),
);

done_testing;
