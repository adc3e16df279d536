package Sys::Virt::EventImpl;
use strict;
use warnings;

our $VERSION = '0.001';

require Sys::Virt::Event;
our @ISA = ('Sys::Virt::Event');

1;
