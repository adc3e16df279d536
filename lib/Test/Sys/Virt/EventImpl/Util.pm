package Test::Sys::Virt::EventImpl::Util;

# Small functions of the kit. Nothing here loads Sys::Virt or Sys::Virt::Event.

use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

use Carp qw(croak);
use Exporter qw(import);
use IO::Handle;
use Socket qw(AF_UNIX PF_UNSPEC SOCK_STREAM);
use Time::HiRes ();

our @EXPORT    = qw(exception_of now pause pipe_pair socket_pair open_fds thread_count patience default_signals);
our @EXPORT_OK = qw(first_line stacks_of);

# What makes all time limits longer: sanitizers and valgrind slow everything down.
my $slow = $ENV{TEST_SLOW} || 1;
is_factor($slow) or croak "TEST_SLOW is a factor, a number above 0, not $slow";

sub is_factor { return $_[0] =~ /\A(?:\d+\.?\d*|\.\d+)\z/ && $_[0] > 0 }

sub patience { return $_[0] * $slow }

sub set_slow { $slow *= $_[0]; return }

sub now { return Time::HiRes::clock_gettime(Time::HiRes::CLOCK_MONOTONIC()) }

# Not interrupted by signals.
sub pause {
    my ($seconds) = @_;
    my $end = now() + $seconds;
    while ((my $left = $end - now()) > 0) {
        select undef, undef, undef, $left;
    }
    return;
}

# As a new program has them.
sub default_signals {
    delete @SIG{ grep { defined $SIG{$_} } keys %SIG };
    return;
}

# What $code threw, be it an object that is false or an empty string; undef if it came to its end.
sub exception_of(&) {
    my ($code) = @_;
    local $@;
    return eval { $code->(); 1 } ? undef : $@;
}

# Both ends unbuffered; libvirt is given their fds.
sub pipe_pair {
    pipe my $reader, my $writer or croak "Cannot make pipe: $!";
    $_->autoflush for $reader, $writer;
    return ($reader, $writer);
}

sub socket_pair {
    socketpair my $one, my $other, AF_UNIX, SOCK_STREAM, PF_UNSPEC or croak "Cannot make socket pair: $!";
    $_->autoflush for $one, $other;
    return ($one, $other);
}

# Compare a list from before with one from after to prove that nothing leaked.
sub open_fds {
    opendir my $dir, '/proc/self/fd' or croak "Cannot list open files: $!";
    my @fds = grep { /^\d/ } readdir $dir;
    closedir $dir;
    # The directory itself was among them.
    return sort { $a <=> $b } grep { -l "/proc/self/fd/$_" } @fds;
}

sub thread_count {
    my @threads = glob '/proc/self/task/*';
    return scalar @threads;
}

# Where the kernel has each thread of a hung process: futex means a lock, poll means a loop.
sub stacks_of {
    my ($pid) = @_;
    return map {
        sprintf "thread %s (%s) is in %s\n",
            m{(\d+)\z}, first_line("$_/comm"), first_line("$_/wchan") || 'user space'
        }
        glob "/proc/$pid/task/*";
}

# The first line of a file, or ? if there is none.
sub first_line {
    my ($file) = @_;
    open my $in, '<', $file or return '?';
    my $text = do { local $/; <$in> };
    return $text =~ /(.+)/ ? $1 : '?';
}

1;
