package Test::Sys::Virt::EventImpl::Cases::Frees;

# libvirt's free functions.

use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

use Test::More;
use Test::Sys::Virt::EventImpl::Case;
use Test::Sys::Virt::EventImpl::Util;

suite free => "libvirt's free functions";

# The free functions that have run, when there were so many. Handles and timers may have the same ids.
sub freed {
    my ($t, $count) = @_;
    $t->until(sub { $t->count('ff') >= $count });
    return $t->entries('ff');
}

sub names_of {
    my (@freed) = @_;
    return [sort map { "$_->{kind} $_->{id}" } @freed];
}

sub names {
    my (%ids) = @_;
    return [sort map { my $kind = $_; map { "$kind $_" } @{ $ids{$kind} } } keys %ids];
}

case 68 => 'freed_once', free => {
    rule   => 'the free function runs once, after the removal, in the thread of the loop',
    source => 'libvirt/libvirt-event.h, virEventAddHandleFunc and virEventRemoveHandleFunc',
    harm   => "The free function of a connection's watch closes its socket (src/rpc/virnetsocket.c,"
        . " virNetSocketEventFree). If it never runs, sockets leak and the server keeps its clients; if it runs too"
        . " early or twice, the program crashes.",
    advice => 'Call _free_callback_opaque once for each watch that is removed, and at no other time',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my $handle = $t->add_handle($reader, READABLE);
    my @timers = map { $t->add_timeout($_) } 5, 5;
    $t->until(sub { 3 == grep { $_ >= 3 } $t->count(handle => $handle), map { $t->count(timer => $_) } @timers });
    $t->update_timeout($timers[1], 10);
    $t->update_handle($handle, READABLE | HANGUP);
    $t->passes(3);
    is $t->count('ff'), 0, 'not before the removal';
    $t->remove_handle($handle);
    $t->remove_timeout($_) for @timers;
    freed($t, 3);
    $t->passes(5);
    my @freed = $t->entries('ff');
    is_deeply names_of(@freed), names(handle => [$handle], timer => \@timers), 'each is freed, once';
    is_deeply [grep { $_->{thread} ne 'main' } @freed], [], 'by the thread of the loop';
};

case 69 => 'after_remove', free => {
    rule   => 'the free function does not run inside remove',
    source => 'libvirt/libvirt-event.h, virEventAddHandleFunc: a direct call from remove is likely to deadlock',
    harm   => 'libvirt removes the watch of a socket with the lock of that socket held, and the free function takes'
        . ' the same lock: closing a remote connection hangs for ever. Local ones, such as test:///default, do not'
        . ' show it.',
    advice => "Nothing to do in the loop; on Sys::Virt's module put off _free_callback_opaque to the next pass",
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my ($idle, $idle_writer) = pipe_pair();
    my @handles = map { $t->add_handle($_, READABLE) } $reader, $idle;
    my @timers  = map { $t->add_timeout($_) } 5, 60_000;
    $t->until(sub { $t->count(timer => $timers[0]) });
    $t->remove_handle($_) for @handles;
    $t->remove_timeout($_) for @timers;
    my @freed = freed($t, 4);
    cmp_ok scalar @freed, '>=', 4, 'all are freed';
    is_deeply [map { @{ $_->{inside} } } @freed], [], 'none of them inside a call of libvirt to the loop';
};

case 70 => 'free_of_disabled', free => {
    rule   => 'the free function of a watch or timer runs also if that was disabled, or never ran',
    source => 'libvirt-glib, commit 79699d7, and its tests/test-events.c; src/util/vireventglib.c',
    harm   => 'The timer of events is disabled whenever it is removed, and the watch of a socket often is. What the'
        . ' free function holds, be it the whole connection, is never released.',
    advice => 'Free on removal whether or not a watcher of your loop is running for it',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my @handles = map { $t->add_handle($reader, $_) } 0, READABLE, READABLE;
    my @timers  = map { $t->add_timeout($_) } -1, 0, 60_000;
    $t->update_handle($handles[1], 0);
    $t->update_timeout($timers[1], -1);
    $t->remove_handle($_) for @handles;
    $t->remove_timeout($_) for @timers;
    is_deeply names_of(freed($t, 6)), names(handle => \@handles, timer => \@timers), 'each is freed';
    is_deeply [$t->dispatched], [], 'none ran';
};

case 71 => 'free_not_starved', free => {
    rule   => 'free functions run while a timer of 0 ms and a handle are busy',
    source => 'src/util/vireventglib.c, where the free functions of handles have G_PRIORITY_HIGH',
    harm   => 'A stream can keep a timer of 0 ms busy for minutes. What is closed in that time keeps its sockets and'
        . ' memory until it ends; a program that is never idle leaks for ever.'
        . ' libvirt\'s own loop has this fault.',
    advice => 'Nothing to do in the loop; on the module of Sys::Virt free in each pass, not when the loop is idle',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my ($idle, $idle_writer) = pipe_pair();
    my $busy   = $t->add_timeout(0);
    my $handle = $t->add_handle($reader, READABLE);
    my %gone = (handle => $t->add_handle($idle, READABLE), timer => $t->add_timeout(60_000));
    $t->until(sub { $t->count(timer => $busy) >= 20 });
    $t->remove_handle($gone{handle});
    $t->remove_timeout($gone{timer});
    my $before = $t->count(timer => $busy);
    $t->until(sub { $t->count('ff') >= 2 || $t->count(timer => $busy) >= $before + 500 });
    is_deeply names_of($t->entries('ff')), names(map { $_ => [$gone{$_}] } keys %gone), 'those of a handle and a timer';
};

case 72 => 'after_callback', free => {
    rule   => 'the free function of a watch that removes itself runs after its callback',
    source => 'libvirt-glib, commit f65794e; src/rpc/virnetclient.c, virNetClientIncomingEvent',
    harm   => 'The callback of a socket on which the server has hung up removes its own watch, and goes on with the'
        . ' client. Freed by then, that is a crash in the very moment in which a connection is lost.',
    advice => "Nothing to do in the loop; on Sys::Virt's module put off _free_callback_opaque to the next pass",
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my $handle = $t->add_handle($reader, READABLE,
        in_callback => [[remove_handle => 'self'], [update_handle => 'self', 0]]);
    my $timer  = $t->add_timeout(0, in_callback => [[remove_timeout => 'self'], [update_timeout => 'self', 0]]);
    my @freed = freed($t, 2);
    cmp_ok scalar @freed, '>=', 2, 'both are freed';
    is_deeply [grep { $_->{in_own} } @freed], [], 'not inside the callback';
};

case 73 => 'not_in_callbacks', free => {
    rule   => 'the free function of a watch removed in a callback of another does not run inside that',
    source => 'libvirt/libvirt-event.h, virEventAddHandleFunc: the free function needs a clean stack',
    harm   => 'Callbacks of libvirt remove the watches of the same connection with its locks held. A free function'
        . ' that needs one of these locks never returns.',
    advice => "Nothing to do in the loop; on Sys::Virt's module put off _free_callback_opaque to the next pass",
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my ($idle, $idle_writer) = pipe_pair();
    my @others  = map { $t->add_handle($idle, READABLE) } 1, 2;
    my @sleeper = map { $t->add_timeout(60_000) } 1, 2;
    my @both = map { [[remove_handle => $others[$_]], [remove_timeout => $sleeper[$_]]] } 0, 1;
    my $handle = $t->add_handle($reader, READABLE, in_callback => [[update_handle => 'self', 0], @{ $both[0] }]);
    my $timer  = $t->add_timeout(0, in_callback => [[update_timeout => 'self', -1], @{ $both[1] }]);
    my @freed = freed($t, 4);
    cmp_ok scalar @freed, '>=', 4, 'all four are freed';
    is_deeply [grep { $_->{in_callback} } @freed], [], 'not inside a callback';
};

case 74 => 'after_perl_callback', free => {
    rule   => 'a Perl callback that removes its own watch is released after its end',
    source => 'L<Sys::Virt::Event/remove_handle($id)>',
    harm   => 'What a Perl callback refers to is released with it. If that happens while it runs, its object may be'
        . ' destroyed under its feet, and code that closes a connection there meets a connection that is gone.',
    advice => "Nothing to do in the loop; on Sys::Virt's module put off _free_callback_opaque to the next pass",
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my (%freed, %id);
    my $callback = sub {
        my ($name, $remove) = @_;
        my $code = sub {
            $remove->($id{$name});
            # What was removed in a statement is freed when that is done, but for this.
            $freed{"$name early"}++ if $freed{$name};
        };
        return callable($code, sub { $freed{$name}++ });
    };
    $id{handle} = $t->watch($reader, READABLE,
        $callback->(handle => \&Sys::Virt::Event::remove_handle));
    $id{timer} = $t->timer(0, $callback->(timer => \&Sys::Virt::Event::remove_timeout));
    undef $callback;
    $t->until(sub { $freed{handle} && $freed{timer} });
    $t->passes(3);
    is_deeply \%freed, { handle => 1, timer => 1 }, 'once, and not early';
};

case 75 => 'free_calls_back', free => {
    rule   => 'a free function may itself remove, update and add watches',
    source => 'src/rpc/virnetsocket.c, virNetSocketEventFree, which may drop the last reference of a client',
    harm   => "The free function of a socket can be what ends its client, and a program's own free code may open the"
        . " next connection. With a lock held, or a list that must not change meanwhile, that hangs or crashes.",
    advice => 'Take a watch out of your lists before you free it, and hold no lock while you do',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my ($idle, $idle_writer) = pipe_pair();
    my $removed = $t->add_timeout(60_000);
    my $enabled = $t->add_handle($reader, 0, in_callback => [[update_handle => 'self', 0]]);
    my ($handle, $timer) = ($t->add_handle($idle, READABLE), $t->add_timeout(60_000));
    $t->on_handle_free($handle, [remove_timeout => $removed]);
    $t->on_timeout_free($timer, [update_handle => $enabled, READABLE],
        [add_timeout => 0, in_callback => [[remove_timeout => 'self']]]);
    $t->remove_handle($handle);
    $t->remove_timeout($timer);
    $t->until(sub { $t->count('ff') >= 4 && $t->count(handle => $enabled) });
    my ($added) = map { $_->{result} } $t->entries('add_timeout');
    is_deeply names_of($t->entries('ff')), names(handle => [$handle], timer => [$removed, $timer, $added // 0]),
        'all are freed';
    is_deeply [sort $t->dispatched], [sort "handle $enabled", 'timer ' . ($added // 0)],
        'what was enabled or added there runs';
};

case 76 => 'not_of_refused', free => {
    rule   => 'the free function is not called when add fails',
    source => 'src/rpc/virnetsocket.c, which releases its reference itself where virEventAddHandle fails',
    harm   => 'A caller of libvirt whose add failed releases what it had by itself, so the free function releases it'
        . ' a second time: memory that is still in use is freed, and the program crashes later, elsewhere.',
    advice => 'Forget the tokens of an add that you refuse, and free none of them',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my @answers = (sub { undef }, sub { () }, sub { -1 }, sub { -5 }, sub { die "no room\n" });
    my $answer;
    $t->override(map { my $name = $_; $name => sub { my ($original, $impl, @args) = @_;
        return $answer ? $answer->() : $impl->$original(@args) } } qw(add_handle add_timeout));
    my $refused = 0;
    for (@answers) {
        $answer = $_;
        # Whether add fails, and dies, in all these cases is another rule.
        exception_of { $refused++ if $t->add_handle($reader, READABLE) == -1 };
        exception_of { $refused++ if $t->add_timeout(0) == -1 };
    }
    cmp_ok $refused, '>', 0, "$refused adds fail";
    undef $answer;
    $t->warnings;
    my $id = $t->add_timeout(0, in_callback => [[remove_timeout => 'self']]);
    $t->until(sub { $t->count(ff => $id) });
    is $t->count(ff => $id), 1, 'one that is accepted is freed';
    $t->passes(5);
    is_deeply [grep { $_->{id} == -1 } $t->entries('ff')], [], 'none of those is freed';
}, needs => ['object'];

sub run_and_remove {
    my ($t, %opt) = @_;
    my ($reader, $writer) = ready_pipe();
    my %add = (handle => sub { $t->add_handle($reader, READABLE, %opt) }, timer => sub { $t->add_timeout(0, %opt) });
    for my $kind (sort keys %add) {
        my $id = $add{$kind}->();
        $t->until(sub { $t->count($kind => $id) });
        cmp_ok $t->count($kind => $id), '>', 0, "$kind: it runs";
        is $kind eq 'handle' ? $t->remove_handle($id) : $t->remove_timeout($id), 0, '... and is removed';
    }
    return;
}

case 77 => 'null_ff', free => {
    rule   => 'a watch or timer without a free function is fine',
    source => 'tests/eventtest.c; libvirt/libvirt-event.h, virEventAddHandle',
    harm   => 'C code that shares the loop, as eventtest.c does, passes NULL where nothing is to be freed. A call of'
        . ' NULL when its watch is removed is a crash.',
    advice => 'Nothing to do in the loop: hand the tokens back as they are, also if they are undef',
}, sub {
    my ($t) = @_;
    run_and_remove($t, null_ff => 1);
    run_and_remove($t, null_ff => 1, null_opaque => 1);
    $t->passes(5);
    is $t->count('ff'), 0, 'nothing is freed';
};

case 78 => 'null_opaque', free => {
    rule   => 'a watch or timer whose opaque is NULL runs, and is freed',
    source => 'libvirt/libvirt-event.h, virEventAddHandle: opaque is any pointer',
    harm   => 'C code that shares the loop passes NULL where its callback needs no data. A loop that takes that for'
        . ' nothing to do never calls it; the module of Sys::Virt crashes.',
    advice => 'Nothing to do in the loop: hand the tokens back as they are, also if they are undef',
}, sub {
    my ($t) = @_;
    run_and_remove($t, null_opaque => 1);
    $t->until(sub { $t->count('ff') >= 2 });
    cmp_ok $t->count('ff'), '>=', 2, 'both are freed';
};

1;
