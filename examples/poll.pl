use strict; use warnings;
use Sys::Virt;
use Sys::Virt::Event::Poll;

my $loop = Sys::Virt::Event::Poll->new->register;    # first the loop, then the connections
my $conn = Sys::Virt->new(uri => 'test:///default');
$conn->domain_event_register_any(undef, Sys::Virt::Domain::EVENT_ID_LIFECYCLE, sub {
    my ($conn, $domain, $event, $detail) = @_;
    print $domain->get_name, ": event $event, detail $detail\n";
});
$conn->get_domain_by_name('test')->suspend;          # something to see
$loop->run_for(1);
