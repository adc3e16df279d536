# What happens to virtual machines, in a program that runs EV: it has a timer and a pipe of its own to look after.
use strict;
use warnings;

use EV;
use Sys::Virt;
use Sys::Virt::Event::EV -register;    # first the loop, then the connections

my @ACTIONS = qw(suspend resume suspend resume);

my $conn   = Sys::Virt->new(uri => 'test:///default');
my $domain = $conn->get_domain_by_name('test');
my $events = 0;
$conn->domain_event_register_any(undef, Sys::Virt::Domain::EVENT_ID_LIFECYCLE, Sys::Virt::Event::protect(sub {
    my ($conn, $domain, $event, $detail) = @_;
    print 'event: ', $domain->get_name, " $event/$detail\n";
    EV::break if ++$events == 4;
}));

# The program's own work: a timer, and the output of a command.
my $timer = EV::timer 0.05, 0.05, sub {
    my $action = shift @ACTIONS or return;
    print "timer: $action\n";
    $domain->$action;
};
open my $command, '-|', 'echo one; sleep 0.1; echo two' or die "Cannot run a command: $!";
my $lines;
$lines = EV::io $command, EV::READ, sub {
    if (sysread $command, my $text, 4096) { print "command: $text" }
    else                                  { undef $lines }
};

$SIG{ALRM} = 'DEFAULT';
alarm 20;
EV::run;
