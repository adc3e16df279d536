#!/usr/bin/perl
# A program on AnyEvent, whatever loop that has chosen: its own timer, and the events of a machine.
use strict;
use warnings;
use AnyEvent;
use Sys::Virt;
use Sys::Virt::Event::AnyEvent -register;

my $done = AnyEvent->condvar;
my $conn = Sys::Virt->new(uri => 'test:///default');
my $domain = $conn->get_domain_by_name('test');

my $events = 0;
$conn->domain_event_register_any(undef, Sys::Virt::Domain::EVENT_ID_LIFECYCLE, sub {
    my ($conn, $domain, $event) = @_;
    print $domain->get_name, ": event $event\n";
    $done->send if ++$events == 4;
});

my $ticks = 0;
my $timer;
$timer = AnyEvent->timer(after => 0.02, interval => 0.02, cb => sub {
    print "tick\n";
    $ticks++ % 2 ? $domain->resume : $domain->suspend;
    undef $timer if $ticks == 4;
});

$done->recv;
