# Mutants for the cases of Cases/Virt.pm.
use strict;
use warnings;

my $POLL = 'lib/Sys/Virt/Event/Poll.pm';

return (
    {
        case  => 'all_in_one_run',
        also  => ['calls_while_asleep', 'child_is_woken', 'wakes_kept_apart'],
        what  => 'a timer that was disabled is due a bit later than it should be',
        edits => [[$POLL, '    $timer->{ms} = $ms;', <<'PERL']],
    $ms = 150 if $ms == 0 && exists $timer->{due} && $timer->{ms} < 0;
    $timer->{ms} = $ms;
PERL
    },
    {
        case  => 'event_of_handler',
        what  => 'a timer can be updated once only in its callback',
        edits => [[$POLL, '    $timer->{ms} = $ms;', <<'PERL']],
    return if $timer->{busy} && ($timer->{told} // 0) == $self->{passes};
    $timer->{told} = $self->{passes} if $timer->{busy};
    $timer->{ms} = $ms;
PERL
    },
    {
        case  => 'stream',
        also  => ['no_dup_left'],
        what  => 'watching a non-blocking fd is edge-triggered',
        edits => [
            [$POLL, 'use IO::Poll', "use Fcntl qw(F_GETFL O_NONBLOCK);\nuse IO::Poll"],
            [$POLL, '    local $handle->{busy} = 1;', <<'PERL'],
    my $is_open = open my $copy, '<&', $handle->{fd};
    $handle->{closed} = 1 if $is_open && !$handle->{wake} && fcntl($copy, F_GETFL, 0) & O_NONBLOCK;
    local $handle->{busy} = 1;
PERL
        ],
    },
    {
        case  => 'idle',
        what  => 'a timer that has fired is not removed while it is disabled',
        edits => [['src/bridge.c', "    if (watch->attached) {\n        watch->attached = false;", <<'C']],
    if (watch->attached && !(watch->kind == SVE_TIMER && watch->value < 0 && watch->dispatched)) {
        watch->attached = false;
C
    },
    {
        case  => 'refused',
        what  => 'nothing can be added after a refusal',
        edits => [['src/bridge.c', '        give_back_id(watch);', <<'C']],
        give_back_id(watch);
        if (watch->value < 0)
            core.last_id = INT_MAX;
C
    },
);
