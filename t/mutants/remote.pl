# Mutants for the cases of Cases/Remote.pm.
use strict;
use warnings;

my $POLL = 'lib/Sys/Virt/Event/Poll.pm';

return (
    {
        case  => 'methods_die',
        what  => 'a watch is not dispatched any more when its updates have died thrice',
        edits => [['src/perl_loop.c', "    if (error) {\n        watch->told",
            "    static int count;\n    watch->attached = !error || ++count < 3;\n    if (error) {\n        watch->told"]],
    },
    {
        case  => 'signal',
        also  => ['signal_waits'],
        what  => 'signal handlers run inside methods',
        edits => [['src/callback.c', '        PL_signalhook = no_signals;', '']],
    },
    {
        case  => 'error_survives',
        also  => ['keeps_error', 'keeps_variables', 'spoiling_callback'],
        what  => "libvirt's error is not put back",
        edits => [['src/callback.c', '    sve_errors_put_back(&frame->errors);', '']],
    },
    {
        case  => 'nothing_left',
        also  => ['no_dup_left'],
        what  => 'the loop keeps a copy of each socket',
        edits => [[$POLL, '    return $key;
}

sub update_handle', '    open my $copy, "<&", $fd or die; push @{ $self->{copies} }, $copy if -S $copy;
    return $key;
}

sub update_handle']],
    },
    {
        case  => 'daemon_goes',
        also  => ['readable_and_hangup'],
        what  => 'HANGUP is not told with READABLE',
        edits => [[$POLL, '$bits & POLLHUP ?', '$bits & POLLHUP && !($bits & POLLIN) ?']],
    },
    {
        case  => 'opens_in_child',
        also  => ['goes_on_alone'],
        what  => 'sockets are not watched in other processes',
        edits => [
            [$POLL, '    my @handles = grep { $_->{events} &&', '    my $is_child = $self->{process} != $$;
    my @handles = grep { !($is_child && -S "/proc/self/fd/$_->{fd}") && $_->{events} &&'],
        ],
    },
    {
        case  => 'connection_survives_child',
        also  => ['loop_survives_child', 'remote_connection_left'],
        what  => 'sockets are shut down when the loop is destroyed',
        edits => [[$POLL, '# What the program runs.', <<'PERL']],
sub DESTROY {
    my ($self) = @_;
    for my $handle (values %{ $self->{handles} }) {
        open my $socket, '+<&', $handle->{fd} or next;
        shutdown $socket, 2 if -S $socket;
    }
}
PERL
    },
    {
        case  => 'remote_connection_left',
        what  => 'the loop complains of a socket that is left alone',
        edits => [[$POLL, '# What the program runs.', <<'PERL']],
sub DESTROY {
    my ($self) = @_;
    warn "There is a socket left\n"
        if !%{ $self->{timers} } && grep { -S "/proc/self/fd/$_->{fd}" } values %{ $self->{handles} };
}
PERL
    },
);
