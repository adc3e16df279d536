# What CPAN is given: META and Changes by their specifications, kwalitee, no newer perl than is said, no file that is
# nowhere listed. The checks of the tarball itself are in xt/80-install.t.
use 5.016;
use strict;
use warnings;

use lib qw(t/lib xt/lib);
use Config;
use CPAN::Changes;
use CPAN::Meta;
use Devel::PPPort;
use ExtUtils::MakeMaker ();
use ExtUtils::Manifest qw(filecheck manicheck maniread);
use Module::CPANTS::Analyse;
use Perl::MinimumVersion;
use Test::CPAN::Meta;
use Test::More;

use AuthorTest;
use VirtTest qw(:DEFAULT text_of);

watchdog(240);
$ExtUtils::Manifest::Quiet = 1;

is_deeply [manicheck()], [], 'what MANIFEST lists is there';
is_deeply [filecheck()], [], '... and it lists what is there';

# As make dist leaves it: META is made there.
my $dir = built_copy();
my ($tarball, $dist);
for my $command ([$Config{make}, 'dist'], ['sh', '-c', 'tar -xzf Sys-Virt-Event-*.tar.gz']) {
    my $run = run_of($command, dir => $dir, limit => 60);
    $run->{status} eq 'exit 0' or die "@$command: $run->{output}\n";
    ($tarball) = glob "$dir/Sys-Virt-Event-*.tar.gz";
    $dist = $tarball =~ s/\.tar\.gz\z//r;
}
my $version = MM->parse_version('lib/Sys/Virt/Event.pm');

subtest 'META' => sub {
    meta_spec_ok("$dist/META.yml", '1.4');
    my $meta = eval { CPAN::Meta->load_file("$dist/META.json", { lazy_validation => 0 }) };
    ok $meta, 'META.json is as the specification wants it' or return diag $@;
    is $meta->meta_spec_version, 2, '... of version 2';
    is $meta->version, $version, '... and of this version';
    is join(' ', $meta->licenses), 'perl_5', 'the licence';
    ok $meta->dynamic_config, 'what is needed is found out where it is installed';
    my $prereqs = $meta->effective_prereqs;
    for my $phase (qw(configure build runtime test develop)) {
        ok keys %{ $prereqs->requirements_for($phase, 'requires')->as_string_hash }, "prerequisites of $phase";
    }
    is $prereqs->requirements_for('runtime', 'requires')->requirements_for_module('perl'), '5.016', '... and of perl';
    my %prereqs = %{ $meta->prereqs };
    my %must = map { %{ $prereqs{$_}{requires} } } qw(configure build runtime test);
    my @other = grep { $_ ne 'perl' && !is_core($_) } sort keys %must;
    is "@other", '', 'what it cannot do without comes with perl';
};

sub is_core {
    my ($module) = @_;
    require Module::CoreList;
    return Module::CoreList::is_core($module, undef, '5.016000');
}

# The authors' tools, as they are in dev/packages.
subtest 'what xt/ and dev/ need' => sub {
    my $meta = CPAN::Meta->load_file("$dist/META.json");
    my %develop = %{ $meta->prereqs->{develop}{requires} };
    my %given = map { %{ $meta->prereqs->{$_}{requires} } } qw(configure runtime test);
    my %also = map { %{ $meta->prereqs->{runtime}{$_} } } qw(recommends suggests);
    my %used;
    for my $file (grep { m{\A(?:xt|dev)/} } perl_files()) {
        my $code = text_of($file);
        $used{$1} = $file while $code =~ /^[ \t]*(?:use|require) ([A-Z](?:[\w:]*\w)?)\b/mg;
    }
    my @missing = grep { !is_ours($_) && !is_core($_) && !is_part($_, %develop, %given, %also) } sort keys %used;
    is "@missing", '', 'all that is used is listed';
    is join(' ', grep { my $listed = $_; !grep { is_part($_, $listed => 1) } keys %used } sort keys %develop), '',
        '... and all that is listed is used';
};

sub perl_files {
    return grep { /\.(?:pm|pl|PL|t)\z/ || text_of($_) =~ /\A#!.*\bperl\b/ } sort keys %{ maniread() };
}

sub is_part {
    my ($module, %listed) = @_;
    return grep { $module =~ /\A\Q$_\E(?:::|\z)/ } keys %listed;
}

sub is_ours {
    my ($module) = @_;
    my $file = $module =~ s{::}{/}gr . '.pm';
    return grep { -e "$_/$file" } qw(lib t/lib xt/lib bench);
}

subtest 'Changes' => sub {
    my $changes = eval { CPAN::Changes->load("$dist/Changes") } or return fail "it can be read: $@";
    my @releases = $changes->releases;
    is $releases[-1]->version, $version, 'its newest entry is of this version';
    for my $release (@releases) {
        like $release->version, qr/\A[0-9]+\.[0-9]{3}\z/, 'a version';
        like $release->date // '', qr/\A20[0-9]{2}-[01][0-9]-[0-3][0-9]\z/, '... its day';
        cmp_ok scalar(map { @$_ } values %{ $release->changes }), '>', 0, '... and what has changed';
    }
};

# Every indicator there is, the experimental ones too, but for those that a look at CPAN or its mirror takes.
subtest 'kwalitee' => sub {
    my $analysis = Module::CPANTS::Analyse->new({ dist => $tarball });
    $analysis->run;
    my $result = $analysis->d->{kwalitee};
    my @indicators = @{ $analysis->mck->get_indicators };
    cmp_ok scalar @indicators, '>', 25, 'there are indicators';
    for my $indicator (sort { $a->{name} cmp $b->{name} } grep { !$_->{needs_db} } @indicators) {
        my $name = $indicator->{name};
        # It would have to be public.
        next if $name eq 'meta_yml_has_repository_resource' && !$analysis->d->{meta_yml}{resources}{repository};
        ok $result->{$name}, $name or diag "$indicator->{error}\n", explain $analysis->d->{error}{$name};
    }
};

# What perl 5.16 has not learned yet is no syntax of ours. The module that looks for that knows features by their name,
# but not these, which need no "use feature".
my %NEWER = (
    'a dereference behind an arrow' => qr/->(?:[\@%\$&*]\*|\$#\*|[\@%][\[{])/,
    'a slice of keys and values'    => qr/(?<![\w\$\@%&\\)}\]])%\w+[\[{]|%\$\w+[\[{]/,
    'an indented here-document'     => qr/<<~["'\w]/,
    'the safe diamond'              => qr/<{2}>{2}/,
);
subtest 'perl 5.16 can read it' => sub {
    for my $file (grep { !m{\Abench/} } perl_files()) {
        my $needs = Perl::MinimumVersion->new($file) or do { fail "$file can be parsed"; next };
        my $least = $needs->minimum_syntax_version;
        cmp_ok $least, '<=', version->parse('v5.16.0'), $file or diag $needs->syntax_markers;
        my $code = text_of($file) =~ s/^__END__\n.*//msr;
        is join(', ', grep { $code =~ $NEWER{$_} } sort keys %NEWER), '', '... and by its looks';
        # Of the modules that perl has, this is the one that has grown most.
        my @functions = map { split } $code =~ /\bList::Util(?:::| qw\()([\w ]+)/g;
        my @newer = grep { !/\A(?:first|max|maxstr|min|minstr|reduce|shuffle|sum)\z/ } @functions;
        is "@newer", '', '... List::Util, too' if @functions;
    }
};

# The same for perl's C functions, as Devel::PPPort knows them; what a #if looks for is seen to.
subtest 'perl 5.16 can compile it' => sub {
    my $ppport = "$dir/ppport.h";
    Devel::PPPort::WriteFile($ppport);
    my @files = grep { /\.(?:c|h|xs)\z/ && m{\A(?:src/|kit/|Event)} } sort keys %{ maniread() };
    my %guarded = map { $_ => 1 } map { text_of($_) =~ /^#\s*if(?:n?def| (?:!\s*)?defined)\s*\(?(\w+)/mg } @files;
    my $run = run_of([$^X, $ppport, '--compat-version=5.16.0', '--nochanges', '--nofilter', @files], limit => 60);
    my @newer = grep { !$guarded{$_} } $run->{output} =~ /^\*\*\* WARNING: Uses (\w+), which may not be portable/mg;
    is "@newer", '', 'no function is newer';

    # It has these of its own, but is not part of this distribution.
    my $ask = sub { run_of([$^X, $ppport, @_], limit => 30)->{output} };
    my %provided = map { /^(\w+)/ ? ($1 => 1) : () } split /\n/, $ask->('--list-provided');
    my %used = map { $_ => 1 } map { text_of($_) =~ /\b([A-Za-z_]\w+)\b/g } @files;
    my @late;
    for my $name (grep { $provided{$_} && !$guarded{$_} } sort keys %used) {
        my ($since) = $ask->("--api-info=$name") =~ /^Supported at least since perl-([\d._]+), without/m;
        push @late, "$name $since" if defined $since && version->parse("v$since" =~ s/_/./r) > v5.16.0;
    }
    is "@late", '', '... nor one that it would provide';
};

done_testing;
