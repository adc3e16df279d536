# libFuzzer finds no sequence of calls after which the table of watches, or the mailbox, differs from a plain array.
use strict;
use warnings;

use lib 'xt/lib';
use AuthorTest;
use Test::More;

my %runs = (table => 100_000, mailbox => 300_000);
my $dir  = work_dir();
my $seed = $ENV{SVE_SEED} || 1 + int rand 1_000_000;

for my $target (sort keys %runs) {
    my $program = compiled(
        $dir, 'clang', ['-O2', '-fsanitize=fuzzer,address,undefined', '-fno-sanitize-recover=undefined'],
        "xt/c/fuzz_$target.c", qw(src/mailbox.c src/watch.c),
    );
    my $run = run_of(
        [$program, "-runs=$runs{$target}", "-seed=$seed", '-max_len=32', "-artifact_prefix=$dir/"],
        limit => 300, env => { ASAN_OPTIONS => 'detect_leaks=1' },
    );
    is_clean_run($run, "$target, SVE_SEED=$seed");
    like $run->{output}, qr/^Done $runs{$target} runs/m, '... to the end';
}

done_testing;
