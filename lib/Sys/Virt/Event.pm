package Sys::Virt::Event;
use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

use Exporter 'import';
use Time::HiRes ();
use XSLoader;

# The shared object appends the constants.
our @EXPORT_OK = qw(
    register registered register_default run_default
    add_handle update_handle remove_handle add_timeout update_timeout remove_timeout
    protect watches is_idle drain
);
our %EXPORT_TAGS = (all => \@EXPORT_OK);
our $eventimpl;

# Sys::Virt's shared object has functions of our names. It comes first, so that ours replace
# them and not the reverse. A program may do without Sys::Virt, but not with a broken one.
{
    local ($@, $SIG{__DIE__});
    eval { require Sys::Virt; 1 } or $@ =~ m{\ACan't locate Sys/Virt\.pm in } or die $@;
}
{
    local ($@, $SIG{__DIE__});
    local $^W = 0;
    eval { XSLoader::load(__PACKAGE__, $VERSION); 1 } or do {
        die $@ if $@ !~ /object version/;
        die "$@$INC{'Sys/Virt/Event.pm'} and its shared object come from different"
            . " distributions or versions: install Sys-Virt-Event again\n";
    };
}
require Sys::Virt::EventImpl;

my $CLOCK = eval { Time::HiRes::clock_gettime(Time::HiRes::CLOCK_MONOTONIC()) }
    ? Time::HiRes::CLOCK_MONOTONIC() : undef;
sub _now { defined $CLOCK ? Time::HiRes::clock_gettime($CLOCK) : Time::HiRes::time() }

sub drain {
    my ($seconds) = @_;
    my $loop = registered() // _cannot_drain('no event loop is registered');
    # With the ampersand: where Sys::Virt was first, perl compiles this with its prototypes.
    my $run = !ref $loop         ? sub { &run_default }
        : $loop->can('run_for')  ? sub { $loop->run_for($_[0]) }
        : $loop->can('run_once') ? sub { $loop->run_once($_[0]) }
        :   _cannot_drain(ref($loop) . ' has neither run_for nor run_once');
    my $end = defined $seconds ? _now() + $seconds : undef;
    until (is_idle()) {
        my $left = defined $end ? $end - _now() : 1;
        return 0 if $left <= 0;
        $run->($left < 0.01 ? $left : 0.01);
    }
    return 1;
}

sub _cannot_drain {
    require Carp;
    local $Carp::CarpLevel = 1;
    Carp::croak("Cannot drain: $_[0]");
}

1;
