# When free functions run: at the end of the statement that made the call, not later, and nothing is disturbed by them.
use strict;
use warnings;

use Test::More;
use lib 't/lib';
use VirtTest;
use Sys::Virt::Event qw(:all);
use Test::Sys::Virt::EventImpl::CApi;
use VirtTest::Child;
use VirtTest::Loop;

watchdog(60);

sub frees { return scalar grep { $_->{what} eq 'ff' } Test::Sys::Virt::EventImpl::CApi::events() }

# One call of libvirt's API that is one statement, or a part of one.
sub call { return Test::Sys::Virt::EventImpl::CApi::_pack([[@_]]) }

sub remove_each {
    my $seen = 0;
    for my $call (@_) { Test::Sys::Virt::EventImpl::CApi::_run($call); $seen += frees() }
    return $seen;
}

my $loop = VirtTest::Loop->new->register;

{
    my @calls = map { call(remove_timeout => Test::Sys::Virt::EventImpl::CApi::add_timeout(1)) } 1 .. 6;
    my @seen = (Test::Sys::Virt::EventImpl::CApi::_run(shift @calls), remove_each(@calls));
    is $seen[-1], 5, 'in a loop that is run by the statement that removed something: its own, each in time';
    is frees(), 1, 'and that one at the end of its statement';
}

{
    my $call = call(remove_timeout => Test::Sys::Virt::EventImpl::CApi::add_timeout(1));
    my @seen = (Test::Sys::Virt::EventImpl::CApi::_run($call), frees(), is_idle() ? 'idle' : 'not idle', frees());
    is "@seen[-3 .. -1]", '0 idle 1', 'is_idle does not wait for the end of its statement';
}

# The last statement of a sub ends with that of its caller.
{
    my @calls = map { call(remove_timeout => Test::Sys::Virt::EventImpl::CApi::add_timeout(1)) } 1, 2;
    sub remove_last { Test::Sys::Virt::EventImpl::CApi::_run($_[0]) }
    sub remove_first { Test::Sys::Virt::EventImpl::CApi::_run($_[0]); return frees() }
    my $seen;
    remove_last($calls[0]), $seen = remove_first($calls[1]);
    is $seen, 1, 'in a sub that is called after another by one statement: its own, in time';
    is frees(), 1, '... and that of the other at the end of that statement';
}

# What is freed with the callback's own variables.
{
    package Clobber;
    sub DESTROY { $_ = 'clobbered'; eval { die "x\n" }; $@ = 'clobbered' }
}
for my $variable (qw($_ $@)) {
    my $id = Test::Sys::Virt::EventImpl::CApi::add_timeout(1);
    my $call = call(update_timeout => $id, 5);
    my $set = $variable eq '$_' ? sub { $_ = bless [], 'Clobber'; return } : sub { $@ = bless [], 'Clobber'; return };
    $loop->on(update_timeout => $set);
    local ($_, $@) = ('mine', 'error');
    Test::Sys::Virt::EventImpl::CApi::_run($call);
    is "$_ $@", 'mine error', "an object left in $variable by a method";
    $loop->on(update_timeout => undef);
    ($_, $@) = ('mine', 'error');
    protect($set)->();
    is "$_ $@", 'mine error', "... by a protected callback";
    Test::Sys::Virt::EventImpl::CApi::remove_timeout($id);
}

# A destructor that makes a call whose method dies, while our own function is being left.
{
    my $other = Test::Sys::Virt::EventImpl::CApi::add_timeout(1);
    $loop->on(update_timeout => sub { die "in a method\n" });
    sub Updater::DESTROY { Test::Sys::Virt::EventImpl::CApi::update_timeout($other, 5) }
    my $id = add_timeout(1, do { my $held = bless [], 'Updater'; sub { $held } });
    my ($threw, @warnings);
    @warnings = warnings_of { $threw = exception_of { remove_timeout($id) } };
    is $threw, undef, 'an exception in a destructor does not come out of the removal';
    is_deeply \@warnings, ["Cannot update timeout: VirtTest::Loop::update_timeout died: in a method\n"],
        '... but is a warning that says where it comes from';
    $loop->on(update_timeout => undef);
    Test::Sys::Virt::EventImpl::CApi::remove_timeout($other);
}

# Removed by a warning's handler.
{
    my $id = Test::Sys::Virt::EventImpl::CApi::add_timeout(1);
    my $running = add_timeout(1, sub { $loop->dispatch($loop->latest) });
    local $SIG{__WARN__} = sub { Test::Sys::Virt::EventImpl::CApi::remove_timeout($id) };
    Test::Sys::Virt::EventImpl::CApi::events();
    $loop->dispatch($loop->latest);
    is frees(), 1, 'removed by a warning handler';
    remove_timeout($running);
}

is exception_of {
    add_timeout(1, sub { drain() });
    $loop->dispatch($loop->latest);
} =~ s/ at .*//sr, 'Cannot drain: a callback is running, which cannot go before it returns', 'drain in a callback';
remove_timeout($_->{id}) for watches();
ok is_idle(), 'nothing is left';

# Many at once: the cost must not grow with the square.
{
    my @ids = map { Test::Sys::Virt::EventImpl::CApi::add_timeout(1) } 1 .. 30_000;
    my $calls = Test::Sys::Virt::EventImpl::CApi::_pack([map { [remove_timeout => $_] } @ids]);
    Test::Sys::Virt::EventImpl::CApi::events();
    Test::Sys::Virt::EventImpl::CApi::_run($calls);
    is frees(), 30_000, '30000 in one call of libvirt';
}

SKIP: {
    require Config;
    skip 'this perl has no ithreads', 2 if !$Config::Config{useithreads};
    my $r = fresh_perl(<<'EOT', switches => ['-Mthreads']);
use lib 't/lib'; use Sys::Virt::Event qw(:all); use VirtTest::Loop; use Test::Sys::Virt::EventImpl::CApi;
my $id = threads->create(sub {
    my $loop = VirtTest::Loop->new->register;
    $loop->on(add_handle => sub { die "no wake watch\n" });
    local $SIG{__WARN__} = sub { };
    my $removed = Test::Sys::Virt::EventImpl::CApi::add_timeout(1);
    my $id = add_timeout(1, sub { });
    Test::Sys::Virt::EventImpl::CApi::run_blocked([remove_timeout => $removed]);
    return $id;
})->join;
print eval { remove_timeout($id); 1 } ? "removed\n" : $@ =~ s/ at .*//sr . "\n";
my $loop = VirtTest::Loop->new->register;
print is_idle() ? "idle\n" : "not idle\n";
Test::Sys::Virt::EventImpl::CApi::add_timeout(2);
watches();
print join(' ', map { $_->[0] } $loop->calls), "\n";
EOT
    is $r->{stdout}, "Cannot remove timeout: no event loop is registered\nidle\nadd_timeout add_handle\n",
        'when the owner is a thread that has ended, another takes over, with nothing of it';
    is $r->{stderr}, '', '... quietly';
}

done_testing;
