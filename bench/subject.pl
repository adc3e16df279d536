#!/usr/bin/perl
# Measures an event loop in Perl. What the arguments mean is in the tables of bench/run; which Sys::Virt::Event it is
# depends on @INC. Prints lines of a name and a number, times in nanoseconds.
#
#   subject.pl DIRECTORY LOOP WHAT COUNT[:SECONDS] [URI]
#
# DIRECTORY is where Bench::Probe has been built. The seconds limit what is measured for many numbers of watches.
use strict;
use warnings;

use DynaLoader;
use FindBin;
require "$FindBin::Bin/Loops.pm";

my ($dir, $name, $what, $count, $uri) = @ARGV;
my $limit = $count =~ s/:(.*)// ? $1 : undef;

package Bench::Probe {
    my $library = DynaLoader::dl_load_file("$dir/Probe.so") or die DynaLoader::dl_error();
    my $symbol = DynaLoader::dl_find_symbol($library, 'boot_Bench__Probe') or die DynaLoader::dl_error();
    DynaLoader::dl_install_xsub('Bench::Probe::bootstrap', $symbol);
    Bench::Probe->bootstrap;
}

my %MEASURE = (
    dispatch => \&measure_dispatch,
    update   => \&measure_update,
    add      => \&measure_add_remove,
    handle   => \&measure_among,
    timer    => \&measure_among,
    memory   => \&measure_memory,
    threads  => \&measure_threads,
    wake     => \&measure_wake,
    fd       => \&measure_wake,
    rpc      => \&measure_rpc,
    events   => \&measure_events,
    cause    => \&cause_events,
    load     => \&measure_load,
);

$| = 1;
my ($first) = $what =~ /^([a-z]+)/;
$MEASURE{$first}->();
exit;

sub found { printf "%s %.17g\n", @_; return }

sub start_loop { return Bench::Loops->start($name) }

sub measure_dispatch {
    my $calls = 0;
    my ($object, $code, $is_handle) = (start_loop()->object, sub { $calls++ }, $what =~ /handle/);
    my ($id, $cb, $opaque) = (1, \1, \1);
    my $by_c = $what =~ /_c$/;
    if ($name ne 'floor') {
        $id = $is_handle ? $by_c ? Bench::Probe::work_add_handle(0, 1) : Sys::Virt::Event::add_handle(0, 1, $code)
            : $by_c ? Bench::Probe::work_add_timeout(1000) : Sys::Virt::Event::add_timeout(1000, $code);
        (undef, undef, $cb, $opaque) = @{ (values %{ $object->{watches} })[0] };
    }
    Bench::Probe::work_expect($count, undef) if $by_c;

    my $start = Bench::Probe::work_cpu();
    if ($name ne 'floor') {
        if ($is_handle) { $object->_run_handle_callback($id, 0, 1, $cb, $opaque) for 1 .. $count }
        else            { $object->_run_timeout_callback($id, $cb, $opaque) for 1 .. $count }
    } elsif ($by_c) {
        if ($is_handle) { $object->nothing($id, 0, 1, $cb, $opaque) for 1 .. $count }
        else            { $object->nothing($id, $cb, $opaque) for 1 .. $count }
    } else {
        if ($is_handle) { $object->nothing($id, 0, 1, $cb, $opaque), $code->($id, 0, 1) for 1 .. $count }
        else            { $object->nothing($id, $cb, $opaque), $code->($id) for 1 .. $count }
    }
    my $time = Bench::Probe::work_cpu() - $start;
    die "bench: there were $calls calls\n"
        if $by_c ? $name ne 'floor' && !Bench::Probe::work_is_over() : $calls != $count;
    found($what, $time / $count);
    return;
}

sub measure_update {
    my $loop = start_loop();
    my $time;
    if ($name eq 'floor') {
        my $object = $loop->object;
        my ($handle, $timer) = ($object->add_handle(0, 1, \1, \1, \1), $object->add_timeout(1000, \1, \1, \1));
        $time = -Bench::Probe::work_cpu();
        if    ($what eq 'update_handle') { $object->update_handle($handle, $_ & 1) for 1 .. $count }
        elsif ($what eq 'update_same')   { $object->update_handle($handle, 1) for 1 .. $count }
        else                             { $object->update_timeout($timer, 3_600_000 + ($_ & 1)) for 1 .. $count }
    } else {
        my $handle = Bench::Probe::work_add_handle(Bench::Probe::work_quiet_fd(), 1);
        my $timer = Bench::Probe::work_add_timeout(1000);
        $time = -Bench::Probe::work_cpu();
        if ($what eq 'update_timeout') { Bench::Probe::work_update_timeout($timer, $count) }
        else                           { Bench::Probe::work_update_handle($handle, $count, $what eq 'update_same') }
    }
    found($what, ($time + Bench::Probe::work_cpu()) / $count);
    return;
}

# An object that only writes down what it is told frees after each removal, as a loop does in its next iteration; a real
# loop runs an iteration for each ten.
sub measure_add_remove {
    my $loop = start_loop();
    my $fd = Bench::Probe::work_quiet_fd();
    my $is_handle = $what !~ /timeout/;
    my ($object, $work) = ($loop->object, \&Bench::Probe::work_add_remove);
    my $time = -Bench::Probe::work_cpu();
    if ($name eq 'floor') {
        for (1 .. $count) {
            Bench::Probe::nothing($fd, 1);
            $object->remove_handle($is_handle ? $object->add_handle($fd, 1, \1, \1, \1)
                : $object->add_timeout(3_600_000, \1, \1, \1));
            my $watch = pop @{ $object->{free} };
            $object->nothing(@$watch[4, 3]);
        }
    } elsif ($name eq 'own') {
        for (1 .. $count) {
            if ($is_handle) { Bench::Probe::work_add_remove($fd, 1) }
            else            { Bench::Probe::work_add_remove_timeout(1) }
            my $watch = pop @{ $object->{free} };
            $object->_free_callback_opaque(@$watch[4, 3]);
        }
    } else {
        my $rest = Bench::Probe::work_not_freed();
        for (1 .. $count / 10) {
            if ($is_handle) { Bench::Probe::work_add_remove($fd, 10) }
            else            { Bench::Probe::work_add_remove_timeout(10) }
            do { $loop->turn } while Bench::Probe::work_not_freed() > $rest;
        }
    }
    $time += Bench::Probe::work_cpu();
    die "bench: not all was freed\n" if Bench::Probe::work_not_freed();
    found($what, $time / $count);
    return;
}

# Runs the loop for so many callbacks of the probe. Returns what that took.
sub run_for {
    my ($loop, $events) = @_;
    Bench::Probe::work_expect($events, sub { $loop->stop });
    my $start = Bench::Probe::work_cpu();
    $loop->run(\&Bench::Probe::work_is_over);
    return Bench::Probe::work_cpu() - $start;
}

# handle_ or timer_ and the numbers of watches, the ready one included. The first events pay for the watches that are
# new.
sub measure_among {
    my $loop = start_loop();
    my ($kind, $numbers) = split /_/, $what;
    my $registered = 1;
    if ($kind eq 'timer') { Bench::Probe::work_add_timeout(0) }
    else                  { Bench::Probe::work_add_handle(Bench::Probe::work_ready_fd(), 1) }
    for my $among (split /,/, $numbers) {
        Bench::Probe::work_add_quiet($among - $registered, $kind eq 'timer');
        $registered = $among;
        run_for($loop, 5);
        my $events = $count;
        if ($limit) {
            my $affordable = int $limit * 1e9 * 5 / run_for($loop, 5);
            $events = $affordable < 5 ? 5 : $affordable if $events > $affordable;
        }
        found("${kind}_$among", run_for($loop, $events) / $events);
    }
    return;
}

sub measure_memory {
    my $loop = start_loop();
    my $object = $loop->object;
    my @add = (
        sub { $object->add_handle(1000 + $_, 1, (my $cb = \1), (my $opaque = \1), (my $ff = \1)) for 1 .. $_[0] },
        sub { $object->add_timeout(3_600_000, (my $cb = \1), (my $opaque = \1), (my $ff = \1)) for 1 .. $_[0] },
    );
    for my $is_timer (0, 1) {
        my $add = $name eq 'floor' ? $add[$is_timer] : sub { Bench::Probe::work_add_quiet($_[0], $is_timer) };
        $add->(100);
        my $before = Bench::Probe::work_heap();
        $add->($count);
        found($is_timer ? 'memory_timeout' : 'memory_handle', (Bench::Probe::work_heap() - $before) / $count);
    }
    return;
}

sub measure_threads {
    my $loop = start_loop();
    # Nobody is woken: the first call has done so, and none is taken.
    my ($cpu, $wall) = Bench::Probe::work_threads(1, $count);
    found(threads_alone => $cpu);
    for my $threads (1, 2, 4, 8) {
        Bench::Probe::work_threads_beside($threads, $count, sub { $loop->stop });
        $loop->run(\&Bench::Probe::work_is_over);
        ($cpu, $wall) = Bench::Probe::work_threads_result();
        found("threads_$threads", $cpu);
        found("threads_${threads}_wall", $wall);
    }
    return;
}

sub measure_wake {
    my $loop = start_loop();
    Bench::Probe::work_wake($count, $what eq 'fd', sub { $loop->stop });
    $loop->run(\&Bench::Probe::work_is_over);
    found("${what}_$_", Bench::Probe::work_wake_percentile($_)) for 50, 99;
    return;
}

sub measure_rpc {
    my $loop = start_loop();
    my $conn = Sys::Virt->new(uri => $uri);
    my ($cpu, $time) = (Bench::Probe::work_cpu(), Bench::Probe::work_now());
    $conn->num_of_domains for 1 .. $count;
    found(rpc => (Bench::Probe::work_cpu() - $cpu) / $count);
    found(rpc_wall => (Bench::Probe::work_now() - $time) / $count);
    return;
}

# events_own: of the driver inside libvirt, caused here, ten at a time. events_daemon: of a daemon, caused by another
# process, which starts when it is told, by a line.
sub measure_events {
    my $loop = start_loop();
    my $conn = Sys::Virt->new(uri => $uri);
    my ($left, $end) = ($count, 0);
    my $id = $conn->domain_event_register_any(undef, Sys::Virt::Domain::EVENT_ID_LIFECYCLE(), sub {
        $loop->stop if --$left <= $end;
    });
    my $domain = $conn->get_domain_by_name('test');
    my ($cpu, $time);
    if ($what eq 'events_daemon') {
        print "ready\n";
        $end = $count - 1;
        $loop->run(sub { $left <= $end });
        ($cpu, $time, $end) = (Bench::Probe::work_cpu(), Bench::Probe::work_now(), 0);
        $loop->run(sub { $left <= $end });
        $count--;
    } else {
        ($cpu, $time) = (Bench::Probe::work_cpu(), Bench::Probe::work_now());
        while ($left > 0) {
            $end = $left - 10;
            for (1 .. 5) { $domain->suspend; $domain->resume }
            $loop->run(sub { $left <= $end });
        }
    }
    found($what => (Bench::Probe::work_cpu() - $cpu) / $count);
    found("${what}_wall" => (Bench::Probe::work_now() - $time) / $count);
    return;
}

sub cause_events {
    start_loop();
    my $domain = Sys::Virt->new(uri => $uri)->get_domain_by_name('test');
    for (1 .. $count / 2) { $domain->suspend; $domain->resume }
    return;
}

# COUNT 0: nothing is loaded, for comparison.
sub measure_load {
    my ($heap, $cpu) = (Bench::Probe::work_heap(), Bench::Probe::work_cpu());
    if ($count) {
        require Sys::Virt if $name ne 'alone';
        require Sys::Virt::Event if $name ne 'none';
    }
    found(load => Bench::Probe::work_cpu() - $cpu);
    found(load_heap => Bench::Probe::work_heap() - $heap);
    return;
}
