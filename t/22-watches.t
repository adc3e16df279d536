# What a program can see of itself: watches, is_idle, drain and the trace.
use strict;
use warnings;

use POSIX ();
use Test::More;
use lib 't/lib';
use VirtTest;
use Sys::Virt::Event qw(:all);
use Sys::Virt::Event::Poll;
use Time::HiRes ();
use Test::Sys::Virt::EventImpl::CApi;
use VirtTest::Loop;

watchdog(60);

sub only { my ($watch, @keys) = @_; return { map { $_ => $watch->{$_} } @keys } }

subtest 'watches' => sub {
    is_deeply [watches()], [], 'before any registration: none';
    my $loop = VirtTest::Loop->new->register;
    my ($reader, $writer) = pipe_pair();
    my $handle = add_handle($reader, HANDLE_READABLE, sub { });
    my $timer = add_timeout(250, sub { });
    my $timers_watch = $loop->latest;

    my @watches = watches();
    is scalar(watches()), 2, 'their number in scalar context';
    is_deeply [sort keys %{ $watches[0] }], [qw(age dispatched events fd id kind last_dispatch)], 'what is told of a handle';
    is_deeply only($watches[0], qw(id kind fd events dispatched last_dispatch)),
        { id => $handle, kind => 'handle', fd => fileno $reader, events => 1, dispatched => 0, last_dispatch => undef },
        'a handle';
    is_deeply [sort keys %{ $watches[1] }], [qw(age dispatched id kind last_dispatch ms)], 'what is told of a timer';
    is_deeply only($watches[1], qw(id kind ms dispatched last_dispatch)),
        { id => $timer, kind => 'timeout', ms => 250, dispatched => 0, last_dispatch => undef }, 'a timer';

    update_handle($handle, 0);
    update_timeout($timer, -1);
    select undef, undef, undef, 0.1;
    $loop->dispatch($timers_watch) for 1 .. 3;
    @watches = watches();
    is $watches[0]{events}, 0, 'a mask changed';
    is $watches[1]{ms}, -1, 'an interval changed';
    is $watches[1]{dispatched}, 3, 'times dispatched';
    cmp_ok $watches[1]{age}, '>=', 0.09, 'seconds since it was added';
    cmp_ok $watches[1]{last_dispatch}, '<', $watches[1]{age}, 'seconds since it was dispatched';

    my $id = Test::Sys::Virt::EventImpl::CApi::spawn([add_timeout => 1000])->join->{results}[0];
    is_deeply [map { $_->{id} } watches()], [$handle, $timer, $id], 'those of other threads, too';
    remove_timeout($_) for $timer, $id;
    remove_handle($handle);
    is_deeply [watches()], [], 'none when all are removed';
};

subtest 'many, and the table shrinks again' => sub {
    my @ids = map { add_timeout(-1, sub { }) } 1 .. 1000;
    is_deeply [map { $_->{id} } watches()], \@ids, 'all, by id';
    remove_timeout($_) for grep { $_ % 3 } @ids;
    is_deeply [map { $_->{id} } watches()], [grep { $_ % 3 == 0 } @ids], 'the others';
    update_timeout($_, 7) for grep { $_ % 3 == 0 } @ids;
    is_deeply [grep { $_->{ms} != 7 } watches()], [], 'each is found';
    remove_timeout($_) for grep { $_ % 3 == 0 } @ids;
    my $next = add_timeout(-1, sub { });
    is $next, $ids[-1] + 1, 'ids are not used again';
    remove_timeout($next);
    ok is_idle(), 'nothing is left';
};

subtest 'drain' => sub {
    Sys::Virt::Event::Poll->new->register;
    is drain(0), 1, 'true when there is nothing';
    my $left = 3;
    add_timeout(5, sub { remove_timeout($_[0]) if !--$left });
    is drain(10), 1, 'true when all have gone';
    is $left, 0, 'it has run the loop';

    my $stays = add_timeout(-1, sub { });
    my $start = Time::HiRes::time();
    is !!drain(0.1), '', 'false when something stays';
    cmp_ok Time::HiRes::time() - $start, '>=', 0.099, '... after the time given';
    add_timeout(1, sub { remove_timeout($_[0]); die "on the way\n" });
    is exception_of { drain(10) }, "on the way\n", 'an exception of a callback';
    remove_timeout($stays);

    # A loop that has only run_once.
    my $loop = VirtTest::Loop->new;
    my $runs = 0;
    {
        no warnings 'once';
        *VirtTest::Loop::run_once = sub {
            my ($self, $seconds) = @_;
            cmp_ok $seconds, '>', 0, 'run_once is given seconds';
            $self->dispatch($self->latest) if ++$runs == 2;
        };
    }
    $loop->register(wake => 0);    # there were other threads: the wake watch would be the latest
    add_timeout(5, sub { remove_timeout($_[0]) });
    is drain(), 1, 'without a limit, by run_once';
    is $runs, 2, 'as often as it takes';
};

subtest 'an update that changes nothing' => sub {
    my $loop = VirtTest::Loop->new;
    my ($reader, $writer) = pipe_pair();
    $loop->register(wake => 0);
    my $handle = add_handle($reader, HANDLE_READABLE, sub { });
    my $token  = $loop->latest;
    my $told   = sub {
        my (@updates) = @_;
        $loop->calls;
        for my $events (@updates) { eval { update_handle($handle, $events) } }
        return [map { $_->[-1] } grep { $_->[0] eq 'update_handle' } $loop->calls];
    };
    is_deeply $told->(1), [], 'the loop is not told of the mask that it was given with the watch';
    is_deeply $told->(0, 0, 0, 2, 2, 0), [0, 2, 0], 'nor of the one that it was given last';

    $loop->dispatch($token, HANDLE_READABLE);
    is_deeply $told->(0), [], 'nor after a dispatch';
    $loop->dispatch($token, HANDLE_ERROR);
    is_deeply $told->(0, 0), [0], 'but it is after an error, once: it may have given the watch up';

    $loop->on(update_handle => sub { die "boom\n" });
    is_deeply $told->(1, 1), [1, 1], 'and as long as it dies';
    my $nested;
    $loop->on(update_handle => sub { $nested++ or update_handle($handle, 2) });
    is_deeply $told->(1, 1, 1), [1, 2, 1], 'and where it says something else in between';
    $loop->on(update_handle => undef);
    remove_handle($handle);

    my $timer = add_timeout(1000, sub { });
    $loop->calls;
    update_timeout($timer, 1000) for 1, 2;
    is_deeply [map { $_->[-1] } $loop->calls], [1000, 1000], 'an interval starts anew each time';
    remove_timeout($timer);
};

# A loop leaves a closed fd alone once it has told so, whether or not anybody could be called.
subtest 'the same mask revives a file descriptor that was closed, also where the callback was refused' => sub {
    {
        package Told::Inside;
        our @ISA = 'Sys::Virt::Event::Poll';
        our $runs;
        sub update_timeout { my $self = $_[0]; &Sys::Virt::Event::Poll::update_timeout; $self->run_once(0.01) if $runs; return }
    }
    my $loop = Told::Inside->new->register;
    my ($reader, $writer) = pipe_pair();
    my ($other, $to_other) = pipe_pair();
    my $fd = fileno $reader;
    my @seen;
    my $id = add_handle($fd, HANDLE_READABLE, sub { push @seen, $_[2]; sysread $reader, my $text, 1 });
    my $timer = add_timeout(-1, sub { });
    POSIX::close($fd);
    my @warnings = warnings_of { local $Told::Inside::runs = 1; update_timeout($timer, -1) };
    is scalar(@warnings), 1, 'refused';
    POSIX::dup2(fileno $other, $fd);
    syswrite $to_other, 'x';
    update_handle($id, HANDLE_READABLE);
    $loop->run_once(1) for 1, 2;
    is_deeply \@seen, [HANDLE_READABLE], 'it is watched again';
    remove_handle($id);
    remove_timeout($timer);
    drain(1);
};

subtest '_hang_up spares what other threads have added' => sub {
    my $loop = Sys::Virt::Event::Poll->new->register;
    my @pairs = map { [socket_pair()] } 1, 2;
    my $own = Test::Sys::Virt::EventImpl::CApi::add_handle(fileno $pairs[0][0], HANDLE_READABLE);
    my $foreign = Test::Sys::Virt::EventImpl::CApi::run_blocked([add_handle => fileno $pairs[1][0], 1])->{results}[0];
    Sys::Virt::Event::_hang_up(1, 2**31 - 1);
    $_->[1]->blocking(0) for @pairs;
    is_deeply [map { sysread($_->[1], my $text, 1) // 'open' } @pairs], [0, 'open'], 'the owner\'s is shut down, the other is not';
    Test::Sys::Virt::EventImpl::CApi::remove_handle($_) for $own, $foreign;
    $loop->run_once(0);
};

subtest 'SYS_VIRT_EVENT_TRACE' => sub {
    my $code = <<'EOT';
use Sys::Virt::Event qw(:all); use Sys::Virt::Event::Poll;
my $loop = Sys::Virt::Event::Poll->new->register;
pipe my $reader, my $writer; syswrite $writer, 'x';
my $id = add_handle($reader, 1, sub { update_handle($_[0], 0) });
$loop->run_once;
remove_handle($id);
my $timer = add_timeout(7, sub { });
update_timeout($timer, -1);
remove_timeout($timer);
print fileno $reader;
EOT
    my $quiet = fresh_perl($code, env => { SYS_VIRT_EVENT_TRACE => 0 });
    unlike $quiet->{stderr}, qr/add_handle/, '0 is off';
    my $r = fresh_perl($code, env => { SYS_VIRT_EVENT_TRACE => 1 });
    my $fd = $r->{stdout};
    is_deeply [map { s/^Sys::Virt::Event \d+ owner 0x[0-9a-f]+: //r } split /\n/, $r->{stderr}], [
        "add_handle(fd $fd, 1) = 1",
        "call back handle 1 (fd $fd, 1)",
        'update_handle(1, 0)',
        'remove_handle(1)',
        'free handle 1',
        'add_timeout(7) = 2',
        'update_timeout(2, -1)',
        'remove_timeout(2)',
        'free timeout 2',
    ], 'each call from and to libvirt, with ids and thread';
};

done_testing;
