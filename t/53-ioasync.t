# What is particular to Sys::Virt::Event::IOAsync; libvirt's contract is in 53-adapters.t. Each program is a process of
# its own, since libvirt takes one registration in each.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";

use Test::More;
use VirtTest;
use VirtTest::Adapters;
use VirtTest::Programs;

plan skip_all => 'IO::Async is not installed (Debian: libio-async-perl)'
    if VirtTest::Adapters::missing_modules({ modules => ['IO::Async'] });
watchdog(120);

prints 'IO::Async is loaded, and a loop made, when libvirt wants the first watch', <<'PERL', "0 0 0 0 1\n";
use Sys::Virt::Event::IOAsync;
my @made;
sub look { no warnings 'once'; push @made, $INC{'IO/Async/Loop.pm'} && $IO::Async::Loop::ONE_TRUE_LOOP ? 1 : 0 }
look();
my $loop = Sys::Virt::Event::IOAsync->new;
look();
$loop->register;
look();
eval { Sys::Virt::Event::IOAsync->new(lop => 1) };
look();
add_timeout(-1, sub {});
look();
print "@made\n";
PERL

registers_itself('Sys::Virt::Event::IOAsync');

my $run = fresh_perl(<<'PERL', env => { IO_ASYNC_LOOP => 'Select' });
use Sys::Virt::Event;
use Sys::Virt::Event::IOAsync -register;
Sys::Virt::Event::add_handle(0, 1, sub { });
print exists $INC{'IO/Poll.pm'} ? "it is loaded by others\n" : "watched\n";
PERL
is "$run->{stdout}$run->{stderr}", "watched\n", 'IO::Handle need not be loaded';

prints 'exceptions of new', <<'PERL', <<'EXPECTED';
use Sys::Virt::Event::IOAsync;
sub try { my ($code) = @_; print exception_of(\&$code) // "none\n" }
try(sub { Sys::Virt::Event::IOAsync->new(reactor => 1) });
try(sub { Sys::Virt::Event::IOAsync->new('hold_loop') });
try(sub { Sys::Virt::Event::IOAsync->new(loop => 'IO::Async::Loop') });
try(sub { Sys::Virt::Event::IOAsync->new(loop => undef) });
try(sub { Sys::Virt::Event::IOAsync->new(hold_loop => 0) });
require IO::Async;
$IO::Async::VERSION = '0.48';
try(sub { Sys::Virt::Event::IOAsync->new });
PERL
Cannot make Sys::Virt::Event::IOAsync: there is no option reactor at program line 3.
Cannot make Sys::Virt::Event::IOAsync: options are pairs of a name and a value at program line 4.
Cannot make Sys::Virt::Event::IOAsync: the loop is no IO::Async::Loop at program line 5.
none
none
Cannot make Sys::Virt::Event::IOAsync: it needs IO::Async 0.49, and 0.48 is installed at program line 10.
EXPECTED

my $MISSING = "Cannot make Sys::Virt::Event::IOAsync: IO::Async is not installed at program line 4.\n";
prints 'a missing IO::Async', <<'PERL', $MISSING;
use Module::Metadata;
@INC = grep { ref || !-e "$_/IO/Async.pm" } @INC;
require Sys::Virt::Event::IOAsync;
print exception_of { Sys::Virt::Event::IOAsync->new };
PERL

prints 'loop is that of the program, or the one that is given', <<'PERL', "given\nthe program's\n";
use Sys::Virt::Event::IOAsync;
use IO::Async::Loop;
use IO::Async::Loop::Select;
my $magic = IO::Async::Loop->new;
my $other = IO::Async::Loop::Select->new;
my $given = Sys::Virt::Event::IOAsync->new(loop => $other)->register;
my $id = add_timeout(1, sub { print "given\n" if $given->loop == $other; $other->stop });
$other->run;
remove_timeout($id);
Sys::Virt::Event::drain(10);
my $loop = Sys::Virt::Event::IOAsync->new->register;
add_timeout(1, sub { print "the program's\n" if $loop->loop == $magic; $magic->stop });
$magic->run;
PERL

my $EXCEPTIONS = <<'PERL';
use IO::Async::Loop;
use Sys::Virt::Event::IOAsync -register;
my $main = IO::Async::Loop->new;
my $count = 0;
sub run_main {
    my $error = exception_of { $main->run };
    print defined $error ? ref $error ? "object $$error\n" : "text $error" : "stopped\n";
}
my ($reader, $writer) = pipe_pair();
syswrite $writer, 'x';
my $handle = add_handle($reader, 1, sub {
    die bless \(my $number = $count), 'My::Error' if ++$count < 3;
    $main->stop;
});
run_main() for 1 .. 3;
remove_handle($handle);
$count = 0;
my @timers = map { add_timeout($_, sub {
    die "timer\n" if ++$count < 5;
    $main->stop;
}) } 0, 0, 1;
my $deferred = 0;
run_main() for 1 .. 5;
# What the program has put off until the next iteration is not lost by an exception of ours.
$count = 3;
$main->later(sub { $deferred++ }) for 1 .. 3;
run_main() for 1 .. 2;
print "deferred: $deferred\n";
PERL
my $told = "object 1\nobject 2\nstopped\n" . "text timer\n" x 4 . "stopped\ntext timer\nstopped\ndeferred: 3\n";
for my $loop (qw(Select Poll Epoll)) {
    SKIP: {
        skip "IO::Async::Loop::$loop is not installed", 2
            if VirtTest::Adapters::missing_modules({ modules => ["IO::Async::Loop::$loop"] });
        prints "exceptions leave run of $loop, and the watches live on", $EXCEPTIONS, $told,
            env => { IO_ASYNC_LOOP => $loop };
    }
}

SKIP: {
    skip 'IO::Async::Loop::Glib is not installed', 2
        if VirtTest::Adapters::missing_modules({ modules => ['IO::Async::Loop::Glib'] });
    my $told = "handle 1\nhandle 2\ntimer 1\nSys::Virt::Event::Glib\n";
    prints 'with the loop on GLib, they reach the handlers of Glib, since its class does the work', <<'PERL', $told,
use IO::Async::Loop;
use Sys::Virt::Event::IOAsync -register;
my $main = IO::Async::Loop->new;
Glib->install_exception_handler(sub { print $_[0]; 1 });
my ($reader, $writer) = pipe_pair();
syswrite $writer, 'x';
my $count = 0;
my $handle = add_handle($reader, 1, sub { $main->stop if ++$count == 3; die "handle $count\n" if $count < 3 });
$main->run;
remove_handle($handle);
$count = 0;
add_timeout(1, sub { $main->stop if ++$count == 2; die "timer $count\n" if $count < 2 });
$main->run;
print ref registered(), "\n";
PERL
        env => { IO_ASYNC_LOOP => 'Glib' };
}

leaves_flags('Sys::Virt::Event::IOAsync');

prints 'hold_loop makes no difference: run ends when it is told', <<'PERL', "stopped\nstopped\n";
use IO::Async::Loop;
use Sys::Virt::Event::IOAsync;
my $main = IO::Async::Loop->new;
for my $hold (0, 1) {
    Sys::Virt::Event::IOAsync->new(hold_loop => $hold)->register;
    my $id = add_timeout(-1, sub {});
    $main->watch_time(after => 0.05, code => sub { print "stopped\n"; $main->stop });
    $main->run;
    remove_timeout($id);
    Sys::Virt::Event::drain(10);
}
PERL

my $STAGES = "true\nfalse\nfalse\nover\nstopped\ndone\n";
prints 'run_for, run_until and stop inside the run of the program', <<'PERL', $STAGES;
use IO::Async::Loop;
use Sys::Virt::Event::IOAsync -register;
my $loop = registered();
my $main = IO::Async::Loop->new;
my $ticks = 0;
add_timeout(5, sub { $ticks++ });
$main->later(sub {
    print $loop->run_until(sub { $ticks >= 3 }) ? "true\n" : "false\n";
    print $loop->run_until(sub { 0 }, 0.03) ? "true\n" : "false\n";
    print $loop->run_until(sub { 0 }, 0) ? "true\n" : "false\n";
    $loop->run_for(0.02);
    print "over\n";
    $main->watch_time(after => 0.005, code => sub { $loop->stop });
    $loop->run_until(sub { 0 });
    print "stopped\n";
    $main->stop;
});
$main->run;
print "done\n";
PERL

# Poll's own goes on waiting.
for my $loop (qw(Select Poll Epoll Glib)) {
    SKIP: {
        skip "IO::Async::Loop::$loop is not installed", 2
            if VirtTest::Adapters::missing_modules({ modules => ["IO::Async::Loop::$loop"] });
        prints "stop in a handler of %SIG ends run_until, $loop", <<'PERL', "stopped\n0 fds more\n", env => { IO_ASYNC_LOOP => $loop };
use Sys::Virt::Event::IOAsync -register;
use Time::HiRes ();
my $loop = registered();
add_timeout(-1, sub {});
$loop->run_for(0.001);
my $before = () = open_fds();
for (1 .. 3) {
    local $SIG{ALRM} = sub { $loop->stop };
    Time::HiRes::alarm(0.05);
    $loop->run_until(sub { 0 }, 20) and die;
}
print "stopped\n";
$loop->run_for(0.001);
my $after = () = open_fds();
print $after - $before, " fds more\n";
PERL
    }
}

prints "libvirt's timers leave files and timers of the program their turn", <<'PERL', "1 1\n";
use IO::Async::Loop;
use Sys::Virt::Event::IOAsync -register;
my $main = IO::Async::Loop->new;
add_timeout(0, sub { my $end = now() + 0.002; 1 while now() < $end }) for 1, 2;
my ($reader, $writer) = pipe_pair();
syswrite $writer, 'x';
my ($read, $timed) = (0, 0);
$main->watch_io(handle => $reader, on_read_ready => sub {
    sysread $reader, my $byte, 1;
    $read++;
    $main->stop if $timed;
});
$main->watch_time(after => 0.01, code => sub { $timed++; $main->stop if $read });
$main->run;
print "$read $timed\n";
PERL

SKIP: {
    skip 'IO::Async::Loop::Epoll is not installed', 2
        if VirtTest::Adapters::missing_modules({ modules => ['IO::Async::Loop::Epoll'] });
    prints 'a child goes on with an epoll set of its own, the files of the program in it', <<'PERL', "1 1\n1 1\n",
use IO::Async::Loop;
use Sys::Virt::Event::IOAsync -register;
my $main = IO::Async::Loop->new;
my ($reader, $writer) = pipe_pair();
my ($other, $feeder) = pipe_pair();
my ($read, $own) = (0, 0);
sub done { $main->stop if $read && $own }
my $id = add_handle($reader, 1, sub { sysread $reader, my $byte, 1; $read++; done() });
$main->watch_io(handle => $other, on_read_ready => sub { sysread $other, my $byte, 1; $own++; done() });
defined(my $pid = fork) or die "Cannot fork: $!";
if (!$pid) {
    $main->loop_once(0);
    remove_timeout(add_timeout(-1, sub {}));
}
waitpid $pid, 0 if $pid;
syswrite $_, 'x' for $writer, $feeder;
$main->run;
print "$read $own\n";
remove_handle($id);
PERL
        env => { IO_ASYNC_LOOP => 'Epoll' };
}

SKIP: {
    skip 'Sys::Virt is not installed (Debian: libsys-virt-perl)', 2 if !eval { require Sys::Virt };
    open my $in, '<', "$FindBin::Bin/../examples/ioasync.pl" or die "Cannot read: $!\n";
    my $run = fresh_perl(join('', <$in>), switches => ['-w']);
    ticks_then_tells($run->{stdout}, 'the example');
    is "$run->{stderr}$run->{exit}/$run->{signal}/$run->{timed_out}", '0/0/0', '... and ends well';
}

done_testing;
