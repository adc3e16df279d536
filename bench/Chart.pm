package Bench::Chart;

# The cost of one event against the number of watches, as SVG: both axes are logarithmic.

use strict;
use warnings;

use List::Util qw(max min);

# Width and height of a panel, and what is around it.
use constant { WIDTH => 380, HEIGHT => 430, LEFT => 70, TOP => 60, BELOW => 60, BETWEEN => 60, LEGEND => 190 };

# Ours are drawn in full, the peers dashed.
my @LINES = (
    [libev        => 'C, libev',              '#000000', '6 3'],
    [ev           => 'EV',                    '#d62728', ''],
    [installed_ev => 'EV in Perl, Sys::Virt', '#ff9896', '6 3'],
    [python       => 'Python, functions',     '#1f77b4', '2 2'],
    [libvirtaio   => 'Python, libvirtaio',    '#1f77b4', '6 3'],
    [c_default    => "C, libvirt's loop",     '#7f7f7f', '6 3'],
    [default      => "libvirt's loop",        '#7f7f7f', ''],
    [anyevent     => 'AnyEvent, in Perl',     '#2ca02c', ''],
    [poe          => 'POE, select',           '#9467bd', ''],
    [glib         => 'Glib',                  '#17becf', ''],
    [mojo         => 'Mojo, poll',            '#bcbd22', ''],
    [ioasync      => 'IO::Async, poll',       '#8c564b', ''],
    [poll         => 'Poll',                  '#e377c2', ''],
);

sub log10 { return log($_[0]) / log 10 }

# The function returns nanoseconds.
sub svg {
    my ($figure) = @_;
    my @numbers = Bench::Tables::numbers();
    my %points;
    for my $kind (qw(handle timer)) {
        for my $line (@LINES) {
            $points{$kind}{ $line->[0] } = [
                map { my $ns = $figure->("${kind}_$_", $line->[0]); defined $ns ? [$_, $ns / 1000] : () } @numbers
            ];
        }
    }
    my @costs = map { $_->[1] } map { @$_ } map { values %$_ } values %points;
    @costs or die "bench: nothing was measured that the chart shows: it takes among\n";
    my @decades = (int(log10(min(@costs)) + 100) - 100, int(log10(max(@costs)) + 100) - 99);
    my $width = LEFT + 2 * WIDTH + BETWEEN + LEGEND;
    my $height = TOP + HEIGHT + BELOW;
    return join "\n",
        qq(<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 $width $height" width="$width" height="$height")
            . ' font-family="sans-serif" font-size="12">',
        qq(<rect width="$width" height="$height" fill="white"/>),
        panel(LEFT, 'One handle is ready', 'handles', $points{handle}, \@decades),
        panel(LEFT + WIDTH + BETWEEN, 'One timer is due', 'timers', $points{timer}, \@decades),
        legend(LEFT + 2 * WIDTH + BETWEEN + 15, $points{handle}), "</svg>\n";
}

sub text {
    my ($x, $y, $text, $more) = @_;
    $text =~ s/&/&amp;/g;
    return sprintf '<text x="%.1f" y="%.1f" %s>%s</text>', $x, $y, $more // '', $text;
}

sub stroke {
    my ($x1, $y1, $x2, $y2, $more) = @_;
    return sprintf '<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" %s/>', $x1, $y1, $x2, $y2, $more;
}

sub cost_label {
    my ($decade) = @_;
    return $decade < 3 ? 10**$decade . ' &#181;s' : 10**($decade - 3) . ' ms';
}

sub panel {
    my ($left, $title, $noun, $points, $decades) = @_;
    my ($low, $high) = @$decades;
    my $x = sub { $left + WIDTH * (log10($_[0]) - 1) / 3 };
    my $y = sub { TOP + HEIGHT * ($high - log10($_[0])) / ($high - $low) };
    my ($right, $bottom) = ($left + WIDTH, TOP + HEIGHT);
    my @svg = (text(($left + $right) / 2, TOP - 20, $title, 'text-anchor="middle" font-size="15"'));
    for my $decade ($low .. $high) {
        my $at = $y->(10**$decade);
        push @svg, stroke($left, $at, $right, $at, 'stroke="#dddddd"');
        push @svg, text($left - 6, $at + 4, cost_label($decade), 'text-anchor="end"') =~ s/&amp;#/&#/r if $left == LEFT;
    }
    for my $number (10, 100, 1000, 10_000) {
        my $at = $x->($number);
        push @svg, stroke($at, TOP, $at, $bottom, 'stroke="#dddddd"'),
            text($at, $bottom + 18, $number =~ s/(?=000$)/,/r, 'text-anchor="middle"');
    }
    push @svg, stroke($left, $bottom, $right, $bottom, 'stroke="black"'),
        stroke($left, TOP, $left, $bottom, 'stroke="black"'),
        text(($left + $right) / 2, $bottom + 40, "$noun in the loop", 'text-anchor="middle"');
    push @svg, sprintf '<text transform="translate(16 %.1f) rotate(-90)" text-anchor="middle">%s</text>',
        (TOP + $bottom) / 2, 'processor time for one event' if $left == LEFT;
    for my $line (@LINES) {
        my ($name, undef, $colour, $dash) = @$line;
        my @at = map { sprintf '%.1f,%.1f', $x->($_->[0]), $y->($_->[1]) } @{ $points->{$name} } or next;
        push @svg, qq(<polyline points="@at" fill="none" stroke="$colour" stroke-width="2" stroke-dasharray="$dash"/>);
        push @svg, map { sprintf '<circle cx="%s" cy="%s" r="3" fill="%s"/>', split(/,/), $colour } @at;
    }
    return @svg;
}

# In the order of what an event costs at the right edge.
sub legend {
    my ($left, $points) = @_;
    my @svg;
    my $y = TOP;
    my %last = map { $_->[0] => ($points->{ $_->[0] }[-1] || [])->[1] } @LINES;
    for my $line (sort { $last{ $b->[0] } <=> $last{ $a->[0] } } grep { defined $last{ $_->[0] } } @LINES) {
        my ($name, $title, $colour, $dash) = @$line;
        push @svg, stroke($left, $y, $left + 30, $y, qq(stroke="$colour" stroke-width="2" stroke-dasharray="$dash")),
            text($left + 38, $y + 4, $title);
        $y += 20;
    }
    return @svg;
}

1;
