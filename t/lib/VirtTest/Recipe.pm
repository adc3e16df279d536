package VirtTest::Recipe;

# For the tests of the manual's programs (t/83-blocks.t): runs one beside the test.

use strict;
use warnings;

use Exporter qw(import);
use IO::Handle;
use IPC::Open2 qw(open2);

our @EXPORT = qw(start_program);

sub start_program {
    my ($file, @args) = @_;
    my $pid = open2(my $out, my $in, $^X, '-w', (map { "-I$_" } grep { !ref } @INC), $file, @args);
    $in->autoflush;
    return bless { pid => $pid, out => $out, in => $in, starter => $$ }, __PACKAGE__;
}

sub press_enter { my ($self) = @_; print { $self->{in} } "\n"; return }

# The next line, or what it is that did not come.
sub line { my ($self) = @_; return readline($self->{out}) // "the program has ended\n" }

# Reads on to the first such line, and returns it.
sub line_with {
    my ($self, $pattern) = @_;
    while (1) {
        my $line = readline $self->{out};
        return "no line with $pattern\n" if !defined $line;
        return $line if $line =~ $pattern;
    }
}

sub signal { my ($self, $signal) = @_; kill $signal => $self->{pid}; return }

# All that is left, and how it ended.
sub rest {
    my ($self) = @_;
    my @lines = readline $self->{out};
    waitpid delete $self->{pid}, 0;
    return @lines, 'exit status ', $? >> 8, ', signal ', $? & 127, "\n";
}

sub DESTROY {
    my ($self) = @_;
    return if !$self->{pid} || $self->{starter} != $$;
    local ($?, $!, $@);
    kill KILL => $self->{pid};
    waitpid $self->{pid}, 0;
    return;
}

1;
