# What the C callbacks of the contract can do beside calling libvirt: run Perl code, and be quiet.
use 5.016;
use strict;
use warnings;

use lib 't/lib';
use Test::More;

use Test::Sys::Virt::EventImpl::CApi;
use VirtTest;
use VirtTest::Child;

BEGIN { *CApi:: = *Test::Sys::Virt::EventImpl::CApi:: }

is_deeply [grep { exists $INC{$_} } 'Sys/Virt.pm', 'Sys/Virt/Event.pm'], [], 'neither module of Sys::Virt is loaded';
require Sys::Virt::Event;
require VirtTest::Loop;
watchdog(60);

# libvirt's loop can run on a thread that has no interpreter. It calls a free function in a later iteration.
my ($result, $called, @log) = in_child {
    CApi::register_default_first();
    my $called = 0;
    my $id = CApi::add_timeout(0, in_callback => [[call => sub { $called++ }]]);
    CApi::run_blocked(['run_default']);
    my ($op) = grep { $_->{what} eq 'call' } CApi::events();
    CApi::remove_timeout($id);
    CApi::add_timeout(1, quiet => 1, in_callback => [[remove_timeout => 'self'], [call => sub { $called += 10 }]]);
    CApi::run_default() while $called < 10;
    my $last = CApi::add_timeout(1, in_callback => [[remove_timeout => 'self']]);
    my @log;
    until (grep { $_->{what} eq 'ff' && $_->{id} == $last } @log) {
        CApi::run_default();
        push @log, CApi::events();
    }
    return ($op->{result}, $called, map { "$_->{what} " . ($_->{id} - $last) } @log);
};
is $result, -1, 'no Perl on a thread of C';
is $called, 10, '... but where there is an interpreter';
is_deeply [sort @log], ['ff -2', 'ff 0', 'remove_timeout 0', 'timer 0'], 'a quiet timer is not in the log';

my $loop = VirtTest::Loop->new;
$loop->register;

sub dispatch {
    my (@ops) = @_;
    my $id = CApi::add_timeout(5, in_callback => [@ops, [remove_timeout => 'self']]);
    CApi::events();
    my @warnings = warnings_of { $loop->dispatch($loop->latest) };
    my ($op) = grep { $_->{what} eq 'call' } my @log = CApi::events();
    return ($op->{result}, \@warnings, @log);
}

{
    my @seen;
    local $@ = 'mine';
    my ($result, $warnings) = dispatch([call => sub { push @seen, scalar @_, CApi::remove_handle(99); eval { die } }]);
    is $result, 0, 'code called by a callback';
    is_deeply \@seen, [0, -1], '... has no arguments, and may call libvirt';
    is "@$warnings$@", 'mine', '... and changes no exception of others';
}

for my $case (
    ['die', sub { die "boo\n" }, qr/^capi: callback died: boo\n\z/],
    ['die with an object', sub { die [] }, qr/^capi: callback died: ARRAY\(/],
    ['last', sub { no warnings; last }, qr/^capi: callback died: Can't "last" outside a loop block/],
) {
    my ($name, $code, $warning) = @$case;
    my ($result, $warnings, @log) = dispatch([call => $code]);
    is $result, -1, "$name: it failed";
    is @$warnings, 1, '... with a warning';
    like $warnings->[0], $warning, '... that says why';
    is_deeply [map { $_->{what} } @log], [qw(timer call remove_timeout ff)], '... and the callback goes on';
    is_deeply [map { $_->{in_callback} } @log], [0, 1, 1, 0], '... where it was';
}

{
    my @dying = (call => sub { local $SIG{__WARN__} = sub { die }; CApi::call(sub { die }); die "after\n" });
    my ($result, $warnings) = dispatch(\@dying);
    is "$result @$warnings", "-1 capi: callback died: after\n", 'a warning handler that dies';
}

$loop->calls;
for my $starts ('spawn', 'run_blocked') {
    my $start = CApi->can($starts);
    for my $op ([call => sub { }], [add_timeout => 0, in_callback => [[call => sub { }]]]) {
        like exception_of { $start->([add_timeout => 1], $op) }, qr/^Cannot run op: call needs a thread with an inter/,
            "$starts refuses Perl code";
    }
}
like exception_of { CApi::call('code') }, qr/^Cannot run op: call needs code/, 'what is no code';
is_deeply [$loop->calls], [], 'nothing was started';

done_testing;
