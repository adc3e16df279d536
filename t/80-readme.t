# The programs in the README are those in examples/, and they work.
use strict;
use warnings;

use File::Basename qw(dirname);
use lib dirname(__FILE__) . '/lib';
use Test::More;
use VirtTest;

plan skip_all => 'Sys::Virt is not installed (Debian: libsys-virt-perl)' if !eval { require Sys::Virt };
watchdog(60);

my $top    = dirname(__FILE__) . '/..';
my $readme = text_of("$top/README");

# A line that names the file, and the indented block below it.
my %program;
while ($readme =~ m{^examples/(\w+\.pl):\n\n((?:(?:[ ]{4}.*)?\n)+)}mg) {
    my ($name, $code) = ($1, $2);
    $code =~ s/^ {4}//mg;
    $code =~ s/\n+\z/\n/;
    $program{$name} = $code;
}
is_deeply([sort keys %program], [qw(poll.pl subclass.pl)], 'the README has two programs');

my %expected = (
    'poll.pl'     => "test: event 3, detail 0\n",
    'subclass.pl' => "event 3\n",
);
for my $name (sort keys %expected) {
    is($program{$name}, text_of("$top/examples/$name"), "$name is the same in the README and in examples/");
    my $run = fresh_perl($program{$name} // '', switches => ['-w']);
    is($run->{stdout}, $expected{$name}, "$name prints the event");
    is($run->{stderr}, '', '... and no warning');
    ok(!$run->{timed_out} && !$run->{exit} && !$run->{signal}, '... and ends well');
}

# What is called the output of the demonstration looks like it.
my @lines = $readme =~ /^ {4}(\d\d:\d\d:\d\d\.\d{3}  .+)$/mg;
cmp_ok(@lines, '>=', 5, 'the README shows some output');
my @tool = ($^X, (map { "-I$_" } grep { !ref } @INC), "$top/script/virt-events");
my $demo = fresh_perl("exec \@ARGV or die", args => [@tool, "--demo"]);
my %printed = map { without_time($_) => 1 } split /\n/, $demo->{stdout};
is_deeply([grep { !$printed{ without_time($_) } } @lines], [], 'virt-events --demo prints every line of it');

done_testing;

sub without_time { return $_[0] =~ s/^\S+//r }

sub text_of {
    my ($file) = @_;
    open my $in, '<', $file or die "Cannot read $file: $!\n";
    local $/;
    return scalar <$in>;
}
