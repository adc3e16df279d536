package Sys::Virt::Event::Tool::Options;
use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

use Getopt::Long ();
use Sys::Virt::Event::Record ();
use Sys::Virt::Event::Tool::Selection ();

# What the command line of virt-events says. What it says wrongly is an exception: a text for its user.

use constant MAX_TIMEOUT => 1_000_000;    # seconds; libvirt's timers take an int of milliseconds

my @CLASSES = Sys::Virt::Event::Record::classes();
my @DEFINITIONS = (
    'connect|c=s@', 'rw', (map { "$_=s@" } 'class', @CLASSES, 'event', 'type', 'not'), 'list', 'json', 'format=s',
    'color|colour=s', 'initial', 'until=s', 'count=i', 'timeout=f', 'reconnect!', 'retries=i', 'retry-max=f',
    'keepalive=s', 'connect-timeout=f', 'exec=s', 'demo', 'help|h', 'man', 'version',
);

sub parse {
    my ($class, @arguments) = @_;
    my %default = (reconnect => 1, 'retry-max' => 30, keepalive => '5x3', 'connect-timeout' => 10, color => 'auto');
    my $self = bless \%default, $class;
    my @complaints;
    {
        local $SIG{__WARN__} = sub { push @complaints, @_ };
        my $parser = Getopt::Long::Parser->new(config => ['no_ignore_case']);
        $parser->getoptionsfromarray(\@arguments, $self, @DEFINITIONS) or die @complaints;
    }
    return $self if grep { $self->{$_} } qw(help man version);
    die "Unexpected argument: $arguments[0]\n" if @arguments;
    $self->_check;
    for my $names (map { $self->{$_} // () } 'connect', @CLASSES) {
        utf8::decode($_) for @$names;
    }
    $self->{selection} = Sys::Virt::Event::Tool::Selection->new(%$self);
    return $self;
}

sub _check {
    my ($self) = @_;
    die "--json and --format exclude each other\n" if $self->{json} && defined $self->{format};
    die "--demo opens a connection of its own: there can be no --connect\n" if $self->{demo} && $self->{connect};
    die "--retries and --no-reconnect exclude each other\n" if defined $self->{retries} && !$self->{reconnect};
    die "--until needs a --domain\n" if defined $self->{until} && !$self->{domain};
    die "--color takes auto, always or never\n" if $self->{color} !~ /\A(?:auto|always|never)\z/;
    die "--keepalive takes SECONDSxCOUNT, or 0\n" if $self->{keepalive} !~ /\A(?:0|[1-9]\d{0,8}x[1-9]\d{0,8})\z/;
    for my $name (grep { defined $self->{$_} } qw(count retries)) {
        die "--$name takes a number from 1\n" if $self->{$name} < 1;
    }
    _check_seconds($self, $_, 0.001) for qw(timeout retry-max);
    _check_seconds($self, 'connect-timeout', 0);
    my @states = Sys::Virt::Event::Record::states();
    die "--until takes one of @states\n" if defined $self->{until} && !grep { $_ eq $self->{until} } @states;
    return;
}

sub _check_seconds {
    my ($self, $name, $least) = @_;
    my $seconds = $self->{$name} // return;
    return if $seconds >= $least && $seconds <= MAX_TIMEOUT;
    die "--$name takes a number of seconds from $least to " . MAX_TIMEOUT . "\n";
}

# undef is libvirt's own default.
sub uris {
    my ($self) = @_;
    return 'test:///default' if $self->{demo};
    return @{ $self->{connect} } if $self->{connect};
    my ($default) = grep { defined && length } @ENV{qw(VIRSH_DEFAULT_CONNECT_URI LIBVIRT_DEFAULT_URI)};
    return $default;
}

# For Sys::Virt::Event::Connection. Where somebody sits at the terminal, libvirt may ask for a password.
sub of_connection {
    my ($self) = @_;
    my %backoff = (max => $self->{'retry-max'}, tries => $self->{retries});
    return (
        readonly        => !$self->{rw} && !$self->{demo} || 0,
        auth            => -t STDIN ? 1 : 0,
        keepalive       => $self->{keepalive} ? [split /x/, $self->{keepalive}] : undef,
        connect_timeout => $self->{'connect-timeout'},
        reconnect       => !$self->{reconnect} || $self->{demo} ? 0 : \%backoff,
    );
}

1;
