# Sys::Virt::Event::Connection on libvirt's own test driver: what it tells, to whom, and what it leaves.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";

use Test::More;
use VirtTest qw(:DEFAULT patience);
use VirtTest::Adapters;
use VirtTest::Child;

BEGIN { plan skip_all => 'Sys::Virt is not installed' if !eval { require Sys::Virt } }

use Scalar::Util qw(weaken);
use Sys::Virt::Event ();
use Sys::Virt::Event::Connection;
use Sys::Virt::Event::Poll;
use Sys::Virt::Event::Record;

watchdog(120);

my $TEST = 'test:///default';

{ package Counter; use overload '&{}' => sub { my ($self) = @_; sub { push @{ $self->{got} }, $_[1]{type} } }, fallback => 1 }

# Runs the code in a process of its own, with a loop and a connection: $code->($loop, $conn, $domain).
sub with_connection {
    my ($code, @options) = @_;
    return in_child {
        my $loop = Sys::Virt::Event::Poll->new->register;
        my $conn = Sys::Virt::Event::Connection->new(uri => $TEST, @options);
        return $code->($loop, $conn);
    };
}

sub domain { my ($conn) = @_; return $conn->virt->get_domain_by_name('test') }

# Long enough for what is in the loop already.
sub settle { my ($loop) = @_; $loop->run_for(patience(0.05)); return }

sub left { return join ' ', map { "$_->{kind} $_->{id}" } Sys::Virt::Event::watches() }

# What is asked for wrongly.

like exception_of { Sys::Virt::Event::Connection->new(uri => $TEST) },
    qr/\ACannot make a connection: no event loop is registered at \Q$0\E line /, 'new without a loop';

is_deeply [with_connection(sub {
    my ($loop, $conn) = @_;
    my @mistakes = (
        (map { my @options = @$_; sub { Sys::Virt::Event::Connection->new(@options) } }
            ['uri'], [url => $TEST], [keepalive => 5], [keepalive => [5]], [keepalive => [0, 3]], [connect_timeout => -1],
            [connect_timeout => 'soon'], [reconnect => { initial => 'x' }], [reconnect => { max => 0 }], [reconnect => { tries => 0 }],
            [reconnect => { jitter => 2 }], [reconnect => { often => 1 }]),
        (map { my @arguments = @$_; sub { $conn->on(@arguments) } }
            [undef, sub { }], ['domain', sub { }], ['vm/*', sub { }], ['domain/born', sub { }], ['connection/lost', sub { }],
            ['*'], ['*', 'code'], ['*', {}], ['*', { color => 1 }, sub { }], ['*', sub { }, 1],
            ['*', undef, sub { }], ['*', {}, {}, sub { }]),
        sub { $conn->off(1) }, sub { $conn->off('x') }, sub { $conn->off },
        sub { $conn->wait_state('test', 'asleep') }, sub { $conn->wait_state('test') },
        (map { my $seconds = $_; sub { $conn->wait_state('test', 'paused', timeout => $seconds) } } 'soon', 'nan', ''),
        sub { $conn->wait_state(undef, 'running') },
        (map { my $name = $_; sub { $conn->on('domain/*', { name => $name }, sub { }) } } {}, [sub { }], '[z-a]', '[[:vowel:]]'),
        sub { $conn->wait_state('test', 'running', 5) }, sub { $conn->wait_state('test', 'running', wait => 5) },
        sub { $conn->events('domain') }, sub { $conn->events('*')->next }, sub { $conn->snapshot },
    );
    return map { my $error = &exception_of($_) // 'none'; $error =~ s/ at \Q$0\E line \d+\.\n\z// ? $error : "elsewhere: $error" }
        @mistakes;
})], [
    'Cannot make a connection: options are pairs of a name and a value',
    'Cannot make a connection: there is no option url',
    ('Cannot make a connection: keepalive is not [seconds, count]') x 3,
    ('Cannot make a connection: connect_timeout is not a number from 0 to 1000000') x 2,
    (map { "Cannot make a connection: $_ is not a number from 0.001 to 1000000" } qw(initial max)),
    'Cannot make a connection: tries is not a number from 1',
    'Cannot make a connection: jitter is not a number from 0 to 1',
    'Cannot make a connection: there is no option often',
    'Cannot listen: undef is neither * nor CLASS/EVENT nor CLASS/*',
    'Cannot listen: domain is neither * nor CLASS/EVENT nor CLASS/*',
    'Cannot listen: vm is none of domain, network, pool, device, secret, connection',
    'Cannot listen: domain has no event born, only state, '
        . join(', ', map { $_->{name} } Sys::Virt::Event::Record::events_of('domain')),
    'Cannot listen: connection has no event lost, only opened, closed, retry, failed, error',
    ('Cannot listen: the last argument is not a code reference') x 3,
    'Cannot listen: there is no filter color',
    'Cannot listen: the last argument is not a code reference',
    ('Cannot listen: the filter is not a hash reference') x 2,
    'Cannot stop listening: no id 1 was ever given out',
    'Cannot stop listening: no id x was ever given out',
    'Cannot stop listening: no id undef was ever given out',
    (map { "Cannot wait for state $_: it is none of nostate, running, blocked, paused, shutdown, shutoff, crashed, pmsuspended" }
        'asleep', 'undef'),
    (map { "Cannot wait for a state: timeout $_ is not a number" } 'soon', 'nan', ''),
    'Cannot wait for a state: no domain is named',
    ('Cannot listen: name is neither a glob nor a qr// nor a list of these') x 2,
    'Cannot listen: [z-a] is not a glob',
    'Cannot listen: [[:vowel:]] is not a glob',
    'Cannot wait for a state: options are pairs of a name and a value',
    'Cannot wait for a state: there is no option wait',
    'Cannot listen: domain is neither * nor CLASS/EVENT nor CLASS/*',
    'Cannot take the next event: the argument is not a code reference',
    "Cannot take a snapshot of $TEST: the connection is closed",
], 'mistakes are exceptions, from the place where they are made';

# Opening and closing

is_deeply [with_connection(sub {
    my ($loop, $conn) = @_;
    my @log;
    $conn->on('connection/*' => sub { my ($c, $event, $object) = @_; push @log, $event->{event}, $c == $conn, defined $c->virt });
    push @log, defined $conn->virt ? 'open' : 'not yet', $conn->uri;
    settle($loop);
    push @log, ref $conn->virt, $conn->open == $conn;
    $conn->close;
    $conn->close;
    push @log, left(), Sys::Virt::Event::is_idle();
    $conn->open;
    push @log, domain($conn)->get_name;
    $conn->close;
    push @log, Sys::Virt::Event::is_idle();
    return @log;
})], [
    'not yet', $TEST, 'opened', 1, 1, 'Sys::Virt', 1, 'closed', 1, '', '', 1, 'opened', 1, 1, 'test', 'closed', 1, '', 1,
], 'opens from the next tick, closes, leaves nothing, opens at once again';

is_deeply [with_connection(sub {
    my ($loop, $other) = @_;
    my $conn = Sys::Virt::Event::Connection->new(uri => $TEST);
    $other->close;
    $conn->on('*' => sub { });
    settle($loop);
    weaken(my $virt = $conn->virt);
    weaken(my $weak = $conn);
    undef $conn;
    settle($loop);
    return ((map { $_ ? 'kept' : 'gone' } $weak, $virt), left(), Sys::Virt::Event::is_idle());
})], ['gone', 'gone', '', 1], 'the end of the object ends all, with handlers registered';

is_deeply [in_child {
    Sys::Virt::Event::Poll->new->register;
    my @log;
    for my $handler (undef, 'DEFAULT', 'IGNORE') {
        local $SIG{PIPE} = $handler if defined $handler;
        Sys::Virt::Event::Connection->new(uri => $TEST);
        push @log, ref $SIG{PIPE} || $SIG{PIPE};
    }
    return @log;
}], ['CODE', 'DEFAULT', 'IGNORE'], 'SIGPIPE gets a handler, if it has none';

# Records

is_deeply [with_connection(sub {
    my ($loop, $conn) = @_;
    my (@types, @filtered, @wide, %all, @once, @objects);
    $conn->on('domain/lifecycle' => sub { my (undef, $event, $object) = @_; push @types, $event->{type}; push @objects, ref $object });
    $conn->on('domain/*', { type => ['suspended', 'stopped'] } => sub { push @filtered, $_[1]{type} });
    $conn->on('*', { name => 'def*' } => sub { push @wide, join ' ', map { $_ // '-' } @{ $_[1] }{qw(class event type)} });
    $conn->on('*' => sub { $all{"$_[1]{class} $_[1]{event}"}++ });
    $conn->once('domain/*', { type => qr/\Ares/ } => sub { push @once, $_[1]{type} });
    my $off = $conn->on('domain/lifecycle' => sub { die 'it is off' });
    my $callable = bless { got => [] }, 'Counter';
    $conn->on('domain/lifecycle', { uuid => '6695eb01-f6a4-8304-79aa-97f2502e193f', name => '[st]es?' } => $callable);
    $conn->on('domain/lifecycle', { name => ['no', 'nono'] } => sub { die 'another name' });
    $conn->on('domain/lifecycle', { name => [] } => sub { die 'none at all' });
    $conn->on('domain/lifecycle', { name => '[!t]est' } => sub { die 'a set of characters that has it not' });
    $conn->off($off);
    $conn->off($off);
    $conn->open;
    my $dom = domain($conn);
    for (1, 2) { $dom->suspend; $dom->resume }
    $dom->set_metadata(Sys::Virt::Domain::METADATA_TITLE(), 'x');
    $dom->destroy;
    my $network = $conn->virt->get_network_by_name('default');
    my $pool = $conn->virt->get_storage_pool_by_name('default-pool');
    $_->destroy, $_->create for $network, $pool;
    $pool->refresh;
    settle($loop);
    return (\@types, \@filtered, \@wide, \%all, \@once, $callable->{got}, [grep { $_ ne 'Sys::Virt::Domain' } @objects]);
})], [
    [qw(suspended resumed suspended resumed stopped)], [qw(suspended suspended stopped)],
    ['network state active', 'pool state running', 'network lifecycle stopped', 'network lifecycle started',
        'pool lifecycle stopped', 'pool lifecycle started', 'pool refresh -'],
    {
        'domain lifecycle' => 5, 'domain metadata-change' => 1, 'network lifecycle' => 2, 'pool lifecycle' => 2,
        'pool refresh' => 1, 'domain state' => 1, 'network state' => 1, 'pool state' => 1, 'device state' => 4,
    }, ['resumed'], [qw(suspended resumed suspended resumed stopped)], [],
], 'each listener hears what it has asked for';

# As in file names: each with what it fits and what it does not.
my @globs = (
    ['*', ['', 'a', "a\nb"], []], ['t?st', ['test', "t\xe4st"], ['tst', 'teest', 'atest']], ['a.b', ['a.b'], ['aab']],
    ['[a-c]x', ['ax', 'cx'], ['dx', '-x']], ['[!a-c]x', ['dx'], ['ax', 'x']], ['[^a]', ['b', '^'], ['a']], ['[a^]', ['a', '^'], []],
    ['[[:digit:]]*', ['1a', '2'], ['a1', ':', '[']], ['[x[:upper:]-]', ['x', 'A', '-'], ['a', ':']],
    ['[\\w]est', ['west'], ['test', '\\est']], ['[\\]]', [']'], ['\\', '\\]']], ['[a\\-c]', ['a', '-', 'c'], ['b']],
    ['[]a]', [']', 'a'], ['[]a]']], ['[!]a]', ['b'], [']', 'a']], ['[-a]', ['-', 'a'], ['b']], ['[$x]', ['$', 'x'], ['']],
    ['[a', ['[a'], ['a']], ['[]', ['[]'], ['']], ['[!]', ['[!]'], ['!']], ['\\*', ['*'], ['a', '\\a']], ['a\\', ['a\\'], ['a']],
);
for my $case (@globs) {
    my ($glob, $fits, $others) = @$case;
    my $filter = Sys::Virt::Event::Connection::_filter({ name => $glob });
    is_deeply [grep { $filter->({ name => $_ }) } @$fits, @$others], $fits, "the glob $glob";
}

my ($event, $stopped, $state) = with_connection(sub {
    my ($loop, $conn) = @_;
    my @records;
    $conn->on('domain/*' => sub { push @records, $_[1] });
    $conn->open;
    my $dom = domain($conn);
    $dom->suspend;
    $dom->destroy;
    settle($loop);
    return @records[1, 2, 0];
});
my $uuid = '6695eb01-f6a4-8304-79aa-97f2502e193f';
my $time = qr/\A\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\z/;
my %common = (v => 1, uri => $TEST, class => 'domain', name => 'test', uuid => $uuid, args => {});
like $_->{time}, $time, 'time' for $event, $stopped, $state;
is_deeply [map { delete $_->{seq} } $state, $event, $stopped], [2, 3, 4], 'seq: opened, states, events';
delete $_->{time} for $event, $stopped, $state;
is_deeply $event,
    { %common, event => 'lifecycle', event_id => 0, id => 1, type => 'suspended', detail => 'paused', type_code => 3, detail_code => 0 },
    'a lifecycle event';
is_deeply $stopped, {
    %common, event => 'lifecycle', event_id => 0, id => undef, type => 'stopped', detail => 'destroyed', type_code => 5,
    detail_code => 1,
}, 'id is undef when the domain is off';
is_deeply $state, {
    %common, event => 'state', event_id => undef, id => 1, type => 'running', detail => 'unknown', type_code => 1, detail_code => 0,
}, 'a state';

# What is exactly known of each event, with the arguments that Sys::Virt gives. The numbers are libvirt's.

{
    package Thing;
    sub get_name        { return "h\xc3\xa4" }
    sub get_uuid        { return 'sixteen bytes' }
    sub get_uuid_string { return 'uuid' }
    sub get_id          { return -1 }
    sub get_usage_id    { return 'usage' }
}

my %ARGS = (
    'domain/reboot'              => [[], {}],
    'domain/rtc-change'          => [[3600], { utcoffset => 3600 }],
    'domain/watchdog'            => [[2], { action => 'reset', action_code => 2 }],
    'domain/io-error'            => [['/a', 'vda', 1], { src => '/a', alias => 'vda', action => 'pause', action_code => 1 }],
    'domain/graphics'            => [
        [1, { family => 0, node => '::1', service => '5900' }, { family => 7, node => '', service => '' }, 'vnc',
            [{ type => 'x509', name => "h\xc3\xa4" }]],
        {
            phase  => 'initialize', phase_code => 1, auth => 'vnc', ids => [{ type => 'x509', name => "h\xe4" }],
            local  => { family => 'ipv4', family_code => 0, node => '::1', service => '5900' },
            remote => { family => undef, family_code => 7, node => '', service => '' },
        },
    ],
    'domain/io-error-reason'     => [
        ['/a', 'vda', 2, 'enospc'],
        { src => '/a', alias => 'vda', action => 'report', action_code => 2, reason => 'enospc' },
    ],
    'domain/control-error'       => [[], {}],
    'domain/disk-change'         => [[undef, '/b', 'vda', 0], { old => undef, new => '/b', alias => 'vda', reason => 'change-missing-on-start', reason_code => 0 }],
    'domain/tray-change'         => [['vda', 1], { alias => 'vda', reason => 'close', reason_code => 1 }],
    'domain/pmwakeup'            => [[0], { reason => 0 }],
    'domain/pmsuspend'           => [[0], { reason => 0 }],
    'domain/pmsuspend-disk'      => [[0], { reason => 0 }],
    'domain/balloon-change'      => [[1048576], { actual => 1048576 }],
    'domain/device-removed'      => [['net0'], { alias => 'net0' }],
    'domain/device-added'        => [['net0'], { alias => 'net0' }],
    'domain/device-removal-failed' => [['net0'], { alias => 'net0' }],
    'domain/block-job'           => [['vda', 2, 3], { dev => 'vda', type => 'copy', type_code => 2, status => 'ready', status_code => 3 }],
    'domain/tunable'             => [[{ 'cputune.shares' => 5, name => "h\xc3\xa4" }], { params => { 'cputune.shares' => 5, name => "h\xe4" } }],
    'domain/agent-lifecycle'     => [[1, 2], { state => 'connected', state_code => 1, reason => 'channel', reason_code => 2 }],
    'domain/migration-iteration' => [[3], { iteration => 3 }],
    'domain/job-completed'       => [[{ type => 4 }], { params => { type => 4 } }],
    'domain/metadata-change'     => [[2, 'http://x'], { type => 'element', type_code => 2, nsuri => 'http://x' }],
    'domain/block-threshold'     => [['vda', '/a', 100, 7], { dev => 'vda', path => '/a', threshold => 100, excess => 7 }],
    'domain/memory-failure'      => [
        [1, 2, 3],
        { recipient => 'guest', recipient_code => 1, action => 'fatal', action_code => 2, flags => ['action-required', 'recursive'], flags_code => 3 },
    ],
    'domain/memory-device-size-change' => [['dimm0', 1024], { alias => 'dimm0', size => 1024 }],
    'domain/nic-mac-change'      => [['net0', 'a', 'b'], { alias => 'net0', old => 'a', new => 'b' }],
    'domain/vcpu-removed'        => [[3], { vcpu => 3 }],
    'network/metadata-change'    => [[0, undef], { type => 'description', type_code => 0, nsuri => undef }],
    'pool/refresh'               => [[], {}],
    'device/update'              => [[], {}],
    'secret/value-changed'       => [[], {}],
);
for my $class (Sys::Virt::Event::Record::classes()) {
    for my $event (Sys::Virt::Event::Record::events_of($class)) {
        next if $event->{is_typed};
        my $name = "$class/$event->{name}";
        next if $event->{constant} eq 'BLOCK_JOB';
        my ($given, $expected) = @{ $ARGS{$name} // [[], 'nothing known'] };
        my $record = Sys::Virt::Event::Record::of_event($event, $TEST, bless({}, 'Thing'), @$given);
        is_deeply $record->{args}, $expected, "arguments of $name, event $event->{id}";
    }
}
my ($by_path, $by_device) = grep { $_->{name} eq 'block-job' } Sys::Virt::Event::Record::events_of('domain');
is_deeply [map { $_->{id} } $by_path, $by_device], [8, 16], 'two events are block jobs';
is_deeply Sys::Virt::Event::Record::of_event($by_path, $TEST, bless({}, 'Thing'), '/a', 9, 9)->{args},
    { path => '/a', type => undef, type_code => 9, status => undef, status_code => 9 }, 'by path; numbers without a word';
my $new = { %$by_path, constant => 'FUTURE', arguments => [['alias']] };
is_deeply Sys::Virt::Event::Record::of_event($new, $TEST, bless({}, 'Thing'), 'a', 1, { b => 2 })->{args},
    { alias => 'a', arg1 => 1, arg2 => { b => 2 } }, 'arguments that are newer than this';
is_deeply [@{ Sys::Virt::Event::Record::of_event($by_path, $TEST, bless({}, 'Thing')) }{qw(name uuid id)}], ["h\xe4", 'uuid', undef],
    'names are texts';
is Sys::Virt::Event::Record::of_event((Sys::Virt::Event::Record::events_of('secret'))[0], $TEST, bless({}, 'Thing'), 0, 0)->{name},
    'usage', 'a secret is known by its usage';

# Handlers that die

my @died = with_connection(sub {
    my ($loop, $conn) = @_;
    my (@log, @warned);
    local $SIG{__WARN__} = sub { push @warned, $_[0] };
    my $error = bless { a => 1 }, 'Thing';
    $conn->on('domain/lifecycle' => sub { push @log, "first $_[1]{type}"; die $error });
    $conn->on('domain/lifecycle' => sub { push @log, 'second'; die "second\n" });
    $conn->on('domain/lifecycle' => sub { push @log, 'third' });
    $conn->open;
    my $dom = domain($conn);
    $dom->$_ for qw(suspend resume);
    my @thrown;
    for (1 .. 6) { eval { $loop->run_once(0.01); 1 } or push @thrown, $@ }
    push @log, map { ref || $_ } @thrown;
    push @log, map { s/ at \S+ line .*//sr } @warned;
    my $listener = $conn->on('connection/error' => sub { my (undef, $event, $object) = @_; push @log, $event->{args}{error} =~ s/=.*//r, ref $object });
    $dom->suspend;
    settle($loop);
    $conn->on('connection/error' => sub { die "the listener itself\n" });
    $dom->resume;
    for (1 .. 6) { eval { $loop->run_once(0.01); 1 } or push @log, $@ }
    return @log;
});
is_deeply [@died[0 .. 5]], [('first suspended', 'second', 'third'), ('first resumed', 'second', 'third')], 'no event is lost by handlers that die';
my $parked = 'Exception in a protected callback: ';
is_deeply [map { s/=.*//sr } grep { !/\A(?:first|second|third)\b/ } @died], [
    'Thing', "${parked}second\n", "${parked}Thing", "${parked}second\n",
    ('Thing', 'Thing', '') x 2, "the listener itself\n",
], 'the first exception of a pass is thrown, others are warnings; with a listener it has them';

# States, and waiting for one

is_deeply [with_connection(sub {
    my ($loop, $conn) = @_;
    my @log;
    my $later = sub { my ($method) = @_; Sys::Virt::Event::add_timeout(20, sub { Sys::Virt::Event::remove_timeout($_[0]); domain($conn)->$method }) };
    push @log, $conn->wait_state('test', 'running', timeout => patience(10));
    push @log, $conn->wait_state('test', 'paused', timeout => 0.05);
    for my $step (['suspend', 'paused'], ['resume', 'running'], ['destroy', 'shutoff'], ['create', 'running']) {
        my ($method, $state) = @$step;
        $later->($method);
        push @log, $conn->wait_state('test', $state, timeout => patience(10));
    }
    push @log, map { "$_->{class} $_->{name} $_->{type}" } grep { $_->{class} ne 'device' } $conn->snapshot;
    my $timer = Sys::Virt::Event::add_timeout(20, sub { $conn->close });
    push @log, exception_of { $conn->wait_state('test', 'crashed') };
    Sys::Virt::Event::remove_timeout($timer);
    push @log, exception_of { $conn->wait_state('test', 'crashed') };
    $conn->open;
    $timer = Sys::Virt::Event::add_timeout(0, sub { push @log, exception_of { $conn->wait_state('test', 'running') }; $loop->stop });
    $loop->run;
    Sys::Virt::Event::remove_timeout($timer);
    $conn->close;
    return map { s/ at \Q$0\E line \d+\.\n//r } @log, left();
})], [
    1, 0, 1, 1, 1, 1, 'domain test running', 'network default active', 'pool default-pool running',
    ('Cannot wait for a state: the connection is closed') x 2,
    'Cannot wait for a state: a callback is running, and no event comes before it returns', '',
], 'wait_state, snapshot';

# libvirt says that it has started, then that it is suspended.
is_deeply [with_connection(sub {
    my ($loop, $conn) = @_;
    $conn->open;
    my $dom = domain($conn);
    $dom->suspend;
    my $paused = $dom->create_snapshot('<domainsnapshot/>');
    $dom->destroy;
    settle($loop);
    my $later = sub { my ($code) = @_; Sys::Virt::Event::add_timeout(20, sub { Sys::Virt::Event::remove_timeout($_[0]); $code->() }) };
    my @log;
    $conn->on('domain/lifecycle' => sub { push @log, $_[1]{type} });
    $later->(sub { $paused->revert_to });
    push @log, $conn->wait_state('test', 'running', timeout => patience(0.3));
    $dom->destroy;
    settle($loop);
    $later->(sub { $paused->revert_to });
    push @log, $conn->wait_state('test', 'paused', timeout => patience(10));
    settle($loop);
    $dom->destroy;
    settle($loop);
    # It is gone before anybody asks, and comes again.
    $later->(sub { $dom->create; $dom->destroy; $later->(sub { $dom->create }) });
    push @log, $conn->wait_state('test', 'running', timeout => patience(10));
    return @log;
})], [
    'started', 'suspended', 0, 'stopped', 'started', 'suspended', 1, 'stopped', 'started', 'stopped', 'started', 1,
], 'wait_state and a domain that starts paused';

is_deeply [with_connection(sub {
    my ($loop, $conn) = @_;
    $conn->open;
    my $xml = domain($conn)->get_xml_description =~ s{<uuid>.*</uuid>}{}r =~ s{<name>.*</name>}{<name>new</name>}r;
    Sys::Virt::Event::add_timeout(20, sub { Sys::Virt::Event::remove_timeout($_[0]); $conn->virt->define_domain($xml) });
    my $is_off = $conn->wait_state('new', 'shutoff', timeout => patience(10));
    $conn->virt->get_domain_by_name('new')->undefine;
    return $is_off;
})], [1], 'wait_state and a domain that comes into being';

# A listener of `opened` runs the loop.
is_deeply [with_connection(sub {
    my ($loop, $conn) = @_;
    my @log;
    $conn->on('domain/*' => sub { push @log, $_[1]{type} });
    $conn->on('connection/opened' => sub {
        Sys::Virt::Event::add_timeout(20, sub { Sys::Virt::Event::remove_timeout($_[0]); domain($conn)->suspend });
        push @log, $conn->wait_state('test', 'paused', timeout => patience(10));
        domain($conn)->resume;
    });
    $conn->open;
    settle($loop);
    return @log;
})], [qw(running suspended), 1, 'resumed'], 'events come while a listener of opened runs the loop, after the states';

# One iterator that ends lets go of others.
is_deeply [with_connection(sub {
    my ($loop, $conn) = @_;
    $conn->open;
    my $ends = 0;
    my @iterators = map { $conn->events('domain/lifecycle') } 1 .. 4;
    $_->next(sub { $ends++ if !$_[1]; @iterators = () }) for @iterators;
    return (exception_of { $conn->close }, $ends);
})], [undef, 4], 'iterators that are dropped at the end';

# Iterators

my @iterated = with_connection(sub {
    my ($loop, $conn) = @_;
    my $it = $conn->events('domain/lifecycle');
    $conn->open;
    my $dom = domain($conn);
    my (@log, $depth);
    my $take = sub { push @log, $_[1] ? $_[1]{type} : 'end' };
    $it->next($take);
    for (1, 2) { $dom->suspend; $dom->resume }
    settle($loop);
    push @log, '|';
    $it->next($take);
    $it->next($take);
    $it->next($take);
    $it->next($take);
    push @log, '|';
    $dom->suspend;
    settle($loop);
    push @log, '|';

    # However many wait, none is asked for inside another.
    my $many = $conn->events('domain/metadata-change');
    $dom->set_metadata(Sys::Virt::Domain::METADATA_TITLE(), $_) for 1 .. 500;
    settle($loop);
    my ($count, $in, $deepest) = (0, 0, 0);
    my $again;
    $again = sub { $in++; $deepest = $in if $in > $deepest; $many->next($again) if ++$count < 500; $in-- };
    $many->next($again);
    undef $again;
    push @log, $count, $deepest, '|';

    $it->next($take);
    $it->cancel;
    $it->cancel;
    $it->next($take);
    $dom->resume;
    settle($loop);
    $many->next($take);
    undef $many;
    my $last = $conn->events('domain/*');
    $last->next($take);
    $dom->suspend;
    settle($loop);
    $dom->resume;
    settle($loop);
    push @log, '|';
    undef $dom;
    $conn->close;
    $last->next($take);
    $last->next($take);
    return (@log, left());
});
is_deeply \@iterated, [
    'suspended', '|', 'resumed', 'suspended', 'resumed', '|', 'suspended', '|', 500, 1, '|', 'end', 'end', 'end', 'suspended', '|',
    'resumed', 'end', '',
], 'iterators' or diag explain \@iterated;

SKIP: {
    skip 'Mojolicious is not installed', 1 if VirtTest::Adapters::missing_modules({ modules => ['Mojo::Promise'] });
    is_deeply [in_child {
        $ENV{MOJO_REACTOR} = 'Mojo::Reactor::Poll';
        require Mojo::Promise;
        require Sys::Virt::Event::Mojo;
        Sys::Virt::Event::Mojo->import('-register');
        my $conn = Sys::Virt::Event::Connection->new(uri => $TEST);
        my $it = $conn->events('domain/lifecycle');
        my @log;
        # The next event comes in the same tick.
        my @others = map { $it->next_p } 1, 2;
        $others[0]->resolve('resolved by hand');
        $others[1]->reject('rejected by hand');
        $_->then(sub { push @log, "@_" }, sub { push @log, "@_" }) for @others;
        $conn->once('connection/opened' => sub { domain($conn)->suspend; domain($conn)->resume });
        $it->next_p->then(sub { push @log, "$_[1]{type} " . ref $_[2]; $it->next_p })
            ->then(sub { push @log, $_[1]{type}; my $next = $it->next_p; $it->cancel; $next })
            ->catch(sub { push @log, "$_[0]" })->wait;
        return @log;
    }], [
        'resolved by hand', 'rejected by hand', 'suspended Sys::Virt::Domain', 'resumed', 'Cannot take the next event: it was cancelled',
    ], 'promises; one that was settled otherwise takes no event';
}

for my $class ('Sys::Virt::Event::Poll', 'Sys::Virt::Event::IOAsync') {
    my @modules = ('Future', $class =~ /Poll/ ? () : 'IO::Async::Loop');
    SKIP: {
        skip "@modules: not installed", 1 if VirtTest::Adapters::missing_modules({ modules => \@modules });
        is_deeply [in_child {
            require($class =~ s{::}{/}gr . '.pm');
            my $loop = $class->new->register;
            my $conn = Sys::Virt::Event::Connection->new(uri => $TEST);
            my $it = $conn->events('domain/lifecycle');
            my @log;
            $conn->once('connection/opened' => sub { domain($conn)->suspend; domain($conn)->resume });
            my @futures = ($it->next_f, $it->next_f);
            shift(@futures)->cancel;
            $loop->run_until(sub { $futures[0]->is_ready }, patience(10));
            push @log, ($futures[0]->get)[1]{type};
            push @log, ref(my $next = $it->next_f);
            $loop->run_until(sub { $next->is_ready }, patience(10));
            push @log, ($next->get)[1]{type};
            my $failing = $it->next_f;
            undef $it;
            return (@log, $failing->failure);
        }], [
            'suspended', $class =~ /Poll/ ? 'Future' : 'IO::Async::Future', 'resumed', 'Cannot take the next event: it was cancelled',
        ], "$class: futures; one that was cancelled takes no event";
    }
}

done_testing;
