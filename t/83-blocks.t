# Every verbatim block of the manual says what it is, in a mark that readers do not see, and is held to it: programs
# run as they are printed. VirtTest::Blocks has the marks.
use strict;
use warnings;

use Config;
use File::Basename qw(dirname);
use File::Find ();
use File::Spec;
use File::Temp ();
use lib dirname(__FILE__) . '/lib';
use Test::More;
use VirtTest qw(:DEFAULT text_of write_text);
use VirtTest::Blocks;
use VirtTest::Commands;

@INC = map { ref() ? $_ : File::Spec->rel2abs($_) } @INC;
plan skip_all => 'Sys::Virt is not installed (Debian: libsys-virt-perl)' if !eval { require Sys::Virt };
watchdog(400);

my $top = File::Spec->rel2abs(dirname(__FILE__) . '/..');
chdir $top or die "Cannot go to $top: $!\n";
my $dir = File::Temp->newdir;

my %check = (
    program => \&program, frame => \&frame, driver => \&driver, output => \&output, shell => \&shell,
    messages => \&messages, text => sub { $_[2] }, elsewhere => \&elsewhere,
);

# Those named on the command line, or all.
my @files = @ARGV ? @ARGV : manual();
for my $file (@files) {
    my $last;
    for my $block (VirtTest::Blocks::of(text_of($file))) {
        my $name = "$file line $block->{line}, $block->{head}";
        # That of man.
        my $margin = 7 + $block->{indent};
        is_deeply [grep { $margin + length > 80 } @{ $block->{lines} }], [], "$name: it fits into 80 columns";
        my $check = $check{ $block->{mark} // '' };
        if (!$check) {
            my $fault = ($block->{mark} // '') eq 'lost' ? 'a mark without a block' : 'a block without a known mark';
            fail "$name: $fault, see VirtTest::Blocks";
            next;
        }
        $last = $check->($block, $name, $last, $file);
    }
}
done_testing;

sub manual {
    my @found = map { "script/$_" } qw(virt-events virt-eventimpl);
    File::Find::find({ no_chdir => 1, wanted => sub { push @found, $_ if /\.(?:pm|pod)\z/ } }, 'lib');
    return sort @found;
}

# Programs. What they have printed is for the block with output that may follow.

sub program {
    my ($block, $name) = @_;
    return run($block->{text}, $block, $name);
}

sub frame {
    my ($block, $name) = @_;
    my $code = $block->{frame} =~ s/^HERE\n/$block->{text}/mr;
    isnt $code, $block->{frame}, "$name: the frame has a place for the block";
    return run($code, $block, $name);
}

sub driver {
    my ($block, $name) = @_;
    write_text("$dir/block.pl", $block->{text});
    return run($block->{frame}, $block, $name, "$dir/block.pl");
}

sub run {
    my ($code, $block, $name, @args) = @_;
    if (my $missing = missing("$code$block->{text}")) {
        SKIP: { skip "$name: $missing", 1 }
        return;
    }
    my $run = run_of($code, @args);
    my $is_good = ok VirtTest::Blocks::is_like($run->{stdout}, $block->{expected}), "$name: it prints what it should";
    diag "it prints:\n$run->{stdout}and should:\n$block->{expected}" if !$is_good;
    is $run->{stderr}, '', '... no warning';
    ok !$run->{timed_out} && !$run->{exit} && !$run->{signal}, '... and ends well'
        or diag "exit $run->{exit}, signal $run->{signal}, timed out $run->{timed_out}";
    return { code => $code, args => \@args, printed => $run->{stdout} };
}

sub run_of {
    my ($code, @args) = @_;
    return fresh_perl($code, switches => ['-w'], includes => ["$top/t/lib"], args => \@args, timeout => 60);
}

# What it takes and is not there.
sub missing {
    my ($code) = @_;
    return 'perl has no threads' if $code =~ /^use threads/m && !$Config{useithreads};
    for my $module ($code =~ /^\s*(?:use|require) ([A-Z][\w:]+)/mg) {
        my $file = $module =~ s{::}{/}gr . '.pm';
        next if $module =~ /^My::/ || grep { !ref && -e "$_/$file" } @INC;
        return "$module is not installed";
    }
    return 'libvirt was installed without the picture of its test driver'
        if $code =~ /->screenshot/ && !-s '/usr/share/libvirt/test-screenshot.png';
    return if $code !~ /EventImpl::Daemon/;
    require Test::Sys::Virt::EventImpl::Daemon;
    return Test::Sys::Virt::EventImpl::Daemon->why_not;
}

sub output {
    my ($block, $name, $last) = @_;
    SKIP: {
        skip "$name: the program before it was not run", 1 if !$last;
        my $printed = $block->{about} eq 'trace' ? trace_of($last) : $last->{printed};
        my $is_good = VirtTest::Blocks::is_shown($printed, $block->{text});
        ok $is_good, "$name: it is what the program prints" or diag $printed;
    }
    return $last;
}

sub trace_of {
    my ($last) = @_;
    local $ENV{SYS_VIRT_EVENT_TRACE} = 1;
    return run_of($last->{code}, @{ $last->{args} })->{stderr};
}

sub elsewhere {
    my ($block, $name, $last, $file) = @_;
    my $test = -e $block->{about} ? text_of($block->{about}) : '';
    my $taken_from = $file =~ s{\Alib/}{}r =~ s{\.\w+\z}{}r =~ s{/}{::}gr;
    ok $test =~ /\Q$taken_from\E|\Q$file\E/, "$name: $block->{about} is about this manual";
    return $last;
}

# Commands.

sub shell {
    my ($block, $name, $last, $file) = @_;
    for my $command (VirtTest::Commands::commands($block->{text})) {
        # A program of the manual's own is saved under a name that its text has.
        my $is_named = $command =~ /^perl ([\w-]+\.pl)\b/ && index(text_of($file), "F<$1>") >= 0;
        my $complaint = $is_named ? undef : VirtTest::Commands::complaint($command);
        is $complaint, undef, "$name: " . $command =~ s/\n.*//sr;
    }
    return $last;
}

# Messages: what the sources say, where a %s or a variable stands for anything.

{
    my @says;

    sub messages {
        my ($block, $name, $last) = @_;
        # A pattern that fits anything proves nothing.
        @says = grep { 'Cannot do anything: nonsense' !~ $_ && 'nonsense' !~ $_ } sayings() if !@says;
        my $text = $block->{text} =~ s/\n +/ /gr;
        for my $message (split /\n/, $text) {
            # The verb and noun, and the name of a method, are put in front of what the sources have.
            my ($reason) = $message =~ /\ACannot [^:]+: (.+)/;
            my ($what) = ($reason // '') =~ /\A[\w:]+::\w+ (.+)/;
            my @texts = grep { defined } $message, $reason, $what;
            ok scalar(grep { my $says = $_; grep { $_ =~ $says } @texts } @says), "$name: $message";
        }
        return $last;
    }
}

sub sayings {
    my @patterns;
    for my $file (glob('src/*.c'), 'Event.xs', grep { /\.pm$/ } manual()) {
        my $code = text_of($file) =~ s/^__END__.*//msr;
        my @strings;
        if ($file =~ /\.(?:c|xs)$/) {
            $code =~ s/%" SVf "/%s/g;
            $code =~ s/%" SVf/%s"/g;
            $code =~ s/"\s*\n\s*"//g;
            @strings = map { s/%(?:\.\*)?l?[sdu]|%l?[sdux]/\0/gr } $code =~ /"((?:[^"\\]|\\.)*)"/g;
        }
        else {
            $code =~ s/["']\s*\n?\s*\.\s*["']//g;
            my $variable = qr/\@\{\[.*?\]\}|[\$\@]\{?\w+\}?(?:->)?(?:[\[{][^\]}]*[\]}])*/;
            @strings = map { s/$variable/\0/gr } $code =~ /["']((?:[^"'\n\\]|\\.)*)["']/g;
        }
        for (@strings) {
            next if (() = /[a-z]/g) < 4;
            my $pattern = join '.+', map { quotemeta } split /\0+/, s/\\n\z//r =~ s/\\"/"/gr, -1;
            push @patterns, qr/\A$pattern\z/;
        }
    }
    return @patterns;
}
