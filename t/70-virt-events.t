# virt-events, run as a program: what it prints is what it, or a stranger, made happen.
use strict;
use warnings;

use File::Basename qw(dirname);
use lib dirname(__FILE__) . '/lib';
use Test::More;

BEGIN {
    plan skip_all => 'Sys::Virt is not installed (Debian: libsys-virt-perl)' if !eval { require Sys::Virt };
    plan skip_all => 'IO::Pty is not installed (Debian: libio-pty-perl)' if !eval { require IO::Pty };
}

use File::Temp ();
use IO::Select;
use JSON::PP ();
use POSIX ();
use Sys::Virt::Event::Record;
use Sys::Virt::Event::Tool::Format;
use Test::Sys::Virt::EventImpl::Daemon;
use Time::HiRes qw(sleep time);
use VirtTest qw(:DEFAULT patience);
use VirtTest::Schema;
use VirtTest::Tool;

watchdog(120);
$SIG{PIPE} = 'IGNORE';
delete @ENV{qw(NO_COLOR VIRSH_DEFAULT_CONNECT_URI LIBVIRT_DEFAULT_URI)};

my $schema = VirtTest::Schema->new('script/virt-events');
my $TIME = qr/\d\d:\d\d:\d\d\.\d{3}/;
my $NOWHERE = 'test+unix:///default?socket=/nonexistent/socket';

# Runs it to its end.
sub tool {
    my ($arguments, %opt) = @_;
    my $tool = VirtTest::Tool->start($arguments, %opt);
    my @lines = $tool->lines;
    return { lines => \@lines, exit => $tool->status, stderr => $tool->errors };
}

# "domain test stopped: destroyed", without the time and with white space folded.
sub folded { return map { s/\A$TIME  //r =~ s/\s+/ /gr } @_ }

sub records { return map { JSON::PP::decode_json($_) } @_ }

# "domain test stopped"
sub told { return map { join ' ', grep { defined } @$_{qw(class name)}, $_->{type} // $_->{event} } @_ }

sub conforms {
    my (@lines) = @_;
    return is_deeply [map { $schema->complaints($_) } @lines], [], scalar(@lines) . ' objects are as the manual says';
}

subtest 'usage' => sub {
    my @wrong = (
        ['argument'], ['--demo', '-c', 'test:///default'], ['--timeout', 0], ['--timeout', 'soon'], ['--no-such'],
        ['--domain'], ['--class', 'machine'], ['--event', 'explosion'], ['--class', 'pool', '--event', 'reboot'],
        ['--type', 'burnt'], ['--not', 'me'], ['--class', 'pool', '--domain', 'a'], ['--json', '--format', 'x'],
        ['--color', 'red'], ['--until', 'running'], ['--until', 'happy', '--domain', 'a'], ['--count', 0],
        ['--keepalive', '5'], ['--retries', 0], ['--no-reconnect', '--retries', 3], ['--connect-timeout', -1],
        ['--type', 'stopped', '--not', 'lifecycle'], ['--event', 'reboot', '--type', 'stopped'],
        ['--domain', '[z-a]'],
    );
    for (@wrong) {
        my $r = tool($_);
        is $r->{exit}, 2, "exit status of @$_";
        like $r->{stderr}, qr/\Avirt-events: \S.*(?<! line \d\d\d\.)\nUsage:/, 'the reason and the usage on stderr';
        is_deeply $r->{lines}, [], 'nothing on stdout';
    }
    my %right = (
        '--help' => qr/^ +--exec /m, '--man' => qr/^EXIT STATUS$/m, '--version' => qr/\Avirt-events of .*Sys::Virt/,
    );
    for my $option (sort keys %right) {
        my $r = tool([$option]);
        is $r->{exit}, 0, "exit status of $option";
        like join("\n", @{ $r->{lines} }), $right{$option}, 'what it prints';
        is $r->{stderr}, '', 'nothing on stderr';
    }
};

subtest 'words of the command line are told as they are' => sub {
    my $word = "d\xc3\xb6m\xc3\xa4ne\xc3\x9f\xe2\x82\xac";
    for (['--class', $word], ['--event', $word], ["--$word"], [$word]) {
        like tool($_)->{stderr}, qr/\Avirt-events: .*$word/, "@$_";
    }
    my $r = tool(['--demo', '--count', 1, '--exec', ": $word; exit 3"]);
    like $r->{stderr}, qr/\Avirt-events: : $word; exit 3: exit status 3$/m, '--exec';
    $r = tool(['-c', "$NOWHERE?$word", '-c', 'test:///default', '--no-reconnect', '--timeout', 1]);
    like $r->{stderr}, qr/\Avirt-events: Cannot watch \Q$NOWHERE\E\?$word: /, '--connect';
    is scalar(grep { /\A$TIME  \Q$NOWHERE\E\?$word  connection / } @{ $r->{lines} }), 1, 'in a column of its width';
};

subtest 'no standard output' => sub {
    my $dir = File::Temp->newdir;
    for my $closed ('>&-', '<&- >&-') {
        my @prefix = ('sh', '-c', qq(exec "\$@" $closed), 'sh');
        my $r = tool(['--demo', '--exec', "echo >>$dir/run"], prefix => \@prefix);
        is $r->{exit}, 1, "exit status with $closed";
        is $r->{stderr}, "virt-events: Cannot write: Bad file descriptor\n", 'the reason on stderr';
        is text_of("$dir/run"), '', 'and nothing is run';
    }
};

subtest 'an exception ends it with a status of the manual' => sub {
    my $code = '*Sys::Virt::Event::Tool::Exec::new = sub { $! = 25; die "Out of luck\n" }; do "./script/virt-events"';
    my $r = tool(['--exec', 'true'], program => [$^X, '-Mblib', '-MSys::Virt::Event::Tool::Exec', '-e', $code, '--']);
    is $r->{exit}, 1, 'exit status';
    is $r->{stderr}, "virt-events: Out of luck\n", 'the reason on stderr';
};

subtest '--list needs no connection' => sub {
    my %env = (env => { LIBVIRT_DEFAULT_URI => $NOWHERE });
    my $r = tool(['--list'], %env);
    is $r->{exit}, 0, 'exit status';
    my ($lifecycle) = grep { m{^domain/lifecycle: } } @{ $r->{lines} };
    like $lifecycle, qr/\bstarted\b.*\bstopped\b/, 'lifecycle events have types';
    # One of them crashes, see Record.pm.
    my @known = grep { /^EVENT_ID_(?!CHANNEL_LIFECYCLE$)/ } keys %Sys::Virt::Domain::;
    cmp_ok scalar(grep { m{^domain/} } @{ $r->{lines} }), '>=', @known - 1, 'all domain events, of block-job two kinds';

    $r = tool(['--list', '--class', 'pool,secret', '--not', 'pool/lifecycle'], %env);
    is_deeply $r->{lines}, ['pool/refresh', 'secret/lifecycle: defined undefined', 'secret/value-changed'],
        'what is selected';
    $r = tool(['--list', '--class', 'secret,domain', '--type', 'defined,started', '--not', 'started'], %env);
    is_deeply $r->{lines}, ['domain/lifecycle: defined', 'secret/lifecycle: defined'], 'types that are selected';
    $r = tool(['--list', '--event', 'pool/lifecycle', '--event', 'refresh', '--json'], %env);
    is_deeply [map { delete $_->{types}; $_ } records(@{ $r->{lines} })], [
        { class => 'pool', event => 'lifecycle', event_id => 0 },
        { class => 'pool', event => 'refresh', event_id => 1 },
    ], 'with --json';
};

# The demonstration

subtest '--demo shows each event that it causes, after the call that caused it' => sub {
    my $r = tool(['--demo']);
    is $r->{exit}, 0, 'exit status';
    is $r->{stderr}, '', 'nothing on stderr';
    is scalar(grep { /\A$TIME  \S/ } @{ $r->{lines} }), @{ $r->{lines} }, 'every line has a time';
    is_deeply [folded(@{ $r->{lines} })], [
        'connection test:///default opened',
        'demo suspend the domain', 'domain test suspended: paused',
        'demo resume the domain', 'domain test resumed: unpaused',
        'demo give it a title', 'domain test metadata-change: type title',
        'demo destroy the domain', 'domain test stopped: destroyed',
        'demo start the domain', 'domain test started: booted',
        'demo stop the network', 'network default stopped',
        'demo start the network', 'network default started',
        'demo stop the storage pool', 'pool default-pool stopped',
        'demo start the storage pool', 'pool default-pool started',
        'demo refresh it', 'pool default-pool refresh',
        'demo create a node device', 'device scsi_host12 created',
        'demo destroy the node device', 'device scsi_host12 deleted',
        'demo define another domain', 'domain demo defined: added',
        'demo undefine it', 'domain demo undefined: removed',
    ], 'the calls and their events, in order';
};

subtest '--demo --json' => sub {
    my $r = tool(['--demo', '--json', '--initial']);
    is $r->{exit}, 0, 'exit status';
    is $r->{stderr}, '', 'nothing on stderr';
    my @records = records(@{ $r->{lines} });
    my ($opened, @states) = grep { $_->{event} =~ /^(?:opened|state)$/ } @records;
    is_deeply [told($opened, sort { $a->{class} cmp $b->{class} } grep { $_->{class} ne 'device' } @states)],
        ['connection opened', 'domain test running', 'network default active', 'pool default-pool running'],
        'states first';
    is_deeply [map { told($_) } grep { $_->{event} !~ /^(?:opened|state)$/ } @records], [
        'domain test suspended', 'domain test resumed', 'domain test metadata-change', 'domain test stopped',
        'domain test started', 'network default stopped', 'network default started', 'pool default-pool stopped',
        'pool default-pool started', 'pool default-pool refresh', 'device scsi_host12 created',
        'device scsi_host12 deleted', 'domain demo defined', 'domain demo undefined',
    ], 'the events, in order';
    is_deeply [map { $_->{seq} } @records], [1 .. @records], 'numbered without gaps';
    conforms(@{ $r->{lines} });
};

subtest 'examples of JSON' => sub {
    for my $file (qw(README script/virt-events)) {
        my ($example) = text_of($file) =~ /^ +(\{"v".*?\}\})$/ms;
        conforms($example =~ s/\n +//gr);
    }
};

subtest 'arguments of all events are in the manual, and written as it says' => sub {
    my @known = grep { @{ $_->{arguments} } && $_->{constant} ne 'BLOCK_JOB' }
        map { Sys::Virt::Event::Record::events_of($_) } Sys::Virt::Event::Record::classes();
    my %listed = map { $_ => [grep { !/_code\z/ } sort keys %{ $schema->arguments($_) }] } $schema->events;
    for my $event (@known) {
        my $what = "$event->{class}/$event->{name}";
        is_deeply delete $listed{$what}, [sort map { $_->[0] } @{ $event->{arguments} }], "arguments of $what";
    }
    my @newer = (
        Sys::Virt::Domain->can('EVENT_ID_NIC_MAC_CHANGE')   ? () : 'domain/nic-mac-change',
        Sys::Virt::Domain->can('EVENT_ID_VCPU_REMOVED')     ? () : 'domain/vcpu-removed',
        Sys::Virt::Network->can('EVENT_ID_METADATA_CHANGE') ? () : 'network/metadata-change',
    );
    is_deeply [sort keys %listed], [(map { "connection/$_" } qw(closed failed retry)), @newer], 'and no others';

    my %example = (
        integer => 7, word => 0, string => 'text', object => { family => 0, node => 'n', service => 's' },
        array   => [{ type => 't', name => 'n' }],
    );
    my $domain = Sys::Virt->new(uri => 'test:///default')->get_domain_by_name('test');
    for my $event (@known) {
        my $types = $schema->arguments("$event->{class}/$event->{name}");
        my @values = map { $_ eq 'flags' ? 1 : $example{ $types->{$_} } } map { $_->[0] } @{ $event->{arguments} };
        conforms(Sys::Virt::Event::Record::json(Sys::Virt::Event::Record::of_event($event, 'uri', $domain, @values)));
    }
};

subtest '--format finds parameters whose names have dots' => sub {
    my ($event) = grep { $_->{name} eq 'tunable' } Sys::Virt::Event::Record::events_of('domain');
    my $domain = Sys::Virt->new(uri => 'test:///default')->get_domain_by_name('test');
    my %params = ('blkdeviotune.disk' => 'vda', plain => 1);
    my $record = Sys::Virt::Event::Record::of_event($event, 'uri', $domain, \%params);
    my @words = qw(blkdeviotune.disk blkdeviotune plain plain.disk blkdeviotune.disk.x);
    my $format = Sys::Virt::Event::Tool::Format->new(join '|', map { "%{args.params.$_}" } @words);
    is $format->line($record), 'vda||1||', 'the longest name that is there';
};

# With a server, and events that somebody else causes there

if (my $why = Test::Sys::Virt::EventImpl::Daemon->why_not) {
    SKIP: { skip $why, 1 }
    done_testing;
    exit;
}
my $daemon = Test::Sys::Virt::EventImpl::Daemon->start;
my $virt = Sys::Virt->new(uri => $daemon->uri);
my %domain = map { $_ => define($_) } qw(web-1 web-2 db);
my @uri = ('-c', $daemon->uri);

sub define {
    my ($name) = @_;
    return $virt->define_domain(
        "<domain type='test'><name>$name</name><memory>1024</memory><os><type>hvm</type></os></domain>");
}

# Runs it, and the code as soon as it watches. Its lines but for the first, "opened".
sub watching {
    my ($arguments, $code, %opt) = @_;
    my $tool = VirtTest::Tool->start([@uri, @$arguments], %opt);
    $tool->line;
    $code->($tool);
    return { tool => $tool, lines => [$tool->lines], exit => $tool->status, stderr => $tool->errors };
}

# Each domain starts, pauses, goes on and stops; the pool is refreshed.
sub happen {
    for my $name (sort keys %domain) {
        $domain{$name}->$_ for qw(create suspend resume destroy);
    }
    $virt->get_storage_pool_by_name('default-pool')->refresh;
    return;
}

subtest 'filters' => sub {
    my @all = map { my $name = $_; map { "domain $name $_" } qw(started suspended resumed stopped) } sort keys %domain;
    my @pool = 'pool default-pool refresh';
    my @cases = (
        [[]                                                        => @all, @pool],
        [['--class', 'domain']                                     => @all],
        [['--domain', 'db']                                        => grep { / db / } @all],
        [['--domain', 'web-*', '--domain', 'd[ab]']                => @all],
        [['--domain', 'web-?', '--class', 'domain,pool']           => (grep { / web/ } @all), @pool],
        [['--event', 'refresh']                                    => @pool],
        [['--event', 'domain/lifecycle,pool/refresh', '--not', 'suspended,resumed']
                                                                   => (grep { /start|stop/ } @all), @pool],
        [['--type', 'started', '--type', 'stopped', '--not', 'stopped'] => grep { /started/ } @all],
        [['--not', 'lifecycle']                                    => @pool],
        [['--not', 'domain']                                       => @pool],
        [['--not', 'domain/lifecycle']                             => @pool],
    );
    my @tools = map { VirtTest::Tool->start([@uri, '--json', @{ $_->[0] }]) } @cases;
    $_->line for @tools;
    happen();
    for my $case (@cases) {
        my ($arguments, @expected) = @$case;
        my $tool = shift @tools;
        my @lines = map { $tool->line } @expected;
        is_deeply [map { told($_) } records(@lines)], \@expected, "@$arguments";
        conforms(@lines);
        $tool->signal('TERM');
        is_deeply [$tool->lines], [], 'nothing else';
        is $tool->status, 0, 'exit status';
    }
};

subtest 'only what can be shown is asked of the server' => sub {
    my $log = File::Temp->new;
    chmod 0666, "$log";
    my %env = (LIBVIRT_DEBUG => 'debug', LIBVIRT_LOG_FILTERS => '1:libvirt', LIBVIRT_LOG_OUTPUTS => "1:file:$log");
    for (
        [['--event', 'domain/lifecycle'] => 1], [['--domain', 'x', '--type', 'stopped'] => 1],
        [['--class', 'pool'] => 2], [['--type', 'suspended'] => 1],
        [['--class', 'pool', '--initial', '--not', 'lifecycle,refresh'] => 0],
    ) {
        my ($arguments, $count) = @$_;
        truncate "$log", 0;
        my $r = watching($arguments, sub { $_[0]->signal('INT') }, env => \%env);
        open my $in, '<', "$log" or die "Cannot read: $!";
        is scalar(grep { / virConnect\w+EventRegisterAny:/ } <$in>), $count, "@$arguments registers $count";
        is $r->{exit}, 0, 'exit status';
    }
};

subtest 'connections can be silent, too' => sub {
    my @arguments = ('--not', 'connection', '--domain', 'db', '--initial', '--timeout', 0.5);
    my $r = tool([@uri, @arguments, '--format', '%{event} %{type}']);
    is_deeply $r->{lines}, ['state shutoff'], 'only a state';
    is $r->{exit}, 1, 'which is no event';
};

subtest '--count' => sub {
    my $r = watching(['--count', 3, '--initial', '--class', 'domain', '--json'], \&happen);
    is $r->{exit}, 0, 'exit status';
    is_deeply [map { told($_) } grep { $_->{event} ne 'state' } records(@{ $r->{lines} })],
        [map { "domain db $_" } qw(started suspended resumed)], 'three events, states do not count';
};

subtest '--timeout' => sub {
    my $r = watching(['--timeout', 1], sub { });
    is $r->{exit}, 1, 'exit status without an event';
    $r = watching(['--timeout', 2], \&happen);
    is $r->{exit}, 0, 'exit status with events';
    is $r->{stderr}, '', 'nothing on stderr';
};

subtest '--until' => sub {
    my $r = tool([@uri, '--domain', 'db', '--until', 'shutoff']);
    is $r->{exit}, 0, 'at once if it is so';
    is_deeply [map { /(opened|state)/ } @{ $r->{lines} }], ['opened'], 'states are not shown';
    $r = watching(['--domain', 'w*', '--until', 'running', '--event', 'reboot'],
        sub { $domain{$_}->create for qw(db web-2) });
    is $r->{exit}, 0, 'when a domain that is named gets there';
    is_deeply $r->{lines}, [], 'though its events are not shown';
    $r = watching(['--domain', 'web-2', '--until', 'shutoff'], sub { $domain{$_}->destroy for qw(db web-2) });
    is_deeply [folded(@{ $r->{lines} })], ['domain web-2 stopped: destroyed'], 'the event that does it is shown';
    $r = watching(['--domain', 'db', '--until', 'running', '--timeout', 1],
        sub { $domain{'web-1'}->$_ for qw(create destroy) });
    is $r->{exit}, 1, 'not before the time-out';
    $domain{db}->$_ for qw(create suspend);
    my $paused = $domain{db}->create_snapshot('<domainsnapshot/>');
    $domain{db}->destroy;
    $r = watching(['--domain', 'db', '--until', 'running', '--timeout', 1], sub { $paused->revert_to });
    is_deeply [map({ /db (started|suspended)/ } folded(@{ $r->{lines} })), $r->{exit}], ['started', 'suspended', 1], 'nor when a domain starts paused';
    $domain{db}->destroy;
    $paused->delete;
};

subtest '--format' => sub {
    my $r = watching(['--not', 'pool', '--domain', 'db', '--count', 2, '--format',
        '%{seq}|%{name} %{type}\t%{detail_code}|%{nothing}%{args.no.thing}|%%|%x\\\\'], \&happen);
    is_deeply $r->{lines}, ["2|db started\t0||%|%x\\", "3|db suspended\t0||%|%x\\"], 'keys, nothing, escapes';
};

subtest 'names are no control sequences, and UTF-8' => sub {
    my $strange = define("\xc3\xa4\xe2\x82\xac");
    for my $arguments ([], ['--format', '%{name}'], ['--json']) {
        my $r = watching([@$arguments, '--domain', "\xc3\xa4?", '--count', 1],
            sub { $strange->$_ for qw(create destroy) });
        like $r->{lines}[0], qr/\xc3\xa4\xe2\x82\xac/, "@$arguments: as it is";
    }
    my $r = watching(['--type', 'defined', '--format', '%{name}', '--count', 1],
        sub { define("a&#9;\xc2\x9b")->undefine });
    is_deeply $r->{lines}, ['a\x09\x9b'], 'escaped';
    $strange->undefine;
};

# Commands

subtest '--exec' => sub {
    my $dir = File::Temp->newdir;
    my $command = "cat >>$dir/in; echo begin >>$dir/times; sleep 0.2; echo end >>$dir/times; "
        . "ls -l /proc/self/fd >$dir/fds; echo out; exit 3";
    my $r = watching(
        ['--count', 4, '--event', 'domain/lifecycle', '--domain', 'db', '--exec', $command, '--json'], \&happen);
    is $r->{exit}, 0, 'exit status';
    my @shown = grep { /^\{/ } @{ $r->{lines} };
    my $in = text_of("$dir/in");
    is scalar(@shown), 4, 'what is shown is shown all the same';
    my @given = split /\n/, $in;
    is_deeply [@given[1 .. 4]], \@shown, 'the command gets all of it, in order, also what still waited at the end';
    like $given[0], qr/"event":"opened"/, 'and what the connection told';
    is text_of("$dir/times"), "begin\nend\n" x 5, 'one at a time';
    is scalar(() = $r->{stderr} =~ /^virt-events: cat .*: exit status 3$/mg), 5, 'its exit status is reported';
    my %fds = text_of("$dir/fds") =~ /(\d+) -> (\S+)/g;
    is_deeply [grep { $_ > 2 && $fds{$_} !~ m{/proc/} } sort keys %fds], [], 'nothing of ours is open there';
    is scalar(grep { /^out$/ } @{ $r->{lines} }), 5, 'its output goes where ours does';

    my $quiet = watching(['--count', 1, '--event', 'refresh', '--exec', 'kill -9 $$'], \&happen);
    like $quiet->{stderr}, qr/^virt-events: kill .*: killed by signal 9$/m, 'also of one that is killed';
};

subtest 'Ctrl-C and --exec' => sub {
    my $dir = File::Temp->newdir;
    my $command = "echo >>$dir/begun; sleep 0.5; echo >>$dir/ended";
    my @arguments = ('--event', 'domain/lifecycle', '--domain', 'db', '--exec', $command);
    my $r = watching(\@arguments, sub {
        my ($tool) = @_;
        happen();
        $tool->line for 1 .. 4;
        kill INT => -$tool->pid;
    });
    is $r->{exit}, 0, 'exit status after one';
    is length text_of("$dir/ended"), 5, 'all commands have come to their end';
    unlink "$dir/ended", "$dir/begun";
    $r = watching(\@arguments, sub {
        my ($tool) = @_;
        happen();
        $tool->line for 1 .. 4;
        kill INT => -$tool->pid;
        sleep 0.1;
        kill INT => -$tool->pid;
    });
    is $r->{exit}, 0, 'exit status after two';
    cmp_ok length(text_of("$dir/begun")), '<', 5, 'not all commands have been run';
};

# Signals

subtest 'a signal that is ignored at the start remains so' => sub {
    my $tool = VirtTest::Tool->start([@uri], prefix => ['sh', '-c', 'trap "" HUP; exec "$@"', 'sh']);
    $tool->line;
    $tool->signal('HUP');
    $domain{db}->create;
    like $tool->line, qr/started/, 'it goes on';
    $domain{db}->destroy;
    $tool->signal('TERM');
    is $tool->status, 0, 'others end it';
};

subtest "an alarm that is not its own ends it as it ends others" => sub {
    my @alarm = ($^X, '-e', 'alarm 1; exec @ARGV');
    my $r = tool([@uri, '--timeout', 10], prefix => \@alarm);
    is $r->{exit}, 'signal ' . POSIX::SIGALRM(), 'exit status';
    is $r->{stderr}, '', 'without a warning';
};

# Terminals and readers

# What it writes to a terminal of so many columns until it ends; the code is called when it has opened the connection.
sub on_terminal {
    my ($columns, $arguments, $code, %opt) = @_;
    my $pty = IO::Pty->new;
    my $slave = $pty->slave;
    $slave->set_raw;
    $slave->set_winsize(24, $columns, 0, 0);
    my %env = (TERM => 'xterm', %{ $opt{env} || {} });
    my $tool = VirtTest::Tool->start([@uri, @$arguments], stdout => $slave, env => \%env);
    close $slave;
    my ($text, $end) = ('', time + patience(20));
    while (time < $end && IO::Select->new($pty)->can_read(1)) {
        sysread $pty, $text, 65536, length $text or last;
        if ($code && $text =~ /opened.*\n/) { $code->($tool, $pty); undef $code }
    }
    return { text => $text, exit => $tool->status, stderr => $tool->errors };
}

subtest 'on a terminal' => sub {
    my @one = ('--domain', 'db', '--count', 4);
    my $r = on_terminal(80, \@one, \&happen);
    my $colours = join '', $r->{text} =~ /\e\[(\d+)m[a-z]/g;
    is $colours, '3232363233', 'opened and started are green, suspended cyan, resumed green, stopped yellow';
    is $r->{exit}, 0, 'exit status';
    my $plain = $r->{text} =~ s/\e\[\d+m//gr;

    for (
        [1, 'NO_COLOR', [], env => { NO_COLOR => 1 }], [1, 'TERM=dumb', [], env => { TERM => 'dumb' }],
        [1, '--color=never', ['--color=never']], [0, '--color=always', ['--color=always'], env => { NO_COLOR => 1 }],
        [0, 'NO_COLOR of no length', [], env => { NO_COLOR => '' }],
    ) {
        my ($is_plain, $title, $arguments, %opt) = @$_;
        $r = on_terminal(80, [@one, @$arguments], \&happen, %opt);
        is scalar($r->{text} !~ /\e/), $is_plain ? 1 : '', $title;
    }
    $r = on_terminal(20, [@one, '--color', 'never'], \&happen);
    is $r->{text} =~ s/^$TIME//mgr, $plain =~ s/^$TIME//mgr, 'nothing is cut on a narrow one';
    $r = watching(\@one, \&happen);
    unlike join('', @{ $r->{lines} }), qr/\e/, 'no colours where there is no terminal';
};

subtest 'Ctrl-C, and a terminal that is closed' => sub {
    my $r = on_terminal(80, [], sub {
        my ($tool, $pty) = @_;
        $pty->slave->blocking(1);
        $tool->signal('INT');
    });
    is $r->{exit}, 0, 'Ctrl-C';
    is $r->{stderr}, '', 'without a word';

    my $pty = IO::Pty->new;
    my $slave = $pty->slave;
    my $tool = VirtTest::Tool->start(\@uri, stdout => $slave);
    close $slave;
    sysread $pty, my $text, 4096;
    close $pty;
    is $tool->status, 0, 'the terminal has gone';
    is $tool->errors, '', 'without a word';
};

subtest 'a reader that goes' => sub {
    my $command = "$^X -Mblib script/virt-events --demo --json | head -n 1";
    my $r = fresh_perl('exec "/bin/sh", "-c", shift or die', args => [$command]);
    like $r->{stdout}, qr/\A\{"v":1,.*"event":"opened".*\}\n\z/, 'head has its line';
    is $r->{stderr}, '', 'and there is no complaint';

    my $tool = VirtTest::Tool->start(\@uri);
    $tool->line;
    $tool->hang_up;
    is $tool->status, 0, 'noticed without an event';
    is $tool->errors, '', 'without a word';

    open my $full, '>', '/dev/full' or die "Cannot open /dev/full: $!";
    $tool = VirtTest::Tool->start(\@uri, stdout => $full);
    is $tool->status, 1, 'a disk that is full';
    is $tool->errors, "virt-events: Cannot write: No space left on device\n", 'is reported';
};

subtest 'a reader that is gone is no longer watched' => sub {
    my $run = fresh_perl(<<'PERL', switches => ['-w']);
use strict;
use Sys::Virt::Event qw(watches); use Sys::Virt::Event::Poll; use Sys::Virt::Event::Tool::Output;
my $loop = Sys::Virt::Event::Poll->new->register;
pipe my $reader, my $writer;
my ($signals, $failed) = (0, 0);
my $output = Sys::Virt::Event::Tool::Output->new($writer, signals => \$signals, failed => sub { $failed++ });
print scalar(watches()), "\n";
close $reader;
$loop->run_until(sub { $failed }, 10);
print scalar(watches()), " $failed ", $output->finish, "\n";
PERL
    is "$run->{stdout}$run->{stderr}", "1\n0 1 0\n", 'while commands of --exec may still run';
};

subtest 'a slow reader' => sub {
    my $many = 400;
    my @arguments = (@uri, '--json', '--event', 'domain/lifecycle', '--domain', 'db');
    my $happen = sub { for (1 .. $many) { $domain{db}->create; $domain{db}->destroy } };
    my $tool = VirtTest::Tool->start([@arguments, '--count', 2 * $many]);
    $tool->line;
    $happen->();
    my $other = VirtTest::Tool->start([@arguments, '--initial']);
    like $other->line, qr/opened/, 'nothing is read, a pipe is full';
    my @lines = $tool->lines;
    is scalar(@lines), 2 * $many, 'but all has come when it is read';
    is_deeply [map { JSON::PP::decode_json($_)->{seq} } @lines], [2 .. 2 * $many + 1], 'in order';
    is $tool->status, 0, 'exit status';

    $other->line;
    $happen->();
    sleep 0.2;
    $other->signal('TERM');
    is $other->status, 0, 'SIGTERM ends it while nobody reads';
    like $other->errors, qr/\Avirt-events: \d+ bytes are not written, nobody takes them\n\z/, 'and says what was left';
};

subtest 'a terminal that takes nothing' => sub {
    my ($pty, $dir) = (IO::Pty->new, File::Temp->newdir);
    my @arguments = ('--event', 'domain/lifecycle', '--domain', 'db', '--format', 'x' x 1500, '--exec');
    my $tool = VirtTest::Tool->start([@uri, @arguments, "echo >>$dir/run"], stdout => $pty->slave);
    IO::Select->new($pty)->can_read(patience(15));
    happen() for 1 .. 4;
    my $end = time + patience(15);
    sleep 0.05 until length(text_of("$dir/run")) == 17 or time > $end;
    is length text_of("$dir/run"), 17, 'everything goes on';
    my $text = '';
    while (($text =~ tr/\n//) < 17 && IO::Select->new($pty)->can_read(patience(15))) {
        sysread $pty, $text, 65536, length $text or last;
    }
    is $text, ('x' x 1500 . "\r\n") x 17, 'it gets all when it is read';
    $tool->signal('TERM');
    is $tool->status, 0, 'exit status';
    is $tool->errors, '', 'without a word';

    unlink "$dir/run";
    my %both = map { $_ => $pty->slave } qw(stdout stderr);
    $tool = VirtTest::Tool->start([@uri, @arguments, "echo >>$dir/run; exit 3"], %both);
    IO::Select->new($pty)->can_read(patience(15));
    happen() for 1 .. 4;
    $end = time + patience(15);
    sleep 0.05 until length(text_of("$dir/run")) == 17 or time > $end;
    is length text_of("$dir/run"), 17, 'also where it takes what is said on stderr';
    $tool->signal('TERM');
    is $tool->status, 0, 'SIGTERM ends it';
};

subtest "a pseudoterminal's master" => sub {
    my $pty = IO::Pty->new;
    $pty->slave->set_raw;
    my $tool = VirtTest::Tool->start(\@uri, stdout => $pty);
    my $text = '';
    sysread $pty->slave, $text, 4096 if IO::Select->new($pty->slave)->can_read(patience(15));
    like $text, qr/opened/, 'its slave gets it';
    $tool->signal('TERM');
    is $tool->status, 0, 'exit status';
};

subtest 'a connection that cannot be opened' => sub {
    my $r = tool(['-c', $NOWHERE, '--no-reconnect']);
    is $r->{exit}, 3, 'exit status';
    like $r->{stderr}, qr{\Avirt-events: Cannot watch \Q$NOWHERE\E: .*socket.*\n\z}, 'the reason on stderr';
    is_deeply [map { /(opened|retry|failed)/ } @{ $r->{lines} }], ['failed'], 'not tried again';

    $r = tool(['-c', $NOWHERE, '--retries', 2, '--json', @uri, '--domain', 'none', '--timeout', 3]);
    is $r->{exit}, 1, 'another one lives';
    my @records = records(@{ $r->{lines} });
    is_deeply [map { $_->{event} } grep { $_->{uri} eq $NOWHERE } @records], ['retry', 'failed'], 'tried twice';
    is_deeply [map { $_->{event} } grep { $_->{uri} ne $NOWHERE } @records], ['opened'], 'the other is watched';
    conforms(@{ $r->{lines} });

    $daemon->stop;
    undef $virt;
};

done_testing;

sub text_of {
    my ($file) = @_;
    open my $in, '<', $file or return '';
    local $/;
    return scalar(<$in>) // '';
}
