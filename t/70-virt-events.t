# The tool, run as a program: what it prints is what it, or a stranger, made happen.
use strict;
use warnings;
use Test::More;
use lib 't/lib';
use VirtTest;
use Test::Sys::Virt::EventImpl::Daemon;

watchdog(60);

my @TOOL = ($^X, '-w', '-Mblib', 'script/virt-events');
my $TIME = qr/\d\d:\d\d:\d\d\.\d{3}/;

# Runs the tool to its end: exit status, its lines without the time, what it said on stderr.
sub tool {
    my (@arguments) = @_;
    my $r = fresh_perl('exec @ARGV or die', args => [@TOOL, @arguments], timeout => 20);
    my @lines = split /\n/, $r->{stdout};
    return { %$r, lines => [map { s/\A$TIME  //r } @lines], timed => scalar grep { /\A$TIME  \S/ } @lines };
}

# "domain test stopped: destroyed", white space folded.
sub folded {
    return map { s/\s+/ /gr } @_;
}

subtest '--demo shows each event that it causes, after the call that caused it' => sub {
    my $r = tool('--demo');
    is $r->{exit}, 0, 'exit status';
    is $r->{stderr}, '', 'nothing on stderr';
    is $r->{timed}, @{ $r->{lines} }, 'every line has a time';
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
        'demo refresh it', 'pool default-pool refreshed',
        'demo create a node device', 'nodedev scsi_host12 created',
        'demo destroy the node device', 'nodedev scsi_host12 deleted',
        'demo define another domain', 'domain demo defined: added',
        'demo undefine it', 'domain demo undefined: removed',
    ], 'the calls and their events, in order';
};

subtest 'usage' => sub {
    for (['argument'], ['--demo', '-c', 'test:///default'], ['--timeout', 0], ['--timeout', 'soon'], ['--no-such']) {
        my $r = tool(@$_);
        is $r->{exit}, 2, "exit status of @$_";
        like $r->{stderr}, qr/^Usage:/m, 'usage on stderr';
        is $r->{stdout}, '', 'nothing on stdout';
    }
    my $r = tool('--help');
    is $r->{exit}, 0, 'exit status of --help';
    like $r->{stdout}, qr/--timeout/, 'its options';
};

subtest 'a connection that cannot be opened' => sub {
    my $r = tool('-c', 'test+unix:///default?socket=/nonexistent/socket');
    is $r->{exit}, 3, 'exit status';
    like $r->{stderr}, qr{Cannot open test\+unix:///default\?socket=/nonexistent/socket: .*socket}, 'the reason on stderr';
};

subtest '--timeout' => sub {
    my $r = tool('-c', 'test:///default', '--timeout', 0.2);
    is $r->{exit}, 0, 'exit status';
    is_deeply [folded(@{ $r->{lines} })], ['connection test:///default opened'], 'nothing but the connection';
};

SKIP: {
    if (my $why = Test::Sys::Virt::EventImpl::Daemon->why_not) { skip $why, 1 }
    subtest 'events of two daemons, caused by somebody else; Ctrl-C; a daemon that goes' => sub {
        require Sys::Virt;
        local $SIG{PIPE} = 'IGNORE';
        my @daemons = map { Test::Sys::Virt::EventImpl::Daemon->start } 1, 2;
        my @uris = map { $_->uri } @daemons;
        my $pid = open my $out, '-|', @TOOL, map { (-c => $_) } @uris or die "Cannot run: $!";
        my $line = sub { my ($text) = folded(scalar(<$out>) // 'end of file'); $text =~ s/\A$TIME | \z//gr };
        is $line->(), "$_ connection opened", 'opened' for @uris;
        for my $uri (reverse @uris) {
            my $conn = Sys::Virt->new(uri => $uri);
            $conn->get_domain_by_name('test')->suspend;
            is $line->(), "$uri domain test suspended: paused", 'an event with its URI';
        }
        $daemons[0]->stop;
        is $line->(), "$uris[0] connection closed: the server closed the connection", 'a daemon that goes';
        kill INT => $pid;
        is $line->(), 'end of file', 'Ctrl-C ends it';
        close $out;
        is $?, 0, 'exit status';
    };
}

done_testing;
