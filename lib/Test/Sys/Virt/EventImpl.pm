package Test::Sys::Virt::EventImpl;
use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

use Carp ();
use Exporter 'import';
use Test::More ();
use Test::Sys::Virt::EventImpl::Case ();
use Test::Sys::Virt::EventImpl::Runner ();
use Test::Sys::Virt::EventImpl::Util ();

# In the order in which their suites are run.
use Test::Sys::Virt::EventImpl::Cases::Handles ();
use Test::Sys::Virt::EventImpl::Cases::Timers ();
use Test::Sys::Virt::EventImpl::Cases::Frees ();
use Test::Sys::Virt::EventImpl::Cases::Callbacks ();
use Test::Sys::Virt::EventImpl::Cases::Threads ();
use Test::Sys::Virt::EventImpl::Cases::Life ();
use Test::Sys::Virt::EventImpl::Cases::Fork ();
use Test::Sys::Virt::EventImpl::Cases::Virt ();
use Test::Sys::Virt::EventImpl::Cases::Remote ();
use Test::Sys::Virt::EventImpl::Cases::Embed ();

our @EXPORT    = ('eventimpl_ok');
our @EXPORT_OK = ('eventimpl_cases', 'eventimpl_verdicts');

my @CHOICE = qw(suites cases);
my %OPTION = (
    eventimpl_ok       => [@CHOICE, qw(runner skip slow sys_virt name)],
    eventimpl_verdicts => [@CHOICE, qw(runner skip slow sys_virt each)],
    eventimpl_cases    => \@CHOICE,
);

sub eventimpl_ok {
    my ($make, %opt) = _checked(@_);
    my $name   = delete $opt{name} // 'event loop';
    my $all_ok = 1;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    for my $suite (_chosen_suites(\%opt)) {
        my @cases = _chosen_cases($suite, \%opt) or next;
        # The processes are forked outside of the subtest, as Test::More has no notion of a fork inside.
        my $run = Test::Sys::Virt::EventImpl::Runner->start(\@cases, make => $make, %opt);
        my $ok = Test::More::subtest("$name: $suite->{name}" => sub {
            Test::More::plan(tests => scalar @cases);
            _report($_, $run->next) for @cases;
        });
        $all_ok &&= $ok;
    }
    return $all_ok;
}

sub _report {
    my ($case, $verdict, $text) = @_;
    local $Test::Builder::Level = _level_of_test();
    SKIP: {
        Test::More::skip("$case->{name}: $text", 1) if $verdict eq 'skipped';
        my $passed = $verdict eq 'passed';
        Test::More::ok($passed, "$case->{number} $case->{name}: $case->{rule}");
        Test::More::note($text) if $passed && length $text;
        Test::More::diag($text, $text =~ /^It could not be run:/ ? () : "Advice: $case->{advice}.") if !$passed;
    }
    return;
}

# Where the test file calls eventimpl_ok: this is where a failure is reported.
sub _level_of_test {
    my $level = 0;
    $level++ while (caller $level)[0] =~ /^Test::(?:Sys::Virt::EventImpl|Builder|More)\b/;
    return $level + 1;
}

sub eventimpl_verdicts {
    my ($make, %opt) = _checked(@_);
    my $each = delete $opt{each} || sub { };
    my @verdicts;
    for my $suite (_chosen_suites(\%opt)) {
        my @cases = _chosen_cases($suite, \%opt) or next;
        my $run = Test::Sys::Virt::EventImpl::Runner->start(\@cases, make => $make, %opt);
        for my $case (@cases) {
            my ($verdict, $text) = $run->next;
            push @verdicts, { _public($case), verdict => $verdict, text => $text };
            $each->($verdicts[-1]);
        }
    }
    return @verdicts;
}

sub eventimpl_cases {
    my (%opt) = @_;
    _check('eventimpl_cases', \%opt);
    return map { { _public($_) } } map { _chosen_cases($_, \%opt) } _chosen_suites(\%opt);
}

sub _public {
    my ($case) = @_;
    return map { $_ => $case->{$_} } qw(number name suite title rule source harm advice);
}

sub _chosen_suites {
    my ($opt) = @_;
    my %wanted = map { $_ => 1 } @{ $opt->{suites} || [] };
    return grep { !%wanted || $wanted{ $_->{name} } } Test::Sys::Virt::EventImpl::Case::suites();
}

sub _chosen_cases {
    my ($suite, $opt) = @_;
    my %wanted = map { $_ => 1 } @{ $opt->{cases} || [] };
    return grep { !%wanted || $wanted{ $_->{name} } }
        sort { $a->{number} <=> $b->{number} }
        grep { $_->{suite} eq $suite->{name} } Test::Sys::Virt::EventImpl::Case::all();
}

# Arguments

sub _checked {
    my ($make, %opt) = @_;
    my ($function) = (caller 1)[3] =~ /(\w+)\z/;
    my $is_default = defined $make && !ref $make && $make eq 'default';
    $is_default || ref $make eq 'CODE'
        or _cannot($function, 'the first argument is code that returns a new object, or the string default');
    _check($function, \%opt);
    $opt{runner} //= $is_default ? \&_run_default : \&_run_object;
    return ($is_default ? undef : $make, %opt);
}

sub _check {
    my ($function, $opt) = @_;
    my %known = map { $_ => 1 } @{ $OPTION{$function} };
    my %type  = (suites => 'ARRAY', cases => 'ARRAY', skip => 'HASH', runner => 'CODE', each => 'CODE');
    for my $name (sort keys %$opt) {
        $known{$name} or _cannot($function, "there is no option $name");
        delete $opt->{$name}, next if !defined $opt->{$name};
        !$type{$name} || ref $opt->{$name} eq $type{$name}
            or _cannot($function, "$name is not a reference to \L$type{$name}");
    }
    $opt->{$_} && !@{ $opt->{$_} } and _cannot($function, "$_ is empty") for @CHOICE;
    my %suite = map { $_->{name} => 1 } Test::Sys::Virt::EventImpl::Case::suites();
    my %case  = map { $_->{name} => 1 } Test::Sys::Virt::EventImpl::Case::all();
    $suite{$_} or _cannot($function, "there is no suite $_") for @{ $opt->{suites} || [] };
    $case{$_} or _cannot($function, "there is no case $_")
        for @{ $opt->{cases} || [] }, sort keys %{ $opt->{skip} || {} };
    grep { _chosen_cases($_, $opt) } _chosen_suites($opt)
        or _cannot($function, "the suites @{ $opt->{suites} } have none of the cases @{ $opt->{cases} }");
    !defined $opt->{slow} || Test::Sys::Virt::EventImpl::Util::is_factor($opt->{slow})
        or _cannot($function, "slow is a factor, a number above 0, not $opt->{slow}");
    return;
}

sub _cannot {
    my ($function, $reason) = @_;
    Carp::croak("Cannot run $function: $reason");
}

sub _run_default {
    my (undef, $seconds) = @_;
    return Test::Sys::Virt::EventImpl::Case::run_default($seconds);
}

sub _run_object {
    my ($impl, $seconds) = @_;
    my $method = $impl->can('run_for') || $impl->can('run_once')
        or die ref $impl, " has no run_for and no run_once: eventimpl_ok needs the option runner\n";
    return $impl->$method($seconds);
}

1;

__END__

=encoding UTF-8

=head1 NAME

Test::Sys::Virt::EventImpl - tells whether an event loop keeps libvirt's contract

=head1 SYNOPSIS

=begin test frame

HERE
__END__
/(?s:# Subtest: Poll: handle\n.*\nok 2 - Poll: timer.*\n1..2)/

=end test

  use strict;
  use warnings;
  use Sys::Virt::Event::Poll;
  use Test::More;
  use Test::Sys::Virt::EventImpl;

  eventimpl_ok(sub { Sys::Virt::Event::Poll->new },
      name => 'Poll', suites => ['handle', 'timer']);
  done_testing;

=head1 DESCRIPTION

An event loop for libvirt looks like six small methods. What libvirt needs of them is spread over its headers, its
sources and its history, and what a loop does wrong shows late: as an event that is missing, a processor that is busy,
a connection that hangs after an hour. This kit asks a loop for all of it, in some seconds.

It judges the subclasses of L<Sys::Virt::EventImpl> and L<Sys::Virt::Event>, libvirt's own loop, and loops on the module
of the same name that comes with Sys::Virt. The cases are described one by one in
L<Test::Sys::Virt::EventImpl::Cases>: the rule, where it comes from, what goes wrong when it is broken, and what to do.
L<virt-eventimpl> prints the verdicts for a class as a table.

libvirt's functions are called as libvirt calls them, from C: with C callbacks, from inside callbacks, and from threads
that are not Perl's.

=head1 FUNCTIONS

=head2 eventimpl_ok($make, %options)

Runs a subtest for each suite, with a test for each case. Returns true if all have passed. It is exported by default,
and used with C<done_testing> of L<Test::More>.

C<$make> is code that returns a new event loop object, which is not registered yet. It is called in the process of
each case, so it may load the class first. The string C<default> stands for libvirt's own loop.

The options:

=over

=item name => $string

What the tests are called, C<event loop> by default.

=item runner => $code

Is called with the object and a number of seconds, runs the loop, and returns after that time at most. It may return as
soon as something has happened. What it throws may be an exception of a callback. By default the object's
C<run_for($seconds)> is called, else its C<run_once($seconds)>.

=item suites => [$name, ...]

Runs these suites only: see L</SUITES>.

=item cases => [$name, ...]

Runs these cases only. That the suites have none of them is an exception.

=item skip => { $case => $reason, ... }

Leaves out these cases. They are reported as skipped.

=item slow => $factor

Makes the time limits longer by that factor, and by that in the environment variable C<TEST_SLOW>. What a case asserts
are order and counts, so it does not depend on how fast the machine is. The limits are for loops that hang.

=item sys_virt => 1

Judges the loop on the module Sys::Virt::Event that is installed with Sys::Virt, rather than on this distribution's.
The test file must not have loaded Sys::Virt::Event before: load the class of the loop in C<$make>.

=back

A wrong argument is an exception: C<Cannot run eventimpl_ok:> and the reason.

=head2 eventimpl_verdicts($make, %options)

Does the same without tests, and returns a list of hashes, one for each case, with its C<number>, C<name>, C<suite>,
C<title> of the suite, C<rule>, C<source>, C<harm>, C<advice>, the C<verdict> (C<passed>, C<failed> or C<skipped>) and
the C<text> that explains the verdict. One more option, C<< each => $code >>, is called with each of them as soon as it
is known. It is exported on request.

=head2 eventimpl_cases(%options)

Returns a list of hashes that describe all cases, or those of the options C<suites> and C<cases>, in the order in which
they run, with all of the above but verdict and text. It is exported on request.

=head1 SUITES

These run in this order, and can be chosen by name:

=over

=item handle

Watches: which run.

=item mask

Event masks.

=item errhup

HANGUP and ERROR.

=item multi

Several watches of one fd.

=item timer

Timers.

=item order

The order of things in one pass.

=item free

libvirt's free functions.

=item exception

Exceptions.

=item reentry

A loop that is run by a callback.

=item token

Tokens and arguments.

=item threads

Calls from threads that are not Perl's.

=item register

Registration.

=item end

The end of the process.

=item fork

Processes that fork.

=item virt

Sys::Virt and test:///default.

=item remote

Sys::Virt and a private libvirtd.

=item embed

Sys::Virt and a private qemu:///embed.

=back

The last three need Sys::Virt, and a libvirtd or an emulator. The others need nothing, and take some six seconds
together.

=head1 PROCESSES

Each suite has a process of its own, and so has each case: libvirt takes one registration per process. A case that
crashes or hangs is a test that fails, with its name. A case that has not ended after some seconds (15 mostly, 30 with
an emulator, see C<slow>) is killed.

A case registers the object, runs the loop, and ends the process as any program ends: B<the C<END> blocks and the
objects of the test file are there too>. One that removes a file, say, should compare C<$$> with the process id of the
test, or be made after C<eventimpl_ok>. A warning that the case does not expect makes it fail. What is printed
meanwhile, and what is warned of when the process ends, is shown with the result.

The suites C<remote> and C<embed> start a libvirtd or an emulator of their own, in a temporary directory, and end it
however the test ends. They touch nothing that is installed or running. Where a program or Sys::Virt is missing the
suite is skipped, with the reason.

=head1 VERDICTS

These are the cases that fail, with libvirt 9.0.0 and Sys::Virt 9.0.0 of Debian 12. Our own tests run them again.

=head2 Sys::Virt::Event::Poll

None.

=head2 A loop written from the manual

L<Sys::Virt::Event/WRITING A LOOP> was all that its author knew; it uses epoll. None fail.

=head2 libvirt's own loop

Those that call or replace methods are skipped.

=for test text

  errhup:    closed_fd closed_fd_once
  timer:     set_in_each_pass
  free:      free_not_starved
  reentry:   no_early_free_in_c

GLib takes POLLNVAL for nothing, so a watch whose fd was closed makes the loop spin, in silence. A timer that is set to
0 ms anew in each pass never fires. The free functions of timers wait as long as some timer of 0 ms is busy. A nested
run frees a watch whose callback is still on the stack.

=head2 A simple select loop

A class such as the tests of Sys::Virt have one: C<select>, numbers as keys, free functions called in C<remove_*>. It
does not do what this distribution leaves to the loop:

=for test text

  handle:    fd_reused_in_pass
  errhup:    hangup_unasked error_unasked hangup_alone
             readable_and_hangup closed_fd closed_fd_once
             closed_fd_spares_others
  order:     enabled_in_pass
  reentry:   nested_sleeps nothing_stale
  remote:    daemon_goes

=head2 The same loop on the module of Sys::Virt

=for test text

  handle:    unknown_ids removed_twice fd_reused_in_pass
  errhup:    hangup_unasked error_unasked hangup_alone
             readable_and_hangup closed_fd closed_fd_once
             closed_fd_spares_others
  multi:     removes_its_like
  order:     removed_in_pass timer_removed_in_pass enabled_in_pass
  free:      after_remove after_callback not_in_callbacks null_ff
             null_opaque
  exception: last_in_callback add_dies no_key refused_to_perl any_key
             update_dies remove_dies libvirt_goes_on signal_waits
             keeps_variables keeps_error spoiling_callback
  reentry:   no_early_free_in_c not_twice nested_sleeps nothing_stale
  token:     forged mixed token_of_removed early_free own_id_and_fd
             no_mask code_is_copied
  threads:   removed_asleep timer_removed_asleep calls_while_asleep
             calls_while_blocked last_update_counts order_per_id many
             never_seen never_told refused_late removed_while_running
  register:  runs_unregistered runs_default_of_object
             default_after_object object_after_default others_first
             method_missing busy_object_stays running_object_stays
             idle_object_replaced
  end:       removed_at_end other_thread_left
  fork:      child_is_woken wakes_kept_apart
  virt:      refused
  remote:    methods_die signal error_survives nothing_left daemon_goes
             remote_connection_left
  embed:     vm_events vm_crash vm_rounds

=head1 SEE ALSO

L<Test::Sys::Virt::EventImpl::Cases>, L<virt-eventimpl>, L<Sys::Virt::Event/WRITING A LOOP>,
L<Sys::Virt::Event::Manual>

=head1 AUTHOR AND LICENSE

The Sys-Virt-Event developers. This module is free software; you can redistribute it and/or modify it under the same
terms as Perl itself.

=cut
