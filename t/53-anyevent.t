# What is particular to Sys::Virt::Event::AnyEvent; libvirt's contract is in 53-adapters.t. Each program is a process of
# its own, since libvirt takes one registration in each.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";

use Test::More;
use VirtTest;
use VirtTest::Adapters;
use VirtTest::Programs qw(registers_itself leaves_flags ticks_then_tells);

plan skip_all => 'AnyEvent is not installed (Debian: libanyevent-perl)'
    if VirtTest::Adapters::missing_modules({ modules => ['AnyEvent'] });
watchdog(120);

# Where nothing is said of it, AnyEvent's own loop.
sub prints {
    my ($name, $code, $expected, $model, %env) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return VirtTest::Programs::prints($name, $code, $expected, env => { %env, PERL_ANYEVENT_MODEL => $model // 'Perl' });
}

sub has { return !VirtTest::Adapters::missing_modules({ modules => [@_] }) }

prints 'AnyEvent chooses a loop when libvirt wants the first watch', <<'PERL', "0- 0- 1- 1- 1AnyEvent::Impl::Perl\n";
use Sys::Virt::Event::AnyEvent;
my @seen;
sub look { no warnings 'once'; push @seen, ($INC{'AnyEvent.pm'} ? 1 : 0) . ($AnyEvent::MODEL // '-') }
my $loop = Sys::Virt::Event::AnyEvent->new;
look();
$loop->register;
look();
require AnyEvent;
look();
eval { Sys::Virt::Event::AnyEvent->new(lop => 1) };
look();
add_timeout(-1, sub {});
$seen[4] = $INC{'AnyEvent.pm'} ? 1 . $loop->loop : 0;
print "@seen\n";
PERL

registers_itself('Sys::Virt::Event::AnyEvent');

prints 'exceptions of new', <<'PERL', <<'EXPECTED';
use Sys::Virt::Event::AnyEvent;
sub try { my ($code) = @_; print exception_of(\&$code) // "none\n" }
try(sub { Sys::Virt::Event::AnyEvent->new(loop => 1) });
try(sub { Sys::Virt::Event::AnyEvent->new('hold_loop') });
try(sub { Sys::Virt::Event::AnyEvent->new(hold_loop => 0) });
require AnyEvent;
$AnyEvent::VERSION = '6.0';
try(sub { Sys::Virt::Event::AnyEvent->new });
PERL
Cannot make Sys::Virt::Event::AnyEvent: there is no option loop at program line 3.
Cannot make Sys::Virt::Event::AnyEvent: options are pairs of a name and a value at program line 4.
none
Cannot make Sys::Virt::Event::AnyEvent: it needs AnyEvent 6.01, and 6.0 is installed at program line 8.
EXPECTED

my $MISSING = "Cannot make Sys::Virt::Event::AnyEvent: AnyEvent is not installed at program line 4.\n";
prints 'a missing AnyEvent', <<'PERL', $MISSING;
use Module::Metadata;
@INC = grep { ref || !-e "$_/AnyEvent.pm" } @INC;
require Sys::Virt::Event::AnyEvent;
print exception_of { Sys::Virt::Event::AnyEvent->new };
PERL

# What each of its loops has underneath, and what of that watches for libvirt.
my $WHERE = <<'PERL';
use Sys::Virt::Event::AnyEvent -register;
my $calls = 0;
require AnyEvent;
my $done = AnyEvent->condvar;
my $id = add_timeout(1, sub { $done->send if ++$calls == 3 });
$done->recv;
my ($adapter) = grep { registered()->isa("Sys::Virt::Event::$_") } qw(EV Glib IOAsync POE AnyEvent::Any);
print AnyEvent::detect(), " $adapter\n";
remove_timeout($id);
PERL
for (['Perl', 'AnyEvent::Any'], ['EV', 'EV', 'EV'], ['Event', 'AnyEvent::Any', 'Event'], ['Glib', 'Glib', 'Glib'],
    ['IOAsync', 'IOAsync', 'IO::Async'], ['POE', 'POE', 'POE']) {
    my ($model, $adapter, @modules) = @$_;
    SKIP: {
        skip "@modules is not installed", 2 if !has(@modules);
        prints "a condition variable of $model", $WHERE, "AnyEvent::Impl::$model $adapter\n", $model;
    }
}

SKIP: {
    skip 'EV is not installed', 4 if !has('EV');
    prints 'a loop that the program loads later is found', <<'PERL', "AnyEvent::Impl::EV Sys::Virt::Event::EV 3\n";
BEGIN { delete @ENV{qw(PERL_ANYEVENT_MODEL AE_MODEL)} }
use Sys::Virt::Event::AnyEvent -register;
my $ticks = 0;
require EV;
add_timeout(1, sub { EV::break() if ++$ticks == 3 });
EV::run();
print AnyEvent::detect(), ' ', ref registered(), " $ticks\n";
PERL
    prints 'an object of a subclass keeps its methods in EV', <<'PERL', "asked for 1 ms\nasked for -1 ms\n", 'EV';
package My::Loop;
use Sys::Virt::Event::AnyEvent;
our @ISA = ('Sys::Virt::Event::AnyEvent');
sub add_timeout {
    my ($self, $ms, @rest) = @_;
    print "asked for $ms ms\n";
    return $self->SUPER::add_timeout($ms, @rest);
}
package main;
my $loop = My::Loop->new->register;
my $ticks = 0;
Sys::Virt::Event::add_timeout($_, sub { $ticks++ }) for 1, -1;
$loop->run_until(sub { $ticks >= 3 });
PERL
}

SKIP: {
    skip 'IO::Async is not installed', 2 if !has('IO::Async');
    prints 'the loop that AnyEvent was told to use in IO::Async', <<'PERL', "that one\n", 'IOAsync';
use AnyEvent;
use IO::Async::Loop::Select;
use Sys::Virt::Event::AnyEvent -register;
AnyEvent::detect();
my $loop = IO::Async::Loop::Select->new;
AnyEvent::Impl::IOAsync::set_loop($loop);
add_timeout(1, sub { print "that one\n" if registered()->loop == $loop; $loop->stop });
$loop->run;
PERL
}

my $EXCEPTIONS = <<'PERL';
use AnyEvent;
use Sys::Virt::Event::AnyEvent -register;
my ($done, $count);
sub wait_for_it {
    $done = AnyEvent->condvar;
    my $error = exception_of { $done->recv };
    print defined $error ? ref $error ? "object $$error\n" : "text $error" : "done\n";
}
my ($reader, $writer) = pipe_pair();
syswrite $writer, 'x';
my $handle = add_handle($reader, 1, sub {
    die bless \(my $number = $count), 'My::Error' if ++$count < 3;
    $done->send;
});
PERL
prints "exceptions leave recv in AnyEvent's own loop, and the watches live on", $EXCEPTIONS . <<'PERL',
wait_for_it() for 1 .. 3;
remove_handle($handle);
$count = 0;
add_timeout($_, sub { die "timer\n" if ++$count < 5; $done->send }) for 0, 0, 1;
wait_for_it() for 1 .. 5;
PERL
    join '', "object 1\n", "object 2\n", "done\n", ("text timer\n") x 4, "done\n";

# The handler is due when the callback has returned, amid Event's C code. That has perl 5.40 make a warning of what the
# handler throws, even later.
SKIP: {
    skip 'Event is not installed', 2 if !has('Event');
    my $told = $] < 5.038 ? qr/\Adies\ndies\ndone\n\z/
        : qr/\A(?:(?:warning: \t\(in cleanup\) dies\n){2}(?:done\n){3}|dies\ndies\ndone\n)\z/;
    prints 'a signal handler that dies in run_until leaves Event in order', <<'PERL', $told, 'Event';
package Signalled;
use parent 'Sys::Virt::Event::AnyEvent';
sub _run_timeout_callback { my ($loop, @args) = @_; $loop->SUPER::_run_timeout_callback(@args); kill USR1 => $$ }
package main;
my $loop = Signalled->new->register;
my $calls = 0;
$SIG{USR1} = sub { die "dies\n" if $calls < 3 };
add_timeout(1, sub { $calls++ });
for (1 .. 3) { print +(exception_of { $loop->run_until(sub { $calls == 3 }) }) // "done\n" }
PERL
}

SKIP: {
    skip 'Event is not installed', 2 if !has('Event');
    my $logged = "logged\nlogged\ndone\ntimer\ndone\n";
    prints 'a loop that would end a watch has them logged', $EXCEPTIONS . <<'PERL', $logged,
$SIG{__WARN__} = sub { print $_[0] =~ /My::Error=/ ? "logged\n" : $_[0] =~ / (timer)$/m ? "$1\n" : "warning: $_[0]" };
wait_for_it();
remove_handle($handle);
$count = 0;
add_timeout(0, sub { die "timer\n" if ++$count < 2; $done->send });
wait_for_it();
PERL
        'Event';
}

for (['Perl', 'AnyEvent'], ['IOAsync', 'IO::Async'], ['POE', 'POE']) {
    my ($model, $module) = @$_;
    SKIP: {
        skip "$module is not installed", 2 if !has($module);
        leaves_flags('Sys::Virt::Event::AnyEvent', env => { PERL_ANYEVENT_MODEL => $model });
    }
}

prints 'hold_loop makes no difference: a condition variable waits', <<'PERL', "sent\nsent\n";
use AnyEvent;
use Sys::Virt::Event::AnyEvent;
for my $hold (0, 1) {
    Sys::Virt::Event::AnyEvent->new(hold_loop => $hold)->register;
    my $id = add_timeout(-1, sub {});
    my $done = AnyEvent->condvar;
    my $timer = AnyEvent->timer(after => 0.05, cb => sub { print "sent\n"; $done->send });
    $done->recv;
    remove_timeout($id);
    Sys::Virt::Event::drain(10);
}
PERL

# A callback cannot wait for a condition variable while the program does.
prints 'run_for, run_until and stop while the program waits', <<'PERL', "true\nfalse\nfalse\nover\nstopped\ndone\n",
use AnyEvent;
use Sys::Virt::Event::AnyEvent -register;
my $loop = registered();
my $done = AnyEvent->condvar;
my $ticks = 0;
add_timeout(5, sub { $ticks++ });
AnyEvent::postpone {
    print $loop->run_until(sub { $ticks >= 3 }) ? "true\n" : "false\n";
    print $loop->run_until(sub { 0 }, 0.03) ? "true\n" : "false\n";
    print $loop->run_until(sub { 0 }, 0) ? "true\n" : "false\n";
    $loop->run_for(0.02);
    print "over\n";
    my $timer = AnyEvent->timer(after => 0.005, cb => sub { $loop->stop });
    $loop->run_until(sub { 0 });
    print "stopped\n";
    $done->send;
};
$done->recv;
print "done\n";
PERL
    'Perl', PERL_ANYEVENT_STRICT => 1;

prints "timers of 0 ms leave the files and timers of the program their turn, and one another", <<'PERL', "1 1 yes\n";
use AnyEvent;
use Sys::Virt::Event::AnyEvent -register;
my $done = AnyEvent->condvar;
my @calls = (0, 0);
add_timeout(0, sub { my $end = now() + 0.002; 1 while now() < $end; $calls[0]++ });
add_timeout(0, sub { my $end = now() + 0.002; 1 while now() < $end; $calls[1]++ });
my ($reader, $writer) = pipe_pair();
syswrite $writer, 'x';
my ($read, $timed) = (0, 0);
my $io = AnyEvent->io(fh => $reader, poll => 'r', cb => sub {
    sysread $reader, my $byte, 1;
    $read++;
    $done->send if $timed;
});
my $timer = AnyEvent->timer(after => 0.01, cb => sub { $timed++; $done->send if $read });
$done->recv;
print "$read $timed ", (abs($calls[0] - $calls[1]) < 2 ? 'yes' : 'no'), "\n";
PERL

prints 'they take no file descriptor when they are off', <<'PERL', "same\n";
use AnyEvent;
use Sys::Virt::Event::AnyEvent -register;
my $calls = 0;
my $id = add_timeout(-1, sub { $calls++ });
my @before = open_fds();
update_timeout($id, 0);
registered()->run_until(sub { $calls >= 3 }, 10);
update_timeout($id, -1);
registered()->run_for(0.01);
print "@before" eq join(' ', open_fds()) ? "same\n" : "more\n";
PERL

SKIP: {
    skip 'Sys::Virt is not installed (Debian: libsys-virt-perl)', 4 if !eval { require Sys::Virt };
    open my $in, '<', "$FindBin::Bin/../examples/anyevent.pl" or die "Cannot read: $!\n";
    my $example = join '', <$in>;
    for my $model ('Perl', has('EV') ? 'EV' : ()) {
        my $run = fresh_perl($example, switches => ['-w'], env => { PERL_ANYEVENT_MODEL => $model });
        ticks_then_tells($run->{stdout}, "the example, on $model");
        is "$run->{stderr}$run->{exit}/$run->{signal}/$run->{timed_out}", '0/0/0', '... and ends well';
    }
}

done_testing;
