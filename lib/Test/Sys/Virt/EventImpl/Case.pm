package Test::Sys::Virt::EventImpl::Case;

# What the cases are written with. A case is given one object of this class:
#
#     case 30 => 'timer_removes_itself', timer => {
#         rule   => 'a timer that removes itself has fired once',        the rule, also the name of the test
#         source => 'tests/eventtest.c of libvirt',                      where it comes from
#         harm   => '...',                                               what goes wrong where it is broken
#         advice => '...',                                               what to do, in one line
#     }, sub {
#         my ($t) = @_;
#         my $id = $t->add_timeout(0, in_callback => [[remove_timeout => 'self']]);
#         $t->passes(5);
#         is $t->count(timer => $id), 1;
#     };
#
# Its add_handle, update_timeout and so on are libvirt's functions, called from C with C callbacks (see CApi.pm).
# watch and timer add Perl callbacks, by the public functions of Sys::Virt::Event.

use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

use Carp qw(croak);
use Exporter qw(import);
use POSIX ();
use Test::Sys::Virt::EventImpl::CApi ();
use Test::Sys::Virt::EventImpl::Util qw(:DEFAULT first_line);
use Time::HiRes ();

our @EXPORT = qw(
    suite case READABLE WRITABLE ERROR HANGUP METHODS
    put_byte get_byte ready_pipe callable run_default
);

use constant { READABLE => 1, WRITABLE => 2, ERROR => 4, HANGUP => 8 };

# What a loop provides.
use constant METHODS => map { ("${_}_handle", "${_}_timeout") } qw(add update remove);

# What a case may need, and why it is not there.
my %MISSING = (
    object   => sub { $_[0]{make} ? undef : "libvirt's own loop has no methods" },
    sys_virt => sub {
        eval { require Sys::Virt } ? undef : 'Sys::Virt is not installed (Debian: libsys-virt-perl)';
    },
    daemon   => sub {
        require Test::Sys::Virt::EventImpl::Daemon;
        return Test::Sys::Virt::EventImpl::Daemon->why_not;
    },
    emulator => sub {
        require Test::Sys::Virt::EventImpl::Emulator;
        return Test::Sys::Virt::EventImpl::Emulator->why_not;
    },
);

my (@suites, @cases);

# The suites in the order in which they are run. Options: needs (a list, for all its cases), fixture (code that returns
# an object that all its cases share).
sub suite {
    my ($name, $title, %opt) = @_;
    push @suites, { name => $name, title => $title, needs => [], %opt };
    return;
}

# Options: limit (seconds), needs (a list). Numbers are given once and for all.
sub case {
    my ($number, $name, $suite, $text, $code, %opt) = @_;
    my ($of) = grep { $_->{name} eq $suite } @suites or croak "There is no suite $suite";
    croak "There is a case $name already" if grep { $_->{name} eq $name } @cases;
    my @needs = (@{ $of->{needs} }, @{ delete $opt{needs} || [] });
    push @cases, {
        %$text, number => $number, name => $name, suite => $suite, title => $of->{title}, fixture => $of->{fixture},
        advice => ucfirst $text->{advice}, code => $code, limit => 15, %opt, needs => \@needs,
    };
    return;
}

sub suites { return @suites }
sub all    { return @cases }

# Why the case cannot be run, if so.
sub why_not {
    my ($case, $opt) = @_;
    for my $need (@{ $case->{needs} }) {
        my $why = $MISSING{$need}->($opt);
        return $why if defined $why;
    }
    return undef;
}

# Small functions.

sub put_byte {
    my ($handle) = @_;
    syswrite $handle, '.' or die "Cannot write: $!";
    return;
}

sub get_byte {
    my ($handle) = @_;
    defined sysread $handle, my $byte, 1 or die "Cannot read: $!";
    return;
}

# The two ends of a pipe that has a byte in it.
sub ready_pipe {
    my ($reader, $writer) = pipe_pair();
    put_byte($writer);
    return ($reader, $writer);
}

# An object that can be called, as a callback: it tells when it is released, which a sub is not before it has returned.
sub callable {
    my ($code, $at_end) = @_;
    return bless { code => $code, at_end => $at_end }, 'Test::Sys::Virt::EventImpl::Callable';
}

# The loop.

sub new {
    my ($class, %opt) = @_;
    return bless { %opt, log => [], warnings => [] }, $class;
}

# A new object, not registered.
sub make { return $_[0]{make}->() }

# Whether it is about libvirt's own loop.
sub is_default { return !$_[0]{make} }

# What the suite has started for its cases.
sub fixture { return $_[0]{fixture} }

# The registered object, or the string default.
sub impl {
    my ($self) = @_;
    return $self->{impl} if $self->{impl};
    if ($self->{make}) {
        $self->{impl} = $self->make;
        Sys::Virt::Event::register($self->{impl});
    }
    else {
        Sys::Virt::Event::register_default();
        $self->{impl} = 'default';
    }
    return $self->{impl};
}

# Another object has been registered.
sub use_impl {
    my ($self, $impl) = @_;
    $self->{impl} = $impl;
    return;
}

sub run {
    my ($self, $seconds) = @_;
    my $impl = $self->impl;
    $self->{runner}->($impl, $seconds);
    return;
}

# Runs the loop, for $slice seconds at a time, until $condition->() holds. True if it does.
sub until {
    my ($self, $condition, $slice) = @_;
    my $end = now() + patience(5);
    until ($condition->()) {
        return 0 if now() > $end;
        $self->run($slice || 0.002);
    }
    return 1;
}

# Runs the loop so long in all, however early `run` returns.
sub run_fully {
    my ($self, $seconds) = @_;
    my $end = now() + $seconds;
    while ((my $left = $end - now()) > 0) {
        $self->run($left);
    }
    return;
}

# What share of so many seconds the loop uses a processor. A busy machine changes nothing: the time in which the process
# would have run, and others did, does not count.
sub busy_share {
    my ($self, $seconds) = @_;
    my ($start, $used_before) = (_own_seconds(), Time::HiRes::clock());
    my $end = $start + patience($seconds);
    while ((my $left = $end - _own_seconds()) > 0) {
        $self->run($left);
    }
    return (Time::HiRes::clock() - $used_before) / (_own_seconds() - $start);
}

# A clock that stands still while this thread waits for a processor. It is right if there was no such wait in between.
sub _own_seconds {
    my ($waited, $now);
    do { ($waited, $now) = (_waited_seconds(), now()) } until _waited_seconds() == $waited;
    return $now - $waited;
}

# Not every kernel counts that.
sub _waited_seconds { return first_line('/proc/thread-self/schedstat') =~ /\A\d+ (\d+)/ ? $1 / 1e9 : 0 }

# One pass of libvirt's own loop, of so many seconds at most. The timer that ends it is kept: libvirt does work in the
# pass after a removal, so that it would never sleep.
sub run_default {
    my ($seconds) = @_;
    state $timer = Test::Sys::Virt::EventImpl::CApi::add_timeout(-1, quiet => 1);
    Test::Sys::Virt::EventImpl::CApi::update_timeout($timer, int($seconds * 1000) + 1);
    my $error = exception_of { Sys::Virt::Event::run_default() };
    Test::Sys::Virt::EventImpl::CApi::update_timeout($timer, -1);
    die $error if defined $error;
    return;
}

# Watches and timers with Perl callbacks.

sub watch {
    my ($self, $handle, $events, $code) = @_;
    $self->impl;
    return Sys::Virt::Event::add_handle(fileno $handle, $events, $code);
}

sub timer {
    my ($self, $ms, $code) = @_;
    $self->impl;
    return Sys::Virt::Event::add_timeout($ms, $code);
}

# Lets the loop poll at least so often. What is seen of that is a pipe that is written anew each time, so that a loop
# whose 0 ms timers, or whose level triggering, are broken can be counted as well.
sub passes {
    my ($self, $wanted) = @_;
    my ($reader, $writer) = ready_pipe();
    my $passes = 0;
    my $id = $self->watch($reader, READABLE, sub {
        get_byte($reader);
        put_byte($writer) if ++$passes < $wanted;
    });
    my $done = $self->until(sub { $passes >= $wanted });
    Sys::Virt::Event::remove_handle($id);
    $done or die "The loop polled $passes times, not $wanted";
    return;
}

# Replaces methods of the object: each is given the method that it replaces, then the method's arguments.
my $subclasses = 0;

sub override {
    my ($self, %methods) = @_;
    my $impl  = $self->impl;
    my $class = ref $impl;
    my $new   = $class . '::Overridden' . ++$subclasses;
    no strict 'refs';
    @{"${new}::ISA"} = ($class);
    for my $name (keys %methods) {
        my ($code, $original) = ($methods{$name}, $class->can($name));
        *{"${new}::$name"} = sub { $code->($original, @_) };
    }
    bless $impl, $new;
    return $new;
}

# How many watches and timers the object has, by its own methods.
sub count_watches {
    my ($self) = @_;
    my $count = 0;
    my $add = sub {
        my ($original, $impl, @args) = @_;
        my $key = $impl->$original(@args);
        $count++;
        return $key;
    };
    my $remove = sub {
        my ($original, $impl, @args) = @_;
        $count--;
        return $impl->$original(@args);
    };
    $self->override(
        (map { $_ => $add } qw(add_handle add_timeout)),
        (map { $_ => $remove } qw(remove_handle remove_timeout)),
    );
    return sub { $count };
}

# Returns an array to which each call of the six methods appends [name, arguments without the tokens, result of add].
# Calls that the methods make of each other do not count.
sub record_calls {
    my ($self) = @_;
    my @calls;
    our $is_inside;
    my $record = sub {
        my ($name) = @_;
        return sub {
            my ($original, $impl, @args) = @_;
            return $impl->$original(@args) if $is_inside;
            local $is_inside = 1;
            my $result = $impl->$original(@args);
            my @told = $name =~ /^add/ ? (@args[0 .. $#args - 3], $result) : @args;
            push @calls, [$name, @told];
            return $result;
        };
    };
    $self->override(map { $_ => $record->($_) } METHODS);
    return \@calls;
}

for my $name (qw(add_handle update_handle remove_handle add_timeout update_timeout remove_timeout
                 on_handle on_timeout on_handle_free on_timeout_free set_error last_error_code)) {
    no strict 'refs';
    *$name = sub {
        my $self = shift;
        $self->impl;
        return &{"Test::Sys::Virt::EventImpl::CApi::$name"}(@_);
    };
}

# The log of the C callbacks and free functions.

sub log {
    my ($self) = @_;
    push @{ $self->{log} }, Test::Sys::Virt::EventImpl::CApi::events();
    return @{ $self->{log} };
}

sub forget_log {
    my ($self) = @_;
    $self->log;
    @{ $self->{log} } = ();
    return;
}

# Those of one kind (handle, timer, ff, or an op) and perhaps one id.
sub entries {
    my ($self, $what, $id) = @_;
    return grep { $_->{what} eq $what && (!defined $id || $_->{id} == $id) } $self->log;
}

sub count {
    my ($self, @which) = @_;
    return scalar(my @entries = $self->entries(@which));
}

# What libvirt would have seen, in order: "handle 3", "timer 4", "ff 3".
sub story {
    my ($self) = @_;
    return map { "$_->{what} $_->{id}" } grep { $_->{what} =~ /^(?:handle|timer|ff)\z/ } $self->log;
}

sub dispatched {
    my ($self) = @_;
    return grep { !/^ff/ } $self->story;
}

# Warnings: what a case does not ask for makes it fail.

sub note_warning {
    my ($self, @text) = @_;
    my $warning = join '', @text;
    # Sys::Virt 9.5 and newer says so of each loop that was written for an older one.
    return if $warning =~ /event implementation is a subclass of Sys::Virt::Event/;
    push @{ $self->{warnings} }, $warning;
    return;
}

sub warnings {
    my ($self) = @_;
    return splice @{ $self->{warnings} };
}

# Processes.

# Runs $code in a child that ends by itself. Returns its exit code, signal and what it wrote to stderr.
sub child {
    my ($self, $code) = @_;
    my ($reader, $writer) = pipe_pair();
    defined(my $pid = fork) or croak "Cannot fork: $!";
    if (!$pid) {
        delete $SIG{__WARN__};
        POSIX::dup2(fileno $writer, 2);
        close $reader;
        # Should it hang.
        alarm POSIX::ceil(patience(10));
        exit 0 if eval { $code->(); 1 };
        print STDERR "The child died: $@";
        exit 255;
    }
    close $writer;
    my $stderr = do { local $/; <$reader> };
    local ($?, $!);
    waitpid $pid, 0;
    return { exit => $? >> 8, signal => $? & 127, stderr => $stderr };
}

# A connection of Sys::Virt.
sub connect {
    my ($self, $uri) = @_;
    $self->impl;
    return Sys::Virt->new(uri => $uri || 'test:///default');
}

package Test::Sys::Virt::EventImpl::Callable;

use overload '&{}' => sub { $_[0]{code} }, fallback => 1;

sub DESTROY { $_[0]{at_end}->() }

1;
