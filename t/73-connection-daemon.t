# Sys::Virt::Event::Connection and servers that die, hang and come back.

use strict;
use warnings;

use File::Path qw(remove_tree);
use FindBin;
use lib "$FindBin::Bin/lib";

use SecondClient ();
use Test::More;
use Test::Sys::Virt::EventImpl::Daemon;
use Test::Sys::Virt::EventImpl::Util qw(first_line pause);
use Test::Sys::Virt::EventImpl::Private qw(private_dir);
use VirtTest qw(:DEFAULT patience);
use VirtTest::Adapters;
use VirtTest::Child;

BEGIN {
    plan skip_all => 'Sys::Virt is not installed' if !eval { require Sys::Virt };
    if (my $why = Test::Sys::Virt::EventImpl::Daemon->why_not) { plan skip_all => $why }
}

use Sys::Virt::Event ();
use Sys::Virt::Event::Connection;
use Sys::Virt::Event::Poll;

watchdog(240);

# No wait comes to that: it fails before.
use constant LONG => 20;

my %QUICK = (initial => 0.02, max => 0.1);

sub daemon { return Test::Sys::Virt::EventImpl::Daemon->start(@_) }

# Runs the code in a process of its own, with a loop and a log: $code->($loop, \@log).
sub in_loop {
    my ($code) = @_;
    return in_child {
        my @log;
        my $loop = Sys::Virt::Event::Poll->new->register;
        $code->($loop, \@log);
        return @log;
    };
}

sub connection { my ($uri, @options) = @_; return Sys::Virt::Event::Connection->new(uri => $uri, reconnect => \%QUICK, @options) }

sub until_so { my ($loop, $code) = @_; return $loop->run_until($code, patience(LONG)) }

# The processes that this one has started, with what became of them.
sub children {
    return map { first_line("/proc/$_/stat") =~ /\A\d+ \((.*)\) (\w) $$ / ? "$1 $2" : () } map { /(\d+)\z/ } glob '/proc/[0-9]*';
}

sub left {
    return join ', ', (map { "$_->{kind} $_->{id}" } Sys::Virt::Event::watches()), Sys::Virt::Event::drain(patience(LONG)) ? () : 'not idle';
}

subtest 'a daemon that dies ten times' => sub {
    my $daemon = daemon();
    my @log = in_loop(sub {
        my ($loop, $log) = @_;
        my $conn = connection($daemon->uri);
        my (@events, %count, $fds);
        my $listener = $conn->on('domain/*' => sub { push @events, $_[1]{type} });
        $conn->on('connection/*' => sub { $count{ $_[1]{event} }++ });
        # With something unread the kernel resets the connection, which is an error.
        $conn->on('connection/closed' => sub { push @$log, $_[1]{args}{reason} =~ s/error/eof/r, $_[0]->virt ? 'open' : () });
        for my $round (1 .. 10) {
            until_so($loop, sub { ($count{opened} || 0) == $round }) or push @$log, "not open $round";
            my $other = SecondClient->start($daemon->uri);
            $other->does($_) for qw(suspend resume);
            until_so($loop, sub { @events >= 3 });
            push @$log, join ' ', splice @events;
            $other->stop;
            $daemon->signal($round % 2 ? 'KILL' : 'TERM');
            until_so($loop, sub { ($count{closed} || 0) == $round }) or push @$log, "not closed $round";
            # Some attempts fail.
            until_so($loop, sub { ($count{retry} || 0) >= 2 * $round }) or push @$log, 'no retry';
            $daemon->restart;
        }
        until_so($loop, sub { $count{opened} == 11 });
        $conn->close;
        push @$log, $count{failed} || 0, left(), children();
    });
    is_deeply \@log, [(map { ('running suspended resumed', 'eof') } 1 .. 10), 'client', 0, ''],
        'each time its state, its events, and an end of file; at the end nothing is left' or diag explain \@log;
};

subtest 'a daemon that hangs' => sub {
    my @daemons = (daemon(), daemon(), daemon());
    my @log = in_loop(sub {
        my ($loop, $log) = @_;
        my ($hangs, $fine, $later) = @daemons;
        my %events;
        my $count = sub { $events{ $_[0]->uri }++ };
        my %last;
        my $latest = sub { $last{ $_[0]->uri } = "$_[1]{event} " . ($_[1]{args}{error} // $_[1]{args}{reason} // '') };
        $later->signal('STOP');
        my @conns = (
            connection($hangs->uri, keepalive => [1, 1]), connection($fine->uri), connection($later->uri, connect_timeout => 0.5),
        );
        $_->on('domain/lifecycle' => $count), $_->on('connection/*' => $latest) for @conns;
        my $other = SecondClient->start($fine->uri);
        until_so($loop, sub { $conns[0]->virt && $conns[1]->virt });
        # While one server has hung from the beginning, the events of others come.
        for (1 .. 3) {
            my $before = $events{ $fine->uri } || 0;
            $other->does($_) for qw(suspend resume);
            push @$log, until_so($loop, sub { ($events{ $fine->uri } || 0) == $before + 2 });
        }
        push @$log, $last{ $later->uri } // 'nothing yet';
        until_so($loop, sub { ($last{ $later->uri } // '') =~ /retry/ });
        push @$log, $last{ $later->uri };
        push @$log, exception_of { $conns[2]->open } =~ s/ at \Q$0\E line \d+\.\n//r;
        $conns[2]->_attempt_after(0);
        $later->signal('CONT');
        push @$log, until_so($loop, sub { $conns[2]->virt }), $last{ $later->uri };

        $hangs->signal('STOP');
        until_so($loop, sub { ($last{ $hangs->uri } // '') =~ /closed/ });
        push @$log, $last{ $hangs->uri };
        $other->does('suspend');
        push @$log, until_so($loop, sub { $events{ $fine->uri } == 7 });
        $hangs->signal('CONT');
        push @$log, until_so($loop, sub { $conns[0]->virt });
        $_->close for @conns;
        push @$log, left(), grep { !/libvirtd|perl [^Z]/ } children();
    });
    my $uri = $daemons[2]->uri;
    is_deeply \@log, [
        1, 1, 1, 'nothing yet', 'retry no answer within 0.5 s', "Cannot open $uri: no answer within 0.5 s", 1, 'opened ',
        'closed keepalive', 1, 1, '',
    ], 'does not hold up the others' or diag explain \@log;
};

subtest 'the process that tries' => sub {
    my $daemon = daemon();
    my $dir = private_dir('ssh-XXXXXX');
    open my $out, '>', "$dir/ssh" or die "Cannot write: $!";
    print $out "#!/bin/sh\necho \$\$ >>$dir/pids\nexec sleep 1000\n";
    close $out;
    # libvirt gives up root's rights before it runs this.
    chmod 0755, $dir, "$dir/ssh";
    my $hanging = "test+ssh://somewhere/default?command=$dir/ssh";
    my $pids = sub { open my $in, '<', "$dir/pids" or return []; return [map { /(\d+)/ } <$in>] };
    my $live = sub { return scalar grep { first_line("/proc/$_/stat") =~ /\) [^ZX]/ } @{ $pids->() } };
    my @log = in_loop(sub {
        my ($loop, $log) = @_;
        # What libvirt starts is killed with it: after the time, by close, and by the end of the object.
        my $conn = connection($hanging, connect_timeout => 0.4, reconnect => 0);
        my $failed;
        $conn->on('connection/failed' => sub { $failed = $_[1]{args}{error} });
        until_so($loop, sub { $failed });
        push @$log, $failed, scalar @{ $pids->() }, $live->();
        for my $end (sub { $_[0]->close }, sub { undef $_[0] }) {
            my $before = @{ $pids->() };
            my $conn = connection($hanging);
            for (1 .. 1000) { last if @{ $pids->() } > $before; $loop->run_for(0.01) }
            my $alive = $live->();
            $end->($conn);
            pause(0.01) while $live->() && $alive++ < 500;
            push @$log, $live->();
        }
        push @$log, left(), children();

        # Children that somebody else waits for.
        for my $handler ('IGNORE', sub { 1 while waitpid(-1, POSIX::WNOHANG()) > 0 }) {
            local $SIG{CHLD} = $handler;
            my $conn = connection($daemon->uri);
            push @$log, until_so($loop, sub { $conn->virt });
            $conn->close;
            push @$log, ref $conn->open;
        }
        {
            local $ENV{PERL5OPT} = '-MNo::Such::Module';
            open my $stderr, '>&', \*STDERR;
            open STDERR, '>', '/dev/null';
            my $conn = connection($daemon->uri);
            push @$log, exception_of { $conn->open } =~ s/ at \Q$0\E line \d+\.\n//r;
            open STDERR, '>&', $stderr;
        }
        $conn = connection($daemon->uri, connect_timeout => 0)->open;
        push @$log, $conn->virt ? 'open without it' : 'closed';
    });
    is_deeply \@log, [
        'no answer within 0.4 s', 1, 0, 0, 0, '', (1, 'Sys::Virt::Event::Connection') x 2,
        'Cannot open ' . $daemon->uri . ': the process that tried it has ended without an answer', 'open without it',
    ], 'leaves nothing, and needs nothing of the program' or diag explain \@log;
    remove_tree($dir);
};

subtest 'a connection that is lost for good' => sub {
    my $daemon = daemon();
    my @log = in_loop(sub {
        my ($loop, $log) = @_;
        my $conn = connection($daemon->uri, reconnect => 0);
        my $it = $conn->events('*');
        $it->next(sub { push @$log, $_[1]{event} });
        $conn->on('connection/*' => sub { push @$log, "$_[1]{event} " . ($_[1]{args}{error} // '') });
        $conn->open;
        $it->next(sub { push @$log, $_[1] ? 'event' : 'end' }) for 1 .. 9;
        $daemon->signal('KILL');
        push @$log, exception_of { $conn->wait_state('test', 'crashed', timeout => patience(LONG)) };
        push @$log, exception_of { $conn->wait_state('test', 'crashed') };
        $daemon->restart;
        $conn->open;
        push @$log, $conn->wait_state('test', 'running');
        undef $it;
        $conn->close;
        # A listener can open it again: then it is not lost.
        my $again = connection($daemon->uri, reconnect => 0)->open;
        my $events = $again->events('*');
        my $is_back;
        $again->once('connection/closed' => sub { $daemon->restart; $_[0]->open; $is_back = 1 });
        $again->on('connection/failed' => sub { push @$log, 'failed all the same' });
        $daemon->signal('KILL');
        until_so($loop, sub { $is_back });
        $events->next(sub { push @$log, $_[1] ? "again $_[1]{event}" : 'ended' });
        undef $_ for $events, $again;
        # Nobody listens: it is an exception of the loop.
        my $silent = connection($daemon->uri, reconnect => 0)->open;
        $daemon->signal('KILL');
        push @$log, exception_of { $loop->run_for(patience(LONG)) };
        $daemon->stop;
        $silent = connection($daemon->uri, reconnect => { %QUICK, tries => 2 });
        push @$log, exception_of { $loop->run_for(patience(LONG)) };
    });
    s/ at \Q$0\E line \d+\.\n// for @log;
    s/it was closed: \Kerror/eof/ for @log;
    my $gone = $log[-1] =~ s/\A.*: (Failed to connect .*)\n\z/$1/sr;
    like $gone, qr/\AFailed to connect socket/, 'libvirt\'s own reason';
    is_deeply \@log, [
        'opened ', 'state', ('event') x 6, 'closed ', 'failed it was closed: eof', ('end') x 3,
        ('Cannot wait for a state: it was closed: eof') x 2, 'opened ', 1, 'closed ', 'again state',
        'Lost the connection to ' . $daemon->uri . ": it was closed: eof\n",
        'Lost the connection to ' . $daemon->uri . ": $gone\n",
    ], 'says so, ends iterators and waits' or diag explain \@log;
};

subtest 'what handlers may do' => sub {
    my $daemon = daemon();
    my @log = in_loop(sub {
        my ($loop, $log) = @_;
        my $other = SecondClient->start($daemon->uri);
        # Close, in the handler of each kind of record; open again in that of the last.
        for my $what ('connection/opened', 'domain/state', 'domain/lifecycle', 'connection/closed') {
            my $conn = connection($daemon->uri);
            my ($calls, $after) = (0, 0);
            $conn->on($what => sub { my ($self) = @_; $calls++; $self->close; $self->open if $what =~ /closed/ && $calls < 2 });
            $conn->on('domain/*' => sub { $after++ if $calls && !$_[0]->virt });
            until_so($loop, sub { $calls || $conn->virt });
            $conn->close if $what =~ /closed/;
            $other->does($_) for qw(suspend resume);
            until_so($loop, sub { $calls });
            $loop->run_for(0.05);
            $conn->close;
            push @$log, "$what $calls" . ($after > 1 ? " $after" : ''), left();
        }
        # The last reference goes inside a handler.
        my %conns = (one => connection($daemon->uri));
        $conns{one}->on('domain/lifecycle' => sub { delete $conns{one} });
        $conns{one}->open;
        $other->does('suspend');
        until_so($loop, sub { !%conns });
        push @$log, left();
    });
    is_deeply \@log, [
        'connection/opened 1', '', 'domain/state 1', '', 'domain/lifecycle 1', '', 'connection/closed 2', '', '',
    ], 'close, and drop the connection' or diag explain \@log;
};

subtest 'a server that takes connections and drops them' => sub {
    my $daemon = daemon();
    my @log = in_loop(sub {
        my ($loop, $log) = @_;
        my $conn = connection($daemon->uri, reconnect => { initial => 0.01, max => 100, jitter => 0 });
        my (@delays, $opened);
        $conn->on('connection/opened' => sub { $opened++ });
        $conn->on('connection/retry' => sub { push @delays, $_[1]{args}{delay} });
        for my $round (1 .. 3) {
            until_so($loop, sub { ($opened || 0) == $round });
            $daemon->signal('KILL');
            until_so($loop, sub { @delays == $round });
            $daemon->restart;
        }
        push @$log, @delays;
    });
    is_deeply \@log, [0.02, 0.08, 0.32], 'is asked less and less often';
};

subtest 'wait_state while the daemon is away' => sub {
    my $daemon = daemon();
    my @log = in_loop(sub {
        my ($loop, $log) = @_;
        my $conn = connection($daemon->uri)->open;
        $conn->virt->get_domain_by_name('test')->suspend;
        $daemon->signal('KILL');
        $loop->run_until(sub { !$conn->virt });
        my $timer = Sys::Virt::Event::add_timeout(10, sub { $daemon->restart; Sys::Virt::Event::remove_timeout($_[0]) });
        # The domain that the test driver makes up anew.
        push @$log, $conn->wait_state('test', 'running', timeout => patience(LONG));
    });
    is_deeply \@log, [1], 'is told by the state after it';
};

subtest 'fork' => sub {
    my $daemon = daemon();
    my $run = fresh_perl(<<'PERL', args => [$daemon->uri], switches => ['-w'], includes => ['t/lib']);
use strict;
use SecondClient;
use Sys::Virt::Event::Poll -register;
use Sys::Virt::Event::Connection;
my $loop = Sys::Virt::Event::registered();
my $conn = Sys::Virt::Event::Connection->new(uri => $ARGV[0])->open;
my @events;
$conn->on('domain/lifecycle' => sub { push @events, $_[1]{type} });
my $other = SecondClient->start($ARGV[0]);
for my $end (sub { exit 0 }, sub { undef $conn; exit 0 }) {
    my $pid = fork // die;
    $end->() if !$pid;
    waitpid $pid, 0;
    print "child $?\n";
    $other->does($_) for qw(suspend resume);
    my $count = @events + 2;
    $loop->run_until(sub { @events == $count }, 10);
    print "@events\n";
}
PERL
    is $run->{stdout}, "child 0\nsuspended resumed\nchild 0\nsuspended resumed suspended resumed\n", 'the parent goes on';
    is $run->{stderr}, '', 'nothing else is said';
};

# On any loop.
my %REGISTER = (
    default => sub { Sys::Virt::Event::register_default(); return sub { Sys::Virt::Event::run_default(0.05) } },
    OldLoop => sub { require OldLoop; my $loop = OldLoop->new; return sub { $loop->run_once } },
);
my @adapters = grep { !missing_modules($_) } adapters();
for my $adapter (@adapters) {
    $REGISTER{ $adapter->{name} } = sub { my $loop = VirtTest::Adapters::maker($adapter)->()->register; sub { $loop->run_for(0.05) } };
}
for my $name (sort keys %REGISTER) {
    my $daemon = daemon();
    my @log = in_child {
        my $run = $REGISTER{$name}->();
        my (@log, @events, %count);
        my @conns = map { connection($_) } $daemon->uri, 'test:///default';
        $_->on('domain/lifecycle' => sub { push @events, $_[1]{type} }) for @conns;
        $conns[0]->on('connection/*' => sub { $count{ $_[1]{event} }++ });
        my $until = sub { my ($code) = @_; for (1 .. 400) { return if $code->(); $run->() } push @log, 'in vain' };
        for my $round (1, 2) {
            $until->(sub { ($count{opened} || 0) == $round && $conns[1]->virt });
            for my $conn (@conns) { my $dom = $conn->virt->get_domain_by_name('test'); $dom->suspend; $dom->resume }
            $until->(sub { @events == 4 });
            push @log, sort splice @events;
            kill KILL => $daemon->pid if $round == 1;
            $until->(sub { $count{closed} }) if $round == 1;
            $daemon->restart if $round == 1;
        }
        push @log, $conns[0]->wait_state('test', 'running', timeout => 5), $conns[0]->wait_state('test', 'paused', timeout => 0.05);
        $_->close for @conns;
        undef @conns;
        $until->(sub { !Sys::Virt::Event::watches() });
        return (@log, map { "$_->{kind} $_->{id}" } Sys::Virt::Event::watches());
    };
    is_deeply \@log, [(qw(resumed resumed suspended suspended)) x 2, 1, 0], "on $name";
}

done_testing;
