# The whole suite under AddressSanitizer and UndefinedBehaviorSanitizer: no report. Leaks are valgrind's
# (30-valgrind.t): perl itself leaves a lot behind.
use strict;
use warnings;

use lib 'xt/lib';
use AuthorTest;
use File::Basename qw(basename);
use Test::More;

# These test the tests: cases of the kit fail on broken loops, and on builds of a broken core, within time limits that
# are known to them. Or they run programs of others, which have reports of their own (troff's, of man).
my %LEFT_OUT = map { $_ => 1 } '31-examples.t', '54-verdicts.t', '55-mutants.t', '56-kit.t', '82-man.t';

# Debian's perl is built with -fwrapv, which would hide an overflow.
my $sanitize = '-fsanitize=address,undefined';
my $copy = built_copy(
    OPTIMIZE => "-O1 -g $sanitize -fno-omit-frame-pointer -fno-wrapv -fno-sanitize-recover=undefined",
    LDDLFLAGS => "-shared $sanitize",
);
my $reports = work_dir();
my @tests   = map { "t/$_" } grep { !$LEFT_OUT{$_} } map { basename($_) } glob "$copy/t/*.t";

# Some tests crash on purpose, and look at the signal: then the handlers of AddressSanitizer would be in the way.
my @signals = map { "handle_$_=0" } qw(segv sigbus sigfpe sigill abort);
my $options = join ':', 'detect_leaks=0', "log_path=$reports/report", @signals;

my $output = tests_pass(
    $copy,
    ['env', 'LD_PRELOAD=' . join ':', map({ runtime($_) } 'libasan.so', 'libubsan.so'), xdr_library()],
    \@tests,
    limit => 1500,
    env => {
        ASAN_OPTIONS        => $options,
        UBSAN_OPTIONS       => 'print_stacktrace=1',
        PERL_DESTRUCT_LEVEL => 2,
        TEST_SLOW           => 4,
    },
);
is reports(), '', 'no report of AddressSanitizer';
# UndefinedBehaviorSanitizer has no file of its own beside the other: it reports to stderr, and ends the process.
unlike $output, qr/: runtime error: /, 'no report of UndefinedBehaviorSanitizer';

done_testing;

sub runtime {
    my ($name) = @_;
    chomp(my $path = qx(gcc -print-file-name=$name));
    return $path;
}

# AddressSanitizer stands in for the xdr_ functions, with which libvirt packs its messages, and looks for the true ones
# when the process starts. Then libvirt, which Sys::Virt loads later, is not there with its library, and what it calls
# in the end is NULL. So that library must be there from the start.
sub xdr_library {
    my ($path) = glob "$copy/blib/arch/auto/Sys/Virt/Event/Event.so";
    return qx(ldd '$path') =~ m{=> (/\S*/libtirpc\.so\S*)} ? $1 : ();
}

sub reports {
    return join "\n", map { open my $in, '<', $_ or die "$_: $!"; local $/; <$in> } glob "$reports/report*";
}
