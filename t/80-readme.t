# What the README shows is so: its programs are those in examples/ and work, its commands can be given.
use strict;
use warnings;

use File::Basename qw(dirname);
use File::Spec;
use lib dirname(__FILE__) . '/lib';
use Test::More;
use VirtTest qw(:DEFAULT text_of);
use VirtTest::Commands;

plan skip_all => 'Sys::Virt is not installed (Debian: libsys-virt-perl)' if !eval { require Sys::Virt };
watchdog(60);

my $top = File::Spec->rel2abs(dirname(__FILE__) . '/..');
@INC = map { ref() ? $_ : File::Spec->rel2abs($_) } @INC;
chdir $top or die "Cannot go to $top: $!\n";
my $readme = text_of("$top/README");

# A line that names the file, and the indented block below it.
my %program;
while ($readme =~ m{^examples/(\w+\.pl):\n\n((?:(?:[ ]{4}.*)?\n)+)}mg) {
    my ($name, $code) = ($1, $2);
    $code =~ s/^ {4}//mg;
    $code =~ s/\n+\z/\n/;
    $program{$name} = $code;
}
is_deeply([sort keys %program], [qw(poll.pl subclass.pl)], 'the README has two programs');

my %expected = (
    'poll.pl'     => "test: event 3, detail 0\n",
    'subclass.pl' => "event 3\n",
);
for my $name (sort keys %expected) {
    is($program{$name}, text_of("$top/examples/$name"), "$name is the same in the README and in examples/");
    SKIP: {
        my $missing = missing($program{$name});
        skip "$name: $missing", 3 if $missing;
        my $run = fresh_perl($program{$name}, switches => ['-w']);
        is($run->{stdout}, $expected{$name}, "$name prints the event");
        is($run->{stderr}, '', '... and no warning');
        ok(!$run->{timed_out} && !$run->{exit} && !$run->{signal}, '... and ends well');
    }
}

# Every block is of a kind that is checked.

my @CHECKS = (
    [qr/\A\$ virt-events --demo\n(?=\d)/ => \&demo],
    [qr/\A(?:\$ )?(?:virt-event\w+|perl|make|sh|perldoc|cpanm|man) / => \&shell],
    [qr/\A\{"v":/ => \&json],
    [qr/\ADebian: / => \&packages],
    [qr/\Ause \S+ -register;\n\z/ => \&registers],
    [qr/\ASys::Virt::Event::EV / => \&modules],
    [qr/\A[Pp]latform\b/ => sub { pass 'a table' }],
    [qr/\A *10 ms \|/ => \&chart],
);
for my $block (blocks($readme)) {
    next if grep { index($_, $block) >= 0 } values %program;
    my ($check) = map { $block =~ $_->[0] ? $_->[1] : () } @CHECKS;
    if   ($check) { $check->($block) }
    else          { fail "a block that is not checked: $block" }
}

done_testing;

# Indented paragraphs.
sub blocks {
    my ($text) = @_;
    return map { s/^ {4}//mgr } $text =~ /(?<=\n\n)((?: {4}.*\n)+)/g;
}

# What is called the output of the demonstration looks like it.
sub demo {
    my ($command, @lines) = split /\n/, $_[0];
    cmp_ok(@lines, '>=', 5, 'the README shows some output');
    my @tool = ($^X, (map { "-I$_" } grep { !ref } @INC), "$top/script/virt-events");
    my $demo = fresh_perl("exec \@ARGV or die", args => [@tool, '--demo']);
    my %printed = map { without_time($_) => 1 } split /\n/, $demo->{stdout};
    is_deeply([grep { !$printed{ without_time($_) } } @lines], [], 'virt-events --demo prints every line of it');
    return;
}

sub shell {
    my ($block) = @_;
    # Behind two spaces is what a page has.
    is VirtTest::Commands::complaint($_), undef, $_ for VirtTest::Commands::commands($block =~ s/  .*//mgr);
    return;
}

# A record as it is written has these keys, in this order.
sub json {
    my ($block) = @_;
    my $real = fresh_perl(<<'PERL')->{stdout};
use Sys::Virt::Event::Poll -register;
use Sys::Virt::Event::Connection;
my $loop = Sys::Virt::Event::registered();
my $conn = Sys::Virt::Event::Connection->new(uri => 'test:///default')->open;
$conn->on('domain/lifecycle' => sub { print Sys::Virt::Event::Record::json($_[1]); $loop->stop });
$conn->virt->get_domain_by_name('test')->suspend;
$loop->run;
PERL
    my ($shown, $written) = map { join ' ', /[{,\n]"(\w+)":/g } $block, $real;
    is $shown, $written, 'the JSON has the keys of a real one';
    return;
}

sub registers {
    my ($line) = @_;
    my $missing = missing($line);
    SKIP: {
        skip "$line: $missing", 1 if $missing;
        is fresh_perl($line)->{stderr}, '', "it works: $line";
    }
    return;
}

sub missing {
    my ($code) = @_;
    return 'EV is not installed' if $code =~ /\bEV::/ && !eval { require EV };
    return 'Mojolicious is not installed' if $code =~ /::Mojo\b/ && !eval { require Mojolicious };
    return;
}

sub modules {
    my ($block) = @_;
    is_deeply [$block =~ /^Sys::Virt::Event::(\w+)/mg], [qw(EV AnyEvent IOAsync Mojo Glib POE Auto)],
        'all adapters are there';
    return;
}

sub packages {
    my ($block) = @_;
    is VirtTest::Commands::complaint(s/^\w+: //r), undef, $_ for split /\n/, $block;
    return;
}

# Each letter stands above its number of watches, and beside the power of ten, or half of one, that bench/README has.
sub chart {
    my ($block) = @_;
    my ($plot, $axis, $legend) = $block =~ /\A(.*)^ *\+-+\n(.*)\n(.*)\n\z/ms;
    my ($figures) = text_of("$top/bench/README") =~ /^One event among N watches(.*?)\n\n\S/ms;
    my $unit = { us => 1e3, ms => 1e6 };
    my (%drawn, $time);
    for my $line (split /\n/, $plot) {
        $time = $line =~ /(\d+) ([um]s) / ? $1 * $unit->{$2} : $time / sqrt 10;
        $drawn{$1}{ $-[0] } = $time while $line =~ /\b([a-z])\b/g;
    }
    my @columns;
    push @columns, $-[0] while $axis =~ /\b\d/g;
    while ($legend =~ /(\w): (?:Sys::Virt::Event::)?(\S+(?: \S+)*)/g) {
        my ($letter, $loop) = ($1, $2);
        my ($cells) = $figures =~ /^ +\Q$loop\E  (.*)/m or die "No figures of $loop\n";
        my @measured = (map { tr/,//dr } $cells =~ /([\d.,]+) \+-/g)[0 .. $#columns];
        my @off = map { abs log(($drawn{$letter}{ $columns[$_] } // 1) / $measured[$_]) / log 10 } 0 .. $#columns;
        is_deeply [grep { $_ > 0.4 } @off], [], "the chart is true for $loop";
    }
    return;
}

sub without_time { return $_[0] =~ s/^\S+//r }
