package AuthorTest;

# What the checks that build something have in common: a copy of the tree, a compiler's work, a run and its report.

use strict;
use warnings;

use Carp qw(croak);
use Config;
use Cwd qw(getcwd);
use Exporter qw(import);
use ExtUtils::Manifest qw(maniread);
use File::Basename qw(dirname);
use File::Copy qw(copy);
use File::Path qw(make_path);
use File::Temp ();
use Test::More;
use Test::Sys::Virt::EventImpl::Util qw(patience);

our @EXPORT = qw(built_copy compiled run_of is_clean_run tests_pass work_dir);

use constant LAST_LINES => 60;

# What the harness has told this test is not for the tests of a copy.
my @HARNESS = qw(AUTHOR_TESTING PERL5LIB PERL5OPT PERL_DL_NONLAZY HARNESS_ACTIVE HARNESS_IS_VERBOSE HARNESS_OPTIONS
    HARNESS_PERL_SWITCHES HARNESS_VERSION TEST_ACTIVE TEST_VERBOSE MAKEFLAGS MAKELEVEL MFLAGS);

# A directory that the ordinary user which some tests become can read, and write to. Gone when the object is.
sub work_dir {
    my $dir = File::Temp->newdir('sve-author-XXXXXX', TMPDIR => 1);
    chmod 01777, $dir or croak "Cannot open $dir to all: $!";
    return $dir;
}

# What is in MANIFEST, built with these variables of make.
sub built_copy {
    my (%variables) = @_;
    my $dir = work_dir();
    for my $file (sort keys %{ maniread() }) {
        make_path(dirname("$dir/$file"));
        copy($file, "$dir/$file") or croak "Cannot copy $file: $!";
    }
    my @make = map { "$_=$variables{$_}" } sort keys %variables;
    for my $command ([$^X, 'Makefile.PL'], [$Config{make}, '-s', @make]) {
        my $run = run_of($command, dir => $dir, limit => 300);
        $run->{status} eq 'exit 0' or croak "Cannot build a copy: @$command: $run->{status}\n$run->{output}";
    }
    return $dir;
}

# The program made of C files by cc with these flags, for which libvirt's headers and library are found.
sub compiled {
    my ($dir, $cc, $flags, @sources) = @_;
    my $program = "$dir/" . join('-', map { s/\W+/-/gr } $cc, @$flags);
    my @libvirt = map { defined $ENV{"LIBVIRT_$_"} ? $ENV{"LIBVIRT_$_"} : scalar qx(pkg-config --\L$_\E libvirt) }
        qw(CFLAGS LIBS);
    my ($cflags, $libs) = map { [split] } @libvirt;
    my $run = run_of(
        [$cc, '-std=c11', '-g', '-Wall', '-Wextra', '-Werror', @$flags, '-Isrc', @$cflags, @sources, @$libs,
            '-pthread', '-o', $program],
        limit => 300
    );
    $run->{status} eq 'exit 0' or croak "Cannot compile @sources: $run->{output}";
    return $program;
}

# Runs a command, kills it and its children after so many seconds, and returns { output, status }, where status is
# "exit 0" or the like. Options: dir, env (undef: not in the environment), limit (60).
sub run_of {
    my ($command, %opt) = @_;
    my $limit = patience($opt{limit} // 60);
    defined(my $pid = open my $out, '-|') or croak "Cannot fork: $!";
    if (!$pid) {
        my %env = ((map { $_ => undef } @HARNESS), %{ $opt{env} || {} });
        delete @ENV{ keys %env };
        $ENV{$_} = $env{$_} for grep { defined $env{$_} } keys %env;
        open STDIN, '<', '/dev/null' or die $!;
        open STDERR, '>&', \*STDOUT or die $!;
        chdir $opt{dir} or die "$opt{dir}: $!\n" if $opt{dir};
        exec 'timeout', '--kill-after=10', $limit, @$command or die "Cannot run timeout: $!\n";
    }
    my $output = do { local $/; <$out> } // '';
    local ($?, $!);
    close $out;
    # timeout dies of the signal that its command died of, or tells it as a shell does.
    my $code   = $? & 127 ? 128 + ($? & 127) : $? >> 8;
    my $status = $code == 124 ? "killed after $limit s" : $code > 128 ? 'signal ' . ($code - 128) : "exit $code";
    return { output => $output, status => $status };
}

sub is_clean_run {
    my ($run, $name) = @_;
    my $is_clean = $run->{status} eq 'exit 0' && $run->{output} !~ /^(?:==\d+==)?\s*(?:WARNING|ERROR): \w+Sanitizer/m;
    ok $is_clean, $name or diag "$run->{status}\n", last_lines($run->{output});
    return $is_clean;
}

# The tests below a directory pass, each in a perl that this command runs. Returns what they said.
sub tests_pass {
    my ($dir, $command, $tests, %opt) = @_;
    my $prove = 'use App::Prove; my $prove = App::Prove->new; $prove->process_args(@ARGV); exit !$prove->run';
    my @exec = (@$command, $^X, map { "-I$dir/blib/$_" } qw(lib arch));
    my $run = run_of([$^X, '-e', $prove, '--', '--timer', '--jobs=2', '--exec', "@exec", @$tests], dir => $dir, %opt);
    note $run->{output};
    is $run->{status}, 'exit 0', @$tests . ' test files pass' or diag last_lines($run->{output});
    return $run->{output};
}

sub last_lines {
    my ($text) = @_;
    my @lines = split /^/, $text;
    return @lines > LAST_LINES ? @lines[-LAST_LINES() .. -1] : @lines;
}

1;
