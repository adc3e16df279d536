# Every name that the module in Sys::Virt gives to programs is one of ours too. The names are read where that module is
# installed, whatever its version: from its symbol table, its manual and its source.
use 5.016;
use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";

use Test::More;
use VirtTest qw(:DEFAULT text_of);
use VirtTest::DropIn;

watchdog(60);

my @PACKAGES = qw(Sys::Virt::Event Sys::Virt::EventImpl);

# As if there were no Sys::Virt: what its shared object defines cannot pass for ours.
my $WITHOUT_SYS_VIRT = <<'PERL';
BEGIN { unshift @INC, sub { die "Can't locate Sys/Virt.pm in \@INC\n" if $_[1] eq 'Sys/Virt.pm'; return } }
PERL

# Loads what there is and prints a line for each sub of the packages: its name, the C file that it is from or "Perl",
# its value if it is a constant. Then the files of Sys::Virt's that were loaded.
my $READ_SUBS = <<'PERL';
require Sys::Virt::Event;
eval { require Sys::Virt::EventImpl };
use B ();
no strict 'refs';
for my $package (@ARGV) {
    for my $name (map { "${package}::$_" } sort keys %{"${package}::"}) {
        defined &$name or next;
        my $cv = B::svref_2object(\&$name);
        my $is_constant = $cv->CvFLAGS & B::CVf_CONST();
        my $from = $is_constant ? 'constant' : $cv->XSUB ? $cv->FILE =~ s{.*/}{}r : 'Perl';
        print "sub $name $from", $is_constant ? ' ' . &$name : (), "\n";
    }
}
print "file $INC{$_}\n" for grep { m{^Sys/Virt\b} } sort keys %INC;
PERL

# Name => { from, value }, for all subs of the packages, and the files.
sub subs_of {
    my ($loading, %opt) = @_;
    my $run = fresh_perl("$loading\n$READ_SUBS", args => \@PACKAGES, switches => ['-w'], %opt);
    is "$run->{stderr}$run->{exit}/$run->{signal}", '0/0', '... and they can be read';
    my %subs = map { my ($name, $from, $value) = split / /; ($name => { from => $from, value => $value }) }
        $run->{stdout} =~ /^sub (.*)/mg;
    return (\%subs, $run->{stdout} =~ /^file (.*)/mg);
}

# The code of a module and its manual.
sub parts_of {
    my ($file) = @_;
    my $code = text_of($file);
    my $pod  = '';
    $code =~ s/(^=[a-z].*?(?:^=cut$|\z))/$pod .= "$1\n"; ''/emsg;
    return ($code, $pod);
}

# What has a title of its own in a manual: f(...), $self->f(...), my $id = Package::f(...), Package::CONSTANT.
sub documented_in {
    my ($pod) = @_;
    return map { /(\w+)\s*\(/ || /::(\w+)\s*\z/ ? $1 : () } $pod =~ /^=(?:item|head2)\s+(.*)/mg;
}

# What a program can name: what is in the manual of a package, what other files name, and all that the package defines,
# but for Perl's own. Private subs in Perl that stand nowhere are not among it: that module's shared object calls them.
sub names_in {
    my ($subs, @files) = @_;
    my %is_name;
    for my $file (@files) {
        my ($code, $pod) = parts_of($file);
        my ($package) = grep { my $path = s{::}{/}gr; $file =~ m{/\Q$path\E\.pm\z} } @PACKAGES;
        $is_name{$_} = 1 for $code =~ /\b(Sys::Virt::Event(?:Impl)?::\w+)\b(?!::)/g;
        $is_name{"${package}::$_"} = 1 for $package ? documented_in($pod) : ();
    }
    for my $name (grep { !/::(?:BEGIN|END|CLONE|DESTROY|AUTOLOAD|import)\z/ } keys %$subs) {
        $is_name{$name} = 1 if $name !~ /::_\w+\z/ || $subs->{$name}{from} ne 'Perl';
    }
    return sort keys %is_name;
}

# What is missing among ours, or is something else.
sub differences {
    my ($names, $theirs, $ours) = @_;
    my @missing = grep { !$ours->{$_} } @$names;
    my @others  = grep { $ours->{$_} && kind_of($ours->{$_}) ne kind_of($theirs->{$_}) } @$names;
    return join "\n", (map { "$_ is missing" } @missing),
        map { "$_ is " . kind_of($ours->{$_}) . ', not ' . kind_of($theirs->{$_}) } @others;
}

sub kind_of { return $_[0]{value} // 'a function' }

if (my $why = VirtTest::DropIn::why_not()) { plan skip_all => $why }

note 'the names of Sys::Virt ' . VirtTest::DropIn::version();
my ($theirs, @files) = subs_of('require Sys::Virt;', installed => 1);
my @names = names_in($theirs, @files);
note "  $_ ($theirs->{$_}{from})" for grep { $theirs->{$_} } @names;
is join(' ', grep { !$theirs->{$_} } @names), '', 'what is documented or used there exists there';
for my $name (qw(register_default HANDLE_READABLE _run_timeout_callback _free_callback_opaque_helper)) {
    ok scalar(grep { /::\Q$name\E\z/ } @names), "$name is among them";
}

note 'ours';
my ($alone) = subs_of($WITHOUT_SYS_VIRT);
is differences(\@names, $theirs, $alone), '', 'all names are ours, with the same values';
for my $order ('require Sys::Virt;', 'require Sys::Virt::Event; require Sys::Virt;') {
    note "ours after $order";
    my ($together) = subs_of($order);
    is differences(\@names, $theirs, $together), '', 'all names are there';
    is join(' ', grep { $together->{$_}{from} ne $alone->{$_}{from} } @names), '', '... and have not become theirs';
}

subtest 'a name that we lack is told' => sub {
    my @told = map { my %rest = %$alone; delete $rest{$_}; differences(\@names, $theirs, \%rest) } @names;
    is_deeply \@told, [map { "$_ is missing" } @names], 'each of them';
    my $change = 'require Sys::Virt::Event; delete @Sys::Virt::Event::{qw(run_default HANDLE_ERROR)};'
        . ' eval q(sub Sys::Virt::Event::HANDLE_ERROR () { 5 });';
    my ($changed) = subs_of("$WITHOUT_SYS_VIRT $change");
    is differences(\@names, $theirs, $changed),
        "Sys::Virt::Event::run_default is missing\nSys::Virt::Event::HANDLE_ERROR is 5, not 4", 'and another value';
};

# Variables have no place in a list of subs.
my $VARIABLES = <<'PERL';
{
    package My::Loop;
    our @ISA = 'Sys::Virt::Event';
    for my $method (qw(add_handle update_handle remove_handle add_timeout update_timeout remove_timeout)) {
        no strict 'refs';
        *$method = sub { 1 };
    }
}
sub print_variables {
    no strict 'refs';
    print "$_: ", ref ${"Sys::Virt::Event::$_"} || 'nothing', "\n" for @ARGV;
}
print_variables();
Sys::Virt::Event::register(bless {}, 'My::Loop');
print_variables();
PERL
my ($source) = grep { m{/Event\.pm\z} } @files;
my @variables = (parts_of($source))[0] =~ /^our\s+\$(\w+)/mg;
my ($is, $should_be) = map {
    fresh_perl("use Sys::Virt; use Sys::Virt::Event; $VARIABLES", args => \@variables, installed => $_)->{stdout}
} 0, 1;
is $is, $should_be, "the variables (@variables) have the same values";
like $is, qr/^eventimpl: nothing\n(?:.*\n)*eventimpl: My::Loop$/m, '... and one is the registered loop';

done_testing;
