package Test::Sys::Virt::EventImpl::Module;

# Which of two modules of the name Sys::Virt::Event is used: this distribution's, or the one installed with Sys::Virt.

use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

use Carp qw(croak);
use File::Basename ();

# Also loads Sys::Virt, where there is one.
sub load {
    my ($sys_virt) = @_;
    _load_sys_virts() if $sys_virt;
    require Sys::Virt::Event;
    return if is_ours() == !$sys_virt;
    my $file = $INC{'Sys/Virt/Event.pm'};
    croak "Cannot test on Sys::Virt's module: $file was loaded before, load the loop inside its code" if $sys_virt;
    croak "Cannot test: $file is not the module of Sys-Virt-Event; there is the option sys_virt";
}

sub is_ours { return !!Sys::Virt::Event->can('_is_wake') }

# Their files lie beside Sys/Virt.pm, ours may lie in front of them in @INC.
sub _load_sys_virts {
    require Sys::Virt;
    my $dir = File::Basename::dirname($INC{'Sys/Virt.pm'});
    unshift @INC, sub {
        my ($self, $file) = @_;
        return if $file !~ m{\ASys/Virt/(Event.*)\z}s;
        return if !-e "$dir/Virt/$1" && $file ne 'Sys/Virt/Event.pm' && $file ne 'Sys/Virt/EventImpl.pm';
        open my $in, '<', "$dir/Virt/$1" or die "Cannot load $file of Sys::Virt $Sys::Virt::VERSION: $!\n";
        $INC{$file} = "$dir/Virt/$1";
        return $in;
    };
    return;
}

1;
