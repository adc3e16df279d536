package VirtTest::Programs;

# Small programs on an adapter, in fresh processes: libvirt takes one registration each.

use strict;
use warnings;

use Exporter 'import';
use Test::More;
use VirtTest;

our @EXPORT = qw(prints registers_itself ticks_then_tells);

my $PRELUDE = <<'PERL';
use strict;
use warnings;
use Test::Sys::Virt::EventImpl::Util;
use Sys::Virt::Event qw(add_handle remove_handle add_timeout update_timeout remove_timeout registered);
$| = 1;
$SIG{__WARN__} = sub { print "warning: $_[0]" };
#line 1 program
PERL

# The program prints this, or what matches, has no errors, and ends by itself. The options are fresh_perl's.
sub prints {
    my ($name, $code, $expected, %opt) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my $run = fresh_perl($PRELUDE . $code, switches => ['-w'], %opt);
    ref $expected ? like($run->{stdout}, $expected, $name) : is($run->{stdout}, $expected, $name);
    is("$run->{stderr}$run->{exit}/$run->{signal}/$run->{timed_out}", '0/0/0', '... and ends well');
    return;
}

# use CLASS -register
sub registers_itself {
    my ($class) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return prints('-register', <<"PERL", "$class\nsame\nthere is no option -regster\n");
require $class;
$class->import('-register');
my \$loop = registered();
print ref \$loop, "\\n";
$class->import('-register');
print "same\\n" if registered() == \$loop;
eval { $class->import('-regster') };
print \$@ =~ /(there is no option \\S+)/, "\\n";
PERL
}

# What an example with a timer has printed: each tick does something, of which an event tells later. On a busy machine the
# next tick may be first.
sub ticks_then_tells {
    my ($stdout, $name) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my ($ticks, $early, @told) = (0, 0);
    for my $line (split /^/, $stdout) {
        if ($line eq "tick\n") { $ticks++; next }
        push @told, $line;
        $early++ if @told > $ticks;
    }
    is join('', "$ticks ticks, $early early\n", @told),
        join('', "4 ticks, 0 early\n", map { "test: event $_\n" } 3, 4, 3, 4), $name;
    return;
}

1;
