package Bench::Loops;

# The event loops in Perl that bench/run measures: how each is registered, run until its stop is called, and made to
# take one more turn. Those of a program's own are written as programs have them.

use strict;
use warnings;

my %ADAPTER = (
    ev  => { class => 'EV', run => sub { EV::run() }, stop => sub { EV::break(EV::BREAK_ALL()) },
             turn => sub { EV::run(EV::RUN_NOWAIT()) } },
    poll     => { class => 'Poll' },
    anyevent => { class => 'AnyEvent', env => { PERL_ANYEVENT_MODEL => 'Perl' } },
    ioasync  => { class => 'IOAsync', env => { IO_ASYNC_LOOP => 'Poll' }, run => sub { $_[0]->loop->run },
                  stop => sub { $_[0]->loop->stop } },
    mojo     => { class => 'Mojo', env => { MOJO_REACTOR => 'Mojo::Reactor::Poll' },
                  run => sub { Mojo::IOLoop->start }, stop => sub { Mojo::IOLoop->stop } },
    glib     => { class => 'Glib' },
    poe      => { class => 'POE', env => { POE_EVENT_LOOP => 'POE::Loop::Select' } },
);

# The registered loop of that name.
sub start {
    my ($class, $name) = @_;
    my $self = bless { name => $name, %{ $ADAPTER{$name} || {} } }, $class;
    return bless { %$self, object => Bench::Floor->new }, $class if $name eq 'floor';
    require Sys::Virt;
    Bench::Probe::work_register_nothing() if $name eq 'nothing';
    return $self if $name =~ /^no/;
    require Sys::Virt::Event;
    if ($self->{class}) {
        $ENV{$_} = $self->{env}{$_} for keys %{ $self->{env} || {} };
        my $adapter = "Sys::Virt::Event::$self->{class}";
        eval "require $adapter" or die $@;
        $self->{object} = $adapter->new->register;
    } elsif ($name eq 'default') {
        Sys::Virt::Event::register_default();
    } elsif ($name eq 'own_ev') {
        require EV;
        @$self{qw(run stop turn)} = @{ $ADAPTER{ev} }{qw(run stop turn)};
        Sys::Virt::Event::register($self->{object} = Bench::OwnEV->new);
    } elsif ($name eq 'own') {
        Sys::Virt::Event::register($self->{object} = Bench::Own->new);
    }
    return $self;
}

sub object { return $_[0]{object} }

# Until stopped; whoever calls stop lets is_over be true from then on.
sub run {
    my ($self, $is_over) = @_;
    if    ($self->{run})              { $self->{run}->($self->{object}) }
    elsif ($self->{name} eq 'default') { Sys::Virt::Event::run_default() until $is_over->() }
    else                              { $self->{object}->run_until($is_over, 600) }
    return;
}

sub stop {
    my ($self) = @_;
    if    ($self->{stop})   { $self->{stop}->($self->{object}) }
    elsif ($self->{object}) { $self->{object}->stop }
    return;
}

# Free functions are waiting, so it will not block.
sub turn {
    my ($self) = @_;
    if    ($self->{turn})              { $self->{turn}->() }
    elsif ($self->{name} eq 'default') { Sys::Virt::Event::run_default() }
    else                               { $self->{object}->run_for(0) }
    return;
}

# The least that a loop object can do: it writes down what libvirt wants.
package Bench::Own;

our @ISA = ('Sys::Virt::Event');

my $last = 0;

sub new { my ($class) = @_; return bless { watches => {}, free => [] }, $class }

sub add_handle {
    my ($self, $fd, $events, $cb, $opaque, $ff) = @_;
    $self->{watches}{ ++$last } = [$fd, $events, $cb, $opaque, $ff];
    return $last;
}
sub update_handle { my ($self, $key, $events) = @_; $self->{watches}{$key}[1] = $events; return }
sub remove_handle { my ($self, $key) = @_; push @{ $self->{free} }, delete $self->{watches}{$key}; return 0 }
sub add_timeout {
    my ($self, $ms, $cb, $opaque, $ff) = @_;
    $self->{watches}{ ++$last } = [-1, $ms, $cb, $opaque, $ff];
    return $last;
}
sub update_timeout { my ($self, $key, $ms) = @_; $self->{watches}{$key}[1] = $ms; return }
sub remove_timeout { my ($self, $key) = @_; push @{ $self->{free} }, delete $self->{watches}{$key}; return 0 }

# The same, of which nothing is registered with libvirt: what the methods cost when Perl calls them, and what a helper
# that does nothing would.
package Bench::Floor;

our @ISA = ('Bench::Own', 'Bench::Probe');

# In the loop of EV, by watchers of its Perl interface.
package Bench::OwnEV;

our @ISA = ('Sys::Virt::Event');

sub new { my ($class) = @_; return bless { watchers => {} }, $class }

sub _add {
    my ($self, $watcher, $opaque, $ff) = @_;
    $self->{watchers}{ ++$last } = [$watcher, $opaque, $ff];
    return $last;
}

sub add_handle {
    my ($self, $fd, $events, $cb, $opaque, $ff) = @_;
    my $key = $last + 1;
    my $watcher = EV::io_ns($fd, $events & 3, sub { $self->_run_handle_callback($key, $fd, $_[1] & 3, $cb, $opaque) });
    $watcher->start if $events;
    return $self->_add($watcher, $opaque, $ff);
}

sub update_handle {
    my ($self, $key, $events) = @_;
    my $watcher = $self->{watchers}{$key}[0];
    $watcher->stop;
    $watcher->events($events & 3);
    $watcher->start if $events;
    return;
}

sub add_timeout {
    my ($self, $ms, $cb, $opaque, $ff) = @_;
    my $key = $last + 1;
    my $watcher = EV::timer_ns(0, 0, sub { $self->_run_timeout_callback($key, $cb, $opaque) });
    $self->_add($watcher, $opaque, $ff);
    $self->update_timeout($key, $ms);
    return $key;
}

sub update_timeout {
    my ($self, $key, $ms) = @_;
    my $watcher = $self->{watchers}{$key}[0];
    $watcher->stop;
    return if $ms < 0;
    $watcher->set(($ms / 1000 || 1e-9) x 2);
    $watcher->start;
    return;
}

sub remove_handle {
    my ($self, $key) = @_;
    my ($watcher, $opaque, $ff) = @{ delete $self->{watchers}{$key} };
    $watcher->stop;
    push @{ $self->{free} }, [$ff, $opaque];
    $self->{freeing} ||= EV::timer(0, 0, sub {
        undef $self->{freeing};
        my $free = delete $self->{free};
        $self->_free_callback_opaque(@$_) for @$free;
    });
    return 0;
}
*remove_timeout = \&remove_handle;

1;
