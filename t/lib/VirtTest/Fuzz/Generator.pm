package VirtTest::Fuzz::Generator;

# Makes the steps of random programs. It looks at the model of what has happened so far, so that most steps have
# something to do. The same seed makes the same steps, with any perl.

use strict;
use warnings;

use VirtTest::Fuzz::Mistakes;

# What is registered at most, by and large.
use constant CROWD => 10;

sub new {
    my ($class, $seed, $model) = @_;
    my $self = bless { state => $seed, model => $model, last_label => 0, last_loop => 0, last_number => 0 }, $class;
    $self->below(2) for 1 .. 4;
    return $self;
}

# A number from 0 up to, and without, the limit.
sub below {
    my ($self, $limit) = @_;
    $self->{state} = ($self->{state} * 1103515245 + 12345) % 2**31;
    return int(($self->{state} >> 8) * $limit / 2**23);
}

sub one_of { my ($self, @list) = @_; return $list[$self->below(scalar @list)] }

# One of the names, each as likely as its weight says.
sub weighted {
    my ($self, $weights) = @_;
    my $total = 0;
    $total += $_ for values %$weights;
    my $at = $self->below($total);
    for my $name (sort keys %$weights) {
        return $name if ($at -= $weights->{$name}) < 0;
    }
}

my %EVERYWHERE = (
    add_timeout => 7, add_handle => 7, update_timeout => 4, update_handle => 4, remove_timeout => 4, remove_handle => 4,
    c_add_timeout => 4, c_add_handle => 4, c_update_timeout => 2, c_update_handle => 2,
    c_remove_timeout => 2, c_remove_handle => 2, foreign => 5,
    dispatch => 20, dispatch_refused => 1, wrong_kind => 1, mix => 1, mix_free => 1, garbage => 1, acknowledge => 3,
    drop => 1, plan => 6, run => 6, register => 2, registered => 1, is_idle => 3, watches => 2, protect => 3,
    mistake => 1, drain_0 => 1, write => 4, read => 2,
);

# drain() waits for what a method has removed, which is not released before the method has returned.
my %AT_TOP = (%EVERYWHERE, drain => 1, hang_up => 1, replace => 2);

sub step {
    my ($self) = @_;
    return delete $self->{next} if $self->{next};
    return $self->step_of($self->weighted($self->is_crowded ? { %AT_TOP, remove_all => 20 } : \%AT_TOP), 2);
}

sub is_crowded { my ($self) = @_; return $self->{model}->registered > CROWD }

# How deep: scripts in it may have scripts.
sub step_of {
    my ($self, $name, $depth) = @_;
    my $method = "make_$name";
    return $self->can($method) ? $self->$method($depth) : [$name];
}

sub script_steps {
    my ($self, $depth) = @_;
    return [] if !$depth || $self->below(2);
    return [map { $self->step_of($self->weighted(\%EVERYWHERE), $depth - 1) } 0 .. $self->below(3)];
}

sub script {
    my ($self, $depth, @ends) = @_;
    my $end = $self->one_of(('return') x 5, qw(boom boom object), @ends);
    return [$self->script_steps($depth), $end, ++$self->{last_number}];
}

# In a script the watch whose it is; else one that is there, one that was, or one that only a script might make.
sub label {
    my ($self, $kind) = @_;
    return $self->{own} if $self->{own} && !$self->below(3);
    my $bound = $self->{model}{bound};
    my @there = grep { $bound->{$_}{registered} && (!$kind || $bound->{$_}{kind} eq $kind) } sort keys %$bound;
    return $self->one_of(@there) if @there && $self->below(10) < 8;
    return 1 + $self->below($self->{last_label} + 1);
}

sub some_label { my ($self) = @_; return $self->below(12) ? $self->label : 'wake' }

sub new_label { my ($self) = @_; return ++$self->{last_label} }

sub end { my ($self) = @_; return $self->one_of(qw(r0 r0 r1 r2 w0 w1)) }

sub ms { my ($self) = @_; return $self->one_of(0, 0, -1, 3_600_000, 7_200_000) }

sub events { my ($self) = @_; return $self->one_of(0, 1, 1, 1, 2, 3, 5, 15, $self->below(16)) }

sub value { my ($self, $kind) = @_; return $kind eq 'handle' ? $self->events : $self->ms }

sub free { my ($self, $depth) = @_; return $self->below(6) ? [] : $self->script_steps($depth) }

sub make_add_timeout {
    my ($self, $depth) = @_;
    local $self->{own} = $self->new_label;
    return [add_timeout => $self->{own}, $self->ms, $self->script($depth, 'next'), $self->free($depth)];
}

sub make_add_handle {
    my ($self, $depth) = @_;
    local $self->{own} = $self->new_label;
    return [add_handle => $self->{own}, $self->end, $self->events, $self->script($depth, 'next'),
        $self->free($depth)];
}

for my $kind (qw(timeout handle)) {
    for my $prefix ('', 'c_') {
        no strict 'refs';
        *{"make_${prefix}update_$kind"} = sub {
            my ($self) = @_;
            return ["${prefix}update_$kind", $self->label($self->below(15) ? $kind : undef), $self->value($kind)];
        };
        *{"make_${prefix}remove_$kind"} = sub {
            my ($self) = @_;
            return ["${prefix}remove_$kind", $self->label($self->below(15) ? $kind : undef)];
        };
    }
}

sub c_ops {
    my ($self, $depth) = @_;
    return [] if $self->below(2);
    return [map { $self->c_op($depth) } 0 .. $self->below(3)];
}

sub c_op {
    my ($self, $depth) = @_;
    my $name = $self->one_of(qw(update_timeout update_handle remove_timeout remove_handle call));
    return [call => $self->script($depth, 'next')] if $name eq 'call';
    my ($verb, $kind) = split /_/, $name;
    my $on = $self->below(2) ? 'self' : $self->label($kind);
    return [$name, $on, $verb eq 'update' ? $self->value($kind) : ()];
}

sub make_c_add_timeout {
    my ($self, $depth) = @_;
    local $self->{own} = $self->new_label;
    return [c_add_timeout => $self->{own}, $self->ms, $self->c_ops($depth),
        $self->below(4) ? [] : $self->c_ops($depth), $self->below(6) ? 0 : 1];
}

sub make_c_add_handle {
    my ($self, $depth) = @_;
    local $self->{own} = $self->new_label;
    return [c_add_handle => $self->{own}, $self->end, $self->events, $self->c_ops($depth),
        $self->below(4) ? [] : $self->c_ops($depth), $self->below(6) ? 0 : 1];
}

sub make_foreign {
    my ($self) = @_;
    my (@ops, @own);
    for (0 .. $self->below(4)) {
        my ($verb, $kind) = ($self->one_of(qw(add add update remove)), $self->one_of(qw(timeout handle)));
        my $label = $verb eq 'add' ? $self->new_label
            : @own && $self->below(2) ? $self->one_of(@own) : $self->label($kind);
        push @own, $label if $verb eq 'add';
        push @ops, ["${verb}_$kind", $label, $verb eq 'add' && $kind eq 'handle' ? $self->end : (),
            $verb eq 'remove' ? () : $self->value($kind)];
    }
    return [foreign => \@ops];
}

sub make_dispatch { my ($self) = @_; return [dispatch => $self->some_label, $self->below(16)] }
sub make_wrong_kind  { my ($self) = @_; return [wrong_kind => $self->some_label] }
sub make_acknowledge { my ($self) = @_; return [acknowledge => $self->some_label] }
sub make_drop        { my ($self) = @_; return [drop => $self->some_label] }
sub make_mix         { my ($self) = @_; return [mix => $self->some_label, $self->some_label] }
sub make_mix_free    { my ($self) = @_; return [mix_free => $self->some_label, $self->some_label] }

sub make_garbage {
    my ($self) = @_;
    return [garbage => $self->one_of(qw(run_timeout_callback run_handle_callback free_callback_opaque)),
        $self->one_of(qw(first opaque)), $self->below(100), $self->label];
}

sub make_plan {
    my ($self, $depth) = @_;
    my $method = $self->one_of(map { ("${_}_handle", "${_}_timeout") } qw(add update remove));
    local $self->{own} = $self->{last_label} + 1;    # likely to be what it is called for
    my $is_poll = $self->{model}{loop}{type} eq 'poll';
    my @keys    = $is_poll ? () : ('object', 'object', 'object', '0', '', 'text', '1.5', '-text');
    my @results = $method =~ /add/ ? ('default', @keys, qw(undef nothing -5 -0.5)) : qw(default default undef 7 -5);
    return [plan => $method, $self->script($depth), $self->one_of(@results)];
}

sub make_protect { my ($self, $depth) = @_; return [protect => $self->script($depth, 'next'), $self->below(2)] }
sub make_mistake { my ($self) = @_; my @all = mistakes(); return [mistake => $self->below(scalar @all)] }
sub make_write   { my ($self) = @_; return [write => $self->below(3)] }
sub make_read    { my ($self) = @_; return [read => $self->below(3)] }
sub make_hang_up { my ($self) = @_; return $self->below(10) ? [read => 2] : [hang_up => 2] }

sub new_loop {
    my ($self) = @_;
    my $type = $self->{last_loop} ? $self->one_of(qw(script script poll)) : $self->one_of(qw(script poll));
    return [register => ++$self->{last_loop}, $type, $self->one_of(undef, undef, 0, 1)];
}

# The first, a new one, or one that was there.
sub make_register {
    my ($self) = @_;
    return $self->new_loop if !$self->{last_loop} || $self->below(2);
    my $label = 1 + $self->below($self->{last_loop});
    my $loop  = $self->{model}{loops}{$label};
    return [register => $label, $loop ? $loop->{type} : 'script', $self->one_of(undef, 0, 1)];
}

# Another loop, when all is removed.
sub make_replace {
    my ($self) = @_;
    $self->{next} = $self->make_register;
    return ['remove_all'];
}

1;
