package Sys::Virt::Event::Tool::Human;
use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

use List::Util ();
use POSIX ();
use Sys::Virt::Event::Record ();
use Term::ANSIColor ();
use Time::Local ();

# Records as lines for people: columns, words, colours.

my %CLOSE_REASON = (
    error     => 'input/output error',
    eof       => 'the server closed the connection',
    keepalive => 'the server does not answer',
    client    => 'closed by this program',
);

# By the type of a lifecycle or state, else by the event.
my %COLOUR = (
    (map { $_ => 'red' } qw(crashed failed io-error watchdog control-error memory-failure device-removal-failed)),
    (map { $_ => 'yellow' } qw(stopped shutdown shutoff inactive undefined deleted closed retry)),
    (map { $_ => 'cyan' } qw(suspended paused pmsuspended blocked)),
    (map { $_ => 'green' } qw(started resumed running active opened defined created)),
);

# uris: those that the records are of, undef for libvirt's default. has_colour: whether there are to be colours.
sub new {
    my ($class, %opt) = @_;
    my @uris = @{ $opt{uris} };
    my $width = @uris > 1 ? List::Util::max(map { length } @uris) : undef;
    my $self = bless { uri_width => $width, colours => {} }, $class;
    return $self if !$opt{has_colour};
    # Whoever asked for colours gets them.
    delete local $ENV{NO_COLOR};
    my %code = map { $_ => Term::ANSIColor::color($_) } values %COLOUR, 'reset';
    $self->{colours} = { map { $_ => $code{ $COLOUR{$_} } } keys %COLOUR };
    $self->{reset} = $code{reset};
    return $self;
}

# UTF-8.
sub line {
    my ($self, $record) = @_;
    my $name = $record->{class} eq 'connection' && !$self->{uri_width} ? $record->{uri} : $record->{name};
    my $colour = $self->{colours}{ $record->{type} // $record->{event} };
    return $self->_columns($record, $name, _text($record), $colour);
}

sub _columns {
    my ($self, $record, $name, $text, $colour) = @_;
    $name = printable($name // '');
    my @columns = (_local_time($record->{time}), sprintf('%-10s', $record->{class}), sprintf('%-14s', $name));
    splice @columns, 1, 0, sprintf('%-*s', $self->{uri_width}, printable($record->{uri})) if $self->{uri_width};
    $text = printable($text);
    $text = "$colour$text$self->{reset}" if defined $colour;
    my $line = join '  ', @columns, $text;
    utf8::encode($line);
    return $line;
}

sub _local_time {
    my ($time) = @_;
    state $known = '';
    state $stamp;
    my ($second, $ms) = $time =~ /\A(.{19})\.(\d+)Z\z/;
    if ($second ne $known) {
        my ($year, $month, $day, $h, $m, $s) = split /[-T:]/, $second;
        $stamp = POSIX::strftime('%H:%M:%S', localtime Time::Local::timegm($s, $m, $h, $day, $month - 1, $year));
        $known = $second;
    }
    return "$stamp.$ms";
}

# Names and texts come from elsewhere: no line ends and no terminal's escape sequences among them.
sub printable {
    my ($text) = @_;
    return $text =~ s/([\x00-\x1f\x7f-\x9f])/sprintf '\\x%02x', ord $1/ger;
}

# What happened

sub _text {
    my ($record) = @_;
    my ($class, $event, $args) = @$record{qw(class event args)};
    return _type($record) if $event eq 'lifecycle';
    return 'state ' . _type($record) if $event eq 'state';
    my @details = $class eq 'connection' ? _of_connection($event, $args) : _pairs($args, _order("$class/$event"));
    return @details ? "$event: " . join ', ', @details : $event;
}

sub _type {
    my ($record) = @_;
    my ($type, $detail, $type_code, $detail_code) = @$record{qw(type detail type_code detail_code)};
    my $text = $type // "lifecycle $type_code";
    return defined $detail ? "$text: $detail" : $detail_code ? "$text: detail $detail_code" : $text;
}

sub _of_connection {
    my ($event, $args) = @_;
    my $reason = $args->{reason} // '';
    return $CLOSE_REASON{$reason} // "reason $args->{reason_code}" if $event eq 'closed';
    return sprintf '%s; again in %.1f s', $args->{error}, $args->{delay} if $event eq 'retry';
    return $args->{error} // ();
}

# The arguments of an event in libvirt's order.
sub _order {
    my ($what) = @_;
    state $order = {
        map { my $class = $_; map { ("$class/$_->{name}" => [map { $_->[0] } @{ $_->{arguments} }]) }
            Sys::Virt::Event::Record::events_of($class) } Sys::Virt::Event::Record::classes(),
    };
    return @{ $order->{$what} // [] };
}

# Each argument that has a value; a number for which there is a word only where the word is not known.
sub _pairs {
    my ($args, @first) = @_;
    my %rank = map { $first[$_] => $_ } 0 .. $#first;
    my @names = sort { ($rank{$a} // @first) <=> ($rank{$b} // @first) || $a cmp $b } grep { !/_code\z/ } keys %$args;
    return map {
        my $text = plain($args->{$_} // $args->{"${_}_code"});
        length $text ? "$_ $text" : ();
    } @names;
}

sub plain {
    my ($value) = @_;
    return '' if !defined $value;
    return join ' ', map { plain($_) } @$value if ref $value eq 'ARRAY';
    return join ' ', map { s/ /=/r } _pairs($value) if ref $value eq 'HASH';
    return "$value";
}

1;
