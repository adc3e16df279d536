package Test::Sys::Virt::EventImpl::CApi;
use 5.016;
use strict;
use warnings;

use Carp qw(croak);
use XSLoader ();

our $VERSION = '0.001';
XSLoader::load(__PACKAGE__, $VERSION);

# libvirt's public C event API, called the way libvirt calls it: with C callbacks, from other threads, from inside
# callbacks. kit/client.c does it. Below, CApi:: stands for the name of this package.
#
#     my $id = CApi::add_handle($fh, 1);
#     ... run the loop ...
#     my @log = CApi::events();
#
# A list of ops is a list of arrays, [update_handle => $id, 0], named and called like the functions of %FIELDS below.
# Where an op takes an id, \-1 is the result of the op before it in its list, \0 that of the list's first op; 'self'
# is the id of the watch in whose callback the op runs. So an op list can be repeated with x.
#
# Neither Sys::Virt nor Sys::Virt::Event is loaded here: the latter may be ours or that of Sys::Virt.

# The arguments of each op, and of the function of that name, which runs it on the calling thread and returns its
# result. After them add_* take %options, and on_* the ops for a callback, on_*_free for a free
# function, that exists. The options:
#   null_opaque => 1, null_ff => 1
#   read => 1             the callback reads a byte
#   in_callback => [ops]  it runs these ops
#   quiet => 1            the callback, its ops and its ff are not logged (it takes an opaque)
# call runs Perl code from inside C, as Sys::Virt does with its handlers: 0, or -1 and a warning if the code died. It
# is the only op that runs Perl, and never does on a thread made here.
my %FIELDS = (
    add_handle      => [qw(fd value)],
    update_handle   => [qw(id value)],
    remove_handle   => [qw(id)],
    add_timeout     => [qw(value)],
    update_timeout  => [qw(id value)],
    remove_timeout  => [qw(id)],
    on_handle       => [qw(id)],
    on_timeout      => [qw(id)],
    on_handle_free  => [qw(id)],
    on_timeout_free => [qw(id)],
    set_error       => [qw(value)],
    last_error_code => [],
    sleep_ms        => [qw(value)],
    run_default     => [],
    call            => [qw(code)],
);

# The struct of client.h.
use constant OP => 'a16 l6';

my %FLAG = (null_opaque => 1, null_ff => 2, read => 4, quiet => 8);
my %BASE = (literal => 0, result => 1, self => 2);

for my $name (keys %FIELDS) {
    my $run_one = sub {
        my @results = _run(_pack([[$name, @_]]));
        return $results[0];
    };
    no strict 'refs';
    *$name = $run_one;
}

# What was given to call, kept for good: an op list may run at any time.
my @codes;

sub _number_of {
    my ($code) = @_;
    ref $code or croak 'Cannot run op: call needs code';
    return push(@codes, $code) - 1;
}

# Called by CApi.xs. True, or false if the code died.
sub _call_code {
    my ($number) = @_;
    return 1 if eval { $codes[$number]->(); 1 };
    warn "capi: callback died: $@";
    return 0;
}

# Starts a thread that runs the ops. Any number may run at once.
sub spawn {
    my (@ops) = @_;
    return Test::Sys::Virt::EventImpl::CApi::Thread->_new(_spawn(_pack(\@ops, is_foreign => 1)));
}

# The same, but returns when the thread has ended; until then the interpreter's thread sits in C.
sub run_blocked {
    my (@ops) = @_;
    return _report(_run_blocked(_pack(\@ops, is_foreign => 1)));
}

sub _report {
    my ($slowest, @results) = @_;
    return { slowest => $slowest, results => \@results };
}

# The functions of CApi.xs.
#
# events(): what callbacks and free functions saw, in order, since the last call; also the ops run in callbacks. A
# list of hashes:
#   what         handle, timer, ff, or the name of an op
#   id           as given to the callback or op; of ff: as returned by add
#   thread       main (the one that loaded this, or called start last) or foreign
#   inside       [names of our calls to libvirt, and ff, on that thread's stack, outermost first]
#   in_callback  how many callbacks of ours are on that thread's stack
#   in_own       true if among these is the callback of the same watch (handle, timer, ff)
#   added_as     what add returned; 0 if it has not, or if the opaque is NULL (handle, timer, ff)
#   kind         handle or timer; of an ff whose opaque is NULL: undef (handle, timer, ff)
#   fd, events   (handle)
#   result       (ops)
#
# register_impl_first(): as if other code in this process had registered a loop of its own (it ignores all calls).
# register_default_first(): or libvirt's.

# The capi_op of client.h, each followed by its nested ones.
sub _pack {
    my ($ops, %opt) = @_;
    my $packed = '';
    for my $index (0 .. $#$ops) {
        my ($name, @args) = @{ $ops->[$index] };
        my $fields = $FIELDS{$name} or croak "Cannot run op: there is no $name";
        croak "Cannot run op: $name needs @$fields" if @args < @$fields;
        croak "Cannot run op: $name needs a thread with an interpreter" if $name eq 'call' && $opt{is_foreign};
        my %arg;
        @arg{@$fields} = splice @args, 0, @$fields;
        my ($flags, $nested) = $name =~ /^add_/ ? _options(@args) : (0, \@args);
        my ($base, $id) = _id($arg{id}, $index);
        my $value = $name eq 'call' ? _number_of($arg{code}) : $arg{value} // 0;
        my $inner = _pack($nested, %opt);
        my $n_inner = length($inner) / length pack OP;
        $packed .= pack OP, $name, $base, $id, _fd($arg{fd}), $value, $flags, $n_inner;
        $packed .= $inner;
    }
    return $packed;
}

sub _options {
    my (%opt) = @_;
    my $nested = delete $opt{in_callback} || [];
    my $flags  = 0;
    for my $name (keys %opt) {
        $FLAG{$name} or croak "Cannot run op: there is no option $name";
        $flags |= $FLAG{$name} if $opt{$name};
    }
    return ($flags, $nested);
}

sub _id {
    my ($id, $index) = @_;
    return ($BASE{literal}, 0) if !defined $id;
    return ($BASE{self}, 0) if $id eq 'self';
    return ($BASE{literal}, $id) if !ref $id;
    my $result = $$id < 0 ? $index + $$id : $$id;
    croak "Cannot run op: op $index cannot have the result of op $result"
        if $result < 0 || $result >= $index;
    return ($BASE{result}, $result);
}

sub _fd {
    my ($fd) = @_;
    return -1 if !defined $fd;
    return ref $fd || ref \$fd eq 'GLOB' ? fileno $fd : $fd;
}

package Test::Sys::Virt::EventImpl::CApi::Thread;

sub _new {
    my ($class, $number) = @_;
    return bless { number => $number, starter => $$ }, $class;
}

sub is_done {
    my ($self) = @_;
    return !$self->{number} || Test::Sys::Virt::EventImpl::CApi::_is_done($self->{number});
}

# { results => [one for each op], slowest => seconds that the slowest call to libvirt took }
sub join {
    my ($self) = @_;
    my $number = delete $self->{number} or Carp::croak 'Cannot join thread: it was joined before';
    return Test::Sys::Virt::EventImpl::CApi::_report(Test::Sys::Virt::EventImpl::CApi::_join($number));
}

# A forked child does not have the thread.
sub DESTROY {
    my ($self) = @_;
    $self->join if $self->{number} && $self->{starter} == $$;
}

sub CLONE_SKIP { return 1 }

1;
