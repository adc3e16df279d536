package OldLoop;

# An event loop as programs have it that were written for the module in Sys::Virt: select, ids of its own, free
# functions called inside remove_*. Nothing in it knows which of the two modules it runs on, and nothing may: it stands
# for code that exists.

use strict;
use warnings;

use Sys::Virt::Event;
use Time::HiRes qw(time);

our @ISA = ('Sys::Virt::Event');

# free_later => 1: free functions run at the start of the next run_once, as those programs do that talk to a libvirtd.
sub new {
    my ($class, %opt) = @_;
    my $self = bless {
        next_watch => 1,
        next_timer => 1,
        handles    => [],
        timeouts   => [],
        to_free    => [],
        %opt,
    }, $class;
    $self->register;
    return $self;
}

sub add_handle {
    my ($self, $fd, $events, $cb, $opaque, $ff) = @_;
    my $watch = $self->{next_watch}++;
    push @{ $self->{handles} },
        { watch => $watch, fd => $fd, events => $events, cb => $cb, opaque => $opaque, ff => $ff };
    return $watch;
}

sub update_handle {
    my ($self, $watch, $events) = @_;
    for my $handle (@{ $self->{handles} }) {
        $handle->{events} = $events if $handle->{watch} == $watch;
    }
}

sub remove_handle {
    my ($self, $watch) = @_;
    my @kept;
    for my $handle (@{ $self->{handles} }) {
        if ($handle->{watch} == $watch) {
            $self->free($handle);
        } else {
            push @kept, $handle;
        }
    }
    $self->{handles} = \@kept;
}

sub add_timeout {
    my ($self, $ms, $cb, $opaque, $ff) = @_;
    my $timer = $self->{next_timer}++;
    push @{ $self->{timeouts} },
        { timer => $timer, ms => $ms, last => time, cb => $cb, opaque => $opaque, ff => $ff };
    return $timer;
}

sub update_timeout {
    my ($self, $timer, $ms) = @_;
    for my $timeout (@{ $self->{timeouts} }) {
        next if $timeout->{timer} != $timer;
        $timeout->{ms}   = $ms;
        $timeout->{last} = time;
    }
}

sub remove_timeout {
    my ($self, $timer) = @_;
    my @kept;
    for my $timeout (@{ $self->{timeouts} }) {
        if ($timeout->{timer} == $timer) {
            $self->free($timeout);
        } else {
            push @kept, $timeout;
        }
    }
    $self->{timeouts} = \@kept;
}

sub free {
    my ($self, $record) = @_;
    if ($self->{free_later}) {
        push @{ $self->{to_free} }, $record;
    } else {
        $self->_free_callback_opaque($record->{ff}, $record->{opaque});
    }
}

# Waits for what is due next and dispatches all that is. Returns nothing when there is nothing to wait for.
sub run_once {
    my ($self) = @_;
    while (my $record = shift @{ $self->{to_free} }) {
        $self->_free_callback_opaque($record->{ff}, $record->{opaque});
    }

    my ($read, $write, $except) = ('', '', '');
    my $watched = 0;
    for my $handle (@{ $self->{handles} }) {
        next if !$handle->{events};
        $watched++;
        vec($read,   $handle->{fd}, 1) = 1 if $handle->{events} & Sys::Virt::Event::HANDLE_READABLE;
        vec($write,  $handle->{fd}, 1) = 1 if $handle->{events} & Sys::Virt::Event::HANDLE_WRITABLE;
        vec($except, $handle->{fd}, 1) = 1;
    }
    my @due = sort { $a <=> $b } map { $_->{last} + $_->{ms} / 1000 } grep { $_->{ms} >= 0 } @{ $self->{timeouts} };
    return if !$watched && !@due;

    my $wait = @due ? $due[0] - time : undef;
    $wait = 0 if defined $wait && $wait < 0;
    my $ready = select $read, $write, $except, $wait;
    if ($ready > 0) {
        for my $handle (@{ $self->{handles} }) {
            my $events = 0;
            $events |= Sys::Virt::Event::HANDLE_READABLE if vec $read,   $handle->{fd}, 1;
            $events |= Sys::Virt::Event::HANDLE_WRITABLE if vec $write,  $handle->{fd}, 1;
            $events |= Sys::Virt::Event::HANDLE_ERROR    if vec $except, $handle->{fd}, 1;
            $events &= $handle->{events} | Sys::Virt::Event::HANDLE_ERROR;
            next if !$events;
            $self->_run_handle_callback($handle->{watch}, $handle->{fd}, $events, $handle->{cb}, $handle->{opaque});
        }
    }
    my $now = time;
    for my $timeout (@{ $self->{timeouts} }) {
        next if $timeout->{ms} < 0 || $timeout->{last} + $timeout->{ms} / 1000 > $now;
        $timeout->{last} = $now;
        $self->_run_timeout_callback($timeout->{timer}, $timeout->{cb}, $timeout->{opaque});
    }
    return 1;
}

# The same loop, keeping a record of the calls of its six methods: names and arguments in order, where fds and ids are
# numbered as they come up. Each call is also printed to the handle given as `to`. A mask that the loop has already is
# left out: ours does not tell it.
package OldLoop::Traced;

our @ISA = ('OldLoop');

for my $name (qw(add_handle update_handle remove_handle add_timeout update_timeout remove_timeout)) {
    my $is_handle = $name =~ /handle/;
    no strict 'refs';
    *$name = sub {
        my ($self, @args) = @_;
        my $method = OldLoop->can($name);
        if ($name =~ /^add/) {
            my ($fd, $value) = $is_handle ? @args : (undef, @args);
            my $id   = $self->$method(@args);
            $self->{masks}{$id} = $value if $is_handle;
            my $sign = $self->{names}{"$name $id"} = ($is_handle ? 'H' : 'T') . ++$self->{count}{$name};
            $self->note("$name " . (defined $fd ? 'fd ' : '') . "$value -> $sign");
            return $id;
        }
        my ($id, @value) = @args;
        return $self->$method(@args) if $name eq 'update_handle' && $self->{masks}{$id} == $value[0];
        $self->{masks}{$id} = $value[0] if $name eq 'update_handle';
        (my $add = $name) =~ s/^[a-z]+/add/;
        $self->note(join ' ', $name, $self->{names}{"$add $id"} || "unknown $id", @value);
        return $self->$method(@args);
    };
}

sub note {
    my ($self, $line) = @_;
    push @{ $self->{trace} }, $line;
    if ($self->{to}) {
        $self->{to}->print("$line\n");
        $self->{to}->flush;
    }
}

1;
