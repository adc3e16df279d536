package VirtTest::Manual;

# The files of the manual, for the tests that are about all of it.

use strict;
use warnings;

use Exporter qw(import);
use File::Find ();
use VirtTest qw(text_of);

our @EXPORT = qw(pages name_of);

# The files that have a page, below the directory of the distribution.
sub pages {
    my ($top) = @_;
    my @found = map { "$top/script/$_" } qw(virt-events virt-eventimpl);
    File::Find::find({ no_chdir => 1, wanted => sub { push @found, $_ if /\.(?:pm|pod)\z/ } }, "$top/lib");
    return sort grep { defined name_of($_) } @found;
}

# What the page is called, if the file has one.
sub name_of {
    my ($file) = @_;
    return text_of($file) =~ /^=head1 NAME\n\n(\S+) - /m ? $1 : undef;
}

1;
