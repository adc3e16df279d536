package Test::Sys::Virt::EventImpl::Cases::Handles;

# Watches on fds: which runs, with which events.

use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

use Socket qw(SHUT_WR);
use Test::More;
use Test::Sys::Virt::EventImpl::Case;
use Test::Sys::Virt::EventImpl::Util;

suite handle => 'Watches: which run';
suite mask => 'Event masks';
suite errhup => 'HANGUP and ERROR';
suite multi => 'Several watches of one fd';

case 0 => 'one_of_many', handle => {
    rule   => 'data in one of many pipes runs its watch and nothing else',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my @pipes  = map { [pipe_pair()] } 1 .. 31;
    my @ids    = map { $t->add_handle($_->[0], READABLE, read => 1) } @pipes;
    my @timers = map { $t->add_timeout(-1) } 1 .. 31;
    my %seen;
    is grep({ $_ > 0 && !$seen{$_}++ } @ids, @timers), 62, 'the ids are positive, and no two are the same';
    for my $n (16, 0, 30) {
        $t->forget_log;
        put_byte($pipes[$n][1]);
        $t->until(sub { $t->count('handle') });
        $t->passes(3);
        is_deeply [$t->dispatched], ["handle $ids[$n]"], "pipe $n: its watch ran, once";
        my ($entry) = $t->entries('handle') or next;
        is $entry->{added_as}, $ids[$n], '... with its own opaque, and the id that add returned';
        is $entry->{fd}, fileno $pipes[$n][0], '... and its fd';
        is $entry->{events}, READABLE, '... and READABLE';
        is $entry->{thread}, 'main', '... in the thread of the loop';
    }
};

case 0 => 'removed_before', handle => {
    rule   => 'a watch removed before the poll does not run',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my ($other_reader, $other_writer) = ready_pipe();
    my $removed = $t->add_handle($reader, READABLE, read => 1);
    my $kept    = $t->add_handle($other_reader, READABLE, read => 1);
    is $t->remove_handle($removed), 0, 'removed';
    $t->until(sub { $t->count(handle => $kept) });
    $t->passes(3);
    is_deeply [$t->dispatched], ["handle $kept"];
};

case 0 => 'removes_itself', handle => {
    rule   => 'a watch that removes itself has run once',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my $id = $t->add_handle($reader, READABLE, in_callback => [[remove_handle => 'self']]);
    $t->until(sub { $t->count(handle => $id) });
    $t->passes(5);
    is $t->count(handle => $id), 1, 'once, although there is still something to read';
    is_deeply [map { $_->{result} } $t->entries('remove_handle')], [0], 'the removal returned 0';
};

case 0 => 'last_of_many', handle => {
    rule   => 'the last of many watches works on when all others are removed',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my @pipes = map { [ready_pipe()] } 1 .. 31;
    my @ids   = map { $t->add_handle($_->[0], READABLE) } @pipes;
    my @timers = map { $t->add_timeout($_ == 31 ? 0 : -1) } 1 .. 31;
    my ($last, $last_timer) = (pop @ids, pop @timers);
    is_deeply [map { $t->remove_handle($_) } @ids], [(0) x 30], '30 handles removed';
    is_deeply [map { $t->remove_timeout($_) } @timers], [(0) x 30], '30 timers removed';
    $t->until(sub { $t->count(handle => $last) >= 4 && $t->count(timer => $last_timer) >= 4 });
    cmp_ok $t->count(handle => $last), '>=', 4, 'what is left to read is told again and again';
    cmp_ok $t->count(timer => $last_timer), '>=', 4, 'the last timer goes on';
    is_deeply [grep { $_ ne "handle $last" && $_ ne "timer $last_timer" } $t->dispatched], [], 'nothing else ran';
};

case 0 => 'disabled_is_removable', handle => {
    rule   => 'removing a disabled watch or timer succeeds and frees it',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my $handle   = $t->add_handle($reader, 0);
    my $disabled = $t->add_handle($reader, READABLE);
    $t->update_handle($disabled, 0);
    my $timer = $t->add_timeout(-1);
    is $t->remove_handle($handle), 0, 'a handle of mask 0';
    is $t->remove_handle($disabled), 0, 'a handle disabled later';
    is $t->remove_timeout($timer), 0, 'a timer of -1 ms';
    $t->passes(3);
    is_deeply [sort $t->story], [sort map { "ff $_" } $handle, $disabled, $timer], 'each is freed, none ran';
};

case 0 => 'unknown_ids', handle => {
    rule   => 'update and remove of ids that are not registered change nothing',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my $timer   = $t->add_timeout(-1);
    my $handle  = $t->add_handle($reader, 0);
    my $removed = $t->add_handle($reader, READABLE);
    my $gone    = $t->add_timeout(0);
    $t->remove_handle($removed);
    $t->remove_timeout($gone);
    my $calls = $t->record_calls;
    my @none  = (0, -1, -5, 999_999, 2**31 - 1, -2**31);
    my @not_handles = (@none, $removed, $timer);
    my @not_timers  = (@none, $gone, $handle);
    $t->update_handle($_, READABLE) for @not_handles;
    $t->update_timeout($_, 0) for @not_timers;
    is_deeply [map { $t->remove_handle($_) } @not_handles], [(-1) x @not_handles], 'remove_handle returns -1';
    is_deeply [map { $t->remove_timeout($_) } @not_timers], [(-1) x @not_timers], 'remove_timeout returns -1';
    is_deeply $calls, [], 'the loop hears of none of this';
    $t->passes(3);
    is_deeply [$t->dispatched], [], 'what was removed does not come back to life';
    is $t->remove_handle($handle), 0, 'what is registered still is';
    is $t->remove_timeout($timer), 0;
}, needs => ['object'];

case 0 => 'removed_twice', handle => {
    rule   => 'the second removal returns -1, and frees nothing',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = pipe_pair();
    my $handle = $t->add_handle($reader, READABLE);
    my $timer  = $t->add_timeout(10);
    is_deeply [map { $t->remove_handle($handle) } 1 .. 3], [0, -1, -1], 'handle';
    is_deeply [map { $t->remove_timeout($timer) } 1 .. 3], [0, -1, -1], 'timer';
    $t->passes(3);
    is $t->remove_handle($handle), -1, 'after the free function, too';
    is $t->remove_timeout($timer), -1;
    $t->passes(3);
    is_deeply [sort $t->story], [sort "ff $handle", "ff $timer"];
};

# Masks. Of hang-ups there are three kinds here: a socket's, a pipe's, and an error on a pipe's write end.

case 0 => 'second_watch_of_fd', mask => {
    rule   => 'of two watches on one fd only the one whose mask is not 0 runs',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my $off = $t->add_handle($reader, 0);
    my $on  = $t->add_handle($reader, READABLE, read => 1);
    $t->until(sub { $t->count(handle => $on) });
    $t->passes(3);
    is_deeply [$t->dispatched], ["handle $on"];
    my ($entry) = $t->entries('handle');
    is $entry->{added_as}, $on, 'with its own opaque';
};

case 0 => 'silent', mask => {
    rule   => 'with mask 0 not even a hang-up is told, and the loop sleeps',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my ($ours, $theirs) = socket_pair();
    my ($reader, $writer) = ready_pipe();
    my @ids = ($t->add_handle($ours, READABLE), $t->add_handle($reader, 0), $t->add_handle($reader, READABLE));
    $t->update_handle($_, 0) for @ids;
    put_byte($theirs);
    close $_ for $theirs, $writer;
    $t->add_timeout(60_000);
    my $before = cpu_seconds();
    $t->run_fully(0.2);
    cmp_ok cpu_seconds() - $before, '<', 0.05, 'most of 0.2 s was slept';
    $t->passes(5);
    is_deeply [$t->dispatched], [], 'nothing ran';
};

case 0 => 'wakes_up', mask => {
    rule   => 'when its mask is set again a watch gets READABLE and HANGUP, in one call',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my ($ours, $theirs) = socket_pair();
    my ($reader, $writer) = ready_pipe();
    my %ids = (socket => $t->add_handle($ours, READABLE), pipe => $t->add_handle($reader, READABLE));
    $t->update_handle($_, 0) for values %ids;
    put_byte($theirs);
    close $_ for $theirs, $writer;
    $t->passes(3);
    for my $what (sort keys %ids) {
        $t->on_handle($ids{$what}, [update_handle => 'self', 0]);
        $t->update_handle($ids{$what}, READABLE);
        $t->until(sub { $t->count(handle => $ids{$what}) });
        $t->passes(3);
        my @events = map { $_->{events} } $t->entries(handle => $ids{$what});
        is_deeply \@events, [READABLE | HANGUP], $what;
    }
};

case 0 => 'disabled_in_callback', mask => {
    rule   => 'a watch that sets its mask to 0 has run once',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my $id = $t->add_handle($reader, READABLE, in_callback => [[update_handle => 'self', 0]]);
    $t->until(sub { $t->count(handle => $id) });
    $t->passes(5);
    is $t->count(handle => $id), 1, 'once';
    $t->update_handle($id, READABLE);
    $t->until(sub { $t->count(handle => $id) > 1 });
    $t->passes(5);
    is $t->count(handle => $id), 2, 'and once more when the mask is set again';
};

case 0 => 'hangup_unasked', errhup => {
    rule   => 'HANGUP and ERROR are told whatever the mask',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my ($ours, $theirs) = socket_pair();
    my ($reader, $writer) = pipe_pair();
    my ($read_end, $write_end) = pipe_pair();
    my $off = [[update_handle => 'self', 0]];
    my %ids = (
        socket    => $t->add_handle($ours, WRITABLE, in_callback => $off),
        read_end  => $t->add_handle($reader, READABLE, in_callback => $off),
        write_end => $t->add_handle($write_end, WRITABLE, in_callback => $off),
    );
    close $_ for $theirs, $writer, $read_end;
    $t->until(sub { $t->count('handle') >= 3 });
    $t->passes(3);
    my %events = map { my $what = $_; $what => [map { $_->{events} } $t->entries(handle => $ids{$what})] } keys %ids;
    is_deeply $events{socket}, [WRITABLE | HANGUP], 'a socket watched for WRITABLE';
    is_deeply $events{read_end}, [HANGUP], 'a pipe watched for READABLE, with nothing to read';
    is_deeply $events{write_end}, [WRITABLE | ERROR], 'the end of a pipe that nobody reads';
};

case 0 => 'hangup_alone', errhup => {
    rule   => 'a mask of HANGUP or ERROR alone is neither mask 0 nor READABLE',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my ($ours, $theirs) = socket_pair();
    my ($other, $others) = socket_pair();
    my $hangup = $t->add_handle($ours, HANGUP, in_callback => [[update_handle => 'self', 0]]);
    my $error  = $t->add_handle($other, ERROR, in_callback => [[update_handle => 'self', 0]]);
    put_byte($_) for $theirs, $others;
    $t->passes(5);
    is_deeply [$t->dispatched], [], 'what there is to read is not told';
    close $_ for $theirs, $others;
    $t->until(sub { $t->count('handle') >= 2 });
    $t->passes(3);
    is_deeply [map { $_->{events} } $t->entries('handle')], [HANGUP, HANGUP], 'the hang-up is';
};

case 0 => 'closed_fd', errhup => {
    rule   => 'a watch on a closed fd gets ERROR once, then nothing until it is updated',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = pipe_pair();
    my ($other_reader, $other_writer) = ready_pipe();
    my $id    = $t->add_handle($reader, READABLE);
    my $other = $t->add_handle($other_reader, READABLE, read => 1);
    $t->add_timeout(60_000);
    $t->until(sub { $t->count(handle => $other) });
    close $reader;
    $t->until(sub { $t->count(handle => $id) });
    put_byte($other_writer);
    $t->until(sub { $t->count(handle => $other) > 1 });
    my $before = cpu_seconds();
    $t->run_fully(0.2);
    cmp_ok cpu_seconds() - $before, '<', 0.05, 'then most of 0.2 s is slept';
    is_deeply [map { $_->{events} } $t->entries(handle => $id)], [ERROR], 'ERROR, once';
    is $t->count(handle => $other), 2, 'the other watch works on';
    $t->forget_log;
    $t->update_handle($id, READABLE);
    $t->run_fully(0.05);
    is_deeply [map { $_->{events} } $t->entries(handle => $id)], [ERROR], 'once more after an update';
    is $t->remove_handle($id), 0, 'it can be removed';
};

# Several watches on one fd.

case 0 => 'own_bits', multi => {
    rule   => 'each of two watches on one fd gets the bits that it asked for',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my ($ours, $theirs) = socket_pair();
    put_byte($theirs);
    my $reads  = $t->add_handle($ours, READABLE);
    my $writes = $t->add_handle($ours, WRITABLE);
    $t->until(sub { $t->count(handle => $reads) > 2 && $t->count(handle => $writes) > 2 });
    is_deeply [grep { $_->{events} != READABLE } $t->entries(handle => $reads)], [], 'one reads';
    is_deeply [grep { $_->{events} != WRITABLE } $t->entries(handle => $writes)], [], 'one writes';
    $t->remove_handle($reads);
    $t->forget_log;
    $t->until(sub { $t->count(handle => $writes) > 2 });
    cmp_ok $t->count(handle => $writes), '>', 2, 'the second works on when the first is removed';
    is $t->count(handle => $reads), 0, 'the first does not';
};

case 0 => 'same_bits', multi => {
    rule   => 'two watches on one fd for the same event both run',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my @ids = map { $t->add_handle($reader, READABLE) } 1 .. 3;
    $t->until(sub { !grep { !$t->count(handle => $_) } @ids });
    is grep({ $t->count(handle => $_) } @ids), 3;
    $t->update_handle($ids[0], 0);
    $t->remove_handle($ids[1]);
    $t->forget_log;
    $t->until(sub { $t->count(handle => $ids[2]) > 2 });
    cmp_ok $t->count(handle => $ids[2]), '>', 2, 'one is left';
    is_deeply [grep { $_ ne "handle $ids[2]" } $t->dispatched], [], '... alone';
};

case 0 => 'removes_its_like', multi => {
    rule   => 'a watch removed by the callback of another on the same fd does not run',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my @ids = map { $t->add_handle($reader, READABLE) } 1 .. 2;
    $t->on_handle($ids[0], [remove_handle => $ids[1]], [update_handle => 'self', 0]);
    $t->on_handle($ids[1], [remove_handle => $ids[0]], [update_handle => 'self', 0]);
    $t->until(sub { $t->count('handle') });
    $t->passes(5);
    is $t->count('handle'), 1, 'one of the two ran, once';
    is $t->count('ff'), 1, 'the other was freed';
};

case 0 => 'fd_stays_open', multi => {
    rule   => 'removing a watch leaves its fd open, and its flags as they are',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my ($ours, $theirs) = socket_pair();
    require Fcntl;
    my $flags = fcntl $ours, Fcntl::F_GETFL(), 0;
    my @ids = map { $t->add_handle($ours, READABLE | WRITABLE, in_callback => [[update_handle => 'self', 0]]) } 1, 2;
    $t->until(sub { $t->count('handle') >= 2 });
    $t->remove_handle($_) for @ids;
    $t->until(sub { $t->count('ff') >= 2 });
    $t->passes(2);
    is fcntl($ours, Fcntl::F_GETFL(), 0), $flags, 'flags';
    put_byte($theirs);
    is sysread($ours, my $byte, 1), 1, 'what is written arrives';
    shutdown $ours, SHUT_WR;
    is sysread($theirs, $byte, 1), 0, 'the other side sees the end when we say so';
};

1;
