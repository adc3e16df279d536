/* Two things that perl's own handler of signals does not bear.
 *
 * a. A signal may interrupt any thread of a process, also one of libvirt's, which has no interpreter.
 *    There perl crashes; since 5.42 it knows better (Perl/perl5 issue 22487). Where perl has no threads
 *    it takes a note, but the thread that sleeps in the loop sleeps on. So such a thread passes the
 *    signal to the one that runs the loop.
 * b. While C code runs, the handlers in %SIG wait, and perl counts the signals. At 120 of a kind it
 *    dies, out of whatever C code that is: with libvirt's locks. So the count is kept below.
 */
#include "signals.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>

enum { ENOUGH_PENDING = 100 };

/* perl's handler takes one argument or three, as perl was built; the kernel passes three. */
typedef void three_argument_handler(int, siginfo_t *, void *);
typedef void one_argument_handler(int);
typedef void any_function(void);
#define AS(type, function) ((type)(any_function *)(function))

/* Handlers of %SIG are installed by the first; since 5.32 those of POSIX::sigaction, safe ones, by the others. */
static Sighandler_t *const pointers[] = {
    &PL_csighandlerp,
#if PERL_VERSION >= 32
    (Sighandler_t *)&PL_csighandler1p,
    (Sighandler_t *)&PL_csighandler3p,
#endif
};
enum { POINTERS = C_ARRAY_LENGTH(pointers) };

static Sighandler_t perls[POINTERS];
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

static void handle(int number, siginfo_t *info, void *context)
{
    dTHX;
    if (!PL_psig_pend || PL_psig_pend[number] < ENOUGH_PENDING)
        AS(three_argument_handler *, perls[POINTERS - 1])(number, info, context);
}

static void on_signal(int number, siginfo_t *info, void *context)
{
    if (is_perls_thread())
        handle(number, info, context);
    else if (has_owner)
        pthread_kill(owner, number);
}

static bool is_perls(one_argument_handler *handler)
{
    for (int i = 0; i < POINTERS; i++)
        if (handler == AS(one_argument_handler *, perls[i]))
            return true;
    return false;
}

/* What was installed before; flags and mask stay. */
static void take_over(void)
{
    dSAVE_ERRNO;
    for (int number = 1; number < NSIG; number++) {
        struct sigaction action;
        if (sigaction(number, NULL, &action) == 0 && is_perls(action.sa_handler)) {
            action.sa_handler = AS(one_argument_handler *, on_signal);
            sigaction(number, &action, NULL);
        }
    }
    RESTORE_ERRNO;
}

void sve_signals_come_here(void)
{
    owner = pthread_self();
    has_owner = true;
    if (perls[0])
        return;
    for (int i = 0; i < POINTERS; i++) {
        perls[i] = *pointers[i];
        *pointers[i] = AS(Sighandler_t, on_signal);
    }
    take_over();
}

void sve_signals_end(void) { has_owner = false; }
