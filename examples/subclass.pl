package My::Loop;    # libvirt in EV: the watcher is the key, READ and WRITE have libvirt's values
use strict; use warnings;
use EV; use Sys::Virt; use parent 'Sys::Virt::EventImpl';
sub add_handle {
    my ($self, $fd, $events, $cb, $opaque) = @_;
    my $watcher = EV::io_ns($fd, 0, sub { $self->_run_handle_callback(0, $fd, $_[1] & 3 || 4, $cb, $opaque) });
    return $self->update_handle($watcher, $events);
}
sub update_handle { my (undef, $w, $events) = @_; $w->stop; $w->events($events & 3); $w->start if $events; $w }
sub remove_handle { $_[1]->stop }
sub add_timeout {
    my ($self, $ms, $cb, $opaque) = @_;
    return $self->update_timeout(EV::timer_ns(0, 0, sub { $self->_run_timeout_callback(0, $cb, $opaque) }), $ms);
}
sub update_timeout {
    my (undef, $w, $ms) = @_;
    $w->stop;
    $w->set(($ms / 1000 || 1e-9) x 2), $w->start if $ms >= 0;
    return $w;
}
sub remove_timeout { $_[1]->stop }

my $loop = bless({})->register;    # first the loop, then the connections
my $conn = Sys::Virt->new(uri => 'test:///default');
$conn->domain_event_register_any(undef, Sys::Virt::Domain::EVENT_ID_LIFECYCLE, sub {
    print "event $_[2]\n";
    EV::break;
});
$conn->get_domain_by_name('test')->suspend;
EV::run;
