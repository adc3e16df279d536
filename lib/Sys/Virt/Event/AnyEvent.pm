package Sys::Virt::Event::AnyEvent;
use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

use Scalar::Util ();
use Sys::Virt::Event::Loop ();

# Until AnyEvent has chosen its loop, which it does once and for all.
our @ISA = ('Sys::Virt::Event::Loop');

# What the loops that have an adapter of their own take as their loop.
my %ADAPTER = (
    EV      => ['Sys::Virt::Event::EV',      sub { EV::default_loop() }],
    Glib    => ['Sys::Virt::Event::Glib',    sub { undef }],
    IOAsync => ['Sys::Virt::Event::IOAsync', sub { $AnyEvent::Impl::IOAsync::LOOP }],
    POE     => ['Sys::Virt::Event::POE',     sub { undef }],
);

# The oldest with AE::log and with _poll, by which condition variables wait.
sub _needs       { (AnyEvent => '6.01') }
sub _loop_option { () }

sub _find_loop {
    my ($self) = @_;
    require AnyEvent;
    my $model = AnyEvent::detect();
    my $known = $ADAPTER{ $model =~ s/^AnyEvent::Impl:://r };
    my ($adapter, $loop) = @{ $known || ['Sys::Virt::Event::AnyEvent::Any', sub { $model }] };
    require $adapter =~ s{::}{/}gr . '.pm' if $known;
    @ISA = ($adapter);
    # EV has more for objects of that very class.
    bless $self, $adapter if $model eq 'AnyEvent::Impl::EV' && ref $self eq __PACKAGE__;
    my $find_loop = $adapter->can('_find_loop');
    return $self->$find_loop($loop->());
}

package    # of this file alone
    Sys::Virt::Event::AnyEvent::Any;

our @ISA = ('Sys::Virt::Event::Loop');

# Some loops mind a file descriptor that was closed, or stop at it.
sub _wants_handles { 'dup' }

sub _find_loop { $_[1] }

sub _watch {
    my ($self, $file, $read, $write, $code) = @_;
    my $call = $self->_guarded($code);
    return [map { AE::io($file, $_, $call) } $read ? 0 : (), $write ? 1 : ()];
}

sub _unwatch { @{ $_[1] } = () }

# AnyEvent's own loop hands on what a callback throws. Others end a watch then, or the program: there it is logged.
sub _guarded {
    my ($self, $code) = @_;
    return $code if $self->{loop} eq 'AnyEvent::Impl::Perl';
    return sub { eval { $code->(); 1 } or AE::log(error => "$@") };
}

sub _timer {
    my ($self, $seconds, $code) = @_;
    return $self->_soon($code) if !$seconds;
    AE::now_update();
    return AE::timer($seconds, 0, $self->_guarded($code));
}

# AnyEvent's own loop looks at no file in an iteration in which a timer is due, and calls timers as long as there are
# such. What is to be called in the next iteration is called for a file that can always be written to, so that all others
# have their turn.
sub _soon {
    my ($self, $code) = @_;
    my $soon  = $self->{soon} ||= { turn => 0, queue => [] };
    my $entry = { code => $code, turn => $soon->{turn} };
    push @{ $soon->{queue} }, $entry;
    if (!$soon->{watcher}) {
        pipe $soon->{reader}, $soon->{writer} or die "Cannot make pipe: $!\n";
        Scalar::Util::weaken(my $weak_self = $self);
        $soon->{watcher} = AE::io($soon->{writer}, 1, $self->_guarded(sub { $weak_self->_on_soon if $weak_self }));
    }
    return $entry;
}

# A nested run goes on with what the outer one has left.
sub _on_soon {
    my ($self) = @_;
    my $soon  = $self->{soon};
    my $queue = $soon->{queue};
    my $turn  = ++$soon->{turn};
    while (@$queue && $queue->[0]{turn} < $turn) {
        my $code = delete shift(@$queue)->{code};
        $code->() if $code;
    }
    delete @$soon{qw(watcher reader writer)} if !@$queue;
    return;
}

sub _cancel { delete $_[1]{code} if ref $_[1] eq 'HASH' }

sub _iterate { AnyEvent->_poll; return 1 }

1;
