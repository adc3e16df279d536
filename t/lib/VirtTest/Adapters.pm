package VirtTest::Adapters;

# The adapters of this distribution, on each loop that they run on. Each has its class, the code that chooses the loop
# underneath before anything is registered, the options of new, the modules it takes, and the kit's cases that it does
# not pass, with the reason; those are in the manual of its class, too.

use strict;
use warnings;

use Exporter 'import';

our @EXPORT = qw(adapters missing_modules);

my $CLOSED = 'the kernel drops a closed fd from an epoll set without a word, and the host loop has no other';

my $DUPLICATE = 'a duplicate is watched, which does not show that the fd was closed: select(2) fails for a closed one';

my $DUP = 'the host loop watches a duplicate of the fd, which stays open when the fd is closed';

my $BY_C = 'the case replaces methods of an object in whose place C serves already';

my @ADAPTERS = (
    map({
        my ($backend, $flag) = @$_;
        {
            name    => "EV on $backend",
            class   => 'Sys::Virt::Event::EV',
            main    => $backend eq 'epoll',
            modules => ['EV'],
            skip    => { by_c(), $backend eq 'epoll' ? (closed_fd => $CLOSED) : () },
            prepare => sub { $ENV{LIBEV_FLAGS} = $flag },
        }
    } [select => 1], [poll => 2], [epoll => 4]),
    { name => 'EV in Perl', class => 'VirtTest::EVInPerl', modules => ['EV'], skip => { closed_fd => $CLOSED } },
    map({
        my ($reactor, @modules) = @$_;
        {
            name    => "Mojo on $reactor",
            class   => 'Sys::Virt::Event::Mojo',
            main    => $reactor eq 'Poll',
            modules => ['Mojolicious', @modules],
            prepare => sub { $ENV{MOJO_REACTOR} = "Mojo::Reactor::$reactor" },
            skip    => $reactor eq 'EV' ? { by_c(), closed_fd => $CLOSED } : {},
        }
    } ['Poll'], [EV => 'EV']),
    map({
        my ($loop) = @$_;
        {
            name    => "POE on $loop",
            class   => 'Sys::Virt::Event::POE',
            main    => $loop eq 'Select',
            modules => ['POE'],
            prepare => sub { $ENV{POE_EVENT_LOOP} = "POE::Loop::$loop" },
            skip    => { closed_fd => $DUPLICATE },
        }
    } ['Select'], ['IO_Poll']),
    { name => 'Glib', class => 'Sys::Virt::Event::Glib', main => 1, modules => ['Glib'] },
    {
        name    => 'Glib with a context of its own',
        class   => 'Sys::Virt::Event::Glib',
        modules => ['Glib'],
        options => { context => sub { require Glib; Glib::MainContext->new } },
    },
    map({
        my $loop = $_;
        {
            name    => "IOAsync on $loop",
            class   => 'Sys::Virt::Event::IOAsync',
            main    => $loop eq 'Poll',
            modules => ["IO::Async::Loop::$loop"],
            prepare => sub { $ENV{IO_ASYNC_LOOP} = $loop },
            skip    => { closed_fd => $DUP },
        }
    } qw(Select Poll Epoll Glib)),
    map({
        my ($backend, $module, $skip) = @$_;
        {
            name    => "AnyEvent on $backend",
            class   => 'Sys::Virt::Event::AnyEvent',
            main    => $backend eq 'Perl',
            modules => ['AnyEvent', $module],
            prepare => sub { @ENV{qw(PERL_ANYEVENT_MODEL LIBEV_FLAGS)} = ($backend, 2) },
            skip    => { $backend eq 'EV' ? by_c() : (), $skip ? (closed_fd => $skip) : () },
        }
    } [Perl => 'AnyEvent', $DUP], [Event => 'Event', $DUP], [EV => 'EV'], [Glib => 'Glib'],
        [IOAsync => 'IO::Async', $DUP], [POE => 'POE', $DUPLICATE]),
);

sub by_c { return map { $_ => $BY_C } qw(order_per_id refused_late methods_die error_survives) }

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
