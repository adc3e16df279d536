# Sys::Virt::Event::Loop: the adapter that its manual shows, and what it says of wrong options and modules.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";

use File::Temp qw(tempdir);
use Test::More;
use Test::Sys::Virt::EventImpl::Util qw(exception_of);
use VirtTest qw(watchdog fresh_perl write_text);
use VirtTest::Adapters;

use Sys::Virt::Event ();
use Sys::Virt::Event::Loop;

watchdog(180);

# Adapters of nothing. Not registered: no loop is ever looked for.
{
    package My::Adapter;
    our @ISA = ('Sys::Virt::Event::Loop');
    our %needs;
    sub _needs       { %needs }
    sub _loop_option { 'reactor' }
    sub _find_loop   { die "too early\n" }
}

# Some cases of the kit run as another user.
my $dir = tempdir(CLEANUP => 1);
chmod 0755, $dir or die "Cannot change the mode of $dir: $!\n";
my %text = (
    'Old.pm'    => "package My::Old;\nour \$VERSION = '1.05';\ndie 'loaded';\n",
    'Silent.pm' => "package My::Silent;\ndie 'loaded';\n",
);
mkdir "$dir/My" or die "Cannot make a directory: $!\n";
write_text("$dir/My/$_", $text{$_}) for keys %text;

sub refused {
    my ($name, $reason, @options) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my $error = exception_of { My::Adapter->new(@options) };
    like $error, qr/\ACannot make My::Adapter: \Q$reason\E at \Q$0\E line \d+\.\n\z/, $name;
    return;
}

{
    local @INC = ($dir, @INC);
    refused('an unknown option', 'there is no option loop', loop => 1);
    refused('several: the first by its name', 'there is no option a', b => 1, reactor => 1, a => 1);
    refused('an odd number', 'options are pairs of a name and a value', 'hold_loop');

    %My::Adapter::needs = ('My::Missing' => 1);
    refused('a module that is missing', 'My::Missing is not installed');
    %My::Adapter::needs = ('My::Old' => '1.1');
    refused('a module that is too old', 'it needs My::Old 1.1, and 1.05 is installed');
    %My::Adapter::needs = ('My::Old' => '1.05', 'My::Silent' => 0);
    is exception_of { My::Adapter->new }, undef, 'nothing is loaded';
    %My::Adapter::needs = ('My::Silent' => '0.1');
    refused('a module without a version', 'it needs My::Silent 0.1, and 0 is installed');
    %My::Adapter::needs = ('VirtTest' => 0);
    is exception_of { My::Adapter->new }, undef, 'one that is loaded';
    %My::Adapter::needs = ('Test::More' => 1e6);
    refused('one that is loaded, and too old', "it needs Test::More 1000000, and $Test::More::VERSION is installed");
}
%My::Adapter::needs = ();

my $object = My::Adapter->new(reactor => 'mine', hold_loop => 0);
like exception_of { $object->run_for() }, qr/\ACannot run: there is no number of seconds at \Q$0\E /, 'run_for without';
like exception_of { $object->run_until(sub { 1 }, 'soon') },
    qr/\ACannot run: number of seconds soon is not a number at \Q$0\E /, 'run_until with a word';
is exception_of { $object->run_until(sub { 1 }) }, undef, 'what is so already needs no loop';
is exception_of { $object->loop }, "too early\n", 'loop looks for it';

# One that was forgotten.
@My::Empty::ISA = ('Sys::Virt::Event::Loop');
like exception_of { My::Empty->new->loop }, qr/\AMy::Empty must provide _find_loop at \Q$0\E /, 'no _find_loop';
{
    no warnings 'once';
    *My::Empty::_find_loop = sub { $My::Empty::loop };
    *My::Empty::_timer     = sub { };
}
like exception_of { My::Empty->new->loop }, qr/\AMy::Empty::_find_loop returned no loop at \Q$0\E /, '... no loop';
$My::Empty::loop = 'a loop';
my $empty = My::Empty->new;
like exception_of { $empty->loop }, qr/\AMy::Empty must provide _watch, _unwatch, _cancel, _iterate at \Q$0\E /,
    '... the others';
isnt exception_of { $empty->loop }, undef, '... each time';

like exception_of { My::Adapter->import('-regster') },
    qr/\ACannot use My::Adapter: there is no option -regster at \Q$0\E /, 'import of anything else';
is exception_of { My::Adapter->import }, undef, 'import of nothing';
is Sys::Virt::Event::registered(), undef, '... registers nothing';

# One whose object is no hash, and none of ours.
{
    package My::Other;
    our @ISA = ('Sys::Virt::EventImpl');
    for my $name (qw(add_handle update_handle remove_handle add_timeout update_timeout remove_timeout)) {
        no strict 'refs';
        *$name = sub { 0 };
    }
}
Sys::Virt::Event::register(bless [], 'My::Other');
My::Adapter->import('-register');
my $registered = Sys::Virt::Event::registered();
isa_ok $registered, 'My::Adapter', 'what -register has registered in place of another';
My::Adapter->import('-register');
is Sys::Virt::Event::registered(), $registered, 'once more changes nothing';

# The manual.

my $pod = do { local (@ARGV, $/) = $INC{'Sys/Virt/Event/Loop.pm'}; <> };
my ($section) = $pod =~ /^=head1 WRITE AN ADAPTER\n(.*?)^=head1/ms;
my ($class, $use, $command, $kit) = map { s/^  //mgr } $section =~ /^((?:  .*\n|\n(?=\n*  ))+)/mg;
cmp_ok scalar(grep { /\S/ } split /\n/, $class), '<=', 40, 'the adapter in the manual is short';

SKIP: {
    skip 'Event is not installed (Debian: libevent-perl)', 6
        if VirtTest::Adapters::missing_modules({ modules => ['Event'] });
    write_text("$dir/My/EventLoop.pm", $class);
    my %options = (switches => ['-w'], includes => [$dir], timeout => 120);

    my $run = fresh_perl($use . <<'PERL', %options);
my ($ticks, $reads) = (0, 0);
pipe my $reader, my $writer or die;
syswrite $writer, 'x';
my $watch = Sys::Virt::Event::add_handle($reader, 1, sub { $reads++; die "bad\n" if $reads == 1 });
my $timer = Sys::Virt::Event::add_timeout(1, sub { Event::unloop() if ++$ticks >= 3 && $reads >= 3 });
$Event::DIED = sub { print "died: $_[1]" };
Event::loop();
Sys::Virt::Event::remove_handle($watch);
Sys::Virt::Event::remove_timeout($timer);
my @left = Event::all_watchers();
print scalar(@left), " left\n";
PERL
    is $run->{stdout}, "died: bad\n0 left\n", 'a program can use it';
    is "$run->{stderr}$run->{exit}/$run->{signal}/$run->{timed_out}", '0/0/0', '... and ends well';

    $run = fresh_perl($kit, %options);
    diag $run->{stderr} if $run->{exit};
    unlike $run->{stdout}, qr/^\s*not ok/m, 'it passes the kit';
    like $run->{stdout}, qr/^1\.\.\d{2}$/m, '... to its end';
    # Sys::Virt, daemons and emulators may be missing, too.
    is scalar(() = $run->{stdout} =~ /# skip .*Event warns of an fd/g), 4, '... but for what it says';
    is "$run->{exit}/$run->{signal}/$run->{timed_out}", '0/0/0', '... and ends well';
}

done_testing;
