# Mutants for the cases of Cases/Threads.pm. What they are about is kept by the core.
use strict;
use warnings;

my $POLL   = 'lib/Sys/Virt/Event/Poll.pm';
my $BRIDGE = 'src/bridge.c';

my $POST = '    bool wakes = sve_mailbox_post(&core.mailbox, watch, call);';

# Only what meets the condition wakes the loop.
sub wakes_if { return [$BRIDGE, $POST, $POST =~ s/call\)/call) && ($_[0])/r] }

return (
    {
        case  => 'removed_asleep',
        what  => 'the removal of a handle does not wake the loop',
        edits => [wakes_if('watch->kind == SVE_TIMER || call != SVE_REMOVE')],
    },
    {
        case  => 'timer_removed_asleep',
        what  => 'the removal of a timer does not wake the loop',
        edits => [wakes_if('watch->kind == SVE_HANDLE || call != SVE_REMOVE')],
    },
    {
        case  => 'calls_while_asleep',
        also  => ['child_is_woken', 'wakes_kept_apart'],
        what  => 'only removals wake the loop',
        edits => [wakes_if('call == SVE_REMOVE')],
    },
    {
        case  => 'calls_while_blocked',
        what  => "a thread that removes the owner's handle waits until the loop has heard of it",
        edits => [[$BRIDGE, $POST, <<"C" =~ s/\n\z//r]],
    bool waits = !watch->foreign && watch->kind == SVE_HANDLE && call == SVE_REMOVE;
$POST
    if (waits && wakes)
        wake_owner();
    while (waits && !sve_mailbox_is_empty(&core.mailbox)) {
        unlock();
        usleep(1000);
        lock();
    }
C
    },
    {
        case  => 'last_update_counts',
        what  => 'the first of the updates that wait is kept, not the last',
        edits => [[$BRIDGE, 'watch->value = value;', 'if (loop || !watch->posted) watch->value = value;']],
    },
    {
        case  => 'order_per_id',
        what  => 'an update from before follows the add',
        edits => [[$BRIDGE, 'watch->attaching = false;', <<'C']],
watch->attaching = false;
        if (watch->kind == SVE_HANDLE && calls & SVE_UPDATE && watch->attached)
            loop->update(loop, watch, 0);
C
    },
    {
        case  => 'many',
        what  => 'ids are given out without the lock',
        edits => [[$BRIDGE, '        watch->id = ++core.last_id;',
            '        { int id = core.last_id + 1; unlock(); usleep(1); lock(); watch->id = core.last_id = id; }']],
    },
    {
        case  => 'never_seen',
        also  => ['many'],
        what  => 'a thread frees at once what nobody has seen yet',
        edits => [[$BRIDGE, $POST, <<"C" =~ s/\n\z//r]],
    if (call == SVE_REMOVE && watch->pending & SVE_ADD && watch->ff) {
        watch->ff(watch->opaque);
        watch->ff = NULL;
    }
$POST
C
    },
    {
        case  => 'never_told',
        what  => 'what was removed meanwhile is added and removed',
        edits => [[$BRIDGE, "    if (calls & SVE_REMOVE) {\n        retire(loop, watch);",
            "    if (calls & SVE_REMOVE) {\n"
            . "        if (calls & SVE_ADD)\n            watch->attached = loop->attach(loop, watch, value);\n"
            . "        retire(loop, watch);"]],
    },
    {
        case  => 'refused_late',
        what  => 'what is refused late is freed before its removal',
        edits => [[$BRIDGE, 'watch->attaching = false;', <<'C']],
watch->attaching = false;
        if (!watch->attached && watch->ff)
            put_on_due_list(sve_watch_ref(watch));
C
    },
    {
        case  => 'removed_while_running',
        also  => ['after_perl_callback', 'no_early_free'],
        what  => 'a callback that is running is not waited for',
        edits => [[$BRIDGE, '(*link)->running || ', '']],
    },
);
