package VirtTest::Adapters;

# The adapters of this distribution, on each loop that they run on. Each has its class, the code that chooses the loop
# underneath before anything is registered, and the modules it takes; `on` is what the table in its manual calls that
# loop. What it does not pass, and why, is in that table: see VirtTest::Limits.

use strict;
use warnings;

use Carp qw(croak);
use Exporter 'import';
use VirtTest::Limits ();

our @EXPORT    = qw(adapters missing_modules);
our @EXPORT_OK = qw(adapter_classes is_limited limits_of skips_of);

my @ADAPTERS = (
    map({
        my ($backend, $flag) = @$_;
        {
            name    => "EV on $backend",
            class   => 'Sys::Virt::Event::EV',
            on      => [$backend, 'from C'],
            main    => $backend eq 'epoll',
            modules => ['EV'],
            prepare => sub { $ENV{LIBEV_FLAGS} = $flag },
        }
    } [select => 1], [poll => 2], [epoll => 4]),
    {
        name    => 'EV in Perl',
        class   => 'VirtTest::EVInPerl',
        manual  => 'Sys::Virt::Event::EV',
        on      => ['epoll', 'in Perl'],
        modules => ['EV'],
        prepare => sub { $ENV{LIBEV_FLAGS} = 4 },
    },
    map({
        my ($reactor, @modules) = @$_;
        {
            name    => "Mojo on $reactor",
            class   => 'Sys::Virt::Event::Mojo',
            on      => [$reactor],
            main    => $reactor eq 'Poll',
            modules => ['Mojolicious', @modules],
            prepare => sub { @ENV{qw(MOJO_REACTOR LIBEV_FLAGS)} = ("Mojo::Reactor::$reactor", 4) },
        }
    } ['Poll'], [EV => 'EV']),
    map({
        my ($loop) = @$_;
        {
            name    => "POE on $loop",
            class   => 'Sys::Virt::Event::POE',
            on      => [$loop],
            main    => $loop eq 'Select',
            modules => ['POE'],
            prepare => sub { $ENV{POE_EVENT_LOOP} = "POE::Loop::$loop" },
        }
    } ['Select'], ['IO_Poll']),
    {
        name    => 'Glib',
        class   => 'Sys::Virt::Event::Glib',
        on      => ['default context'],
        main    => 1,
        modules => ['Glib'],
    },
    {
        name    => 'Glib with a context of its own',
        class   => 'VirtTest::GlibContext',
        manual  => 'Sys::Virt::Event::Glib',
        on      => ['another context'],
        modules => ['Glib'],
    },
    map({
        my $loop = $_;
        {
            name    => "IOAsync on $loop",
            class   => 'Sys::Virt::Event::IOAsync',
            on      => [$loop],
            main    => $loop eq 'Poll',
            modules => ["IO::Async::Loop::$loop"],
            prepare => sub { $ENV{IO_ASYNC_LOOP} = $loop },
        }
    } qw(Select Poll Epoll Glib)),
    map({
        my ($backend, @modules) = @$_;
        {
            name    => "AnyEvent on $backend",
            class   => 'Sys::Virt::Event::AnyEvent',
            on      => [$backend],
            main    => $backend eq 'Perl',
            modules => ['AnyEvent', @modules],
            prepare => sub { @ENV{qw(PERL_ANYEVENT_MODEL LIBEV_FLAGS IO_ASYNC_LOOP)} = ($backend, 2, 'Epoll') },
        }
    } ['Perl'], [Event => 'Event'], [EV => 'EV'], [Glib => 'Glib'], [IOAsync => 'IO::Async::Loop::Epoll'], [POE => 'POE']),
);

# The main one of each class only, unless all are wanted.
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
        return $adapter->{class}->new;
    };
}

# What it cannot do, and why.
sub limits_of {
    my ($adapter) = @_;
    return $adapter->{limits} if $adapter->{limits};
    my %is_on = map { $_ => 1 } 'all', @{ $adapter->{on} };
    my %limits;
    for my $row (VirtTest::Limits::rows($adapter->{manual} // $adapter->{class})) {
        next if !grep { $is_on{$_} } @{ $row->{on} };
        $limits{$_} = $row->{reason} for @{ $row->{names} };
    }
    return $adapter->{limits} = \%limits;
}

# The kit's cases among them, for its option skip.
sub skips_of {
    my ($adapter) = @_;
    require Test::Sys::Virt::EventImpl;
    my %limits = %{ limits_of($adapter) };
    my @cases  = map { $_->{name} } Test::Sys::Virt::EventImpl::eventimpl_cases();
    return { map { $_ => $limits{$_} } grep { exists $limits{$_} } @cases };
}

# The classes that a test is run with beside others: the adapter that TEST_ADAPTER names, or else the one in C.
sub adapter_classes { return map { $_->{class} } _adapter_under_test() }

# Whether the adapter under test, if it is of that class, has such a limit.
sub is_limited {
    my ($class, $name) = @_;
    my ($adapter) = grep { $_->{class} eq $class } _adapter_under_test() or return 0;
    return exists limits_of($adapter)->{$name} ? 1 : 0;
}

my @under_test;

sub _adapter_under_test {
    return @under_test if @under_test;
    my $name = $ENV{TEST_ADAPTER};
    @under_test = grep { defined $name ? $_->{name} eq $name : $_->{name} eq 'EV on epoll' && !missing_modules($_) }
        @ADAPTERS;
    croak "There is no adapter $name" if defined $name && !@under_test;
    $_->{prepare} && $_->{prepare}->() for @under_test;
    return @under_test;
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
