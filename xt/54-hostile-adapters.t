# What is hostile to a loop, on all adapters: signals, nested runs, the end of the program, daemons, forks. The rest of
# that is in the kit.
use strict;
use warnings;

use lib 'xt/lib', 't/lib';

use AuthorTest;
use Cwd qw(getcwd);
use Test::More;
use VirtTest::Adapters;

# A loop on epoll needs an fd of its own in a child, so one without fds is left to others.
# libev's poll sees a closed fd.
my %env = (
    LIBEV_FLAGS => 2, PERL_ANYEVENT_MODEL => 'Perl', IO_ASYNC_LOOP => 'Poll', MOJO_REACTOR => 'Mojo::Reactor::Poll',
);

my @ways = (
    { name => 'EV in Perl', class => 'VirtTest::EVInPerl', modules => ['EV'] },
    { name => 'Glib with a context of its own', class => 'VirtTest::GlibContext', modules => ['Glib'] },
);

for my $adapter (adapters(), @ways) {
    my @missing = missing_modules($adapter);
    is "@missing", '', "$adapter->{name}: nothing is missing" or next;
    my @tests = map { "t/$_.t" } qw(41-signals 44-nested 64-end 66-hostile-daemon 67-fork);
    tests_pass(getcwd(), [], \@tests, limit => 300, env => { %env, TEST_LOOPS => $adapter->{class} });
}

done_testing;
