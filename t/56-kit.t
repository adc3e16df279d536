# The conformance kit as its users see it: what it says of loops that hang, crash, or are no loops, and of mistakes.
use strict;
use warnings;

use lib 't/lib';
use Test::More;
use Test::Sys::Virt::EventImpl qw(eventimpl_cases eventimpl_ok eventimpl_verdicts);
use VirtTest;

watchdog(120);

{
    package Loop::Bad;
    our @ISA = ('Sys::Virt::Event::Poll');
    sub bad { my ($class) = @_; require Sys::Virt::Event::Poll; return bless Sys::Virt::Event::Poll->new, $class }
    our $in_add = sub { };
    sub add_timeout { my $self = shift; $in_add->(); return $self->SUPER::add_timeout(@_) }
}

sub verdicts {
    my ($code, %opt) = @_;
    return eventimpl_verdicts(sub { $Loop::Bad::in_add = $code; Loop::Bad->bad }, %opt);
}

subtest 'each case says what it is about' => sub {
    my @cases = eventimpl_cases();
    my %count;
    $count{ $_->{name} }++ for @cases;
    is_deeply [grep { $count{$_} > 1 } keys %count], [], 'no name is used twice';
    is_deeply [sort { $a <=> $b } map { $_->{number} } @cases], [1 .. @cases], 'they are numbered, without a gap';
    for my $field (qw(title rule source harm advice)) {
        is_deeply [map { $_->{name} } grep { !length $_->{$field} } @cases], [], "each has its $field";
    }
    is_deeply [map { $_->{name} } grep { length $_->{advice} > 100 || $_->{advice} =~ /\n/ } @cases], [],
        'the advice is a line';
    is_deeply [map { $_->{name} } grep { $_->{harm} !~ /\S\.\z/ } @cases], [], 'the harm is sentences';
    is_deeply [map { $_->{name} } grep { "$_->{rule}$_->{advice}$_->{source}" =~ /[.\s]\z/ } @cases], [],
        'the rest is not';
};

subtest 'a loop that hangs, crashes, or ends the process fails one case' => sub {
    my %loop = (
        'hangs in Perl' => [sub { 1 while 1 }, qr/^It hung: killed after [\d.]+ s\n.*is in/m],
        'hangs asleep'  => [sub { sleep 100 }, qr/^It hung: killed after [\d.]+ s/],
        'crashes'       => [sub { kill SEGV => $$ }, qr/^Its process died of signal 11$/m],
        'exits'         => [sub { exit 3 }, qr/^Its process ended with exit code 3$/m],
        '_exits with 0' => [sub { POSIX::_exit(0) }, qr/^Its process ended in the midst of the case$/m],
    );
    for my $what (sort keys %loop) {
        my ($code, $text) = @{ $loop{$what} };
        my @verdicts = verdicts($code, cases => ['one_of_many', 'negative'], slow => 0.05);
        is_deeply [map { "$_->{name} $_->{verdict}" } @verdicts], ['one_of_many failed', 'negative failed'], $what;
        like $_->{text}, $text, '... with the reason' for @verdicts;
    }
};

# What the test file has set must not reach the kit's own processes.
subtest 'a test file of its own ways' => sub {
    my $good = sub { require Sys::Virt::Event::Poll; Sys::Virt::Event::Poll->new };
    my @cases = (cases => ['negative', 'timer_removed_before', 'null_ff']);
    for my $handler ('IGNORE', sub { 1 while waitpid(-1, POSIX::WNOHANG()) > 0 }) {
        local $SIG{CHLD} = $handler;
        my @verdicts = eventimpl_verdicts($good, @cases);
        is_deeply [map { $_->{verdict} } @verdicts], [('passed') x 3], '$SIG{CHLD}';
    }
    {
        local ($,, $\, $/) = ('-', "\n", 'x');
        my @verdicts = eventimpl_verdicts($good, @cases);
        is_deeply [map { $_->{verdict} } @verdicts], [('passed') x 3], '$, and $\ and $/';
    }
    my ($verdict) = verdicts(sub { print "not ok 1\n"; die "\x{263a}\n" }, cases => ['negative']);
    like $verdict->{text}, qr/\x{263a}/, 'wide characters arrive';
    like $verdict->{text}, qr/^It printed: not ok 1$/m, 'what is printed to stdout is no test';
    unlike $verdict->{text}, qr/Wide character/;

    my $start = time;
    my @enough = (skip => { timer_enabled => 'why' }, each => sub { die "enough\n" });
    eval { verdicts(sub { 1 while 1 }, cases => ['timer_enabled', 'negative'], slow => 10, @enough) };
    is $@, "enough\n", 'an exception ends a run';
    cmp_ok time - $start, '<', 30, '... at once, though a case hangs';
};

subtest 'a hang at the end of the process is seen' => sub {
    my ($verdict) = verdicts(sub { push our @kept, bless [], 'Loop::Sleeper' }, cases => ['negative'], slow => 0.1);
    is $verdict->{verdict}, 'failed';
    like $verdict->{text}, qr/^It hung/m;
};

subtest 'unexpected warnings fail a case' => sub {
    my ($verdict) = verdicts(sub { warn "careful\n" }, cases => ['negative']);
    is $verdict->{verdict}, 'failed';
    like $verdict->{text}, qr/careful/;
};

subtest 'a loop that cannot be made fails each case' => sub {
    my @verdicts = eventimpl_verdicts(sub { die "no backend\n" }, cases => ['negative', 'periodic']);
    is_deeply [map { $_->{verdict} } @verdicts], ['failed', 'failed'];
    like $_->{text}, qr/no backend/ for @verdicts;
    my ($verdict) = eventimpl_verdicts(sub { Loop::Poor->new }, cases => ['negative']);
    like $verdict->{text}, qr/Loop::Poor has no run_for and no run_once: eventimpl_ok needs the option runner/;
};

subtest 'options choose' => sub {
    my $make = sub { require Sys::Virt::Event::Poll; Sys::Virt::Event::Poll->new };
    my @seen;
    my @verdicts = eventimpl_verdicts($make,
        suites => ['order', 'timer'],
        cases  => ['negative', 'added_in_pass', 'null_ff'],
        skip   => { negative => 'not today' },
        each   => sub { push @seen, $_[0]{name} },
    );
    is_deeply [map { "$_->{suite} $_->{name} $_->{verdict}" } @verdicts],
        ['timer negative skipped', 'order added_in_pass passed'], 'suites, cases, skip';
    is $verdicts[0]{text}, 'not today', 'the reason';
    is_deeply \@seen, ['negative', 'added_in_pass'], 'each';

    my @runs;
    my ($verdict) = eventimpl_verdicts($make, cases => ['negative'], runner => sub { my ($impl, $seconds) = @_;
        ref $impl eq 'Sys::Virt::Event::Poll' && $seconds > 0 or die "not called well\n";
        $impl->run_once($seconds) });
    is $verdict->{verdict}, 'passed', 'runner';
};

subtest 'mistakes are exceptions' => sub {
    my $make = sub { die };
    my @mistakes = (
        [[]                              => qr/the first argument is code that returns a new object, or the string default/],
        [['Poll']                        => qr/the first argument is code/],
        [[$make, nam => 1]               => qr/there is no option nam/],
        [[$make, each => sub { }]        => qr/there is no option each/],
        [[$make, suites => []]           => qr/suites is empty/],
        [[$make, cases => []]            => qr/cases is empty/],
        [[$make, suites => ['timer'], cases => ['null_ff']] => qr/the suites timer have none of the cases null_ff/],
        [[$make, suites => 'timer']      => qr/suites is not a reference to array/],
        [[$make, suites => ['timr']]     => qr/there is no suite timr/],
        [[$make, cases => ['negativ']]   => qr/there is no case negativ/],
        [[$make, skip => { x => 'why' }] => qr/there is no case x/],
        [[$make, skip => ['negative']]   => qr/skip is not a reference to hash/],
        [[$make, slow => 0]              => qr/slow is a factor, a number above 0, not 0/],
        [[$make, slow => 'very']         => qr/slow is a factor/],
        [[$make, runner => 'run']        => qr/runner is not a reference to code/],
    );
    for (@mistakes) {
        my ($arguments, $reason) = @$_;
        my $expected = qr/^Cannot run eventimpl_ok: .*$reason.* at \Q$0\E line/;
        like exception_of { eventimpl_ok(@$arguments) }, $expected, "$reason";
    }
    like exception_of { eventimpl_verdicts($make, nam => 1) }, qr/^Cannot run eventimpl_verdicts: /;
};

# eventimpl_ok in a program of its own.
sub test_file {
    my ($call, %opt) = @_;
    my $code = "use Test::More; use Test::Sys::Virt::EventImpl;\n$call; done_testing;";
    return fresh_perl($code, switches => ['-w'], %opt);
}

subtest 'eventimpl_ok makes tests' => sub {
    my $good = test_file(<<'PERL');
print eventimpl_ok(sub { require Sys::Virt::Event::Poll; Sys::Virt::Event::Poll->new }, name => 'Mine',
    cases => ['negative', 'shortened', 'null_ff'], skip => { shortened => 'why not' }) ? "# true\n" : "# false\n"
PERL
    is $good->{exit}, 0, 'exit code';
    is $good->{stderr}, '', 'nothing is said';
    like $good->{stdout}, qr/^    ok \d+ - \d+ negative: \S/m, 'a test for a case';
    like $good->{stdout}, qr/^    ok \d+ # skip shortened: why not$/m, 'one that is skipped';
    like $good->{stdout}, qr/^ok 1 - Mine: timer$/m, 'a subtest for a suite';
    like $good->{stdout}, qr/^ok 2 - Mine: free$/m, '... and the next';
    like $good->{stdout}, qr/^# true$/m, 'returns true';

    my $bad = test_file(<<'PERL');
#line 1 my.t
print eventimpl_ok(sub { require Sys::Virt::Event::Poll; Sys::Virt::Event::Poll->new }, cases => ['negative'],
    runner => sub { die "cannot run\n" }) ? "# true\n" : "# false\n"
PERL
    is $bad->{exit}, 1, 'exit code of a failure';
    like $bad->{stdout}, qr/^not ok 1 - event loop: timer$/m, 'it has a name by default';
    like $bad->{stdout}, qr/^# false$/m, 'returns false';
    like $bad->{stderr}, qr/^    #   at my\.t line [12]\.$/m, 'the place is in the test file';
    like $bad->{stderr}, qr/^    # The case died: cannot run$/m, 'the reason';
    like $bad->{stderr}, qr/^    # Advice: \S.*\.$/m, 'the advice';
};

subtest 'the module of Sys::Virt' => sub {
    plan skip_all => 'Sys::Virt is not installed (Debian: libsys-virt-perl)' if !eval { require Sys::Virt };
    my $ours = test_file('use Sys::Virt::Event; eventimpl_ok(sub { 1 }, cases => ["negative"], sys_virt => 1)');
    like $ours->{stderr}, qr/Cannot test on Sys::Virt's module: .+ was loaded before, load the loop inside its code/,
        'ours is there already';
    my $old = fresh_perl(<<'PERL');
use lib 't/lib';
use Test::Sys::Virt::EventImpl 'eventimpl_verdicts';
use VirtTest::Subjects;
for my $subject ('select', 'installed') {
    my ($make, %opt) = @{ $VirtTest::Subjects::SUBJECTS{$subject} };
    my $loud = sub { my $loop = $make->(); print STDERR Sys::Virt::Event->can('watches') ? 'ours' : 'theirs'; $loop };
    my ($verdict) = eventimpl_verdicts($loud, %opt, cases => ['one_of_many']);
    print "$verdict->{verdict}, $verdict->{text}\n";
}
PERL
    is $old->{stdout}, "passed, It printed: ours\npassed, It printed: theirs\n", 'each has its module, in one program';
    is $old->{stderr}, '', 'what a case prints is not lost, and not in the way';
};

done_testing;

package Loop::Sleeper;
sub DESTROY { sleep 100 }

package Loop::Poor;
sub new { return bless {}, shift }
BEGIN {
    our @ISA = ('Sys::Virt::Event');
    no strict 'refs';
    *$_ = sub { 1 } for map { ("${_}_handle", "${_}_timeout") } qw(add update remove);
}
