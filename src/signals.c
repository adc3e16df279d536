/* A signal may interrupt any thread of a process. perl's handler takes it for granted that the thread
 * has an interpreter, and crashes in one of libvirt's; since 5.42 it knows better (Perl/perl5 issue
 * 22487). Where perl has no threads it takes a note, but the thread that sleeps in the loop sleeps on.
 * So such a thread passes the signal to the one that runs the loop.
 */
#include "signals.h"

#if PERL_VERSION < 42 || !defined(USE_ITHREADS)

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>

/* perl's own handler takes one argument or three, as perl was built; the kernel passes three. */
typedef void three_argument_handler(int, siginfo_t *, void *);
typedef void one_argument_handler(int);
typedef void any_function(void);
#define AS(type, function) ((type)(any_function *)(function))

static Sighandler_t perls;
static _Atomic pthread_t owner;
static atomic_bool has_owner;

static bool is_perls_thread(void)
{
#ifdef USE_ITHREADS
    return PERL_GET_CONTEXT != NULL;
#else
    return !has_owner || pthread_equal(pthread_self(), owner);
#endif
}

static void pass_on(int number, siginfo_t *info, void *context)
{
    if (is_perls_thread())
        AS(three_argument_handler *, perls)(number, info, context);
    else if (has_owner)
        pthread_kill(owner, number);
}

/* What %SIG has installed before; flags and mask stay. */
static void take_over(void)
{
    dSAVE_ERRNO;
    for (int number = 1; number < NSIG; number++) {
        struct sigaction action;
        if (sigaction(number, NULL, &action) == 0 && action.sa_handler == AS(one_argument_handler *, perls)) {
            action.sa_handler = AS(one_argument_handler *, pass_on);
            sigaction(number, &action, NULL);
        }
    }
    RESTORE_ERRNO;
}

void sve_signals_come_here(void)
{
    owner = pthread_self();
    has_owner = true;
    if (perls)
        return;
    perls = PL_csighandlerp;
    PL_csighandlerp = AS(Sighandler_t, pass_on);
    take_over();
}

void sve_signals_end(void) { has_owner = false; }

#else

void sve_signals_come_here(void) { }
void sve_signals_end(void) { }

#endif
