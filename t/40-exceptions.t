# What Perl code called by libvirt may do: die, leave by next, be interrupted by a signal, change $@, $!, $_ and
# libvirt's last error. Nothing of it gets past libvirt's C frames, and nothing is lost or left behind.
use 5.016;
use strict;
use warnings;

use lib 't/lib';
use Scalar::Util qw(blessed refaddr weaken);
use Test::More;
use Time::HiRes qw(time);

use Sys::Virt::Event qw(:all);
use Sys::Virt::Event::Poll;
use VirtTest qw(:DEFAULT patience);
use Test::Sys::Virt::EventImpl::CApi;
use VirtTest::Child;
use VirtTest::Loop;

watchdog(120);

{
    package My::False;
    use overload bool => sub { 0 }, '""' => sub { '' }, '0+' => sub { 0 }, fallback => 1;

    package My::Evil;
    use overload
        map({ my $op = $_; $op => sub { die "asked for $op\n" } } 'bool', '""', '0+', 'eq', '==', 'ne', '!'),
        fallback => 0;

    package My::Exception;
    our $destroyed = 0;
    sub new     { return bless [], shift }
    sub DESTROY { $destroyed++ }

    # Runs code when it is freed.
    package My::Finally;
    sub new     { my ($class, $code) = @_; return bless { code => $code }, $class }
    sub DESTROY { $_[0]{code}->() }
}

my %exceptions = (
    'a string with a newline'        => sub { "text\n" },
    'a string without'               => sub { 'text' },
    'an object'                      => sub { My::Exception->new },
    'an object that is false'        => sub { bless {}, 'My::False' },
    'an object whose overload dies'  => sub { bless {}, 'My::Evil' },
    'a plain reference'              => sub { { code => 42 } },
    'code'                           => sub { sub { 42 } },
    '0'                              => sub { "0\n" },
    'an empty line'                  => sub { "\n" },
);

# What it is, whatever its overloading says: for references class and address.
sub identity {
    my ($error) = @_;
    return !defined $error ? 'nothing' : ref $error ? ref($error) . ' ' . refaddr($error) : $error;
}
# To a string without a newline, die adds the place.
sub same {
    my ($caught, $thrown) = @_;
    return $caught =~ /\Atext at \Q$0\E line [0-9]+\.\n\z/ ? 1 : 0 if !ref $thrown && $thrown eq 'text';
    return identity($caught) eq identity($thrown) ? 1 : 0;
}

# The reason why a callback could not be left.
my %escapes = (
    next         => [sub { no warnings 'exiting'; next }, qr/\ACan't "next" outside a loop block at /],
    last         => [sub { no warnings 'exiting'; last }, qr/\ACan't "last" outside a loop block at /],
    redo         => [sub { no warnings 'exiting'; redo }, qr/\ACan't "redo" outside a loop block at /],
    'next LABEL' => [sub { no warnings 'exiting'; next ROUND }, qr/\ALabel not found for "next ROUND" at /],
    'last LABEL' => [sub { no warnings 'exiting'; last ROUND }, qr/\ALabel not found for "last ROUND" at /],
    goto         => [sub { goto AFTER }, qr/\ACan't find label AFTER at /],
);

# Under libvirt's own loop.

for my $name (sort keys %exceptions) {
    my %got = in_child {
        register_default();
        my ($reader, $writer) = pipe_pair();
        syswrite $writer, 'x';
        my $thrown;
        my $dies = 1;
        my $runs = 0;
        my $die = sub { $runs++; die $thrown = $exceptions{$name}->() if $dies };
        my $id = add_timeout(0, $die);
        my $of_timer = exception_of { run_default(1) };
        my $timer_same = same($of_timer, $thrown);
        my $again = exception_of { run_default(1) };
        $dies = 0;
        my $after = exception_of { run_default(1) };
        my $timer_runs = $runs;
        remove_timeout($id);
        $dies = 1;
        $id = add_handle($reader, 1, $die);
        my $of_handle = exception_of { run_default(1) };
        my $handle_same = same($of_handle, $thrown);
        remove_handle($id);
        return (
            timer => $timer_same, handle => $handle_same, again => defined $again,
            after => identity($after), runs => $timer_runs, idle => drain(5),
        );
    };
    ok($got{timer}, "$name, thrown in a timer's callback, leaves run_default as it is");
    ok($got{handle}, q{... and in a handle's});
    ok($got{again}, '... each time: the timer goes on');
    is($got{after}, 'nothing', '... and not when nothing was thrown');
    is($got{runs}, 3, '... and it ran each time');
    ok($got{idle}, '... and can be removed');
}
{
    my %got = in_child {
        register_default();
        my @ran;
        my @ids = map { my $n = $_; add_timeout(0, sub { push @ran, $n; die "number $n\n" if $n != 2 }) } 1 .. 4;
        my $error;
        my @warnings = warnings_of { $error = exception_of { run_default(1) } };
        remove_timeout($_) for @ids;
        my $after = exception_of { run_default(0) };
        return (ran => [sort @ran], error => $error, warnings => [sort @warnings], after => $after);
    };
    is_deeply($got{ran}, [1 .. 4], 'several exceptions in an iteration: all callbacks run');
    my @left = grep { $got{error} ne "number $_\n" } 1, 3, 4;
    is(scalar @left, 2, '... one is thrown');
    is_deeply($got{warnings}, [map { "Exception in an event callback: number $_\n" } @left],
        '... the others are warnings');
    is($got{after}, undef, '... and nothing is left for the next');
}
for my $name (sort keys %escapes) {
    my ($escape, $reason) = @{ $escapes{$name} };
    my %got = in_child {
        register_default();
        my $id = add_timeout(0, $escape);
        my (@rounds, @errors);
        ROUND: for my $round (1 .. 3) {
            push @errors, exception_of { run_default(1) };
            push @rounds, $round;
        }
        AFTER: remove_timeout($id);
        return (rounds => "@rounds", errors => \@errors, idle => drain(5));
    };
    is($got{rounds}, '1 2 3', "$name out of a callback under run_default: the caller's loop goes on");
    is(scalar(grep { $_ =~ $reason } @{ $got{errors} }), 3, '... with an exception each time');
    ok($got{idle}, '... and nothing is left behind');
}
{
    my %got = in_child {
        register_default();
        my $id = add_timeout(0, sub { die "no border\n" });
        my @warnings = warnings_of { Test::Sys::Virt::EventImpl::CApi::run_default() };
        update_timeout($id, -1);
        my @errors = map { identity($_) } exception_of { run_default(0) }, exception_of { update_timeout($id, -1) },
            exception_of { remove_timeout($id) };
        return (warnings => \@warnings, errors => \@errors);
    };
    is_deeply($got{warnings}, ["Exception in an event callback: no border\n"],
        'a callback that dies under a loop that is not run by us: a warning');
    is_deeply($got{errors}, [('nothing') x 3], '... which no later call throws');
}

for my $dies (0, 1) {
    my %got = in_child {
        register_default();
        my $handled = 0;
        # Again and again, as the first may come before run_default sleeps.
        local $SIG{ALRM} = sub { Time::HiRes::ualarm(0); die "time is up\n" if !$handled++ && $dies };
        Time::HiRes::ualarm(20_000, 20_000);
        my ($start, $long) = (time, patience(8));
        my $error = exception_of { 1 while !$handled && time < $start + $long && (run_default($long), 1) };
        return (handled => $handled > 0, error => $error, soon => time - $start < $long / 2);
    };
    ok($got{handled}, 'a signal while run_default waits is handled');
    is($got{error}, $dies ? "time is up\n" : undef,
        $dies ? q{... its exception reaches the caller's eval} : '... and run_default returns');
    ok($got{soon}, '... at once');
}

# Under Sys::Virt, whose calls to libvirt are no borders, with a loop whose timer calls are made under libvirt's locks.

SKIP: {
    skip 'Sys::Virt is not installed (Debian: libsys-virt-perl)', 1 if !eval { require Sys::Virt };

    my $lifecycle = Sys::Virt::Domain::EVENT_ID_LIFECYCLE();
    my $watched = sub {
        my ($handler) = @_;
        my $conn = Sys::Virt->new(uri => 'test:///default');
        $conn->domain_event_register_any(undef, $lifecycle, $handler);
        my ($dom) = $conn->list_domains;
        return ($conn, $dom);
    };

    for my $name (sort keys %escapes, 'die') {
        my $escape = $name eq 'die' ? sub { die "in a method\n" } : $escapes{$name}[0];
        my $reason = $name eq 'die' ? qr/in a method\n\z/ : substr $escapes{$name}[1], 0;
        my %got = in_child {
            my $loop = VirtTest::Loop->new->register;
            my @events;
            my ($conn, $dom) = $watched->(sub { push @events, $_[2] });
            my $timer = $loop->latest;
            my (@rounds, @errors, @warnings);
            $loop->on(update_timeout => $escape);
            ROUND: for my $round (1 .. 2) {
                my $error;
                push @warnings, warnings_of { $error = exception_of { $round == 1 ? $dom->suspend : $dom->resume } };
                push @errors, identity($error);
                push @rounds, $round;
            }
            AFTER: $loop->on(update_timeout => undef);
            push @errors, identity(exception_of { add_timeout(-1, sub { }) });
            $loop->dispatch($timer);
            return (
                rounds => "@rounds", errors => \@errors, warnings => \@warnings,
                events => "@events", state => $dom->is_active,
            );
        };
        is($got{rounds}, '1 2', "$name out of a method, in a call of Sys::Virt: the caller's loop goes on");
        is_deeply($got{errors}, [('nothing') x 3], '... neither that call nor the next one of ours throws');
        like($_, qr/\ACannot update timeout: VirtTest::Loop::update_timeout died: /, '... but there is a warning')
            for @{ $got{warnings} };
        # The second call finds the timer armed.
        is(scalar @{ $got{warnings} }, 1, '... one');
        is($got{events}, '3 4', '... the events arrive');
        ok($got{state}, '... and the connection works');
    }
    {
        my %got = in_child {
            my $loop = VirtTest::Loop->new->register;
            my ($conn, $dom) = $watched->(sub { });
            $loop->on(update_timeout => sub { die "in a method\n" });
            my $id = add_timeout(-1, sub { $dom->suspend; return });
            my @warnings = warnings_of {};
            my $error = exception_of { $loop->dispatch($loop->latest) };
            return (error => $error, warnings => \@warnings);
        };
        is($got{error}, "in a method\n",
            'a method that dies in a call of Sys::Virt inside a callback: the border is that of the callback');
        is_deeply($got{warnings}, [], '... so there is no warning');
    }
    for my $loop_name (qw(Poll default)) {
        my %got = in_child {
            my $loop = $loop_name eq 'Poll' ? Sys::Virt::Event::Poll->new->register : register_default();
            my $run = $loop_name eq 'Poll' ? sub { $loop->run_once(1) } : sub { run_default(1) };
            my @events;
            my $exception = bless {}, 'My::False';
            my $handler = sub {
                push @events, $_[2];
                die $exception if @events == 1;
                die "second\n" if @events == 2;
                no warnings 'exiting';
                next if @events == 3;
            };
            my ($conn, $dom) = $watched->(protect($handler));
            my ($error, $after, @rounds);
            my @warnings = warnings_of {
                for my $round (1 .. 2) {
                    $dom->suspend;
                    $dom->resume;
                    push @rounds, $round;
                    my $thrown = exception_of { $run->() };
                    $round == 1 ? $error = $thrown : $after = $thrown;
                }
            };
            return (
                events => "@events", error => same($error, $exception), warnings => \@warnings,
                after => $after, rounds => "@rounds",
            );
        };
        ok($got{error}, "$loop_name: an exception in a protected handler of an event reaches whoever runs the loop");
        is($got{events}, '3 4 3 4', '... the other events of that pass are delivered');
        is_deeply($got{warnings}, ["Exception in a protected callback: second\n"],
            '... and a second exception is a warning');
        like($got{after}, qr/\ACan't "next" outside a loop block/, '... as next is an exception');
        is($got{rounds}, '1 2', '... and does not touch the loop of the caller');
    }

    # A handler of %SIG must not run under the locks.
    for my $dies (0, 1) {
        my %got = in_child {
            my @log;
            local $SIG{ALRM} = sub { push @log, 'handler'; die "time is up\n" if $dies };
            my $loop = VirtTest::Loop->new->register;
            my ($conn, $dom) = $watched->(sub { push @log, "event $_[2]" });
            my $timer = $loop->latest;
            $loop->on(update_timeout => sub { kill ALRM => $$; push @log, 'in method' for 1 .. 2 });
            my $error = exception_of { $dom->suspend; push @log, 'next statement' };
            $loop->on(update_timeout => undef);
            my $name = $dom->get_name;
            $loop->dispatch($timer);
            $dom->resume;
            $loop->dispatch($timer);
            return (log => "@log", error => $error, name => $name);
        };
        my $does = $dies ? 'dies' : 'returns';
        my @next = $dies ? () : 'next statement';
        is($got{log}, join(' ', 'in method', 'in method', 'handler', @next, 'event 3', 'event 4'),
            "a signal in a method called under locks: its handler, which $does, runs when the caller's statement ends");
        is($got{error}, $dies ? "time is up\n" : undef,
            $dies ? q{... and its exception reaches the caller's eval} : '... without an exception');
        is($got{name}, 'test', '... and the connection works');
    }
}

# $SIG{__WARN__} that dies where nothing can be thrown.
{
    my $run = fresh_perl(<<'EOT');
use strict; use warnings; use lib 't/lib';
use Sys::Virt::Event qw(:all); use Test::Sys::Virt::EventImpl::CApi; use VirtTest::Loop;
my $loop = VirtTest::Loop->new->register;
my $id = add_timeout(5, sub { });
$loop->on(update_timeout => sub { die "in a method\n" })->on(remove_timeout => sub { die "in another\n" });
$SIG{__WARN__} = sub { die "handler: $_[0]" };
print eval { Test::Sys::Virt::EventImpl::CApi::update_timeout($id, 1); 1 } ? "goes on\n" : "died: $@";
print eval { update_timeout($id, 1); 1 } ? "goes on\n" : "died: $@";
print eval { remove_timeout($id); 1 } ? "goes on\n" : "died: $@";
print is_idle() ? "idle\n" : "not idle\n";
EOT
    my $method = 'VirtTest::Loop::';
    is($run->{stdout}, "goes on\ndied: in a method\n"
            . "died: handler: Cannot remove timeout: ${method}remove_timeout died: in another\nidle\n",
        '$SIG{__WARN__} that dies: an exception where one can be thrown, and nothing is left undone');
    my $text = "Cannot update timeout: ${method}update_timeout died: ";
    is($run->{stderr}, "${text}handler: ${text}in a method\n",
        '... and a line on stderr where not');
    is($run->{exit}, 0, '... and the program ends well');
}

# exit is no exception, and leaves nothing that could crash.
my %exits = (
    'a callback'     => 'add_timeout(5, sub { exit 3 }); $loop->dispatch($loop->latest);',
    'a method'       => '$loop->on(update_timeout => sub { exit 3 }); update_timeout(add_timeout(5, sub { }), 1);',
    'protected code' => 'protect(sub { exit 3 })->();',
);
for my $place (sort keys(%exits), 'run_default') {
    my $code = $exits{$place}
        ? "my \$loop = VirtTest::Loop->new->register; $exits{$place}"
        : 'register_default(); add_timeout(0, sub { exit 3 }); run_default(1);';
    my $run = fresh_perl(<<"EOT");
use strict; use warnings; use lib 't/lib';
use Sys::Virt::Event qw(:all); use VirtTest::Loop;
END { print 'end' }
eval { $code 1 };
print 'goes on';
EOT
    is("$run->{exit} $run->{signal} $run->{timed_out} $run->{stdout}$run->{stderr}", '3 0 0 end', "exit in $place");
}

# Sys::Virt frees what its callback leaves while it is inside libvirt.
SKIP: {
    skip 'Sys::Virt is not installed (Debian: libsys-virt-perl)', 1 if !eval { require Sys::Virt };
    my $run = fresh_perl(<<'EOT');
use strict; use warnings;
use Sys::Virt; use Sys::Virt::Event qw(:all); use Sys::Virt::Event::Poll;
my $loop = Sys::Virt::Event::Poll->new->register;
my $conn = Sys::Virt->new(uri => 'test:///default');
my $dom  = $conn->get_domain_by_name('test');
my @ids  = map { $conn->domain_event_register_any(@$_) }
    [undef, 0, protect(sub { print "exits\n"; exit 3 })], [$dom, 0, sub { print "next\n" }];
$dom->suspend;
END {
    $conn->domain_event_deregister_any($_) for @ids;
    print scalar(watches()), " left\n";
}
$loop->run_for(5);
print "goes on\n";
EOT
    is("$run->{exit} $run->{signal} $run->{timed_out} $run->{stdout}$run->{stderr}", "3 0 0 exits\nnext\n0 left\n",
        'exit in protected code that Sys::Virt calls waits for libvirt');
}

# What a method or a callback leaves: Perl code that runs when it is read, or when it is released.
my $with_a_key = <<'EOT';
use strict; use warnings; use lib 't/lib';
use Sys::Virt::Event qw(:all); use Test::Sys::Virt::EventImpl::CApi; use VirtTest::Loop;
package Dying { sub TIESCALAR { return bless [] } sub FETCH { die "when read\n" } }
package Exits { sub DESTROY { print "exits\n"; exit 3 } }
tie my $dying, 'Dying';
package Keyed { our @ISA = 'VirtTest::Loop'; sub add_timeout { return bless [], 'Exits' } sub remove_timeout { } }
package Tied { our @ISA = 'VirtTest::Loop'; sub add_timeout :lvalue { $dying } }
package main;
$SIG{USR1} = sub { print "handled\n" };
EOT
{
    my $run = fresh_perl($with_a_key . <<'EOT');
Tied->new->register;
print eval { add_timeout(1, sub { }); 1 } ? "goes on\n" : $@;
$SIG{__WARN__} = sub { print "warned: ", $_[0] =~ s/.*: //r };
print Test::Sys::Virt::EventImpl::CApi::add_timeout(1), "\n";
print scalar(protect(sub :lvalue { $dying })->()) // 'undef', "\n";
print scalar(my @list = protect(sub { return map { $_ } $dying })->()), "\n";
kill USR1 => $$;
print scalar(watches()), " left\n";
EOT
    is("$run->{exit} $run->{signal} $run->{timed_out} $run->{stdout}$run->{stderr}",
        "0 0 0 when read\nwarned: when read\n-1\nwarned: when read\nundef\nwarned: when read\n0\nhandled\n0 left\n",
        'a result that dies when it is read');
}
my %leaves = (
    'the key' => 'Keyed->new->register;',
    '$_'      => 'VirtTest::Loop->new->register->on(remove_timeout => sub { $_ = bless [], "Exits"; return });',
    'an exception' => 'VirtTest::Loop->new->register->on(remove_timeout => sub { die bless [], "Exits" });',
);
for my $place (sort keys %leaves) {
    my $run = fresh_perl("$with_a_key$leaves{$place}" . <<'EOT');
$SIG{__WARN__} = sub { };
my $id = Test::Sys::Virt::EventImpl::CApi::add_timeout(1);
END {
    print eval { VirtTest::Loop->new->register; 1 } ? "nothing is left\n" : $@;
}
Test::Sys::Virt::EventImpl::CApi::remove_timeout($id);
print "goes on\n";
EOT
    is("$run->{exit} $run->{signal} $run->{timed_out} $run->{stdout}$run->{stderr}",
        "3 0 0 exits\nnothing is left\n", "$place, left by a method, calls exit when it is released");
}

# From here on one loop, run by the test.

my $loop = VirtTest::Loop->new->register;
my ($reader, $writer) = pipe_pair();
my %function = (
    add_timeout    => sub { add_timeout(5, sub { }) },
    update_timeout => sub { update_timeout($_[0], 1) },
    remove_timeout => sub { remove_timeout($_[0]) },
    add_handle     => sub { add_handle($reader, 1, sub { }) },
    update_handle  => sub { update_handle($_[0], 3) },
    remove_handle  => sub { remove_handle($_[0]) },
);
my %c_function = (
    add_timeout    => sub { Test::Sys::Virt::EventImpl::CApi::add_timeout(5) },
    update_timeout => sub { Test::Sys::Virt::EventImpl::CApi::update_timeout($_[0], 1) },
    remove_timeout => sub { Test::Sys::Virt::EventImpl::CApi::remove_timeout($_[0]) },
    add_handle     => sub { Test::Sys::Virt::EventImpl::CApi::add_handle($reader, 1) },
    update_handle  => sub { Test::Sys::Virt::EventImpl::CApi::update_handle($_[0], 3) },
    remove_handle  => sub { Test::Sys::Virt::EventImpl::CApi::remove_handle($_[0]) },
);

# A timer and a handle with this callback, and how to dispatch each through its helper.
sub with_watches {
    my ($callback, $test) = @_;
    my $timer = add_timeout(5, $callback);
    my $timer_watch = $loop->latest;
    my $handle = add_handle($reader, 1, $callback);
    my $handle_watch = $loop->latest;
    $test->('_run_timeout_callback', sub { $loop->dispatch($timer_watch) });
    $test->('_run_handle_callback', sub { $loop->dispatch($handle_watch, 1) });
    remove_timeout($timer);
    remove_handle($handle);
}

# Nothing may be left behind: no watch, no callback counted as running, no signal held back.
sub clean {
    my ($name) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my $handled = 0;
    local $SIG{USR1} = sub { $handled++ };
    kill USR1 => $$;
    my $now = $handled;
    my $other = VirtTest::Loop->new;
    my $replaced = exception_of { register($other) };
    register($loop) if !defined $replaced;
    is(($now ? '' : 'signals held back ') . ($replaced // ''), '', $name);
}

for my $name (sort keys %exceptions) {
    my ($thrown, $dies);
    with_watches(
        sub { die $thrown = $exceptions{$name}->() if $dies },
        sub {
            my ($helper, $dispatch) = @_;
            for my $time (1 .. 2) {
                $dies = 1;
                my $error = exception_of { $dispatch->() };
                ok(same($error, $thrown), "$name leaves $helper as it is, time $time");
                $dies = 0;
                is(identity(exception_of { $dispatch->() }), 'nothing', '... and is not thrown again');
            }
        });
    for my $kind (qw(timeout handle)) {
        my $id = $function{"add_$kind"}->();
        $loop->on("update_$kind" => sub { die $thrown = $exceptions{$name}->() });
        my $error = exception_of { $function{"update_$kind"}->($id) };
        $loop->on("update_$kind" => undef);
        ok(same($error, $thrown), "$name, thrown in the method update_$kind, leaves the function");
        is(identity(exception_of { $function{"update_$kind"}->($id) }), 'nothing', '... and is not thrown again');
        $function{"remove_$kind"}->($id);
    }
    undef $thrown;
    clean('... and nothing is left behind');
}

for my $name (sort keys %escapes) {
    my ($escape, $reason) = @{ $escapes{$name} };
    with_watches($escape, sub {
        my ($helper, $dispatch) = @_;
        my (@rounds, @errors);
        ROUND: for my $round (1 .. 3) {
            push @errors, exception_of { $dispatch->() };
            push @rounds, $round;
        }
        AFTER: is("@rounds", '1 2 3', "$name out of a callback: the loop that called $helper goes on");
        is(scalar(grep { $_ =~ $reason } @errors), 3, '... with an exception each time');
    });
    for my $method (qw(add_timeout update_timeout remove_timeout)) {
        my $id = add_timeout(5, sub { });
        $loop->on($method => $escape);
        my (@rounds, @errors);
        my @warnings = warnings_of {
            ROUND: for my $round (1 .. 2) {
                push @errors, exception_of { $function{$method}->($id) if $method ne 'remove_timeout' || $round == 1 };
                push @rounds, $round;
            }
            AFTER:;
        };
        $loop->on($method => undef);
        is("@rounds", '1 2', qq{$name out of the method $method: the caller's loop goes on});
        if ($method eq 'remove_timeout') {
            my $died = 'Cannot remove timeout: VirtTest::Loop::remove_timeout died: ';
            like($warnings[0], qr/\A\Q$died\E(?:Can't|Label)/, '... with a warning');
            is(scalar(() = watches()), 0, '... and the timer is gone');
        } else {
            is(scalar(grep { $_ =~ $reason } @errors), 2, '... with an exception each time');
            is("@warnings", '', '... and no warning');
            remove_timeout($id);
        }
    }
    clean('... and nothing is left behind');
}
with_watches(sub { return }, sub {
    my ($helper, $dispatch) = @_;
    is(exception_of { $dispatch->() }, undef, "return out of a callback of $helper");
});
with_watches(sub { my $id = shift; goto &{ sub { die "gone to with @_\n" } } }, sub {
    my ($helper, $dispatch) = @_;
    like(exception_of { $dispatch->() }, qr/\Agone to with/, "goto &code out of a callback of $helper");
});
clean('nothing is left behind');

# The die handler sees an exception once, where it is thrown.
with_watches(sub { die "text\n" }, sub {
    my ($helper, $dispatch) = @_;
    my (@seen, @where);
    local $SIG{__DIE__} = sub { push @seen, $_[0]; push @where, $^S };
    my $error = exception_of { $dispatch->() };
    is_deeply(\@seen, ["text\n"], "\$SIG{__DIE__} is called once for an exception that leaves $helper");
    is_deeply(\@where, [1], '... and sees that it is in an eval');
    is($error, "text\n", '... which arrives');
    eval { die "later\n" };
    is($seen[1], "later\n", '... and the handler is still there');
});
with_watches(sub { die "text\n" }, sub {
    my ($helper, $dispatch) = @_;
    my $object = My::Exception->new;
    local $SIG{__DIE__} = sub { die $object };
    ok(same(exception_of { $dispatch->() }, $object), "what \$SIG{__DIE__} throws instead leaves $helper");
});
{
    my @seen;
    local $SIG{__DIE__} = sub { push @seen, $_[0] };
    my $id = add_timeout(5, sub { });
    $loop->on($_ => sub { die "text\n" }) for qw(add_timeout update_timeout);
    my @errors = (exception_of { update_timeout($id, 1) }, exception_of { add_timeout(5, sub { }) });
    $loop->on($_ => undef) for qw(add_timeout update_timeout);
    is_deeply(\@seen,   [("text\n") x 2], '$SIG{__DIE__} is called once for each exception of a method');
    is_deeply(\@errors, [("text\n") x 2], '... which arrives');
    @seen = ();
    my $error = exception_of { remove_timeout(9999) };
    is_deeply(\@seen, [$error], '... and once for one of ours');
    remove_timeout($id);
}

# Where no border is on the stack.
{
    my $id = add_timeout(5, sub { });
    $loop->on(update_timeout => sub { die "in a method\n" });
    my @warnings = warnings_of { Test::Sys::Virt::EventImpl::CApi::update_timeout($id, 1) };
    $loop->on(update_timeout => undef);
    is_deeply(\@warnings, ["Cannot update timeout: VirtTest::Loop::update_timeout died: in a method\n"],
        'a method that dies in a call by C: a warning');
    my @later = map { identity($_) } exception_of { update_timeout($id, 1) },
        exception_of { $loop->dispatch($loop->latest) }, exception_of { remove_timeout($id) };
    is_deeply(\@later, [('nothing') x 3], '... which no later call throws');
}
{
    my (@ids, @keys);
    for (1 .. 2) { push @ids, add_timeout(5, sub { }); push @keys, $loop->latest->{key} }
    $loop->on(update_timeout => sub { my ($self, $key) = @_; die "key $key\n" });
    my $outer = add_timeout(5, sub {
        Test::Sys::Virt::EventImpl::CApi::update_timeout($_, 1) for @ids;
        die "callback\n";
    });
    my $error;
    my @warnings = warnings_of { $error = exception_of { $loop->dispatch($loop->latest) } };
    $loop->on(update_timeout => undef);
    is($error, "key $keys[0]\n", 'several exceptions inside one border: the first is thrown');
    is_deeply(\@warnings, [
        "Cannot update timeout: VirtTest::Loop::update_timeout died: key $keys[1]\n",
        "Exception in an event callback: callback\n",
    ], '... the others are warnings');
    remove_timeout($_) for @ids, $outer;
}
{
    my $evil = bless {}, 'My::Evil';
    my $id = add_timeout(5, sub { Test::Sys::Virt::EventImpl::CApi::update_timeout($_[0], 1); die $evil });
    my $watch = $loop->latest;
    $loop->on(update_timeout => sub { die "first\n" });
    open my $stderr, '>&', \*STDERR or die $!;
    open STDERR, '>', '/dev/null' or die $!;
    my $error;
    my @warnings = warnings_of { $error = exception_of { $loop->dispatch($watch) } };
    open STDERR, '>&', $stderr or die $!;
    $loop->on(update_timeout => undef);
    is($error, "first\n", 'a second exception whose overload dies does not harm the first');
    remove_timeout($id);
}

# A nested run is a border of its own.
{
    my @log;
    my $inner = add_timeout(5, sub { die "inner\n" });
    my $inner_watch = $loop->latest;
    my $outer = add_timeout(5,
        sub { push @log, exception_of { $loop->dispatch($inner_watch) }; push @log, "goes on\n" });
    is(exception_of { $loop->dispatch($loop->latest) }, undef,
        'an exception of a nested run does not reach the outer one');
    is_deeply(\@log, ["inner\n", "goes on\n"], '... but the callback that ran the loop');
    remove_timeout($_) for $inner, $outer;
}
clean('nothing is left behind');

# protect
{
    my @seen;
    my $code = protect(sub { push @seen, wantarray; $_[0] = 'changed'; return (7, 8, 9) });
    my ($one, $two) = ('one', 'two');
    $code->($one, $two);
    my $scalar = $code->($one);
    my @list = $code->($one);
    is_deeply(\@seen, [undef, '', 1], 'protect: code sees its context');
    is($scalar, 9, '... returns a scalar');
    is_deeply(\@list, [7, 8, 9], '... or a list');
    is($one, 'changed', '... has its arguments by alias');
    is_deeply([protect(sub { scalar @_ })->()], [0], '... or none');
    is_deeply([protect(sub { return })->()],    [],  '... may return nothing in list context');
    is(scalar protect(sub { return })->(), undef, '... and undef in scalar context');
    my $array = [1];
    is(refaddr(protect(sub { $array })->()), refaddr($array), '... or a reference');
    is_deeply([protect(sub { @_ })->(1 .. 1000)], [1 .. 1000], '... and as many values as it likes');
    is(protect(protect(sub { "twice $_[0]" }))->('x'), 'twice x', '... can be nested');
    is(ref $code, 'CODE', '... and is code');
    my $sum = 0;
    $sum += protect(sub { $_[0] * 2 })->($_) for 1 .. 3;
    is($sum, 12, '... which uses $_ of nobody');

    my $suicide;
    $suicide = protect(sub { undef $suicide; return 'survived' });
    is($suicide->(), 'survived', '... may let go of itself');

    my $original = sub { $array };
    weaken(my $weak = $original);
    $code = protect($original);
    undef $original;
    is(refaddr($code->()), refaddr($array), '... keeps the code');
    undef $code;
    is($weak, undef, '... and releases it in its turn');
}
{
    my $exception = bless {}, 'My::False';
    with_watches(protect(sub { die $exception }), sub {
        my ($helper, $dispatch) = @_;
        ok(same(exception_of { $dispatch->() }, $exception), "an exception in a protected callback leaves $helper");
    });
    my @results;
    my $callback = sub {
        @results = protect(sub { die "in protect\n" })->();
        push @results, scalar(protect(sub { die "again\n" })->()), 'goes on';
    };
    with_watches($callback, sub {
        my ($helper, $dispatch) = @_;
        my $error;
        my @warnings = warnings_of { $error = exception_of { $dispatch->() } };
        is($error, "in protect\n", "protected code called in a callback: its exception leaves $helper");
        is_deeply(\@warnings, ["Exception in a protected callback: again\n"], '... a second one is a warning');
        is_deeply(\@results,  [undef, 'goes on'], '... and its caller goes on, with nothing or undef');
    });
    my @rounds;
    my @warnings = warnings_of {
        local $@ = 'mine';
        for my $round (1 .. 2) {
            no warnings 'exiting';
            protect(sub { next })->();
            push @rounds, $round, $@;
        }
        protect(sub { die "no border\n" })->();
        push @rounds, $@;
    };
    is("@rounds", '1 mine 2 mine mine', 'next in protected code does not leave it, and $@ is as it was');
    is(scalar(grep { /\AException in a protected callback: Can't "next" outside a loop block at \Q$0\E/ } @warnings),
        2, '... without a border it is a warning');
    is($warnings[2], "Exception in a protected callback: no border\n", '... as is an exception');
    is(exception_of { add_timeout(5, sub { }) for 1; remove_timeout($_->{id}) for watches() }, undef,
        '... which no later call throws');
}
clean('nothing is left behind');

# Signals. In a method its handler waits for the caller's statement to end, whoever the caller is.
for my $method (qw(add_timeout update_timeout remove_timeout add_handle update_handle remove_handle)) {
    my @log;
    my ($verb, $kind) = split /_/, $method;
    my $id = $verb eq 'add' ? 0 : $function{"add_$kind"}->();
    $loop->on($method => sub { kill ALRM => $$; push @log, 'in method'; return 77 });
    local $SIG{ALRM} = sub { push @log, 'handler'; die "time is up\n" };
    my $error = exception_of { $function{$method}->($id) };
    $loop->on($method => undef);
    is("@log", 'in method handler', "a signal in the method $method: its handler runs afterwards");
    is($error, "time is up\n", q{... and its exception reaches the caller's eval});
    my @left = watches();
    is(scalar @left, $verb eq 'remove' ? 0 : 1, '... when the call has done its work');
    $function{"remove_$kind"}->($_->{id}) for @left;
    clean('... and nothing is left behind');
}
{
    my @log;
    my $id = add_timeout(5, sub { });
    local $SIG{ALRM} = sub { push @log, 'handler' };
    $loop->on(update_timeout => sub {
        my $end = time + 0.1;
        Time::HiRes::ualarm(10_000);
        1 while time < $end;
        push @log, 'method';
        $loop->on(update_timeout => undef);
        update_timeout($id, 2);
        push @log, 'nested';
    });
    update_timeout($id, 1);
    push @log, 'caller';
    is("@log", 'method nested handler caller',
        'an alarm while a method is busy, with a nested call of ours: the handler waits for the outermost');
    remove_timeout($id);
}
with_watches(sub { kill ALRM => $$; return }, sub {
    my ($helper, $dispatch) = @_;
    local $SIG{ALRM} = sub { die "time is up\n" };
    is(exception_of { $dispatch->() }, "time is up\n",
        "a signal in a callback is handled there: what its handler throws leaves $helper");
});
{
    my @log;
    local $SIG{ALRM} = sub { push @log, 'handler' };
    with_watches(sub { kill ALRM => $$; push @log, 'callback' }, sub { $_[1]->() });
    is("@log", 'handler callback handler callback', '... at once');
}

# What is nobody's business: $@, $!, $_ and libvirt's last error.
{
    my $spoil = sub {
        my $inside = join ' ', $@ // 'undef', defined $_ ? 'topic' : 'no topic';
        $@ = 'spoilt';
        $! = 7;
        $_ = 'spoilt';
        eval { die "inside\n" };
        open my $fh, '<', '/nonexistent' or 1;
        for (1 .. 2) { $_ .= 'x' for my $copy = $_ }
        Test::Sys::Virt::EventImpl::CApi::set_error($_[0] eq 'none' ? 0 : 99);
        return $inside;
    };
    my $undisturbed = sub {
        my ($name, $call) = @_;
        local $Test::Builder::Level = $Test::Builder::Level + 1;
        for my $code (42, 0) {
            local $_ = 'topic';
            Test::Sys::Virt::EventImpl::CApi::set_error($code);
            $@ = 'mine';
            $! = 5;
            $call->();
            my @now = ($@, $! + 0, $_, Test::Sys::Virt::EventImpl::CApi::last_error_code());
            my $last = $code ? "libvirt's last error" : 'that libvirt had none';
            is_deeply(\@now, ['mine', 5, 'topic', $code], "$name leaves \$@, \$!, \$_ and $last alone");
        }
    };
    $undisturbed->('control', sub { });
    for my $how (qw(any none)) {
        my $id;
        $loop->on($_ => sub { $spoil->($how); return 77 })
            for qw(add_timeout add_handle update_timeout update_handle remove_timeout remove_handle);
        for my $caller (['a function', \%function], ['C', \%c_function]) {
            my ($name, $call) = @$caller;
            for my $kind (qw(timeout handle)) {
                my @ids;
                $undisturbed->("the method add_$kind, by $name,", sub { push @ids, $call->{"add_$kind"}->() });
                $undisturbed->("the method update_$kind, by $name,", sub { $call->{"update_$kind"}->($ids[0]) });
                $undisturbed->("the method remove_$kind, by $name,", sub { $call->{"remove_$kind"}->(pop @ids) });
            }
        }
        $loop->on($_ => undef) for qw(add_timeout add_handle update_timeout update_handle remove_timeout remove_handle);
        with_watches(sub { $spoil->($how) },
            sub { my ($helper, $dispatch) = @_; $undisturbed->("a callback through $helper", $dispatch) });
        $undisturbed->('protected code', sub { protect(sub { $spoil->($how) })->() });

        # The free function releases the callback and what it holds.
        my $freed = 0;
        my $add_with = sub { my $held = My::Finally->new($_[0]); return add_timeout(5, sub { $held }) };
        my @to_free = map { $add_with->(sub { $freed++; $spoil->($how) }) } 1 .. 2;
        $undisturbed->('an object freed with a removed timer', sub { remove_timeout(pop @to_free); 1 });
        is($freed, 2, '... which is freed');
        my @dying = map { $add_with->(sub { $freed++; $spoil->($how); die "in DESTROY\n" }) } 1 .. 2;
        my @warnings = warnings_of {
            $undisturbed->('an object that dies when freed', sub { remove_timeout(pop @dying); 1 });
        };
        is(scalar(grep { /\A\s*\(in cleanup\) in DESTROY/ } @warnings), 2, '... with a warning of perl');
    }
    my @inside;
    my $id = add_timeout(5, sub { push @inside, $spoil->('any') });
    my $watch = $loop->latest;
    $loop->on(update_timeout => sub { push @inside, $spoil->('any') });
    {
        local $@ = 'mine';
        $_ = 'topic' for my $topic;
        for (my @elements = qw(a b)) { $loop->dispatch($watch); update_timeout($id, 1) }
    }
    $loop->on(update_timeout => undef);
    is_deeply(\@inside, [(' no topic') x 4], 'callbacks and methods find $@ empty and $_ undefined');
    my @elements = qw(a b);
    $loop->on(update_timeout => sub { $_ = 'spoilt'; open my $fh, '<', $0 or die; while (<$fh>) { last } });
    is(exception_of { for (1, 2, @elements) { update_timeout($id, 1) } }, undef,
        'a method that assigns to $_ in a loop over constants');
    $loop->on(update_timeout => undef);
    is("@elements", 'a b', '... or over elements, which it leaves alone');
    remove_timeout($id);
}
clean('nothing is left behind');

# Nothing leaks: exceptions are freed, and the process does not grow.

sub kilobytes { my @pages = split ' ', Test::Sys::Virt::EventImpl::Util::first_line('/proc/self/statm'); return $pages[5] * 4 }

{
    my $id = add_timeout(5, sub { die My::Exception->new });
    my $watch = $loop->latest;
    $loop->on($_ => sub { die My::Exception->new }) for qw(update_timeout add_handle);
    my $protected = protect(sub { die My::Exception->new });
    my %leaks = (
        'a callback'         => sub { eval { $loop->dispatch($watch) } },
        'an update method'   => sub { eval { update_timeout($id, 1) } },
        'an add method'      => sub { eval { add_handle($reader, 1, sub { }) } },
        'a method, as a warning' => sub { Test::Sys::Virt::EventImpl::CApi::update_timeout($id, 1) },
        'protected code'     => sub { $protected->() },
        'new protected code' => sub { protect(sub { die My::Exception->new })->() },
    );
    local $SIG{__WARN__} = sub { };
    for my $name (sort keys %leaks) {
        my $code = $leaks{$name};
        undef $@;
        my $before = $My::Exception::destroyed;
        $code->() for 1 .. 1000;
        undef $@;
        is($My::Exception::destroyed - $before, 1000, "1000 exceptions in $name are destroyed");
        SKIP: {
            skip 'memory says nothing under these tools', 1 if $ENV{TEST_SLOW};
            splice @{ $loop->{calls} };
            my $size = kilobytes();
            for (1 .. 10_000) { $code->(); $#{ $loop->{calls} } = -1 }
            # One SV of 24 bytes for each would be 240.
            cmp_ok(kilobytes() - $size, '<', 150, '... and 10000 more take no memory');
        }
    }
    $loop->on($_ => undef) for qw(update_timeout add_handle);
    remove_timeout($id);
}
SKIP: {
    skip 'memory says nothing under these tools', 1 if $ENV{TEST_SLOW};
    for my $name (sort keys %escapes) {
        my $id = add_timeout(5, $escapes{$name}[0]);
        my $watch = $loop->latest;
        $loop->on(update_timeout => $escapes{$name}[0]);
        my $once = sub { eval { $loop->dispatch($watch) }; eval { update_timeout($id, 1) }; $#{ $loop->{calls} } = -1 };
        $once->() for 1 .. 1000;
        my $size = kilobytes();
        $once->() for 1 .. 10_000;
        cmp_ok(kilobytes() - $size, '<', 150, "nor do 10000 times $name");
        $loop->on(update_timeout => undef);
        remove_timeout($id);
    }
}
ok(is_idle(), 'in the end nothing is registered');
done_testing;
