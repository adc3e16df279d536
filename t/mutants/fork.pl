# Mutants for the cases of Cases/Fork.pm.
use strict;
use warnings;

my $POLL = 'lib/Sys/Virt/Event/Poll.pm';

return (
    {
        case  => 'used_in_child',
        what  => 'the loop does nothing in other processes',
        also  => ['child_is_woken', 'wakes_kept_apart'],
        edits => [
            [$POLL, 'return bless { handles', 'return bless { pid => $$, handles'],
            [$POLL, '    my ($self, $max_seconds, $sleep) = @_;', <<'PERL'],
    my ($self, $max_seconds, $sleep) = @_;
    return 0 if $self->{pid} != $$;
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
    replace_fd(box->read_fd, fds[0]);
FROM
    box->has_fd = false;
    replace_fd(box->read_fd, fds[0]);
TO
    },
    {
        case  => 'wakes_kept_apart',
        what  => 'parent and child share the wake fd',
        edits => [['src/bridge.c', '    sve_mailbox_renew_fd(&core.mailbox);', '']],
    },
);
