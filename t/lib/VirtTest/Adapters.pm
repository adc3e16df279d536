package VirtTest::Adapters;

# The adapters of this distribution, on each loop that they run on. Each has its class, the code that chooses the loop
# underneath before anything is registered, the options of new, the modules it takes, and the kit's cases that it does
# not pass, with the reason; those are in the manual of its class, too.

use strict;
use warnings;

use Exporter 'import';

our @EXPORT = qw(adapters missing_modules);

my $CLOSED = 'the kernel drops a closed fd from an epoll set without a word, and the host loop has no other';

my @ADAPTERS = (
    map({
        my ($backend, $flag) = @$_;
        {
            name    => "EV on $backend",
            class   => 'Sys::Virt::Event::EV',
            main    => $backend eq 'epoll',
            modules => ['EV'],
            prepare => sub { $ENV{LIBEV_FLAGS} = $flag },
            skip    => $backend eq 'epoll' ? { closed_fd => $CLOSED } : {},
        }
    } [select => 1], [poll => 2], [epoll => 4]),
    { name => 'Glib', class => 'Sys::Virt::Event::Glib', main => 1, modules => ['Glib'] },
);

# Those of the names that match; of each class the main one only, unless all are wanted.
sub adapters {
    my (%opt) = @_;
    return grep { $opt{all} || $_->{main} } @ADAPTERS;
}

# Code that makes an object, for the kit.
sub maker {
    my ($adapter) = @_;
    return sub {
        $adapter->{prepare}->() if $adapter->{prepare};
        my $file = $adapter->{class} =~ s{::}{/}gr . '.pm';
        require $file;
        return $adapter->{class}->new(map { ref eq 'CODE' ? $_->() : $_ } %{ $adapter->{options} || {} });
    };
}

sub missing_modules {
    my ($adapter) = @_;
    return grep { !_is_installed($_) } @{ $adapter->{modules} || [] };
}

# Without loading it: that would start some loops.
sub _is_installed {
    my ($module) = @_;
    my $file = $module =~ s{::}{/}gr . '.pm';
    return grep { !ref && -e "$_/$file" } @INC;
}

1;
