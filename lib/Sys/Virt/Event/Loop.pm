package Sys::Virt::Event::Loop;
use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

use Carp ();
use List::Util ();
use Scalar::Util ();
use Symbol ();
use Sys::Virt::Event::Identity;
use Time::HiRes ();

our @ISA = ('Sys::Virt::EventImpl');

# Bits of libvirt's event masks; CLOSED is of _poll_fd only.
use constant { READABLE => 1, WRITABLE => 2, ERROR => 4, HANGUP => 8, CLOSED => 16 };

# How long a fd is left alone, in seconds, on which there is something that nobody wants.
use constant PAUSE => 0.1;

# For a timer that is there to be waited for.
use constant FOREVER => 1_000_000;

my $CLOCK = eval { Time::HiRes::clock_gettime(Time::HiRes::CLOCK_MONOTONIC()) }
    ? Time::HiRes::CLOCK_MONOTONIC() : Time::HiRes::CLOCK_REALTIME();
sub _now { Time::HiRes::clock_gettime($CLOCK) }

# What a host loop calls is held: a handler in %SIG that dies would leave it half done, and the watch unwatched. It
# waits until that is done, or a callback runs. It already does in what libvirt calls.
BEGIN { *_held = \&Sys::Virt::Event::_held }

# use Sys::Virt::Event::Mojo -register;
sub import {
    my ($class, @words) = @_;
    for my $word (@words) {
        Carp::croak("Cannot use $class: there is no option $word") if $word ne '-register';
    }
    return if !@words;
    my $registered = Sys::Virt::Event::registered();
    # The object of another class need not be a hash.
    my $is_ours = Scalar::Util::blessed($registered) && $registered->isa(__PACKAGE__);
    $class->new->register if !$is_ours || $registered->{class} ne $class;
    return;
}

# What an adapter has: the modules it needs, with their versions; the name of the option for its host loop, if it takes
# one; whether libvirt's file descriptors, and that of the wake watch, must be wrapped in Perl handles, and how (see
# _open_port); whether its loop ends by itself when it has nothing to wait for; whether any watch keeps such a loop;
# what must be done to its loop in a child process.
sub _needs           { () }
sub _loop_option     { () }
sub _loop_class      { undef }
sub _wants_handles   { 0 }
sub _ends_by_itself  { 0 }
sub _watches_hold    { 0 }
sub _mend_loop       { }

sub new {
    my ($class, @options) = @_;
    Carp::croak("Cannot make $class: options are pairs of a name and a value") if @options % 2;
    my %options = (hold_loop => $class->_holds_by_default, @options);
    my ($given) = map { delete $options{$_} } $class->_loop_option;
    my $hold = delete $options{hold_loop};
    Carp::croak("Cannot make $class: there is no option $_") for sort keys %options;
    my $loop_class = $class->_loop_class;
    Carp::croak("Cannot make $class: the ", $class->_loop_option, " is no $loop_class")
        if defined $given && defined $loop_class && !(Scalar::Util::blessed($given) && $given->isa($loop_class));
    $class->_check_needs;
    return bless {
        class => $class, given => $given, hold_loop => $hold, handles => {}, timers => {}, ports => {}, last_key => 0,
        passes => 0, watched => 0, stopped => 0, process => $$,
    }, $class;
}

sub _holds_by_default { 1 }

# Without loading anything: some modules start their loop, or choose one, when they are loaded.
sub _check_needs {
    my ($class) = @_;
    my %needs = $class->_needs;
    for my $module (sort keys %needs) {
        my $version = _version_of($module) // Carp::croak("Cannot make $class: $module is not installed");
        Carp::croak("Cannot make $class: it needs $module $needs{$module}, and $version is installed")
            if version->parse($version) < version->parse($needs{$module});
    }
    return;
}

sub _version_of {
    my ($module) = @_;
    my $file = $module =~ s{::}{/}gr . '.pm';
    return $module->VERSION // 0 if $INC{$file};
    require Module::Metadata;
    my $found = Module::Metadata->new_from_module($module) or return;
    return $found->version // 0;
}

# The host loop, which is looked for when libvirt wants something watched.
sub loop {
    my ($self) = @_;
    if (!$self->{loop}) {
        my $on_pipe = $SIG{PIPE};
        $self->_must_provide('_find_loop');
        my $class = ref $self;
        my $loop  = $self->_find_loop($self->{given}) || Carp::croak("${class}::_find_loop returned no loop");
        # Not before: one that works as another adapter has that one's methods now.
        $self->_must_provide(qw(_watch _unwatch _timer _cancel _iterate));
        $self->{loop} = $loop;
        # Some hosts have SIGPIPE ignored when they are loaded, which comes after what the program has set.
        $SIG{PIPE} = $on_pipe if $on_pipe;
        $self->_tend;
    }
    return $self->{loop};
}

sub _must_provide {
    my ($self, @methods) = @_;
    my @missing = grep { !$self->can($_) } @methods;
    Carp::croak(ref $self, ' must provide ', join ', ', @missing) if @missing;
    return;
}

# For a host that runs on a loop which has an adapter already: the object becomes one of that class. One of a subclass
# of $class keeps its methods, but for those that an adapter has.
sub _work_as {
    my ($self, $class, $adapter) = @_;
    require $adapter =~ s{::}{/}gr . '.pm';
    bless $self, ref $self eq $class ? $adapter : _merged(ref $self, $adapter);
    return $self->_find_loop;
}

sub _merged {
    my ($class, $adapter) = @_;
    my $merged = $class . '::On' . $adapter =~ s/.*:://r;
    no strict 'refs';
    @{"${merged}::ISA"} = ($class, $adapter);
    *{"${merged}::$_"} = $adapter->can($_)
        for qw(loop _wants_handles _ends_by_itself _watches_hold _find_loop _mend_loop _watch _unwatch _timer _cancel
            _iterate);
    return $merged;
}

# Whether code in C serves libvirt from now on, in place of the object.
sub _hand_over { 0 }

# Tells Sys::Virt::Event that this class does not run on for the sake of the wake watch alone.
sub _knows_wake { 1 }

# What libvirt asks for. Handles of one file descriptor share a port, since most host loops take but one watcher of
# each. The host's watcher may be armed for more than is wanted: libvirt changes masks with each call to a server, and
# mostly nothing comes of it.

sub add_handle {
    my ($self, $fd, $events, $cb, $opaque, $ff) = @_;
    my $handle = {
        key => ++$self->{last_key}, fd => $fd, events => $events, cb => $cb, opaque => $opaque, ff => $ff, served => 0,
    };
    $self->_see_fork;
    if (Sys::Virt::Event::_is_wake($opaque)) {
        $self->{wake} = $handle;
        $self->_tend if $self->{loop};
    } else {
        $self->loop;
        return 0 if $self->_hand_over;
        $self->_enter_port($handle);
        $self->{watched}++;
        $self->_tend;
    }
    $self->{handles}{ $handle->{key} } = $handle;
    return $handle->{key};
}

sub update_handle {
    my ($self, $key, $events) = @_;
    my $handle = $self->{handles}{$key} or return;
    my $port = $handle->{port};
    # Nearly always the host is armed for that, or for more.
    if ($port && !$handle->{closed} && !($events & ~$port->{armed}) && $port->{process} == $$) {
        $handle->{events} = $events;
        return;
    }
    $self->_see_fork;
    # The host may have given up on a closed file descriptor.
    $self->_disarm($port) if $port && $handle->{closed};
    @$handle{qw(events closed)} = ($events, 0);
    return if !$port;
    if ($port->{process} != $$ && _is_duplicate($port)) { $self->_renew_port($port) }
    else                                                { $self->_arm($port) }
    return;
}

sub remove_handle {
    my ($self, $key) = @_;
    my $handle = delete $self->{handles}{$key} or return -1;
    $self->_see_fork;
    $handle->{removed} = 1;
    if ($self->{wake} && $self->{wake} == $handle) { delete $self->{wake} }
    else                                           { $self->{watched}-- }
    $self->_leave_port($handle) if $handle->{port};
    $self->_tend if $self->{loop};
    $self->_free_callback_opaque($handle->{ff}, $handle->{opaque});
    return 0;
}

sub _enter_port {
    my ($self, $handle) = @_;
    my $fd   = $handle->{fd};
    my $port = $self->{ports}{$fd} || $self->_new_port($fd);
    $port->{handles}{ $handle->{key} } = $handle;
    # The number may stand for another file than when the port was armed.
    if ($fd >= 0 && !eval { $self->_disarm($port); $self->_open_port($port); $self->_arm($port); 1 }) {
        my $error = $@;
        delete $port->{handles}{ $handle->{key} };
        %{ $port->{handles} } ? $self->_arm($port) : $self->_close_port($port);
        die $error;
    }
    $handle->{port} = $port;
    return;
}

sub _new_port {
    my ($self, $fd) = @_;
    my $port = $self->{ports}{$fd} = { fd => $fd, handles => {}, armed => 0, process => $$ };
    Scalar::Util::weaken(my $weak_self = $self);
    Scalar::Util::weaken(my $weak_port = $port);
    $port->{code} = _held(sub { $weak_self->_on_ready($weak_port) if $weak_port });
    return $port;
}

# Where the host wants a handle of Perl's it is that of a duplicate: it closes its file descriptor when it goes. A host
# that asks it for its number, and for nothing else, takes one that is tied to the number. That closes nothing, shows
# that the file descriptor was closed, and stands for the new file when the number does, as that of the wake watch in a
# child process.
sub _open_port {
    my ($self, $port) = @_;
    my $kind = $self->_wants_handles(!!($self->{wake} && $port->{handles}{ $self->{wake}{key} }));
    my $file = $port->{fd};
    if ($kind eq 'tied') {
        $file = Symbol::gensym();
        tie *$file, 'Sys::Virt::Event::Loop::Number', $port->{fd};
    }
    elsif ($kind) {
        undef $file;
        open $file, '+<&', $port->{fd} or die "Cannot watch file descriptor $port->{fd}: $!\n";
        _close_file($port);
    }
    $port->{file} = $file;
    return;
}

sub Sys::Virt::Event::Loop::Number::TIEHANDLE { my ($class, $fd) = @_; return bless \$fd, $class }
sub Sys::Virt::Event::Loop::Number::FILENO    { return ${ $_[0] } }
sub Sys::Virt::Event::Loop::Number::BINMODE   { return 1 }

sub _is_duplicate { ref $_[0]{file} && !tied *{ $_[0]{file} } }

# The host may still hold it, and the other side waits for its end.
sub _close_file {
    my ($port) = @_;
    close $port->{file} if _is_duplicate($port);
    delete $port->{file};
    return;
}

# In a child the numbers of some file descriptors stand for something new: that of the wake watch from the beginning,
# those of sockets when libvirt would use them. Duplicates do not follow.
sub _renew_port {
    my ($self, $port) = @_;
    $self->_disarm($port);
    # Where there are no free file descriptors the old one has to do.
    local $@;
    eval { $self->_open_port($port) };
    $self->_arm($port);
    return;
}

sub _see_fork {
    my ($self) = @_;
    return if $self->{process} == $$;
    $self->{process} = $$;
    $self->_mend_loop if $self->{loop};
    my $port = $self->{wake} && $self->{wake}{port};
    $self->_renew_port($port) if $port && _is_duplicate($port);
    return;
}

sub _leave_port {
    my ($self, $handle) = @_;
    my $port = delete $handle->{port};
    delete $port->{handles}{ $handle->{key} };
    # At once: libvirt closes the file descriptor next.
    $self->_close_port($port);
    return;
}

sub _close_port {
    my ($self, $port) = @_;
    return if %{ $port->{handles} };
    $self->_disarm($port);
    $self->_cancel(delete $port->{pause}) if $port->{pause};
    delete $self->{ports}{ $port->{fd} };
    _close_file($port);
    return;
}

# What the host has to look out for. It reports hang-ups and errors as what can be read or written.
sub _wanted {
    my ($port) = @_;
    my $wanted = 0;
    for (values %{ $port->{handles} }) {
        next if $_->{busy} || $_->{closed};
        $wanted |= $_->{events} & (READABLE | WRITABLE);
        $wanted |= READABLE if !$port->{pause} && _wants_errors_only($_);
    }
    return $wanted;
}

sub _wants_errors_only {
    my ($handle) = @_;
    return $handle->{events} && !($handle->{events} & (READABLE | WRITABLE)) && !$handle->{busy} && !$handle->{closed};
}

sub _arm {
    my ($self, $port, $is_exact) = @_;
    my $wanted = $port->{fd} < 0 ? 0 : _wanted($port);
    return if $is_exact ? $wanted == $port->{armed} : !($wanted & ~$port->{armed});
    $self->_disarm($port);
    $port->{watcher} = $self->_watch($port->{file}, $wanted & READABLE, $wanted & WRITABLE, $port->{code}) if $wanted;
    $port->{armed} = $wanted;
    return;
}

sub _disarm {
    my ($self, $port) = @_;
    $port->{armed} = 0;
    $self->_unwatch(delete $port->{watcher}, $port->{file}) if $port->{watcher};
    return;
}

# Called by the host loop, which says no more than that there is something: poll(2) tells what.
sub _on_ready {
    my ($self, $port) = @_;
    $self->_see_fork;
    my $pass  = ++$self->{passes};
    my $mask  = _wanted($port);
    my $bits  = Sys::Virt::Event::_poll_fd($port->{fd}, $mask);
    my @ready = sort { $a->{key} <=> $b->{key} } grep { _events_of($_, $bits) } values %{ $port->{handles} };
    my @errors;
    for my $handle (@ready) {
        next if $handle->{removed} || $handle->{busy} || $handle->{served} > $pass;
        my $events = _events_of($handle, $bits) or next;
        $handle->{served} = $self->{passes};
        # Nothing will ever change on a closed one: it is reported once.
        $handle->{closed} = 1 if $bits & CLOSED;
        local $handle->{busy} = 1;
        eval { $self->_run_handle_callback(@$handle{qw(key fd)}, $events, @$handle{qw(cb opaque)}); 1 }
            or push @errors, $@;
    }
    $self->_pause($port) if $bits && !@ready && grep { _wants_errors_only($_) } values %{ $port->{handles} };
    $self->_arm($port, !@ready) if %{ $port->{handles} };
    $self->_throw(@errors) if @errors;
    return;
}

sub _events_of {
    my ($handle, $bits) = @_;
    return 0 if !$handle->{events} || $handle->{busy} || $handle->{closed};
    return $bits & ($handle->{events} | ERROR | HANGUP);
}

# There is something to read, and who is there wants to hear of a hang-up alone.
sub _pause {
    my ($self, $port) = @_;
    Scalar::Util::weaken(my $weak_self = $self);
    Scalar::Util::weaken(my $weak_port = $port);
    $port->{pause} ||= $self->_timer(PAUSE, _held(sub {
        return if !$weak_port;
        delete $weak_port->{pause};
        $weak_self->_arm($weak_port);
    }));
    return;
}

# Timers. The host's is armed for no later than the timer is due; where that was put off meanwhile, it is armed anew.

sub add_timeout {
    my ($self, $ms, $cb, $opaque, $ff) = @_;
    $self->_see_fork;
    $self->loop;
    return 0 if $self->_hand_over;
    my $timer = { key => ++$self->{last_key}, ms => -1, cb => $cb, opaque => $opaque, ff => $ff };
    Scalar::Util::weaken(my $weak_self = $self);
    Scalar::Util::weaken(my $weak_timer = $timer);
    $timer->{code} = _held(sub { $weak_self->_on_timer($weak_timer) if $weak_timer });
    $self->_set_timer($timer, $ms);
    $self->{timers}{ $timer->{key} } = $timer;
    $self->{watched}++;
    $self->_tend;
    return $timer->{key};
}

sub update_timeout {
    my ($self, $key, $ms) = @_;
    my $timer = $self->{timers}{$key} or return;
    $self->_see_fork;
    $self->_set_timer($timer, $ms);
    return;
}

sub remove_timeout {
    my ($self, $key) = @_;
    my $timer = delete $self->{timers}{$key} or return -1;
    $timer->{removed} = 1;
    $self->_cancel(delete $timer->{host}) if $timer->{host};
    $self->{watched}--;
    $self->_tend;
    $self->_free_callback_opaque($timer->{ff}, $timer->{opaque});
    return 0;
}

sub _set_timer {
    my ($self, $timer, $ms) = @_;
    $timer->{ms} = $ms;
    # 0 ms is due in each pass, however often it is set again meanwhile.
    $timer->{due} = $ms > 0 ? _now() + $ms / 1000 : 0;
    $self->_arm_timer($timer);
    return;
}

sub _arm_timer {
    my ($self, $timer) = @_;
    return if $timer->{ms} < 0 || $timer->{busy} || $timer->{removed};
    my $due = $timer->{due};
    if ($timer->{host}) {
        return if $timer->{armed} <= $due;
        $self->_cancel(delete $timer->{host});
    }
    my $seconds = $due ? $due - _now() : 0;
    $timer->{host} = $self->_timer($seconds > 0 ? $seconds : 0, $timer->{code});
    $timer->{armed} = $due;
    return;
}

sub _on_timer {
    my ($self, $timer) = @_;
    delete $timer->{host};
    return if $timer->{ms} < 0 || $timer->{busy};
    my $now = _now();
    return $self->_arm_timer($timer) if $timer->{due} > $now;
    $timer->{due} = $now + $timer->{ms} / 1000 if $timer->{ms};
    my $is_ok = do {
        local $timer->{busy} = 1;
        eval { $self->_run_timeout_callback(@$timer{qw(key cb opaque)}); 1 };
    };
    my $error = $@;
    $self->_arm_timer($timer);
    $self->_throw($error) if !$is_ok;
    return;
}

# What is not libvirt's: the wake watch, and a timer that keeps a loop running which would end without. Where a loop
# ends by itself the wake watch must not keep it.
sub _tend {
    my ($self) = @_;
    my $is_in_use = $self->{watched} > 0;
    my $wake = $self->{wake};
    my $is_wanted = $self->_wants_wake;
    if ($wake && $is_wanted != !!$wake->{port}) {
        # Where it cannot be had others must not be refused for that.
        local $@;
        eval { $is_wanted ? $self->_enter_port($wake) : $self->_leave_port($wake); 1 }
            or warn "Cannot be woken by other threads: $@";
    }
    return if !$self->{hold_loop} || !$self->_ends_by_itself || $is_in_use == !!$self->{hold};
    if ($is_in_use) { $self->_hold }
    else            { $self->_cancel(delete $self->{hold}) }
    return;
}

# Where any watch keeps the loop, and libvirt's timers are not to keep it, it must not be the wake watch that does.
sub _wants_wake {
    my ($self) = @_;
    return 1 if !$self->_ends_by_itself;
    return $self->{watched} > 0 if $self->{hold_loop} || !$self->_watches_hold;
    my $port = $self->{wake} && $self->{wake}{port};
    return 0 < grep { !$port || $_ != $port } values %{ $self->{ports} };
}

sub _hold {
    my ($self) = @_;
    Scalar::Util::weaken(my $weak_self = $self);
    $self->{hold} = $self->_timer(FOREVER, _held(sub { $weak_self->_hold if $weak_self }), 1);
    return;
}

# For a host that drops all that it has, or is replaced by another.

sub _disarm_all {
    my ($self) = @_;
    for my $port (values %{ $self->{ports} }) {
        $self->_disarm($port);
        $self->_cancel(delete $port->{pause}) if $port->{pause};
    }
    for my $timer (values %{ $self->{timers} }) {
        $self->_cancel(delete $timer->{host}) if $timer->{host};
    }
    $self->_cancel(delete $self->{hold}) if $self->{hold};
    return;
}

sub _arm_all {
    my ($self) = @_;
    _held(sub {
        $self->_disarm_all;
        $self->_arm($_) for values %{ $self->{ports} };
        $self->_arm_timer($_) for values %{ $self->{timers} };
        $self->_tend;
    })->();
    return;
}

# What the program runs.

sub stop { $_[0]{stopped} = 1; return }

sub run_for {
    my ($self, $seconds) = @_;
    Carp::croak('Cannot run: there is no number of seconds') if !defined $seconds;
    $self->run_until(sub { 0 }, $seconds);
    return;
}

sub run_until {
    my ($self, $code, $seconds) = @_;
    $self->_check_condition($code);
    $self->_check_seconds($seconds);
    my $end = defined $seconds ? _now() + $seconds : undef;
    local $self->{stopped} = 0;
    return 1 if $code->();
    return $self->_limited($seconds, sub {
        do {
            return 0 if $self->{stopped} || defined $end && $end <= _now();
            $self->_see_fork;
            $self->_iterate or return 0;
        } until $code->();
        return 1;
    });
}

# The timer that ends it all is one for all passes: AnyEvent's loop looks for nothing else in an iteration in which it
# comes upon one that was cancelled.
sub _limited {
    my ($self, $seconds, $code) = @_;
    $self->_see_fork;
    $self->loop;
    my ($limit, $set_limit);
    if (defined $seconds) {
        my $end = _now() + $seconds;
        # Some loops are early by a bit. Event calls what was due already when it was cancelled.
        $set_limit = _held(sub {
            undef $limit;
            my $left = $end - _now();
            $limit = $self->_timer($left, $set_limit, 1) if $set_limit && $left > 0;
        });
        $limit = $self->_timer($seconds > 0 ? $seconds : 0, $set_limit, 1);
    }
    my $result = eval { [$code->()] };
    my $error  = $@;
    # The timer, its code and these variables hold each other.
    _held(sub {
        my $timer = $limit;
        undef $_ for $limit, $set_limit;
        $self->_cancel($timer) if $timer;
    })->();
    $self->_throw($error) if !$result;
    return $result->[0];
}

sub _check_condition {
    my (undef, $code) = @_;
    Carp::croak('Cannot run: the condition is not a code reference') if !Sys::Virt::Event::_is_code($code);
    return;
}

sub _check_seconds {
    my (undef, $seconds) = @_;
    return if !defined $seconds || Scalar::Util::looks_like_number($seconds) && $seconds == $seconds;
    Carp::croak("Cannot run: number of seconds $seconds is not a number");
}

# $SIG{__DIE__} has seen the exception already.
sub _throw {
    my (undef, $first, @others) = @_;
    for my $error (@others) {
        eval { warn $error };                # $SIG{__WARN__} may die
    }
    local $SIG{__DIE__};
    die $first;
}

1;

__END__

=encoding UTF-8

=head1 NAME

Sys::Virt::Event::Loop - what the adapters for event loops have in common

=head1 SYNOPSIS

=for test program

  package My::Adapter;
  use parent 'Sys::Virt::Event::Loop';

  sub _needs     { ('Some::Loop' => '1.5') }
  sub _find_loop { require Some::Loop; return Some::Loop->new }
  sub _watch     { my ($self, $fd, $read, $write, $code) = @_; ... }
  sub _unwatch   { my ($self, $watcher, $fd) = @_; ... }
  sub _timer     { my ($self, $seconds, $code, $holds) = @_; ... }
  sub _cancel    { my ($self, $timer) = @_; ... }
  sub _iterate   { my ($self) = @_; ... }

=head1 DESCRIPTION

The parent class of Sys::Virt::Event::EV, Sys::Virt::Event::Glib and the others: it lets libvirt use the event loop
that a program has anyway, the I<host loop>. An adapter is a subclass that says how that loop watches a file
descriptor, and how it sets a timer. All that libvirt's contract asks for beyond that is done here: exact event bits,
several handles on one file descriptor, intervals, what is removed or changed in a callback, nested runs, the wake
watch, exceptions.

This class itself makes no useful object.

=head1 METHODS

What every adapter has.

=head2 new(%options)

Returns an object that is not registered yet. The options are that of C<_loop_option>, and:

=over 4

=item hold_loop => 1 or 0

Whether libvirt's watches keep a host loop running that ends by itself when it has nothing to wait for. 1 is the
default: then it runs as long as libvirt has a watch, be it a timer that is switched off. For a loop that runs until it
is told to end, it makes no difference.

=back

Dies with:

=for test messages

  Cannot make My::Adapter: there is no option hold
  Cannot make My::Adapter: options are pairs of a name and a value
  Cannot make My::Adapter: Some::Loop is not installed
  Cannot make My::Adapter: it needs Some::Loop 1.5, and 1.2 is installed

Neither C<new> nor C<register> loads the host loop, or looks for it. That is done when libvirt, or the program by
L<Sys::Virt::Event/add_timeout($ms, $code)> and its like, wants something watched, or when one of the next three
methods is called. So a program may load its loop, or choose one, after this.

=head2 register(%options)

Makes it libvirt's event loop, and returns it: see L<Sys::Virt::Event/register($impl, %options)>.

=head2 import('-register')

C<use My::Adapter -register> makes an object without options and registers it, unless an object of that class is
registered already. Any other word is an exception, C<Cannot use My::Adapter: there is no option -regster>.

=head2 loop()

Returns the host loop.

=head2 run_for($seconds)

Runs the host loop for so many seconds, or until C<stop> is called. Returns nothing.

=head2 run_until($code, $seconds)

Runs the host loop until C<< $code->() >> returns true. It is called before the first pass and after each. Returns true
then, and false when so many seconds are over first, or C<stop> was called. Without a number there is no limit, but
then it also returns false when the host loop says that it has nothing to wait for.

Both can be called inside a run of the program's own, as in a callback.

=head2 stop()

Ends the innermost C<run_for> or C<run_until> that is running, after the pass that is under way. Returns nothing.

=head2 add_handle, update_handle, remove_handle, add_timeout, update_timeout, remove_timeout

What libvirt calls: see L<Sys::Virt::Event/METHODS A LOOP PROVIDES>.

=head1 WHAT AN ADAPTER SUPPLIES

The first seven describe it, and have defaults. They are called as methods of the class or of an object. The others are
methods of the object, in which C<< $self->{loop} >> is what C<_find_loop> returned. One that is missing is an
exception when the loop is needed first:

=for test messages

  My::Adapter must provide _watch, _unwatch
  My::Adapter::_find_loop returned no loop

=head2 _needs()

The modules that the loop takes, and their lowest versions, as a list of pairs. C<new> checks them without loading
them. Default: none.

=head2 _loop_option()

The name of the option of C<new> by which a program can give its loop. Default: none, there is no such option.

=head2 _loop_class()

The class that what a program gives must be of. Default: none, it is not checked.

=head2 _wants_handles($is_wake)

True if the loop watches Perl's handles only. C<_watch> then gets one in place of a number: that of a duplicate, which
is closed when the watch is removed, so that libvirt's file descriptor is never closed. It shares its flags with
libvirt's: a loop that makes handles non-blocking must be kept from that. For a loop that asks a handle for its number
and for nothing else, C<'tied'>: then there is no duplicate. C<$is_wake> tells the wake watch from others.
Default: 0.

=head2 _ends_by_itself()

True if the loop ends when it has nothing to wait for. Default: 0.

=head2 _watches_hold()

True if such a loop cannot be told that a watch is not to keep it running. Default: 0.

=head2 _mend_loop()

Called in a child process, before anything else is done there, for loops that need to be told. Default: nothing.

=head2 _find_loop($given)

Returns the host loop: any true value. Loads what is needed for that. C<$given> is what the program gave to C<new>, or
undef. It is called once, when the loop is needed first.

=head2 _watch($file, $read, $write, $code)

Watches a file descriptor until C<_unwatch>, to read, to write or both, level-triggered. C<< $code->() >> is to be
called when it is ready, or hung up, or has an error; to call it more often does no harm. Returns what C<_unwatch>
needs, a true value. Of each file descriptor there is one such watch at a time.

=head2 _unwatch($watcher, $file)

Ends that. It may be called while its C<$code> runs.

=head2 _timer($seconds, $code, $holds)

Calls C<< $code->() >> once, after so many seconds. They have a fraction, and may be millions. A little early does no
harm, except that the time is spent in more passes. With 0 it is the next pass, or the rest of this one if file
descriptors come first in it: not before they were looked at. Returns what C<_cancel> needs, a true value; that is not
called for a timer that has been called itself.

C<$holds> is true for a timer that is to keep a loop running that ends by itself. Where the loop can be told so, other
timers and watches do not.

=head2 _cancel($timer)

Ends a timer that has not been called.

=head2 _iterate()

One pass of the host loop, which waits until there is something to call. Returns false only if there is nothing to wait
for. An adapter need not limit the time: there is a timer for that.

=head2 Exceptions

The C<$code> of a watch or timer dies if a callback of libvirt's died, after it has put its own affairs in order. The
exception belongs where the users of the host loop look for those of its callbacks. For many loops nothing is to be
done for that. But the watch must live on, so where the loop drops a watcher that has died, make it anew.

=head2 Signals

While the C<$code> of a watch or timer, or a method that libvirt calls, is at work, handlers in C<%SIG> wait; in
callbacks they run. So one that dies leaves nothing half done. What an adapter does around that code is not covered.

=head1 WRITE AN ADAPTER

This is all that L<Event> needs, a loop for which this distribution has no adapter:

=for test elsewhere t/53-loop.t

  package My::EventLoop;
  use strict;
  use warnings;
  use parent 'Sys::Virt::Event::Loop';

  sub _needs          { (Event => '1.00') }
  sub _ends_by_itself { 1 }
  sub _watches_hold   { 1 }

  sub _find_loop {
      require Event;
      Event->import;    # without it, its clock has whole seconds
      return 'Event';
  }

  # Exceptions go where users of Event look for them.
  sub guarded {
      my ($code) = @_;
      return sub { eval { $code->(); 1 } or $Event::DIED->($_[0], $@) };
  }

  sub _watch {
      my ($self, $fd, $read, $write, $code) = @_;
      my $poll = ($read ? 'r' : '') . ($write ? 'w' : '');
      return Event->io(fd => $fd, poll => $poll, cb => guarded($code));
  }

  sub _unwatch { my ($self, $watcher, $fd) = @_; $watcher->cancel }

  sub _timer {
      my ($self, $seconds, $code, $holds) = @_;
      my $guarded = guarded($code);
      # Event keeps a watcher until it is cancelled.
      my $once = sub { $guarded->(@_); $_[0]->w->cancel };
      return Event->timer(after => $seconds, cb => $once);
  }

  sub _cancel { my ($self, $timer) = @_; $timer->cancel }

  # Event's answer is whether it has called something.
  sub _iterate {
      my @watchers = Event::all_watchers();
      return Event::one_event() || @watchers > 0;
  }

  1;

Save it as F<My/EventLoop.pm>, in a directory where perl looks for modules (C<perl -I.> for this one). A program uses
it like any other:

=for test elsewhere t/53-loop.t

  use Event;
  use My::EventLoop -register;

Import no functions into the class that have the name of a method: Event has a C<loop>, too.

Then see what the kit says. L<virt-eventimpl> tells in seconds which cases fail, and with C<-v> why:

=for test shell

  virt-eventimpl -I. --failed My::EventLoop

Of Event these are four, by its nature. As a test of your distribution, with L<Test::Sys::Virt::EventImpl>:

=for test elsewhere t/53-loop.t

  use Test::More;
  use Test::Sys::Virt::EventImpl;

  my $reason = 'Event warns of an fd that was closed under it, '
      . 'and watches it no more';
  my @closed = qw(
      fd_number_reused closed_fd closed_fd_once closed_fd_spares_others
  );

  eventimpl_ok(sub { require My::EventLoop; My::EventLoop->new },
      name => 'Event', skip => { map { $_ => $reason } @closed });
  done_testing;

It passes all others.

=head1 COST

What C<_watch> has been told is changed when it makes a difference, not with each of libvirt's updates: libvirt
switches its watch off and on with each call to a server. When a file descriptor is ready, one poll(2) asks for the
exact bits. A timer of the host's is set anew when it is due, or has to be earlier; not when it is put off.

=head1 SEE ALSO

L<Sys::Virt::Event>, L<Sys::Virt::Event::Auto>, L<Sys::Virt::Event::EV>, L<Sys::Virt::Event::Glib>,
L<Test::Sys::Virt::EventImpl>

=head1 AUTHOR AND LICENSE

The Sys-Virt-Event developers. This module is free software; you can redistribute it and/or modify it under the same
terms as Perl itself.

=cut
