# What is hostile to a loop, on all adapters: forks, and the end of the program. The rest of that is in the kit.
use strict;
use warnings;

use lib 'xt/lib', 't/lib';

use AuthorTest;
use Cwd qw(getcwd);
use Test::More;
use VirtTest::Adapters;

# A loop on epoll needs an fd of its own in a child, so one without fds is left to others.
my %env = (PERL_ANYEVENT_MODEL => 'Perl', IO_ASYNC_LOOP => 'Poll', MOJO_REACTOR => 'Mojo::Reactor::Poll');

for my $adapter (adapters(), { name => 'EV in Perl', class => 'VirtTest::EVInPerl', modules => ['EV'] }) {
    my @missing = missing_modules($adapter);
    is "@missing", '', "$adapter->{name}: nothing is missing" or next;
    my %loops = (TEST_LOOPS => $adapter->{class});
    tests_pass(getcwd(), [], ['t/64-end.t', 't/67-fork.t'], limit => 300, env => { %env, %loops });
}

done_testing;
