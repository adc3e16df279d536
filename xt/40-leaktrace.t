# No call of a function leaves an SV behind, whatever it is given and however it ends: each XSUB, and each method of
# Sys::Virt::Event::Poll.
use 5.016;
use strict;
use warnings;

use lib 't/lib';
use B ();
use Config;
use POSIX ();
use Test::LeakTrace qw(leaked_count leaked_info);
use Test::More;

use Sys::Virt::Event qw(:all);
use Sys::Virt::Event::Poll;
use VirtTest;
use Test::Sys::Virt::EventImpl::CApi;
use VirtTest::Child;
use VirtTest::Loop;

BEGIN { *CApi:: = *Test::Sys::Virt::EventImpl::CApi:: }

watchdog(180);

use constant { WARM_UP => 3, RUNS => 5 };

my @SIX = map { my $kind = $_; map { "${_}_$kind" } qw(add update remove) } qw(handle timeout);
my @KINDS = qw(handle timeout);
my $code = sub { };

{
    package My::Abstract;      our @ISA = 'Sys::Virt::Event';
    package My::AbstractImpl;  our @ISA = 'Sys::Virt::EventImpl';

    package My::Tied;
    sub TIEHANDLE { return bless {}, shift }
    sub TIESCALAR { return bless { value => $_[1] }, $_[0] }
    sub FETCH     { return $_[0]{value} }

    package My::Number;        use overload '0+' => sub { $_[0][0]->() }, fallback => 1;
    package My::Callable;      use overload '&{}' => sub { $_[0]{code} }, fallback => 1;

    package My::Clobber;
    sub DESTROY { $_ = {} }

    # Runs code when it is freed.
    package My::Finally;
    sub new     { my ($class, $code) = @_; return bless { code => $code }, $class }
    sub DESTROY { $_[0]{code}->() }

    # Loops that can be run.
    package My::Runner;        our @ISA = 'VirtTest::Loop';
    package My::RunFor;        our @ISA = 'My::Runner';
    sub run_for  { $_[0]{run}->(@_) }
    package My::RunOnce;       our @ISA = 'My::Runner';
    sub run_once { $_[0]{run}->(@_) }
}

# What a perl sub or XSUB is called, and where it was compiled, for all that are below a package.
sub subs_below {
    my ($package) = @_;
    no strict 'refs';
    return map {
        my $name = "$package$_";
        my $cv = !/::\z/ && defined &$name && B::svref_2object(\&$name);
        /::\z/ ? subs_below($name) : $cv ? [$cv->GV->STASH->NAME . '::' . $cv->GV->NAME, $cv->FILE, $cv->XSUB] : ();
    } keys %$package;
}

sub unique { my %seen; return sort grep { !$seen{$_}++ } @_ }

my @xsubs = unique(map { $_->[0] } grep { $_->[2] && $_->[1] eq 'Event.c' } subs_below('Sys::Virt::'));
# Those that Poll inherits from the base of the adapters, too.
my @methods = unique(map { full_name($_) } grep { !/\A(?:import|can|isa)\z/ } map { $_->[0] =~ /::([a-z]\w*)\z/ }
    grep { !$_->[2] && $_->[1] =~ m{/(?:Poll|Loop)\.pm\z} } map { subs_below("Sys::Virt::Event::${_}::") } qw(Poll Loop));

sub full_name {
    my ($name) = @_;
    my $gv = B::svref_2object(Sys::Virt::Event::Poll->can($name))->GV;
    return $gv->STASH->NAME . '::' . $gv->NAME;
}

# The results of one process: [function, what was tried, how it should end, how it ended, what leaked].
my @results;

# The registered loop, where it is one that records calls.
my $loop;

sub outcome {
    my ($run) = @_;
    my $error = exception_of { $run->() };
    if ($loop) {
        $loop->calls;
        delete $loop->{latest};
    }
    CApi::events();
    return defined $error ? "$error" : 'done';
}

# Runs $code with the function as its argument; $ending is how its exception starts, or "done".
sub leakless {
    my ($function, $what, $ending, $code) = @_;
    my $name = $function =~ /::/ ? $function : "Sys::Virt::Event::$function";
    my $call = \&$name;
    my $run = sub { $code->($call) };
    local $SIG{__WARN__} = sub { };
    my $outcome = '';
    $outcome = outcome($run) for 1 .. WARM_UP;
    my $leaked = leaked_count { $outcome = outcome($run) for 1 .. RUNS };
    # To look where is slow.
    state $looked = 0;
    my @where = $leaked && $looked++ < 20 ? map { sprintf '%s at %s line %s', @$_ } leaked_info { outcome($run) } : ();
    push @results, [$name, $what, $ending, $outcome, $leaked ? "$leaked in @{[RUNS]} calls: @where" : ''];
    return;
}

sub works { my ($function, $what, $code) = @_; return leakless($function, $what, 'done', $code) }

# "Cannot add handle: <reason>", for these arguments.
sub refuses {
    my ($function, $reason, @args) = @_;
    my $verb = $function =~ s/\A_//r =~ s/_helper\z//r =~ tr/_/ /r;
    return leakless($function, "refused, $reason", "Cannot $verb: $reason", sub { $_[0]->(@args) });
}

# What cannot be an argument: the value, and how the message names it.
my @NO_INTEGERS = (
    [undef, 'undef is not a number'], ['x', '"x" is not a number'], ['', '"" is not a number'],
    [[], 'a reference to ARRAY is not a number'], [*STDIN, '*main::STDIN is not a number'],
    [bless({}, 'My::Class'), 'an object of class My::Class is not a number'],
    ['nan', 'nan is not a finite number'], [1e300, '1e+300 is out of range'], [2**31, '2147483648 is out of range'],
);
my @NO_CODE = (
    [undef, 'undef'], ['main', '"main"'], [7, '7'], [[], 'a reference to ARRAY'],
    [bless([], 'My::Class'), 'an object of class My::Class'],
);
sub no_integers { my ($noun) = @_; return map { [$_->[0], "$noun $_->[1]"] } @NO_INTEGERS }
sub no_code { return map { [$_->[0], "callback $_->[1] is not a code reference"] } @NO_CODE }

# A value that dies when it is asked for its number.
sub deadly { return bless [sub { die "deadly\n" }], 'My::Number' }

# Before anything is registered.

sub without_a_loop {
    my $none = 'no event loop is registered';
    refuses(add_handle => $none, 0, 1, $code);
    refuses(add_timeout => $none, 5, $code);
    for my $kind (@KINDS) {
        refuses("update_$kind", $none, 1, 1);
        refuses("remove_$kind", $none, 1);
    }
    refuses(drain => $none, 1);
    refuses(run_default => $none);
    refuses($_ => $none) for qw(adopt forget);
    works(registered => 'nothing', sub { my $registered = $_[0]->() });
    works(watches => 'nothing', sub { my @watches = $_[0]->() });
    works(is_idle => 'nothing', sub { my $idle = $_[0]->() });
    for my $bad (undef, 'My::Loop', 42, [], $code, bless [], 'My::Class') {
        my $reason = (ref $bad || ($bad // 'undef')) =~ s/\A(?:ARRAY|CODE)\z//r;
        refuses(register => $reason, $bad);
        leakless(_register_impl => 'what is no loop', "Cannot register impl: $reason", sub {
            my ($call) = @_;
            local $Sys::Virt::Event::eventimpl = $bad;
            $call->();
        });
    }
    for my $class (qw(My::Abstract My::AbstractImpl)) {
        my $object = bless {}, $class;
        refuses(register => "$class must provide add_handle, update_handle", $object);
        my $package = $class =~ /Impl/ ? 'Sys::Virt::EventImpl::' : '';
        for my $method (@SIX) {
            for my $count (0 .. 5) {
                leakless("$package$method", "a method that the class lacks, $count arguments",
                    "$class must provide $method", sub { $_[0]->($object, (1) x $count) });
            }
        }
    }
    leakless('Sys::Virt::EventImpl::add_handle', 'a class method', 'My::Class must provide add_handle',
        sub { $_[0]->('My::Class') });
    return;
}

sub after_others {
    my $reason = 'other code in this process has registered';
    CApi::register_impl_first();
    refuses(register => $reason, VirtTest::Loop->new);
    refuses(register_default => $reason);
    return;
}

# With an object registered.

sub wrong_numbers_of_arguments {
    for my $xsub (grep { !/CLONE|EventImpl|::register\z/ } @xsubs) {
        leakless($xsub, 'too many arguments', "Usage: $xsub", sub { $_[0]->((undef) x 12) });
    }
    for my $xsub (grep { /EventImpl|::(?:add|update|remove)_|protect|_run_|_free|_is|_warn|register\z/ } @xsubs) {
        leakless($xsub, 'no arguments', "Usage: $xsub", sub { $_[0]->() });
    }
    return;
}

sub registrations {
    works(register => 'once more', sub { $_[0]->($loop) });
    works(_register_impl => 'once more', sub { $_[0]->() });
    works(registered => 'an object', sub { my $registered = $_[0]->() });
    works(register => 'another, and back', sub { $_[0]->(VirtTest::Loop->new, wake => 1); $_[0]->($loop) });
    refuses(register => 'the options are not pairs', $loop, 'wake');
    refuses(register => 'there is no option wait', VirtTest::Loop->new, wait => 1);
    refuses(register_default => 'an object is registered');
    refuses(run_default => 'register_default was not called');
    refuses(run_default => "number of seconds $$_[1]", $$_[0]) for [-1, '-1 is negative'], ['x', '"x" is not a number'];
    my $other = VirtTest::Loop->new;
    for my $kind (@KINDS) {
        watched($kind, $code, sub { refuses(register => 'the registered event loop, VirtTest::Loop, still', $other) });
    }
    leakless(register => 'from inside a callback', 'Cannot register: a callback of the registered event loop', sub {
        my ($call) = @_;
        watched(timeout => sub { $call->($other) }, sub { $loop->dispatch($_[0]) });
    });
    return;
}

sub add_to_loop { my ($kind, $code) = @_; return $kind eq 'handle' ? add_handle(0, 1, $code) : add_timeout(5, $code) }
sub remove_from_loop { my ($kind, $id) = @_; return $kind eq 'handle' ? remove_handle($id) : remove_timeout($id) }

# Calls $body with the loop's record of a new watch, and the id; the watch is gone afterwards.
sub watched {
    my ($kind, $callback, $body) = @_;
    my $id = add_to_loop($kind, $callback);
    my $watch = $loop->latest;
    my $error = exception_of { $body->($watch, $id) };
    remove_from_loop($kind, $id) if grep { $_->{id} == $id } watches();
    die $error if defined $error;
    return;
}

# Runs $body while a method of the loop does something else.
sub with_method {
    my ($method, $does, $body) = @_;
    $loop->on($method => $does);
    my $error = exception_of { $body->() };
    $loop->on($method => undef);
    die $error if defined $error;
    return;
}

my %DEATHS = (
    'a string'                      => ['dying', sub { die "dying\n" }],
    'an object'                     => ['My::Class=', sub { die bless {}, 'My::Class' }],
    'an object whose freeing dies'  => ['My::Finally=', sub { die My::Finally->new(sub { die "freed\n" }) }],
);

sub adds {
    my ($kind) = @_;
    my $add = "add_$kind";
    my @first = $kind eq 'handle' ? (0, 1) : (5);
    works($add => 'a watch that is removed', sub { remove_from_loop($kind, $_[0]->(@first, sub { })) });
    works($add => 'a callable object', sub {
        remove_from_loop($kind, $_[0]->(@first, bless { code => $code }, 'My::Callable'));
    });
    works($add => 'code whose freeing dies', sub {
        my $held = My::Finally->new(sub { die "freed\n" });
        remove_from_loop($kind, $_[0]->(@first, sub { $held }));
    });
    refuses($add => $_->[1], @first, $_->[0]) for no_code();
    for my $death (sort keys %DEATHS) {
        my ($error, $dies) = @{ $DEATHS{$death} };
        leakless($add, "the method dies with $death", $error, sub {
            my ($call) = @_;
            with_method($add => $dies, sub { $call->(@first, $code) });
        });
    }
    my %refusals = (
        undef => sub { undef }, nothing => sub { return }, -5 => sub { -5 },
        'a tied -1' => sub { tie my $tied, 'My::Tied', -1; return $tied },
    );
    for my $returned (sort keys %refusals) {
        leakless($add, "the method returns $returned", "Cannot add $kind: VirtTest::Loop::add_$kind returned", sub {
            my ($call) = @_;
            with_method($add => $refusals{$returned}, sub { $call->(@first, $code) });
        });
    }
    works($add => 'an object as key', sub {
        my ($call) = @_;
        with_method($add => sub { return {} }, sub { remove_from_loop($kind, $call->(@first, $code)) });
    });
    leakless($add, 'an exception on the way', "inside\n", sub {
        my ($call) = @_;
        local $SIG{__DIE__} = sub { die "inside\n" };
        with_method($add => sub { die "outside\n" }, sub { $call->(@first, $code) });
    });
    return;
}

sub arguments {
    open my $closed, '<', '/dev/null' or die "Cannot open: $!";
    my $io = *$closed{IO};
    close $closed;
    open my $in_memory, '<', \'text' or die "Cannot open: $!";
    opendir my $directory, '.' or die "Cannot open: $!";
    tie *TIED, 'My::Tied';
    refuses(add_handle => 'file descriptor -1 is negative', -1, 1, $code);
    refuses(add_handle => 'handle *main::$closed is closed', $closed, 1, $code);
    refuses(add_handle => 'handle *main::$in_memory has no file', $in_memory, 1, $code);
    refuses(add_handle => "handle *main::\$directory is a directory's", $directory, 1, $code);
    refuses(add_handle => 'handle *main::TIED is tied', \*TIED, 1, $code);
    refuses(add_handle => 'handle an object of class IO::File is closed', $io, 1, $code);
    my @handles = (*STDIN, \*STDIN, *STDIN{IO});
    works(add_handle => 'handles', sub { my ($call) = @_; remove_handle($call->($_, 1, $code)) for @handles });
    works(add_handle => 'tied arguments', sub {
        tie my $fd, 'My::Tied', 0;
        tie my $events, 'My::Tied', 1;
        tie my $tied, 'My::Tied', $code;
        remove_handle($_[0]->($fd, $events, $tied));
    });
    refuses(add_handle => $_->[1], $_->[0], 1, $code)
        for grep { $_->[1] !~ /STDIN/ } no_integers('file descriptor');
    refuses(add_timeout => $_->[1], $_->[0], $code) for no_integers('interval');
    my $no_mask = sub { [$_[0], "event mask $_[0] is no combination"] };
    for my $bad (no_integers('event mask'), $no_mask->(16), $no_mask->(-1)) {
        refuses(add_handle => $bad->[1], 0, $bad->[0], $code);
        refuses(update_handle => $bad->[1], 1, $bad->[0]);
    }
    for my $bad (no_integers('id')) {
        for my $kind (@KINDS) {
            refuses("update_$kind", $bad->[1], $bad->[0], 1);
            refuses("remove_$kind", $bad->[1], $bad->[0]);
        }
    }
    refuses(update_timeout => $_->[1], 1, $_->[0]) for no_integers('interval');
    my $deadly = deadly();
    leakless(add_handle => 'a number that dies', 'deadly', sub { $_[0]->(0, $deadly, $code) });
    leakless(add_timeout => 'a number that dies', 'deadly', sub { $_[0]->($deadly, $code) });
    leakless(drain => 'a number that dies', 'deadly', sub { $_[0]->($deadly) });
    leakless("remove_$_", 'a number that dies', 'deadly', sub { $_[0]->($deadly) }) for @KINDS;
    leakless("update_$_", 'a number that dies', 'deadly', sub { $_[0]->($deadly, 1) }) for @KINDS;
    return;
}

sub updates_and_removals {
    my ($kind) = @_;
    my ($update, $remove) = ("update_$kind", "remove_$kind");
    refuses($update => 'no id 0 was ever given out', 0, 1);
    refuses($update => 'no id 2147483647 was ever given out', 2147483647, 1);
    refuses($remove => "no $kind with id $_ is registered", $_) for 0, 1, -1;
    works($update => 'a watch', sub { my ($call) = @_; watched($kind, $code, sub { $call->($_[1], 2) }) });
    my ($other) = grep { $_ ne $kind } @KINDS;
    works($update => 'what is of the other kind', sub {
        my ($call) = @_;
        watched($other, $code, sub { $call->($_[1], 2) });
    });
    works($update => 'what was removed', sub { $_[0]->(1, 2) });
    for my $death (sort keys %DEATHS) {
        my ($error, $dies) = @{ $DEATHS{$death} };
        leakless($update, "the method dies with $death", $error, sub {
            my ($call) = @_;
            watched($kind, $code, sub { my $id = $_[1]; with_method($update => $dies, sub { $call->($id, 2) }) });
        });
        works($remove => "the method dies with $death", sub {
            my ($call) = @_;
            my $id = add_to_loop($kind, $code);
            with_method($remove => $dies, sub { $call->($id) });
        });
    }
    works($remove => 'the method returns -1', sub {
        my ($call) = @_;
        my $id = add_to_loop($kind, $code);
        with_method($remove => sub { -1 }, sub { $call->($id) });
    });
    leakless($remove => 'a warning that dies', 'Cannot remove', sub {
        my ($call) = @_;
        my $id = add_to_loop($kind, $code);
        local $SIG{__WARN__} = sub { die @_ };
        with_method($remove => sub { -1 }, sub { $call->($id) });
    });
    works($remove => 'the code makes calls when it is freed', sub {
        my ($call) = @_;
        my $held = My::Finally->new(sub { watched($kind, sub { }, sub { }) });
        my $id = add_to_loop($kind, sub { $held });
        undef $held;
        $call->($id);
    });
    return;
}

# Calls a helper, of either name, with the arguments of its kind.
sub helper {
    my ($call, $function, $watch, %instead) = @_;
    my %is = (%$watch, events => 1, %instead);
    my @args = $watch->{kind} eq 'handle' ? @is{qw(key fd events cb opaque)} : @is{qw(key cb opaque)};
    unshift @args, $loop if $function !~ /_helper\z/;
    return $call->(@args);
}

my @NO_TOKENS = (undef, 42, 'text', {}, $code, bless \(my $forged = 1), 'Sys::Virt::Event::Token');

sub helpers {
    my ($kind, $function) = @_;
    my ($other) = grep { $_ ne $kind } @KINDS;
    my $cannot = "Cannot run $kind callback: ";
    my $dispatched = sub {
        my ($what, $ending, $callback, @instead) = @_;
        leakless($function, $what, $ending, sub {
            my ($call) = @_;
            watched($kind, $callback, sub { helper($call, $function, $_[0], @instead) });
        });
    };
    $dispatched->('the callback returns', 'done', sub { my @arguments = @_; return @arguments });
    $dispatched->("the callback dies with $_", @{ $DEATHS{$_} }) for sort keys %DEATHS;
    $dispatched->('the callback removes its watch', 'done', sub { remove_from_loop($kind, $_[0]) });
    $dispatched->('the callback removes its watch and dies', 'dying', sub {
        remove_from_loop($kind, $_[0]);
        die "dying\n";
    });
    $dispatched->('the callback leaves by last', 'Can\'t "last" outside', sub { no warnings; last });
    $dispatched->('the callback sets $_ and $@', 'done', sub { $_ = {}; $@ = [] });
    $dispatched->('the callback sets $_ to what sets it once more when it is freed', 'done', sub {
        $_ = bless [], 'My::Clobber';
    });
    $dispatched->('the callback keeps its arguments', 'done', sub { my @kept = \(@_) });
    $dispatched->('a signal handler of exceptions that dies', 'instead', sub {
        local $SIG{__DIE__} = sub { die "instead\n" };
        die "dying\n";
    });
    $dispatched->('two exceptions', 'in the method', sub {
        my $id = CApi::add_timeout(5);
        with_method(update_timeout => sub { die "in the method\n" }, sub { CApi::update_timeout($id, 6) });
        CApi::remove_timeout($id);
        die "in the callback\n";
    });
    $dispatched->('a token that is undef', "$cannot\$cb", $code, cb => undef);
    for my $bad (@NO_TOKENS) {
        my $shown = ref $bad || ($bad // 'undef');
        $dispatched->("\$cb is $shown", "$cannot\$cb is not what", $code, cb => $bad);
        $dispatched->("\$opaque is $shown", "$cannot\$opaque is not what", $code, opaque => $bad);
    }
    leakless($function, 'tokens of two watches', "$cannot\$cb and \$opaque belong to different watches", sub {
        my ($call) = @_;
        watched($kind, $code, sub {
            my ($one) = @_;
            watched($kind, $code, sub { helper($call, $function, $one, opaque => $_[0]{opaque}) });
        });
    });
    leakless($function, 'tokens of the other kind', "$cannot\$cb belongs to a $other", sub {
        my ($call) = @_;
        watched($other, $code, sub { helper($call, $function, { %{ $_[0] }, fd => 0, kind => $kind }) });
    });
    works($function, 'a tied token', sub {
        my ($call) = @_;
        watched($kind, $code, sub {
            tie my $token, 'My::Tied', $_[0]{cb};
            $call->((undef) x ($function =~ /_helper\z/ ? 0 : 1), $kind eq 'handle' ? (0, 0, 1) : 0, $token, $token);
        });
    });
    works($function, 'tokens of a watch that is gone', sub {
        my ($call) = @_;
        my $watch;
        watched($kind, $code, sub { ($watch) = @_ });
        helper($call, $function, $watch);
    });
    my $nested = sub {
        my ($call) = @_;
        my $watch;
        my $run = sub { helper($call, $function, $watch) };
        watched($kind, $run, sub { ($watch) = @_; $run->() });
    };
    works($function, 'while the callback runs', sub {
        my ($call) = @_;
        $nested->($call);
    });
    leakless($function, 'while the callback runs, and the warning dies', 'Cannot run callback: it is running', sub {
        my ($call) = @_;
        local $SIG{__WARN__} = sub { die @_ };
        $nested->($call);
    });
    if ($kind eq 'handle') {
        $dispatched->("events: $_->[1]", "$cannot$_->[1]", $code, events => $_->[0]) for no_integers('event mask');
        $dispatched->('events: 16', "${cannot}event mask 16 is no combination", $code, events => 16);
    }
    works($function, 'a callback of C that removes its watch', sub {
        my ($call) = @_;
        $kind eq 'handle' ? CApi::add_handle(0, 1, in_callback => [[remove_handle => 'self']])
            : CApi::add_timeout(5, in_callback => [[remove_timeout => 'self']]);
        helper($call, $function, $loop->latest);
    });
    return;
}

sub acknowledgements {
    for my $function (qw(_free_callback_opaque _free_callback_opaque_helper)) {
        my $free = sub { my ($call, @tokens) = @_; $call->($function =~ /_helper/ ? () : $loop, @tokens) };
        for my $kind (@KINDS) {
            works($function, "early, late and twice, a $kind", sub {
                my ($call) = @_;
                my @tokens;
                watched($kind, $code, sub { @tokens = @{ $_[0] }{qw(ff opaque)}; $free->($call, @tokens) });
                $free->($call, @tokens) for 1, 2;
            });
        }
        for my $bad (@NO_TOKENS) {
            for my $name (qw($ff $opaque)) {
                my $shown = ref $bad || ($bad // 'undef');
                leakless($function, "$name is $shown", "Cannot free callback opaque: $name is not what", sub {
                    my ($call) = @_;
                    watched(timeout => $code, sub {
                        my %is = ('$ff' => $_[0]{ff}, '$opaque' => $_[0]{opaque}, $name => $bad);
                        $free->($call, @is{qw($ff $opaque)});
                    });
                });
            }
        }
        leakless($function, 'of two watches', 'Cannot free callback opaque: $ff and $opaque belong', sub {
            my ($call) = @_;
            watched(handle => $code, sub {
                my ($one) = @_;
                watched(handle => $code, sub { $free->($call, $one->{ff}, $_[0]{opaque}) });
            });
        });
    }
    for my $kind (@KINDS) {
        works(_is_wake => "the token of a $kind", sub {
            my ($call) = @_;
            watched($kind, $code, sub { $call->($_[0]{opaque}) and die "no wake watch\n" });
        });
    }
    for my $bad (@NO_TOKENS) {
        works(_is_wake => ref $bad || ($bad // 'undef'), sub { $_[0]->($bad) and die "no wake watch\n" });
    }
    works(_is_wake => 'the token of the wake watch', sub {
        my ($call) = @_;
        my $other = VirtTest::Loop->new;
        register($other, wake => 1);
        my $is_wake = $call->($other->latest->{opaque});
        register($loop, wake => 0);
        $is_wake or die "not the wake watch\n";
    });
    return;
}

sub warnings_and_protection {
    for my $error (undef, "text\n", [], bless {}, 'My::Class') {
        my $shown = ref $error || ($error // 'undef') =~ s/\n//r;
        works(_warn => $shown, sub { my $prefix = 'Prefix: '; $_[0]->($prefix, $error) });
        leakless(_warn => "$shown, the handler dies", 'Prefix: ', sub {
            my ($call) = @_;
            local $SIG{__WARN__} = sub { die @_ };
            my $prefix = 'Prefix: ';
            $call->($prefix, $error);
        });
    }
    refuses(protect => $_->[1], $_->[0]) for no_code();
    refuses(_held => $_->[1], $_->[0]) for no_code();
    works(_held => 'not called', sub { $_[0]->($_, 1), $_[0]->($_) for sub { } });
    for my $in_c (0, 1) {
        works(_held => 'called', sub { my @results = $_[0]->(sub { @_ }, $in_c)->(1, [2]); 1 });
        works(_held => 'it dies', sub { eval { $_[0]->(sub { die [] }, $in_c)->(1) }; 1 });
    }
    works(protect => 'not called', sub { $_[0]->(sub { }) });
    works(protect => 'a callable object', sub { $_[0]->(bless { code => sub { 42 } }, 'My::Callable')->() });
    my %bodies = (
        (map { ("it dies with $_" => $DEATHS{$_}[1]) } keys %DEATHS),
        'it returns a list'  => sub { return ({}, 2, [3]) },
        'it returns nothing' => sub { return },
        'it returns its arguments' => sub { return @_ },
        'it leaves by next' => sub { no warnings; next },
    );
    for my $what (sort keys %bodies) {
        my $body = $bodies{$what};
        works(protect => "$what, in void context", sub { $_[0]->($body)->(1, [2]); 1 });
        works(protect => "$what, in scalar context", sub { my $result = $_[0]->($body)->(1, [2]) });
        works(protect => "$what, in list context", sub { my @results = $_[0]->($body)->(1, [2]) });
    }
    for my $death (sort keys %DEATHS) {
        my ($error, $dies) = @{ $DEATHS{$death} };
        leakless(protect => "in a callback, it dies with $death", $error, sub {
            my ($call) = @_;
            my $protected = $call->($dies);
            watched(timeout => sub { $protected->() }, sub { $loop->dispatch($_[0]) });
        });
    }
    return;
}

sub reports {
    for my $kind (@KINDS) {
        works(watches => "a $kind, in list context", sub {
            my ($call) = @_;
            watched($kind, $code, sub { $loop->dispatch($_[0]); my @watches = $call->() });
        });
        works(watches => "a $kind, in scalar context", sub {
            my ($call) = @_;
            watched($kind, $code, sub { my $count = $call->() });
        });
        works(is_idle => "a $kind", sub { my ($call) = @_; watched($kind, $code, sub { my $idle = $call->() }) });
    }
    refuses(drain => "number of seconds $$_[1]", $$_[0]) for [-1, '-1 is negative'], ['x', '"x" is not a number'];
    leakless(drain => 'a loop that cannot be run', 'Cannot drain: VirtTest::Loop has neither run_for nor', sub {
        my ($call) = @_;
        watched(timeout => $code, sub { $call->(1) });
    });
    leakless(drain => 'in a callback', 'Cannot drain: a callback is running', sub {
        my ($call) = @_;
        watched(timeout => sub { $call->(1) }, sub { $loop->dispatch($_[0]) });
    });
    for my $class (qw(My::RunFor My::RunOnce)) {
        my $drained = sub {
            my ($call, $run) = @_;
            my $before = $loop;
            register($loop = $class->new);
            $loop->{run} = $run;
            my $id = add_timeout(5, $code);
            my $error = exception_of { $call->(0.001) };
            remove_timeout($id) if grep { $_->{id} == $id } watches();
            register($loop = $before);
            die $error if defined $error;
        };
        works(drain => "$class, idle", sub { register(my $idle = $class->new); $_[0]->(); register($loop) });
        works(drain => "$class, until the time is over", sub { $drained->($_[0], sub { }) });
        works(drain => "$class, until it is idle", sub {
            $drained->($_[0], sub { remove_timeout($_->{id}) for watches() });
        });
        leakless(drain => "$class dies with $_", $DEATHS{$_}[0], do {
            my $dies = $DEATHS{$_}[1];
            sub { $drained->($_[0], $dies) };
        }) for sort keys %DEATHS;
    }
    return;
}

# Calls of another thread, which are carried out when the owner enters next.
sub foreign_calls {
    my $foreign = sub { return @{ CApi::run_blocked(@_)->{results} } };
    for my $kind (@KINDS) {
        my @add = $kind eq 'handle' ? (add_handle => 0, 1) : (add_timeout => 5);
        works(watches => "a $kind of another thread", sub {
            my ($call) = @_;
            my ($id) = $foreign->([@add], ["update_$kind", \0, 2]);
            my @watches = $call->();
            $foreign->(["remove_$kind", $id]);
            @watches = $call->();
        });
        works(is_idle => "a $kind of another thread, come and gone", sub {
            $foreign->([@add], ["remove_$kind", \0]);
            $_[0]->();
        });
        for my $death (sort keys %DEATHS) {
            my $dies = $DEATHS{$death}[1];
            works(watches => "a $kind of another thread, the method dies with $death", sub {
                my ($call) = @_;
                with_method("add_$kind" => $dies, sub {
                    my ($id) = $foreign->([@add]);
                    my @watches = $call->();
                    $foreign->(["remove_$kind", $id]);
                    @watches = $call->();
                });
            });
        }
    }
    return;
}

sub with_an_object {
    $loop = VirtTest::Loop->new;
    register($loop, wake => 0);
    wrong_numbers_of_arguments();
    registrations();
    arguments();
    for my $kind (@KINDS) {
        adds($kind);
        updates_and_removals($kind);
        helpers($kind, "_run_${kind}_callback$_") for '', '_helper';
    }
    acknowledgements();
    warnings_and_protection();
    reports();
    foreign_calls();
    return;
}

# Under libvirt's own loop.

sub with_the_default_loop {
    register_default();
    works(register_default => 'once more', sub { $_[0]->() });
    works(registered => 'the default loop', sub { my $registered = $_[0]->() });
    refuses(register => 'register_default was called', VirtTest::Loop->new);
    works(run_default => 'nothing to do', sub { $_[0]->(0) });
    refuses($_ => 'after register_default libvirt keeps its handles to itself') for qw(adopt forget);
    refuses(run_default => "number of seconds $$_[1]", $$_[0]) for [-1, '-1 is negative'], ['x', '"x" is not a number'];
    my $fired = sub {
        my ($call, @callbacks) = @_;
        my @ids = map { add_timeout(0, $_) } @callbacks;
        my $error = exception_of { $call->() };
        remove_timeout($_->{id}) for watches();
        Sys::Virt::Event::run_default(0) for 1 .. 5;    # libvirt frees in a later iteration
        die $error if defined $error;
    };
    works(run_default => 'a timer', sub { $fired->($_[0], sub { my @arguments = @_ }) });
    works(run_default => 'a timer that is removed', sub { $fired->($_[0], sub { remove_timeout($_[0]) }) });
    for my $death (sort keys %DEATHS) {
        my ($error, $dies) = @{ $DEATHS{$death} };
        leakless(run_default => "a timer dies with $death", $error, sub { $fired->($_[0], $dies) });
        leakless(run_default => "two timers die with $death", $error, sub { $fired->($_[0], $dies, $dies) });
        leakless(drain => "a timer dies with $death", $error, sub { $fired->($_[0], $dies) });
    }
    pipe my $reader, my $writer or die "Cannot make pipe: $!";
    syswrite $writer, 'x';
    works(add_handle => 'under the default loop', sub {
        my $called = 0;
        my $id = $_[0]->($reader, HANDLE_READABLE, sub { $called++ });
        update_handle($id, HANDLE_READABLE);
        run_default(1) until $called;
        remove_handle($id);
        run_default(0) for 1 .. 5;
    });
    return;
}

# The loop of this distribution.

sub with_poll {
    my $class = 'Sys::Virt::Event::Poll';
    my $poll = $class->new->register;
    my ($reader, $writer) = pipe_pair();
    syswrite $writer, 'x';
    my $readable = sub { add_handle($reader, HANDLE_READABLE, $_[0]) };
    my $due = sub { add_timeout(0, $_[0]) };
    my $method = sub { my ($name, @rest) = @_; return leakless(full_name($name), @rest) };

    $method->(new => 'a loop', 'done', sub { $_[0]->($class) });
    $method->(new => 'an option', "Cannot make $class: there is no option x", sub { $_[0]->($class, x => 1) });
    $method->(loop => 'itself', 'done', sub { $_[0]->($poll) });
    $method->(stop => 'nothing runs', 'done', sub { $_[0]->($poll) });
    for my $kind (@KINDS) {
        $method->("update_$kind" => 'no such key', 'done', sub { $_[0]->($poll, 99, 1) });
        $method->("remove_$kind" => 'no such key', 'done', sub { $_[0]->($poll, 99) });
        $method->("add_$kind" => 'no token', 'done', sub {
            my ($call) = @_;
            $call->($class->new, ($kind eq 'handle' ? 0 : ()), 1, undef, undef, undef);
        });
        $method->("update_$kind" => 'of a watch', 'done', sub {
            my $id = add_to_loop($kind, $code);
            $kind eq 'handle' ? update_handle($id, 2) : update_timeout($id, $_) for -1, 0, 7;
            remove_from_loop($kind, $id);
        });
    }

    my %runs = (
        run_once  => sub { my ($call, $seconds) = @_; $call->($poll, $seconds) },
        run       => sub { my ($call) = @_; $call->($poll) },
        run_for   => sub { my ($call, $seconds) = @_; $call->($poll, $seconds) },
        run_until => sub { my ($call, $seconds) = @_; my $passes = 0; $call->($poll, sub { $passes++ }, $seconds) },
    );
    for my $name (sort keys %runs) {
        my $run = $runs{$name};
        # What the callbacks leave is removed, so that each run begins with nothing.
        my $ran = sub {
            my ($call, @add) = @_;
            $_->() for @add;
            my $error = exception_of { $run->($call, @add ? 20 : 0) };
            remove_from_loop($_->{kind}, $_->{id}) for watches();
            die $error if defined $error;
        };
        my $stops = sub { $poll->stop };
        $method->($name => 'nothing to do', 'done', sub { $ran->($_[0]) });
        for my $add ($readable, $due) {
            my $kind = $add == $due ? 'timer' : 'handle';
            my $one = sub { my ($what, $ending, @callbacks) = @_; $method->($name => "$kind: $what", $ending, sub {
                $ran->($_[0], map { my $callback = $_; sub { $add->($callback) } } @callbacks);
            }) };
            $one->('a callback that stops', 'done', $stops);
            $one->('a callback that removes its watch', 'done', sub {
                remove_from_loop($_->{kind}, $_->{id}) for watches();
                $poll->stop;
            });
            $one->("a callback that dies with $_", @{ $DEATHS{$_} }) for sort keys %DEATHS;
            $one->('two callbacks that die', 'dying', (sub { die "dying\n" }) x 2);
            $one->('a callback that runs the loop', 'done', sub { $poll->run_once(0); $poll->stop });
        }
        $method->($name => 'no number', 'Cannot run: number of seconds soon is not', sub { $_[0]->($poll, 'soon') })
            if $name =~ /once|for/;
    }
    $method->(run_until => 'no number', 'Cannot run: number of seconds soon is not',
        sub { $_[0]->($poll, $code, 'soon') });
    $method->(run_until => 'a condition that dies', 'dying', sub { $_[0]->($poll, sub { die "dying\n" }) });
    $method->(run_until => 'until the time is over', 'done', sub { $_[0]->($poll, sub { 0 }, 0.001) });
    my $closed = POSIX::dup(0);
    POSIX::close($closed);
    $method->(run_once => 'a closed fd', 'done', sub {
        my $called = 0;
        my $id = add_handle($closed, HANDLE_READABLE, sub { $called++ });
        $_[0]->($poll, 0) for 1, 2;
        remove_handle($id);
        $called == 1 or die "called $called times\n";
    });
    return;
}

# A thread clones what there is, and finds it inert.
sub with_threads {
    require threads;
    $loop = VirtTest::Loop->new;
    register($loop, wake => 0);
    works(CLONE => 'an idle loop', sub { threads->create(sub { })->join });
    my %watch;
    for my $kind (@KINDS) {
        add_to_loop($kind, $code);
        $watch{$kind} = { %{ $loop->latest } };
    }
    works(CLONE => 'a loop with watches', sub { threads->create(sub { })->join });
    for my $kind (@KINDS) {
        my $inert = sub { helper(Sys::Virt::Event->can("_run_${kind}_callback"), 'method', $watch{$kind}) };
        works("_run_${kind}_callback" => 'in a thread', sub { threads->create($inert)->join });
    }
    # In the thread itself, which has its arenas to itself.
    push @results, @{ threads->create(sub {
        @results = ();
        $loop = undef;
        my $not_ours = 'the event loop belongs to another thread';
        refuses($_->[0] => $not_ours, @$_[1 .. $#$_]) for [add_handle => 0, 1, $code], [add_timeout => 5, $code],
            map({ ["update_$_" => 1, 1], ["remove_$_" => 1] } @KINDS), [drain => 1], ['run_default'],
            ['adopt'], ['forget'], ['register_default'], [register => VirtTest::Loop->new];
        leakless(watches => 'in a thread', "Cannot list watches: $not_ours", sub { $_[0]->() });
        leakless(is_idle => 'in a thread', "Cannot tell whether idle: $not_ours", sub { $_[0]->() });
        works(registered => 'in a thread', sub { my $none = $_[0]->() });
        works(protect => 'in a thread', sub { $_[0]->(sub { die })->() });
        for my $kind (@KINDS) {
            works("_run_${kind}_callback" => 'a token in a thread', sub { helper($_[0], 'method', $watch{$kind}) });
        }
        works(_is_wake => 'a token in a thread', sub { $_[0]->($watch{handle}{opaque}) });
        works(_free_callback_opaque => 'a token in a thread', sub { $_[0]->(undef, ($watch{handle}{opaque}) x 2) });
        return \@results;
    })->join };
    return;
}

# A child of the process that registered.

sub with_a_parent {
    my $dies = sub { die "method\n" };
    for my $function (qw(adopt forget)) {
        my @of_child = in_child {
            register($loop = VirtTest::Loop->new);
            my @sockets = socket_pair();
            CApi::add_handle($sockets[0], 1);
            CApi::add_timeout(5);
            works($function => 'in the parent', sub { $_[0]->() });
            in_child {
                $loop->on(update_handle => $dies) if $function eq 'adopt';
                leakless($function => 'in a child', 'done', sub { eval { $_[0]->() } });
                return @results;
            };
        };
        push @results, @of_child;
    }
    return;
}

# What Connection has in C. The sockets are CApi's: libvirt's own, as far as can be seen here.
sub with_calls_limited {
    my $loop = Sys::Virt::Event::Poll->new->register;
    works(_callbacks_running => 'none', sub { $_[0]->() and die "one runs\n" });
    works(_limit_calls => 'and called off', sub { $_[0]->(10, 1, 2); Sys::Virt::Event::_end_limit() and die "hung up\n" });
    works(_limit_calls => 'one inside the other', sub {
        $_[0]->(10, 1, 2);
        $_[0]->(10, 1, 2) and die "a second one\n";
        Sys::Virt::Event::_end_limit();
    });
    works(_end_limit => 'of none', sub { $_[0]->() });
    works(_end_limit => 'of one that is over', sub {
        my @sockets = socket_pair();
        my $id = CApi::add_handle($sockets[0], 1);
        Sys::Virt::Event::_limit_calls(0.001, $id, $id);
        sysread $sockets[1], my $text, 1 and die "not hung up\n";
        $_[0]->() or die "not over\n";
        CApi::remove_handle($id);
        $loop->run_once(0);
    });
    works(_hang_up => 'a range', sub {
        my @sockets = map { [socket_pair()] } 1 .. 3;
        my @ids = map { CApi::add_handle($_->[0], 1) } @sockets;
        $_[0]->($ids[1], $ids[1]);
        $sockets[$_][1]->blocking(0) for 0 .. 2;
        my @ends = map { sysread($_->[1], my $text, 1) // 'open' } @sockets;
        "@ends" eq 'open 0 open' or die "@ends\n";
        CApi::remove_handle($_) for @ids;
        $loop->run_once(0);
    });
    return;
}

# What the adapters have in C.
sub with_ev {
    works(_poll_fd => 'stdin', sub { $_[0]->(0, 3) });
    works(_poll_fd => 'no fd', sub { $_[0]->(-1, 3); $_[0]->(999, 3) });
    return if !defined &Sys::Virt::Event::_serve_by_ev;
    require Sys::Virt::Event::EV;
    my $ev = Sys::Virt::Event::EV->new->register;
    my $code = sub { };
    works(_serve_by_ev => 'not registered', sub { $_[0]->(Sys::Virt::Event::EV->new, $ev->loop, 1) });
    works(add_timeout => 'on EV', sub { remove_timeout(add_timeout(1, $code)) });
    works(_serve_by_ev => 'again', sub { $_[0]->($ev, $ev->loop, 1) });
    works(add_handle => 'on EV', sub { remove_handle(add_handle(0, HANDLE_WRITABLE, $code)) });
    my $timer = add_timeout(0, sub { die "oops\n" });
    no warnings 'once';
    local $EV::DIED = sub { };
    works(update_timeout => 'and called, on EV', sub { $_[0]->($timer, 0); EV::run(EV::RUN_ONCE()) });
    remove_timeout($timer);
    works(add_timeout => 'and freed in EV::run', sub {
        $_[0]->(0, sub { remove_timeout($_[0]) });
        EV::run(EV::RUN_ONCE());
    });
    my @loops = map { Sys::Virt::Event::EV->new } 1, 2;
    works(register => 'one loop of EV after another', sub {
        for my $loop (@loops) { $_[0]->($loop); remove_timeout(add_timeout(1, $code)) }
    });
    return;
}

sub with_glib {
    return if !defined &Sys::Virt::Event::_watch_by_glib;
    require Sys::Virt::Event::Glib;
    require Glib;
    my $context = Glib::MainContext->new;
    my $loop = Sys::Virt::Event::Glib->new(context => $context)->register;
    my ($reader, $writer) = pipe_pair();
    my $fd = fileno $writer;
    my $dies = sub { die "oops\n" };
    Glib->install_exception_handler(sub { 1 });
    for my $case ([_watch_by_glib => $fd, 0, 1], [_timer_by_glib => 0]) {
        my ($function, @args) = @$case;
        refuses($function => $_->[1], $context, @args, $_->[0]) for no_code();
        works($function => 'not called', sub { $_[0]->($context, @args, $code); 1 });
        works($function => 'called', sub { my $source = $_[0]->($context, @args, $code); $context->iteration(1) });
        works($function => 'it dies', sub { my $source = $_[0]->($context, @args, $dies); $context->iteration(1) });
        works($function => 'it ends itself', sub {
            my $source;
            $source = $_[0]->($context, @args, sub { undef $source });
            $context->iteration(1);
        });
    }
    works(add_timeout => 'in a context of Glib', sub {
        my $id = add_timeout(0, $code);
        $loop->run_for(0.002);
        remove_timeout($id);
    });
    return;
}

my %exercised;
my @processes = (\&without_a_loop, \&after_others, \&with_an_object, \&with_the_default_loop, \&with_poll, \&with_a_parent,
    \&with_ev, \&with_glib, \&with_calls_limited);
if ($Config{useithreads}) {
    push @processes, \&with_threads;
} else {
    @xsubs = grep { !/::CLONE\z/ } @xsubs;    # perl calls it with ithreads only
}
for my $process (@processes) {
    for (in_child { $process->(); @results }) {
        my ($function, $what, $ending, $outcome, $leaks) = @$_;
        $exercised{$function} = 1 if $ending !~ /\AUsage: /;    # those are tried with each
        like $outcome, qr/\A\Q$ending\E/, "$function, $what";
        is $leaks, '', '... and nothing leaks';
    }
}
is_deeply [sort keys %exercised], [sort @xsubs, @methods], 'each XSUB and each method of Poll was looked at';

done_testing;
