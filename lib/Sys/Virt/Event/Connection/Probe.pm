package Sys::Virt::Event::Connection::Probe;
use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

use Carp ();
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
my ($flags, $uri) = @ARGV;
my $conn = eval { Sys::Virt->new(uri => $uri, flags => $flags) };
my ($code, $text) = $conn ? (0, '') : ref $@ ? ($@->code, $@->message) : (-1, "$@");
syswrite STDOUT, "$code $text";
POSIX::_exit(0);
PERL

# A server that asks who we are has answered.
my @ASKS = (
    Sys::Virt::Error::ERR_AUTH_FAILED(), Sys::Virt::Error::ERR_AUTH_CANCELLED(), Sys::Virt::Error::ERR_AUTH_UNAVAILABLE(),
);

sub CLONE_SKIP { 1 }

# uri, flags; seconds: how long it may take; auth: whether somebody here can say who we are.
sub start {
    my ($class, %opt) = @_;
    pipe my $reader, my $writer or Carp::croak("Cannot make a pipe: $!");
    my @program = ((map { "-I$_" } grep { !ref } @INC), '-e', $PROGRAM, $opt{flags}, defined $opt{uri} ? $opt{uri} : ());
    defined(my $pid = fork) or Carp::croak("Cannot fork: $!");
    if (!$pid) {
        POSIX::setsid();
        CORE::open STDIN, '<', File::Spec->devnull;
        POSIX::dup2(fileno $writer, 1);
        no warnings 'exec';
        exec {$^X} $^X, @program or POSIX::_exit(127);
    }
    return bless {
        pid => $pid, process => $$, reader => $reader, end => Time::HiRes::time() + $opt{seconds},
        seconds => $opt{seconds}, auth => $opt{auth}, text => '', watches => [],
    }, $class;
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
            Sys::Virt::Event::HANDLE_READABLE(), sub { $conclude->() if $self->_reads_end })];
    return;
}

# The same at once, without the event loop.
sub result {
    my ($self) = @_;
    while ((my $left = $self->{end} - Time::HiRes::time()) > 0) {
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
    my ($code, $text) = $self->{text} =~ /\A(-?\d+) (.*)\z/s or return 'the process that tried it has ended without an answer';
    return if !$code || $self->{auth} && grep { $_ == $code } @ASKS;
    return $text =~ s/\s+\z//r;
}

# Ends it if it has not, and leaves nothing of it.
sub cancel {
    my ($self) = @_;
    my $pid = delete $self->{pid};
    return if !$pid || $self->{process} != $$;
    local ($@, $!, $?);
    for my $watch (splice @{ $self->{watches} }) {
        my ($remove, $id) = @$watch;
        eval { $remove->($id) };
    }
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

=head2 start(%options)

Starts the process. C<uri> and C<flags> are Sys::Virt's, C<seconds> is how long it may take, C<auth> is true if a server that
wants to know who we are has passed.

=head2 watch($code)

Calls the code once, from the loop: with undef, or with the reason why the connection cannot be opened.

=head2 result()

Waits for the process, and returns the same.

=head2 cancel()

Ends the process, and all it has started.

=head1 AUTHOR AND LICENSE

The Sys-Virt-Event developers. This program is free software; you can redistribute it and/or modify it under the same
terms as Perl itself.

=cut
