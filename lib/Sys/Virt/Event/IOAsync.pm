package Sys::Virt::Event::IOAsync;
use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

use Carp ();
use Scalar::Util ();
use Sys::Virt::Event::Loop ();

our @ISA = ('Sys::Virt::Event::Loop');

# The first with watch_time and watch_idle, and with loops that implement them.
sub _needs         { ('IO::Async' => '0.49') }
sub _loop_option   { 'loop' }
sub _wants_handles { 1 }

sub new {
    my ($class, @options) = @_;
    my $self = $class->SUPER::new(@options);
    my $loop = $self->{given} // return $self;
    Carp::croak("Cannot make $class: the loop is no IO::Async::Loop")
        if !Scalar::Util::blessed($loop) || !$loop->isa('IO::Async::Loop');
    return $self;
}

sub _find_loop {
    my ($self, $loop) = @_;
    require IO::Async::Loop;
    return $loop // IO::Async::Loop->new;
}

# In a child that loop has an epoll set of its own, and in 0.22 nothing in it: it goes by what it has noted.
sub _mend_loop {
    my ($self) = @_;
    my $loop = $self->{loop};
    return if !$loop->isa('IO::Async::Loop::Epoll');
    %{ $loop->{$_} || {} } = () for qw(masks callbacks refaddr_for_fileno fakeevents);
    $loop->post_fork;
    return;
}

# The loop would make the file non-blocking, which is a matter of the open file, libvirt's as well.
sub _watch {
    my ($self, $file, $read, $write, $code) = @_;
    my $handle = bless $file, 'Sys::Virt::Event::IOAsync::Handle';
    my $ready  = $self->{loop}->isa('IO::Async::Loop::Glib') ? $self->_renewing($handle, $read, $write, $code) : $code;
    $self->{loop}->watch_io(
        handle => $handle, $read ? (on_read_ready => $ready) : (), $write ? (on_write_ready => $ready) : (),
    );
    return $handle;
}

sub _unwatch {
    my ($self, $handle) = @_;
    $self->{loop}->unwatch_io(handle => $handle, on_read_ready => 1, on_write_ready => 1);
    return;
}

# GLib does not call a source in a nested run that is being called, and forgets it if that dies: another takes its place.
sub _renewing {
    my ($self, $handle, $read, $write, $code) = @_;
    Scalar::Util::weaken($self);
    return sub {
        $self->_unwatch($handle);
        $self->_watch($handle, $read, $write, $code);
        $code->();
    };
}

# Not watch_idle for the next iteration: when one of those dies the loop forgets the others of the same iteration. Fired
# timers are those that were due before, so a chain of such timers leaves the files their turn.
sub _timer {
    my ($self, $seconds, $code) = @_;
    return $self->{loop}->watch_time(after => $seconds, code => $code);
}

# The base cancels no timer that has fired.
sub _cancel {
    my ($self, $id) = @_;
    $self->{loop}->unwatch_time($id);
    return;
}

sub _iterate { $_[0]{loop}->loop_once; return 1 }

package    # of this file alone
    Sys::Virt::Event::IOAsync::Handle;

our @ISA = ('IO::Handle');

sub blocking { 0 }

1;
