package Test::Sys::Virt::EventImpl::Cases::Threads;

# Calls from threads that libvirt has made itself, here from a C helper's.

use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

use Test::More;
use Test::Sys::Virt::EventImpl::CApi;
use Test::Sys::Virt::EventImpl::Case;
use Test::Sys::Virt::EventImpl::Util;

suite threads => "Calls from threads that are not Perl's";

# A run of the loop that is meant to be interrupted lasts so many seconds; the timer against which the interruption is
# compared comes a bit earlier.
use constant { SLICE => 0.4, CLOCK_MS => 350, PAUSE_MS => 50 };

# From here on the process has had another thread, and the owner has entered the core since: an object whose class is
# not one of ours gets its wake watch now.
sub with_threads {
    my ($t) = @_;
    $t->impl;
    Test::Sys::Virt::EventImpl::CApi::run_blocked([sleep_ms => 0]);
    $t->add_timeout(60_000);
    return;
}

# The loop sleeps until $clock when $ops are run; true if it was awake before that.
sub interrupted_by {
    my ($t, $until, @ops) = @_;
    my $thread = Test::Sys::Virt::EventImpl::CApi::spawn([sleep_ms => PAUSE_MS], @ops);
    my $clock  = $t->add_timeout(CLOCK_MS, in_callback => [[remove_timeout => 'self']]);
    $t->until(sub { $until->() || $t->count(timer => $clock) }, SLICE);
    $t->until($until);
    my $report = $thread->join;
    # The run may have gone on for longer than the clock.
    my @before = grep { $_ ne "ff $clock" } $t->story;
    my ($position) = grep { $before[$_] eq "timer $clock" } 0 .. $#before;
    splice @before, $position if defined $position;
    return ($report, @before);
}

case 0 => 'removed_asleep', threads => {
    rule   => 'a watch removed by another thread while the loop sleeps is freed at once',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    with_threads($t);
    my ($reader, $writer) = pipe_pair();
    my $id = $t->add_handle($reader, READABLE);
    my ($report, @story) = interrupted_by($t, sub { $t->count(ff => $id) }, [remove_handle => $id]);
    is_deeply \@story, ["ff $id"], 'the loop was interrupted';
    put_byte($writer);
    $t->passes(5);
    is $t->count(handle => $id), 0, 'nothing runs';
};

case 0 => 'timer_removed_asleep', threads => {
    rule   => 'a timer removed by another thread while the loop sleeps does not fire',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    with_threads($t);
    my ($soon, $late) = map { $t->add_timeout($_) } CLOCK_MS + 100, 60_000;
    my ($report, @story) = interrupted_by($t, sub { $t->count('ff') >= 2 }, map { [remove_timeout => $_] } $soon, $late);
    is_deeply [sort @story], [sort map { "ff $_" } $soon, $late], 'the loop was interrupted';
    $t->run_fully(0.15);
    is $t->count(timer => $soon), 0, 'it did not fire';
};

case 0 => 'calls_while_asleep', threads => {
    rule   => 'what another thread adds and updates works at once, even if the loop sleeps',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    with_threads($t);
    my ($reader, $writer) = ready_pipe();
    my ($other, $other_writer) = ready_pipe();
    my $off   = $t->add_handle($other, 0, in_callback => [[remove_handle => 'self']]);
    my $timer = $t->add_timeout(-1, in_callback => [[remove_timeout => 'self']]);
    # Its own watches run before their add has returned, so their callbacks cannot use the id.
    my ($report, @story) = interrupted_by($t, sub { !grep { $t->count($_) < 2 } qw(handle timer ff) },
        [add_handle => $reader, READABLE, read => 1],
        [add_timeout => 5],
        [update_handle => $off, READABLE],
        [update_timeout => $timer, 0],
    );
    my (undef, $new, $new_timer) = @{ $report->{results} };
    is grep({ $_ > 0 && $_ != $off && $_ != $timer } $new, $new_timer), 2, 'the ids are new';
    my %before = map { $_ => 1 } @story;
    my @expected = ("handle $new", "timer $new_timer", "handle $off", "ff $off", "timer $timer", "ff $timer");
    is_deeply [sort keys %before], [sort @expected], 'all four ran before the loop would have woken';
    is $t->count(handle => $new), 1, '... the handle once';
    is_deeply [grep { $_->{thread} ne 'main' } $t->log], [], '... in the thread of the loop';
    cmp_ok $report->{slowest}, '<', 0.3, 'no call waited for the loop';
};

case 0 => 'calls_while_blocked', threads => {
    rule   => 'calls of another thread return while the interpreter sits in C',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    with_threads($t);
    my ($reader, $writer) = ready_pipe();
    my $mine = $t->add_timeout(-1, in_callback => [[remove_timeout => 'self']]);
    # It would hang if a call waited for the interpreter.
    my $report = Test::Sys::Virt::EventImpl::CApi::run_blocked(
        [add_handle => $reader, 0, in_callback => [[remove_handle => 'self']]],
        ([update_handle => \0, READABLE], [update_handle => \0, 0]) x 20,
        [update_handle => \0, READABLE],
        [add_timeout => -1, in_callback => [[remove_timeout => 'self']]],
        [update_timeout => \-1, 0],
        [update_timeout => $mine, 0],
        [add_handle => $reader, READABLE],
        [remove_handle => \-1],
        [remove_handle => \-2],
        [remove_handle => 999_999],
    );
    my @results = @{ $report->{results} };
    my ($handle, $timer, $removed) = @results[0, 42, 45];
    is grep({ $_ > 0 } $handle, $timer, $removed), 3, 'the ids are good';
    is_deeply [@results[46 .. 48]], [0, -1, -1], 'remove returns 0, then -1';
    is_deeply [$t->story], [], 'nothing ran meanwhile';
    $t->until(sub { $t->count('ff') >= 4 });
    $t->passes(3);
    my @expected = map { ("$_", $_ =~ s/\w+/ff/r) } "handle $handle", "timer $timer", "timer $mine";
    is_deeply [sort $t->story], [sort @expected, "ff $removed"], 'then each ran once and was freed once';
};

case 0 => 'order_per_id', threads => {
    rule   => 'the loop sees the calls for one id in their order',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    with_threads($t);
    my ($reader, $writer) = ready_pipe();
    my $known = $t->add_handle($reader, 0);
    my $calls = $t->record_calls;
    my $report = Test::Sys::Virt::EventImpl::CApi::run_blocked(
        [add_handle => $reader, WRITABLE],
        (map { [update_handle => \0, $_] } 0, READABLE | WRITABLE, WRITABLE),
        (map { [update_handle => $known, $_] } 0, READABLE | WRITABLE, READABLE, 0),
        [add_timeout => 0],
        [update_timeout => \-1, 60_000],
        [add_timeout => 60_000, in_callback => [[remove_timeout => 'self']]],
        [update_timeout => \-1, 50_000], [update_timeout => \-2, -1], [update_timeout => \-3, 0],
    );
    my ($handle, $timer, $fires) = @{ $report->{results} }[0, 8, 10];
    $t->until(sub { $t->count(ff => $fires) });
    $t->passes(5);
    is_deeply [$t->story], ["timer $fires", "ff $fires"], 'the last update counts';

    # By key: what became of each watch.
    my (%life, @keys);
    for (@$calls) {
        my ($name, @args) = @$_;
        my $key = $name =~ /^add/ ? pop @args : shift @args;
        push @keys, $key if !$life{$key};
        push @{ $life{$key} }, [$name, @args];
    }
    my %last = map { $_ => $life{$_}[-1][-1] } keys %life;
    my @added = grep { $life{$_}[0][0] =~ /^add/ } @keys;
    is_deeply [grep { my $life = $life{$_}; grep { /^add/ } map { $_->[0] } @$life[1 .. $#$life] } keys %life], [],
        'add comes first, and once';
    is_deeply [map { $last{$_} } grep { $life{$_}[0][0] eq 'add_handle' && $life{$_}[0][1] == fileno $reader } @added],
        [WRITABLE], 'the handle that was added ends with the mask that was asked for last';
    is_deeply [map { $last{$_} } grep { $life{$_}[0][0] eq 'update_handle' } @keys], [0], 'so does the known one';
}, needs => ['object'];

case 0 => 'many', threads => {
    rule   => 'many calls of several threads at once: all are carried out, each watch is freed once',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    with_threads($t);
    my ($reader, $writer) = ready_pipe();
    my @ops = (
        [add_handle => $reader, READABLE], [update_handle => \-1, 0], [update_handle => \-2, READABLE],
        [add_timeout => 0], [update_timeout => \-1, 1], [remove_handle => \-5], [remove_timeout => \-3],
    );
    my @threads = map { Test::Sys::Virt::EventImpl::CApi::spawn((@ops) x 40) } 1 .. 4;
    my @reports = map {
        my $thread = $_;
        $t->until(sub { $thread->is_done });
        $thread->join;
    } @threads;
    my @results = map { @{ $_->{results} } } @reports;
    my @ids = @results[grep { $_ % 7 == 0 || $_ % 7 == 3 } 0 .. $#results];
    my %seen;
    is grep({ $_ > 0 && !$seen{$_}++ } @ids), 320, '320 ids, all different';
    is grep({ $results[$_] != 0 } grep { $_ % 7 > 4 } 0 .. $#results), 0, 'all removals succeeded';
    $t->until(sub { $t->count('ff') >= 320 });
    $t->passes(5);
    my @freed = $t->entries('ff');
    is_deeply [sort { $a <=> $b } map { $_->{id} } @freed], [sort { $a <=> $b } @ids], 'each was freed, once';
    is_deeply [grep { $_->{thread} ne 'main' || @{ $_->{inside} } || $_->{in_own} } @freed], [], '... where it should be';
    my $count = $t->dispatched;
    $t->passes(3);
    is scalar(my @after = $t->dispatched), $count, 'nothing of it is left';
};

case 0 => 'never_seen', threads => {
    rule   => 'what another thread adds and removes before the loop looks is only freed',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    with_threads($t);
    my ($reader, $writer) = ready_pipe();
    my $calls  = $t->record_calls;
    my $report = Test::Sys::Virt::EventImpl::CApi::run_blocked(
        [add_handle => $reader, READABLE], [update_handle => \-1, WRITABLE], [remove_handle => \-2],
        [add_timeout => 0], [update_timeout => \-1, 0], [remove_timeout => \-2],
    );
    my @ids = @{ $report->{results} }[0, 3];
    is_deeply [@{ $report->{results} }[2, 5]], [0, 0], 'both were removed';
    is_deeply [$t->story], [], 'nothing is freed by the other thread';
    $t->until(sub { $t->count('ff') >= 2 });
    my @heard = @$calls;
    $t->passes(3);
    is_deeply [sort $t->story], [sort map { "ff $_" } @ids], 'each is freed once';
    is_deeply [grep { $_->{thread} ne 'main' || @{ $_->{inside} } } $t->entries('ff')], [], '... by the loop';
    is_deeply \@heard, [], 'no method was called';
}, needs => ['object'];

1;
