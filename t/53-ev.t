# What is particular to Sys::Virt::Event::EV, whether it is served from C or from Perl; the contract is in
# 53-adapters.t.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";

use Config;
use Sys::Virt::Event ();
use Test::More;
use VirtTest qw(watchdog fresh_perl);

BEGIN { plan skip_all => 'EV is not installed' if !eval { require EV::MakeMaker } }

watchdog(120);

my $PRELUDE = <<'PERL';
use strict;
use warnings;
use POSIX ();
use Sys::Virt::Event qw(:all);
use Test::Sys::Virt::EventImpl::CApi;
use Test::Sys::Virt::EventImpl::Util;
my $class = shift;
eval "require $class" or die;
$| = 1;
alarm 30;
#line 1 program
PERL

sub prints {
    my ($name, $code, $expected, %opt) = @_;
    # Where it was built without EV both are the same.
    return if $opt{is_for_c} && !defined &Sys::Virt::Event::_serve_by_ev;
    for my $class ('Sys::Virt::Event::EV', $opt{is_for_c} ? () : 'VirtTest::EVInPerl') {
        my $run = fresh_perl("$PRELUDE$code", args => [$class], includes => ["$FindBin::Bin/lib"], timeout => 40);
        is $run->{stdout}, $expected, "$name, $class";
        like $run->{stderr}, $opt{stderr} // qr/\A\z/, '... and stderr';
        is "$run->{exit} $run->{signal}", $opt{end} // '0 0', '... and its end';
    }
    return;
}

prints 'EV is not loaded before libvirt wants something watched', <<'PERL', "\nyes\n";
my $loop = $class->new->register;
print $INC{'EV.pm'} // '', "\n";
my $id = add_timeout(-1, sub { });
print $INC{'EV.pm'} ? "yes\n" : "no\n";
remove_timeout($id);
PERL

prints 'watches, in EV::run', <<'PERL', "writable 2\nreadable 1\ntimer\nidle 1\n";
use EV;
$class->new->register;
my ($ours, $theirs) = socket_pair();
my ($id, $timer);
$id = add_handle($ours, HANDLE_WRITABLE, sub {
    my (undef, undef, $events) = @_;
    if ($events & HANDLE_WRITABLE) { print "writable $events\n"; update_handle($id, HANDLE_READABLE); syswrite $theirs, '.' }
    else                           { print "readable $events\n"; remove_handle($id); update_timeout($timer, 5) }
});
$timer = add_timeout(-1, sub { print "timer\n"; remove_timeout($timer) });
EV::run;
print 'idle ', is_idle(), "\n";
PERL

prints 'what libvirt has registered keeps the loop running', <<'PERL', "over\nidle\n";
use EV;
$class->new->register;
my $id = add_timeout(-1, sub { });
my $w = EV::timer(0.05, 0, sub { print "over\n"; remove_timeout($id) });
EV::run;
print is_idle() ? "idle\n" : "not idle\n";
PERL

prints 'hold_loop => 0: it does not', <<'PERL', "own\nends\n";
use EV;
$class->new(hold_loop => 0)->register;
my ($ours, $theirs) = socket_pair();
my @ids = (add_timeout(60_000, sub { }), add_timeout(-1, sub { }));
my $handle = add_handle($ours, HANDLE_READABLE, sub { sysread $ours, my $byte, 1 });
update_timeout($ids[1], 1);
update_timeout($_, 70_000) for @ids;
update_handle($handle, $_) for 0, HANDLE_WRITABLE, HANDLE_READABLE;
my $short = add_timeout(1, sub { remove_timeout($_[0]) });
my $again = 0;
my $zero = add_timeout(0, sub { update_timeout($_[0], -1) if $again++ > 3 });
syswrite $theirs, '.';
my $w = EV::timer(0.05, 0, sub { print "own\n" });
EV::run;
print "ends\n";
PERL

prints 'an exception goes to $EV::DIED, and the watch lives on', <<'PERL', "died: first\ndied: second\nno \$\@\n";
use EV;
$class->new->register;
my $count = 0;
$EV::DIED = sub { print "died: $@" };
$@ = '';
add_timeout(1, sub { die +(qw(first second))[$count++] . "\n" if $count < 2; EV::break(EV::BREAK_ALL()) });
EV::run;
print 'no $@', $@, "\n";
PERL

prints 'without $EV::DIED it is a warning, as for callbacks of EV', <<'PERL', "on\n", stderr => qr/\AEV: error in callback \(ignoring\): oops at /;
use EV;
$class->new->register;
my $count = 0;
add_timeout(1, sub { die 'oops' if !$count++; print "on\n"; EV::break(EV::BREAK_ALL()) });
EV::run;
PERL

prints 'another thread wakes the sleeping loop', <<'PERL', "woken\n";
use EV;
$class->new->register;
my $keep = add_timeout(-1, sub { });
my $timer = Test::Sys::Virt::EventImpl::CApi::add_timeout(-1);
my $w = EV::timer(0.02, 0, sub { Test::Sys::Virt::EventImpl::CApi::spawn([update_timeout => $timer, 0]) });
my $end = now() + patience(10);
EV::run(EV::RUN_ONCE()) until grep({ $_->{what} eq 'timer' } Test::Sys::Virt::EventImpl::CApi::events()) || now() > $end;
print now() > $end ? "late\n" : "woken\n";
PERL

prints 'a loop of the program\'s own, and the same object again after another', <<'PERL', "own\nPoll\nown again\n1\n";
use EV;
use Sys::Virt::Event::Poll;
my $ev = EV::Loop->new;
my $loop = $class->new(loop => $ev)->register;
sub say_once { my ($what) = @_; my $is_told; add_timeout(1, sub { print "$what\n"; $is_told = 1; remove_timeout($_[0]) }); return sub { $is_told } }
$loop->run_until(say_once('own'), 10);
my $poll = Sys::Virt::Event::Poll->new->register;
$poll->run_until(say_once('Poll'), 10);
$loop->register;
my $is_told = say_once('own again');
$ev->run(EV::RUN_ONCE()) until $is_told->();
print is_idle(), "\n";
PERL

prints 'loop tells the loop, and does not take what another object has', <<'PERL', "EV::Loop\nPoll\n";
use Sys::Virt::Event::Poll;
my $poll = Sys::Virt::Event::Poll->new->register;
my $loop = $class->new;
my $is_told;
my $id = add_timeout(1, sub { $is_told = 1; remove_timeout($_[0]) });
print ref $loop->loop, "\n";
print "Poll\n" if $poll->run_until(sub { $is_told }, 10);
PERL

prints 'a child, in a loop that EV does not know to be forked', <<'PERL', "child\nparent\n";
use EV;
my $loop = $class->new(loop => EV::Loop->new)->register;
my ($ours, $theirs) = socket_pair();
my $who = 'parent';
my $is_told;
add_handle($ours, HANDLE_READABLE, sub { sysread $ours, my $byte, 1; print "$who\n"; $is_told = 1 });
$loop->run_for(0.01);
defined(my $pid = fork) or die;
if (!$pid) {
    $who = 'child';
    syswrite $theirs, '.';
    $loop->run_until(sub { $is_told }, 10);
    POSIX::_exit(0);
}
waitpid $pid, 0;
syswrite $theirs, '.';
$loop->run_until(sub { $is_told }, 10);
PERL

# What the manual warns of; should it change, so should that.
prints "EV::run: a handler in %SIG waits for a watcher of Perl's", <<'PERL', "waited\n";
use EV;
use VirtTest ();
$class->new->register;
my $id = add_timeout(-1, sub { });
my ($reader, $writer) = pipe_pair();
my ($handled, $told);
local $SIG{USR1} = sub { $handled = now() };
my $test = $$;
defined(my $pid = fork) or die "Cannot fork: $!";
if (!$pid) {
    VirtTest::is_asleep_soon($test) && kill USR1 => $test;
    pause(0.2);
    syswrite $writer, now();
    POSIX::_exit(0);
}
my $w = EV::io($reader, EV::READ(), sub { sysread $reader, $told, 100; EV::break(EV::BREAK_ALL()) });
EV::run;
print $handled >= $told ? "waited\n" : "at once\n";
PERL

prints 'stop ends run_for, not the loop of the program', <<'PERL', "stopped\ngoes on\n";
use EV;
my $loop = $class->new->register;
my $w = EV::timer(0.01, 0, sub {
    add_timeout(1, sub { remove_timeout($_[0]); $loop->stop });
    $loop->run_for(20);
    print "stopped\n";
    our $next = EV::timer(0.01, 0, sub { print "goes on\n" });
});
EV::run;
PERL

prints 'what comes while libvirt is in a callback, in a nested run', <<'PERL', "outer\ninner\nouter ends\n";
use EV;
my $loop = $class->new->register;
my $inner = 0;
my $outer = add_timeout(1, sub {
    print "outer\n";
    my $other = add_timeout(1, sub { print "inner\n"; $inner++; remove_timeout($_[0]) });
    $loop->run_until(sub { $inner }, 10);
    print "outer ends\n";
    remove_timeout($_[0]);
});
EV::run;
PERL

prints 'what is no file descriptor is never ready', <<'PERL', "ends\n";
use EV;
$class->new(hold_loop => 0)->register;
my $id = Test::Sys::Virt::EventImpl::CApi::add_handle(-1, 1);
my $w = EV::timer(0.01, 0, sub { });
EV::run;
print "ends\n", map { $_->{what} } Test::Sys::Virt::EventImpl::CApi::events();
PERL

prints 'a watch that is removed in its callback is freed in EV::run', <<'PERL', "freed\nnext\n";
use EV;
$class->new->register;
sub Freed::DESTROY { print "freed\n" }
{
    my $freed = bless [], 'Freed';
    add_timeout(1, sub { remove_timeout($_[0]); $freed });
}
add_timeout(20, sub { print "next\n"; EV::break(EV::BREAK_ALL()) });
EV::run;
PERL

prints 'a watch that is added while the loop is looked for', <<'PERL', "both\nends\n";
use EV;
my $is_first = 1;
my $find = $class->can('_find_loop');
{ no strict 'refs'; no warnings 'redefine'; *{"${class}::_find_loop"} = sub {
    my ($self) = @_;
    if ($is_first) { $is_first = 0; our $inner = add_timeout(1, sub { our $told++ }) }
    return &$find;
} }
$class->new->register;
our $told = 0;
our $inner;
my $outer = add_timeout(1, sub { $told++ });
my $end = now() + patience(10);
EV::run(EV::RUN_ONCE()) until $told > 4 || now() > $end;
print now() > $end ? "late\n" : "both\n";
remove_timeout($_) for $inner, $outer;
EV::run;
print "ends\n";
PERL

prints 'what is no loop of EV', <<'PERL', "Cannot make CLASS: the loop is no EV::Loop at program line 2.\n" x 2;
for my $loop ('x', {}) {
    eval { $class->new(loop => $loop) };
    print $@ =~ s/\Q$class/CLASS/r;
}
PERL

prints 'a subclass with a helper method of its own has it called', <<'PERL', "helper\n";
use EV;
{ no strict 'refs'; @My::Loop::ISA = $class }
sub My::Loop::_run_timeout_callback { print "helper\n"; EV::break(EV::BREAK_ALL()) }
My::Loop->new->register;
add_timeout(1, sub { });
EV::run;
PERL

# libev stops to watch what is no file, and says so, on poll(2).
prints 'a closed file descriptor', <<'PERL', "told 4\nends\n";
BEGIN { $ENV{LIBEV_FLAGS} = 2 }
use EV;
$class->new(hold_loop => 0)->register;
my ($ours, $theirs) = socket_pair();
add_handle(my $fd = fileno $ours, HANDLE_READABLE, sub { print "told $_[2]\n" });
POSIX::close($fd);
my $w = EV::timer(0.05, 0, sub { });
EV::run;
print "ends\n";
POSIX::_exit(0);
PERL

# libev shows that it is readable, which nobody has asked for: it is left alone for a while.
prints 'a handle that is removed meanwhile', <<'PERL', "ends\n";
use EV;
my $loop = $class->new(hold_loop => 0)->register;
my ($ours, $theirs) = socket_pair();
syswrite $theirs, 'x';
my $id = add_handle($ours, HANDLE_HANGUP, sub { print "told\n" });
$loop->run_for(0.001);
remove_handle($id);
my $w = EV::timer(0.1, 0, sub { });
EV::run;
print "ends\n";
PERL

# A thread that forks and is not the owner leaves nothing registered in the child; what EV still has must do nothing.
if ($Config{useithreads}) {
    for my $hold (0, 1) {
        prints "a child of another thread runs EV, hold_loop $hold", <<"PERL", "ends\n0\n", is_for_c => 1;
use threads;
use EV;
\$class->new(hold_loop => $hold)->register;
my (\$ours, \$theirs) = socket_pair();
syswrite \$theirs, 'x';
add_handle(\$ours, HANDLE_READABLE, sub { });
add_timeout(5, sub { });
threads->create(sub {
    defined(my \$pid = fork) or die;
    if (!\$pid) {
        my \$w = EV::timer(0.05, 0, sub { EV::break(EV::BREAK_ALL()) });
        EV::run;
        print "ends\\n";
        POSIX::_exit(0);
    }
    waitpid \$pid, 0;
    print "\$?\\n";
})->join;
POSIX::_exit(0);
PERL
    }
}

prints 'exit in a callback', <<'PERL', '', end => '7 0';
use EV;
$class->new->register;
add_timeout(1, sub { exit 7 });
EV::run;
PERL

# A method that is called where another loop is registered.
{
    my $run = fresh_perl(<<'PERL', timeout => 40);
use strict; use warnings; use Sys::Virt::Event qw(:all); use Sys::Virt::Event::EV;
register_default();
print defined Sys::Virt::Event::EV->new->add_timeout(100, 1, 2, 3) ? "a timer of Perl's\n" : "none\n";
PERL
    is "$run->{signal} $run->{stdout}$run->{stderr}", "0 a timer of Perl's\n", "a method of its own under libvirt's loop";
}

# The example.
SKIP: {
    skip 'Sys::Virt is not installed', 1 if !eval { require Sys::Virt };
    my $example = "$FindBin::Bin/../examples/ev.pl";
    open my $in, '<', $example or die "Cannot read $example: $!";
    my $run = fresh_perl(join('', <$in>), timeout => 40);
    is_deeply [sort grep { /event/ } split /\n/, $run->{stdout}], [('event: test 3/0') x 2, ('event: test 4/0') x 2],
        'examples/ev.pl' or diag $run->{stderr};
}

done_testing;
