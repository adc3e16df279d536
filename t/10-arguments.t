# Bad input: the exception names the culprit, comes from the caller's line, and nothing has changed. And what is
# taken although it looks unusual.
use 5.016;
use strict;
use warnings;

use lib 't/lib';
use IO::File;
use IO::Handle;
use Scalar::Util qw(blessed refaddr weaken);
use Symbol qw(gensym);
use Test::More;

use Sys::Virt::Event qw(:all);
use Sys::Virt::Event::Poll;
use VirtTest;
use Test::Sys::Virt::EventImpl::CApi;
use VirtTest::Child;
use VirtTest::Loop;

watchdog(60);

{
    package My::Tied;
    sub TIEHANDLE { return bless {}, shift }
    sub FILENO    { return 0 }

    package My::Callable;
    use overload '&{}' => sub { $_[0]{code} }, fallback => 1;
    sub new { my ($class, $code) = @_; return bless { code => $code }, $class }

    package My::Word;
    use overload '0+' => sub { 'a word' }, fallback => 1;

    package My::Uncallable;
    use overload '""' => sub { 'text' }, fallback => 1;

    package My::Number;
    use overload '0+' => sub { $_[0][0] }, fallback => 1;

    package My::Negative;
    use overload '0+' => sub { -5 }, '""' => sub { 'negative' }, fallback => 1;

    package My::Class;
    sub new { return bless {}, shift }
}

my $loop;
my $code = sub { };

# All that a failed call could have changed, in words.
sub state_now {
    my $registered = registered();
    return join "\n",
        'registered: ' . (ref $registered ? refaddr($registered) : $registered // 'none'),
        'mirrored: ' . (ref $Sys::Virt::Event::eventimpl ? refaddr($Sys::Virt::Event::eventimpl) : 'none'),
        'idle: ' . (is_idle() ? 1 : 0),
        map { my $watch = $_; join ' ', map { $watch->{$_} // '' } qw(kind id fd events ms dispatched) } watches();
}

# The call must be on the line of `refused`; perl takes the last line of a statement for its caller's.
sub refused(&$$$) {
    my ($call, $verb, $culprit, $name) = @_;
    my (undef, $file, $last) = caller;
    my $line = join '|', $last - 3 .. $last;
    local $Test::Builder::Level = $Test::Builder::Level + 1;

    my $before = state_now();
    $loop->calls if $loop;
    my @warnings;
    my $error = do {
        local $SIG{__WARN__} = sub { push @warnings, @_ };
        exception_of { $call->() };
    };
    my @calls = $loop ? $loop->calls : ();
    like($error, qr/\ACannot \Q$verb\E: [^\n]*$culprit[^\n]* at \Q$file\E line (?:$line)\.\n\z/, $name);
    is(state_now(), $before, '... and nothing has changed');
    is("@warnings", '', '... nor was there a warning');
    is_deeply(\@calls, [], '... nor was the loop asked for anything') if $loop;
}

# As refused, in a child of its own, where $setup has run.
sub refused_after {
    my ($setup, $call, $verb, $culprit, $name) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;

    my ($error, $before, $after, @warnings) = in_child {
        my @warnings;
        local $SIG{__WARN__} = sub { push @warnings, @_ };
        $setup->();
        my $before = state_now();
        my $error = exception_of { $call->() };
        return ("$error", $before, state_now(), @warnings);
    };
    like($error, qr/\ACannot \Q$verb\E: [^\n]*$culprit[^\n]* at \Q$0\E line [0-9]+\.\n\z/, $name);
    is($after, $before, '... and nothing has changed');
    is("@warnings", '', '... nor was there a warning');
}

# Before anything is registered.

refused { add_handle(0, 1, $code) } 'add handle', 'no event loop is registered', 'add_handle before any registration';
refused { add_timeout(5, $code) } 'add timeout', 'no event loop is registered', 'add_timeout before any registration';
refused { update_handle(1, 1) } 'update handle', 'no event loop is registered', 'update_handle before any registration';
refused { update_timeout(1, 1) }
    'update timeout', 'no event loop is registered', 'update_timeout before any registration';
refused { remove_handle(1) } 'remove handle', 'no event loop is registered', 'remove_handle before any registration';
refused { remove_timeout(1) } 'remove timeout', 'no event loop is registered', 'remove_timeout before any registration';
refused { drain(1) } 'drain', 'no event loop is registered', 'drain before any registration';
refused { run_default() } 'run default', 'no event loop is registered', 'run_default before any registration';
is(registered(), undef, 'all that registered nothing');

# What cannot be registered.

refused { register(undef) } 'register', 'undef is not an object of a subclass of', 'register of undef';
refused { register('My::Loop') } 'register', 'My::Loop is not an object', 'register of a class name';
refused { register(42) } 'register', '42 is not an object', 'register of a number';
refused { register({}) } 'register', 'HASH\S* is not an object', 'register of a plain reference';
refused { register(sub { }) } 'register', 'CODE\S* is not an object', 'register of code';
refused { register(My::Class->new) }
    'register', 'My::Class is not an object of a subclass of Sys::Virt::Event',
        'register of an object of another class';
refused { register(bless [], 'My::Uncallable') }
    'register', 'My::Uncallable is not', 'register of an object of another class that is overloaded';

my @six = map { my $kind = $_; map { "${_}_$kind" } qw(add update remove) } qw(handle timeout);

# A class of its own, with those methods.
sub class_with {
    my ($parent, @methods) = @_;
    state $count = 0;
    my $class = 'My::Loop' . ++$count;
    no strict 'refs';
    @{"${class}::ISA"} = ref $parent ? @$parent : $parent;
    *{"${class}::$_"} = sub { 1 } for @methods;
    return $class;
}

for my $lacking (@six) {
    my $class  = class_with('Sys::Virt::Event', grep { $_ ne $lacking } @six);
    my $object = bless {}, $class;
    refused { register($object) }
        'register', "$class must provide $lacking(?= at )", "register of an object without $lacking";
    refused { $object->register } 'register', "$class must provide $lacking(?= at )", '... as a method';
}
{
    my $class = class_with('Sys::Virt::EventImpl', 'add_handle', 'remove_timeout');
    my $object = bless [], $class;
    refused { register($object) }
        'register', "$class must provide update_handle, remove_handle, add_timeout, update_timeout(?= at )",
            'all methods that it lacks are named';
}
{
    package My::Importer;
    our @ISA = ('Sys::Virt::Event');
    Sys::Virt::Event->import(qw(add_handle remove_timeout));
    no strict 'refs';
    *{"My::Importer::$_"} = sub { 1 } for grep { !/add_handle|remove_timeout/ } @six;
}
refused { register(bless {}, 'My::Importer') }
    'register', 'My::Importer must provide add_handle, remove_timeout(?= at )',
        'imported functions of these names are no methods';
{
    my $class = class_with('My::Importer', 'add_handle');
    my $object = bless {}, $class;
    refused { register($object) }
        'register', "$class must provide remove_timeout(?= at )", '... nor are those that a parent imported';
}
{
    my $class = class_with('Sys::Virt::Event', grep { $_ ne 'add_timeout' } @six);
    { no strict 'refs'; eval "sub ${class}::add_timeout; 1" or die $@ }
    my $object = bless {}, $class;
    refused { register($object) }
        'register', "$class must provide add_timeout(?= at )", 'a method that is declared but not defined';
}
refused { register(VirtTest::Loop->new, 'wake') } 'register', 'pairs', 'an option without a value';
refused { register(VirtTest::Loop->new, wakeup => 1) } 'register', 'no option wakeup', 'an unknown option';
refused { register(VirtTest::Loop->new, wake => 1, '' => 1) } 'register', 'no option', 'an option without a name';
is(registered(), undef, 'none of these is registered');

# An abstract method called on an object whose class lacks it finds the function of that name.

{
    my $class = class_with('Sys::Virt::Event');
    my $object = bless {}, $class;
    for my $method (@six) {
        my @right = map {
            my @args = (1) x $_;
            my $error = exception_of { $object->$method(@args) };
            my $expected = "$class must provide $method at $0 line @{[ __LINE__ - 1 ]}.\n";
            ($error // 'none') eq $expected ? () : "with $_: " . ($error // 'none');
        } 0 .. 6;
        is("@right", '', "$method of an object without it, with any number of arguments");
    }
}
like(exception_of { add_handle(1) }, qr/\AUsage: Sys::Virt::Event::add_handle\(fd, events, code\) at \Q$0\E line /,
    'a wrong number of arguments otherwise is a usage message');

# Kinds of registrations that exclude each other.

refused_after(
    sub { VirtTest::Loop->new->register },
    sub { register_default() }, 'register default', 'an object is registered', 'register_default after register');
refused_after(
    sub { register_default() },
    sub { VirtTest::Loop->new->register }, 'register', 'register_default was called',
        'register after register_default');
refused_after(
    sub { VirtTest::Loop->new->register },
    sub { run_default() }, 'run default', 'register_default was not called', 'run_default after register');
refused_after(
    sub { VirtTest::Loop->new->register; $Sys::Virt::Event::eventimpl = 'nonsense'; },
    sub { Sys::Virt::Event::_register_impl() }, 'register impl', 'nonsense is not an object',
        '_register_impl of what is no object');
refused_after(
    sub { undef $Sys::Virt::Event::eventimpl },
    sub { Sys::Virt::Event::_register_impl() }, 'register impl', 'undef is not an object', '_register_impl of undef');
for my $bad (-1, 'x', 'inf', 'nan', [], '') {
    my $shown = ref $bad ? 'reference to ARRAY' : $bad eq '' ? '""' : $bad =~ /inf|nan/ ? "(?i)$bad" : $bad;
    refused_after(
        sub { register_default() },
        sub { run_default($bad) }, 'run default', "number of seconds .*$shown", "run_default of $shown");
}
is_deeply([in_child {
    register_default();
    eval { run_default(-1) };
    run_default($_) for 0, '0.001';
    return (registered(), is_idle() ? 1 : 0);
}],
    ['default', 1], '... and run_default still runs');

# Other code in the process was first.

for my $first (qw(register_impl_first register_default_first)) {
    no strict 'refs';
    my $register_first = \&{"Test::Sys::Virt::EventImpl::CApi::$first"};
    my $text = 'other code in this process has registered an event loop';
    refused_after($register_first, sub { VirtTest::Loop->new->register }, 'register', $text, "register after $first");
    refused_after($register_first, sub { register_default() }, 'register default', $text,
        "register_default after $first");
    refused_after(
        sub { $register_first->(); eval { VirtTest::Loop->new->register }; eval { register_default() } },
        sub { add_timeout(1, $code) }, 'add timeout', 'no event loop is registered',
            '... and neither is registered then');
}

# drain asks for a loop that can be run.

refused_after(
    sub { VirtTest::Loop->new->register; add_timeout(-1, $code) },
    sub { drain(1) }, 'drain', 'VirtTest::Loop has neither run_for nor run_once',
        'drain of a loop that has neither run_for nor run_once');
refused_after(
    sub { Sys::Virt::Event::Poll->new->register; add_timeout(-1, $code) },
    sub { drain($$_[0]) }, 'drain', "number of seconds $$_[1]", "drain: number of seconds $$_[1]")
    for [-1 => '-1 is negative'], [x => '"x" is not a number'],
        [9**9**9 => '(?i:inf)\w* is not a finite number'];

# From here on one loop is registered, with a handle, a timer, and ids that are gone.

my ($reader, $writer) = pipe_pair();
$loop = register(VirtTest::Loop->new);
my %count = (handle => 0, timeout => 0);
my $handle_id = add_handle($reader, HANDLE_READABLE, sub { $count{handle}++ });
my $handle    = $loop->latest;
my $timer_id  = add_timeout(1000, sub { $count{timeout}++ });
my $timer     = $loop->latest;
my ($gone_handle_id, $gone_handle) = (add_handle($reader, 0, sub { $count{gone}++ }), $loop->latest);
my ($gone_timer_id, $gone_timer) = (add_timeout(-1, sub { $count{gone}++ }), $loop->latest);
remove_handle($gone_handle_id);
remove_timeout($gone_timer_id);

sub dispatch_works {
    my ($name) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my %before = %count;
    $loop->dispatch($handle, 1);
    $loop->dispatch($timer);
    is("$count{handle} $count{timeout}", join(' ', map { $_ + 1 } @before{qw(handle timeout)}),
        "$name: a dispatch works as before");
}
dispatch_works('at first');

# A second loop, while the first has something.

refused { register(VirtTest::Loop->new) }
    'register', 'VirtTest::Loop, still has 1 handle, 1 timeout(?= at )', 'another object while the first has watches';
{
    my $error;
    my $id = add_timeout(5, sub { $error = exception_of { register(VirtTest::Loop->new) } });
    $loop->dispatch($loop->latest);
    like($error, qr/\ACannot register: a callback of the registered event loop, VirtTest::Loop, is running at \Q$0\E /,
        'another object while a callback runs');
    remove_timeout($id);
    is(refaddr(registered()), refaddr($loop), '... and the first is still registered');
}
dispatch_works('after register of another object');

# File descriptors and handles.

{
    open my $closed, '<', '/dev/null' or die $!;
    close $closed;
    open my $in_memory, '<', \'text' or die $!;
    tie *My::TIED, 'My::Tied';
    opendir my $directory, '.' or die $!;

    refused { add_handle(-1, 1, $code) } 'add handle', 'file descriptor -1', 'fd -1';
    refused { add_handle('-1', 1, $code) } 'add handle', 'file descriptor -1', 'fd "-1"';
    refused { add_handle($closed, 1, $code) } 'add handle', 'handle \*main::\$closed is closed', 'a closed handle';
    refused { add_handle(IO::Handle->new, 1, $code) }
        'add handle', 'IO::Handle is closed', 'a handle that was never open';
    refused { add_handle(*{ gensym() }, 1, $code) }
        'add handle', '\*Symbol::GEN[0-9]+ is closed', 'a glob that was never open';
    refused { add_handle($in_memory, 1, $code) }
        'add handle', 'handle \*main::\$in_memory has no file descriptor', 'an in-memory handle';
    refused { add_handle(\*My::TIED, 1, $code) } 'add handle', 'is tied', 'a tied handle';
    refused { add_handle(*My::TIED, 1, $code) } 'add handle', '\*My::TIED is tied', 'a tied glob';
    refused { add_handle($directory, 1, $code) } 'add handle', "is a directory's", 'a directory handle';
    refused { add_handle('stdin', 1, $code) } 'add handle', 'file descriptor "stdin" is not a number', 'a string';
    refused { add_handle('', 1, $code) } 'add handle', 'file descriptor "" is not a number', 'an empty string';
    refused { add_handle('0x1', 1, $code) } 'add handle', '"0x1" is not a number', 'a number in hexadecimal';
    refused { add_handle(undef, 1, $code) } 'add handle', 'file descriptor undef is not a number', 'fd undef';
    refused { add_handle([], 1, $code) } 'add handle', 'a reference to ARRAY is not a number', 'a plain reference';
    refused { add_handle(\0, 1, $code) }
        'add handle', 'a reference to SCALAR is not a number', 'a reference to a number';
    refused { add_handle(My::Class->new, 1, $code) }
        'add handle', 'an object of class My::Class is not a number', 'an object';
    refused { add_handle(bless([], 'My::Uncallable'), 1, $code) }
        'add handle', 'an object of class My::Uncallable is not a number', 'an object that is a text';
    refused { add_handle(bless([], 'My::Word'), 1, $code) }
        'add handle', 'an object of class My::Word is not a number', 'an object whose number is a text';
    refused { add_handle(2**40,   1, $code) } 'add handle', 'file descriptor 1099511627776 is out of range', 'fd 2**40';
    refused { add_handle(9**9**9, 1, $code) } 'add handle', 'not a finite number', 'fd infinite';
    untie *My::TIED;
}

# Event masks.

for my $bad (
    [16           => 'event mask 16 is'], [-1 => 'event mask -1 is'], [x => 'event mask "x" is not a number'],
    [''           => 'event mask "" is not a number'],
    [2**40        => 'event mask 1099511627776 is out of range'],
    [2**32 + 1    => 'event mask 4294967297 is out of range'], [[] => 'event mask a reference to ARRAY is'],
    [9**9**9      => 'event mask (?i:inf) is not a finite number'],
    [-sin 9**9**9 => 'event mask (?i:-?nan) is not a finite number'])
{
    my ($mask, $culprit) = @$bad;
    refused { add_handle($reader, $mask, $code) } 'add handle', $culprit, "add_handle: $culprit";
    refused { update_handle($handle_id, $mask) } 'update handle', $culprit, "update_handle: $culprit";
    refused { $loop->_run_handle_callback(1, 0, $mask, @$handle{qw(cb opaque)}) }
        'run handle callback', $culprit, "_run_handle_callback: $culprit";
}
{
    no warnings 'uninitialized';
    refused { add_handle($reader, undef, $code) }
        'add handle', 'event mask undef is not a number', 'add_handle: event mask undef';
}

# Callbacks.

for my $bad (
    [undef,  'undef'],               ['main::state_now', '"main::state_now"'], ['', '""'], [5, '5'],
    [{},     'a reference to HASH'], [[$code],     'a reference to ARRAY'],
    [\$code, 'a reference to REF'],  [\*state_now, '*main::state_now'], [qr/x/, 'an object of class Regexp'],
    [My::Class->new,              'an object of class My::Class'],
    [bless([], 'My::Uncallable'), 'an object of class My::Uncallable'])
{
    my ($bad_code, $shown) = @$bad;
    my $culprit = "callback \Q$shown\E is not a code reference";
    refused { add_handle($reader, 1, $bad_code) } 'add handle', $culprit, "add_handle: callback $shown";
    refused { add_timeout(5, $bad_code) } 'add timeout', $culprit, "add_timeout: callback $shown";
    refused { protect($bad_code) } 'protect', $culprit, "protect: callback $shown";
}
dispatch_works('after bad fds, masks and callbacks');

# Ids.

for my $bad ([0 => 0], [-1 => -1], [9999 => 9999]) {
    my ($id, $shown) = @$bad;
    refused { remove_handle($id) }
        'remove handle', "no handle with id $shown is registered", "remove_handle of id $shown";
    refused { remove_timeout($id) }
        'remove timeout', "no timeout with id $shown is registered", "remove_timeout of id $shown";
    refused { update_handle($id, 1) } 'update handle', "no id $shown was ever given out", "update_handle of id $shown";
    refused { update_timeout($id, 1) }
        'update timeout', "no id $shown was ever given out", "update_timeout of id $shown";
}
for my $bad (
    [2**40           => 'id 1099511627776 is out of range'],  [2**32 + $handle_id => 'id 429496\d+ is out of range'],
    [-2**40          => 'id -1099511627776 is out of range'], [abc                => 'id "abc" is not a number'],
    [''              => 'id "" is not a number'],             [undef              => 'id "undef" is not a number'],
    ["${handle_id}x" => 'id "\d+x" is not a number'],         [[] => 'id a reference to ARRAY is not a number'],
    [9**9**9         => 'id (?i:inf)\w* is not a finite number'])
{
    my ($id, $culprit) = @$bad;
    refused { remove_handle($id) } 'remove handle', $culprit, "remove_handle: $culprit";
    refused { remove_timeout($id) } 'remove timeout', $culprit, "remove_timeout: $culprit";
    refused { update_handle($id, 1) } 'update handle', $culprit, "update_handle: $culprit";
    refused { update_timeout($id, 1) } 'update timeout', $culprit, "update_timeout: $culprit";
}
refused { remove_handle(undef) } 'remove handle', 'id undef is not a number', 'remove_handle of undef';
refused { remove_handle($gone_handle_id) }
    'remove handle', "no handle with id $gone_handle_id is registered", 'remove_handle of one already removed';
refused { remove_timeout($gone_timer_id) }
    'remove timeout', "no timeout with id $gone_timer_id is registered", 'remove_timeout of one already removed';
refused { remove_handle($timer_id) }
    'remove handle', "no handle with id $timer_id is registered", q{remove_handle of a timer's id};
refused { remove_timeout($handle_id) }
    'remove timeout', "no timeout with id $handle_id is registered", q{remove_timeout of a handle's id};
{
    my $before = state_now();
    $loop->calls;
    my @warnings = warnings_of {
        update_handle($gone_handle_id, 1);
        update_timeout($gone_timer_id, 1);
        update_handle($gone_timer_id, 1);
        update_timeout($gone_handle_id, 1);
        update_handle($timer_id, 0);
        update_timeout($handle_id, 0);
    };
    is("@warnings", '', 'update of an id once given out is quiet');
    is_deeply([$loop->calls], [], '... and does not reach the loop');
    is(state_now(), $before, '... and changes nothing');
}
dispatch_works('after bad ids');

# Intervals.

for my $bad (
    [x            => 'interval "x" is not a number'], ['' => 'interval "" is not a number'],
    ['5 ms'       => 'interval "5 ms" is not a number'],
    [9**9**9      => 'interval (?i:inf)\w* is not a finite number'],
    [-9**9**9     => 'interval (?i:-inf)\w* is not a finite number'],
    ['inf'        => 'interval (?i:inf) is not a finite number'],
    [-sin 9**9**9 => 'interval (?i:-?nan) is not a finite number'],
    ['nan'        => 'interval (?i:nan) is not a finite number'],
    [2**31        => 'interval 2147483648 is out of range'], [-2**31 - 1 => 'interval -2147483649 is out of range'],
    [1e30         => 'interval 1e\+?30 is out of range'],
    [{}           => 'interval a reference to HASH is not a number'],
    [$code        => 'interval a reference to CODE is not a number'])
{
    my ($ms, $culprit) = @$bad;
    refused { add_timeout($ms, $code) } 'add timeout', $culprit, "add_timeout: $culprit";
    refused { update_timeout($timer_id, $ms) } 'update timeout', $culprit, "update_timeout: $culprit";
}
refused { add_timeout(undef, $code) } 'add timeout', 'interval undef is not a number', 'add_timeout: interval undef';
dispatch_works('after bad intervals');

# Tokens. Also under the names that Sys::Virt's shared object leaves behind.

{
    my $object = bless \(my $address = 1), 'Sys::Virt::Event::Token';
    for my $bad (
        [undef, 'undef'],                   [1, 'an integer'], [-1, 'a negative integer'], ['x', 'a string'],
        [\'x',  'a reference to a string'], [\1,             'a reference to an integer'],
        [$code, 'code'],                    [My::Class->new, 'another object'],
        [$object,                                  'an object blessed into the class of tokens'],
        [ref $handle->{cb} ? "$handle->{cb}" : '', 'a token as text'],
        [${ $handle->{cb} }, 'what a token refers to'], [\$handle->{cb}, 'a reference to a token'])
    {
        my ($token, $name) = @$bad;
        my $what = 'is not what add_handle or add_timeout was given';
        my $good = $handle->{opaque};
        refused { $loop->_run_handle_callback(1, 0, 1, $token, $token) }
            'run handle callback', "\\\$cb $what", "$name in _run_handle_callback";
        refused { $loop->_run_handle_callback(1, 0, 1, $token, $good) }
            'run handle callback', "\\\$cb $what", '... as $cb';
        refused { $loop->_run_handle_callback(1, 0, 1, $good, $token) }
            'run handle callback', "\\\$opaque $what", '... as $opaque';
        refused { $loop->_run_timeout_callback(1, $token, $token) }
            'run timeout callback', "\\\$cb $what", '... in _run_timeout_callback';
        refused { $loop->_run_timeout_callback(1, $timer->{cb}, $token) }
            'run timeout callback', "\\\$opaque $what", '... there as $opaque';
        refused { $loop->_free_callback_opaque($token, $token) }
            'free callback opaque', "\\\$ff $what", '... in _free_callback_opaque';
        refused { $loop->_free_callback_opaque($good, $token) }
            'free callback opaque', "\\\$opaque $what", '... there as $opaque';
        refused { Sys::Virt::Event::_run_handle_callback_helper(1, 0, 1, $token, $token) }
            'run handle callback', "\\\$cb $what", '... in _run_handle_callback_helper';
        refused { Sys::Virt::Event::_run_timeout_callback_helper(1, $token, $token) }
            'run timeout callback', "\\\$cb $what", '... in _run_timeout_callback_helper';
        refused { Sys::Virt::Event::_free_callback_opaque_helper($token, $token) }
            'free callback opaque', "\\\$ff $what", '... in _free_callback_opaque_helper';
    }
    is_deeply([map { [$_->{id}, $_->{dispatched}] } watches()],
        [[$handle_id, $count{handle}], [$timer_id, $count{timeout}]],
        'none of these has dispatched anything');

    my ($handle_token, $timer_token) = ($handle->{cb}, $timer->{cb});
    refused { $loop->_run_handle_callback(1, 0, 1, $timer_token, $timer->{opaque}) }
        'run handle callback', '\$cb belongs to a timeout', q{a timer's token in the handle helper};
    refused { $loop->_run_timeout_callback(1, $handle_token, $handle->{opaque}) }
        'run timeout callback', '\$cb belongs to a handle', q{a handle's token in the timer helper};
    refused { $loop->_run_handle_callback(1, 0, 1, $handle_token, $timer->{opaque}) }
        'run handle callback', '\$cb and \$opaque belong to different watches', '$cb and $opaque of different watches';
    refused { $loop->_run_timeout_callback(1, $timer_token, $handle->{opaque}) }
        'run timeout callback', '\$cb and \$opaque belong to different watches', '... in the timer helper';
    refused { $loop->_free_callback_opaque($handle->{ff}, $timer->{opaque}) }
        'free callback opaque', '\$ff and \$opaque belong to different watches', '... in the free helper';
    refused { $loop->_run_handle_callback(1, 0, 1, $handle_token, $gone_handle->{opaque}) }
        'run handle callback', 'different watches', '... one of them removed';
    refused { Sys::Virt::Event::_run_handle_callback_helper(1, 0, 1, $timer_token, $timer->{opaque}) }
        'run handle callback', '\$cb belongs to a timeout', '... under the private name';
    like(exception_of { bless $handle_token, 'My::Class' }, qr/read-only/, 'a token cannot be blessed anew');
    like(exception_of { $$handle_token = 7 }, qr/read-only/, '... nor changed');
}
{
    my $before = state_now();
    my @warnings = warnings_of {
        for my $gone ($gone_handle, $gone_timer) {
            $loop->dispatch($gone) for 1 .. 2;
            $loop->_free_callback_opaque(@$gone{qw(ff opaque)}) for 1 .. 3;
        }
        Sys::Virt::Event::_run_handle_callback_helper(1, 0, 1, @$gone_handle{qw(cb opaque)});
        Sys::Virt::Event::_run_timeout_callback_helper(1, @$gone_timer{qw(cb opaque)});
        Sys::Virt::Event::_free_callback_opaque_helper(@$gone_timer{qw(ff opaque)});
        # Too early: the watch is still there.
        $loop->_free_callback_opaque(@$handle{qw(ff opaque)}) for 1 .. 3;
    };
    is("@warnings", '', 'the tokens of a removed watch do nothing, quietly');
    is(state_now(), $before, '... and change nothing');
    is($count{gone}, undef, '... and the removed callbacks have not run');
}
dispatch_works('after bad tokens');
{
    my @seen;
    my $id = add_handle($reader, 1, sub { push @seen, "@_" });
    my $watch = $loop->latest;
    $loop->_run_handle_callback(undef, undef, 9, @$watch{qw(cb opaque)});
    $loop->_run_handle_callback('rubbish', [], '1', @$watch{qw(opaque ff)});
    Sys::Virt::Event::_run_handle_callback_helper(77, 78, 2, @$watch{qw(cb opaque)});
    my $fd = fileno $reader;
    is_deeply(\@seen, ["$id $fd 9", "$id $fd 1", "$id $fd 2"],
        '$watch and $fd given to the helper are for the eye only');
    remove_handle($id);
}

like(exception_of { $loop->_run_handle_callback(1, 0, 1) },
    qr/\AUsage: Sys::Virt::Event::_run_handle_callback\(.*\) at \Q$0\E line /,
    'a wrong number of arguments for a helper is a usage message');

# Methods that fail. The exception of a public add is that of the method; code that is not taken is let go of.

{
    my $object = bless {}, 'My::Exception';
    for my $kind (qw(handle timeout)) {
        my $add = $kind eq 'handle' ? sub { add_handle($reader, 1, $_[0]) } : sub { add_timeout(5, $_[0]) };
        my $prefix = "Cannot add $kind: VirtTest::Loop::add_$kind";
        for my $case (
            [sub { return },          "$prefix returned undef at $0 line ", 'returns nothing'],
            [sub { return undef },    "$prefix returned undef at $0 line ", 'returns undef'],
            [sub { return -5 },       "$prefix returned -5 at $0 line ",    'returns -5'],
            [sub { return '-1' },     "$prefix returned -1 at $0 line ",    'returns "-1"'],
            [sub { return -0.5 },     "$prefix returned -0.5 at $0 line ",  'returns -0.5'],
            [sub { die "no room\n" }, "no room\n",                          'dies'],
            [sub { die $object },     $object,                              'dies with an object'],
        ) {
            my ($answer, $expected, $name) = @$case;
            my $before = state_now();
            my $taken = sub { $before };
            weaken(my $weak = $taken);
            $loop->on("add_$kind" => $answer);
            my $error;
            my @warnings = warnings_of { $error = exception_of { $add->($taken) } };
            $loop->on("add_$kind" => undef);
            undef $taken;
            if (ref $expected) { is(refaddr($error), refaddr($expected), "add_$kind that $name") }
            else               { like($error, qr/\A\Q$expected\E/, "add_$kind that $name") }
            is("@warnings", '', '... is no warning besides');
            is(state_now(), $before, '... and has changed nothing');
            is($weak, undef, '... and the code is released');
        }
    }
}

# libvirt gets -1 and is silent, so there is a warning.
for my $kind (qw(handle timeout)) {
    my $add = $kind eq 'handle' ? sub { Test::Sys::Virt::EventImpl::CApi::add_handle($reader, 1) }
        : sub { Test::Sys::Virt::EventImpl::CApi::add_timeout(5) };
    my $prefix = "Cannot add $kind: VirtTest::Loop::add_$kind";
    for my $case (
        [sub { return },          "$prefix returned undef at", 'returns nothing'],
        [sub { return undef },    "$prefix returned undef at", 'returns undef'],
        [sub { return -5 },       "$prefix returned -5 at",    'returns -5'],
        [sub { die "no room\n" }, "$prefix died: no room\n",   'dies'],
    ) {
        my ($answer, $expected, $name) = @$case;
        my $before = state_now();
        Test::Sys::Virt::EventImpl::CApi::events();
        $loop->on("add_$kind" => $answer);
        my $id;
        my @warnings = warnings_of { $id = $add->() };
        $loop->on("add_$kind" => undef);
        is($id, -1, "libvirt's add_$kind is refused by a method that $name");
        is(scalar @warnings, 1, '... with one warning');
        like($warnings[0], qr/\A\Q$expected\E/, '... that names class, method and reason');
        is(state_now(), $before, '... and nothing has changed');
        is_deeply([Test::Sys::Virt::EventImpl::CApi::events()], [], '... and the free function is not called');
    }
}

# Anything else is a key, handed back verbatim.
{
    my $object = My::Class->new;
    my @references = ($object, bless([], 'My::Negative'), [1], sub { }, \'x');
    for my $key (0, '', 'key', '0 but true', '-abc', 1.5, 2**40, @references) {
        my $name = ref $key ? 'a reference to ' . (blessed $key // ref $key) : "'$key'";
        for my $kind (qw(handle timeout)) {
            $loop->on("add_$kind" => sub { return $key });
            $loop->calls;
            my @seen;
            $loop->on($_ => sub { push @seen, $_[1]; return 0 }) for "update_$kind", "remove_$kind";
            my $id = $kind eq 'handle' ? add_handle($reader, 1, $code) : add_timeout(5, $code);
            if ($kind eq 'handle') { update_handle($id, 3); remove_handle($id) }
            else                   { update_timeout($id, 3); remove_timeout($id) }
            $loop->on($_ => undef) for "add_$kind", "update_$kind", "remove_$kind";
            ok(@seen == 2 && !(grep { ref $key ? !ref || refaddr($_) != refaddr($key) : ref || $_ ne $key } @seen),
                "$name is a key of a $kind, handed back verbatim");
        }
    }
    @references = ();
    weaken(my $weak = $object);
    my $id = do { $loop->on(add_timeout => sub { return $object }); add_timeout(5, $code) };
    $loop->on(add_timeout => undef);
    undef $object;
    ok($weak, 'the key is kept while the watch is registered');
    remove_timeout($id);
    $loop->calls;
    is($weak, undef, '... and released when remove has returned');
}

# A remove cannot fail.
for my $kind (qw(handle timeout)) {
    my $prefix = "Cannot remove $kind: VirtTest::Loop::remove_$kind";
    my $remove = $kind eq 'handle' ? \&remove_handle : \&remove_timeout;
    my $remove_by_c = $kind eq 'handle' ? \&Test::Sys::Virt::EventImpl::CApi::remove_handle
        : \&Test::Sys::Virt::EventImpl::CApi::remove_timeout;
    for my $case (
        [sub { die "not now\n" },   "$prefix died: not now\n",    'dies'],
        [sub { return -1 },         "$prefix returned -1 at $0 ", 'returns -1'],
        [sub { return },            undef,                        'returns nothing'],
        [sub { return undef },      undef,                        'returns undef'],
        [sub { return 5 },          undef,                        'returns 5'],
        [sub { return 'nonsense' }, undef,                        'returns a string'],
        [sub { return [] },         undef,                        'returns a reference'],
    ) {
        my ($answer, $expected, $name) = @$case;
        my $before = state_now();
        my $taken = sub { $before };
        weaken(my $weak = $taken);
        my $id = $kind eq 'handle' ? add_handle($reader, 1, $taken) : add_timeout(5, $taken);
        undef $taken;
        $loop->on("remove_$kind" => $answer);
        my $error;
        my @warnings = warnings_of { $error = exception_of { $remove->($id) } };
        is($error, undef, "remove_$kind that $name is no exception");
        is($weak, undef, '... and the callback is released');
        if (defined $expected) { like("@warnings", qr/\A\Q$expected\E/, '... but a warning') }
        else                   { is("@warnings", '', '... and no warning') }
        is(state_now(), $before, '... and the watch is removed all the same');

        $id = $kind eq 'handle' ? Test::Sys::Virt::EventImpl::CApi::add_handle($reader, 1)
            : Test::Sys::Virt::EventImpl::CApi::add_timeout(5);
        Test::Sys::Virt::EventImpl::CApi::events();
        my $result;
        @warnings = warnings_of { $result = $remove_by_c->($id) };
        $loop->on("remove_$kind" => undef);
        is($result, 0, '... and libvirt is told that it is removed');
        is(scalar @warnings, defined $expected ? 1 : 0, '... with as many warnings');
        is(join(' ', map { "$_->{what} $_->{added_as}" } Test::Sys::Virt::EventImpl::CApi::events()), "ff $id",
            '... and its free function runs once');
    }
}
is(Test::Sys::Virt::EventImpl::CApi::remove_handle($_), -1, "libvirt gets -1 for handle $_, which we do not know")
    for 0, -1, 9999, $gone_handle_id, $timer_id;
is(Test::Sys::Virt::EventImpl::CApi::remove_timeout($_), -1, "libvirt gets -1 for timeout $_, which we do not know")
    for 0, -1, 9999, $gone_timer_id, $handle_id;
is(join('', warnings_of {
    Test::Sys::Virt::EventImpl::CApi::update_handle($_, 1);
    Test::Sys::Virt::EventImpl::CApi::update_timeout($_, 1);
}), '',
    "libvirt's update of $_ is quiet")
    for 0, -1, 9999, $gone_handle_id, $gone_timer_id;
dispatch_works('after methods that failed');

# What is taken.

sub taken_as {
    my ($fd_or_handle) = @_;
    my $id = add_handle($fd_or_handle, 0, $code);
    my ($watch) = grep { $_->{id} == $id } watches();
    remove_handle($id);
    return $watch->{fd};
}
{
    my ($socket) = socket_pair();
    open my $dup, '<&', $reader or die $!;
    my $file = IO::File->new('/dev/null', 'r');
    is(taken_as($reader), fileno $reader, 'a lexical handle');
    is(taken_as(\*STDIN), 0, 'a reference to a glob');
    is(taken_as(*STDERR), 2, 'a glob');
    is(taken_as(*STDIN{IO}), 0, 'an IO');
    is(taken_as($file), fileno $file, 'an object of IO::Handle');
    is(taken_as($socket), fileno $socket, 'a socket');
    is(taken_as(fileno $dup), fileno $dup, 'a number');
    is(taken_as('' . fileno $dup), fileno $dup, 'a numeric string');
    is(taken_as(bless [fileno $dup], 'My::Number'), fileno $dup,    'an object that is a number');
    is(taken_as(' 0 '), 0, 'a numeric string with blanks');

    my $fd = fileno $file;
    my $id = add_handle($file, 1, $code);
    undef $file;
    ok(!-e "/proc/self/fd/$fd", 'no reference to a Perl handle is kept');
    remove_handle($id);
}

sub ms_of {
    my ($ms) = @_;
    my $id = add_timeout($ms, $code);
    my ($watch) = grep { $_->{id} == $id } watches();
    update_timeout($id, -7);
    update_timeout($id, $ms);
    my ($updated) = grep { $_->{id} == $id } watches();
    remove_timeout($id);
    return "$watch->{ms} $updated->{ms}";
}
is(ms_of($$_[0]), "$$_[1] $$_[1]", "an interval of '$$_[0]' is $$_[1] ms")
    for [0, 0], [1.9, 1], [0.9, 0], [-0.5, 0], [-1.9, -1], ['1e3', 1000], ['250', 250], ['2.5', 2],
        [-100, -100],
    [2**31 - 1, 2147483647], [2**31 - 0.5, 2147483647], [-2**31, -2147483648];

{
    my $id = add_handle($reader, '3', $code);
    is((watches())[-1]{events}, 3, 'a mask that is a numeric string');
    update_handle("$id", 1.9);
    is((watches())[-1]{events}, 1, 'a mask that is a fraction, an id that is a string');
    update_handle($id, 15);
    is((watches())[-1]{events}, 15, 'all bits of a mask');
    remove_handle("$id");
}
{
    my @seen;
    my $callable = My::Callable->new(sub { push @seen, "@_" });
    my $id = add_timeout(5, $callable);
    $loop->dispatch($loop->latest);
    my $variable = sub { push @seen, 'variable' };
    my $other = add_timeout(5, $variable);
    undef $variable;
    $loop->dispatch($loop->latest);
    my $named = add_timeout(5, \&push_named);
    sub push_named { push @seen, 'named' }
    $loop->dispatch($loop->latest);
    is("@seen", "$id variable named", 'callbacks: a callable object, a variable that is cleared later, a named sub');
    remove_timeout($_) for $id, $other, $named;
}

is_deeply([map { $_->{id} } watches()], [$handle_id, $timer_id], 'in the end there is what there was at first');
dispatch_works('in the end');
remove_handle($handle_id);
remove_timeout($timer_id);
ok(is_idle(), 'and it can be removed');
done_testing;
