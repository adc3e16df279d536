package VirtTest::GlibContext;

# The adapter of Glib with a context of its own, by C.

use strict;
use warnings;

use Glib ();

use parent 'Sys::Virt::Event::Glib';

sub new { my ($class) = @_; return $class->SUPER::new(context => Glib::MainContext->new) }

1;
