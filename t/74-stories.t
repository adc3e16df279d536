# The programs in examples/ that use Sys::Virt::Event::Connection, run as somebody would.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";

use SecondClient ();
use Test::More;
use Test::Sys::Virt::EventImpl::Daemon;
use Test::Sys::Virt::EventImpl::Util qw(pause);
use VirtTest qw(:DEFAULT patience);
use VirtTest::Adapters qw(missing_modules);

BEGIN {
    plan skip_all => 'Sys::Virt is not installed' if !eval { require Sys::Virt };
    if (my $why = Test::Sys::Virt::EventImpl::Daemon->why_not) { plan skip_all => $why }
}

watchdog(120);

my $examples = "$FindBin::Bin/../examples";
my @PERL = ($^X, '-w', map { "-I$_" } grep { !ref } @INC);

SKIP: {
    skip 'AnyEvent is not installed', 1 if missing_modules({ modules => ['AnyEvent'] });
    subtest 'a daemon that watches three hosts' => sub {
        my @daemons = map { Test::Sys::Virt::EventImpl::Daemon->start } 1 .. 3;
        my %host = map { $daemons[$_]->uri => 'host ' . ($_ + 1) } 0 .. 2;
        my $pid = open my $out, '-|', @PERL, "$examples/watch-hosts.pl", map { $_->uri } @daemons or die "Cannot run: $!";
        # What each host has told, without the time.
        my %told;
        my $read = sub {
            my ($host, $what) = @_;
            until (grep { $_ eq $what } @{ $told{$host} }) {
                my $line = readline $out // die "The program has ended\n";
                my ($time, $uri, $text) = $line =~ /\A(\S+Z) (\S+) (.*)\n\z/ or die "Not a line of the program: $line";
                # With something unread the kernel resets the connection.
                push @{ $told{ $host{$uri} } }, $text =~ s/\Aclosed error\z/closed eof/r;
            }
            my @lines = splice @{ $told{$host} };
            return @lines;
        };
        is_deeply [$read->("host $_", 'test state running unknown')], ['opened', 'test state running unknown'], "host $_" for 1 .. 3;
        my @others = map { SecondClient->start($_->uri) } @daemons;
        $others[2]->does('suspend');
        is_deeply [$read->('host 3', 'test lifecycle suspended paused')], ['test lifecycle suspended paused'], 'an event';
        $_->stop for @others;
        $daemons[1]->signal('KILL');
        is_deeply [$read->('host 2', 'closed eof')], ['closed eof'], 'a host dies';
        $daemons[1]->restart;
        is_deeply [grep { !/\Aretry / } $read->('host 2', 'test state running unknown')], ['opened', 'test state running unknown'],
            'and is back';
        kill TERM => $pid;
        is join('', map { s/.*? (closed client)\n/$1 /r } <$out>), 'closed client ' x 3, 'it ends all of them';
        close $out;
        is $?, 0, 'it ends well';
    };
}

SKIP: {
    skip 'Mojolicious is not installed', 1 if missing_modules({ modules => ['Mojolicious'] });
    subtest 'a live page' => sub {
        my $daemon = Test::Sys::Virt::EventImpl::Daemon->start;
        my $run = fresh_perl(<<'PERL', switches => ['-w'], args => ["$examples/live-page.pl"], env => { LIVE_PAGE_URI => $daemon->uri }, timeout => 40);
use strict; use warnings;
use Mojo::UserAgent;
use Sys::Virt;
use VirtTest::MojoServer;
my ($url, $pid) = serve($ARGV[0]);
my $ua = Mojo::UserAgent->new;
print $ua->get("http://$url/")->result->body =~ m{ws://\Q$url\E/states} ? "page\n" : "no page\n";
my $domain = Sys::Virt->new(uri => $ENV{LIVE_PAGE_URI})->get_domain_by_name('test');
my @calls = qw(suspend destroy create);
$ua->websocket("ws://$url/states" => sub {
    my ($ua, $tx) = @_;
    $tx->on(json => sub {
        my ($tx, $machine) = @_;
        print "$machine->{name}: $machine->{state}\n";
        my $call = shift @calls;
        $call ? $domain->$call : Mojo::IOLoop->stop;
    });
});
Mojo::IOLoop->start;
kill TERM => $pid;
waitpid $pid, 0;
PERL
        is $run->{stdout}, "page\ntest: running\ntest: paused\ntest: shutoff\ntest: running\n", 'the state, then each change';
        is $run->{stderr}, '', 'quietly';
    };
}

subtest 'a script that waits for a shutdown' => sub {
    my $daemon = Test::Sys::Virt::EventImpl::Daemon->start;
    my $shut_down = sub {
        my ($name, $seconds) = @_;
        my $run = fresh_perl('exec @ARGV or die', args => [@PERL, "$examples/shut-down.pl", $daemon->uri, $name, $seconds]);
        return ($run->{exit}, $run->{stderr});
    };
    is_deeply [$shut_down->('test', 10)], [0, ''], 'it is off' for 1, 2;
    my ($exit, $error) = $shut_down->('nothing', 0.1);
    isnt $exit, 0, 'no such machine';
    like $error, qr/Domain not found/, '... is said';
};

done_testing;
