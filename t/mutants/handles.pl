# Mutants for the cases of Cases/Handles.pm. Many break sockets only, so that no more than their case fails.
use strict;
use warnings;

my $POLL   = 'lib/Sys/Virt/Event/Poll.pm';
my $BRIDGE = 'src/bridge.c';

# Places in Poll that are changed often.
my $ADD = '    my $key = ++$self->{last_key};
    $self->{handles}{$key} = {';
my $SET_EVENTS = '    $handle->{events} = $events;
    $handle->{closed} = 0;';
my $REMOVE = 'my $handle = delete $self->{handles}{$key} or return -1;';
my $FREE   = '$self->_free_callback_opaque($handle->{ff}, $handle->{opaque});';
my $PASS   = 'my @watched = ';
my $POLLED = 'grep { $_->{events} && !$_->{closed} && !$_->{busy} } @watched;';
my $TOLD   = '        $events &= $handle->{events} | ERROR | HANGUP;';
my $CLOSED = '$events |= CLOSED if $bits & POLLNVAL;';
my $READY  = 'push @ready, [$handle, $events] if $events;';
my $STILL  = '    $events &= $handle->{events} | ERROR | HANGUP or return;';
my $CALL   = '$self->_run_handle_callback(@$handle{qw(key fd)}, $events, @$handle{qw(cb opaque)});';

my $SOCKETS = [$POLL, 'sub loop { $_[0] }', 'sub loop { $_[0] } sub _is_socket { -S "/proc/self/fd/$_[0]" }'];

# The module calls nothing that was removed, whatever the loop does. Here it does.
my $GUARD = '    if (!watch->attached)
        return SVE_GONE;
    if (watch->running)';
my $NO_GUARD = [$BRIDGE, $GUARD, '    if (watch->running)'];

# In update and remove, when the watch was found.
my $UPDATE_FOUND = '    if (watch) {
        watch->value = value;';
my $REMOVE_FOUND = '    if (watch) {
        leave_table';

return (
    {
        case  => 'one_of_many',
        what  => 'of more than 20 watches the first is told as well',
        edits => [[$POLL, $READY, $READY . ' push @ready, [$handles->[0], READABLE] if $events && @$handles > 20;']],
    },
    {
        case  => 'handle_arguments',
        what  => 'the module tells another fd where both directions are watched',
        edits => [[$BRIDGE, '(watch->id, watch->fd, events', '(watch->id, watch->value == 3 ? -1 : watch->fd, events']],
    },
    {
        case  => 'ids_not_reused',
        what  => 'an id is given out again',
        edits => [[$BRIDGE, "    if (watch) {\n        leave_table(watch);",
            "    if (watch) {\n        leave_table(watch);" . ' core.last_id -= id == 20 && core.last_id == 20;']],
    },
    {
        case  => 'level_triggered',
        what  => 'a socket is told when it becomes readable, and not while it is',
        edits => [
            $SOCKETS,
            [$POLL, $SET_EVENTS, $SET_EVENTS . ' $handle->{told} = 0;'],
            [$POLL, 'return if $count <= 0;', 'if ($count <= 0) { $_->{told} = 0 for @$handles; return }'],
            [$POLL, $READY, 'my $told = $handle->{told} || 0;
                $handle->{told} = $events;
                next if $events == READABLE && $told == $events && _is_socket($handle->{fd});' . $READY],
        ],
    },
    {
        case  => 'removed_before',
        also  => ['token_of_removed'],
        what  => 'a watch that has not run yet is removed after the next poll',
        edits => [
            $NO_GUARD,
            [$POLL, $REMOVE, 'my $handle = $self->{handles}{$key} or return -1;
                if (!$self->{in_pass} && !$handle->{served}) { push @{ $self->{later} }, $key; return 0 }
                delete $self->{handles}{$key};'],
            [$POLL, 'my @errors;', 'local $self->{in_pass} = 1; my @errors;'],
            [$POLL, '    $self->_throw(@errors) if @errors;',
                '    delete @{ $self->{handles} }{ @{ delete $self->{later} || [] } }; $self->_throw(@errors) if @errors;'],
        ],
    },
    {
        case  => 'removes_itself',
        also  => ['token_of_removed'],
        what  => 'a watch of a socket whose callback is running is not removed',
        edits => [$SOCKETS, $NO_GUARD, [$POLL, $REMOVE, 'my $it = $self->{handles}{$key};
            return 0 if $it && $it->{busy} && _is_socket($it->{fd});' . $REMOVE]],
    },
    {
        case  => 'last_of_many',
        what  => 'a table of a few dozen that has become small is dropped',
        edits => [[$POLL, $REMOVE, $REMOVE . ' my $left = keys %{ $self->{handles} };
            my $most = $self->{most} = List::Util::max($self->{most} // 0, $left);
            %{ $self->{handles} } = () if $most > 20 && $most < 50 && $left < 5;']],
    },
    {
        case  => 'disabled_is_removable',
        what  => 'the watch that was disabled last cannot be removed',
        edits => [
            [$BRIDGE, 'static void update(sve_kind', "static int disabled;\nstatic void update(sve_kind"],
            [$BRIDGE, $UPDATE_FOUND, '    if (watch) {
        disabled = kind == SVE_HANDLE && !value ? id : 0;
        watch->value = value;'],
            [$BRIDGE, $REMOVE_FOUND, '    if (watch && id == disabled) {
        unlock();
        return -1;
    }
' . $REMOVE_FOUND],
        ],
    },
    {
        case  => 'unknown_ids',
        what  => 'the id of a watch is taken for that of a timer, and the reverse',
        edits => [[$BRIDGE, 'return watch && watch->kind == kind ? watch : NULL;', '(void)kind; return watch;']],
    },
    {
        case  => 'stale_update',
        what  => 'an update of what was removed hits the one before',
        edits => [[$BRIDGE, $UPDATE_FOUND, '    if (!watch && kind == SVE_HANDLE)
        watch = find(kind, id - 1);
' . $UPDATE_FOUND]],
    },
    {
        case  => 'removed_twice',
        also  => ['unknown_ids'],
        what  => 'removal of an unknown id succeeds',
        edits => [[$BRIDGE, '    return watch ? 0 : -1;', '    return watch || loop ? 0 : -1;']],
    },
    {
        case  => 'added_again',
        what  => 'in the next pass the removal takes the next reader of the socket with it',
        edits => [
            $SOCKETS,
            [$POLL, $REMOVE, $REMOVE . ' push @{ $self->{gone} }, [$key, $handle->{fd}]
                if $handle->{events} == READABLE && _is_socket($handle->{fd});'],
            [$POLL, $PASS, 'for (splice @{ $self->{gone} || [] }) {
                my ($key, $fd) = @$_;
                my $next = $self->{handles}{ ++$key } or next;
                delete $self->{handles}{$key} if $next->{fd} == $fd && $next->{events} == READABLE && _is_socket($fd);
            }
            ' . $PASS],
        ],
    },
    {
        case  => 'fd_number_reused',
        what  => 'an fd that was closed once is never polled again',
        edits => [
            [$POLL, 'sub loop { $_[0] }', 'sub loop { $_[0] } my %dead;'],
            [$POLL, $CLOSED, $CLOSED . ' $dead{ $handle->{fd} } = $handle->{key} if $events & CLOSED;'],
            [$POLL, $POLLED, 'grep { ($dead{ $_->{fd} } || $_->{key}) == $_->{key} } ' . $POLLED],
        ],
    },
    {
        case  => 'fd_reused_in_pass',
        what  => 'what is ready is dispatched by fd',
        edits => [[$POLL, '    for (@ready) {', '    my $newest = sub {
            my ($fd) = @_;
            return (sort { $b->{key} <=> $a->{key} } grep { $_->{fd} == $fd } values %{ $self->{handles} })[0];
        };
        my %newest = map { $_->[0]{fd} => $newest->($_->[0]{fd}) } @ready;
    for (@ready) {
        my $fd = $_->[0]{fd};
        my $now = $newest->($fd);
        $_->[0] = $now if $now && $newest{$fd} && $now != $newest{$fd};']],
    },
    {
        case  => 'fd_stays_open',
        what  => 'a socket is closed with its watch',
        edits => [$SOCKETS, [$POLL, $REMOVE, $REMOVE . ' require POSIX;
            POSIX::close($handle->{fd}) if $handle->{events} == (READABLE | WRITABLE) && _is_socket($handle->{fd});']],
    },
    {
        case  => 'flags_untouched',
        also  => ['wakes_kept_apart'],
        what  => 'a handle of the host loop makes a pipe non-blocking',
        edits => [$SOCKETS, [$POLL, $ADD,
            '    if (!_is_socket($fd) && open my $dup, "<&", $fd) { $dup->blocking(0) }' . "\n" . $ADD]],
    },
    {
        case  => 'no_dup_left',
        what  => 'a duplicate is kept until the next pass',
        edits => [
            [$POLL, $ADD, '    open my $dup, "<&", $fd;' . "\n" . $ADD . ' dup => $dup,'],
            [$POLL, $FREE, $FREE . ' push @{ $self->{later} }, $handle;'],
            [$POLL, $PASS, '$self->{later} = []; ' . $PASS],
        ],
    },
    {
        case  => 'no_growth',
        what  => 'records of removed watches are kept',
        edits => [[$POLL, $FREE, $FREE . ' push @{ $self->{done} }, $handle;']],
    },
    {
        case  => 'second_watch_of_fd',
        what  => 'the watch of a socket is found by its fd, among those that are off as well',
        edits => [$SOCKETS, [$POLL, $CALL, 'my ($off) = grep {
                $_->{fd} == $handle->{fd} && !$_->{events} && !$_->{served} && _is_socket($_->{fd})
            } values %{ $self->{handles} };
            $handle = $off || $handle;' . $CALL]],
    },
    {
        case  => 'silent',
        also  => ['readable_and_hangup'],
        what  => 'a hang-up is told, once, where the mask is 0',
        edits => [
            [$POLL, $POLLED, 'grep { !$_->{closed} && !$_->{busy} } @watched;'],
            [$POLL, '|| !$handle->{events};', ';'],
            [$POLL, $CLOSED, '$handle->{closed} = 1 if $bits & POLLNVAL || $events && !$handle->{events};'],
        ],
    },
    {
        case  => 'sleeps_at_mask_0',
        what  => 'what has mask 0 is polled, but not told',
        edits => [[$POLL, $POLLED, 'grep { !$_->{closed} && !$_->{busy} } @watched;']],
    },
    {
        case  => 'enabled_again',
        also  => ['goes_on_alone'],
        what  => 'what was ready on a socket when the mask is set is not news',
        edits => [
            $SOCKETS,
            [$POLL, $SET_EVENTS,
                '    $handle->{fresh} = !$handle->{events} && !$handle->{served};' . "\n" . $SET_EVENTS],
            [$POLL, $READY, 'next if $events == READABLE && $handle->{fresh} && _is_socket($handle->{fd});
                $handle->{fresh} = 0;' . $READY],
        ],
    },
    {
        case  => 'disabled_in_callback',
        what  => 'the mask of a socket is put back after its callback',
        edits => [$SOCKETS, [$POLL, $CALL, 'my $mask = $handle->{events};' . $CALL
            . ' $handle->{events} = $mask if _is_socket($handle->{fd});']],
    },
    {
        case  => 'update_replaces_mask',
        also  => ['narrowed_in_pass'],
        what  => 'an update adds to the mask',
        edits => [[$POLL, $SET_EVENTS, '    $events |= $handle->{events} if $events;' . "\n" . $SET_EVENTS]],
    },
    {
        case  => 'no_room_to_write',
        what  => 'a socket is always said to be ready to be written',
        edits => [$SOCKETS, [$POLL, '$bits & POLLOUT ? WRITABLE',
            '$bits & POLLOUT || $handle->{events} & WRITABLE && _is_socket($handle->{fd}) ? WRITABLE']],
    },
    {
        case  => 'both_in_one_call',
        what  => 'a call for reading and one for writing',
        edits => [[$POLL, $READY, 'if (($events & 3) == 3) {
                push @ready, [$handle, $events & ~WRITABLE], [$handle, WRITABLE];
                next;
            } ' . $READY]],
    },
    {
        case  => 'hangup_unasked',
        what  => 'a hang-up is not told to those who write',
        edits => [[$POLL, $TOLD,
            '        $events &= $handle->{events} | ERROR | ($handle->{events} == WRITABLE ? 0 : HANGUP);']],
    },
    {
        case  => 'error_unasked',
        what  => 'ERROR is told to those who asked for it, and of closed fds',
        edits => [[$POLL, $TOLD, '        $events &= $handle->{events} | ($bits & POLLNVAL ? ERROR : 0) | HANGUP;']],
    },
    {
        case  => 'hangup_alone',
        also  => ['narrowed_in_pass'],
        what  => 'who wants hang-ups is told what there is to read',
        edits => [
            [$POLL, '$_->{events} & READABLE ? POLLIN', '$_->{events} & ~WRITABLE ? POLLIN'],
            [$POLL, $TOLD,
                '        $events &= $handle->{events} | ERROR | HANGUP | ($handle->{events} & 13 ? READABLE : 0);'],
            [$POLL, $STILL, ''],
        ],
    },
    {
        case  => 'hangup_alone',
        what  => 'a mask of hang-ups alone counts as 0',
        edits => [[$POLL, $POLLED, 'grep { $_->{events} & 3 } ' . $POLLED]],
    },
    {
        case  => 'hangup_again',
        what  => 'a hang-up is told once',
        edits => [[$POLL, $CLOSED, '$handle->{closed} = 1 if $bits & (POLLNVAL | POLLHUP);']],
    },
    {
        case  => 'readable_and_hangup',
        what  => 'data hides the hang-up',
        edits => [[$POLL, $TOLD, $TOLD . ' $events &= ~HANGUP if $events & READABLE;']],
    },
    {
        case  => 'readable_and_hangup',
        what  => 'the hang-up is told in a call of its own',
        edits => [[$POLL, $READY, 'if (($events & 9) == 9) {
                push @ready, [$handle, $events & ~HANGUP], [$handle, HANGUP];
                next;
            } ' . $READY]],
    },
    {
        case  => 'closed_fd',
        what  => 'a closed fd is passed over',
        edits => [[$POLL, '(POLLERR | POLLNVAL)', 'POLLERR']],
    },
    {
        case  => 'closed_fd',
        what  => 'an update does not bring it back',
        edits => [[$POLL, $SET_EVENTS, '    $handle->{events} = $events;']],
    },
    {
        case  => 'closed_fd_once',
        what  => 'ERROR is told in each pass',
        edits => [[$POLL, $CLOSED, '']],
    },
    {
        case  => 'closed_fd_spares_others',
        what  => 'a closed fd ends the watching of all',
        edits => [[$POLL, $CLOSED, 'if ($bits & POLLNVAL) { $_->{closed} = 1 for @$handles }']],
    },
    {
        case  => 'own_bits',
        also  => ['narrowed_in_pass'],
        what  => 'each watch of an fd is told the bits of all',
        edits => [
            [$POLL, $TOLD, '        my $asked = ERROR | HANGUP;
        $asked |= $_->{events} for grep { $_->{fd} == $handle->{fd} } @$handles;
        $events &= $asked;'],
            [$POLL, $STILL, ''],
        ],
    },
    {
        case  => 'same_bits',
        also  => ['two_readers_one_writer'],
        what  => 'one reader and one writer of a socket',
        edits => [$SOCKETS, [$POLL, $POLLED, $POLLED . ' my %seen;
            @handles = grep { !_is_socket($_->{fd}) || !$seen{"@$_{qw(fd events)}"}++ }
                sort { $a->{key} <=> $b->{key} } @handles;']],
    },
    {
        case  => 'two_readers_one_writer',
        what  => 'two watches of a socket at most',
        edits => [$SOCKETS, [$POLL, $POLLED, $POLLED . ' my %seen;
            @handles = grep { !_is_socket($_->{fd}) || $seen{ $_->{fd} }++ < 2 }
                sort { $a->{key} <=> $b->{key} } @handles;']],
    },
    {
        case  => 'other_works_on',
        what  => 'who stops reading a socket stops writing, and the reverse',
        edits => [$SOCKETS, [$POLL, $REMOVE, $REMOVE . ' delete $self->{handles}{$_} for grep {
            my $other = $self->{handles}{$_};
            $other->{fd} == $handle->{fd} && $other->{events} == 3 - $handle->{events} && _is_socket($handle->{fd});
        } keys %{ $self->{handles} };']],
    },
    {
        case  => 'removes_its_like',
        what  => 'a removed watch runs where it has the fd of the one that ran before it, and both asked for hang-ups',
        edits => [
            [$POLL, '    $handle->{removed} = 1;', ''],
            [$BRIDGE, $GUARD, '    static int last_fd = -1;
    if (!watch->attached && (watch->value != (1 | 8) || watch->fd != last_fd))
        return SVE_GONE;
    last_fd = watch->fd;
    if (watch->running)'],
        ],
    },
);
