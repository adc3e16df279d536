# What is particular to Sys::Virt::Event::Glib; libvirt's contract is in 53-adapters.t. Each program is a process of its
# own, since libvirt takes one registration in each.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";

use Test::More;
use VirtTest;
use VirtTest::Adapters;
use VirtTest::Programs;

my $ADAPTER = 'Sys::Virt::Event::Glib';
plan skip_all => 'Glib is not installed (Debian: libglib-perl)'
    if VirtTest::Adapters::missing_modules({ modules => ['Glib'] });
watchdog(120);

prints 'Glib is loaded when libvirt wants the first watch', <<'PERL', "0 0 0 0 1\n";
use Sys::Virt::Event::Glib;
my @loaded = $INC{'Glib.pm'} ? 1 : 0;
my $loop = Sys::Virt::Event::Glib->new;
push @loaded, $INC{'Glib.pm'} ? 1 : 0;
$loop->register;
push @loaded, $INC{'Glib.pm'} ? 1 : 0;
eval { Sys::Virt::Event::Glib->new(lop => 1) };
push @loaded, $INC{'Glib.pm'} ? 1 : 0;
add_timeout(-1, sub {});
push @loaded, $INC{'Glib.pm'} ? 1 : 0;
print "@loaded\n";
PERL

registers_itself('Sys::Virt::Event::Glib');

prints 'exceptions of new', <<'PERL', <<'EXPECTED';
use Sys::Virt::Event::Glib;
sub try { my ($code) = @_; print exception_of(\&$code) // "none\n" }
try(sub { Sys::Virt::Event::Glib->new(loop => 1) });
try(sub { Sys::Virt::Event::Glib->new('hold_loop') });
try(sub { Sys::Virt::Event::Glib->new(context => 'default') });
require Glib;
try(sub { Sys::Virt::Event::Glib->new(context => Glib::MainContext->new) });
try(sub { Sys::Virt::Event::Glib->new(context => undef) });
try(sub { Sys::Virt::Event::Glib->new(context => Glib::MainContext->default, hold_loop => 0) });
$Glib::VERSION = '1.1';
try(sub { Sys::Virt::Event::Glib->new });
PERL
Cannot make Sys::Virt::Event::Glib: there is no option loop at program line 3.
Cannot make Sys::Virt::Event::Glib: options are pairs of a name and a value at program line 4.
Cannot make Sys::Virt::Event::Glib: the context is no Glib::MainContext at program line 5.
Cannot make Sys::Virt::Event::Glib: Glib can watch in its default context only at program line 7.
none
none
Cannot make Sys::Virt::Event::Glib: it needs Glib 1.220, and 1.1 is installed at program line 11.
EXPECTED

prints 'a missing Glib', <<'PERL', "Cannot make Sys::Virt::Event::Glib: Glib is not installed at program line 4.\n";
use Module::Metadata;
@INC = grep { ref || !-e "$_/Glib.pm" } @INC;
require Sys::Virt::Event::Glib;
print exception_of { Sys::Virt::Event::Glib->new };
PERL

prints 'loop is the default context', <<'PERL', "1 1\n";
use Sys::Virt::Event::Glib -register;
use Glib;
my $context = registered()->loop;
print $$context == ${ Glib::MainContext->default }, ' ', $context->isa('Glib::MainContext'), "\n";
PERL

# Handles with several handles on their file descriptor too: nothing of a watch is lost by an exception.
prints 'exceptions reach the handlers of Glib, and the watches live on', <<'PERL', <<'EXPECTED';
use Glib;
use Sys::Virt::Event::Glib -register;
my $main = Glib::MainLoop->new;
my $count = 0;
Glib->install_exception_handler(sub {
    my ($error) = @_;
    print ref $error ? "object $$error\n" : "text $error";
    return 1;
});
my ($reader, $writer) = pipe_pair();
syswrite $writer, 'x';
my $handle = add_handle($reader, 1, sub {
    $main->quit if ++$count == 5;
    die bless \(my $number = $count), 'My::Error' if $count < 4;
});
$main->run;
remove_handle($handle);
$count = 0;
my $timer = add_timeout(1, sub {
    $main->quit if ++$count == 3;
    die "timer $count\n" if $count < 3;
});
$main->run;
PERL
object 1
object 2
object 3
text timer 1
text timer 2
EXPECTED

prints 'without one, the exception is a warning', <<'PERL', qr/\Awarning: .*too bad.*^went on$/ms;
use Glib;
use Sys::Virt::Event::Glib -register;
my $count = 0;
add_timeout(0, sub { die "too bad\n" if !$count++ });
registered()->run_until(sub { $count == 2 }, 10);
print "went on\n";
PERL

prints 'the flags of a file descriptor stay, and it stays open', <<'PERL', "0 2048 1 1\n";
use Fcntl;
use Glib;
use Sys::Virt::Event::Glib -register;
my ($reader, $writer) = pipe_pair();
my ($other_reader, $other) = pipe_pair();
fcntl $other, F_SETFL, fcntl($other, F_GETFL, 0) | O_NONBLOCK;
my $calls = 0;
my @ids = (add_handle($reader, 1, sub { $calls++ }), add_handle($other, 2, sub { $calls++ }));
syswrite $writer, 'x';
registered()->run_until(sub { $calls >= 4 }, 10);
my @flags = map { fcntl($_, F_GETFL, 0) & O_NONBLOCK } $reader, $other;
remove_handle($_) for @ids;
Sys::Virt::Event::drain(10);
print join(' ', @flags, map { fcntl($_, F_GETFD, 0) ? 1 : 0 } $reader, $other), "\n";
PERL

prints 'hold_loop makes no difference: Glib runs until it is told', <<'PERL', "quit\nquit\n";
use Glib;
use Sys::Virt::Event::Glib;
for my $hold (0, 1) {
    Sys::Virt::Event::Glib->new(hold_loop => $hold)->register;
    my $main = Glib::MainLoop->new;
    my $id = add_timeout(-1, sub {});
    Glib::Timeout->add(50, sub { print "quit\n"; $main->quit; 0 });
    $main->run;
    remove_timeout($id);
    Sys::Virt::Event::drain(10);
}
PERL

prints 'run_for, run_until and stop inside the run of the program', <<'PERL', "true\nfalse\nfalse\nover\nstopped\ndone\n";
use Glib;
use Sys::Virt::Event::Glib -register;
my $loop = registered();
my $main = Glib::MainLoop->new;
my $ticks = 0;
add_timeout(5, sub { $ticks++ });
Glib::Idle->add(sub {
    print $loop->run_until(sub { $ticks >= 3 }) ? "true\n" : "false\n";
    print $loop->run_until(sub { 0 }, 0.03) ? "true\n" : "false\n";
    print $loop->run_until(sub { 0 }, 0) ? "true\n" : "false\n";
    $loop->run_for(0.02);
    print "over\n";
    Glib::Timeout->add(5, sub { $loop->stop; 0 });
    $loop->run_until(sub { 0 });
    print "stopped\n";
    $main->quit;
    return 0;
});
$main->run;
print "done\n";
PERL

# The source that is being called is out of its context for that time.
prints 'a callback that runs a main loop holds up no other handle of its file descriptor', <<'PERL', "inner\nouter\n";
use Glib;
use Sys::Virt::Event::Glib -register;
my ($reader, $writer) = pipe_pair();
syswrite $writer, 'x';
my ($outer, $inner) = (Glib::MainLoop->new, Glib::MainLoop->new);
my $is_inside;
add_handle($reader, 1, sub {
    $is_inside = 1;
    $inner->run;
    print "outer\n";
    remove_handle($_[0]);
    $outer->quit;
});
add_handle($reader, 1, sub {
    return if !$is_inside;
    print "inner\n";
    remove_handle($_[0]);
    $inner->quit;
});
$outer->run;
PERL

prints 'what runs on Glib: AnyEvent', <<'PERL', "AnyEvent::Impl::Glib 3\n" if !VirtTest::Adapters::missing_modules({ modules => ['AnyEvent'] });
use Glib;
use AnyEvent;
use Sys::Virt::Event::Glib -register;
my ($done, $ticks) = (AnyEvent->condvar, 0);
add_timeout(2, sub { $done->send if ++$ticks == 3 });
$done->recv;
print "$AnyEvent::MODEL $ticks\n";
PERL

SKIP: {
    skip 'Sys::Virt is not installed (Debian: libsys-virt-perl)', 1 if !eval { require Sys::Virt };
    open my $in, '<', "$FindBin::Bin/../examples/glib.pl" or die "Cannot read: $!\n";
    my $run = fresh_perl(join('', <$in>), switches => ['-w']);
    is $run->{stdout}, join('', map { "tick\ntest: event $_\n" } 3, 4, 3, 4), 'the example';
    is "$run->{stderr}$run->{exit}/$run->{signal}/$run->{timed_out}", '0/0/0', '... and ends well';
}

done_testing;
