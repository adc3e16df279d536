# LAYOUT matches the tree: it has a line for each file, and a file for each line.
use strict;
use warnings;

use Cwd qw(getcwd);
use ExtUtils::Manifest qw(maniread maniskip);
use FindBin;
use Test::More;

chdir "$FindBin::Bin/.." or die "Cannot change directory: $!\n";

my @tracked = tracked();
my $is_repository = @tracked > 0;
# make dist adds META.json and META.yml.
my @files = sort grep { !/\AMETA\./ } keys %{ { %{ maniread() }, map { $_ => 1 } @tracked } };
my @entries = entries_of('LAYOUT');
cmp_ok scalar @entries, '>', 50, 'LAYOUT has lines';
is_deeply [uncovered(\@entries, @files)], [], 'each file has a line';
is_deeply [uncovered(\@entries, 'new', 'src/new.c', 'lib/Sys/Virt/Event/New.pm')],
    [qw(new src/new.c lib/Sys/Virt/Event/New.pm)], '... and a new one would be missed';

# What is not shipped is not there without a repository.
my $is_not_shipped = maniskip();
my @there = grep { $is_repository || !$is_not_shipped->($_) } @entries;
is_deeply [without_file(\@files, @there)], [], 'each line has a file';
is_deeply [without_file(\@files, 'src/old.[ch]', 't/lib/Old/')], ['src/old.[ch]', 't/lib/Old/'],
    '... and one that is gone would be noticed';
my %seen;
is_deeply [grep { $seen{$_}++ } @entries], [], 'none is there twice';

open my $readme, '<', 'README' or die "Cannot read README: $!\n";
ok grep({ /\bLAYOUT\b/ } <$readme>), 'the README names it';

done_testing;

# What git lists. There may be no git, though this is a checkout.
sub tracked {
    return if !-e '.git';
    my @tracked = split /\0/, `git -c safe.directory='@{[ getcwd() ]}' ls-files -z 2>/dev/null`;
    note 'git does not list the files of the repository' if $?;
    return grep { -e } @tracked;
}

# A path at the beginning of a line, and what it is for after two blanks or on the next line.
sub entries_of {
    my ($file) = @_;
    open my $in, '<', $file or die "Cannot read $file: $!\n";
    local $/;
    return <$in> =~ /^(\S+)(?:  +\S.*|\n {20,}\S.*)$/mg;
}

# A pattern of a shell's, or a directory with all below it.
sub matches {
    my ($entry) = @_;
    my %means = ('*' => '[^/]*', '{' => '(?:', ',' => '|', '}' => ')');
    my $regex = join '', map { /^\[.+\]\z/ ? $_ : $means{$_} // quotemeta } $entry =~ /\[[^]]+\]|./g;
    return $entry =~ m{/\z} ? qr/\A$regex/ : qr/\A$regex\z/;
}

sub uncovered {
    my ($entries, @files) = @_;
    my @regexes = map { matches($_) } @$entries;
    return grep { my $file = $_; !grep { $file =~ $_ } @regexes } @files;
}

sub without_file {
    my ($files, @entries) = @_;
    return grep { my $regex = matches($_); !grep { $_ =~ $regex } @$files } @entries;
}
