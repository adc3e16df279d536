package SideBySide;

# Runs code in several processes at once: scripts that mostly wait, or hang until they are killed, take no longer than
# the slowest. What the code returns (a reference) is the result here, if it dies that is an exception here.

use strict;
use warnings;

use Exporter qw(import);
use POSIX ();
use Storable qw(freeze thaw);
use VirtTest ();

our @EXPORT_OK = qw(side_by_side);

use constant AT_ONCE => 4;

sub start {
    my ($class, $code) = @_;
    my ($reader, $writer) = VirtTest::pipe_pair();
    defined(my $pid = fork) or die "Cannot fork: $!";
    _run($code, $writer) if !$pid;
    return bless { pid => $pid, reader => $reader }, $class;
}

# Nothing of the interpreter that was forked may run at our end: no DESTROY, no END, no flush.
sub _run {
    my ($code, $writer) = @_;
    my $answer;
    eval { $answer = [$code->()]; 1 } or $answer = [undef, "$@"];
    print $writer freeze($answer);
    POSIX::_exit(0);
}

sub result {
    my ($self) = @_;
    my $frozen = do { local $/; readline $self->{reader} };
    local ($?, $!);
    waitpid $self->{pid}, 0;
    my ($result, $error) = @{ thaw($frozen) || [undef, 'The process has ended early'] };
    die $error if defined $error;
    return $result;
}

# The results of all, in order.
sub side_by_side {
    my (@code) = @_;
    my (@running, @results);
    for my $code (@code) {
        push @results, (shift @running)->result if @running == AT_ONCE;
        push @running, __PACKAGE__->start($code);
    }
    return (@results, map { $_->result } @running);
}

1;
