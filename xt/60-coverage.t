# What the test suite comes to: the lines of src/ by gcov, the statements of the modules by Devel::Cover. It is at least
# 95 % of each, and there is a reason, below, for each line that is left.
use 5.016;
use strict;
use warnings;

use lib 't/lib';
use Config;
use Cwd qw(getcwd);
use Devel::Cover::DB;
use ExtUtils::Manifest qw(manicopy maniread);
use File::Spec::Functions qw(catfile);
use File::Temp qw(tempdir);
use JSON::PP qw(decode_json);
use Test::More;

use VirtTest;

watchdog(1500);

use constant ENOUGH => 95;

# The file, the function, the line, and why no test comes to it.
my @REASONS = (
    ['src/bridge.c', 'begin_claim', 'return;', 'memory is out'],
    ['src/bridge.c', 'empty_mailbox', 'break;', 'a guard: the count of the mailbox is that of its queue'],
    ['src/bridge.c', 'probe_callback', 'static void probe_callback(int id, void *opaque) { (void)id, (void)opaque; }',
        'the timer is disabled, and gone before a loop runs'],
    ['src/callback.c', 'sve_dispatch', 'return;', "libvirt's own loop calls nothing that is removed or running"],
    ['src/callback.c', 'settle', 'return 0;', 'a guard: perl frees temporaries before it takes its globals away'],
    ['src/callback.c', 'settle', 'else if (MY_CXT.settling >= from)',
        'a guard: a frame that holds a lock frees temporaries of its own only'],
    ['src/callback.c', 'settle',
        'MY_CXT.settling = from - 1;      /* the frame that holds the lock asks again when it is left */',
        'a guard: see the line before'],
    ['src/breaker.c', 'sve_breaker_start', 'return false;', 'no thread is to be had'],
    ['src/ev_loop.c', 'pause_handle', 'return;', 'memory is out'],
    ['src/glib_source.c', 'report', 'sve_warn(aTHX_ error, "");', "a guard: Perl's Glib throws nothing where it reports"],
    ['src/glib_source.c', 'run', q{return G_SOURCE_CONTINUE;        /* the owner's turn comes */},
        "a guard: another thread runs the context, or perl's end does"],
    ['src/glib_source.c', 'start', 'croak("Out of memory");', 'memory is out'],
    ['src/claim.c', 'new_mutex', 'return NULL;', 'memory is out'],
    ['src/claim.c', 'drop_mutex', 'return;', 'memory was out when it was made'],
    ['src/claim.c', 'sve_claim_new', 'return NULL;', 'memory is out'],
    ['src/default_loop.c', 'attach', 'sve_watch_unref(watch);', "libvirt's own loop refuses nothing"],
    ['src/default_loop.c', 'set_limit', 'sve_cannot(aTHX_ cv, "libvirt refused a timeout");',
        "libvirt's own loop refuses nothing"],
    ['src/default_loop.c', 'sve_default_loop_run',
        'sve_park(aTHX_ sv_2mortal(newSVpvf("Cannot run default: %s", virGetLastErrorMessage())), "");',
        "libvirt's own loop has not failed since it is GLib's (6.1)"],
    ['src/mailbox.c', 'sve_replace_fd', 'close(fd);', 'the system takes any open fd in place of any other'],
    ['src/registration.c', 'sve_register', 'must_be_first(aTHX_ cv);',
        'another thread must register between the probe and our own registration'],
    ['src/registration.c', 'sve_register_default', 'sve_cannot(aTHX_ cv, "%s", virGetLastErrorMessage());',
        'it fails only where libvirt cannot be initialised, which it was when the module was loaded'],
    ['src/report.c', 'sve_watches', 'sve_cannot(aTHX_ cv, "out of memory");', 'memory is out'],
    ['src/watch.c', 'sve_watch_new', 'return NULL;', 'memory is out'],
    ['src/watch.c', 'resize', 'return;', 'memory is out'],
    ['src/ev_loop.c', 'deliver', 'return;', 'a guard: EV calls for that only where the owner is'],
);

# These test the kit's verdicts, with loops that are not ours.
my @LEFT_OUT = qw(t/54-verdicts.t t/55-mutants.t);

my @MODULES = map { "Sys/Virt/$_.pm" } qw(Event EventImpl Event/Poll);

# Those that exercise the modules.
my @MODULE_TESTS = map { "t/$_.t" } qw(10-arguments 20-register 30-sys-virt 43-uncovered 45-reentry 48-odds 52-poll);

my $top = getcwd();
my $copy = tempdir('coverage-XXXXXX', TMPDIR => 1, CLEANUP => 1);
my $log = catfile($copy, 'log');
# Some tests become an ordinary user, which counts there, too.
umask 0;
chmod 0777, $copy or die "Cannot open $copy to all: $!";

# Nothing of the harness that runs this test may reach the one in the copy.
delete @ENV{ grep { /\A(?:HARNESS_|TEST_(?!SLOW)|PERL5LIB\z|MAKE|MFLAGS\z|AUTHOR_TESTING\z)/ } keys %ENV };

# Runs a command in the copy, with these variables in its environment.
sub in_copy {
    my ($env, @command) = @_;
    local %ENV = (%ENV, %$env);
    defined(my $pid = fork) or die "Cannot fork: $!";
    if (!$pid) {
        chdir $copy or die "Cannot change directory: $!";
        open STDIN, '<', '/dev/null';
        open STDOUT, '>>', $log or die "Cannot write: $!";
        open STDERR, '>&', \*STDOUT;
        exec { $command[0] } @command or die "Cannot run $command[0]: $!";
    }
    waitpid $pid, 0;
    return $? == 0;
}

sub end_of_log {
    open my $in, '<', $log or return "no log\n";
    my @lines = <$in>;
    return @lines > 40 ? @lines[-40 .. -1] : @lines;
}

sub lines_of { my ($file) = @_; open my $in, '<', "$copy/$file" or die "Cannot read $file: $!"; return <$in> }

sub build {
    local $ExtUtils::Manifest::Quiet = 1;
    manicopy(maniread(), $copy, 'cp');
    return in_copy({}, $^X, 'Makefile.PL', 'OPTIMIZE=-O0 -g', "CCFLAGS=$Config{ccflags} --coverage",
            "LDDLFLAGS=$Config{lddlflags} --coverage -Wl,-u,__gcov_dump")
        && in_copy({}, 'make')
        && in_copy({}, $Config{cc}, qw(-shared -fPIC -o CoverageExit.so), "$top/xt/lib/CoverageExit.c");
}

# { file => [[line, how often it ran, function], ...] }
sub lines_counted {
    my @units = map { s{\A\Q$copy/}{}r } glob "$copy/src/*.gcda";
    open my $gcov, '-|', 'sh', '-c', 'cd "$0" && exec gcov --json-format --stdout "$@"', $copy, @units
        or die "Cannot run gcov: $!";
    # A line of a header is in several units.
    my %count;
    while (my $unit = <$gcov>) {
        for my $file (grep { $_->{file} =~ m{\Asrc/} } @{ decode_json($unit)->{files} }) {
            for my $line (@{ $file->{lines} }) {
                my $counted = $count{ $file->{file} }{ $line->{line_number} } ||= [$line->{line_number}, 0];
                $counted->[1] += $line->{count};
                $counted->[2] = $line->{function_name};
            }
        }
    }
    return { map { $_ => [values %{ $count{$_} }] } keys %count };
}

# The same for statements of Perl, without their functions.
sub statements_counted {
    my ($db) = @_;
    my $cover = Devel::Cover::DB->new(db => $db)->merge_runs->cover;
    my %count;
    for my $file ($cover->items) {
        my $statements = $cover->file($file)->statement or next;
        for my $line ($statements->items) {
            push @{ $count{$file} }, map { [$line, $_->covered, ''] } @{ $statements->location($line) };
        }
    }
    return \%count;
}

sub is_covered {
    my ($what, $count) = @_;
    my %reasons = map { join("\0", @$_[0 .. 2]) => $_->[3] } grep { $count->{ $_->[0] } } @REASONS;
    my ($total, $covered, $unexplained, %used) = (0, 0, 0);
    for my $file (sort keys %$count) {
        my @lines = lines_of($file);
        for (sort { $a->[0] <=> $b->[0] } @{ $count->{$file} }) {
            my ($number, $times, $function) = @$_;
            $total++;
            $covered++, next if $times;
            my $text = $lines[$number - 1] =~ s/\A\s+|\s+\z//gr;
            my $key = join "\0", $file, $function, $text;
            diag "$file:$number: $text: ", $reasons{$key} // 'NO REASON' . ($function && " (in $function)");
            $unexplained++ if !$reasons{$key};
            $used{$key} = 1;
        }
    }
    my $percent = $total ? 100 * $covered / $total : 0;
    cmp_ok $percent, '>=', ENOUGH, sprintf '%s: %d of %d, %.1f %%', $what, $covered, $total, $percent;
    is $unexplained, 0, '... and there is a reason for each that is left';
    is join(', ', map { s/\0/: /gr } grep { !$used{$_} } sort keys %reasons), '',
        '... and for none that is covered or gone';
    return;
}

build() or die "The copy cannot be built:\n", end_of_log();
my %preload = (
    LD_PRELOAD      => "$copy/CoverageExit.so",
    COVERAGE_OBJECT => "$copy/blib/arch/auto/Sys/Virt/Event/Event.so",
);
my %left_out = map { $_ => 1 } @LEFT_OUT;
my @tests = grep { !$left_out{$_} } map { s{\A\Q$copy/}{}r } glob "$copy/t/*.t";
ok in_copy(\%preload, 'make', 'test', "TEST_FILES=@tests"), 'the suite passes' or diag end_of_log();
my $lines = lines_counted();
is_deeply [sort grep { /\.c\z/ } keys %$lines], [map { s{\A\Q$copy/}{}r } sort glob "$copy/src/*.c"], 'all of src/';
is_covered('lines of src/', $lines);

my $db = catfile($copy, 'cover_db');
my $select = '/(?:' . join('|', map { quotemeta } @MODULES) . ')$';
# The counts are written in an END block: children that end by POSIX::_exit tell nothing.
my @cover = ("-MDevel::Cover=-db,$db,-silent,1,-blib,0,-coverage,statement,-ignore,.,-select,$select", '-Mblib');
my %patience = (TEST_SLOW => 4 * ($ENV{TEST_SLOW} || 1));
for my $test (@MODULE_TESTS) {
    ok in_copy(\%patience, $^X, @cover, $test), "$test passes under Devel::Cover" or diag end_of_log();
}
my $statements = statements_counted($db);
is_deeply [sort keys %$statements], [sort map { "blib/lib/$_" } @MODULES], 'all of the modules';
is_covered('statements of the modules', $statements);

my @gone = grep { !$lines->{$_} && !$statements->{$_} } map { $_->[0] } @REASONS;
is "@gone", '', 'no reason is for a file that is gone';
for my $file (sort keys %$lines, keys %$statements) {
    unlike join('', lines_of($file)), qr/[GL]COV_EXCL|uncoverable/, "$file has no exclusion markers";
}

done_testing;
