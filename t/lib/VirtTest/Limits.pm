package VirtTest::Limits;

# What an adapter cannot do on a certain loop, as its manual tells: the table of its chapter LIMITS. Cases of the kit are
# in it by their names, what else tests except by some words. So the manual is the only list of exceptions there is.

use strict;
use warnings;

use Carp qw(croak);
use Exporter 'import';

our @EXPORT_OK = qw(table rows);

# The lines of the table.
sub table {
    my ($class) = @_;
    my $file = $class =~ s{::}{/}gr . '.pm';
    my ($path) = grep { -e } map { ref() ? () : "$_/$file" } @INC;
    open my $in, '<', $path // croak("There is no $file") or croak "Cannot read $path: $!";
    my $pod = do { local $/; <$in> };
    my ($chapter) = $pod =~ /^=head1 LIMITS\n(.*?)^=head1 /ms or return;
    my ($table) = $chapter =~ /^(  what .*?)\n\n/ms;
    return split /\n/, $table // '';
}

# As hashes of names, on (both lists) and reason. What stands under a name, and has nothing beside it, is another one.
sub rows {
    my ($class) = @_;
    my (undef, $rule, @lines) = table($class) or return;
    my @columns;
    push @columns, [$-[0], $+[0] - $-[0]] while $rule =~ /-+/g;
    my @rows;
    for my $line (@lines) {
        my ($name, $on, $reason) = map { _cell($line, @$_) } @columns;
        push @rows, { names => [], on => '', reason => '' } if length $name && length $on;
        my $row = $rows[-1] or croak "The table of $class begins with no row";
        push @{ $row->{names} }, $name if length $name;
        $row->{on}     = join ' ', grep { length } $row->{on}, $on;
        $row->{reason} = join ' ', grep { length } $row->{reason}, $reason;
    }
    $_->{on} = [split /, /, $_->{on}] for @rows;
    return @rows;
}

sub _cell {
    my ($line, $start, $width) = @_;
    return '' if $start >= length $line;
    return substr($line, $start, $width) =~ s/\s+\z//r;
}

1;
