# Mutants for the cases of Cases/Fork.pm.
use strict;
use warnings;

my $POLL = 'lib/Sys/Virt/Event/Poll.pm';

# Where the module was loaded.
my $LOADED_BY = [$POLL, 'sub update_handle {', 'my $pid = $$; sub update_handle {'];

return (
    {
        case  => 'used_in_child',
        what  => 'the loop does nothing in other processes',
        also  => [qw(child_is_woken wakes_kept_apart silent_in_child goes_on_alone)],
        edits => [
            [$POLL, '    my ($self, $max_seconds, $sleep) = @_;', <<'PERL'],
    my ($self, $max_seconds, $sleep) = @_;
    return 0 if $self->{process} != $$;
PERL
        ],
    },
    {
        case  => 'loop_survives_child',
        what  => 'what is left to read is read when the loop is destroyed',
        edits => [[$POLL, '# What the program runs.', <<'PERL']],
sub DESTROY {
    my ($self) = @_;
    require POSIX;
    POSIX::read($_->{fd}, my $rest, 4096) for grep { $_->{events} & READABLE } values %{ $self->{handles} };
}
PERL
    },
    {
        case  => 'child_is_woken',
        also  => ['wakes_kept_apart'],
        what  => 'a child has no wake fd',
        edits => [['src/mailbox.c', <<'FROM', <<'TO']],
    sve_replace_fd(box->read_fd, fds[0]);
FROM
    box->has_fd = false;
    sve_replace_fd(box->read_fd, fds[0]);
TO
    },
    {
        case  => 'wakes_kept_apart',
        what  => 'parent and child share the wake fd',
        edits => [['src/bridge.c', '    sve_mailbox_renew_fd(&core.mailbox);', '']],
    },
    {
        case  => 'silent_in_child',
        what  => 'a child serves the handles of its parent',
        edits => [['src/bridge.c', '        claim->held = false;', '        claim->held = true;']],
    },
    {
        case  => 'silent_in_child',
        also  => ['goes_on_alone'],
        what  => 'in a child nothing can be masked off',
        edits => [
            $LOADED_BY,
            [$POLL, '    $handle->{events} = $events;', '    $handle->{events} = $events if $pid == $$;'],
        ],
    },
    {
        case  => 'goes_on_alone',
        what  => 'what was masked off in a child stays so',
        edits => [
            $LOADED_BY,
            [$POLL, '    $handle->{events} = $events;', '    $handle->{events} = $events if $pid == $$ || !$events;'],
        ],
    },
);
