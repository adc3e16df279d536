package VirtTest::Mutants;

# Deliberately broken loops: a few lines of Poll are changed, or of the core where the core prevents what the case is
# about. The files in t/mutants/ list them, each is a list of hashes:
#
#     case  => 'removes_itself',                          the case that must fail
#     also  => ['removed_before'],                        others that may fail with it, for the same reason
#     what  => 'remove_handle forgets nothing',
#     edits => [[FILE, FROM, TO], ...],                   FROM is there once; FILE is Poll.pm, or one below the top
#
# A mutant is judged in a process that finds the changed files before ours.

use strict;
use warnings;

use Carp qw(croak);
use Config;
use Data::Dumper ();
use File::Basename qw(dirname);
use File::Path qw(make_path);
use File::Spec;
use File::Temp ();
use Test::Sys::Virt::EventImpl qw(eventimpl_verdicts);
use VirtTest ();

my $top = File::Spec->rel2abs(dirname(__FILE__) . '/../../..');

sub all {
    return map { my $file = $_; my @list = do $file; $@ || $! && !@list ? die "$file: ", $@ || $!, "\n" : @list }
        sort glob "$top/t/mutants/*.pl";
}

# The names of the cases that fail. Options are those of eventimpl_verdicts.
sub failing {
    my ($mutant, %opt) = @_;
    my $dir  = File::Temp->newdir;
    my @inc  = _make($mutant, "$dir");
    my $judge = _is_perl($mutant) ? \&_judge : \&_judge_apart;
    return $judge->($mutant, \@inc, %opt);
}

sub _is_perl { return !grep { $_->[0] !~ /\.pm\z/ } @{ $_[0]{edits} } }

# Poll is not loaded before the case, in its own process.
sub _judge {
    my ($mutant, $inc, %opt) = @_;
    local @INC = (@$inc, @INC);
    my @verdicts = eventimpl_verdicts(sub { require Sys::Virt::Event::Poll; Sys::Virt::Event::Poll->new }, %opt);
    return map { $_->{name} } grep { $_->{verdict} eq 'failed' } @verdicts;
}

# A changed shared object needs a perl of its own.
sub _judge_apart {
    my ($mutant, $inc, %opt) = @_;
    my $code = 'use VirtTest::Mutants; print map { "$_\n" } VirtTest::Mutants::_judge(undef, [], %{ +eval shift }), "end"';
    my $options = Data::Dumper->new([\%opt])->Indent(0)->Terse(1)->Dump;
    my $result = VirtTest::fresh_perl($code, args => [$options], timeout => 600, includes => $inc);
    my @lines = split /\n/, $result->{stdout};
    pop @lines eq 'end' or croak "Cannot judge $mutant->{what}: $result->{stderr}";
    return @lines;
}

# Directories for @INC.
sub _make {
    my ($mutant, $dir) = @_;
    _copy_tree($dir) if !_is_perl($mutant);
    for my $edit (@{ $mutant->{edits} }) {
        my ($file, $from, $to) = @$edit;
        my $source = -e "$dir/$file" ? "$dir/$file" : "$top/$file";
        my $text = VirtTest::text_of($source);
        my $count = () = $text =~ /\Q$from\E/g;
        $count == 1 or croak "Cannot make $mutant->{what}: $file has $count times $from";
        $text =~ s/\Q$from\E/$to/;
        make_path(dirname("$dir/$file"));
        VirtTest::write_text("$dir/$file", $text);
    }
    return "$dir/lib" if _is_perl($mutant);
    local $?;
    my $output = qx($Config{make} -s -C '$dir' OPTIMIZE='-O0 -Werror=return-type' 2>&1);
    $? and croak "Cannot build $mutant->{what}: $output";
    return ("$dir/blib/lib", "$dir/blib/arch");
}

# What make needs to build again only what has changed.
sub _copy_tree {
    my ($dir) = @_;
    for my $name (qw(blib kit lib script src Event.xs Event.c Event.o Event.bs Makefile Makefile.PL typemap pm_to_blib)) {
        -e "$top/$name" and system(cp => '-a', "$top/$name", $dir) and croak "Cannot copy $name";
    }
    return;
}

1;
