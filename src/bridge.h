/* The six functions that libvirt calls, and what else enters the core.
 *
 * Pure C. All of it is for the owner, except sve_bridge_functions, whose members
 * any thread may call at any moment, and sve_bridge_hang_up.
 */
#ifndef SVE_BRIDGE_H
#define SVE_BRIDGE_H

#include "loop.h"

#pragma GCC visibility push(hidden)

typedef struct {
    virEventAddHandleFunc add_handle;
    virEventUpdateHandleFunc update_handle;
    virEventRemoveHandleFunc remove_handle;
    virEventAddTimeoutFunc add_timeout;
    virEventUpdateTimeoutFunc update_timeout;
    virEventRemoveTimeoutFunc remove_timeout;
} sve_functions;

extern const sve_functions sve_bridge_functions;

/* The loop that serves from now on. Nothing may be registered with the one before. */
void sve_bridge_set_loop(sve_loop *loop);

/* Takes the wake watch away from the loop; before another one is set. */
void sve_bridge_let_go(void);

/* The owner ends: its loop is gone, with all that it had attached, and no free function
 * is run any more. libvirt's calls are answered all the same. */
void sve_bridge_abandon(void);

/* Before anything else. The callbacks are those of what the program itself adds; all else is libvirt's. */
void sve_bridge_boot(virEventHandleCallback on_handle, virEventTimeoutCallback on_timeout);

/* In a child process: takes over what libvirt had registered before the fork; or drops it, without
 * running its free functions, and so that nothing in this process can reach the servers. */
void sve_bridge_adopt(void);
void sve_bridge_forget(void);

/* Carries out the calls of other threads and sees to the wake watch. */
void sve_bridge_deliver(void);

/* Before and after a callback of libvirt. The callback may run only on SVE_GO,
 * and then sve_bridge_end is due, whatever happens. */
typedef enum {
    SVE_GO,
    SVE_GONE,
    SVE_BUSY,
} sve_verdict;
sve_verdict sve_bridge_begin(sve_watch *watch);
void sve_bridge_end(sve_watch *watch);

/* libvirt's callback itself; events is of no meaning for timers. */
void sve_bridge_call(sve_watch *watch, int events);

/* Free functions are due in the order of removal, and numbered. Settling runs those from that number
 * on that may run: the stack must be clean of the libvirt calls that removed these. */
unsigned long sve_bridge_last_due(void);
bool sve_bridge_has_due(void);
void sve_bridge_settle(unsigned long from);

typedef struct {
    size_t handles, timers;              /* registered */
    size_t due;                          /* removed, their free functions not yet run */
    int running;                         /* callbacks on the stack */
} sve_census;
sve_census sve_bridge_census(void);

/* Whether the id was ever given out; whether it is registered as that kind. */
bool sve_bridge_gave(int id);
bool sve_bridge_has(sve_kind kind, int id);
bool sve_bridge_is_wake(const sve_watch *watch);

/* Whether it is one that the bridge gives to the loop by itself. */
bool sve_bridge_is_own(const sve_watch *watch);

/* As sve_table_list, and its end; the value that libvirt last asked for. */
sve_watch **sve_bridge_list(size_t *count);
void sve_bridge_list_free(sve_watch **list, size_t count);
int sve_bridge_value(sve_watch *watch);

/* Shuts down the sockets of libvirt's handles with ids in this range that the owner's calls have added. Any thread. */
void sve_bridge_hang_up(int first, int last);

/* Adds a timer through libvirt that exists only to be refused. Who answers? */
typedef enum {
    SVE_NOBODY,
    SVE_US,
    SVE_OTHERS,
} sve_registrant;
sve_registrant sve_bridge_probe(void);

void sve_bridge_trace(bool on);

#pragma GCC visibility pop

#endif
