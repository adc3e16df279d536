package Sys::Virt::Event::Connection;
use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

our @CARP_NOT = qw(Sys::Virt::Event::Connection::Iterator);

use Carp ();
use List::Util ();
use overload ();
use POSIX ();
use re ();
use Scalar::Util ();
use Sys::Virt ();
use Sys::Virt::Event::Identity;
use Sys::Virt::Event::Connection::Iterator ();
use Sys::Virt::Event::Connection::Probe ();
use Sys::Virt::Event::Record ();

# libvirt's ids end here.
use constant LAST_ID => 2**31 - 1;

# What a connection has to tell of itself.
my @OF_ITSELF = qw(opened closed retry failed error);

# In another thread they are nothing. CLONE_SKIP would do that, but perl panics where weak references point to such
# objects.
my %alive;

sub CLONE {
    for my $self (grep { $_ } values %alive) {
        bless $_, __PACKAGE__ . '::Elsewhere' for grep { $_ } delete $self->{virt}, $self;
    }
    %alive = ();
    return;
}

# Options

my %DEFAULT = (
    uri => undef, readonly => 0, auth => 0, credlist => undef, callback => undef, flags => 0,
    keepalive => [5, 3], connect_timeout => 10, reconnect => 1,
);
my %BACKOFF = (initial => 0.25, max => 30, jitter => 0.2, tries => undef);

sub new {
    my ($class, @options) = @_;
    my $self = bless { _with_defaults(\%DEFAULT, @options) }, $class;
    my $reconnect = $self->{reconnect} || 0;
    Carp::croak('Cannot make a connection: reconnect is none of 0, 1 and a reference to a hash')
        if ref $reconnect ne 'HASH' && $reconnect !~ /\A[01]\z/;
    $self->{reconnect} = $reconnect ? { _with_defaults(\%BACKOFF, ref $reconnect ? %$reconnect : ()) } : undef;
    $self->_check_options;
    $self->{uri} = _decoded($self->{uri}) if defined $self->{uri};
    Carp::croak('Cannot make a connection: no event loop is registered') if !defined Sys::Virt::Event::registered();

    # As AnyEvent and IO::Async do: libvirt writes to servers that have gone.
    $SIG{PIPE} = sub { } if !defined $SIG{PIPE};
    @$self{qw(listeners audience iterators timers callbacks refused)} = map { {} } 1 .. 6;
    @$self{qw(last_id failures step process)} = (0, 0, 0, $$);
    Scalar::Util::weaken($alive{ Scalar::Util::refaddr($self) } = $self);
    $self->_attempt_after(0);
    return $self;
}

sub _with_defaults {
    my ($defaults, @options) = @_;
    Carp::croak('Cannot make a connection: options are pairs of a name and a value') if @options % 2;
    my %options = @options;
    for my $name (sort keys %options) {
        Carp::croak("Cannot make a connection: there is no option $name") if !exists $defaults->{$name};
    }
    return (%$defaults, %options);
}

sub _check_options {
    my ($self) = @_;
    my ($keepalive, $backoff) = @$self{qw(keepalive reconnect)};
    Carp::croak('Cannot make a connection: keepalive is not [seconds, count]')
        if $keepalive && !(ref $keepalive eq 'ARRAY' && @$keepalive == 2 && !grep { !/\A[1-9]\d{0,8}\z/ } @$keepalive);
    _check_number('connect_timeout', $self->{connect_timeout}, 0, 1_000_000);
    Carp::croak('Cannot make a connection: flags is not a number') if ($self->{flags} // '') !~ /\A\d+\z/;
    return if !$backoff;
    _check_number($_, $backoff->{$_}, 0.001, 1_000_000) for qw(initial max);
    _check_number('jitter', $backoff->{jitter}, 0, 1);
    Carp::croak('Cannot make a connection: tries is not a number from 1')
        if defined $backoff->{tries} && $backoff->{tries} !~ /\A[1-9]\d*\z/;
    return;
}

sub _check_number {
    my ($name, $value, $least, $most) = @_;
    return if defined $value && Scalar::Util::looks_like_number($value) && $value >= $least && $value <= $most;
    Carp::croak("Cannot make a connection: $name is not a number from $least to $most");
}

sub uri  { return $_[0]{uri} }
sub virt { return $_[0]{virt} }

# Opening. A server that hangs would hold up the whole loop, so a process of its own tries it first.

sub open {
    my ($self) = @_;
    return $self if $self->{virt};
    $self->_stop_trying;
    my ($error, $is_done, $exception);
    {
        local ($@, $SIG{__DIE__});
        $is_done = eval { $error = $self->_try; 1 };
        $exception = $@;
    }
    if ($is_done && !defined $error) {
        $self->_tell_opened;
        return $self;
    }
    if ($self->{reconnect}) { $self->_attempt_after($self->_next_delay) }
    else                    { $self->_give_up($error // _text($exception)) }
    # That of a signal handler.
    die $exception if !$is_done;
    Carp::croak('Cannot open ', $self->_title, ": $error");
}

# Returns why it is not open now, or nothing.
sub _try {
    my ($self) = @_;
    my ($probe, $error) = $self->_wants_probe ? $self->_probe : ();
    $error //= $probe->result if $probe;
    return $error // $self->_connect;
}

# Drivers within libvirt take no time, and what is in them stays in this process.
sub _has_server {
    my ($self) = @_;
    return ($self->{uri} // '') !~ m{\A(?:test:|[a-z]+:///embed\b)};
}

sub _wants_probe {
    my ($self) = @_;
    return $self->{connect_timeout} > 0 && $self->_has_server;
}

sub _probe {
    my ($self) = @_;
    return Sys::Virt::Event::Connection::Probe->start(
        uri => $self->{uri}, flags => $self->{flags} | ($self->{readonly} ? Sys::Virt::CONNECT_RO() : 0),
        seconds => $self->{connect_timeout}, auth => $self->{auth},
    );
}

sub _attempt_after {
    my ($self, $seconds) = @_;
    $self->_stop_trying;
    $self->{attempt} = $self->_after($seconds, sub { my ($self) = @_; delete $self->{attempt}; $self->_attempt });
    return;
}

sub _attempt {
    my ($self) = @_;
    return $self->_conclude($self->_connect) if !$self->_wants_probe;
    local $@;
    my ($probe, $error) = eval { $self->_probe };
    return $self->_conclude($error // _text($@)) if !$probe;
    $self->{probe} = $probe;
    Scalar::Util::weaken(my $weak = $self);
    $probe->watch(sub {
        my ($error) = @_;
        my $self = $weak or return;
        return $self->_attempt if !delete($self->{probe})->is_ours;
        $self->_conclude($error // $self->_connect);
    });
    return;
}

sub _conclude {
    my ($self, $error) = @_;
    return $self->_tell_opened if !defined $error;
    my ($backoff, $failures) = ($self->{reconnect}, ++$self->{failures});
    return $self->_fail($error) if !$backoff || defined $backoff->{tries} && $failures >= $backoff->{tries};
    my $delay = $self->_next_delay;
    $self->_attempt_after($delay);
    $self->_tell('retry', undef, error => $error, delay => $delay, failures => $failures);
    return;
}

# Each is twice as long as the one before, but not in step with those of others that have lost the same server.
sub _next_delay {
    my ($self) = @_;
    my $backoff = $self->{reconnect};
    my $delay = List::Util::min($backoff->{max}, $backoff->{initial} * 2**List::Util::min(60, $self->{step}++));
    return sprintf('%.3f', $delay * (1 + $backoff->{jitter} * (rand(2) - 1))) + 0;
}

# Whoever hears of it may open the connection again.
sub _fail {
    my ($self, $error) = @_;
    $self->{failure} = $error;
    $self->_tell('failed', undef, error => $error)
        or $self->_raise('Lost the connection to ' . $self->_title . ": $error\n");
    $self->_give_up($error) if defined $self->{failure};
    return;
}

sub _give_up {
    my ($self, $error) = @_;
    $self->{failure} = $error;
    $self->_end_iterators("the connection is lost for good: $error");
    return;
}

# Returns why it is not open now, or nothing.
sub _connect {
    my ($self) = @_;
    local ($@, $SIG{__DIE__});
    my $first = 1 + _last_id();
    return if eval { $self->_limited([$first, LAST_ID], sub { $self->_open_virt($first) }); 1 };
    my $error = _text($@);
    $self->_release;
    return $error;
}

sub _open_virt {
    my ($self, $first) = @_;
    my $virt = $self->{virt} = Sys::Virt->new(map { $_ => $self->{$_} } qw(uri readonly auth credlist callback flags));
    @$self{qw(process ids)} = ($$, [$first, _last_id()]);
    $self->{uri} //= $virt->get_uri;
    # Drivers within libvirt have none, and need none.
    eval { $virt->set_keep_alive(@{ $self->{keepalive} }) } if $self->{keepalive};

    # The callback runs under locks of the connection, and libvirt may have events left to deliver: those come in the
    # next pass.
    Scalar::Util::weaken(my $weak = $self);
    my $number = ++$self->{number};
    my $lose = sub { my ($self, $reason) = @_; $self->_lose($reason) if $self->{number} == $number };
    my $on_close = Sys::Virt::Event::protect(sub {
        my (undef, $reason) = @_;
        return if !$weak || $weak->{number} != $number;
        $weak->_after(0, sub { my ($self) = @_; $self->_after(0, sub { $lose->($_[0], $reason) }) });
    });
    $self->{has_close_callback} = defined _register($virt, 'register_close_callback', $on_close);
    $self->{version} = $virt->get_library_version;
    my @trouble = $self->_ask_for_events;
    my $opened = Sys::Virt::Event::Record::of_connection($self->{uri}, 'opened');
    my ($states, @more_trouble) = $self->_wanted_states;
    die "the server has closed it\n" if !$self->_is_alive;
    @$self{qw(trouble news)} = ([@trouble, @more_trouble], [[$opened], @$states]);
    return;
}

sub _last_id { return List::Util::max(0, map { $_->{id} } Sys::Virt::Event::watches()) }

# Runs code that calls the server. libvirt waits for answers without a limit, and the loop with it.
sub _limited {
    my ($self, $ids, $code) = @_;
    my $seconds = $self->{connect_timeout};
    return $code->() if !$self->_has_server || !$seconds || !Sys::Virt::Event::_limit_calls($seconds, @$ids);
    my @result = eval { ($code->(), 1) };
    my $error = $@;
    die "no answer within $seconds s\n" if Sys::Virt::Event::_end_limit();
    die $error if !@result;
    pop @result;
    return @result;
}

# What is news when the connection is open: that it is, then what the snapshot shows, then whatever has come meanwhile.
# Whoever hears of it may run the loop, close the connection, and open it again.
sub _tell_opened {
    my ($self) = @_;
    @$self{qw(failures opened)} = (0, Sys::Virt::Event::Connection::Probe::now());
    my $trouble = delete $self->{trouble};
    $self->_tell_news or return;
    $self->_report($_) for @$trouble;
    return;
}

# False: it is not the same connection any more.
sub _tell_news {
    my ($self) = @_;
    my $number = $self->{number};
    while (my $next = shift @{ $self->{news} || [] }) {
        $self->_deliver(@$next);
        return if $self->{number} != $number;
    }
    delete $self->{news};
    return 1;
}

sub _lose {
    my ($self, $reason) = @_;
    my $word = Sys::Virt::Event::Record::close_reason($reason);
    my $backoff = $self->{reconnect};
    $self->_release;
    $self->{failure} = 'it was closed: ' . ($word // "reason $reason") if !$backoff;
    if ($backoff) {
        # A server that takes connections and drops them is not to be asked all the time.
        $self->{step} = 0 if Sys::Virt::Event::Connection::Probe::now() - $self->{opened} > $backoff->{max};
        $self->_attempt_after($self->_next_delay);
    }
    $self->_tell('closed', undef, reason => $word, reason_code => $reason);
    $self->_fail($self->{failure}) if defined $self->{failure};
    return;
}

sub close {
    my ($self) = @_;
    my $was_open = defined $self->{virt};
    $self->_stop_trying;
    $self->_release;
    if ($was_open) {
        my $reason = Sys::Virt::CLOSE_REASON_CLIENT();
        my $word = Sys::Virt::Event::Record::close_reason($reason);
        $self->_tell('closed', undef, reason => $word, reason_code => $reason);
    }
    $self->_end_iterators('the connection was closed');
    return;
}

sub _stop_trying {
    my ($self) = @_;
    $self->_cancel($_) for keys %{ $self->{timers} };
    my $probe = delete $self->{probe};
    $probe->cancel if $probe;
    delete @$self{qw(attempt failure)};
    return;
}

# The registered callbacks hold the connection, and libvirt delivers what comes for them even while it is being closed.
sub _release {
    my ($self) = @_;
    my $virt = delete $self->{virt} or return;
    local ($@, $!, $SIG{__DIE__});
    local $SIG{PIPE} = 'IGNORE';
    $self->{number}++;
    delete @$self{qw(trouble news)};
    # What follows would wait for answers: for long if there are many, and for ever if the server hangs.
    my $ids = delete $self->{ids};
    Sys::Virt::Event::_hang_up(@$ids) if $ids && $self->_has_server && $self->{process} == $$;
    eval { $virt->unregister_close_callback } if delete $self->{has_close_callback};
    my $callbacks = $self->{callbacks};
    $self->{callbacks} = {};
    for my $callback (values %$callbacks) {
        my ($deregister, $id) = @$callback;
        eval { $virt->$deregister($id) };
    }
    undef $virt;
    return;
}

sub DESTROY {
    my ($self) = @_;
    return if ${^GLOBAL_PHASE} eq 'DESTRUCT';
    delete $alive{ Scalar::Util::refaddr($self) };
    local ($@, $!, $?);
    $self->_stop_trying;
    $self->_release if ($self->{process} // 0) == $$;
    return;
}

# Listeners

sub on   { my ($self, @arguments) = @_; return $self->_listen(0, @arguments) }
sub once { my ($self, @arguments) = @_; return $self->_listen(1, @arguments) }

sub _listen {
    my ($self, $is_once, $what, @arguments) = @_;
    my $code = pop @arguments;
    Carp::croak('Cannot listen: the last argument is not a code reference') if !Sys::Virt::Event::_is_code($code);
    my $filter = @arguments ? shift @arguments : {};
    Carp::croak('Cannot listen: the filter is not a hash reference') if @arguments || ref $filter ne 'HASH';
    my @wanted = (pattern => _pattern($what), filter => scalar _filter($filter));
    my $id = ++$self->{last_id};
    $self->{listeners}{$id} = { id => $id, @wanted, is_once => $is_once, code => $code };
    $self->{audience} = {};
    local $@;
    my ($error) = $self->{virt} ? eval { $self->_limited($self->{ids}, sub { $self->_ask_for_events }) } : ();
    return $id if !defined $error;
    $self->off($id);
    Carp::croak("Cannot listen: $error");
}

sub off {
    my ($self, $id) = @_;
    Carp::croak('Cannot stop listening: no id ', $id // 'undef', ' was ever given out')
        if ($id // '') !~ /\A[1-9]\d*\z/ || $id > $self->{last_id};
    my $listener = delete $self->{listeners}{$id} or return;
    $listener->{is_off} = 1;
    $self->{audience} = {};
    return;
}

sub events { my ($self, @what) = @_; return Sys::Virt::Event::Connection::Iterator->new($self, @what) }

sub _pattern {
    my ($what) = @_;
    $what //= 'undef';
    return qr{\A(?!connection/)} if $what eq '*';
    my ($class, $event) = $what =~ m{\A([a-z]+)/(\*|[a-z0-9-]+)\z}
        or Carp::croak("Cannot listen: $what is neither * nor CLASS/EVENT nor CLASS/*");
    my @classes = Sys::Virt::Event::Record::classes();
    my @events
        = $class eq 'connection'            ? @OF_ITSELF
        : (grep { $_ eq $class } @classes) ? ('state', map { $_->{name} } Sys::Virt::Event::Record::events_of($class))
        :   Carp::croak("Cannot listen: $class is none of ", join ', ', @classes, 'connection');
    return qr{\A$class/} if $event eq '*';
    Carp::croak("Cannot listen: $class has no event $event, only ", join ', ', @events)
        if !grep { $_ eq $event } @events;
    return qr{\A$class/$event\z};
}

# Code that tells whether a record is wanted, or undef where each is.
sub _filter {
    my ($filter) = @_;
    for my $key (sort keys %$filter) {
        Carp::croak("Cannot listen: there is no filter $key") if $key !~ /\A(?:name|uuid|type)\z/;
    }
    return if !%$filter;
    my %matches = map { $_ => _matcher($_, $filter->{$_}) } keys %$filter;
    return sub {
        my ($record) = @_;
        return !grep { ($record->{$_} // '') !~ $matches{$_} } keys %matches;
    };
}

# A pattern stands for itself, a text is a glob, of a list any.
sub _matcher {
    my ($key, $wanted) = @_;
    return $wanted if re::is_regexp($wanted);
    if (ref $wanted eq 'ARRAY') {
        my $any = join '|', map { _matcher($key, $_) } @$wanted;
        return @$wanted ? qr/$any/ : qr/(?!)/;
    }
    Carp::croak("Cannot listen: $key is neither a glob nor a qr// nor a list of these")
        if ref $wanted && !overload::Method($wanted, '""');
    my $pattern = _pattern_of_glob(_decoded($wanted // ''));
    local $@;
    return eval { no warnings; qr/\A$pattern\z/s } // Carp::croak("Cannot listen: $wanted is not a glob");
}

# As in file names: a bracket that does not end means itself, and so does what follows a backslash.
sub _pattern_of_glob {
    my ($glob) = @_;
    my %meaning = ('*' => '.*', '?' => '.');
    return $glob =~ s{
        \[ ([!^]?+) ( \]?+ (?: \[:[a-z]+:\] | \\. | [^]\\] )* ) \] | \\ (.) | (.)
    }{
        defined $2 ? '[' . ($1 && '^') . _set_of_glob($2) . ']'
            : defined $3 ? quotemeta $3
            : $meaning{$4} // quotemeta $4
    }gersx;
}

sub _set_of_glob {
    my ($set) = @_;
    return $set =~ s{(\[:[a-z]+:\]|-)|\\?(.)}{ $1 // quotemeta $2 }gers;
}

# Whoever is to hear of an event.
sub _audience {
    my ($self, $name) = @_;
    my $listeners = $self->{listeners};
    return $self->{audience}{$name}
        //= [grep { $name =~ $_->{pattern} } map { $listeners->{$_} } sort { $a <=> $b } keys %$listeners];
}

# Has libvirt send what somebody listens to. What nobody listens to any more goes on to come: to stop it is a call,
# which waits for an answer. Returns what went wrong, but for a connection that is gone: the loop is about to tell that,
# and another will follow.
sub _ask_for_events {
    my ($self) = @_;
    my %wanted = map { $self->_wanted_of($_) } Sys::Virt::Event::Record::classes();
    my $callbacks = $self->{callbacks};
    my @errors = map { $callbacks->{$_} ? () : $self->_register_event($_, $wanted{$_}) } sort keys %wanted;
    return @errors && $self->_is_alive ? @errors : ();
}

# By class and name. Of two events that tell the same, the later one is it, where the server has it.
sub _wanted_of {
    my ($self, $class) = @_;
    my $refused = $self->{refused}{ $self->{version} };
    my %wanted;
    for my $event (Sys::Virt::Event::Record::events_of($class)) {
        $wanted{"$class/$event->{name}"} = $event if !$refused->{"$class/$event->{id}"};
    }
    return map { @{ $self->_audience($_) } ? ($_ => $wanted{$_}) : () } keys %wanted;
}

# A server that does not know an event, or a driver without such objects, is not asked again: each refusal costs memory
# that Sys::Virt does not give back.
sub _register_event {
    my ($self, $key, $event) = @_;
    my ($register, $deregister) = Sys::Virt::Event::Record::methods_of($event->{class});
    Scalar::Util::weaken(my $weak = $self);
    my $handler = Sys::Virt::Event::protect(sub {
        my (undef, $object, @arguments) = @_;
        my $self = $weak or return;
        my $record = Sys::Virt::Event::Record::of_event($event, $self->{uri}, $object, @arguments);
        return $self->_deliver($record, $object, $key) if !$self->{news};
        push @{ $self->{news} }, [$record, $object];
        $self->_tell_news;
    });
    local $@;
    my $id = _register($self->{virt}, $register, undef, $event->{id}, $handler);
    if (defined $id) {
        $self->{callbacks}{$key} = [$deregister, $id];
        return;
    }
    return "no $key events: " . _text($@) if !_is_unsupported($@);
    $self->{refused}{ $self->{version} }{"$event->{class}/$event->{id}"} = 1;
    my %wanted = $self->_wanted_of($event->{class});
    return $wanted{$key} ? $self->_register_event($key, $wanted{$key}) : ();
}

# Returns what the method returns, or true; undef where it fails. Sys::Virt never lets go of the variables that a close
# callback, or a registration that failed, was given, so that the connection would stay open: these can be emptied, for
# the handlers do not look at theirs.
sub _register {
    my ($virt, $method, @arguments) = @_;
    local $SIG{__DIE__};
    my @result = eval { ($virt->$method(@arguments), 1) };
    undef $virt;
    if (!@result) { undef $_ for @arguments }
    return $result[0];
}

sub _is_unsupported {
    my ($error) = @_;
    local $@;
    return if !eval { $error->isa('Sys::Virt::Error') };
    my $code = $error->code;
    return $code == Sys::Virt::Error::ERR_NO_SUPPORT()
        || $code == Sys::Virt::Error::ERR_INVALID_ARG()
        || $error->message =~ /unsupported event ID/;
}

# Records

# Returns how many it has reached. Whoever knows what the event is called says so.
sub _deliver {
    my ($self, $record, $object, $name) = @_;
    $name //= "$record->{class}/$record->{event}";
    my $reached = 0;
    local $@;
    for my $listener (@{ $self->{audience}{$name} // $self->_audience($name) }) {
        next if $listener->{is_off} || $listener->{filter} && !$listener->{filter}->($record);
        $self->off($listener->{id}) if $listener->{is_once};
        $reached++;
        # The block is for handlers that say last.
        { eval { $listener->{code}->($self, $record, $object); 1 } or $self->_report($@, $record) }
    }
    return $reached;
}

sub _tell {
    my ($self, $event, $object, %arguments) = @_;
    return $self->_deliver(Sys::Virt::Event::Record::of_connection($self->{uri}, $event, %arguments), $object);
}

# What goes wrong while nobody waits for a result.
sub _report {
    my ($self, $error, $record) = @_;
    my $is_new = !$record || "$record->{class}/$record->{event}" ne 'connection/error';
    $is_new && $self->_tell('error', $error, error => _text($error)) or $self->_raise($error);
    return;
}

# An exception of the loop's callback that is running, in the way of that loop.
sub _raise {
    my ($self, $error) = @_;
    Sys::Virt::Event::protect(sub { die $error })->();
    return;
}

sub snapshot {
    my ($self) = @_;
    Carp::croak('Cannot take a snapshot of ', $self->_title, ': the connection is closed') if !$self->{virt};
    local ($@, $SIG{__DIE__});
    my @classes = Sys::Virt::Event::Record::classes();
    my @states = eval { ($self->_limited($self->{ids}, sub { map { $self->_states($_) } @classes }), 1) };
    Carp::croak('Cannot take a snapshot of ', $self->_title, ': ', _text($@)) if !@states;
    pop @states;
    return map { $_->[0] } @states;
}

# The states that somebody listens to, and what went wrong.
sub _wanted_states {
    my ($self) = @_;
    my (@states, @errors);
    for my $class (grep { @{ $self->_audience("$_/state") } } Sys::Virt::Event::Record::classes()) {
        eval { push @states, $self->_states($class); 1 } or push @errors, "no $class/state: " . _text($@);
    }
    return (\@states, @errors);
}

# Each object of a class, with its state and the reason, or a word.
my %STATES = (
    domain  => \&_domain_states,
    network => sub {
        my ($virt) = @_;
        return (
            map({ [$_, 'active'] } $virt->list_all_networks(Sys::Virt::Network::LIST_ACTIVE())),
            map({ [$_, 'inactive'] } $virt->list_all_networks(Sys::Virt::Network::LIST_INACTIVE())),
        );
    },
    pool    => sub {
        my ($virt) = @_;
        my @pools = $virt->list_all_storage_pools(0);
        return map { my $info = eval { $_->get_info }; $info ? [$_, $info->{state}] : () } @pools;
    },
    device  => sub { my ($virt) = @_; return map { [$_, 'active'] } $virt->list_all_node_devices(0) },
    secret  => sub { my ($virt) = @_; return map { [$_, 'defined'] } $virt->list_all_secrets(0) },
);

# In one call, if the driver has it. Between two, a domain can go. Sys::Virt 9.0 never frees the hashes that it returns:
# the domains must not stay in them.
sub _domain_states {
    my ($virt) = @_;
    my @stats = eval { ($virt->get_all_domain_stats(Sys::Virt::Domain::STATS_STATE()), 1) };
    return map { my @state = eval { $_->get_state }; @state ? [$_, @state] : () } $virt->list_all_domains(0)
        if !@stats && _is_unsupported($@);
    die $@ if !@stats;
    pop @stats;
    return map {
        my ($domain, $data) = delete @$_{qw(dom data)};
        [$domain, @$data{qw(state.state state.reason)}];
    } @stats;
}

sub _states {
    my ($self, $class) = @_;
    my @states = eval { ($STATES{$class}->($self->{virt}), 1) };
    die $@ if !@states && !_is_unsupported($@);
    pop @states;
    return map {
        my ($object, @state) = @$_;
        [Sys::Virt::Event::Record::of_state($class, $self->{uri}, $object, @state), $object];
    } @states;
}

sub wait_state {
    my ($self, $name, $state, @options) = @_;
    Carp::croak('Cannot wait for a state: options are pairs of a name and a value') if @options % 2;
    my %options = @options;
    my $seconds = delete $options{timeout};
    Carp::croak("Cannot wait for a state: there is no option $_") for sort keys %options;
    Carp::croak("Cannot wait for a state: timeout $seconds is not a number")
        if defined $seconds && !(Scalar::Util::looks_like_number($seconds) && $seconds == $seconds);
    Carp::croak('Cannot wait for a state: no domain is named') if !defined $name;
    my @states = Sys::Virt::Event::Record::states();
    Carp::croak('Cannot wait for state ', $state // 'undef', ': it is none of ', join ', ', @states)
        if !grep { $_ eq ($state // '') } @states;
    Carp::croak('Cannot wait for a state: a callback is running, and no event comes before it returns')
        if Sys::Virt::Event::_callbacks_running();

    $name = _decoded($name);
    my ($is_so, $failure) = (0, $self->{failure});
    my $see  = sub { my (undef, @event) = @_; $is_so ||= $self->_is_in($state, @event) };
    my @ids  = map { $self->on("domain/$_", { name => qr/\A\Q$name\E\z/ }, $see) } qw(lifecycle state);
    push @ids, $self->on('connection/failed', sub { $failure = $_[1]{args}{error} });
    local $@;
    my $is_done = eval {
        my @states = $self->{virt} ? eval { $self->_limited($self->{ids}, sub { $self->_states('domain') }) } : ();
        $see->($self, @$_) for grep { $_->[0]{name} eq $name } @states;
        _run_until(sub { $is_so || defined $failure || !$self->_is_trying }, $seconds);
        1;
    };
    my $error = $@;
    $self->off($_) for @ids;
    die $error if !$is_done;
    return 1 if $is_so;
    return 0 if !defined $failure && $self->_is_trying;
    Carp::croak('Cannot wait for a state: ', $failure // 'the connection is closed');
}

# Whether a record leaves its domain in the state. libvirt says that a domain has started, and only then that it starts
# paused: that one is asked. It may be gone.
sub _is_in {
    my ($self, $state, $record, $domain) = @_;
    return if (Sys::Virt::Event::Record::state_of($record) // '') ne $state;
    return 1 if $record->{event} ne 'lifecycle' || $record->{type} ne 'started';
    local ($@, $SIG{__DIE__});
    my ($now) = $self->{virt} ? eval { $self->_limited($self->{ids}, sub { $domain->get_state }) } : ();
    return defined $now && $now == Sys::Virt::Domain::STATE_RUNNING();
}

sub _is_alive {
    my ($self) = @_;
    local $@;
    return eval { $self->{virt}->is_alive };
}

sub _is_trying {
    my ($self) = @_;
    return defined $self->{virt} || defined $self->{attempt} || defined $self->{probe};
}

# In whatever loop is registered; true, or false when the time is over.
sub _run_until {
    my ($code, $seconds) = @_;
    my $loop = Sys::Virt::Event::registered();
    return $loop->run_until($code, $seconds) if ref $loop && $loop->can('run_until');
    my ($method) = grep { ref $loop && $loop->can($_) } qw(run_for run_once);
    die ref $loop, " has none of run_until, run_for, run_once\n" if ref $loop && !$method;
    my $end = defined $seconds ? Sys::Virt::Event::Connection::Probe::now() + $seconds : undef;
    until ($code->()) {
        my $left = defined $end ? $end - Sys::Virt::Event::Connection::Probe::now() : 1;
        return 0 if $left <= 0;
        my $slice = List::Util::min($left, 0.05);
        $method ? $loop->$method($slice) : Sys::Virt::Event::run_default($slice);
    }
    return 1;
}

# Small things

# Runs the code once, after so many seconds, if the connection is there by then.
sub _after {
    my ($self, $seconds, $code) = @_;
    Scalar::Util::weaken(my $weak = $self);
    my $id = Sys::Virt::Event::add_timeout(POSIX::ceil(1000 * $seconds), sub {
        my ($id) = @_;
        my $self = $weak or return;
        $self->_cancel($id);
        $code->($self);
    });
    $self->{timers}{$id} = 1;
    return $id;
}

sub _cancel {
    my ($self, $id) = @_;
    delete $self->{timers}{$id} or return;
    local $@;
    eval { Sys::Virt::Event::remove_timeout($id) };
    return;
}

sub _end_iterators {
    my ($self, $why) = @_;
    my @iterators = grep { $_ } values %{ $self->{iterators} };    # one that is told may let go of others
    $_->_end($why) for @iterators;
    return;
}

sub _title { my ($self) = @_; return $self->{uri} // 'the default connection' }

# Of an exception: libvirt's own message, or the text without its end.
sub _text {
    my ($error) = @_;
    local $@;
    my $text = eval { $error->isa('Sys::Virt::Error') } ? $error->message : eval { "$error" };
    $text //= 'an exception without a text';
    return _decoded($text =~ s/\s+\z//r);
}

sub _decoded {
    my ($text) = @_;
    utf8::decode($text);
    return $text;
}

1;

__END__

=encoding UTF-8

=head1 NAME

Sys::Virt::Event::Connection - a libvirt connection that stays up, and its events

=head1 SYNOPSIS

=for test program
test:///default is opened
test: state running
/(?:test: lifecycle suspended\n)?done/

  use strict;
  use warnings;
  use Sys::Virt::Event::Poll -register;
  use Sys::Virt::Event::Connection;

  my $conn = Sys::Virt::Event::Connection->new(
      uri       => 'test:///default',
      keepalive => [5, 3],
  );

  $conn->on('domain/*' => sub {
      my ($conn, $event, $domain) = @_;
      my $type = $event->{type} // '';
      print "$event->{name}: $event->{event} $type\n";
  });
  $conn->on('connection/*' => sub {
      my ($conn, $event, $error) = @_;
      print "$event->{uri} is $event->{event}\n";
      return if $event->{event} ne 'opened';
      $conn->virt->get_domain_by_name('test')->suspend;
  });

  $conn->wait_state('test', 'paused', timeout => 5)
      or die "it goes on\n";
  print "done\n";

=head1 DESCRIPTION

A program that listens to libvirt opens a connection once the event loop is registered, registers callbacks, notices
that the server went away, opens the connection again, registers all callbacks again, and finds out what it has missed.
This class does that. Some of its steps have a catch:

=over

=item *

Opening takes as long as the server wants it to, and nothing else happens meanwhile. So a process of its own tries it
first, for a limited time. Only when that has worked does this one open the connection. See L</connect_timeout>.

=item *

Callbacks must not be deregistered while libvirt tells that the connection is closed: they, and it, wait for
each other then. It is done in the loop's next pass.

=item *

libvirt delivers events even to a connection that is being closed, and some versions get stuck in that. And while it
closes one it waits for answers of the server. So the server is cut off first, and all callbacks are deregistered.

=item *

L<Sys::Virt> takes one callback for each event of a connection. Here any number can listen, and libvirt is asked for
those events only that somebody has listened to.

=item *

An exception in a callback is no reason to lose events, see L</EXCEPTIONS>.

=back

It works in every loop that L<Sys::Virt::Event> can have: that of an adapter like L<Sys::Virt::Event::Mojo>, libvirt's
own, or an object of the program. It uses that module's public functions and nothing else of the loop.

Events come through the loop, but calls wait for their answer, as everywhere in L<Sys::Virt>. A program that calls a
server which hangs waits for ever, and so does its loop: keepalive breaks a connection only while the loop runs. Of the
methods below, C<open>, C<snapshot>, C<wait_state> and, on an open connection, C<on> and C<once> call the server. They
wait for at most C<connect_timeout>, and then break the connection. C<close> does not wait.

Times are in seconds, and may have a fraction, but for C<keepalive>.

=head1 METHODS

Mistakes are exceptions that start with C<Cannot make a connection:>, C<Cannot listen:> and so on, and name the place
of the caller.

=head2 new(%options)

Returns a new connection at once. It is opened from the next pass of the loop on. It lives as long as the object: when
the last reference is gone, the connection is closed. Dies with C<no event loop is registered> if none is.

=over

=item uri, readonly, auth, credlist, callback, flags

As L<Sys::Virt/new> takes them.

=item keepalive => [$seconds, $count]

The server is asked for a sign of life when nothing has come for so many seconds, and given up after so many questions
without an answer: see C<set_keep_alive> in L<Sys::Virt>. The default is C<[5, 3]>, that is about 20 seconds; both are
integers. With 0 there are no such questions, and a server that hangs is not noticed. Drivers within libvirt have no
need of it.

=item connect_timeout => $seconds
X<connect_timeout>

How long the process that tries the connection first may take; 10 by default. It is a perl of its own, which is in a
session without a terminal: ssh cannot ask for a password in it. It is killed, with all it has started, when the time
is over. The calls that this class makes on the connection itself get as much time.

With 0 there is no such process, and no limit. Then ssh can ask, and the loop waits for the server for as long as that
takes.
Drivers within libvirt (C<test:///default>, C<qemu:///embed>) are opened without it.

A server that wants to know who we are has passed this test if C<auth> is given.

=item reconnect => 0, or { %how }

What happens when the connection cannot be opened or is lost. By default it is tried again, for ever. With 0 it is
tried once. The waiting time doubles with each attempt that fails:

=for test text

  initial => 0.25    the first waiting time
  max     => 30      no more doubling from here on
  jitter  => 0.2     each is longer or shorter by up to this part of
                     it, at random
  tries   => undef   how many attempts in a row may fail; undef: any
                     number

It goes back to C<initial> once a connection has lasted longer than C<max>.

=back

SIGPIPE: libvirt writes to servers that may have gone. If the program has set no C<$SIG{PIPE}>, C<new> sets it to a
function that does nothing, as L<AnyEvent> and L<IO::Async> do.

=head2 open()

Opens the connection now, if it is not open, and returns the object. The loop stands still meanwhile, for up to
C<connect_timeout> and the time of the opening. Dies if that fails, with C<Cannot open URI:> and the reason; or with
what a signal handler throws while it waits for the process that tries. Attempts from the loop go on then if there is
C<reconnect>.

=head2 close()

Closes the connection, and ends what is under way to open it. It does not wait for the server. Nothing of it remains
registered with the loop, and objects of it that the program still has, as domains, are of no more use. Iterators end.
Listeners stay, for C<open>. Returns nothing.

=head2 virt()

The L<Sys::Virt> object, or undef while the connection is not open. Do not keep it: it is another one after each
reconnection.

=head2 uri()

As it was given to C<new>, else, once the connection has been open, what libvirt says.

=head2 on($what, \%filter, $code)

Calls the code for each event from now on. Returns an id for C<off>. C<$what> is one of

=for test text

  domain/lifecycle       one event of a class
  domain/*               all of a class
  *                      all of domains, networks, pools, devices and
                         secrets
  connection/opened      of the connection itself, see CONNECTION EVENTS
  connection/*

The classes are C<domain>, C<network>, C<pool>, C<device>, C<secret> and C<connection>. C<virt-events --list> shows
their events: those that the installed L<Sys::Virt> knows, and C<state>. What the driver or the server does not have is
left out silently.

The filter is optional. Its keys are C<name>, C<uuid> and C<type> of the event. A value is a glob, a C<qr//>, or a list
of these, of which one must fit. An event has to fit all keys. In a glob C<*>, C<?> and C<[...]> stand for what they do
in file names, C<[!a-z]> and C<[[:digit:]]> too; a backslash makes the next character stand for itself.

The code, or an object that can be called like one, such as a condition variable of L<AnyEvent>, gets

=for test text

  $code->($conn, \%event, $object)

this object, the event as L<Sys::Virt::Event::Record/THE RECORD> describes it, and the L<Sys::Virt> object that it is
about. All listeners share the hash. They are called in the order in which they came.

On a connection that is open C<on> may call the server, and dies if the server refuses, unless it does so because it
does not have the event at all.

=head2 once($what, \%filter, $code)

The same, for one event.

=head2 off($id)

Ends it. Dies if there never was such an id. Returns nothing.

=head2 snapshot()

Asks the server for all objects, and returns a list of events, of the name C<state>. Their C<type> is the state of a
domain (C<running>, C<paused>, C<shutoff> ...) or pool (C<running>, C<inactive> ...), C<active> or C<inactive> for a
network, C<active> for a device, C<defined> for a secret. Dies if the connection is not open.

Whenever the connection is opened, those who listen to C<domain/*>, C<domain/state> and so on get these before the
first event: what happened while there was no connection shows in them.

=head2 wait_state($name, $state, timeout => $seconds)

Runs the loop until the domain is in that state, one of C<running>, C<blocked>, C<paused>, C<shutdown>, C<shutoff>,
C<crashed>, C<pmsuspended> and C<nostate>. Returns true then, at once if it is so already. Returns false when the time
is over, or somebody stops the loop. Without C<timeout> it takes as long as it takes. A domain that does not exist yet
is waited for.

A connection that is lost meanwhile is opened again. If it is lost for good, or closed, that is an exception; so is a
call from inside a callback.

=head2 events($what, \%filter)

Returns an iterator: see L<Sys::Virt::Event::Connection::Iterator>. It has all events from now on, in their order, for
code that would rather ask for the next one than be called.

=head1 CONNECTION EVENTS

=over

=item connection/opened

The connection is open. C<state> events follow, then events.

=item connection/closed

It was, and no longer is. C<args> has C<reason>, one of C<eof>, C<keepalive>, C<error> and C<client> (by C<close>), and
C<reason_code>, libvirt's number for it.

=item connection/retry

An attempt has failed, C<args> says why in C<error>, and after how many seconds the next one follows in C<delay>. How
many have failed in a row is C<failures>.

=item connection/failed

There will be no other attempt, for the reason in C<error>. If nobody listens to this, it is an exception of the loop:
see below.

=item connection/error

A listener has died, or the server has refused to send an event. C<args> has the text in C<error>; the third
argument of the listener is the exception itself.

=back

=head1 EXCEPTIONS

When a listener dies, all others are called nevertheless. The exception goes to those who listen to
C<connection/error>. If there are none, or if they die themselves, it takes the way that exceptions of callbacks take
in the registered loop: with L<Sys::Virt::Event::Poll> it leaves C<run>, with L<Sys::Virt::Event::Mojo> it is an
C<error> event, and so on. Where several die in one pass, all but the first are warnings.

=head1 FORK

An open connection is of use in the process that has opened it only: see L<Sys::Virt::Event/FORK>. The end of the
object in a child does the parent no harm. A child that runs the loop is told that the connection was closed, and opens
one of its own. A connection that was made and not yet opened is opened in each process that runs the loop. An attempt
that is under way is the parent's; a child begins one of its own when that has ended, or C<connect_timeout> is over.

Threads other than the one that owns the loop have no connections: what perl clones for them is of a class without
methods.

=head1 LIMITS

Sys::Virt 9.0 does not give back some memory: about 0.4 KiB for each event that a server refuses, which this class asks
for once, and 0.2 KiB for each domain when a connection is opened that somebody listens to C<domain/state> of.

Of the events C<BLOCK_JOB> and C<BLOCK_JOB_2>, both named C<block-job>, the first is asked for only where the server
does not have the second: they tell the same.

Where libvirt's own loop is registered, its file descriptors are not known here. There C<close> does wait for the
server, and calls have no limit.

=head1 SEE ALSO

L<Sys::Virt::Event::Record>, L<Sys::Virt::Event::Connection::Iterator>, L<virt-events>, L<Sys::Virt::Event>,
L<Sys::Virt>.

=head1 AUTHOR AND LICENSE

The Sys-Virt-Event developers. This program is free software; you can redistribute it and/or modify it under the same
terms as Perl itself.

=cut
