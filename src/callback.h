/* Perl code called from C, and where its exceptions go.
 *
 * Every call into Perl is made between sve_enter and sve_leave, which keep $@, $_, $! and
 * libvirt's last error as they were, and through sve_eval, on a stack of its own: nothing
 * (die, next, last, return) gets past it into C frames of libvirt. An exception is handed to
 * sve_park: the innermost border, an XSUB of ours that Perl called, throws it once libvirt's
 * frames are gone.
 */
#ifndef SVE_CALLBACK_H
#define SVE_CALLBACK_H

#include "sve_perl.h"
#include "errors.h"

#pragma GCC visibility push(hidden)

enum { SVE_NUMBERS = 3 };

typedef struct {
    I32 scope;                           /* the savestack and the temporaries of the caller */
    SSize_t temporaries;
    SV *error, *topic;                   /* the caller's $@ and $_ */
    sve_errors errors;
    despatch_signals_proc_t signals;     /* the caller's signal hook, where it was replaced */
    bool locked;
    SV *numbers[SVE_NUMBERS];
    int number_count;
} sve_frame;

/* locked: libvirt's locks are held. Then %SIG handlers wait for the caller's own statement to
 * end, as one that dies would leave the locks behind; and no free function is run meanwhile. */
void sve_enter(pTHX_ sve_frame *frame, bool locked);
void sve_leave(pTHX_ sve_frame *frame);
bool sve_is_locked(pTHX);

/* Perl code has called exit. That is put off until libvirt's frames are gone; until then methods are called as ever,
 * so that libvirt can finish, but no callbacks. */
bool sve_is_exiting(pTHX);

/* An argument for sve_eval that lives until sve_leave; at most SVE_NUMBERS a frame. */
SV *sve_number(pTHX_ sve_frame *frame, int value);

/* Calls code, or the method of that name. Returns NULL, or the exception. *result, where wanted,
 * lives until sve_leave: a scalar, or for G_LIST an AV. */
SV *sve_eval(pTHX_ SV *code, I32 flags, SV **args, I32 count, SV **result);

/* An XSUB that Perl calls and that calls libvirt. Closing throws what was parked. It is a frame, too:
 * Perl code that is called straight from it needs none of its own. */
typedef struct sve_border sve_border;
struct sve_border {
    sve_frame frame;                     /* must be first */
    sve_border *outer;
    const PERL_SI *stack;                /* the Perl frame that called it */
    I32 depth;
    SV *error, *prefix;                  /* what was parked, and how it starts as a warning */
    sve_watch *running;                  /* whose callback ends with the border */
    SV *added;                           /* of a public add_*: the opaque of its watch, whose refusal it throws */
    bool unseen;                         /* $SIG{__DIE__} has not seen the error: it is of our making */
};
void sve_border_open(pTHX_ sve_border *border, SV *added);
void sve_border_close(pTHX_ sve_border *border);
/* Closing in a loop of C, which is a clean moment for free functions: what was parked is the caller's, or NULL. */
SV *sve_border_end(pTHX_ sve_border *border);

/* An exception that cannot be thrown here. Where no border takes it, it is a warning
 * that starts with the prefix. */
void sve_park(pTHX_ SV *error, const char *prefix);

/* A refused add: the exception of the public add_* that made it, else a warning, made of prefix and error
 * (NULL: the prefix says it all). */
void sve_refuse(pTHX_ const sve_watch *watch, SV *error, const char *prefix);

/* A warning through Perl's warn, whatever $SIG{__WARN__} does. error may be NULL. */
void sve_warn(pTHX_ SV *error, const char *prefix);

/* The same, for sve_loop's warn. */
void sve_warn_of(sve_loop *loop, const char *message);

/* The XSUB behind sve_warn. */
void sve_warn_now(pTHX_ SV *prefix, SV *error);

/* libvirt's callback of a watch, guarded against running twice at once. The others have a border around it: one for
 * the helper methods (NULL: nothing to do), and one for loops of C, which returns what was thrown, as sve_border_end
 * does. events is of no meaning for timers. */
void sve_dispatch(pTHX_ sve_watch *watch, int events);
void sve_run_callback(pTHX_ sve_watch *watch, int events);
SV *sve_run_callback_for_c(pTHX_ sve_watch *watch, int events);

/* For sve_loop's later: the free functions that became due run when the statement that made the
 * call of libvirt is done. */
void sve_settle_later(sve_loop *loop);

/* The same, now, for an XSUB that Perl called. */
void sve_settle_now(pTHX);

/* The public functions: Perl code watched through libvirt. */
int sve_add_handle(pTHX_ CV *cv, int fd, int events, SV *code);
int sve_add_timeout(pTHX_ CV *cv, int ms, SV *code);
void sve_update(pTHX_ CV *cv, sve_kind kind, int id, int value);
void sve_remove(pTHX_ CV *cv, sve_kind kind, int id);

SV *sve_protect(pTHX_ SV *code);

/* A coderef that calls code, of an adapter, which handlers in %SIG must not leave half done: they wait, though not for
 * the callbacks that it runs. in_c: it is C code called by that code which must not be left so. */
SV *sve_held(pTHX_ SV *code, bool in_c);

void sve_callback_boot(pTHX);
void sve_callback_clone(pTHX);

#pragma GCC visibility pop

#endif
