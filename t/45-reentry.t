# Rule 9: a watch whose callback is on the stack is not dispatched again, and its code outlives its removal.
use strict;
use warnings;

use Test::More;
use lib 't/lib';
use VirtTest;
use Sys::Virt::Event qw(:all);
use VirtTest::Loop;

watchdog(30);

my $loop = VirtTest::Loop->new->register;
my ($deep, @called);

# Each of two watches runs the other and itself.
my (%watch, %id);
for my $name (qw(one two)) {
    $id{$name} = add_timeout(5, sub {
        push @called, $name;
        die "too deep\n" if ++$deep > 5;
        $loop->dispatch($watch{$_}) for qw(one two);
        $deep--;
    });
    $watch{$name} = $loop->latest;
}

my @warnings = warnings_of { $loop->dispatch($watch{one}) };
is_deeply \@called, [qw(one two)], 'each runs once, nested or not';
is @warnings, 2, 'the first refusal of each warns';
like $warnings[0], qr/^Cannot run callback: it is running already .* at \S+Loop\.pm line \d+\.$/, 'and says why';

@called = ();
@warnings = warnings_of { $loop->dispatch($watch{two}) };
is_deeply \@called, [qw(two one)], 'the same the next time';
is_deeply \@warnings, [], '... without a further word';
is_deeply [map { $_->{dispatched} } watches()], [2, 2], 'refusals do not count';

# An exception leaves no watch busy.
my $fatal = add_timeout(5, sub { push @called, 'fatal'; die "for once\n" });
$watch{fatal} = $loop->latest;
for (1, 2) {
    is exception_of { $loop->dispatch($watch{fatal}) }, "for once\n", 'an exception, each time';
}

# Removed while it runs: it is freed once it has returned, and nothing runs it again.
{
    my $freed = 0;
    package Guard { sub DESTROY { $freed++ } }
    my $id;
    my $seen;
    $id = add_timeout(5, do {
        my $held = bless [], 'Guard';
        sub {
            remove_timeout($id);
            $seen = "freed $freed, idle " . (is_idle() ? 1 : 0);
            $loop->dispatch($loop->latest);
            return $held;
        };
    });
    remove_timeout($_) for values %id, $fatal;
    $loop->dispatch($loop->latest);
    is $seen, 'freed 0, idle 0', 'not freed while it runs';
    is $freed, 1, 'freed when it has returned';
    ok is_idle(), 'and nothing is left';
}

done_testing;
