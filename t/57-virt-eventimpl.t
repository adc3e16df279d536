# The command that prints the verdicts, run as a program.
use strict;
use warnings;

use File::Temp ();
use Test::More;
use Test::Sys::Virt::EventImpl qw(eventimpl_cases);
use lib 't/lib';
use VirtTest;

watchdog(90);

my $dir = File::Temp->newdir;
mkdir "$dir/My";
open my $out, '>', "$dir/My/Loop.pm" or die "Cannot write: $!";
print $out <<'PERL';
package My::Loop;
use parent 'Sys::Virt::Event::Poll';
sub new { my ($class, %opt) = @_; my $self = $class->SUPER::new; $self->{deaf} = $opt{deaf}; $self }
sub update_timeout { my ($self, @args) = @_; $self->{deaf} or $self->SUPER::update_timeout(@args) }
sub loop_once { my ($self, $seconds) = @_; $self->run_once($seconds) }
1;
PERL
close $out;

sub command {
    my (@arguments) = @_;
    my @command = ($^X, '-w', '-Mblib', 'script/virt-eventimpl', @arguments);
    my $r = fresh_perl('exec @ARGV or die', args => \@command, timeout => 60);
    return { %$r, lines => [split /\n/, $r->{stdout}] };
}

my %number = map { $_->{name} => $_->{number} } eventimpl_cases();
my %advice = map { $_->{name} => $_->{advice} } eventimpl_cases();

# A row: its columns are two blanks apart at least.
sub columns { return [split /\s{2,}/, $_[0] =~ s/\A\s+//r] }

subtest 'a line for each case' => sub {
    my $r = command('--suite', 'mask,errhup', '-s', 'register', 'Sys::Virt::Event::Poll');
    is $r->{exit}, 0, 'exit status';
    is $r->{stderr}, '', 'nothing on stderr';
    my @names = map { $_->{name} } grep { $_->{suite} =~ /^(?:mask|errhup|register)$/ } eventimpl_cases();
    my $summary = pop @{ $r->{lines} };
    is_deeply [map { columns($_)->[2] } @{ $r->{lines} }], \@names, 'the cases of the suites';
    is_deeply [grep { !/passed\z/ } @{ $r->{lines} }], [], 'all have passed';
    is $summary, @names . ' passed, 0 failed, 0 skipped', 'the last line counts them';
};

subtest 'a loop that fails' => sub {
    my @loop = ("-I$dir", '--new', 'My::Loop->new(deaf => 1)', '--slow', 0.1, 'My::Loop');
    my $r = command('-c', 'negative,shortened,null_ff', '--skip', 'null_ff=why not', @loop);
    is $r->{exit}, 1, 'exit status';
    is $r->{stderr}, '', 'nothing on stderr';
    is_deeply [map { columns($_) } @{ $r->{lines} }], [
        [$number{negative}, 'timer', 'negative', 'failed', $advice{negative}],
        [$number{shortened}, 'timer', 'shortened', 'failed', $advice{shortened}],
        [$number{null_ff}, 'free', 'null_ff', 'skipped', 'why not'],
        ['0 passed, 2 failed, 1 skipped'],
    ], 'the table, in the order of the cases';

    $r = command('-c', 'one_of_many,shortened', '-f', '-v', @loop);
    is $r->{exit}, 1;
    like $r->{lines}[0], qr/ shortened +failed/, '--failed: only the failure';
    like $r->{lines}[1], qr/^      Rule: a shorter interval/, '--verbose: its rule';
    like $r->{stdout}, qr/^      .*Failed test /m, '... and what was found';
    is $r->{lines}[-1], '1 passed, 1 failed, 0 skipped', 'the count is of all';
};

subtest 'ways to run' => sub {
    my $r = command("-I$dir", '--run', '$impl->loop_once($seconds)', '-c', 'negative', 'My::Loop');
    is $r->{exit}, 0, '--run';
    $r = command('--default', '-c', 'negative,any_key');
    is $r->{exit}, 0, '--default';
    like $r->{lines}[1], qr/any_key +skipped +libvirt's own loop has no methods/, '... has no methods';
};

subtest 'the module of Sys::Virt' => sub {
    plan skip_all => 'Sys::Virt is not installed (Debian: libsys-virt-perl)' if !eval { require Sys::Virt };
    my $r = command('-I', 't/lib', '--sys-virt', '-c', 'one_of_many', '--run', '$impl->run_once($seconds)',
        '--new', 'no warnings; local *OldLoop::register = sub { }; OldLoop->new', 'OldLoop');
    is $r->{exit}, 0, '--sys-virt';
    like $r->{lines}[0], qr/passed$/;
};

subtest 'usage' => sub {
    my @wrong = (
        [[] => qr/^Give one class, or --default$/m],
        [['A', 'B'] => qr/^Give one class/m],
        [['--default', 'A'] => qr/^Give one class/m],
        [['--no-such', 'A'] => qr/^Unknown option: no-such$/m],
        [['My Loop'] => qr/^My Loop is not the name of a class$/m],
        [['No::Loop'] => qr/^Can't locate No\/Loop\.pm/m],
        [["-I$dir", '--new', 'undef', 'My::Loop'] => qr/^undef returns no object$/m],
        [["-I$dir", '--new', 'My::', 'My::Loop'] => qr/^My:: returns no object$/m],
        [["-I$dir", '--run', '1 +', 'My::Loop'] => qr/^--run: syntax error/m],
        [['--suite', 'timr', '--default'] => qr/^Cannot run eventimpl_verdicts: there is no suite timr$/m],
        [['--slow', '-1', '--default'] => qr/slow is a factor/],
    );
    # Sys::Virt 9.5 and newer has that parent class.
    push @wrong, [['-I', 't/lib', '--sys-virt', 'VirtTest::EpollLoop'] => qr/^Cannot load Sys\/Virt\/EventImpl\.pm of/m]
        if grep { -e "$_/Sys/Virt.pm" && !-e "$_/Sys/Virt/EventImpl.pm" } @INC;
    for (@wrong) {
        my ($arguments, $reason) = @$_;
        my $r = command(@$arguments);
        is $r->{exit}, 2, "exit status of @$arguments";
        like $r->{stderr}, $reason, 'the reason';
        like $r->{stderr}, qr/^Usage:/m, '... and the usage';
        is $r->{stdout}, '', 'nothing on stdout';
    }
};

subtest '--list, --help, --version' => sub {
    my $r = command('--list');
    is $r->{exit}, 0;
    is_deeply [map { columns($_)->[2] } @{ $r->{lines} }], [map { $_->{name} } eventimpl_cases()], 'all cases';
    like $r->{lines}[0], qr/data in one of many pipes/, '... with their rules';
    $r = command('-l', '-s', 'free');
    is_deeply [grep { !/^ *\d+  free  / } @{ $r->{lines} }], [], 'those of a suite';
    $r = command('--help');
    is $r->{exit}, 0;
    like $r->{stdout}, qr/--sys-virt/;
    is command('--version')->{stdout}, "virt-eventimpl $Test::Sys::Virt::EventImpl::VERSION\n";
};

done_testing;
