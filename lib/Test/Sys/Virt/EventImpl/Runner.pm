package Test::Sys::Virt::EventImpl::Runner;

# Runs cases in processes of their own. A suite has a process that loads the module under test and starts a process
# for each case, one after another: a case that hangs or crashes takes nothing with it.
#
#     my $run = Test::Sys::Virt::EventImpl::Runner->start(\@cases, %options of Test::Sys::Virt::EventImpl);
#     while (my ($verdict, $text) = $run->next) { ... }        # in the order of @cases

use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

use Carp qw(croak);
use File::Spec;
use POSIX ();
use Test::More ();
use Test::Sys::Virt::EventImpl::Case ();
use Test::Sys::Virt::EventImpl::Module ();
use Test::Sys::Virt::EventImpl::Util;

sub start {
    my ($class, $cases, %opt) = @_;
    my ($from_suite, $to_test) = pipe_pair();
    my $test = $$;
    defined(my $pid = fork) or croak "Cannot fork: $!";
    if (!$pid) {
        close $from_suite;
        _be_the_suite($test, $to_test, $cases, \%opt);
    }
    return bless { pid => $pid, from => $from_suite, left => scalar @$cases }, $class;
}

# A verdict (passed, failed, skipped) and what there is to say about it.
sub next {
    my ($self) = @_;
    return if !$self->{left}--;
    my @result = _receive($self->{from}, 9**9**9);
    return @result ? @result : (failed => "The process of the suite has ended\n");
}

sub DESTROY {
    my ($self) = @_;
    local ($?, $!);
    # It ends by itself when all results have been asked for.
    kill TERM => $self->{pid} if $self->{left} > 0;
    close $self->{from};
    waitpid $self->{pid}, 0;
    return;
}

# Messages between the processes.

sub _send {
    my ($pipe, @strings) = @_;
    utf8::encode($_) for @strings;
    local ($,, $\);
    print {$pipe} pack '(N/a*)2', @strings;
    return;
}

# Nothing if the other side has ended before, or the time is over. It is not read up to its end: a process that a case
# has left behind may hold the pipe open.
sub _receive {
    my ($pipe, $end) = @_;
    my @strings;
    for (1 .. 2) {
        my $length = unpack 'N', _read($pipe, 4, $end) // return;
        push @strings, _read($pipe, $length, $end) // return;
    }
    utf8::decode($_) for @strings;
    return @strings;
}

sub _read {
    my ($pipe, $length, $end) = @_;
    my $buffer = '';
    while (length $buffer < $length) {
        my $left = $end - now();
        vec(my $ready = '', fileno $pipe, 1) = 1;
        next if $left > 0 && select($ready, undef, undef, $left < 3600 ? $left : 3600) <= 0;
        return undef if $left <= 0 || !sysread $pipe, $buffer, $length - length $buffer, length $buffer;
    }
    return $buffer;
}

# The process of the suite.

sub _be_the_suite {
    my ($test, $to_test, $cases, $opt) = @_;
    # Those of the test file: one that waits for children would take ours.
    default_signals();
    my $case_pid;
    $SIG{TERM} = sub {
        kill KILL => $case_pid if $case_pid;
        delete $opt->{fixture};
        POSIX::_exit(0);
    };
    Test::Sys::Virt::EventImpl::Util::set_slow($opt->{slow}) if $opt->{slow};
    my $why = exception_of { Test::Sys::Virt::EventImpl::Module::load($opt->{sys_virt}) };
    for my $case (@$cases) {
        last if getppid != $test;
        my @result;
        $why //= exception_of { @result = _result_of($case, $opt, $to_test, \$case_pid) };
        _send($to_test, defined $why ? (failed => "It could not be run: $why") : @result);
    }
    # What it has started ends before the suite is over.
    delete $opt->{fixture};
    # Nothing of the interpreter that was forked may run at our end.
    POSIX::_exit(0);
}

sub _result_of {
    my ($case, $opt, $to_test, $pid_of_case) = @_;
    my $why = $opt->{skip}{ $case->{name} } // Test::Sys::Virt::EventImpl::Case::why_not($case, $opt);
    return (skipped => $why) if defined $why;
    $opt->{fixture} ||= $case->{fixture}->() if $case->{fixture};
    my ($from_case, $to_suite) = pipe_pair();
    # Where no file can be made what the case prints is lost.
    my $printed;
    open $printed, '+>', undef or open $printed, '+<', File::Spec->devnull or die "Cannot open null device: $!";
    my $seconds = patience($case->{limit});
    defined(my $pid = $$pid_of_case = fork) or die "Cannot fork: $!";
    if (!$pid) {
        close $_ for $from_case, $to_test;
        POSIX::dup2(fileno $printed, $_) for 1, 2;
        # Should the suite be killed, and not see to it.
        alarm POSIX::ceil($seconds) + 5;
        _be_the_case($case, $opt, $to_suite);
    }
    close $to_suite;

    my $end     = now() + $seconds;
    my ($verdict, $text) = _receive($from_case, $end);
    my $end_text = _end_of($pid, $end, $seconds);
    undef $$pid_of_case;
    $end_text = "Its process ended in the midst of the case\n" if !defined $verdict && $end_text eq '';
    seek $printed, 0, 0;
    my @said = map { utf8::decode($_); "It printed: $_" } <$printed>;
    return ($end_text eq '' ? $verdict : 'failed', join '', $text // '', $end_text, @said);
}

# Waits for the process; what was wrong with its end.
sub _end_of {
    my ($pid, $end, $seconds) = @_;
    my $pause = 0.001;
    my $gone;
    until ($gone = waitpid $pid, POSIX::WNOHANG()) {
        last if now() > $end;
        pause($pause);
        $pause *= 2 if $pause < 0.02;
    }
    if (!$gone) {
        my @stacks = Test::Sys::Virt::EventImpl::Util::stacks_of($pid);
        kill KILL => $pid;
        waitpid $pid, 0;
        return join '', "It hung: killed after $seconds s\n", @stacks;
    }
    return "It was waited for by something else\n" if $gone < 0;
    return '' if !$?;
    return $? & 127 ? sprintf "Its process died of signal %d\n", $? & 127
        : sprintf "Its process ended with exit code %d\n", $? >> 8;
}

# The process of a case. It ends like any program, so trouble at the end of an interpreter is seen, too.

sub _be_the_case {
    my ($case, $opt, $to_suite) = @_;
    default_signals();
    Test::Sys::Virt::EventImpl::CApi::start();
    my $text    = '';
    my $builder = Test::More->builder;
    $builder->reset;
    $builder->no_ending(1);
    # A harness may have asked for events instead of text.
    Test2::API::test2_stack()->top->format(Test2::Formatter::TAP->new) if eval { require Test2::Formatter::TAP };
    open my $capture, '>:utf8', \$text or die "Cannot capture output: $!";
    open my $nowhere, '>', File::Spec->devnull or die "Cannot open null device: $!";
    $builder->failure_output($capture);
    $builder->$_($nowhere) for qw(output todo_output);

    my $subject = Test::Sys::Virt::EventImpl::Case->new(%$opt);
    $SIG{__WARN__} = sub { $subject->note_warning(@_) };
    my $verdict = eval { $case->{code}->($subject); 1 } ? 'passed' : 'failed';
    Test::More::diag('The case died: ', $@) if $verdict eq 'failed';
    Test::More::is_deeply([$subject->warnings], [], 'there were no other warnings');
    $verdict = 'failed' if !$builder->is_passing || $builder->current_test < 2;
    utf8::decode($text);
    _send($to_suite, $verdict, $text =~ s{^# ?}{}mgr);
    # From here on they are printed, and shown as such.
    delete $SIG{__WARN__};
    exit 0;
}

1;
