#!/usr/bin/perl
# A program on IO::Async: its own timer, and the events of a machine.
use strict;
use warnings;
use IO::Async::Loop;
use IO::Async::Timer::Periodic;
use Sys::Virt;
use Sys::Virt::Event::IOAsync -register;

my $loop = IO::Async::Loop->new;
my $conn = Sys::Virt->new(uri => 'test:///default');
my $domain = $conn->get_domain_by_name('test');

my $events = 0;
$conn->domain_event_register_any(undef, Sys::Virt::Domain::EVENT_ID_LIFECYCLE, sub {
    my ($conn, $domain, $event) = @_;
    print $domain->get_name, ": event $event\n";
    $loop->stop if ++$events == 4;
});

my $ticks = 0;
my $timer = IO::Async::Timer::Periodic->new(interval => 0.02, on_tick => sub {
    my ($timer) = @_;
    print "tick\n";
    $ticks++ % 2 ? $domain->resume : $domain->suspend;
    $timer->stop if $ticks == 4;
});
$loop->add($timer->start);

$loop->run;
