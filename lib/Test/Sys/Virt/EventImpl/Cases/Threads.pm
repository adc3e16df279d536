package Test::Sys::Virt::EventImpl::Cases::Threads;

# Calls from threads that libvirt has made itself, here from a C helper's.

use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

use Exporter qw(import);
use Test::More;
use Test::Sys::Virt::EventImpl::CApi;
use Test::Sys::Virt::EventImpl::Case;
use Test::Sys::Virt::EventImpl::Util;

our @EXPORT_OK = qw(with_threads interrupted_by told clock_ms slice);

suite threads => "Calls from threads that are not Perl's";

# The clock that a woken loop must beat, and the run that is meant to be interrupted, which lasts a bit longer.
sub clock_ms { return 400 * (patience(1) > 1 ? patience(1) : 1) }
sub slice    { return 1.15 * clock_ms() / 1000 }

# From here on the process has had another thread, and the owner has entered the core since: an object whose class is
# not one of ours gets its wake watch now.
sub with_threads {
    my ($t) = @_;
    $t->impl;
    Test::Sys::Virt::EventImpl::CApi::run_blocked([sleep_ms => 0]);
    $t->add_timeout(60_000);
    return;
}

# Handles and timers may have the same ids: "timer 3", "ff timer 3".
sub told {
    my ($t) = @_;
    return map { $_->{what} eq 'ff' ? "ff $_->{kind} $_->{id}" : "$_->{what} $_->{id}" }
        grep { $_->{what} =~ /^(?:handle|timer|ff)\z/ } $t->log;
}

# The loop sleeps until $clock when $ops are run. Returns their report, and what was told before the clock was.
sub interrupted_by {
    my ($t, $until, @ops) = @_;
    my $clock  = $t->add_timeout(clock_ms(), in_callback => [[remove_timeout => 'self']]);
    my $thread = Test::Sys::Virt::EventImpl::CApi::spawn([sleep_ms => 20], @ops);
    $t->until(sub { $until->() || $t->count(timer => $clock) }, slice());
    $t->until($until);
    my $report = $thread->join;
    my @before;
    for my $entry (told($t)) {
        last if $entry eq "timer $clock";
        push @before, $entry;
    }
    return ($report, @before);
}

sub run_blocked { return @{ Test::Sys::Virt::EventImpl::CApi::run_blocked(@_)->{results} } }

case 112 => 'removed_asleep', threads => {
    rule   => 'a watch that another thread removes while the loop sleeps is freed at once, and does not run',
    source => 'tests/eventtest.c of libvirt, which removes a watch from outside of the sleeping loop',
    harm   => 'libvirt closes the socket of a connection when its watch is freed. Where the loop is not woken, a '
        . 'connection that a libvirt thread has dropped stays open on the server until something else happens.',
    advice => 'watch the fd of the wake watch like any other, and dispatch it',
}, sub {
    my ($t) = @_;
    with_threads($t);
    my ($reader, $writer) = pipe_pair();
    my $id = $t->add_handle($reader, READABLE);
    my (undef, @told) = interrupted_by($t, sub { grep { $_ eq "ff handle $id" } told($t) }, [remove_handle => $id]);
    is_deeply \@told, ["ff handle $id"], 'the loop was interrupted';
    put_byte($writer);
    $t->passes(5);
    is $t->count(handle => $id), 0, 'nothing runs';
};

case 113 => 'timer_removed_asleep', threads => {
    rule   => 'a timer that another thread removes while the loop sleeps is freed at once, and does not fire',
    source => 'tests/eventtest.c of libvirt, which removes a timer from outside of the sleeping loop',
    harm   => 'The timers of connections and event handlers hold references to them. A timer that fires late calls '
        . 'into what its owner has given up; one that is freed late keeps it in memory.',
    advice => 'watch the fd of the wake watch like any other, and dispatch it',
}, sub {
    my ($t) = @_;
    with_threads($t);
    my ($soon, $late) = map { $t->add_timeout($_) } clock_ms() + 20, 60_000;
    my $after  = $t->add_timeout(clock_ms() + 40);
    my @frees  = map { "ff timer $_" } $soon, $late;
    my $freed  = sub { my %told = map { $_ => 1 } told($t); return @frees == grep { $told{$_} } @frees };
    my (undef, @told) = interrupted_by($t, $freed, map { [remove_timeout => $_] } $soon, $late);
    is_deeply [sort @told], [sort @frees], 'the loop was interrupted';
    $t->until(sub { $t->count(timer => $after) });
    is $t->count(timer => $soon), 0, 'it did not fire';
};

case 114 => 'calls_while_asleep', threads => {
    rule   => 'what another thread adds and updates while the loop sleeps works at once, in the thread of the loop',
    source => "src/conf/object_event.c, virObjectEventStateQueueRemote, which arms a timer from a domain's thread",
    harm   => 'With qemu:///embed each event of a domain is announced by arming a timer in a thread of libvirt. '
        . 'Where the loop sleeps on, events arrive late or not at all; where the callback runs in that thread, '
        . 'perl crashes.',
    advice => 'watch the fd of the wake watch like any other, and look at all handles and timers again after it',
}, sub {
    my ($t) = @_;
    with_threads($t);
    my ($reader, $writer) = ready_pipe();
    my ($other, $other_writer) = ready_pipe();
    my $off   = $t->add_handle($other, 0, in_callback => [[remove_handle => 'self']]);
    my $timer = $t->add_timeout(-1, in_callback => [[remove_timeout => 'self']]);
    # Its own watches run before their add has returned, so their callbacks cannot use the id.
    my ($report, @told) = interrupted_by($t, sub { !grep { $t->count($_) < 2 } qw(handle timer ff) },
        [add_handle => $reader, READABLE, read => 1],
        [add_timeout => 5],
        [update_handle => $off, READABLE],
        [update_timeout => $timer, 0],
    );
    my (undef, $new, $new_timer) = @{ $report->{results} };
    ok $new > 0 && $new != $off && $new_timer > 0 && $new_timer != $timer, 'the ids are new';
    my %before   = map { $_ => 1 } @told;
    my @expected = ("handle $new", "timer $new_timer", map { ($_, "ff $_") } "handle $off", "timer $timer");
    is_deeply [sort keys %before], [sort @expected], 'all four ran before the loop would have woken';
    is $t->count(handle => $new), 1, '... the new handle once';
    is_deeply [grep { $_->{thread} ne 'main' } $t->log], [], '... in the thread of the loop';
};

case 115 => 'calls_while_blocked', threads => {
    rule   => 'calls of another thread return while the interpreter sits in C, and take effect afterwards',
    source => 'src/qemu/qemu_process.c, qemuProcessStop, which calls in a thread while the main one waits for its '
        . 'lock',
    harm   => 'A program that waits in a call for a domain, whose thread waits for the program to come back to its '
        . 'loop, hangs for ever: both wait for each other.',
    advice => "nothing to do in the loop: Sys::Virt::Event queues such calls; Sys::Virt's own module crashes",
}, sub {
    my ($t) = @_;
    with_threads($t);
    my ($reader, $writer) = ready_pipe();
    my $mine = $t->add_timeout(-1, in_callback => [[remove_timeout => 'self']]);
    my $gone = $t->add_handle($reader, READABLE);
    # It would hang if a call waited for the interpreter.
    my ($handle, $timer, @rest) = run_blocked(
        [add_handle => $reader, READABLE, in_callback => [[remove_handle => 'self']]],
        [add_timeout => 0, in_callback => [[remove_timeout => 'self']]],
        [update_timeout => $mine, 0],
        [remove_handle => $gone],
        [remove_handle => $gone],
        [remove_handle => 999_999],
    );
    is grep({ $_ > 0 } $handle, $timer), 2, 'the ids are good';
    is_deeply [@rest[1 .. 3]], [0, -1, -1], 'remove returns 0, then -1';
    is_deeply [told($t)], [], 'nothing ran meanwhile';
    $t->until(sub { $t->count('ff') >= 4 });
    $t->passes(3);
    my @expected = map { ($_, "ff $_") } "handle $handle", "timer $timer", "timer $mine";
    is_deeply [sort(told($t))], [sort @expected, "ff handle $gone"], 'then each ran once and was freed once';
}, limit => 5;

case 116 => 'last_update_counts', threads => {
    rule   => 'of many updates that another thread makes for one id the last one counts',
    source => 'src/rpc/virnetclient.c, virNetClientIO, which turns a watch off and on in each call',
    harm   => 'A connection whose watch stays at a mask from the midst of a call is either deaf, so that no event '
        . 'and no keepalive arrives, or makes the loop spin.',
    advice => "nothing to do in the loop: Sys::Virt::Event keeps the order; Sys::Virt's own module crashes",
}, sub {
    my ($t) = @_;
    with_threads($t);
    my ($reader, $writer) = ready_pipe();
    my ($on, $off) = map { $t->add_handle($reader, 0, in_callback => [[remove_handle => 'self']]) } 1, 2;
    my ($soon, $late, $never) = map { $t->add_timeout(-1, in_callback => [[remove_timeout => 'self']]) } 1 .. 3;
    run_blocked(
        (map { [update_handle => $on, $_], [update_handle => $off, READABLE - $_] } (0, READABLE) x 20),
        (map { [update_timeout => $soon, $_] } 50_000, -1, 0),
        (map { [update_timeout => $late, $_] } 0, -1, 50_000),
        (map { [update_timeout => $never, $_] } 50_000, 0, -1),
    );
    $t->until(sub { $t->count('ff') >= 2 });
    $t->passes(5);
    my @expected = map { ($_, "ff $_") } "handle $on", "timer $soon";
    is_deeply [sort(told($t))], [sort @expected], 'what is on runs, what is off does not';
};

case 117 => 'order_per_id', threads => {
    rule   => 'the methods of the loop hear of what another thread does in order: add first, the last word last',
    source => 'L<Sys::Virt::Event/THREADS>',
    harm   => 'A loop that is told to update what it does not know, or to add the same watch twice, loses the watch '
        . 'or keeps one for ever that nobody removes.',
    advice => "nothing to do in the loop: Sys::Virt::Event sees to the order; Sys::Virt's own module crashes",
}, sub {
    my ($t) = @_;
    with_threads($t);
    my ($reader, $writer) = ready_pipe();
    my $known = $t->add_handle($reader, 0);
    my $calls = $t->record_calls;
    my @results = run_blocked(
        [add_handle => $reader, WRITABLE],
        (map { [update_handle => \0, $_] } 0, READABLE | WRITABLE, WRITABLE),
        (map { [update_handle => $known, $_] } 0, READABLE | WRITABLE, READABLE, WRITABLE),
        [add_timeout => 60_000, in_callback => [[remove_timeout => 'self']]],
        [update_timeout => \-1, 50_000], [update_timeout => \-2, -1], [update_timeout => \-3, 0],
    );
    my $timer = $results[8];
    $t->until(sub { grep { $_ eq "ff timer $timer" } told($t) });
    $t->passes(3);

    # What became of each watch. A loop may give a handle and a timer the same key.
    my (%life, @keys);
    for (@$calls) {
        my ($name, @args) = @$_;
        my ($call, $kind) = split /_/, $name;
        my $key = "$kind " . ($call eq 'add' ? pop @args : shift @args);
        push @keys, $key if !$life{$key};
        push @{ $life{$key} }, [$name, @args];
    }
    my %last  = map { $_ => $life{$_}[-1][-1] } keys %life;
    my @added = grep { $life{$_}[0][0] eq 'add_handle' && $life{$_}[0][1] == fileno $reader } @keys;
    my @again = grep { my ($first, @rest) = @{ $life{$_} }; grep { $_->[0] =~ /^add/ } @rest } @keys;
    is_deeply \@again, [], 'nothing comes before add';
    is_deeply [@last{@added}], [WRITABLE], 'the handle is added once, and ends with the mask that was asked for last';
    my @known = grep { $life{$_}[0][0] eq 'update_handle' } @keys;
    is_deeply [@last{@known}], [WRITABLE], 'so does the known one';
}, needs => ['object'];

case 118 => 'many', threads => {
    rule   => 'of many calls that several threads make at once none is lost, and each watch is freed once',
    source => 'libvirt-glib, commit 924178f, which locks its tables since libvirt calls from any thread',
    harm   => 'Two threads that are given the same id update and remove the watch of each other: a connection goes '
        . 'deaf, another is never closed. What is freed twice crashes.',
    advice => "nothing to do in the loop: Sys::Virt::Event locks its tables; Sys::Virt's own module crashes",
}, sub {
    my ($t) = @_;
    with_threads($t);
    my ($reader, $writer) = ready_pipe();
    my @ops = (
        [add_handle => $reader, READABLE], [update_handle => \-1, 0], [update_handle => \-2, READABLE],
        [add_timeout => 0], [update_timeout => \-1, 1], [remove_handle => \-5], [remove_timeout => \-3],
    );
    my @threads = map { Test::Sys::Virt::EventImpl::CApi::spawn((@ops) x 40) } 1 .. 4;
    my @results = map {
        my $thread = $_;
        $t->until(sub { $thread->is_done });
        @{ $thread->join->{results} };
    } @threads;
    my @ids = map { ("handle $results[$_]", "timer $results[$_ + 3]") } map { $_ * @ops } 0 .. 159;
    my %seen;
    is grep({ / [1-9]/ && !$seen{$_}++ } @ids), 320, '320 ids, all different';
    is grep({ $results[$_] != 0 } grep { $_ % @ops > 4 } 0 .. $#results), 0, 'all removals succeeded';
    $t->until(sub { $t->count('ff') >= 320 });
    $t->passes(5);
    my @freed = $t->entries('ff');
    is_deeply [sort map { "$_->{kind} $_->{id}" } @freed], [sort @ids], 'each was freed, once';
    my @misplaced = grep { $_->{thread} ne 'main' || @{ $_->{inside} } || $_->{in_own} } @freed;
    is_deeply \@misplaced, [], '... by the loop, outside of calls and callbacks';
    my $count = $t->dispatched;
    $t->passes(3);
    is scalar(my @after = $t->dispatched), $count, 'nothing of it is left';
};

case 119 => 'never_seen', threads => {
    rule   => 'what another thread adds and removes before the loop looks does not run, and is freed by the loop',
    source => 'F<libvirt/libvirt-event.h>, virEventAddHandleFunc: the free function needs a clean stack',
    harm   => 'The thread that removes a watch holds locks of the connection, and freeing the watch takes the same '
        . 'ones. Where that is done in the thread, at once, the connection hangs.',
    advice => "nothing to do in the loop: Sys::Virt::Event runs free functions; Sys::Virt's own module crashes",
}, sub {
    my ($t) = @_;
    with_threads($t);
    my ($reader, $writer) = ready_pipe();
    my @results = run_blocked(
        [add_handle => $reader, READABLE], [update_handle => \-1, WRITABLE], [remove_handle => \-2],
        [add_timeout => 0], [update_timeout => \-1, 0], [remove_timeout => \-2],
    );
    is_deeply [@results[2, 5]], [0, 0], 'both were removed';
    is_deeply [told($t)], [], 'nothing is freed by the other thread';
    $t->until(sub { $t->count('ff') >= 2 });
    $t->passes(3);
    is_deeply [sort(told($t))], [sort "ff handle $results[0]", "ff timer $results[3]"], 'each is freed once';
    is_deeply [grep { $_->{thread} ne 'main' || @{ $_->{inside} } } $t->entries('ff')], [], '... by the loop';
};

case 120 => 'never_told', threads => {
    rule   => 'the methods of the loop do not hear of what another thread has added and removed meanwhile',
    source => 'L<Sys::Virt::Event/THREADS>',
    harm   => 'The fd may be closed by then, or belong to somebody else. A loop that is given it watches a '
        . 'stranger, and loops that ask the kernel at once (epoll) die of it.',
    advice => "nothing to do in the loop: Sys::Virt::Event drops such calls; Sys::Virt's own module crashes",
}, sub {
    my ($t) = @_;
    with_threads($t);
    my ($reader, $writer) = ready_pipe();
    my $calls = $t->record_calls;
    run_blocked(
        [add_handle => $reader, READABLE], [update_handle => \-1, WRITABLE], [remove_handle => \-2],
        [add_timeout => 0], [update_timeout => \-1, 0], [remove_timeout => \-2],
    );
    $t->until(sub { $t->count('ff') >= 2 });
    is_deeply $calls, [];
}, needs => ['object'];

case 121 => 'refused_late', threads => {
    rule   => 'what another thread adds and the loop refuses later is a warning, and dead until it is removed',
    source => 'L<Sys::Virt::Event/THREADS>',
    harm   => 'The thread has its id already and relies on it. If the id were forgotten, its removal would fail '
        . 'and the watch would never be freed: the connection stays in memory with its socket open.',
    advice => 'nothing to do in the loop: an add method may refuse at any time, Sys::Virt::Event deals with it',
}, sub {
    my ($t) = @_;
    with_threads($t);
    my ($reader, $writer) = ready_pipe();
    my $refuse = 0;
    $t->override(map { $_ => sub {
        my ($original, $impl, @args) = @_;
        die "no room\n" if $refuse;
        return $impl->$original(@args);
    } } qw(add_handle add_timeout));
    my ($handle, $timer) = run_blocked([add_handle => $reader, READABLE], [add_timeout => 0]);
    $refuse = 1;
    $t->run(0.01);
    $t->remove_timeout(999_999);
    $refuse = 0;
    my @warnings = $t->warnings;
    is scalar(grep { /no room/ } @warnings), 2, 'two warnings say why';
    is scalar @warnings, 2, '... and there are no others';
    $t->update_handle($handle, READABLE | WRITABLE);
    $t->update_timeout($timer, 0);
    $t->passes(3);
    is_deeply [told($t)], [], 'nothing runs, and nothing is freed';
    is_deeply [$t->remove_handle($handle), $t->remove_timeout($timer)], [0, 0], 'both can be removed';
    $t->until(sub { $t->count('ff') >= 2 });
    $t->passes(3);
    is_deeply [sort(told($t))], [sort "ff handle $handle", "ff timer $timer"], '... and are freed then';
}, needs => ['object'];

case 122 => 'removed_while_running', threads => {
    rule   => 'what another thread removes while its callback runs is freed after the callback has returned',
    source => 'src/util/vireventglib.c, virEventGLibHandleRemove, which leaves the freeing to the loop',
    harm   => 'A thread may close a connection while the loop is in its callback. Freed at that moment, the '
        . 'callback goes on with memory that is no longer its own, and the program crashes now and then.',
    advice => "nothing to do in the loop: Sys::Virt::Event runs free functions; Sys::Virt's own module crashes",
}, sub {
    my ($t) = @_;
    with_threads($t);
    my ($returned, $freed) = (0, '');
    my $callable = callable(sub {
        my ($id) = @_;
        run_blocked([remove_timeout => $id]);
        # From here on the removal is known in the thread of the loop.
        $t->remove_timeout(999_999);
        my $some = [1 .. 3];
        $returned = 1;
    }, sub { $freed .= $returned ? 'after ' : 'inside ' });
    my $id = $t->timer(0, $callable);
    undef $callable;
    $t->until(sub { $freed });
    $t->passes(3);
    is $freed, 'after ', 'freed, once, after it had returned';
}, needs => ['object'];

1;
