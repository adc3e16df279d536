package VirtTest::DropIn;

# Programs that were written for the module in Sys::Virt, run as they are: on that module, or on ours. An ordinary user
# runs them, since root's qemu:///session is the system's libvirtd, in a directory of that user's.

use strict;
use warnings;

use Carp qw(croak);
use File::Find qw(find);
use Test::Sys::Virt::EventImpl::Private qw(give_away);
use VirtTest qw(fresh_perl installed_inc);
use VirtTest::Tool;

# The file that has the functions of the module.
use constant FUNCTIONS => { ours => 'Event.c', theirs => 'Virt.c' };

my $AS_USER = 'become_ordinary(); live_in($ARGV[0]); chdir shift; exec { $ARGV[0] } @ARGV or die "Cannot run: $!\n"';

# The version of Sys::Virt, "ours" where its module has been overwritten with ours, or nothing.
sub version {
    my $is_ours = 'defined &Sys::Virt::Event::watches';
    my $code = "require Sys::Virt; require Sys::Virt::Event; print $is_ours ? 'ours' : Sys::Virt->VERSION";
    return fresh_perl($code, installed => 1)->{stdout};
}

# Why there is nothing to compare ours with, if so.
sub why_not {
    my $version = version();
    return 'Sys::Virt is not installed (Debian: libsys-virt-perl)' if $version eq '';
    return 'our module is installed over the one in Sys::Virt' if $version eq 'ours';
    return;
}

# The directory of that user. Our module is copied there, for the user may not be able to read the one of the test.
sub new {
    my ($class, $home) = @_;
    for my $copy ([ours => 'blib/lib/.', 'blib/arch/.'], [kit => 'blib/lib/Test', 't/lib/VirtTest']) {
        my ($name, @from) = @$copy;
        mkdir "$home/$name" or croak "Cannot make $home/$name: $!";
        system('cp', '-R', @from, "$home/$name") == 0 or croak "Cannot copy to $home/$name";
    }
    find({ wanted => sub { give_away($_) }, no_chdir => 1 }, "$home/ours", "$home/kit");
    return bless { home => $home }, $class;
}

# Starts a program, a file of Perl with its arguments, on the module that is "ours" or "theirs". Of ours, a program that
# only loads Sys::Virt gets the functions too.
sub start {
    my ($self, $module, @program) = @_;
    my $home     = $self->{home};
    my ($theirs) = grep { -e "$_/Sys/Virt.pm" } installed_inc();
    my @inc = ("$home/kit", $module eq 'ours' ? "$home/ours" : (), $theirs);
    my %env = (
        PERL5LIB            => join(':', @inc),
        LIBVIRT_AUTOSTART   => 0,
        LIBVIRT_LOG_OUTPUTS => '4:file:/dev/null',
        $self->{uri} ? (LIBVIRT_DEFAULT_URI => $self->{uri}) : (),
    );
    my @load = ($module eq 'ours' ? '-MSys::Virt::Event' : (), '-MVirtTest::Observed');
    my @user = ($^X, '-MTest::Sys::Virt::EventImpl::Private', '-e', $AS_USER, $home);
    return VirtTest::Tool->start(\@program, env => \%env, program => [@user, $^X, @load]);
}

# What a program opens that names no uri.
sub set_default_uri { my ($self, $uri) = @_; $self->{uri} = $uri; return }

# What a program does up to its end.
sub run {
    my ($self, $module, @program) = @_;
    return result_of($self->start($module, @program));
}

# ... on ours and on theirs, at the same time. MODULE in its arguments becomes "ours" or "theirs".
sub run_on_both {
    my ($self, @program) = @_;
    my @tools = map { my $module = $_; $self->start($module, map { s/MODULE/$module/gr } @program) } qw(ours theirs);
    return map { result_of($_) } @tools;
}

# Waits for the end of what was started.
sub result_of {
    my ($tool) = @_;
    my $stdout = join '', (map { "$_\n" } $tool->lines), $tool->rest;
    my $status = $tool->status;
    my $stderr = $tool->errors;
    my $functions = $stderr =~ s/^functions of (.*)\n\z//m ? $1 : 'unknown';
    return { stdout => $stdout, stderr => $stderr, status => $status, functions => $functions };
}

1;
