# virt-events among daemons that die and hang: what it shows of each connection is what an independent witness, virsh,
# has heard from the same daemon.
use strict;
use warnings;

use File::Basename qw(dirname);
use File::Spec;
use lib dirname(__FILE__) . '/lib';
use Test::More;

BEGIN {
    plan skip_all => 'Sys::Virt is not installed (Debian: libsys-virt-perl)' if !eval { require Sys::Virt };
    plan skip_all => 'IO::Pty is not installed (Debian: libio-pty-perl)' if !eval { require IO::Pty };
}

use IO::Select;
use JSON::PP ();
use POSIX ();
use Test::Sys::Virt::EventImpl::Daemon;
use Test::Sys::Virt::EventImpl::Util qw(now);
use VirtTest qw(:DEFAULT patience);
use VirtTest::Schema;
use VirtTest::Tool;

plan skip_all => $_ for Test::Sys::Virt::EventImpl::Daemon->why_not // ();
plan skip_all => 'virsh is not installed (Debian: libvirt-clients)' if !grep { -x "$_/virsh" } File::Spec->path;

watchdog(180);
$SIG{PIPE} = 'IGNORE';

use constant {
    LIVES       => 10,
    MIN_EVENTS  => 60,         # of each life that all witnesses must have seen before its end
    MANY        => 100_000,
    WARM        => 20_000,
    GROWTH      => 256,        # KiB
    LATEST      => 1,          # second
};

my $decode = JSON::PP->new->utf8;
my $schema = VirtTest::Schema->new('script/virt-events');
my @children;    # what is read: { name, handle, line => code }

# Processes, and what they say

# Calls the code with each line of the handle, while pump runs.
sub listen_to {
    my ($handle, $code) = @_;
    push @children, { handle => $handle, text => '', line => $code };
    return;
}

# Reads until the code is true.
sub pump_until {
    my ($what, $code) = @_;
    my $end = now() + patience(30);
    until ($code->()) {
        die "In vain: $what\n" if now() > $end;
        my %child = map { $_->{handle} => $_ } @children;
        for my $handle (IO::Select->new(map { $_->{handle} } @children)->can_read(0.1)) {
            my $child = $child{$handle};
            if (!sysread $handle, $child->{text}, 1 << 20, length $child->{text}) {
                @children = grep { $_ != $child } @children;
                next;
            }
            $child->{line}->($1) while $child->{text} =~ s/\A(.*)\n//;
        }
    }
    return;
}

# A client that causes events: six of each domain, whose name tells when its first one was caused. It ends with its
# server, or by stop, after the last event of a domain.
sub driver {
    my ($uri, $prefix, $domains) = @_;
    my ($reader, $writer) = VirtTest::pipe_pair();
    my ($orders, $to_orders) = VirtTest::pipe_pair();
    defined(my $pid = fork) or die "Cannot fork: $!";
    if (!$pid) {
        close $to_orders;
        eval { drive($uri, $prefix, $domains, $writer, $orders) };
        POSIX::_exit(0);
    }
    close $_ for $writer, $orders;
    return { pid => $pid, reader => $reader, orders => $to_orders };
}

sub drive {
    my ($uri, $prefix, $domains, $writer, $orders) = @_;
    my $conn = Sys::Virt->new(uri => $uri);
    my ($number, $name, $order) = (0);
    do {
        $name = sprintf '%s-%d-%.6f', $prefix, ++$number, now();
        my $domain = $conn->define_domain(
            "<domain type='test'><name>$name</name><memory>1024</memory><os><type>hvm</type></os></domain>");
        $domain->$_ for qw(create suspend resume destroy undefine);
    } until defined $domains ? $number == $domains : IO::Select->new($orders)->can_read(0.002);
    syswrite $writer, "$name\n";
    return;
}

# The name of its last domain, if its server still lives.
sub stop_driver {
    my ($driver) = @_;
    close $driver->{orders};
    my ($name) = (readline($driver->{reader}) // '') =~ /(.+)/;
    waitpid $driver->{pid}, 0;
    return $name;
}

# The independent witness; returns what it has heard. On a terminal it prints each line at once.
sub witness {
    my ($uri) = @_;
    my $pty = IO::Pty->new;
    my $slave = $pty->slave;
    $slave->set_raw;
    defined(my $pid = fork) or die "Cannot fork: $!";
    if (!$pid) {
        POSIX::dup2(fileno $slave, 1);
        POSIX::dup2(POSIX::open('/dev/null'), $_) for 0, 2;
        $ENV{LC_ALL} = 'C';
        exec 'virsh', '-c', $uri, 'event', '--all', '--loop' or POSIX::_exit(127);
    }
    close $slave;
    my $witness = { pid => $pid, pty => $pty, heard => [] };
    listen_to($pty, sub {
        push @{ $witness->{heard} }, "$1 \l$2" if $_[0] =~ /\Aevent 'lifecycle' for domain '(drive\S+)': (\w+)/;
    });
    return $witness;
}

sub end_witness { my ($witness) = @_; kill TERM => $witness->{pid}; waitpid $witness->{pid}, 0; return }

# virt-events itself. The lives of its connections, by URI: when we knew that it was open, and what it has shown since.
sub watcher {
    my ($parse, @arguments) = @_;
    my $tool = VirtTest::Tool->start(\@arguments);
    my $self = { tool => $tool, lives => {}, lines => [] };
    listen_to($tool->{reader}, sub {
        my ($line) = @_;
        push @{ $self->{lines} }, $line;
        my ($uri, $name, $what) = $parse->($line);
        my $lives = $self->{lives}{$uri} //= [];
        if    ($what eq 'opened') { push @$lives, { known => now(), seen => [], came => [] } }
        elsif ($what eq 'closed') { $lives->[-1]{is_closed} = 1 }
        elsif (length $name && $name =~ /^drive/) {
            push @{ $lives->[-1]{seen} }, "$name $what";
            push @{ $lives->[-1]{came} }, now();
            $self->{after_closed}++ if $lives->[-1]{is_closed};
        }
        else { $self->{others}{$uri}{$what}++ }
    });
    return $self;
}

sub of_json {
    my $record = $decode->decode($_[0]);
    return ($record->{uri}, $record->{name} // '', $record->{type} // $record->{event});
}

sub of_words {
    my ($uri, $name, $text) = $_[0] =~ /\A\S+  (\S+) +\S+ +(?:(drive\S+) +)?(.*)\z/
        or die "What is this line: $_[0]";
    return ($uri, $name // '', $text =~ /\A([\w-]+)/);
}

# What it has seen of the life of that number, from 0.
sub seen_by {
    my ($watcher, $uri, $number) = @_;
    my $life = ($watcher->{lives}{$uri} // [])->[$number];
    return $life ? $life->{seen} : [];
}

# What is wrong with what was seen, given what was heard. Both have begun somewhere in the same stream; whatever was
# caused after we knew of the connection must be there. Of a daemon that was killed each may have heard more than the
# other.
sub complaint {
    my ($life, $heard, $is_settled) = @_;
    my @seen = @{ $life->{seen} };
    my %count;
    $count{$_}++ for @seen;
    return 'something twice' if grep { $_ > 1 } values %count;
    my %at = map { $heard->[$_] => $_ } 0 .. $#$heard;
    my $from = $at{ $seen[0] };
    if (!defined $from) {
        shift @seen while @seen && $seen[0] ne $heard->[0];
        return 'nothing in common' if !@seen;
        $from = 0;
    }
    my ($must) = grep { $heard->[$_] =~ /-([\d.]+) / && $1 > $life->{known} } 0 .. $#$heard;
    return 'something lost at the start' if defined $must && $from > $must;
    my @rest = @$heard[$from .. $#$heard];
    my $last = @seen < @rest ? $#seen : $#rest;
    for my $i (0 .. $last) {
        return "not $rest[$i], but $seen[$i]" if $seen[$i] ne $rest[$i];
    }
    return 'something lost at the end' if $is_settled && @seen < @rest;
    return 'more than was heard' if $is_settled && @seen > @rest;
    return '';
}

sub is_settled_by {
    my ($last, @lists) = @_;
    return !grep { !@$_ || $_->[-1] ne "$last undefined" } @lists;
}

# The test

my ($mortal, $steady, $hanging) = map { Test::Sys::Virt::EventImpl::Daemon->start } 1 .. 3;
my ($mortal_uri, $steady_uri, $hanging_uri) = map { $_->uri } $mortal, $steady, $hanging;
$hanging->signal('STOP');
my @options = ((map { (-c => $_) } $hanging_uri, $mortal_uri, 'test:///default', $steady_uri), '--retry-max', 0.2,
    '--connect-timeout', 2, '--keepalive', '1x2');
my $json  = watcher(\&of_json, '--json', @options);
my $words = watcher(\&of_words, @options);
my @watchers = ($json, $words);

my $steady_witness = witness($steady_uri);
my $steady_driver  = driver($steady_uri, 'drive-steady');
pump_until('the steady daemon is watched', sub {
    !grep { !@$_ } $steady_witness->{heard}, map { seen_by($_, $steady_uri, 0) } @watchers;
});
ok !$json->{lives}{$hanging_uri}, 'others are watched while a host hangs';

for my $life (1 .. LIVES) {
    my $is_settled = $life % 2;
    my $witness = witness($mortal_uri);
    my $driver = driver($mortal_uri, "drive-$life");
    my $seen = sub { map { seen_by($_, $mortal_uri, $life - 1) } @watchers };
    pump_until("life $life is watched", sub {
        !grep { @$_ < MIN_EVENTS } $witness->{heard}, $seen->();
    });
    if ($is_settled) {
        my $last = stop_driver($driver);
        pump_until("the end of life $life is seen", sub { is_settled_by($last, $witness->{heard}, $seen->()) });
    }
    $mortal->signal('KILL');
    my @lives = map { $_->{lives}{$mortal_uri}[$life - 1] } @watchers;
    pump_until("the end of life $life is known", sub { !grep { !$_->{is_closed} } @lives });
    stop_driver($driver) if !$is_settled;
    end_witness($witness);
    my ($of_json, $of_words) = @lives;
    my $count = @{ $of_json->{seen} };
    is complaint($of_json, $witness->{heard}, $is_settled), '', "life $life: $count events once, in order, by JSON";
    is complaint($of_words, $witness->{heard}, $is_settled), '', '... and for people';
    $hanging->signal('CONT') if $life == 4;
    pump_until('the third daemon is watched', sub { !grep { !$_->{lives}{$hanging_uri} } @watchers }) if $life == 5;
    $hanging->signal('STOP') if $life == 5;
    $mortal->restart if $life < LIVES;
}
pump_until('the host that hangs is given up, and tried again', sub {
    !grep { !$_->{lives}{$hanging_uri}[0]{is_closed} || !$_->{others}{$hanging_uri}{retry} } @watchers;
});

my $last = stop_driver($steady_driver);
my @steady = map { $_->{lives}{$steady_uri} } @watchers;
pump_until('the last events of all', sub {
    is_settled_by($last, $steady_witness->{heard}, map { $_->[0]{seen} } @steady);
});
is scalar(@$_), 1, 'the steady daemon was never lost' for @steady;
my $count = @{ $steady[0][0]{seen} };
is complaint($steady[0][0], $steady_witness->{heard}, 1), '', "its $count events once, in order, by JSON";
is complaint($steady[1][0], $steady_witness->{heard}, 1), '', '... and for people';
cmp_ok $count, '>', LIVES * MIN_EVENTS, 'they went on all the time';
end_witness($steady_witness);

my @delays = map { $steady[0][0]{seen}[$_] =~ /-([\d.]+) / ? $steady[0][0]{came}[$_] - $1 : () } 0 .. $count - 1;
my ($slowest) = sort { $b <=> $a } @delays;
cmp_ok $slowest, '<', patience(LATEST), sprintf 'the slowest came after %.3f s, though a host was hanging', $slowest;
is $json->{after_closed}, undef, 'nothing comes after the end of its connection';
is scalar @{ $json->{lives}{'test:///default'} }, 1, 'the test driver was there, too';

my @wrong = map { $schema->complaints($_) } grep { !/"event":"lifecycle"/ } @{ $json->{lines} };
push @wrong, map { $schema->complaints($_) } (grep { /"event":"lifecycle"/ } @{ $json->{lines} })[0 .. 99];
is_deeply \@wrong, [], 'what connections told is as the manual says';

$_->{tool}->signal('TERM') for @watchers;
is $_->{tool}->status, 0, 'SIGTERM ends it' for @watchers;
is $_->{tool}->errors, '', 'nothing on stderr' for @watchers;
@children = ();

$mortal->restart;
my $waiting = VirtTest::Tool->start(['-c', $mortal_uri]);
like $waiting->line, qr/opened/, 'a daemon that stops';
$mortal->signal('STOP');
$waiting->signal('TERM');
is $waiting->status, 0, '... does not hold up the end';
$_->stop for $mortal, $hanging;

# Memory

my $tool = VirtTest::Tool->start(['-c', $steady_uri, '--json', '--event', 'domain/lifecycle']);
$tool->line;
my @drivers = map { driver($steady_uri, "drive-$_", int MANY / 12 + 1) } 1, 2;
my @size;
for my $events (1 .. MANY) {
    my $line = $tool->line;
    push @size, status_of($tool->pid, 'VmRSS') if $events == WARM || $events == MANY;
}
SKIP: {
    skip 'memory says nothing under these tools', 1 if $ENV{TEST_SLOW};
    cmp_ok $size[1] - $size[0], '<', GROWTH, "from @{[WARM]} to @{[MANY]} events it grows from $size[0] to $size[1] KiB";
}
$tool->signal('TERM');
is $tool->status, 0, 'and it ends well';

sub status_of {
    my ($pid, $key) = @_;
    open my $in, '<', "/proc/$pid/status" or die "Cannot read: $!";
    my ($value) = map { /^\Q$key\E:\s+(\d+)/ } <$in>;
    return $value;
}

done_testing;
