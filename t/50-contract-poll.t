# libvirt's contract on the loop of this distribution. Arguments choose suites.
use strict;
use warnings;

use Sys::Virt::Event::Poll;
use Test::More;
use Test::Sys::Virt::EventImpl;

eventimpl_ok(sub { Sys::Virt::Event::Poll->new }, name => 'Poll', @ARGV ? (suites => [@ARGV]) : ());

done_testing;
