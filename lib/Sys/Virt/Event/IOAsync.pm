package Sys::Virt::Event::IOAsync;
use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

use File::Spec ();
use Sys::Virt::Event::Loop ();

our @ISA = ('Sys::Virt::Event::Loop');

# The first with watch_time and watch_idle, and with loops that implement them.
sub _needs         { ('IO::Async' => '0.49') }
sub _loop_option   { 'loop' }
sub _loop_class    { 'IO::Async::Loop' }
sub _wants_handles { 1 }

sub _find_loop {
    my ($self, $loop) = @_;
    require IO::Async::Loop;
    require IO::Handle;    # not every loop loads it
    $loop //= IO::Async::Loop->new;
    # That loop runs GLib's default context.
    return $loop->isa('IO::Async::Loop::Glib') ? $self->_work_as(__PACKAGE__, 'Sys::Virt::Event::Glib') : $loop;
}

# In a child that loop has an epoll set of its own, and up to 0.22 nothing in it: it goes by what it has noted.
sub _mend_loop {
    my ($self) = @_;
    my $loop = $self->{loop};
    return if !$loop->isa('IO::Async::Loop::Epoll') || IO::Async::Loop::Epoll->VERSION > 0.22;
    %{ $loop->{$_} || {} } = () for qw(masks callbacks refaddr_for_fileno fakeevents);
    $loop->post_fork;
    return;
}

# The loop would make the file non-blocking, which is a matter of the open file, libvirt's as well.
sub _watch {
    my ($self, $file, $read, $write, $code) = @_;
    my $handle = bless $file, 'Sys::Virt::Event::IOAsync::Handle';
    $self->{loop}->watch_io(
        handle => $handle, $read ? (on_read_ready => $code) : (), $write ? (on_write_ready => $code) : (),
    );
    return $handle;
}

sub _unwatch {
    my ($self, $handle) = @_;
    $self->{loop}->unwatch_io(handle => $handle, on_read_ready => 1, on_write_ready => 1);
    return;
}

# Not watch_idle for the next iteration: when one of those dies the loop forgets the others of the same iteration. Fired
# timers are those that were due before, so a chain of such timers leaves the files their turn.
sub _timer {
    my ($self, $seconds, $code) = @_;
    return $self->{loop}->watch_time(after => $seconds, code => $code);
}

# The base cancels no timer that has fired.
sub _cancel {
    my ($self, $id) = @_;
    $self->{loop}->unwatch_time($id);
    return;
}

sub _iterate { $_[0]{loop}->loop_once; return 1 }

# After a signal that of Poll goes on waiting, for what is watched by then. So stop in a handler of %SIG has it watch
# what is always ready. Elsewhere that costs an iteration, the next one: it has nothing to wait for.
sub stop {
    my ($self) = @_;
    my $loop = $self->{loop};
    if (!$self->{stopped} && $loop && $loop->isa('IO::Async::Loop::Poll') && open my $null, '>', File::Spec->devnull) {
        my @watch = (handle => $null, 'on_write_ready');
        $loop->watch_io(@watch => sub { $loop->unwatch_io(@watch => 1) });
    }
    return $self->SUPER::stop;
}

package    # of this file alone
    Sys::Virt::Event::IOAsync::Handle;

our @ISA = ('IO::Handle');

sub blocking { 0 }

1;

__END__

=encoding UTF-8

=head1 NAME

Sys::Virt::Event::IOAsync - libvirt's events in IO::Async's loop

=head1 SYNOPSIS

=for test program
test: event 3, detail 0

  use strict;
  use warnings;
  use IO::Async::Loop;
  use Sys::Virt;
  use Sys::Virt::Event::IOAsync -register;

  my $loop = IO::Async::Loop->new;
  my $conn = Sys::Virt->new(uri => 'test:///default');

  my $lifecycle = Sys::Virt::Domain::EVENT_ID_LIFECYCLE;
  $conn->domain_event_register_any(undef, $lifecycle, sub {
      my ($conn, $domain, $event, $detail) = @_;
      print $domain->get_name, ": event $event, detail $detail\n";
      $loop->stop;
  });

  $conn->get_domain_by_name('test')->suspend;
  $loop->run;

=head1 DESCRIPTION

Lets libvirt watch its file descriptors and timers in a loop of L<IO::Async>, of any class: tried are Select, Poll,
Epoll and Glib. Signals, threads and forks are as described in L<Sys::Virt::Event>.

Where the loop is L<IO::Async::Loop::Glib>, the object becomes one of L<Sys::Virt::Event::Glib>, since both run GLib's
default context. Its manual holds from then on. An object of a subclass becomes one of a subclass of both, and keeps
the methods that it has.

The object is no notifier: there is nothing to add to the loop. IO::Async is loaded, and its loop made, when libvirt
asks for the first watch, if the program has not done so by then.

=head1 METHODS

=head2 new(%options)

Returns an object that is not registered yet. Options:

=over 4

=item loop => $loop

The IO::Async::Loop. If there is none it is what C<< IO::Async::Loop->new >> returns, the one loop that all of a
program shares.

=item hold_loop => 1 or 0

As with any adapter, but it makes no difference here: see L</WHAT KEEPS THE LOOP RUNNING>.

=back

Exceptions start with C<Cannot make Sys::Virt::Event::IOAsync:>. The reasons are an unknown option, a loop that is
none, and an IO::Async that is missing or older than 0.49.

=head2 register(%options)

Makes it libvirt's event loop, and returns it: see L<Sys::Virt::Event/register($impl, %options)>. Call it before the
first connection is opened. C<use Sys::Virt::Event::IOAsync -register> makes an object without options and registers
it.

=head2 loop()

Returns the IO::Async::Loop; on GLib it is the Glib::MainContext.

=head2 run_for($seconds)

Runs the loop for so many seconds, or until C<stop> is called. Returns nothing.

=head2 run_until($code, $seconds)

Runs the loop until C<< $code->() >> returns true. It is called before the first iteration and after each. Returns true
then, and false when so many seconds are over first, or C<stop> was called. Without a number there is no limit.

=head2 stop()

Ends the innermost C<run_for> or C<run_until> that is running. The loop's own C<run> is ended by its own C<stop>.
Returns nothing.

=head1 WHAT KEEPS THE LOOP RUNNING

C<< $loop->run >> runs until it is told to stop, whether there is something to wait for or not. So does C<run_until>.

=head1 EXCEPTIONS

An exception of a callback leaves C<< $loop->run >>, as that of any callback does, or C<run_for> or C<run_until>. The
handle or timer stays, nothing that the program has put off by C<< $loop->later >> is lost, and the loop can be run
again.

If one wake finds several handles on one file descriptor whose callbacks die, the first exception is thrown, and the
others are warnings.

=head1 NESTED RUNS

A callback may run the loop. Its own handle or timer is passed over meanwhile, and all others go on.

=head1 SIGNALS

A handler in C<%SIG> runs at once, and may call C<stop>. The loop's own C<stop> is for C<< $loop->watch_signal >>.

=head1 THE CLOCK

IO::Async's timers go by the time of day. When that is set back they are late, and those of libvirt with them.

=head1 FORK

Both processes can run the loop after a fork. What holds for connections is in L<Sys::Virt::Event/FORK>.

IO::Async::Loop::Epoll, as of 0.22, has an epoll set of its own in a child, but forgets to watch there what it has
watched. This class sees to that, for the program's files too, when libvirt first asks for something in the child, or
C<run_for> or C<run_until> is called there.

=head1 COST

IO::Async wants handles of Perl's, and makes them non-blocking. libvirt's file descriptors must be neither closed nor
changed, so each that is watched is a duplicate: one system call and one file descriptor more for each. libvirt
switches its watch off and on with each call to a server; the loop is not told before it makes a difference, so mostly
it costs nothing. When a file descriptor is ready, there is one poll(2) beyond the loop's own. Timers cost no system
call.

=head1 LIMITS

What has an underscore in its name is a case of the kit, L<Test::Sys::Virt::EventImpl>. All others are passed. On Glib
there are those of L<Sys::Virt::Event::Glib>, too.

=for test text

  what                  on             reason
  --------------------  -------------  ----------------------------------
  closed_fd             Select, Poll,  the loop watches a duplicate of
                        Epoll          the file descriptor, which stays
                                       open when that is closed; no other
                                       watch suffers from it
  sleep after a signal  Poll           the loop goes on waiting after a
                                       handler in %SIG has run, so
                                       run_until does not ask its code
                                       before something happens
  handlers that die     Select, Poll,  the loop is written in Perl: what
                        Epoll          it is at work on may be lost when
                                       a handler in %SIG dies in the
                                       midst of it
  timers of 0 ms        Select, Poll,  one that a callback of a handle
                        Epoll          sets is due in the same pass: the
                                       loop turns to its timers last
  children without fds  Epoll          the epoll set of a child takes a
                                       file descriptor: a child that can
                                       have none watches nothing, and is
                                       warned
  SIGPIPE               all            IO::Async has it ignored, unless
                                       the program has a handler, so it
                                       ends no program

=head1 SEE ALSO

L<Sys::Virt::Event>, L<Sys::Virt::Event::Loop>, L<IO::Async>, L<IO::Async::Loop>

=head1 AUTHOR AND LICENSE

The Sys-Virt-Event developers. This module is free software; you can redistribute it and/or modify it under the same
terms as Perl itself.

=cut
