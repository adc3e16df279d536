# libvirt's contract on a loop as a program may have one. Arguments choose suites.
use strict;
use warnings;

use lib 't/lib';
use Test::More;
use Test::Sys::Virt::EventImpl;
use VirtTest::SelectLoop;

eventimpl_ok(sub { VirtTest::SelectLoop->new }, name => 'SelectLoop', @ARGV ? (suites => [@ARGV]) : ());

done_testing;
