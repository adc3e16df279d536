# A page with the machines of a host and what they are doing, which changes as they do:
#     perl examples/live-page.pl daemon, then look at http://127.0.0.1:3000
use strict; use warnings;
use Mojolicious::Lite;
use Sys::Virt::Event::Mojo -register;
use Sys::Virt::Event::Connection;
use Sys::Virt::Event::Record;

my (%state, %clients);
my $conn = Sys::Virt::Event::Connection->new(uri => $ENV{LIVE_PAGE_URI} // 'qemu:///system', readonly => 1);
$conn->on('domain/*' => sub {
    my ($conn, $event) = @_;
    my $is = Sys::Virt::Event::Record::state_of($event) // return;
    $state{ $event->{uuid} } = { name => $event->{name}, state => $is };
    $_->send({ json => $state{ $event->{uuid} } }) for values %clients;
});
$conn->on('connection/*' => sub { my ($conn, $event) = @_; app->log->info("$event->{uri} is $event->{event}") });

get '/' => 'index';

websocket '/states' => sub {
    my ($c) = @_;
    $clients{ $c->tx } = $c->inactivity_timeout(0);
    $c->on(finish => sub { my ($c) = @_; delete $clients{ $c->tx } });
    $c->send({ json => $_ }) for values %state;
};

app->start;

__DATA__
@@ index.html.ep
<ul id="states"></ul>
<script>
  const rows = {}, list = document.getElementById("states");
  new WebSocket("<%= url_for('states')->to_abs =~ s/^http/ws/r %>").onmessage = (message) => {
    const machine = JSON.parse(message.data);
    const row = rows[machine.name] ??= list.appendChild(document.createElement("li"));
    row.textContent = `${machine.name}: ${machine.state}`;
  };
</script>
