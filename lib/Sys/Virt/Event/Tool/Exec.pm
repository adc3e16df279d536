package Sys::Virt::Event::Tool::Exec;
use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

use IO::Handle ();
use POSIX ();
use Sys::Virt::Event ();
use Sys::Virt::Event::Connection::Probe ();

# Runs a command for one text after the other, each with the text on its standard input, from within an event loop.

# complain: called with a text when a run fails.
sub new {
    my ($class, $command, %opt) = @_;
    pipe my $reader, my $writer or die "Cannot make a pipe: $!\n";
    $_->blocking(0) for $reader, $writer;
    my $self = bless { %opt, command => $command, queue => [] }, $class;
    $SIG{CHLD} = sub { local $!; syswrite $writer, '.' };
    $self->{watch} = Sys::Virt::Event::add_handle($reader, Sys::Virt::Event::HANDLE_READABLE(), sub {
        sysread $reader, my $bytes, 4096;
        $self->_reap;
    });
    $self->{reader} = $reader;
    return $self;
}

sub run {
    my ($self, $text) = @_;
    push @{ $self->{queue} }, $text;
    $self->_next;
    return;
}

sub is_idle { my ($self) = @_; return !$self->{pid} && !@{ $self->{queue} } }

# Leaves what waits, and ends what runs.
sub cancel {
    my ($self) = @_;
    $self->{queue} = [];
    kill TERM => -$self->{pid} if $self->{pid};
    return;
}

sub _next {
    my ($self) = @_;
    until ($self->{pid} || !@{ $self->{queue} }) {
        my $text = shift @{ $self->{queue} };
        $self->{pid} = eval { $self->_start($text) };
        $self->{complain}->($@) if !$self->{pid};
    }
    return;
}

# A file takes any text without waiting for its reader. A process group of its own, or Ctrl-C at the terminal would be
# for the command, too, and there would be no finishing it.
sub _start {
    my ($self, $text) = @_;
    open my $input, '+>', undef or die "Cannot make a temporary file: $!\n";
    $input->autoflush;
    print $input $text or die "Cannot write to a temporary file: $!\n";
    seek $input, 0, 0;
    my $pid = Sys::Virt::Event::Connection::Probe::fork_without_handlers() // die "Cannot run $self->{command}: $!\n";
    return $pid if $pid;
    POSIX::setpgid(0, 0);
    POSIX::dup2(fileno $input, 0);
    no warnings 'exec';
    exec {'/bin/sh'} 'sh', '-c', $self->{command} or POSIX::_exit(127);
}

sub _reap {
    my ($self) = @_;
    my $pid = $self->{pid} or return;
    local $?;
    return if waitpid($pid, POSIX::WNOHANG()) != $pid;
    my ($status, $signal) = ($? >> 8, $? & 127);
    delete $self->{pid};
    $self->{complain}->("$self->{command}: " . ($signal ? "killed by signal $signal" : "exit status $status")) if $?;
    $self->_next;
    return;
}

1;
