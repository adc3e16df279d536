/* A robust mutex does it: the kernel gives it free with the thread that has locked it, however that
 * ends, by exec too, and whether or not anybody has waited for the process. It takes no fd, which a
 * daemon would close, and no pid, which another process could get.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "claim.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

/* No robust mutexes there: a child serves the sockets only when it is told to. */
#ifdef __APPLE__
#define pthread_mutexattr_setrobust(attributes, robust) 0
#define pthread_mutex_consistent(mutex) 0
#endif

static pthread_mutex_t *new_mutex(void)
{
    pthread_mutexattr_t attributes;
    pthread_mutex_t *mutex = mmap(NULL, sizeof *mutex, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    if (mutex == MAP_FAILED)
        return NULL;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(mutex, &attributes);
    pthread_mutexattr_destroy(&attributes);
    pthread_mutex_lock(mutex);
    return mutex;
}

static void drop_mutex(sve_claim *claim)
{
    if (!claim->mutex)
        return;
    if (claim->held)
        pthread_mutex_unlock(claim->mutex);
    munmap(claim->mutex, sizeof *claim->mutex);
}

sve_claim *sve_claim_new(void)
{
    sve_claim *claim = calloc(1, sizeof *claim);

    if (!claim)
        return NULL;
    claim->mutex = new_mutex();
    claim->held = true;
    return claim;
}

bool sve_claim_take(sve_claim *claim)
{
    int error = claim->mutex ? pthread_mutex_trylock(claim->mutex) : EBUSY;

    if (error == EOWNERDEAD)
        error = pthread_mutex_consistent(claim->mutex);
    return error == 0;
}

void sve_claim_renew(sve_claim *claim)
{
    drop_mutex(claim);
    claim->mutex = new_mutex();
    claim->held = true;
}

void sve_claim_free(sve_claim *claim)
{
    drop_mutex(claim);
    free(claim);
}
