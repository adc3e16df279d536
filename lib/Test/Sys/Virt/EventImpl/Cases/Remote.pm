package Test::Sys::Virt::EventImpl::Cases::Remote;

# Sys::Virt on the loop, with a private libvirtd.

use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

use POSIX ();
use Test::More;
use Test::Sys::Virt::EventImpl::CApi;
use Test::Sys::Virt::EventImpl::Case;
use Test::Sys::Virt::EventImpl::Cases::Life ();
use Test::Sys::Virt::EventImpl::Daemon;
use Test::Sys::Virt::EventImpl::Util;
use Time::HiRes ();

suite remote => 'Sys::Virt and a private libvirtd', needs => [qw(sys_virt daemon)];

# What is broken here hangs, mostly. Most of the time of a case goes into starting the daemon.
use constant LIMIT => 15;

sub daemon_of {
    my ($t) = @_;
    $t->connect;
    return Test::Sys::Virt::EventImpl::Daemon->start;
}

# Notes the lifecycle events of the connection. Returns the list, and the number of the callback.
sub lifecycle_of {
    my ($c) = @_;
    my @seen;
    my $id = $c->domain_event_register_any(undef, Sys::Virt::Domain::EVENT_ID_LIFECYCLE(), sub { push @seen, $_[2] });
    return (\@seen, $id);
}

sub suspend_and_resume {
    my ($c) = @_;
    my ($domain) = $c->list_all_domains;
    $domain->suspend;
    $domain->resume;
    return;
}

# Whose calls cause events: those of a connection's own calls are often read by the call itself, without the loop.
# Its handler keeps it open to the end, as closing is the affair of other cases.
sub other_client {
    my ($t, $daemon) = @_;
    my $c = $t->connect($daemon->uri);
    lifecycle_of($c);
    return $c;
}

# The lifecycle events of a suspended and resumed domain arrive.
sub events_arrive {
    my ($t, $c, $what, $other) = @_;
    my ($seen, $id) = lifecycle_of($c);
    suspend_and_resume($other || $c);
    $t->until(sub { @$seen >= 2 });
    is_deeply $seen, [3, 4], $what;
    $c->domain_event_deregister_any($id);
    return;
}

sub sockets { return grep { (readlink("/proc/self/fd/$_") // '') =~ /^socket:/ } open_fds() }

case 150 => 'methods_die', remote => {
    rule   => 'a connection works on when methods of the loop die in the midst of a call',
    source => 'src/rpc/virnetclient.c, virNetClientIO, which updates its watch with the lock of the connection held',
    harm   => "An exception that leaves the loop's method would jump over the C code of libvirt, whose locks stay "
        . 'locked: the next call on the connection hangs for ever.',
    advice => "nothing to do in the loop: Sys::Virt::Event stops the exception; Sys::Virt's own module does not",
}, sub {
    my ($t) = @_;
    my $daemon = daemon_of($t);
    my $c = $t->connect($daemon->uri);
    my $other = other_client($t, $daemon);
    my $broken;
    $t->override(map { my $name = $_; $name => sub {
        my ($original, $impl, @args) = @_;
        my @result = $impl->$original(@args);
        die "broken $name\n" if $broken;
        return $result[0];
    } } METHODS);
    $broken = 1;
    ok length $c->num_of_domains, 'a call succeeds';
    my @warnings = $t->warnings;
    cmp_ok scalar @warnings, '>', 0, 'with warnings';
    is grep({ !/broken update/ } @warnings), 0, '... that say why';
    ok length $c->num_of_domains, 'so does the next';
    $broken = 0;
    $t->warnings;
    events_arrive($t, $c, 'events arrive', $other);
}, needs => ['object'], limit => LIMIT;

case 151 => 'signal', remote => {
    rule   => 'a signal handler that dies in a slow call leaves the connection usable',
    source => 'L<Sys::Virt::Event/SIGNALS>; src/rpc/virnetclient.c, virNetClientIO',
    harm   => 'The usual way to limit the time of a call is an alarm whose handler dies. perl runs the handler '
        . "inside the loop's method, which libvirt has called with its locks held: the next call hangs for "
        . 'ever.',
    advice => "nothing to do in the loop: Sys::Virt::Event puts handlers off; Sys::Virt's own module does not",
}, sub {
    my ($t) = @_;
    my $daemon = daemon_of($t);
    my $c = $t->connect($daemon->uri);
    $daemon->signal('STOP');
    my $pid = $daemon->pid;
    defined(my $helper = fork) or die "Cannot fork: $!";
    if (!$helper) {
        pause(0.2);
        kill CONT => $pid;
        POSIX::_exit(0);
    }
    my $lived = 0;
    my $error = exception_of {
        local $SIG{ALRM} = sub { die "alarm\n" };
        Time::HiRes::ualarm(50_000);
        $c->num_of_domains;
        $lived = 1;
    };
    waitpid $helper, 0;
    is $error, "alarm\n", 'the caller gets the exception';
    is $lived, 0, '... from the statement that was interrupted';
    ok length $c->num_of_domains, 'the next call works';
    events_arrive($t, $c, 'events arrive');
}, limit => LIMIT;

case 152 => 'error_survives', remote => {
    rule   => 'the error of a failing call is what libvirt said, whatever the methods of the loop do',
    source => 'F<libvirt/virterror.h>, virGetLastError: each call of libvirt sets it anew',
    harm   => 'libvirt calls the loop after a call has failed. Where its methods use libvirt, or die inside an '
        . 'eval, the program is told of no error at all, or of the wrong one.',
    advice => "nothing to do in the loop: Sys::Virt::Event keeps the error; Sys::Virt's own module does not",
}, sub {
    my ($t) = @_;
    my $daemon = daemon_of($t);
    my $c = $t->connect($daemon->uri);
    my %calls;
    $t->override(map { my $name = $_; $name => sub {
        my ($original, $impl, @args) = @_;
        my $result = $impl->$original(@args);
        $calls{$name}++;
        Test::Sys::Virt::EventImpl::CApi::set_error(0);
        eval { die "spoiled\n" };
        $! = 5;
        return $result;
    } } METHODS);
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
}, needs => ['object'], limit => LIMIT;

case 153 => 'nothing_left', remote => {
    rule   => 'after closing a connection its sockets and watches are gone',
    source => 'src/rpc/virnetsocket.c, virNetSocketEventFree: the free function of the watch is what closes the '
        . 'socket',
    harm   => 'A program that connects now and then has one more socket open each time. The server counts them all '
        . 'as its clients, until it accepts no more.',
    advice => "keep no copy of the fd after remove_handle, and do free what was removed (on Sys::Virt's own module)",
}, sub {
    my ($t) = @_;
    my $daemon  = daemon_of($t);
    my $watches = $t->{make} ? $t->count_watches : undef;
    my @before  = sockets();
    for (1 .. 3) {
        my $c = $t->connect($daemon->uri);
        eval { $c->set_keep_alive(5, 5) };
        events_arrive($t, $c, 'events arrive');
        cmp_ok scalar(my @now = sockets()), '>', scalar @before, 'there is a socket';
        cmp_ok $watches->(), '>', 0, 'there are watches' if $watches;
    }
    $t->until(sub { @before == sockets() });
    is_deeply [sockets()], \@before, 'no socket is left';
    is $watches->(), 0, 'no watch is left' if $watches;
}, limit => LIMIT;

case 154 => 'daemon_goes', remote => {
    rule   => 'the close callback hears of a daemon that ends as an end of file',
    source => 'src/rpc/virnetclient.c, virNetClientIncomingEvent, which needs HANGUP in the same call as READABLE',
    harm   => 'Programs connect anew when the daemon was restarted. Where the loop tells no HANGUP they hear of an '
        . 'error in place of the end, or of nothing until the next call fails.',
    advice => 'report HANGUP with READABLE, in one call, whether it was asked for or not',
}, sub {
    my ($t) = @_;
    my $daemon = daemon_of($t);
    my $c = $t->connect($daemon->uri);
    my @reasons;
    $c->register_close_callback(sub { push @reasons, $_[1] });
    $daemon->signal('TERM');
    $t->until(sub { @reasons });
    is_deeply \@reasons, [Sys::Virt::CLOSE_REASON_EOF()], 'READABLE and HANGUP came in one call';
    local $SIG{PIPE} = 'IGNORE';
    $c->unregister_close_callback;
    undef $c;
}, limit => LIMIT;

case 155 => 'opens_in_child', remote => {
    rule   => 'a child can open a connection in the loop that its parent has registered',
    source => 'src/rpc/virnetclient.c, virNetClientRegisterAsyncIO, which registers the socket when it is opened',
    harm   => 'Daemons fork when everything is set up. Where the loop works in the process that registered it only, '
        . "the daemon's connections get no event, and the server drops them as dead.",
    advice => 'make anew in a child what the kernel keeps for the loop (epoll, kqueue); do not look at the pid',
}, sub {
    my ($t) = @_;
    my $daemon = daemon_of($t);
    my $hears = sub {
        my ($seen) = lifecycle_of($t->connect($daemon->uri));
        suspend_and_resume(other_client($t, $daemon));
        $t->until(sub { @$seen >= 2 });
        return "@$seen";
    };
    my $child = $t->child(sub { print STDERR $hears->(); POSIX::_exit(0) });
    is_deeply $child, { exit => 0, signal => 0, stderr => '3 4' }, 'the child has got its events';
    is $hears->(), '3 4', 'so has the parent';
}, limit => LIMIT;

case 156 => 'connection_survives_child', remote => {
    rule   => 'a child that ends takes neither the connection of its parent along nor an event',
    source => 'L<Sys::Virt::Event/FORK>: both processes have the same socket',
    harm   => 'A program that forks helpers loses its connection at the end of the first one. Its next call dies of '
        . 'SIGPIPE, without a word.',
    advice => 'do nothing with fds when the loop is destroyed: no read, no shutdown, no EPOLL_CTL_DEL',
}, sub {
    my ($t) = @_;
    my $daemon = daemon_of($t);
    my $c = $t->connect($daemon->uri);
    my ($seen) = lifecycle_of($c);
    my $other = other_client($t, $daemon);
    my %end = (exit => sub { exit 0 }, _exit => sub { POSIX::_exit(0) });
    for my $how (sort keys %end) {
        @$seen = ();
        suspend_and_resume($other);
        is_deeply $t->child($end{$how}), { exit => 0, signal => 0, stderr => '' }, "a child ended by $how";
        suspend_and_resume($other);
        $t->until(sub { @$seen >= 4 });
        is_deeply $seen, [3, 4, 3, 4], '... and the events from before and after it arrive';
    }
}, limit => LIMIT;

case 157 => 'remote_connection_left', remote => {
    rule   => 'a process that ends with a connection to a daemon ends quietly, whoever holds it',
    source => 'L<perlobj/Global Destruction>',
    harm   => 'Closing a connection takes a call to the server, and libvirt uses the loop for that. Most programs '
        . 'leave it to their end, where the loop may be gone: they would hang, or crash when their work is '
        . 'done.',
    advice => 'do nothing when the loop is destroyed, or nothing that needs other objects',
}, sub {
    my ($t) = @_;
    my $daemon = Test::Sys::Virt::EventImpl::Daemon->start;
    Test::Sys::Virt::EventImpl::Cases::Life::connection_ends_quietly($t, $daemon->uri);
}, limit => LIMIT;

1;
