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

sub has_contexts { require Sys::Virt::Event; return defined &Sys::Virt::Event::_watch_by_glib }

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
try(sub { Sys::Virt::Event::Glib->new(context => undef) });
try(sub { Sys::Virt::Event::Glib->new(context => Glib::MainContext->default, hold_loop => 0) });
$Glib::VERSION = '1.1';
try(sub { Sys::Virt::Event::Glib->new });
PERL
Cannot make Sys::Virt::Event::Glib: there is no option loop at program line 3.
Cannot make Sys::Virt::Event::Glib: options are pairs of a name and a value at program line 4.
Cannot make Sys::Virt::Event::Glib: the context is no Glib::MainContext at program line 5.
none
none
Cannot make Sys::Virt::Event::Glib: it needs Glib 1.220, and 1.1 is installed at program line 10.
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

# Contexts that are not the default one.

prints 'where it was built without GLib\'s headers, there is the default context only', <<'PERL', <<'EXPECTED';
use Glib;
use Sys::Virt::Event::Glib;
undef &Sys::Virt::Event::_watch_by_glib;
print exception_of { Sys::Virt::Event::Glib->new(context => Glib::MainContext->new) };
print ref Sys::Virt::Event::Glib->new(context => Glib::MainContext->default), "\n";
PERL
Cannot make Sys::Virt::Event::Glib: Sys::Virt::Event was built without GLib's headers, so it can watch in the default context only at program line 4.
Sys::Virt::Event::Glib
EXPECTED

SKIP: {
    skip 'built without GLib\'s headers (Debian: libglib2.0-dev)', 8 if !has_contexts();
    my $own = <<'PERL';
use Glib;
use Sys::Virt::Event::Glib;
my $context = Glib::MainContext->new;
my $loop = Sys::Virt::Event::Glib->new(context => $context)->register;
my $elsewhere = 0;
Glib::Timeout->add(0, sub { $elsewhere++; 1 });
my ($reader, $writer) = pipe_pair();
PERL

    prints 'a context of its own: handles and timers', $own . <<'PERL', "1\nhandle 1\n3 ticks\nhandle 8\nfalse\n0\n";
print $loop->loop == $context, "\n";
my ($ticks, $bits) = (0, 0);
my $handle = add_handle($reader, 1, sub { $bits = $_[2]; sysread $reader, my $byte, 1; remove_handle($_[0]) if $bits & 8 });
my $timer = add_timeout(1, sub { $ticks++ });
syswrite $writer, 'xx';
$loop->run_until(sub { $bits }, 10);
print "handle $bits\n";
remove_timeout($timer), $timer = add_timeout(0, sub { $ticks++ }) if $loop->run_until(sub { $ticks >= 3 }, 10);
print "3 ticks\n";
update_timeout($timer, -1);
close $writer;
$loop->run_until(sub { $bits & 8 }, 10);
print "handle $bits\n";
$ticks = 0;
print $loop->run_until(sub { $ticks }, 0.02) ? "true\n" : "false\n";
print "$elsewhere\n";
PERL

    prints '... which the program runs', $own . <<'PERL', "object 1\ntext 2\nevents 3 4\n0\n" if eval { require Sys::Virt };
use Sys::Virt;
my $main = Glib::MainLoop->new($context);
Glib->install_exception_handler(sub { my ($error) = @_; print ref $error ? "object $$error\n" : "text $error"; 1 });
my $count = 0;
add_timeout(1, sub { die ++$count == 1 ? bless \(my $number = $count), 'My::Error' : "$count\n" if $count < 2 });
my $conn = Sys::Virt->new(uri => 'test:///default');
my @events;
$conn->domain_event_register_any(undef, Sys::Virt::Domain::EVENT_ID_LIFECYCLE(), sub {
    push @events, $_[2];
    $main->quit if @events == 2;
});
add_timeout(20, sub { my $domain = $conn->get_domain_by_name('test'); $domain->suspend; $domain->resume; remove_timeout($_[0]) });
$main->run;
print "events @events\n$elsewhere\n";
PERL

    prints '... and exit in a callback', $own . <<'PERL', "bye\n";
END { print "bye\n" }
add_timeout(1, sub { exit 0 });
$loop->run_for(10);
print "not here\n";
PERL

    # A source is some 300 bytes, and what the callback is kept in 32. AddressSanitizer would keep what was freed.
    my $options = join ':', $ENV{ASAN_OPTIONS} // (), 'quarantine_size_mb=0', 'thread_local_quarantine_size_kb=0';
    prints '... keeps nothing of what was removed', $own . <<'PERL', "100 of 100\nsmall\n", env => { ASAN_OPTIONS => $options };
my $gone = 0;
sub Gone::DESTROY { $gone++ }
sub cycle {
    my $guard = bless [], 'Gone';
    my $calls = 0;
    my $handle = add_handle($writer, 2, sub { $calls++, $guard });
    my $timer = add_timeout(0, sub { $calls++, $guard });
    $loop->run_until(sub { $calls > 3 }, 10);
    remove_handle($handle);
    remove_timeout($timer);
}
cycle() for 1 .. 100;
Sys::Virt::Event::drain(10);
print "$gone of 100\n";
sub kilobytes { open my $in, '<', '/proc/self/status' or return 0; return map { /^VmRSS:\s+(\d+)/ } <$in> }
my ($before) = kilobytes();
for (1 .. 20_000) {
    remove_timeout(add_timeout(1000, sub { }));
    remove_handle(add_handle($reader, 1, sub { }));
}
my ($after) = kilobytes();
print $after - $before < 600 ? "small\n" : "large: " . ($after - $before) . "\n";
PERL
}

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

leaves_flags('Sys::Virt::Event::Glib');

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

# By itself Perl's Glib has the exception jump over GLib, which calls no handler in its main loop from then on.
prints 'a signal handler that dies in run_until leaves GLib in order', <<'PERL', "dies\nquit\n";
use Glib;
use POSIX ();
use Sys::Virt::Event::Glib -register;
my $main = Glib::MainLoop->new;
my $dies = 1;
$SIG{USR1} = sub { die "dies\n" if $dies-- > 0; $main->quit };
my ($reader, $writer) = pipe_pair();
my $test = $$;
my $pid = fork;
if (!$pid) {
    close $writer;
    sysread $reader, my $byte, 1;
    do { pause(0.02) } while getppid == $test && kill USR1 => $test;
    POSIX::_exit(0);
}
add_timeout(-1, sub {});
print exception_of { registered()->run_until(sub { syswrite $writer, 'x'; 0 }) };
Glib::Timeout->add(10_000, sub { print "late\n"; $main->quit; 0 });
$main->run;
print "quit\n";
kill KILL => $pid;
waitpid $pid, 0;
PERL

# What the manual warns of; should it change, so should that.
my $LATE = <<'PERL';
my $main = Glib::MainLoop->new($loop->loop);
my ($reader, $writer) = pipe_pair();
my ($handled, $told);
$SIG{USR1} = sub { $handled = now(); die "dies\n" if $dies-- > 0 };
my $test = $$;
my $sender = fork // die "Cannot fork: $!";
if (!$sender) {
    for (0 .. $dies) {
        VirtTest::is_asleep_soon($test) && kill USR1 => $test;
        pause(0.2);
    }
    syswrite $writer, now();
    POSIX::_exit(0);
}
add_handle($reader, 1, sub { sysread $reader, $told, 100; $main->quit });
print exception_of { $main->run } if $dies;
$main->run;
waitpid $sender, 0;
print $handled >= $told ? "waited\n" : "at once\n";
PERL
prints 'MainLoop->run: a handler in %SIG that dies has those after it wait for Perl code', <<'PERL' . $LATE, "dies\nwaited\n";
use Glib;
use POSIX ();
use VirtTest ();
use Sys::Virt::Event::Glib;
my $loop = Sys::Virt::Event::Glib->new->register;
my $dies = 1;
PERL
prints 'MainLoop->run: in another context a handler in %SIG waits for Perl code', <<'PERL' . $LATE, "waited\n"
use Glib;
use POSIX ();
use VirtTest ();
use Sys::Virt::Event::Glib;
my $loop = Sys::Virt::Event::Glib->new(context => Glib::MainContext->new)->register;
my $dies = 0;
PERL
    if has_contexts();

prints 'signal handlers run in callbacks of the program', <<'PERL', "handled\n";
use Glib;
use Sys::Virt::Event::Glib -register;
my $handled;
$SIG{USR1} = sub { $handled = 1 };
Glib::Timeout->add(1, sub {
    kill USR1 => $$;
    print $handled ? "handled\n" : "not yet\n";
    registered()->stop;
    return 0;
});
registered()->run_until(sub { 0 });
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
    ticks_then_tells($run->{stdout}, 'the example');
    is "$run->{stderr}$run->{exit}/$run->{signal}/$run->{timed_out}", '0/0/0', '... and ends well';
}

done_testing;
