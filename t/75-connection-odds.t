# Sys::Virt::Event::Connection where things are unusual: servers that hang or refuse, odd processes, threads, handlers
# that do what they should not.

use strict;
use warnings;

use Config;
use FindBin;
use lib "$FindBin::Bin/lib";

use POSIX ();
use Test::More;
use Test::Sys::Virt::EventImpl::Daemon;
use Time::HiRes ();
use VirtTest qw(:DEFAULT patience);
use VirtTest::Child;

BEGIN {
    plan skip_all => 'Sys::Virt is not installed' if !eval { require Sys::Virt };
    if (my $why = Test::Sys::Virt::EventImpl::Daemon->why_not) { plan skip_all => $why }
}

use Sys::Virt::Event ();
use Sys::Virt::Event::Connection;
use Sys::Virt::Event::Poll;
use Sys::Virt::Event::Record;

watchdog(180);

use constant LONG => 20;
my $TEST   = 'test:///default';
my %QUICK  = (initial => 0.02, max => 0.1);
my $daemon = Test::Sys::Virt::EventImpl::Daemon->start;
my $uri    = $daemon->uri;

sub in_loop {
    my ($code) = @_;
    return in_child {
        my @log;
        $code->(Sys::Virt::Event::Poll->new->register, \@log);
        return @log;
    };
}

sub connection { my ($uri, @options) = @_; return Sys::Virt::Event::Connection->new(uri => $uri, reconnect => \%QUICK, @options) }

sub until_so { my ($loop, $code) = @_; return $loop->run_until($code, patience(LONG)) }

sub left { return join ' ', map { "$_->{kind} $_->{id}" } Sys::Virt::Event::watches() }

sub domain { my ($conn) = @_; return $conn->virt->get_domain_by_name('test') }

# A server that hangs, and one that never comes

for my $end ('close', 'undef', 'off') {
    my @log = in_loop(sub {
        my ($loop, $log) = @_;
        my $hung = Test::Sys::Virt::EventImpl::Daemon->start;
        my $conn = connection($hung->uri);
        $conn->on('*' => sub { });
        my $id = $conn->on('domain/reboot' => sub { });
        $conn->open;
        $hung->signal('STOP');
        if    ($end eq 'close') { $conn->close }
        elsif ($end eq 'undef') { undef $conn }
        else                    { $conn->off($id); $loop->run_for(0.05); $conn->close }
        push @$log, left(), Sys::Virt::Event::is_idle();
        $hung->signal('CONT');
    });
    is_deeply \@log, ['', 1], "$end does not wait for a server that hangs";
}

is_deeply [in_loop(sub {
    my ($loop, $log) = @_;
    my $hung = Test::Sys::Virt::EventImpl::Daemon->start;
    my %calls = (
        on       => sub { $_[0]->on('*' => sub { }) },
        snapshot => sub { $_[0]->snapshot },
        wait     => sub { $_[0]->wait_state('test', 'paused', timeout => 0.1) },
        open     => sub { $_[0]->close; $_[0]->open },
    );
    for my $call (sort keys %calls) {
        my $conn = connection($hung->uri, connect_timeout => 0.5, keepalive => 0)->open;
        $hung->signal('STOP');
        no warnings 'redefine';
        # The time between the process that tries and the connection.
        local *Sys::Virt::Event::Connection::_wants_probe = sub { 0 };
        my $error = exception_of { $calls{$call}->($conn) };
        push @$log, ($error // 'returns') =~ s/ at \Q$0\E line \d+\.\n//r =~ s/test\+\S+/URI/r;
        $hung->signal('CONT');
        $loop->run_for(0.05);
        undef $conn;
    }
    push @$log, left();
})], [
    'returns', 'Cannot open URI no answer within 0.5 s', 'Cannot take a snapshot of URI no answer within 0.5 s', 'returns', '',
], 'calls to a server that hangs end';

is_deeply [in_loop(sub {
    my ($loop, $log) = @_;
    my $conn = connection('test+unix:///default?socket=/nonexistent');
    my $it = $conn->events('*');
    $it->next(sub { push @$log, 'end' });
    my $retries = 0;
    $conn->on('connection/retry' => sub { $retries++ });
    push @$log, (exception_of { $conn->open }) =~ /\ACannot open .* at \Q$0\E line / ? 'refused' : 'no exception';
    push @$log, until_so($loop, sub { $retries == 2 });
    my $once = Sys::Virt::Event::Connection->new(uri => 'test+unix:///default?socket=/nonexistent', reconnect => 0);
    my $last = $once->events('*');
    $last->next(sub { push @$log, 'end of the other' });
    exception_of { $once->open };
    push @$log, (exception_of { $once->wait_state('test', 'running') }) =~ /Cannot wait for a state: Failed to connect/ ? 'lost' : 'other';
})], ['refused', 1, 'end of the other', 'lost', 'end'], 'open that fails: attempts go on, or it is the end';

is_deeply [in_loop(sub {
    my ($loop, $log) = @_;
    my $conn = connection($uri);
    my $opened = 0;
    $conn->on('connection/opened' => sub { $opened++ });
    {
        no warnings 'redefine';
        local *Sys::Virt::Event::Connection::Probe::fork_without_handlers = sub { $! = POSIX::EAGAIN(); return };
        push @$log, exception_of { $conn->open } =~ s/ at \Q$0\E line \d+\.\n\z//r =~ s/test\+\S+:/URI:/r;
    }
    push @$log, until_so($loop, sub { $opened });
    $conn->close;

    # Whatever it throws, it comes to the caller, and is seen by $SIG{__DIE__} once.
    my $hung = Test::Sys::Virt::EventImpl::Daemon->start;
    $hung->signal('STOP');
    $conn = connection($hung->uri);
    my ($error, $seen) = (bless({}, 'Thing'), 0);
    {
        local $SIG{ALRM} = sub { die $error };
        local $SIG{__DIE__} = sub { $seen++ };
        Time::HiRes::alarm(0.2);
        push @$log, eval { $conn->open; 1 } ? 'open' : $@ == $error ? 'its own' : $@;
    }
    $hung->signal('CONT');
    push @$log, $seen, until_so($loop, sub { $conn->virt });
    push @$log, (waitpid -1, POSIX::WNOHANG()) < 1 ? 'no process is left' : 'a process is left';

    my $once = Sys::Virt::Event::Connection->new(uri => $hung->uri, reconnect => 0);
    my $it = $once->events('*');
    $it->next(sub { push @$log, 'end' });
    $hung->signal('STOP');
    local $SIG{ALRM} = sub { die "it is time\n" };
    Time::HiRes::alarm(0.2);
    push @$log, exception_of { $once->open };
    $hung->signal('CONT');
})], [
    'Cannot open URI: Cannot fork: ' . do { local $! = POSIX::EAGAIN(); "$!" }, 1, 'its own', 1, 1, 'no process is left', 'end', "it is time\n",
], 'open without a process, or with a signal handler that dies: attempts go on';

is_deeply [in_loop(sub {
    my ($loop, $log) = @_;
    my $hung = Test::Sys::Virt::EventImpl::Daemon->start;
    $hung->signal('STOP');
    my $conn = Sys::Virt::Event::Connection->new(uri => $hung->uri, connect_timeout => 0.2);
    my $earlier = 0;
    no warnings 'redefine';
    local *Time::HiRes::time = sub { CORE::time - 3600 * $earlier++ };
    push @$log, (exception_of { $conn->open }) =~ /(no answer within .* s)/;
    $hung->signal('CONT');
})], ['no answer within 0.2 s'], 'the clock can be set meanwhile';

# Refusals. Each is an answer that a server or driver could give.

sub refuses {
    my ($method, $is_refused, $code) = @_;
    my $original = Sys::Virt->can($method);
    no warnings qw(redefine prototype);
    no strict 'refs';
    *{"Sys::Virt::$method"} = sub {
        die bless { code => $code, domain => 0, level => 2, message => 'denied' }, 'Sys::Virt::Error' if $is_refused->(@_);
        goto &$original;
    };
    return;
}

is_deeply [in_loop(sub {
    my ($loop, $log) = @_;
    my %asked;
    refuses(domain_event_register_any => sub { $asked{ $_[2] }++; $_[2] == Sys::Virt::Domain::EVENT_ID_BLOCK_JOB_2() },
        Sys::Virt::Error::ERR_NO_SUPPORT());
    my $conn = connection($TEST);
    $conn->on('domain/block-job' => sub { });
    for (1, 2) { $conn->open; $conn->close }
    push @$log, map { "$_: $asked{$_}" } sort { $a <=> $b } keys %asked;
})], ['8: 2', '16: 1'], 'an event that the server does not have is asked for once, the one that it has instead always';

is_deeply [in_loop(sub {
    my ($loop, $log) = @_;
    refuses(domain_event_register_any => sub { $_[2] == 1 }, Sys::Virt::Error::ERR_ACCESS_DENIED());
    refuses(list_all_networks => sub { 1 }, Sys::Virt::Error::ERR_ACCESS_DENIED());
    my $conn = connection($TEST);
    $conn->on('domain/*' => sub { push @$log, "$_[1]{event} $_[1]{type}" });
    $conn->on('network/*' => sub { });
    $conn->on('connection/*' => sub { push @$log, join ' ', $_[1]{event}, $_[1]{args}{error} // () });
    $conn->open;
    domain($conn)->suspend;
    $loop->run_for(0.05);
    push @$log, exception_of { $conn->on('domain/reboot' => sub { push @$log, 'never' }) };
    push @$log, exception_of { $conn->snapshot };
    s/ at \Q$0\E line \d+\.\n// for @$log;
})], [
    'opened', 'state running', 'error no domain/reboot events: denied', 'error no network/state: denied', 'lifecycle suspended',
    'Cannot listen: no domain/reboot events: denied', "Cannot take a snapshot of $TEST: denied",
], 'what the server refuses is told, and all else works';

is_deeply [in_loop(sub {
    my ($loop, $log) = @_;
    refuses(get_all_domain_stats => sub { 1 }, Sys::Virt::Error::ERR_NO_SUPPORT());
    my $conn = connection($TEST)->open;
    push @$log, map { "$_->{name} $_->{type} $_->{detail}" } grep { $_->{class} eq 'domain' } $conn->snapshot;
})], ['test running unknown'], 'a driver without statistics';

is_deeply [in_loop(sub {
    my ($loop, $log) = @_;
    my $conn = connection($TEST, readonly => 1)->open;
    push @$log, (exception_of { domain($conn)->suspend }) =~ /read.only/ ? 'read-only' : 'not';
})], ['read-only'], 'options reach Sys::Virt';

# Handlers

is_deeply [in_loop(sub {
    my ($loop, $log) = @_;
    for my $reopens (0, 1) {
        my $conn = connection($TEST);
        $conn->on('*' => sub { push @$log, defined $_[0]->virt ? $_[1]{class} : 'while closed' });
        $conn->once('connection/opened' => sub { my ($self) = @_; $self->close; $self->open if $reopens });
        $conn->open;
        push @$log, '|';
        $conn->close;
    }
})], ['|', 'domain', 'network', 'pool', ('device') x 4, '|'], 'what was found is not told after close, nor twice';

is_deeply [in_loop(sub {
    my ($loop, $log) = @_;
    my $conn = connection($TEST);
    $conn->on('domain/*' => sub { push @$log, $_[1]{type} });
    $conn->on('connection/opened' => sub { domain($_[0])->suspend; $loop->run_for(0.05) });
    $conn->open;
})], ['running', 'suspended'], 'events that come while it is told to be open come after the states';

is_deeply [in_loop(sub {
    my ($loop, $log) = @_;
    my $conn = connection($TEST)->open;
    local $SIG{__WARN__} = sub { };
    my $second;
    $conn->on('domain/lifecycle' => sub { push @$log, 'first'; $conn->off($second); no warnings 'exiting'; last });
    $second = $conn->on('domain/lifecycle' => sub { push @$log, 'off' });
    $conn->on('domain/lifecycle' => sub { push @$log, 'third' });
    domain($conn)->suspend;
    $loop->run_for(0.05);
    local $@ = 'kept';
    $conn->close;
    $conn->open;
    push @$log, $@;
})], ['first', 'third', 'kept'], 'a handler that says last, and ends another';

is_deeply [in_loop(sub {
    my ($loop, $log) = @_;
    my $conn = connection($TEST)->open;
    $conn->on('connection/error' => sub { push @$log, $_[1]{args}{error} =~ s/ at .*//r });
    my @its = map { $conn->events('domain/lifecycle') } 1, 2;
    my $dom = domain($conn);
    for (1, 2) { $dom->suspend; $dom->resume }
    $loop->run_for(0.05);
    my $again;
    $again = sub { push @$log, $_[1] ? $_[1]{type} : 'end'; $its[0]->next($again) if $_[1]; die 'in it' };
    $its[0]->next($again);
    $its[1]->cancel;
    undef $dom;
    $conn->close;
    undef $again;
})], [map({ ($_, 'in it') } qw(suspended resumed suspended resumed end))], 'code of an iterator that dies loses nothing';

# Names that are not ASCII, texts and numbers

is_deeply [in_loop(sub {
    my ($loop, $log) = @_;
    my $conn = connection($TEST)->open;
    my $bytes = "h\xc3\xa4";
    my $names = '';
    $conn->on('domain/lifecycle', { name => $_ } => sub { $names .= $_[1]{type} . ' ' }) for $bytes, "h\xe4", 'h?';
    my $xml = domain($conn)->get_xml_description =~ s{<uuid>.*?</uuid>}{}r =~ s{<name>test}{<name>$bytes}r;
    $conn->virt->create_domain($xml);
    push @$log, map { $conn->wait_state($_, 'running', timeout => patience(5)) } $bytes, "h\xe4";
    $loop->run_for(0.05);
    push @$log, $names;
    push @$log, grep { /"name":"h/ } map { Sys::Virt::Event::Record::json($_) =~ /("name":"h[^"]*")/ } $conn->snapshot;
    push @$log, Sys::Virt::Event::Record::json(Sys::Virt::Event::Record::of_connection(
        Sys::Virt::Event::Connection->new(uri => "x:///$bytes")->uri, 'failed')) =~ /("uri":"[^"]*")/;
})], [1, 1, 'started started started ', qq("name":"h\xc3\xa4"), qq("uri":"x:///h\xc3\xa4")], 'texts are UTF-8, wherever they come from';
is(Sys::Virt::Event::Record::of_state('domain', $TEST, bless({}, 'Thing'), 7, 0)->{detail}, 'unknown',
    'of two words for a number the general one');
{ package Thing; sub get_name { 'n' } sub get_uuid { "u" } sub get_uuid_string { "u" } sub get_id { 1 } }

# Processes

my $PRELUDE = <<'PERL';
use strict;
use POSIX ();
use Sys::Virt::Event::Poll -register;
use Sys::Virt::Event::Connection;
$| = 1;
my $loop = Sys::Virt::Event::registered();
my ($uri, $other) = @ARGV;
PERL

sub prints {
    my ($name, $code, $expected, %opt) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my $run = fresh_perl($PRELUDE . $code, args => [$uri], timeout => 40, %opt);
    ref $expected ? like($run->{stdout}, $expected, $name) : is($run->{stdout}, $expected, $name);
    is($run->{stderr}, '', '... and no more');
    return;
}

prints 'taint mode', <<'PERL', qr{\A(?:in 1: Insecure \S+ while running with -T switch at \S+ line \d+\.\n){3}opened\n\z}, switches => ['-wT'];
my $main = $$;
my $clean = { initial => 0.02, jitter => 0 };
($uri) = $uri =~ /(.*)/s;
my $conn = Sys::Virt::Event::Connection->new(uri => $uri, reconnect => $clean);
my ($retries, $opened) = (0, 0);
$conn->on('connection/retry' => sub {
    print 'in ', $$ == $main ? 1 : 'another', ": $_[1]{args}{error}\n";
    delete @ENV{qw(PATH ENV BASH_ENV CDPATH IFS)} if ++$retries == 3;
});
$conn->on('connection/opened' => sub { print "opened\n"; $opened = 1 });
$loop->run_until(sub { $opened }, 20);
PERL

prints 'PERL_UNICODE', 'print ref Sys::Virt::Event::Connection->new(uri => $uri)->open->virt, "\n";', "Sys::Virt\n",
    env => { PERL_UNICODE => 'SDA' };

prints 'without STDIN, STDOUT, STDERR', <<'PERL', "open 1 1 1 1 1 1 1\n";
my $out;
open $out, '>&', \*STDOUT;
$out->autoflush;
my @open;
for my $closed (1 .. 7) {
    my $pid = fork // die;
    if (!$pid) {
        $closed & 1 && close STDIN, $closed & 2 && close STDOUT, $closed & 4 && close STDERR;
        POSIX::_exit(eval { Sys::Virt::Event::Connection->new(uri => $uri, connect_timeout => 5)->open } ? 1 : 0);
    }
    waitpid $pid, 0;
    push @open, $? >> 8;
}
print $out "open @open\n";
PERL

prints 'made, then daemonized, then opened', <<'PERL', "open\n0 watches\n";
my $conn = Sys::Virt::Event::Connection->new(uri => $uri);
my $pid = fork // die;
if ($pid) { waitpid $pid, 0; POSIX::_exit(0) }
$loop->run_until(sub { $conn->virt }, 20);
print $conn->virt ? "open\n" : "not open\n";
undef $conn;
print scalar(Sys::Virt::Event::watches()), " watches\n";
PERL

# The child is first to see that the parent's attempt is over.
prints 'forks while it is being opened', <<'PERL', "child: opened, 0 watches\nparent: opened, 0 watches\n";
my $conn = Sys::Virt::Event::Connection->new(uri => $uri, reconnect => { initial => 100, max => 100 });
my @log;
$conn->on('connection/*' => sub { push @log, join ' ', $_[1]{event}, $_[1]{args}{error} // () });
$loop->run_until(sub { $conn->{probe} }, 20);
my $pid = fork // die;
waitpid $pid, 0 if $pid;
$loop->run_until(sub { @log }, 20);
$loop->run_for(0.2);
print $pid ? 'parent: ' : 'child: ', join ', ', splice @log;
$conn->close;
print ', ', scalar(Sys::Virt::Event::watches()), " watches\n";
POSIX::_exit(0);
PERL

my $hung = Test::Sys::Virt::EventImpl::Daemon->start;
$hung->signal('STOP');
prints 'forks while a server hangs', <<'PERL', "child: retry no answer within 0.5 s\nparent: retry no answer within 0.5 s\n", args => [$uri, $hung->uri];
my $conn = Sys::Virt::Event::Connection->new(uri => $other, connect_timeout => 0.5, reconnect => { initial => 100, max => 100 });
my @log;
$conn->on('connection/*' => sub { push @log, join ' ', $_[1]{event}, $_[1]{args}{error} // () });
$loop->run_until(sub { $conn->{probe} }, 20);
my $pid = fork // die;
$loop->run_until(sub { @log }, 20);
$loop->run_for(0.2);
waitpid $pid, 0 if $pid;
print $pid ? 'parent: ' : 'child: ', join(', ', splice @log), "\n";
POSIX::_exit(0);
PERL
$hung->signal('CONT');
undef $hung;

prints 'let go of in a child', <<'PERL', "0 watches\n0 watches\n";
for my $when (sub { 1 }, sub { $_[0]{probe} }) {
    my $conn = Sys::Virt::Event::Connection->new(uri => $uri);
    $loop->run_until(sub { $when->($conn) }, 20);
    my $pid = fork // die;
    undef $conn;
    waitpid $pid, 0 if $pid;
    next if $pid;
    print scalar(Sys::Virt::Event::watches()), " watches\n";
    POSIX::_exit(0);
}
PERL

# Signals that come between fork and exec.
prints 'signals', <<'PERL', "0 elsewhere\n";
setpgrp;
my ($main, $elsewhere) = ($$, 0);
pipe my $reader, my $writer;
local $SIG{USR1} = sub { syswrite $writer, 'x' if $$ != $main };
my $sender = fork // die;
if (!$sender) { $SIG{USR1} = 'IGNORE'; select(undef, undef, undef, 0.0005), kill USR1 => 0 while getppid == $main; POSIX::_exit(0) }
for (1 .. 150) { Sys::Virt::Event::Connection::Probe->start(uri => $uri, flags => 0, seconds => 5)->cancel }
kill KILL => $sender;
waitpid $sender, 0;
$reader->blocking(0);
my $count = sysread $reader, my $bytes, 1000;
print $count // 0, " elsewhere\n";
PERL

SKIP: {
    skip 'perl has no ithreads', 2 if !$Config{useithreads};
    prints 'threads', <<'PERL', "joined\nopen\nclosed\n0\n";
require threads;
my $conn = Sys::Virt::Event::Connection->new(uri => $uri)->open;
$conn->on('*' => sub { });
my $it = $conn->events('*');
threads->create(sub { undef $it; eval { $conn->close }; undef $conn })->join for 1 .. 3;
print "joined\n", $conn->virt->num_of_domains == 1 ? "open\n" : "lost\n";
undef $it;
$conn->close;
print "closed\n", scalar(Sys::Virt::Event::watches()), "\n";
PERL
}

done_testing;
