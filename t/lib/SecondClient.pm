package SecondClient;

# Another client of a libvirtd, in a perl of its own that has no event loop: it does to the domain "test" what it is
# told. So events come while no call of the test's own connection is under way.

use strict;
use warnings;

use Exporter qw(import);
use IO::Handle;
use IPC::Open2 qw(open2);

our @EXPORT_OK = qw(clients_of);

my $SCRIPT = <<'PERL';
use Sys::Virt;
$| = 1;
my $dom = Sys::Virt->new(uri => shift)->get_domain_by_name('test');
print "ready\n";
while (my $method = readline STDIN) {
    chomp $method;
    $dom->$method;
    print "done\n";
}
PERL

sub start {
    my ($class, $uri) = @_;
    my $pid = open2(my $out, my $in, $^X, (map { "-I$_" } grep { !ref } @INC), '-e', $SCRIPT, $uri);
    $in->autoflush;
    my $self = bless { pid => $pid, out => $out, in => $in, starter => $$ }, $class;
    readline $out;
    return $self;
}

# Returns when the daemon has done it.
sub does {
    my ($self, $method) = @_;
    print { $self->{in} } "$method\n";
    return defined readline $self->{out};
}

sub stop {
    my ($self) = @_;
    return if $self->{starter} != $$;
    my $pid = delete $self->{pid} or return;
    local ($?, $!, $@);
    close $_ for grep { $_ } @$self{qw(in out)};
    waitpid $pid, 0;
    return;
}

sub DESTROY { $_[0]->stop }

# How many connections the daemon has at this moment, from its side.
sub clients_of {
    my ($daemon) = @_;
    my $path = $daemon->socket;
    open my $in, '<', '/proc/net/unix' or die "Cannot read /proc/net/unix: $!";
    # Num RefCount Protocol Flags Type St Inode Path; St 03 is connected.
    return scalar grep { /^\S+ \S+ \S+ \S+ \S+ 03 +\d+ \Q$path\E$/ } readline $in;
}

1;
