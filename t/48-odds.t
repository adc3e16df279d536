# Faults that were found late, one case each.
use strict;
use warnings;

use Test::More;
use lib 't/lib';
use VirtTest;
use Sys::Virt::Event qw(:all);
use Sys::Virt::Event::Poll;
use Test::Sys::Virt::EventImpl::CApi;
use VirtTest::Child;

watchdog(60);

# Destructors of global objects, when perl has taken the loop object away already.
for my $call ('drain(1)', 'register(bless {}, "Sys::Virt::Event::Poll")', 'registered()', 'is_idle()') {
    my $r = fresh_perl(<<"EOT");
use Sys::Virt::Event qw(:all); use Sys::Virt::Event::Poll;
{ package Last; our \@ISA = 'Sys::Virt::Event::Poll'; sub DESTROY { Sys::Virt::Event::$call } }
our \$loop = Last->new->register; add_timeout(5, sub { }); exit 3;
EOT
    is "$r->{exit} $r->{signal} $r->{stderr}", '3 0 ', "$call at the end of the program";
}

is_deeply [in_child {
    Sys::Virt::Event::Poll->new->register;
    my $seen = 0;
    local $SIG{__DIE__} = sub { $seen++ };
    no warnings 'redefine';
    local *Sys::Virt::Event::Poll::add_timeout = sub { return };
    my $error = exception_of { add_timeout(1, sub { }) };
    return ($seen, $error =~ s/ at .*//sr);
}], [1, 'Cannot add timeout: Sys::Virt::Event::Poll::add_timeout returned undef'], '$SIG{__DIE__} sees a refusal once';

is_deeply [in_child {
    Sys::Virt::Event::Poll->new->register;
    no warnings 'redefine';
    {
        local *Sys::Virt::Event::Poll::add_timeout = sub { return -1 };
        exception_of { add_timeout(1, sub { }) };
    }
    my $update = exception_of { update_timeout(1, 5) };
    return ($update =~ s/ at .*//sr, add_timeout(1, sub { }));
}], ['Cannot update timeout: no id 1 was ever given out', 1], 'a refused add gives out no id';

my ($called) = in_child {
    my $loop = Sys::Virt::Event::Poll->new->register;
    my ($reader, $writer) = pipe_pair();
    syswrite $writer, 'x';
    my $called = 0;
    open my $limits, '<', '/proc/self/limits' or return -1;
    my ($most) = map { /^Max open files\s+(\d+)/ } <$limits>;
    my $count = $most < 5000 ? $most + 1 : 1500;
    add_handle($reader, HANDLE_READABLE, sub { $called++ }) for 1 .. $count;
    $loop->run_once(0);
    return $called / $count;
};
is $called, 1, 'as many watches of one fd as there can be no fds';

my ($error) = in_child {
    my $loop = Sys::Virt::Event::Poll->new->register;
    my $count = 0;
    add_timeout(0, sub { die 'exception ' . ++$count . "\n" }) for 1 .. 3;
    local $SIG{__WARN__} = sub { die "from the handler: $_[0]" };
    return exception_of { $loop->run_once };
};
is $error, "exception 1\n", 'a warning handler that dies does not hide the first exception of a pass';

my ($parents, $childs) = in_child {
    my $loop = Sys::Virt::Event::Poll->new->register;
    my ($reader, $writer) = pipe_pair();
    my $pid = fork // die "Cannot fork: $!";
    if (!$pid) {
        Test::Sys::Virt::EventImpl::CApi::spawn([add_timeout => 1])->join;
        my $woken = $loop->run_once(5) && @{ [watches()] };
        syswrite $writer, $woken ? 'y' : 'n';
        POSIX::_exit(0);
    }
    sysread $reader, my $answer, 1;
    waitpid $pid, 0;
    return ($loop->run_once(0) ? 'woken' : 'not woken', $answer);
};
is $childs, 'y', "a thread of a child wakes the child's loop";
is $parents, 'not woken', '... and not that of its parent';

# `local` puts another value in place of a token, for a while.
{
    my $run = fresh_perl(<<'EOT', env => { MALLOC_PERTURB_ => 165 });
use strict; use warnings; use lib 't/lib';
use Sys::Virt::Event qw(:all); use VirtTest::Loop;
my $loop = VirtTest::Loop->new->register;
my $id = add_timeout(5, sub { print "runs\n" });
our $token;
*token = $loop->latest->{cb};
for (1 .. 2) {
    local $token;
    print eval { $loop->_run_timeout_callback(1, \$token, \$token); 1 } ? "goes on\n" : $@ =~ s/ at .*//sr . "\n";
}
$loop->dispatch($loop->latest);
remove_timeout($id);
print is_idle() ? "idle\n" : "not idle\n";
EOT
    is "$run->{signal} $run->{stdout}$run->{stderr}", '0 '
        . "Cannot run timeout callback: \$cb is not what add_handle or add_timeout was given\n" x 2 . "runs\nidle\n",
        'local in place of a token';
}

done_testing;
