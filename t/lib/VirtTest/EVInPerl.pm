package VirtTest::EVInPerl;

# The adapter of EV as it is where Sys::Virt::Event was built without EV.

use strict;
use warnings;

use parent 'Sys::Virt::Event::EV';

sub _hand_over { 0 }

1;
