/* What libvirt asked us to watch: one record a watch or timer, and the table
 * that finds it by id.
 *
 * Pure C, no locks of its own: who guards a field is written beside it. "core
 * lock" is the one lock of bridge.c; "owner" means that only the thread which
 * owns the loop may look at it.
 */
#ifndef SVE_WATCH_H
#define SVE_WATCH_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>
#include <libvirt/libvirt.h>

#include "claim.h"

#pragma GCC visibility push(hidden)

typedef enum {
    SVE_HANDLE,
    SVE_TIMER,
} sve_kind;

/* No event mask, and not what an impl may be asked for. */
enum { SVE_UNTOLD = -1 };

typedef struct sve_watch sve_watch;
struct sve_watch {
    /* Fixed when it is added, but for ff, which is taken away from those that a fork leaves behind. */
    int id;
    sve_kind kind;
    int fd;                              /* handles: libvirt's, closed by us only to cut it, see bridge.c */
    union {
        virEventHandleCallback handle;
        virEventTimeoutCallback timer;
    } cb;
    void *opaque;
    virFreeCallback ff;
    long long added;                     /* sve_now */
    bool foreign;                        /* added by a thread that does not own the loop */
    atomic_int refs;

    /* Under the core lock. */
    int value;                           /* event mask or ms, as last asked for */
    sve_claim *claim;                    /* of what libvirt has registered; NULL: the program's own */
    dev_t device;                        /* handles, after a fork: what the fd stood for then */
    ino_t inode;
    unsigned pending;                    /* calls of other threads not yet carried out */
    bool posted;                         /* linked through next_posted */
    sve_watch *next_posted;
    sve_watch *next_in_bucket;

    /* Owner. */
    bool attached;                       /* the loop has it; it may be dispatched */
    bool attaching;                      /* the loop is asked for it, out of the mailbox */
    bool warned;                         /* a refusal to dispatch was reported */
    int told;                            /* handles: the event mask that the loop has; SVE_UNTOLD: who knows */
    int running;                         /* callbacks of this watch on the stack */
    int held;                            /* what else on the stack is not to lose it, and these */
    unsigned long dispatched;
    long long last;                      /* sve_now, when last dispatched */
    void *slot;                          /* the back-end's */
    unsigned long due_as;                /* removed: its number among the free functions that are due */
    sve_watch *next_due;
};

/* Born with one reference; NULL where memory is out. */
sve_watch *sve_watch_new(sve_kind kind, int fd, int value, void *opaque, virFreeCallback ff);
sve_watch *sve_watch_ref(sve_watch *watch);
void sve_watch_unref(sve_watch *watch);

/* For the owner's stack: cheaper than a reference. */
void sve_watch_hold(sve_watch *watch);
void sve_watch_release(sve_watch *watch);

/* Before and after its callback. It is held meanwhile. */
void sve_watch_begin(sve_watch *watch);
void sve_watch_end(sve_watch *watch);

/* Nanoseconds of a monotonic clock that is cheap and a few ms coarse. */
long long sve_now(void);

/* The table holds no references of its own: its owner counts them. Inserting
 * cannot fail: short of memory the chains get longer. */
enum { SVE_TABLE_MIN = 16 };

typedef struct {
    sve_watch **buckets;
    size_t size;
    atomic_size_t count;
    sve_watch *first[SVE_TABLE_MIN];
} sve_table;

void sve_table_insert(sve_table *table, sve_watch *watch);
void sve_table_remove(sve_table *table, sve_watch *watch);
void sve_table_each(const sve_table *table, void (*visit)(sve_watch *watch));
/* Removes them all. */
void sve_table_clear(sve_table *table, void (*visit)(sve_watch *watch));
sve_watch *sve_table_find(const sve_table *table, int id);

/* Every watch, by id, each with a reference for the caller, in an array to be
 * freed; NULL with *count 0 when there is none, NULL with *count 1 when memory is out. */
sve_watch **sve_table_list(const sve_table *table, size_t *count);

#pragma GCC visibility pop

#endif
