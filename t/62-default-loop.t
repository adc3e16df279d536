# libvirt's own loop, with handles and timers of the program in it.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";

use Scalar::Util qw(refaddr weaken);
use Sys::Virt::Event qw(:all);
use Test::More;
use Time::HiRes qw(alarm time);
use VirtTest qw(watchdog warnings_of exception_of pipe_pair patience fresh_perl);
use Test::Sys::Virt::EventImpl::CApi;

watchdog(60);

{
    package False;
    use overload bool => sub { 0 }, '""' => sub { '' }, fallback => 1;
    package Callable;
    use overload '&{}' => sub { my ($self) = @_; sub { $self->{code}->(@_) } }, fallback => 1;
    package Guard;
    sub new { my ($class, $code) = @_; return bless { code => $code }, $class }
    sub DESTROY { $_[0]{code}->() }
}

# Runs until $code is true; a loop that does not come to it is the watchdog's.
sub run_while_not {
    my ($code) = @_;
    run_default(0.05) until $code->();
}

# After a removal libvirt has work of its own, which can take a pass.
sub settle_libvirt { run_default(0.001) for 1 .. 5 }

# One pass in which all timers of a few ms are due.
sub one_pass { select undef, undef, undef, 0.02; return run_default(1) }

# The same code, which when it is released runs other code.
sub guarded {
    my ($code, $on_release) = @_;
    my $guard = Guard->new($on_release);
    return sub { $code->(@_); $guard if 0 };
}

sub cpu { my @times = times; return $times[0] + $times[1] }

is registered(), undef, 'nothing is registered at first';
is exception_of { register_default() }, undef, 'register_default';
is registered(), 'default', 'it is registered';
is exception_of { register_default() }, undef, 'once more';
ok is_idle(), 'idle';
is_deeply [watches()], [], 'no watches';

subtest 'ids, arguments, constants' => sub {
    my ($reader, $writer) = pipe_pair();
    my (%got, $timer, $handle);
    $timer  = add_timeout(1, sub { push @{ $got{timer} }, [@_]; update_timeout($timer, -1) });
    $handle = add_handle($reader, HANDLE_READABLE, sub { push @{ $got{handle} }, [@_]; sysread $reader, my $byte, 1 });
    is $handle, $timer + 1, 'one space of ids';
    syswrite $writer, 'x';
    run_while_not(sub { $got{timer} && $got{handle} });
    is_deeply \%got, { timer => [[$timer]], handle => [[$handle, fileno $reader, HANDLE_READABLE]] }, 'arguments';

    close $writer;
    run_while_not(sub { @{ $got{handle} } > 1 });
    is HANDLE_HANGUP & $got{handle}[1][2], HANDLE_HANGUP, 'a hang-up is told';

    is_deeply [map { [@$_{qw(id kind)}, $_->{fd} // $_->{ms}] } watches()],
        [[$timer, 'timeout', -1], [$handle, 'handle', fileno $reader]], 'watches';
    ok !is_idle(), 'not idle';
    remove_timeout($timer);
    remove_handle($handle);
    ok is_idle(), 'idle again';
    is add_timeout(-1, sub { }), $handle + 1, 'ids are not used again';
    remove_timeout($handle + 1);
    like exception_of { remove_timeout($handle + 1) }, qr/^Cannot remove timeout: no timeout with id/, 'removed twice';
    is exception_of { update_timeout($handle + 1, 5) }, undef, 'update of what was removed';
    like exception_of { update_timeout($handle + 2, 5) }, qr/^Cannot update timeout: no id \d+ was ever given out/,
        'update of what never was';
};

subtest 'a callback that is an object; a callback passed and changed' => sub {
    settle_libvirt();
    my $called = '';
    my $object = bless { code => sub { $called .= 'object ' } }, 'Callable';
    my $code   = sub { $called .= 'code ' };
    my @ids = (add_timeout(0, $object), add_timeout(0, $code));
    $code = sub { $called .= 'other ' };
    undef $object;
    one_pass();
    is join(' ', sort split ' ', $called), 'code object', 'both are called, and as they were';
    remove_timeout($_) for @ids;
};

subtest 'what libvirt watches for itself is not ours' => sub {
    # One of them has an id that we have not given out yet.
    my @theirs = map { Test::Sys::Virt::EventImpl::CApi::add_timeout(-1) } 1 .. 100;
    my $their_handle = Test::Sys::Virt::EventImpl::CApi::add_handle(\*STDIN, 0);
    my ($foreign) = $theirs[-1];
    cmp_ok $foreign, '>', 0, 'registered with libvirt';
    ok is_idle(), 'idle all the same';
    is_deeply [watches()], [], 'not listed';
    like exception_of { remove_timeout($foreign) }, qr/^Cannot remove timeout: no timeout with id $foreign is/, 'remove_timeout';
    like exception_of { update_timeout($foreign, 1) }, qr/^Cannot update timeout: no id $foreign was ever/, 'update_timeout';
    like exception_of { remove_handle($their_handle) }, qr/^Cannot remove handle: no handle with id/, 'remove_handle';

    # An id that both have given out is ours.
    my ($ours) = grep { my $id = $_; grep { $_ == $id } @theirs } map { add_timeout(-1, sub { }) } 1 .. 20;
    if (defined $ours) {
        remove_timeout($ours);
        is Test::Sys::Virt::EventImpl::CApi::remove_timeout($ours), 0, "$ours: ours is removed and not libvirt's";
        @theirs = grep { $_ != $ours } @theirs;
    } else {
        fail 'no id in common';
    }
    is_deeply [map { Test::Sys::Virt::EventImpl::CApi::remove_timeout($_) } @theirs], [(0) x @theirs],
        "libvirt's are there yet";
    is Test::Sys::Virt::EventImpl::CApi::remove_handle($their_handle), 0, 'the handle too';
    remove_timeout($_->{id}) for watches();
};

subtest 'an exception' => sub {
    for my $thrown ("plain\n", bless([], 'False'), { code => 42 }) {
        my ($calls, $hook) = (0, 0);
        my $id = add_timeout(1, sub { local $_[0] = 0; die $thrown if ++$calls == 1 });
        my $error = do { local $SIG{__DIE__} = sub { $hook++ }; exception_of { run_default() while !$calls } };
        my $what  = ref $thrown || 'a string';
        ref $thrown ? is refaddr($error), refaddr($thrown), "$what: it is thrown by run_default"
            : is $error, $thrown, "$what: it is thrown by run_default";
        is $hook, 1, "$what: \$SIG{__DIE__} saw it once";
        is exception_of { run_default() while $calls < 4 }, undef, "$what: the timer goes on, and it is not thrown again";
        remove_timeout($id);
    }

    my ($reader, $writer) = pipe_pair();
    my $calls = 0;
    my $id = add_handle($reader, 1, sub { $calls++; die "handle\n" if $calls < 3; sysread $reader, my $byte, 1 });
    syswrite $writer, 'x';
    is exception_of { run_default(5) }, "handle\n", "a handle's";
    is exception_of { run_default(5) }, "handle\n", 'what is left standing is called for again';
    is exception_of { run_default(5) }, undef, 'until it is done';
    is $calls, 3, 'three calls';
    remove_handle($id);

    is do { local $@ = 'mine'; my $t = add_timeout(0, sub { eval { die 'inner' } }); run_default(); remove_timeout($t); $@ },
        'mine', '$@ is left alone';
};

subtest 'several exceptions in one pass' => sub {
    settle_libvirt();
    my @calls;
    my @ids = map { my $n = $_; add_timeout(1, sub { push @calls, $n; die "number $n\n" if @calls <= 3 }) } 1 .. 3;
    my $error;
    my @warnings = warnings_of { $error = exception_of { one_pass() } };
    is_deeply [sort @calls], [1 .. 3], 'all are called';
    is $error, "number $calls[0]\n", 'the first is thrown';
    is_deeply \@warnings, [map { "Exception in an event callback: number $_\n" } @calls[1, 2]], 'the others are warnings';
    is exception_of { one_pass() }, undef, 'the next pass throws nothing';
    is @calls, 6, 'and calls all again';
    remove_timeout($_) for @ids;
};

subtest 'removed in a callback' => sub {
    my ($reader, $writer) = pipe_pair();
    syswrite $writer, 'x';
    my ($calls, $freed, $freed_inside) = (0, 0, 0);
    my $handle;
    $handle = add_handle($reader, 1, guarded(
        sub { $calls++; remove_handle($handle); $freed_inside += $freed },
        sub { $freed++ }));
    run_while_not(sub { $calls });
    is "$calls $freed_inside $freed", '1 0 1', 'a handle: called once, released after that';
    settle_libvirt();
    is $calls, 1, 'and not again';

    my $timer;
    ($calls, $freed, $freed_inside) = (0, 0, 0);
    my $other = add_timeout(1, sub { });
    $timer = add_timeout(1, guarded(
        sub { $calls++; remove_timeout($timer); run_default(0.02) for 1 .. 3; $freed_inside += $freed },
        sub { $freed++ }));
    run_while_not(sub { $calls });
    is "$calls $freed_inside $freed", '1 0 1', 'a timer, and passes in its callback: called once, released after that';
    remove_timeout($other);
    settle_libvirt();

    my @called;
    my %id;
    for my $name (qw(a b)) {
        $id{$name} = add_timeout(1, sub { push @called, $name; remove_timeout(delete $id{$_}) for grep { $_ ne $name } keys %id });
    }
    one_pass();
    is @called, 1, 'what was due at the same time and is removed by the first is not called';
    remove_timeout($_) for values %id;

    my $added = 0;
    my @ids;
    push @ids, add_timeout(1, sub { push @ids, add_timeout(0, sub { $added++ }) if @ids < 2 });
    one_pass();
    is $added, 0, 'what is added in a callback waits for the next pass';
    one_pass();
    is $added, 1, 'and is called in that';
    remove_timeout($_) for @ids;
    ok is_idle(), 'idle';
};

subtest 'code is released' => sub {
    my ($reader) = pipe_pair();
    for my $case (
        [handle  => sub { add_handle($reader, 0, $_[0]) }, \&remove_handle],
        [timeout => sub { add_timeout(-1, $_[0]) },        \&remove_timeout],
    ) {
        my ($name, $add, $remove) = @$case;
        my $weak;
        my $id = do { my $what = {}; weaken($weak = $what); $add->(sub { $what }) };
        ok $weak, "$name: held while it is registered";
        $remove->($id);
        is $weak, undef, "$name: released once it is removed";
    }

    # What is released may use the loop in its turn.
    my ($called, $again) = 0;
    my $id = add_timeout(-1, guarded(sub { }, sub { $again = add_timeout(0, sub { $called++ }) }));
    is $again, undef, 'not released yet';
    remove_timeout($id);
    ok $again, 'a destructor adds a timer';
    run_while_not(sub { $called });
    is $called, 1, 'which is called';
    remove_timeout($again);
};

subtest 'run_default with a limit' => sub {
    settle_libvirt();
    my $from = time;
    run_default(0.2);
    my $took = time - $from;
    cmp_ok $took, '>=', 0.199, 'it waits';
    cmp_ok $took, '<', patience(1), 'not longer';

    $from = time;
    run_default(0) for 1 .. 10;
    cmp_ok time - $from, '<', patience(0.2), 'with 0 it does not wait';

    # libvirt has work to do after each removal: a limit must not be one.
    my $passes = 0;
    my $cpu = cpu();
    $from = time;
    while (time < $from + 1) { run_default(0.05); $passes++ }
    cmp_ok $passes, '<=', 20, "in a second there are no more than 20 passes of 0.05 s ($passes)";
    cmp_ok $passes, '>=', 3, 'and no fewer than can be';
    cmp_ok cpu() - $cpu, '<', patience(0.3), 'and they take little CPU';

    my $calls = 0;
    my $timer = add_timeout(20, sub { $calls++ });
    $from = time;
    run_default(5);
    cmp_ok time - $from, '<', patience(2), 'a timer ends the wait';
    is $calls, 1, 'it was called';
    is_deeply [map { $_->{id} } watches()], [$timer], 'the limit is not listed';
    remove_timeout($timer);
    ok is_idle(), 'nor does it count';

    # The limit of a pass that was left by an exception does not cut the next one short.
    settle_libvirt();
    local $SIG{ALRM} = sub { die "alarm\n" };
    alarm 0.05;
    is exception_of { run_default(0.2) }, "alarm\n", "a signal's exception gets out";
    alarm 0;
    $timer = add_timeout(400, sub { $calls++ });
    $from = time;
    run_default();
    cmp_ok time - $from, '>=', 0.39, 'the next pass is not cut short';
    is $calls, 2, 'the timer has ended it';
    remove_timeout($timer);

    like exception_of { run_default(-1) }, qr/^Cannot run default: number of seconds -1 is negative/, 'negative';
    like exception_of { run_default('soon') }, qr/^Cannot run default: number of seconds "soon" is not a number/, 'no number';
};

subtest 'a pass in a callback' => sub {
    my ($outer, $inner, $depth, $deepest) = (0, 0, 0, 0);
    my $other = add_timeout(1, sub { $inner++ });
    my $timer = add_timeout(1, sub {
        $outer++;
        $depth++;
        $deepest = $depth if $depth > $deepest;
        my $want = $inner + 3;
        run_default(0.05) while $inner < $want;
        $depth--;
    });
    run_default(1) while $outer < 3;
    cmp_ok $inner, '>=', 9, 'others are called';
    is $deepest, 1, 'the one that runs is not';

    # An exception of the inner pass is thrown by the inner run_default.
    my ($caught, $after);
    update_timeout($timer, -1);
    my $thrower = add_timeout(-1, sub { update_timeout($_[0], -1); die "inner\n" });
    my $runner  = add_timeout(1, sub {
        update_timeout($_[0], -1);
        update_timeout($thrower, 1);
        $caught = exception_of { run_default(0.05) for 1 .. 100 };
        $after  = 1;
    });
    is exception_of { run_while_not(sub { $after }) }, undef, 'the outer run_default throws nothing';
    is $caught, "inner\n", 'the inner one does';
    remove_timeout($_) for $timer, $other, $thrower, $runner;
    ok is_idle(), 'idle';
};

subtest 'a timer of 0 ms starves nothing' => sub {
    my ($reader, $writer) = pipe_pair();
    syswrite $writer, 'x';
    my ($busy, $other, $read, $freed) = (0) x 4;
    my @ids = (
        add_timeout(0, sub { $busy++ }),
        add_timeout(5, sub { $other++ }),
    );
    my $handle = add_handle($reader, 1, guarded(sub { $read++; sysread $reader, my $byte, 1 }, sub { $freed++ }));
    my $end = time + patience(2);
    run_default() until $other >= 3 && $read || time > $end;
    is $read, 1, 'a handle is called';
    cmp_ok $other, '>=', 3, 'a timer is called';
    is $freed, 0, 'its code is held';
    remove_handle($handle);
    is $freed, 1, 'and released';
    remove_timeout($_) for @ids;
};

subtest 'a limit of 0 starves nothing' => sub {
    # libvirt releases a timer's opaque when it has nothing else to do: connections and domains hang on that.
    Test::Sys::Virt::EventImpl::CApi::events();
    Test::Sys::Virt::EventImpl::CApi::remove_timeout(Test::Sys::Virt::EventImpl::CApi::add_timeout(-1));
    my $released = 0;
    my $end      = time + patience(1);
    until ($released || time > $end) {
        run_default(0);
        $released += grep { $_->{what} eq 'ff' } Test::Sys::Virt::EventImpl::CApi::events();
    }
    is $released, 1, "the free function of libvirt's own timer is called";
    settle_libvirt();
};

subtest drain => sub {
    ok drain(1), 'idle: true at once';
    my $left  = 3;
    my $timer;
    $timer = add_timeout(1, sub { remove_timeout($timer) if !--$left });
    ok drain(10), 'true when the last is removed';
    is $left, 0, 'after it was called three times';

    $timer = add_timeout(-1, sub { });
    my $from = time;
    ok !drain(0.1), 'false if something stays';
    cmp_ok time - $from, '>=', 0.09, 'after that time';
    cmp_ok time - $from, '<', patience(1), 'and not much later';
    remove_timeout($timer);

    $timer = add_timeout(1, sub { remove_timeout($timer); die "in drain\n" });
    is exception_of { drain(10) }, "in drain\n", 'an exception comes out of it';
    ok drain(10), 'idle then';
};

subtest 'with a connection' => sub {
    plan skip_all => 'Sys::Virt is not installed' if !eval { require Sys::Virt };
    my $conn = Sys::Virt->new(uri => 'test:///default');
    my @seen;
    my $id = $conn->domain_event_register_any(undef, Sys::Virt::Domain::EVENT_ID_LIFECYCLE(),
        protect(sub { push @seen, $_[2]; die "handler\n" if @seen == 1 }));
    ok is_idle(), "idle: the connection's timer is libvirt's";
    is_deeply [watches()], [], 'and not listed';
    my ($dom) = $conn->list_domains;
    $dom->suspend;
    $dom->resume;
    is exception_of { run_default(1) until @seen }, "handler\n", "an exception of a protected handler is run_default's";
    is exception_of { run_default(1) while @seen < 2 }, undef, 'no second time';
    is_deeply \@seen, [3, 4], 'no event is lost';
    $conn->domain_event_deregister_any($id);
};

# It is GLib's default context, which a main loop of GLib's may run: then no statement of Perl's ends before that does.
SKIP: {
    skip 'Glib is not installed (Debian: libglib-perl)', 2 if !eval { require Glib };
    my $prelude = <<'PERL';
use strict; use warnings; use Glib; use Sys::Virt::Event qw(:all);
register_default();
my $main = Glib::MainLoop->new;
Glib::Timeout->add(VirtTest::patience(20) * 1000, sub { print "too late\n"; $main->quit; 0 });
PERL
    my $run = fresh_perl("use lib 't/lib'; use VirtTest; $prelude" . <<'PERL');
sub Freed::DESTROY { print "freed\n" }
my $held = bless [], 'Freed';
{ my ($id, $own) = (undef, $held); $id = add_timeout(1, sub { $own = $own; remove_timeout($id) }) }
undef $held;
Glib::Timeout->add(5, sub { return 1 if !is_idle(); print "idle\n"; $main->quit; 0 });
$main->run;
print "ends\n";
PERL
    is "$run->{stdout}$run->{stderr}", "freed\nidle\nends\n", "in GLib's main loop: what is removed is freed while it runs";
    $run = fresh_perl("use lib 't/lib'; use VirtTest; $prelude" . <<'PERL');
add_timeout(1, sub { exit 3 });
END { print "end\n" }
$main->run;
print "goes on\n";
PERL
    is "$run->{exit} $run->{stdout}$run->{stderr}", "3 end\n", '... and exit in a callback ends the program';
}

done_testing;
