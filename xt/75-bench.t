# bench/run, in brief: it measures all that it knows, its figures are figures, and what it writes can be read. How fast
# anything is, is not asked here.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../t/lib";

use File::Temp ();
use JSON::PP ();
use Test::More;
use VirtTest qw(watchdog text_of);

my $bench = "$FindBin::Bin/../bench";
require "$bench/Tables.pm";

watchdog(600);

my $dir = File::Temp->newdir;
my $out = qx("$^X" "$bench/run" --quick --json "$dir/json" --svg "$dir/svg" 2>"$dir/err");
is $?, 0, 'all was measured' or diag text_of("$dir/err");

my $json = JSON::PP->new->decode(text_of("$dir/json"));
is_deeply $json->{failures}, [], 'nothing has failed';
for my $scenario (Bench::Tables::scenarios()) {
    my ($name, $columns) = @$scenario{qw(name columns)};
    for my $subject (@{ $scenario->{subjects} }) {
        my @figures = grep { defined } map { $json->{figures}{ $_->[0] }{$subject} } @$columns;
        is scalar(grep { $_->{median} > 0 && @{ $_->{rounds} } == 2 } @figures), @figures, "$name: $subject: figures"
            if ok scalar @figures, "$name: $subject is measured";
    }
    like $out, qr/^\Q$scenario->{title}\E \(/m, "$name: a table";
}
is_deeply [map { $_->{title} } @{ $json->{goals} }],
    [map { $_->{title} } grep { ($_->{by} // '') ne 'instructions' } Bench::Tables::goals()],
    'what each goal comes to, but for those by instructions, which take long';

my $svg = text_of("$dir/svg");
like $svg, qr/\A<svg .*<\/svg>\n\z/s, 'a chart';
my @lines = $svg =~ /<polyline points="([^"]+)"/g;
is_deeply [map { scalar split } @lines], [(scalar Bench::Tables::numbers()) x @lines], 'with all numbers of watches';
cmp_ok scalar @lines, '>', 10, 'of many loops';

is system(qq("$^X" "$bench/run" nothing >"$dir/out" 2>&1)) >> 8, 2, 'what it does not know is an error';
is system(qq("$^X" "$bench/run" --no-such >"$dir/out" 2>&1)) >> 8, 2, 'so is such an option';

watchdog(0);
done_testing;
