#!/usr/bin/perl
# What it costs to dispatch a handle callback to a Perl coderef, and to update a handle:
# the built tree against the installed Sys::Virt's module, the same loop object, interleaved runs.
#
#   perl bench/dispatch.pl [rounds]        nanoseconds a call, best and median of the rounds
#   perl bench/dispatch.pl --count         instructions a call, by valgrind --tool=callgrind
use strict;
use warnings;
use Cwd qw(abs_path);
use File::Basename qw(dirname);
use File::Temp qw(tempdir);
use Time::HiRes qw(clock_gettime CLOCK_MONOTONIC);

my $TOP = dirname(dirname(abs_path(__FILE__)));
my %INCLUDE = (ours => ["-I$TOP/blib/lib", "-I$TOP/blib/arch"], installed => []);
my @WHAT = qw(handle timeout update add_remove);

sub loop_object {
    package Bench::Loop;
    our @ISA = ('Sys::Virt::Event');
    my $next = 1;
    no warnings 'once';
    *new            = sub { bless {}, shift };
    *add_handle     = sub { my ($s, $fd, $ev, $cb, $o, $ff) = @_; $s->{$next} = [$fd, $ev, $cb, $o, $ff]; $next++ };
    *update_handle  = sub { $_[0]{$_[1]}[1] = $_[2] };
    *remove_handle  = sub { my $r = delete $_[0]{$_[1]}; push @{ $_[0]{free} }, $r; 0 };
    *add_timeout    = sub { my ($s, $ms, $cb, $o, $ff) = @_; $s->{$next} = [-1, $ms, $cb, $o, $ff]; $next++ };
    *update_timeout = sub { $_[0]{$_[1]}[1] = $_[2] };
    *remove_timeout = *remove_handle;
    return Bench::Loop->new;
}

sub work {
    my ($what, $count) = @_;
    require Sys::Virt;
    require Sys::Virt::Event;
    my $loop = loop_object();
    Sys::Virt::Event::register($loop);
    my $calls = 0;
    my $code = sub { $calls++ };
    my $handle = Sys::Virt::Event::add_handle(0, 1, $code);
    my $timer = Sys::Virt::Event::add_timeout(1000, $code);
    my ($h) = grep { ref && $_->[0] == 0 } map { $loop->{$_} } grep { /\d/ } keys %$loop;
    my ($t) = grep { ref && $_->[0] == -1 } map { $loop->{$_} } grep { /\d/ } keys %$loop;
    my ($h_cb, $h_opaque, $t_cb, $t_opaque) = (@$h[2, 3], @$t[2, 3]);
    my $start = clock_gettime(CLOCK_MONOTONIC);
    if ($what eq 'handle')  { $loop->_run_handle_callback($handle, 0, 1, $h_cb, $h_opaque) for 1 .. $count }
    if ($what eq 'timeout') { $loop->_run_timeout_callback($timer, $t_cb, $t_opaque) for 1 .. $count }
    if ($what eq 'update')  { Sys::Virt::Event::update_handle($handle, $_ & 1) for 1 .. $count }
    if ($what eq 'add_remove') {
        for (1 .. $count) {
            Sys::Virt::Event::remove_handle(Sys::Virt::Event::add_handle(0, 1, $code));
            my $r = pop @{ $loop->{free} };
            $loop->_free_callback_opaque($r->[4], $r->[3]);
        }
    }
    my $seconds = clock_gettime(CLOCK_MONOTONIC) - $start;
    die "$calls calls" if $what =~ /handle|timeout/ && $calls != $count;
    return $seconds / $count * 1e9;
}

sub run { my @command = @_; open my $out, '-|', @command or die; local $/; my $text = <$out>; close $out or die "@command: $?"; $text }
sub median { (sort { $a <=> $b } @_)[@_ / 2] }
sub best { (sort { $a <=> $b } @_)[0] }

if (@ARGV && $ARGV[0] eq '--work') {
    printf "%.1f\n", work(@ARGV[1, 2]);
    exit;
}

my $count_instructions = @ARGV && $ARGV[0] eq '--count';
my $rounds = $count_instructions ? 1 : $ARGV[0] || 5;
my $dir = tempdir(CLEANUP => 1);
@ENV{qw(PERL_HASH_SEED PERL_PERTURB_KEYS)} = (0, 0);         # or start-up differs from run to run

sub instructions {
    my ($who, $what, $count) = @_;
    my $file = "$dir/$who-$what-$count";
    run('valgrind', '-q', '--tool=callgrind', "--callgrind-out-file=$file",
        $^X, @{ $INCLUDE{$who} }, abs_path(__FILE__), '--work', $what, $count);
    open my $in, '<', $file or die "$file: $!";
    my ($total) = map { /^(?:summary|totals): (\d+)/ ? $1 : () } <$in>;
    return $total;
}

printf "%-11s %22s %22s %7s\n", '', 'ours', 'installed', 'ratio';
for my $what (@WHAT) {
    my %figure;
    for (1 .. $rounds) {
        for my $who (qw(ours installed)) {
            push @{ $figure{$who} }, $count_instructions
                ? (instructions($who, $what, 22_000) - instructions($who, $what, 2_000)) / 20_000
                : run($^X, @{ $INCLUDE{$who} }, abs_path(__FILE__), '--work', $what, 300_000) + 0;
        }
    }
    printf "%-11s %9.0f (median %5.0f) %9.0f (median %5.0f) %6.2f\n", $what,
        (map { best(@{ $figure{$_} }), median(@{ $figure{$_} }) } qw(ours installed)),
        best(@{ $figure{ours} }) / best(@{ $figure{installed} });
}
