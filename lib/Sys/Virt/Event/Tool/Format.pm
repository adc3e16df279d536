package Sys::Virt::Event::Tool::Format;
use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

use Sys::Virt::Event::Tool::Human ();

# Records as lines of the user's own: %{key}, %{args.key}, %%; \n, \t and \\.

my %ESCAPED = (n => "\n", t => "\t", '\\' => '\\');

sub new {
    my ($class, $format) = @_;
    utf8::decode($format);
    my @parts;
    push @parts, defined $1 ? [split /\./, $1] : $2 ? '%' : defined $3 ? $ESCAPED{$3} : $4
        while $format =~ /\G(?:%\{([\w.-]+)\}|(%%)|\\([nt\\])|(.))/gs;
    return bless { parts => \@parts }, $class;
}

sub line {
    my ($self, $record) = @_;
    my $line = join '', map { ref $_ ? _value($record, @$_) : $_ } @{ $self->{parts} };
    utf8::encode($line);
    return $line;
}

# What is not there is empty.
sub _value {
    my ($value, @keys) = @_;
    return Sys::Virt::Event::Tool::Human::printable(Sys::Virt::Event::Tool::Human::plain(_find($value, @keys)));
}

# Names of parameters have dots of their own: blkdeviotune.disk.
sub _find {
    my ($value, @keys) = @_;
    return $value if !@keys;
    return if ref $value ne 'HASH';
    for my $last (reverse 0 .. $#keys) {
        my $key = join '.', @keys[0 .. $last];
        return _find($value->{$key}, @keys[$last + 1 .. $#keys]) if exists $value->{$key};
    }
    return;
}

1;
