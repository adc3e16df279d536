# The suite passes on each platform of the README's table, which has the versions that it meets there. Those of unstable
# are of the day: they are only shown.
use strict;
use warnings;

use lib 't/lib', 'xt/lib';
use AuthorTest qw(run_of);
use Test::More;

use constant LIMIT => 3600;

my %expected = table_of('README');
is_deeply [sort keys %expected], [qw(bookworm sid trixie)], 'the README has a table of platforms';

my $bad = run_of([qw(sh dev/test --platform hamm)], limit => 10);
like "$bad->{status}: $bad->{output}", qr/\Aexit 2: Usage: .*bookworm\|trixie\|sid/, 'there are no others';

for my $alone ([], ['sid']) {
    my $run = run_of(['sh', 'dev/platform.sh', @$alone], limit => 10);
    is "$run->{status}: $run->{output}", "exit 1: == This is run by dev/test --platform\n",
        join(' ', 'dev/platform.sh', @$alone) . ' does nothing outside of its namespaces';
}

my $sudo      = $> == 0 ? '' : 'sudo -n';
my $can_mount = system("$sudo unshare --mount true 2>/dev/null") == 0;
for my $platform ($can_mount ? sort keys %expected : ()) {
    my $run = run_of(['sh', 'dev/test', '--platform', $platform], limit => LIMIT);
    is $run->{status}, 'exit 0', "the suite passes on $platform" or diag $run->{output};
    my ($found) = $run->{output} =~ /^== (perl \d.*)$/m;
    note "$platform: ", $found // 'no versions';
    is versions($found), versions($expected{$platform}), '... with the versions of the table' if $platform ne 'sid';
    my @mounts = grep { m{ /var/cache/sys-virt-event/} } lines_of('/proc/self/mounts');
    is "@mounts", '', '... and nothing stays mounted';
}

SKIP: { skip 'nothing can be mounted here: that takes root or sudo, and no chroot around it', 1 if !$can_mount }

done_testing;

# A row, as dev/versions prints it.
sub table_of {
    my ($file) = @_;
    my ($table) = join('', lines_of($file)) =~ /^( {4}platform +perl +.*?)^$/ms;
    my ($head, @rows) = map { [split] } split /\n/, $table // '';
    my (undef, @names) = @{ $head || [] };
    my %row;
    for my $row (@rows) {
        my ($platform, @versions) = @$row;
        $row{$platform} = join ', ', map { "$names[$_] $versions[$_]" } 0 .. $#names;
    }
    return %row;
}

sub versions { return join "\n", split /, /, $_[0] // '' }

sub lines_of {
    my ($file) = @_;
    open my $in, '<', $file or die "Cannot read $file: $!\n";
    return <$in>;
}
