package VirtTest::Contract::Case;

# What the cases are written with. A case is given one object of this class:
#
#     case timer => 10, removes_itself => 'a timer that removes itself has run once', sub {
#         my ($t) = @_;
#         my $id = $t->add_timeout(0, in_callback => [[remove_timeout => 'self']]);
#         $t->passes(5);
#         is $t->count(timer => $id), 1;
#     };
#
# Its add_handle, update_timeout and so on are libvirt's functions, called from C with C callbacks (VirtTest::CApi).
# Perl callbacks are added with the public functions of Sys::Virt::Event.

use strict;
use warnings;

use Carp qw(croak);
use Exporter qw(import);
use POSIX ();
use Sys::Virt::Event ();
use Time::HiRes ();
use VirtTest;
use VirtTest::CApi;

our @EXPORT = qw(case READABLE WRITABLE ERROR HANGUP now pause cpu_seconds put_byte get_byte ready_pipe callable);

use constant { READABLE => 1, WRITABLE => 2, ERROR => 4, HANGUP => 8 };

my @cases;

# The number is that in contract.md, sections 2.3 to 2.5; several cases may share one.
sub case {
    my ($suite, $number, $name, $rule, $code, %opt) = @_;
    croak "There is a case $name already" if grep { $_->{name} eq $name } @cases;
    push @cases, { suite => $suite, number => $number, name => $name, rule => $rule, code => $code, limit => 15, %opt };
    return;
}

sub all { return sort { $a->{number} <=> $b->{number} } @cases }

# Small functions.

sub now { return Time::HiRes::clock_gettime(Time::HiRes::CLOCK_MONOTONIC()) }

# Not interrupted by signals.
sub pause {
    my ($seconds) = @_;
    my $end = now() + $seconds;
    while ((my $left = $end - now()) > 0) {
        select undef, undef, undef, $left;
    }
    return;
}

sub cpu_seconds { return Time::HiRes::clock() }

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
    return bless { code => $code, at_end => $at_end }, 'VirtTest::Contract::Callable';
}

# The loop.

sub new {
    my ($class, %opt) = @_;
    return bless { %opt, log => [], warnings => [] }, $class;
}

# A new object, not registered.
sub make { return $_[0]{make}->() }

# The registered object.
sub impl {
    my ($self) = @_;
    return $self->{impl} ||= Sys::Virt::Event::register($self->make);
}

# Another object has been registered.
sub use_impl {
    my ($self, $impl) = @_;
    $self->{impl} = $impl;
    return;
}

sub run {
    my ($self, $seconds) = @_;
    $self->{run}->($self->impl, $seconds);
    return;
}

# Runs the loop, for $slice seconds at a time, until $condition->() holds. True if it does.
sub until {
    my ($self, $condition, $slice) = @_;
    my $end = now() + VirtTest::patience(5);
    until ($condition->()) {
        return 0 if now() > $end;
        $self->run($slice || 0.01);
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

# Lets the loop poll at least so often. What is seen of that is a pipe that is written anew each time, so that a loop
# whose 0 ms timers, or whose level triggering, are broken can be counted as well.
sub passes {
    my ($self, $wanted) = @_;
    my ($reader, $writer) = ready_pipe();
    my $passes = 0;
    $self->impl;
    my $id = Sys::Virt::Event::add_handle($reader, READABLE, sub {
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
    $self->override(map { $_ => $record->($_) } map { ("${_}_handle", "${_}_timeout") } qw(add update remove));
    return \@calls;
}

for my $name (qw(add_handle update_handle remove_handle add_timeout update_timeout remove_timeout
                 on_handle on_timeout set_error last_error_code)) {
    no strict 'refs';
    *$name = sub {
        my $self = shift;
        $self->impl;
        return &{"VirtTest::CApi::$name"}(@_);
    };
}

# The log of the C callbacks and free functions.

sub log {
    my ($self) = @_;
    push @{ $self->{log} }, VirtTest::CApi::events();
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
    push @{ $self->{warnings} }, join '', @text;
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
        # A hung child is killed with the case: it sees its pipe end.
        delete $SIG{__WARN__};
        POSIX::dup2(fileno $writer, 2);
        close $reader;
        alarm 10;
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

sub skip {
    my (undef, $reason) = @_;
    die bless \$reason, 'VirtTest::Contract::Skip';
}

# A connection of Sys::Virt.
sub connect {
    my ($self, $uri) = @_;
    $self->skip('Sys::Virt is not installed (Debian: libsys-virt-perl)') if !Sys::Virt->can('new');
    $self->impl;
    return Sys::Virt->new(uri => $uri || 'test:///default');
}

package VirtTest::Contract::Callable;

use overload '&{}' => sub { $_[0]{code} }, fallback => 1;

sub DESTROY { $_[0]{at_end}->() }

1;
