# Mutants for the cases of Cases/Handles.pm.
use strict;
use warnings;

my $POLL = 'lib/Sys/Virt/Event/Poll.pm';

return (
    {
        case  => 'hangup_unasked',
        what  => 'only what was asked for is reported',
        edits => [[$POLL, '$events &= $handle->{events} | ERROR | HANGUP;', '$events &= $handle->{events};']],
    },
    {
        case  => 'removed_twice',
        also  => ['unknown_ids'],
        what  => 'removal of an unknown id succeeds',
        edits => [['src/bridge.c', '    return watch ? 0 : -1;', '    return 0;']],
    },
);
