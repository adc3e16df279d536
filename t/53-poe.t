# What is particular to Sys::Virt::Event::POE; libvirt's contract is in 53-adapters.t.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";

use Test::More;
use VirtTest;
use VirtTest::Adapters;
use VirtTest::Programs qw(registers_itself leaves_flags);

my ($poe) = grep { $_->{class} =~ /POE/ } adapters();
my @missing = missing_modules($poe);
plan skip_all => "@missing is not installed" if @missing;

watchdog(120);

my $PRELUDE = <<'PERL';
use strict; use warnings;
use Sys::Virt::Event qw(add_handle remove_handle add_timeout update_timeout remove_timeout watches);
use Sys::Virt::Event::POE;
$| = 1;
$SIG{__WARN__} = sub { print 'warning: ', @_ };
sub say_it { print @_, "\n" }
PERL

# Prints the lines, and nothing else.
sub script_is {
    my ($name, $code, $lines) = @_;
    my $run = fresh_perl($PRELUDE . $code, switches => ['-w'], env => { POE_EVENT_LOOP => 'POE::Loop::Select' });
    is_deeply [split /\n/, $run->{stdout}], $lines, $name;
    is $run->{stderr}, '', '... quietly';
    is $run->{timed_out} || $run->{signal} || $run->{exit}, 0, '... and ends';
    return;
}

script_is('POE is not loaded before libvirt wants something watched', <<'PERL', ['0 0 0', '1 1']);
my @loaded = exists $INC{'POE/Kernel.pm'} || 0;
my $loop = Sys::Virt::Event::POE->new;
push @loaded, exists $INC{'POE/Kernel.pm'} || 0;
$loop->register;
push @loaded, exists $INC{'POE/Kernel.pm'} || 0;
say_it "@loaded";
add_timeout(-1, sub { });
say_it exists $INC{'POE/Kernel.pm'}, ' ', $loop->loop == $POE::Kernel::poe_kernel;
PERL

registers_itself('Sys::Virt::Event::POE', env => { POE_EVENT_LOOP => 'POE::Loop::Select' });

script_is('exceptions', <<'PERL', [
eval { Sys::Virt::Event::POE->new(loop => 1) } or print $@;
eval { Sys::Virt::Event::POE->import('-registre') } or print $@;
{
    local $INC{'POE.pm'} = 1;
    local $POE::VERSION = '1.2';
    eval { Sys::Virt::Event::POE->new } or print $@;
}
require Module::Metadata;
@INC = ();
eval { Sys::Virt::Event::POE->new } or print $@;
PERL
    'Cannot make Sys::Virt::Event::POE: there is no option loop at -e line 7.',
    'Cannot use Sys::Virt::Event::POE: there is no option -registre at -e line 8.',
    'Cannot make Sys::Virt::Event::POE: it needs POE 1.350, and 1.2 is installed at -e line 12.',
    'Cannot make Sys::Virt::Event::POE: POE is not installed at -e line 16.',
]);

my $dies = <<'PERL';
use POE;
Sys::Virt::Event::POE->new->register;
my $left = 2;
pipe my $reader, my $writer;
syswrite $writer, 'xx';
add_handle($reader, 1, sub {
    sysread $reader, my $byte, 1;
    remove_handle($_[0]) if !--$left;
    die { text => "from the handle $left" };
});
PERL
script_is('what a callback throws is a warning, and its watch lives on', $dies =~ s/die \K.*;/"from the handle\\n";/r
    . "POE::Kernel->run;\n", [('warning: from the handle') x 2]);

for my $handled (1, 0) {
    my $name = 'sessions that watch for DIE are told instead, and none ends' . ($handled ? '' : ', even so');
    my @told = map { "told: from the handle $_" } 1, 0;
    script_is("... $name", "my \$handled = $handled;\n$dies" . <<'PERL', [@told, 'alive', 'alive']);
for my $name (qw(one other)) {
    POE::Session->create(inline_states => {
        _start => sub {
            $_[KERNEL]->sig(DIE => 'exception') if $name eq 'one';
            $_[KERNEL]->delay(alive => 0.1);
        },
        exception => sub {
            my $error = $_[ARG1]{error_str};
            say_it "told: $error->{text}";
            $_[KERNEL]->sig_handled if $handled;
        },
        alive => sub { say_it 'alive' },
    });
}
POE::Kernel->run;
PERL
}

leaves_flags('Sys::Virt::Event::POE', env => { POE_EVENT_LOOP => 'POE::Loop::Select' });

script_is('a timer that is off keeps the kernel running', <<'PERL', ['removed', 'over']);
use POE;
use Time::HiRes ();
Sys::Virt::Event::POE->new->register;
my $id = add_timeout(-1, sub { });
POE::Session->create(inline_states => {
    _start => sub { $_[KERNEL]->yield('other') },
    other  => sub { },
    _stop  => sub { Time::HiRes::ualarm(50_000) },
});
$SIG{ALRM} = sub { remove_timeout($id); say_it 'removed' };
POE::Kernel->run;
say_it 'over';
PERL

script_is('... not with hold_loop => 0', <<'PERL', ['fired', 'over', 'fired', 'over']);
use POE;
Sys::Virt::Event::POE->new(hold_loop => 0)->register;
my $id = add_timeout(0, sub { say_it 'fired'; update_timeout($_[0], -1) });
POE::Kernel->run;
say_it 'over';
update_timeout($id, 0);
POE::Kernel->run;
say_it 'over';
PERL

script_is('its session is nobody\'s child', <<'PERL', ['stopped', 'fired']);
use POE;
Sys::Virt::Event::POE->new->register;
POE::Session->create(inline_states => {
    _start => sub { add_timeout(20, sub { say_it 'fired'; remove_timeout($_[0]) }) },
    _child => sub { say_it 'a child' },
    _stop  => sub { say_it 'stopped' },
});
POE::Kernel->run;
PERL

script_is('run_for, run_until and stop', <<'PERL', ['1 0 1', '1 0 1', '0']);
use POE;
my $loop = Sys::Virt::Event::POE->new->register;
my $fired = 0;
my $id = add_timeout(1, sub { $fired++ });
sub run {
    my @seen = $loop->run_until(sub { $fired > 2 }, 10);
    push @seen, $loop->run_until(sub { 0 }, 0.001);
    my $stop = add_timeout(1, sub { $loop->stop });
    my $end = time + 5;
    $loop->run_for(10);
    remove_timeout($stop);
    say_it join ' ', @seen, time < $end;
    $fired = 0;
}
run();
POE::Session->create(inline_states => {
    _start => sub { $_[KERNEL]->yield('go') },
    go     => sub { run(); remove_timeout($id) },
});
POE::Kernel->run;
say_it $loop->run_until(sub { 0 });
PERL

# It ends all sessions. What libvirt had comes back when libvirt, or the program, next turns to the loop.
script_is('a kernel that was stopped', <<'PERL', ['over', 'handle new off timer', 'over']);
use POE;
my $loop = Sys::Virt::Event::POE->new->register;
pipe my $reader, my $writer;
syswrite $writer, '.';
my %seen;
sub is_over { POE::Kernel->stop if keys %seen == 4 }
add_handle($reader, 1, sub { sysread $reader, my $byte, 1; $seen{handle}++; is_over() });
add_timeout(20, sub { $seen{timer}++; is_over() });
my $off = add_timeout(-1, sub { $seen{off}++; is_over() });
POE::Kernel->stop;
POE::Kernel->run;
say_it 'over';
update_timeout($off, 0);
add_timeout(0, sub { $seen{new}++; is_over() });
POE::Kernel->run;
say_it join ' ', sort keys %seen;
say_it 'over';
PERL

# The usual thing to do in a child is to stop the kernel, and to begin anew.
script_is('a child process, with has_forked', <<'PERL', ['child', 'child again', 'parent']);
use POE;
my $loop = Sys::Virt::Event::POE->new->register;
my $left = 0;
my $who = 'parent';
add_timeout(1, sub { say_it $who if $left-- > 0; remove_timeout($_[0]), $loop->stop if $left <= 0 });
$loop->run_for(0) for 1;
if (my $pid = fork) {
    waitpid $pid, 0;
    $left = 1;
    $loop->run_for(10);
}
else {
    $who = 'child';
    $left = 1;
    $loop->run_for(10);
    POE::Kernel->stop;
    add_timeout(1, sub { say_it 'child again'; remove_timeout($_[0]) });
    POE::Kernel->run;
}
PERL

SKIP: {
    skip 'Sys::Virt is not installed', 1 if !eval { require Sys::Virt };
    my $connects = <<'PERL';
use Sys::Virt;
my $loop = Sys::Virt::Event::POE->new->register;
my $conn = Sys::Virt->new(uri => 'test:///default');
my @seen;
$conn->domain_event_register_any(undef, Sys::Virt::Domain::EVENT_ID_LIFECYCLE, sub { push @seen, $_[2] });
$conn->get_domain_by_name('test')->suspend;
PERL
    script_is('a program that never runs the kernel', $connects . "say_it 'end';\n", ['end']);
    script_is('... and one that runs it by run_until', "use POE;\n$connects" . <<'PERL', ['1 3']);
say_it $loop->run_until(sub { @seen }, 10), " @seen";
PERL

    my $run = fresh_perl('do shift; die $@ if $@', switches => ['-w'], args => ["$FindBin::Bin/../examples/poe.pl"]);
    is $run->{stdout}, join('', map { "test: event $_, detail 0\n" } 3, 4, 3), 'the example';
    is $run->{stderr}, '', '... quietly';
    is $run->{timed_out}, 0, '... and it ends';
}

done_testing;
