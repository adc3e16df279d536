package Test::Sys::Virt::EventImpl::Cases::Callbacks;

# Perl code as methods and callbacks: exceptions, loops run inside, tokens.

use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

use POSIX ();
use Scalar::Util qw(refaddr);
use Test::More;
use Test::Sys::Virt::EventImpl::Case;
use Test::Sys::Virt::EventImpl::Util;

suite exception => 'Exceptions';
suite reentry => 'A loop that is run by a callback';
suite token => 'Tokens and arguments';

# Runs the loop until $condition->() holds, and a little longer, whatever leaves it. Returns what was thrown, and then
# warned of: a loop may let exceptions out or turn them into warnings.
sub told {
    my ($t, $condition) = @_;
    my @thrown;
    my $reached = 0;
    for (1 .. 20) {
        my $error = exception_of {
            $reached = $t->until($condition);
            $t->run(0.001) for 1 .. 3;
        };
        last if !defined $error;
        push @thrown, $error;
    }
    ok $reached, 'the loop works on';
    return (@thrown, $t->warnings);
}

# Equal strings, or references to the same thing, whatever they are overloaded to.
sub same {
    my ($one, $other) = @_;
    return 0 if !!ref $one ne !!ref $other;
    return ref $one ? refaddr($one) == refaddr($other) : $one eq $other;
}

# Returns an array to which each add method appends [$cb, $opaque, $ff].
sub keep_tokens {
    my ($t) = @_;
    my @tokens;
    my $keep = sub {
        my ($original, $impl, @args) = @_;
        push @tokens, [@args[-3 .. -1]];
        return $impl->$original(@args);
    };
    $t->override(add_handle => $keep, add_timeout => $keep);
    return \@tokens;
}

# Makes methods return what $$instead->() returns, where it is set.
sub replace {
    my ($t, @names) = @_;
    my $instead;
    $t->override(map {
        my $name = $_;
        $name => sub {
            my ($original, $impl, @args) = @_;
            return $instead->() if $instead;
            return $impl->$original(@args);
        };
    } @names);
    return \$instead;
}

# Exactly one warning, which names class, method and reason.
sub one_warning {
    my ($t, $method, $reason) = @_;
    my @warnings = $t->warnings;
    is scalar @warnings, 1, '... one warning';
    like $warnings[0] // '', qr/\Q${\ref $t->impl}::$method\E\b.*$reason/s, '... names class, method and reason';
    return;
}

# Makes methods die when they have done their work, where $$is_broken is true. Calls that they make of each other do not
# count.
sub break_at_end {
    my ($t, @names) = @_;
    my $is_broken;
    our $is_inside;
    $t->override(map {
        my $name = $_;
        $name => sub {
            my ($original, $impl, @args) = @_;
            return $impl->$original(@args) if $is_inside;
            local $is_inside = 1;
            my $result = $impl->$original(@args);
            die "broken $name\n" if $is_broken;
            return $result;
        };
    } @names);
    return \$is_broken;
}

case 79 => 'comes_out', exception => {
    rule   => 'the exception of a callback leaves the loop or becomes a warning, once',
    source => 'L<Sys::Virt::Event/EXCEPTIONS>',
    harm   => 'libvirt, in C, cannot hand an exception on, so the loop is the only one that can. Where it swallows'
        . ' them a program goes on without the event that it failed to handle, and nobody learns why.',
    advice => 'let what the helper methods throw leave the loop, or warn of it',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my ($handle_calls, $timer_calls) = (0, 0);
    my $handle = $t->watch($reader, READABLE, sub { die "from the handle\n" if ++$handle_calls == 1 });
    my @told = told($t, sub { $handle_calls });
    Sys::Virt::Event::remove_handle($handle);
    is grep(/from the handle/, @told), 1, 'a handle: it was told';
    is @told, 1, '... alone';
    $t->timer(0, sub { die "from the timer\n" if ++$timer_calls == 1 });
    @told = told($t, sub { $timer_calls });
    is grep(/from the timer/, @told), 1, 'a timer: it was told';
    is @told, 1, '... alone';
};

case 80 => 'lives_on', exception => {
    rule   => 'a watch or timer whose callback died once runs again',
    source => 'L<Sys::Virt::Event/EXCEPTIONS>; libvirtaio.py of libvirt-python breaks it',
    harm   => 'libvirt keeps the timers by which it delivers events and sends keepalive messages, and adds them'
        . ' once. When one has died of an exception no event arrives any more, and no keepalive keeps the'
        . ' connection open.',
    advice => 'set a timer anew before its callback is called, and drop nothing because a callback died',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my ($handle_calls, $timer_calls) = (0, 0);
    my $handle = $t->watch($reader, READABLE, sub { die "from the handle\n" if ++$handle_calls == 1 });
    told($t, sub { $handle_calls > 3 });
    cmp_ok $handle_calls, '>', 3, 'a handle';
    Sys::Virt::Event::remove_handle($handle);
    $t->timer(1, sub { die "from the timer\n" if ++$timer_calls == 1 });
    told($t, sub { $timer_calls > 3 });
    cmp_ok $timer_calls, '>', 3, 'a timer';
};

case 81 => 'others_run', exception => {
    rule   => 'when a callback dies the others that are ready or due run all the same, once',
    source => 'L<Sys::Virt::Event/EXCEPTIONS>',
    harm   => 'The handler of one connection that dies takes an event from another, which has nothing to do with'
        . " it. A timer that is skipped is libvirt's queue of events, or its keepalive, coming a period late or"
        . ' never.',
    advice => 'go on with the pass when a callback has died, or leave what was not called ready and due',
}, sub {
    my ($t) = @_;
    my @pipes = map { [ready_pipe()] } 1 .. 3;
    my %calls;
    for my $n (1 .. 3) {
        my $reader = $pipes[$n - 1][0];
        $t->watch($reader, READABLE, sub {
            get_byte($reader);
            $calls{"handle $n"}++;
            die "from handle $n\n" if $n == 1;
        });
        my $timer;
        $timer = $t->timer(1, sub {
            $calls{"timer $n"}++;
            Sys::Virt::Event::remove_timeout($timer);
            die "from timer $n\n" if $n == 1;
        });
    }
    my $c_timer = $t->add_timeout(1, in_callback => [[remove_timeout => 'self']]);
    pause(0.003);
    told($t, sub { keys %calls == 6 && $t->count('ff') });
    is_deeply \%calls, { map { ("handle $_" => 1, "timer $_" => 1) } 1 .. 3 }, 'all six ran, once';
    is_deeply [$t->story], ["timer $c_timer", "ff $c_timer"], 'so did a timer in C';
};

case 82 => 'none_lost', exception => {
    rule   => 'of several callbacks that die in one pass each exception is told',
    source => 'L<Sys::Virt::Event/EXCEPTIONS>',
    harm   => 'When a daemon goes away the handlers of all its connections are called in one pass. A program that'
        . ' is told of one failure alone takes the other connections for sound.',
    advice => 'throw the first exception of a pass and warn of the others, or leave the pass at each',
}, sub {
    my ($t) = @_;
    my @pipes = map { [ready_pipe()] } 1 .. 3;
    my $calls = 0;
    for my $n (1 .. 3) {
        my $reader = $pipes[$n - 1][0];
        $t->watch($reader, READABLE, sub {
            get_byte($reader);
            $calls++;
            die "from handle $n\n";
        });
    }
    my %told = map { $_ => 1 } map { /(handle \d)/ } told($t, sub { $calls == 3 });
    is_deeply [sort keys %told], ['handle 1', 'handle 2', 'handle 3'], 'all three';
};

case 83 => 'helper_throws', exception => {
    rule   => 'the helper methods throw what the callback threw, the very object',
    source => 'L<Sys::Virt::Event/METHODS A LOOP CALLS>',
    harm   => 'Exceptions are objects, Sys::Virt::Error among them, and some are overloaded to be false. Made a'
        . ' string, or asked whether it is true, such an object no longer says which error of libvirt it was, or'
        . ' vanishes.',
    advice => 'nothing to do in the loop: the helper methods are inherited, do not replace them',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my $tokens = keep_tokens($t);
    my $exception;
    my $code = sub { die $exception };
    $t->watch($reader, 0, $code);
    $t->timer(-1, $code);
    my ($of_handle, $of_timer) = @$tokens;
    my $false = bless {}, 'Test::Sys::Virt::EventImpl::False';
    for ($false, { code => 42 }, "text\n") {
        $exception = $_;
        my $what = ref || 'a string';
        my $error = exception_of { $t->impl->_run_handle_callback(1, 0, READABLE, @$of_handle[0, 1]) };
        ok same($error // '', $exception), "$what: a handle";
        $error = exception_of { $t->impl->_run_timeout_callback(1, @$of_timer[0, 1]) };
        ok same($error // '', $exception), "$what: a timer";
    }
}, needs => ['object'];

case 84 => 'last_in_callback', exception => {
    rule   => 'last and next do not leave the callback that they are in',
    source => 'L<Sys::Virt::Event/EXCEPTIONS>',
    harm   => "perl would look for a loop block outside the callback, and leave libvirt's C code, which called it,"
        . ' in the middle. The mutexes that libvirt holds stay locked, and the next call hangs.',
    advice => "nothing to do in the loop: the helper methods are inherited, do not replace them",
}, sub {
    my ($t) = @_;
    my %code = (
        last => sub { no warnings 'exiting'; last },
        next => sub { no warnings 'exiting'; next },
    );
    for my $word (sort keys %code) {
        my $calls = 0;
        my $timer = $t->timer(0, sub { goto &{ $code{$word} } if ++$calls == 1 });
        my @told = told($t, sub { $calls });
        is grep(/\b$word\b/, @told), 1, "$word is an exception";
        is @told, 1, '... alone';
        Sys::Virt::Event::remove_timeout($timer);
    }
};

case 85 => 'add_dies', exception => {
    rule   => 'an add method that dies has failed: libvirt gets -1, and the program a warning',
    source => 'C<libvirt/libvirt-event.h>, virEventAddHandleFunc; L<Sys::Virt::Event/EXCEPTIONS>',
    harm   => 'An exception that jumps out of virEventAddHandle leaves mutexes of libvirt locked. And as a'
        . ' connection that cannot be watched opens all the same (src/remote/remote_driver.c), without a warning'
        . ' its events just never come.',
    advice => 'nothing to do in the loop: the module catches what add_handle and add_timeout throw',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my $instead = replace($t, qw(add_handle add_timeout));
    $$instead = sub { die "no room\n" };
    is $t->add_handle($reader, READABLE), -1, 'a handle';
    one_warning($t, 'add_handle', qr/no room/);
    is $t->add_timeout(0), -1, 'a timer';
    one_warning($t, 'add_timeout', qr/no room/);
    undef $$instead;
    my $id = $t->add_timeout(0);
    $t->until(sub { $t->count(timer => $id) });
    cmp_ok $t->count(timer => $id), '>', 0, 'then one works';
}, needs => ['object'];

case 86 => 'no_key', exception => {
    rule   => 'an add method that returns nothing, undef or a negative number has failed',
    source => 'C<libvirt/libvirt-event.h>, virEventAddHandleFunc; L<Sys::Virt::Event/METHODS A LOOP PROVIDES>',
    harm   => 'A method that forgets to return its key seems to have succeeded: undef made a number is 0, which'
        . ' libvirt takes for "no timer" (src/rpc/virkeepalive.c), so it never removes that timer and never lets'
        . ' the client go.',
    advice => 'nothing to do in the loop: the module looks at what add_handle and add_timeout return',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my $instead = replace($t, qw(add_handle add_timeout));
    my @answers = (
        [nothing => qr/undef/, sub { return }],
        [undef   => qr/undef/, sub { return undef }],
        [-5      => qr/-5/,    sub { return -5 }],
    );
    for (@answers) {
        my ($what, $reason);
        ($what, $reason, $$instead) = @$_;
        is $t->add_handle($reader, READABLE), -1, "$what: a handle";
        one_warning($t, 'add_handle', $reason);
        is $t->add_timeout(0), -1, "$what: a timer";
        one_warning($t, 'add_timeout', $reason);
    }
}, needs => ['object'];

case 87 => 'refused_to_perl', exception => {
    rule   => 'a watch that the add method refused is an exception for the Perl code that wanted it',
    source => 'L<Sys::Virt::Event/EXCEPTIONS>',
    harm   => 'A program that is given -1, or an id that stands for nothing, waits for an event that cannot come.',
    advice => 'nothing to do in the loop: the functions of the module throw it',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my $instead = replace($t, qw(add_handle add_timeout));
    my %answers = (dies => [qr/no room/, sub { die "no room\n" }], undef => [qr/undef/, sub { return undef }]);
    for my $what (sort keys %answers) {
        (my $reason, $$instead) = @{ $answers{$what} };
        like exception_of { $t->watch($reader, READABLE, sub { }) }, $reason, "$what: a handle";
        like exception_of { $t->timer(0, sub { }) }, $reason, "$what: a timer";
    }
}, needs => ['object'];

case 88 => 'any_key', exception => {
    rule   => '0, a string, an object are keys: handed back as they are',
    source => 'L<Sys::Virt::Event/IDS AND TOKENS>',
    harm   => 'Event libraries stand for a watch by an object, and want it back. Made a number it is the address of'
        . ' something; update_handle then changes nothing, or another watch, and the connection hears no answers.',
    advice => 'nothing to do in the loop: the module keeps the key',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my @keys = (0, '', 'a name', '0E0', [], bless({}, 'Test::Sys::Virt::EventImpl::False'), sub { });
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

case 89 => 'update_dies', exception => {
    rule   => 'an update method that dies is a warning for the C code that called it, and the watch lives on',
    source => 'C<libvirt/libvirt-event.h>, virEventUpdateHandleFunc; L<Sys::Virt::Event/EXCEPTIONS>',
    harm   => 'libvirt updates the handle of a connection at the start and the end of each call to the server,'
        . ' holding the locks of client and socket (src/rpc/virnetclient.c). An exception that jumps out leaves'
        . ' them locked: the next call hangs for ever.',
    advice => 'nothing to do in the loop: the module catches what update_handle and update_timeout throw',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my $is_broken = break_at_end($t, qw(update_handle update_timeout));
    my $handle    = $t->add_handle($reader, 0);
    my $timer     = $t->add_timeout(-1);
    $$is_broken = 1;
    is exception_of { $t->update_handle($handle, READABLE) }, undef, 'a handle: no exception';
    one_warning($t, 'update_handle', qr/broken update_handle/);
    is exception_of { $t->update_timeout($timer, 0) }, undef, 'a timer: no exception';
    one_warning($t, 'update_timeout', qr/broken update_timeout/);
    undef $$is_broken;
    $t->until(sub { $t->count(handle => $handle) && $t->count(timer => $timer) });
    cmp_ok $t->count(handle => $handle), '>', 0, 'the handle works on';
    cmp_ok $t->count(timer => $timer), '>', 0, 'so does the timer';
}, needs => ['object'];

case 90 => 'remove_dies', exception => {
    rule   => 'a remove method that dies cannot keep the watch: it is freed, with a warning',
    source => 'C<libvirt/libvirt-event.h>, virEventRemoveHandleFunc; L<Sys::Virt::Event/EXCEPTIONS>',
    harm   => 'The socket of a connection is closed by the free function of its handle (src/rpc/virnetsocket.c).'
        . ' Where that is lost with an exception the program loses a file descriptor, and the server keeps a'
        . ' client, each time.',
    advice => 'nothing to do in the loop: the module removes the watch whatever remove_* does',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my $is_broken = break_at_end($t, qw(remove_handle remove_timeout));
    my $handle    = $t->add_handle($reader, READABLE);
    my $timer     = $t->add_timeout(0);
    $$is_broken = 1;
    is $t->remove_handle($handle), 0, 'a handle: the removal holds';
    one_warning($t, 'remove_handle', qr/broken remove_handle/);
    is $t->remove_timeout($timer), 0, 'a timer: the removal holds';
    one_warning($t, 'remove_timeout', qr/broken remove_timeout/);
    undef $$is_broken;
    $t->until(sub { $t->count('ff') >= 2 });
    is_deeply [sort $t->story], [sort "ff $handle", "ff $timer"], 'both are freed, and do not run';
}, needs => ['object'];

case 91 => 'libvirt_goes_on', exception => {
    rule   => "a method that dies inside a callback of libvirt's is told when the callback is done",
    source => 'L<Sys::Virt::Event/EXCEPTIONS>',
    harm   => "libvirt's own callbacks update timers and handles halfway through, with locks held. Left there they"
        . ' never unlock: a connection of which one event was read by the loop hangs at its next call.',
    advice => 'nothing to do in the loop: the module lets the callback come to its end first',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my @names     = METHODS;
    my $is_broken = break_at_end($t, @names);
    my $handle    = $t->add_handle($reader, 0);
    my $timer     = $t->add_timeout(-1);
    my @ops = (
        [add_handle => $reader, 0], [add_timeout => -1], [update_handle => $handle, 0], [update_timeout => $timer, -1],
        [remove_handle => $handle], [remove_timeout => $timer],
    );
    $t->add_timeout(0, in_callback => [@ops, [update_timeout => 'self', -1], ['last_error_code']]);
    $$is_broken = 1;
    my @told = told($t, sub { $t->count('last_error_code') });
    undef $$is_broken;
    my @done = grep { /_/ } map { $_->{what} } $t->log;
    is_deeply \@done, [map({ $_->[0] } @ops), qw(update_timeout last_error_code)], 'all that it does is done, once';
    cmp_ok scalar @told, '>', 0, 'an exception was told';
}, needs => ['object'];

case 92 => 'signal_waits', exception => {
    rule   => 'a handler in %SIG does not run inside a method, but when the call of libvirt is done',
    source => 'L<Sys::Virt::Event/SIGNALS>',
    harm   => 'C<$SIG{ALRM} = sub { die }> around a slow call is the usual timeout. perl runs the handler in the'
        . ' next Perl code, which is the update_handle at the end of the call, where libvirt holds its locks: the'
        . ' connection hangs.',
    advice => 'nothing to do in the loop: the module holds the handlers back, do not unblock signals',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my ($is_armed, $inside);
    my $signalled = sub {
        my ($original, $impl, @args) = @_;
        return $impl->$original(@args) if !$is_armed;
        $is_armed = 0;
        $inside   = 1;
        kill USR1 => $$;
        my $result = $impl->$original(@args);
        $inside = 0;
        return $result;
    };
    $t->override(map { $_ => $signalled } map { ("${_}_handle", "${_}_timeout") } qw(update remove));
    my $handle = $t->add_handle($reader, 0);
    my $timer  = $t->add_timeout(-1);
    my @calls = (
        [update_handle => $handle, READABLE], [update_timeout => $timer, 0],
        [remove_handle => $handle], [remove_timeout => $timer],
    );
    for (@calls) {
        my ($name, @args) = @$_;
        my $was_inside;
        local $SIG{USR1} = sub { $was_inside = $inside; die "signal\n" };
        $is_armed = 1;
        my $error = exception_of {
            $t->$name(@args);
            # perl looks for signals here at the latest.
            for (1, 2) { $inside += 0 }
        };
        is $error, "signal\n", "$name: the caller has the exception";
        is $was_inside, 0, '... from outside of the method';
    }
    $t->until(sub { $t->count('ff') >= 2 });
    is_deeply [sort $t->story], [sort "ff $handle", "ff $timer"], 'what was removed is freed';
}, needs => ['object'];

# Runs $code and returns its result. What becomes of $@, $!, $_ and libvirt's last error is written to %$now.
sub with_variables {
    my ($t, $now, $code) = @_;
    my $result;
    for (my $topic = 'mine') {
        eval { die "mine\n" };
        $t->set_error(42);
        $! = 2;
        $result = $code->();
        %$now = ('$!' => $! + 0, '$@' => $@, '$_' => $_);
    }
    $now->{error} = $t->last_error_code;
    return $result;
}

my %MINE = ('$!' => 2, '$@' => "mine\n", '$_' => 'mine');

# Calls $check->($method, \%now) after each of the six, all of which run $spoil->().
sub spoiled_methods {
    my ($t, $spoil, $check) = @_;
    my ($reader, $writer) = ready_pipe();
    my $calls = 0;
    my $spoiling = sub {
        my ($original, $impl, @args) = @_;
        my $result = $impl->$original(@args);
        $calls++;
        $spoil->();
        return $result;
    };
    $t->override(map { $_ => $spoiling } METHODS);
    my $call = sub {
        my ($method, @args) = @_;
        my $result = with_variables($t, \my %now, sub { $t->$method(@args) });
        $check->($method, \%now);
        return $result;
    };
    my $handle = $call->(add_handle => $reader, 0);
    $call->(update_handle => $handle, READABLE);
    $call->(remove_handle => $handle);
    my $timer = $call->(add_timeout => -1);
    $call->(update_timeout => $timer, 0);
    $call->(remove_timeout => $timer);
    cmp_ok $calls, '>=', 6, 'the methods were called';
    return;
}

sub spoil_variables {
    $_ = 'spoiled';
    eval { die "spoiled\n" };
    $! = 5;
    return;
}

case 93 => 'keeps_variables', exception => {
    rule   => 'what methods do to $@, $! and $_ is undone',
    source => 'L<Sys::Virt::Event/EXCEPTIONS>',
    harm   => 'libvirt calls the methods inside any call that a program makes of Sys::Virt. So C<for> loses its'
        . ' element, and C<$!> and C<$@> tell of something else, at a place that has nothing to do with events.',
    advice => 'nothing to do in the loop: the module saves these variables',
}, sub {
    my ($t) = @_;
    spoiled_methods($t, \&spoil_variables, sub {
        my ($method, $now) = @_;
        delete $now->{error};
        is_deeply $now, \%MINE, $method;
    });
}, needs => ['object'];

case 94 => 'keeps_error', exception => {
    rule   => "what methods do to libvirt's last error is undone",
    source => 'L<Sys::Virt::Event/EXCEPTIONS>',
    harm   => 'Where a connection cannot be opened libvirt sets the error first, and removes its handle then. A'
        . ' method that calls libvirt resets the error, so that Sys::Virt dies with code 0 and "Unknown problem".',
    advice => "nothing to do in the loop: the module saves libvirt's last error",
}, sub {
    my ($t) = @_;
    my $spoil = sub { Test::Sys::Virt::EventImpl::CApi::set_error(0) };
    spoiled_methods($t, $spoil, sub {
        my ($method, $now) = @_;
        is $now->{error}, 42, $method;
    });
}, needs => ['object'];

case 95 => 'spoiling_callback', exception => {
    rule   => 'what callbacks do to $@, $! and $_ is undone',
    source => 'L<Sys::Virt::Event/EXCEPTIONS>',
    harm   => 'A callback that reads lines sets C<$_>. In a loop that goes through what is ready by C<for (@ready)>'
        . ' the rest of the pass then works on something else, and events are lost.',
    advice => 'nothing to do in the loop: the helper methods save these variables, do not replace them',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my $tokens = keep_tokens($t);
    my $calls = 0;
    my $code = sub { $calls++; spoil_variables() };
    $t->watch($reader, 0, $code);
    $t->timer(-1, $code);
    my ($of_handle, $of_timer) = @$tokens;
    with_variables($t, \my %now, sub { $t->impl->_run_handle_callback(1, 0, READABLE, @$of_handle[0, 1]) });
    delete $now{error};
    is_deeply \%now, \%MINE, 'a handle';
    with_variables($t, \%now, sub { $t->impl->_run_timeout_callback(1, @$of_timer[0, 1]) });
    delete $now{error};
    is_deeply \%now, \%MINE, 'a timer';
    is $calls, 2, 'both were called';
}, needs => ['object'];

# A loop that is run by a callback.

# A handle or a 0 ms timer of Perl.
sub add_perl {
    my ($t, $kind, $reader, $code) = @_;
    return $kind eq 'handle' ? $t->watch($reader, READABLE, $code) : $t->timer(0, $code);
}

sub remove_perl {
    my ($kind, $id) = @_;
    return $kind eq 'handle' ? Sys::Virt::Event::remove_handle($id) : Sys::Virt::Event::remove_timeout($id);
}

# The same of C.
sub add_c {
    my ($t, $kind, $reader, @ops) = @_;
    return $kind eq 'handle' ? $t->add_handle($reader, READABLE, in_callback => \@ops)
        : $t->add_timeout(0, in_callback => \@ops);
}

case 161 => 'interrupted', exception => {
    rule   => 'a signal that comes while the loop sleeps is handled, and the loop goes on',
    source => 'poll(2), EINTR; src/util/vireventpoll.c of libvirt before 6.1, which polls again',
    harm   => 'The end of a child process, or a window that changes its size, is a signal. A loop that takes the end of'
        . ' its wait for a failure ends the program, or a pass that it should have gone on with.',
    advice => 'take EINTR for the end of a wait, not for an error',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = pipe_pair();
    my $id = $t->add_handle($reader, READABLE, read => 1);
    my ($test, $signals) = ($$, 0);
    local $SIG{USR1} = sub { $signals++ };
    defined(my $pid = fork) or die "Cannot fork: $!";
    if (!$pid) {
        pause(0.02), kill USR1 => $test for 1, 2;
        pause(0.02);
        put_byte($writer);
        POSIX::_exit(0);
    }
    is exception_of { $t->until(sub { $t->count(handle => $id) }, 0.2) }, undef, 'no exception';
    waitpid $pid, 0;
    cmp_ok $signals, '>', 0, 'the handler has run';
    is $t->count(handle => $id), 1, 'the loop works on';
};

case 96 => 'no_early_free', reentry => {
    rule   => 'a loop run inside a callback of Perl does not release the code of that callback',
    source => 'L<Sys::Virt::Event/METHODS A LOOP CALLS>',
    harm   => 'A handler that removes its own watch and then runs the loop, to wait for something, loses what it is'
        . ' made of: the destructors of what it holds run while it still works with that.',
    advice => 'nothing to do in the loop: the module frees a watch after its callback has returned',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    for my $kind (qw(handle timer)) {
        my @events;
        my $code = sub {
            my ($id) = @_;
            remove_perl($kind, $id);
            $t->passes(3);
            push @events, 'returns';
        };
        add_perl($t, $kind, $reader, callable($code, sub { push @events, 'freed' }));
        undef $code;
        $t->until(sub { @events >= 2 });
        is_deeply \@events, ['returns', 'freed'], "a $kind";
    }
};

case 97 => 'no_early_free_in_c', reentry => {
    rule   => "a loop run inside a callback of libvirt's does not free the watch whose callback that is",
    source => 'C<libvirt/libvirt-event.h>, virEventAddHandleFunc: the free function needs a clean stack',
    harm   => 'A handler of Sys::Virt closes its connection and runs the loop. libvirt, which has called it, comes'
        . " back to memory that was released meanwhile, and the program may crash. libvirt's own loop has this"
        . ' fault.',
    advice => 'nothing to do in the loop: the module frees a watch after its callback has returned',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    for my $kind (qw(handle timer)) {
        my $remove = $kind eq 'handle' ? 'remove_handle' : 'remove_timeout';
        my $id = add_c($t, $kind, $reader, [$remove => 'self'], [call => sub { $t->passes(3) }]);
        $t->until(sub { $t->count(ff => $id) && $t->count('call') });
        my @story = map { $_->{what} } grep { $_->{what} =~ /^(?:call|ff)\z/ } $t->log;
        is_deeply \@story, ['call', 'ff'], "a $kind";
        $t->forget_log;
    }
};

case 98 => 'frees_others', reentry => {
    rule   => 'a loop run inside a callback frees other watches that were removed',
    source => 'L<Sys::Virt::Event/METHODS A LOOP CALLS>',
    harm   => 'A handler that closes a connection and runs the loop until the socket is closed waits for ever: it'
        . ' is the free function that closes it.',
    advice => 'nothing to do in the loop: the module frees what is not running',
}, sub {
    my ($t) = @_;
    my $freed;
    my $in_callback = sub {
        my ($other) = @_;
        $t->remove_timeout($other);
        # Nothing else is ready: libvirt's own loop frees timers when it is idle.
        $t->until(sub { $t->count(ff => $other) });
        $freed = $t->count(ff => $other);
    };
    my $other = $t->add_timeout(-1);
    $t->timer(0, sub { remove_perl(timer => $_[0]); $in_callback->($other) });
    $t->until(sub { defined $freed });
    is $freed, 1, 'inside a callback of Perl';
    undef $freed;
    my $third = $t->add_timeout(-1);
    $t->add_timeout(0, in_callback => [[remove_timeout => 'self'], [call => sub { $in_callback->($third) }]]);
    $t->until(sub { defined $freed });
    is $freed, 1, 'inside a callback of C';
};

case 99 => 'not_twice', reentry => {
    rule   => 'a loop run inside a callback does not call that callback again',
    source => 'L<Sys::Virt::Event/METHODS A LOOP CALLS>',
    harm   => 'What made the handle ready is still there, so the callback runs the loop and is called once more, and'
        . ' so on, until memory is used up. The program never gets out of its handler.',
    advice => 'mark a watch while its callback is called, and pass over it meanwhile',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my $others = 0;
    $t->watch($reader, READABLE, sub { $others++ });
    for my $kind (qw(handle timer)) {
        my ($depth, $deepest, $calls) = (0, 0, 0);
        my $code = sub {
            $calls++;
            $deepest = $depth if ++$depth > $deepest;
            my $before = $others;
            $t->until(sub { $others > $before + 3 || $depth > 1 });
            $depth--;
        };
        my $id = add_perl($t, $kind, $reader, $code);
        $t->until(sub { $calls >= 2 });
        remove_perl($kind, $id);
        is $deepest, 1, "a $kind of Perl: not inside itself";
        cmp_ok $calls, '>=', 2, '... but again after its end';
        ($calls, $deepest) = (0, 0);
        $id = add_c($t, $kind, $reader, [call => $code]);
        $t->until(sub { $calls >= 2 });
        $kind eq 'handle' ? $t->remove_handle($id) : $t->remove_timeout($id);
        is $deepest, 1, "a $kind of C: not inside itself";
        cmp_ok $calls, '>=', 2, '... but again after its end';
    }
    # A loop that does not know which of its watches are busy is told so, once a watch.
    $t->warnings;
};

case 100 => 'nested_sleeps', reentry => {
    rule   => 'a loop run inside a callback sleeps, though what that callback is called for is still ready',
    source => "libvirt's own loop, which does not poll what it is dispatching; L<Sys::Virt::Event::Poll/NESTED"
        . ' RUNS>',
    harm   => 'While a handler waits for an answer the program uses all of a processor: the handle that cannot be'
        . ' called again ends each poll at once.',
    advice => 'neither poll nor wait for a watch whose callback is on the stack',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    # A loop that has nothing to wait for may return at once.
    $t->add_timeout(60_000);
    for my $kind (qw(handle timer)) {
        my ($used, $is_inside);
        my $id = add_perl($t, $kind, $reader, sub {
            return if $is_inside++ || defined $used;
            $used = $t->busy_share(0.03);
        });
        $t->until(sub { defined $used });
        remove_perl($kind, $id);
        cmp_ok $used, '<', 1 / 4, "a $kind: the share of a processor that it uses";
    }
    $t->warnings;
};

case 101 => 'nothing_lost', reentry => {
    rule   => 'a loop run inside a callback loses nothing that was ready or due beside it',
    source => 'L<Sys::Virt::Event::Poll/NESTED RUNS>',
    harm   => "A handler that waits for something by running the loop takes other events away: a connection's"
        . ' messages lie unread, or its keepalive is not sent and the server closes it.',
    advice => 'take a watch off the list of what is ready only when it is called',
}, sub {
    my ($t) = @_;
    my @pipes = map { [ready_pipe()] } 1 .. 4;
    my %calls;
    my ($nested_in_handle, $nested_in_timer);
    for my $n (1 .. 4) {
        my $reader = $pipes[$n - 1][0];
        $t->watch($reader, READABLE, sub {
            $calls{"handle $n"}++ || get_byte($reader);
            $t->passes(2) if !$nested_in_handle++;
        });
        $t->timer(1, sub {
            $calls{"timer $n"}++;
            $t->passes(2) if !$nested_in_timer++;
        });
    }
    pause(0.003);
    $t->until(sub { keys %calls == 8 });
    is_deeply [sort keys %calls], [map({ "handle $_" } 1 .. 4), map { "timer $_" } 1 .. 4], 'all eight ran';
};

case 102 => 'nothing_stale', reentry => {
    rule   => 'what a loop run inside a callback has served is not served again for the old readiness',
    source => 'L<Sys::Virt::Event::Poll/NESTED RUNS>',
    harm   => 'The outer pass still holds that the handle is readable, and calls for data that were read already. A'
        . ' callback that reads from a blocking handle hangs, and the program with it.',
    advice => 'look whether the loop was run inside a callback, and if so, poll again before the next call',
}, sub {
    my ($t) = @_;
    my @pipes = map { [ready_pipe()] } 1 .. 4;
    my (%calls, $nested_in_handle, $nested_in_timer);
    for my $n (1 .. 4) {
        my $reader = $pipes[$n - 1][0];
        # Nothing is left to read after the first call, and nothing is due.
        $t->watch($reader, READABLE, sub {
            $calls{"handle $n"}++ || get_byte($reader);
            $t->passes(2) if !$nested_in_handle++;
        });
        my $timer;
        $timer = $t->timer(1, sub {
            Sys::Virt::Event::update_timeout($timer, 60_000);
            $calls{"timer $n"}++;
            $t->passes(2) if !$nested_in_timer++;
        });
    }
    pause(0.003);
    $t->until(sub { $nested_in_handle && $nested_in_timer });
    $t->passes(3);
    is_deeply [grep { $calls{$_} > 1 } sort keys %calls], [], 'none ran twice';
};

case 103 => 'nested_exception', reentry => {
    rule   => 'an exception in a loop run inside a callback comes out of that loop',
    source => 'L<Sys::Virt::Event/EXCEPTIONS>',
    harm   => 'A handler that runs the loop inside an C<eval>, to be safe from what others do, does not get the'
        . ' exception; it ends the whole program at a place where nobody is prepared for it.',
    advice => 'keep exceptions in a variable of the pass, not of the object',
}, sub {
    my ($t) = @_;
    my ($calls, @nested, $is_done) = (0);
    $t->timer(0, sub {
        my ($id) = @_;
        Sys::Virt::Event::remove_timeout($id);
        my $inner = $t->timer(0, sub { die "from the nested run\n" if ++$calls == 1 });
        @nested = told($t, sub { $calls });
        Sys::Virt::Event::remove_timeout($inner);
        $is_done = 1;
    });
    my @outer = told($t, sub { $is_done });
    is grep(/from the nested run/, @nested), 1, 'the nested run told it';
    is_deeply \@outer, [], 'the outer one told nothing';
};

# Tokens: what the six methods are given as $cb, $opaque and $ff.

# Two handles and a timer, none of them ready: their ids, tokens, and the helper methods as functions of tokens.
sub token_helpers {
    my ($t) = @_;
    my $tokens = keep_tokens($t);
    my ($reader, $writer) = ready_pipe();
    my $handle = $t->add_handle($reader, 0);
    my $other  = $t->add_handle($reader, 0);
    my $timer  = $t->add_timeout(-1);
    my $impl   = $t->impl;
    my $run_handle = sub { $impl->_run_handle_callback(1, 0, READABLE, @_) };
    my $run_timer  = sub { $impl->_run_timeout_callback(1, @_) };
    return {
        pipe   => [$reader, $writer],
        handle => { id => $handle, tokens => $tokens->[0], run => $run_handle },
        other  => { id => $other,  tokens => $tokens->[1] },
        timer  => { id => $timer,  tokens => $tokens->[2], run => $run_timer },
        free   => sub { $impl->_free_callback_opaque(@_) },
    };
}

case 104 => 'forged', token => {
    rule   => 'what is no token is an exception',
    source => 'L<Sys::Virt::Event/METHODS A LOOP CALLS>',
    harm   => 'A loop that mixes up its arguments hands over undef or a number. Taken for an address of C code,'
        . ' that is a crash of the program, or worse.',
    advice => 'nothing to do in the loop: the module looks at $cb, $opaque and $ff',
}, sub {
    my ($t) = @_;
    my $with = token_helpers($t);
    my @forged = (undef, 1, '', 'x', 140_000_000, \'x', [], {}, sub { }, \*STDIN, bless({}, 'My::Token'), $t->impl,
        bless(\(my $number = $with->{handle}{id}), 'Sys::Virt::Event::Token'));
    for my $kind (qw(handle timer)) {
        my ($run, $cb, $opaque) = ($with->{$kind}{run}, @{ $with->{$kind}{tokens} });
        is grep({ my $bad = $_; !defined exception_of { $run->($bad, $opaque) } } @forged), 0, "$kind: \$cb";
        is grep({ my $bad = $_; !defined exception_of { $run->($cb, $bad) } } @forged), 0, "$kind: \$opaque";
        is grep({ my $bad = $_; !defined exception_of { $run->($bad, $bad) } } @forged), 0, "$kind: both";
    }
    my ($free, undef, $opaque, $ff) = ($with->{free}, @{ $with->{handle}{tokens} });
    is grep({ my $bad = $_; !defined exception_of { $free->($bad, $opaque) } } @forged), 0, 'free: $ff';
    is grep({ my $bad = $_; !defined exception_of { $free->($ff, $bad) } } @forged), 0, 'free: $opaque';
    is_deeply [$t->story], [], 'nothing has run';
    $with->{handle}{run}->(@{ $with->{handle}{tokens} }[0, 1]);
    is_deeply [$t->story], ["handle $with->{handle}{id}"], 'a right one runs the callback';
}, needs => ['object'];

case 105 => 'mixed', token => {
    rule   => 'tokens of two watches, or of the wrong kind, are an exception',
    source => 'L<Sys::Virt::Event/METHODS A LOOP CALLS>',
    harm   => "A loop that mixes up its records calls one connection's callback with the data of another, or a"
        . " timer's as that of a handle. libvirt believes them, and reads memory that means something else.",
    advice => 'nothing to do in the loop: the module looks whether $cb, $opaque and $ff belong together',
}, sub {
    my ($t) = @_;
    my $with = token_helpers($t);
    my ($handle, $other, $timer) = @$with{qw(handle other timer)};
    my ($cb, $opaque, $ff) = @{ $handle->{tokens} };
    ok defined exception_of { $handle->{run}->($cb, $other->{tokens}[1]) }, 'a handle: of two watches';
    ok defined exception_of { $handle->{run}->(@{ $timer->{tokens} }[0, 1]) }, '... of a timer';
    ok defined exception_of { $timer->{run}->($timer->{tokens}[0], $opaque) }, 'a timer: of two watches';
    ok defined exception_of { $timer->{run}->($cb, $opaque) }, '... of a handle';
    ok defined exception_of { $with->{free}->($ff, $other->{tokens}[1]) }, 'free: of two watches';
    is_deeply [$t->story], [], 'nothing has run';
}, needs => ['object'];

case 106 => 'token_of_removed', token => {
    rule   => 'the helper methods do nothing, quietly, for a watch that was removed',
    source => 'L<Sys::Virt::Event/METHODS A LOOP CALLS>',
    harm   => 'A loop that has collected what is ready goes through it, and callbacks remove what comes later.'
        . ' Called all the same, a callback of libvirt works on memory that its free function has released.',
    advice => 'nothing to do in the loop: the module knows what was removed',
}, sub {
    my ($t) = @_;
    my $with = token_helpers($t);
    my ($handle, $timer) = @$with{qw(handle timer)};
    $t->remove_handle($handle->{id});
    $t->remove_timeout($timer->{id});
    for my $when ('at once', 'later') {
        for my $kind ('handle', 'timer') {
            my ($cb, $opaque) = @{ $with->{$kind}{tokens} };
            is exception_of { $with->{$kind}{run}->($cb, $opaque) }, undef, "$when, a $kind: no exception";
        }
        $t->passes(3);
    }
    is_deeply [$t->dispatched], [], 'nothing has run';
}, needs => ['object'];

case 107 => 'early_free', token => {
    rule   => 'a watch is freed once, after it was removed, however often and early the loop says so',
    source => 'L<Sys::Virt::Event/METHODS A LOOP CALLS>',
    harm   => "A free function drops libvirt's reference to a socket or a connection. Called early or twice it"
        . ' releases what is still in use, and the program crashes some time later.',
    advice => 'nothing to do in the loop: _free_callback_opaque is a mere acknowledgement',
}, sub {
    my ($t) = @_;
    my $with = token_helpers($t);
    my ($handle, $timer) = @$with{qw(handle timer)};
    my $free = sub { $with->{free}->(@{ $_->{tokens} }[2, 1]) for $handle, $timer };
    is exception_of { $free->() }, undef, 'still registered: no exception';
    $t->passes(3);
    is $t->count('ff'), 0, '... and nothing is freed';
    is $t->remove_handle($handle->{id}), 0;
    is $t->remove_timeout($timer->{id}), 0;
    for my $n (1, 2) {
        is exception_of { $free->() }, undef, "removed, time $n: no exception";
        $t->passes(3);
    }
    my @freed = map { $_->{id} } $t->entries('ff');
    is_deeply [sort @freed], [sort $handle->{id}, $timer->{id}], '... and each is freed once';
}, needs => ['object'];

case 108 => 'own_id_and_fd', token => {
    rule   => 'a callback gets the id and fd that libvirt knows, whatever the loop says',
    source => 'L<Sys::Virt::Event/METHODS A LOOP CALLS>',
    harm   => 'A loop has keys of its own, and may watch a duplicate of the fd. A callback that is given those'
        . ' reads from the wrong file, or removes the watch of another.',
    advice => 'nothing to do in the loop: $cb and $opaque decide',
}, sub {
    my ($t) = @_;
    my $tokens = keep_tokens($t);
    my ($reader, $writer) = ready_pipe();
    my $handle = $t->add_handle($reader, 0);
    my $timer  = $t->add_timeout(-1);
    $t->impl->_run_handle_callback(-7, fileno $writer, READABLE, @{ $tokens->[0] }[0, 1]);
    $t->impl->_run_timeout_callback(12_345, @{ $tokens->[1] }[0, 1]);
    my ($first, $second) = $t->log;
    is_deeply [@$first{qw(what id fd events)}], ['handle', $handle, fileno $reader, READABLE], 'a handle';
    is_deeply [@$second{qw(what id)}], ['timer', $timer], 'a timer';
}, needs => ['object'];

case 109 => 'no_mask', token => {
    rule   => 'events that are no combination of the four constants are an exception',
    source => 'C<libvirt/libvirt-event.h>, virEventHandleType; L<Sys::Virt::Event/METHODS A LOOP CALLS>',
    harm   => 'The bits of poll(2) are others: POLLHUP is 16, which means nothing to libvirt. A loop that hands'
        . ' them on as they are never tells a hang-up, so a dead connection looks alive and spins.',
    advice => 'translate what your event library reports into the HANDLE_* constants',
}, sub {
    my ($t) = @_;
    my $with = token_helpers($t);
    my @tokens = @{ $with->{handle}{tokens} }[0, 1];
    for my $events (16, 32, -1, undef, 'x') {
        my $error = exception_of { $t->impl->_run_handle_callback(1, 0, $events, @tokens) };
        ok defined $error, 'events ' . ($events // 'undef');
    }
    is_deeply [$t->story], [], 'nothing has run';
}, needs => ['object'];

case 110 => 'code_is_copied', token => {
    rule   => 'a callback is copied: what becomes of the variable does not matter',
    source => 'L<Sys::Virt::Event/add_handle($fd_or_handle, $events, $code)>',
    harm   => 'A program that adds several watches uses one variable for their code. If that itself is kept, all of'
        . ' them call the last one, or die because the variable is undef by then.',
    advice => 'nothing to do in the loop: the module copies the code',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my ($handles, $timers) = (0, 0);
    my $code = sub { $handles++ };
    $t->impl;
    Sys::Virt::Event::add_handle(fileno $reader, READABLE, $code);
    $code = sub { $timers++ };
    Sys::Virt::Event::add_timeout(0, $code);
    undef $code;
    $code = 'no code';
    $t->until(sub { $handles > 2 && $timers > 2 });
    cmp_ok $handles, '>', 2, 'handle';
    cmp_ok $timers, '>', 2, 'timer';
};

case 111 => 'arguments', token => {
    rule   => 'a Perl callback gets id, fd and events, or the id',
    source => 'C<libvirt/libvirt-event.h>, virEventHandleCallback and virEventTimeoutCallback',
    harm   => 'A callback that serves several handles reads from the fd that it is given, and removes the id.',
    advice => 'call _run_handle_callback with all the events that are ready',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my (@handle, @timer);
    my $handle = $t->watch($reader, READABLE, sub { @handle = @_ });
    my $timer  = $t->timer(0, sub { @timer = @_ });
    $t->until(sub { @handle && @timer });
    is_deeply \@handle, [$handle, fileno $reader, READABLE], 'a handle';
    is_deeply \@timer, [$timer], 'a timer';
};

# An object that looks false and empty.
package Test::Sys::Virt::EventImpl::False;

use overload bool => sub { 0 }, '""' => sub { '' };

1;
