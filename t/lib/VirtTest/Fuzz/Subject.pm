package VirtTest::Fuzz::Subject;

# Runs the steps of a program on the module itself, and writes down what happens, a line each: what the loop's methods
# are asked, which callbacks and free functions run, what is warned of and thrown, what functions return. Ids, keys and
# tokens appear under the names of the program's watches.

use 5.016;
use strict;
use warnings;

use Scalar::Util qw(refaddr);
use Sys::Virt::Event ();
use Sys::Virt::Event::Poll ();
use Test::Sys::Virt::EventImpl::CApi ();
use Test::Sys::Virt::EventImpl::Util qw(pipe_pair);
use VirtTest::Fuzz::Mistakes;
use VirtTest::Fuzz::Model ();

# What no callback, method or free function may change for whom it interrupts.
use constant { ERRNO => 33, VIRT_ERROR => 38, OTHER_ERRNO => 5, OTHER_VIRT_ERROR => 5 };

sub new {
    my ($class) = @_;
    my $self = bless {
        trace => [], budget => 0, names => { 0 => 'none' }, bound => {}, instances => {}, loops => {}, records => {},
    }, $class;
    $self->{pipes} = [map { my ($r, $w) = pipe_pair(); { r => $r, w => $w, bytes => 0 } } 0 .. 2];
    for my $n (0 .. 2) {
        $self->{ends}{"$_$n"} = fileno $self->{pipes}[$n]{$_} for qw(r w);
    }
    $self->{end_of} = { reverse %{ $self->{ends} } };
    $SIG{__WARN__} = sub { $self->line('warning ' . plain($_[0])) };
    $SIG{__DIE__}  = sub { $self->line('thrown ' . plain($_[0])) if ref $_[0] || $_[0] =~ /\Aboom / };
    # From here on the process counts as one with threads.
    Test::Sys::Virt::EventImpl::CApi::run_blocked([remove_timeout => 0]);
    return $self;
}

# The lines that a step adds.
sub run {
    my ($self, $step) = @_;
    $self->{trace}  = [];
    $self->{budget} = VirtTest::Fuzz::Model::BUDGET;
    $self->steps([$step]);
    $self->line;
    return @{ $self->{trace} };
}

# What C callbacks have seen meanwhile goes first.
sub line {
    my ($self, @text) = @_;
    push @{ $self->{trace} }, (map { $self->c_line($_) } Test::Sys::Virt::EventImpl::CApi::events()), @text;
    return;
}

sub c_line {
    my ($self, $entry) = @_;
    my $what = $entry->{what};
    my $thread = $entry->{thread} eq 'main' ? '' : ' on another thread';
    my $name = $self->{names}{ $entry->{id} } // 'unnamed';
    if (exists $entry->{result}) {
        $name = 'none' if $what eq 'call';
        return "c $what $name = $entry->{result}$thread";
    }
    return "c handle $name " . $self->end_of($entry->{fd}) . " $entry->{events}$thread" if $what eq 'handle';
    return "c timer $name$thread" if $what eq 'timer';
    my @calls = grep { /_/ } @{ $entry->{inside} };
    my $where = @calls ? " inside @calls" : $entry->{in_own} ? ' inside its own callback' : '';
    return "ff $name$where$thread";
}

sub end_of { my ($self, $fd) = @_; return $self->{end_of}{$fd} // "unknown fd $fd" }

# An exception or warning without the place.
sub plain {
    my ($error) = @_;
    return "object $error->{number}" if ref $error eq 'VirtTest::Fuzz::Exception';
    chomp $error;
    $error =~ s/ at \S+ line \d+(?:, <\S*> \w+ \d+)?\.\z//;
    $error =~ s/=HASH\(0x[0-9a-f]+\)//;
    return $error;
}

sub steps {
    my ($self, $steps) = @_;
    for my $step (@$steps) {
        last if $self->{budget}-- <= 0;
        my ($name, @args) = @$step;
        my $method = "do_$name";
        my @says = $self->$method(@args);
        $self->line(map { "$name: $_" } @says);
    }
    return;
}

sub clobber {
    $@ = 'clobbered';
    $_ = 'clobbered';
    Test::Sys::Virt::EventImpl::CApi::set_error(OTHER_VIRT_ERROR);
    $! = OTHER_ERRNO;
    return;
}

# A script's steps and its exception. The caller itself does what cannot be done from in here, next.
sub script {
    my ($self, $script) = @_;
    my ($steps, $end, $number) = @$script;
    clobber();
    $self->steps($steps);
    die "boom $number\n" if $end eq 'boom';
    die bless { number => $number }, 'VirtTest::Fuzz::Exception' if $end eq 'object';
    clobber();
    return $end eq 'next';
}

# For C, which knows nothing of $_.
sub code {
    my ($self, $script) = @_;
    return sub {
        local $_;
        if ($self->script($script)) {
            no warnings 'exiting';
            next;
        }
    };
}

# Calls a function. What it returned or threw.
sub outcome {
    my ($self, $code) = @_;
    my (@result, @disturbed);
    my $lives = eval {
        local $_ = 'topic';
        Test::Sys::Virt::EventImpl::CApi::set_error(VIRT_ERROR);
        ($@, $!) = ('kept', ERRNO);
        @result = $code->();
        @disturbed = ($@, $! + 0, $_, Test::Sys::Virt::EventImpl::CApi::last_error_code());
        1;
    };
    return 'died ' . plain($@) if !$lives;
    my @names  = ('$@', '$!', '$_', 'virError');
    my @differ = grep { $disturbed[$_] ne ('kept', ERRNO, 'topic', VIRT_ERROR)[$_] } 0 .. 3;
    return join ' ', 'ok', (map { $_ // 'undef' } @result), map { "$names[$_] changed" } @differ;
}

# Registration.

sub do_register {
    my ($self, $label, $type, $wake) = @_;
    my $loop = $self->{loops}{$label} ||= "VirtTest::Fuzz::\u$type"->make($self, "loop$label", $label);
    return $self->outcome(sub {
        my $returned = $loop->register(defined $wake ? (wake => $wake) : ());
        $returned == $loop or die "register returned something else\n";
        $Sys::Virt::Event::eventimpl == $loop or die "eventimpl is something else\n";
        $loop->{fuzz}{name};
    });
}

sub current { return Sys::Virt::Event::registered() }

sub do_registered { my ($self) = @_; return $self->outcome(sub { current()->{fuzz}{name} }) }

# Names.

sub name {
    my ($self, $label) = @_;
    return "$label." . ++$self->{instances}{$label};
}

# True if the id is a new one. What was seen of it before it is known here is written down first.
sub bind {
    my ($self, $label, $name, $id) = @_;
    $self->line;
    return 0 if $id !~ /\A[1-9][0-9]*\z/ || $self->{names}{$id};
    $self->{names}{$id} = $name;
    $self->{bound}{$label} = $id;
    return 1;
}

# A public function, its messages with our names for ids.
sub public {
    my ($self, $function, @args) = @_;
    my $outcome = $self->outcome(sub { no strict 'refs'; &{"Sys::Virt::Event::$function"}(@args) });
    $outcome =~ s/with id (\d+)/with id @{[ $self->{names}{$1} \/\/ $1 ]}/ if $function =~ /\Aremove/;
    return $outcome;
}

sub add_public {
    my ($self, $function, $label, $args, $script, $free) = @_;
    my $name = $self->name($label);
    return $self->outcome(sub {
        my $id = do {
            no strict 'refs';
            &{"Sys::Virt::Event::$function"}(@$args, $self->callback($function, $name, $script, $free));
        };
        $self->bind($label, $name, $id) ? $name : "id $id is not new";
    });
}

sub callback {
    my ($self, $function, $name, $script, $free) = @_;
    my $guard = VirtTest::Fuzz::Guard->new(sub { $self->line("released $name"); clobber(); $self->steps($free) });
    return sub {
        my ($id, $fd, $events) = @_;
        $guard->{calls}++;
        my $is_right = ($self->{names}{$id} // $name) eq $name ? '' : " with id $id";
        my $shown = $function eq 'add_handle' ? ' ' . $self->end_of($fd) . " $events" : '';
        $self->line("callback $name$shown$is_right");
        if ($self->script($script)) {
            no warnings 'exiting';
            next;
        }
    };
}

sub do_add_timeout {
    my ($self, $label, $ms, @rest) = @_;
    return $self->add_public(add_timeout => $label, [$ms], @rest);
}

sub do_add_handle {
    my ($self, $label, $end, $events, @rest) = @_;
    return $self->add_public(add_handle => $label, [$self->{ends}{$end}, $events], @rest);
}

for my $function (qw(update_timeout update_handle remove_timeout remove_handle)) {
    no strict 'refs';
    *{"do_$function"} = sub {
        my ($self, $label, @value) = @_;
        my $id = $self->{bound}{$label} or return;
        return $self->public($function, $id, @value);
    };
    *{"do_c_$function"} = sub {
        my ($self, $label, @value) = @_;
        my $id = $self->{bound}{$label} or return;
        return $self->outcome(sub { &{"Test::Sys::Virt::EventImpl::CApi::$function"}($id, @value) });
    };
}

sub do_remove_all {
    my ($self) = @_;
    while (1) {
        Sys::Virt::Event::is_idle();
        my %kind = map { $self->{names}{ $_->{id} } => $_ } Sys::Virt::Event::watches();
        my ($name) = sort keys %kind or last;
        my $watch = $kind{$name};
        my $outcome = $self->public("remove_$watch->{kind}", $watch->{id});
        $self->line("removed $name" . ($outcome eq 'ok' ? '' : ", $outcome"));
    }
    return;
}

# The same by libvirt's functions, called in C.

sub c_list {
    my ($self, $ops) = @_;
    return map {
        my ($name, $on, @value) = @$_;
        [$name, $name eq 'call' ? $self->code($on) : $on eq 'self' ? $on : $self->{bound}{$on} // 0, @value];
    } @$ops;
}

sub c_add {
    my ($self, $kind, $label, $args, $script, $free, $no_ff) = @_;
    my $name = $self->name($label);
    my @ops  = $self->c_list($script);
    my @free = $self->c_list($free);
    return $self->outcome(sub {
        no strict 'refs';
        my $id = &{"Test::Sys::Virt::EventImpl::CApi::add_$kind"}(@$args, null_ff => $no_ff, in_callback => \@ops);
        return $id if $id == -1;
        &{"Test::Sys::Virt::EventImpl::CApi::on_${kind}_free"}($id, @free) if @free;
        $self->bind($label, $name, $id) ? $name : "id $id is not new";
    });
}

sub do_c_add_timeout {
    my ($self, $label, $ms, @rest) = @_;
    return $self->c_add(timeout => $label, [$ms], @rest);
}

sub do_c_add_handle {
    my ($self, $label, $end, $events, @rest) = @_;
    return $self->c_add(handle => $label, [$self->{ends}{$end}, $events], @rest);
}

sub do_foreign {
    my ($self, $ops) = @_;
    my (@list, %index, @name);
    for my $n (0 .. $#$ops) {
        my ($op, $label, @rest) = @{ $ops->[$n] };
        if ($op =~ /\Aadd/) {
            $index{$label} = $n;
            $name[$n] = $self->name($label);
            push @list, [$op, $op eq 'add_handle' ? ($self->{ends}{ $rest[0] }, $rest[1]) : @rest];
        } else {
            my $id = defined $index{$label} ? \($index{$label}) : $self->{bound}{$label} // 0;
            push @list, [$op, $id, @rest];
        }
    }
    my @results = @{ Test::Sys::Virt::EventImpl::CApi::run_blocked(@list)->{results} };
    for my $n (grep { defined $name[$_] } 0 .. $#$ops) {
        $results[$n] = $self->bind($ops->[$n][1], $name[$n], $results[$n]) ? $name[$n] : "id $results[$n] is not new";
    }
    return "ok @results";
}

# What a loop calls, with the tokens that it was given.

sub record {
    my ($self, $label) = @_;
    my $id = $label eq 'wake' ? 'wake' : $self->{bound}{$label} or return undef;
    return $self->{records}{$id};
}

sub call_helper {
    my ($self, $function, @args) = @_;
    my $method = "_$function";
    return $self->outcome(sub { current()->$method(@args) });
}

sub run_record {
    my ($record, $events) = @_;
    my $loop = current();
    return $loop->_run_timeout_callback(0, @$record{qw(cb opaque)}) if $record->{kind} eq 'timeout';
    return $loop->_run_handle_callback(0, 0, $events, @$record{qw(cb opaque)});
}

sub do_dispatch {
    my ($self, $label, $events) = @_;
    my $record = $self->record($label) or return;
    return $self->outcome(sub { run_record($record, $events) });
}

sub do_dispatch_refused {
    my ($self) = @_;
    my $record = $self->{refused} or return;
    return $self->outcome(sub { run_record($record, 1) });
}

sub do_wrong_kind {
    my ($self, $label) = @_;
    my $record = $self->record($label) or return;
    my $other = { %$record, kind => $record->{kind} eq 'handle' ? 'timeout' : 'handle' };
    return $self->outcome(sub { run_record($other, 1) });
}

sub do_mix {
    my ($self, $label, $other) = @_;
    my ($one, $two) = map { $self->record($_) || return } $label, $other;
    return if $one == $two;
    return $self->outcome(sub { run_record({ %$one, opaque => $two->{opaque} }, 1) });
}

sub do_mix_free {
    my ($self, $label, $other) = @_;
    my ($one, $two) = map { $self->record($_) || return } $label, $other;
    return $self->call_helper(free_callback_opaque => $one->{ff}, $two->{opaque});
}

my @garbage = (undef, 0, 42, '', 'token', \'token', [], {}, sub { }, \*STDIN, bless(\(my $number = 1), 'Other'),
    bless(\(my $other = 1), 'Sys::Virt::Event::Token'));

sub do_garbage {
    my ($self, $function, $place, $number, $label) = @_;
    my $record = $self->record($label) or return;
    my $garbage = $garbage[$number % @garbage];
    my @tokens = $place eq 'opaque' ? ($record->{cb}, $garbage) : ($garbage, $record->{opaque});
    my @before = $function eq 'run_handle_callback' ? (0, 0, 1) : $function eq 'run_timeout_callback' ? 0 : ();
    return $self->call_helper($function, @before, @tokens);
}

sub do_acknowledge {
    my ($self, $label) = @_;
    my $record = $self->record($label) or return;
    return $self->call_helper(free_callback_opaque => @$record{qw(ff opaque)});
}

sub do_drop {
    my ($self, $label) = @_;
    my $id = $label eq 'wake' ? 'wake' : $self->{bound}{$label};
    return $id && delete $self->{records}{$id} ? 'ok' : ();
}

sub do_plan {
    my ($self, $method, $script, $result) = @_;
    push @{ current()->{fuzz}{plans}{$method} }, [$script, $result];
    return;
}

# Other functions.

sub do_is_idle { my ($self) = @_; return $self->outcome(sub { Sys::Virt::Event::is_idle() ? 1 : 0 }) }

sub do_watches {
    my ($self) = @_;
    my @watches;
    my $outcome = $self->outcome(sub { @watches = Sys::Virt::Event::watches(); () });
    my @ids = map { $_->{id} } @watches;
    return "$outcome not by id: @ids" if "@ids" ne join ' ', sort { $a <=> $b } @ids;
    return "$outcome " . join ', ', sort map {
        my $watch = $_;
        join ' ', $self->{names}{ $_->{id} } // 'unnamed', $_->{kind},
            (map { $self->end_of($_) } $watch->{fd} // ()), $_->{events} // $_->{ms}, $_->{dispatched}
    } @watches;
}

sub do_protect {
    my ($self, $script, $is_list) = @_;
    my $code = Sys::Virt::Event::protect(sub {
        $self->line("protected @_");
        if ($self->script($script)) {
            no warnings 'exiting';
            next;
        }
        return (3, 4);
    });
    return $self->outcome(sub { $is_list ? $code->(1, 2) : scalar $code->(1, 2) });
}

sub do_mistake {
    my ($self, $number) = @_;
    my $mistake = (mistakes())[$number];
    return $self->public($mistake->{call}, @{ $mistake->{args} });
}

sub do_drain_0 { my ($self) = @_; return $self->outcome(sub { Sys::Virt::Event::drain(0) ? 1 : 0 }) }
sub do_drain   { my ($self) = @_; return $self->outcome(sub { Sys::Virt::Event::drain(5) ? 1 : 0 }) }

sub do_run { my ($self) = @_; return $self->outcome(sub { current()->run_once(0) ? 1 : 0 }) }

# Pipes.

sub do_write {
    my ($self, $number) = @_;
    my $pipe = $self->{pipes}[$number];
    syswrite $pipe->{w}, 'x' and $pipe->{bytes}++ if $pipe->{w} && $pipe->{bytes} < 100;
    return;
}

sub do_read {
    my ($self, $number) = @_;
    my $pipe = $self->{pipes}[$number];
    sysread $pipe->{r}, my $byte, 1 and $pipe->{bytes}-- if $pipe->{bytes};
    return;
}

sub do_hang_up { my ($self, $number) = @_; undef $self->{pipes}[$number]{w}; return }

sub do_finish {
    my ($self) = @_;
    $_->{fuzz}{plans} = {} for values %{ $self->{loops} };
    $self->do_is_idle;
    $self->do_remove_all;
    return $self->do_is_idle;
}

# A loop's method: the line, what was planned for it, and what it answers.
package VirtTest::Fuzz::Loop;

sub prepare {
    my ($loop, $fuzz, $name, $label) = @_;
    $loop->{fuzz} = { subject => $fuzz, name => $name, plans => {}, last_key => 0, acknowledges => $label % 4 };
    return $loop;
}

sub key_text { my ($key) = @_; return ref $key ? $key->{text} : $key }

sub _called {
    my ($loop, $method, @shown) = @_;
    my $fuzz = $loop->{fuzz};
    $fuzz->{subject}->line(join ' ', $fuzz->{name}, $method, @shown);
    VirtTest::Fuzz::Subject::clobber();
    my $plan = shift @{ $fuzz->{plans}{$method} } or return 'default';
    my ($script, $result) = @$plan;
    $fuzz->{subject}->script($script);
    return $result;
}

sub _add {
    my ($loop, $kind, @args) = @_;
    my $subject = $loop->{fuzz}{subject};
    my %record = (kind => $kind);
    @record{qw(cb opaque ff)} = splice @args, -3;
    my $id = ${ $record{opaque} } || 'wake';
    my @shown = $kind eq 'handle' ? ($id eq 'wake' ? $id : $subject->end_of($args[0]), $args[1]) : @args;
    $subject->{records}{$id} = \%record;
    my $result = eval { $loop->_called("add_$kind", @shown) };
    if (!defined $result || $result =~ /\A(?:undef|nothing)\z|\A-\d/) {
        delete $subject->{records}{$id};
        $subject->{refused} = \%record;
        local $SIG{__DIE__};
        die $@ if !defined $result;
    }
    return \%record, $result;
}

# By hand: all there is are lists.
package VirtTest::Fuzz::Script;

our @ISA;
BEGIN { @ISA = ('VirtTest::Fuzz::Loop', 'Sys::Virt::Event') }

sub make { my ($class, @args) = @_; return (bless { live => [] }, $class)->prepare(@args) }

sub _add_watch {
    my ($loop, $kind, @args) = @_;
    my ($record, $result) = $loop->_add($kind, @args);
    return $result eq 'nothing' ? () : undef if $result eq 'undef' || $result eq 'nothing';
    return $result if $result =~ /\A-\d/;
    my $number = ++$loop->{fuzz}{last_key};
    my $key = $result eq 'default' ? $number : $result;
    my ($subject, $name) = @{ $loop->{fuzz} }{qw(subject name)};
    $key = VirtTest::Fuzz::Key->new($subject, "object $name-$number") if $result eq 'object';
    $record->{key} = VirtTest::Fuzz::Loop::key_text($key);
    push @{ $loop->{live} }, $record;
    return $key;
}

sub _remove {
    my ($loop, $method, $key) = @_;
    my $text = VirtTest::Fuzz::Loop::key_text($key);
    my ($record) = grep { $_->{key} eq $text } @{ $loop->{live} };
    if ($record) {
        $record->{removed} = 1;
        @{ $loop->{live} } = grep { !$_->{removed} } @{ $loop->{live} };
        $loop->_acknowledge($record);
    }
    my $result = $loop->_called($method, $text);
    return $result eq 'undef' ? undef : $result eq 'default' ? 0 : $result;
}

# Never, early, late or twice.
sub _acknowledge {
    my ($loop, $record) = @_;
    my $when = $loop->{fuzz}{acknowledges};
    my @now = $when == 0 ? () : $when == 1 ? $record : $when == 2 ? ($record, $record) : $loop->{late} // ();
    $loop->{late} = $record;
    $loop->_free_callback_opaque(@$_{qw(ff opaque)}) for @now;
    return;
}

sub add_handle     { my ($loop, @args) = @_; return $loop->_add_watch(handle => @args) }
sub add_timeout    { my ($loop, @args) = @_; return $loop->_add_watch(timeout => @args) }
sub remove_handle  { my ($loop, $key) = @_; return $loop->_remove(remove_handle => $key) }
sub remove_timeout { my ($loop, $key) = @_; return $loop->_remove(remove_timeout => $key) }

sub update_handle {
    my ($loop, $key, $events) = @_;
    return $loop->_called('update_handle', VirtTest::Fuzz::Loop::key_text($key), $events);
}

sub update_timeout {
    my ($loop, $key, $ms) = @_;
    return $loop->_called('update_timeout', VirtTest::Fuzz::Loop::key_text($key), $ms);
}

sub run_once {
    my ($loop) = @_;
    for my $record (@{ [@{ $loop->{live} }] }) {
        next if $record->{removed};
        VirtTest::Fuzz::Subject::run_record($record, 1);
    }
    return 1;
}

# For drain.
sub run_for {
    my ($loop) = @_;
    local ($@, $!);
    $loop->{fuzz}{subject}->line('run_for');
    $loop->{fuzz}{subject}->do_remove_all;
    Test::Sys::Virt::EventImpl::CApi::set_error(VirtTest::Fuzz::Subject::VIRT_ERROR);
    return;
}

# Poll, which tells of its handles in the order of their keys.
package VirtTest::Fuzz::Poll;

our @ISA;
BEGIN { @ISA = ('VirtTest::Fuzz::Loop', 'Sys::Virt::Event::Poll') }

sub make {
    my ($class, @args) = @_;
    my $loop = $class->new;
    tie %{ $loop->{$_} }, 'VirtTest::Fuzz::InOrder' for qw(handles timers);
    return $loop->prepare(@args);
}

sub _add_watch {
    my ($loop, $kind, @args) = @_;
    my ($record, $result) = $loop->_add($kind, @args);
    return $result eq 'nothing' ? () : $result eq 'undef' ? undef : $result if $result ne 'default';
    my $add = "Sys::Virt::Event::Poll::add_$kind";
    local $loop->{fuzz}{adding} = 1;
    return $loop->$add(@args);
}

sub _change {
    my ($loop, $method, @args) = @_;
    my $super = "Sys::Virt::Event::Poll::$method";
    my $answer = $loop->$super(@args);
    my $result = $loop->_called($method, @args);
    return $result eq 'default' ? $answer : $result eq 'undef' ? undef : $result;
}

sub add_handle     { my ($loop, @args) = @_; return $loop->_add_watch(handle => @args) }
sub add_timeout    { my ($loop, @args) = @_; return $loop->_add_watch(timeout => @args) }
sub update_handle  { my ($loop, @args) = @_; return $loop->_change(update_handle => @args) }
sub remove_handle  { my ($loop, @args) = @_; return $loop->_change(remove_handle => @args) }
sub remove_timeout { my ($loop, @args) = @_; return $loop->_change(remove_timeout => @args) }

# Poll itself calls it in add_timeout.
sub update_timeout {
    my ($loop, @args) = @_;
    return $loop->SUPER::update_timeout(@args) if $loop->{fuzz}{adding};
    return $loop->_change(update_timeout => @args);
}

sub run_for { my ($loop) = @_; return $loop->VirtTest::Fuzz::Script::run_for }

# A hash of numbered things, listed by their numbers.
package VirtTest::Fuzz::InOrder;

sub TIEHASH  { return bless {}, shift }
sub FETCH    { return $_[0]{things}{ $_[1] } }
sub STORE    { $_[0]{things}{ $_[1] } = $_[2] }
sub DELETE   { return delete $_[0]{things}{ $_[1] } }
sub EXISTS   { return exists $_[0]{things}{ $_[1] } }
sub FIRSTKEY { $_[0]{keys} = [sort { $a <=> $b } keys %{ $_[0]{things} }]; return shift @{ $_[0]{keys} } }
sub NEXTKEY  { return shift @{ $_[0]{keys} } }

package VirtTest::Fuzz::Key;

sub new { my ($class, $subject, $text) = @_; return bless { subject => $subject, text => $text }, $class }

sub DESTROY { my ($self) = @_; local $@; $self->{subject}->line("gone $self->{text}"); return }

# Lives as long as the callback that holds it.
package VirtTest::Fuzz::Guard;

sub new { my ($class, $code) = @_; return bless { code => $code }, $class }

sub DESTROY { my ($self) = @_; local $@; $self->{code}->(); return }

1;
