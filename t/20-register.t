# Registration: who is registered, who may follow, how long the object lives, and its wake watch.
use 5.016;
use strict;
use warnings;

use lib 't/lib';
use Config;
use Fcntl qw(F_GETFD F_GETFL FD_CLOEXEC O_NONBLOCK);
use Scalar::Util qw(refaddr weaken);
use Test::More;

use Sys::Virt::Event qw(:all);
use Sys::Virt::Event::Poll;
use VirtTest;
use Test::Sys::Virt::EventImpl::CApi;
use VirtTest::Child;
use VirtTest::Loop;

watchdog(60);

my $code = sub { };

{
    package My::Mortal;
    our @ISA = ('VirtTest::Loop');
    our @destroyed;
    sub DESTROY { push @destroyed, $_[0]{name} }
    sub named { my ($class, $name) = @_; my $self = $class->new; $self->{name} = $name; return $self }

    package My::Poll;
    our @ISA = ('Sys::Virt::Event::Poll');
    our @added;
    sub add_handle { my ($self, $fd, @rest) = @_; push @added, $fd; return $self->SUPER::add_handle($fd, @rest) }
}

# What $code threw, without its place; '' if nothing. The place must be this file.
sub reason_of {
    my ($call) = @_;
    my $error = exception_of { $call->() };
    return '' if !defined $error;
    return $error =~ s/ at \Q$0\E line [0-9]+\.\n\z//r;
}

sub is_registered {
    my ($loop) = @_;
    return 2 == grep { ref && refaddr($_) == refaddr($loop) } registered(), $Sys::Virt::Event::eventimpl;
}
sub names { return join ' ', map { join ' ', @$_ } @_ }

# Who is registered.
{
    my %got = in_child {
        my $loop = VirtTest::Loop->new;
        my @before = (registered(), $Sys::Virt::Event::eventimpl);
        my @returned = register($loop);
        my $method = $loop->register;
        return (
            before   => \@before,
            returned => scalar @returned,
            same     => refaddr($returned[0]) == refaddr($loop) && refaddr($method) == refaddr($loop),
            is       => is_registered($loop),
            calls    => [$loop->calls],
        );
    };
    is_deeply($got{before}, [undef, undef], 'at first nothing is registered');
    ok($got{returned} == 1 && $got{same}, 'register returns the object, as a function and as a method');
    ok($got{is}, 'registered and $eventimpl are the object');
    is_deeply($got{calls}, [], 'the object is asked for nothing yet');
}
{
    my ($class, $is) = in_child {
        my $loop = Sys::Virt::Event::Poll->new->register;
        return (ref $loop, is_registered($loop) ? 1 : 0);
    };
    is("$class $is", 'Sys::Virt::Event::Poll 1', 'new and register can be chained');
}
is_deeply([in_child {
    my @result = (register_default(), register_default());
    return (scalar @result, registered(), $Sys::Virt::Event::eventimpl);
}],
    [0, 'default', undef], q{libvirt's own loop is "default", is no object, and can be registered again});

# The same object again.
{
    my %got = in_child {
        my $loop = VirtTest::Loop->new->register;
        my $id = add_timeout(5, sub { register($loop); $loop->register(wake => 1) });
        my $other_reference = $loop;
        my $same = refaddr(register($other_reference)) == refaddr($loop);
        my $error = exception_of { $loop->dispatch($loop->latest) };
        my @ids = map { $_->{id} } watches();
        return (same => $same, error => $error, calls => names($loop->calls), ids => \@ids, id => $id);
    };
    ok($got{same}, 'the same object again is returned');
    is($got{error}, undef, '... also inside a callback');
    is($got{calls}, 'add_timeout 5', '... and nothing is done');
    is_deeply($got{ids}, [$got{id}], '... and its watches stay');
}

# Another object, when nothing is left.
{
    my %got = in_child {
        my ($one, $two) = map { VirtTest::Loop->new } 1 .. 2;
        register($one);
        my ($reader) = pipe_pair();
        my $timer = add_timeout(5, $code);
        my $token = $one->latest;
        my $handle = Test::Sys::Virt::EventImpl::CApi::add_handle($reader, 1);
        remove_timeout($timer);
        $one->calls;
        # The free function is run when the caller's statement ends, so this must be one.
        my $remove = Test::Sys::Virt::EventImpl::CApi::_pack([[remove_handle => $handle]]);
        my @all = (
            Test::Sys::Virt::EventImpl::CApi::_run($remove), [Test::Sys::Virt::EventImpl::CApi::events()],
            register($two),                                  [Test::Sys::Virt::EventImpl::CApi::events()],
        );
        my $id = add_timeout(7, $code);
        $one->dispatch($token);
        return (
            before  => scalar @{ $all[1] },
            freed   => join(' ', map { "$_->{what} $_->{added_as}" } @{ $all[3] }),
            handle  => $handle,
            is      => is_registered($two),
            one     => names($one->calls),
            two     => names($two->calls),
            old_ids => [$timer, $handle],
            id      => $id,
        );
    };
    is($got{before}, 0, 'a free function is outstanding');
    is($got{freed}, "ff $got{handle}", '... and is run before another object is registered');
    ok($got{is}, 'another object takes over when nothing is left');
    is($got{one}, 'remove_handle 2', '... the first is asked no more');
    is($got{two}, 'add_timeout 7', '... the second is');
    is_deeply([@{ $got{old_ids} }, $got{id}], [1, 2, 3], '... and ids go on');
}

# Another object, while something is left.
for my $case (
    [[1, 0], '1 handle'], [[0, 1], '1 timeout'], [[2, 0], '2 handles'], [[1, 3], '1 handle, 3 timeouts'],
) {
    my ($what, $left) = @$case;
    my %got = in_child {
        my ($one, $two) = map { VirtTest::Loop->new } 1 .. 2;
        register($one);
        my ($reader) = pipe_pair();
        my @handles = map { add_handle($reader, 1, $code) } 1 .. $what->[0];
        my @timers  = map { add_timeout(-1, $code) } 1 .. $what->[1];
        my $reason = reason_of(sub { register($two, wake => 1) });
        my @got = (reason => $reason, is => is_registered($one), two => names($two->calls));
        my $now = 0;
        my $id = add_timeout(5, sub { $now++ });
        $one->dispatch($one->latest);
        remove_timeout($_) for $id, @timers;
        remove_handle($_) for @handles;
        register($two);
        return (@got, dispatched => $now, then => is_registered($two));
    };
    is($got{reason}, "Cannot register: the registered event loop, VirtTest::Loop, still has $left",
        "another object while the first has $left");
    ok($got{is}, '... the first stays registered');
    is($got{dispatched}, 1, '... and works');
    is($got{two}, '', '... the second is asked for nothing');
    ok($got{then}, '... and may follow when they are gone');
}

# From inside.
{
    my %got = in_child {
        my ($one, $two) = map { VirtTest::Loop->new } 1 .. 2;
        register($one);
        my %reason;
        my $id;
        $id = add_timeout(5, sub {
            $reason{busy} = reason_of(sub { register($two) });
            $reason{default} = reason_of(sub { register_default() });
            remove_timeout($id);
            $reason{removed} = reason_of(sub { register($two) });
        });
        $one->dispatch($one->latest);
        my $is = is_registered($one);
        $one->on(add_timeout => sub { $reason{method} = reason_of(sub { register($two) }); return 1 });
        $id = add_timeout(5, $code);
        $one->on(add_timeout => undef);
        $one->on(remove_timeout => sub { $reason{last} = reason_of(sub { register($two) }); return 0 });
        remove_timeout($id);
        $one->on(remove_timeout => undef);
        return (%reason, is => $is, still => is_registered($one));
    };
    my $running = 'Cannot register: a callback of the registered event loop, VirtTest::Loop, is running';
    is($got{busy}, $running, 'another object from inside a callback');
    is($got{removed}, $running, '... also when it has removed the last watch');
    ok($got{is}, '... and the first stays registered');
    like($got{default}, qr/\ACannot register default: an object is registered/,
        'register_default from inside a callback');
    like($got{$_}, qr/\ACannot register: .*is running/, "another object from inside $_") for 'method', 'last';
    ok($got{still}, '... and the first stays registered');
}
{
    my %got = in_child {
        register_default();
        my %reason;
        my $id = add_timeout(0, sub {
            $reason{object} = reason_of(sub { register(VirtTest::Loop->new) });
            $reason{again}  = reason_of(sub { register_default() });
        });
        run_default(1);
        remove_timeout($id);
        return (%reason, registered => registered());
    };
    like($got{object}, qr/\ACannot register: register_default was called/,
        q{an object from inside a callback of libvirt's own loop});
    is($got{again}, '', 'register_default there does nothing');
    is($got{registered}, 'default', '... and it is still registered');
}
{
    my %got = in_child {
        my ($one, $two) = map { VirtTest::Loop->new } 1 .. 2;
        my $reason;
        no warnings 'once';
        local *My::Replacer::DESTROY = sub { $reason = reason_of(sub { register($two) }) };
        register($one);
        my $id = do { my $holder = bless {}, 'My::Replacer'; add_timeout(5, sub { $holder }) };
        remove_timeout($id);
        my $timer = add_timeout(9, $code);
        return (reason => $reason, is => is_registered($two), calls => names($two->calls));
    };
    is_deeply(\%got, { reason => '', is => 1, calls => 'add_timeout 9' },
        'a free function is no callback: the last one may register another object');
}

# The object is held until another takes its place.
{
    my %got = in_child {
        my $one = My::Mortal->named('one');
        weaken(my $weak = $one);
        register($one);
        undef $one;
        undef $Sys::Virt::Event::eventimpl;
        my @held = defined $weak ? 1 : 0;
        add_timeout(5, $code);
        push @held, names($weak->calls);
        remove_timeout(1);
        register(My::Mortal->named('two'));
        my @released = (defined $weak ? 0 : 1, @My::Mortal::destroyed);
        register(VirtTest::Loop->new);
        return (held => \@held, released => \@released, then => [@My::Mortal::destroyed]);
    };
    is_deeply($got{held},     [1,     'add_timeout 5'], 'the registered object lives on without the program');
    is_deeply($got{released}, [1,     'one'],           '... and is released when another takes its place');
    is_deeply($got{then},     ['one', 'two'],           '... as is that one');
}
{
    my $run = fresh_perl(<<'EOT', switches => ['-w']);
use Sys::Virt::Event qw(:all);
package My::Loop;
our @ISA = ('Sys::Virt::EventImpl');
sub new { bless {}, shift }
sub add_handle { 1 } sub update_handle { } sub remove_handle { }
sub add_timeout { 1 } sub update_timeout { } sub remove_timeout { }
sub DESTROY { print "destroyed\n" }
package main;
My::Loop->new->register;
add_timeout(5, sub { });
print "end\n";
exit 3;
EOT
    is($run->{stdout}, "end\ndestroyed\n", 'the registered object is destroyed at the end of the program');
    is($run->{stderr}, '', '... silently');
    is($run->{exit}, 3, '... with the exit code of the program');
}
{
    my ($held) = in_child {
        my $one = My::Mortal->named('one');
        weaken(my $weak = $one);
        eval { register($one, wake => 1, nonsense => 1) };
        eval { my $class = bless $one, 'Sys::Virt::Event'; register($class) };
        undef $one;
        return defined $weak ? 'held' : 'released';
    };
    is($held, 'released', 'an object that was refused is not held');
}

# Methods are looked up when they are called.
{
    my @got = in_child {
        {
            package My::Changing;
            our @ISA = ('VirtTest::Loop');
            package My::Other;
            our @ISA = ('VirtTest::Loop');
            sub update_timeout { $_[0]{seen} .= "other $_[2] " }
            package My::Parent;
            our @ISA = ('VirtTest::Loop');
            sub update_timeout { $_[0]{seen} .= "parent $_[2] " }
        }
        my $loop = My::Changing->new->register;
        my $id = add_timeout(5, $code);
        update_timeout($id, 1);
        { no warnings 'once'; *My::Changing::update_timeout = sub { $_[0]{seen} .= "first $_[2] " } }
        update_timeout($id, 2);
        { no warnings 'redefine'; *My::Changing::update_timeout = sub { $_[0]{seen} .= "second $_[2] " } }
        update_timeout($id, 3);
        delete $My::Changing::{update_timeout};
        update_timeout($id, 4);
        @My::Changing::ISA = ('My::Parent');
        update_timeout($id, 5);
        bless $loop, 'My::Other';
        update_timeout($id, 6);
        @My::Other::ISA = ();
        my @warnings = warnings_of { remove_timeout($id) };
        return (@warnings, $loop->{seen}, map { join ' ', @$_ } @{ $loop->{calls} });
    };
    like(shift @got,
        qr/\ACannot remove timeout: My::Other::remove_timeout died: Can't locate object method "remove_timeout" via /,
        'a method that is no longer there is as one that dies');
    is_deeply(\@got,
        ['first 2 second 3 parent 5 other 6 ', 'add_timeout 5', 'update_timeout 1 1', 'update_timeout 1 4'],
        'a method defined, redefined, deleted, inherited from another parent, and of another class after bless');
}

# One interpreter owns the loop.
SKIP: {
    skip 'this perl has no ithreads', 2 if !$Config{useithreads};
    my $run = fresh_perl(<<'EOT', switches => ['-w']);
use strict; use lib 't/lib'; use threads;
use Sys::Virt::Event qw(:all); use VirtTest::Loop;
my $loop = VirtTest::Loop->new->register;
sub outcome { my ($code) = @_; return eval { $code->(); 1 } ? "nothing\n" : $@ }
print threads->create(sub {
    return join '', outcome(sub { register(VirtTest::Loop->new) }), outcome(sub { register_default() }),
        defined registered() ? 'registered' : 'not here';
})->join, "\n";
print registered() == $loop ? "still registered\n" : "lost\n";
EOT
    is($run->{stdout}, <<'EOT', 'neither registration works in an interpreter that is not the owner');
Cannot register: the event loop belongs to another thread at -e line 6.
Cannot register default: the event loop belongs to another thread at -e line 6.
not here
still registered
EOT
    is($run->{stderr}, '', '... without a warning');
}

# The wake watch. It is asked for like any handle, here with mask 1 and no update ever.
{
    my %got = in_child {
        my $loop = VirtTest::Loop->new->register;
        my ($reader) = pipe_pair();
        my $fd = fileno $reader;
        my $handle = add_handle($reader, 1, $code);
        my $timer = add_timeout(-1, $code);
        update_handle($handle, 0);
        remove_timeout($timer);
        remove_handle($handle);
        return (threads => thread_count(), calls => names($loop->calls),
            expected => "add_handle $fd 1 add_timeout -1 update_handle 1 0 remove_timeout 2 remove_handle 1");
    };
    is($got{threads}, 1, 'in a process of one thread');
    is($got{calls}, $got{expected}, '... the object sees what was asked for and nothing else');
}
{
    my %got = in_child {
        my ($one, $two) = map { VirtTest::Loop->new } 1 .. 2;
        my @before = open_fds();
        register($one, wake => 1);
        my ($first, @more) = $one->calls;
        my $watch = $one->latest;
        my @idle = (is_idle() ? 1 : 0, scalar watches());
        register($one, wake => 0);
        $one->dispatch($watch, 1) for 1 .. 2;
        add_timeout(5, $code);
        remove_timeout(1);
        my @then = $one->calls;
        open my $dup, '<&=', $first->[1] or die $!;
        my @flags = (fcntl($dup, F_GETFD, 0) & FD_CLOEXEC ? 1 : 0, fcntl($dup, F_GETFL, 0) & O_NONBLOCK ? 1 : 0);
        register($two);
        return (
            first => "$first->[0] $first->[2]", more => \@more, idle => \@idle, then => names(@then), flags => \@flags,
            new_fd => scalar(grep { $_ == $first->[1] } @before), key => $watch->{key},
            after => names($one->calls), two => names($two->calls),
        );
    };
    is($got{first}, 'add_handle 1', 'wake => 1 adds a handle at once');
    is_deeply($got{more}, [], '... exactly one');
    is($got{new_fd}, 0, '... whose fd is new');
    is_deeply($got{flags}, [1, 1], '... closed on exec, and does not block');
    is_deeply($got{idle},  [1, 0], '... and which is_idle and watches do not count');
    is($got{then}, 'add_timeout 5 remove_timeout 2',
        '... which stays as it is, dispatched or not, whatever is registered again or added and removed');
    is($got{after}, "remove_handle $got{key}", '... and is removed when another object takes over');
    is($got{two}, '', '... which has none unless it asks');
}
{
    our $new;
    my %got = in_child {
        my $old = register(VirtTest::Loop->new, wake => 1);
        $old->on(remove_handle => sub { undef $new });
        $new = VirtTest::Loop->new;
        return (is => $new->register == registered() && registered() != $old);
    };
    ok($got{is}, 'a variable that the loop before it empties meanwhile');
}
{
    my ($reader) = pipe_pair();
    my %got = in_child {
        my $loop = register(VirtTest::Loop->new, wake => 1);
        my $wake = $loop->latest;
        $loop->calls;
        my $report = Test::Sys::Virt::EventImpl::CApi::run_blocked([add_handle => $reader, 1]);
        open my $wake_handle, '<&=', $wake->{fd} or die $!;
        my $readable = sub {
            my $bits = '';
            vec($bits, $wake->{fd}, 1) = 1;
            return scalar select $bits, undef, undef, 0;
        };
        my @readable = $readable->();
        my $before = names($loop->calls);
        $loop->dispatch($wake, 1);
        push @readable, $readable->();
        return (
            id => $report->{results}[0], before => $before, after => names($loop->calls),
            readable => \@readable, fd => fileno $reader,
        );
    };
    is($got{before}, '', 'a call of another thread does not reach the loop by itself');
    is_deeply($got{readable}, [1, 0], '... the wake watch becomes readable until it is dispatched');
    is($got{after}, "add_handle $got{fd} 1", '... and brings the call');
    is($got{id}, 1, '... whose id was known before');
}
{
    my %got = in_child {
        my $loop = register(VirtTest::Loop->new, wake => 0);
        my $thread = Test::Sys::Virt::EventImpl::CApi::spawn([sleep_ms => 100], [add_timeout => 9]);
        my $id = add_timeout(5, $code);
        $thread->join;
        my $before = names($loop->calls);
        my $count = () = watches();
        return (before => $before, after => names($loop->calls), count => $count);
    };
    is($got{before}, 'add_timeout 5', 'wake => 0: there is none, whatever threads do');
    is($got{after}, 'add_timeout 9', '... whose calls are carried out at the next occasion');
    is($got{count}, 2, '... and seen by watches');
}
{
    my %got = in_child {
        my $loop = VirtTest::Loop->new->register;
        my $id = add_timeout(5, $code);
        my $single = names($loop->calls);
        my $thread = Test::Sys::Virt::EventImpl::CApi::spawn([sleep_ms => 200]);
        update_timeout($id, 6);
        my $added   = names(map { [$_->[0]] } $loop->calls);
        my $wake = $loop->latest;
        my @counted = map { $_->{kind} } watches();
        remove_timeout($id);
        my @idle = is_idle() ? 1 : 0;
        my $removed = names($loop->calls);
        $thread->join;
        return (
            single => $single, added => $added, counted => "@counted",
            removed => $removed, idle => "@idle", key => $wake->{key},
        );
    };
    is($got{single}, 'add_timeout 5', 'as long as there is one thread, no wake watch');
    is($got{added}, 'update_timeout add_handle', '... but at the first call when there are two');
    is($got{counted}, 'timeout', '... uncounted');
    is($got{removed}, "remove_timeout 1 remove_handle $got{key}", '... until nothing is registered');
    is($got{idle}, 1, '... and all is idle then');
}
{
    my %got = in_child {
        my $loop = VirtTest::Loop->new;
        my $asked = 0;
        $loop->on(add_handle => sub { $asked++; die "not me\n" });
        my @warnings = warnings_of { register($loop, wake => 1) };
        push @warnings, warnings_of { add_timeout(5, $code); remove_timeout(1) };
        return (warnings => \@warnings, is => is_registered($loop), asked => $asked);
    };
    is_deeply($got{warnings}, ["Cannot add handle: VirtTest::Loop::add_handle died: not me\n"],
        'a loop that refuses the wake watch: a warning');
    is($got{asked}, 1, '... and it is not asked again');
    ok($got{is}, '... and registered all the same');
}
{
    my %got = in_child {
        my ($one, $two) = map { VirtTest::Loop->new } 1 .. 2;
        register($one, wake => 1);
        $one->on(remove_handle => sub { die "never\n" });
        my @warnings = warnings_of { register($two, wake => 1) };
        return (warnings => \@warnings, is => is_registered($two), two => names(map { [$_->[0]] } $two->calls));
    };
    is_deeply($got{warnings}, ["Cannot remove handle: VirtTest::Loop::remove_handle died: never\n"],
        'a loop that dies when the wake watch is removed: a warning');
    ok($got{is}, '... and the other object takes over');
    is($got{two}, 'add_handle', '... with a wake watch of its own');
}

# Poll always has a wake watch, and does not run on for it.
{
    my %got = in_child {
        my $loop = My::Poll->new->register;
        my @got = (added => scalar @My::Poll::added, watches => scalar(my @none = watches()),
            idle => is_idle() ? 1 : 0);
        push @got, empty => $loop->run_once ? 1 : 0, empty_limited => $loop->run_once(5) ? 1 : 0;
        my $id;
        my $runs = 0;
        $id = add_timeout(1, sub { remove_timeout($id) if ++$runs == 3 });
        my $passes = 0;
        $passes++ while $loop->run_once;
        my ($reader) = pipe_pair();
        my $off = add_handle($reader, 0, $code);
        my $disabled = add_timeout(-1, $code);
        push @got, nothing_armed => $loop->run_once ? 1 : 0;
        return (@got, runs => $runs, passes => $passes);
    };
    is($got{added}, 1, 'Poll has a wake watch');
    is_deeply([@got{qw(watches idle)}],        [0, 1], '... uncounted');
    is_deeply([@got{qw(empty empty_limited)}], [0, 0], '... run_once is false at once when nothing else is there');
    is_deeply([@got{qw(runs passes)}],         [3, 3], '... so that `1 while $loop->run_once` ends');
    is($got{nothing_armed}, 0, '... nor does it sleep for what is switched off');
    is_deeply([in_child { register(My::Poll->new, wake => 0); return scalar @My::Poll::added }], [0],
        '... unless the program says wake => 0');
}

done_testing;
