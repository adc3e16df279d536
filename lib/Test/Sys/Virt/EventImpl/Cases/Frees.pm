package Test::Sys::Virt::EventImpl::Cases::Frees;

# libvirt's free functions.

use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

use Test::More;
use Test::Sys::Virt::EventImpl::Case;
use Test::Sys::Virt::EventImpl::Util;

suite free => "libvirt's free functions";

# Every one of these ids was freed, once, by the loop's thread, at a moment when no call of libvirt's to the loop and
# no callback of the same watch was on the stack.
sub freed_well {
    my ($t, $what, @ids) = @_;
    $t->until(sub { $t->count('ff') >= @ids });
    $t->passes(5);
    my @freed = $t->entries('ff');
    is_deeply [sort { $a <=> $b } map { $_->{id} } @freed], [sort { $a <=> $b } @ids], "$what: each was freed, once";
    is_deeply [grep { @{ $_->{inside} } } @freed], [], '... not inside a call to libvirt';
    is_deeply [grep { $_->{in_own} } @freed], [], '... not inside its own callback';
    is_deeply [grep { $_->{thread} ne 'main' } @freed], [], '... by the thread of the loop';
    return @freed;
}

case 0 => 'after_remove', free => {
    rule   => 'the free function runs once, after remove has returned',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my @handles = map { $t->add_handle($reader, $_) } READABLE, 0;
    my @timers  = map { $t->add_timeout($_) } 0, 5, -1;
    $t->until(sub { $t->count(timer => $timers[1]) });
    is $t->count('ff'), 0, 'not before the removal';
    $t->remove_handle($_) for @handles;
    $t->remove_timeout($_) for @timers;
    freed_well($t, 'handles and timers', @handles, @timers);
};

case 0 => 'after_callback', free => {
    rule   => 'for a watch removed in a callback it runs after the callback',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my $other  = $t->add_handle($reader, 0);
    my $handle = $t->add_handle($reader, READABLE,
        in_callback => [[remove_handle => 'self'], [remove_handle => $other], [update_handle => $other, READABLE]]);
    my $sleeper = $t->add_timeout(-1);
    my $timer   = $t->add_timeout(0,
        in_callback => [[remove_timeout => $sleeper], [remove_timeout => 'self'], [update_timeout => 'self', 0]]);
    my @freed = freed_well($t, 'handles and timers', $other, $handle, $sleeper, $timer);
    is_deeply [grep { $_->{in_callback} } @freed], [], '... not inside any C callback: libvirt may hold locks there';
};

case 0 => 'after_perl_callback', free => {
    rule   => 'for a watch removed in a Perl callback it does not run inside its own',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my $other = $t->add_handle($reader, 0);
    my (%freed, %id);
    my $callback = sub {
        my ($name, $remove) = @_;
        my $code = sub {
            $remove->($id{$name});
            $t->remove_handle($other) if $name eq 'handle';
            # What was removed in a statement is freed when that is done, but for this.
            $freed{"$name early"}++ if $freed{$name};
        };
        return callable($code, sub { $freed{$name}++ });
    };
    $id{handle} = $t->watch($reader, READABLE,
        $callback->(handle => \&Sys::Virt::Event::remove_handle));
    $id{timer} = $t->timer(0, $callback->(timer => \&Sys::Virt::Event::remove_timeout));
    undef $callback;
    $t->until(sub { $freed{handle} && $freed{timer} });
    freed_well($t, 'a C watch removed there', $other);
    is_deeply \%freed, { handle => 1, timer => 1 }, 'and the Perl code is released once, after its end';
};

case 0 => 'not_of_refused', free => {
    rule   => 'the free function is not called when add fails',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my @answers = (sub { undef }, sub { () }, sub { -1 }, sub { -5 }, sub { die "no room\n" });
    my $answer;
    $t->override(map { my $name = $_; $name => sub { my ($original, $impl, @args) = @_;
        return $answer ? $answer->() : $impl->$original(@args) } } qw(add_handle add_timeout));
    for (@answers) {
        $answer = $_;
        is $t->add_handle($reader, READABLE), -1, 'add_handle fails';
        is $t->add_timeout(0), -1, 'add_timeout fails';
    }
    undef $answer;
    is scalar(my @warnings = $t->warnings), 10, 'each with a warning';
    my $id = $t->add_timeout(0, in_callback => [[remove_timeout => 'self']]);
    cmp_ok $id, '>', 0, 'one that is accepted';
    $t->until(sub { $t->count('ff') });
    $t->passes(5);
    is_deeply [$t->story], ["timer $id", "ff $id"], 'is the only one that runs, and is freed';
}, needs => ['object'];

case 0 => 'null', free => {
    rule   => 'a free function or opaque of NULL is fine',
    source => '',
    harm   => '',
    advice => '',
}, sub {
    my ($t) = @_;
    my ($reader, $writer) = ready_pipe();
    my @bare = (null_ff => 1, null_opaque => 1);
    my %id = (
        'handle without ff'     => $t->add_handle($reader, READABLE, null_ff => 1),
        'handle without opaque' => $t->add_handle($reader, READABLE, null_opaque => 1),
        'handle without both'   => $t->add_handle($reader, READABLE, @bare),
        'timer without ff'      => $t->add_timeout(0, null_ff => 1),
        'timer without opaque'  => $t->add_timeout(0, null_opaque => 1),
        'timer without both'    => $t->add_timeout(0, @bare),
    );
    for my $what (sort keys %id) {
        my ($kind) = $what =~ /(\w+)/;
        $t->until(sub { $t->count($kind => $id{$what}) });
        cmp_ok $t->count($kind => $id{$what}), '>', 0, "$what: it runs";
        is $kind eq 'handle' ? $t->remove_handle($id{$what}) : $t->remove_timeout($id{$what}), 0, 'it is removed';
    }
    $t->passes(5);
    is_deeply [map { $_->{kind} } $t->entries('ff')], [undef, undef],
        'the two that have a free function and no opaque are freed';
};

1;
