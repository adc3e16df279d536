package Test::Sys::Virt::EventImpl::Private;

# What servers that a test starts for itself have in common: a directory of their own, and an ordinary user.

use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

use Carp qw(croak);
use Exporter qw(import);
use File::Spec;
use File::Temp ();
use POSIX ();

our @EXPORT = qw(private_dir give_away become_ordinary live_in ordinary_user);

use constant NOBODY => 65534;

# The ordinary user that the servers are.
sub ordinary_user { return $> || NOBODY }

# The path of a unix socket has less than 108 bytes, and the ordinary user must be able to reach the directory.
sub private_dir {
    my ($template) = @_;
    my $parent = File::Spec->tmpdir;
    $parent = '/tmp' if $> == 0 || length $parent > 30;
    my $dir = File::Temp::tempdir($template, DIR => $parent);
    give_away($dir);
    return $dir;
}

# To the ordinary user.
sub give_away {
    my (@paths) = @_;
    $> != 0 or chown(NOBODY, NOBODY, @paths) == @paths or croak "Cannot give $paths[0] to an ordinary user: $!";
    return;
}

sub become_ordinary {
    return if $> != 0;
    $) = NOBODY . ' ' . NOBODY;
    $( = NOBODY;
    POSIX::setuid(NOBODY);
    croak "Cannot become an ordinary user: $!" if grep { $_ != NOBODY } $<, $>, split ' ', "$( $)";
    return;
}

# Without the runtime of a sanitizer that the test is under: AddressSanitizer's of GCC hangs in the child of a process
# with threads, such as QEMU's when it becomes a daemon.
sub live_in {
    my ($dir) = @_;
    delete @ENV{qw(DBUS_SESSION_BUS_ADDRESS LD_PRELOAD)};
    $ENV{$_} = $dir for qw(HOME XDG_RUNTIME_DIR XDG_CONFIG_HOME XDG_CACHE_HOME XDG_DATA_HOME);
    return;
}

1;
