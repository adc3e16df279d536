package VirtTest::Subjects;

# Event loops that the kit judges, beside those of this distribution. Each has the first argument of eventimpl_ok and
# its options. The verdicts are in the manual of the kit.

use strict;
use warnings;

use Time::HiRes ();

# A select loop as Sys::Virt's own tests have one. It registers itself when it is made, and waits without a limit.
my $old_loop = sub {
    require OldLoop;
    no warnings 'once';
    local *OldLoop::register = sub { };
    return OldLoop->new;
};
my @old_runner = (runner => sub {
    my ($impl, $seconds) = @_;
    local $SIG{ALRM} = sub { };
    my $alarm = VirtTest::Subjects::Alarm->new($seconds);
    $impl->run_once;
});

our %SUBJECTS = (
    'default'      => ['default'],
    'installed'    => [$old_loop, @old_runner, sys_virt => 1],
    'select'       => [$old_loop, @old_runner],
    'epoll'        => [sub { require VirtTest::EpollLoop; VirtTest::EpollLoop->new }],
    'installed default' => ['default', sys_virt => 1],
);

# Signals until it is destroyed: one that comes before the loop waits would not end the wait.
package VirtTest::Subjects::Alarm;

sub new {
    my ($class, $seconds) = @_;
    Time::HiRes::setitimer(Time::HiRes::ITIMER_REAL(), $seconds, 0.005);
    return bless [], $class;
}

sub DESTROY { Time::HiRes::setitimer(Time::HiRes::ITIMER_REAL(), 0) }

1;
