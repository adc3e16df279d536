# perl's own threads, each with an interpreter that is a clone of another one: none but the owner's is ever entered, and
# nothing is freed twice. Whoever owns the loop may end first.

use strict;
use warnings;

use Config;
use FindBin;
use lib "$FindBin::Bin/lib";

use SideBySide qw(side_by_side);
use Test::More;
use VirtTest qw(watchdog fresh_perl);
use Test::Sys::Virt::EventImpl::Daemon;

plan skip_all => 'this perl has no ithreads' if !$Config{useithreads};

watchdog(120);

my $has_sys_virt = eval { require Sys::Virt };
my $daemon = $has_sys_virt && !Test::Sys::Virt::EventImpl::Daemon->why_not ? Test::Sys::Virt::EventImpl::Daemon->start : undef;

my $PRELUDE = <<'PERL';
use strict; use warnings; use threads;
use Sys::Virt::Event qw(:all);
use Sys::Virt::Event::Poll; use VirtTest; use VirtTest::Loop; use Test::Sys::Virt::EventImpl::CApi;
$| = 1;
sub said(&) { my ($code) = @_; my @result = eval { $code->() }; return $@ ? $@ =~ s/ at \S+ line .*//sr : "done @result" }
# What a thread returns, as a list.
sub in_thread(&) { my ($code) = @_; my ($thread) = threads->create($code); return $thread->join }
sub events { return grep { $_->{what} =~ /^(?:handle|timer|ff)\z/ } Test::Sys::Virt::EventImpl::CApi::events() }
sub c { my ($name, @arguments) = @_; return Test::Sys::Virt::EventImpl::CApi->can($name)->(@arguments) }
PERL

# name, code, what it prints; uri: which connections it needs.
my @CASES = (
    (map { my ($loop, $register) = @$_; {
        name => "each public function in a thread that does not own the loop, $loop",
        code => <<"PERL",
my \$loop = $register;
my \$id = add_timeout(-1, sub { });
my %arguments = (
    register => [VirtTest::Loop->new], add_handle => [0, 1, sub { }], add_timeout => [5, sub { }],
    (map { (\$_ => [\$id, 1]) } qw(update_handle update_timeout)), (map { (\$_ => [\$id]) } qw(remove_handle remove_timeout)),
);
my \@functions = grep { !/^(?:registered|protect|HANDLE_)/ } \@Sys::Virt::Event::EXPORT_OK;
my %said = in_thread { map { my \$f = \$_; (\$f => said { Sys::Virt::Event->can(\$f)->(\@{ \$arguments{\$f} || [] }) }) } \@functions };
print "\$_: \$said{\$_}\\n" for grep { \$said{\$_} !~ /^Cannot .*: the event loop belongs to another thread\\z/ } \@functions;
print scalar(keys %said) > 10 ? "asked\\n" : "not asked\\n", join(' ', map { "\$_->{id} \$_->{ms}" } watches()), "\\n";
PERL
        prints => "asked\n1 -1\n",
    } } ['an object', 'VirtTest::Loop->new->register'], ["libvirt's own", 'register_default()']),

    {
        name => 'clones of the loop, its tokens, protected code and callbacks come and go',
        code => <<'PERL',
{ package Poll; our @ISA = 'Sys::Virt::Event::Poll'; }
my $destroyed = 0;
sub Guard::DESTROY { $destroyed++ }
my $loop = Poll->new->register;
my ($reader, $writer) = pipe_pair();
syswrite $writer, 'x';
my %calls = map { $_ => 0 } qw(handle timer protected);
my $tid = threads->tid;
my $protected = protect(sub { $calls{protected} += @_; threads->tid });
my @ids = do {
    my $guard = bless [], 'Guard';
    (add_handle($reader, 1, sub { $calls{handle}++; die if threads->tid != $tid; $guard }),
        add_timeout(0, sub { $calls{timer}++; die if threads->tid != $tid; $guard }));
};
my @clones;
for my $round (1 .. 30) {
    my ($thread) = threads->create(sub {
        my @records = (values %{ $loop->{handles} }, values %{ $loop->{timers} });
        for my $record (@records) {
            my @tokens = @$record{qw(cb opaque)};
            exists $record->{fd} ? $loop->_run_handle_callback(0, 0, 1, @tokens) : $loop->_run_timeout_callback(0, @tokens);
            $loop->_free_callback_opaque(@$record{qw(ff opaque)}) for 1, 2;
        }
        my $of_thread = $protected->(1);
        my $ran = $calls{handle} + $calls{timer};
        undef $loop if $round % 2;
        return (scalar @records, $of_thread == threads->tid, $ran);
    });
    my $before = $calls{handle} + $calls{timer};
    $loop->run_once(1);
    push @clones, [$thread->join, $before];
}
print scalar(grep { $_->[0] >= 2 && $_->[1] && $_->[2] == $_->[3] } @clones), " clones did nothing\n";
print "$_ $calls{$_}\n" for sort keys %calls;
print "destroyed $destroyed\n";
remove_handle($ids[0]); remove_timeout($ids[1]);
print is_idle() ? 'idle' : 'not idle', ", $destroyed\n";
PERL
        prints => "30 clones did nothing\nhandle 30\nprotected 0\ntimer 30\ndestroyed 0\nidle, 1\n",
    },

    {
        name => "a clone is made, and taken apart, on the owner's thread, which is not the owner for all that",
        code => <<'PERL',
my $loop = VirtTest::Loop->new->register(wake => 0);
our ($owner, @seen) = (threads->tid);
sub Cloned::CLONE { Test::Sys::Virt::EventImpl::CApi::add_timeout(3); print main::said { is_idle() }, "\n" }
sub Cloned::DESTROY { return if $_[0]{tid} == threads->tid; Test::Sys::Virt::EventImpl::CApi::add_timeout(4); print main::said { is_idle() }, "\n" }
our $cloned = bless { tid => 0 }, 'Cloned';
my ($thread) = threads->create(sub { 1 });
print scalar(() = $loop->calls), " calls\n";
$thread->join;
print scalar(() = $loop->calls), " calls\n";
watches();
print join(', ', map { "@$_" } $loop->calls), "\n";
PERL
        prints => join("\n", ('Cannot tell whether idle: the event loop belongs to another thread'), '0 calls',
            'Cannot tell whether idle: the event loop belongs to another thread', '0 calls', 'add_timeout 3, add_timeout 4', ''),
    },

    {
        name => 'what protected code throws in another thread is a warning there',
        code => <<'PERL',
my $loop = VirtTest::Loop->new->register(wake => 0);
my $code = protect(sub { die "oops\n" });
print in_thread { local $SIG{__WARN__} = sub { print "warning: @_" }; local $@ = 'mine'; $code->(); "$@\n" };
add_timeout(5, sub { $code->() });
print exception_of { $loop->dispatch($loop->latest) };
PERL
        prints => "warning: Exception in a protected callback: oops\nmine\noops\n",
    },

    (map { my ($loop, $register, $run) = @$_; {
        name => "libvirt's calls of several threads at once, $loop",
        code => <<"PERL",
my \$loop = $register;
my (\$reader, \$writer) = pipe_pair();
syswrite \$writer, 'x';
my \@threads = map { scalar threads->create({ context => 'list' }, sub {
    my \@bad;
    for my \$round (1 .. 40) {
        my \$timer = c(add_timeout => -1);
        my \$handle = c(add_handle => \$reader, 0);
        c(update_timeout => \$timer, \$_), c(update_handle => \$handle, 1) for -1, 0, 1;
        threads->yield if \$round % 8 == 0;
        push \@bad, map { c(\@\$_) } [remove_timeout => \$timer], [remove_handle => \$handle];
    }
    return grep { \$_ } \@bad;
}) } 1 .. 4;
my (\@log, \@failed);
while (threads->list(threads::running)) { $run; push \@log, events() }
push \@failed, \$_->join for \@threads;
my \$idle = add_timeout(-1, sub { });
remove_timeout(\$idle);
for (1 .. 2000) { last if 320 == grep { \$_->{what} eq 'ff' } \@log; $run; push \@log, events() }
my \@frees = grep { \$_->{what} eq 'ff' } \@log;
my %freed = map { ("\$_->{kind} \$_->{id}" => 1) } \@frees;
print scalar(\@failed), ' failed, ', scalar(\@frees), ' frees of ', scalar(keys %freed), ', ',
    scalar(grep { \$_->{thread} ne 'main' } \@log), ' elsewhere, ', is_idle() ? 'idle' : 'not idle', "\\n";
PERL
        prints => "0 failed, 320 frees of 320, 0 elsewhere, idle\n",
    } } ['Poll', 'Sys::Virt::Event::Poll->new->register', '$loop->run_once(0.01)'],
        ['a handwritten loop', 'VirtTest::Loop->new->register(wake => 0)', 'watches()'],
        ["libvirt's own", 'register_default()', 'run_default(0.01)']),

    {
        name => 'what a thread has asked for before it ended is carried out, in order',
        code => <<'PERL',
my $loop = VirtTest::Loop->new->register(wake => 0);
my ($kept, $gone) = in_thread {
    my ($kept, $gone) = map { c(add_timeout => 5) } 1, 2;
    c(update_timeout => $kept, $_) for 6, 7;
    c(remove_timeout => $gone);
    return ($kept, $gone);
};
print scalar(() = $loop->calls), " calls before\n";
print join(' ', map { "$_->{id} $_->{ms}" } watches()), "\n";
print join(', ', map { "@$_" } $loop->calls), "\n";
$loop->dispatch($loop->latest);
print join(', ', map { "$_->{what} $_->{id} $_->{thread}" } sort { $a->{id} <=> $b->{id} } events()), "\n";
print $kept, $gone, "\n";
PERL
        prints => "0 calls before\n1 7\nadd_timeout 7\ntimer 1 main, ff 2 main\n12\n",
    },

    {
        name => 'the loop of the owner is woken by a thread',
        code => <<'PERL',
my $loop = Sys::Virt::Event::Poll->new->register;
my $asleep = c(add_timeout => -1);
my ($thread) = threads->create(sub { select undef, undef, undef, 0.1; c(update_timeout => $asleep, 0) });
my $fired;
$fired ||= grep { $_->{what} eq 'timer' } events() until $fired || !$loop->run_until(sub { $fired ||= grep { $_->{what} eq 'timer' } events() }, 15);
$thread->join;
print $fired ? "woken\n" : "asleep\n";
PERL
        prints => "woken\n",
    },

    {
        name => "libvirt's own loop, run by a thread that is not the owner, does not run the owner's callbacks",
        code => <<'PERL',
register_default();
my $calls = 0;
my ($reader, $writer) = pipe_pair();
syswrite $writer, 'x';
my $handle = add_handle($reader, 1, sub { $calls++; die "wrong thread\n" if threads->tid });
my $timer = add_timeout(1, sub { $calls++; die "wrong thread\n" if threads->tid });
print in_thread { c('run_default') for 1 .. 10; "$calls calls\n" };
Test::Sys::Virt::EventImpl::CApi::run_blocked((['run_default']) x 10);
print "$calls calls\n";
my $by_owner = sub { my $from = $calls; run_default(1) until $calls > $from + 4; 'called' };
print said(\&$by_owner), "\n";
remove_handle($handle);
remove_timeout($timer);
print drain(10) ? "idle\n" : "not idle\n";
PERL
        prints => "0 calls\n0 calls\ndone called\nidle\n",
    },

    (map { my ($loop, $register, $run) = @$_; {
        name => "an owner that is not the main thread ends first, while others go on calling, $loop",
        code => <<"PERL",
my \@calls = ([add_timeout => 0], [update_timeout => \\-1, 5], [add_handle => 0, 0], [remove_handle => \\-1],
    [remove_timeout => \\-4]);
my \@hammers = map { Test::Sys::Virt::EventImpl::CApi::spawn((\@calls) x 30_000) } 1, 2;
my (%seen, \@wrong);
sub own {
    my (\$leave) = \@_;
    my \$loop = $register;
    my (\$reader, \$writer) = pipe_pair();
    syswrite \$writer, 'x';
    my \$runs = 0;
    my \@ids = (add_timeout(0, sub { \$runs++ }), add_handle(\$reader, 1, sub { \$runs++ }));
    for (1 .. 1000) { last if \$runs > 6; $run }
    \$leave ? c(add_timeout => 0) : (remove_timeout(\$ids[0]), remove_handle(\$ids[1]));
    # Left in the middle: what is due, queued and registered goes with the thread.
    threads->exit if \$leave == 2;
    return (\$runs > 6, \@ids);
}
for my \$round (1 .. 12) {
    my \@result = in_thread { own(\$round % 3) };
    next if \$round % 3 == 2;
    push \@wrong, "round \$round" if !shift \@result;
    \$seen{\$_}++ && push \@wrong, "id \$_ again" for \@result;
    push \@wrong, 'still owned' if \$round % 3 == 1 && said { add_timeout(5, sub { }) } !~ /no event loop is registered/;
}
my (\$ran, \@ids) = own(0);
push \@wrong, 'main does not run' if !\$ran;
\$seen{\$_}++ && push \@wrong, "id \$_ again" for \@ids;
bless \$_, 'Unjoined' for \@hammers;
print \@wrong ? map { "\$_\\n" } \@wrong : "each works\\n";
PERL
        prints => "each works\n",
    } } ['Poll', 'Sys::Virt::Event::Poll->new->register', '$loop->run_once(1)'],
        ['a handwritten loop', 'VirtTest::Loop->new->register', '$loop->dispatch($_) for @{ [values %{ $loop->{watches} }] }'],
        ["libvirt's own", '(register_default(), 1)[-1]', 'run_default(1)']),

    {
        name => "what an owner leaves in libvirt's own loop does not keep that loop from sleeping",
        code => <<'PERL',
my ($reader, $writer) = pipe_pair();
syswrite $writer, 'x';
in_thread {
    register_default();
    add_handle($reader, 1, sub { print "wrong\n" });
    add_timeout(0, sub { print "wrong\n" });
    return;
};
register_default();
my $ticks = 0;
my $id = add_timeout(20, sub { $ticks++ });
my $passes = 0;
run_default(20), $passes++ until $ticks == 5;
print $passes < 100 ? "sleeps\n" : "$passes passes for 5 ticks\n";
PERL
        prints => "sleeps\n",
    },

    (map { my ($place, $code) = @$_; {
        name => "threads->exit in $place",
        code => <<"PERL",
sub exits { threads->exit; print "not here\\n" }
my \@left = in_thread { $code; print "nor here\\n"; 1 };
print scalar(\@left), ' ', registered() // 'nobody', "\\n";
my \$loop = VirtTest::Loop->new->register(wake => 0);
my \$id = add_timeout(5, sub { print "runs\\n" });
\$loop->dispatch(\$loop->latest);
PERL
        prints => "0 nobody\nruns\n",
    } } ['a callback of Poll', 'my $loop = Sys::Virt::Event::Poll->new->register; add_timeout(0, \&exits); $loop->run'],
        ['a method', 'my $loop = VirtTest::Loop->new->register->on(update_timeout => \&exits);'
            . ' my $id = add_timeout(5, sub { }); update_timeout($id, 1)'],
        ['protected code', 'VirtTest::Loop->new->register; protect(\&exits)->()']),

    {
        name => "threads->exit in a callback under libvirt's own loop",
        code => <<'PERL',
in_thread { register_default(); add_timeout(0, sub { threads->exit }); run_default(1) while 1 };
register_default();
my $runs = 0;
my $id = add_timeout(0, sub { $runs++ });
run_default(1) until $runs;
print "runs\n";
PERL
        prints => "runs\n",
    },

    {
        name => 'a callback that dies in a thread, and nobody catches it',
        code => <<'PERL',
no warnings 'threads';
my ($thread) = threads->create(sub {
    my $loop = Sys::Virt::Event::Poll->new->register;
    add_timeout(0, sub { die "oops\n" });
    $loop->run;
});
my @left = $thread->join;
print scalar(@left), ' ', $thread->error;
# perl keeps its interpreter until the object of a thread that died is gone.
undef $thread;
print Sys::Virt::Event::Poll->new->register->run_once(0) ? "busy\n" : "empty\n";
PERL
        prints => "0 oops\nempty\n",
    },

    {
        name => 'protected code that dies in another thread',
        code => <<'PERL',
use threads::shared;
my $step :shared = 0;
sub go { my ($to) = @_; lock $step; $step = $to; cond_broadcast $step; return }
sub wait_for { my ($at) = @_; lock $step; cond_wait $step until $step == $at; return }
my $loop = VirtTest::Loop->new->register(wake => 0);
my $dies = protect(sub { die "oops\n" });
my $thread = threads->create(sub { $SIG{__WARN__} = sub { }; wait_for(1); $dies->(); go(2); wait_for(3) });
sub Freed::DESTROY { print "freed\n" if !threads->tid }
{
    my $id;
    my $held = bless [], 'Freed';
    $id = add_timeout(5, sub { $held = $held; remove_timeout($id) });
}
sub other { go(1); wait_for(2); print "the other is done\n" }
$loop->dispatch($loop->latest), other();
go(3);
$thread->join;
PERL
        prints => "the other is done\nfreed\n",
    },

    {
        name => 'threads that are made in a callback, a method, protected code and a destructor',
        code => <<'PERL',
# What it says, and whether it hears signals.
sub thread {
    my ($where) = @_;
    my ($thread) = threads->create(sub {
        my $heard = 0;
        local $SIG{USR1} = sub { $heard++ };
        threads->self->kill('USR1');
        for (1 .. 2) { $heard += 0 }
        return "$where: $heard, " . said { is_idle() };
    });
    print $thread->join, "\n";
}
my $loop = VirtTest::Loop->new->register(wake => 0);
my $id = add_timeout(5, sub { thread('callback') });
$loop->dispatch($loop->latest);
for my $method (qw(update_timeout add_handle)) {
    $loop->on($method => sub { thread($method); 7 });
}
update_timeout($id, 6);
my $handle = add_handle(0, 0, sub { });
$loop->on($_ => undef) for qw(update_timeout add_handle);
protect(sub { thread('protected') })->();
my $removed = do { my $made = bless [], 'Made'; my $tid = threads->tid; sub Made::DESTROY { thread('destructor') if $tid == threads->tid } add_timeout(5, sub { $made }) };
remove_timeout($_) for $removed, $id;
remove_handle($handle);
print is_idle() ? "idle\n" : "not idle\n";
PERL
        prints => join('', map { "$_: 1, Cannot tell whether idle: the event loop belongs to another thread\n" }
            qw(callback update_timeout add_handle protected destructor)) . "idle\n",
    },

    {
        name => 'detached threads call to the end of the program',
        code => <<'PERL',
no warnings 'threads';
my $loop = Sys::Virt::Event::Poll->new->register;
threads->create(sub { while (1) { my $id = c(add_timeout => 0); c(update_timeout => $id, 1); c(remove_timeout => $id) } })->detach for 1, 2;
threads->create(sub { c(remove_timeout => c(add_timeout => 0)) })->detach for 1 .. 10;
my $runs = 0;
add_timeout(1, sub { $runs++ });
$loop->run_until(sub { $runs > 20 });
print "ends\n";
exit 0;
PERL
        prints => "ends\n",
    },

    (map { my ($kind, $rounds) = @$_; {
        name => "connections that live and die in threads, $kind",
        uri  => $kind,
        code => <<"PERL",
my \$uri = shift;
my \$loop = Sys::Virt::Event::Poll->new->register;
my \@fds;
for my \$round (1 .. $rounds) {
    my \@threads = map { scalar threads->create(sub {
        my \$conn = Sys::Virt->new(uri => \$uri);
        my \$names = join ' ', map { \$conn->num_of_domains . (\$conn->list_domains)[0]->get_name } 1 .. 5;
        undef \$conn;
        return \$names;
    }) } 1 .. 3;
    \$loop->run_until(sub { !threads->list(threads::running) });
    my %said = map { (\$_->join => 1) } \@threads;
    print join(', ', keys %said), ' ', drain(10) ? 'idle' : 'not idle', "\\n";
    push \@fds, scalar(() = open_fds());
}
print \$fds[-1] == \$fds[0] ? "no fd left\\n" : "fds: \@fds\\n";
PERL
        prints => "1test 1test 1test 1test 1test idle\n" x $rounds . "no fd left\n",
    } } ['test', 6], ['remote', 6]),

    (map { my ($loop, $register, $run) = @$_; {
        name => "events that a thread causes arrive in the owner, $loop",
        uri  => 'test',
        code => <<"PERL",
my \$uri = shift;
my \$loop = $register;
my (\$go, \$tell) = pipe_pair();
my (\$thread) = threads->create(sub {
    sysread \$go, my \$byte, 1;
    my \$dom = Sys::Virt->new(uri => \$uri)->get_domain_by_name('test');
    for (1 .. 10) { \$dom->suspend; \$dom->resume }
});
my \@events;
my \$conn = Sys::Virt->new(uri => \$uri);
\$conn->domain_event_register_any(undef, Sys::Virt::Domain::EVENT_ID_LIFECYCLE(), protect(sub {
    push \@events, \$_[2] . (threads->tid ? ' in a thread' : '');
}));
syswrite \$tell, 'x';
$run until \@events == 20;
\$thread->join;
print join(' ', \@events), "\\n";
PERL
        prints => join(' ', (3, 4) x 10) . "\n",
    } } ['Poll', 'Sys::Virt::Event::Poll->new->register', '$loop->run_for(10 / 1000)'],
        ["libvirt's own", 'register_default()', 'run_default(5)']),
);

my %uri = (test => 'test:///default', $daemon ? (remote => $daemon->uri) : ());
my @runnable = grep { !$_->{uri} || $has_sys_virt && $uri{ $_->{uri} } } @CASES;
my @results = side_by_side(map {
    my ($case) = $_;
    sub { fresh_perl($PRELUDE . $case->{code}, args => [$case->{uri} ? $uri{ $case->{uri} } : ()], timeout => 25) }
} @runnable);

my %result;
@result{ map { $_->{name} } @runnable } = @results;
for my $case (@CASES) {
    SKIP: {
        my $result = $result{ $case->{name} } or skip 'no Sys::Virt, or no libvirtd', 1;
        my %expected = (stdout => $case->{prints}, stderr => '', exit => 0, signal => 0, timed_out => 0);
        is_deeply $result, \%expected, $case->{name} or diag explain $result;
    }
}

done_testing;
