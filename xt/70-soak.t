# A minute of bench/soak, and a proof that it sees what it is there to see: copies of the module that lose
# or repeat something.

use strict;
use warnings;

use File::Path qw(make_path);
use File::Spec;
use File::Temp ();
use FindBin;
use Test::More;

use lib "$FindBin::Bin/../t/lib";
use VirtTest qw(watchdog);
use Test::Sys::Virt::EventImpl::Daemon;

my $top = File::Spec->rel2abs("$FindBin::Bin/..");

if (my $why = Test::Sys::Virt::EventImpl::Daemon->why_not) { plan skip_all => $why }

# The end of a changed copy of Event.pm: one of 10,000 calls of protected handlers goes to CHANGED instead.
my $CHANGE = <<'PERL';

my ($protect, $calls) = (\&protect, 0);
no warnings 'redefine';
*protect = sub {
    my ($code) = @_;
    # No branch before the handler: alarms would strike there.
    my @either = ($code, CHANGED);
    return $protect->(sub { $either[!(++$calls % 10_000)]->(@_) });
};

1;

__END__
PERL

my %CHANGED = (
    'one of 10,000 calls of a handler is forgotten' => ['sub { }', qr/^  lost +[1-9]/m],
    'one of 10,000 is made twice' => ['sub { &$code; &$code }', qr/^  duplicated +[1-9]/m],
);

# The report, and whether all was well.
sub soak {
    my (@options) = @_;
    watchdog(600);
    open my $out, '-|', $^X, "$top/bench/soak", @options or die "Cannot run bench/soak: $!";
    my $report = do { local $/; readline $out };
    return ($report // '', close $out);
}

# A directory with a module whose protect does something else instead, once in a while.
sub changed_copy {
    my ($changed) = @_;
    open my $in, '<', "$top/lib/Sys/Virt/Event.pm" or die "Cannot read Event.pm: $!";
    my $text = do { local $/; readline $in };
    $text =~ s/\n1;\n\n__END__\n/$CHANGE =~ s{CHANGED}{$changed}r/e or die 'Event.pm has another end';
    my $dir = File::Temp->newdir;
    make_path("$dir/Sys/Virt");
    open my $copy, '>', "$dir/Sys/Virt/Event.pm" or die "Cannot write Event.pm: $!";
    print $copy $text;
    close $copy or die "Cannot write Event.pm: $!";
    return $dir;
}

my ($report, $good) = soak(qw(--minutes 1 --seed 20 --life 8 --growth 1024));
ok $good, 'a minute: nothing is lost, nothing is left';
diag $report if !$good;
my $deaths = 0;
$deaths += $_ for $report =~ /^  daemons (?:killed|ended).* (\d+)$/mg;
cmp_ok $deaths, '>=', 3, 'daemons have died';
my ($seen) = $report =~ /^  seen +(\d+)$/m;
cmp_ok $seen, '>', 10_000, 'events were seen';

for my $what (sort keys %CHANGED) {
    my ($changed, $complaint) = @{ $CHANGED{$what} };
    my $dir = changed_copy($changed);
    my ($report, $good) = soak(qw(--minutes 0.5 --seed 21 --growth 4096), '--include', $dir);
    ok !$good, "$what: noticed";
    # Where that hits the handler of a closed connection, the soak comes to its end at once, and without a report.
    like $report, qr/\A\z|$complaint/, 'and told';
}

watchdog(0);
done_testing;
