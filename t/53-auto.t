# Sys::Virt::Event::Auto: what it chooses, and that it then is what it has chosen.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";

use Sys::Virt::Event ();
use Test::More;
use VirtTest;
use VirtTest::Adapters;
use VirtTest::Programs ();

watchdog(180);

sub prints {
    my ($name, $modules, $code, $expected, @options) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    SKIP: {
        my @missing = VirtTest::Adapters::missing_modules({ modules => $modules });
        skip "$name: @missing is not installed", 2 if @missing;
        VirtTest::Programs::prints($name, "use Sys::Virt::Event::Auto;\n#line 1 program\n$code", $expected, @options);
    }
    return;
}

# What a program loads, and what is chosen for it.
sub chooses {
    my ($name, $modules, $code, $expected, %env) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my $report = 'print eval { Sys::Virt::Event::Auto::_choice() } // $@, "\n"; $? = 0;';
    $expected = "Sys::Virt::Event::$expected\n" if !ref $expected;
    prints($name, $modules, "$code\n$report", $expected, env => \%env);
    return;
}

sub both {
    my ($first, $second, $first_class, $second_class) = @_;
    my $message = "Cannot choose an event loop: the program has loaded $first and $second;"
        . " register Sys::Virt::Event::$first_class or Sys::Virt::Event::$second_class";
    return qr/\A\Q$message\E at program line /;
}

my %POLL = (MOJO_REACTOR => 'Mojo::Reactor::Poll');

chooses 'nothing loaded',   [],           '',                    'Poll';
chooses 'EV',               ['EV'],       'use EV;',             'EV';
chooses 'Glib',             ['Glib'],     'use Glib;',           'Glib';
chooses 'AnyEvent, loaded', ['AnyEvent'], 'use AnyEvent;',       'AnyEvent';
chooses 'IO::Async',        ['IO::Async::Loop'], 'use IO::Async::Loop;', 'IOAsync';
chooses 'IO::Async, with a loop', ['IO::Async::Loop'],
    'use IO::Async::Loop; my $loop = IO::Async::Loop->new;', 'IOAsync';
chooses 'Mojo on poll', ['Mojo::IOLoop'], 'use Mojo::IOLoop;', 'Mojo', %POLL;
chooses 'a reactor of Mojo without its loop', ['Mojo::Reactor::Poll'], 'use Mojo::Reactor::Poll;', 'Mojo';
chooses 'POE', ['POE'], 'use POE; POE::Kernel->run;', 'POE', POE_EVENT_LOOP => 'POE::Loop::Select';

chooses 'AnyEvent, on its own loop', ['AnyEvent'], 'use AnyEvent; AnyEvent::detect();', 'AnyEvent',
    PERL_ANYEVENT_MODEL => 'Perl';
chooses 'AnyEvent on EV',   [qw(AnyEvent EV)],   'use EV; use AnyEvent; AnyEvent::detect();',   'EV';
chooses 'AnyEvent on Glib', [qw(AnyEvent Glib)], 'use Glib; use AnyEvent; AnyEvent::detect();', 'Glib';
chooses 'AnyEvent on IO::Async', [qw(AnyEvent IO::Async::Loop)],
    'use IO::Async::Loop; my $loop = IO::Async::Loop->new; use AnyEvent; AnyEvent::detect();', 'IOAsync',
    PERL_ANYEVENT_MODEL => 'IOAsync';
chooses 'AnyEvent on POE', [qw(AnyEvent POE)],
    'use POE; POE::Kernel->run; use AnyEvent; AnyEvent::detect();', 'POE', PERL_ANYEVENT_MODEL => 'POE';
chooses 'AnyEvent, loaded, will take what is there', [qw(AnyEvent Mojo::IOLoop)], 'use AnyEvent; use Mojo::IOLoop;',
    'Mojo', %POLL;
chooses 'AnyEvent, on a loop that is none of ours', [qw(AnyEvent Event)],
    'use Event; use AnyEvent; AnyEvent::detect();', 'AnyEvent', PERL_ANYEVENT_MODEL => 'Event';

chooses 'Mojo on EV', [qw(Mojo::Reactor::EV EV)], 'use Mojo::IOLoop;', 'EV', MOJO_REACTOR => 'Mojo::Reactor::EV';
chooses 'the reactor of Mojo on EV, without its loop', [qw(Mojo::Reactor::EV EV)], 'use Mojo::Reactor::EV;', 'EV';
chooses 'Mojo and AnyEvent, both on EV', [qw(Mojo::Reactor::EV EV AnyEvent)],
    'use Mojo::IOLoop; use AnyEvent; AnyEvent::detect();', 'EV', MOJO_REACTOR => 'Mojo::Reactor::EV';
chooses 'IO::Async on Glib', [qw(Glib IO::Async::Loop::Glib)],
    'use IO::Async::Loop::Glib; my $loop = IO::Async::Loop::Glib->new;', 'Glib';
chooses 'IO::Async on Glib, before there is a loop', [qw(Glib IO::Async::Loop::Glib)],
    'use IO::Async::Loop::Glib;', 'Glib';
chooses 'AnyEvent on IO::Async on Glib', [qw(Glib IO::Async::Loop::Glib AnyEvent)], <<'PERL', 'Glib',
use IO::Async::Loop::Glib;
my $loop = IO::Async::Loop::Glib->new;
use AnyEvent;
AnyEvent::detect();
PERL
    PERL_ANYEVENT_MODEL => 'IOAsync';

# These are not packaged: all that counts of them is their name.
chooses 'POE on Glib, and its like', ['Glib'], <<'PERL', 'Glib';
use Glib;
$INC{'POE/Kernel.pm'} = 1;
sub POE::Kernel::poe_kernel_loop { 'POE::Loop::Glib' }
PERL
chooses 'POE on Mojo', ['Mojo::IOLoop'], <<'PERL', 'Mojo', %POLL;
use Mojo::IOLoop;
$INC{'POE/Kernel.pm'} = 1;
sub POE::Kernel::poe_kernel_loop { 'POE::Loop::Mojo_IOLoop' }
PERL
chooses 'Glib made to run on EV', [qw(EV Glib)], "use EV; use Glib; \$INC{'EV/Glib.pm'} = 1;", 'EV';

chooses 'EV and Glib', [qw(EV Glib)], 'use EV; use Glib;', both('EV', 'Glib', 'EV', 'Glib');
chooses 'EV and IO::Async', [qw(EV IO::Async::Loop)], 'use EV; use IO::Async::Loop; my $loop = IO::Async::Loop->new;',
    both('EV', 'IO::Async::Loop', 'EV', 'IOAsync');
chooses 'Glib and Mojo', [qw(Glib Mojo::IOLoop)], 'use Glib; use Mojo::IOLoop;',
    both('Glib', 'Mojo::IOLoop', 'Glib', 'Mojo'), %POLL;
chooses 'AnyEvent on EV, and Mojo on its own', [qw(EV AnyEvent Mojo::IOLoop)],
    'use EV; use AnyEvent; AnyEvent::detect(); use Mojo::IOLoop;', both('EV', 'Mojo::IOLoop', 'EV', 'Mojo'), %POLL;

# What it is then.

for (['EV', 'EV'], ['Glib', 'Glib'], [undef, 'Poll']) {
    my ($module, $class) = @$_;
    prints "$class: nothing is loaded or chosen before the first watch", [$module // ()],
        ($module ? "BEGIN { \@ARGV = '$module' }\n" : '') . <<'PERL', <<"EXPECTED";
my $loop = Sys::Virt::Event::Auto->new->register;
print ref $loop, ' ', scalar(grep { $INC{$_} } qw(EV.pm Glib.pm AnyEvent.pm Mojo/IOLoop.pm POE/Kernel.pm)), "\n";
eval "use $_; 1" or die $@ for @ARGV;
my $ticks = 0;
my $id = add_timeout(1, sub { $ticks++ });
print ref $loop, ' ', registered() == $loop ? 'the same' : 'another', "\n";
print $loop->run_until(sub { $ticks >= 2 }, 10) ? "it runs\n" : "it does not run\n";
my ($reader, $writer) = pipe_pair();
syswrite $writer, 'x';
my $is_ready;
my $handle = add_handle($reader, 1, sub { $is_ready = 1 });
print $loop->run_until(sub { $is_ready }, 10) ? "it watches\n" : "it does not watch\n";
remove_handle($handle);
remove_timeout($id);
print Sys::Virt::Event::drain(10) ? "idle\n" : "not idle\n";
PERL
Sys::Virt::Event::Auto 0
Sys::Virt::Event::$class the same
it runs
it watches
idle
EXPECTED
}

# A thread of the kit's helper adds a timer, and has to wake the loop for that.
my $is_in_c = defined &Sys::Virt::Event::_serve_by_ev;    # then EV needs none
for (['EV', 'EV', $is_in_c ? '1' : '1 1'], ['Glib', 'Glib', '1 1'], [undef, 'Poll', '1 1']) {
    my ($module, $class, $keys) = @$_;
    prints "$class has the wake watch that was given before", [$module // ()], ($module ? "use $module;\n" : '') . <<'PERL',
use Test::Sys::Virt::EventImpl::CApi;
my $loop = Sys::Virt::Event::Auto->new;
$loop->register(wake => 1);
my @keys = keys %{ $loop->{handles} };
my $id = add_timeout(-1, sub {});
push @keys, keys %{ $loop->{handles} };
print "@keys\n";
my $thread = Test::Sys::Virt::EventImpl::CApi::spawn([sleep_ms => 50], [add_timeout => 1]);
print $loop->run_until(sub { Test::Sys::Virt::EventImpl::CApi::events() }, 5) ? "woken\n" : "asleep\n";
$thread->join;
PERL
        "$keys\nwoken\n";
}

prints 'a run before the first watch chooses too', ['EV'], <<'PERL', "Sys::Virt::Event::EV\n";
use EV;
my $loop = Sys::Virt::Event::Auto->new->register;
$loop->run_for(0);
print ref $loop, "\n";
PERL

prints 'loop is that of the chosen class', ['EV'], <<'PERL', "EV::Loop\nSys::Virt::Event::EV\n";
use EV;
my $loop = Sys::Virt::Event::Auto->new->register;
print ref $loop->loop, "\n";
print ref $loop, "\n";
PERL

prints 'its options are those of the chosen class', ['EV'], <<'PERL', "over\n0\n";
use EV;
my $loop = Sys::Virt::Event::Auto->new(hold_loop => 0)->register;
add_timeout(-1, sub {});
EV::run();
print "over\n$loop->{hold_loop}\n";
PERL

prints '-register, and once more when it has chosen', ['EV'], <<'PERL', "Sys::Virt::Event::Auto\nSys::Virt::Event::EV\nthe same\n";
use EV;
Sys::Virt::Event::Auto->import('-register');
my $loop = registered();
print ref $loop, "\n";
add_timeout(-1, sub {});
print ref $loop, "\n";
Sys::Virt::Event::Auto->import('-register');
print "the same\n" if registered() == $loop;
PERL

prints 'two loops: an exception now, and a choice when only one is left', [qw(EV Glib)], <<'PERL', <<'EXPECTED';
use EV;
use Glib;
my $loop = Sys::Virt::Event::Auto->new->register;
print exception_of { add_timeout(5, sub {}) };
print exception_of { $loop->run_for(0) };
print ref $loop, ' ', scalar(Sys::Virt::Event::watches()), "\n";
delete $INC{'Glib.pm'};
add_timeout(5, sub {});
print ref $loop, "\n";
PERL
Cannot choose an event loop: the program has loaded EV and Glib; register Sys::Virt::Event::EV or Sys::Virt::Event::Glib at program line 4.
Cannot choose an event loop: the program has loaded EV and Glib; register Sys::Virt::Event::EV or Sys::Virt::Event::Glib at program line 5.
Sys::Virt::Event::Auto 0
Sys::Virt::Event::EV
EXPECTED

prints 'options it does not have', [], <<'PERL', "Cannot make Sys::Virt::Event::Auto: there is no option loop at program line 1.\n";
print exception_of { Sys::Virt::Event::Auto->new(loop => 1) };
PERL

SKIP: {
    skip 'Sys::Virt is not installed (Debian: libsys-virt-perl)', 4 if !eval { require Sys::Virt };
    prints 'two loops, and libvirt wants a watch: a warning too', [qw(EV Glib)], <<'PERL',
use EV;
use Glib;
use Sys::Virt;
Sys::Virt::Event::Auto->new->register;
my $conn = Sys::Virt->new(uri => 'test:///default');
print exception_of { $conn->domain_event_register_any(undef, Sys::Virt::Domain::EVENT_ID_LIFECYCLE, sub {}) };
PERL
        qr/\Awarning: Cannot add timeout: Sys::Virt::Event::Auto::add_timeout died: Cannot choose .*\nlibvirt error/;

    prints 'a connection of Sys::Virt has its events', ['EV'], <<'PERL', "test: event 3\n";
use EV;
use Sys::Virt;
Sys::Virt::Event::Auto->new->register;
my $conn = Sys::Virt->new(uri => 'test:///default');
$conn->domain_event_register_any(undef, Sys::Virt::Domain::EVENT_ID_LIFECYCLE, sub {
    my ($conn, $domain, $event) = @_;
    print $domain->get_name, ": event $event\n";
    EV::break();
});
$conn->get_domain_by_name('test')->suspend;
EV::run();
PERL
}

done_testing;
