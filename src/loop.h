/* What a loop back-end implements. bridge.c calls it, on the owner, except for
 * is_owner and wake, which any thread may call: those two touch nothing that
 * changes while the loop is registered. No lock of ours is held, but for wake the bell's.
 */
#ifndef SVE_LOOP_H
#define SVE_LOOP_H

#include "watch.h"

#pragma GCC visibility push(hidden)

typedef enum {
    SVE_WAKE_AUTO,
    SVE_WAKE_NEVER,
    SVE_WAKE_ALWAYS,
} sve_wake_policy;

typedef struct sve_loop sve_loop;
struct sve_loop {
    /* Whether the calling thread, in its current state, is the one that may enter the loop. */
    bool (*is_owner)(sve_loop *loop);

    /* Start watching. False: refused, and the back-end has said why. */
    bool (*attach)(sve_loop *loop, sve_watch *watch, int value);

    /* A new event mask, or a new interval that starts now. */
    void (*update)(sve_loop *loop, sve_watch *watch, int value);

    /* Stop watching. It cannot fail; watch->slot is released. */
    void (*detach)(sve_loop *loop, sve_watch *watch);

    /* Make the sleeping loop call sve_bridge_deliver soon. NULL: the bridge gives the
     * loop a watch of its own for that, as wake_watch says. */
    void (*wake)(sve_loop *loop);
    sve_wake_policy wake_watch;

    /* Free functions became due: call sve_bridge_settle soon, from a clean stack. */
    void (*later)(sve_loop *loop);

    /* Tell the people who run the program. */
    void (*warn)(sve_loop *loop, const char *message);
};

#pragma GCC visibility pop

#endif
