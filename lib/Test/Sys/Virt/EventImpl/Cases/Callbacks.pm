package Test::Sys::Virt::EventImpl::Cases::Callbacks;

# Perl code as callbacks: exceptions, loops run inside, tokens.

use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

use Scalar::Util qw(refaddr);
use Test::More;
use Test::Sys::Virt::EventImpl::Case;
use Test::Sys::Virt::EventImpl::Util;

suite exception => 'Exceptions';
suite reentry => 'A loop that is run by a callback';
suite token => 'Tokens and arguments';

# Runs the loop until $condition->() holds, whatever leaves it. Returns what was thrown, and then warned of: a loop may
# let exceptions out or turn them into warnings.
sub thrown {
    my ($t, $condition) = @_;
    my @thrown;
    my $reached = 0;
    for (1 .. 20) {
        my $error = exception_of { $reached = $t->until($condition) };
        last if !defined $error;
        push @thrown, $error;
    }
    ok $reached, 'the loop works on';
    return (@thrown, $t->warnings);
}

case 0 => 'comes_out', exception => {
    rule   => 'the exception of a callback comes out, once, and the watch lives on',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my ($calls, $timer_calls) = (0, 0);
    my $handle = $t->watch($reader, READABLE, sub { die "first handle\n" if ++$calls == 1 });
    my @thrown = thrown($t, sub { $calls > 3 });
    is grep(/first handle/, @thrown), 1, 'a handle: it came out';
    is @thrown, 1, '... alone';
    Sys::Virt::Event::remove_handle($handle);
    my $timer = $t->timer(0, sub { die "first timer\n" if ++$timer_calls == 1 });
    @thrown = thrown($t, sub { $timer_calls > 3 });
    is grep(/first timer/, @thrown), 1, 'a timer: it came out';
    is @thrown, 1, '... alone';
};

case 0 => 'helper_throws', exception => {
    rule   => 'the helper method throws it, object and all, when C is left',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my $object = bless {}, 'Test::Sys::Virt::EventImpl::False';
    my @caught;
    $t->override(_run_timeout_callback => sub {
        my ($original, $impl, @args) = @_;
        my $lived = eval { $impl->$original(@args); 1 };
        push @caught, $@ if !$lived;
    });
    my $calls = 0;
    my $id = $t->timer(0, sub { $calls++; die $object if $calls == 1 });
    $t->until(sub { $calls > 2 });
    is @caught, 1, 'one exception';
    ok same($caught[0], $object), 'the very object, though it is overloaded to be false';
}, needs => ['object'];

case 0 => 'others_run', exception => {
    rule   => 'the others of that pass run, and no exception is lost',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my @pipes = map { [ready_pipe()] } 1 .. 3;
    my %calls;
    for my $n (1 .. 3) {
        my $reader = $pipes[$n - 1][0];
        $t->watch($reader, READABLE, sub {
            get_byte($reader);
            $calls{"handle $n"}++;
            die "from handle $n\n";
        });
        $t->timer(1, sub {
            my ($id) = @_;
            $calls{"timer $n"}++;
            Sys::Virt::Event::remove_timeout($id);
            die "from timer $n\n";
        });
    }
    my $c_timer = $t->add_timeout(1, in_callback => [[remove_timeout => 'self']]);
    pause(0.01);
    my @thrown = thrown($t, sub { keys %calls == 6 && $t->count('ff') });
    push @thrown, thrown($t, sub { 1 });
    is_deeply \%calls, { map { ("handle $_" => 1, "timer $_" => 1) } 1 .. 3 }, 'all six ran, once';
    is_deeply [$t->story], ["timer $c_timer", "ff $c_timer"], 'so did a timer in C';
    my @told = map { /(from \w+ \d)/ } @thrown;
    is_deeply [sort @told], [sort map { ("from handle $_", "from timer $_") } 1 .. 3], 'all six exceptions were told';
};

my @BAD_ANSWERS = (
    ['dies' => sub { die "no room\n" }, qr/no room/],
    ['returns nothing' => sub { return }, qr/undef/],
    ['returns undef' => sub { return undef }, qr/undef/],
    ['returns -5' => sub { return -5 }, qr/-5/],
);

case 0 => 'add_refused', exception => {
    rule   => 'an add method that dies or returns no key has failed, with a warning',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my $answer;
    my $class = $t->override(map { my $name = $_; $name => sub { my ($original, $impl, @args) = @_;
        return $answer ? $answer->() : $impl->$original(@args) } } qw(add_handle add_timeout));
    my %add = (
        add_handle  => [sub { $t->add_handle($reader, READABLE) },
            sub { $t->watch($reader, READABLE, sub {}) }],
        add_timeout => [sub { $t->add_timeout(0) }, sub { $t->timer(0, sub {}) }],
    );
    for my $method (sort keys %add) {
        my ($from_c, $from_perl) = @{ $add{$method} };
        for (@BAD_ANSWERS) {
            my ($what, $code, $reason) = @$_;
            $answer = $code;
            is $from_c->(), -1, "$method $what: -1";
            my @warnings = $t->warnings;
            is @warnings, 1, '... one warning';
            like "@warnings", qr/\Q$class\E::\Q$method\E/, '... names class and method';
            like "@warnings", $reason, '... and the reason';
            like exception_of { $from_perl->() }, $reason, '... and an exception for Perl code';
        }
    }
    undef $answer;
    my $id = $t->add_timeout(0);
    $t->until(sub { $t->count(timer => $id) });
    cmp_ok $t->count(timer => $id), '>', 0, 'then one works';
}, needs => ['object'];

case 0 => 'any_key', exception => {
    rule   => '0, a string, an object are keys: handed back as they are',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my @keys = (0, '', 'a name', '0E0', [], bless({}, 'Test::Sys::Virt::EventImpl::False'), sub {});
    my (@made, @got);
    # The object's own keys are kept aside: what it gets from libvirt is looked up there.
    my $translate = sub {
        my ($original, $impl, $key, @args) = @_;
        push @got, $key;
        my ($pair) = grep { same($_->[0], $key) } @made;
        return $impl->$original($pair ? $pair->[1] : $key, @args);
    };
    my $key;
    my $add = sub {
        my ($original, $impl, @args) = @_;
        my $own = $impl->$original(@args);
        unshift @made, [$key, $own];
        return $key;
    };
    $t->override(
        (map { $_ => $add } qw(add_handle add_timeout)),
        map { $_ => $translate } qw(update_handle update_timeout remove_handle remove_timeout),
    );
    for (@keys) {
        ($key, @made, @got) = $_;
        my $handle = $t->add_handle($reader, 0);
        cmp_ok $handle, '>', 0, 'accepted';
        $t->update_handle($handle, READABLE);
        is $t->remove_handle($handle), 0, 'removed';
        is grep({ same($_, $key) } @got), 2, 'both got the key';
        my $timer = $t->add_timeout(-1);
        $t->update_timeout($timer, 0);
        is $t->remove_timeout($timer), 0, 'a timer, too';
        is grep({ same($_, $key) } @got), 4;
    }
    undef $key;
}, needs => ['object'];

# Equal strings, or references to the same thing, whatever they are overloaded to.
sub same {
    my ($one, $other) = @_;
    return 0 if !!ref $one ne !!ref $other;
    return ref $one ? refaddr($one) == refaddr($other) : $one eq $other;
}

case 0 => 'other_methods_die', exception => {
    rule   => 'update and remove methods that die leave libvirt unharmed',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my $broken;
    my $class = $t->override(map { my $name = $_; $name => sub { my ($original, $impl, @args) = @_;
        my $result = $impl->$original(@args);
        die "broken $name\n" if $broken;
        return $result } } qw(update_handle update_timeout remove_handle remove_timeout));
    my @handles = map { $t->add_handle($reader, 0) } 1, 2;
    my @timers  = map { $t->add_timeout(-1) } 1, 2;
    $broken = 1;
    $t->update_handle($handles[0], READABLE);
    $t->update_timeout($timers[0], 0);
    is $t->remove_handle($handles[1]), 0, 'the removal holds';
    is $t->remove_timeout($timers[1]), 0;
    my @warnings = $t->warnings;
    is @warnings, 4, 'four warnings';
    for my $name (qw(update_handle update_timeout remove_handle remove_timeout)) {
        is grep(/\Q$class\E::$name.*broken $name/s, @warnings), 1, "$name: one names class, method and reason";
    }
    undef $broken;
    $t->until(sub { $t->count(handle => $handles[0]) && $t->count(timer => $timers[0]) });
    is $t->count('ff'), 2, 'what was removed is freed';
    cmp_ok $t->count(handle => $handles[0]), '>', 0, 'the rest works';
}, needs => ['object'];

case 0 => 'keeps_variables', exception => {
    rule   => 'what methods do to $@, $!, $_ and the last error of libvirt is undone',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my $calls = 0;
    my $spoil = sub {
        my ($original, $impl, @args) = @_;
        my @result = $impl->$original(@args);
        $calls++;
        $_ = 'spoiled';
        eval { die "spoiled\n" };
        $! = 5;
        Test::Sys::Virt::EventImpl::CApi::set_error(0);
        return $result[0];
    };
    $t->override(map { $_ => $spoil } map { ("${_}_handle", "${_}_timeout") } qw(add update remove));
    my $check = sub {
        my ($what, $code) = @_;
        my $result;
        for (my $topic = 'mine') {
            eval { die "mine\n" };
            $t->set_error(42);
            $! = 2;
            $result = $code->();
            my @now = ($! + 0, $@, $_, $t->last_error_code);
            is_deeply \@now, [2, "mine\n", 'mine', 42], $what;
        }
        return $result;
    };
    my $handle = $check->('add_handle', sub { $t->add_handle($reader, 0) });
    $check->('update_handle', sub { $t->update_handle($handle, READABLE) });
    $check->('remove_handle', sub { $t->remove_handle($handle) });
    my $timer = $check->('add_timeout', sub { $t->add_timeout(-1) });
    $check->('update_timeout', sub { $t->update_timeout($timer, 0) });
    $check->('remove_timeout', sub { $t->remove_timeout($timer) });
    cmp_ok $calls, '>=', 6, 'the methods were called';
}, needs => ['object'];

# A loop that is run by a callback.

case 0 => 'no_early_free', reentry => {
    rule   => 'a nested run does not free a watch whose callback is on the stack',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my @events;
    my $callback = sub {
        my ($name, $remove) = @_;
        my $code = sub {
            my ($id) = @_;
            $remove->($id);
            my $c_watch = $t->add_timeout(0, in_callback => [[remove_timeout => 'self']]);
            $t->until(sub { $t->count(ff => $c_watch) });
            push @events, $t->count(ff => $c_watch) == 1 ? "$name nested" : "$name: nothing was freed in the nested run";
        };
        return callable($code, sub { push @events, "$name freed" });
    };
    $t->watch($reader, READABLE, $callback->(handle => \&Sys::Virt::Event::remove_handle));
    $t->until(sub { @events >= 2 });
    $t->timer(0, $callback->(timer => \&Sys::Virt::Event::remove_timeout));
    $t->until(sub { @events >= 4 });
    $t->passes(3);
    is_deeply \@events, ['handle nested', 'handle freed', 'timer nested', 'timer freed'];
};

case 0 => 'not_twice', reentry => {
    rule   => 'a watch whose callback is on the stack is not dispatched by a nested run',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my ($depth, $deepest, $calls, $others) = (0, 0, 0, 0);
    $t->watch($reader, READABLE, sub { $others++ });
    my $nest = sub {
        $calls++;
        $deepest = $depth if ++$depth > $deepest;
        my $before = $others;
        $t->until(sub { $others > $before + 3 || $depth > 1 });
        $depth--;
    };
    my $handle = $t->watch($reader, READABLE, sub { $nest->() });
    $t->until(sub { $calls >= 2 });
    Sys::Virt::Event::remove_handle($handle);
    is $deepest, 1, 'a handle: not inside itself';
    cmp_ok $calls, '>=', 2, '... but again after its end';
    $calls = 0;
    my $timer = $t->timer(0, sub { $nest->() });
    $t->until(sub { $calls >= 2 });
    is $deepest, 1, 'a timer: not inside itself';
    cmp_ok $calls, '>=', 2, '... but again after its end';
    # A loop that does not know which of its watches are busy is told, once a watch.
    is grep({ !/Cannot run callback/ } $t->warnings), 0;
};

case 0 => 'nothing_lost', reentry => {
    rule   => 'a nested run loses none of the others, and runs none of them twice',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my @pipes = map { [ready_pipe()] } 1 .. 4;
    my %calls;
    my ($nested_in_handle, $nested_in_timer);
    for my $n (1 .. 4) {
        my $reader = $pipes[$n - 1][0];
        # Nothing is left to read after the first call.
        $t->watch($reader, READABLE, sub {
            $calls{"handle $n"}++;
            $calls{"handle $n"} == 1 && get_byte($reader);
            $t->passes(2) if !$nested_in_handle++;
        });
        $t->timer(1, sub {
            my ($id) = @_;
            $calls{"timer $n"}++;
            Sys::Virt::Event::remove_timeout($id);
            $t->passes(2) if !$nested_in_timer++;
        });
    }
    pause(0.01);
    $t->until(sub { keys %calls == 8 });
    $t->passes(3);
    is_deeply \%calls, { map { ("handle $_" => 1, "timer $_" => 1) } 1 .. 4 };
};

# Tokens: what the six methods are given as $cb, $opaque and $ff.

case 0 => 'forged', token => {
    rule   => 'a forged or mixed token is an exception, that of a removed watch does nothing',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my @tokens;
    my $keep = sub {
        my ($original, $impl, @args) = @_;
        push @tokens, [@args[-3 .. -1]];
        return $impl->$original(@args);
    };
    $t->override(add_handle => $keep, add_timeout => $keep);
    my $impl   = $t->impl;
    my $handle = $t->add_handle($reader, 0);
    my $other  = $t->add_handle($reader, 0);
    my $timer  = $t->add_timeout(-1);
    my ($of_handle, $of_other, $of_timer) = @tokens;

    my %run = (
        _run_handle_callback  => [$of_handle, $of_timer, sub { $impl->_run_handle_callback(1, 0, READABLE, @_) }],
        _run_timeout_callback => [$of_timer, $of_handle, sub { $impl->_run_timeout_callback(1, @_) }],
    );
    my @forged = (undef, 1, '', 'x', 140_000_000, \'x', [], {}, sub {}, \*STDIN, bless({}, 'My::Token'), $impl,
        bless(\(my $number = $handle), 'Sys::Virt::Event::Token'));
    for my $name (sort keys %run) {
        my ($right, $wrong_kind, $helper) = @{ $run{$name} };
        my ($cb, $opaque) = @$right;
        is grep({ !defined } map { my $bad = $_; exception_of { $helper->($bad, $opaque) } } @forged), 0, "$name: \$cb";
        is grep({ !defined } map { my $bad = $_; exception_of { $helper->($cb, $bad) } } @forged), 0, "$name: \$opaque";
        is grep({ !defined } map { my $bad = $_; exception_of { $helper->($bad, $bad) } } @forged), 0, "$name: both";
        ok defined exception_of { $helper->(@$wrong_kind[0, 1]) }, "$name: tokens of the wrong kind";
        ok defined exception_of { $helper->($cb, $of_other->[1]) }, "$name: tokens of two watches";
    }
    my $free = sub { $impl->_free_callback_opaque(@_) };
    is grep({ !defined } map { my $bad = $_; exception_of { $free->($bad, $of_handle->[1]) } } @forged), 0, 'ff';
    is grep({ !defined } map { my $bad = $_; exception_of { $free->($of_handle->[2], $bad) } } @forged), 0, 'ff: $opaque';
    ok defined exception_of { $free->($of_handle->[2], $of_other->[1]) }, 'ff: tokens of two watches';
    is_deeply [$t->story], [], 'nothing has run';

    $run{_run_handle_callback}[2]->(@$of_handle[0, 1]);
    is_deeply [$t->dispatched], ["handle $handle"], 'a right one runs the callback';
    $t->forget_log;
    $t->remove_handle($handle);
    $t->remove_timeout($timer);
    for (1, 2) {
        is exception_of { $run{_run_handle_callback}[2]->(@$of_handle[0, 1]) }, undef, 'removed: no exception';
        is exception_of { $run{_run_timeout_callback}[2]->(@$of_timer[0, 1]) }, undef;
        is exception_of { $free->(@$_[2, 1]) for $of_handle, $of_handle, $of_timer }, undef;
        $t->passes(3);
    }
    is_deeply [sort $t->story], [sort "ff $handle", "ff $timer"], 'removed: nothing runs, each is freed once';
    is exception_of { $free->(@$of_other[2, 1]) }, undef, 'ff of a watch that is still registered';
    $t->passes(3);
    is $t->count(ff => $other), 0, '... frees nothing';
    is $t->remove_handle($other), 0;
}, needs => ['object'];

case 0 => 'code_is_copied', token => {
    rule   => 'a callback is copied: what becomes of the variable does not matter',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my ($handles, $timers) = (0, 0);
    my $code = sub { $handles++ };
    my $handle = $t->watch($reader, READABLE, $code);
    $code = sub { $timers++ };
    my $timer = $t->timer(0, $code);
    undef $code;
    $code = 'no code';
    $t->until(sub { $handles > 2 && $timers > 2 });
    cmp_ok $handles, '>', 2, 'handle';
    cmp_ok $timers, '>', 2, 'timer';
};

case 0 => 'arguments', token => {
    rule   => 'a Perl callback gets id, fd and events, or the id',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my (@handle, @timer);
    my $handle = $t->watch($reader, READABLE, sub { @handle = @_ });
    my $timer  = $t->timer(0, sub { @timer = @_ });
    $t->until(sub { @handle && @timer });
    is_deeply \@handle, [$handle, fileno $reader, READABLE];
    is_deeply \@timer, [$timer];
};

# An object that looks false and empty.
package Test::Sys::Virt::EventImpl::False;

use overload bool => sub { 0 }, '""' => sub { '' };

# Runs code when it is released.
package Test::Sys::Virt::EventImpl::AtEnd;

sub DESTROY { $_[0][0]->() }

1;
