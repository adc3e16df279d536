# What is particular to Sys::Virt::Event::Mojo; libvirt's contract is in 53-adapters.t.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";

use IO::Socket::INET;
use Test::More;
use VirtTest;
use VirtTest::Adapters;
use VirtTest::Programs qw(registers_itself leaves_flags);

my ($mojo) = grep { $_->{class} =~ /Mojo/ } adapters();
my @missing = missing_modules($mojo);
plan skip_all => "@missing is not installed" if @missing;

watchdog(120);

my @REACTORS = ('Poll', (eval { require EV; EV->VERSION('4.32') } ? 'EV' : ()));
my $PRELUDE = <<'PERL';
use strict; use warnings;
use Sys::Virt::Event qw(add_handle remove_handle add_timeout update_timeout remove_timeout watches);
use Sys::Virt::Event::Mojo;
$| = 1;
$SIG{__WARN__} = sub { print 'warning: ', @_ };
sub say_it { print @_, "\n" }
PERL

# Runs it on each reactor, or on that one. It prints the lines, and nothing else.
sub script_is {
    my ($name, $code, $lines, %opt) = @_;
    for my $reactor ($opt{on} || @REACTORS) {
        my %env = (MOJO_REACTOR => "Mojo::Reactor::$reactor");
        my $run = fresh_perl($PRELUDE . $code, switches => ['-w'], env => \%env);
        is_deeply [split /\n/, $run->{stdout}], $lines, "$name, on $reactor";
        is $run->{stderr}, '', '... quietly';
        is $run->{timed_out} || $run->{signal} || $run->{exit}, 0, '... and ends';
    }
    return;
}

script_is('Mojo is not loaded before libvirt wants something watched', <<'PERL', ['0 0 0', '1']);
my @loaded = exists $INC{'Mojo/IOLoop.pm'} || 0;
my $loop = Sys::Virt::Event::Mojo->new;
push @loaded, exists $INC{'Mojo/IOLoop.pm'} || 0;
$loop->register;
push @loaded, exists $INC{'Mojo/IOLoop.pm'} || 0;
say_it "@loaded";
add_timeout(-1, sub { });
say_it exists $INC{'Mojo/IOLoop.pm'};
PERL

script_is('the reactor is that of the singleton', <<'PERL', ['1 fired'], on => 'Poll');
my $loop = Sys::Virt::Event::Mojo->new->register;
add_timeout(1, sub { say_it $loop->loop == Mojo::IOLoop->singleton->reactor, ' fired'; Mojo::IOLoop->stop });
Mojo::IOLoop->start;
PERL

script_is('... or the one that is given', <<'PERL', ['1 fired']);
require Mojo::Reactor::Poll;
my $reactor = Mojo::Reactor::Poll->new;
my $loop = Sys::Virt::Event::Mojo->new(reactor => $reactor)->register;
add_timeout(1, sub { say_it $loop->loop == $reactor, ' fired'; $reactor->stop });
$reactor->start;
PERL

script_is('... or the loop of EV, if it is on that', <<'PERL', ['Sys::Virt::Event::EV fired'], on => 'EV');
my $loop = Sys::Virt::Event::Mojo->new->register;
add_timeout(1, sub { say_it ref $loop, ' fired'; Mojo::IOLoop->stop });
Mojo::IOLoop->start;
PERL

registers_itself('Sys::Virt::Event::Mojo', env => { MOJO_REACTOR => "Mojo::Reactor::$_" }) for @REACTORS;

script_is('exceptions', <<'PERL', [
eval { Sys::Virt::Event::Mojo->new(rector => 1) } or print $@;
eval { Sys::Virt::Event::Mojo->import('-registre') } or print $@;
{
    local $INC{'Mojolicious.pm'} = 1;
    local $Mojolicious::VERSION = '6.5';
    eval { Sys::Virt::Event::Mojo->new } or print $@;
}
require Module::Metadata;
@INC = ();
eval { Sys::Virt::Event::Mojo->new } or print $@;
PERL
    'Cannot make Sys::Virt::Event::Mojo: there is no option rector at -e line 7.',
    'Cannot use Sys::Virt::Event::Mojo: there is no option -registre at -e line 8.',
    'Cannot make Sys::Virt::Event::Mojo: it needs Mojolicious 7.37, and 6.5 is installed at -e line 12.',
    'Cannot make Sys::Virt::Event::Mojo: Mojolicious is not installed at -e line 16.',
], on => 'Poll');

my $dies = <<'PERL';
Sys::Virt::Event::Mojo->new->register;
my $left = 2;
pipe my $reader, my $writer;
syswrite $writer, 'xx';
add_handle($reader, 1, sub {
    sysread $reader, my $byte, 1;
    Mojo::IOLoop->stop if !--$left;
    die "from the handle\n";
});
PERL
script_is('what a callback throws is an error of the reactor, and its watch lives on', $dies . <<'PERL',
Mojo::IOLoop->singleton->reactor->unsubscribe('error')->on(error => sub { print 'error: ', $_[1] });
Mojo::IOLoop->start;
PERL
    [('error: I/O watcher failed: from the handle') x 2], on => 'Poll');

script_is('... and a warning of EV', $dies . <<'PERL',
Mojo::IOLoop->start;
PERL
    [('warning: EV: error in callback (ignoring): from the handle') x 2], on => 'EV');

leaves_flags('Sys::Virt::Event::Mojo', env => { MOJO_REACTOR => "Mojo::Reactor::$_" }) for @REACTORS;

script_is('a timer that is off keeps the loop running', <<'PERL', ['stopped']);
Sys::Virt::Event::Mojo->new->register;
add_timeout(-1, sub { });
Mojo::IOLoop->timer(0.01 => sub { Mojo::IOLoop->timer(0 => sub { say_it 'stopped'; Mojo::IOLoop->stop }) });
Mojo::IOLoop->start;
PERL

script_is('... until it is removed', <<'PERL', ['removed', 'over']);
Sys::Virt::Event::Mojo->new->register;
my $id = add_timeout(-1, sub { });
Mojo::IOLoop->timer(0.01 => sub { remove_timeout($id); say_it 'removed' });
Mojo::IOLoop->start;
say_it 'over';
PERL

script_is('... not with hold_loop => 0', <<'PERL', ['fired', 'over']);
Sys::Virt::Event::Mojo->new(hold_loop => 0)->register;
my $id = add_timeout(0, sub { say_it 'fired'; update_timeout($_[0], -1) });
Mojo::IOLoop->start;
say_it 'over';
PERL

script_is('run_for, run_until and stop', <<'PERL', ['1 0 1', '1 0 1', '0']);
my $loop = Sys::Virt::Event::Mojo->new->register;
my $fired = 0;
my $id = add_timeout(1, sub { $fired++ });
sub run {
    my @seen = $loop->run_until(sub { $fired > 2 }, 10);
    push @seen, $loop->run_until(sub { 0 }, 0.001);
    my $stop = add_timeout(1, sub { $loop->stop });
    my $end = time + 5;
    $loop->run_for(10);
    remove_timeout($stop);
    say_it join ' ', @seen, time < $end;
    $fired = 0;
}
run();
Mojo::IOLoop->timer(0 => sub { run(); Mojo::IOLoop->stop });
Mojo::IOLoop->start;
remove_timeout($id);
print $loop->run_until(sub { 0 }), "\n";
PERL

# A reset drops all that the reactor has.
my $resets = <<'PERL';
my $loop = Sys::Virt::Event::Mojo->new->register;
pipe my $reader, my $writer;
my %seen;
sub is_over { Mojo::IOLoop->stop if keys %seen == 3 }
add_handle($reader, 1, sub { sysread $reader, my $byte, 1; $seen{handle}++; is_over() });
add_timeout(20, sub { $seen{timer}++; is_over() });
my $off = add_timeout(-1, sub { $seen{off}++; is_over() });
PERL
script_is("a reset by $_->[0]", "$resets$_->[1]" . <<'PERL', ['handle off timer'], on => $_->[2]) for
syswrite $writer, '.';
update_timeout($off, 0);
Mojo::IOLoop->start;
say_it join ' ', sort keys %seen;
PERL
    ['the loop', 'Mojo::IOLoop->reset;'],
    ['the reactor', 'Mojo::IOLoop->singleton->reactor->reset;'],
    ['the loop while it runs', 'Mojo::IOLoop->next_tick(sub { Mojo::IOLoop->reset }); Mojo::IOLoop->start;'],
    ['the loop, with freeze', 'Mojo::IOLoop->reset({ freeze => 1 }); $loop->run_for(0);', 'Poll'];

script_is('the loop is kept running after a reset', "$resets" . <<'PERL', ['stopped']);
$_->{kind} eq 'handle' ? remove_handle($_->{id}) : remove_timeout($_->{id}) for grep { $_->{id} != $off } watches();
Mojo::IOLoop->reset;
Mojo::IOLoop->timer(0.01 => sub { Mojo::IOLoop->timer(0 => sub { say_it 'stopped'; Mojo::IOLoop->stop }) });
Mojo::IOLoop->start;
PERL

script_is('a callback that resets the loop, in run_for', <<'PERL', ['1 1']);
my $loop = Sys::Virt::Event::Mojo->new->register;
my ($resets, $other) = (0, 0);
add_timeout(0, sub { Mojo::IOLoop->reset; $resets++; remove_timeout($_[0]) });
add_timeout(10, sub { $other++; remove_timeout($_[0]) });
my $end = time + 5;
$loop->run_until(sub { $other }, 10);
$loop->run_for(0.001);
say_it "$resets ", time < $end;
PERL

my $connected = <<'PERL';
use Sys::Virt;
my $conn = Sys::Virt->new(uri => 'test:///default');
my @seen;
$conn->domain_event_register_any(undef, Sys::Virt::Domain::EVENT_ID_LIFECYCLE, sub { push @seen, $_[2] });
PERL
SKIP: {
    skip 'Sys::Virt is not installed', 1 if !eval { require Sys::Virt };
    script_is('a subprocess', <<'PERL' . $connected . <<'PERL', ['child: 3 4', 'parent: x 3']);
my $loop = Sys::Virt::Event::Mojo->new->register;
PERL
require Mojo::IOLoop::Subprocess;
pipe my $reader, my $writer;
add_handle($reader, 1, sub { sysread $reader, my $byte, 1; push @seen, $byte });
Mojo::IOLoop::Subprocess->new->run(
    sub {
        # It has connections of its own, and takes nothing of its parent's.
        @seen = ();
        my $own = Sys::Virt->new(uri => 'test:///default');
        my @own;
        $own->domain_event_register_any(undef, Sys::Virt::Domain::EVENT_ID_LIFECYCLE, sub {
            push @own, $_[2];
            $loop->stop if @own == 2;
        });
        my $domain = $own->get_domain_by_name('test');
        $domain->suspend;
        $domain->resume;
        $loop->run_for(10);
        return "@own";
    },
    sub {
        my (undef, $error, @results) = @_;
        say_it "child: $error@results";
        syswrite $writer, 'x';
        Mojo::IOLoop->stop;
    },
);
Mojo::IOLoop->start;
$loop->run_until(sub { @seen }, 10);
$conn->get_domain_by_name('test')->suspend;
$loop->run_until(sub { @seen == 2 }, 10);
say_it "parent: @seen";
PERL

    # The client is a child process of the server.
    my $server = <<'PERL';
use IO::Socket::INET;
use Mojolicious::Lite;
use Mojo::Server::Prefork;
use POSIX ();
app->log->level('fatal');
my $conn;
get '/' => sub {
    my ($c) = @_;
    $c->render_later;
    Sys::Virt::Event::Mojo->import('-register');
    $conn = Sys::Virt->new(uri => 'test:///default');
    my $tell = sub { $c->render(text => "event $_[2]") };
    $conn->domain_event_register_any(undef, Sys::Virt::Domain::EVENT_ID_LIFECYCLE, $tell);
    $conn->get_domain_by_name('test')->suspend;
};
my $server = Mojo::Server::Prefork->new(
    app => app, listen => ['http://127.0.0.1'], workers => 1, pid_file => "/tmp/53-mojo.$$",
);
$server->silent(1)->start;
my $port = $server->ports->[0];
if (!fork) {
    my $socket = IO::Socket::INET->new(PeerAddr => "127.0.0.1:$port") or die "Cannot connect: $@";
    print $socket "GET / HTTP/1.0\r\n\r\n";
    my @answer = <$socket>;
    say_it $answer[-1];
    kill TERM => getppid;
    POSIX::_exit(0);
}
$server->run;
PERL
    script_is('a prefork server, registered before it forks', <<'PERL' . $server, ['event 3']);
use Sys::Virt;
Sys::Virt::Event::Mojo->import('-register');
remove_timeout(add_timeout(-1, sub { }));
PERL
    script_is('... and in each worker', "use Sys::Virt;\n$server", ['event 3']);

    for my $reactor (@REACTORS) {
        my $run = fresh_perl(<<'PERL', switches => ['-w'], args => ["$FindBin::Bin/../examples/mojo.pl"],
use strict; use warnings;
use Mojo::UserAgent;
use VirtTest::MojoServer;
my ($url, $pid) = serve($ARGV[0]);
my $ua = Mojo::UserAgent->new;
print $ua->get("http://$url/")->result->body =~ m{ws://\Q$url\E/events} ? "page\n" : "no page\n";
$ua->websocket("ws://$url/events" => sub {
    my ($ua, $tx) = @_;
    $tx->on(message => sub { my ($tx, $text) = @_; print "$text\n"; Mojo::IOLoop->stop });
});
Mojo::IOLoop->start;
kill TERM => $pid;
waitpid $pid, 0;
PERL
            env => { MOJO_REACTOR => "Mojo::Reactor::$reactor" });
        like $run->{stdout}, qr/\Apage\ntest: event [34], detail 0\n\z/, "the example, on $reactor";
        is $run->{stderr}, '', '... quietly';
    }
}

done_testing;
