# Living with Sys::Virt, whose shared object defines functions of our names. Every case is a program of its own.
use 5.016;
use strict;
use warnings;

use lib 't/lib';
use Config;
use File::Copy qw(copy);
use File::Path qw(make_path);
use File::Temp;
use Test::More;

use VirtTest qw(:DEFAULT text_of write_text);

if (!eval { require Sys::Virt }) { plan skip_all => 'Sys::Virt is not installed (Debian: libsys-virt-perl)' }
watchdog(120);

# A hook in @INC that has the say about Sys/Virt.pm.
sub hooked { return "BEGIN { unshift \@INC, sub { return if \$_[1] ne 'Sys/Virt.pm'; $_[0] } }\n" }
my $absent = hooked(q{die "Can't locate Sys/Virt.pm in \@INC (you may need to install the Sys::Virt module)"});
sub with_source {
    my ($source) = @_;
    return hooked(qq{my \$source = q($source); open my \$in, '<', \\\$source; return \$in});
}

# A loop as a program would write it, with select.
my $loop_class = <<'EOT';
my %handle; my %timer; my $last = 0;
sub new { my ($class) = @_; my $self = bless {}, $class; $self->register; return $self }
sub add_handle { my ($self, @args) = @_; $handle{++$last} = \@args; return $last }
sub update_handle { my ($self, $id, $events) = @_; $handle{$id}[1] = $events }
sub remove_handle { my ($self, $id) = @_; $self->_free(delete $handle{$id}); return 0 }
sub add_timeout { my ($self, @args) = @_; $timer{++$last} = \@args; return $last }
sub update_timeout { my ($self, $id, $ms) = @_; $timer{$id}[0] = $ms }
sub remove_timeout { my ($self, $id) = @_; $self->_free(delete $timer{$id}); return 0 }
sub _free { my ($self, $args) = @_; my ($opaque, $ff) = @$args[-2, -1]; $self->_free_callback_opaque($ff, $opaque) }
sub run_once {
    my ($self) = @_;
    for my $id (sort keys %timer) {
        my $timer = $timer{$id} or next;
        $self->_run_timeout_callback($id, @$timer[1, 2]) if $timer->[0] >= 0;
    }
}
EOT

# Prints the lifecycle events of a domain that is suspended and resumed.
my $events = <<'EOT';
my $conn = Sys::Virt->new(uri => 'test:///default');
$conn->domain_event_register_any(undef, Sys::Virt::Domain::EVENT_ID_LIFECYCLE, sub { print "event $_[2]\n" });
my ($dom) = $conn->list_domains;
$dom->suspend;
$loop->run_once;
$dom->resume;
$loop->run_once;
EOT
my $two_events = "event 3\nevent 4\n";

# What every function says to rubbish; Sys::Virt's own crash or accept it. The helpers are in the other package since
# 9.5.
my $say = <<'EOT';
sub said { my ($code) = @_; return eval { $code->(); 1 } ? "nothing\n" : $@ =~ s/ at \S+ line [0-9]+\.?\n\z/\n/r }
sub say_rubbish {
    print said(sub { &Sys::Virt::Event::_run_handle_callback_helper(1, 0, 1, undef, undef) });
    print said(sub { &Sys::Virt::Event::_run_timeout_callback_helper(1, \'x', \'x') });
    print said(sub { &Sys::Virt::Event::_free_callback_opaque_helper(1, 2) });
    print said(sub { &Sys::Virt::EventImpl::_run_handle_callback_helper(1, 0, 1, undef, undef) });
    print said(sub { &Sys::Virt::EventImpl::_run_timeout_callback_helper(1, \'x', \'x') });
    print said(sub { &Sys::Virt::EventImpl::_free_callback_opaque_helper(1, 2) });
    print said(sub { &Sys::Virt::Event::_run_handle_callback({}, 1, 0, 1, undef, undef) });
    print said(sub { &Sys::Virt::Event::_run_timeout_callback({}, 1, undef, undef) });
    print said(sub { &Sys::Virt::Event::_free_callback_opaque({}, undef, undef) });
    print said(sub { &Sys::Virt::Event::_register_impl() });
    print said(sub { &Sys::Virt::Event::register({}) }) =~ s/HASH\S+/HASH/r;
    print said(sub { &Sys::Virt::Event::add_handle(-1, 1, sub { }) });
    print said(sub { &Sys::Virt::Event::add_timeout('x', sub { }) });
    print said(sub { &Sys::Virt::Event::update_handle('x', 1) });
    print said(sub { &Sys::Virt::Event::update_timeout('x', 1) });
    print said(sub { &Sys::Virt::Event::remove_handle('x') });
    print said(sub { &Sys::Virt::Event::remove_timeout('x') });
    print said(sub { &Sys::Virt::Event::run_default(-1) });
}
say_rubbish();
EOT
my $what_ours_say = <<'EOT';
Cannot run handle callback: $cb is not what add_handle or add_timeout was given
Cannot run timeout callback: $cb is not what add_handle or add_timeout was given
Cannot free callback opaque: $ff is not what add_handle or add_timeout was given
Cannot run handle callback: $cb is not what add_handle or add_timeout was given
Cannot run timeout callback: $cb is not what add_handle or add_timeout was given
Cannot free callback opaque: $ff is not what add_handle or add_timeout was given
Cannot run handle callback: $cb is not what add_handle or add_timeout was given
Cannot run timeout callback: $cb is not what add_handle or add_timeout was given
Cannot free callback opaque: $ff is not what add_handle or add_timeout was given
Cannot register impl: undef is not an object of a subclass of Sys::Virt::Event or Sys::Virt::EventImpl
Cannot register: HASH is not an object of a subclass of Sys::Virt::Event or Sys::Virt::EventImpl
Cannot add handle: file descriptor -1 is negative
Cannot add timeout: interval "x" is not a number
Cannot update handle: id "x" is not a number
Cannot update timeout: id "x" is not a number
Cannot remove handle: id "x" is not a number
Cannot remove timeout: id "x" is not a number
Cannot run default: number of seconds -1 is negative
EOT

sub runs {
    my ($code, $stdout, $name, %opt) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my $run = fresh_perl($code, switches => ['-w', @{ $opt{switches} || [] }]);
    is($run->{stdout}, $stdout, $name);
    is($run->{stderr}, '', '... without a warning under -w');
    is("$run->{exit} $run->{signal} $run->{timed_out}", '0 0 0', '... and ends well');
}

# Orders of loading: in each of them the functions in force are ours.
my %order = (
    'Sys::Virt before us'               => 'use Sys::Virt; use Sys::Virt::Event;',
    'Sys::Virt after us'                => 'use Sys::Virt::Event; use Sys::Virt;',
    'Sys::Virt long after us'           => 'use Sys::Virt::Event; require Sys::Virt;',
    'us long after Sys::Virt'           => 'use Sys::Virt; require Sys::Virt::Event;',
    'us alone'                          => 'use Sys::Virt::Event;',
    'Sys::Virt::EventImpl first'        => 'use Sys::Virt::EventImpl; use Sys::Virt;',
    'Sys::Virt::EventImpl last'         => 'use Sys::Virt; use Sys::Virt::EventImpl;',
    'Poll first'                        => 'use Sys::Virt::Event::Poll; use Sys::Virt;',
    'Poll last'                         => 'use Sys::Virt; use Sys::Virt::Event::Poll;',
    'Sys::Virt::Domain before us'       => 'use Sys::Virt::Domain; use Sys::Virt; use Sys::Virt::Event;',
);
for my $name (sort keys %order) {
    runs("$order{$name}\n$say", $what_ours_say, $name);
}
runs("$absent use Sys::Virt::Event;\n$say print exists \$INC{'Sys/Virt.pm'} ? 'present' : 'absent';",
    "${what_ours_say}absent", 'Sys::Virt absent');
runs("$absent use Sys::Virt::EventImpl;\n$say", $what_ours_say, 'Sys::Virt absent, Sys::Virt::EventImpl first');
runs(<<"EOT", "1 1 2 2 idle\n", 'Sys::Virt absent: a loop runs');
$absent
use strict;
use Sys::Virt::Event qw(:all);
use Sys::Virt::Event::Poll;
my \$loop = Sys::Virt::Event::Poll->new->register;
my \$runs = 0;
my \$id; \$id = add_timeout(1, sub { print "\$_[0] ", ++\$runs, ' '; remove_timeout(\$id) if \$runs == 1; \$_[0] });
\$loop->run_once while !is_idle();
\$id = add_timeout(1, sub { print "\$_[0] ", ++\$runs, ' '; remove_timeout(\$id) });
1 while \$loop->run_once;
print is_idle() ? "idle\n" : "busy\n";
EOT
{
    my $run = fresh_perl(<<"EOT", switches => ['-w']);
BEGIN { \$SIG{__DIE__} = sub { print "died: \@_" } }
$absent use Sys::Virt::Event;
print "loaded";
EOT
    is($run->{stdout}, 'loaded', q{Sys::Virt absent is no business of $SIG{__DIE__}});
    is($run->{stderr}, '', '... nor a warning');
}

# Sys::Virt broken: the program hears of it.
for my $case (
    ['package Sys::Virt; die "broken on purpose\n"; 1', qr/\Abroken on purpose\n/, 'that dies'],
    ['package Sys::Virt; 0', qr/\ASys\/Virt\.pm did not return a true value/,      'that returns false'],
    ['package Sys::Virt; require No::Such::Module; 1', qr/\ACan't locate No\/Such\/Module\.pm in \@INC/,
        'that lacks a module of its own'],
    ['package Sys::Virt; sub {', qr/Missing right curly/, 'with a syntax error'],
) {
    my ($source, $text, $name) = @$case;
    my $run = fresh_perl(with_source($source) . "use Sys::Virt::Event; print 'goes on';", switches => ['-w']);
    like($run->{stderr}, $text, "a Sys::Virt $name is reported");
    is($run->{stdout}, '', '... and the program does not go on');
    isnt($run->{exit}, 0, '... and fails');
}

# Either class as parent, by every way to have one, in both orders.
for my $parent (qw(Sys::Virt::Event Sys::Virt::EventImpl)) {
    my %way = (
        'use base'              => "use base '$parent';",
        'use parent'            => "use parent '$parent';",
        'use parent -norequire' => "use Sys::Virt::Event; use parent -norequire, '$parent';",
        '@ISA'                  => "use Sys::Virt::Event; our \@ISA = ('$parent');",
        '@ISA, loading that class' => "use $parent; our \@ISA; BEGIN { \@ISA = ('$parent') }",
    );
    for my $way (sort keys %way) {
        my $class = "package My::Loop; use strict; use warnings; $way{$way}\n$loop_class\n"
            . "package main; my \$loop = My::Loop->new;\n";
        runs("use Sys::Virt;\n$class$events", $two_events, "subclass of $parent by $way, Sys::Virt first");
        runs("$class use Sys::Virt;\n$events", $two_events, "subclass of $parent by $way, Sys::Virt last");
    }
}
# Exports.
my @functions = qw(
    register registered register_default run_default
    add_handle update_handle remove_handle add_timeout update_timeout remove_timeout
    protect watches is_idle drain adopt forget
);
my %constant = (HANDLE_READABLE => 1, HANDLE_WRITABLE => 2, HANDLE_ERROR => 4, HANDLE_HANGUP => 8);
my @names = sort @functions, keys %constant;

for my $order ('use Sys::Virt;', '', $absent) {
    my $name = $order eq '' ? 'us first' : $order eq $absent ? 'without Sys::Virt' : 'Sys::Virt first';
    my $late = $order eq '' ? 'require Sys::Virt;' : '';
    runs(<<"EOT", "\n", "$name: nothing is exported by default");
$order use strict; my %before; BEGIN { %before = map { \$_ => 1 } keys %main:: } use Sys::Virt::Event; $late
print join(' ', grep { defined &{\$main::{\$_}} && !\$before{\$_} } grep { !/\\W/ } keys %main::), "\n";
EOT
    runs(<<"EOT", "@names\n@names\nno prototypes\n", "$name: what can be exported, all of it defined");
$order use strict; use Sys::Virt::Event; $late
my \@names = sort \@Sys::Virt::Event::EXPORT_OK;
print "\@names\\n";
Sys::Virt::Event->import(':all');
my \@same = grep { defined &{\$main::{\$_}} && \\&{\$main::{\$_}} == \\&{\$Sys::Virt::Event::{\$_}} } \@names;
print "\@same\\n";
my \@prototyped = grep { defined prototype "Sys::Virt::Event::\$_" } grep { !/HANDLE_/ } \@names;
print "\@prototyped" || 'no prototypes', "\\n";
EOT
    runs(<<"EOT", "1 2 4 8 9\n1 2 4 8 3\n", "$name: the constants");
$order use strict; use Sys::Virt::Event qw(HANDLE_READABLE HANDLE_WRITABLE HANDLE_ERROR HANDLE_HANGUP); $late
print join(' ', HANDLE_READABLE, HANDLE_WRITABLE, HANDLE_ERROR, HANDLE_HANGUP, HANDLE_READABLE | HANDLE_HANGUP), "\\n";
print join(' ', Sys::Virt::Event::HANDLE_READABLE, Sys::Virt::Event::HANDLE_WRITABLE, Sys::Virt::Event::HANDLE_ERROR,
    Sys::Virt::Event::HANDLE_HANGUP, Sys::Virt::Event::HANDLE_READABLE + Sys::Virt::Event::HANDLE_WRITABLE), "\\n";
EOT
    runs(<<"EOT", "1 2 3\n", "$name: functions take their arguments from arrays");
$order use strict; use Sys::Virt::Event qw(:all); use Sys::Virt::Event::Poll; $late
my \@options = (wake => 0);
my \@loop = (Sys::Virt::Event::Poll->new, \@options);
register(\@loop);
my (\@handle, \@timer);
\@handle = (0, 0, sub { });
\@timer = (-1, sub { });
print join(' ', add_handle(\@handle), add_timeout(\@timer), Sys::Virt::Event::add_timeout(\@timer)), "\\n";
EOT
}
{
    my $run = fresh_perl('use Sys::Virt::Event qw(no_such_name); print "goes on"', switches => ['-w']);
    like($run->{stderr}, qr/"?no_such_name"? is not exported by the Sys::Virt::Event module/,
        'a name that is not exported');
    is($run->{stdout}, '', '... is an error');
}

# Each distribution can overwrite files of the other. Ours are installed in one directory, with the shared object.
my $lib = File::Temp->newdir;
my ($ours) = grep { !ref && -e "$_/auto/Sys/Virt/Event/Event.$Config{dlext}" } @INC;
copy_tree($_, $lib) for $ours, grep { !ref && -e "$_/Sys/Virt/Event/Identity.pm" } @INC;

my $VERSION = text_of("$lib/Sys/Virt/Event.pm") =~ /^our \$VERSION = '([0-9._]+)'/m ? $1 : die 'There is no version';
my %text_of_ours = map { $_ => text_of("$lib/Sys/Virt/$_.pm") } qw(Event EventImpl);
# Sys::Virt has the second of them since 9.5.
my %text_of_theirs = (
    Event     => text_of(fresh_perl('require Sys::Virt::Event; print $INC{"Sys/Virt/Event.pm"}', installed => 1)->{stdout}),
    EventImpl => "package Sys::Virt::EventImpl; use warnings; sub add_handle { die 'must provide add_handle' } 1;\n",
);
my @PARTS = map { "Sys::Virt::Event::$_" } qw(Loop Poll Connection Auto);
push @PARTS, map { "Sys::Virt::Event::$_->[0]" } grep { eval "require $_->[1]" }
    ['EV', 'EV'], ['AnyEvent', 'AnyEvent'], ['IOAsync', 'IO::Async'], ['Mojo', 'Mojolicious'], ['Glib', 'Glib'];

# These files are Sys::Virt's now, and these modules say so, of the first of the files.
for my $case (
    [['Event'], 'Sys::Virt::EventImpl', @PARTS],
    [['EventImpl'], 'Sys::Virt::Event', @PARTS],
    [['Event', 'EventImpl'], @PARTS],
) {
    my ($files, @modules) = @$case;
    write_text("$lib/Sys/Virt/$_.pm", $text_of_theirs{$_}) for @$files;
    for my $module (@modules) {
        dies_with("use $module;", [$lib], "$lib/Sys/Virt/$files->[0].pm is the file of Sys::Virt, installed over the one"
            . " of Sys-Virt-Event $VERSION: install Sys-Virt-Event again", "$module with the @$files of Sys::Virt");
    }
    # The program may have that one already, as with use Sys::Virt::Event in its first line.
    dies_with('use Sys::Virt; use Sys::Virt::Event; use Sys::Virt::Event::Poll;', [$lib],
        "$lib/Sys/Virt/$files->[0].pm is the file of Sys::Virt, installed over the one of Sys-Virt-Event $VERSION:"
        . ' install Sys-Virt-Event again', "... and both of them with the @$files");
    write_text("$lib/Sys/Virt/$_.pm", $text_of_ours{$_}) for @$files;
}
runs('use Sys::Virt::Event::Poll; use Sys::Virt::Event::Connection; print "goes on"', 'goes on',
    'installed again, it works', switches => ["-I$lib"]);

# Sys::Virt's, in a directory of its own, that perl searches first.
my $first = File::Temp->newdir;
make_path("$first/Sys/Virt");
for my $name (qw(Event EventImpl)) {
    write_text("$first/Sys/Virt/$name.pm", $text_of_theirs{$name});
    dies_with('use Sys::Virt::Event::Poll;', [$first, $lib], "$first/Sys/Virt/$name.pm is the file of Sys::Virt, and perl"
        . " finds it before the one of Sys-Virt-Event $VERSION: put $lib before $first in \@INC (PERL5LIB, use lib)",
        "the $name of Sys::Virt found first");
    runs('use Sys::Virt::Event::Poll; print "goes on"', 'goes on', '... and second', switches => ["-I$lib", "-I$first"]);
    unlink "$first/Sys/Virt/$name.pm" or die "Cannot unlink: $!";
}
# And ours is gone: Sys::Virt was removed, with its files of these names.
for my $name (qw(Event EventImpl)) {
    unlink "$lib/Sys/Virt/$name.pm" or die "Cannot unlink: $!";
    write_text("$first/Sys/Virt/$name.pm", $text_of_theirs{$name});
    dies_with('use Sys::Virt::Event::Poll;', [$lib, $first], "$first/Sys/Virt/$name.pm is the file of Sys::Virt, installed"
        . " over the one of Sys-Virt-Event $VERSION: install Sys-Virt-Event again", "our $name is gone", bare => 1);
    write_text("$lib/Sys/Virt/$name.pm", $text_of_ours{$name});
    unlink "$first/Sys/Virt/$name.pm" or die "Cannot unlink: $!";
}

# Versions of ours that are mixed.
write_text("$lib/Sys/Virt/EventImpl.pm", $text_of_ours{EventImpl} =~ s/^(our \$VERSION) = '[0-9._]+'/$1 = '99.5'/mr);
dies_with('use Sys::Virt::Event;', [$lib], "$lib/Sys/Virt/EventImpl.pm is of Sys-Virt-Event 99.5, installed over the one"
    . " of Sys-Virt-Event $VERSION: install Sys-Virt-Event again", 'an EventImpl of another version');
write_text("$lib/Sys/Virt/EventImpl.pm", $text_of_ours{EventImpl});
write_text("$lib/Sys/Virt/$_.pm", text_of("$lib/Sys/Virt/$_.pm") =~ s/^(our \$VERSION) = '[0-9._]+'/$1 = '99.5'/mr)
    for qw(Event EventImpl Event/Identity);
{
    my $run = fresh_perl('use Sys::Virt::Event; print "goes on"', switches => ['-w', "-I$lib"]);
    like($run->{stderr}, qr/object version [0-9.]+ does not match bootstrap parameter 99\.5/,
        'a shared object of another version');
    like($run->{stderr}, qr{\Q$lib\E/Sys/Virt/Event\.pm and its shared object come from different},
        '... is explained');
    like($run->{stderr}, qr/install Sys-Virt-Event again/, '... with what to do');
    is($run->{stdout}, '', '... and the program does not go on');
}

done_testing;

sub dies_with {
    my ($code, $dirs, $message, $name, %opt) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my %from = $opt{bare} ? (installed => 1) : ();
    my $run  = fresh_perl("$code print 'goes on'", switches => ['-w', map { "-I$_" } @$dirs], %from);
    like($run->{stderr}, qr{^\Q$message\E$}m, "$name: the message");
    is($run->{stdout}, '', '... and the program does not go on');
}

sub copy_tree {
    my ($from, $to) = @_;
    for my $entry (glob "$from/*") {
        my $target = "$to/" . $entry =~ s{.*/}{}r;
        next if -d $entry && !-d $target && !mkdir $target;
        -d $entry ? copy_tree($entry, $target) : copy($entry, $target) || die "Cannot copy $entry: $!";
    }
}
