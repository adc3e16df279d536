#include "breaker.h"
#include "bridge.h"

#include <pthread.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

enum { LONGEST = 1000000000 };           /* seconds */

#ifdef __APPLE__                         /* it has no pthread_condattr_setclock */
enum { CLOCK = CLOCK_REALTIME };
#else
enum { CLOCK = CLOCK_MONOTONIC };
#endif

static struct {
    pthread_mutex_t lock;
    pthread_cond_t called_off;
    pthread_t thread;
    struct timespec end;
    int first, last;
    bool is_off, has_hung_up;
    pid_t process;                       /* 0: none is running. A child process has none either */
} breaker;

static void *watch_the_time(void *unused)
{
    int error = 0;

    (void)unused;
    pthread_mutex_lock(&breaker.lock);
    while (!breaker.is_off && !error)
        error = pthread_cond_timedwait(&breaker.called_off, &breaker.lock, &breaker.end);
    breaker.has_hung_up = !breaker.is_off;
    pthread_mutex_unlock(&breaker.lock);
    if (breaker.has_hung_up)
        sve_bridge_hang_up(breaker.first, breaker.last);
    return NULL;
}

static void set_end(double seconds)
{
    if (seconds > LONGEST)
        seconds = LONGEST;
    clock_gettime(CLOCK, &breaker.end);
    breaker.end.tv_sec += (time_t)seconds;
    breaker.end.tv_nsec += (long)((seconds - (double)(time_t)seconds) * 1e9);
    if (breaker.end.tv_nsec >= 1000000000) {
        breaker.end.tv_sec++;
        breaker.end.tv_nsec -= 1000000000;
    }
}

/* Signals are not for a thread that has no interpreter. */
static int start_thread(void)
{
    sigset_t all, before;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&breaker.thread, NULL, watch_the_time, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return error;
}

bool sve_breaker_start(double seconds, int first, int last)
{
    pthread_condattr_t attributes;

    if (breaker.process == getpid())
        return false;
    pthread_mutex_init(&breaker.lock, NULL);
    pthread_condattr_init(&attributes);
#ifndef __APPLE__
    pthread_condattr_setclock(&attributes, CLOCK);
#endif
    pthread_cond_init(&breaker.called_off, &attributes);
    pthread_condattr_destroy(&attributes);
    breaker.first = first;
    breaker.last = last;
    breaker.is_off = breaker.has_hung_up = false;
    set_end(seconds);
    if (start_thread())
        return false;
    breaker.process = getpid();
    return true;
}

bool sve_breaker_stop(void)
{
    if (breaker.process != getpid())
        return false;
    pthread_mutex_lock(&breaker.lock);
    breaker.is_off = true;
    pthread_cond_signal(&breaker.called_off);
    pthread_mutex_unlock(&breaker.lock);
    pthread_join(breaker.thread, NULL);
    pthread_cond_destroy(&breaker.called_off);
    pthread_mutex_destroy(&breaker.lock);
    breaker.process = 0;
    return breaker.has_hung_up;
}
