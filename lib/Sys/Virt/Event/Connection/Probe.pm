package Sys::Virt::Event::Connection::Probe;
use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

use File::Spec ();
use POSIX ();
use Sys::Virt ();
use Sys::Virt::Event ();
use Time::HiRes ();

# A process that opens a connection, says how that went, and ends. It is in a session of its own, with what it starts
# (ssh), so that all of it can be killed; nothing in it can ask on a terminal.

my $PROGRAM = <<'PERL';
use strict;
use warnings;
use POSIX ();
use Sys::Virt;
my ($seconds, $flags, $uri) = @ARGV;
$SIG{ALRM} = 'DEFAULT';
alarm $seconds;
my $conn = eval { Sys::Virt->new(uri => $uri, flags => $flags) };
my ($code, $text) = $conn ? (0, '') : ref $@ ? ($@->code, $@->message) : (-1, "$@");
binmode STDOUT;
syswrite STDOUT, "$code $text";
POSIX::_exit(0);
PERL

# A server that asks who we are has answered.
my @ASKS = (
    Sys::Virt::Error::ERR_AUTH_FAILED(), Sys::Virt::Error::ERR_AUTH_CANCELLED(),
    Sys::Virt::Error::ERR_AUTH_UNAVAILABLE(),
);

sub CLONE_SKIP { 1 }

# Of a clock that nobody sets.
sub now { return Time::HiRes::clock_gettime(Time::HiRes::CLOCK_MONOTONIC()) }

# uri, flags; seconds: how long it may take; auth: whether somebody here can say who we are. Returns undef and the
# reason where there can be no process.
sub start {
    my ($class, %opt) = @_;
    pipe my $reader, my $writer or return (undef, "Cannot make a pipe: $!");
    my $pid = fork_without_handlers() // return (undef, "Cannot fork: $!");
    if (!$pid) {
        # Whatever goes wrong here, this process does not go on with the program.
        eval { _become($writer, \%opt) };
        syswrite $writer, '-1 ' . ($@ || "Cannot run $^X: $!");
        POSIX::_exit(127);
    }
    # Perl leaves the first three descriptors open when their handles go.
    POSIX::close(fileno $writer) if fileno $writer < 3;
    return bless {
        pid => $pid, process => $$, reader => $reader, end => now() + $opt{seconds},
        seconds => $opt{seconds}, auth => $opt{auth}, text => '', watches => [],
    }, $class;
}

# A signal that comes before exec is not for the program's handlers.
sub fork_without_handlers {
    my ($all, $before) = map { POSIX::SigSet->new } 1 .. 2;
    $all->fillset;
    POSIX::sigprocmask(POSIX::SIG_BLOCK(), $all, $before);
    my $pid = fork;
    my $error = $!;
    if (defined $pid && !$pid) {
        $SIG{$_} = 'DEFAULT' for grep { defined $SIG{$_} && $SIG{$_} ne 'IGNORE' } keys %SIG;
    }
    POSIX::sigprocmask(POSIX::SIG_SETMASK(), $before);
    $! = $error;
    return $pid;
}

# Does not return, unless it fails. That perl and its libraries are where they are is nothing that a user has said.
sub _become {
    my ($output, $opt) = @_;
    POSIX::setsid();
    POSIX::dup2(fileno $output, 1);
    POSIX::dup2(POSIX::open(File::Spec->devnull, POSIX::O_RDONLY()), 0);
    my ($perl, @inc) = map { /(.*)/s } $^X, grep { !ref && length } @INC;
    my @arguments = (POSIX::ceil($opt->{seconds}) + 1, $opt->{flags}, defined $opt->{uri} ? $opt->{uri} : ());
    no warnings 'exec';
    exec {$perl} $perl, (map { "-I$_" } @inc), '-e', $PROGRAM, @arguments;
}

# Calls the code from the event loop, once, with the reason why it cannot be opened, or undef.
sub watch {
    my ($self, $code) = @_;
    my $conclude = sub {
        my $error = $self->_error;
        $self->cancel;
        $code->($error);
    };
    my $ms = POSIX::ceil(1000 * $self->{seconds});
    push @{ $self->{watches} },
        [\&Sys::Virt::Event::remove_timeout, Sys::Virt::Event::add_timeout($ms, $conclude)],
        [\&Sys::Virt::Event::remove_handle, Sys::Virt::Event::add_handle($self->{reader},
            Sys::Virt::Event::HANDLE_READABLE(), sub { $conclude->() if !$self->is_ours || $self->_reads_end })];
    return;
}

# A child has it from its parent, and leaves the answer to that.
sub is_ours { my ($self) = @_; return $self->{process} == $$ }

# The same at once, without the event loop.
sub result {
    my ($self) = @_;
    while ((my $left = $self->{end} - now()) > 0) {
        my $ready = '';
        vec($ready, fileno $self->{reader}, 1) = 1;
        last if select($ready, undef, undef, $left) > 0 && $self->_reads_end;
    }
    my $error = $self->_error;
    $self->cancel;
    return $error;
}

sub _reads_end {
    my ($self) = @_;
    my $count = sysread $self->{reader}, $self->{text}, 65536, length $self->{text};
    return $self->{has_ended} = defined $count ? !$count : !$!{EINTR};
}

sub _error {
    my ($self) = @_;
    return "no answer within $self->{seconds} s" if !$self->{has_ended};
    my ($code, $text) = $self->{text} =~ /\A(-?\d+) (.*)\z/s
        or return 'the process that tried it has ended without an answer';
    return if !$code || $self->{auth} && grep { $_ == $code } @ASKS;
    $text =~ s/\s+\z//;
    utf8::decode($text);
    return $text;
}

# Ends it if it has not, and leaves nothing of it.
sub cancel {
    my ($self) = @_;
    local ($@, $!, $?);
    for my $watch (splice @{ $self->{watches} }) {
        my ($remove, $id) = @$watch;
        eval { $remove->($id) };
    }
    my $pid = delete $self->{pid};
    return if !$pid || !$self->is_ours;
    kill KILL => -$pid, $pid if !$self->{has_ended};
    waitpid $pid, 0;
    return;
}

sub DESTROY { $_[0]->cancel }

1;

__END__

=encoding UTF-8

=head1 NAME

Sys::Virt::Event::Connection::Probe - tries a libvirt connection in a process of its own

=head1 DESCRIPTION

For L<Sys::Virt::Event::Connection>, which documents what it does under C<connect_timeout>. It is not for other use.

=head1 METHODS

=head2 fork_without_handlers()

A function: C<fork>, but that no handler in C<%SIG> runs in the child, however early a signal comes.

=head2 now()

A function: seconds of a clock that nobody sets.

=head2 start(%options)

Starts the process. C<uri> and C<flags> are Sys::Virt's, C<seconds> is how long it may take, C<auth> is true if a
server that wants to know who we are has passed. Where that cannot be done, it returns undef and the reason.

=head2 watch($code)

Calls the code once, from the loop: with undef, or with the reason why the connection cannot be opened. In a child
process there is no answer: what the code gets means nothing.

=head2 is_ours()

False in a child of the process that has started it.

=head2 result()

Waits for the process, and returns the same.

=head2 cancel()

Ends the process. If it has not answered yet, all that it has started is ended, too. In a child process only what is
registered with the loop goes.

=head1 AUTHOR AND LICENSE

The Sys-Virt-Event developers. This program is free software; you can redistribute it and/or modify it under the same
terms as Perl itself.

=cut
