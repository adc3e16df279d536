/* Which of the processes that share libvirt's sockets by fork serves them: the one that opened
 * them, until it is gone, and then the first of its children that asks.
 *
 * Pure C. A claim is made and taken by the owner thread of a process, and dropped by it, or by the thread that forks.
 */
#ifndef SVE_CLAIM_H
#define SVE_CLAIM_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>

#pragma GCC visibility push(hidden)

typedef struct sve_claim sve_claim;
struct sve_claim {
    sve_claim *next;
    pthread_mutex_t *mutex;              /* in memory shared with the children; NULL: there was none */
    /* Under the core lock of bridge.c. */
    bool held;                           /* by this process */
    bool inherited;                      /* made by a process that forked this one */
    size_t handles, timers;              /* registered under it */
};

/* A claim that is held; NULL where memory is out. */
sve_claim *sve_claim_new(void);

/* Whether no living process holds it but, from now on, this one. */
bool sve_claim_take(sve_claim *claim);

/* Held by this process, whoever thinks so, too. */
void sve_claim_renew(sve_claim *claim);

void sve_claim_free(sve_claim *claim);

#pragma GCC visibility pop

#endif
