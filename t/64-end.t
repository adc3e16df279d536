# The end of a program that leaves connections, handlers, watches and timers open, in many orders: its exit code is its
# own, nothing is said, nothing hangs.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";

use SideBySide qw(side_by_side);
use Test::More;
use VirtTest qw(watchdog fresh_perl);
use VirtTest::Adapters qw(adapter_classes);
use Test::Sys::Virt::EventImpl::Daemon;

watchdog(150);

my $has_sys_virt = eval { require Sys::Virt };
my $daemon       = $has_sys_virt && !Test::Sys::Virt::EventImpl::Daemon->why_not ? Test::Sys::Virt::EventImpl::Daemon->start : undef;

my $PRELUDE = <<'PERL';
use strict; use warnings;
my $uri;
BEGIN { $uri = shift; require Sys::Virt if $uri }
use Sys::Virt::Event qw(:all);
$| = 1;
# A connection with a handler is not closed when its object goes, one without is: with a call to the daemon.
my $with_handler = 1;
sub open_connection {
    my ($handler) = @_;
    my $conn = Sys::Virt->new(uri => $uri);
    $conn->domain_event_register_any(undef, Sys::Virt::Domain::EVENT_ID_LIFECYCLE(), $handler || sub { })
        if $with_handler;
    $conn->set_keep_alive(30, 3) if $uri =~ /socket/;
    return $conn;
}
# Something to come, so that the loop has work in its hands. Programs beside this one may do the same to the domain.
sub cause_event {
    my ($conn) = @_;
    local $@;
    eval { $conn->get_domain_by_name('test')->$_ } for qw(suspend resume);
}
PERL

my %LOOP = (
    old     => { new => 'do { require OldLoop; OldLoop->new }', run => '$loop->run_once' },
    later   => { new => 'do { require OldLoop; OldLoop->new(free_later => 1) }', run => '$loop->run_once' },
    poll    => { new => 'do { require Sys::Virt::Event::Poll; Sys::Virt::Event::Poll->new->register }', run => '$loop->run_once(1)' },
    default => { new => 'do { register_default(); {} }', run => 'run_default(1)' },
    map { $_ => { new => "do { require $_; $_->new->register }", run => '$loop->run_for(0.1)' } } adapter_classes(),
);

# Who holds what at the end, given what makes a loop.
my %HOLD = (
    'lexicals'                 => 'my $loop = LOOP; my $conn = open_connection();',
    'globals'                  => 'our $loop = LOOP; our $conn = open_connection();',
    'a global loop'            => 'our $loop = LOOP; my $conn = open_connection();',
    'a global connection'      => 'my $loop = LOOP; our $conn = open_connection();',
    'the loop the connection'  => 'my $loop = LOOP; $loop->{conn} = open_connection(); my $conn = \ "none";',
    'nobody the loop'          => 'my $loop = LOOP; my $conn = open_connection(); undef $loop;',
    'a cycle both'             => 'my $loop = LOOP; my $conn = open_connection(); my $x = { l => $loop, c => $conn }; $x->{x} = $x;',
    'the handler the connection' => 'my $loop = LOOP; my $conn; $conn = open_connection(sub { $conn });',
    'a destructor a call'      => 'sub Last::DESTROY { $_[0]{conn} && $_[0]{conn}->num_of_domains } my $loop = LOOP; my $conn = open_connection();'
        . ' our $last = bless { conn => $conn }, "Last";',
);

my %END = (
    'the last line'  => { code => '', exit => 0 },
    'exit'           => { code => 'exit 3;', exit => 3 },
    'die'            => { code => '$! = 0; die "oops\n";', exit => 255, stderr => "oops\n" },
    'exit in END'    => { code => 'END { $? = 5 }', exit => 5 },
    'exit in a sub'  => { code => 'sub stop { exit 4 } stop() for 1;', exit => 4 },
);

# Where a callback ends the program; the loop is run until it does.
my %INSIDE = (
    'a timer'               => 'add_timeout(1, sub { STOP });',
    'a handle'              => 'pipe our $in, our $out; syswrite $out, "x"; add_handle($in, 1, sub { STOP });',
    'a timer in a timer'    => 'add_timeout(1, sub { update_timeout($_[0], -1); add_timeout(1, sub { STOP }); RUN while 1 });',
    'a handler'             => '$conn->domain_event_deregister_any(0); $conn->domain_event_register_any(undef, 0, sub { STOP }); cause_event($conn);',
    'a protected handler'   => '$conn->domain_event_deregister_any(0); $conn->domain_event_register_any(undef, 0, protect(sub { STOP }));'
        . ' cause_event($conn);',
    'a destructor'          => 'sub Stop::DESTROY { STOP } my $t; $t = do { my $stop = bless [], "Stop"; add_timeout(1, sub { remove_timeout($t) if $stop }) };',
    '%SIG'                  => '$SIG{ALRM} = sub { STOP }; add_timeout(20, sub { }); require Time::HiRes; Time::HiRes::alarm(0.1);',
);

# name, code, args, exit, stderr
my @cases;

sub add_case {
    my ($name, $code, $uri, $exit, $stderr) = @_;
    push @cases, { name => $name, code => "$PRELUDE$code\n", uri => $uri, exit => $exit, stderr => $stderr || '' };
}

my %uri = (test => 'test:///default', $daemon ? (remote => $daemon->uri) : ());

# Each holder with each loop and connection; the ways to end take turns, so that all meet in time.
my $turn = 0;
my @ends = sort keys %END;
for my $hold (sort keys %HOLD) {
    for my $loop (sort keys %LOOP) {
        (my $code = $HOLD{$hold}) =~ s/LOOP/$LOOP{$loop}{new}/g;
        for (['test', 1], ['remote', 1], ['remote', 0]) {
            my ($kind, $handler) = @$_;
            next if !$uri{$kind};
            my $end = $ends[$turn++ % @ends];
            add_case("$kind, loop $loop, held by $hold, " . ($handler ? '' : 'no handler, ') . $end,
                join("\n", "\$with_handler = $handler;", $code, $END{$end}{code}), $uri{$kind},
                @{ $END{$end} }{qw(exit stderr)});
        }
        $turn++;
    }
}

for my $inside (sort keys %INSIDE) {
    for my $loop (qw(old poll default)) {
        my $kind = $turn++ % 2 && $daemon ? 'remote' : 'test';
        my $code = 'my $loop = ' . $LOOP{$loop}{new} . '; my $conn = open_connection();'
            . "$INSIDE{$inside}\nRUN while 1;";
        $code =~ s/STOP/exit 7/g;
        $code =~ s/RUN/$LOOP{$loop}{run}/g;
        add_case("$kind, loop $loop, exit in $inside", $code, $uri{$kind}, 7);
    }
}

# Four objects that go in each order there is, at the end of the program, with all of them at work.
sub orders {
    my (@names) = @_;
    return [] if !@names;
    return map { my $first = $_; map { [$first, @$_] } orders(grep { $_ ne $first } @names) } @names;
}
for my $order (orders(qw(loop conn dom stream))) {
    my $kind = $turn++ % 2 && $daemon ? 'remote' : 'test';
    for my $loop (qw(poll default)) {
        my $gone = join ' ', map { "undef \$$_;" } @$order;
        add_case("$kind, loop $loop, gone in the order @$order", <<"PERL", $uri{$kind}, 6);
my \$loop = $LOOP{$loop}{new};
my \$conn = open_connection();
my \$dom = \$conn->get_domain_by_name('test');
my \$stream = \$conn->new_stream(Sys::Virt::Stream::NONBLOCK());
\$conn->domain_event_register_any(\$dom, Sys::Virt::Domain::EVENT_ID_LIFECYCLE(), protect(sub { }));
\$dom->screenshot(\$stream, 0, 0);
\$stream->add_callback(Sys::Virt::Stream::EVENT_READABLE(), sub { });
$LOOP{$loop}{run};
cause_event(\$conn);
$gone
exit 6;
PERL
    }
}

# exit in a handler of the warning that a method has died, likewise.
add_case('test, exit in $SIG{__WARN__}', <<'PERL', $uri{test}, 7) if $has_sys_virt;
use Sys::Virt::Event::Poll;
package Bad;
our @ISA = 'Sys::Virt::Event::Poll';
sub remove_timeout { die "removed\n" }
package main;
my $loop = Bad->new->register;
my $conn = Sys::Virt->new(uri => $uri);
my $id = $conn->domain_event_register_any(undef, Sys::Virt::Domain::EVENT_ID_LIFECYCLE(), sub { });
$SIG{__WARN__} = sub { exit 7 };
END { $conn->domain_event_register_any(undef, Sys::Virt::Domain::EVENT_ID_LIFECYCLE(), sub { }) }
$conn->domain_event_deregister_any($id);
PERL

# exit in a method, which libvirt calls with its locks held: it comes when the call is done.
for my $method (map { ("${_}_handle", "${_}_timeout") } qw(add update remove)) {
    add_case("public, exit in the method $method", <<"PERL", '', 7);
use Sys::Virt::Event::Poll;
{ package Exits; our \@ISA = 'Sys::Virt::Event::Poll'; sub $method { exit 7 } }
Exits->new->register(wake => 0);
for my \$kind (qw(handle timeout)) {
    my \$id = \$kind eq 'handle' ? add_handle(0, 1, sub { }) : add_timeout(1, sub { });
    Sys::Virt::Event->can("update_\$kind")->(\$id, 0);
    Sys::Virt::Event->can("remove_\$kind")->(\$id);
}
print "not here\\n";
PERL
}
if ($daemon) {
    for my $method (map { ("${_}_handle", "${_}_timeout") } qw(add update remove)) {
        for my $caught (0, 1) {
            add_case("remote, exit in the method $method" . ($caught ? ', in an eval' : ''), <<"PERL", $uri{remote}, 7);
use Sys::Virt::Event::Poll;
our \$at_work;
{ package Exits; our \@ISA = 'Sys::Virt::Event::Poll';
  sub $method { my \$result = &{'Sys::Virt::Event::Poll'->can('$method')}; if (\$main::at_work) { ${\($caught ? 'eval { exit 7 }' : 'exit 7')} } \$result } }
my \$loop = Exits->new->register;
\$at_work = '$method' =~ /add/;
my \$conn = open_connection();
\$at_work = 1;
\$conn->num_of_domains;
\$conn->domain_event_deregister_any(0);
undef \$conn;
print "not here\\n";
PERL
        }
    }
}

my %THROWN = (
    'a callback that dies, and nobody catches it' => ['add_timeout(1, sub { die "oops\n" }); $! = 0; RUN while 1;', 255, "oops\n"],
    'exec'            => ['RUN; exec { $^X } $^X, "-e", "exit 9";', 9],
    'exec in a timer' => ['add_timeout(1, sub { exec { $^X } $^X, "-e", "exit 9" }); RUN while 1;', 9],
    'exit in END'     => ['END { $conn->num_of_domains; exit 8 }', 8],
    'exit in a signal handler in a call' => ['$SIG{USR1} = sub { exit 7 }; kill USR1 => $$; $conn->num_of_domains while 1;', 7],
);
for my $end (sort keys %THROWN) {
    for my $loop (qw(poll default)) {
        my $kind = $turn++ % 2 && $daemon ? 'remote' : 'test';
        my ($code, $exit, $stderr) = @{ $THROWN{$end} };
        (my $program = "my \$loop = $LOOP{$loop}{new}; our \$conn = open_connection(); add_timeout(5, sub { }); $code") =~ s/RUN/$LOOP{$loop}{run}/g;
        add_case("$kind, loop $loop, $end", $program, $uri{$kind}, $exit, $stderr);
    }
}

# Watches of the program's own, with code that has a destructor.
for my $loop (sort keys %LOOP) {
    add_case("loop $loop, watches with destructors", <<"PERL", '', 0);
sub Gone::DESTROY { \$_[0]{gone} = 1 }
our \$loop = $LOOP{$loop}{new};
{ my \$gone = bless {}, 'Gone'; add_timeout(5, sub { \$gone }); add_handle(\\*STDIN, 0, sub { \$gone }); }
{ my \$gone = bless {}, 'Gone'; my \$id = add_timeout(5, sub { \$gone }); remove_timeout(\$id) }
my \$cycle;
\$cycle = sub { \$cycle };
add_timeout(5, \$cycle);
PERL
}

my @results = side_by_side(map {
    my ($case) = $_;
    sub { fresh_perl($case->{code}, args => [$case->{uri}], timeout => 20) }
} grep { $has_sys_virt || !$_->{uri} } @cases);

for my $case (@cases) {
    if ($case->{uri} && !$has_sys_virt) {
        SKIP: { skip 'Sys::Virt is not installed', 1 }
        next;
    }
    my $result = shift @results;
    my %got    = map { $_ => $result->{$_} } qw(exit signal timed_out stdout stderr);
    is_deeply \%got,
        { exit => $case->{exit}, signal => 0, timed_out => 0, stdout => '', stderr => $case->{stderr} }, $case->{name}
        or diag explain(\%got), $case->{code} =~ s/\A\Q$PRELUDE\E//r;
}

done_testing;
