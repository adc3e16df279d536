package Sys::Virt::Event::Record;
use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

use Carp ();
use List::Util ();
use Sys::Virt ();
use Time::HiRes ();

# What libvirt has events for: the word for it, the package of its objects and constants, the stem of the connection's
# methods, and how an object is named. The names of other things are undef.
my @CLASSES = (
    {
        name => 'domain', package => 'Sys::Virt::Domain', stem => 'domain_event',
        identity => \&_domain_identity,
    },
    {
        name => 'network', package => 'Sys::Virt::Network', stem => 'network_event',
        identity => sub { ($_[0]->get_name, $_[0]->get_uuid_string, undef) },
    },
    {
        name => 'pool', package => 'Sys::Virt::StoragePool', stem => 'storage_pool_event',
        identity => sub { ($_[0]->get_name, $_[0]->get_uuid_string, undef) },
    },
    {
        name => 'device', package => 'Sys::Virt::NodeDevice', stem => 'node_device_event',
        identity => sub { ($_[0]->get_name, undef, undef) },
    },
    {
        name => 'secret', package => 'Sys::Virt::Secret', stem => 'secret_event',
        identity => sub { ($_[0]->get_usage_id, $_[0]->get_uuid_string, undef) },
    },
);
my %CLASS = map { $_->{name} => $_ } @CLASSES;

# Sys::Virt 12.7.0 has a function for these that takes an argument less than libvirt gives it: the program crashes.
my %IS_BROKEN = (CHANNEL_LIFECYCLE => 1);

my %STATE = map {
    my $class = $_;
    $class->{name} => {
        class => $class->{name}, name => 'state', is_typed => 1, prefix => 'STATE',
        map { $_ => $class->{$_} } qw(package identity),
    };
} @CLASSES;

# The arguments of each event, by the name of its EVENT_ID constant: the name of each, and where its number stands for
# something, the names of the constants; or code. LIFECYCLE is apart.
my $IO_ERROR_ACTION = qr/\AEVENT_IO_ERROR_(.+)\z/;
my @BLOCK_JOB = (['type', qr/\ABLOCK_JOB_TYPE_(.+)\z/], ['status', qr/\ABLOCK_JOB_([A-Z]+)\z/]);
my %ARGUMENTS = (
    REBOOT                    => [],
    RTC_CHANGE                => [['utcoffset']],
    WATCHDOG                  => [['action', qr/\AEVENT_WATCHDOG_(.+)\z/]],
    IO_ERROR                  => [['src'], ['alias'], ['action', $IO_ERROR_ACTION]],
    GRAPHICS                  => [
        ['phase', qr/\AEVENT_GRAPHICS_([A-Z]+)\z/], ['local', \&_address], ['remote', \&_address], ['auth'], ['ids'],
    ],
    IO_ERROR_REASON           => [['src'], ['alias'], ['action', $IO_ERROR_ACTION], ['reason']],
    CONTROL_ERROR             => [],
    BLOCK_JOB                 => [['path'], @BLOCK_JOB],
    DISK_CHANGE               => [['old'], ['new'], ['alias'], ['reason', qr/\AEVENT_DISK_(.+)\z/]],
    TRAY_CHANGE               => [['alias'], ['reason', qr/\AEVENT_TRAY_CHANGE_(.+)\z/]],
    PMWAKEUP                  => [['reason']],
    PMSUSPEND                 => [['reason']],
    BALLOON_CHANGE            => [['actual']],
    PMSUSPEND_DISK            => [['reason']],
    DEVICE_REMOVED            => [['alias']],
    BLOCK_JOB_2               => [['dev'], @BLOCK_JOB],
    TUNABLE                   => [['params']],
    AGENT_LIFECYCLE           => [
        ['state', qr/\AEVENT_AGENT_LIFECYCLE_STATE_(.+)\z/], ['reason', qr/\AEVENT_AGENT_LIFECYCLE_REASON_(.+)\z/],
    ],
    DEVICE_ADDED              => [['alias']],
    MIGRATION_ITERATION       => [['iteration']],
    JOB_COMPLETED             => [['params']],
    DEVICE_REMOVAL_FAILED     => [['alias']],
    METADATA_CHANGE           => [['type', qr/\AMETADATA_([A-Z]+)\z/], ['nsuri']],
    BLOCK_THRESHOLD           => [['dev'], ['path'], ['threshold'], ['excess']],
    MEMORY_FAILURE            => [
        ['recipient', qr/\AEVENT_MEMORY_FAILURE_RECIPIENT_(.+)\z/],
        ['action', qr/\AEVENT_MEMORY_FAILURE_ACTION_(.+)\z/], ['flags', \&_memory_failure_flags],
    ],
    MEMORY_DEVICE_SIZE_CHANGE => [['alias'], ['size']],
    NIC_MAC_CHANGE            => [['alias'], ['old'], ['new']],
    VCPU_REMOVED              => [['vcpu']],
    REFRESH                   => [],
    UPDATE                    => [],
    VALUE_CHANGED             => [],
);

# The state of a domain after a lifecycle event of a type.
my %STATE_AFTER = (
    started => 'running', resumed => 'running', suspended => 'paused', stopped => 'shutoff', shutdown => 'shutdown',
    pmsuspended => 'pmsuspended', crashed => 'crashed',
);

my $seq = 0;
my (%names, %events);

# libvirt writes a UUID in the time of all the rest: those of late are kept.
sub _domain_identity {
    my ($domain) = @_;
    state %uuids;
    my ($bytes, $id) = ($domain->get_uuid, $domain->get_id);
    my $uuid = $uuids{$bytes} // do {
        %uuids = () if keys %uuids >= 1000;
        $uuids{$bytes} = $domain->get_uuid_string;
    };
    return ($domain->get_name, $uuid, $id < 0 ? undef : $id);
}

sub classes { return map { $_->{name} } @CLASSES }

# The methods that register and deregister a callback.
sub methods_of {
    my ($class) = @_;
    return map { "$CLASS{$class}{stem}_$_" } qw(register_any deregister_any);
}

# The events of a class that the installed Sys::Virt knows, in the order of their ids.
sub events_of {
    my ($class) = @_;
    my $known = $events{$class} //= do {
        my $names = _constants($CLASS{$class}{package}, qr/\AEVENT_ID_(.+)\z/);
        my @ids = grep { !$IS_BROKEN{ $names->{$_} } } sort { $a <=> $b } keys %$names;
        [map { _event($CLASS{$class}, $_, $names->{$_}) } @ids];
    };
    return @$known;
}

# The types of the lifecycle events of a class that the installed Sys::Virt knows.
sub types_of {
    my ($class) = @_;
    my $names = _constants($CLASS{$class}{package}, qr/\AEVENT_([A-Z]+)\z/);
    return map { _word($names->{$_}) } sort { $a <=> $b } keys %$names;
}

# BLOCK_JOB_2 tells by device what BLOCK_JOB tells by path: both are block jobs.
sub _event {
    my ($class, $id, $constant) = @_;
    return {
        class     => $class->{name}, id => $id, name => _word($constant =~ s/_\d+\z//r), package => $class->{package},
        identity  => $class->{identity}, is_typed => $constant eq 'LIFECYCLE', prefix => 'EVENT',
        constant  => $constant,
        arguments => $ARGUMENTS{$constant} // [],
    };
}

# Records

sub of_event {
    my ($event, $uri, $object, @arguments) = @_;
    my ($name, $uuid, $id) = $event->{identity}->($object);
    # libvirt's texts are UTF-8.
    utf8::decode($name) if defined $name;
    return {
        v => 1, time => _time(), seq => ++$seq, uri => $uri, class => $event->{class}, event => $event->{name},
        event_id => $event->{id}, name => $name, uuid => $uuid, id => $id,
        $event->{is_typed} ? (args => {}, @{ _typed($event, @arguments) }) : (args => _named($event, @arguments)),
    };
}

# What an object is like, as its state and the reason, or, where the class has no such numbers, a word.
sub of_state {
    my ($class, $uri, $object, $state, $reason) = @_;
    return of_event($STATE{$class}, $uri, $object, $state, $reason);
}

sub of_connection {
    my ($uri, $event, %arguments) = @_;
    my $record = of_event({ class => 'connection', name => $event, identity => sub { return } }, $uri);
    $record->{args} = \%arguments;
    return $record;
}

# EVENT_STOPPED has its details in EVENT_STOPPED_*, STATE_PAUSED in STATE_PAUSED_*; only domains have such.
sub _typed {
    my ($of, $type, $detail) = @_;
    return $of->{typed}{$type}{ $detail // '' } //= do {
        my ($package, $prefix) = @$of{qw(package prefix)};
        my $is_word = $type !~ /\A-?\d+\z/;
        my $name = $is_word ? $type : _constants($package, qr/\A${prefix}_([A-Z]+)\z/)->{$type};
        my $more = defined $name && _constants($package, qr/\A${prefix}_\Q$name\E_(.+)\z/)->{ $detail // '' };
        my ($type_word, $detail_word) = map { $_ ? _word($_) : undef } $name, $more;
        [type => $type_word, detail => $detail_word, type_code => $is_word ? undef : $type, detail_code => $detail];
    };
}

sub _named {
    my ($event, @arguments) = @_;
    my (%args, $unnamed);
    my $package = $event->{package};
    for my $expected (@{ $event->{arguments} }) {
        last if !@arguments;
        my ($name, $how) = @$expected;
        my $value = shift @arguments;
        if    (!defined $how)      { $args{$name} = _plain($value) }
        elsif (ref $how eq 'CODE') { %args = (%args, $how->($package, $name, $value)) }
        else                       { @args{ $name, "${name}_code" } = (_word_for($package, $how, $value), $value) }
    }
    # Of an event, or a part of one, that is newer than this.
    $args{ 'arg' . ++$unnamed } = _plain($_) for @arguments;
    return \%args;
}

# The state of the domain that a record tells; undef where it tells none.
sub state_of {
    my ($record) = @_;
    return if $record->{class} ne 'domain' || !defined $record->{type};
    return $record->{type} if $record->{event} eq 'state';
    # One that runs can be defined, too.
    return $record->{type} eq 'defined' && !defined $record->{id} ? 'shutoff' : $STATE_AFTER{ $record->{type} };
}

# Why libvirt closed a connection.
sub close_reason {
    my ($number) = @_;
    return _word_for('Sys::Virt', qr/\ACLOSE_REASON_(.+)\z/, $number);
}

sub states {
    my $names = _constants('Sys::Virt::Domain', qr/\ASTATE_([A-Z]+)\z/);
    return map { _word($names->{$_}) } sort { $a <=> $b } keys %$names;
}

# Words and values

# RFC 3339, in UTC.
sub _time {
    state $known = -1;
    state $known_second = -1;
    state ($second, $stamp);
    my $ms = int 1000 * Time::HiRes::time();
    return $stamp if $ms == $known;
    my $now = int $ms / 1000;
    if ($now != $known_second) {
        my ($s, $m, $h, $day, $month, $year) = gmtime $now;
        $second = sprintf '%04d-%02d-%02dT%02d:%02d:%02d', $year + 1900, $month + 1, $day, $h, $m, $s;
        $known_second = $now;
    }
    $known = $ms;
    return $stamp = sprintf '%s.%03dZ', $second, $ms % 1000;
}

sub _word { return lc $_[0] =~ tr/_/-/r }

# libvirt's texts are UTF-8. A number must not become one of them.
sub _text {
    my ($value) = @_;
    my $text = $value;
    return $value if !defined $text || $text !~ /[^\x00-\x7f]/;
    utf8::decode($text);
    return $text;
}

sub _plain {
    my ($value) = @_;
    return { map { _text($_) => _plain($value->{$_}) } keys %$value } if ref $value eq 'HASH';
    return [map { _plain($_) } @$value] if ref $value eq 'ARRAY';
    return _text($value);
}

# The constants of a package whose name matches: value => the part in parentheses, of two the shorter one.
sub _constants {
    my ($package, $pattern) = @_;
    return $names{$package}{$pattern} //= do {
        no strict 'refs';
        local ($@, $SIG{__DIE__});
        my %found;
        for my $symbol (sort { length $a <=> length $b || $a cmp $b } keys %{"${package}::"}) {
            my ($name) = $symbol =~ $pattern or next;
            my $value = eval { $package->can($symbol)->() };
            $found{$value} //= $name if defined $value;
        }
        \%found;
    };
}

# undef for a number that is newer than the installed Sys::Virt.
sub _word_for {
    my ($package, $pattern, $value) = @_;
    my $name = defined $value ? _constants($package, $pattern)->{$value} : undef;
    return defined $name ? _word($name) : undef;
}

sub _address {
    my ($package, $name, $address) = @_;
    my $family = _word_for($package, qr/\AEVENT_GRAPHICS_ADDRESS_(.+)\z/, $address->{family});
    return ($name => { %{ _plain($address) }, family => $family, family_code => $address->{family} });
}

sub _memory_failure_flags {
    my ($package, $name, $flags) = @_;
    my $names = _constants($package, qr/\AMEMORY_FAILURE_(.+)\z/);
    my @set = map { _word($names->{$_}) } grep { $flags & $_ } sort { $a <=> $b } keys %$names;
    return ($name => \@set, "${name}_code" => $flags);
}

# JSON

# One line of UTF-8. The keys are always in this order, and what is a number is one, even if it was printed meanwhile.
# The words are ours, and have nothing to escape.
sub json {
    my ($record) = @_;
    state $json = _coder();
    my $uuid = defined $record->{uuid} ? qq("$record->{uuid}") : 'null';
    my $args = %{ $record->{args} } ? $json->encode($record->{args}) : '{}';
    my $typed = exists $record->{type} ? _json_types($record) : '';
    return qq({"v":1,"time":"$record->{time}","seq":$record->{seq},"uri":) . _json_text($record->{uri})
        . qq(,"class":"$record->{class}","event":"$record->{event}","event_id":) . ($record->{event_id} // 'null')
        . ',"name":' . _json_text($record->{name}) . qq(,"uuid":$uuid,"id":) . ($record->{id} // 'null')
        . qq($typed,"args":$args});
}

sub _json_types {
    my ($record) = @_;
    my $type = defined $record->{type} ? qq("$record->{type}") : 'null';
    my $detail = defined $record->{detail} ? qq("$record->{detail}") : 'null';
    return qq(,"type":$type,"detail":$detail,"type_code":) . ($record->{type_code} // 'null')
        . ',"detail_code":' . ($record->{detail_code} // 'null');
}

# They come again and again.
sub _json_text {
    my ($text) = @_;
    return 'null' if !defined $text;
    state $json = _coder();
    state $known = {};
    $known = {} if keys %$known >= 1000;
    return $known->{$text} //= $json->encode($text);
}

sub _coder {
    local ($@, $SIG{__DIE__});
    my $can_be_loaded = sub { my $file = s{::}{/}gr . '.pm'; eval { require $file } };
    my $class = List::Util::first(\&$can_be_loaded, qw(Cpanel::JSON::XS JSON::PP));
    Carp::croak('Cannot write JSON: neither Cpanel::JSON::XS nor JSON::PP is installed') if !$class;
    return $class->new->utf8->canonical->allow_nonref;
}

1;

__END__

=encoding UTF-8

=head1 NAME

Sys::Virt::Event::Record - what an event of libvirt says, in names and words

=head1 SYNOPSIS

=for test program
/\{"v":1,.*"class":"domain","event":"state",.*\}/
/(?:\{"v":1,.*\}\n)+\{.*\}/

  use strict;
  use warnings;
  use Sys::Virt::Event::Poll -register;
  use Sys::Virt::Event::Connection;

  my $uri  = 'test:///default';
  my $conn = Sys::Virt::Event::Connection->new(uri => $uri)->open;
  for my $record ($conn->snapshot) {
      print Sys::Virt::Event::Record::json($record), "\n";
  }

=head1 DESCRIPTION

L<Sys::Virt> gives the arguments of an event by position, as numbers, and documents some of them. This module makes a
hash of them, in which each has a name, and what stands for something has a word. L<Sys::Virt::Event::Connection> gives
these to its listeners, and L<virt-events> prints them.

The words are those of libvirt's constants, in lower case, with hyphens: C<VIR_DOMAIN_EVENT_SUSPENDED_API_ERROR> has
the C<type> C<suspended> and the C<detail> C<api-error>. They are taken from the constants of the installed Sys::Virt.

=head1 THE RECORD

All records have these keys:

=over

=item v

1, the version of this list.

=item time

When it arrived here, in UTC: C<2026-11-22T06:41:15.197Z> (RFC 3339).

=item seq

A number that rises with each record of this process.

=item uri

Of the connection, as it was given. undef if none was given and the connection has not been open yet.

=item class

C<domain>, C<network>, C<pool>, C<device>, C<secret>, or C<connection>.

=item event

What happened: C<lifecycle>, C<reboot>, C<block-job> ... It is libvirt's name, without the 2 of C<BLOCK_JOB_2>. An
object's state is C<state>. What C<connection> has is listed in L<Sys::Virt::Event::Connection/CONNECTION EVENTS>.

=item event_id

libvirt's number of the event in its class. undef for C<state> and those of C<connection>.

=item name, uuid, id

Of the object. The id is that of a domain, and undef while it is off. A device has no uuid. The name of a secret is its
usage id. For C<connection> all are undef. Names are texts: their UTF-8 is decoded.

=item args

A hash of the arguments by name, empty for C<lifecycle> and C<state>.

=back

C<lifecycle> and C<state> have four more:

=over

=item type, detail

What has become of it, and why: C<stopped> and C<destroyed>. undef where Sys::Virt has no word for it.

=item type_code, detail_code

The numbers that these stand for. undef where there are none: the state of a network has a word only.

=back

=head1 ARGUMENTS

Where a word is named, its number is there, too, with C<_code> after the name. What is not listed has none. Of an
event, or an argument, that is newer than this list, they are C<arg1>, C<arg2> and so on.

=for test text

  domain/agent-lifecycle            state (word), reason (word)
  domain/balloon-change             actual (KiB)
  domain/block-job                  dev (of BLOCK_JOB path), type (word),
                                    status (word)
  domain/block-threshold            dev, path, threshold (bytes),
                                    excess (bytes)
  domain/device-added               alias
  domain/device-removal-failed      alias
  domain/device-removed             alias
  domain/disk-change                old, new, alias, reason (word)
  domain/graphics                   phase (word), local, remote (each
                                    family (word), node, service), auth,
                                    ids (list of type, name)
  domain/io-error                   src, alias, action (word)
  domain/io-error-reason            src, alias, action (word), reason
  domain/job-completed              params
  domain/memory-device-size-change  alias, size (KiB)
  domain/memory-failure             recipient (word), action (word),
                                    flags (list of words)
  domain/metadata-change            type (word), nsuri
  domain/migration-iteration        iteration
  domain/nic-mac-change             alias, old, new
  domain/pmsuspend                  reason
  domain/pmsuspend-disk             reason
  domain/pmwakeup                   reason
  domain/rtc-change                 utcoffset (seconds)
  domain/tray-change                alias, reason (word)
  domain/tunable                    params
  domain/vcpu-removed               vcpu
  domain/watchdog                   action (word)
  network/metadata-change           type (word), nsuri

=head1 FUNCTIONS

None is exported.

=head2 json($record)

Returns it as a line of JSON in UTF-8, without the line end. The keys are in the order above, C<type> and so on before
C<args>. Numbers are numbers. L<Cpanel::JSON::XS> is used if it is installed, else L<JSON::PP>.

=head2 state_of($record)

The state in which a C<state> or C<lifecycle> record of a domain leaves it: C<running>, C<paused> and so on; undef if
it tells none. A domain that starts paused has a record of the type C<started>, which tells C<running>, and then one
of the type C<suspended>.

=head2 states()

All such states.

=head2 classes()

The classes of objects that libvirt has events for.

=head2 events_of($class)

A list of hashes, one for each event of the class that the installed Sys::Virt knows. Each has C<class>, C<name> and
C<id>. C<channel-lifecycle> is not among them: Sys::Virt 12.7.0 crashes when it is told.

=head2 types_of($class)

The types of the lifecycle events of a class, as words.

=head2 methods_of($class)

The names of the methods of a L<Sys::Virt> object that register and deregister callbacks for the class.

=head2 of_event($event, $uri, $object, @arguments)

A record of what a callback has got. C<$event> is from C<events_of>.

=head2 of_state($class, $uri, $object, $state, $reason)

A record of an object's state, a number, or a word.

=head2 of_connection($uri, $event, %args)

A record of the connection itself.

=head2 close_reason($number)

The word for what a close callback is told.

=head1 SEE ALSO

L<Sys::Virt::Event::Connection>, L<virt-events>.

=head1 AUTHOR AND LICENSE

The Sys-Virt-Event developers. This program is free software; you can redistribute it and/or modify it under the same
terms as Perl itself.

=cut
