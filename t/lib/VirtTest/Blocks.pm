package VirtTest::Blocks;

# The verbatim blocks of the manual, each with the mark in front of it that says what it is. Formatters do not show
# marks. A paragraph is a mark for the block that follows it:
#
#   =for test program           a whole program. It must print what the other lines of the paragraph say, nothing if
#                               there are none, and give no warning. A line between two slashes is a pattern.
#   =for test output            what the program before it has printed
#   =for test output trace      what it prints to stderr with SYS_VIRT_EVENT_TRACE=1
#   =for test shell             commands
#   =for test messages          exceptions and warnings, a line each; a continuation is indented further
#   =for test text              a table, a drawing
#   =for test elsewhere FILE    taken from the manual and run by that test
#
# These, up to =end test, are programs themselves. What they must print follows after __END__.
#
#   =begin test frame           HERE, alone on a line, stands for the block
#   =begin test driver          the name of a file with the block is its first argument

use strict;
use warnings;

# Of the text of a file with POD: hashes with head, line (its number), text, lines, indent (by which formatters move it
# to the right), and mark, about, expected of the mark: its first word, the rest of the line, the lines below; frame is
# that of a =begin. A mark with no block after it is a block without lines, whose mark is "lost".
sub of {
    my ($text) = @_;
    my (@blocks, $head, $mark, @indents);
    my ($is_pod, $in, $number) = (0, 'blank', 0);
    my $lose_mark = sub {
        push @blocks, { %$mark, head => $head, lines => [], indent => 0, mark => 'lost' } if $mark;
        undef $mark;
    };
    for (split /\n/, $text) {
        $number++;
        if ($in eq 'frame') {
            if (/^=end test/) { $in = 'blank' }
            else              { $mark->{frame} .= "$_\n" }
        }
        elsif (!/\S/) {
            $in = $in =~ /^verbatim/ ? 'verbatim after blank' : 'blank';
        }
        elsif (/^=(\w+)\s*(.*)/) {
            my ($command, $rest) = ($1, $2);
            $lose_mark->();
            ($is_pod, $in) = ($command ne 'cut', 'command');
            $head = $rest if $command =~ /^head/;
            push @indents, $rest =~ /^(\d+)/ ? $1 : 4 if $command eq 'over';
            pop @indents if $command eq 'back';
            next if $command !~ /^(?:for|begin)$/ || $rest !~ /^test +(\w+) *(.*)/;
            $mark = { mark => $1, about => $2, expected => '', line => $number };
            $in = $command eq 'for' ? 'mark' : 'frame';
        }
        elsif ($in eq 'mark') {
            $mark->{expected} .= "$_\n";
        }
        elsif ($is_pod && /^[ \t]/ && $in =~ /^(?:blank|verbatim)/) {
            my $indent = 0;
            $indent += $_ for @indents;
            push @blocks, { %{ $mark || {} }, head => $head, line => $number, lines => [], indent => $indent }
                if $in eq 'blank';
            push @{ $blocks[-1]{lines} }, $in eq 'verbatim after blank' ? '' : (), $_;
            ($in, $mark) = ('verbatim', undef);
        }
        else {
            $lose_mark->();
            $in = 'text';
        }
    }
    $lose_mark->();
    return map { _finished($_) } @blocks;
}

# Without the indent that all its lines have, and with what a frame says that it prints.
sub _finished {
    my ($block) = @_;
    my ($least) = sort { length $a <=> length $b } map { /^(\s*)\S/ ? $1 : () } @{ $block->{lines} };
    $block->{text} = join '', map { s/^\Q$least\E//r . "\n" } @{ $block->{lines} };
    @$block{qw(frame expected)} = split /^__END__\n/m, $block->{frame} =~ s/\n+\z/\n/r if defined $block->{frame};
    return $block;
}

# Whether what was printed is what was expected: lines, or patterns between slashes.
sub is_like {
    my ($printed, $expected) = @_;
    my $pattern = join '', map { (m{\A/(.*)/\n\z} ? "(?:$1)\n" : quotemeta) } split /^/, $expected // '';
    return $printed =~ /\A$pattern\z/;
}

# The same for output that the manual shows: what differs each time need not agree.
sub is_shown {
    my ($printed, $shown) = @_;
    for ($printed, $shown) {
        s/0x[0-9a-f]+/0x0/g;
        s/fd \d+/fd 0/g;
        s/(Event) \d+/$1 0/g;    # process ids
    }
    return $printed eq $shown;
}

1;
