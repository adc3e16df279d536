package VirtTest;

# Small things that most tests need. Nothing here loads Sys::Virt or Sys::Virt::Event: the order in which those
# two are loaded is itself a thing under test.

use strict;
use warnings;

use Carp qw(croak);
use Exporter qw(import);
use File::Spec;
use IO::Handle;
use IO::Select;
use POSIX ();
use Socket qw(AF_UNIX PF_UNSPEC SOCK_STREAM);
use Time::HiRes qw(time);

our @EXPORT    = qw(watchdog warnings_of exception_of fresh_perl pipe_pair socket_pair open_fds thread_count);
our @EXPORT_OK = qw(patience first_line);

# Sanitizers and valgrind make everything slower; TEST_SLOW=20 makes all time limits longer by that factor.
sub patience { return $_[0] * ($ENV{TEST_SLOW} || 1) }

my $watchdog;

# Kills the test after so many seconds, however stuck it is: in C, under a lock, with SIGALRM handlers of its own.
# Each call starts the time anew, watchdog(0) calls it off.
sub watchdog {
    my ($seconds) = @_;
    undef $watchdog;
    return if !$seconds;
    require VirtTest::Companion;
    my ($test, $limit) = ($$, patience($seconds));
    $watchdog = VirtTest::Companion->start(sub {
        my ($peer) = @_;
        return if defined VirtTest::Companion::order($peer, $limit);
        print STDERR "# $0: killed, it did not end within $limit s\n", _threads_of($test);
        kill KILL => $test;
    });
    return;
}

# Where the kernel has each thread of a hung process: futex means a lock, poll means a loop.
sub _threads_of {
    my ($pid) = @_;
    return map {
        sprintf "# thread %s (%s) is in %s\n",
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

sub warnings_of(&) {
    my ($code) = @_;
    my @warnings;
    local $SIG{__WARN__} = sub { push @warnings, @_ };
    $code->();
    return @warnings;
}

# What $code threw, be it an object that is false or an empty string; undef if it came to its end.
sub exception_of(&) {
    my ($code) = @_;
    local $@;
    return eval { $code->(); 1 } ? undef : $@;
}

# Runs $code in a perl of its own, with our @INC, or with `installed => 1` as if this distribution did not exist.
# Other options: timeout (seconds), switches, args (lists for its command line), env (hash). The run is over when all
# processes that hold its stdout and stderr have ended; what is left at the timeout is killed.
sub fresh_perl {
    my ($code, %opt) = @_;
    my $limit    = patience($opt{timeout} || 20);
    my @includes = map { "-I$_" } $opt{installed} ? _installed_inc() : grep { !ref } @INC;
    my ($out, $to_out) = pipe_pair();
    my ($err, $to_err) = pipe_pair();

    defined(my $pid = fork) or croak "Cannot fork: $!";
    if (!$pid) {
        setpgrp;
        delete @SIG{ grep { defined $SIG{$_} } keys %SIG };
        open STDIN, '<', File::Spec->devnull;
        POSIX::dup2(fileno $to_out, 1);
        POSIX::dup2(fileno $to_err, 2);
        delete $ENV{PERL5LIB};
        %ENV = (%ENV, %{ $opt{env} || {} });
        # Should the test itself be killed before it can kill this process.
        alarm POSIX::ceil($limit) + 5;
        exec { $^X } $^X, @{ $opt{switches} || [] }, @includes, '-e', $code, @{ $opt{args} || [] }
            or POSIX::_exit(127);
    }

    close $_ for $to_out, $to_err;
    my %text = ($out => '', $err => '');
    my $open = IO::Select->new($out, $err);
    my $end  = time + $limit;
    while ($open->count and (my $left = $end - time) > 0) {
        for my $pipe ($open->can_read($left)) {
            sysread $pipe, $text{$pipe}, 65536, length $text{$pipe} or $open->remove($pipe);
        }
    }
    my $timed_out = $open->count ? 1 : 0;
    kill KILL => -$pid if $timed_out;
    local ($?, $!);
    waitpid $pid, 0;
    return {
        stdout    => $text{$out},
        stderr    => $text{$err},
        exit      => $? >> 8,
        signal    => $? & 127,
        timed_out => $timed_out,
    };
}

# The directory of Sys/Virt.pm goes first, since a copy of this distribution may be installed in front of it.
sub _installed_inc {
    my %ours = map { File::Spec->rel2abs($_) => 1 } qw(lib blib/lib blib/arch);
    my @inc  = grep { !ref && !$ours{ File::Spec->rel2abs($_) } } @INC;
    return ((grep { -e "$_/Sys/Virt.pm" } @inc), @inc);
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

1;
