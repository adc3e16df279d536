# Connections to a libvirtd, in Sys::Virt::Event::Poll.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";

use SecondClient qw(clients_of);
use Test::More;
use Time::HiRes qw(sleep time);
use VirtTest qw(watchdog exception_of open_fds patience);
use Test::Sys::Virt::EventImpl::Daemon;

BEGIN {
    plan skip_all => 'Sys::Virt is not installed' if !eval { require Sys::Virt };
    if (my $why = Test::Sys::Virt::EventImpl::Daemon->why_not) { plan skip_all => $why }
}

use Sys::Virt::Event qw(:all);
use Sys::Virt::Event::Poll;

use constant {
    # No wait comes to that: it fails before.
    LONG             => 20,
    REASON_EOF       => 1,
    REASON_KEEPALIVE => 2,
};

# The lifecycle event that each method causes.
my %EVENT = (suspend => 3, resume => 4, destroy => 5, create => 2);
my @METHODS = qw(suspend resume destroy create);

watchdog(100);
# The next call on a connection that the daemon has closed would end this process.
$SIG{PIPE} = 'IGNORE';

# It gives up a client that does not answer for 3 s.
my $daemon = Test::Sys::Virt::EventImpl::Daemon->start(conf => { keepalive_interval => 1, keepalive_count => 2, max_clients => 200 });
my $loop = Sys::Virt::Event::Poll->new;
is $loop->register, $loop, 'register';

sub connection { return Sys::Virt->new(uri => $daemon->uri) }
sub sockets    { return scalar grep { (readlink("/proc/self/fd/$_") || '') =~ /^socket:/ } open_fds() }

sub run_until {
    my ($code) = @_;
    return $loop->run_until($code, patience(LONG));
}

sub watch_lifecycle {
    my ($conn, $code) = @_;
    return $conn->domain_event_register_any(undef, Sys::Virt::Domain::EVENT_ID_LIFECYCLE(), protect($code));
}

# The daemon takes note of a client that has gone a little later.
sub wait_for_clients {
    my ($count) = @_;
    my $end = time + patience(5);
    sleep 0.005 while clients_of($daemon) != $count && time < $end;
    return clients_of($daemon);
}

my $sockets = sockets();
sub is_all_released {
    my ($clients) = @_;
    is scalar(watches()), 0, 'nothing is registered';
    is sockets(), $sockets, 'no socket is left';
    is wait_for_clients($clients), $clients, 'the daemon has lost its client';
}

subtest 'open and close' => sub {
    my $conn = connection();
    is sockets(), $sockets + 1, 'a socket';
    is clients_of($daemon), 1, 'a client';
    is_deeply [map { $_->{kind} } watches()], ['handle'], 'a watch';
    ok !is_idle(), 'not idle';
    ok !drain(0.05), 'and not to be drained';
    is $conn->num_of_domains, 1, 'a call';
    undef $conn;
    ok is_idle(), 'idle when the connection is closed';
    is_all_released(0);
};

subtest 'many in a row' => sub {
    my @fds = open_fds();
    for (1 .. 30) {
        my $conn = connection();
        my $id   = watch_lifecycle($conn, sub { });
        $conn->domain_event_deregister_any($id);
    }
    ok drain(LONG), 'idle';
    is_all_released(0);
    cmp_ok scalar(my @now = open_fds()), '<=', @fds + 1, 'no other fd either, but for the wake watch';
};

subtest 'events of another client' => sub {
    my $other = SecondClient->start($daemon->uri);
    my $conn  = connection();
    my (@seen, @names);
    my $id = watch_lifecycle($conn, sub { my (undef, $dom, $event) = @_; push @seen, $event; push @names, $dom->get_name });
    for my $method (@METHODS) {
        my $want = @seen + 1;
        ok $other->does($method), "$method by another client";
        ok run_until(sub { @seen >= $want }), "$method: an event";
        is $seen[-1], $EVENT{$method}, "$method: the right one";
    }
    is_deeply \@names, [('test') x 4], 'calls in the handler';

    $other->does($_) for @METHODS;
    ok run_until(sub { @seen >= 8 }), 'four in one go';
    is_deeply [@seen[4 .. 7]], [@EVENT{@METHODS}], 'in order';

    $conn->domain_event_deregister_any($id);
    $other->does($_) for @METHODS;
    $loop->run_for(0.1);
    is @seen, 8, 'none when the handler is gone';
    undef $conn;
    ok drain(LONG), 'idle';
    is_all_released(1);
};
is wait_for_clients(0), 0, 'the other client has gone';

subtest 'events of own calls' => sub {
    my $conn = connection();
    my @seen;
    my $id  = watch_lifecycle($conn, sub { push @seen, $_[2] });
    my $dom = $conn->get_domain_by_name('test');
    $dom->$_ for @METHODS;
    is_deeply \@seen, [], 'none inside the calls';
    ok run_until(sub { @seen >= 4 }), 'in the loop';
    is_deeply \@seen, [@EVENT{@METHODS}], 'all, in order';

    # Calls of libvirt inside a handler; the handler of another connection gives its part.
    my @second;
    my $conn2 = connection();
    my $id2   = watch_lifecycle($conn2, sub { push @second, $_[2]; $dom->resume if $_[2] == $EVENT{suspend} });
    $dom->suspend;
    ok run_until(sub { @second >= 2 && @seen >= 6 }), 'a handler that causes an event';
    is_deeply [\@second, [@seen[4 .. $#seen]]], [([@EVENT{qw(suspend resume)}]) x 2], 'both connections see both';

    $conn->domain_event_deregister_any($id);
    my @third;
    $id = watch_lifecycle($conn, sub { push @third, $_[2]; die "handler\n" if @third == 1 });
    $dom->destroy;
    $dom->create;
    is exception_of { run_until(sub { @third }) }, "handler\n", 'an exception comes out of the loop';
    ok run_until(sub { @third >= 2 && @second >= 4 }), 'and takes no event along';
    is_deeply [\@third, [@second[2, 3]]], [([@EVENT{qw(destroy create)}]) x 2], 'on either connection';
    is $conn->num_of_domains, 1, 'the connection works';

    $conn->domain_event_deregister_any($id);
    $conn2->domain_event_deregister_any($id2);
    undef $_ for $dom, $conn, $conn2;
    ok drain(LONG), 'idle';
    is_all_released(0);
};

subtest 'what a call costs' => sub {
    my $conn = connection();
    my $log  = '';
    {
        no warnings 'redefine';
        my %method = map { $_ => Sys::Virt::Event::Poll->can($_) } qw(update_handle update_timeout);
        local *Sys::Virt::Event::Poll::update_handle  = sub { $log .= "h$_[2] "; goto &{ $method{update_handle} } };
        local *Sys::Virt::Event::Poll::update_timeout = sub { $log .= 't ';      goto &{ $method{update_timeout} } };
        $conn->num_of_domains;
        is $log, 'h0 h1 ', 'two updates of the handle';
        $conn->set_keep_alive(100, 3);
        $log = '';
        $conn->num_of_domains;
        like $log, qr/^h0 (?:t )+h1 $/, 'with keepalive: and some of the timer';
    }
    is_deeply [map { $_->{kind} } watches()], [qw(handle timeout)], 'a handle and a timer';
    my $before = (watches())[0]{dispatched};
    $conn->num_of_domains for 1 .. 10;
    is((watches())[0]{dispatched}, $before, 'no dispatch in a call');
    undef $conn;
    ok drain(LONG), 'idle';
    is_all_released(0);
};

# The side that hears nothing asks first; so there is a daemon that asks, and one that is asked.
subtest 'keepalive while nothing happens' => sub {
    my $quiet  = Test::Sys::Virt::EventImpl::Daemon->start(conf => { keepalive_interval => 1000 });
    my $asking = Sys::Virt->new(uri => $quiet->uri);
    my $asked  = connection();
    my @closed;
    $asking->register_close_callback(sub { push @closed, "asking $_[1]" });
    $asked->register_close_callback(sub { push @closed, "asked $_[1]" });
    is $asking->set_keep_alive(1, 1) || 0, 0, 'keepalive on';
    my ($asking_handle, $asked_handle, $timer) = watches();
    # The daemon would give us up after 3 s, we would give it up after 2.
    $loop->run_for(4.5);
    is_deeply \@closed, [], 'no connection is closed';
    for my $conn ($asking, $asked) {
        ok $conn->is_alive, 'alive';
        is $conn->num_of_domains, 1, 'and a call is answered';
    }
    my %dispatched = map { $_->{id} => $_->{dispatched} } watches();
    cmp_ok $dispatched{ $timer->{id} }, '>=', 2, 'our side has asked';
    cmp_ok $dispatched{ $asking_handle->{id} }, '>=', 2, 'and was answered';
    cmp_ok $dispatched{ $asked_handle->{id} }, '>=', 2, 'the daemon has asked';

    # A daemon that does not answer any more.
    $quiet->signal('STOP');
    my $from = time;
    ok run_until(sub { @closed }), 'a silent daemon: closed';
    cmp_ok time - $from, '<', patience(6), 'in time';
    is_deeply \@closed, ['asking ' . REASON_KEEPALIVE], 'for that reason';
    ok !$asking->is_alive, 'not alive';
    is $asked->num_of_domains, 1, 'the other one works';
    $quiet->signal('CONT');
    $_->unregister_close_callback for $asking, $asked;
    undef $_ for $asking, $asked, $quiet;
    ok drain(LONG), 'idle';
    is_all_released(0);
};

subtest 'thirty at once' => sub {
    my $other = SecondClient->start($daemon->uri);
    my @conns = map { connection() } 1 .. 30;
    my %seen;
    my @ids = map { my $n = $_; watch_lifecycle($conns[$n], sub { push @{ $seen{$n} }, $_[2] }) } 0 .. $#conns;
    is scalar(watches()), 60, 'a handle and a timer each';
    is sockets(), $sockets + 30, 'a socket each';
    $other->does($_) for @METHODS;
    ok run_until(sub { 120 == grep { defined } map { @$_ } values %seen }), 'events on all';
    is_deeply \%seen, { map { $_ => [@EVENT{@METHODS}] } 0 .. 29 }, 'the right ones, in order, on each';
    is_deeply [map { $_->num_of_domains } @conns], [(1) x 30], 'a call on each';

    # Half of them go while the others have events to take.
    $conns[$_]->domain_event_deregister_any($ids[$_]) for 0 .. 14;
    undef $conns[$_] for 0 .. 14;
    $other->does('suspend');
    ok run_until(sub { 15 == grep { @$_ == 5 } values %seen }), 'half are closed, the others go on';
    is_deeply [map { scalar @{ $seen{$_} } } 0 .. 14], [(4) x 15], 'nothing for those that are closed';
    $other->does('resume');
    $conns[$_]->domain_event_deregister_any($ids[$_]) for 15 .. 29;
    @conns = ();
    ok drain(LONG), 'idle';
    is_all_released(1);
};
is wait_for_clients(0), 0, 'the other client has gone';

subtest 'drain with events to come' => sub {
    my $conn  = connection();
    my @seen;
    my ($dom) = $conn->list_domains;
    my $id    = watch_lifecycle($conn, sub { push @seen, $_[2] });
    $dom->suspend;
    $dom->resume;
    ok !drain(0.3), 'false: the connection is open';
    is_deeply \@seen, [@EVENT{qw(suspend resume)}], 'but its events have come';
    $conn->domain_event_deregister_any($id);
    undef $_ for $dom, $conn;
    ok drain(LONG), 'true when it is closed';
    is_all_released(0);
};

subtest 'another loop in its place' => sub {
    my $conn   = connection();
    my $second = Sys::Virt::Event::Poll->new;
    like exception_of { $second->register }, qr/^Cannot register: .*Sys::Virt::Event::Poll, still has 1 handle/,
        'not while a connection is open';
    is $conn->num_of_domains, 1, 'which works';
    undef $conn;
    ok drain(LONG), 'idle';
    is $second->register, $second, 'then it is taken';
    my $first = $loop;
    $loop = $second;

    $conn = connection();
    my @seen;
    my $id = watch_lifecycle($conn, sub { push @seen, $_[2] });
    my ($dom) = $conn->list_domains;
    $dom->$_ for @METHODS;
    ok !$first->run_once(0), 'the first loop has nothing to do';
    ok run_until(sub { @seen >= 4 }), 'events in the second';
    is_deeply \@seen, [@EVENT{@METHODS}], 'all, in order';
    $conn->domain_event_deregister_any($id);
    undef $_ for $dom, $conn;
    ok drain(LONG), 'idle';
    is_all_released(0);
};

# The last one, for it ends the daemon.
subtest 'the daemon ends' => sub {
    my $conn = connection();
    my (@closed, @seen);
    $conn->register_close_callback(protect(sub { push @closed, $_[1]; die "closed\n" }));
    my $id = watch_lifecycle($conn, sub { push @seen, $_[2] });
    is $conn->num_of_domains, 1, 'a call';
    $daemon->signal('TERM');
    is exception_of { run_until(sub { @closed }) }, "closed\n", "the close handler's exception comes out of the loop";
    is_deeply \@closed, [REASON_EOF], 'the reason is the end of the file';
    ok !$conn->is_alive, 'not alive';
    isnt exception_of { $conn->num_of_domains }, undef, 'a call is an exception';
    $loop->run_for(0.1);
    is @closed, 1, 'told once';
    $conn->unregister_close_callback;
    eval { $conn->domain_event_deregister_any($id) };
    undef $conn;
    ok drain(LONG), 'idle';
    is_all_released(0);

    $daemon->restart;
    $conn = connection();
    $id = watch_lifecycle($conn, sub { push @seen, $_[2] });
    my ($dom) = $conn->list_domains;
    $dom->suspend;
    ok run_until(sub { @seen }), 'a new daemon, a new connection: an event';
    $conn->domain_event_deregister_any($id);
    undef $_ for $dom, $conn;
    ok drain(LONG), 'idle';
    is_all_released(0);
};

done_testing;
