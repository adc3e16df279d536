package Sys::Virt::Event::Tool::Selection;
use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

use Sys::Virt::Event::Record ();

# Which records are to be shown: by class, event, type, and the names of objects. A word that stands for nothing is an
# exception: a text for the tool's user.

my @CLASSES = Sys::Virt::Event::Record::classes();
my @OF_CONNECTIONS = qw(opened closed retry failed);

# class, event, type, not: lists of words; domain, network...: lists of names and globs; initial: also the states.
sub new {
    my ($class, %opt) = @_;
    my $self = bless { map { $_ => [_words($opt{$_})] } qw(event type not) }, $class;
    $self->{names} = { map { $opt{$_} ? ($_ => $opt{$_}) : () } @CLASSES };
    $self->{classes} = [$self->_classes(_words($opt{class}))];
    $self->_check_words;
    die "Nothing would be shown\n" if !$self->events && !($opt{initial} && $self->states);
    return $self;
}

sub _words { return map { split /,/ } @{ $_[0] // [] } }

sub _classes {
    my ($self, @given) = @_;
    my %named = %{ $self->{names} };
    my @chosen = @given ? @given : %named ? keys %named : @CLASSES;
    for my $class (@chosen) {
        die "--class takes no '$class', only ", join(', ', @CLASSES), "\n" if !_is_in($class, @CLASSES);
    }
    for my $class (sort keys %named) {
        die "--$class has no part in --class @given\n" if !_is_in($class, @chosen);
    }
    return grep { _is_in($_, @chosen) } @CLASSES;
}

sub _check_words {
    my ($self) = @_;
    _check('event', $self->{event}, map { _event_words($_) } @{ $self->{classes} });
    _check('type', $self->{type}, map { Sys::Virt::Event::Record::types_of($_) } @{ $self->{classes} });
    # What would not be shown anyway can be left out, too.
    _check('not', $self->{not}, 'connection', (map { ($_, "connection/$_") } @OF_CONNECTIONS),
        map { ($_, _event_words($_), Sys::Virt::Event::Record::types_of($_)) } @CLASSES);
    return;
}

sub _check {
    my ($option, $words, @known) = @_;
    for my $word (@$words) {
        die "--$option takes no '$word' here, see --list\n" if !_is_in($word, @known);
    }
    return;
}

sub _is_in { my ($word, @words) = @_; return scalar grep { $_ eq $word } @words }

sub _event_names {
    my ($class) = @_;
    my %seen;
    return grep { !$seen{$_}++ } map { $_->{name} } Sys::Virt::Event::Record::events_of($class);
}

sub _event_words { my ($class) = @_; return map { ($_, "$class/$_") } _event_names($class) }

# What to listen to on a connection: pairs of CLASS/EVENT and a filter. What cannot pass is not among it.
sub events {
    my ($self) = @_;
    return map { my $class = $_; map { $self->_event($class, $_) } _event_names($class) } @{ $self->{classes} };
}

sub _event {
    my ($self, $class, $event) = @_;
    my ($wanted, $types) = @$self{qw(event type)};
    return if @$wanted && !_is_in($event, @$wanted) && !_is_in("$class/$event", @$wanted);
    return if @$types && $event ne 'lifecycle' || $self->_is_out($class, $event);
    my %filter = %{ $self->_name_filter($class) };
    if ($event eq 'lifecycle') {
        my @in = $self->types_of($class) or return;
        my @out = $self->_types_left_out($class);
        # A type that is newer than the installed Sys::Virt is not among those that were given.
        $filter{type} = @$types ? \@in : do { my $any = join '|', @out; qr/\A(?!(?:$any)\z)/ } if @$types || @out;
    }
    return ["$class/$event", \%filter];
}

# The known types of lifecycle events that are shown.
sub types_of {
    my ($self, $class) = @_;
    my $types = $self->{type};
    my @out = $self->_types_left_out($class);
    return grep { (!@$types || _is_in($_, @$types)) && !_is_in($_, @out) } Sys::Virt::Event::Record::types_of($class);
}

sub _types_left_out {
    my ($self, $class) = @_;
    return grep { _is_in($_, @{ $self->{not} }) } Sys::Virt::Event::Record::types_of($class);
}

# The states of objects, which --event and --type have no part in.
sub states {
    my ($self) = @_;
    return map { $self->_is_out($_, 'state') ? () : ["$_/state", $self->_name_filter($_)] } @{ $self->{classes} };
}

sub _name_filter {
    my ($self, $class) = @_;
    my $names = $self->{names}{$class};
    return $names ? { name => $names } : {};
}

# Connections tell of themselves whatever is selected.
sub of_connections {
    my ($self) = @_;
    return grep { !$self->_is_out('connection', $_) } @OF_CONNECTIONS;
}

sub _is_out {
    my ($self, $class, $event) = @_;
    return scalar grep { _is_in($_, @{ $self->{not} }) } $class, $event, "$class/$event";
}

1;
