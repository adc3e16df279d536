# Random programs: whatever a program does, in whatever order, the module does what the manual says. See VirtTest::Fuzz.
#
#     FUZZ_SEED=17 FUZZ_STEPS=250 perl -Mblib t/58-fuzz.t    one program
#     FUZZ_STEPS=1000000 perl -Mblib t/58-fuzz.t             so many steps
use 5.016;
use strict;
use warnings;

use lib 't/lib';
use File::Temp ();
use List::Util qw(min sum);
use POSIX qw(ceil);
use SideBySide qw(side_by_side);
use Test::More;
use VirtTest;
use VirtTest::Fuzz qw(run_seed reduced listing);
use VirtTest::Fuzz::Subject;
use VirtTest::Mutants;

use constant {
    STEPS    => 250,           # of a program
    ENOUGH   => 100_000,       # for all that can happen
    TOTAL    => $ENV{FUZZ_STEPS} || ($ENV{AUTHOR_TESTING} ? 3_000_000 : 100_000),
    WORKERS  => 2,
    FAILURES => 3,             # that are told of
};

if (defined $ENV{FUZZ_SEED}) {
    my $steps   = $ENV{FUZZ_STEPS} || STEPS;
    my $failure = run_seed($ENV{FUZZ_SEED}, $steps)->{failure};
    ok !$failure, "seed $ENV{FUZZ_SEED}, $steps steps";
    tell_of($ENV{FUZZ_SEED}, $steps, $failure) if $failure;
    done_testing;
    exit;
}

# A quarter of the programs are new ones each time.
my $programs = ceil(TOTAL / STEPS);
my $fixed    = int $programs * 3 / 4;
my $new      = 1_000_000 + int rand 1_000_000_000;
my @seeds    = (1 .. $fixed, map { $new + $_ } 1 .. $programs - $fixed);
note "seeds 1 to $fixed, and $seeds[$fixed] to $seeds[-1]";

my @results = side_by_side(map {
    my $worker = $_;
    sub { run_all(map { $seeds[$_] } grep { $_ % WORKERS == $worker } 0 .. $#seeds) }
} 0 .. WORKERS - 1);

my @failures = map { @{ $_->{failures} } } @results;
my $failed = @failures;
is $failed, 0, 'programs that differ from the model, crash or hang';
tell_of($_->{seed}, STEPS, $_->{failure}) for @failures[0 .. min(FAILURES, $failed) - 1];

is sum(map { $_->{steps} } @results), $programs * STEPS, 'steps' if !$failed;
my %seen;
for my $result (@results) {
    $seen{$_} += $result->{seen}{$_} for keys %{ $result->{seen} };
}
is_deeply [grep { !$seen{$_} } all_kinds()], [], 'everything that can happen has happened' if TOTAL >= ENOUGH;
note join ', ', map { "$_ $seen{$_}" } sort keys %seen;

# A model that forgets a rule: the programs show it.

{
    package Forgets;
    our @ISA = ('VirtTest::Fuzz::Model');

    # A watch whose callback runs is not called again.
    package Forgets::Busy;
    our @ISA = ('Forgets');
    sub is_busy { 0 }

    # ff does not run while the callback runs.
    package Forgets::Running;
    our @ISA = ('Forgets');
    sub may_free { my ($self, $due) = @_; return $due->{level} >= $self->{level} }

    # Nor inside the loop's methods.
    package Forgets::Locks;
    our @ISA = ('Forgets');
    sub settle { my ($self) = @_; local $self->{locked} = 0; return $self->SUPER::settle }

    # Our functions throw what was parked.
    package Forgets::Exceptions;
    our @ISA = ('Forgets');
    sub park { my ($self, $error, $prefix) = @_; return $self->warning($prefix . VirtTest::Fuzz::Model::shown($error)) }

    # Other threads' calls are carried out before the owner's.
    package Forgets::Mailbox;
    our @ISA = ('Forgets');
    sub enter { }

    # There is a wake watch while something is registered.
    package Forgets::Wake;
    our @ISA = ('Forgets');
    sub tend_wake { }

    # A loop's key is released.
    package Forgets::Keys;
    our @ISA = ('Forgets');
    sub release_key { }

    # A callback is counted.
    package Forgets::Counting;
    our @ISA = ('Forgets');
    sub end { my ($self, $watch) = @_; $watch->{dispatched} = 1; return $self->SUPER::end($watch) }
}

my @forgetful = map { "Forgets::$_" } qw(Busy Running Locks Exceptions Mailbox Wake Keys Counting);
my @found = side_by_side(map { my $model = $_; sub { first_failure($model) } } @forgetful);
for my $n (0 .. $#forgetful) {
    my $failure = $found[$n]{failure};
    ok $failure, "$forgetful[$n] is found out";
    cmp_ok scalar @{ $failure->{program} }, '<=', 10, '... by a program of few steps' if $failure;
    note listing($failure->{program}), $failure->{text} if $failure;
}

# So do changes of the module, of which each breaks a rule.

if ($ENV{AUTHOR_TESTING}) {
    my @mutants = mutants();
    my @kinds = side_by_side(map { my $mutant = $_; sub { [kind_of_mutant($mutant)] } } @mutants);
    for my $n (0 .. $#mutants) {
        ok defined $kinds[$n][0], "$mutants[$n]{what}: found out";
        note $kinds[$n][0];
    }
}

done_testing;

sub run_all {
    my (@seeds) = @_;
    my %all = (steps => 0, seen => {}, failures => []);
    for my $seed (@seeds) {
        my $result = run_seed($seed, STEPS);
        push @{ $all{failures} }, { seed => $seed, failure => $result->{failure} } if $result->{failure};
        last if @{ $all{failures} } == FAILURES;
        $all{steps} += $result->{steps};
        $all{seen}{$_} += $result->{seen}{$_} for keys %{ $result->{seen} };
    }
    return \%all;
}

sub tell_of {
    my ($seed, $steps, $failure) = @_;
    diag "$failure->{kind}\nTo see it again: FUZZ_SEED=$seed FUZZ_STEPS=$steps perl -Mblib t/58-fuzz.t\nReduced, for\n",
        q{perl -Mblib -It/lib -MVirtTest::Fuzz -e 'VirtTest::Fuzz::replay' FILE}, "\n";
    my $reduced = reduced($failure);
    diag listing($reduced->{program}), "\n$reduced->{text}";
    return;
}

# Kinds of lines in a trace: those of each step, and those of what steps lead to.
sub all_kinds {
    my %silent  = map { $_ => 1 } qw(plan write read hang_up remove_all);
    my %mistake = map { $_ => 1 } qw(wrong_kind garbage mix mistake);
    my @steps   = grep { !$silent{$_} } map { /\Ado_(\w+)\z/ } keys %VirtTest::Fuzz::Model::;
    my @changes = map { my $verb = $_; map { "${verb}_$_" } qw(handle timeout) } qw(add update remove);
    return (
        (map { "$_: ok" } grep { !$mistake{$_} } @steps),
        (map { "$_: died" } keys %mistake, @changes, qw(register dispatch mix_free run drain_0)),
        @changes, (map { "c $_" } qw(handle timer call), grep { !/add/ } @changes),
        qw(callback released ff removed gone protected run_for thrown warning),
    );
}

# Of a model that is wrong: the programs are so many that it is found, if they are any good.
sub first_failure {
    my ($model) = @_;
    for my $seed (1 .. 40) {
        my $failure = run_seed($seed, STEPS, model => $model)->{failure} or next;
        return { failure => reduced($failure, model => $model) };
    }
    return {};
}

# The kind of the first failure with a changed module, in a perl of its own.
sub kind_of_mutant {
    my ($mutant) = @_;
    my $dir = File::Temp->newdir;
    my @inc = VirtTest::Mutants::_make($mutant, "$dir");
    my $result = fresh_perl(<<'    CODE', includes => \@inc, timeout => 120);
        use VirtTest::Fuzz qw(run_seed);
        use VirtTest::Fuzz::Subject;
        for my $seed (1 .. 400) {
            my $failure = run_seed($seed, 250)->{failure} or next;
            print $failure->{kind};
            last;
        }
    CODE
    return $result->{stdout} =~ /(.+)/;
}

sub mutants {
    my $bridge = 'src/bridge.c';
    return map { my ($what, $file, $from, $to) = @$_; { what => $what, edits => [[$file, $from, $to]] } } (
        ['ff runs under its own callback', $bridge, '((*link)->running || (*link)->due_as < from)',
            '((*link)->due_as < from)'],
        ['ff does not wait for the statement', $bridge, '(*link)->due_as < from', '(*link)->due_as < 1'],
        ['a callback runs twice at once', $bridge, "    if (watch->running)\n        return SVE_BUSY;\n", ''],
        ['a removed watch is called', $bridge,
            "    if (!watch->attached)\n        return SVE_GONE;\n    if (watch->running)", '    if (watch->running)'],
        ['the owner does not empty the mailbox first', $bridge,
            "    if (!sve_mailbox_is_empty(&core.mailbox))\n        empty_mailbox();\n", ''],
        ['the mailbox is emptied inside itself', $bridge, "    if (core.emptying)\n        return;\n", ''],
        ['the owner overtakes an add of another thread', $bridge, 'return loop && !watch->attaching;', 'return loop;'],
        ['a removal by another thread waits for nothing', 'src/mailbox.c', 'watch->pending |= call;',
            'watch->pending = call;'],
        ['the wake watch stays', $bridge, 'wanted == !!own->watch)', 'wanted <= !!own->watch)'],
        ['an id is used twice', $bridge, 'watch->id = ++core.last_id;', 'watch->id = core.table.count + 1;'],
        ['the loop gets another key', 'src/perl_loop.c', 'watch->slot = newSVsv(key);',
            'watch->slot = newSVpvf("%" SVf, SVfARG(key));'],
        ['kinds are not told apart', $bridge, 'return watch && watch->kind == kind ? watch : NULL;', 'return watch;'],
        ['the second exception is lost', 'src/callback.c',
            "    if (!keep_in_border(aTHX_ MY_CXT.border, error, prefix))\n        sve_warn(aTHX_ error, prefix);",
            '    keep_in_border(aTHX_ MY_CXT.border, error, prefix);'],
        ['$! is lost', 'src/errors.h', '    errno = errors->number;', ''],
        ['$_ is lost', 'src/callback.c', 'GvSV(PL_defgv) = frame->topic;', 'SvREFCNT_dec(frame->topic);'],
        ['tokens of two watches are taken', 'src/token.c', '&& watch != must_be_token(aTHX_ cv, opaque, "$opaque"))',
            '&& !must_be_token(aTHX_ cv, opaque, "$opaque"))'],
    );
}
