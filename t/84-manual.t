# The pages of the manual agree with each other and with the sources.
use strict;
use warnings;

use File::Basename qw(basename dirname);
use lib dirname(__FILE__) . '/lib';
use Pod::Simple::SimpleTree ();
use Test::More;
use VirtTest qw(text_of);
use VirtTest::Manual;

my $top = dirname(__FILE__) . '/..';
my $book = "$top/lib/Sys/Virt/Event/Manual";

my %page = map { name_of($_) => $_ } pages($top);

# The table of contents.
{
    my @linked = map { $_->{to} } links("$book.pod");
    my %is_linked = map { $_ => 1 } @linked, 'Sys::Virt::Event::Manual';
    # Of no use to programs by itself.
    my @missing = grep { !$is_linked{$_} && $_ ne 'Sys::Virt::Event::Connection::Probe' } sort keys %page;
    is_deeply \@missing, [], 'the table of contents has all pages';
}

# Links that lead nowhere.
{
    my %heads = map { $_ => { map { $_ => 1 } heads($page{$_}) } } keys %page;
    my @broken;
    for my $name (sort keys %page) {
        for my $link (links($page{$name})) {
            my $to = $link->{to} || $name;
            next if $to !~ /^(?:Sys::Virt::Event|Test::Sys::Virt::EventImpl|virt-event)/;
            push @broken, "$name: L<$link->{raw}>"
                if !$page{$to} || length $link->{section} && !$heads{$to}{ $link->{section} };
        }
    }
    is_deeply \@broken, [], 'every link within the manual leads somewhere' or diag explain \@broken;
}

# What differs from the module in Sys::Virt: README has the list, the manual the reasons.
{
    my ($section) = text_of("$top/README") =~ /^What differs from.*?\n\n.*?\n\n(.*?)\n\n\S/ms;
    my @short = map { s/\s+/ /gr } $section =~ /^  \* (.*?)(?=\n  \*|\z)/msg;
    my ($list) = text_of("$book/Migration.pod") =~ /^=head1 WHAT DIFFERS\n(.*?)^=back/ms;
    my @long = map { s/\s+/ /gr } $list =~ /^=item \*\n\n(.*?)\n\n/msg;
    cmp_ok scalar @short, '>', 5, 'README tells what differs';
    is_deeply \@long, \@short, '... and the manual explains just that';
}

# The internals speak of functions and files that exist.

my %body;    # of functions in C, by file and name
for my $file (glob "$top/src/*.c") {
    my $code = text_of($file);
    # A definition starts at the margin, and so does its last brace.
    while ($code =~ /^(?!typedef|struct)[a-zA-Z][^;={}()]*?\b\**(\w+)\([^;{}]*\)\s*\{(\n.*?^\}|[^\n]*\}$)/msg) {
        $body{ basename($file) }{$1} = $2;
    }
}
my $internals = text_of("$book/Internals.pod");
{
    my @unknown;
    for my $line (split /\n/, $internals) {
        push @unknown, map { "$_()" } grep { !bodies($_, $line) } $line =~ /\b(\w+)\(\)(?!\|)/g;
    }
    is_deeply \@unknown, [], 'every function in the internals is in the sources' or diag explain \@unknown;
    my @files = map { m{/} ? "$top/$_" : "$top/src/$_" } $internals =~ /F<([\w\/.-]+\.\w+)>/g;
    is_deeply [grep { !-e } @files], [], '... and so is every file';
    my @left_out = grep { $internals !~ /\b\Q$_\E\b/ } map { basename($_) } glob "$top/src/*.c";
    is_deeply \@left_out, [], '... of which none is left out';
}

# The drawing: what is further to the right is called by what is above it.
{
    my ($drawing) = $internals =~ /^=head1 THE WAY OF A CALL\n(.*?)^=head1/ms;
    my (@wrong, $calls);
    for my $side (qr/^(.{0,30})/, qr/^.{31}(.*)/) {
        my @callers;
        for my $line (map { $_ =~ $side ? $1 : () } grep { /^  / } split /\n/, $drawing) {
            my ($function, $file) = $line =~ /(\w+)\(\)(?:\s+(\w+\.c))?/ or next;
            my $column = $-[1];
            pop @callers while @callers && $callers[-1]{column} >= $column;
            my $caller = $callers[-1];
            push @callers, { column => $column, name => $function, line => $line };
            next if !$caller;
            $calls++;
            push @wrong, "$caller->{name}() calls $function()"
                if !grep { /\b$function\(/ } bodies($caller->{name}, $caller->{line});
        }
    }
    cmp_ok $calls, '>', 15, 'the drawing has calls';
    is_deeply \@wrong, [], '... and all of them are in the sources' or diag explain \@wrong;
}

done_testing;

# The functions of that name: of the file that the line names, else any.
sub bodies {
    my ($name, $line) = @_;
    my ($file) = $line =~ /\b\Q$name\E\(\)\s+(?:of |in )?(?:F<)?(\w+\.c)/;
    return map { $body{$_}{$name} // () } $file // sort keys %body;
}

sub nodes {
    my ($what, $tree) = @_;
    my ($name, undef, @inside) = @$tree;
    return ($name =~ $what ? $tree : ()), map { ref() ? nodes($what, $_) : () } @inside;
}

sub text_in {
    my ($tree) = @_;
    return join '', map { ref() ? text_in($_) : $_ } @$tree[2 .. $#$tree];
}

sub links {
    my ($file) = @_;
    # Their values are objects that stand for text.
    return map { my $is = $_->[1]; +{ map { $_ => '' . ($is->{$_} // '') } qw(to section raw) } }
        grep { $_->[1]{type} eq 'pod' } nodes(qr/^L$/, tree($file));
}

sub heads {
    my ($file) = @_;
    my @anchors = text_of($file) =~ /X<(\w+)>/g;
    return @anchors, map { text_in($_) } nodes(qr/^(?:head\d|item-text)$/, tree($file));
}

sub tree { my ($file) = @_; return Pod::Simple::SimpleTree->new->parse_file($file)->root }
