package VirtTest;

# Small things that most tests need. Nothing here loads Sys::Virt or Sys::Virt::Event: the order in which those
# two are loaded is itself a thing under test.

use strict;
use warnings;

use Carp qw(croak);
use Exporter qw(import);
use File::Spec;
use IO::Select;
use List::Util qw(sum);
use POSIX ();
use Test::Sys::Virt::EventImpl::Companion ();
use Test::Sys::Virt::EventImpl::Util qw(:DEFAULT first_line);
use Time::HiRes qw(time);

our @EXPORT    = qw(watchdog warnings_of exception_of fresh_perl pipe_pair socket_pair open_fds thread_count);
our @EXPORT_OK = qw(patience has_epoll run_once installed_inc is_asleep_soon text_of write_text);

my $watchdog;

# Kills the test after so many seconds, however stuck it is: in C, under a lock, with SIGALRM handlers of its own.
# Each call starts the time anew, watchdog(0) calls it off.
sub watchdog {
    my ($seconds) = @_;
    undef $watchdog;
    return if !$seconds;
    my ($test, $limit) = ($$, patience($seconds));
    $watchdog = Test::Sys::Virt::EventImpl::Companion->start(sub {
        my ($peer) = @_;
        return if defined Test::Sys::Virt::EventImpl::Companion::order($peer, $limit);
        print STDERR map { "# $_" } "$0: killed, it did not end within $limit s\n",
            Test::Sys::Virt::EventImpl::Util::stacks_of($test);
        kill KILL => $test;
    });
    return;
}

# Whether VirtTest::EpollLoop can be loaded: it needs perl's own translation of a C header, which not every perl has.
sub has_epoll { return $^O eq 'linux' && grep { -e "$_/syscall.ph" } grep { !ref } @INC }

# One pass of any loop, which waits at most so long. An adapter runs until something was called: in an iteration of POE's,
# or AnyEvent's, there may be nothing to see.
sub run_once {
    my ($loop, $seconds) = @_;
    return $loop->run_once($seconds) if $loop->can('run_once');
    my $before = _dispatched();
    $seconds = 0.001 if defined $seconds && $seconds < 0.001;    # it runs not at all for 0
    return $loop->run_until(sub { _dispatched() != $before }, $seconds);
}

sub _dispatched { return sum(0, map { $_->{dispatched} } Sys::Virt::Event::watches()) }

sub text_of {
    my ($file) = @_;
    open my $in, '<', $file or croak "Cannot read $file: $!";
    local $/;
    return scalar(<$in>) // '';
}

# A new file: what is copied from blib cannot be written to.
sub write_text {
    my ($file, $text) = @_;
    unlink $file;
    open my $out, '>', $file or croak "Cannot write $file: $!";
    print $out $text;
    close $out or croak "Cannot write $file: $!";
    return;
}

# Waits until the process sleeps, for longer than a lock takes. False if it has ended.
sub is_asleep_soon {
    my ($pid) = @_;
    for (my $times = 0; $times < 3; pause(0.002)) {
        my ($state) = first_line("/proc/$pid/stat") =~ /\) ([^ZX])/ or return 0;
        $times = $state eq 'S' ? $times + 1 : 0;
    }
    return 1;
}

sub warnings_of(&) {
    my ($code) = @_;
    my @warnings;
    local $SIG{__WARN__} = sub { push @warnings, @_ };
    $code->();
    return @warnings;
}

# Runs $code in a perl of its own, with our @INC, or with `installed => 1` as if this distribution did not exist.
# Other options: timeout (seconds), includes (directories that come first), switches, args (lists for its command
# line), env (hash). The run is over when all processes that hold its stdout and stderr have ended; what is left at the
# timeout is killed.
sub fresh_perl {
    my ($code, %opt) = @_;
    my $limit    = patience($opt{timeout} || 20);
    my @includes = map { "-I$_" } @{ $opt{includes} || [] }, $opt{installed} ? installed_inc() : grep { !ref } @INC;
    my ($out, $to_out) = pipe_pair();
    my ($err, $to_err) = pipe_pair();

    defined(my $pid = fork) or croak "Cannot fork: $!";
    if (!$pid) {
        setpgrp;
        default_signals();
        open STDIN, '<', File::Spec->devnull;
        POSIX::dup2(fileno $to_out, 1);
        POSIX::dup2(fileno $to_err, 2);
        delete $ENV{PERL5LIB};
        %ENV = (%ENV, %{ $opt{env} || {} });
        # Should the test itself be killed before it can kill this process.
        alarm POSIX::ceil($limit) + 5;
        exec {$^X} $^X, @{ $opt{switches} || [] }, @includes, '-e', $code, @{ $opt{args} || [] }
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

# @INC without this distribution. The directory of Sys/Virt.pm goes first, since a copy of this distribution may be
# installed in front of it.
sub installed_inc {
    my %ours = map { File::Spec->rel2abs($_) => 1 } qw(lib blib/lib blib/arch);
    my @inc  = grep { !ref && !$ours{ File::Spec->rel2abs($_) } } @INC;
    return ((grep { -e "$_/Sys/Virt.pm" } @inc), @inc);
}

1;
