package Sys::Virt::Event::Glib;
use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

use Sys::Virt::Event::Loop ();

our @ISA = ('Sys::Virt::Event::Loop');

sub _needs       { (Glib => '1.220') }
sub _loop_option { 'context' }

sub _find_loop {
    my ($self, $context) = @_;
    require Glib;
    return $context // Glib::MainContext->default;
}

1;
