package Test::Sys::Virt::EventImpl::Cases::Life;

# Registration, and the end of the process.

use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

use Scalar::Util ();
use Test::More;
use Test::Sys::Virt::EventImpl::CApi;
use Test::Sys::Virt::EventImpl::Case;
use Test::Sys::Virt::EventImpl::Util;

suite register => 'Registration';
suite end => 'The end of the process';

# What the subject registers: its object, or libvirt's own loop.
sub register_subject {
    my ($t, $impl) = @_;
    return $impl ? Sys::Virt::Event::register($impl) : Sys::Virt::Event::register_default();
}

# A timer of $t's loop fires.
sub works {
    my ($t, $what) = @_;
    my $id = $t->add_timeout(0);
    $t->until(sub { $t->count(timer => $id) });
    cmp_ok $t->count(timer => $id), '>', 0, $what;
    $t->remove_timeout($id);
    return;
}

# Two classes: one is no loop, although it has the methods, the other is one that lacks a method.
{
    no strict 'refs';
    *{"Test::Sys::Virt::EventImpl::Stranger::$_"} = sub { 1 } for METHODS;
    *{"Test::Sys::Virt::EventImpl::Incomplete::$_"} = sub { 1 } for grep { $_ ne 'update_timeout' } METHODS;
    @Test::Sys::Virt::EventImpl::Incomplete::ISA = ('Sys::Virt::Event');
}

case 123 => 'adds_unregistered', register => {
    rule   => 'add_handle and add_timeout without a registered loop are exceptions, and change nothing',
    source => 'src/util/virevent.c, virEventAddHandle and virEventAddTimeout, which return -1 without an error',
    harm   => 'libvirt ignores such a call. A program that was told nothing would wait for a timer that does not '
        . 'exist.',
    advice => 'nothing to do in the loop: the module looks for a registered loop first',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my $ran = 0;
    ok defined exception_of { Sys::Virt::Event::add_timeout(0, sub { $ran++ }) }, 'add_timeout';
    ok defined exception_of { Sys::Virt::Event::add_handle(fileno $reader, READABLE, sub { $ran++ }) }, 'add_handle';
    works($t, 'a loop can be registered after that, and works');
    is $ran, 0, '... without what was refused';
};

case 124 => 'runs_unregistered', register => {
    rule   => 'run_default without a registered loop is an exception',
    source => 'src/util/virevent.c, virEventRunDefaultImpl, which waits for what nobody has registered',
    harm   => 'libvirt waits for ever then: the program hangs in run_default.',
    advice => 'nothing to do in the loop: the module looks for a registered loop first',
}, sub {
    my ($t) = @_;
    ok defined exception_of { Sys::Virt::Event::run_default() };
}, limit => 4;

case 125 => 'runs_default_of_object', register => {
    rule   => 'run_default while an object is registered is an exception',
    source => 'src/util/virevent.c, virEventRunDefaultImpl, which runs a loop that nothing was registered with',
    harm   => "libvirt's own loop knows nothing of what was given to the object, and waits for ever: the program "
        . 'hangs in run_default.',
    advice => 'nothing to do in the loop: the module looks at what is registered first',
}, sub {
    my ($t) = @_;
    $t->impl;
    ok defined exception_of { Sys::Virt::Event::run_default() };
}, needs => ['object'], limit => 4;

case 126 => 'default_after_object', register => {
    rule   => "libvirt's own loop cannot follow an object: an exception, and the object works on",
    source => 'src/util/virevent.c, virEventRegisterImpl, which ignores all but the first registration of a process',
    harm   => 'virEventRegisterDefaultImpl says that all went well. The program runs a loop that has nothing to do, '
        . 'and its connections wait for one that is no longer run.',
    advice => 'nothing to do in the loop: the module looks at what is registered first',
}, sub {
    my ($t) = @_;
    $t->impl;
    ok defined exception_of { Sys::Virt::Event::register_default() }, 'an exception';
    works($t, 'the object works on');
}, needs => ['object'];

case 127 => 'object_after_default', register => {
    rule   => "an object cannot follow libvirt's own loop: an exception, and libvirt's works on",
    source => 'src/util/virevent.c, virEventRegisterImpl, which ignores all but the first registration of a process',
    harm   => 'libvirt ignores the object without a word. The program runs it, and no event ever arrives.',
    advice => 'nothing to do in the loop: the module looks at what is registered first',
}, sub {
    my ($t) = @_;
    my $impl = $t->make;
    Sys::Virt::Event::register_default();
    ok defined exception_of { Sys::Virt::Event::register($impl) }, 'an exception';
    my $fired = 0;
    my $id = Sys::Virt::Event::add_timeout(0, sub { $fired++ });
    run_default(0.01) for 1 .. 3;
    cmp_ok $fired, '>', 0, "libvirt's works on";
    Sys::Virt::Event::remove_timeout($id);
}, needs => ['object'], limit => 4;

case 128 => 'others_first', register => {
    rule   => 'registering a loop after other code of the process has done so is an exception',
    source => 'src/util/virevent.c, virEventRegisterImpl, which ignores all but the first registration of a process',
    harm   => 'A C library in the same process may have a loop of its own. libvirt then ignores the one of the '
        . 'program without a word: it opens connections, runs its loop, and no event ever arrives.',
    advice => 'nothing to do in the loop: the module asks libvirt who was first',
}, sub {
    my ($t) = @_;
    my %first = (
        'a loop of its own'  => \&Test::Sys::Virt::EventImpl::CApi::register_impl_first,
        "libvirt's own loop" => \&Test::Sys::Virt::EventImpl::CApi::register_default_first,
    );
    for my $which (sort keys %first) {
        my $child = $t->child(sub {
            my $impl = $t->is_default ? undef : $t->make;
            $first{$which}->();
            print STDERR "refused\n" if defined exception_of { register_subject($t, $impl) };
        });
        like $child->{stderr}, qr/^refused$/m, "C code has registered $which";
    }
};

case 129 => 'registered_twice', register => {
    rule   => 'registering what is registered once more changes nothing',
    source => 'L<Sys::Virt::Event/register($impl, %options)>',
    harm   => 'Two parts of a program may both see to it that the loop is registered. The second one would lose '
        . 'what the first has added, or end the program.',
    advice => 'nothing to do in the loop: keep what was added when register is called again',
}, sub {
    my ($t) = @_;
    my $impl = $t->impl;
    my $id = $t->add_timeout(0);
    my $again = $t->{make} ? sub { Sys::Virt::Event::register($impl) } : sub { Sys::Virt::Event::register_default() };
    is exception_of { $again->() }, undef, 'no exception';
    $t->until(sub { $t->count(timer => $id) });
    cmp_ok $t->count(timer => $id), '>', 0, 'what was added before works';
    is $t->remove_timeout($id), 0, '... and can be removed';
};

case 130 => 'no_loop_object', register => {
    rule   => 'registering what is no object of a loop class is an exception, and changes nothing',
    source => 'L<Sys::Virt::Event/register($impl, %options)>',
    harm   => 'The mistake would come to light in the midst of a call of libvirt, whose locks are held then.',
    advice => 'inherit from Sys::Virt::EventImpl or Sys::Virt::Event',
}, sub {
    my ($t) = @_;
    my %no = (undef => undef, 'a string' => 'Sys::Virt::Event', 'a reference' => {},
        'an object of another class' => bless({}, 'Test::Sys::Virt::EventImpl::Stranger'));
    ok defined exception_of { Sys::Virt::Event::register($no{$_}) }, $_ for sort keys %no;
    works($t, 'a loop can be registered after that, and works');
};

case 131 => 'method_missing', register => {
    rule   => 'registering an object whose class lacks one of the six methods is an exception, and changes nothing',
    source => 'L<Sys::Virt::Event/METHODS A LOOP PROVIDES>',
    harm   => 'libvirt calls some of the methods for the first time hours later, when a connection closes. A method '
        . 'that is not there then leaves libvirt with its locks held, and the next call hangs.',
    advice => 'write all six methods: add, update and remove, for handles and for timeouts',
}, sub {
    my ($t) = @_;
    ok defined exception_of { Sys::Virt::Event::register(bless {}, 'Test::Sys::Virt::EventImpl::Incomplete') },
        'an exception';
    works($t, 'a loop can be registered after that, and works');
};

case 132 => 'object_is_held', register => {
    rule   => 'the registered object is held: a program need not keep it',
    source => 'L<Sys::Virt::Event/register($impl, %options)>',
    harm   => 'libvirt has no use for a loop that is gone: its calls would enter memory that was released.',
    advice => 'nothing to do in the loop: the module holds the object',
}, sub {
    my ($t) = @_;
    my $impl = $t->make;
    Sys::Virt::Event::register($impl);
    $t->use_impl($impl);
    Scalar::Util::weaken($_) for $impl, $t->{impl};
    isnt $impl, undef, 'it is there' or return;
    works($t, 'it works');
}, needs => ['object'];

case 133 => 'busy_object_stays', register => {
    rule   => 'a second object while something is registered with the first is an exception, and the first works on',
    source => 'libvirt-python, commit 7534c19, which refuses every second registration',
    harm   => 'libvirt goes on to use the ids that the first one has given. The second one would get updates for '
        . 'what it has never seen, and open connections would stay without a loop for good.',
    advice => 'nothing to do in the loop: the module looks at what is registered first',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my ($first, $second) = ($t->impl, $t->make);
    # It may have registered itself when it was made.
    Sys::Virt::Event::register($first);
    my $handle = $t->add_handle($reader, READABLE);
    ok defined exception_of { Sys::Virt::Event::register($second) }, 'the first has a handle';
    $t->until(sub { $t->count(handle => $handle) });
    cmp_ok $t->count(handle => $handle), '>', 0, '... which works on';
    is $t->remove_handle($handle), 0, '... and can be removed';
    my $timer = $t->add_timeout(0);
    ok defined exception_of { Sys::Virt::Event::register($second) }, 'the first has a timer';
    $t->until(sub { $t->count(timer => $timer) });
    cmp_ok $t->count(timer => $timer), '>', 0, '... which works on';
}, needs => ['object'], limit => 6;

case 134 => 'running_object_stays', register => {
    rule   => 'a second object inside a callback of the first is an exception, and the first works on',
    source => 'L<Sys::Virt::Event/register($impl, %options)>',
    harm   => 'The first one is in the midst of its pass, and goes on with it when the callback returns: with fds '
        . 'and timers that are no longer its own.',
    advice => 'nothing to do in the loop: the module looks at what is registered first',
}, sub {
    my ($t) = @_;
    my ($first, $second) = ($t->impl, $t->make);
    Sys::Virt::Event::register($first);
    my ($error, $ran);
    $t->timer(0, sub {
        Sys::Virt::Event::remove_timeout($_[0]);
        $error = exception_of { Sys::Virt::Event::register($second) };
        $ran = 1;
    });
    $t->until(sub { $ran });
    ok defined $error, 'an exception';
    works($t, 'the first works on');
}, needs => ['object'], limit => 6;

case 135 => 'idle_object_replaced', register => {
    rule   => 'a second object takes the place of the first when nothing is registered with that, and gets new ids',
    source => 'L<Sys::Virt::Event/register($impl, %options)>',
    harm   => 'A program that opens a window, say, wants the loop of its toolkit from then on. With an id that was '
        . 'used before, a late call for what the first one had would hit a watch of the second.',
    advice => 'nothing to do in the loop: the module gives the calls of libvirt to the new object',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my $first = $t->impl;
    my ($handle, $timer) = ($t->add_handle($reader, READABLE), $t->add_timeout(0));
    $t->until(sub { $t->count(handle => $handle) && $t->count(timer => $timer) });
    $t->remove_handle($handle);
    $t->remove_timeout($timer);
    $t->passes(3);
    my $second = $t->make;
    is exception_of { Sys::Virt::Event::register($second) }, undef, 'no exception';
    $t->use_impl($second);
    $t->forget_log;
    my @new = ($t->add_handle($reader, READABLE), $t->add_timeout(0));
    is grep({ $_ > $handle && $_ > $timer } @new), 2, 'ids are not used again';
    $t->until(sub { $t->count(handle => $new[0]) && $t->count(timer => $new[1]) });
    cmp_ok $t->count(handle => $new[0]), '>', 0, 'a handle of the second object works';
    cmp_ok $t->count(timer => $new[1]), '>', 0, 'a timer of the second object works';
}, needs => ['object'], limit => 6;

# The end. Each of these is a process that ends in its own way.

sub ends_quietly {
    my ($t, $what, $code) = @_;
    my $end = $t->child($code);
    is $end->{signal}, 0, "$what: no signal";
    is $end->{exit}, 7, "... the exit code is the program's";
    # libvirt itself notes that a class registers its objects before the kit does.
    my @said = grep { !/virEventRegisterImpl|: info : / } split /^/, $end->{stderr};
    is join('', @said), '', '... nothing was said';
    return;
}

# Global variables live on into the global destruction.
our (@kept, @at_end);

# Perl destroys what is left in the order of its memory, so an old variable is destroyed after the loop's object.
our @old = (undef);
our @fill;

case 136 => 'watches_left', end => {
    rule   => 'a process that ends with handles and timers left ends quietly',
    source => 'L<perlobj/Global Destruction>',
    harm   => 'Most programs end with connections open. A loop that is entered when perl has destroyed half of it '
        . 'ends them with a crash, with "(in cleanup)" on stderr, or with a wrong exit code, and supervisors '
        . 'restart them.',
    advice => 'do nothing when the loop is destroyed, or nothing that needs other objects',
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
};

case 137 => 'exit_in_callback', end => {
    rule   => 'exit inside a callback ends the process with its exit code, quietly',
    source => 'L<Sys::Virt::Event/EXCEPTIONS>',
    harm   => 'Many programs end in the callback that saw what they waited for. Where the exit is caught, or '
        . 'destructors of the loop spoil its code, they run on, or report the wrong result to their caller.',
    advice => 'leave exit alone: no destructor that the dispatch leaves behind may change $?',
}, sub {
    my ($t) = @_;
    ends_quietly($t, 'a timer', sub {
        $t->timer(0, sub { exit 7 });
        $t->until(sub { 0 });
    });
    ends_quietly($t, 'a handle', sub {
        my ($reader, $writer) = ready_pipe();
        $t->watch($reader, READABLE, sub { exit 7 });
        $t->until(sub { 0 });
    });
};

case 138 => 'removed_at_end', end => {
    rule   => 'what is removed while perl destroys what is left is removed quietly',
    source => 'L<perlobj/Global Destruction>',
    harm   => 'A connection in a global variable is closed at the very end, and libvirt then removes its watches '
        . 'from a loop whose object is already gone: the program crashes, or complains "(in cleanup)", after '
        . 'its work is done.',
    advice => "nothing to do in the loop: Sys::Virt::Event does not call it any more; Sys::Virt's own module does",
}, sub {
    my ($t) = @_;
    for my $variable (qw(new old)) {
        ends_quietly($t, "by an object in a variable that is $variable", sub {
            my ($reader, $writer) = pipe_pair();
            my $handle = $t->watch($reader, READABLE, sub { });
            my $timer  = $t->timer(60_000, sub { });
            undef $t;
            @fill = map { my $filler = 1; \$filler } 1 .. 20_000;
            ($variable eq 'old' ? $old[0] : $kept[0]) = callable(sub { }, sub {
                Sys::Virt::Event::remove_handle($handle);
                Sys::Virt::Event::remove_timeout($timer);
            });
            exit 7;
        });
    }
};

case 139 => 'other_thread_left', end => {
    rule   => 'a process that ends while other threads call ends quietly',
    source => 'L<https://libvirt.org/drvqemu.html>: the threads of qemu:///embed run as long as its domains do',
    harm   => 'Such threads make calls up to the last moment. One that enters a perl that is being destroyed '
        . 'crashes the program when its work is done.',
    advice => "nothing to do in the loop: Sys::Virt::Event answers such calls; Sys::Virt's own module crashes",
}, sub {
    my ($t) = @_;
    ends_quietly($t, 'two threads', sub {
        $t->impl;
        # They shall call while perl destroys what is left.
        @kept = ($t, callable(sub { }, sub { pause(0.02) }));
        my @calls = ([add_timeout => 0], [update_timeout => \-1, 5], [remove_timeout => \-2], [sleep_ms => 1]);
        # As another class they are joined by nobody: they call to the very end.
        bless Test::Sys::Virt::EventImpl::CApi::spawn((@calls) x 1000), 'Test::Sys::Virt::EventImpl::Unjoined' for 1, 2;
        $t->passes(5);
        exit 7;
    });
};

sub connection_ends_quietly {
    my ($t, $uri) = @_;
    my $register = sub {
        my ($c) = @_;
        $c->domain_event_register_any(undef, Sys::Virt::Domain::EVENT_ID_LIFECYCLE(), sub { });
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

case 140 => 'local_connection_left', end => {
    rule   => 'a process that ends with an open connection and a handler ends quietly, whoever holds them',
    source => 'L<perlobj/Global Destruction>',
    harm   => 'A connection is closed when perl destroys it, before or after the loop. Each order must end the '
        . 'program with its own exit code and without a word.',
    advice => 'do nothing when the loop is destroyed, or nothing that needs other objects',
}, sub {
    my ($t) = @_;
    connection_ends_quietly($t);
}, needs => ['sys_virt'];

1;
