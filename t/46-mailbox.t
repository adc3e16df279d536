# Calls of other threads that come at the wrong moment: none is lost, none overtakes another, none frees what is in use.
use strict;
use warnings;

use POSIX ();
use Test::More;
use lib 't/lib';
use VirtTest;
use Sys::Virt::Event qw(:all);
use Sys::Virt::Event::Poll;
use Test::Sys::Virt::EventImpl::CApi;
use VirtTest::Child;
use VirtTest::Loop;

watchdog(60);

# Makes calls from another thread, while this one waits for them in C, and returns their results.
sub foreign { return @{ Test::Sys::Virt::EventImpl::CApi::run_blocked(@_)->{results} } }

sub fired {
    my ($id) = @_;
    return scalar grep { $_->{what} eq 'timer' && $_->{added_as} == $id } Test::Sys::Virt::EventImpl::CApi::events();
}

# Poll, with code that is run in a method once.
{
    package HookedPoll;
    our @ISA = ('Sys::Virt::Event::Poll');
    our %hook;
    sub update_timeout {
        my ($self, @arguments) = @_;
        my $code = shift @{ $hook{update_timeout} || [] };
        $code->() if $code;
        return $self->SUPER::update_timeout(@arguments);
    }
}

my ($woken) = in_child {
    my $loop = HookedPoll->new->register;
    my @timers = map { Test::Sys::Virt::EventImpl::CApi::add_timeout(-1) } 1 .. 5;
    $HookedPoll::hook{update_timeout} = [
        sub { foreign(map { [update_timeout => $timers[$_], -1] } 2, 3) }, undef,
        sub { foreign([update_timeout => $timers[4], 1]) },
    ];
    foreign(map { [update_timeout => $timers[$_], -1] } 0, 1);
    $loop->run_until(sub { fired($timers[4]) }, 5);
};
ok $woken, 'what comes while the mailbox is emptied wakes the loop';

my ($rung) = in_child {
    my $loop = VirtTest::Loop->new->register;
    foreign([add_timeout => -1]);
    $loop->on(add_timeout => sub {
        my ($loop) = @_;
        $loop->on(add_timeout => undef);
        foreign([add_timeout => 1]);
        return $loop->{last_key};
    });
    watches();
    my $wake = $loop->latest;
    vec(my $bits = '', $wake->{fd}, 1) = 1;
    scalar select $bits, undef, undef, 0;
};
is $rung, 1, 'what came before there was a wake watch makes it readable';

my @log = in_child {
    my $loop = VirtTest::Loop->new->register(wake => 0);
    my ($id) = foreign([add_timeout => 5]);
    $loop->on(add_timeout => sub {
        my ($loop, $ms) = @_;
        $loop->on(add_timeout => undef);
        foreign([update_timeout => $id, 6], [remove_timeout => $id]);
        watches();
        return $loop->{last_key};
    });
    watches();
    my $token = $loop->latest;
    watches();
    $loop->dispatch($token);
    ((map { "@$_" } $loop->calls), map { "$_->{what} $_->{thread}" } Test::Sys::Virt::EventImpl::CApi::events());
};
is_deeply \@log, ['add_timeout 5', 'remove_timeout 1', 'ff main'],
    'a removal that comes while the loop is asked for the watch: asked to remove it, freed once, not run';

@log = in_child {
    my $loop = VirtTest::Loop->new->register(wake => 0);
    my ($id) = foreign([add_timeout => 5]);
    $loop->on(add_timeout => sub {
        my ($loop, $ms) = @_;
        Test::Sys::Virt::EventImpl::CApi::update_timeout($id, 7);
        return $loop->{last_key};
    });
    watches();
    watches();
    map { "@$_" } $loop->calls;
};
is_deeply \@log, ['add_timeout 5', 'update_timeout 1 7'], "the owner's own call meanwhile is not lost";

# The wake watch goes with the last watch, while the loop dispatches it out of its own record.
my ($survived) = in_child {
    my $loop = VirtTest::Loop->new->register;
    my ($id) = foreign([add_timeout => 1000]);
    watches();
    my $wake = $loop->latest;
    my $record = $loop->{watches}{ $wake->{key} };
    foreign([remove_timeout => $id]);
    delete $loop->{latest};
    $loop->_run_handle_callback($record->{key}, $record->{fd}, 1, $record->{cb}, $record->{opaque});
    (join ' ', map { $_->[0] } $loop->calls);
};
is $survived, 'add_timeout add_handle remove_timeout remove_handle', 'a wake watch that goes while it is dispatched';

my ($misplaced) = in_child {
    my $misplaced = 0;
    my @loops = map { VirtTest::Loop->new } 1, 2;
    register($loops[0], wake => 0);
    my $end = time + 1;
    my $turn = 0;
    until (time > $end) {
        my $thread = Test::Sys::Virt::EventImpl::CApi::spawn(([add_timeout => -1], [remove_timeout => \-1]) x 20);
        until ($thread->is_done) {
            $turn = !$turn if eval { register($loops[!$turn], wake => 0); 1 };
        }
        $thread->join;
        Test::Sys::Virt::EventImpl::CApi::events();
    }
    for my $loop (@loops) {
        my %known;
        for ($loop->calls) {
            my ($method, $key) = @$_;
            $misplaced++ if $method eq 'remove_timeout' && !$loop->{last_key};
            $misplaced++ if $method eq 'remove_timeout' && $key > $loop->{last_key};
        }
    }
    $misplaced;
};
is $misplaced, 0, 'a loop is not asked to remove what another one has';

# A child that closes all fds, as daemons and libvirt's own helpers are made, may put others in their place.
my @changed = in_child {
    my $loop = VirtTest::Loop->new->register(wake => 1);
    my $wake = $loop->latest->{fd};
    in_child {
        POSIX::close($_) for $wake, $wake + 1;
        my @files = map { open my $file, '<', '/dev/null' or die "Cannot open: $!"; $file } 1, 2;
        my @numbers = sort map { fileno $_ } @files;
        in_child { ("@numbers" eq "$wake " . ($wake + 1), map { readlink "/proc/self/fd/$_" } @numbers) };
    };
};
is_deeply \@changed, [1, ('/dev/null') x 2], 'what took the numbers of the wake fds in a child is left alone by its children';

# A program that closes all fds goes on with a new one.
my @renewed = in_child {
    my $loop = VirtTest::Loop->new->register(wake => 1);
    my $wake = $loop->latest;
    POSIX::close($_) for $wake->{fd}, $wake->{fd} + 1;
    my ($reader, $writer) = pipe_pair();
    syswrite $writer, 'theirs';
    $loop->calls;
    $loop->dispatch($wake);
    my @calls = map { $_->[0] } $loop->calls;
    my $new = $loop->latest->{fd};
    foreign([add_timeout => 5]);
    vec(my $rung = '', $new, 1) = 1;
    select $rung, undef, undef, 0;
    sysread $reader, my $text, 100;
    (fileno $reader == $wake->{fd}, "@calls", $new != $wake->{fd}, vec($rung, $new, 1), $text);
};
is_deeply \@renewed, [1, 'remove_handle add_handle', 1, 1, 'theirs'], 'wake fds that were closed are replaced, and what '
    . 'took their numbers is left alone';

# One end alone is of no use: the reading end would hang up for good, the writing end raise SIGPIPE in libvirt's thread.
for my $end (0, 1) {
    my @half = in_child {
        my $loop = VirtTest::Loop->new->register(wake => 1);
        my $wake = $loop->latest;
        POSIX::close($wake->{fd} + $end);
        foreign([add_timeout => 5]);
        $loop->calls;
        $loop->dispatch($wake);
        my @calls = map { $_->[0] } $loop->calls;
        vec(my $rung = '', $loop->latest->{fd}, 1) = 1;
        select $rung, undef, undef, 0;
        return ("@calls", $rung =~ tr/\0//c, scalar watches());
    };
    is_deeply \@half, ["add_timeout remove_handle add_handle", 0, 1], (qw(reading writing))[$end] . ' end of the wake fd closed: '
        . 'another one, and nothing is lost';
}

done_testing;
