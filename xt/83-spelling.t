# The spelling of the manual and of README: British, as aspell has it, with the words of xt/words.
use strict;
use warnings;

use lib 't/lib';
use ExtUtils::Manifest qw(maniread);
use File::Temp ();
use Pod::Spell ();
use Test::More;
use VirtTest qw(text_of);

my @words = do { open my $in, '<', 'xt/words' or die "Cannot read xt/words: $!\n"; map { s/\n//r } <$in> };
my %seen;
is_deeply \@words, [sort grep { !$seen{$_}++ } @words], 'the list of words is in order';

my (%is_known, %used) = map { $_ => 1 } @words;
for my $file (sort grep { m{^(?:lib/|script/|README$)} } keys %{ maniread() }) {
    my @unknown = unknown_words($file eq 'README' ? text_of($file) : words_of_pod($file));
    $used{$_} = 1 for @unknown;
    is join(' ', grep { !$is_known{$_} } @unknown), '', "$file: every word is known";
}
is join(' ', grep { !$used{$_} } @words), '', 'no word is on the list in vain';
done_testing;

sub words_of_pod {
    my ($file) = @_;
    open my $in,  '<', \text_of($file) or die "Cannot read: $!\n";
    open my $out, '>', \my $text       or die "Cannot write: $!\n";
    Pod::Spell->new(no_wide_chars => 1)->parse_from_filehandle($in, $out);
    return $text // '';
}

# What aspell does not know, but for names in code: those with a capital or a digit inside, and those of signals and
# errors. Headings are in capitals, and are read as if they were not.
sub unknown_words {
    my ($text) = @_;
    # Code, and what belongs to it.
    $text =~ s/^(?: {4}|examples\/).*//mg;
    $text =~ s/"[^"]{0,80}"//g;    # what others say
    $text =~ s/\b(?:SIG|POLL|EPOLL|E)[A-Z]{3,}\b|\b\w+(?:::\w+)+\b|\S*_\S*|[\w.]*[a-z]\w*[A-Z]\w*|\S*\/\S*//g;
    my $file = File::Temp->new;
    print $file $text =~ s/\b([A-Z]{2,})\b/\L$1/gr;
    close $file;
    my %unknown = map { lc $_ => 1 } split ' ', qx(aspell list --lang=en_GB --encoding=utf-8 <$file);
    $? and die "Cannot run aspell: $?\n";
    return sort keys %unknown;
}
