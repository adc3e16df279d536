package Test::Sys::Virt::EventImpl::Cases::Remote;

# Sys::Virt on the loop, with a private libvirtd.

use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

use Test::More;
use Test::Sys::Virt::EventImpl::Case;
use Test::Sys::Virt::EventImpl::Daemon;
use Test::Sys::Virt::EventImpl::Util;
use Time::HiRes ();

suite remote => 'Sys::Virt and a private libvirtd', needs => [qw(sys_virt daemon)];

sub daemon_of {
    my ($t) = @_;
    $t->connect;
    return Test::Sys::Virt::EventImpl::Daemon->start;
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

case 0 => 'methods_die', remote => {
    rule   => 'a connection works on when methods die in the midst of a call',
    source => '',
    harm   => '',
    advice => '',
}, sub {
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
}, needs => ['object'], limit => 30;

case 0 => 'signal', remote => {
    rule   => 'a signal handler that dies in a slow call leaves the connection usable',
    source => '',
    harm   => '',
    advice => '',
}, sub {
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

case 0 => 'error_survives', remote => {
    rule   => 'the error of a failing call is what libvirt said, whatever methods do',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my $daemon = daemon_of($t);
    my $c = $t->connect($daemon->uri);
    my %calls;
    $t->override(map { my $name = $_; $name => sub { my ($original, $impl, @args) = @_;
        my $result = $impl->$original(@args);
        $calls{$name}++;
        Test::Sys::Virt::EventImpl::CApi::set_error(0);
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
}, needs => ['object'], limit => 30;

case 0 => 'nothing_left', remote => {
    rule   => 'after closing a connection its sockets and watches are gone',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my $daemon = daemon_of($t);
    my $watches = $t->count_watches;
    $t->connect($daemon->uri)->num_of_domains;
    $t->until(sub { !$watches->() });
    $t->passes(3);
    my @before = open_fds();
    for (1 .. 3) {
        my $c = $t->connect($daemon->uri);
        eval { $c->set_keep_alive(5, 5) };
        events_arrive($t, $c, 'events arrive');
        cmp_ok scalar(my @now = open_fds()), '>', scalar @before, 'there is a socket';
        cmp_ok $watches->(), '>', 0, 'there are watches';
    }
    $t->until(sub { !$watches->() });
    is $watches->(), 0, 'no watch is left';
    $t->passes(3);
    is_deeply [open_fds()], \@before, 'no socket is left';
}, needs => ['object'], limit => 30;

case 0 => 'daemon_goes', remote => {
    rule   => 'the close callback hears of a daemon that ends as an end of file',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my $daemon = daemon_of($t);
    my $watches = $t->count_watches;
    my $c = $t->connect($daemon->uri);
    my @reasons;
    $c->register_close_callback(sub { push @reasons, $_[1] });
    $daemon->signal('TERM');
    $t->until(sub { @reasons });
    is_deeply \@reasons, [Sys::Virt::CLOSE_REASON_EOF()], 'READABLE and HANGUP came in one call';
    $c->unregister_close_callback;
    undef $c;
    local $SIG{PIPE} = 'IGNORE';
    $t->until(sub { !$watches->() });
    is $watches->(), 0, 'no watch is left';
}, needs => ['object'], limit => 30;

case 0 => 'remote_connection_left', remote => {
    rule   => 'a process that ends with a connection to a daemon ends quietly',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my $daemon = Test::Sys::Virt::EventImpl::Daemon->start;
    Test::Sys::Virt::EventImpl::Cases::Life::connection_ends_quietly($t, $daemon->uri);
}, limit => 30;

1;
