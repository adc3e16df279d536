# The distribution on another perl: the oldest to be had, without ithreads, with no loop, no EV and no Sys::Virt. What
# 5.16 itself would say is not tried here, as no mirror has it; xt/81-release.t looks for what it would not understand.
use 5.016;
use strict;
use warnings;

use lib qw(t/lib xt/lib);
use File::Spec;
use ExtUtils::Manifest qw(maniread);
use Test::More;

use AuthorTest;
use VirtTest;

plan skip_all => 'its source is Debian\'s, and there is no apt-get' if !grep { -x "$_/apt-get" } File::Spec->path;
watchdog(3600);

my $work  = work_dir();
my $built = run_of(['sh', '-c', 'xt/small-perl 2>"$0"', "$work/log"], limit => 2400);
plan skip_all => 'the mirror has no source of perl' if $built->{status} eq 'exit 3';
$built->{status} eq 'exit 0' or die "No small perl: $built->{status}\n" . qx(tail -n 40 $work/log);
chomp(my $perl = $built->{output});

my $about = run_of([$perl, '-MConfig', '-e', 'print "$] ", $Config{useithreads} // "none"'], limit => 10)->{output};
my ($version, $threads) = split / /, $about;
cmp_ok $version, '<=', $], "perl $version is no newer than this one";
is $threads, 'none', '... and has no ithreads';

# All that is run from here on is run by it.
local $^X = $perl;
my $dir = built_copy();
ok -e "$dir/blib/arch/auto/Sys/Virt/Event/Event.so", 'it can be built';
for my $module (qw(EV AnyEvent IO::Async Mojolicious Glib POE Event Sys::Virt)) {
    isnt run_of([$perl, "-M$module", '-e', 1], limit => 10)->{status}, 'exit 0', "there is no $module";
}

# These test the kit's verdicts on loops that are not ours.
my %is_left_out = map { $_ => 1 } qw(t/54-verdicts.t t/55-mutants.t);
my @tests = grep { m{\At/[^/]+\.t\z} && !$is_left_out{$_} } sort keys %{ maniread() };
my $output = tests_pass($dir, [], \@tests, limit => 900);
my %skipped = $output =~ m{(t/\S+\.t) [ .]*skipped: (.*)$}mg;
my %reason = map { $_ => 1 } grep { !/(?:is not installed|has no ithreads|no host loop is installed)/ } values %skipped;
is join(', ', sort keys %reason), '', 'what is skipped is skipped for what is not there';
cmp_ok scalar(keys %skipped), '<', @tests / 2, '... and that is not most of it';

done_testing;
