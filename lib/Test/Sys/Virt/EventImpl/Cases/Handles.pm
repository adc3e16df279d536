package Test::Sys::Virt::EventImpl::Cases::Handles;

# Watches on fds: which runs, with which events.

use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

use Fcntl qw(F_GETFD F_GETFL F_SETFL O_NONBLOCK);
use POSIX ();
use Scalar::Util qw(weaken);
use Socket qw(SHUT_WR);
use Test::More;
use Test::Sys::Virt::EventImpl::Case;
use Test::Sys::Virt::EventImpl::Util;

suite handle => 'Watches: which run';
suite mask   => 'Event masks';
suite errhup => 'HANGUP and ERROR';
suite multi  => 'Several watches of one fd';

# Numbers that no file opened meanwhile gets by itself, for fds that are closed and opened again under a watch.
use constant { ONE_FD => 100, OTHER_FD => 101 };

# Gives that number to the read end of a new pipe, which nothing else has open. Returns the write end.
sub pipe_at {
    my ($fd) = @_;
    my ($reader, $writer) = pipe_pair();
    defined POSIX::dup2(fileno $reader, $fd) or die "Cannot make fd $fd: $!";
    return $writer;
}

# What a watch has been told, each mask once. What is still ready is told again and again, so counts say nothing.
sub masks_told {
    my ($t, $id) = @_;
    my %seen;
    return sort { $a <=> $b } grep { !$seen{$_}++ } map { $_->{events} } $t->entries(handle => $id);
}

# The end of file is there to be read, at this moment.
sub sees_end {
    my ($handle) = @_;
    vec(my $ready = '', fileno $handle, 1) = 1;
    return select($ready, undef, undef, 0) > 0 && sysread($handle, my $byte, 1) == 0;
}

sub sleeps_well {
    my ($t) = @_;
    cmp_ok $t->busy_share(0.1), '<', 1 / 4, 'the share of a processor that it uses: it sleeps';
    return;
}

case 1 => 'one_of_many', handle => {
    rule   => 'data in one of many pipes runs the watch of that pipe, once, and nothing else',
    source => 'tests/eventtest.c of libvirt',
    harm   => "A program with several connections has the callback of one run for the data of another. libvirt then "
        . "reads from a socket that has nothing to give, while the connection that has data waits.",
    advice => 'keep a record for each watch, and look up by it what poll says, not by position',
}, sub {
    my ($t) = @_;
    my @pipes  = map { [pipe_pair()] } 1 .. 31;
    my @ids    = map { $t->add_handle($_->[0], READABLE, read => 1) } @pipes;
    my @timers = map { $t->add_timeout(-1) } 1 .. 31;
    for my $n (0, 30) {
        $t->forget_log;
        put_byte($pipes[$n][1]);
        $t->until(sub { $t->count('handle') });
        $t->passes(3);
        is_deeply [$t->dispatched], ["handle $ids[$n]"], "pipe $n";
    }
};

case 2 => 'handle_arguments', handle => {
    rule   => 'a callback gets the id that add returned, its own opaque, fd and events, in the thread of the loop',
    source => 'libvirt/libvirt-event.h, virEventHandleCallback; tests/eventtest.c of libvirt',
    harm   => "libvirt finds its socket by the opaque, and programs find theirs by the id and the fd. With those of "
        . "another watch, or of a duplicate of the fd, they read from and close what is not theirs.",
    advice => 'call _run_handle_callback with the $cb and $opaque of the watch, in the thread that registered',
}, sub {
    my ($t) = @_;
    my @sockets = map { [socket_pair()] } 1 .. 3;
    my @ids = map { $t->add_handle($_->[0], READABLE | WRITABLE) } @sockets;
    $t->until(sub { !grep { !$t->count(handle => $_) } @ids });
    for my $n (0 .. $#ids) {
        my ($entry) = $t->entries(handle => $ids[$n]) or next;
        is $entry->{added_as}, $ids[$n], 'id and opaque belong together';
        is $entry->{fd}, fileno $sockets[$n][0], 'the fd';
        is $entry->{events}, WRITABLE, 'the events';
        is $entry->{thread}, 'main', 'the thread';
    }
    is_deeply [grep { !$t->count(handle => $_) } @ids], [], 'each was called';
};

case 3 => 'ids_not_reused', handle => {
    rule   => 'ids are positive, and that of a removed watch or timer is not given to another',
    source => 'src/util/virevent.c and src/rpc/virkeepalive.c of libvirt; libvirt-glib, commit 3e73e0c',
    harm   => "libvirt takes 0 and -1 for none: a keepalive timer with the id 0 is never removed, and its connection "
        . "stays in memory for ever. It also updates ids that it has just removed, and would hit what has them next.",
    advice => 'nothing to do in the loop: the module makes the ids, and only hands back the keys of the loop',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = pipe_pair();
    my %way = (
        watch => [sub { $t->add_handle($reader, READABLE) }, sub { $t->remove_handle($_[0]) }],
        timer => [sub { $t->add_timeout(-1) }, sub { $t->remove_timeout($_[0]) }],
    );
    for my $what (sort keys %way) {
        my ($add, $remove) = @{ $way{$what} };
        my @ids;
        for (1 .. 3) {
            push @ids, map { $add->() } 1 .. 20;
            is $remove->($ids[-1]), 0, "a $what is removed";
            $t->run(0.001);
        }
        my %seen;
        is_deeply [grep { $_ < 1 || $seen{$_}++ } @ids], [], "the ids of each $what are positive, and differ";
    }
};

case 4 => 'level_triggered', handle => {
    rule   => 'what is left to read is told again in each pass',
    source => "L<Sys::Virt::Event/Handles>; libvirt's own loop, src/util/vireventglib.c",
    harm   => "A callback need not read all that there is: that of a stream takes one piece each time, and "
        . "libvirt's own returns at once while another thread uses the connection. Under a loop that tells changes "
        . "only, the rest waits until something more comes.",
    advice => 'watch level-triggered: EPOLLIN without EPOLLET, and tell what is still ready in each pass',
}, sub {
    my ($t) = @_;
    my ($ours, $theirs) = socket_pair();
    put_byte($theirs);
    my $id = $t->add_handle($ours, READABLE);
    $t->until(sub { $t->count(handle => $id) >= 5 });
    cmp_ok $t->count(handle => $id), '>=', 5, 'five times and more, for a byte that nobody reads';
};

case 5 => 'removed_before', handle => {
    rule   => 'a watch that is removed before the poll does not run, even if its fd is ready',
    source => 'tests/eventtest.c of libvirt',
    harm   => "A connection that is closed while data is on its way gets a callback for it. What the callback works "
        . "with may be free by then, which in C is a crash.",
    advice => 'drop the record in remove_handle itself, not in a later pass',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my ($other_reader, $other_writer) = ready_pipe();
    my $removed = $t->add_handle($reader, READABLE, read => 1);
    my $kept    = $t->add_handle($other_reader, READABLE, read => 1);
    is $t->remove_handle($removed), 0, 'removed';
    $t->until(sub { $t->count(handle => $kept) });
    $t->passes(3);
    is_deeply [$t->dispatched], ["handle $kept"], 'only the other watch runs';
};

case 6 => 'removes_itself', handle => {
    rule   => 'a watch that removes itself in its callback has run once',
    source => 'tests/eventtest.c and src/rpc/virnetclient.c of libvirt',
    harm   => "libvirt removes the watch of a connection in its own callback when the server has closed. If it runs "
        . "once more it works with a connection that has been given up, and the hang-up makes the loop spin.",
    advice => 'let remove_handle drop a record whose callback is running, too; touch it no more afterwards',
}, sub {
    my ($t) = @_;
    my ($ours, $theirs) = socket_pair();
    put_byte($theirs);
    my $id = $t->add_handle($ours, READABLE, in_callback => [[remove_handle => 'self']]);
    $t->until(sub { $t->count(handle => $id) });
    $t->passes(5);
    is $t->count(handle => $id), 1, 'once, although there is still something to read';
    is_deeply [map { $_->{result} } $t->entries('remove_handle')], [0], 'the removal returned 0';
};

case 7 => 'last_of_many', handle => {
    rule   => 'when all others are removed the last of many watches and timers works on',
    source => 'tests/eventtest.c of libvirt',
    harm   => "A program that closes all of its connections but one hears no more of that one. libvirt's own loop had "
        . "this fault once, in the code that makes its tables smaller.",
    advice => 'delete one entry for each remove; do not move others while keeping their positions as keys',
}, sub {
    my ($t) = @_;
    my @pipes  = map { [pipe_pair()] } 1 .. 31;
    my @ids    = map { $t->add_handle($_->[0], READABLE, read => 1) } @pipes;
    my @timers = map { $t->add_timeout($_ == 31 ? 0 : -1) } 1 .. 31;
    my ($last, $last_timer) = (pop @ids, pop @timers);
    is_deeply [map { $t->remove_handle($_) } @ids], [(0) x 30], '30 watches are removed';
    is_deeply [map { $t->remove_timeout($_) } @timers], [(0) x 30], '30 timers are removed';
    for my $n (1 .. 4) {
        put_byte($pipes[-1][1]);
        my $fired = $t->count(timer => $last_timer);
        $t->until(sub { $t->count(handle => $last) >= $n && $t->count(timer => $last_timer) > $fired });
        is $t->count(handle => $last), $n, "the last watch runs for byte $n" or last;
        cmp_ok $t->count(timer => $last_timer), '>', $fired, 'the last timer goes on';
    }
};

case 8 => 'disabled_is_removable', handle => {
    rule   => 'a disabled watch or timer can be removed, and is freed then',
    source => 'test-events.c of libvirt-glib; src/conf/object_event.c of libvirt',
    harm   => "The timer of a connection's events is disabled most of the time, also when the connection is closed. "
        . "If it cannot be removed then, each connection that was closed stays in memory.",
    advice => 'keep a record also of what is disabled, and remove it like any other',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my $handle   = $t->add_handle($reader, 0);
    my $disabled = $t->add_handle($reader, READABLE);
    $t->update_handle($disabled, 0);
    my $timer = $t->add_timeout(-1);
    is $t->remove_handle($handle), 0, 'a watch of mask 0';
    is $t->remove_handle($disabled), 0, 'a watch that was disabled later';
    is $t->remove_timeout($timer), 0, 'a timer of -1 ms';
    $t->until(sub { $t->count('ff') >= 3 });
    is_deeply [sort $t->story], [sort map { "ff $_" } $handle, $disabled, $timer], 'each is freed, none ran';
};

case 9 => 'unknown_ids', handle => {
    rule   => 'an update of an id that was never given out changes nothing, and a removal returns -1',
    source => 'libvirt/libvirt-event.h, virEventRemoveHandleFunc and virEventRemoveTimeoutFunc',
    harm   => "A caller that mixes up its ids, or passes on the -1 of an add that has failed, changes what belongs to "
        . "others, or kills the program by an exception inside libvirt's locks.",
    advice => 'nothing to do in the loop: the module tells it only of keys that the loop has returned itself',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = pipe_pair();
    my $timer  = $t->add_timeout(60_000);
    my $handle = $t->add_handle($reader, READABLE);
    my $calls  = ref $t->impl ? $t->record_calls : [];
    # The ids of handles and timers are one sequence here and two there.
    my @none = (0, -1, -5, 999_999, 2**31 - 1, -2**31);
    my @not_handles = (@none, $timer == $handle ? () : $timer);
    my @not_timers  = (@none, $timer == $handle ? () : $handle);
    $t->update_handle($_, WRITABLE) for @not_handles;
    $t->update_timeout($_, 0) for @not_timers;
    is_deeply [map { $t->remove_handle($_) } @not_handles], [(-1) x @not_handles], 'remove_handle returns -1';
    is_deeply [map { $t->remove_timeout($_) } @not_timers], [(-1) x @not_timers], 'remove_timeout returns -1';
    is_deeply $calls, [], 'the methods of the loop are not called';
    $t->passes(3);
    is_deeply [$t->dispatched], [], 'nothing runs';
    is $t->remove_handle($handle), 0, 'the watch is still registered';
    is $t->remove_timeout($timer), 0, 'the timer is still registered';
};

case 10 => 'stale_update', handle => {
    rule   => 'an update of a removed watch or timer changes nothing: not that one, and no other',
    source => 'libvirt-glib, commit 3e73e0c; src/util/vireventglib.c of libvirt, virEventGLibHandleUpdate',
    harm   => "libvirt updates the watch of a connection that another thread has just closed. A loop that takes the "
        . "update for a new watch polls a closed fd from then on; one that reuses ids changes another connection.",
    advice => 'ignore updates of what was removed; under this module they do not reach the loop',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my @handles = map { $t->add_handle($reader, 0) } 1 .. 3;
    my @timers  = map { $t->add_timeout(-1) } 1 .. 3;
    $t->remove_handle($handles[1]);
    $t->remove_timeout($timers[1]);
    for (1, 2) {
        $t->update_handle($handles[1], READABLE);
        $t->update_timeout($timers[1], 0);
        $t->passes(2);
    }
    is_deeply [$t->dispatched], [], 'nothing runs';
};

case 11 => 'removed_twice', handle => {
    rule   => 'the second removal of a watch or timer returns -1, and frees nothing',
    source => 'libvirt/libvirt-event.h, virEventRemoveHandleFunc',
    harm   => "libvirt's free functions drop a reference to a connection. A second one for the same watch drops a "
        . "reference that somebody else holds: a crash, long after the mistake.",
    advice => 'nothing to do in the loop: the module answers, and runs free functions',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = pipe_pair();
    my $handle = $t->add_handle($reader, READABLE);
    my $timer  = $t->add_timeout(60_000);
    is_deeply [map { $t->remove_handle($handle) } 1 .. 3], [0, -1, -1], 'a watch';
    is_deeply [map { $t->remove_timeout($timer) } 1 .. 3], [0, -1, -1], 'a timer';
    $t->until(sub { $t->count('ff') >= 2 });
    is $t->remove_handle($handle), -1, 'after the free function, too';
    is $t->remove_timeout($timer), -1, '... of either';
    $t->run_fully(0.02);
    is_deeply [sort $t->story], [sort "ff $handle", "ff $timer"], 'each is freed once';
};

case 12 => 'added_again', handle => {
    rule   => 'a watch that is added right after another of the same fd was removed works',
    source => 'src/rpc/virnetsocket.c and src/util/virfdstream.c of libvirt',
    harm   => "A program removes the callback of a stream and adds another one at once. Where the loop removes later, "
        . "and by fd, it removes the new watch with the old one, and the stream stands still for ever.",
    advice => 'remove by the record of the watch, at once; never later by its fd',
}, sub {
    my ($t) = @_;
    my ($ours, $theirs) = socket_pair();
    my $id = $t->add_handle($ours, READABLE, read => 1);
    $t->run(0.005);
    for my $n (1 .. 2) {
        is $t->remove_handle($id), 0, 'removed';
        $id = $t->add_handle($ours, READABLE, read => 1);
        $t->run(0.005);
        put_byte($theirs);
        $t->until(sub { $t->count(handle => $id) });
        is $t->count(handle => $id), 1, "the new watch runs, change $n" or last;
    }
};

case 13 => 'fd_number_reused', handle => {
    rule   => 'an fd number that was closed, and its watch removed, can be watched again for a new file',
    source => 'L<Sys::Virt::Event/Handles>; src/util/virfdstream.c of libvirt',
    harm   => "The kernel gives the number of the connection that was closed to the next one that is opened. A loop "
        . "that remembers numbers takes it for the old one: the program reconnects, and then no event arrives.",
    advice => 'keep nothing by fd number beyond remove_handle; an error of removing a closed fd is no error',
}, sub {
    my ($t) = @_;
    my %way = (
        'removed, then closed' => sub { $t->remove_handle($_[0]); POSIX::close(ONE_FD); $t->passes(1) },
        'closed, then removed' => sub { POSIX::close(ONE_FD); $t->remove_handle($_[0]) },
        'closed, and removed later' => sub { POSIX::close(ONE_FD); $t->run(0.005); $t->remove_handle($_[0]) },
    );
    for my $way (sort keys %way) {
        my $writer = pipe_at(ONE_FD);
        my $old    = $t->add_handle(ONE_FD, READABLE, read => 1);
        put_byte($writer);
        $t->until(sub { $t->count(handle => $old) });
        $way{$way}->($old);
        my $new_writer = pipe_at(ONE_FD);
        my $new        = $t->add_handle(ONE_FD, READABLE, read => 1);
        $t->passes(1);
        is $t->count(handle => $new), 0, "$way: the new watch does not run before there is something to read";
        put_byte($new_writer);
        $t->until(sub { $t->count(handle => $new) });
        is_deeply [masks_told($t, $new)], [READABLE], "$way: then it does" or last;
        $t->remove_handle($new);
        POSIX::close(ONE_FD);
    }
};

case 14 => 'fd_reused_in_pass', handle => {
    rule   => 'what was ready on a file is not told to the watch of another that a callback opened with its fd number',
    source => 'L<Sys::Virt::Event/Passes>',
    harm   => "A callback closes a connection and opens another one, which gets the fd number of the first. Told "
        . "what was ready there, its callback reads from a socket that has nothing to give, and blocks, or takes "
        . "the hang-up of the old connection for its own.",
    advice => 'collect what is ready by watch, not by fd number, and call no watch that was added since the poll',
}, sub {
    my ($t) = @_;
    my @fds     = (ONE_FD, OTHER_FD);
    my @writers = map { pipe_at($_) } @fds;
    my ($first, $new) = (0, 0);
    my ($new_writer, $is_written, @ids);
    $t->impl;
    for my $n (0, 1) {
        my $new_fd = $fds[1 - $n];
        put_byte($writers[$n]);
        # Whichever is called first replaces the file of the other.
        $ids[$n] = Sys::Virt::Event::add_handle($fds[$n], READABLE, sub {
            $first++;
            Sys::Virt::Event::update_handle($_, 0) for @ids;
            $new_writer = pipe_at($new_fd);
            Sys::Virt::Event::add_handle($new_fd, READABLE, sub {
                $new++;
                POSIX::read($new_fd, my $byte, 1) if $is_written;
            }) if $first == 1;
        });
    }
    $t->until(sub { $first });
    Sys::Virt::Event::remove_handle($_) for @ids;
    $t->passes(2) if !$new;
    is $first, 1, 'one of two was called, and replaced the file of the other';
    is $new, 0, 'the new watch is not called' or return;
    put_byte($new_writer);
    $is_written = 1;
    $t->until(sub { $new });
    is $new, 1, '... before there is something to read';
};

case 15 => 'fd_stays_open', handle => {
    rule   => 'removing a watch leaves its fd open',
    source => 'src/rpc/virnetsocket.c of libvirt, virNetSocketDispose, which closes it',
    harm   => "The fd is libvirt's, which closes it itself. If the loop does so first, by a Perl handle made of the "
        . "number, the number may belong to another file when libvirt closes it: one that has nothing to do with it.",
    advice => "never wrap the number by '+<&=' or new_from_fd; take a duplicate ('+<&') where a handle is needed",
}, sub {
    my ($t) = @_;
    my ($ours, $theirs) = socket_pair();
    my @ids = map { $t->add_handle($ours, READABLE | WRITABLE) } 1, 2;
    $t->until(sub { !grep { !$t->count(handle => $_) } @ids });
    $t->remove_handle($_) for @ids;
    $t->until(sub { $t->count('ff') >= 2 });
    $t->passes(2);
    put_byte($theirs);
    is sysread($ours, my $byte, 1), 1, 'what is written arrives';
    shutdown $ours, SHUT_WR;
    ok sees_end($theirs), 'the other side sees the end when we say so';
};

case 16 => 'flags_untouched', handle => {
    rule   => 'the flags of an fd are left alone: blocking stays blocking, and close-on-exec as it is',
    source => 'L<Sys::Virt::Event/Handles>',
    harm   => "O_NONBLOCK belongs to the open file: it changes for every duplicate of the fd, and for other "
        . "processes that share it. Code that counts on reads that block gets EAGAIN from then on; and without "
        . "close-on-exec the children of a program keep its connections open.",
    advice => 'put F_GETFL back after calls of the host loop that set O_NONBLOCK, such as blocking(0)',
}, sub {
    my ($t) = @_;
    for my $blocks (1, 0) {
        my $what = $blocks ? 'blocking' : 'non-blocking';
        my ($reader, $writer) = pipe_pair();
        fcntl $writer, F_SETFL, O_NONBLOCK | fcntl $writer, F_GETFL, 0 if !$blocks;
        my $all = sub { join ' ', map { 0 + fcntl $writer, $_, 0 } F_GETFL, F_GETFD };
        my $before = $all->();
        my $id = $t->add_handle($writer, WRITABLE);
        is $all->(), $before, "$what, when a watch was added";
        $t->until(sub { $t->count(handle => $id) });
        is $all->(), $before, "$what, when it has run";
        $t->update_handle($id, 0);
        $t->remove_handle($id);
        is $all->(), $before, "$what, when it was removed";
        $t->run(0.005);
        is $all->(), $before, "$what, a pass later";
    }
};

case 17 => 'no_dup_left', handle => {
    rule   => 'when its watch was removed and the fd is closed, the other side sees the end of file at once',
    source => 'L<Sys::Virt::Event/Handles>',
    harm   => "A duplicate of the fd that the loop keeps, until the free function or for ever, keeps the file open: a "
        . "server does not notice that its client has gone, and a reader of a pipe waits for an end that never comes.",
    advice => 'close what duplicates the fd in remove_handle itself, not when the watch is freed',
}, sub {
    my ($t) = @_;
    my ($ours, $theirs) = socket_pair();
    my $id = $t->add_handle($ours, READABLE | WRITABLE);
    $t->until(sub { $t->count(handle => $id) });
    $t->remove_handle($id);
    close $ours;
    ok sees_end($theirs), 'outside of the loop';

    my ($reader, $writer) = pipe_pair();
    my $is_seen;
    $id = $t->watch($writer, WRITABLE, sub {
        return if defined $is_seen;
        Sys::Virt::Event::remove_handle($id);
        close $writer;
        $is_seen = sees_end($reader);
    });
    $t->until(sub { defined $is_seen });
    ok $is_seen, 'in its own callback';
};

case 18 => 'no_growth', handle => {
    rule   => '10,000 watches and timers that were added and removed leave nothing behind',
    source => 'L<Sys::Virt::Event/is_idle()>',
    harm   => "libvirt adds a watch for each connection and each stream. A program that runs for months, and opens a "
        . "connection every few seconds, grows and slows down with each one of which the loop keeps something.",
    advice => 'drop all records of a watch in remove_*, the tokens and what the host loop has of it included',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = pipe_pair();
    my ($released, @tokens) = (0);
    my $note = sub {
        my ($original, $impl, @args) = @_;
        push @tokens, $args[-2];
        weaken $tokens[-1] if ref $tokens[-1];
        return $impl->$original(@args);
    };
    $t->override(add_handle => $note, add_timeout => $note) if ref $t->impl;
    $t->passes(1);
    $t->run(0.001);
    @tokens = ();
    my @fds = open_fds();
    for (1 .. 50) {
        my @code = map { callable(sub { }, sub { $released++ }) } 1 .. 200;
        my @handles = map { $t->watch($reader, READABLE, $_) } @code[0 .. 99];
        my @timers  = map { $t->timer(60_000, $_) } @code[100 .. 199];
        Sys::Virt::Event::remove_handle($_) for @handles;
        Sys::Virt::Event::remove_timeout($_) for @timers;
        undef @code;
        $t->run(0.001) if $_ % 4 == 0;
    }
    $t->until(sub { $released >= 10_000 });
    $t->run(0.01);
    is $released, 10_000, 'all callbacks are released';
    is scalar(my @left = grep { defined } @tokens), 0, 'no token of a removed watch is kept';
    is_deeply [open_fds()], \@fds, 'no fd is left open';
};

# Masks.

case 19 => 'second_watch_of_fd', mask => {
    rule   => 'of two watches of one fd only the one whose mask is not 0 runs',
    source => 'tests/eventtest.c of libvirt',
    harm   => "A loop that finds the watch by the fd calls the one that is switched off, and the other one never. "
        . "What a stream or a connection waits for has arrived, and nobody is told.",
    advice => 'find the watch by its record, not by the fd alone',
}, sub {
    my ($t) = @_;
    my ($ours, $theirs) = socket_pair();
    put_byte($theirs);
    my $off = $t->add_handle($ours, 0);
    my $on  = $t->add_handle($ours, READABLE, read => 1);
    $t->until(sub { $t->count(handle => $on) });
    $t->passes(3);
    is_deeply [$t->dispatched], ["handle $on"], 'the second';
    my ($entry) = $t->entries('handle');
    is $entry->{added_as}, $on, 'with its own opaque';
};

case 20 => 'silent', mask => {
    rule   => 'with mask 0 nothing is told: no data, and no hang-up',
    source => 'src/rpc/virnetclient.c and src/util/vireventglib.c of libvirt',
    harm   => "libvirt sets the mask of a connection to 0 while a call waits for its answer. A callback in that time, "
        . "for a hang-up, waits for the lock that the call holds: the loop stands still.",
    advice => 'do not poll an fd while its mask is 0: poll(2) reports hang-ups with an empty mask, too',
}, sub {
    my ($t) = @_;
    my ($ours, $theirs) = socket_pair();
    my ($reader, $writer) = ready_pipe();
    my @ids = ($t->add_handle($ours, READABLE), $t->add_handle($reader, 0), $t->add_handle($reader, READABLE));
    $t->update_handle($_, 0) for @ids;
    put_byte($theirs);
    close $_ for $theirs, $writer;
    $t->passes(5);
    is_deeply [$t->dispatched], [], 'nothing ran';
};

case 21 => 'sleeps_at_mask_0', mask => {
    rule   => 'the loop sleeps while there is a hang-up on an fd whose watches all have mask 0',
    source => 'src/rpc/virnetclient.c and src/util/vireventglib.c of libvirt',
    harm   => "A server that is stopped hangs up. If that happens during a call, whose connection has mask 0, the loop "
        . "that polls it all the same takes all of a processor, until the call ends.",
    advice => 'take an fd out of the poll set while its mask is 0; to drop the event that it reports is not enough',
}, sub {
    my ($t) = @_;
    my ($ours, $theirs) = socket_pair();
    my ($reader, $writer) = pipe_pair();
    my @ids = ($t->add_handle($ours, READABLE), $t->add_handle($reader, 0));
    $t->update_handle($_, 0) for @ids;
    close $_ for $theirs, $writer;
    $t->add_timeout(60_000);
    $t->run(0.01);
    sleeps_well($t);
};

case 22 => 'enabled_again', mask => {
    rule   => 'what has arrived while the mask was 0 is told when the mask is set again',
    source => 'src/rpc/virnetclient.c of libvirt, virNetClientIO',
    harm   => "Events come in while a call waits for its answer with mask 0. If they are not told after it, they are "
        . "late until the server sends something more, or for ever.",
    advice => 'let update_handle take effect at once, and ask the kernel anew for what is ready',
}, sub {
    my ($t) = @_;
    my ($ours, $theirs) = socket_pair();
    my ($reader, $writer) = pipe_pair();
    my %ids = (
        'a socket' => $t->add_handle($ours, READABLE, read => 1),
        'a pipe'   => $t->add_handle($reader, 0, read => 1),
    );
    $t->run(0.005);
    $t->update_handle($_, 0) for values %ids;
    put_byte($_) for $theirs, $writer;
    $t->passes(3);
    $t->update_handle($_, READABLE) for values %ids;
    $t->until(sub { $t->count('handle') >= 2 });
    is_deeply [map { $_->{events} } $t->entries(handle => $ids{$_})], [READABLE], $_ for sort keys %ids;
};

case 23 => 'disabled_in_callback', mask => {
    rule   => 'a watch that sets its own mask to 0 in its callback has run once',
    source => 'src/util/virfdstream.c and src/rpc/virnetclient.c of libvirt',
    harm   => "A stream switches itself off when it has enough. If the loop goes on, as it puts the old mask back or "
        . "works with a copy of it, it spins, and calls code that does not expect it.",
    advice => 'write the new mask to the record itself, also while its callback runs, and do not overwrite it after',
}, sub {
    my ($t) = @_;
    my ($ours, $theirs) = socket_pair();
    put_byte($theirs);
    my $id = $t->add_handle($ours, READABLE, in_callback => [[update_handle => 'self', 0]]);
    $t->until(sub { $t->count(handle => $id) });
    $t->passes(5);
    is $t->count(handle => $id), 1, 'once, although there is still something to read';
};

case 24 => 'update_replaces_mask', mask => {
    rule   => 'an update replaces the mask: what it does not name is not told any more',
    source => 'libvirt/libvirt-event.h, virEventUpdateHandleFunc; src/rpc/virnetclient.c of libvirt',
    harm   => "libvirt asks for WRITABLE only as long as it has something to send, and a socket can be written to "
        . "nearly always. A loop that goes on telling so after the mask has changed takes all of a processor.",
    advice => 'with one watcher for each direction, stop the one that the new mask does not have',
}, sub {
    my ($t) = @_;
    my ($ours, $theirs) = socket_pair();
    my $id = $t->add_handle($ours, READABLE | WRITABLE);
    $t->until(sub { $t->count(handle => $id) });
    is_deeply [masks_told($t, $id)], [WRITABLE], 'told what it asked for';
    $t->update_handle($id, READABLE);
    $t->forget_log;
    $t->passes(3);
    is $t->count(handle => $id), 0, 'then not, without WRITABLE in the mask';
    put_byte($theirs);
    $t->until(sub { $t->count(handle => $id) });
    is_deeply [masks_told($t, $id)], [READABLE], 'nor when there is something to read';
    $t->update_handle($id, WRITABLE);
    $t->forget_log;
    $t->until(sub { $t->count(handle => $id) });
    is_deeply [masks_told($t, $id)], [WRITABLE], 'and the reverse';
};

case 25 => 'no_room_to_write', mask => {
    rule   => 'WRITABLE is told when there is room to write, and not before',
    source => 'libvirt/libvirt-event.h, virEventHandleType: the bits of poll(2)',
    harm   => "A program that uploads a file sends until the socket is full, and waits for WRITABLE. Told too early "
        . "it spins; told never, the upload stands still.",
    advice => 'ask poll(2) for POLLOUT where the mask has WRITABLE, and tell what it says',
}, sub {
    my ($t) = @_;
    my ($ours, $theirs) = socket_pair();
    fcntl $_, F_SETFL, O_NONBLOCK | fcntl $_, F_GETFL, 0 for $ours, $theirs;
    1 while syswrite $ours, 'x' x 65536;
    my $id = $t->add_handle($ours, WRITABLE);
    $t->passes(3);
    is $t->count(handle => $id), 0, 'not while the socket is full';
    1 while sysread $theirs, my $bytes, 65536;
    $t->until(sub { $t->count(handle => $id) });
    is_deeply [masks_told($t, $id)], [WRITABLE], 'when it was emptied';
};

case 26 => 'both_in_one_call', mask => {
    rule   => 'READABLE and WRITABLE that are ready together are told in one call',
    source => "L<Sys::Virt::Event/Handles>; libvirt's own loop, src/util/vireventglib.c; the header can be read "
        . 'otherwise',
    harm   => "In the first of two calls libvirt may change the mask, or remove the watch and give the connection "
        . "up. The second one then comes for bits that nobody waits for any more, on what may be closed.",
    advice => 'gather the bits of a watch, from all watchers of the host loop, and make one call of them',
}, sub {
    my ($t) = @_;
    my ($ours, $theirs) = socket_pair();
    put_byte($theirs);
    my $id = $t->add_handle($ours, READABLE | WRITABLE);
    $t->until(sub { $t->count(handle => $id) });
    $t->passes(2);
    is_deeply [masks_told($t, $id)], [READABLE | WRITABLE];
};

# Of hang-ups there are three kinds here: a socket's, a pipe's, and an error on a pipe's write end.

case 27 => 'hangup_unasked', errhup => {
    rule   => 'HANGUP is told with any mask but 0, asked for or not',
    source => 'src/util/vireventglibwatch.c and src/rpc/virnetclient.c of libvirt; poll(2)',
    harm   => "libvirt never asks for HANGUP on a client's connection, but takes the reason of its close callback "
        . "from it: without it the end of a server looks like an error. Of a pipe whose writer has gone nothing "
        . "else is told, and the program waits for ever.",
    advice => 'add HANGUP to what a watch can be told, whatever its mask; where the host loop has none ask poll(2)',
}, sub {
    my ($t) = @_;
    my ($ours, $theirs) = socket_pair();
    my ($reader, $writer) = pipe_pair();
    my $socket = $t->add_handle($ours, WRITABLE);
    my $pipe   = $t->add_handle($reader, READABLE);
    close $_ for $theirs, $writer;
    $t->until(sub { $t->count(handle => $socket) && $t->count(handle => $pipe) });
    $t->passes(2);
    is_deeply [masks_told($t, $socket)], [WRITABLE | HANGUP], 'a socket watched for WRITABLE';
    is_deeply [masks_told($t, $pipe)], [HANGUP], 'a pipe watched for READABLE, with nothing to read';
};

case 28 => 'error_unasked', errhup => {
    rule   => 'ERROR is told with any mask but 0, asked for or not',
    source => 'src/util/vireventglibwatch.c of libvirt; poll(2)',
    harm   => "libvirt takes a connection down on ERROR, but does not ask for it. Without it a watch whose fd can "
        . "neither be read nor written any more is told nothing of that, and what it belongs to is not cleaned up.",
    advice => 'add ERROR to what a watch can be told, whatever its mask; where the host loop has none ask poll(2)',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = pipe_pair();
    my $id = $t->add_handle($writer, WRITABLE);
    close $reader;
    $t->until(sub { $t->count(handle => $id) });
    $t->passes(2);
    is_deeply [masks_told($t, $id)], [WRITABLE | ERROR], 'the end of a pipe that nobody reads';
};

case 29 => 'hangup_alone', errhup => {
    rule   => 'a mask of HANGUP or ERROR alone is told hang-ups, and not what there is to read',
    source => 'libvirt/libvirt-event.h, virEventHandleType',
    harm   => "Code that only wants to know when the other side goes is called for data that it does not read, again "
        . "and again; or, where such a mask counts as none, it is never called.",
    advice => 'take a mask of HANGUP or ERROR for a watch that is on; poll(2) does so with an empty set of events',
}, sub {
    my ($t) = @_;
    my ($ours, $theirs) = socket_pair();
    my ($other, $others) = socket_pair();
    my $hangup = $t->add_handle($ours, HANGUP);
    my $error  = $t->add_handle($other, ERROR);
    put_byte($_) for $theirs, $others;
    $t->passes(3);
    is_deeply [$t->dispatched], [], 'what there is to read is not told';
    close $_ for $theirs, $others;
    $t->until(sub { $t->count(handle => $hangup) && $t->count(handle => $error) });
    $t->passes(2);
    is_deeply [masks_told($t, $hangup)], [HANGUP], 'the hang-up is';
    is_deeply [masks_told($t, $error)], [HANGUP], '... with a mask of ERROR, too';
};

case 30 => 'hangup_again', errhup => {
    rule   => 'a hang-up is told again in each pass',
    source => 'src/util/vireventglib.c and src/rpc/virnetclient.c of libvirt',
    harm   => "libvirt's callback returns at once while another thread uses the connection, and leaves the hang-up "
        . "for the next time. A loop that tells it once loses it: the connection looks alive, and its close "
        . "callback does not run.",
    advice => 'do not switch a watch off after a hang-up; libvirt removes it when it has dealt with it',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = pipe_pair();
    my $id = $t->add_handle($reader, READABLE);
    close $writer;
    $t->until(sub { $t->count(handle => $id) >= 5 });
    cmp_ok $t->count(handle => $id), '>=', 5, 'five times and more';
};

case 31 => 'readable_and_hangup', errhup => {
    rule   => 'data and the hang-up that follows it are told in one call, as READABLE and HANGUP',
    source => 'src/rpc/virnetclient.c of libvirt, virNetClientIncomingEvent; src/util/vireventglib.c',
    harm   => "A server sends its last message and hangs up. libvirt reads first and then takes the connection "
        . "down, if both come in one call. A hang-up that comes first takes the message with it; one that is "
        . "hidden by the data makes the end of the server look like an error.",
    advice => 'tell all bits that poll(2) reports for an fd together; do not let HANGUP hide READABLE',
}, sub {
    my ($t) = @_;
    my ($ours, $theirs) = socket_pair();
    my ($reader, $writer) = pipe_pair();
    put_byte($_) for $theirs, $writer;
    close $_ for $theirs, $writer;
    my $socket = $t->add_handle($ours, READABLE);
    my $pipe   = $t->add_handle($reader, READABLE);
    $t->until(sub { $t->count(handle => $socket) && $t->count(handle => $pipe) });
    $t->passes(2);
    is_deeply [masks_told($t, $socket)], [READABLE | HANGUP], 'a socket';
    is_deeply [masks_told($t, $pipe)], [READABLE | HANGUP], 'a pipe';

    my ($off, $other) = socket_pair();
    my $id = $t->add_handle($off, 0);
    put_byte($other);
    close $other;
    $t->passes(3);
    $t->update_handle($id, READABLE);
    $t->until(sub { $t->count(handle => $id) });
    is_deeply [(masks_told($t, $id))[0]], [READABLE | HANGUP], 'a socket whose mask was 0 meanwhile';
};

case 32 => 'closed_fd', errhup => {
    rule   => 'a watch whose fd was closed under it is told ERROR, and once more when it is updated',
    source => 'L<Sys::Virt::Event/Handles>; src/util/virfdstream.c of libvirt',
    harm   => "A program that finishes a stream without removing its callback leaves a watch on an fd that libvirt "
        . "has closed. ERROR is the only sign of that mistake: without it the callback is never called again, and "
        . "the watch stays."
        . " libvirt's own loop has this fault.",
    advice => 'take POLLNVAL for ERROR; where the host loop cannot say so ask poll(2) about its fds',
}, sub {
    my ($t) = @_;
    my $writer = pipe_at(ONE_FD);
    my $id = $t->add_handle(ONE_FD, READABLE);
    $t->run(0.005);
    POSIX::close(ONE_FD);
    $t->until(sub { $t->count(handle => $id) });
    is_deeply [masks_told($t, $id)], [ERROR], 'it is told ERROR' or return;
    $t->update_handle($id, READABLE);
    $t->forget_log;
    $t->until(sub { $t->count(handle => $id) });
    is_deeply [masks_told($t, $id)], [ERROR], 'and once more after an update';
    is $t->remove_handle($id), 0, 'it can be removed';
};

case 33 => 'closed_fd_once', errhup => {
    rule   => 'a watch whose fd was closed is not told so twice, and the loop sleeps',
    source => 'L<Sys::Virt::Event/Handles>',
    harm   => "Nothing will ever change on a closed fd. A loop that polls it on takes all of a processor for as long "
        . "as the program runs, as libvirt's own loop does.",
    advice => 'after POLLNVAL leave the watch out of the poll set until it is updated',
}, sub {
    my ($t) = @_;
    my $writer = pipe_at(ONE_FD);
    my $id = $t->add_handle(ONE_FD, READABLE);
    $t->add_timeout(60_000);
    $t->run(0.005);
    POSIX::close(ONE_FD);
    $t->run_fully(0.02);
    sleeps_well($t);
    cmp_ok $t->count(handle => $id), '<=', 1, 'told once at most';
};

case 34 => 'closed_fd_spares_others', errhup => {
    rule   => 'other watches and timers work on when the fd of one was closed under it',
    source => 'L<Sys::Virt::Event/Handles>',
    harm   => "select(2) fails as a whole for a single closed fd. A loop that does no better stops all connections of "
        . "the program for one stream that was closed too early.",
    advice => 'use poll(2), or look for the closed fd when select(2) fails with EBADF, and leave it out',
}, sub {
    my ($t) = @_;
    my $closed_writer = pipe_at(ONE_FD);
    my ($reader, $writer) = pipe_pair();
    my $closed = $t->add_handle(ONE_FD, READABLE);
    my $other  = $t->add_handle($reader, READABLE, read => 1);
    $t->run(0.005);
    POSIX::close(ONE_FD);
    my $timer = $t->add_timeout(1);
    for my $n (1 .. 3) {
        put_byte($writer);
        $t->until(sub { $t->count(handle => $other) >= $n && $t->count(timer => $timer) >= $n });
        is $t->count(handle => $other), $n, "the other watch runs for byte $n" or last;
        cmp_ok $t->count(timer => $timer), '>=', $n, 'the timer goes on';
    }
};

# Several watches of one fd.

case 35 => 'own_bits', multi => {
    rule   => 'each of two watches of one fd is told the bits that it asked for, and no others',
    source => 'libvirt/libvirt-event.h, virEventAddHandleFunc',
    harm   => "A program may read and write a stream by two watches. If each is told the bits of both, one writes "
        . "where the buffer is full and the other reads where there is nothing, and both block.",
    advice => 'intersect what poll says of the fd with the mask of each watch',
}, sub {
    my ($t) = @_;
    my ($ours, $theirs) = socket_pair();
    put_byte($theirs);
    my $reads  = $t->add_handle($ours, READABLE);
    my $writes = $t->add_handle($ours, WRITABLE);
    $t->until(sub { $t->count(handle => $reads) && $t->count(handle => $writes) });
    $t->passes(2);
    is_deeply [masks_told($t, $reads)], [READABLE], 'one reads';
    is_deeply [masks_told($t, $writes)], [WRITABLE], 'one writes';
};

case 36 => 'same_bits', multi => {
    rule   => 'two watches of one fd with the same mask both run',
    source => "libvirt's own loop, src/util/vireventglib.c",
    harm   => "libvirt and the program, or two parts of a program, watch the same fd. If the second watch takes the "
        . "place of the first, what the first one waits for is never told."
        . " The header promises no more than masks that do not overlap; libvirt's own loop takes any.",
    advice => 'keep a record for each watch; where the host loop takes an fd once, let them share its watcher',
}, sub {
    my ($t) = @_;
    my ($ours, $theirs) = socket_pair();
    put_byte($theirs);
    my @ids = map { $t->add_handle($ours, READABLE) } 1 .. 2;
    $t->until(sub { !grep { !$t->count(handle => $_) } @ids });
    is_deeply [map { [masks_told($t, $_)] } @ids], [[READABLE], [READABLE]];
};

case 37 => 'two_readers_one_writer', multi => {
    rule   => 'of two readers and one writer of an fd all run, and the others when one of them is switched off',
    source => 'L<Sys::Virt::Event/Handles>',
    harm   => "Many loops have room for one reader and one writer of an fd. What does not fit is lost without a word, "
        . "or the watches that are left go when one is switched off."
        . " The header promises no more than masks that do not overlap; libvirt's own loop takes any.",
    advice => 'poll an fd for the union of the masks of its watches, made anew whenever one of them changes',
}, sub {
    my ($t) = @_;
    my ($ours, $theirs) = socket_pair();
    put_byte($theirs);
    my @ids = map { $t->add_handle($ours, $_) } READABLE, READABLE, WRITABLE;
    my @names = ('the first reader', 'the second reader', 'the writer');
    for my $off (undef, 0 .. 2) {
        my @on = grep { !defined $off || $_ != $off } 0 .. 2;
        $t->update_handle($ids[$_], $_ == 2 ? WRITABLE : READABLE) for @on;
        $t->update_handle($ids[$off], 0) if defined $off;
        $t->forget_log;
        $t->until(sub { !grep { !$t->count(handle => $ids[$_]) } @on });
        is_deeply [grep { $t->count(handle => $ids[$_]) } 0 .. 2], \@on,
            defined $off ? "all but $names[$off], which is off" : 'all' or last;
    }
};

case 38 => 'other_works_on', multi => {
    rule   => 'when one of two watches of an fd is removed the other works on',
    source => 'libvirt/libvirt-event.h, virEventAddHandleFunc; L<Sys::Virt::Event/Handles>',
    harm   => "A program stops watching a connection of its own and with it, where the loop removes by fd, ends the "
        . "watch of a library. epoll(7) does that to those who are not careful.",
    advice => 'let the host loop forget an fd only with its last watch; otherwise give it the masks that are left',
}, sub {
    my ($t) = @_;
    for my $first (0, 1) {
        my ($ours, $theirs) = socket_pair();
        my @ids = map { $t->add_handle($ours, $_) } READABLE, WRITABLE;
        put_byte($theirs);
        $t->until(sub { !grep { !$t->count(handle => $_) } @ids });
        my ($removed, $kept) = @ids[$first, 1 - $first];
        is $t->remove_handle($removed), 0, 'one is removed';
        $t->forget_log;
        # To those who tell changes only this is one.
        $t->update_handle($kept, $_) for 0, $first ? READABLE : WRITABLE;
        $t->until(sub { $t->count(handle => $kept) });
        is_deeply [masks_told($t, $kept)], [$first ? READABLE : WRITABLE],
            $first ? 'the reader works on' : 'the writer works on';
        $t->remove_handle($kept);
    }
};

case 39 => 'removes_its_like', multi => {
    rule   => 'of two watches of an fd that are both ready, the one that the other removes does not run',
    source => 'libvirtaio.py of libvirt-python, which breaks it; L<Sys::Virt::Event/Passes>',
    harm   => "The callback that reads the end of a connection removes all its watches. One that runs all the same "
        . "works with what the first has just released; libvirt's own binding for Python's asyncio has this fault.",
    advice => 'before each call ask whether the watch is still registered, also among the watches of one fd',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my @ids = map { $t->add_handle($reader, READABLE | HANGUP) } 1 .. 2;
    $t->on_handle($ids[0], [remove_handle => $ids[1]], [update_handle => 'self', 0]);
    $t->on_handle($ids[1], [remove_handle => $ids[0]], [update_handle => 'self', 0]);
    $t->until(sub { $t->count('handle') });
    $t->passes(5);
    is $t->count('handle'), 1, 'one of the two ran, once';
    $t->until(sub { $t->count('ff') });
    is $t->count('ff'), 1, 'the other was freed';
};

1;
