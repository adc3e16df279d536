package VirtTest::Contract;

# libvirt's event loop contract as named cases, for any implementation:
#
#     run_cases(
#         name   => 'My::Loop',
#         make   => sub { My::Loop->new },
#         run    => sub { my ($impl, $seconds) = @_; $impl->run_for($seconds) },
#         suites => ['handle', 'timer'],         # all of them unless said
#     );
#     done_testing;
#
# `run` runs the loop for so many seconds at most: it may return as soon as something has happened. Exceptions of
# callbacks may leave it.
#
# Every case has a process of its own that makes and registers its own object, under a watchdog: a hang or a crash is
# one failing case. A case asserts order and count. Of times it asserts lower bounds only, and that what was due
# much earlier came first.

use strict;
use warnings;

use Carp qw(croak);
use Exporter qw(import);
use POSIX ();
use Test::More;
use VirtTest;
use VirtTest::CApi;
use VirtTest::Contract::Case;
use VirtTest::Contract::Callbacks;
use VirtTest::Contract::Frees;
use VirtTest::Contract::Handles;
use VirtTest::Contract::Life;
use VirtTest::Contract::Threads;
use VirtTest::Contract::Timers;
use VirtTest::Contract::Virt;

our @EXPORT_OK = qw(run_cases);

# remote needs a private libvirtd, virt needs Sys::Virt, threads a C compiler (as do most).
my @SUITES = qw(handle mask errhup multi timer order free exception reentry token threads register end virt remote);

# Options beside those above: cases, names of cases of these suites that shall run.
sub run_cases {
    my (%opt) = @_;
    my @suites = @{ delete $opt{suites} || \@SUITES };
    my %named  = map { $_ => 1 } @{ delete $opt{cases} || [] };
    # Loaded once, and not while a case measures a time.
    VirtTest::CApi::events();
    for my $suite (@suites) {
        my @cases = grep { $_->{suite} eq $suite } VirtTest::Contract::Case::all()
            or croak "Cannot run cases: there is no suite $suite";
        @cases = grep { $named{ $_->{name} } } @cases if %named;
        next if !@cases;
        # The processes are forked outside of the subtest, as Test::More has no notion of a fork inside.
        my @results = map { _run_apart($_, \%opt) } @cases;
        subtest "$opt{name}: $suite" => sub {
            plan tests => scalar @cases;
            _report($cases[$_], $results[$_]) for 0 .. $#cases;
        };
    }
    return;
}

sub _report {
    my ($case, $result) = @_;
    SKIP: {
        skip $result->{text}, 1 if $result->{verdict} eq 'skipped';
        ok $result->{verdict} eq 'passed', "case $case->{number}, $case->{name}: $case->{rule}"
            or diag $result->{text};
    }
    return;
}

# The verdict (passed, failed, skipped) and what was said.
sub _run_apart {
    my ($case, $opt) = @_;
    my ($from_case, $to_test) = pipe_pair();
    defined(my $pid = fork) or croak "Cannot fork: $!";
    if (!$pid) {
        close $from_case;
        _be_the_case($case, $opt, $to_test);
    }
    close $to_test;
    my ($verdict, $text) = split /\n/, do { local $/; <$from_case> } // '', 2;
    waitpid $pid, 0;
    my $status = $?;
    ($verdict, $text) = ('failed', '') if !defined $verdict;
    if ($status) {
        $verdict = 'failed';
        $text .= 'Its process ' . _ended($status) . "\n";
    }
    return { verdict => $verdict, text => $text };
}

sub _ended {
    my ($status) = @_;
    return 'was killed, most likely since it hung' if ($status & 127) == POSIX::SIGKILL();
    return $status & 127 ? 'died of signal ' . ($status & 127) : 'ended with exit code ' . ($status >> 8);
}

# It ends like any program, so trouble at the end of an interpreter is seen, too.
sub _be_the_case {
    my ($case, $opt, $to_test) = @_;
    watchdog($case->{limit});
    my $text    = '';
    my $builder = Test::More->builder;
    $builder->reset;
    $builder->no_ending(1);
    open my $capture, '>', \$text or die "Cannot capture output: $!";
    $builder->$_($capture) for qw(output failure_output todo_output);

    my $subject = VirtTest::Contract::Case->new(%$opt);
    $SIG{__WARN__} = sub { $subject->note_warning(@_) };
    my $verdict = eval { $case->{code}->($subject); 1 } ? 'passed' : 'failed';
    if (ref $@ eq 'VirtTest::Contract::Skip') {
        ($verdict, $text) = ('skipped', ${$@});
    }
    else {
        diag 'The case died: ', $@ if $verdict eq 'failed';
        is_deeply [$subject->warnings], [], 'there were no other warnings';
        $verdict = 'failed' if !$builder->is_passing || $builder->current_test < 2;
    }
    print $to_test "$verdict\n$text";
    close $to_test;
    watchdog(0);
    exit 0;
}

1;
