# The tests and examples in the source package of Sys::Virt, used where Debian's tools unpack it, on the module that
# it has and on ours.
use 5.016;
use strict;
use warnings;

use lib qw(t/lib xt/lib);

use AuthorTest;
use Cwd qw(getcwd);
use File::Path qw(make_path);
use File::Spec;
use Test::More;
use Test::Sys::Virt::EventImpl::Daemon;
use VirtTest;
use VirtTest::DropIn;

use constant PACKAGE => 'libsys-virt-perl';

for my $tool (qw(apt-get apt-cache dpkg-query dpkg-source)) {
    plan skip_all => "$tool is not installed (Debian: dpkg-dev)" if !grep { -x "$_/$tool" } File::Spec->path;
}
if (my $why = Test::Sys::Virt::EventImpl::Daemon->why_not) { plan skip_all => $why }
watchdog(400);

my $dir = work_dir();

# Binaries may have been built more than once from the same source.
my ($version, $source_version) = split ' ', output_of(qw(dpkg-query -W -f), '${Version} ${source:Version}', PACKAGE);
plan skip_all => PACKAGE . ' is not installed' if !$version;

sub output_of { return run_of(\@_, limit => 60)->{output} }

# Where the installed package comes from, as lines of a sources.list that has sources only.
sub source_lines {
    my ($keyring) = grep { -e } map { "/usr/share/keyrings/debian-archive-keyring.$_" } qw(gpg pgp);
    my $signed_by = $keyring ? "[signed-by=$keyring] " : '';
    my @places = output_of('apt-cache', 'madison', PACKAGE) =~ /\| *\Q$version\E *\| *(\S+ \S+) \S+ Packages$/mg;
    return map { "deb-src $signed_by" . s{ (\S+)/}{ $1 }r . "\n" } @places;
}

# apt-get with lists and a cache of its own: the machine's are left as they are. Ends the test where the mirror does
# not have what is asked for.
sub apt_get {
    my (@arguments) = @_;
    my @o = map { ('-o', $_) } "Dir::Etc::sourcelist=$dir/sources.list", 'Dir::Etc::sourceparts=/dev/null',
        "Dir::State::lists=$dir/lists", "Dir::Cache=$dir/cache", 'APT::Update::Error-Mode=any';
    my $run = run_of(['apt-get', '-q', @o, @arguments], dir => "$dir", limit => 300, env => { LC_ALL => 'C' });
    my $no_answer = qr/404|Could not|Temporary failure|Unable to connect|timed out/;
    my ($missing) = $run->{output} =~ /^E: Failed to fetch (.*$no_answer.*)/m;
    plan skip_all => "the mirror does not have the source of Sys::Virt: $missing" if defined $missing;
    $run->{status} eq 'exit 0' or die "apt-get @arguments: $run->{status}\n$run->{output}";
    return;
}

# The directory in which dpkg-source has unpacked the package, which it does only if all checksums are right.
sub unpacked_source {
    my @lines = source_lines() or plan skip_all => PACKAGE . " $version is from no repository that apt knows";
    make_path(map { "$dir/$_/partial" } qw(lists cache/archives));
    open my $out, '>', "$dir/sources.list" or die "Cannot write: $!\n";
    print $out @lines;
    close $out or die "Cannot write: $!\n";
    apt_get('update');
    apt_get('source', PACKAGE . "=$source_version");
    my ($unpacked) = grep { -d } glob "$dir/" . PACKAGE . '-*';
    return $unpacked;
}

my $source = unpacked_source();
note $source;

subtest 'its tests of events' => sub {
    my $daemon = Test::Sys::Virt::EventImpl::Daemon->start;
    my $user   = VirtTest::DropIn->new($daemon->socket =~ s{/libvirt/[^/]+\z}{}r);
    my @tests  = grep { is_about_events($_) } glob "$source/t/*.t";
    cmp_ok scalar @tests, '>', 0, 'there are some';
    for my $test (@tests) {
        my ($ours, $theirs) = $user->run_on_both($test);
        is $ours->{stdout}, $theirs->{stdout}, $test =~ s{.*/}{}r . ' prints the same on both';
        like $ours->{stdout}, qr/^ok 1\b/m, '... which are results';
        is "$ours->{stderr}$ours->{status}", '0', '... and passes on ours';
        is $ours->{functions}, VirtTest::DropIn::FUNCTIONS->{ours}, '... with our functions';
    }
};

sub is_about_events {
    my ($file) = @_;
    open my $in, '<', $file or die "Cannot read $file: $!\n";
    return scalar grep { /Sys::Virt::Event::register|event_register/ } <$in>;
}

subtest 'its examples' => sub {
    tests_pass(getcwd(), [], ['t/31-examples.t'], limit => 150, env => { SYS_VIRT_EXAMPLES => "$source/examples" });
};

done_testing;
