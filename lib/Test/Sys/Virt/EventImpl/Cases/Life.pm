package Test::Sys::Virt::EventImpl::Cases::Life;

# Registration, and the end of the process.

use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

use Test::More;
use Test::Sys::Virt::EventImpl::Case;
use Test::Sys::Virt::EventImpl::Util;

suite register => 'Registration';
suite end => 'The end of the process';

case 0 => 'nothing_registered', register => {
    rule   => 'without a loop, what needs one is an exception, and changes nothing',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    ok defined exception_of { run_default(0.1) }, 'run_default';
    ok defined exception_of { Sys::Virt::Event::add_timeout(0, sub {}) }, 'add_timeout';
    ok defined exception_of { Sys::Virt::Event::add_handle(fileno $reader, READABLE, sub {}) }, 'add_handle';
    my $id = $t->add_timeout(0);
    $t->until(sub { $t->count(timer => $id) });
    cmp_ok $t->count(timer => $id), '>', 0, 'and works';
};

case 0 => 'default_after_object', register => {
    rule   => "libvirt's own loop cannot follow an object",
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    $t->impl;
    ok defined exception_of { Sys::Virt::Event::register_default() }, 'register_default';
    ok defined exception_of { run_default(0.1) }, 'run_default';
    my $id = $t->add_timeout(0);
    $t->until(sub { $t->count(timer => $id) });
    cmp_ok $t->count(timer => $id), '>', 0, 'the object works on';
}, needs => ['object'];

case 0 => 'object_after_default', register => {
    rule   => "an object cannot follow libvirt's own loop",
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    Sys::Virt::Event::register_default();
    ok defined exception_of { Sys::Virt::Event::register($t->make) }, 'register';
    my $fired = 0;
    my $id = Sys::Virt::Event::add_timeout(0, sub { $fired++ });
    run_default(0.01) for 1 .. 3;
    cmp_ok $fired, '>', 0, "libvirt's works on";
    Sys::Virt::Event::remove_timeout($id);
}, needs => ['object'];

case 0 => 'second_object', register => {
    rule   => 'a second object replaces the first when that is idle, else it is an exception',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my ($first, $second) = ($t->impl, $t->make);
    is Sys::Virt::Event::register($first), $first, 'the registered object may be registered again';
    my $handle = $t->add_handle($reader, READABLE);
    ok defined exception_of { Sys::Virt::Event::register($second) }, 'the first has a handle';
    $t->remove_handle($handle);
    my $timer = $t->add_timeout(0);
    ok defined exception_of { Sys::Virt::Event::register($second) }, 'the first has a timer';
    $t->until(sub { $t->count(timer => $timer) });
    cmp_ok $t->count(timer => $timer), '>', 0, '... which works';
    $t->remove_timeout($timer);

    my ($in_callback, $ran);
    my $own = $t->timer(0, sub {
        Sys::Virt::Event::remove_timeout($_[0]);
        $in_callback = exception_of { Sys::Virt::Event::register($second) };
        $ran = 1;
    });
    $t->until(sub { $ran });
    ok defined $in_callback, 'inside a callback';

    $t->passes(3);
    is exception_of { Sys::Virt::Event::register($second) }, undef, 'now it is idle';
    $t->use_impl($second);
    $t->forget_log;
    my @new = ($t->add_handle($reader, READABLE), $t->add_timeout(0));
    cmp_ok $new[0], '>', $timer, 'ids are not used again';
    $t->until(sub { $t->count(handle => $new[0]) && $t->count(timer => $new[1]) });
    is grep({ $t->count(handle => $_) || $t->count(timer => $_) } @new), 2, 'the second object works';
}, needs => ['object'];

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

case 0 => 'watches_left', end => {
    rule   => 'a process that ends with watches and timers left ends quietly',
    source => '',
    harm   => '',
    advice => '',
}, sub {
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
        my $timer = $t->timer(0, sub { @kept });
        $t->add_handle($reader, READABLE);
        $t->passes(3);
        Sys::Virt::Event::remove_timeout($timer);
        exit 7;
    });
    ends_quietly($t, 'inside a callback', sub {
        $t->impl;
        $t->timer(0, sub { exit 7 });
        $t->until(sub { 0 });
    });
    ends_quietly($t, 'the object destroyed first', sub {
        my $id = $t->add_timeout(0);
        @kept = (bless [sub { Sys::Virt::Event::remove_timeout($id) }], 'Test::Sys::Virt::EventImpl::AtEnd');
        undef $t;
        exit 7;
    });
};

case 0 => 'other_thread_left', end => {
    rule   => 'a process that ends while another thread calls ends quietly',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    ends_quietly($t, 'a thread', sub {
        $t->impl;
        push @kept, $t;
        my @calls = ([add_timeout => 0], [update_timeout => \-1, 5], [remove_timeout => \-2], [sleep_ms => 1]);
        # As another class it is joined by nobody: it calls to the very end.
        bless Test::Sys::Virt::EventImpl::CApi::spawn((@calls) x 1000), 'Test::Sys::Virt::EventImpl::Unjoined';
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

case 0 => 'local_connection_left', end => {
    rule   => 'a process that ends with an open connection and a callback ends quietly',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    connection_ends_quietly($t);
}, needs => ['sys_virt'];

1;
