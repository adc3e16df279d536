package Sys::Virt::Event::Identity;
use strict;
use warnings;

our $VERSION = '0.001';

use File::Spec ();

# Sys::Virt is another distribution with a Sys/Virt/Event.pm and, since 9.5, a Sys/Virt/EventImpl.pm. What needs ours
# says "use Sys::Virt::Event::Identity", a name that only we have. There is no program to be trusted with a mixture.

my $HERE = substr __FILE__, 0, -length '/Sys/Virt/Event/Identity.pm';

sub import {
    require Sys::Virt::Event;
    require Sys::Virt::EventImpl;
    check('Sys::Virt::Event');
    check('Sys::Virt::EventImpl');
    return;
}

# Dies if this module, which is loaded, is not of the same distribution and version. Sys::Virt's have no version.
sub check {
    my ($module) = @_;
    my $version = $module->VERSION;
    return if defined $version && $version eq $VERSION;

    my $name = $module =~ s{::}{/}gr . '.pm';
    my $file = $INC{$name};
    my $dir  = substr $file, 0, -length "/$name";
    my $is_of = defined $version ? "is of Sys-Virt-Event $version" : 'is the file of Sys::Virt';
    die "$file $is_of, installed over the one of Sys-Virt-Event $VERSION: install Sys-Virt-Event again\n"
        if !-e "$HERE/$name" || File::Spec->rel2abs($dir) eq File::Spec->rel2abs($HERE);
    die "$file $is_of, and perl finds it before the one of Sys-Virt-Event $VERSION: put $HERE before $dir in \@INC"
        . " (PERL5LIB, use lib)\n";
}

1;
