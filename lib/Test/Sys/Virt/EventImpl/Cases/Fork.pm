package Test::Sys::Virt::EventImpl::Cases::Fork;

# Child processes that were forked after the loop was registered.

use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

use POSIX ();
use Test::More;
use Test::Sys::Virt::EventImpl::CApi;
use Test::Sys::Virt::EventImpl::Case;
use Test::Sys::Virt::EventImpl::Cases::Threads qw(with_threads interrupted_by told clock_ms slice);
use Test::Sys::Virt::EventImpl::Util;

suite fork => 'Processes that fork';

sub ended_well {
    my ($child) = @_;
    return is_deeply $child, { exit => 0, signal => 0, stderr => '' }, 'the child ended well';
}

case 141 => 'used_in_child', fork => {
    rule   => 'a loop that was registered before a fork can be used in the child',
    source => 'L<https://libvirt.org/html/libvirt-libvirt-event.html>, virEventRegisterImpl: once per process, and '
        . 'a child has inherited the registration',
    harm   => 'Daemons fork when everything is set up. The child cannot register once more, as libvirt ignores '
        . 'that. Where the loop does not work there, the daemon runs and never sees an event.',
    advice => 'make anew in a child what the kernel keeps for the loop (epoll, kqueue); do not look at the pid',
}, sub {
    my ($t) = @_;
    $t->impl;
    ended_well($t->child(sub {
        my ($reader, $writer) = pipe_pair();
        my $handle = $t->add_handle($reader, READABLE, read => 1);
        my $timer  = $t->add_timeout(5);
        put_byte($writer);
        $t->until(sub { $t->count(handle => $handle) && $t->count(timer => $timer) });
        print STDERR "the handle did not run once\n" if $t->count(handle => $handle) != 1;
        print STDERR "the timer did not fire\n" if !$t->count(timer => $timer);
        $t->remove_handle($handle);
        $t->remove_timeout($timer);
        $t->until(sub { $t->count('ff') >= 2 });
        print STDERR "they were not freed once\n" if $t->count('ff') != 2;
    }));
};

# Open until the loop is destroyed, at the end of a child.
our @kept;

case 142 => 'loop_survives_child', fork => {
    rule   => 'a child that ends takes nothing from the loop of its parent',
    source => 'pipe(7): what one process has read from a pipe that two processes share is gone for the other',
    harm   => 'A child has the same pipes and sockets as its parent. A loop that reads, shuts down or removes '
        . 'something when it is destroyed does so at the end of each child: the parent loses events, or its '
        . 'connections.',
    advice => 'do nothing with fds when the loop is destroyed: no read, no shutdown, no EPOLL_CTL_DEL',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my ($other, $peer) = socket_pair();
    @kept = ($reader, $other);
    put_byte($peer);
    my $timer   = $t->add_timeout(5);
    my @handles = ($t->add_handle($reader, READABLE, read => 1), $t->add_handle($other, READABLE, read => 1));
    my %end = (exit => sub { exit 0 }, _exit => sub { POSIX::_exit(0) });
    ended_well($t->child($end{$_})) for sort keys %end;
    is_deeply [told($t)], [], 'nothing has run';
    my $complete = sub { $t->count(timer => $timer) && !grep { !$t->count(handle => $_) } @handles };
    $t->until($complete);
    $t->passes(3);
    ok $t->count(timer => $timer), 'the timer fires';
    is_deeply [map { $_->{events} } $t->entries('handle')], [READABLE, READABLE], 'each handle runs, once';
    is $t->count('ff'), 0, 'nothing was freed';
    ended_well($t->child($end{$_})) for sort keys %end;
    $t->forget_log;
    put_byte($_) for $writer, $peer;
    $t->until($complete);
    is_deeply [sort map { $_->{id} } $t->entries('handle')], [sort @handles], 'nor is anything lost after a run';
};

case 143 => 'child_is_woken', fork => {
    rule   => 'a thread of a child process wakes the sleeping loop of the child',
    source => 'L<Sys::Virt::Event/THREADS>; src/conf/object_event.c, virObjectEventStateQueueRemote',
    harm   => 'A daemon that forks after it has registered its loop and then opens qemu:///embed gets its events '
        . 'from threads. Where these cannot wake the loop, the events arrive late or not at all.',
    advice => 'go on with the wake watch in a child: its fd has the same number, but stands for something new',
}, sub {
    my ($t) = @_;
    with_threads($t);
    ended_well($t->child(sub {
        my $timer = $t->add_timeout(-1, in_callback => [[remove_timeout => 'self']]);
        my (undef, @told) = interrupted_by($t, sub { $t->count('ff') }, [update_timeout => $timer, 0]);
        print STDERR "told: @told\n" if "@told" ne "timer $timer ff timer $timer";
    }));
};

# When the other process is in its loop a thread of this one calls, while its interpreter sits in C. Once the other has
# passed by, this one's loop must wake up for the call, before its clock does.
sub woken_in_spite_of_other {
    my ($t, $to_other, $from_other) = @_;
    get_byte($from_other);
    my $clock = $t->add_timeout(clock_ms());
    my $timer = $t->add_timeout(-1, in_callback => [[update_timeout => 'self', -1]]);
    $t->run(0.01);
    Test::Sys::Virt::EventImpl::CApi::run_blocked([update_timeout => $timer, 0]);
    put_byte($to_other);
    get_byte($from_other);
    $t->until(sub { $t->count(timer => $timer) || $t->count(timer => $clock) });
    $t->remove_timeout($_) for $timer, $clock;
    my ($first) = grep { /^timer/ } $t->dispatched;
    return ($first // '') eq "timer $timer";
}

sub pass_by {
    my ($t, $to_other, $from_other) = @_;
    my $heard = 0;
    my $id = $t->watch($from_other, READABLE, sub { get_byte($from_other); $heard = 1 });
    put_byte($to_other);
    $t->until(sub { $heard });
    Sys::Virt::Event::remove_handle($id);
    $t->passes(3);
    put_byte($to_other);
    return;
}

case 144 => 'wakes_kept_apart', fork => {
    rule   => 'parent and child do not take from each other what wakes their loops',
    source => 'eventfd(2): a child inherits the descriptor, and what one process has read is gone for the other',
    harm   => 'With one wake fd for both processes, the one that happens to run its loop reads the call that was '
        . 'meant for the other, which sleeps on: its events come late or never, and only now and then.',
    advice => 'make anew in the child what the kernel keeps for the loop (epoll, kqueue)',
}, sub {
    my ($t) = @_;
    with_threads($t);
    my ($child_reads, $parent_writes) = pipe_pair();
    my ($parent_reads, $child_writes) = pipe_pair();
    defined(my $pid = fork) or die "Cannot fork: $!";
    if (!$pid) {
        close $_ for $parent_writes, $parent_reads;
        alarm POSIX::ceil(patience(10));
        pass_by($t, $child_writes, $child_reads);
        put_byte($child_writes) if woken_in_spite_of_other($t, $child_writes, $child_reads);
        POSIX::_exit(0);
    }
    close $_ for $child_reads, $child_writes;
    ok woken_in_spite_of_other($t, $parent_writes, $parent_reads), 'the parent is woken when the child has passed by';
    pass_by($t, $parent_writes, $parent_reads);
    ok sysread($parent_reads, my $byte, 1), 'the child is woken when the parent has passed by';
    waitpid $pid, 0;
}, needs => ['object'];

# The parent sleeps in its loop while the child runs its own. The byte is not read: it could keep the child busy.
case 162 => 'silent_in_child', fork => {
    rule   => 'in a child the handles of libvirt are silent, and the parent is told what they are for',
    source => 'L<Sys::Virt::Event/FORK>: update_handle is called in the child, with mask 0',
    harm   => 'Both processes have the socket of a connection. A child that reads from it takes the events of its '
        . 'parent; one that masks it off in what the kernel keeps for both of them makes the parent deaf.',
    advice => 'make anew in a child what the kernel keeps for the loop (epoll, kqueue)',
}, sub {
    my ($t) = @_;
    my ($ours, $theirs) = socket_pair();
    my $handle = $t->add_handle($ours, READABLE, in_callback => [[update_handle => 'self', 0]]);
    $t->passes(2);
    # The loop may reap children, so the child tells its result.
    my ($from_child, $to_parent) = pipe_pair();
    defined(my $pid = fork) or die "Cannot fork: $!";
    if (!$pid) {
        close $from_child;
        alarm POSIX::ceil(patience(10));
        my $timer = $t->add_timeout(5);
        $t->until(sub { $t->count(timer => $timer) >= 2 });
        $t->update_timeout($timer, -1);
        put_byte($theirs);
        my $is_busy = $t->busy_share(0.1) >= 1 / 4;
        syswrite $to_parent, $is_busy ? 'is busy' : 'was told ' . ($t->count(handle => $handle) || 'nothing');
        POSIX::_exit(0);
    }
    close $to_parent;
    my $clock = $t->add_timeout(clock_ms(), in_callback => [[remove_timeout => 'self']]);
    $t->until(sub { $t->count(handle => $handle) || $t->count(timer => $clock) }, slice());
    is((told($t))[0], "handle $handle", 'the parent is told while it sleeps');
    is join('', <$from_child>), 'was told nothing', 'the child is not, and sleeps';
    local $?;
    waitpid $pid, 0;
}, needs => ['object'];

case 163 => 'goes_on_alone', fork => {
    rule   => 'the handles of libvirt go on in a child when the parent is gone',
    source => 'L<Sys::Virt::Event/FORK>: update_handle is called in the child, with the mask that libvirt wants',
    harm   => 'A program connects, then becomes a daemon: its parent ends. Its connections never tell it anything, and '
        . 'the servers drop them as dead.',
    advice => 'do what update_handle asks for, whoever calls it and from where; do not look at the pid',
}, sub {
    my ($t) = @_;
    ended_well($t->child(sub {
        my ($ours, $theirs) = socket_pair();
        my ($parent_reads, $child_writes) = pipe_pair();
        my $handle = $t->add_handle($ours, READABLE, read => 1);
        $t->passes(2);
        defined(my $pid = fork) or die "Cannot fork: $!";
        if ($pid) {
            get_byte($parent_reads);
            POSIX::_exit(0);
        }
        alarm POSIX::ceil(patience(10));
        $t->passes(2);
        put_byte($child_writes);
        put_byte($theirs);
        $t->until(sub { $t->count(handle => $handle) });
        print STDERR "the handle has not run once\n" if $t->count(handle => $handle) != 1;
        POSIX::_exit(0);
    }));
}, needs => ['object'];

1;
