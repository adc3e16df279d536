# The tree is formatted as its configuration wants it, and shellcheck finds nothing. That these see what they are there
# to see is tried on copies.
use strict;
use warnings;

use lib 't/lib', 'xt/lib';
use AuthorTest qw(run_of work_dir);
use ExtUtils::Manifest qw(maniread);
use File::Basename qw(dirname);
use File::Copy qw(copy);
use File::Path qw(make_path);
use Test::More;
use VirtTest qw(text_of);

my @shell = grep { /\.sh\z/ || text_of($_) =~ m{\A#!/bin/sh\b} } sort keys %{ maniread() }, glob '.ci/run';
cmp_ok scalar @shell, '>=', 4, "these are the shell's: @shell";

is_silent([$^X, 'dev/format'], 'the tree is formatted');
is_silent(['shellcheck', '-x', @shell], 'shellcheck finds nothing');

my @faults = (
    ['src/watch.c',               'sve_now(void)',         'sve_now (void)'],
    ['src/mailbox.h',             '    ',                  '  '],
    ['src/token.h',               "#endif\n",              "#endif\n\n\n"],
    ['lib/Sys/Virt/EventImpl.pm', 'use strict;',           'use strict  ;'],
    ['t/82-layout.t',             'without_file(\\@files', 'without_file( \\@files'],
    ['LAYOUT',                    "\n",                    " \n"],
    ['README',                    '    sh dev/demo',       "\tsh dev/demo"],
    ['script/virt-events',        "use strict;\n",         'use strict;' . '    #' x 40 . "\n"],
);
my $dir = work_dir();
for my $file (qw(.clang-format .editorconfig .perltidyrc dev/format), map { $_->[0] } @faults) {
    make_path(dirname("$dir/$file"));
    copy($file, "$dir/$file") or die "Cannot copy $file: $!\n";
}
put_into("$dir/MANIFEST", map { "$_->[0]\n" } @faults);
change("$dir/$_->[0]", @$_[1, 2]) for @faults;

my $run = run_of([$^X, 'dev/format'], dir => $dir, limit => 120);
is $run->{status}, 'exit 1', 'faults are told';
my %told = map { $_ => 1 } $run->{output} =~ /^([^:\n]+):\d+: /mg;
is_deeply [sort keys %told], [sort map { $_->[0] } @faults], '... in each file' or diag $run->{output};

$run = run_of([$^X, 'dev/format', '--fix'], dir => $dir, limit => 120);
my @left = $run->{output} =~ /^([^:\n]+):\d+: /mg;
is_deeply \@left, [qw(LAYOUT README script/virt-events)], '--fix leaves what only a person can mend' or diag $run->{output};
is text_of("$dir/$_"), text_of($_), "... and has mended $_" for map { $_->[0] } @faults[0 .. 4];

put_into("$dir/MANIFEST", "$faults[0][0]\n");
$run = run_of([$^X, 'dev/format'], dir => $dir, limit => 120);
is "$run->{status}\n$run->{output}", "exit 0\n", 'a single file is enough';

done_testing;

sub is_silent {
    my ($command, $name) = @_;
    my $run = run_of($command, limit => 600);
    is "$run->{status}\n$run->{output}", "exit 0\n", $name;
    return;
}

sub change {
    my ($file, $old, $new) = @_;
    my $text = text_of($file);
    $text =~ s/\Q$old\E/$new/ or die "There is no '$old' in $file\n";
    put_into($file, $text);
    return;
}

sub put_into {
    my ($file, @text) = @_;
    open my $out, '>', $file or die "Cannot write $file: $!\n";
    print {$out} @text;
    close $out or die "Cannot write $file: $!\n";
    return;
}
