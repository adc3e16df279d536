package VirtTest::Schema;

# The tables in the manual of virt-events say what its JSON is like. Here lines are held to them.

use strict;
use warnings;

use JSON::PP ();

my $JSON = JSON::PP->new->allow_nonref->canonical;

my %LOOKS = (
    integer => qr/\A-?\d+\z/, number => qr/\A-?\d+(?:\.\d+)?\z/, string => qr/\A".*"\z/, word => qr/\A"[a-z0-9-]+"\z/,
    uuid    => qr/\A"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"\z/, object => qr/\A\{.*\}\z/, array => qr/\A\[.*\]\z/,
    time    => qr/\A"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"\z/,
);

# When a key may be null, in the words of the manual.
my %NULL = (
    'never'                                  => sub { 0 },
    'while nobody knows'                     => sub { $_[0]{class} eq 'connection' && $_[0]{event} ne 'opened' },
    'of states and connections'              => sub { $_[0]{event} eq 'state' || $_[0]{class} eq 'connection' },
    'of connections'                         => sub { $_[0]{class} eq 'connection' },
    'of connections and devices'             => sub { $_[0]{class} =~ /\A(?:connection|device)\z/ },
    'of what is not a running domain'        => \&_is_not_running,
    'of states that libvirt has no numbers'  =>
        sub { $_[0]{event} eq 'state' && $_[0]{class} !~ /\A(?:domain|pool)\z/ },
    'of states that libvirt gives no reason' => sub { $_[0]{event} eq 'state' && $_[0]{class} ne 'domain' },
    'if Sys::Virt has no word for the code'  => sub { 1 },
);

sub new {
    my ($class, $file) = @_;
    open my $in, '<', $file or die "Cannot read $file: $!\n";
    my ($pod) = join('', <$in>) =~ /^=head2 JSON\n(.*?)^=head\d/ms;
    my ($keys) = $pod =~ /^  key +type +null\n((?:  .+\n)+)/m;
    my ($events) = $pod =~ /^  event +args\n((?:  .+\n)+)/m;
    $events =~ s/,\n +/, /g;
    my %arguments;
    for (split /\n/, $events) {
        my ($event, $list) = /\A  (\S+) +(.+)\z/;
        $arguments{$event} = { map { split ' ' } split /, /, $list };
    }
    return bless { keys => [map { [split ' ', $_, 3] } split /\n/, $keys], arguments => \%arguments }, $class;
}

# The types of the arguments by their names; none for an event that is not in the manual.
sub arguments { my ($self, $event) = @_; return $self->{arguments}{$event} || {} }

sub events { my ($self) = @_; return sort keys %{ $self->{arguments} } }

# What is wrong with a line.
sub complaints {
    my ($self, $line) = @_;
    my $record = JSON::PP::decode_json($line);
    my $is_typed = $record->{event} =~ /\A(?:lifecycle|state)\z/;
    my @expected = grep { $is_typed || $_->[0] !~ /\A(?:type|detail)/ } @{ $self->{keys} };
    my ($head) = $line =~ /\A(.*?"args":)/;
    my @complaints = join(' ', $head =~ /[{,]"(\w+)":/g) eq join(' ', map { $_->[0] } @expected) ? () : 'keys';
    for (@expected) {
        my ($key, $type, $when) = @$_;
        push @complaints, $key if !(defined $record->{$key} ? _looks($type, $record->{$key}) : _null($when, $record));
    }
    my ($args, $types) = ($record->{args}, $self->arguments("$record->{class}/$record->{event}"));
    push @complaints, 'arguments' if join(' ', sort keys %$args) ne join ' ', sort keys %$types;
    push @complaints, map { "args.$_" }
        grep { defined $args->{$_} && !_looks($types->{$_}, $args->{$_}) } sort keys %$types;
    return map { "$_ of $line" } @complaints;
}

# Numbers are told from texts by how they are written.
sub _looks {
    my ($type, $value) = @_;
    my $pattern = $LOOKS{$type} || die "The manual has a type $type\n";
    return $JSON->encode($value) =~ $pattern;
}

sub _null {
    my ($when, $record) = @_;
    my ($words) = sort { length $b <=> length $a } grep { $when =~ /\A\Q$_\E\b/ } keys %NULL;
    die "The manual says null $when\n" if !defined $words;
    return $NULL{$words}->($record);
}

# A domain that has just started has an id; one that ends may still have it.
sub _is_not_running {
    my ($record) = @_;
    my $type = $record->{type} // '';
    return $record->{class} ne 'domain' || $type !~ /\A(?:started|running|suspended|resumed|paused)\z/;
}

1;
