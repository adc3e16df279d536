# Signals that come at any moment, whose handlers die or use the API: the program gets the exception, and nothing is lost.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";

use POSIX ();
use Scalar::Util qw(weaken);
use Test::More;
use Time::HiRes qw(ITIMER_VIRTUAL setitimer);

use Sys::Virt::Event qw(:all);
use Sys::Virt::Event::Poll;
use Test::Sys::Virt::EventImpl::CApi;
use Test::Sys::Virt::EventImpl::Daemon;
use Test::Sys::Virt::EventImpl::Util qw(first_line pause);
use VirtTest qw(:DEFAULT patience has_epoll run_once is_asleep_soon);
use VirtTest::Adapters qw(adapter_classes is_limited);
use VirtTest::Child;

my $has_sys_virt = eval { require Sys::Virt };

watchdog(150);

# A subclass whose methods say that they are running: a handler in %SIG must not see that.
our $inside = 0;
my @METHODS = map { ("${_}_handle", "${_}_timeout") } qw(add update remove);
sub told {
    my ($class) = @_;
    my $subclass = "Told::$class";
    eval "require $class" or die;
    no strict 'refs';
    @{"${subclass}::ISA"} = $class;
    for my $method (@METHODS) {
        my $original = $class->can($method);
        *{"${subclass}::$method"} = sub {
            my ($loop, $key) = @_;
            my $is_outer = !$inside;
            local $inside = 1;
            my $result = &$original;
            $loop->{known}{$result}++ if $method =~ /^add/;
            $loop->{known}{$key}-- if $method =~ /^remove/;
            $loop->{hook}->($method) if $loop->{hook} && $is_outer;
            return $result;
        };
    }
    return $subclass;
}

# EV's loop is served from C where no method is overridden.
sub by_c { my ($class) = @_; require Sys::Virt::Event::EV; return $class }

# How to register each kind of loop, and to run it: once, at most so long.
sub looper { my ($class) = @_; return sub { my $loop = $class->new->register; return ($loop, sub { run_once($loop, @_) }) } }
my @ADAPTERS = adapter_classes();
my %CLASS = map({ $_ => $_ eq 'Sys::Virt::Event::EV' ? by_c($_) : told($_) } @ADAPTERS);
my %LOOP = (
    poll    => looper(told('Sys::Virt::Event::Poll')),
    default => sub { register_default(); return ({}, sub { run_default(@_) }) },
    has_epoll() ? (epoll => looper(told('VirtTest::EpollLoop'))) : (),
    map { $_ => looper($CLASS{$_}) } @ADAPTERS,
);
# Those whose methods can be looked at.
my @TOLD = grep { $LOOP{$_} } qw(poll epoll), grep { $CLASS{$_} =~ /^Told/ } @ADAPTERS;
# In some a pass that a signal interrupts goes on until something is ready: their own loops are made so, in Perl. So the
# handler runs, and it is for the handler to see to it that something is ready.
sub sleeps_on { my ($name) = @_; return is_limited($name, 'sleep after a signal') }

sub outcome(&) { my ($code) = @_; return &exception_of($code) // "returns\n" }

# A process that is told when this one is about to sleep, and runs $code->($pid) once it does.
sub when_asleep {
    my ($code) = @_;
    my ($reader, $writer) = pipe_pair();
    my $test = $$;
    defined(my $pid = fork) or die "Cannot fork: $!";
    if (!$pid) {
        close $writer;
        while (sysread $reader, my $byte, 1) {
            is_asleep_soon($test) or POSIX::_exit(1);
            $code->($test);
        }
        POSIX::_exit(0);
    }
    close $reader;
    return sub {
        my ($what) = @_;
        return syswrite $writer, 'x' if $what eq 'soon';
        undef $writer;
        waitpid $pid, 0;
    };
}

# Nothing is ready, and no timer runs: only the signal can end the wait.
for my $name (sort keys %LOOP) {
    my @log = in_child {
        my ($loop, $run) = $LOOP{$name}->();
        my ($reader, $writer) = pipe_pair();
        my $id = add_handle($reader, 1, sub { sysread $reader, my $byte, 1; push @main::log, 'handle' });
        my $other = when_asleep(sub { kill USR1 => $_[0] });
        our @log;
        my $wake_up = sub { syswrite $writer, 'x' if sleeps_on($name) };
        # Some loops have passes in which they do not sleep, libvirt's own after the first addition.
        my $sleep = sub {
            my $count = @log;
            return $loop->run_until(sub { @log > $count }) if $CLASS{$name};
            $run->() while @log == $count;
        };
        for my $dies (0, 1) {
            local $SIG{USR1} = sub { push @log, 'handler'; die "dies\n" if $dies; $wake_up->() };
            $other->('soon');
            push @log, outcome { $sleep->() };
        }
        for my $safe (1, 0) {
            my $action = POSIX::SigAction->new(sub { push @log, 'action'; $wake_up->() }, POSIX::SigSet->new);
            $action->safe($safe);
            POSIX::sigaction(POSIX::SIGUSR1(), $action);
            $other->('soon');
            push @log, outcome { $sleep->() };
        }
        # What the manual says of the moment before the wait: a pipe.
        local $SIG{USR1} = sub { syswrite $writer, 'x' };
        kill USR1 => $$;
        $sleep->();
        $other->('end');
        remove_handle($id);
        push @log, is_idle() ? 'idle' : 'not idle';
        return @log;
    };
    my @woken = sleeps_on($name) ? 'handle' : ();
    is_deeply \@log, ['handler', @woken, "returns\n", 'handler', "dies\n", ('action', @woken, "returns\n") x 2, 'handle', 'idle'],
        "$name: a signal of another process ends the sleep, and the handler has run";
}

for my $name ('poll', @ADAPTERS) {
    my @log = in_child {
        my ($loop) = $LOOP{$name}->();
        my ($reader, $writer) = pipe_pair();
        add_handle($reader, 1, sub { sysread $reader, my $byte, 1 });
        my ($handled, @log) = (0);
        my $other = when_asleep(sub { kill USR1 => $_[0] });
        local $SIG{USR1} = sub {
            return $other->('soon') if ++$handled < 3;
            $loop->stop;
        };
        $other->('soon');
        $loop->run_until(sub { 0 });
        push @log, $handled;
        $other->('soon');
        $loop->run_until(sub { push @log, "asked $handled"; $handled == 4 });
        $other->('end');
        return @log;
    };
    is_deeply \@log, [3, 'asked 3', 'asked 4'], "$name: run_until goes on after a signal until stop, and asks again";
}

# sigaction, inside a method. The rest of the manual's chapter is about %SIG and safe(1), which is the same.
my @log = in_child {
    my ($loop) = $LOOP{poll}->();
    my @log;
    for my $safe (1, 0) {
        my $action = POSIX::SigAction->new(sub { push @log, $inside ? 'inside' : 'outside'; die "time\n" if $safe }, POSIX::SigSet->new);
        $action->safe($safe);
        POSIX::sigaction(POSIX::SIGUSR1(), $action);
        $loop->{hook} = sub { kill USR1 => $$ };
        push @log, outcome { add_timeout(-1, sub { }) };
        delete $loop->{hook};
    }
    return (@log, scalar watches());
};
is_deeply \@log, ['outside', "time\n", 'inside', "returns\n", 2],
    'a handler of sigaction with safe(1) waits for the method to end, one without does not';

# perl's handler crashes in a thread that has no interpreter. libvirt reads a screenshot in one.
SKIP: {
    skip 'Sys::Virt is not installed', 1 if !$has_sys_virt;
    skip 'there is no tgkill here', 1 if !has_epoll();
    my @got = in_child {
        my $handled = 0;
        local $SIG{USR1} = sub { $handled += 1 };
        my ($loop) = $LOOP{poll}->();
        my $action = POSIX::SigAction->new(sub { $handled += 10 }, POSIX::SigSet->new);
        $action->safe(1);
        POSIX::sigaction(POSIX::SIGUSR2(), $action);
        my $conn   = Sys::Virt->new(uri => 'test:///default');
        my $stream = $conn->new_stream(Sys::Virt::Stream::NONBLOCK());
        $conn->get_domain_by_name('test')->screenshot($stream, 0);
        my ($thread) = grep { $_ != $$ } map { /(\d+)\z/ } glob '/proc/self/task/*';
        syscall VirtTest::EpollLoop::SYS_tgkill(), $$, $thread + 0, $_ for POSIX::SIGUSR1(), POSIX::SIGUSR2();
        my $end = time + patience(5);
        pause(0.002) until $handled == 11 || time > $end;
        $stream->abort;
        return $handled;
    };
    is_deeply \@got, [11], 'a signal that comes to a thread of libvirt is handled in the thread of the loop';
}

# A handler that dies before the nth statement of an adapter's, for each n: no watch is lost.
for my $class (map { $_ eq 'Sys::Virt::Event::EV' ? 'VirtTest::EVInPerl' : $_ } @ADAPTERS) {
    my $run = fresh_perl(<<'PERL', args => [$class], switches => ['-d:AtStatement'], timeout => 60);
use strict; use warnings; use Sys::Virt::Event qw(:all); use VirtTest;
my ($class) = @ARGV;
eval "require $class" or die;
my $loop = $class->new->register;
my ($reader, $writer) = pipe_pair();
syswrite $writer, 'x';
my %calls;
add_handle($reader, 1, sub { $calls{handle}++ });
add_timeout($_, sub { $calls{$_[0]}++ }) for 0, 1;
my $all = sub { keys %calls == 3 };
local $SIG{USR1} = sub { die "signal\n" };
local $SIG{__WARN__} = sub { die $_[0] if $_[0] !~ /signal$/m };
for my $n (1 .. 200) {
    %calls = ();
    Devel::AtStatement::call($n, qr{/Sys/Virt/Event/}, sub { kill USR1 => $$ });
    1 until !eval { $loop->run_until($all, 0.1); 1 } || !Devel::AtStatement::left();
    Devel::AtStatement::call(0);
    %calls = ();
    $loop->run_until($all, VirtTest::patience(5)) or print "$n: only ", join(' ', sort keys %calls), "\n";
}
POSIX::_exit(0);
PERL
    is_deeply [@$run{qw(stdout stderr exit signal timed_out)}], ['', '', 0, 0, 0], "$class: a handler that dies between any two statements";
}

# What a handler can do with the API: by the name, given the connection and how to run the loop.
my @of_handlers;
my %ACTION;
%ACTION = (
    dies       => sub { die "signal\n" },
    adds       => sub { push @of_handlers, add_timeout(60_000, sub { }); remove_timeout(shift @of_handlers) if @of_handlers > 3 },
    calls      => sub { my ($conn) = @_; $conn ? $conn->num_of_domains : update_timeout(add_timeout(-1, sub { }), 5) },
    runs       => sub { my ($conn, $run) = @_; $run->(0) },
    everything => sub {
        my ($conn, $run) = @_;
        $ACTION{$_}->($conn, $run) for qw(adds calls runs dies);
    },
);

sub clear {
    my ($run) = @_;
    $_->{kind} eq 'handle' ? remove_handle($_->{id}) : remove_timeout($_->{id}) for watches();
    return drain(patience(10)) ? 'idle' : 'not idle: ' . join ', ', map { "$_->{kind} $_->{id}" } watches();
}

# A signal in each method that a call of libvirt calls, and in callbacks.
SKIP: {
    skip 'Sys::Virt is not installed', 1 if !$has_sys_virt;
    my $why_not = Test::Sys::Virt::EventImpl::Daemon->why_not;
    skip $why_not, 1 if $why_not;
    my $daemon = Test::Sys::Virt::EventImpl::Daemon->start;

    my $lifecycle = Sys::Virt::Domain::EVENT_ID_LIFECYCLE();
    my %CALL = (
        rpc       => sub { $_[0]->num_of_domains },
        keepalive => sub { $_[0]->set_keep_alive(20, 5) },
        handler   => sub { $_[0]->domain_event_deregister_any($_[0]->domain_event_register_any(undef, 13, sub { })) },
        opens     => sub {
            my $other = Sys::Virt->new(uri => $daemon->uri);
            $other->domain_event_deregister_any($other->domain_event_register_any(undef, $lifecycle, sub { }));
            undef $other;
        },
    );
    for my $name (@TOLD) {
        for my $action (sort keys %ACTION) {
            my @wrong = in_child {
                my ($loop, $run) = $LOOP{$name}->();
                my $conn = Sys::Virt->new(uri => $daemon->uri);
                my (@events, @wrong, %reached);
                my $id = $conn->domain_event_register_any(undef, $lifecycle, protect(sub { push @events, $_[2] }));
                my ($armed, $handled, $signalled);
                local $SIG{USR1} = sub {
                    push @wrong, "in a method of $name" if $inside;
                    $handled++;
                    $ACTION{$action}->($conn, $run);
                };
                for my $call (sort keys %CALL) {
                    # At the nth method that the call calls, for each n there is.
                    for (my $n = 1;; $n++) {
                        my $count = $handled = my $in_cleanup = 0;
                        local $SIG{__WARN__} = sub { $_[0] =~ /\A\s*\(in cleanup\) signal/ ? $in_cleanup = 1 : warn @_ };
                        $loop->{hook} = sub { if (++$count == $n) { $reached{ $_[0] } = 1; kill USR1 => $$ } };
                        my $error = exception_of { $CALL{$call}->($conn); for (1, 2) { $handled += 0 } };
                        delete $loop->{hook};
                        last if $count < $n;
                        push @wrong, "$call $n: handled $handled times" if $handled != 1;
                        # In a destructor, as at the end of a connection, perl makes a warning of it.
                        my $expected = $action =~ /dies|everything/ && !$in_cleanup ? "signal\n" : undef;
                        push @wrong, "$call $n: " . ($error // 'no exception') if ($error // '') ne ($expected // '');
                    }
                }
                push @wrong, 'not all methods reached: ' . join ' ', sort keys %reached if keys %reached < 6;
                my $dom = $conn->get_domain_by_name('test');
                $dom->suspend;
                $dom->resume;
                $run->(5) until @events == 2;
                push @wrong, "events @events" if "@events" ne '3 4';
                # Handlers that were registered when the exception came.
                undef $_ for $dom, $conn;
                remove_timeout($_) for @of_handlers;
                return @wrong;
            };
            is_deeply \@wrong, [], "$name: a signal in each method called by a connection, whose handler $action";
        }
    }

    # perl dies at 120 pending signals of a kind, wherever it is.
    my @of_many = in_child {
        my ($loop) = $LOOP{poll}->();
        my $conn   = Sys::Virt->new(uri => $daemon->uri);
        my ($test, $handled) = ($$, 0);
        local $SIG{USR1} = sub { $handled++ };
        $daemon->signal('STOP');
        defined(my $pid = fork) or die "Cannot fork: $!";
        if (!$pid) {
            kill(USR1 => $test), pause(0.0005) for 1 .. 400;
            $daemon->signal('CONT');
            POSIX::_exit(0);
        }
        my @outcomes = outcome { $conn->num_of_domains };
        waitpid $pid, 0;
        return (@outcomes, outcome { $conn->num_of_domains }, $handled ? 'handled' : ());
    };
    is_deeply \@of_many, [("returns\n") x 2, 'handled'], 'hundreds of signals while a call waits';

    # The usual timeout. The signal comes while the call waits for a daemon that stands still; only then does that go on.
    for my $name (sort keys %LOOP) {
        my @log = in_child {
            my ($loop, $run) = $LOOP{$name}->();
            my $conn = Sys::Virt->new(uri => $daemon->uri);
            my @events;
            $conn->domain_event_register_any(undef, $lifecycle, sub { push @events, $_[2] });
            my $other = when_asleep(sub { kill ALRM => $_[0]; kill CONT => $daemon->pid });
            my $stands = sub { first_line('/proc/' . $daemon->pid . '/stat') =~ /\) T/ ? 'stands' : 'goes on' };
            my @log;
            for my $round (1 .. 3) {
                $daemon->signal('STOP');
                push @log, $stands->();
                push @log, exception_of {
                    local $SIG{ALRM} = sub { push @log, $stands->(); die "too slow\n" };
                    alarm 600;
                    $other->('soon');
                    $conn->get_hostname;
                    push @log, 'no alarm';
                };
                my $dom = $conn->get_domain_by_name('test');
                $dom->suspend;
                $dom->resume;
                $run->(5) until @events == 2;
                push @log, splice @events;
            }
            $other->('end');
            alarm 0;
            return @log;
        };
        is_deeply \@log, [('stands', 'goes on', "too slow\n", 3, 4) x 3],
            "$name: alarm around a slow call: its exception reaches the eval, the next calls and events work";
    }

    # perl looks for signals as a handler of Sys::Virt's returns, too: to C code that libvirt has called.
    sub InDestructor::DESTROY { my ($self) = @_; return $$self->() }
    for my $case (map { ([$_, 0], [$_, 1]) } sort keys %LOOP) {
        my ($name, $in_destructor) = @$case;
        my @log = in_child {
            my ($loop, $run) = $LOOP{$name}->();
            my $conn = Sys::Virt->new(uri => 'test:///default');
            my $dom  = $conn->get_domain_by_name('test');
            my @log;
            my $other = when_asleep(sub { kill USR1 => $_[0] });
            # The signal comes in the last thing that the first one does, and is handled in the next, which is protected.
            $conn->domain_event_register_any(undef, $lifecycle, sub {
                push @log, $_[2];
                $_[2] = bless \sub { }, 'InDestructor';    # Sys::Virt lets go of it
                $other->('soon');
                select undef, undef, undef, 5;
            });
            $conn->domain_event_register_any($dom, $lifecycle, protect(\&second));
            sub second { return }
            local $SIG{USR1} = sub { push @log, grep { /second/ } map { (caller $_)[3] // '' } 1 .. 3; die "signal\n" };
            # Of some loops an exception is a warning.
            my $told;
            local $SIG{__WARN__} = sub { $told = $_[0] };
            for my $change (qw(suspend resume) x 2) {
                $dom->$change;
                my $end = time + patience(5);
                undef $told;
                until (defined $told || time > $end) {
                    my $error = exception_of { $in_destructor ? bless \sub { $run->(1) }, 'InDestructor' : $run->(1) };
                    $told //= $error;
                }
                push @log, $told =~ /(signal)/;
            }
            $other->('end');
            return @log;
        };
        is_deeply \@log, [map { ($_, 'main::second', 'signal') } 3, 4, 3, 4], "$name: a signal as a handler of Sys::Virt's returns" . ($in_destructor ? ', in a destructor' : '');
    }

    # SIGPIPE, as the manual has it. The modules of some loops see to it that it ends no program.
    my %pipe = (
        'no handler' => ['',                       qr/\A\z/,                                POSIX::SIGPIPE()],
        'IGNORE'     => ['$SIG{PIPE} = "IGNORE";', qr/\Acall: libvirt error.*\nended\n\z/s, 0],
        'a handler' => ['$SIG{PIPE} = sub { print "handler\n" };', qr/\Ahandler\ncall: libvirt error.*\nended\n\z/s, 0],
    );
    for my $handler (sort keys %pipe) {
        for my $name ('Sys::Virt::Event::Poll', 'default', @ADAPTERS) {
            my ($code, $prints, $signal) = @{ $pipe{ $handler eq 'no handler' && is_limited($name, 'SIGPIPE') ? 'IGNORE' : $handler } };
            my $register = $name eq 'default' ? 'register_default()' : "do { require $name; $name->new->register }";
            my $doomed = Test::Sys::Virt::EventImpl::Daemon->start;
            my $run = fresh_perl(<<"PERL", args => [$doomed->uri, $doomed->pid]);
use strict; use warnings; use Sys::Virt; use Sys::Virt::Event qw(:all);
\$| = 1;
my (\$uri, \$pid) = \@ARGV;
my \$loop = $register;
$code
my \$conn = Sys::Virt->new(uri => \$uri);
kill KILL => \$pid;
# A process that the server has forked may hold the socket a little longer.
my \@sockets = map { (readlink(\$_) // '') =~ /^socket/ ? /(\\d+)\\z/ : () } glob '/proc/self/fd/*';
select undef, undef, undef, 0.01 until grep { Sys::Virt::Event::_poll_fd(\$_, 1) & HANDLE_HANGUP } \@sockets;
eval { \$conn->num_of_domains; 1 } or print "call: \$@" =~ s/\\n?\\z/\\n/r;
undef \$conn;
print "ended\\n";
PERL
            like $run->{stdout}, $prints, "a server that is gone and SIGPIPE: $handler, $name";
            is $run->{signal}, $signal, '... and how the program ends';
        }
    }
}

# A storm: signals that come as fast as they can be sent, while everything is done at random. Their handlers die or use
# the API wherever they are, but not outside of a step, where nobody would catch the exception, nor where this test
# itself takes note of what it has done.

# How many more handlers may act within the step, and callbacks run the loop: on a slow machine signals come faster than
# they are handled, and a pass that starts more than one other would not end.
my $nested = 0;

sub step($) { $nested = 20; return $_[0]->() }
sub book(&) { return $_[0]->() }
my @events;
sub on_event { push @events, $_[2]; return }

# A loop that reads a value of its own twice may find that a handler has changed it: harmless, but for the warning. Event
# tells again of a callback that an exception has left behind, without the reason.
my $CAN_BE_WARNED = qr/\AUse\ of\ uninitialized\ value\ .*EpollLoop\.pm|\AEvent:\ trapped\ error\ in\ .*:\ \?$
    |\A(?:Exception\ in\ (?:an\ event|a\ protected)\ callback:\ |EV:\ error\ in\ callback\ \(ignoring\):[ ]
        |[\d\-]+\ [\d:.]+\ \+0000\ error\ [\w:]+:\ |\*{3}\ unhandled\ exception\ in\ callback:\n(?:\*{3}\s+)?
        |Mojo::Reactor::\w+:\ [\w\/\ ]+\ failed:\ |\t\(in\ cleanup\)\ )?
    (?:(?:signal|callback|libvirt error)\b|Cannot\ (?:remove|update|drain)\b|Cannot\ run\ callback:\ it\ is\ running)/x;

# What callbacks throw goes where the host loop says, which may be a warning.
my (@wrong, $warned);
sub on_warning {
    my ($warning) = @_;
    $warning =~ $CAN_BE_WARNED ? $warned += $warning =~ /callback\n/ : push @wrong, "warning: $warning";
    return;
}

sub may_act {
    my ($is_in_perl) = @_;
    my $in_step;
    # A host loop in Perl is not made for exceptions and calls in the midst of it, nor are the modules that it loads.
    return 0 if $is_in_perl && (caller 1)[1] !~ m{\bSys/Virt/|\bt/};
    for (my $n = 1; my @frame = caller $n; $n++) {
        return 0 if $frame[3] =~ /\Amain::(?:book|on_event|on_warning)\z/;
        $in_step = 1 if $frame[3] eq 'main::step';
    }
    return $in_step;
}

# What each may be, without places and numbers.
my %CAN_BE_THROWN = map { $_ => 1 } "signal\n", "callback\n", 'Sys::Virt::Error', map({ ("Cannot remove $_: no $_ with id N is registered",
    "Cannot update $_: no id N was ever given out") } qw(handle timeout)), 'Cannot drain: a callback is running, which cannot go before it returns';
sub storm {
    my ($name, $uri, $least) = @_;
    my ($loop, $run) = $LOOP{$name}->();
    my $conn = $uri ? Sys::Virt->new(uri => $uri) : undef;
    my (%acted, @payloads, %thrown);
    $conn->domain_event_register_any(undef, Sys::Virt::Domain::EVENT_ID_LIFECYCLE(), protect(\&on_event)) if $conn;
    my $dom = $conn && $conn->get_domain_by_name('test');
    my %theirs = map { ($_->{id} => 1) } watches();    # the connection's own
    my ($reader, $writer) = pipe_pair();
    syswrite $writer, 'x';

    my @actions = sort keys %ACTION;
    my $is_in_perl = is_limited($name, 'handlers that die');
    our $depth = 0;
    my $handler = sub {
        push @wrong, 'a handler inside a method' if $inside;
        return if $depth > 3 || !may_act($is_in_perl) || $nested-- <= 0;
        local $depth = $depth + 1;
        my $action = $actions[rand @actions];
        $acted{$action}++;
        $ACTION{$action}->($conn, $run);
    };
    local @SIG{qw(USR1 VTALRM)} = ($handler) x 2;
    local $SIG{PIPE} = 'IGNORE';
    local $SIG{__WARN__} = \&on_warning;

    # What a callback holds is released with it.
    my $callback = sub {
        my $payload = {};
        book { push @payloads, $payload; weaken($payloads[-1]) };
        return sub {
            my ($id) = @_;
            my $what = rand;
            die "callback\n" if $what < 0.1;
            add_timeout(int(rand 3) - 1, sub { $payload }) if $what < 0.2;
            remove_timeout($id) if $what < 0.4;
            $run->(0) if $what > 0.9 && $nested-- > 0;
        };
    };
    my $any = sub {
        my ($kind) = @_;
        my @ids = map { $_->{id} } grep { $_->{kind} eq $kind && !$theirs{ $_->{id} } } watches();
        return $ids[rand @ids] // 1_000_000;    # nobody's
    };
    my (%of_c, %frees);
    my $count_frees = sub { $_->{what} eq 'ff' and $frees{ $_->{id} }++ for Test::Sys::Virt::EventImpl::CApi::events() };
    my @steps = (
        sub { add_timeout(int(rand 4) - 1, $callback->()) if watches() < 30 },
        sub { add_handle($reader, int rand 3, $callback->()) if watches() < 30 },
        (sub { update_timeout($any->('timeout'), int(rand 4) - 1) }, sub { update_handle($any->('handle'), int rand 3) }) x 2,
        sub { remove_timeout($any->('timeout')) },
        sub { remove_handle($any->('handle')) },
        (sub { $run->(0) }) x 2,
        sub { book { $of_c{ Test::Sys::Virt::EventImpl::CApi::add_timeout(int(rand 4) - 1) } = 1 } },
        sub { my ($id) = grep { $of_c{$_} } keys %of_c or return; Test::Sys::Virt::EventImpl::CApi::update_timeout($id, 2) },
        sub { book {
            my ($id) = grep { $of_c{$_} } keys %of_c or return;
            $of_c{$id} = 0;
            Test::Sys::Virt::EventImpl::CApi::remove_timeout($id);
            $count_frees->();
        } },
        $conn ? (sub { $conn->num_of_domains }, sub { $dom->suspend }, sub { $dom->resume }) : (),
    );

    my $test = $$;
    defined(my $sender = fork) or die "Cannot fork: $!";
    if (!$sender) {
        pause(0.0003) while getppid == $test && kill USR1 => $test;
        POSIX::_exit(0);
    }
    setitimer(ITIMER_VIRTUAL, 0.001, 0.001);
    my $is_over = sub {
        return ($thrown{"signal\n"} || 0) >= 20 && @payloads >= 50 && !grep { ($acted{$_} || 0) < $least } @actions;
    };
    for (my $end = time + patience(10); time < $end && !$is_over->();) {
        my $error = exception_of { step($steps[rand @steps]) };
        book { $thrown{ ref $error || $error =~ s/ at \S+ line .*//sr =~ s/[0-9]+/N/gr }++ } if defined $error;
    }
    setitimer(ITIMER_VIRTUAL, 0);
    kill KILL => $sender;
    waitpid $sender, 0;
    @SIG{qw(USR1 VTALRM)} = ('IGNORE') x 2;

    push @wrong, map { "thrown: $_" } grep { !$CAN_BE_THROWN{$_} } keys %thrown;
    push @wrong, "seldom: $_" for grep { ($acted{$_} || 0) < 5 } @actions;
    push @wrong, 'few exceptions' if ($thrown{"signal\n"} || 0) < 20 || !$thrown{"callback\n"} && !$warned;
    if ($conn) {
        # An event for each time that the daemon has done it, in order. libvirt's own loop calls its timer inside itself:
        # there a nested run gives later events first.
        my $is_paused = $dom->get_info->{state} == Sys::Virt::Domain::STATE_PAUSED();
        $dom->destroy;
        my $end = time + patience(10);
        until (@events && $events[-1] == 5 || time > $end) { eval { $run->(1) } }
        $dom->create;
        pop @events;
        push @wrong, "events @events" if @events < 4 || (grep { $_ == 3 } @events) != (grep { $_ == 4 } @events) + $is_paused
            || $name ne 'default' && "@events" !~ /\A(?:3 4 ?)*3?\z/;
        undef $_ for $dom, $conn;
    }
    $of_c{$_} && Test::Sys::Virt::EventImpl::CApi::remove_timeout($_) for keys %of_c;
    for (1 .. 1000) { eval { clear($run); 1 } and last }
    push @wrong, clear($run);
    for (1 .. 1000) { $count_frees->(); last if keys %frees >= keys %of_c; $run->(0) }
    push @wrong, map { "C's $_ was freed " . ($frees{$_} || 0) . ' times' } grep { ($frees{$_} || 0) != 1 } keys %of_c;
    push @wrong, scalar(grep { defined } @payloads) . ' of ' . @payloads . ' callbacks are not released' if grep { defined } @payloads;
    push @wrong, 'no callbacks' if @payloads < 50;
    my @kept = map { grep { ref && !$_->{wake} && $_ != ($loop->{wake} // 0) } values %{ $loop->{$_} || {} } } qw(handles timers);
    push @wrong, 'the loop keeps ' . @kept if @kept;
    my %kept = map { ($_ => 1) } map { keys %{ $loop->{$_} || {} } } qw(handles timers watch);
    push @wrong, map { "$_ was added and not removed, or the reverse" }
        grep { $loop->{known}{$_} != ($kept{$_} || 0) } keys %{ $loop->{known} || {} };
    return @wrong;
}

my $daemon = $has_sys_virt && !Test::Sys::Virt::EventImpl::Daemon->why_not ? Test::Sys::Virt::EventImpl::Daemon->start : undef;
for my $name ($ENV{SIGNALS_LOOP} // sort keys %LOOP) {
    my $seed = $ENV{SIGNALS_SEED} || 1 + int rand 1e9;
    my @wrong = eval { in_child { srand $seed; storm($name, $daemon && $daemon->uri, 30) } };
    push @wrong, $@, $daemon ? $daemon->log : () if $@;
    is_deeply \@wrong, ['idle'], "$name: a storm of signals while everything is done at random" or diag explain(\@wrong), "SIGNALS_SEED=$seed";
}

done_testing;
