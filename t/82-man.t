# The manual as man shows it on a terminal of 80 columns.
use strict;
use warnings;

use File::Basename qw(dirname);
use File::Temp ();
use Pod::Man ();
use lib dirname(__FILE__) . '/lib';
use Test::More;
use VirtTest qw(text_of);
use VirtTest::Manual;

plan skip_all => 'man of man-db is not installed (Debian: man-db)'
    if ($ENV{PATH} // '') eq '' || qx(man --version 2>&1) !~ /^man \d/;

my $top = dirname(__FILE__) . '/..';
my $dir = File::Temp->newdir;
local @ENV{qw(MANWIDTH MAN_KEEP_FORMATTING LC_ALL MANPAGER PAGER)} = (80, '', 'C.UTF-8', 'cat', 'cat');

for my $file (pages($top)) {
    my $name = name_of($file);
    my $page = "$dir/" . $name =~ s/:+/-/gr . '.3';
    my $formatter = Pod::Man->new(name => $name, section => '3pm', utf8 => 1, errors => 'die');
    ok eval { $formatter->parse_from_file($file, $page); 1 }, "$name can be formatted" or diag $@;
    my $text = qx(man --warnings -l $page 2>$dir/warnings);
    is text_of("$dir/warnings"), '', '... by man, too, without warnings';
    utf8::decode($text);
    s/\e\[[\d;]*m//g, s/.\x08//g for $text;
    # To be sure that it is the page, to its end.
    like $text, qr/^NAME\n.*^AUTHOR AND LICEN[CS]E$/ms, '... all of it';
    unlike $text, qr/=(?:for|begin)|\bHERE\b|__END__/, '... and nothing that is for tests';
    is join("\n", grep { length > 80 } split /\n/, $text), '', '... within 80 columns';
}

# Those that make has made: the name at both ends of the first line, and nothing that runs into it.
for my $page (glob "$top/blib/man[13]/*") {
    my ($first) = qx(man -l $page 2>$dir/warnings) =~ /(.*)/;
    $first =~ s/\e\[[\d;]*m|.\x08//g;
    my ($name) = $first =~ /(\S+)\z/;
    next if 2 * length $name > 76;
    is $first =~ s/ {2,}/ /r, "$name $name", "the first line of $name";
}
done_testing;
