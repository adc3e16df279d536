package VirtTest::Contract::Virt;

# Sys::Virt on the loop: in this process (test:///default), and with a libvirtd.

use strict;
use warnings;

use Test::More;
use Time::HiRes ();
use VirtTest;
use VirtTest::Contract::Case;
use VirtTest::Daemon;

use constant NETWORK_XML => '<network><name>contract</name><bridge name="virbr7"/></network>';
use constant DOMAIN_XML => '<domain type="test"><name>contract</name><memory>1024</memory><os><type>hvm</type></os></domain>';
use constant POOL_XML => '<pool type="dir"><name>contract</name><target><path>/contract</path></target></pool>';

case virt => 13, all_in_one_run => 'one run after a call delivers all events of the call', sub {
    my ($t) = @_;
    my $c = $t->connect;
    my @seen;
    my $note = sub { my ($class) = @_; return sub { push @seen, "$class $_[2]" } };
    $c->domain_event_register(sub { push @seen, 'old-style' });
    $c->domain_event_register_any(undef, Sys::Virt::Domain::EVENT_ID_LIFECYCLE(), $note->('domain'));
    $c->network_event_register_any(undef, Sys::Virt::Network::EVENT_ID_LIFECYCLE(), $note->('network'));
    $c->storage_pool_event_register_any(undef, Sys::Virt::StoragePool::EVENT_ID_LIFECYCLE(), $note->('pool'));
    $t->add_timeout(10_000);
    my $delivers = sub {
        my ($what, $call, @expected) = @_;
        @seen = ();
        $call->();
        is_deeply \@seen, [], "$what: nothing during the call";
        $t->run(0.05);
        is_deeply [sort @seen], [sort @expected], '... all by one run';
    };
    my ($domain, $network, $pool);
    $delivers->('define and start a domain', sub { ($domain = $c->define_domain(DOMAIN_XML))->create },
        'old-style', 'domain 0', 'old-style', 'domain 2');
    $delivers->('suspend it, and define a network', sub { $domain->suspend; $network = $c->define_network(NETWORK_XML) },
        'old-style', 'domain 3', 'network 0');
    $delivers->('start the network and a pool', sub { $network->create; $pool = $c->define_storage_pool(POOL_XML) },
        'network 2', 'pool 0');
    $delivers->('end everything', sub { $domain->destroy; $domain->undefine; $network->destroy; $pool->undefine },
        'old-style', 'domain 5', 'old-style', 'domain 1', 'network 3', 'pool 1');
};

case virt => 13, node_device => 'events of node devices arrive as well', sub {
    my ($t) = @_;
    my $c = $t->connect;
    my @seen;
    $c->node_device_event_register_any(undef, Sys::Virt::NodeDevice::EVENT_ID_LIFECYCLE(), sub { push @seen, $_[2] });
    my $device = $c->create_node_device(<<'XML');
<device><parent>scsi_host1</parent><capability type='scsi_host'><capability type='fc_host'>
<wwnn>1000000023452345</wwnn><wwpn>1000000023452345</wwpn></capability></capability></device>
XML
    $device->destroy;
    $t->run(0.05);
    is_deeply \@seen, [Sys::Virt::NodeDevice::EVENT_CREATED(), Sys::Virt::NodeDevice::EVENT_DELETED()];
};

case virt => 15, idle => 'the loop is idle before and after, and not meanwhile', sub {
    my ($t) = @_;
    $t->impl;
    ok Sys::Virt::Event::is_idle(), 'idle at first';
    my $c = $t->connect;
    my @seen;
    my $callback = $c->domain_event_register_any(undef, Sys::Virt::Domain::EVENT_ID_LIFECYCLE(), sub { push @seen, $_[2] });
    ok !Sys::Virt::Event::is_idle(), 'not idle with a callback';
    my $domain = $c->define_domain(DOMAIN_XML);
    $domain->create;
    $domain->destroy;
    $t->until(sub { @seen >= 3 });
    is_deeply \@seen, [0, 2, 5], 'defined, started, stopped';
    ok !Sys::Virt::Event::is_idle(), 'not idle while registered';
    $c->domain_event_deregister_any($callback);
    undef $c;
    undef $domain;
    $t->until(sub { Sys::Virt::Event::is_idle() });
    ok Sys::Virt::Event::is_idle(), 'idle when all is gone';
    is_deeply [Sys::Virt::Event::watches()], [];
};

case virt => 34, refused => 'a connection works on after the loop has refused its timer', sub {
    my ($t) = @_;
    my $c = $t->connect;
    my $refuse = 1;
    $t->override(add_timeout => sub {
        my ($original, $impl, @args) = @_;
        die "no room\n" if $refuse;
        return $impl->$original(@args);
    });
    my @seen;
    my $register = sub {
        return $c->domain_event_register_any(undef, Sys::Virt::Domain::EVENT_ID_LIFECYCLE(), sub { push @seen, $_[2] });
    };
    ok defined exception_of { $register->() }, 'registering a callback fails';
    like join('', $t->warnings), qr/add_timeout.*no room/s, '... with a warning that says why';
    is scalar(my @domains = $c->list_all_domains), 1, 'the next call works';
    $refuse = 0;
    is exception_of { $register->() }, undef, 'then registering works';
    my $domain = $c->define_domain(DOMAIN_XML);
    $t->until(sub { @seen });
    is_deeply \@seen, [0], 'and events arrive';
};

# With a daemon.

sub daemon_of {
    my ($t) = @_;
    if (my $why = VirtTest::Daemon->why_not) { $t->skip($why) }
    $t->connect;
    return VirtTest::Daemon->start;
}

# A lifecycle event of a suspended and resumed domain arrives.
sub events_arrive {
    my ($t, $c, $what) = @_;
    my @seen;
    my $id = $c->domain_event_register_any(undef, Sys::Virt::Domain::EVENT_ID_LIFECYCLE(), sub { push @seen, $_[2] });
    my ($domain) = $c->list_all_domains;
    $domain->suspend;
    $domain->resume;
    $t->until(sub { @seen >= 2 });
    is_deeply \@seen, [3, 4], $what;
    $c->domain_event_deregister_any($id);
    return;
}

case remote => 34, methods_die => 'a connection works on when methods die in the midst of a call', sub {
    my ($t) = @_;
    my $daemon = daemon_of($t);
    my $c = $t->connect($daemon->uri);
    my $broken;
    $t->override(map { my $name = $_; $name => sub { my ($original, $impl, @args) = @_;
        my @result = $impl->$original(@args);
        die "broken $name\n" if $broken;
        return $result[0] } } map { ("${_}_handle", "${_}_timeout") } qw(add update remove));
    $broken = 1;
    ok length $c->num_of_domains, 'a call succeeds';
    my @warnings = $t->warnings;
    cmp_ok scalar @warnings, '>', 0, 'with warnings';
    is grep({ !/broken update_handle/ } @warnings), 0, '... that say why';
    ok length $c->num_of_domains, 'so does the next';
    $broken = 0;
    $t->warnings;
    events_arrive($t, $c, 'events arrive');
}, limit => 30;

case remote => 35, signal => 'a signal handler that dies in a slow call leaves the connection usable', sub {
    my ($t) = @_;
    my $daemon = daemon_of($t);
    my $c = $t->connect($daemon->uri);
    $daemon->signal('STOP');
    my $pid = $daemon->pid;
    defined(my $helper = fork) or die "Cannot fork: $!";
    if (!$helper) {
        pause(0.3);
        kill CONT => $pid;
        POSIX::_exit(0);
    }
    my $lived = 0;
    my $error = exception_of {
        local $SIG{ALRM} = sub { die "alarm\n" };
        Time::HiRes::ualarm(100_000);
        $c->num_of_domains;
        $lived = 1;
    };
    waitpid $helper, 0;
    is $error, "alarm\n", 'the caller gets the exception';
    is $lived, 0, '... from the statement that was interrupted';
    ok length $c->num_of_domains, 'the next call works';
    events_arrive($t, $c, 'events arrive');
}, limit => 30;

case remote => 36, error_survives => 'the error of a failing call is what libvirt said, whatever methods do', sub {
    my ($t) = @_;
    my $daemon = daemon_of($t);
    my $c = $t->connect($daemon->uri);
    my %calls;
    $t->override(map { my $name = $_; $name => sub { my ($original, $impl, @args) = @_;
        my $result = $impl->$original(@args);
        $calls{$name}++;
        VirtTest::CApi::set_error(0);
        eval { die "spoiled\n" };
        $! = 5;
        return $result } } map { ("${_}_handle", "${_}_timeout") } qw(add update remove));
    my %call = (
        'a call' => [sub { $c->get_domain_by_name('nobody') }, qr/Domain not found/, 'update_handle'],
        # The socket is given up after the daemon has refused, so after the error.
        'opening' => [sub { $t->connect($daemon->uri =~ s{/default}{/nowhere.xml}r) }, qr/nowhere/, 'remove_handle'],
    );
    for my $what (sort keys %call) {
        my ($code, $expected, $method) = @{ $call{$what} };
        %calls = ();
        my $error = exception_of { $code->() };
        cmp_ok $calls{$method}, '>', 0, "$what: $method was called";
        isa_ok $error, 'Sys::Virt::Error';
        like eval { $error->message }, $expected, 'its message';
    }
}, limit => 30;

case remote => 43, nothing_left => 'after closing a connection its sockets and watches are gone', sub {
    my ($t) = @_;
    my $daemon = daemon_of($t);
    $t->connect($daemon->uri)->num_of_domains;
    $t->until(sub { Sys::Virt::Event::is_idle() });
    my @before = open_fds();
    for (1 .. 3) {
        my $c = $t->connect($daemon->uri);
        eval { $c->set_keep_alive(5, 5) };
        events_arrive($t, $c, 'events arrive');
        cmp_ok scalar(my @now = open_fds()), '>', scalar @before, 'there is a socket';
        ok !Sys::Virt::Event::is_idle(), 'the loop is not idle';
    }
    $t->until(sub { Sys::Virt::Event::is_idle() });
    is_deeply [Sys::Virt::Event::watches()], [], 'no watch is left';
    ok Sys::Virt::Event::is_idle(), 'the loop is idle';
    is_deeply [open_fds()], \@before, 'no socket is left';
}, limit => 30;

case remote => 43, daemon_goes => 'the close callback hears of a daemon that ends as an end of file', sub {
    my ($t) = @_;
    my $daemon = daemon_of($t);
    my $c = $t->connect($daemon->uri);
    my @reasons;
    $c->register_close_callback(sub { push @reasons, $_[1] });
    $daemon->signal('TERM');
    $t->until(sub { @reasons });
    is_deeply \@reasons, [Sys::Virt::CLOSE_REASON_EOF()], 'READABLE and HANGUP came in one call';
    $c->unregister_close_callback;
    undef $c;
    local $SIG{PIPE} = 'IGNORE';
    $t->until(sub { Sys::Virt::Event::is_idle() });
    ok Sys::Virt::Event::is_idle(), 'the loop is idle';
}, limit => 30;

case remote => 44, remote_connection_left => 'a process that ends with a connection to a daemon ends quietly', sub {
    my ($t) = @_;
    if (my $why = VirtTest::Daemon->why_not) { $t->skip($why) }
    $t->skip('Sys::Virt is not installed (Debian: libsys-virt-perl)') if !Sys::Virt->can('new');
    my $daemon = VirtTest::Daemon->start;
    VirtTest::Contract::Life::connection_ends_quietly($t, $daemon->uri);
}, limit => 30;

1;
