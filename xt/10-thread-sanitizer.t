# The pure C core is free of data races: eight threads hammer it while a fake back-end checks order, frees and wake-ups
# (xt/c/hammer.c). The same under AddressSanitizer, which also sees every watch that is not given back.
use strict;
use warnings;

use lib 'xt/lib';
use AuthorTest;
use Test::More;

use constant ROUNDS => 5;

my @sources = qw(xt/c/hammer.c src/bridge.c src/claim.c src/mailbox.c src/watch.c);
my $dir     = work_dir();
my $seed    = $ENV{SVE_SEED} || 1 + int rand 1_000_000;
my %count;

for my $sanitizer (('thread', 'address,undefined')) {
    my $program = compiled($dir, 'gcc', ['-O1', "-fsanitize=$sanitizer", '-fno-sanitize-recover=undefined'], @sources);
    my @prefix  = runs_under($program);
    for my $wake (('function', 'always', 'auto')) {
        hammered($sanitizer, $wake, $_, @prefix, $program) for $seed .. $seed + ROUNDS - 1;
    }
}
# On a busy machine a single run may have none of one kind.
ok $count{$_}, "of all runs: $count{$_} $_" for qw(watches callbacks gone busy frees wake-ups);

done_testing;

sub hammered {
    my ($sanitizer, $wake, $seed, @command) = @_;
    my $name = "-fsanitize=$sanitizer, wake $wake, SVE_SEED=$seed";
    my $run = run_of([@command, $wake, $seed, 60], limit => 90);
    is_clean_run($run, $name) or return;
    my %in_run = reverse $run->{output} =~ /(\d+) ([\w-]+)/g;
    note $run->{output};
    cmp_ok $in_run{calls}, '>=', 100_000, '... made its calls';
    $count{$_} += $in_run{$_} for keys %in_run;
}

# Older runtimes of ThreadSanitizer have no room where newer kernels put things, unless addresses are not randomized.
sub runs_under {
    my ($program) = @_;
    return run_of([$program], limit => 20)->{output} =~ /unexpected memory mapping/ ? qw(setarch -R) : ();
}
