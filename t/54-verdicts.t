# The verdicts on loops that are not this distribution's are those that the manual of the kit tells. What depends on
# libvirt or Sys::Virt is compared with the versions that the manual names. Arguments choose loops.
use strict;
use warnings;

use lib 't/lib';
use SideBySide qw(side_by_side);
use Test::More;
use Test::Sys::Virt::EventImpl qw(eventimpl_verdicts);
use VirtTest;
use VirtTest::Subjects;

# The name in VirtTest::Subjects, the heading in the manual, and whether it is about other people's code. The last one
# hangs in many cases.
my @LOOPS = (
    ['epoll',     'A loop written from the manual'],
    ['select',    'A simple select loop'],
    ['default',   q(libvirt's own loop), 1],
    ['installed', 'The same loop on the module of Sys::Virt', 1],
);
pop @LOOPS if !$ENV{AUTHOR_TESTING} && !@ARGV;
@LOOPS = grep { $_->[0] ne 'epoll' || VirtTest::has_epoll() } @LOOPS;
for my $case (Test::Sys::Virt::EventImpl::Case::all()) {
    my $why = Test::Sys::Virt::EventImpl::Case::why_not($case, { make => 1 });
    plan skip_all => $why if defined $why;
}

my %named = map { $_ => 1 } @ARGV;
@LOOPS = grep { $named{ $_->[0] } } @LOOPS if %named;
my $manual  = manual();
my $version = versions();
my @failing = side_by_side(map { my $name = $_->[0]; sub { \failing($name) } } @LOOPS);

for my $n (0 .. $#LOOPS) {
    my ($name, $heading, $is_theirs) = @{ $LOOPS[$n] };
    my $found = ${ $failing[$n] };
    my ($section) = $manual =~ /^=head2 \Q$heading\E\n(.*?)^=head/ms;
    my $told = join '', sort map { s/\s+/ /gr . "\n" } $section =~ /^  (\w+: .*(?:\n {4,}.*)*)/mg;
    if ($is_theirs && $manual !~ /with \Q$version\E of Debian/) {
        pass "$name: with $version the manual does not tell the verdicts";
        diag "With $version these fail on $name:\n$found" if $found ne $told;
        next;
    }
    is $found, $told, "$name: what fails is what the manual tells";
}

done_testing;

# A line for each suite. Many of these hang until they are killed.
sub failing {
    my ($name) = @_;
    my ($make, %opt) = @{ $VirtTest::Subjects::SUBJECTS{$name} };
    my %names;
    push @{ $names{ $_->{suite} } }, $_->{name}
        for grep { $_->{verdict} eq 'failed' } eventimpl_verdicts($make, %opt, slow => 0.4);
    return join '', map { "$_: @{ $names{$_} }\n" } sort keys %names;
}

sub manual {
    open my $in, '<', $INC{'Test/Sys/Virt/EventImpl.pm'} or die "Cannot read manual: $!";
    local $/;
    return scalar <$in>;
}

# "libvirt 9.0.0 and Sys::Virt 9.0.0"
sub versions {
    chomp(my $libvirt = qx(pkg-config --modversion libvirt));
    return "libvirt $libvirt and Sys::Virt $Sys::Virt::VERSION";
}
