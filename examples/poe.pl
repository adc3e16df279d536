use strict; use warnings;
use POE;
use Sys::Virt;
use Sys::Virt::Event::POE;

Sys::Virt::Event::POE->new->register;                # first the loop, then the connections

POE::Session->create(inline_states => {
    _start => sub {
        my ($session, $heap) = @_[SESSION, HEAP];
        my $conn = $heap->{conn} = Sys::Virt->new(uri => 'test:///default');
        my $tell = $session->postback('event');      # a session of its own calls it, this one gets the event
        $heap->{id} = $conn->domain_event_register_any(undef, Sys::Virt::Domain::EVENT_ID_LIFECYCLE, sub {
            my ($conn, $domain, $event, $detail) = @_;
            $tell->($domain->get_name, $event, $detail);
        });
        $heap->{domain} = $conn->get_domain_by_name('test');
        $_[KERNEL]->delay(tick => 0.1, 'suspend', 'resume', 'suspend');
    },
    tick => sub {                                    # something to see
        my ($heap, $call, @calls) = @_[HEAP, ARG0 .. $#_];
        $heap->{domain}->$call;
        $_[KERNEL]->delay(tick => 0.1, @calls) if @calls;
    },
    event => sub {
        my ($heap, $name, $event, $detail) = ($_[HEAP], @{ $_[ARG1] });
        print "$name: event $event, detail $detail\n";
        return if ++$heap->{events} < 3;
        $heap->{conn}->domain_event_deregister_any($heap->{id});
        %$heap = ();                                 # without the connection nothing keeps POE running
    },
});
POE::Kernel->run;
