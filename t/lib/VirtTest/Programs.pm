package VirtTest::Programs;

# Small programs on an adapter, in fresh processes: libvirt takes one registration each.

use strict;
use warnings;

use Exporter 'import';
use Test::More;
use VirtTest;

our @EXPORT = qw(prints registers_itself leaves_flags shows_its_ticks);

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
    my ($class, %opt) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return prints('-register', <<"PERL", "$class\nsame\nthere is no option -regster\n", %opt);
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

# libvirt's file descriptors keep their flags, and stay open.
sub leaves_flags {
    my ($class, %opt) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return prints('the flags of a file descriptor stay, and it stays open', <<"PERL" . <<'PERL', "0 2048 1 1\n", %opt);
require $class;
$class->import('-register');
PERL
use Fcntl;
my ($reader, $writer) = pipe_pair();
my ($other_reader, $other) = pipe_pair();
fcntl $other, F_SETFL, fcntl($other, F_GETFL, 0) | O_NONBLOCK;
my $calls = 0;
my @ids = (add_handle($reader, 1, sub { $calls++ }), add_handle($other, 2, sub { $calls++ }));
syswrite $writer, 'x';
registered()->run_until(sub { $calls >= 4 }, 10);
my @flags = map { fcntl($_, F_GETFL, 0) & O_NONBLOCK } $reader, $other;
remove_handle($_) for @ids;
Sys::Virt::Event::drain(10);
print join(' ', @flags, map { fcntl($_, F_GETFD, 0) ? 1 : 0 } $reader, $other), "\n";
PERL
}

# A program of examples/ that suspends and resumes a machine when its timer ticks. A timer that comes late may tick twice
# before the first event is told.
sub shows_its_ticks {
    my ($name, $printed) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my ($ticks, $early, @events) = (0, 0);
    for my $line (split /\n/, $printed) {
        $ticks++, next if $line eq 'tick';
        push @events, $line;
        $early++ if @events > $ticks;
    }
    is_deeply(\@events, [map { "test: event $_" } 3, 4, 3, 4], "$name shows its events in order") or diag $printed;
    is("$ticks/$early", '4/0', '... each after its tick');
    return;
}

1;
