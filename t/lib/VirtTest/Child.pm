package VirtTest::Child;

# libvirt takes one registration per process, so a test with several of them makes a process for each.

use strict;
use warnings;

use Carp qw(croak);
use Exporter qw(import);
use POSIX ();
use Storable ();
use VirtTest qw(patience);

our @EXPORT = qw(in_child);

# Runs $code in a child and returns the list that it returned, which must be plain data. The child goes without
# DESTROY and END, so fork before anything is registered or opened. Dies if the child died.
sub in_child(&) {
    my ($code) = @_;
    my ($reader, $writer) = VirtTest::pipe_pair();
    defined(my $pid = fork) or croak "Cannot fork: $!";
    if (!$pid) {
        # A handler in Perl would wait for C to return.
        $SIG{ALRM} = 'DEFAULT';
        alarm POSIX::ceil(patience($ENV{CHILD_LIMIT} || 20));
        my @result;
        my $died = eval { @result = $code->(); 1 } ? undef : "$@";
        binmode $writer;
        print $writer Storable::freeze([$died, @result]);
        close $writer;
        POSIX::_exit(0);
    }
    close $writer;
    binmode $reader;
    my $frozen = do { local $/; readline $reader };
    local $?;
    waitpid $pid, 0;
    croak sprintf 'Child ended with signal %d, exit code %d', $? & 127, $? >> 8 if $? || !length $frozen;
    my ($died, @result) = @{ Storable::thaw($frozen) };
    croak "Child died: $died" if defined $died;
    return @result;
}

1;
