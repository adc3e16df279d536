# A hypervisor inside the program, qemu:///embed: libvirt's own threads call the loop, be it Poll or one that knows
# nothing of threads. What the kit's suite "embed" shows is not repeated here.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";

use File::Temp ();
use OldLoop;
use POSIX qw(SIGSEGV);
use SideBySide qw(side_by_side);
use Test::More;
use Test::Sys::Virt::EventImpl::Daemon;
use Test::Sys::Virt::EventImpl::Emulator;
use VirtTest qw(watchdog fresh_perl open_fds thread_count);

BEGIN {
    plan skip_all => 'Sys::Virt is not installed' if !eval { require Sys::Virt };
    if (my $why = Test::Sys::Virt::EventImpl::Emulator->why_not) { plan skip_all => $why }
}

use Sys::Virt::Event ();
use Sys::Virt::Event::Poll;
use VirtTest::Watched;

use constant {
    # The Sys::Virt whose faults are known.
    VERSION => '9.0.0',
    # What happens to an emulator that ends may be told as its shutdown first, or not.
    SHUTDOWN => 6,
};

my %LOOP = (Poll => 'Sys::Virt::Event::Poll', 'a loop of old' => 'OldLoop');

my %EVENT = (
    '0/0' => 'defined', '1/0' => 'undefined', '2/0' => 'started', '3/0' => 'suspended', '4/0' => 'resumed',
    '5/1' => 'destroyed', '5/5' => 'failed',
);

watchdog(150);

my $emulator = Test::Sys::Virt::EventImpl::Emulator->start;

# A program with a loop and a connection to the emulator, whose events it notes.
{
    package Program;

    sub start {
        my ($class, $loop) = @_;
        my $self = bless { events => [], reboots => [], in_loop => 0, loop => VirtTest::Watched->over($loop) }, $class;
        my $conn = $self->{conn} = Sys::Virt->new(uri => $emulator->uri);
        my $lifecycle = sub {
            my (undef, $domain, $event, $detail) = @_;
            my $what = $EVENT{"$event/$detail"} // "$event/$detail";
            push @{ $self->{events} }, [$domain->get_name, $what . $self->_where] if $event != main::SHUTDOWN;
        };
        my $reboot = sub { push @{ $self->{reboots} }, 'reboot' . $self->_where };
        $self->{handlers} = [
            $conn->domain_event_register_any(undef, Sys::Virt::Domain::EVENT_ID_LIFECYCLE(), $lifecycle),
            $conn->domain_event_register_any(undef, Sys::Virt::Domain::EVENT_ID_REBOOT(), $reboot),
        ];
        return $self;
    }

    # Something, if it is the wrong place for a handler.
    sub _where {
        my ($self) = @_;
        my $is_owner = readlink('/proc/thread-self') =~ m{/$$\z};
        return ($self->{in_loop} ? '' : ', outside of the loop') . ($is_owner ? '' : ', in a foreign thread');
    }

    sub wait_for {
        my ($self, $code) = @_;
        local $self->{in_loop} = 1;
        return $self->{loop}->wait_for($code);
    }

    # What has come since the last time, of one machine or of all; waits until it is so much.
    sub events {
        my ($self, $count, $name) = @_;
        my $is_meant = sub { !defined $name || $_->[0] eq $name };
        $self->wait_for(sub { $count <= grep { $is_meant->() } @{ $self->{events} } });
        my @events = grep { $is_meant->() } @{ $self->{events} };
        $self->{events} = [grep { !$is_meant->() } @{ $self->{events} }];
        return map { $_->[1] } @events;
    }

    # Closes the connection. Returns what is left then.
    sub end {
        my ($self) = @_;
        $self->{conn}->domain_event_deregister_any($_) for splice @{ $self->{handlers} };
        delete $self->{conn};
        return {
            drained   => Sys::Virt::Event::drain(20),
            is_idle   => Sys::Virt::Event::is_idle(),
            watches   => scalar(my @watches = Sys::Virt::Event::watches()),
            tokens    => $self->{loop}->tokens,
            emulators => scalar(my @pids = $emulator->pids),
        };
    }
}

my $NOTHING_LEFT = { is_idle => 1, drained => 1, watches => 0, tokens => 0, emulators => 0 };

# Runs the code in a process of its own, which becomes the emulator's user; the result is plain data.
sub in_program {
    my ($code, $loop) = @_;
    return sub {
        $emulator->enter;
        return { map { %$_ } $code->(Program->start($loop)) };
    };
}

# Each step waits for its events, so nothing comes before it is due, and the order is that of the steps.
sub life {
    my ($program) = @_;
    my $domain = $program->{conn}->define_domain($emulator->domain_xml);
    my %seen   = (define => [$program->events(1)]);
    my $alone  = thread_count();
    $domain->create;
    $seen{create}       = [$program->events(2)];
    $seen{more_threads} = thread_count() > $alone ? 1 : 0;
    for my $method (qw(suspend resume suspend)) {
        $domain->$method;
        push @{ $seen{$method} }, $program->events(1);
    }
    $emulator->crash('small');
    $seen{crash} = [$program->events(1)];
    $domain->create(Sys::Virt::Domain::START_PAUSED());
    $seen{create_paused} = [$program->events(2)];
    # Once. While it runs, its firmware goes on doing so, as it finds nothing to boot from. And in the last of its lives:
    # a thread of libvirt's asks the emulator for its devices then, and if that dies under it, libvirt may kill the
    # machine's next one too.
    $domain->reset(0);
    $program->wait_for(sub { @{ $program->{reboots} } });
    $seen{reset} = [@{ $program->{reboots} }];
    for my $method (qw(resume suspend destroy undefine)) {
        $domain->$method;
        push @{ $seen{$method} }, $program->events(1);
    }
    undef $domain;
    return (\%seen, $program->end);
}

sub rounds {
    my ($program) = @_;
    my (%seen, @fds, @tokens);
    for my $round (1 .. 20) {
        my $domain = $program->{conn}->create_domain($emulator->domain_xml);
        $domain->destroy;
        undef $domain;
        $seen{ join ' ', $program->events(3) }++;
        push @fds,    scalar(my @open = open_fds());
        push @tokens, $program->{loop}->tokens;
    }
    my %left_by_round = (
        fds => $fds[-1] - $fds[0], tokens_of_first => $tokens[0], tokens_of_last => $tokens[-1],
    );
    return ({ seen => \%seen, %left_by_round }, $program->end);
}

sub two_machines {
    my ($program) = @_;
    my ($one, $two) = map { $program->{conn}->create_domain($emulator->domain_xml(name => $_)) } qw(one two);
    $one->suspend;
    $emulator->crash('two');
    my %seen = (two => [$program->events(3, 'two')]);
    $one->resume;
    $two = $program->{conn}->create_domain($emulator->domain_xml(name => 'two'));
    # Both at once, so that the threads of both call the loop at the same time.
    kill KILL => map { $emulator->pid($_) } qw(one two);
    push @{ $seen{$_} }, $program->events($_ eq 'one' ? 5 : 3, $_) for qw(one two);
    undef $_ for $one, $two;
    return (\%seen, $program->end);
}

my %EXPECTED = (
    life => {
        define => ['defined'], create => [qw(resumed started)], suspend => [('suspended') x 3],
        resume => [('resumed') x 2], reset => ['reboot'], crash => ['failed'], create_paused => [qw(started suspended)],
        destroy => ['destroyed'], undefine => ['undefined'], more_threads => 1,
    },
    rounds => { seen => { 'resumed started destroyed' => 20 }, fds => 0, tokens_of_first => 1, tokens_of_last => 1 },
    'two machines' => {
        one => [qw(resumed started suspended resumed failed)],
        two => [qw(resumed started failed resumed started failed)],
    },
);
my %CODE = (life => \&life, rounds => \&rounds, 'two machines' => \&two_machines);

for my $name (sort keys %CODE) {
    my @loops   = sort keys %LOOP;
    my @started = map { SideBySide->start(in_program($CODE{$name}, $LOOP{$_})) } @loops;
    for my $loop (@loops) {
        my $got = eval { (shift @started)->result } // { died => "$@" };
        is_deeply $got, { %{ $EXPECTED{$name} }, %$NOTHING_LEFT }, "$name, in $loop" or diag explain $got;
    }
}

# Programs that run on either module; what they print is looked at. Their arguments: the class of the loop, and a
# libvirtd's socket and process id.
my $PRELUDE = <<'PERL';
use strict; use warnings;
use Sys::Virt;
use Sys::Virt::Event;
use OldLoop;
BEGIN { require Sys::Virt::Event::Poll if $ARGV[0] eq 'Sys::Virt::Event::Poll' }
use POSIX ();
use Test::Sys::Virt::EventImpl::Emulator;
$| = 1;
my ($loop_class, $socket, $daemon) = @ARGV;
my $emulator = Test::Sys::Virt::EventImpl::Emulator->start->enter;
my @events;

# Those of old register themselves.
sub new_loop {
    my ($class) = @_;
    my $loop = $class->new;
    $loop->register if !$loop->isa('OldLoop');
    return $loop;
}

sub lifecycle_of {
    my ($conn) = @_;
    return $conn->domain_event_register_any(undef, Sys::Virt::Domain::EVENT_ID_LIFECYCLE, sub {
        my (undef, $domain, $event, $detail) = @_;
        push @events, $domain->get_name . " $event/$detail" if $event != 6;
    });
}
PERL

# How programs end whose machine runs, or has just died, so that libvirt's threads have something to tell; their
# connection is open and its handler in place.
my %END = (
    'the last line'          => { exit => 0, code => '' },
    'exit'                   => { exit => 3, code => 'exit 3;' },
    'die'                    => { exit => 255, code => '$! = 0; die "oops\n";', stderr => "oops\n" },
    'a crash, the last line' => { exit => 0, code => 'kill KILL => $emulator->pid("small");' },
    'a crash, and its event' => {
        exit => 5, code => '$emulator->crash("small"); $loop->run_once until @events == 3; exit 5;',
    },
    'no time to lose'        => { exit => 0, code => '$domain->suspend; $domain->resume; $domain->destroy;' },
);

sub end_script {
    my ($end) = @_;
    return $PRELUDE . <<"PERL" . "$END{$end}{code}\n";
my \$loop = new_loop(\$loop_class);
my \$conn = Sys::Virt->new(uri => \$emulator->uri);
lifecycle_of(\$conn);
my \$domain = \$conn->create_domain(\$emulator->domain_xml);
\$loop->run_once until \@events == 2;
print "running\\n";
PERL
}

# libvirt's thread opens, uses and closes a connection to the libvirtd, for itself: it takes over machines that another
# program has left running, and their disks are in a storage pool. First the program sits in a call meanwhile, which
# has to wait for the thread; then it sleeps in the loop while the thread waits for the libvirtd.
my $TAKEOVER = $PRELUDE . <<'PERL';
use Socket qw(unpack_sockaddr_un);
use Test::Sys::Virt::EventImpl::Util;
$SIG{ALRM} = sub { die "alarm\n" };
my %calls;
{
    package Noted;
    our @ISA = ($loop_class);
    for my $method (qw(add_handle remove_handle)) {
        my $original = $loop_class->can($method);
        no strict 'refs';
        *$method = sub {
            print STDERR "method $method\n";
            $calls{$method}++;
            goto &$original;
        };
    }
}

# How many connections to the libvirtd this process has.
sub connections { return scalar grep { peer_of($_) eq $socket } open_fds() }

sub peer_of {
    my ($fd) = @_;
    open my $copy, '+<&', $fd or return '';
    my $address = getpeername $copy or return '';
    return eval { unpack_sockaddr_un($address) } // '';
}

# Whether a signal waits for one of the threads of a process to take it.
sub has_signal {
    my ($pid) = @_;
    open my $in, '<', "/proc/$pid/status" or die "Cannot read the status of $pid: $!";
    return grep { /^ShdPnd:\s.*[^0\s]/ } <$in>;
}

# Runs the code in a child.
sub in_child {
    my ($code) = @_;
    defined(my $pid = fork) or die "Cannot fork: $!";
    return $pid if $pid;
    print STDERR $@ if !eval { $code->(); 1 };
    POSIX::_exit($@ ? 1 : 0);
}

mkdir "$ENV{XDG_RUNTIME_DIR}/$_" or die "Cannot make $_: $!" for qw(libvirt pool);
symlink $socket, "$ENV{XDG_RUNTIME_DIR}/libvirt/virtstoraged-sock" or die "Cannot link: $!";
my $former = in_child(sub {
    Sys::Virt::Event::register_default();
    my $pool = Sys::Virt->new(uri => "storage:///session?socket=$socket")->create_storage_pool(
        "<pool type='dir'><name>pool</name><target><path>$ENV{XDG_RUNTIME_DIR}/pool</path></target></pool>");
    my $conn = Sys::Virt->new(uri => $emulator->uri);
    for my $name (qw(one two)) {
        $pool->create_volume("<volume><name>$name</name><capacity unit='MiB'>1</capacity></volume>");
        $conn->define_domain($emulator->domain_xml(name => $name, devices => <<"XML"))->create;
<disk type='volume'><source pool='pool' volume='$name'/><target dev='hda' bus='ide'/></disk>
XML
    }
});
waitpid $former, 0;
die "Cannot leave machines\n" if $?;

my %pid = map { $_ => $emulator->pid($_) } qw(one two);
kill STOP => values %pid;
my $loop = new_loop('Noted');
my $conn = Sys::Virt->new(uri => $emulator->uri);
my $id   = lifecycle_of($conn);
my $one  = $conn->get_domain_by_name('one');

my $program = $$;
my $helper  = in_child(sub {
    # When the program sits in its call. libvirt's threads rest as long as the emulator does: a perl before 5.42
    # crashes when one of them takes the signal (Perl/perl5 issue 22487).
    pause(0.3);
    kill ALRM => $program;
    pause(0.005) while has_signal($program);
    kill CONT => $pid{one};
});
print STDERR "inside\n";
my $returned = eval { $one->suspend; 1 };
print STDERR "outside\n";
print $returned ? "no alarm\n" : "exception: $@";
waitpid $helper, 0;
$one->resume;
$loop->run_once until @events >= 2;
print "$_\n" for splice @events;
print connections(), " connections\n";

kill STOP => $daemon;
%calls  = ();
$helper = in_child(sub { pause(0.3); kill CONT => $pid{two} });
print STDERR "asleep\n";
$loop->run_once until $calls{add_handle};
print connections(), " connections\n";
waitpid $helper, 0;
kill CONT => $daemon;
$loop->run_once until $calls{remove_handle};
my $two = $conn->get_domain_by_name('two');
$two->suspend;
print STDERR "awake\n";
$two->resume;
$loop->run_once until @events >= 2;
print "$_\n" for splice @events;
print connections(), " connections\n";

$_->destroy for $one, $two;
$conn->domain_event_deregister_any($id);
undef $_ for $one, $two, $conn;
print Sys::Virt::Event::drain(10) ? "idle\n" : "busy\n";
PERL

# What a perl needs to find the kit, but not this distribution.
my $kit_only = File::Temp->newdir;
symlink $INC{'Test/Sys/Virt/EventImpl/Emulator.pm'} =~ s{(?<=Test).*}{}r, "$kit_only/Test" or die "Cannot link: $!";

sub run_of {
    my ($script, $class, %opt) = @_;
    return sub {
        my $daemon = delete $opt{daemon} ? Test::Sys::Virt::EventImpl::Daemon->start : undef;
        my @args   = ($class, $daemon ? ($daemon->socket, $daemon->pid) : ());
        # libvirt's own warnings, of a host whose name is unknown, say, are nobody's business here.
        my %env = (%{ delete $opt{env} || {} }, LIBVIRT_LOG_OUTPUTS => '4:file:/dev/null');
        return fresh_perl($script, args => \@args, env => \%env, %opt);
    };
}

my @end_cases = map { my $end = $_; map { [$end, $_] } sort keys %LOOP } sort keys %END;
my @ends = side_by_side(map { my ($end, $loop) = @$_; run_of(end_script($end), $LOOP{$loop}) } @end_cases);
for my $case (@end_cases) {
    my ($end, $loop) = @$case;
    my $got = shift @ends;
    is_deeply $got, {
        exit => $END{$end}{exit}, signal => 0, timed_out => 0,
        stdout => "running\n", stderr => $END{$end}{stderr} // '',
    }, "the end of a program with a machine: $end, in $loop" or diag explain $got;
}

# From one mark to another: what made or ended a handle, in order; a "thread" of libvirt's, or a "method" of the loop.
# The trace of a call is written when the call is done, so the two do not compare.
sub between {
    my ($from, $to, $who, $stderr) = @_;
    my ($part) = $stderr =~ /^$from\n(.*?)^$to\n/ms;
    return [($part // '') =~ /^(?:Sys::Virt::Event \d+ )?$who (?:\w+: )?((?:add|remove)_handle)/mg];
}

sub takes_over {
    my ($result) = @_;
    is "$result->{signal} $result->{exit} $result->{timed_out}", '0 0 0', 'it ends';
    is_deeply [split /\n/, $result->{stdout}], [
        'exception: alarm', 'one 3/0', 'one 4/0', '0 connections',
        '1 connections', 'two 3/0', 'two 4/0', '0 connections', 'idle',
    ], 'what it has seen';
    my $stderr = $result->{stderr};
    is_deeply between('inside', 'outside', 'thread', $stderr), [qw(add_handle remove_handle)],
        'the calls of the thread return while the program sits in its own';
    is_deeply between('inside', 'outside', 'method', $stderr), [], '... and no method is called';
    # The one that is at the socket when the connection is closed removes the handle; that may be the loop.
    is between('asleep', 'awake', 'thread', $stderr)->[0], 'add_handle', 'the thread calls while the program sleeps';
    is_deeply between('asleep', 'awake', 'method', $stderr), [qw(add_handle remove_handle)],
        '... and the loop is woken to watch the handle and to forget it';
    return;
}

my $no_daemon = Test::Sys::Virt::EventImpl::Daemon->why_not;
$no_daemon //= 'libvirt has no storage driver here (Debian 13: libvirt-daemon-driver-storage)'
    if !Test::Sys::Virt::EventImpl::Emulator::driver('storage');
SKIP: {
    skip $no_daemon, 1 if $no_daemon;
    my @results = side_by_side(map {
        run_of($TAKEOVER, $LOOP{$_}, daemon => 1, env => { SYS_VIRT_EVENT_TRACE => 1 })
    } sort keys %LOOP);
    for my $loop (sort keys %LOOP) {
        my $result = shift @results;
        subtest "a thread of libvirt opens a connection, in $loop" => sub { takes_over($result) }
            or diag explain $result;
    }
}

# Fault 1 of the module in Sys::Virt: the first call of one of libvirt's threads crashes the program.
my $probe = fresh_perl('require Sys::Virt; require Sys::Virt::Event;'
    . ' print Sys::Virt->VERSION, Sys::Virt::Event->can("watches") ? " replaced" : ""', installed => 1);
my %installed = (installed => 1, includes => ["$kit_only"]);
my %crashes = (
    'an event'            => run_of(end_script('the last line'), 'OldLoop', %installed),
    'a handle of its own' => run_of($TAKEOVER, 'OldLoop', %installed, daemon => 1),
);
delete $crashes{'a handle of its own'} if $no_daemon;
SKIP: {
    skip "Sys::Virt $probe->{stdout} is not the one whose faults are known", 1 if $probe->{stdout} ne VERSION;
    my @names = sort keys %crashes;
    my @results = side_by_side(@crashes{@names});
    for my $name (@names) {
        my $result = shift @results;
        is $result->{signal}, SIGSEGV, "Sys::Virt's own module: a thread of libvirt has $name"
            or diag explain $result;
    }
}

done_testing;
