# A web server that shows events as they come: perl examples/mojo.pl daemon, then look at http://127.0.0.1:3000
use strict; use warnings;
use Mojolicious::Lite;
use Sys::Virt;
use Sys::Virt::Event::Mojo;

Sys::Virt::Event::Mojo->new->register;               # first the loop, then the connections
my $conn = Sys::Virt->new(uri => 'test:///default');

my %clients;
$conn->domain_event_register_any(undef, Sys::Virt::Domain::EVENT_ID_LIFECYCLE, sub {
    my ($conn, $domain, $event, $detail) = @_;
    my $text = $domain->get_name . ": event $event, detail $detail";
    $_->send($text) for values %clients;
});

my $domain = $conn->get_domain_by_name('test');      # something to see
Mojo::IOLoop->recurring(0.5 => sub {
    $domain->get_info->{state} == Sys::Virt::Domain::STATE_RUNNING ? $domain->suspend : $domain->resume;
});

get '/' => 'index';

websocket '/events' => sub {
    my ($c) = @_;
    $clients{ $c->tx } = $c->inactivity_timeout(0);
    $c->on(finish => sub { my ($c) = @_; delete $clients{ $c->tx } });
};

app->start;

__DATA__
@@ index.html.ep
<ul id="events"></ul>
<script>
  new WebSocket("<%= url_for('events')->to_abs =~ s/^http/ws/r %>").onmessage = (message) => {
    document.getElementById("events").appendChild(document.createElement("li")).textContent = message.data;
  };
</script>
