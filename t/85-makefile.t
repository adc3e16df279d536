# Makefile.PL where something is missing, or is there already, and what it says of the distribution.
use 5.016;
use strict;
use warnings;

use lib 't/lib';
use Config;
use ExtUtils::MakeMaker ();
use ExtUtils::Manifest qw(maniread);
use File::Basename qw(dirname);
use File::Copy qw(copy);
use File::Path qw(make_path);
use File::Temp ();
use JSON::PP ();
use Test::More;

use VirtTest;

watchdog(120);

my $TREE = File::Temp->newdir;
for my $file (sort keys %{ maniread() }) {
    make_path(dirname("$TREE/$file"));
    copy($file, "$TREE/$file") or die "Cannot copy $file, which is in MANIFEST: $!\n";
}

# Runs it there with these arguments. What this test was told about directories and libraries is not for it.
sub configure {
    my ($env, @args) = @_;
    my %env = map { $_ => '' } qw(PERL_MM_OPT PERL_MB_OPT MAKEFLAGS MAKELEVEL);
    my $code = 'my $dir = shift; chdir $dir or die "$dir: $!"; open STDIN, "<", "/dev/null"; $0 = "Makefile.PL";'
        . ' delete @ENV{ grep { /^LIBVIRT_/ && $ENV{$_} eq "" } keys %ENV };'
        . ' do "./Makefile.PL"; die $@ if $@';
    my $run = fresh_perl($code, args => ["$TREE", @args], timeout => 60,
        env => { %env, LIBVIRT_CFLAGS => '', LIBVIRT_LIBS => '', %$env });
    return $run;
}

sub has_makefile { return -e "$TREE/Makefile" }

sub gives_up {
    my ($name, $reason, %env) = @_;
    write_text("$TREE/Makefile", '');    # an old one must not be taken for a new one
    my $run = configure(\%env);
    like $run->{stderr}, $reason, "$name: the reason";
    like $run->{stderr}, qr/^Debian, Ubuntu: apt-get install libvirt-dev pkg-config$/m, '... what to do';
    like $run->{stderr}, qr/^Elsewhere: set LIBVIRT_CFLAGS and LIBVIRT_LIBS in the environment\.$/m, '... anywhere';
    is "$run->{exit} $run->{signal} $run->{timed_out}", '0 0 0', '... no failure, which a tester would report';
    ok !has_makefile(), '... and no Makefile';
}

sub makes_makefile {
    my ($env, @args) = @_;
    unlink "$TREE/Makefile";
    my $run = configure($env, @args);
    ok has_makefile() && !$run->{exit}, "a Makefile for @args" or diag $run->{stderr};
    return $run;
}

subtest 'libvirt is missing' => sub {
    my $empty = File::Temp->newdir;
    my $needs = qr/^Sys-Virt-Event needs the headers of libvirt 6\.1\.0 or newer, and pkg-config to find them\.$/m;
    gives_up('no headers', $needs, PKG_CONFIG_LIBDIR => "$empty", PKG_CONFIG_PATH => '');
    gives_up('no pkg-config', $needs, PKG_CONFIG => "$empty/pkg-config");
    write_text("$empty/libvirt.pc", "Name: libvirt\nDescription: old\nVersion: 6.0.0\n");
    gives_up('too old', qr/^Sys-Virt-Event needs libvirt 6\.1\.0 or newer; this is 6\.0\.0\.$/m,
        PKG_CONFIG_LIBDIR => "$empty", PKG_CONFIG_PATH => '');
    makes_makefile({
        PKG_CONFIG => "$empty/pkg-config", LIBVIRT_CFLAGS => '-I/opt/libvirt/include', LIBVIRT_LIBS => '-lvirt',
    });
    my $makefile = text_of("$TREE/Makefile");
    like $makefile, qr{^INC = .*-I/opt/libvirt/include}m, 'headers that the environment names need no pkg-config';
    unlike $makefile, qr/SVE_HAVE_GLIB/, '... and GLib, which cannot be found then, is left out';
};

# Sys::Virt's files, in each directory that arguments can name.
subtest 'Sys::Virt is there' => sub {
    my $dir = File::Temp->newdir;
    my ($arch, $version) = @Config{qw(archname version)};
    for my $case (
        ["lib/perl5/$arch", {}, "INSTALL_BASE=$dir"],
        ["lib/perl5/$arch", { PERL_MM_OPT => "INSTALL_BASE=$dir" }],
        ['site', {}, "INSTALLSITEARCH=$dir/site"],
        ['vendor', {}, 'INSTALLDIRS=vendor', "INSTALLVENDORARCH=$dir/vendor"],
        ['core', {}, 'INSTALLDIRS=perl', "INSTALLARCHLIB=$dir/core"],
        ['stage/usr/x', {}, "DESTDIR=$dir/stage", 'INSTALLSITEARCH=/usr/x'],
    ) {
        my ($below, $env, @args) = @$case;
        my $target = "$dir/$below";
        unlike makes_makefile($env, @args)->{stderr}, qr/Warning/, '... and nothing to warn of';
        make_path("$target/Sys/Virt");
        write_text("$target/Sys/Virt/Event.pm", "package Sys::Virt::Event;\nour \$eventimpl = undef;\n1;\n");
        my $stderr = makes_makefile($env, @args)->{stderr};
        like $stderr, qr{^Warning: \Q$target\E/Sys/Virt/Event\.pm is a file of Sys::Virt\.$}m, '... and a warning';
        unlike $stderr, qr/EventImpl/, '... of one file';
        like $stderr, qr{perl Makefile\.PL INSTALL_BASE=DIR, and PERL5LIB=DIR/lib/perl5$}m, '... with a way out';
        write_text("$target/Sys/Virt/EventImpl.pm", "package Sys::Virt::EventImpl;\n1;\n");
        like makes_makefile($env, @args)->{stderr}, qr{(?:^Warning: \S+ is a file of Sys::Virt\.\n){2}}m, '... of both';
        copy("lib/Sys/Virt/$_.pm", "$target/Sys/Virt/$_.pm") or die "Cannot copy: $!" for qw(Event EventImpl);
        unlike makes_makefile($env, @args)->{stderr}, qr/Warning/, '... but not of files of ours';
        unlink map { "$target/Sys/Virt/$_.pm" } qw(Event EventImpl);
    }
    my $prefix = makes_makefile({}, "PREFIX=$dir/prefix");
    my ($site) = text_of("$TREE/Makefile") =~ /^INSTALLSITEARCH = \$\(SITEPREFIX\)(.+)/m or die 'Where is it?';
    make_path("$dir/prefix$site/Sys/Virt");
    write_text("$dir/prefix$site/Sys/Virt/Event.pm", "package Sys::Virt::Event;\n1;\n");
    like makes_makefile({}, "PREFIX=$dir/prefix")->{stderr},
        qr{^Warning: \Q$dir/prefix$site\E/Sys/Virt/Event\.pm is a file}m, '... and a warning there, too';
};

# What CPAN is told.

makes_makefile({});
my $meta = JSON::PP->new->decode(text_of("$TREE/MYMETA.json"));

subtest 'what it has' => sub {
    my $provides = $meta->{provides};
    my %documented = map { $_ => 1 } grep { -f "lib/$_" && text_of("lib/$_") =~ /^=head1 SYNOPSIS/m } grep { m{^Sys/} }
        map { m{\Alib/(.+\.pm)\z} } keys %{ maniread() };
    my @modules = sort map { s{/}{::}gr =~ s/\.pm\z//r } keys %documented, 'Test/Sys/Virt/EventImpl.pm';
    is_deeply [sort keys %$provides], \@modules, 'the modules that have a manual, and no other packages';
    my $version = MM->parse_version('lib/Sys/Virt/Event.pm');
    is_deeply { map { $_->{version} => 1 } values %$provides }, { $version => 1 }, 'all of one version';
    is_deeply [grep { !-f $_->{file} } values %$provides], [], 'in files that exist';
    my %other = map { $_ => MM->parse_version($_) } grep { /\.pm\z/ && m{\Alib/} } keys %{ maniread() };
    is_deeply [grep { $other{$_} !~ /\A(?:\Q$version\E|undef)\z/ } sort keys %other], [], 'no module has another one';
    is(MM->parse_version('script/virt-eventimpl'), $version, 'nor has virt-eventimpl');
};

# Every module that something uses is a prerequisite, of the phase that uses it; perl's pragmas have no version.
subtest 'what it needs' => sub {
    my $runtime = $meta->{prereqs}{runtime};
    my @files = sort keys %{ maniread() };
    my %optional = map { %{ $runtime->{$_} } } qw(recommends suggests);
    my %used = used_by(grep { m{\A(?:lib|script)/} && !/\.pod\z/ } @files);
    is list(grep { !is_among($_, $runtime->{requires}, \%optional) } keys %used), '', 'modules and programs';
    my $code = join '', map { text_of($_) } grep { m{\A(?:lib|script)/} } @files;
    is list(grep { $_ ne 'perl' && $code !~ /\b\Q$_\E\b/ } keys %{ $runtime->{requires} }), '',
        '... use all that is required';
    my %test = %{ $meta->{prereqs}{test}{requires} };
    my %tested = used_by(grep { m{\At/.+\.(?:t|pm)\z} } @files);
    is list(grep { !is_among($_, $runtime->{requires}, \%optional, \%test) } keys %tested), '', 'tests';
    is list(grep { !$tested{$_} } keys %test), '', '... use all that they require';
};

# A part of an optional distribution is optional, too. IO::Pty and Event are things that tests do without.
sub is_among {
    my ($module, @lists) = @_;
    my %listed = map { %$_ } @lists;
    return 1 if exists $listed{$module} || $module =~ /\A(?:Mojo::\w+|Future|IO::Pty|Event|Test2::.+)\z/;
    return grep { $module =~ /\A\Q$_\E::/ } keys %{ $lists[1] };
}

sub used_by {
    my (@files) = @_;
    my %used;
    for my $file (@files) {
        my $code = text_of($file) =~ s/^__END__\n.*//msr =~ s/^=\w.*?^=cut\n//msgr;
        $code =~ s/<<(["'])(\w+)\1.*?^\2\n//msg;    # programs in programs
        $used{$1} ||= $file while $code =~ /(?:^|[{(;])[ \t]*(?:use|require) ([A-Z](?:[\w:]*\w)?)\b/mg;
    }
    return map { $_ => $used{$_} } grep { !is_ours($_) && $_ ne 'No::Such::Module' } keys %used;
}

sub list { return join ' ', sort @_ }

sub is_ours {
    my ($module) = @_;
    my $file = $module =~ s{::}{/}gr . '.pm';
    return grep { -e "$_/$file" } qw(lib t/lib xt/lib);
}

subtest 'features are the adapters' => sub {
    my %feature = %{ $meta->{optional_features} };
    is_deeply delete($feature{connections})->{prereqs}{runtime}{requires}, { 'Sys::Virt' => 'v9.0.0' }, 'connections';
    for my $file (grep { text_of($_) =~ /^sub _needs\b/m } glob 'lib/Sys/Virt/Event/*.pm') {
        require $file =~ s{\Alib/}{}r;
        my ($adapter) = $file =~ /(\w+)\.pm\z/;
        my %needs = "Sys::Virt::Event::$adapter"->_needs or next;    # the base has none
        my $feature = delete $feature{ lc $adapter };
        is_deeply $feature->{prereqs}{runtime}{requires}, \%needs, "$adapter: what it says it needs";
    }
    is_deeply [keys %feature], [], 'there is no other';
};

done_testing;

sub text_of {
    my ($file) = @_;
    open my $in, '<', $file or die "Cannot read $file: $!";
    local $/;
    return scalar <$in>;
}

sub write_text {
    my ($file, $text) = @_;
    open my $out, '>', $file or die "Cannot write $file: $!";
    print $out $text;
    close $out or die "Cannot write $file: $!";
}
