# The tarball, put into an empty directory in the three ways that people have, used from there and removed again. Then
# the same directory shared with Sys::Virt, whose files are those of the system's package.
use 5.016;
use strict;
use warnings;

use lib qw(t/lib xt/lib);
use Config;
use ExtUtils::Manifest qw(maniread);
use File::Basename qw(dirname);
use File::Copy qw(copy);
use File::Find ();
use File::Path qw(make_path remove_tree);
use File::Spec;
use Test::More;

use AuthorTest;
use VirtTest qw(:DEFAULT text_of write_text);

watchdog(900);

my $WORK = work_dir();
my $ARCH = "lib/perl5/$Config{archname}";

# Ends the test: nothing that follows would tell anything.
sub must {
    my ($command, %opt) = @_;
    my $run = run_of($command, limit => 300, %opt);
    $run->{status} eq 'exit 0' or die "@$command: $run->{status}\n$run->{output}\n";
    return $run->{output};
}

sub files_below {
    my ($dir) = @_;
    my @files;
    File::Find::find({ no_chdir => 1, wanted => sub { push @files, s{\A\Q$dir\E/}{}r if !-d } }, $dir);
    return sort @files;
}

sub list { return join '', map { "$_\n" } sort @_ }

# What is used from a directory is used from nowhere else: no source tree, no blib.
sub env_of {
    my ($prefix) = @_;
    return (
        PERL5LIB => "$prefix/lib/perl5", PATH => "$prefix/bin:$ENV{PATH}", PERL_MM_OPT => undef, PERL_MB_OPT => undef,
    );
}

sub empty_dir {
    my ($name) = @_;
    remove_tree("$WORK/$name");
    make_path("$WORK/$name");
    return "$WORK/$name";
}

# The tarball

sub tarball {
    my $source = empty_dir('source');
    for my $file (sort keys %{ maniread() }) {
        make_path(dirname("$source/$file"));
        copy($file, "$source/$file") or die "Cannot copy $file: $!";
    }
    must([$^X, 'Makefile.PL'], dir => $source);
    must([$Config{make}, 'dist'], dir => $source);
    my @tarballs = glob "$source/Sys-Virt-Event-*.tar.gz";
    is @tarballs, 1, 'make dist makes one file';
    return $tarballs[0];
}

sub unpacked {
    my ($name) = @_;
    my $dir = empty_dir($name);
    must(['tar', '-xzf', our $TARBALL, '-C', $dir]);
    my ($top) = glob "$dir/*";
    return $top;
}

our $TARBALL = tarball();
subtest 'what is in it' => sub {
    my $top = unpacked('contents');
    is_deeply [glob dirname($top) . '/*'], [$top], 'one directory';
    like $top, qr{/\QSys-Virt-Event-\E[0-9.]+\z}, 'with the name of the file';
    is list(files_below($top)), list(keys %{ maniread() }, 'META.json', 'META.yml'), 'MANIFEST, and META';
    is list(grep { (stat "$top/$_")[2] & 022 } files_below($top)), '', 'files that only their owner may change';
};

# The ways: each puts it into a directory, and takes it out again.

sub by_make {
    my ($prefix) = @_;
    my $top = unpacked('by-make');
    my $said = must([$^X, 'Makefile.PL', "INSTALL_BASE=$prefix"], dir => $top);
    must([$Config{make}], dir => $top);
    must([$Config{make}, 'install'], dir => $top);
    return $said;
}

sub out_by_make { return must([$Config{make}, 'uninstall'], dir => (glob "$WORK/by-make/*")[0]) }

# Its tests are those of make test, and take their time.
sub by_cpanm {
    my ($prefix) = @_;
    my @offline = ('--mirror', 'file://' . empty_dir('mirror'), '--mirror-only');
    return must(['cpanm', '--notest', '--verbose', @offline, '-l', $prefix, $TARBALL],
        env => { HOME => empty_dir('home'), env_of('/nowhere') }, dir => empty_dir('elsewhere'));
}

# By the name of a module that only this distribution has.
sub out_by_cpanm {
    my ($prefix) = @_;
    return must(['cpanm', '--uninstall', '--force', '-l', $prefix, 'Sys::Virt::Event::Poll'],
        env => { HOME => empty_dir('home'), PERL_MM_OPT => undef }, dir => empty_dir('elsewhere'));
}

# cpan takes a directory, not a tarball that is not on its mirror.
sub by_cpan {
    my ($prefix) = @_;
    my $home = empty_dir('home');
    my %config = (
        (map { $_ => "$home/$_" } qw(build_dir keep_source_where prefs_dir histfile)), cpan_home => $home,
        urllist => ['file://' . empty_dir('mirror')], makepl_arg => "INSTALL_BASE=$prefix", make => $Config{make},
        prerequisites_policy => 'ignore', inhibit_startup_message => 1,
        map { $_ => 0 } qw(connect_to_internet_ok use_sqlite recommends_policy suggests_policy auto_commit),
    );
    open my $out, '>', "$WORK/MyConfig.pm" or die "Cannot write: $!";
    print $out '$CPAN::Config = { ', join(', ', map { "$_ => " . perl_of($config{$_}) } sort keys %config), " };\n1;\n";
    close $out or die "Cannot write: $!";
    my $said = must(['cpan', '-j', "$WORK/MyConfig.pm", '-T', '.'], env => { HOME => $home, env_of('/nowhere') },
        dir => unpacked('by-cpan'));
    return $said;
}

sub perl_of { return ref $_[0] ? "[@{[ map { perl_of($_) } @{ $_[0] } ]}]" : "'$_[0]'" }

my @WAYS = (
    ['make', \&by_make, \&out_by_make], ['cpanm', \&by_cpanm, \&out_by_cpanm], ['cpan', \&by_cpan, \&out_by_cpanm],
);
my %installed;
for (@WAYS) {
    my ($name, $install, $remove) = @$_;
    subtest "by $name" => sub {
        my $prefix = empty_dir("prefix-$name");
        $install->($prefix);
        $installed{$name} = [files_below($prefix)];
        shows_events($prefix);
        if ($name eq 'make') {
            is_complete($prefix);
            has_manuals($prefix);
            judges_loops($prefix);
            runs_examples($prefix);
        }
        else { is list(@{ $installed{$name} }), list(@{ $installed{make} }), 'the same files as by make' }
        my $said = $remove->($prefix);
        is list(files_below($prefix)), '', 'nothing is left when it is removed';
        is list(grep { $said !~ m{\Q$prefix/$_\E$}m } @{ $installed{$name} }), '', '... and it says what it removes';
        is list(grep { -d "$prefix/$ARCH/$_" } qw(Sys auto/Sys Test)), '', '... with their directories'
            if $name eq 'make';
        isnt run_of(["$^X", '-e', 'require Sys::Virt::Event::Poll'], env => { env_of($prefix) })->{status}, 'exit 0',
            '... and no program finds it';
    };
}

sub shows_events {
    my ($prefix) = @_;
    my $run = run_of(['virt-events', '--demo'], env => { env_of($prefix) }, dir => empty_dir('elsewhere'), limit => 60);
    is $run->{status}, 'exit 0', 'virt-events --demo';
    like $run->{output}, qr/^\S+ +domain +test +$_\n/m, "... shows '$_'" for 'suspended: paused', 'started: booted';
    return;
}

# All modules, programs and shared objects; each comes from there.
sub is_complete {
    my ($prefix) = @_;
    my @modules = map { m{\Alib/(.+\.(?:pm|pod))\z} ? "$ARCH/$1" : () } keys %{ maniread() };
    my @programs = map { m{\Ascript/(.+)\z} ? "bin/$1" : () } keys %{ maniread() };
    my @objects = map { "$ARCH/auto/$_.$Config{dlext}" } 'Sys/Virt/Event/Event', 'Test/Sys/Virt/EventImpl/CApi/CApi';
    is list(grep { !m{\Aman/} } files_below($prefix)),
        list(@modules, @programs, @objects, "$ARCH/auto/Sys/Virt/Event/.packlist"), 'what is installed';
    my $code = 'require Sys::Virt::Event::EV; require Sys::Virt::Event::Connection; require Test::Sys::Virt::EventImpl;'
        . ' print map { "$_\n" } grep { m{Sys/Virt/Event} } values %INC, @DynaLoader::dl_shared_objects';
    is list(grep { !m{\A\Q$prefix/$ARCH/} } split /\n/, must([$^X, '-e', $code], env => { env_of($prefix) })), '',
        '... and loaded from there';
    return;
}

# Each manual can be read, by its module's name, and fills no line of a terminal to the brim.
sub has_manuals {
    my ($prefix) = @_;
    my @manuals = map { m{/([^/]+)\.(\w+)\z} ? [$1, $2] : () } grep { m{\Aman/} } files_below($prefix);
    cmp_ok scalar @manuals, '>=', 15, 'there are manuals';
    for (@manuals) {
        my ($name, $section) = @$_;
        my $run = run_of(['man', '--warnings', '-M', "$prefix/man", $section, $name],
            env => { MANWIDTH => 80, LC_ALL => 'C.UTF-8', MANPAGER => 'cat' });
        is $run->{status}, 'exit 0', "man $name";
        like $run->{output}, qr/^NAME\n +\Q$name\E - \S/m, '... has its name';
        unlike $run->{output}, qr/^\S*(?:roff|standard input)\S*.*\bwarning\b/m, '... and no warning of the formatter';
    }
    return;
}

# The kit, on an adapter and on a loop that somebody has written: the one of the manual.
sub judges_loops {
    my ($prefix) = @_;
    my $dir = empty_dir('elsewhere');
    my %where = (env => { env_of($prefix) }, dir => $dir, limit => 240);
    my $run = run_of(['virt-eventimpl', '--failed', 'Sys::Virt::Event::Poll'], %where);
    is $run->{status}, 'exit 0', 'virt-eventimpl on Poll' or diag $run->{output};
    like $run->{output}, qr/^\d{3} passed, 0 failed, /m, '... passes its cases';
    make_path("$dir/lib/My");
    my $class = class_of_manual("$prefix/$ARCH");
    write_text("$dir/lib/My/Loop.pm", $class);
    my @judge = ('virt-eventimpl', '-Ilib', '--failed', '--suite', 'handle,timer,free,virt', 'My::Loop');
    $run = run_of(\@judge, env => { env_of($prefix) }, dir => $dir, limit => 120);
    is $run->{status}, 'exit 0', 'virt-eventimpl on the loop of the manual' or diag $run->{output};
    like $run->{output}, qr/^\d{2} passed, 0 failed, /m, '... passes, too';
    write_text("$dir/lib/My/Loop.pm", $class =~ s/delete \$self->\{timers\}\{\$timer\}/1/r);
    $run = run_of(\@judge, env => { env_of($prefix) }, dir => $dir, limit => 120);
    is $run->{status}, 'exit 1', '... and not if it never removes a timer';
    like $run->{output}, qr/ no_growth +failed +\S/, '... which is said';
    return;
}

sub class_of_manual {
    my ($lib) = @_;
    my @found;
    for my $file (grep { /\.(?:pm|pod)\z/ } files_below($lib)) {
        my $text = text_of("$lib/$file");
        push @found, "$1\n1;\n" while $text =~ /^(  package My::Loop;\n(?:  .*\n|\n)*?)  package main;\n/mg;
    }
    my ($class) = grep { /IO::Poll/ } @found or die 'The manual has no complete loop';
    return $class;
}

# Each example is run as it is printed, in a directory where there is nothing else: two of them here, the others by
# their tests, which have servers and browsers for them.
sub runs_examples {
    my ($prefix) = @_;
    my %prints = ('poll.pl' => "test: event 3, detail 0\n", 'subclass.pl' => "event 3\n");
    my $dir = empty_dir('examples');
    for my $file (grep { m{\A(?:t|examples)/} } keys %{ maniread() }) {
        make_path(dirname("$dir/$file"));
        copy($file, "$dir/$file") or die "Cannot copy $file: $!";
    }
    my %where = (env => { env_of($prefix) }, dir => $dir, limit => 400);
    for my $name (sort keys %prints) {
        my $run = run_of([$^X, '-w', "examples/$name"], %where);
        is "$run->{status}: $run->{output}", "exit 0: $prints{$name}", "examples/$name";
    }
    my @tests = grep { m{\At/[^/]+\.t\z} } sort keys %{ maniread() };
    my %test_of;
    for my $name (grep { !$prints{$_} } map { m{\Aexamples/(.+\.pl)\z} ? $1 : () } sort keys %{ maniread() }) {
        ($test_of{$name}) = grep { text_of($_) =~ m{examples/\Q$name\E\b} } @tests;
        ok $test_of{$name}, "examples/$name has a test";
    }
    my %tests = map { $_ => 1 } grep { defined } values %test_of;
    my $run = run_of(['prove', '--timer', sort keys %tests], %where);
    note $run->{output};
    is $run->{status}, 'exit 0', '... and these run on what is installed' or diag $run->{output};
    unlike $run->{output}, qr/skipped/, '... all of them';
    return;
}

# One directory, two distributions

my $has_dpkg = grep { -x "$_/dpkg" } File::Spec->path;
my $NO_DPKG  = 'the files of Sys::Virt are those of Debian\'s package, and there is no dpkg';

# Returns the files.
sub install_sys_virt {
    my ($prefix) = @_;
    my @files;
    for my $file (split /\n/, must(['dpkg', '-L', 'libsys-virt-perl'])) {
        my ($below) = $file =~ m{/perl5/[0-9.]+/(.+)\z} or next;
        next if -d $file;
        my $target = "$prefix/$ARCH/$below";
        make_path(dirname($target));
        unlink $target;
        copy($file, $target) or die "Cannot copy $file: $!";
        push @files, "$ARCH/$below";
    }
    return @files;
}

sub is_of_sys_virt {
    my ($file) = @_;
    return text_of($file) !~ /^our \$VERSION/m;
}

# An old program: it does what it did, whosever module it gets.
my $OLD_PROGRAM = <<'EOT';
use Sys::Virt; use Sys::Virt::Event;
Sys::Virt::Event::register_default();
my $conn = Sys::Virt->new(uri => 'test:///default');
my $seen;
$conn->domain_event_register_any(undef, Sys::Virt::Domain::EVENT_ID_LIFECYCLE, sub { $seen = $_[2] });
$conn->get_domain_by_name('test')->suspend;
Sys::Virt::Event::run_default() until defined $seen;
print "event $seen by ", Sys::Virt::Event->can('watches') ? 'Sys-Virt-Event' : 'Sys-Virt';
EOT

sub old_program_runs {
    my ($prefix, $whose) = @_;
    my $run = run_of([$^X, '-w', '-e', $OLD_PROGRAM], env => { env_of($prefix) }, limit => 30);
    is $run->{output}, "event 3 by $whose", "an old program runs, on the module of $whose";
    return;
}

subtest 'first Sys::Virt, then this' => sub {
    plan skip_all => $NO_DPKG if !$has_dpkg;
    my $prefix = empty_dir('shared');
    install_sys_virt($prefix);
    ok is_of_sys_virt("$prefix/$ARCH/Sys/Virt/Event.pm"), 'Sys::Virt has brought its file';
    old_program_runs($prefix, 'Sys-Virt');
    my $said = by_make($prefix);
    like $said, qr{^Warning: \Q$prefix/$ARCH\E/Sys/Virt/Event\.pm is a file of Sys::Virt\.$}m, 'Makefile.PL warns';
    ok !is_of_sys_virt("$prefix/$ARCH/Sys/Virt/Event.pm"), '... and make install takes its place';
    is must([$^X, '-e', 'require Sys::Virt; print $INC{"Sys/Virt.pm"}'], env => { env_of($prefix) }),
        "$prefix/$ARCH/Sys/Virt.pm", 'Sys::Virt is the one there';
    shows_events($prefix);
    old_program_runs($prefix, 'Sys-Virt-Event');
    like out_by_make(), qr{^Sys::Virt stays, but Sys/Virt/Event\.pm, which it has as well, is gone: install it again}m,
        'make uninstall says what Sys::Virt lacks now';
    is must([$^X, '-e', 'require Sys::Virt; print Sys::Virt->new(uri => "test:///default")->get_hostname ne ""'],
        env => { env_of($prefix) }), 1, '... which else works';
    install_sys_virt($prefix);
    old_program_runs($prefix, 'Sys-Virt');
};

subtest 'first this, then Sys::Virt' => sub {
    plan skip_all => $NO_DPKG if !$has_dpkg;
    my $prefix = empty_dir('shared');
    unlike by_make($prefix), qr/Warning/, 'Makefile.PL has nothing to warn of';
    install_sys_virt($prefix);
    old_program_runs($prefix, 'Sys-Virt');
    my $message = "$prefix/$ARCH/Sys/Virt/Event.pm is the file of Sys::Virt, installed over the one of Sys-Virt-Event";
    my @modules = map { "Sys::Virt::Event::$_" } qw(Poll EV Connection);
    for my $program (['virt-events', '--demo'], map { [$^X, '-e', "use $_"] } @modules) {
        my $run = run_of($program, env => { env_of($prefix) }, limit => 30);
        like $run->{output}, qr{^\Q$message\E [0-9.]+: install Sys-Virt-Event again$}m, "@$program says so";
        isnt $run->{status}, 'exit 0', '... and does not go on';
    }
    must([$Config{make}, 'install'], dir => (glob "$WORK/by-make/*")[0]);
    shows_events($prefix);
    old_program_runs($prefix, 'Sys-Virt-Event');
    out_by_cpanm($prefix);
    is list(grep { /Event/ } files_below($prefix)), '', 'cpanm removes what is ours, and no more';
    ok -e "$prefix/$ARCH/Sys/Virt.pm" && -e "$prefix/$ARCH/auto/Sys/Virt/Virt.$Config{dlext}", '... Sys::Virt stays';

    must([$Config{make}, 'install'], dir => (glob "$WORK/by-make/*")[0]);
    my @theirs = grep { /Event/ } install_sys_virt($prefix);
    my ($manual) = glob "$prefix/man/man*/Sys::Virt::Event.*";
    must(['pod2man', "$prefix/$ARCH/Sys/Virt/Event.pm", $manual]);
    my $said = out_by_make();
    unlike $said, qr/ is gone/, 'make uninstall takes nothing from Sys::Virt';
    ok is_of_sys_virt("$prefix/$ARCH/Sys/Virt/Event.pm") && -e $manual, '... which has its module and its manual';
    is list(grep { /Event/ } files_below($prefix)), list(@theirs, $manual =~ s{\A\Q$prefix/}{}r),
        '... and nothing is ours';
    old_program_runs($prefix, 'Sys-Virt');
};

# A perl with nothing but what comes with it: what is missing is said, and what does not need it works.
subtest 'without EV, Sys::Virt or any loop' => sub {
    my $prefix = empty_dir('bare');
    my $hide = empty_dir('hide');
    write_text("$hide/CoreOnly.pm", <<'EOT');
package CoreOnly;
use Config;
my %hidden = map { $_ => 1 } map { ($_, s{/[0-9.]+\z}{}r) } grep { length }
    @Config{qw(sitelibexp sitearchexp vendorlibexp vendorarchexp)};
@INC = grep { !$hidden{$_} } @INC;
1;
EOT
    my %env = (env_of($prefix), PERL5OPT => "-I$hide -MCoreOnly");
    my $top = unpacked('bare-source');
    must([$^X, 'Makefile.PL', "INSTALL_BASE=$prefix"], dir => $top, env => \%env);
    must([$Config{make}, 'install'], dir => $top, env => \%env);
    my $run = sub { run_of([$^X, '-we', @_], env => \%env, limit => 60) };
    for (['EV'], ['AnyEvent'], [IOAsync => 'IO::Async'], [Mojo => 'Mojolicious'], ['Glib'], ['POE']) {
        my ($adapter, $module) = (@$_, @$_);
        my $class = "Sys::Virt::Event::$adapter";
        like $run->("use $class; $class->new")->{output},
            qr/\ACannot make $class: $module is not installed at -e line 1\.$/, "$adapter says what is missing";
    }
    is $run->('use Sys::Virt::Event qw(add_timeout registered); use Sys::Virt::Event::Auto -register; my $ticks = 0;'
        . ' add_timeout(1, sub { $ticks++ }); print "runs" if registered()->run_until(sub { $ticks }, 5)')->{output},
        'runs', 'Auto has a loop all the same';
    my $judged = run_of(['virt-eventimpl', '--failed', '--suite', 'handle,timer,virt', 'Sys::Virt::Event::Poll'],
        env => \%env, limit => 120);
    like $judged->{output}, qr/^\d+ passed, 0 failed, [1-9]\d* skipped$/m, 'the kit skips what needs Sys::Virt';
    my $tool = run_of(['virt-events', '--demo'], env => \%env, limit => 30);
    like $tool->{output}, qr/you may need to install the Sys::Virt module/, 'virt-events says what it needs';
    isnt $tool->{status}, 'exit 0', '... and fails';
    # What comes later is found, though it was built without. Then EV's events go through Perl.
    my $later = <<'EOT';
use Sys::Virt::Event::EV;
use Sys::Virt;
my $loop = Sys::Virt::Event::EV->new->register;
my $conn = Sys::Virt->new(uri => 'test:///default');
my $seen = 0;
$conn->domain_event_register_any(undef, 0, sub { $seen++ });
$conn->get_domain_by_name('test')->suspend;
$loop->run_until(sub { $seen }, 10);
print "seen $seen";
EOT
    is run_of([$^X, '-we', $later], env => { %env, PERL5OPT => undef }, limit => 60)->{output}, 'seen 1',
        'EV and Sys::Virt, installed later';
};

done_testing;
