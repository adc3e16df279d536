package VirtTest::Contract::Life;

# Registration, and the end of the process.

use strict;
use warnings;

use Test::More;
use VirtTest;
use VirtTest::Contract::Case;

case register => 42, nothing_registered => 'without a loop, what needs one is an exception, and changes nothing', sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    like exception_of { Sys::Virt::Event::run_default() }, qr/^Cannot run default: /, 'run_default';
    like exception_of { Sys::Virt::Event::add_timeout(0, sub {}) }, qr/^Cannot add timeout: /, 'add_timeout';
    like exception_of { Sys::Virt::Event::add_handle($reader, READABLE, sub {}) }, qr/^Cannot add handle: /, 'add_handle';
    is Sys::Virt::Event::registered(), undef, 'nothing is registered';
    my $impl = $t->impl;
    is Sys::Virt::Event::registered(), $impl, 'then it can be';
    my $id = $t->add_timeout(0);
    $t->until(sub { $t->count(timer => $id) });
    cmp_ok $t->count(timer => $id), '>', 0, 'and works';
};

case register => 42, default_after_object => "libvirt's own loop cannot follow an object", sub {
    my ($t) = @_;
    my $impl = $t->impl;
    like exception_of { Sys::Virt::Event::register_default() }, qr/^Cannot register default: /, 'register_default';
    like exception_of { Sys::Virt::Event::run_default() }, qr/^Cannot run default: /, 'run_default';
    is Sys::Virt::Event::registered(), $impl, 'the object stays';
    $t->passes(3);
};

case register => 42, object_after_default => "an object cannot follow libvirt's own loop", sub {
    my ($t) = @_;
    Sys::Virt::Event::register_default();
    like exception_of { Sys::Virt::Event::register($t->make) }, qr/^Cannot register: /, 'register';
    is Sys::Virt::Event::registered(), 'default', "libvirt's stays";
    my $fired = 0;
    my $id = Sys::Virt::Event::add_timeout(0, sub { $fired++ });
    Sys::Virt::Event::run_default(0.01) for 1 .. 3;
    cmp_ok $fired, '>', 0, 'and works';
    Sys::Virt::Event::remove_timeout($id);
};

case register => 42, second_object => 'a second object replaces the first when that is idle, else it is an exception', sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my ($first, $second) = ($t->impl, $t->make);
    is Sys::Virt::Event::register($first), $first, 'the registered object may be registered again';
    my $handle = $t->add_handle($reader, READABLE);
    like exception_of { Sys::Virt::Event::register($second) }, qr/^Cannot register: /, 'the first has a handle';
    is Sys::Virt::Event::registered(), $first, 'it stays';
    $t->remove_handle($handle);
    my $timer = $t->add_timeout(0);
    like exception_of { Sys::Virt::Event::register($second) }, qr/^Cannot register: /, 'the first has a timer';
    $t->until(sub { $t->count(timer => $timer) });
    cmp_ok $t->count(timer => $timer), '>', 0, '... which works';
    $t->remove_timeout($timer);

    my ($in_callback, $ran);
    my $own = Sys::Virt::Event::add_timeout(0, sub {
        Sys::Virt::Event::remove_timeout($_[0]);
        $in_callback = exception_of { Sys::Virt::Event::register($second) };
        $ran = 1;
    });
    $t->until(sub { $ran });
    like $in_callback, qr/^Cannot register: /, 'inside a callback';

    $t->passes(3);
    is exception_of { Sys::Virt::Event::register($second) }, undef, 'now it is idle';
    is Sys::Virt::Event::registered(), $second, 'and replaced';
    $t->use_impl($second);
    $t->forget_log;
    my @new = ($t->add_handle($reader, READABLE), $t->add_timeout(0));
    cmp_ok $new[0], '>', $timer, 'ids are not used again';
    $t->until(sub { $t->count(handle => $new[0]) && $t->count(timer => $new[1]) });
    is grep({ $t->count(handle => $_) || $t->count(timer => $_) } @new), 2, 'the second object works';
};

# The end. Each of these is a process that ends in its own way.

sub ends_quietly {
    my ($t, $what, $code, $exit) = @_;
    my $end = $t->child($code);
    is $end->{signal}, 0, "$what: no signal";
    is $end->{exit}, $exit // 7, '... the exit code is the program\'s';
    is $end->{stderr}, '', '... nothing was said';
    return;
}

# Global variables live on into the global destruction.
our (@kept, @at_end);

case end => 44, watches_left => 'a process that ends with watches and timers left ends quietly', sub {
    my ($t) = @_;
    ends_quietly($t, 'not run', sub {
        my ($reader, $writer) = ready_pipe();
        $t->add_handle($reader, READABLE);
        $t->add_timeout(0);
        exit 7;
    });
    ends_quietly($t, 'run before', sub {
        my ($reader, $writer) = ready_pipe();
        push @kept, $reader, $writer, $t;
        my $timer = Sys::Virt::Event::add_timeout(0, sub { @kept }) if $t->impl;
        $t->add_handle($reader, READABLE);
        $t->passes(3);
        Sys::Virt::Event::remove_timeout($timer);
        exit 7;
    });
    ends_quietly($t, 'inside a callback', sub {
        $t->impl;
        Sys::Virt::Event::add_timeout(0, sub { exit 7 });
        $t->until(sub { 0 });
    });
    ends_quietly($t, 'the object destroyed first', sub {
        my $id = $t->add_timeout(0);
        @kept = (bless [sub { Sys::Virt::Event::remove_timeout($id) }], 'VirtTest::Contract::AtEnd');
        undef $t;
        exit 7;
    });
};

case end => 44, other_thread_left => 'a process that ends while another thread calls ends quietly', sub {
    my ($t) = @_;
    ends_quietly($t, 'a thread', sub {
        $t->impl;
        push @kept, $t;
        my @calls = ([add_timeout => 0], [update_timeout => \-1, 5], [remove_timeout => \-2], [sleep_ms => 1]);
        # As another class it is joined by nobody: it calls to the very end.
        bless VirtTest::CApi::spawn((@calls) x 1000), 'VirtTest::Contract::Unjoined';
        $t->passes(5);
        exit 7;
    });
};

# Perl destroys what is left in the order of its memory, so an old variable is destroyed after the loop's object.
our @old = (undef);
our @fill;

sub connection_ends_quietly {
    my ($t, $uri) = @_;
    my $register = sub {
        my ($c) = @_;
        $c->domain_event_register_any(undef, Sys::Virt::Domain::EVENT_ID_LIFECYCLE(), sub {});
        $t->run(0.01);
    };
    my $connection;
    ends_quietly($t, 'in a variable', sub { $connection = $t->connect($uri); exit 7 });
    ends_quietly($t, 'with a callback', sub { $connection = $t->connect($uri); $register->($connection); exit 7 });
    ends_quietly($t, 'in a global variable', sub {
        my $c = $t->connect($uri);
        $register->($c);
        @kept = ($c, $t);
        exit 7;
    });
    ends_quietly($t, 'in an old variable', sub {
        @fill = map { my $filler = 1; \$filler } 1 .. 20_000;
        $old[0] = $t->connect($uri);
        exit 7;
    });
    ends_quietly($t, 'in an END block', sub {
        $connection = $t->connect($uri);
        push @at_end, sub { $connection->list_all_domains };
        exit 7;
    });
    return;
}

END { $_->() for splice @at_end }

case end => 44, local_connection_left => 'a process that ends with an open connection and a callback ends quietly', sub {
    my ($t) = @_;
    $t->skip('Sys::Virt is not installed (Debian: libsys-virt-perl)') if !Sys::Virt->can('new');
    connection_ends_quietly($t);
};

1;
