# Callbacks that run the loop, remove everything, add, or want to change the loop: from every position of a pass.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";

use Test::More;
use Sys::Virt::Event qw(:all);
use Sys::Virt::Event::Poll;
use Test::Sys::Virt::EventImpl::CApi;
use Test::Sys::Virt::EventImpl::Daemon;
use VirtTest qw(:DEFAULT patience has_epoll run_once);
use VirtTest::Adapters qw(adapter_classes is_limited);
use VirtTest::Child;
use VirtTest::Loop;

my $has_sys_virt = eval { require Sys::Virt };
my $daemon = $has_sys_virt && !Test::Sys::Virt::EventImpl::Daemon->why_not ? Test::Sys::Virt::EventImpl::Daemon->start : undef;

watchdog(90);

sub looper {
    my ($class) = @_;
    eval "require $class" or die;
    return sub { my $loop = $class->new->register; return sub { run_once($loop, @_) } };
}
my @ADAPTERS = adapter_classes();
my %LOOP = (
    poll    => looper('Sys::Virt::Event::Poll'),
    default => sub { register_default(); return sub { run_default(@_) } },
    map { $_ => looper($_) } @ADAPTERS,
);

# What is freed with a callback says so.
{ package Freed; sub DESTROY { $_[0]{freed}->() } }

sub remove { my ($kind, $id) = @_; return $kind eq 'handle' ? remove_handle($id) : remove_timeout($id) }

# $count watches of each kind, all ready, each with $code->($n, $id, \@watches), where @watches are [kind, id].
sub ready_watches {
    my ($count, $code, $on_free) = @_;
    my @watches;
    my ($reader, $writer) = pipe_pair();
    syswrite $writer, 'x';
    for my $n (0 .. 2 * $count - 1) {
        my $guard = bless { freed => sub { $on_free->($n) }, pipe => [$reader, $writer] }, 'Freed';
        my $callback = sub { $code->($n, $_[0], \@watches); $guard };
        push @watches, $n % 2 ? [timeout => add_timeout(0, $callback)] : [handle => add_handle($reader, 1, $callback)];
    }
    return \@watches;
}

for my $name (sort keys %LOOP) {
    for my $nested (0, 1) {
        # The callback that comes at this position of the pass removes all watches, itself too.
        my @wrong = in_child {
            my $run = $LOOP{$name}->();
            my @wrong;
            for my $position (0 .. 5) {
                my ($calls, $running, %freed, @early) = (0, -1);
                my $watches = ready_watches(3, sub {
                    my ($n, $id, $watches) = @_;
                    return if $calls++ != $position;
                    $running = $n;
                    remove(@$_) for @$watches;
                    if ($nested) { $run->(0.01) for 1 .. 3 }
                    push @early, $n if $freed{$n};
                    $running = -1;
                }, sub { $freed{ $_[0] }++ });
                for (1 .. 50) { last if $calls > $position; $run->(0.01) }
                $run->(0) for 1 .. 3;
                my $at = "position $position: ";
                push @wrong, $at . "$calls calls" if $calls != $position + 1;
                push @wrong, $at . 'freed while it ran' if @early;
                push @wrong, $at . 'freed ' . join ' ', %freed if grep { ($freed{$_} || 0) != 1 } 0 .. 5;
                push @wrong, $at . 'not idle' if !is_idle();
            }
            return @wrong;
        };
        is_deeply \@wrong, [], "$name: everything is removed by each callback of a pass" . ($nested ? ', which runs the loop' : '');
    }

    # An add in each position waits for the next pass, and for a nested one only if that begins later.
    my @log = in_child {
        my $run = $LOOP{$name}->();
        my ($added, $calls, $in_pass, %in_same_pass) = (0, 0, 0);
        my $watches = ready_watches(3, sub {
            my ($n) = @_;
            return if ++$calls > 6;
            my $by = $n % 2 ? 'a timer' : 'a handle';
            add_timeout(0, sub {
                $added++;
                $in_same_pass{"the same pass: $by"} = 1 if $in_pass;
                remove_timeout($_[0]);
            });
        }, sub { });
        $in_pass = 1;
        $run->(1) until $calls;
        $in_pass = 0;
        for (1 .. 50) { last if $added >= 6; $run->(0.01) }
        remove(@$_) for @$watches;
        return (keys %in_same_pass, $added >= 6 ? 'all' : "$added", drain(5) ? 'idle' : 'not idle');
    };
    # Some loops turn to the timers when they are done with the files.
    my @same = is_limited($name, 'timers of 0 ms') ? 'the same pass: a handle' : ();
    is_deeply \@log, [@same, 'all', 'idle'], "$name: what each callback adds runs in a later pass";

    # What a callback must not do is an exception, and does no harm.
    @log = in_child {
        my $run = $LOOP{$name}->();
        my ($reader, $writer) = pipe_pair();
        syswrite $writer, 'x';
        my @log;
        my $try = sub {
            # A host loop may run on another, whose class then does the work.
            my $class = ref registered() || 'none';
            push @log, map { s/ at \S+ line .*//sr =~ s/\b\Q$class\E,/its class,/r }
                exception_of { register(VirtTest::Loop->new) }, exception_of { drain(1) };
            push @log, 'idle' if is_idle();
        };
        add_handle($reader, 1, sub { $try->(); remove_handle($_[0]) });
        add_timeout(0, sub { $try->(); remove_timeout($_[0]) });
        for (1 .. 20) { last if @log >= 4; $run->(1) }
        return (@log, drain(5) ? 'drained' : 'not drained');
    };
    my $refusal = $name eq 'default' ? 'register_default was called, and libvirt keeps its own event loop from then on'
        : "a callback of the registered event loop, its class, is running";
    is_deeply \@log, [("Cannot register: $refusal",
        'Cannot drain: a callback is running, which cannot go before it returns') x 2, 'drained'],
        "$name: another loop, and drain, inside callbacks";

    # Fifty deep: each callback runs the loop, which calls the next; the last removes all, or dies.
    for my $end (qw(removes dies)) {
        my %got = in_child {
            my $run = $LOOP{$name}->();
            my ($depth, $deepest, %freed, @ids, $caught) = (0, 0);
            for my $n (1 .. 50) {
                my $guard = bless { freed => sub { $freed{$n} = $depth } }, 'Freed';
                push @ids, add_timeout(0, sub {
                    $depth++;
                    $deepest = $depth if $deepest < $depth;
                    if ($deepest < 50) {
                        for (1 .. 200) { last if $deepest == 50; $run->(0.01) }
                    } elsif ($depth == 50) {
                        if ($end eq 'removes') { remove_timeout($_) for splice @ids }
                        $depth--;
                        die "bottom\n" if $end eq 'dies';
                        return $guard;
                    }
                    $depth--;
                });
            }
            my @warnings = warnings_of { eval { $run->(1); 1 } or $caught = $@ for 1 .. 3 };
            my @early = grep { $freed{$_} } keys %freed;
            remove_timeout($_) for splice @ids;
            my $idle = drain(5);
            return (deepest => $deepest, freed => scalar(keys %freed), idle => $idle, warnings => scalar(@warnings));
        };
        is_deeply \%got, { deepest => 50, freed => 50, idle => 1, warnings => 0 }, "$name: fifty nested runs, and the last $end"
            if $end eq 'removes';
        is_deeply [@got{qw(deepest freed idle)}], [50, 50, 1], "$name: fifty nested runs, and the last dies" if $end eq 'dies';
    }
}

SKIP: {
    skip 'Sys::Virt is not installed', 1 if !$has_sys_virt;
    my $lifecycle = Sys::Virt::Domain::EVENT_ID_LIFECYCLE();
    my %uri = (test => 'test:///default', $daemon ? (remote => $daemon->uri) : ());

    # Fault 15: the loop is run inside an event handler, and the handler is removed there. libvirt's own loop has it, too:
    # it calls libvirt's callbacks again inside themselves.
    my %object = map { $_ => $LOOP{$_} } 'poll', @ADAPTERS;
    $object{epoll} = looper('VirtTest::EpollLoop') if has_epoll();
    for my $kind (sort keys %uri) {
        for my $name (sort keys %object) {
            for my $protected (0, 1) {
                my @got = in_child {
                    my $run = $object{$name}->();
                    my $conn = Sys::Virt->new(uri => $uri{$kind});
                    my $dom = $conn->get_domain_by_name('test');
                    my (@events, $id);
                    my $handler = sub {
                        push @events, $_[2];
                        return if @events > 1;
                        $run->(0.05) for 1 .. 2;
                        $conn->domain_event_deregister_any($id);
                        $run->(0.05) for 1 .. 2;
                        $dom->suspend;
                        $run->(0.05) for 1 .. 2;
                    };
                    my $other = 0;
                    $conn->domain_event_register_any($dom, $lifecycle, sub { $other++ });
                    $id = $conn->domain_event_register_any(undef, $lifecycle, $protected ? protect($handler) : $handler);
                    $dom->suspend;
                    $dom->resume;
                    my $end = time + patience(10);
                    $run->(0.1) until $other >= 3 || time > $end;
                    $dom->resume;
                    my $names = $conn->num_of_domains;
                    return ($events[0], $other >= 3 ? 'others go on' : "others: $other", $names);
                };
                is_deeply \@got, [3, 'others go on', 1],
                    "$kind, $name: a " . ($protected ? 'protected ' : '') . 'handler runs the loop and deregisters itself';
            }
        }
    }

    # Each method, called by a connection under libvirt's locks, runs the loop. What it would call waits for those locks.
    my @in_perl = ('Sys::Virt::Event::Poll', grep { !is_limited($_, 'replaced methods') } @ADAPTERS);
    for my $case (map { my $class = $_; map { [$_, $class] } sort keys %uri } @in_perl) {
        my ($kind, $class) = @$case;
        my @got = in_child {
            {
                package Runs;
                our @ISA = $class;
                our ($is_on, %ran);
                for my $method (map { ("${_}_handle", "${_}_timeout") } qw(add update remove)) {
                    my $original = $class->can($method);
                    no strict 'refs';
                    *$method = sub {
                        my ($self) = @_;
                        my $result = &$original;
                        return $result if !$is_on;
                        local $is_on = 0;
                        $ran{$method} = 1;
                        VirtTest::run_once($self, VirtTest::patience(0.02));
                        return $result;
                    };
                }
            }
            my %warned;
            local $SIG{__WARN__} = sub { $warned{ $_[0] =~ s/ at \S+ line .*//sr } = 1 };
            my $loop = Runs->new->register;
            $Runs::is_on = 1;
            my $conn = Sys::Virt->new(uri => $uri{$kind});
            my $dom = $conn->get_domain_by_name('test');
            my @events;
            my $id = $conn->domain_event_register_any(undef, $lifecycle, sub { push @events, $_[2] });
            for (1 .. 5) { $dom->suspend; $dom->resume }
            $loop->run_until(sub { @events == 10 }, patience(10));
            $conn->domain_event_deregister_any($id);
            undef $_ for $dom, $conn;
            return (scalar(@events), drain(patience(10)) ? 'idle' : 'not idle', scalar(keys %Runs::ran), keys %warned);
        };
        is_deeply \@got, [10, 'idle', $kind eq 'remote' ? 6 : 3,
            'Cannot run callback: a method of the loop is running (the loop was run inside it)'], "$kind, $class: methods that run the loop under libvirt's locks";
    }
}

done_testing;
