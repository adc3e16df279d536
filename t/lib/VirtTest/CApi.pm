package VirtTest::CApi;

# libvirt's public C event API, called the way libvirt calls it: with C callbacks, from other threads, from inside
# callbacks. capi.c does it; it is compiled when a test first needs it.
#
#     if (my $why = VirtTest::CApi->why_not) { plan skip_all => $why }
#     my $id = VirtTest::CApi::add_handle($fh, 1);
#     ... run the loop ...
#     my @log = VirtTest::CApi::events();
#
# A list of ops is a list of arrays, [update_handle => $id, 0], named and called like the functions of %FIELDS below.
# Where an op takes an id, \-1 is the result of the op before it in its list, \0 that of the list's first op; 'self'
# is the id of the watch in whose callback the op runs. So an op list can be repeated with x.

use strict;
use warnings;

use Carp qw(croak);
use Config;
use Digest::MD5 qw(md5_hex);
use DynaLoader ();
use File::Basename qw(dirname);
use File::Spec;
use File::Temp;

# The arguments of each op, and of the function of that name, which runs it on the calling thread and returns its
# result. After them add_* take %options (null_opaque => 1, null_ff => 1, read => 1: the callback reads a byte,
# in_callback => [ops]: it runs these ops), and on_* the ops for a callback that exists.
my %FIELDS = (
    add_handle      => [qw(fd value)],
    update_handle   => [qw(id value)],
    remove_handle   => [qw(id)],
    add_timeout     => [qw(value)],
    update_timeout  => [qw(id value)],
    remove_timeout  => [qw(id)],
    on_handle       => [qw(id)],
    on_timeout      => [qw(id)],
    set_error       => [qw(value)],
    last_error_code => [],
    sleep_ms        => [qw(value)],
    run_default     => [],
);

my %FLAG = (null_opaque => 1, null_ff => 2, read => 4);
my %BASE = (literal => 0, result => 1, self => 2);

for my $name (keys %FIELDS) {
    my $run_one = sub {
        _load();
        my @results = _run(_pack([ [$name, @_] ]));
        return $results[0];
    };
    no strict 'refs';
    *$name = $run_one;
}

# Starts a thread that runs the ops. Any number may run at once.
sub spawn {
    my (@ops) = @_;
    _load();
    return VirtTest::CApi::Thread->_new(_spawn(_pack(\@ops)));
}

# The same, but returns when the thread has ended; until then the interpreter's thread sits in C.
sub run_blocked {
    my (@ops) = @_;
    _load();
    return _report(_run_blocked(_pack(\@ops)));
}

sub _report {
    my ($slowest, @results) = @_;
    return { slowest => $slowest, results => \@results };
}

# What callbacks and free functions saw, in order, since the last call; also the ops run in callbacks. A list of hashes:
#   what         handle, timer, ff, or the name of an op
#   id           as given to the callback or op; of ff: as returned by add
#   thread       main (the one that loaded capi.c) or foreign
#   inside       [names of our calls to libvirt on that thread's stack, outermost first]
#   in_callback  how many callbacks of ours are on that thread's stack
#   in_own       true if among these is the callback of the same watch (handle, timer, ff)
#   added_as     what add returned; 0 if it has not, or if the opaque is NULL (handle, timer, ff)
#   kind         handle or timer; of an ff whose opaque is NULL: undef (handle, timer, ff)
#   fd, events   (handle)
#   result       (ops)
sub events {
    _load();
    return _events();
}

# As if other code in this process had registered a loop of its own (it ignores all calls), or libvirt's.
sub register_impl_first    { _load(); return _register_impl_first() }
sub register_default_first { _load(); return _register_default_first() }

sub why_not {
    my ($cc) = split ' ', $Config{cc};
    return "no C compiler: $cc" if !grep { -x } map { File::Spec->rel2abs($cc, $_) } File::Spec->path;
    return 'no perl headers' if !-e "$Config{archlibexp}/CORE/perl.h";
    return 'pkg-config does not find libvirt (Debian: pkg-config, libvirt-dev)' if !defined _pkg_config();
    _load();
    return undef;
}

sub _pkg_config {
    local ($?, $!);
    my $flags = qx(pkg-config --cflags --libs libvirt 2>&1);
    return $? ? undef : $flags =~ s/\s+\z//r;
}

my $is_loaded;

sub _load {
    return if $is_loaded;
    my $so     = _built();
    my $lib    = DynaLoader::dl_load_file($so, 0) or croak 'Cannot load capi.c: ' . DynaLoader::dl_error();
    my $symbol = DynaLoader::dl_find_symbol($lib, 'boot_capi')
        or croak 'Cannot load capi.c: ' . DynaLoader::dl_error();
    DynaLoader::dl_install_xsub('VirtTest::CApi::_boot', $symbol, $so)->();
    $is_loaded = 1;
    return;
}

# Returns the path of the shared object: one in blib is used again as long as source, perl and flags are the same.
sub _built {
    my $source  = File::Spec->rel2abs(dirname(__FILE__) . '/capi.c');
    my $libvirt = _pkg_config() // croak 'Cannot build capi.c: ' . __PACKAGE__->why_not;
    my $command = "$Config{cc} $Config{ccflags} $Config{optimize} $Config{cccdlflags} -pthread"
        . " -I'$Config{archlibexp}/CORE' '$source' $Config{lddlflags} $libvirt";
    my $dir = _cache_dir($source, $command);
    my $so  = "$dir/capi.$Config{dlext}";
    return $so if -e $so;

    # Another test may be building the same at this moment; a rename never shows half a file.
    my $output = do { local $?; qx($command -o '$so.$$' 2>&1) };
    -e "$so.$$" or croak "Cannot build capi.c: $command\n$output";
    rename "$so.$$", $so or croak "Cannot rename $so.$$: $!";
    return $so;
}

sub _cache_dir {
    my ($source, $command) = @_;
    open my $in, '<', $source or croak "Cannot read $source: $!";
    my $key = substr md5_hex($command, <$in>), 0, 12;
    my $dir = File::Spec->rel2abs("blib/capi-$Config{version}-$Config{archname}-$key");
    return $dir if -d $dir || mkdir $dir;
    return File::Temp::tempdir(CLEANUP => 1);
}

# The struct event_op of capi.c, each followed by its nested ones.
sub _pack {
    my ($ops) = @_;
    my $packed = '';
    for my $index (0 .. $#$ops) {
        my ($name, @args) = @{ $ops->[$index] };
        my $fields = $FIELDS{$name} or croak "Cannot run op: there is no $name";
        croak "Cannot run op: $name needs @$fields" if @args < @$fields;
        my %arg;
        @arg{@$fields} = splice @args, 0, @$fields;
        my ($flags, $nested) = $name =~ /^add_/ ? _options(@args) : (0, \@args);
        my ($base, $id) = _id($arg{id}, $index);
        my $inner = _pack($nested);
        my $n_inner = length($inner) / 40;
        $packed .= pack 'a16 l6', $name, $base, $id, _fd($arg{fd}), $arg{value} // 0, $flags, $n_inner;
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

package VirtTest::CApi::Thread;

sub _new {
    my ($class, $number) = @_;
    return bless { number => $number, starter => $$ }, $class;
}

sub is_done {
    my ($self) = @_;
    return !$self->{number} || VirtTest::CApi::_is_done($self->{number});
}

# { results => [one for each op], slowest => seconds that the slowest call to libvirt took }
sub join {
    my ($self) = @_;
    my $number = delete $self->{number} or Carp::croak 'Cannot join thread: it was joined before';
    return VirtTest::CApi::_report(VirtTest::CApi::_join($number));
}

# A forked child does not have the thread.
sub DESTROY {
    my ($self) = @_;
    $self->join if $self->{number} && $self->{starter} == $$;
}

sub CLONE_SKIP { return 1 }

1;
