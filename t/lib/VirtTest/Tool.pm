package VirtTest::Tool;

# script/virt-events, or another program, run as such: what it prints is read line by line while it runs.

use strict;
use warnings;

use Carp qw(croak);
use File::Temp ();
use IO::Select;
use POSIX ();
use Time::HiRes qw(sleep time);
use VirtTest qw(patience);

my @PROGRAM = ($^X, '-w', '-Mblib', 'script/virt-events');

# Options: env, a hash; stdout, a handle to be used in place of a pipe; stderr, likewise; prefix, words before the program;
# program, the words of another one.
sub start {
    my ($class, $arguments, %opt) = @_;
    my ($reader, $writer) = VirtTest::pipe_pair();
    my $errors = File::Temp->new;
    defined(my $pid = fork) or croak "Cannot fork: $!";
    if (!$pid) {
        setpgrp;
        VirtTest::default_signals();
        open STDIN, '<', '/dev/null';
        POSIX::dup2(fileno($opt{stdout} // $writer), 1);
        POSIX::dup2(fileno($opt{stderr} // $errors), 2);
        POSIX::close($_) for 3 .. 255;
        %ENV = (%ENV, %{ $opt{env} || {} });
        my @command = (@{ $opt{prefix} || [] }, @{ $opt{program} || \@PROGRAM }, @$arguments);
        exec { $command[0] } @command or POSIX::_exit(127);
    }
    close $writer;
    return bless { pid => $pid, owner => $$, reader => $reader, errors => $errors, text => '' }, $class;
}

sub pid { return $_[0]{pid} }

# Waits for a line; undef at the end.
sub line {
    my ($self, $seconds) = @_;
    my $end = time + patience($seconds // 15);
    my $line;
    until (($line) = $self->{text} =~ /\A(.*)\n/) {
        return if $self->{has_ended};
        my $left = $end - time;
        croak 'No line has come: ', $self->errors if $left <= 0;
        $self->_read if IO::Select->new($self->{reader})->can_read($left);
    }
    substr $self->{text}, 0, 1 + length $line, '';
    return $line;
}

# Reads what there is now, lets others go on.
sub _read {
    my ($self) = @_;
    my $count = sysread $self->{reader}, $self->{text}, 65536, length $self->{text};
    $self->{has_ended} = 1 if !$count;
    return;
}

# All lines up to its end.
sub lines {
    my ($self, $seconds) = @_;
    my @lines;
    while (defined(my $line = $self->line($seconds))) {
        push @lines, $line;
    }
    return @lines;
}

# What came after the last line.
sub rest { return $_[0]{text} }

sub signal { my ($self, $name) = @_; kill $name => $self->{pid}; return }

sub errors {
    my ($self) = @_;
    open my $in, '<', "$self->{errors}" or croak "Cannot read: $!";
    local $/;
    return scalar(<$in>) // '';
}

# Reads no more. Nobody does.
sub hang_up { my ($self) = @_; close $self->{reader}; return }

# Waits for its end; its exit status, or "signal N".
sub status {
    my ($self, $seconds) = @_;
    return $self->{status} if defined $self->{status};
    my $end = time + patience($seconds // 15);
    my $gone;
    sleep 0.01 until ($gone = waitpid $self->{pid}, POSIX::WNOHANG()) or time > $end;
    croak 'It does not end: ', $self->errors if !$gone;
    return $self->{status} = $? & 127 ? 'signal ' . ($? & 127) : $? >> 8;
}

sub DESTROY {
    my ($self) = @_;
    return if $self->{owner} != $$ || defined $self->{status};
    local ($?, $!, $@);
    kill KILL => -$self->{pid};
    waitpid $self->{pid}, 0;
    return;
}

1;
