package Sys::Virt::EventImpl;
use strict;
use warnings;

our $VERSION = '0.001';

require Sys::Virt::Event;    # its shared object has the methods
require Sys::Virt::Event::Identity;
Sys::Virt::Event::Identity::check('Sys::Virt::Event');

1;

__END__

=encoding UTF-8

=head1 NAME

Sys::Virt::EventImpl - parent class of event loops for libvirt

=head1 SYNOPSIS

=for test program

  package My::Loop;
  use parent 'Sys::Virt::EventImpl';

  sub add_handle {
      my ($self, $fd, $events, $cb, $opaque, $ff) = @_;
      ...
  }
  sub update_handle  { my ($self, $key, $events) = @_; ... }
  sub remove_handle  { my ($self, $key) = @_; ... }
  sub add_timeout    { my ($self, $ms, $cb, $opaque, $ff) = @_; ... }
  sub update_timeout { my ($self, $key, $ms) = @_; ... }
  sub remove_timeout { my ($self, $key) = @_; ... }

=head1 DESCRIPTION

A class that wants to be libvirt's event loop is a subclass of this one, provides the six methods above, and calls
the inherited C<_run_handle_callback> and C<_run_timeout_callback>. It may call C<_free_callback_opaque>, which the
module in Sys::Virt needs, after C<remove_*> has returned. All of it is described in L<Sys::Virt::Event>, which this
module loads, from L<Sys::Virt::Event/METHODS A LOOP PROVIDES> to L<Sys::Virt::Event/WRITING A LOOP>, which has a
complete example.

The name is that of the parent class in Sys::Virt 9.5 and newer. With older ones it was Sys::Virt::Event itself.
Subclasses of either are accepted. A program that must run with any of them loads what is there:

=for test program

  require Sys::Virt::Event;
  our @ISA = eval { require Sys::Virt::EventImpl; 1 }
      ? 'Sys::Virt::EventImpl'
      : 'Sys::Virt::Event';

The object is registered by C<register>, as a method or as the function of L<Sys::Virt::Event>.

=head1 SEE ALSO

L<Sys::Virt::Event>, L<Sys::Virt::Event::Poll>, L<Sys::Virt::Event::Manual>

=head1 AUTHOR AND LICENSE

The Sys-Virt-Event developers. This module is free software; you can redistribute it and/or modify it under the same
terms as Perl itself.

=cut
