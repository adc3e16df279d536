# Mutants for the cases of Cases/Frees.pm. Nearly all of them are of the core, which keeps free functions in order
# whatever a loop does.
use strict;
use warnings;

my $BRIDGE = 'src/bridge.c';

my $DIRECTLY = '    if (direct)
        retire(loop, watch);';
my $DUE = '    if (watch->ff)
        put_on_due_list(watch);';

# The free function is run inside remove, if this holds.
sub in_remove {
    my ($condition) = @_;
    return [$BRIDGE, $DIRECTLY, "    if (direct && watch->ff && ($condition)) {
        virFreeCallback ff = watch->ff;
        void *opaque = watch->opaque;
        watch->ff = NULL;
        ff(opaque);
    }
$DIRECTLY"];
}

return (
    {
        case  => 'freed_once',
        also  => ['periodic'],
        what  => 'a timer that has fired a few times is freed twice',
        edits => [[$BRIDGE, '        sve_watch_unref(watch);
        ff(opaque);', '        bool twice = watch->kind == SVE_TIMER && watch->value > 0 && watch->dispatched >= 3;
        sve_watch_unref(watch);
        if (twice)
            ff(opaque);
        ff(opaque);']],
    },
    {
        case  => 'after_remove',
        what  => 'remove frees, outside of callbacks',
        edits => [in_remove('!core.running')],
    },
    {
        case  => 'free_of_disabled',
        also  => ['disabled_is_removable'],
        what  => 'a handle that was disabled before it ever ran is not freed',
        edits => [[$BRIDGE, '        sve_watch_hold(watch);', '        sve_watch_hold(watch);
        if (kind == SVE_HANDLE && !value && !watch->dispatched)
            watch->ff = NULL;']],
    },
    {
        case  => 'free_not_starved',
        also  => ['idle_object_replaced'],
        what  => 'it frees when no timer of 0 ms is busy',
        edits => [[$BRIDGE, '    sve_errors_put_aside(&errors);
', '    sve_errors_put_aside(&errors);
    size_t count, i;
    sve_watch **list = sve_bridge_list(&count);
    for (i = 0; i < count; i++)
        if (list[i]->kind == SVE_TIMER && list[i]->value == 0 && list[i]->dispatched >= 10)
            break;
    bool busy = i < count;
    sve_bridge_list_free(list, count);
    if (busy)
        return;
']],
    },
    {
        case  => 'after_callback',
        also  => ['after_perl_callback', 'no_early_free', 'no_early_free_in_c'],
        what  => 'a watch that removes itself is freed inside its callback',
        edits => [in_remove('watch->running')],
    },
    {
        case  => 'not_in_callbacks',
        what  => 'a watch removed in a callback of another is freed inside that',
        edits => [in_remove('core.running && !watch->running')],
    },
    {
        case  => 'after_perl_callback',
        also  => ['no_early_free', 'removed_while_running'],
        what  => 'whether its callback is on the stack is not asked',
        edits => [[$BRIDGE, '((*link)->running || (*link)->due_as < from)', '(*link)->due_as < from']],
    },
    {
        case  => 'free_calls_back',
        what  => 'while free functions run all removals are refused',
        edits => [
            [$BRIDGE, '        ff(opaque);', '        core.emptying = true;
        ff(opaque);
        core.emptying = false;'],
            [$BRIDGE, '    trace("remove_%s(%d)", noun(kind), id);', '    if (core.emptying && is_owner(core.loop))
        return -1;
    trace("remove_%s(%d)", noun(kind), id);'],
        ],
    },
    {
        case  => 'not_of_refused',
        also  => ['refused_to_perl'],
        what  => 'a handle that is refused is freed',
        edits => [[$BRIDGE, '        give_back_id(watch);
        sve_watch_unref(watch);', '        give_back_id(watch);
        watch->kind == SVE_HANDLE ? retire(loop, watch) : sve_watch_unref(watch);']],
    },
    {
        case  => 'null_ff',
        what  => 'NULL is called as a free function',
        edits => [[$BRIDGE, $DUE, '    if (watch->ff || watch->dispatched)
        put_on_due_list(watch);']],
    },
    {
        case  => 'null_opaque',
        what  => 'what has a free function and nothing to free is not dispatched',
        edits => [[$BRIDGE, '    if (!watch->attached)
        return SVE_GONE;', '    if (!watch->attached || (!watch->opaque && watch->ff))
        return SVE_GONE;']],
    },
);
