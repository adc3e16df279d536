package VirtTest::Fuzz::Model;

# What the contract says about a program: the lines that its trace must have. Written from the manual and the rules of
# the design, in plain Perl that knows nothing of the module. Programs are those of VirtTest::Fuzz; the trace is that
# of VirtTest::Fuzz::Subject, which runs the same steps.
#
# It is a second, naive implementation: one watch is a hash, a queue is an array, nothing is shared with anybody.
#
# A watch: name, kind, value; end (of a pipe); c (its callback is C), script and free (what they run); registered,
# attached (the loop has it), attaching; running, warned, dispatched; key; pending (calls of other threads).

use strict;
use warnings;

use VirtTest::Fuzz::Mistakes;

# How many steps a step may run inside callbacks and methods. Loops that call each other for ever are cut off there.
use constant BUDGET => 30;

use constant DRAIN_IN_CALLBACK => 'Cannot drain: a callback is running, which cannot go before it returns';

sub new {
    my ($class) = @_;
    return bless {
        trace => [], level => 0, budget => 0,
        watches => {}, bound => {}, instances => {},
        loops => {}, pipes => [map { { bytes => 0, hung_up => 0 } } 0 .. 2],
        mailbox => [], due => [], borders => [], locked => 0, running => 0,
    }, $class;
}

# The lines that a step adds.
sub run {
    my ($self, $step) = @_;
    $self->{trace}  = [];
    $self->{budget} = BUDGET;
    $self->steps([$step]);
    return @{ $self->{trace} };
}

sub line { my ($self, $text) = @_; push @{ $self->{trace} }, $text; return }

# Each step is a statement of Perl. What it says is told after it, when what became due in it is done.
sub steps {
    my ($self, $steps) = @_;
    $self->{level}++;
    for my $step (@$steps) {
        last if $self->{budget}-- <= 0;
        my ($name, @args) = @$step;
        my $method = "do_$name";
        my @says = $self->$method(@args);
        $self->settle;
        $self->line("$name: $_") for @says;
    }
    $self->{level}--;
    return;
}

# Runs a script: its steps, then what it ends with. Returns the exception, if that is one.
sub script {
    my ($self, $script) = @_;
    my ($steps, $end, $number) = @$script;
    $self->steps($steps);
    return undef if $end eq 'return';
    return q{Can't "next" outside a loop block} if $end eq 'next';
    my $error = $end eq 'object' ? "object $number" : "boom $number";
    $self->line("thrown $error");
    return $error;
}

sub warning { my ($self, $text) = @_; $self->line("warning $text"); return }

# Exceptions: the innermost of our functions on the stack throws them, the first at least.

sub park {
    my ($self, $error, $prefix) = @_;
    my $border = $self->{borders}[-1];
    return $self->warning($prefix . shown($error)) if !$border || $border->{error};
    $border->{error} = [$error, $prefix];
    return;
}

sub shown { my ($error) = @_; return $error =~ /\Aobject / ? 'VirtTest::Fuzz::Exception' : $error }

# Runs code inside one of our functions. Returns the exception that it throws, if any.
sub within {
    my ($self, $code, $after) = @_;
    my $border = {};
    push @{ $self->{borders} }, $border;
    $code->($border);
    my $error = delete $border->{error};
    $self->settle;
    $after->() if $after;
    pop @{ $self->{borders} };
    $self->warning($border->{error}[1] . shown($border->{error}[0])) if $border->{error};
    return $error && $error->[0];
}

sub outcome {
    my ($error, @result) = @_;
    return defined $error ? "died $error" : join ' ', 'ok', @result;
}

# Free functions: due from the removal, run when the statement is done in which it was, never under locks or
# under the watch's own callback.

sub make_due {
    my ($self, $watch) = @_;
    push @{ $self->{due} }, { watch => $watch, level => $self->{level} };
    return;
}

sub settle {
    my ($self) = @_;
    return if $self->{locked};
    $self->claim;
    my $due = $self->{due};
    while (my ($n) = grep { $self->may_free($due->[$_]) } 0 .. $#$due) {
        $self->free((splice @$due, $n, 1)->{watch});
    }
    return;
}

# What became due in deeper statements waits for this one from here on.
sub claim {
    my ($self) = @_;
    $_->{level} = $self->{level} for grep { $_->{level} > $self->{level} } @{ $self->{due} };
    return;
}

sub may_free {
    my ($self, $due) = @_;
    return $due->{level} >= $self->{level} && !$due->{watch}{running};
}

sub free {
    my ($self, $watch) = @_;
    $self->line($watch->{c} ? 'ff ' . shown_name($watch) : "released $watch->{name}");
    return $watch->{c} ? $self->c_ops($watch, $watch->{free}) : $self->steps($watch->{free});
}

# The loop's methods.

# Returns the exception and the plan's result, 'default' if it has none.
sub call_method {
    my ($self, $method, @shown) = @_;
    my $loop = $self->{loop};
    $self->line("$loop->{name} $method @shown");
    my $plan = shift @{ $loop->{plans}{$method} } or return (undef, 'default');
    my ($script, $result) = @$plan;
    $self->{locked}++;
    my $error = $self->script($script);
    $self->{locked}--;
    return ($error, $result);
}

sub failure {
    my ($self, $method, $what) = @_;
    my ($verb, $noun) = split /_/, $method;
    return "Cannot $verb $noun: $self->{loop}{class}::$method $what";
}

# True if the loop has it now.
sub attach {
    my ($self, $watch, $border) = @_;
    my $loop   = $self->{loop};
    my $method = "add_$watch->{kind}";
    my $value  = $watch->{value};
    $watch->{seen} = 1;
    $watch->{told} = $value;
    my ($error, $result) = $self->call_method($method, $watch->{end} // (), $value);
    my $refusal = defined $error ? "died: " : $result eq 'undef' || $result eq 'nothing' ? 'returned undef'
        : $result =~ /\A-\d/ ? "returned $result" : undef;
    if (!defined $refusal) {
        my $number = ++$loop->{last_key};
        $watch->{key} = $result eq 'default' ? $number : $result eq 'object' ? "object $loop->{name}-$number" : $result;
        $self->{holds}{ $watch->{key} } = 1 if $result eq 'object';
        push @{ $loop->{live} }, { watch => $watch, key => $watch->{key}, value => $value, served => 0 };
        return 1;
    }
    $watch->{seen} = 0;
    $self->{refused}++;
    my $text = $self->failure($method, $refusal);
    if (!$border) {
        $self->warning($text . (defined $error ? shown($error) : ''));
    } elsif ($border->{error}) {
        $self->warning($text . (defined $error ? shown($error) : ''));
    } else {
        $border->{error} = defined $error ? [$error, $text] : [$text, ''];
    }
    return 0;
}

# The first that the loop knows by that key: it may have given the same to several.
sub entry_of {
    my ($self, $key) = @_;
    my ($entry) = grep { $_->{key} eq $key } @{ $self->{loop}{live} };
    return $entry;
}

# Of the mask that it has the loop is not told, unless it is in doubt.
sub update_attached {
    my ($self, $watch, $value) = @_;
    return if $watch->{kind} eq 'handle' && defined $watch->{told} && $watch->{told} == $value;
    $watch->{told} = $value;
    my $key   = $watch->{key};
    my $entry = $self->entry_of($key);
    $entry->{value} = $value if $entry;
    $self->{holds}{$key}++ if $self->{holds}{$key};
    my $method = "update_$watch->{kind}";
    my ($error) = $self->call_method($method, $key, $value);
    delete $watch->{told} if defined $error || ($watch->{told} // $value) != $value;
    $self->park($error, $self->failure($method, 'died: ')) if defined $error;
    $self->release_key($key);
    return;
}

sub detach {
    my ($self, $watch) = @_;
    my $key   = $watch->{key};
    my $entry = $self->entry_of($key);
    $entry->{removed} = 1 if $entry;
    @{ $self->{loop}{live} } = grep { !$_->{removed} } @{ $self->{loop}{live} };
    my $method = "remove_$watch->{kind}";
    my ($error, $result) = $self->call_method($method, $key);
    $self->warning($self->failure($method, 'died: ') . shown($error)) if defined $error;
    $self->warning($self->failure($method, "returned $result")) if !defined $error && $result =~ /\A-\d/;
    $self->release_key($key);
    return;
}

# A key goes when the remove method has returned, and with it the methods that still have it.
sub release_key {
    my ($self, $key) = @_;
    return if !$self->{holds}{$key} || --$self->{holds}{$key};
    delete $self->{holds}{$key};
    $self->line("gone $key");
    return;
}

# The wake watch: with something registered, or always, or never.

sub wants_wake {
    my ($self) = @_;
    my $policy = $self->{loop}{wake};
    return 0 if $self->{wake_refused};
    return $policy if defined $policy;
    return $self->registered ? 1 : 0;
}

sub tend_wake {
    my ($self) = @_;
    return if $self->{tending} || !$self->wants_wake == !$self->{wake};
    local $self->{tending} = 1;
    return $self->take_wake if $self->{wake};
    $self->{has_wake_fd} = 1;
    my $wake = $self->{wake} = { name => 'wake', kind => 'handle', end => 'wake', value => 1 };
    $self->{last_wake} = $wake;
    $wake->{attached} = $self->attach($wake);
    return if $wake->{attached};
    undef $self->{wake};
    $self->{wake_refused} = 1;
    return;
}

sub take_wake {
    my ($self) = @_;
    my $wake = delete $self->{wake};
    $wake->{attached} = 0;
    $self->detach($wake);
    return;
}

sub ring { my ($self) = @_; $self->{rung} = 1 if $self->{has_wake_fd}; return }

# Calls of other threads: kept, one entry for each watch, and carried out when the owner enters.

sub post {
    my ($self, $watch, $call) = @_;
    my $pending = $watch->{pending} ||= {};
    my $posted = grep { $_ == $watch } @{ $self->{mailbox} };
    $pending->{$call} = 1;
    return if $posted;
    push @{ $self->{mailbox} }, $watch;
    $self->ring if @{ $self->{mailbox} } == 1;
    return;
}

sub enter {
    my ($self) = @_;
    return if $self->{emptying};
    local $self->{emptying} = 1;
    for (1 .. @{ $self->{mailbox} }) {
        my $watch = shift @{ $self->{mailbox} };
        my $calls = delete $watch->{pending} || {};
        if ($calls->{remove}) {
            $self->retire($watch);
        } elsif ($calls->{add}) {
            $watch->{attaching} = 1;
            $watch->{attached} = $self->attach($watch);
            $watch->{attaching} = 0;
        } elsif ($watch->{attached}) {
            $self->update_attached($watch, $watch->{value});
        }
    }
    return;
}

sub leave {
    my ($self) = @_;
    $self->tend_wake;
    $self->ring if @{ $self->{mailbox} };
    $self->claim if !$self->{locked};
    return;
}

sub deliver { my ($self) = @_; $self->enter; $self->leave; return }

# libvirt's six functions.

sub registered {
    my ($self, $kind) = @_;
    return grep { $_->{registered} && (!$kind || $_->{kind} eq $kind) } values %{ $self->{watches} };
}

sub watch_of {
    my ($self, $label, %is) = @_;
    my $name = "$label." . ++$self->{instances}{$label};
    return $self->{watches}{$name} = { name => $name, label => $label, dispatched => 0, running => 0, %is };
}

sub forget { my ($self, $watch) = @_; delete $self->{watches}{ $watch->{name} }; return }

# The program knows the id when add has returned.
sub bind {
    my ($self, $watch) = @_;
    $watch->{shown} = $watch->{name};
    $self->{bound}{ $watch->{label} } = $watch;
    return;
}

sub shown_name { my ($watch) = @_; return $watch->{shown} // 'unnamed' }

# border: of a public function, which throws what the loop refuses it with.
sub core_add {
    my ($self, $watch, $border) = @_;
    $self->enter;
    $watch->{attached} = $self->attach($watch, $border);
    if ($watch->{attached}) {
        $watch->{registered} = 1;
    } else {
        $self->forget($watch);
    }
    $self->leave;
    return $watch->{attached};
}

sub is_there { my ($watch, $kind) = @_; return $watch && $watch->{registered} && $watch->{kind} eq $kind }

sub core_update {
    my ($self, $kind, $watch, $value) = @_;
    $self->enter;
    if (is_there($watch, $kind)) {
        $watch->{value} = $value;
        if ($watch->{attaching}) {
            $self->post($watch, 'update');
        } elsif ($watch->{attached}) {
            $self->update_attached($watch, $value);
        }
    }
    $self->leave;
    return 0;
}

sub core_remove {
    my ($self, $kind, $watch) = @_;
    $self->enter;
    my $there = is_there($watch, $kind);
    if ($there) {
        $watch->{registered} = 0;
        if ($watch->{attaching}) {
            $self->post($watch, 'remove');
        } else {
            delete $watch->{pending};
            $self->retire($watch);
        }
    }
    $self->leave;
    return $there ? 0 : -1;
}

sub retire {
    my ($self, $watch) = @_;
    $self->detach($watch) if delete $watch->{attached};
    $self->make_due($watch) if !$watch->{no_ff};
    $self->forget($watch);
    return;
}

# Callbacks.

# Returns the exception that the helper method throws.
sub dispatch {
    my ($self, $watch, $events) = @_;
    my $called;
    return $self->within(sub { $called = $self->call_back($watch, $events) }, sub { $self->end($watch) if $called });
}

sub is_busy { my ($self, $watch) = @_; return $watch->{running} }

sub is_wake { my ($watch) = @_; return $watch->{end} && $watch->{end} eq 'wake' }

# Why it is not called, if it is there.
sub refusal {
    my ($self, $watch) = @_;
    return 'a method of the loop is running (the loop was run inside it)' if $self->{locked} && !is_wake($watch);
    return 'it is running already (a loop was run inside it)' if $self->is_busy($watch);
    return undef;
}

sub call_back {
    my ($self, $watch, $events) = @_;
    delete $watch->{told} if $watch->{kind} eq 'handle' && $events & 4;
    $self->deliver if !$self->{locked} || !$watch->{attached} || is_wake($watch);
    return 0 if !$watch->{attached};
    if (my $why = $self->refusal($watch)) {
        $self->warning("Cannot run callback: $why") if !$watch->{warned}++;
        return 0;
    }
    $watch->{running}++;
    $self->{running}++;
    $watch->{dispatched}++;
    if (is_wake($watch)) {
        $self->{rung} = 0;
        $self->deliver;
        return 1;
    }
    my $arguments = $watch->{kind} eq 'handle' ? " $watch->{end} $events" : '';
    if ($watch->{c}) {
        my $what = $watch->{kind} eq 'handle' ? 'handle' : 'timer';
        $self->line("c $what " . shown_name($watch) . $arguments);
        $self->c_ops($watch, $watch->{script});
    } else {
        $self->line("callback $watch->{name}$arguments");
        my $error = $self->script($watch->{script});
        $self->park($error, 'Exception in an event callback: ') if defined $error;
    }
    return 1;
}

sub end {
    my ($self, $watch) = @_;
    $watch->{running}--;
    $self->{running}--;
    $_->{level} = $self->{level} for grep { $_->{watch} == $watch } @{ $self->{due} };
    return;
}

# Ops that run in C, inside a callback or free function. The watches in them were looked up when the list was made;
# C knows its own when add has returned.
sub c_ops {
    my ($self, $watch, $ops) = @_;
    for my $op (@$ops) {
        my ($name, $on, $value) = @$op;
        my ($target, $shown, $result) = ($on, 'none', undef);
        if ($name eq 'call') {
            my $error = $self->script($on);
            $self->warning('capi: callback died: ' . shown($error)) if defined $error;
            $result = defined $error ? -1 : 0;
        } else {
            my ($verb, $kind) = split /_/, $name;
            $target = $watch->{returned} && $watch if $target && $target eq 'self';
            $shown  = shown_name($target) if $target;
            my $do = "core_$verb";
            $result = $self->$do($kind, $target, $value);
        }
        $self->line("c $name $shown = $result");
    }
    return;
}

# For those who ask.

sub outstanding {
    my ($self) = @_;
    return @{ $self->{due} } + grep { $_->{pending}{remove} } @{ $self->{mailbox} };
}

sub is_idle {
    my ($self) = @_;
    $self->deliver;
    $self->settle;
    return !$self->registered && !$self->outstanding ? 1 : 0;
}

sub count {
    my ($number, $noun) = @_;
    return $number ? "$number $noun" . ($number == 1 ? '' : 's') : ();
}

sub left {
    my ($self) = @_;
    $self->settle;
    return join ', ', count(scalar $self->registered('handle'), 'handle'),
        count(scalar $self->registered('timeout'), 'timeout'),
        count($self->outstanding, 'outstanding free function');
}

# The loop is to be replaced, and loses its wake watch. Returns the reason why it cannot be.
sub let_go {
    my ($self) = @_;
    $self->deliver;
    my $left  = $self->left;
    my $class = $self->{loop}{class};
    return "a callback of the registered event loop, $class, is running" if $self->{running} || $self->{locked};
    if (!$left) {
        $self->lose_wake;
        $left = $self->left or return undef;
        $self->deliver;
    }
    return "the registered event loop, $class, still has $left";
}

# What the method for it does brings no other one.
sub lose_wake {
    my ($self) = @_;
    local $self->{tending} = 1;
    $self->take_wake if $self->{wake};
    $self->{wake_refused} = 0;
    return;
}

# The steps.

sub do_register {
    my ($self, $label, $type, $wake) = @_;
    my $loop = $self->{loops}{$label} ||= {
        name => "loop$label", type => $type, class => "VirtTest::Fuzz::\u$type", plans => {}, live => [],
        last_key => 0, passes => 0,
    };
    my $old = $self->{loop};
    if (!$old || $old != $loop) {
        if ($old) {
            my $why_not = $self->let_go;
            return "died Cannot register: $why_not" if $why_not;
        }
        $self->{loop} = $loop;
        $loop->{wake} = $wake // ($loop->{type} eq 'poll' ? 1 : undef);
        $self->tend_wake;
    }
    return "ok $loop->{name}";
}

sub do_registered { my ($self) = @_; return "ok $self->{loop}{name}" }

sub do_is_idle { my ($self) = @_; return 'ok ' . $self->is_idle }

sub do_watches {
    my ($self) = @_;
    $self->deliver;
    return 'ok ' . join ', ', sort map {
        join ' ', shown_name($_), $_->{kind}, $_->{end} // (), @$_{qw(value dispatched)}
    } $self->registered;
}

sub add_public {
    my ($self, $watch) = @_;
    my $added;
    my $error = $self->within_add(sub { $added = $self->core_add($watch, $_[0]) });
    $added ? $self->bind($watch) : $self->free($watch);
    return outcome($error, $watch->{name});
}

# An add that has succeeded does not throw what else went wrong meanwhile.
sub within_add {
    my ($self, $code) = @_;
    my ($border, $error) = ({});
    push @{ $self->{borders} }, $border;
    if ($code->($border)) {
        $self->settle;
    } else {
        $error = delete $border->{error};
        $self->settle;
    }
    pop @{ $self->{borders} };
    $self->warning($border->{error}[1] . shown($border->{error}[0])) if $border->{error};
    return $error && $error->[0];
}

sub do_add_timeout {
    my ($self, $label, $ms, $script, $free) = @_;
    return $self->add_public(
        $self->watch_of($label, kind => 'timeout', value => $ms, script => $script, free => $free));
}

sub do_add_handle {
    my ($self, $label, $end, $events, $script, $free) = @_;
    return $self->add_public(
        $self->watch_of($label, kind => 'handle', end => $end, value => $events, script => $script, free => $free));
}

sub do_update_timeout { my ($self, @args) = @_; return $self->update_public(timeout => @args) }
sub do_update_handle  { my ($self, @args) = @_; return $self->update_public(handle => @args) }

sub update_public {
    my ($self, $kind, $label, $value) = @_;
    my $watch = $self->{bound}{$label} or return;
    return outcome($self->within(sub { $self->core_update($kind, $watch, $value) }));
}

sub do_remove_timeout { my ($self, @args) = @_; return $self->remove_public(timeout => @args) }
sub do_remove_handle  { my ($self, @args) = @_; return $self->remove_public(handle => @args) }

sub remove_public {
    my ($self, $kind, $label) = @_;
    my $watch = $self->{bound}{$label} or return;
    is_there($watch, $kind) or return "died Cannot remove $kind: no $kind with id $watch->{name} is registered";
    return outcome($self->within(sub { $self->core_remove($kind, $watch) }));
}

sub do_remove_all {
    my ($self) = @_;
    while (1) {
        for my $looks (qw(is_idle watches)) {
            $self->deliver;
            $self->settle;
        }
        my ($watch) = sort { $a->{name} cmp $b->{name} } $self->registered or last;
        my $error = $self->within(sub { $self->core_remove($watch->{kind}, $watch) });
        $self->settle;
        $self->line("removed $watch->{name}" . (defined $error ? ", died $error" : ''));
    }
    return;
}

# The same by libvirt's functions, called in C.

sub c_list {
    my ($self, $ops) = @_;
    return [map {
        my ($name, $on, @value) = @$_;
        [$name, $name eq 'call' || $on eq 'self' ? $on : $self->{bound}{$on}, @value];
    } @$ops];
}

sub c_add {
    my ($self, $label, $script, $free, %is) = @_;
    my $watch = $self->watch_of($label, c => 1, script => $self->c_list($script), free => [], %is);
    $free = $self->c_list($free);
    my $added = $watch->{returned} = $self->core_add($watch);
    $self->settle;
    return 'ok -1' if !$added;
    $watch->{free} = $free;
    $self->bind($watch);
    return "ok $watch->{name}";
}

sub do_c_add_timeout {
    my ($self, $label, $ms, $script, $free, $no_ff) = @_;
    return $self->c_add($label, $script, $free, kind => 'timeout', value => $ms, no_ff => $no_ff);
}

sub do_c_add_handle {
    my ($self, $label, $end, $events, $script, $free, $no_ff) = @_;
    return $self->c_add($label, $script, $free, kind => 'handle', end => $end, value => $events, no_ff => $no_ff);
}

sub c_direct {
    my ($self, $verb, $kind, $label, @value) = @_;
    my $watch = $self->{bound}{$label} or return;
    my $method = "core_$verb";
    return 'ok ' . $self->$method($kind, $watch, @value);
}

sub do_c_update_timeout { my ($self, @args) = @_; return $self->c_direct(update => timeout => @args) }
sub do_c_update_handle  { my ($self, @args) = @_; return $self->c_direct(update => handle => @args) }
sub do_c_remove_timeout { my ($self, @args) = @_; return $self->c_direct(remove => timeout => @args) }
sub do_c_remove_handle  { my ($self, @args) = @_; return $self->c_direct(remove => handle => @args) }

# Another thread makes these calls, while the owner waits for it in C.
sub do_foreign {
    my ($self, $ops) = @_;
    my (@results, @added, %added);
    for my $op (@$ops) {
        my ($name, $label, @rest) = @$op;
        my ($verb, $kind) = split /_/, $name;
        if ($verb eq 'add') {
            my ($end, $value) = $kind eq 'handle' ? @rest : (undef, @rest);
            my $watch = $self->watch_of($label, kind => $kind, end => $end, value => $value, c => 1,
                script => [], free => []);
            $watch->{registered} = 1;
            push @added, $added{$label} = $watch;
            $self->post($watch, 'add');
            push @results, $watch->{name};
            next;
        }
        my $watch = $added{$label} || $self->{bound}{$label};
        my $there = is_there($watch, $kind);
        $watch->{value} = $rest[0] if $there && $verb eq 'update';
        $watch->{registered} = 0 if $there && $verb eq 'remove';
        $self->post($watch, $verb) if $there;
        push @results, $there || $verb eq 'update' ? 0 : -1;
    }
    $self->bind($_) for @added;
    return "ok @results";
}

# What a loop calls.

sub seen {
    my ($self, $label) = @_;
    my $watch = $label eq 'wake' ? $self->{last_wake} : $self->{bound}{$label};
    return $watch && $watch->{seen} ? $watch : undef;
}

sub do_dispatch {
    my ($self, $label, $events) = @_;
    my $watch = $self->seen($label) or return;
    return outcome($self->dispatch($watch, $events));
}

# Of a watch that was refused.
sub do_dispatch_refused {
    my ($self) = @_;
    return if !$self->{refused};
    return outcome($self->within(sub { $self->deliver }));
}

sub do_wrong_kind {
    my ($self, $label) = @_;
    my $watch = $self->seen($label) or return;
    my $other = $watch->{kind} eq 'handle' ? 'timeout' : 'handle';
    return "died Cannot run $other callback: \$cb belongs to a $watch->{kind}";
}

sub do_mix {
    my ($self, $label, $other) = @_;
    my ($watch, $opaque) = map { $self->seen($_) || return } $label, $other;
    return if $watch == $opaque;
    return "died Cannot run $watch->{kind} callback: \$cb and \$opaque belong to different watches";
}

sub do_mix_free {
    my ($self, $label, $other) = @_;
    my ($watch, $opaque) = map { $self->seen($_) || return } $label, $other;
    return $watch == $opaque ? 'ok' : 'died Cannot free callback opaque: $ff and $opaque belong to different watches';
}

sub do_garbage {
    my ($self, $function, $place, $number, $label) = @_;
    my $watch = $self->seen($label) or return;
    my $name  = $place eq 'opaque' ? 'opaque' : $function eq 'free_callback_opaque' ? 'ff' : 'cb';
    return 'died Cannot ' . $function =~ tr/_/ /r . ": \$$name is not what add_handle or add_timeout was given";
}

# It is an acknowledgement, and changes nothing.
sub do_acknowledge {
    my ($self, $label) = @_;
    $self->seen($label) or return;
    return 'ok';
}

# The loop forgets the tokens.
sub do_drop {
    my ($self, $label) = @_;
    my $watch = $self->seen($label) or return;
    $watch->{seen} = 0;
    return 'ok';
}

sub do_plan {
    my ($self, $method, $script, $result) = @_;
    push @{ $self->{loop}{plans}{$method} }, [$script, $result];
    return;
}

sub do_protect {
    my ($self, $script, $is_list) = @_;
    $self->line('protected 1 2');
    my $error = $self->script($script);
    $self->park($error, 'Exception in a protected callback: ') if defined $error;
    return defined $error ? $is_list ? 'ok' : 'ok undef' : $is_list ? 'ok 3 4' : 'ok 4';
}

sub do_mistake { my ($self, $number) = @_; return 'died ' . (mistakes())[$number]{message} }

sub do_drain_0 {
    my ($self) = @_;
    return $self->{running} ? 'died ' . DRAIN_IN_CALLBACK : 'ok ' . $self->is_idle;
}

sub do_drain {
    my ($self) = @_;
    return 'died ' . DRAIN_IN_CALLBACK if $self->{running};
    # More than once only where a model has forgotten a rule.
    for (1 .. 5) {
        last if $self->is_idle;
        $self->line('run_for');
        $self->{level}++;
        $self->do_remove_all;
        $self->{level}--;
    }
    return 'ok 1';
}

# The loop's pass.

sub do_run {
    my ($self) = @_;
    $self->{level}++;
    my $pass = "pass_of_$self->{loop}{type}";
    my @says = $self->$pass;
    $self->{level}--;
    return @says;
}

# Ours calls back whatever it has, be it ready or not.
sub pass_of_script {
    my ($self) = @_;
    for my $entry (@{ [@{ $self->{loop}{live} }] }) {
        next if $entry->{removed};
        my $error = $self->dispatch($entry->{watch}, 1);
        $self->settle;
        return "died $error" if defined $error;
    }
    return 'ok 1';
}

sub bits {
    my ($self, $end) = @_;
    return $self->{rung} ? 1 : 0 if $end eq 'wake';
    return 2 if $end =~ /w/;
    my ($pipe) = $end =~ /(\d)/;
    my $state = $self->{pipes}[$pipe];
    return ($state->{bytes} ? 1 : 0) | ($state->{hung_up} ? 8 : 0);
}

sub pass_of_poll {
    my ($self) = @_;
    my $loop = $self->{loop};
    my @idle = grep { !$_->{busy} } @{ $loop->{live} };
    my @handles = grep { $_->{watch}{kind} eq 'handle' && $_->{value} } @idle;
    my @timers  = grep { $_->{watch}{kind} eq 'timeout' && $_->{value} >= 0 } @idle;
    my @ready = grep { $_->[1] }
        map { [$_, $self->bits($_->{watch}{end}) & ($_->{value} | 12)] } @handles;
    my @expired = grep { $_->{value} == 0 } @timers;
    my $nothing = !@timers && !grep { $_->{watch}{name} ne 'wake' } @handles;
    return 'ok 0' if $nothing && !@ready;

    my $pass = ++$loop->{passes};
    my @errors;
    for (@ready) {
        my ($entry, $events) = @$_;
        $self->may_serve($pass, $entry) or next;
        $events &= $entry->{value} | 12;
        next if !$entry->{value} || !$events;
        push @errors, $self->serve($entry, $events);
    }
    for my $entry (@expired) {
        $self->may_serve($pass, $entry) or next;
        next if $entry->{value} != 0;
        push @errors, $self->serve($entry);
    }
    my $first = shift @errors;
    $self->warning($_) for @errors;
    return defined $first ? "died $first" : 'ok 1';
}

sub may_serve {
    my ($self, $pass, $entry) = @_;
    return 0 if $entry->{removed} || $entry->{busy} || $entry->{served} > $pass;
    $entry->{served} = $self->{loop}{passes};
    return 1;
}

sub serve {
    my ($self, $entry, $events) = @_;
    local $entry->{busy} = 1;
    my $error = $self->dispatch($entry->{watch}, $events);
    $self->settle;
    return $error // ();
}

# Pipes.

sub do_write {
    my ($self, $number) = @_;
    my $pipe = $self->{pipes}[$number];
    $pipe->{bytes}++ if $pipe->{bytes} < 100 && !$pipe->{hung_up};
    return;
}

sub do_read {
    my ($self, $number) = @_;
    my $pipe = $self->{pipes}[$number];
    $pipe->{bytes}-- if $pipe->{bytes};
    return;
}

sub do_hang_up { my ($self, $number) = @_; $self->{pipes}[$number]{hung_up} = 1; return }

# The end of each program: nothing is left.
sub do_finish {
    my ($self) = @_;
    $_->{plans} = {} for values %{ $self->{loops} };
    $self->deliver;
    $self->settle;
    $self->do_remove_all;
    return 'ok ' . $self->is_idle;
}

1;
