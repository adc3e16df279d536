package Bench::Tables;

# What bench/run measures, as data.

use strict;
use warnings;

# Each is measured by a program: subject.pl with the built tree (ours) or with what Sys::Virt has installed, subject.py
# or subject.c, which is given the name of a loop.
my @SUBJECTS = (
    [floor      => 'no helper, no libvirt',      'ours',      'floor'],
    [ours       => 'Perl object',                'ours',      'own'],
    [installed  => 'Perl object, Sys::Virt',     'installed', 'own'],
    [ev         => 'EV',                         'ours',      'ev'],
    [installed_ev => 'EV in Perl, Sys::Virt',    'installed', 'own_ev'],
    [poll       => 'Poll',                       'ours',      'poll'],
    [anyevent   => 'AnyEvent, in Perl',          'ours',      'anyevent'],
    [ioasync    => 'IO::Async, poll',            'ours',      'ioasync'],
    [mojo       => 'Mojo, poll',                 'ours',      'mojo'],
    [glib       => 'Glib',                       'ours',      'glib'],
    [poe        => 'POE, select',                'ours',      'poe'],
    [default    => "libvirt's loop",             'ours',      'default'],
    [none       => 'no loop',                    'ours',      'none'],
    [nothing    => 'a loop that does nothing',   'ours',      'nothing'],
    [python     => 'Python, functions',          'python',    'functions'],
    [libvirtaio => 'Python, libvirtaio',         'python',    'libvirtaio'],
    [libev      => 'C, libev',                   'c',         'libev'],
    [libev_bare => 'C, libev, bare',             'c',         'libev_bare'],
    [watchers   => "libev's watchers alone",     'c',         'watchers'],
    [c_default  => "C, libvirt's loop",          'c',         'default'],
);

my @ADAPTERS = qw(poll anyevent ioasync mojo glib poe);
my @NUMBERS  = (10, 100, 1000, 9000);

# what: one process each, by what its program calls it, and the URI that it is given. columns: the names of the figures
# that these print, with titles. count: how often a process does it. instructions: the two lengths of run whose
# difference is counted, and for whom. unit: nanoseconds unless told.
my @SCENARIOS = (
    {
        name     => 'dispatch',
        title    => 'A dispatch through the helper method, to a Perl (Python) function or to one in C',
        subjects => [qw(floor ours installed python)],
        count    => 100_000,
        what     => {
            map({ $_ => undef } qw(dispatch_handle dispatch_timeout dispatch_handle_c dispatch_timeout_c)),
        },
        columns => [
            [dispatch_handle => 'handle'], [dispatch_timeout => 'timer'],
            [dispatch_handle_c => 'handle, C'], [dispatch_timeout_c => 'timer, C'],
        ],
        instructions => { lengths => [2_000, 12_000], subjects => [qw(floor ours installed)] },
    },
    {
        name     => 'update',
        title    => 'A call of libvirt: update, update that changes nothing, add + remove + free',
        subjects => [qw(floor ours installed python libvirtaio ev installed_ev libev libev_bare c_default)],
        count    => 40_000,
        counts   => { libvirtaio => 2_000 },
        what     => { map { $_ => undef } qw(update_handle update_timeout update_same add_remove add_remove_timeout) },
        columns  => [
            [update_handle => 'update handle'], [update_timeout => 'update timer'], [update_same => 'same'],
            [add_remove => 'add handle'], [add_remove_timeout => 'add timer'],
        ],
        instructions => {
            lengths => [1_000, 6_000], subjects => [qw(floor ours installed ev installed_ev libev libev_bare)],
        },
    },
    {
        name     => 'among',
        title    => 'One event among N watches, in the running loop, to a function in C',
        subjects => [qw(libev libev_bare ev installed_ev python libvirtaio c_default default), @ADAPTERS],
        count    => '4000:0.05',
        what     => { map { join('_', $_ => join ',', @NUMBERS) => undef } qw(handle timer) },
        columns  => [map { my $kind = $_; map { ["${kind}_$_", "$kind $_"] } @NUMBERS } qw(handle timer)],
        instructions => {
            lengths => [1_000, 6_000], subjects => [qw(ev installed_ev libev libev_bare)],
            what    => [qw(handle_10 timer_10)],
        },
    },
    {
        name     => 'memory',
        title    => 'Heap per watch, of 9,000',
        unit     => 'bytes',
        subjects => [qw(floor ours installed ev installed_ev), @ADAPTERS, qw(default libev watchers c_default)],
        count    => 9_000,
        what     => { memory => undef },
        columns  => [[memory_handle => 'handle'], [memory_timeout => 'timer']],
    },
    {
        name     => 'rpc',
        title    => 'A synchronous call of a libvirtd: time of the client, and from beginning to end',
        subjects => [qw(none nothing default ours installed ev installed_ev), @ADAPTERS],
        count    => 500,
        what     => { rpc => 'daemon' },
        columns  => [[rpc => 'client'], [rpc_wall => 'in all']],
        instructions => {
            lengths => [50, 350], subjects => [qw(none nothing default ours installed ev installed_ev poll glib)],
            what    => ['rpc'],
        },
    },
    {
        name     => 'events',
        title    => 'A lifecycle event to a Perl (Python) function: of test:///default, the call that causes it'
            . ' included; of a libvirtd',
        subjects => [qw(default ev installed_ev), @ADAPTERS, qw(python libvirtaio)],
        count    => 1_000,
        what     => { events_own => 'test:///default', events_daemon => 'daemon' },
        columns  => [[events_own => 'test'], [events_daemon => 'libvirtd'], [events_daemon_wall => 'libvirtd, in all']],
    },
    {
        name     => 'threads',
        title    => "A call from another thread, of that thread's time; and in all, beside a running loop",
        subjects => [qw(ev poll python libev c_default)],
        count    => 20_000,
        counts   => { python => 2_000 },
        what     => { threads => undef },
        columns  => [
            [threads_alone => 'nobody runs'],
            map({ ["threads_$_", "$_, own"], ["threads_${_}_wall", 'in all'] } 1, 2, 4, 8),
        ],
    },
    {
        name     => 'wake',
        title    => 'From the call of another thread to the callback in a loop that slept, beside an eventfd in it',
        subjects => [qw(ev), @ADAPTERS, qw(libev c_default)],
        count    => 400,
        what     => { wake => undef, fd => undef },
        columns  => [
            [wake_50 => 'median'], [fd_50 => 'eventfd'], [wake_99 => '99 %'], [fd_99 => 'eventfd'],
        ],
    },
    {
        name     => 'load',
        title    => 'Sys::Virt and Sys::Virt::Event are loaded (no loop: Sys::Virt alone)',
        subjects => [qw(none ours installed)],
        count    => 1,
        what     => { load => undef },
        columns  => [[load => 'time'], [load_heap => 'bytes of heap']],
        instructions => { lengths => [0, 1], subjects => 'all', what => ['load'] },
    },
);

sub subjects  { return map { my %s; @s{qw(name title program loop)} = @$_; \%s } @SUBJECTS }
sub scenarios { return @SCENARIOS }
sub numbers   { return @NUMBERS }

# Each is a ratio, or a figure, that is to be at most so much. The code is given a function that returns the figure of a
# column for a subject, first times, then instructions; where the figure was not measured there is nothing to tell.
sub _ratio {
    my ($of, $one, $other) = @_;
    return sub { my ($figure) = @_; return $figure->($of, $one) / $figure->($of, $other) };
}

sub _above_floor {
    my ($of) = @_;
    return sub {
        my ($figure) = @_;
        my $floor = $figure->($of, 'floor');
        return ($figure->($of, 'ours') - $floor) / ($figure->($of, 'installed') - $floor);
    };
}

sub _memory {
    my ($limit, $title, $one, $other) = @_;
    return map {
        my ($of, $kind) = @$_;
        ["memory per $kind, $title: bytes", $limit, sub { $_[0]->($of, $one) - $_[0]->($of, $other) }];
    } [memory_handle => 'handle'], [memory_timeout => 'timer'];
}

my @GOALS = (
    map({ ["dispatch to Perl, $_->[1], above the floor: of Sys::Virt's", 0.35, _above_floor($_->[0])] }
        [dispatch_handle => 'handle'], [dispatch_timeout => 'timer']),
    map({ ["... in all, $_->[1]", 0.45, _ratio($_->[0], qw(ours installed))] }
        [dispatch_handle => 'handle'], [dispatch_timeout => 'timer']),
    map({ ["update to Perl, $_->[1], above the floor: of Sys::Virt's", 0.4, _above_floor($_->[0])] }
        [update_handle => 'handle'], [update_timeout => 'timer']),
    map({ ["... in all, $_->[1]", 0.6, _ratio($_->[0], qw(ours installed))] }
        [update_handle => 'handle'], [update_timeout => 'timer']),
    ["update that changes nothing: of Sys::Virt's", 0.1, _ratio(qw(update_same ours installed))],
    map({ ["add + remove + free, $_->[1], above the floor: of Sys::Virt's", 0.5, _above_floor($_->[0])] }
        [add_remove => 'handle'], [add_remove_timeout => 'timer']),
    map({ ["... in all, $_->[1]", 0.7, _ratio($_->[0], qw(ours installed))] }
        [add_remove => 'handle'], [add_remove_timeout => 'timer']),
    map({
        my ($of, $what) = @$_;
        ["EV: $what: of EV in Perl on Sys::Virt", 0.1, _ratio($of, qw(ev installed_ev))],
        ["... of plain C with libev, by instructions", 1.15, _ratio($of, qw(ev libev)), 'instructions'],
    } [handle_10 => 'an event of a handle'], [timer_10 => 'an event of a timer'], [update_handle => 'update handle'],
        [update_timeout => 'update timer'], [add_remove => 'add + remove handle'],
        [add_remove_timeout => 'add + remove timer']),
    ["one event among 9,000 handles, EV: of libvirt's loop", 0.01, _ratio(qw(handle_9000 ev c_default))],
    ["one timer among 9,000, EV: of libvirt's loop", 0.01, _ratio(qw(timer_9000 ev c_default))],
    map({
        my $kind = $_;
        ["... of its own among 10, $kind", 3, sub { $_[0]->("${kind}_9000", 'ev') / $_[0]->("${kind}_10", 'ev') }];
    } qw(handle timer)),
    map({ ["RPC with a loop, $_: of no loop, by instructions", 1.03, _ratio('rpc', $_, 'none'), 'instructions'] }
        qw(nothing ev default ours poll glib)),
    _memory(256, 'EV, beyond libev\'s watchers', 'ev', 'watchers'),
    _memory(1024, 'Perl object, beyond what it keeps itself', 'ours', 'floor'),
    ["call from another thread, EV: ns of its time", 1000, sub { $_[0]->('threads_alone', 'ev') }],
    ["... Poll", 1000, sub { $_[0]->('threads_alone', 'poll') }],
    map({
        my $who = $_;
        ["wake-up, median, $who: of an eventfd in the same loop", 1.2,
            sub { $_[0]->('wake_50', $who) / $_[0]->('fd_50', $who) }];
    } qw(ev poll)),
);

sub goals { return map { my %g; @g{qw(title limit code by)} = @$_; \%g } @GOALS }

1;
