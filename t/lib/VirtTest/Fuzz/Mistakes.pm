package VirtTest::Fuzz::Mistakes;

# Calls that are exceptions whatever has happened before, and what the manual says that these read.

use strict;
use warnings;

use Exporter qw(import);

our @EXPORT = qw(mistakes);

my $code = sub { };

my @mistakes = map { { message => shift @$_, call => shift @$_, args => $_ } } (
    ['Cannot add timeout: interval "abc" is not a number',            add_timeout    => 'abc', $code],
    ['Cannot add timeout: interval Inf is not a finite number',       add_timeout    => 9**9**9, $code],
    ['Cannot add timeout: interval 1099511627776 is out of range',    add_timeout    => 2**40, $code],
    ['Cannot add timeout: callback "main" is not a code reference',   add_timeout    => 5, 'main'],
    ['Cannot add timeout: callback undef is not a code reference',    add_timeout    => 5, undef],
    ['Cannot add handle: file descriptor -1 is negative',             add_handle     => -1, 1, $code],
    ['Cannot add handle: event mask 16 is no combination of HANDLE_* constants', add_handle => 0, 16, $code],
    ['Cannot add handle: callback a reference to HASH is not a code reference',  add_handle => 0, 1, {}],
    ['Cannot update timeout: no id 2000000000 was ever given out',    update_timeout => 2_000_000_000, 5],
    ['Cannot update handle: no id 0 was ever given out',              update_handle  => 0, 1],
    ['Cannot update timeout: interval undef is not a number',         update_timeout => 1, undef],
    ['Cannot remove timeout: no timeout with id 2000000000 is registered', remove_timeout => 2_000_000_000],
    ['Cannot remove handle: id "abc" is not a number',                remove_handle  => 'abc'],
    ['Cannot remove handle: id 1099511627776 is out of range',        remove_handle  => 2**40],
    ['Cannot protect: callback "x" is not a code reference',          protect        => 'x'],
    ['Cannot drain: number of seconds "soon" is not a number',        drain          => 'soon'],
    ['Cannot drain: number of seconds -1 is negative',                drain          => -1],
    ['Cannot run default: register_default was not called',           'run_default'],
    ['Cannot register default: an object is registered as the event loop, and libvirt takes only one kind',
        'register_default'],
    ['Cannot register: 42 is not an object of a subclass of Sys::Virt::Event or Sys::Virt::EventImpl',
        register => 42],
    ['Cannot register: Sys::Virt::EventImpl must provide add_handle, update_handle, remove_handle, add_timeout,'
        . ' update_timeout, remove_timeout', register => bless [], 'Sys::Virt::EventImpl'],
);

sub mistakes { return @mistakes }

1;
