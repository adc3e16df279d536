# Mutants for the cases of Cases/Embed.pm.
use strict;
use warnings;

my $POLL = 'lib/Sys/Virt/Event/Poll.pm';

return (
    {
        case  => 'vm_events',
        also  => ['vm_crash', 'vm_rounds'],
        what  => 'updates by the threads of a hypervisor driver are dropped',
        edits => [['src/bridge.c', <<'FROM', <<'TO']],
        is_posted = !direct;
FROM
        is_posted = !direct && !has_driver();
TO
    },
    {
        case  => 'vm_crash',
        also  => ['calls_while_asleep', 'child_is_woken'],
        what  => 'sleeps, and then looks at its handles',
        edits => [[$POLL, 'my $count = IO::Poll::_poll($ms, @polled);', <<'TO']],
Time::HiRes::sleep($ms / 1000) if $ms > 0;
    my $count = IO::Poll::_poll($ms > 0 ? 0 : $ms, @polled);
TO
    },
    {
        case  => 'vm_rounds',
        also  => ['no_growth'],
        what  => 'opens a file in each update of a timer',
        edits => [[$POLL, "    \$timer->{ms} = \$ms;\n", <<'TO']],
    $timer->{ms} = $ms;
    open my $file, '<', '/dev/null';
    push @{ $self->{files} }, $file;
TO
    },
);
