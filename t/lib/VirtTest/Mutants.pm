package VirtTest::Mutants;

# Deliberately broken loops: a few lines of Poll are changed, or of the core where the core prevents what the case is
# about. The files in t/mutants/ list them, each is a list of hashes:
#
#     case  => 'removes_itself',                          the case that must fail
#     also  => ['removed_before'],                        others that fail of necessity, for the same reason
#     what  => 'remove_handle forgets nothing',
#     edits => [[FILE, FROM, TO], ...],                   FROM is there once; FILE is Poll.pm, or one below the top
#
# A mutant is judged by a perl of its own that finds the changed files before ours.

use strict;
use warnings;

use Carp qw(croak);
use File::Basename qw(dirname);
use File::Copy ();
use File::Find ();
use File::Path qw(make_path);
use File::Spec;
use File::Temp ();
use VirtTest ();

use constant POLL => 'lib/Sys/Virt/Event/Poll.pm';

my $top = File::Spec->rel2abs(dirname(__FILE__) . '/../../..');

sub all {
    return map { my $file = $_; my @list = do $file; $@ || $! && !@list ? die "$file: ", $@ || $!, "\n" : @list }
        sort glob "$top/t/mutants/*.pl";
}

# The names of the cases that fail, sorted. Options are those of eventimpl_verdicts.
sub failing {
    my ($mutant, %opt) = @_;
    my $dir    = File::Temp->newdir;
    my $blib   = _make($mutant, "$dir");
    my $result = VirtTest::fresh_perl(<<'PERL', args => [%opt], timeout => 600, includes => $blib);
use Sys::Virt::Event::Poll;
use Test::Sys::Virt::EventImpl qw(eventimpl_verdicts);
my %opt = @ARGV;
$opt{$_} = [split / /, $opt{$_}] for grep { $opt{$_} } qw(cases suites);
my @verdicts = eventimpl_verdicts(sub { Sys::Virt::Event::Poll->new }, %opt);
print map { "$_\n" } sort map { $_->{name} } grep { $_->{verdict} eq 'failed' } @verdicts;
print "end\n";
PERL
    $result->{stdout} =~ s/^end\n\z//m or croak "Cannot judge $mutant->{what}: $result->{stderr}";
    return split /\n/, $result->{stdout};
}

# Directories for @INC.
sub _make {
    my ($mutant, $dir) = @_;
    my @files = map { $_->[0] } @{ $mutant->{edits} };
    my $is_c = grep { $_ !~ /\.pm\z/ } @files;
    _copy_tree($dir) if $is_c;
    for my $edit (@{ $mutant->{edits} }) {
        my ($file, $from, $to) = @$edit;
        my $source = -e "$dir/$file" ? "$dir/$file" : "$top/$file";
        my $text = _slurp($source);
        my $count = () = $text =~ /\Q$from\E/g;
        $count == 1 or croak "Cannot make $mutant->{what}: $file has $count times $from";
        $text =~ s/\Q$from\E/$to/;
        _write("$dir/$file", $text);
    }
    return ["$dir/lib"] if !$is_c;
    my $output = do { local $?; qx(make -s -C '$dir' OPTIMIZE=-O0 2>&1) };
    $output =~ /\*\*\*|error:/ and croak "Cannot build $mutant->{what}: $output";
    return ["$dir/blib/lib", "$dir/blib/arch"];
}

# What make needs to build again only what has changed.
sub _copy_tree {
    my ($dir) = @_;
    for my $name (qw(blib kit lib script src Event.xs Event.c Event.o Event.bs Makefile Makefile.PL typemap pm_to_blib)) {
        -e "$top/$name" and system(cp => '-a', "$top/$name", $dir) and croak "Cannot copy $name";
    }
    return;
}

sub _slurp {
    my ($file) = @_;
    open my $in, '<', $file or croak "Cannot read $file: $!";
    local $/;
    return scalar <$in>;
}

sub _write {
    my ($file, $text) = @_;
    make_path(dirname($file));
    unlink $file;
    open my $out, '>', $file or croak "Cannot write $file: $!";
    print $out $text;
    close $out or croak "Cannot write $file: $!";
    return;
}

1;
