# Resident memory does not grow with what has been watched, dispatched or refused: from half way to the end of millions
# of rounds it stays within 64 KiB. It sees what Perl's count of SVs (40-leaktrace.t) does not: records in C.
use 5.016;
use strict;
use warnings;

use lib 't/lib';
use Test::More;

use Sys::Virt::Event qw(:all);
use Sys::Virt::Event::Poll;
use VirtTest;
use Test::Sys::Virt::EventImpl::CApi;
use VirtTest::Child;

BEGIN { *CApi:: = *Test::Sys::Virt::EventImpl::CApi:: }

plan skip_all => 'there is no /proc/self/smaps_rollup to read resident memory from' if !-r '/proc/self/smaps_rollup';

watchdog(600);

use constant { LIMIT_KIB => 64, ADDS => 1_000_000, DISPATCHES => 5_000_000, CALLS => 100_000, PASSES => 100_000 };

# Of so many rounds one has exceptions.
use constant SELDOM => 10;

# Whether the loops' methods die: before they do anything if they add, else after.
our $refusing;

{
    package My::Hash;
    our @ISA = ('Sys::Virt::EventImpl');
    my $last_key = 0;
    sub new { return bless {}, shift }
    sub add_handle {
        my ($self, @args) = @_;
        die "refused\n" if $refusing;
        $self->{ ++$last_key } = \@args;
        return $last_key;
    }
    sub update_handle { my ($self, $key, $value) = @_; $self->{$key}[-4] = $value; return }
    sub remove_handle {
        my ($self, $key) = @_;
        my $tokens = delete $self->{$key};
        $self->_free_callback_opaque(@$tokens[-1, -2]);
        die "refused\n" if $refusing;
        return 0;
    }
    BEGIN {
        *add_timeout    = \&add_handle;
        *update_timeout = \&update_handle;
        *remove_timeout = \&remove_handle;
    }

    package My::Poll;
    our @ISA = ('Sys::Virt::Event::Poll');
    sub add_handle     { die "refused\n" if $refusing; goto &Sys::Virt::Event::Poll::add_handle }
    sub add_timeout    { die "refused\n" if $refusing; goto &Sys::Virt::Event::Poll::add_timeout }
    sub remove_handle  { my $result = &Sys::Virt::Event::Poll::remove_handle; die "refused\n" if $refusing; $result }
    sub remove_timeout { my $result = &Sys::Virt::Event::Poll::remove_timeout; die "refused\n" if $refusing; $result }
}

# Exact, where the VmRSS of /proc/self/status may lag behind by some pages.
sub resident_kib {
    open my $in, '<', '/proc/self/smaps_rollup' or die "Cannot read memory map: $!";
    my ($kib) = map { /^Rss:\s+(\d+) kB/ ? $1 : () } <$in>;
    return $kib;
}

# In the second half of so many rounds.
sub growth {
    my ($count, $round) = @_;
    my $half = int $count / 2;
    resident_kib();    # the first look takes memory itself
    $round->($_) for 1 .. $half;
    my $before = resident_kib();
    $round->($_) for $half + 1 .. $count;
    return resident_kib() - $before;
}

sub is_flat {
    my ($growth, $name) = @_;
    cmp_ok $growth, '<', LIMIT_KIB, "$name: $growth KiB";
    return;
}

sub flat { my ($name, $count, $round) = @_; return is_flat(growth($count, $round), "$count times $name") }

local $SIG{__WARN__} = sub { };
my $code = sub { };

{
    my @kept;
    cmp_ok growth(CALLS, sub { push @kept, $_ if $_[0] % SELDOM == 0 }), '>', LIMIT_KIB, 'a leak is seen';
}

sub added_and_removed {
    my ($add, $update, $remove) = @_;
    return sub {
        my $exceptions = $_[0] % SELDOM == 0;
        if ($exceptions) {
            local $refusing = 1;
            eval { $add->(); 1 } and die 'it was not refused';
        }
        my $id = $add->();
        $update->($id, 0);
        local $refusing = $exceptions;
        $remove->($id);
    };
}

# Under libvirt's own loop, which frees in later iterations, what was a handle's first. One that has nothing to do takes
# a millisecond.
{
    my ($added, $ran) = in_child {
        register_default();
        my $added = growth(ADDS / 1000, sub {
            remove_timeout($_) for map { add_timeout(1000, $code) } 1 .. 50;
            remove_handle($_) for map { add_handle(0, 0, $code) } 1 .. 50;
            run_default(0) for 1 .. 3;
        });
        my $dies;
        add_timeout(0, sub { die [] if $dies });
        my $ran = growth(PASSES, sub {
            $dies = $_[0] % SELDOM == 0;
            eval { run_default(); 1 } xor $dies or die 'it died at the wrong time';
        });
        return ($added, $ran);
    };
    is_flat($added, ADDS / 10 . " times a watch added to libvirt's own loop and removed");
    is_flat($ran, PASSES . ' iterations of it');
}

my $loop;
for my $class (qw(My::Hash My::Poll)) {
    $loop = $class->new->register(wake => 0);
    flat("a handle added to $class, updated and removed", ADDS,
        added_and_removed(sub { add_handle(0, HANDLE_READABLE, $code) }, \&update_handle, \&remove_handle));
    flat("a timer added to $class, updated and removed", ADDS,
        added_and_removed(sub { add_timeout(1000, $code) }, \&update_timeout, \&remove_timeout));
}

# Passes of Poll, in which timers die and are set anew.
{
    my ($calls, $dies) = (0, 0);
    my $id;
    $id = add_timeout(0, sub { update_timeout($id, 0); $calls++; die { calls => $calls } if $dies });
    flat('a pass of Poll', PASSES, sub {
        $dies = $_[0] % SELDOM == 0;
        eval { $loop->run_once(0); 1 } xor $dies or die 'it died at the wrong time';
    });
    is $calls, PASSES, '... each with a dispatch';
    remove_timeout($id);
}

# Dispatches by the helper methods.
$loop = My::Hash->new->register(wake => 0);
for my $kind (qw(handle timeout)) {
    my ($calls, $dies) = (0, 0);
    my $callback = sub { $calls++; die [$calls] if $dies };
    my $id = $kind eq 'handle' ? add_handle(0, HANDLE_READABLE, $callback) : add_timeout(5, $callback);
    my ($key) = keys %$loop;
    my ($cb, $opaque) = @{ $loop->{$key} }[-3, -2];
    my $dispatch = $kind eq 'handle' ? sub { $loop->_run_handle_callback($key, 0, HANDLE_READABLE, $cb, $opaque) }
        : sub { $loop->_run_timeout_callback($key, $cb, $opaque) };
    flat("a $kind dispatched", DISPATCHES, sub {
        $dies = $_[0] % SELDOM == 0;
        return $dispatch->() if !$dies;
        eval { $dispatch->(); 1 } and die 'it did not die';
    });
    is $calls, DISPATCHES, '... each time it was called';
    $kind eq 'handle' ? remove_handle($id) : remove_timeout($id);
}

# Calls of other threads, through the mailbox, some of them refused when they are carried out. The kit keeps a record of
# each add for good: what the same calls need on the owner's thread is taken off.
{
    my @ops = ([add_timeout => -1], [update_timeout => \-1, 5], [remove_timeout => \-2], [add_handle => 0, 1],
        [remove_handle => \-1]);
    @ops = (@ops) x 10;
    my $packed = CApi::_pack(\@ops);
    my $frees = 0;
    my $count_frees = sub { $frees += grep { $_->{what} eq 'ff' } CApi::events() };
    my $of_the_kit = growth(CALLS / @ops, sub { CApi::_run($packed); $count_frees->() });
    my $growth = growth(CALLS / @ops, sub {
        local $refusing = $_[0] % SELDOM == 0;
        my $thread = CApi::spawn(@ops);
        is_idle() until $thread->is_done;
        $thread->join;
        is_idle() or die 'something is left';
        $count_frees->();
    });
    is_flat($growth - $of_the_kit, CALLS . ' calls of other threads');
    is $frees, 2 * 2 / 5 * CALLS, '... and each add had its free function';
}

done_testing;
