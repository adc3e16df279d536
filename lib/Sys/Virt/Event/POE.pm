package Sys::Virt::Event::POE;
use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

use Fcntl ();
use Scalar::Util ();
use Sys::Virt::Event::Loop ();

our @ISA = ('Sys::Virt::Event::Loop');

sub _needs          { (POE => '1.350') }
sub _ends_by_itself { 1 }
sub _watches_hold   { 1 }

# One closed file descriptor would end all watching of a loop on select(2), hence the duplicates. That of the wake watch
# is never closed, and must become that of the child in a child.
sub _wants_handles { my ($self, $is_wake) = @_; return $is_wake ? 'tied' : 'dup' }

# The kernel is there as soon as it is loaded. A program that has not loaded it itself has nothing in it that must run.
sub _find_loop {
    my ($self) = @_;
    my $is_new = !$INC{'POE/Kernel.pm'};
    require POE::Kernel;
    POE::Kernel->import;
    require POE::Session;
    _need_not_run($POE::Kernel::poe_kernel) if $is_new;
    return $POE::Kernel::poe_kernel;
}

# Keeps the kernel from complaining at the end that its method run was never called. What POE's manual has for that, to
# call it once before there are sessions, waits for the program's child processes.
sub _need_not_run {
    my ($kernel) = @_;
    ${ $kernel->[POE::Kernel::KR_RUN()] } |= POE::Kernel::KR_RUN_CALLED();
    return;
}

# All is done in a session, which goes when it has nothing to wait for, or when the kernel is stopped. It is nobody's
# child: it would keep its parent.
sub _session {
    my ($self) = @_;
    return $self->{session} if $self->{session};
    Scalar::Util::weaken(my $weak_self = $self);
    POE::Session->create(inline_states => {
        _start => sub {
            my ($kernel, $session) = @_[POE::Session::KERNEL(), POE::Session::SESSION()];
            Scalar::Util::weaken($weak_self->{session} = $session);
            $kernel->detach_myself;
            $kernel->sig(DIE => 'die');
            $kernel->yield('start');
        },
        _stop => sub { $weak_self->_on_stop if $weak_self },
        start => sub { $weak_self->_arm_all if $weak_self },
        call  => sub { $_[POE::Session::ARG0()]->() },
        ready => Sys::Virt::Event::_held(sub { $weak_self->_deliver($_[POE::Session::ARG2()]) if $weak_self }),
        due   => Sys::Virt::Event::_held(sub { $weak_self->_deliver($_[POE::Session::ARG0()]) if $weak_self }),
        die   => sub {
            my ($kernel, $session, $info) = @_[POE::Session::KERNEL(), POE::Session::SESSION(), POE::Session::ARG1()];
            $kernel->sig_handled if ref $info eq 'HASH' && $info->{dest_session} == $session;
        },
    });
    return $self->{session};
}

# Where it had something to wait for it was the kernel that was stopped. Had that been done by a callback, what is armed
# for libvirt after the callback would keep the kernel running.
sub _on_stop {
    my ($self) = @_;
    my @watches = (values %{ $self->{ports} }, values %{ $self->{timers} });
    $self->{is_stopped} = $self->{delivering} && ($self->{hold} || grep { $_->{watcher} || $_->{host} } @watches);
    delete $self->{session};
    $self->_disarm_all;
    return;
}

# An exception in a session would end it.
sub _in_session {
    my ($self, $code) = @_;
    return if $self->{is_stopped};
    local ($@, $!);
    my ($result, $error);
    $self->{loop}->call($self->_session, call => sub { eval { $result = $code->(); 1 } or $error = $@ });
    die $error if defined $error;
    return $result;
}

# POE makes what it watches non-blocking, and a duplicate shares that with libvirt's own.
sub _watch {
    my ($self, $file, $read, $write, $code) = @_;
    my $kernel  = $self->{loop};
    my $watcher = { code => $code };
    $self->_in_session(sub {
        my $flags = tied *$file ? undef : fcntl $file, Fcntl::F_GETFL(), 0;
        $kernel->select_read($file, ready => $watcher) if $read;
        $kernel->select_write($file, ready => $watcher) if $write;
        fcntl $file, Fcntl::F_SETFL(), $flags + 0 if defined $flags;
    });
    return $watcher;
}

sub _unwatch {
    my ($self, $watcher, $file) = @_;
    $watcher->{is_done} = 1;
    $self->_in_session(sub { $self->{loop}->select($file) }) if $self->{session};
    return;
}

sub _timer {
    my ($self, $seconds, $code) = @_;
    my $watcher = { code => $code, is_timer => 1 };
    $watcher->{id} = $self->_in_session(sub { $self->{loop}->delay_set(due => $seconds, $watcher) });
    return $watcher;
}

sub _cancel {
    my ($self, $watcher) = @_;
    $watcher->{is_done} = 1;
    $self->_in_session(sub { $self->{loop}->alarm_remove($watcher->{id}) }) if $self->{session};
    return;
}

# What is delivered may have been in the queue for a while. A run inside the callback must not end the session when it
# has nothing to wait for by then: POE gets confused if one goes in the midst of its own event.
sub _deliver {
    my ($self, $watcher) = @_;
    return if $watcher->{is_done};
    $watcher->{is_done} = 1 if $watcher->{is_timer};
    my ($kernel, $session) = @$self{qw(loop session)};
    $kernel->refcount_increment($session->ID, 'callback');
    $self->{delivering}++;
    eval { $watcher->{code}->(); 1 } or $self->_report($@);
    $self->{delivering}--;
    $kernel->refcount_decrement($session->ID, 'callback') if $self->{session} && $self->{session} == $session;
    $self->_disarm_all if !$self->{delivering} && delete $self->{is_stopped};
    return;
}

# To all sessions that watch for exceptions. The one of ours sees to it that none is ended by it.
sub _report {
    my ($self, $error) = @_;
    return warn $error if $self->{is_stopped};
    my $kernel   = $self->{loop};
    my $session  = $self->_session;
    my %watching = $kernel->_data_sig_watchers('DIE');
    return warn $error if keys %watching == 1;
    my ($file, $line) = (__FILE__, __LINE__);
    $kernel->signal($kernel, DIE => {
        source_session => $session, dest_session => $session, event => 'libvirt', from_state => undef,
        file => $file, line => $line, error_str => $error,
    });
    return;
}

sub _iterate {
    my ($self) = @_;
    my $kernel = $self->{loop};
    _need_not_run($kernel);
    if (($self->{pid} //= $$) != $$) {
        $self->{pid} = $$;
        $kernel->has_forked;
    }
    # Without sessions it would clean up for its end.
    return $kernel->_data_ses_count && $kernel->run_one_timeslice;
}

1;

__END__

=encoding UTF-8

=head1 NAME

Sys::Virt::Event::POE - libvirt in the event loop of POE

=head1 SYNOPSIS

=for test program
test: event 3, detail 0

  use strict;
  use warnings;
  use POE;
  use Sys::Virt;
  use Sys::Virt::Event::POE;

  # First the loop, then the connections.
  Sys::Virt::Event::POE->new->register;
  my $conn = Sys::Virt->new(uri => 'test:///default');

  my $lifecycle = Sys::Virt::Domain::EVENT_ID_LIFECYCLE;
  my $id = $conn->domain_event_register_any(undef, $lifecycle, sub {
      my ($conn, $domain, $event, $detail) = @_;
      print $domain->get_name, ": event $event, detail $detail\n";
      $poe_kernel->post(main => 'done');
  });

  POE::Session->create(inline_states => {
      _start => sub {
          $_[KERNEL]->alias_set('main');
          $conn->get_domain_by_name('test')->suspend;
      },
      done => sub {
          $conn->domain_event_deregister_any($id);
          undef $conn;        # nothing is left to wait for
      },
  });
  POE::Kernel->run;

=head1 DESCRIPTION

Has libvirt's file descriptors and timers watched by the kernel of L<POE>, so that connections, streams and their
events work beside the sessions of the program. Events are delivered by the kernel; calls still wait for their answer,
and the kernel with them.

All is done in a session of this module's own, which comes and goes with what libvirt has registered, and is a child of
the kernel. Callbacks of libvirt run in that session. So they reach the sessions of the program by
C<post>, C<call> or a postback, and not by C<yield>.

POE is started, and the kind of loop that it runs chosen, when it is loaded. This module does not load
it before libvirt wants its first watch, that is when the first connection is opened. A program that wants a certain
loop loads POE itself, as L<POE::Kernel> describes, or sets C<POE_EVENT_LOOP>.

Signals, threads and all else are as described in L<Sys::Virt::Event>. All times are in seconds, and may have a
fraction. The clock is POE's, which is monotonic if L<POSIX::RT::Clock> is installed.

=head1 METHODS

=head2 new(%options)

Returns a new object. The options are described below. An option that does not exist, a missing L<POE> or one
older than 1.350 is an exception that starts with C<Cannot make Sys::Virt::Event::POE:>.

=head2 register(%options)

Makes it libvirt's event loop, and returns it: see L<Sys::Virt::Event/register($impl, %options)>. Call it before the
first connection is opened. C<use Sys::Virt::Event::POE -register;> makes an object without options and registers it,
unless one of this class is registered already.

=head2 loop()

Returns the kernel. POE is loaded now, if it was not before.

=head2 run_for($seconds)

Runs the kernel for so many seconds, or until C<stop> is called or the kernel is stopped. Returns nothing. This and the
next are for scripts, and may be called while the program's own C<< POE::Kernel->run >> is under way, as in a handler.
A program that uses these alone never has to call C<< POE::Kernel->run >>.

=head2 run_until($code, $seconds)

Runs the kernel until C<< $code->() >> returns true. It is called before the first pass of the kernel and after each.
Returns true then, and false when so many seconds are over first, or C<stop> was called, or the kernel is stopped.
Without a number there is no limit, but then it also returns false when there are no sessions left.

=head2 stop()

Ends the innermost C<run_for> or C<run_until> that is running, after the pass that is under way. When none is running
it does nothing. Returns nothing. It does not stop the kernel.

=head1 OPTIONS

=over

=item hold_loop => 0

See below. There is no option for the loop, as a process has but one kernel.

=back

=head1 WHAT KEEPS THE LOOP RUNNING

C<< POE::Kernel->run >> returns when no session has anything to wait for. As long as libvirt has anything registered
the one of this module has, even if libvirt's timers are all switched off. Those of a connection to C<test:///default>
mostly are. What libvirt has is removed when the connection is closed.

With C<< hold_loop => 0 >> timers that are switched off do not keep it. Timers that are on do, and so do file
descriptors, of which each connection to a server has one: POE knows of no others. Then libvirt's own threads, where
there are any, do not wake the loop unless a file descriptor of libvirt's is watched, too: what they ask for is done
when the program or the loop next turns to libvirt.

C<< POE::Kernel->stop >> ends all sessions, that of this module too. Then nothing of libvirt's is watched until libvirt
next changes something, as it does when it is called, or the program calls one of the methods above. All comes back
then, in a new session. The same goes for a signal that ends all sessions.

=head1 EXCEPTIONS

An exception of a callback does not end a session, or the kernel. The session of this module catches it, and sends the
signal C<DIE> to all sessions that watch for it:

=begin test frame

use strict;
use warnings;
use POE;
use Sys::Virt::Event::POE -register;
POE::Session->create(inline_states => {
    _start => sub {
        Sys::Virt::Event::add_timeout(1, sub {
            Sys::Virt::Event::remove_timeout($_[0]);
            die "bad luck\n";
        });
        $_[KERNEL]->state(failed => \&failed);
        $_[KERNEL]->delay(end => 0.2);
        start(@_);
    },
    end => sub { },
});
POE::Kernel->run;
sub start {
HERE
}
__END__
/failed: bad luck\n/

=end test

  $_[KERNEL]->sig(DIE => 'failed');

  sub failed {
      my ($signal, $info) = @_[ARG0, ARG1];
      print "failed: $info->{error_str}\n";
      $_[KERNEL]->sig_handled;
  }

C<error_str> is what was thrown, as it was, also if it is an object. C<event> is C<libvirt>. No session is ended,
whether or not one calls C<sig_handled>. Where no session watches for C<DIE> the exception is a warning. The watch or
timer lives on, and so do all others. When several callbacks on one file descriptor die at once, the first
exception is told, the others are warnings.

Of their own, C<run_for> and C<run_until> die with C<Cannot run:> and the reason, if the number of seconds is none.

=head1 SIGNALS

A handler in C<%SIG> runs at once, and C<run_until> then asks its code. POE has one of its own for signals that a
session watches by C<sig>, which is the better way. Where it is this module that loads POE, a handler of the program
for SIGPIPE stays.

=head1 FORK

The general rules are in L<Sys::Virt::Event/FORK>. A child can use the loop that was registered before, and open
connections of its own. The parent loses nothing to it.

POE wants to be told of a fork, by C<< POE::Kernel->has_forked >> in the child, so that its signals work there.
C<run_for> and C<run_until> call it, and so do C<run> and C<stop> of the kernel; a child that is forked inside a
handler and just goes on has to call it itself. A child that does not want the sessions of its parent calls C<<
POE::Kernel->stop >>, makes sessions of its own, and calls C<< POE::Kernel->run >>.

When C<run> is about to return POE waits for child processes that have ended, and warns of those that have not.

=head1 COST

That libvirt changes what it watches a file descriptor for, as around each call, takes no system call, and mostly
leaves POE alone. A file descriptor that is ready takes one additional poll(2), which waits for nothing and tells what
exactly has happened.

Each file descriptor is duplicated, as select(2) fails for all when one of them was closed. POE makes what
it watches non-blocking, and that a duplicate shares with the original; it is undone at once. This takes some calls of
fcntl(2), each time that a file descriptor is watched anew.

A timer is an event of POE's each time that it is due, and each time that it is set to an earlier time. A change of
timers or file descriptors is a C<call> in the session of this module. Of all the adapters of this distribution this is
the slowest.

=head1 LIMITS

What has an underscore in its name is a case of the kit, L<Test::Sys::Virt::EventImpl>. All others are passed.

=for test text

  what               on   reason
  -----------------  ---  -----------------------------------------------
  closed_fd          all  a duplicate is watched, since select(2) fails
                          for all when one file descriptor was closed; it
                          does not show that
  handlers that die  all  the kernel is written in Perl: what it is at
                          work on may be lost when a handler in %SIG dies
                          in the midst of it
  many passes        all  POE polls on for the last millisecond before a
                          timer is due
  SIGPIPE            all  POE has it ignored when it is loaded, so it
                          ends no program

=head1 SEE ALSO

L<Sys::Virt::Event>, L<POE>, L<POE::Kernel>

F<examples/poe.pl> in the distribution is a session that has its own work to do.

=head1 AUTHOR AND LICENSE

The Sys-Virt-Event developers. This module is free software; you can redistribute it and/or modify it under the same
terms as Perl itself.

=cut
