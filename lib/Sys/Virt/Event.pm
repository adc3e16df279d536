package Sys::Virt::Event;
use 5.016;
use strict;
use warnings;

our $VERSION = '0.001';

use Exporter 'import';
use overload ();
use Sys::Virt::Event::Identity ();
use XSLoader;

# The shared object appends the constants.
our @EXPORT_OK = qw(
    register registered register_default run_default
    add_handle update_handle remove_handle add_timeout update_timeout remove_timeout
    protect watches is_idle drain adopt forget
);
our %EXPORT_TAGS = (all => \@EXPORT_OK);
our $eventimpl;
our @ISA = ('Sys::Virt::EventImpl');

# Sys::Virt's shared object has functions of our names. It comes first, so that ours replace
# them and not the reverse. A program may do without Sys::Virt, but not with a broken one.
{
    local ($@, $SIG{__DIE__});
    eval { require Sys::Virt; 1 } or $@ =~ m{\ACan't locate Sys/Virt\.pm in } or die $@;
}
require Sys::Virt::EventImpl;
Sys::Virt::Event::Identity::check('Sys::Virt::EventImpl');
{
    local ($@, $SIG{__DIE__});
    local $^W = 0;
    eval { XSLoader::load(__PACKAGE__, $VERSION); 1 } or do {
        die $@ if $@ !~ /object version/;
        die "$@$INC{'Sys/Virt/Event.pm'} and its shared object come from different"
            . " distributions or versions: install Sys-Virt-Event again\n";
    };
}

# Also an object that can be called like code. An eval would take an exception of a signal handler for the answer.
sub _is_code {
    my ($code) = @_;
    return ref $code && (UNIVERSAL::isa($code, 'CODE') || overload::Method($code, '&{}'));
}

# The methods that a loop inherits are functions here, too, as in Sys::Virt before 9.5.
for (qw(register _run_handle_callback _run_timeout_callback _free_callback_opaque)) {
    no strict 'refs';
    no warnings qw(redefine prototype);
    *{"Sys::Virt::EventImpl::$_"} = \&$_;
    *{"Sys::Virt::EventImpl::${_}_helper"} = \&{"${_}_helper"} if $_ ne 'register';
}

1;

__END__

=encoding UTF-8

=head1 NAME

Sys::Virt::Event - libvirt's event loop contract for Perl

=head1 SYNOPSIS

=for test program
test: event 3, detail 0
tick
tick
tick

  use strict;
  use warnings;
  use Sys::Virt;
  use Sys::Virt::Event;
  use Sys::Virt::Event::Poll;

  # First the loop, then the connections that shall live in it.
  my $loop = Sys::Virt::Event::Poll->new->register;
  my $conn = Sys::Virt->new(uri => 'test:///default');

  my $lifecycle = Sys::Virt::Domain::EVENT_ID_LIFECYCLE;
  $conn->domain_event_register_any(undef, $lifecycle,
      Sys::Virt::Event::protect(sub {
          my ($conn, $domain, $event, $detail) = @_;
          print $domain->get_name, ": event $event, detail $detail\n";
      }));

  # The program's own fds and timers can live there too.
  my $ticks = 0;
  my $timer = Sys::Virt::Event::add_timeout(100, sub {
      print "tick\n";
      $ticks++;
  });

  $conn->get_domain_by_name('test')->suspend;    # something to see
  $loop->run_until(sub { $ticks == 3 }, 5);
  Sys::Virt::Event::remove_timeout($timer);

=head1 DESCRIPTION

libvirt has no event loop of its own running. It asks the program for one: before the first connection is opened,
the program registers six functions, and through these libvirt says which file descriptors to watch and which timers
to run. Domain events, closed connections, keepalive and streams all depend on that.

This module is that contract for Perl. A program does one of two things:

=over 4

=item *

It registers a Perl object, by L</register($impl, %options)>. What libvirt wants to be watched is then given to the
methods of that object. There are ready classes for programs that run the loop of L<EV|Sys::Virt::Event::EV>,
L<AnyEvent|Sys::Virt::Event::AnyEvent>, L<IO::Async|Sys::Virt::Event::IOAsync>, L<Mojo|Sys::Virt::Event::Mojo>,
L<Glib|Sys::Virt::Event::Glib> or L<POE|Sys::Virt::Event::POE>, one that L<finds out|Sys::Virt::Event::Auto> which of
these it is, and L<Sys::Virt::Event::Poll> for programs that have no loop of their own. Other loops take an adapter of
about thirty lines, see L<Sys::Virt::Event::Loop/WRITE AN ADAPTER>, or a class from scratch, see L</WRITING A LOOP>.

=item *

It takes the loop that is part of libvirt, by L</register_default()>, and calls L</run_default($max_seconds)> again
and again.

=back

This page is the reference. L<Sys::Virt::Event::Manual::Tutorial> is the place to begin.

Connections and domains come from L<Sys::Virt>, a distribution of its own. It contains an older module of the same
name; what was written for that one runs with this one. See L</LIVING WITH SYS::VIRT> and L</DIFFERENCES>.

Intervals of timers are in milliseconds, as in libvirt. All other times are in seconds, and may have a fraction.

=head1 FUNCTIONS

All of them, and the constants, can be imported by name, all at once with C<:all>. Nothing is exported by default.
The class of a loop imports none of them: its methods have the same names.

Mistakes are exceptions. They read C<< Cannot I<verb> I<noun>: I<reason> at I<file> line I<number>. >> The texts
below are without the place. A wrong number of arguments is an exception that shows the usage.

=head2 register($impl, %options)

Makes the object libvirt's event loop. It is a method, too: C<< $impl->register(%options) >>. Call it before the
first connection is opened: a connection that was opened without a loop stays without events, keepalive and
non-blocking streams.

The object's class must be a subclass of L<Sys::Virt::EventImpl> or of Sys::Virt::Event, and must have the six
methods that L</METHODS A LOOP PROVIDES> lists. It may inherit them, but not from those two.

Returns the object, so that C<< my $loop = My::Loop->new->register >> works. The object is held until another takes
its place or the program ends. To register the registered object once more changes nothing.

libvirt takes one registration per process, for good
(L<virEventRegisterImpl|https://libvirt.org/html/libvirt-libvirt-event.html>). What this module gives to libvirt are
functions of its own. So another object can take the place of the registered one, but only while nothing is
registered with it: see L</is_idle()> and L</drain($seconds)>.

The option:

=over 4

=item wake => 1 or 0

libvirt has threads of its own in some drivers. They cannot call Perl; this module keeps their calls until the
loop's thread can take them. To wake a sleeping loop for that, it gives the loop one more handle to watch, the wake
watch. It looks like every other one. By default the loop has it while something is registered with it and the
process has more than one thread, or has loaded the driver of a hypervisor, as for C<qemu:///embed>. (Where the C
library is not glibc, every process counts as having more.) With 1 it always has it, with 0 never: such calls are then
safe too, but wait until the loop's thread next calls libvirt or is called by it. Objects of L<Sys::Virt::Event::Poll>
always have it.

=back

Dies with:

=for test messages

  Cannot register: 42 is not an object of a subclass of Sys::Virt::Event
      or Sys::Virt::EventImpl
  Cannot register: My::Loop must provide update_handle, remove_handle
  Cannot register: the registered event loop, My::Loop, still has 1
      handle, 2 timeouts
  Cannot register: a callback of the registered event loop, My::Loop, is
      running
  Cannot register: register_default was called, and libvirt keeps its own
      event loop from then on
  Cannot register: other code in this process has registered an event
      loop with libvirt already
  Cannot register: the event loop belongs to another thread
  Cannot register: there is no option wait
  Cannot register: the options are not pairs of name and value

Nothing has changed then.

=head2 registered()

Returns the registered object, the string C<default> after L</register_default()>, else undef. In a thread that does
not own the loop an object is undef, too. C<$Sys::Virt::Event::eventimpl> holds the registered object as well, as it
does with Sys::Virt's module. It is for reading.

=head2 register_default()

Makes libvirt's own loop the event loop (virEventRegisterDefaultImpl). Call it before the first connection is
opened. Call it once more and nothing changes. No object can be registered later. Returns nothing.

Since libvirt 6.1 this loop is GLib's default main context. So in a program that runs a GLib or Gtk main loop, that
main loop delivers libvirt's events, and run_default runs GLib's sources.

Dies with:

=for test messages

  Cannot register default: an object is registered as the event loop, and
      libvirt takes only one kind
  Cannot register default: other code in this process has registered an
      event loop with libvirt already
  Cannot register default: the event loop belongs to another thread

or with libvirt's reason, where it could not be initialised.

=head2 run_default($max_seconds)

Runs one iteration of libvirt's own loop (virEventRunDefaultImpl): waits until something is ready, and calls what is
due. With a number it waits at most so many seconds (0: a millisecond, libvirt's unit). Without one, or with undef, it
waits for as long as it takes; if nothing is registered, that is for ever. A signal ends the wait. Returns nothing.

An exception of a callback is thrown from here, see L</EXCEPTIONS>.

In a callback it runs the loop inside itself. A callback of this module that is running is passed over meanwhile, but
libvirt's loop does call the timer again by which libvirt delivers events: later ones come before the rest of the
earlier ones. L<Sys::Virt::Event::Poll> keeps their order.

Dies also with:

=for test messages

  Cannot run default: no event loop is registered
  Cannot run default: register_default was not called
  Cannot run default: number of seconds "soon" is not a number
  Cannot run default: number of seconds -1 is negative

=head2 add_handle($fd_or_handle, $events, $code)

Watches a file descriptor, through libvirt, in the registered loop (virEventAddHandle). The first argument is the
number of a file descriptor or a Perl handle. Only the handle's number is taken: no reference to the handle is kept,
and it is yours to keep it open. C<$events> is a sum of the L</CONSTANTS>, or 0 for a watch that is off for now.
C<$code> is a code reference or an object that can be called like one; it is copied.

Returns the id of the watch, an integer from 1. When something is ready the code is called as

=for test text

  $code->($id, $fd, $events)

where C<$events> has all bits that are ready. HANDLE_ERROR and HANDLE_HANGUP are told even when they were not asked
for, but nothing is while the mask is 0.

Dies with:

=for test messages

  Cannot add handle: no event loop is registered
  Cannot add handle: file descriptor -1 is negative
  Cannot add handle: file descriptor "x" is not a number
  Cannot add handle: handle a reference to GLOB is closed
  Cannot add handle: handle a reference to GLOB has no file descriptor
  Cannot add handle: handle a reference to GLOB is tied: it has no file
      descriptor
  Cannot add handle: event mask 16 is no combination of HANDLE_*
      constants
  Cannot add handle: callback undef is not a code reference
  Cannot add handle: My::Loop::add_handle returned undef
  Cannot add handle: the event loop refused it
  Cannot add handle: the event loop belongs to another thread

or with the exception of the loop's own C<add_handle>.

=head2 update_handle($id, $events)

Watches for other events from now on; 0 switches the watch off (virEventUpdateHandle). Returns nothing.

An id that was removed, or that is a timer's, is ignored quietly, as libvirt's functions do. An id that was never
given out is an exception:

=for test messages

  Cannot update handle: no id 9999 was ever given out
  Cannot update handle: event mask "x" is not a number

=head2 remove_handle($id)

Ends the watch (virEventRemoveHandle). Its code is not called any more, even if it was ready in the pass of the loop
that is under way. The code is released afterwards, once it is not running. The file descriptor stays open. Returns
nothing.

Dies unless a handle with that id is registered:

=for test messages

  Cannot remove handle: no handle with id 9999 is registered
  Cannot remove handle: id "abc" is not a number
  Cannot remove handle: id 1099511627776 is out of range

=head2 add_timeout($ms, $code)

Calls C<< $code->($id) >> every so many milliseconds, in the registered loop (virEventAddTimeout). With 0 the code
is called in each iteration of the loop; with a negative number the timer is registered but disabled. A fraction of
a millisecond is cut off first: -0.5 is 0. Periods that were missed are not made up for.

Returns the id, an integer from 1. Handles and timers share the numbers.

Dies with:

=for test messages

  Cannot add timeout: no event loop is registered
  Cannot add timeout: interval "abc" is not a number
  Cannot add timeout: interval Inf is not a finite number
  Cannot add timeout: interval 1099511627776 is out of range
  Cannot add timeout: callback "main" is not a code reference
  Cannot add timeout: My::Loop::add_timeout returned -5
  Cannot add timeout: the event loop refused it
  Cannot add timeout: the event loop belongs to another thread

or with the exception of the loop's own C<add_timeout>.

=head2 update_timeout($id, $ms)

Changes the interval (virEventUpdateTimeout). It starts anew at this moment, also when it is the same as before. A
negative one disables the timer. Returns nothing. Ids are treated as in L</update_handle($id, $events)>:

=for test messages

  Cannot update timeout: no id 9999 was ever given out

=head2 remove_timeout($id)

Ends the timer (virEventRemoveTimeout), as remove_handle ends a watch. Returns nothing. Dies with:

=for test messages

  Cannot remove timeout: no timeout with id 9999 is registered

=head2 protect($code)

Returns a code reference that calls C<$code> with the same arguments, in the same context, and returns what it
returned; only an exception does not get out of it. It is parked instead, and thrown where that does no harm: see
L</EXCEPTIONS>. The caller gets undef, or in list context nothing.

For handlers that are given to Sys::Virt: those of C<domain_event_register_any>, C<register_close_callback>,
C<add_callback> of a stream and so on. Sys::Virt calls them from libvirt's C code. An exception that leaves such a
handler jumps over that code, and can leave locks and other events behind.

Dies with:

=for test messages

  Cannot protect: callback "x" is not a code reference

=head2 watches()

Returns what is registered now, a list of references to hashes in the order of ids (in scalar context, how many
there are), for people who debug:

=over 4

=item id

As libvirt knows it.

=item kind

C<handle> or C<timeout>.

=item fd, events

Of a handle: the file descriptor and the mask last asked for.

=item ms

Of a timeout: the interval last asked for.

=item dispatched

How often its callback was called.

=item age

Seconds since it was added.

=item last_dispatch

Seconds since its callback was last called; undef if it never was.

=back

The wake watch is not among them. After register_default these are the watches of this module's own functions:
libvirt's go to its loop directly. Dies in a thread that does not own the loop.

=head2 is_idle()

True if nothing is registered, and all that was removed is released. A closed connection takes another moment until
this is so; its socket is closed then, and not before. The wake watch does not count, and after register_default
only the watches of this module's own functions do. Dies in a thread that does not own the loop.

=head2 drain($seconds)

Runs the loop until L</is_idle()>, at most so many seconds; without a number, or with undef, for as long as it
takes. Returns true if it is idle, else false. Remove your own watches first, and close the connections. A handler
that is still registered keeps its connection open.

The loop is run by the object's method C<run_for>, else C<run_once>, again and again, each time
with the number of seconds that it may take at most, or after register_default by run_default. Exceptions of
callbacks come out of it. Dies also with:

=for test messages

  Cannot drain: no event loop is registered
  Cannot drain: a callback is running, which cannot go before it returns
  Cannot drain: My::Loop has neither run_for nor run_once
  Cannot drain: number of seconds "soon" is not a number
  Cannot drain: number of seconds -1 is negative

=head2 adopt()

For a child process: takes over what libvirt had registered before the fork, at once, see L</FORK>. The
other process must not use these connections any more, nor may other children of it that wait for its end. Elsewhere it
does nothing. Returns nothing. Dies with:

=for test messages

  Cannot adopt: no event loop is registered
  Cannot adopt: after register_default libvirt keeps its handles to
      itself
  Cannot adopt: the event loop belongs to another thread

=head2 forget()

For a child process: drops what libvirt had registered before the fork, without a word to the servers, see L</FORK>.
The connections are dead in this process; the other process keeps them. The program's own watches and timers stay.
Nothing that libvirt knows of these watches is released, so what their handlers hold stays in memory. Elsewhere, and
after L</adopt()>, it does nothing. Returns nothing. Dies with:

=for test messages

  Cannot forget: no event loop is registered
  Cannot forget: after register_default libvirt keeps its handles to
      itself
  Cannot forget: the event loop belongs to another thread

=head1 METHODS A LOOP PROVIDES

These six are abstract. A subclass must have all of them when it is registered. L</WRITING A LOOP> says how they
must behave.

The methods have the names of the functions above. Called on an object whose class lacks the method, each of these
functions dies with C<My::Loop must provide add_handle>.

=head2 $loop->add_handle($fd, $events, $cb, $opaque, $ff)

libvirt wants C<$fd> to be watched for C<$events>. The other three are opaque: keep them. C<$cb> and C<$opaque> are
for L</$loop-E<gt>_run_handle_callback($watch, $fd, $events, $cb, $opaque)>, C<$ff> and C<$opaque> for
L</$loop-E<gt>_free_callback_opaque($ff, $opaque)>.

Returns a key for the watch: anything but undef and negative numbers. The other methods get it back verbatim. An
exception, undef, nothing or a negative number means that the watch cannot be had. See L</IDS AND TOKENS>.

=head2 $loop->update_handle($key, $events)

libvirt wants the watch to look for these events from now on. What it returns is ignored. It is not called for the
events that the loop looks for already, unless the last call has died, or the watch has been called with HANDLE_ERROR
since.

=head2 $loop->remove_handle($key)

libvirt wants the watch to end. It cannot be refused: a negative number or an exception becomes a warning. Anything
else returned is ignored.

=head2 $loop->add_timeout($ms, $cb, $opaque, $ff)

libvirt wants a timer. Like add_handle, with an interval in milliseconds: 0 for each iteration, negative for a timer
that is disabled.

=head2 $loop->update_timeout($key, $ms)

libvirt wants the interval to be this from now on, counted from now.

=head2 $loop->remove_timeout($key)

libvirt wants the timer to end. Like remove_handle.

=head1 METHODS A LOOP CALLS

A loop calls these when something happened. They are inherited.

=head2 $loop->_run_handle_callback($watch, $fd, $events, $cb, $opaque)

Calls libvirt's callback of a handle. C<$events> has all bits that are ready, in one call. C<$cb> and C<$opaque> are
what add_handle was given; they decide which watch it is. C<$watch> and C<$fd> are for the eye only, and can be any
value: the callback sees the id that libvirt knows, and the watch's own fd. Returns nothing.

If the watch was removed, nothing happens, quietly. If its callback is running at this moment (the loop was run
inside it), it is not called again; the first time this is a warning.

An exception of the callback is thrown from here. Dies also with:

=for test messages

  Cannot run handle callback: $cb is not what add_handle or add_timeout
      was given
  Cannot run handle callback: $opaque is not what add_handle or
      add_timeout was given
  Cannot run handle callback: $cb and $opaque belong to different watches
  Cannot run handle callback: $cb belongs to a timeout
  Cannot run handle callback: event mask 16 is no combination of HANDLE_*
      constants

=head2 $loop->_run_timeout_callback($timer, $cb, $opaque)

Calls libvirt's callback of a timer. Otherwise the same. Dies with:

=for test messages

  Cannot run timeout callback: $cb is not what add_handle or add_timeout
      was given
  Cannot run timeout callback: $cb and $opaque belong to different
      watches
  Cannot run timeout callback: $cb belongs to a handle

=head2 $loop->_free_callback_opaque($ff, $opaque)

Says that the loop is done with the watch. It is an acknowledgement and nothing depends on it: early (inside
C<remove_handle>), late, twice or never, the outcome is the same. The module itself runs libvirt's free function,
once, when the watch is removed, its callback is not running and libvirt's code has left the stack. Returns nothing.
Dies with:

=for test messages

  Cannot free callback opaque: $ff is not what add_handle or add_timeout
      was given
  Cannot free callback opaque: $ff and $opaque belong to different
      watches

=head1 CONSTANTS

The bits of event masks, virEventHandleType in libvirt.

=head2 HANDLE_READABLE

1. There is something to read. The end of what a socket sends is told as this and HANDLE_HANGUP, that of an empty
pipe as HANDLE_HANGUP alone.

=head2 HANDLE_WRITABLE

2. Writing would not block.

=head2 HANDLE_ERROR

4. There is an error on the file descriptor, or it is not open at all.

=head2 HANDLE_HANGUP

8. The other side has closed.

=head1 WRITING A LOOP

A loop is a class with six methods, and something that runs it. The methods write down what libvirt wants; the
runner calls the helper methods when it happens. These are the rules, from the documentation of libvirt's event API
(L<https://libvirt.org/html/libvirt-libvirt-event.html>) and from what libvirt's own loop and its callers do.

=head2 Handles

=over 4

=item *

Watching is level-triggered. What is still ready in the next pass is told again.

=item *

Mask 0 means off, entirely: HANGUP and ERROR are not told either. libvirt sets a connection's mask to 0 during each
call to the server. A loop that polls it nevertheless burns time or gets in the way of the call.

=item *

With any other mask HANGUP and ERROR are told always, whether they were asked for or not. poll(2) does just that.
select(2) knows neither: a loop on select asks poll(2), without waiting, about the fds that woke it. libvirt hardly ever
asks for these bits, but needs them to see that a connection is gone.

=item *

All bits of a watch go in one call. Tell no bit of READABLE and WRITABLE that the mask does not have.

=item *

There can be several watches on one fd, with masks of their own.

=item *

The fd is libvirt's. Never close it, and change none of its flags. Never put the number into a Perl handle by
C<< IO::Handle->new_from_fd >> or C<< open my $fh, '+<&=', $fd >>: perl closes libvirt's fd when that handle is
released. Where a loop wants a Perl handle give it a duplicate, C<< open my $fh, '+<&', $fd >>, and close the
duplicate in C<remove_handle>.

=item *

A watch whose fd is closed under it is told ERROR once. After that leave it alone until it is updated. A duplicate
does not show that the fd was closed; poll(2) on the number itself does.

=back

=head2 Timers

=over 4

=item *

0 ms means every iteration of the loop. It must hold up neither handles nor other timers.

=item *

Negative means disabled. libvirt has timers that are disabled most of the time.

=item *

An update starts the interval at that moment, also if it is the same number.

=item *

Timers are periodic, until they are updated or removed. Periods that were missed are not made up for.

=item *

Use a monotonic clock.

=back

=head2 Passes

=over 4

=item *

Each of the six can be called at any moment: by any call of libvirt's, and in a callback, for the watch whose
callback it is or any other. What it says holds at once.

=item *

What was removed or switched off in this pass does not run any more in it. The helper methods do nothing for a watch
that was removed, so only the switching off is the loop's business.

=item *

What was added in this pass does not run before the loop has looked at it, in the next. The same goes for a timer
that was switched on. But one that was due, and is set to 0 again before its turn, still has its turn: libvirt's streams
do that in every pass.

=item *

A callback may run the loop. Its own watch is left out of such a pass, also of what the pass waits for: the helper
methods do not call it again, and its fd may be ready all the time.

=item *

The methods are called while libvirt holds locks. They write down what they are told, and return. They call no
method of Sys::Virt and do not run the loop: no callback is called from inside a method, which the first time is a
warning. Should they die all the same, see L</EXCEPTIONS>.

=item *

Run the loop all the time. Where it is not run, events wait and keepalive fails.

=item *

What the kernel keeps for a loop of epoll or kqueue, a child shares with its parent: what one switches off is off for
the other, which then sleeps on. Make it anew in a child, before anything else is done with it. See L</FORK>.

=item *

L</drain($seconds)> and the test kit, L<Test::Sys::Virt::EventImpl>, run a loop by its method C<run_for> or
C<run_once>, with a number of seconds: it returns after that time at most. A loop that has neither needs a runner of
its own there.

=back

=head2 A complete loop

This is a whole program. Its class obeys all of the rules above. L<Sys::Virt::Event::Poll> is the same with some
comfort, and is short enough to be read.

=for test program
test: event 3
test: event 4

  package My::Loop;
  use strict;
  use warnings;
  use parent 'Sys::Virt::EventImpl';
  use IO::Poll qw(POLLIN POLLOUT POLLERR POLLHUP POLLNVAL);
  use Time::HiRes qw(clock_gettime CLOCK_MONOTONIC);

  sub new {
      my ($class) = @_;
      return bless { handles => {}, timers => {} }, $class;
  }

  sub now { return clock_gettime(CLOCK_MONOTONIC) }

  # The key that stands for a watch from here on: its record will do.
  # That $ff is not kept is fine, too.
  sub add_handle {
      my ($self, $fd, $events, $cb, $opaque, $ff) = @_;
      my $handle = { fd => $fd, events => $events };
      $handle->{tokens} = [$cb, $opaque];
      return $self->{handles}{$handle} = $handle;
  }

  sub update_handle {
      my ($self, $handle, $events) = @_;
      $handle->{events} = $events;
  }

  sub remove_handle {
      my ($self, $handle) = @_;
      delete $self->{handles}{$handle};
  }

  sub add_timeout {
      my ($self, $ms, $cb, $opaque, $ff) = @_;
      my $timer = { tokens => [$cb, $opaque] };
      $self->update_timeout($timer, $ms);
      return $self->{timers}{$timer} = $timer;
  }

  # The interval starts now, whatever it was before. Negative means
  # disabled, and 0 is due in each pass, however often it is set again.
  sub update_timeout {
      my ($self, $timer, $ms) = @_;
      $timer->{seconds} = $ms / 1000;
      $timer->{due} = $ms < 0 ? undef : $ms && now() + $ms / 1000;
  }

  sub remove_timeout {
      my ($self, $timer) = @_;
      delete $self->{timers}{$timer};
  }

  # One pass. What is ready is collected before anything is called, so
  # what a callback adds waits for the next pass. A watch is busy while
  # its callback runs, which may run the loop: that is another pass, and
  # what is left of this one waits.
  sub run_once {
      my ($self, $max_seconds) = @_;
      my $pass = ++$self->{pass};
      # In arrays first: a signal handler may remove a watch while grep
      # is at work.
      my @watched = values %{ $self->{handles} };
      my @timed = values %{ $self->{timers} };
      my @handles = grep { $_->{events} && !$_->{busy} } @watched;
      my @armed = grep { defined $_->{due} && !$_->{busy} } @timed;
      my @limits = map { $_->{due} - now() } @armed;
      my ($wait) = sort { $a <=> $b } $max_seconds // (), @limits;
      my $ms = -1;
      $ms = $wait <= 0 ? 0 : int(1000 * $wait) + 1 if defined $wait;

      # What IO::Poll itself is made of: it takes fds. poll(2) tells
      # errors and hang-ups unasked. 0: the time is over; -1: a signal.
      my @fds = map {
          my ($reads, $writes) = ($_->{events} & 1, $_->{events} & 2);
          ($_->{fd}, ($reads && POLLIN) | ($writes && POLLOUT));
      } @handles;
      @handles = () if IO::Poll::_poll($ms, @fds) <= 0;
      my $now = now();
      my @timers = grep { $_->{due} <= $now } @armed;

      # A callback may have changed what comes after it: look again.
      for my $handle (@handles) {
          last if $self->{pass} != $pass;
          my (undef, $bits) = splice @fds, 0, 2;
          my $mask = $handle->{events} or next;
          my $events = ($bits & POLLIN && 1) | ($bits & POLLOUT && 2)
              | ($bits & (POLLERR | POLLNVAL) && 4)
              | ($bits & POLLHUP && 8);
          $handle->{events} = 0 if $bits & POLLNVAL;    # tell it once
          $events &= $mask | 4 | 8 or next;
          local $handle->{busy} = 1;
          my @tokens = @{ $handle->{tokens} };
          my $fd = $handle->{fd};
          $self->_run_handle_callback(0, $fd, $events, @tokens);
      }
      for my $timer (@timers) {
          last if $self->{pass} != $pass;
          next if !defined $timer->{due} || $timer->{due} > $now;
          my $seconds = $timer->{seconds};
          $timer->{due} = $now + $seconds if $seconds;
          local $timer->{busy} = 1;
          $self->_run_timeout_callback(0, @{ $timer->{tokens} });
      }
  }

  package main;
  use Sys::Virt;

  my $loop = My::Loop->new->register;
  my $conn = Sys::Virt->new(uri => 'test:///default');
  my $seen = 0;
  my $lifecycle = Sys::Virt::Domain::EVENT_ID_LIFECYCLE;
  $conn->domain_event_register_any(undef, $lifecycle, sub {
      my ($conn, $domain, $event) = @_;
      print $domain->get_name, ": event $event\n";
      $seen++;
  });
  my $domain = $conn->get_domain_by_name('test');
  $domain->suspend;
  $domain->resume;
  $loop->run_once until $seen == 2;

An exception of a callback leaves this C<run_once> in the middle of the pass. Nothing is lost by that: what was
still to come is ready in the next pass, too. A loop may also catch what the helper methods throw and throw it at the
end of the pass, so that a callback that always dies holds up no other. L<Sys::Virt::Event::Poll> does.

L<Test::Sys::Virt::EventImpl> tells whether a loop obeys the rules.

=head1 EXCEPTIONS

No exception passes through libvirt's C code. The same goes for C<next>, C<last> and C<return>: none of them leaves
the method or callback it is in.

=over 4

=item In a callback

of add_handle, add_timeout or L</protect($code)>: libvirt's code is left first. Then the exception is thrown, the
same object or string, by the call of this module's that Perl code made: run_default, a helper method of the loop
(and so by the loop's C<run_once>), an add, update or remove function. C<$SIG{__DIE__}> sees it once, where it was
thrown first. The timer or handle stays registered.

Of several exceptions in one such call, the first is thrown and the others are warnings.

Where there is no such call, because Sys::Virt itself called libvirt, the exception is a warning that starts with
C<Exception in an event callback:> or C<Exception in a protected callback:>. It never turns up in a later call.

=item In a loop's method

C<add_*> that dies or returns no key has failed. For this module's add functions that is an exception. Otherwise
libvirt is told, but keeps it to itself: a connection that cannot be watched opens all the same, and never sees an
event. So there is a warning, such as

=for test messages

  Cannot add handle: My::Loop::add_handle died: too many handles

C<update_*> that dies is an exception like one in a callback; its warning is
C<Cannot update handle: My::Loop::update_handle died:> and the exception. C<remove_*> that dies or returns a
negative number is a warning. The watch is removed nevertheless.

=item In a handler that Sys::Virt calls

This module cannot see these. Wrap them in L</protect($code)>.

=back

C<exit> does not jump over libvirt's code either. In a callback, a method or a protected handler it ends the code that
called it; the program ends as soon as libvirt's code is left, and no other callback is called before that. Only in a
protected handler for which neither run_default nor a method of the loop runs, but Sys::Virt itself or a main loop of
GLib's, does it end where Sys::Virt's own code is left, which may be inside libvirt: call POSIX::_exit there.

Callbacks, methods and protected handlers leave C<$@>, C<$!>, C<$_> and libvirt's last error as they were.

=head1 SIGNALS

Handlers in C<%SIG> run between two statements of Perl. Some such statements are in a loop's methods, which libvirt
calls with its locks held. A handler that dies there would leave the locks behind, and the connection would hang in
its next call. So while such a method is called, handlers wait; they run when the statement that called libvirt is
done.

Hence this works, and leaves the connection usable:

=begin test frame

use strict;
use warnings;
use Sys::Virt;
use Sys::Virt::Event::Poll -register;
my $conn = Sys::Virt->new(uri => 'test:///default');
HERE
print "in time\n" if !$@;

# The handler of a signal that comes in the call runs when the call is over.
my $lifecycle = Sys::Virt::Domain::EVENT_ID_LIFECYCLE;
$conn->domain_event_register_any(undef, $lifecycle, sub { });
my $update = \&Sys::Virt::Event::Poll::update_timeout;
{
    no warnings 'redefine';
    *Sys::Virt::Event::Poll::update_timeout = sub { kill ALRM => $$; $update->(@_) };
}
eval {
    local $SIG{ALRM} = sub { die "too slow\n" };
    $conn->get_domain_by_name('test')->suspend;
};
print $@;
print 'usable: ', $conn->is_alive, "\n";
__END__
in time
too slow
usable: 1

=end test

  eval {
      local $SIG{ALRM} = sub { die "too slow\n" };
      alarm 5;
      $conn->get_hostname;
      alarm 0;
  };

But it does not cut the call short. libvirt waits on when a signal comes, and perl runs the handler when the call
has returned.

A handler installed by POSIX::sigaction without C<safe(1)> runs at once, wherever the program is. If it dies inside
libvirt, nothing can be saved. Use C<%SIG>, or C<< $action->safe(1) >>.

The kernel may give a signal to any thread, also to one of libvirt's, where perl before 5.42 crashes in its own
handler. So such a signal is passed on to the thread of the loop, if C<%SIG> has a handler for it. And while a call
lasts handlers wait; perl dies when 120 signals of a kind do, in the midst of libvirt. So no more than 100 are counted.

A signal ends the sleep of run_default and of L<Sys::Virt::Event::Poll>. A handler that runs just before the loop
goes to sleep cannot wake it. Where that matters let the handler write to a pipe, and watch the other end by
add_handle.

libvirt writes to sockets whose other end may be gone. That raises SIGPIPE, which ends a program that has no handler
for it. Set C<$SIG{PIPE} = 'IGNORE'>; the call then fails with an exception.

=head1 THREADS

The loop belongs to the thread, and to the interpreter, that registered it. Callbacks and free functions run there
only.

libvirt's own threads call the event functions too, with C<qemu:///embed> for example. Their calls never wait and
never enter Perl. They are kept, and the wake watch wakes the loop, which then makes them known to the loop's
methods. A watch that the methods refuse at that late moment is a warning; it has an id, but is never ready.

In other ithreads the functions of this module die with C<the event loop belongs to another thread>. libvirt calls
made there are safe, as those of libvirt's own threads are. Tokens that were cloned into another thread do nothing.
Sys::Virt's own objects are not made for being cloned, so start threads before you open connections, and register
event handlers in the thread that runs the loop.

=head1 FORK

A loop that was registered before a fork works in the child, too: the child opens connections of its own, and has
their events. So a daemon can do all its preparations, fork, and go on.

A connection that was open before the fork is another matter, since both processes have its socket. What one of them
reads is lost to the other. It stays with the process that opened it, as long as that lives:

=over 4

=item *

In the child its handle is silent: as soon as the loop calls this module, it is asked to watch the handle for nothing.
Timers, and the watches that the program
itself has added, go on in both processes.

=item *

The child cannot harm it. When libvirt would use the socket there, for a call or to close the connection, the socket
is cut off first, in the child only. The call fails, and the parent notices
nothing. Hence a child may end in any way, run the loop, or let go of its objects.

=item *

When the process that opened it has ended, or has become another program by exec, the connection is the child's: its
handle is watched again, within a second. Of several children that run the loop one gets it. So a program may connect,
then become a daemon:

=begin test frame

use strict;
use warnings;
use POSIX ();
use SecondClient;
use Sys::Virt;
use Sys::Virt::Event::Poll;
use Test::Sys::Virt::EventImpl::Daemon;

my $daemon = Test::Sys::Virt::EventImpl::Daemon->start;
my $other = SecondClient->start($daemon->uri);
pipe my $reader, my $writer or die;
my $daemonizes = fork // die;
if (!$daemonizes) {
    my $uri = $daemon->uri;
    my $loop = Sys::Virt::Event::Poll->new->register;
    my @callback = (undef, Sys::Virt::Domain::EVENT_ID_LIFECYCLE, sub {
        syswrite $writer, "event $_[2], the first process has gone: " . !kill(0, $daemonizes) . "\n";
        POSIX::_exit(0);
    });
    $daemonizes = $$;
    Sys::Virt::Event::add_timeout(1, sub { Sys::Virt::Event::remove_timeout($_[0]); syswrite $writer, "ready\n" });
HERE
}
waitpid $daemonizes, 0;
close $writer;
print scalar readline $reader;
$other->does('suspend');
print readline $reader;
$other->stop;
__END__
ready
event 3, the first process has gone: 1

=end test

  my $conn = Sys::Virt->new(uri => $uri);
  $conn->domain_event_register_any(@callback);
  POSIX::_exit(0) if fork;
  POSIX::setsid();
  Sys::Virt::Event::adopt();    # the parent may take a moment to end
  $loop->run;

POSIX::_exit, because the normal end of the parent destroys C<$conn>, and Sys::Virt closes the connection if it has no
handlers, for both processes. A daemon that closes all file descriptors leaves those alone that L</watches()> names.

=back

A child that has had silent handles in its loop for a second, while the parent still lives, prints a warning that starts
with C<Connections that were opened before this process was forked stay silent>. It names the two ways out. L</adopt()>
is for a child that goes on with the connections although the parent lives, and the parent does not. L</forget()> is
for a child that has no use for them; a loop of its own can be registered afterwards, if the program's own watches are
removed as well.

Timers of libvirt are memory, not sockets: events that were waiting in a timer at the moment of the fork are delivered
in both processes. The one that sends keepalive messages runs in the child too; its first message finds the socket cut
off, and the connection is closed in the child.

What libvirt's own threads have asked for, and the loop has not done yet, is done in the parent only. In a child that
was forked by another thread than the one of the loop no loop is registered.

After register_default libvirt's handles are out of this module's reach, and nothing of this holds. Then open the
connections after the fork, and end children by exec or C<POSIX::_exit>.

=head1 IDS AND TOKENS

An I<id> is what libvirt, and the functions of this module, know a watch by. Ids are integers from 1, one sequence
for handles and timers. No id is used twice in a process: libvirt takes 0 and -1 for "none" in places, and updates
ids that it has just removed.

A I<key> is what a loop's C<add_*> returned. It belongs to the loop: a number, a string, an object. It is handed
back verbatim to the loop's C<update_*> and C<remove_*>, and released when C<remove_*> has returned. 0 is a fine
key.

A I<token> is what C<add_*> gets as C<$cb>, C<$opaque> and C<$ff>. All a loop can do with it is to keep it and to
pass it on. Anything else in its place is an exception, and so are tokens of two different watches in one call.
Tokens of a watch that was removed can still be passed on; that does nothing.

=head1 NO EVENTS?

=over 4

=item *

Was the loop registered before the connection was opened? A connection that was opened before has no events, not
even later.

=item *

Is the loop run? Without C<< $loop->run >>, or run_default in a loop, events pile up. If the server has keepalive
switched on, it closes the connection after a while; the next call fails with "client socket is closed" or "Broken
pipe".

=item *

Was there a warning C<Cannot add handle> or C<Cannot add timeout>? The loop refused what libvirt wanted.

=item *

C<test:///default> lives in the process. All connections to it in one process share its domains, and their events
are seen in this process only.

=item *

Not every driver has every class of events. Registering for one that is not there is an exception of Sys::Virt.

=back

Two tools. L</watches()> tells what is registered, how often it was dispatched and when last. A connection to a
server is a handle with mask 1, or 0 while a call is under way; event handlers have a timer, disabled while there is
nothing to tell.

=for test program
/age=\S+ dispatched=0 id=1 kind=timeout last_dispatch=- ms=-1 /

  use Sys::Virt;
  use Sys::Virt::Event;
  use Sys::Virt::Event::Poll;

  my $loop = Sys::Virt::Event::Poll->new->register;
  my $conn = Sys::Virt->new(uri => 'test:///default');
  my $lifecycle = Sys::Virt::Domain::EVENT_ID_LIFECYCLE;
  $conn->domain_event_register_any(undef, $lifecycle, sub { });

  for my $watch (Sys::Virt::Event::watches()) {
      print "$_=", $watch->{$_} // '-', ' ' for sort keys %$watch;
      print "\n";
  }

And C<SYS_VIRT_EVENT_TRACE=1> in the environment prints to stderr each call from libvirt and to libvirt, with
process and thread. It is read when the module is loaded; unset, empty and 0 mean off. For the program above:

=for test output trace

  Sys::Virt::Event 5360 owner 0x7f66028e1b80: add_timeout(-1) = 1

C<owner> is the thread of the loop, C<thread> any other. After register_default only what this module's own
functions do is printed.

=head1 LIVING WITH SYS::VIRT

Sys::Virt's shared object brings functions in the package Sys::Virt::Event whenever Sys::Virt is loaded. So this
module loads Sys::Virt first, if it can be found, and puts its own functions over those. Both orders of C<use> work.
A program without Sys::Virt works too. If Sys::Virt is there but broken, its error is reported.

C<use Sys::Virt> alone does not load this module. A program must say C<use Sys::Virt::Event> itself, or use a class
that does, as L<Sys::Virt::Event::Poll>.

Sys::Virt 9.5 and newer has the abstract methods in L<Sys::Virt::EventImpl>. Subclasses of that and subclasses of
Sys::Virt::Event are both accepted.

Both distributions have files of these names. From a system's packages and from CPAN they end up in different
directories, and perl takes CPAN's first. When both are installed by a CPAN client, the one that came last
overwrites the other's. What belongs to this one then dies at loading, and says which file it is. Install
Sys-Virt-Event again. To see whose is loaded:

=for test shell

  perl -MSys::Virt::Event -e 'print Sys::Virt::Event->can("watches")
      ? "Sys-Virt-Event\n" : "Sys-Virt\n"'

=head1 DIFFERENCES

What a program that was written for Sys::Virt's module could notice is in
L<Sys::Virt::Event::Manual::Migration/WHAT DIFFERS>, with the reasons.

=head1 LIMITS

=over 4

=item *

Events are asynchronous, calls are not. A call of Sys::Virt blocks until the server has answered, and the loop
stands still for as long.

=item *

While a program blocks, in a call or in work of its own, no other connection is looked after: a server's keepalive
may give up on it. Keep callbacks short.

=item *

Handlers that Sys::Virt calls are outside this module's reach. An exception there is Sys::Virt's affair unless the
handler is wrapped in L</protect($code)>.

=item *

Do not unregister a close callback inside it, nor drop the connection there: libvirt holds a lock, and the program
hangs. Do it from a timer:

=begin test frame

use strict;
use warnings;
use Sys::Virt;
use Sys::Virt::Event::Poll;
use Test::Sys::Virt::EventImpl::Daemon;
my $daemon = Test::Sys::Virt::EventImpl::Daemon->start;
my $loop = Sys::Virt::Event::Poll->new->register;
my $conn = Sys::Virt->new(uri => $daemon->uri);
HERE
$daemon->signal('KILL');
print $loop->run_until(sub { !$conn }, 10), "\n";
print Sys::Virt::Event::drain(10), "\n";
__END__
1
1

=end test

  $conn->register_close_callback(Sys::Virt::Event::protect(sub {
      Sys::Virt::Event::add_timeout(0, sub {
          my ($id) = @_;
          Sys::Virt::Event::remove_timeout($id);
          $conn->unregister_close_callback;
          undef $conn;
      });
  }));

The same goes for destructors of what a handler has captured: some run while libvirt holds a lock. They should not
call Sys::Virt.

=item *

Sys::Virt takes one handler per connection, event and domain (or "any domain"). A second one is its exception "event
callback already tracked".

=item *

One loop per process. libvirt has no notion of several.

=back

=head1 ENVIRONMENT

=head2 SYS_VIRT_EVENT_TRACE

See L</NO EVENTS?>.

=head1 SEE ALSO

L<Sys::Virt::Event::Manual> is the table of contents of this distribution's pages. Of these,
L<Sys::Virt::Event::Manual::Tutorial> is to begin with, L<Sys::Virt::Event::Manual::Cookbook> has programs for what
comes up, and L<Sys::Virt::Event::Manual::Internals> is about the C code.

L<Sys::Virt>, connections and domains.

L<https://libvirt.org/html/libvirt-libvirt-event.html>, the C interface.

=head1 AUTHOR AND LICENSE

The Sys-Virt-Event developers. This module is free software; you can redistribute it and/or modify it under the same
terms as Perl itself.

=cut
