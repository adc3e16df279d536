package VirtTest::Commands;

# Shell commands that the manual and README show. They are not carried out: some install, and some never end. But the
# shell must be able to read them, and what they name must be there. The current directory is that of the distribution.

use strict;
use warnings;

# One by one. What is indented belongs to the line before.
sub commands {
    my ($text) = @_;
    $text =~ s/\\\n\s*//g;
    return grep { /\S/ } map { s/^\$ //r } split /\n(?! )/, $text;
}

# What is wrong with a command; undef if nothing is.
sub complaint {
    my ($command) = @_;
    system('sh', '-n', '-c', $command) == 0 or return 'the shell cannot read it';
    # Another command may follow, outside of quotes.
    my ($first) = $command =~ /\A((?:'[^']*'|(?!&&|[|>])[^'])*)/;
    my @perl = ($^X, map { "-I$_" } grep { !ref } @INC);

    if ($first =~ /^(virt-event\w+)\b(.*)/s) {
        # --list carries out nothing.
        return _fails("@perl script/$1 $2 --list");
    }
    if ($first =~ /^perl (-M.*)/s) {
        return _fails("@perl $1");
    }
    if ($first =~ m{^(?:perl|sh) ([\w./-]+)}) {
        return -e $1 ? undef : "there is no $1";
    }
    if ($first =~ /^(?:perldoc|man) ([\w:-]+)/) {
        my $file = $1 =~ s{::}{/}gr;
        return grep({ -e } "lib/$file.pm", "lib/$file.pod", "script/$file") ? undef : "there is no page $1";
    }
    if (my ($tool, $packages) = $first =~ /^(apt-get|dnf) install (.+)/) {
        my $column = $tool eq 'dnf' ? 2 : 1;
        my %is_known = map { $_ => 1 } map { split /\|/ } map { (split)[$column] // () } _packages();
        my @unknown = grep { !$is_known{$_} } split ' ', $packages;
        return @unknown ? "dev/packages has no @unknown" : undef;
    }
    if ($first =~ /^cpanm (\S+)$/) {
        require Sys::Virt::Event;
        my $tarball = "Sys-Virt-Event-$Sys::Virt::Event::VERSION.tar.gz";
        return $1 eq $tarball ? undef : "make dist makes $tarball";
    }
    # A server, and a client of libvirt's.
    return undef if $first =~ /^(?:libvirtd &|virsh -c \S+ \w+ \w+|kill %\d)$/;
    # Where perl finds what INSTALL_BASE has been told.
    return undef if $first =~ m{^export PERL5LIB=/\S+/lib/perl5$};
    return $first =~ /^make(?: \w+)?$/ ? undef : 'no such command is known here';
}

sub _fails {
    my ($command) = @_;
    my $output = qx($command 2>&1);
    return $? ? $output : undef;
}

sub _packages {
    open my $in, '<', 'dev/packages' or die "Cannot read dev/packages: $!\n";
    return grep { /^\w/ } <$in>;
}

1;
