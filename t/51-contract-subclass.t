# libvirt's contract on the loop that the manual shows: it obeys the rules that it stands below. Arguments choose
# suites.
use strict;
use warnings;

use Test::More;
use Test::Sys::Virt::EventImpl;

require Sys::Virt::Event;
open my $in, '<', $INC{'Sys/Virt/Event.pm'} or die "Cannot read manual: $!";
my ($section) = do { local $/; <$in> } =~ /^=head2 A complete loop\n(.*?)^=head1/ms;
my ($class) = $section =~ s/^  //mgr =~ /^(package My::Loop;.*)^package main;$/ms;
eval "$class; 1" or die "Cannot compile the loop: $@";

eventimpl_ok(sub { My::Loop->new }, name => 'the loop of the manual', @ARGV ? (suites => [@ARGV]) : ());

done_testing;
