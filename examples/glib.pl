#!/usr/bin/perl
# A program on GLib's main loop, as those with Gtk are: its own timer, and the events of a machine.
use strict;
use warnings;
use Glib;
use Sys::Virt;
use Sys::Virt::Event::Glib -register;

my $main = Glib::MainLoop->new;
my $conn = Sys::Virt->new(uri => 'test:///default');
my $domain = $conn->get_domain_by_name('test');

my $events = 0;
$conn->domain_event_register_any(undef, Sys::Virt::Domain::EVENT_ID_LIFECYCLE, sub {
    my ($conn, $domain, $event) = @_;
    print $domain->get_name, ": event $event\n";
    $main->quit if ++$events == 4;
});

my $ticks = 0;
Glib::Timeout->add(20, sub {
    print "tick\n";
    $ticks++ % 2 ? $domain->resume : $domain->suspend;
    return $ticks < 4;
});

$main->run;
