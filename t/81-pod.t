# The POD is well-formed and complete. t/83-blocks.t has its programs.
use strict;
use warnings;

use B ();
use File::Basename qw(dirname);
use File::Find ();
use lib dirname(__FILE__) . '/lib';
use Pod::Checker ();
use Pod::Text ();
use Test::More;
use Test::Sys::Virt::EventImpl qw(eventimpl_cases);
use VirtTest;

use Sys::Virt::Event ();
use Sys::Virt::Event::Poll ();

my @ADAPTERS = qw(EV AnyEvent IOAsync Mojo Glib POE Auto);
my @CONNECTION = qw(Connection Connection/Iterator Connection/Probe Record);

watchdog(90);
my $top = dirname(__FILE__) . '/..';

my @files = map { "$top/script/$_" } qw(virt-events virt-eventimpl);
File::Find::find({ no_chdir => 1, wanted => sub { push @files, $_ if /\.(?:pm|pod)\z/ } }, "$top/lib");
for my $file (sort @files) {
    open my $out, '>', \my $complaints or die "Cannot write to memory: $!\n";
    my $checker = Pod::Checker->new(-warnings => 1);
    $checker->parse_from_file($file, $out);
    cmp_ok($checker->num_errors, '<=', 0, "$file has POD without errors, or none");
    is($checker->num_warnings, 0, '... and without warnings') or diag $complaints;
}

# Every public name has a =head2 of its own.

my %pod = map { $_ => Pod::Heads->of("$top/lib/Sys/Virt/$_") } qw(Event.pm EventImpl.pm),
    map { "Event/$_.pm" } qw(Poll Loop), @ADAPTERS, @CONNECTION;
my @six = map { ("add_$_", "update_$_", "remove_$_") } qw(handle timeout);
my @helpers = qw(_run_handle_callback _run_timeout_callback _free_callback_opaque);
my @heads = map { $_->{head} } grep { $_->{level} == 2 } @{ $pod{'Event.pm'} };

is_deeply([without_head(\@heads, '', @Sys::Virt::Event::EXPORT_OK)], [], 'all that Sys::Virt::Event exports is documented');
is_deeply([without_head(\@heads, '$loop->', @six, @helpers)], [], '... and all of its methods');
is_deeply([without_head(\@heads, '', public_names('Sys::Virt::Event'))], [], '... and whatever else is public');

@heads = map { $_->{head} } grep { $_->{level} == 2 } @{ $pod{'Event/Poll.pm'} };
is_deeply([without_head(\@heads, '', public_names('Sys::Virt::Event::Poll'), 'register')], [],
    'all methods of Poll are documented');

# Adapters share the methods of their base.
my @of_base = map { $_->{head} } grep { $_->{level} == 2 } @{ $pod{'Event/Loop.pm'} };
for my $adapter ('Loop', @ADAPTERS) {
    require "Sys/Virt/Event/$adapter.pm";
    @heads = map { $_->{head} } grep { $_->{level} == 2 } @{ $pod{"Event/$adapter.pm"} };
    is_deeply([without_head([@heads, @of_base, @six], '', public_names("Sys::Virt::Event::$adapter"))], [],
        "all methods of $adapter are documented, but for libvirt's six");
}

for my $file (@CONNECTION) {
    my $package = 'Sys::Virt::Event::' . $file =~ s{/}{::}r;
    if (!eval { require "Sys/Virt/Event/$file.pm" }) {
        like $@, qr{Sys/Virt\.pm}, "$file needs Sys::Virt";
        next;
    }
    @heads = map { $_->{head} } grep { $_->{level} == 2 } @{ $pod{"Event/$file.pm"} };
    is_deeply([without_head(\@heads, '', public_names($package))], [], "all of $file is documented");
}

# The kit: what its cases say of themselves is the source.

my $cases = do { local $/; open my $in, '<', "$top/lib/Test/Sys/Virt/EventImpl/Cases.pod" or die "Cannot read: $!"; <$in> };
is($cases, scalar qx($^X -Mblib $top/dev/cases-pod), 'Cases.pod is what dev/cases-pod prints');

my $kit = Pod::Text->new(width => 200, indent => 0);
$kit->output_string(\my $text);
$kit->parse_file("$top/lib/Test/Sys/Virt/EventImpl.pm");
my ($list) = $text =~ /^SUITES\n(.*?)^[A-Z]+$/ms;
my %seen;
my @suites = grep { !$seen{$_}++ } map { "$_->{suite}: $_->{title}." } eventimpl_cases();
my @listed;
push @listed, "$1: $2" while $list =~ /^([a-z]+)(?:\n +| )(.+)$/mg;
is_deeply(\@listed, \@suites, 'the suites are listed in their order, with their titles');

done_testing;

sub without_head {
    my ($heads, $prefix, @names) = @_;
    my %has = map { $_ => 1 } map { /^\Q$prefix\E(\w+)/ ? $1 : () } @$heads;
    return grep { !$has{$_} } @names;
}

# What a package defines itself. Constants for its own use are in capitals; bootstrap is XSLoader's.
sub public_names {
    my ($package) = @_;
    no strict 'refs';
    return grep { /^(?!bootstrap\z)[a-z]/ && defined &{"${package}::$_"} && home("${package}::$_") eq $package } keys %{"${package}::"};
}

sub home {
    my ($name) = @_;
    no strict 'refs';
    return B::svref_2object(\&$name)->GV->STASH->NAME;
}

# A list of headings, each with its level and its text.
package Pod::Heads;

use Pod::Simple ();
our @ISA;
BEGIN { @ISA = ('Pod::Simple') }

sub of {
    my ($class, $file) = @_;
    my $self = $class->new;
    $self->{heads} = [];
    $self->parse_file($file);
    return $self->{heads};
}

sub _handle_element_start {
    my ($self, $name) = @_;
    $self->{text} = '' if $name =~ /^head\d$/;
    return;
}

sub _handle_text {
    my ($self, $text) = @_;
    $self->{text} .= $text if defined $self->{text};
    return;
}

sub _handle_element_end {
    my ($self, $name) = @_;
    push @{ $self->{heads} }, { level => $1, head => delete $self->{text} } if $name =~ /^head(\d)$/;
    return;
}
