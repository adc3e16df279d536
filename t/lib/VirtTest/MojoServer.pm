package VirtTest::MojoServer;

# A program of Mojolicious, served. It shares a listening socket that is made here, so that its port is known.

use strict;
use warnings;

use Exporter 'import';
use IO::Socket::INET;
use POSIX ();

our @EXPORT = qw(serve);

# Returns its address and its process.
sub serve {
    my ($program) = @_;
    my $listen = IO::Socket::INET->new(Listen => 5, LocalAddr => '127.0.0.1') or die "Cannot listen: $@";
    defined(my $pid = fork) or die "Cannot fork: $!";
    if (!$pid) {
        POSIX::dup2(fileno $listen, 10);
        open STDOUT, '>', '/dev/null';
        $ENV{MOJO_LOG_LEVEL} = 'fatal';
        exec {$^X} $^X, '-w', map({ "-I$_" } grep { !ref } @INC), $program, 'daemon', '-l', 'http://127.0.0.1?fd=10'
            or POSIX::_exit(127);
    }
    return ('127.0.0.1:' . $listen->sockport, $pid);
}

1;
