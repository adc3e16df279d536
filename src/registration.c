/* libvirt takes one registration per process, does not tell who made it, and reports
 * success for those that it ignores (virEventRegisterImpl). So each is preceded by a
 * probe that finds out who was first. */
#include "registration.h"
#include "argument.h"
#include "callback.h"
#include "default_loop.h"
#include "perl_loop.h"
#include "signals.h"

#include <pthread.h>

static struct {
    sve_registration kind;
    PerlInterpreter *_Atomic perl;
    _Atomic pthread_t thread;
} registered;

sve_registration sve_registered(void) { return registered.kind; }
PerlInterpreter *sve_owner(void) { return registered.perl; }

bool sve_is_owner(sve_loop *loop)
{
    (void)loop;
    PerlInterpreter *perl = registered.perl;
    return perl && PERL_GET_CONTEXT == perl
        && pthread_equal(pthread_self(), registered.thread);
}

void sve_must_be_owner(pTHX_ CV *cv)
{
    if (registered.perl && !sve_is_owner(NULL))
        sve_cannot(aTHX_ cv, "the event loop belongs to another thread");
}

void sve_must_be_registered(pTHX_ CV *cv)
{
    if (!registered.perl)
        sve_cannot(aTHX_ cv, "no event loop is registered");
    sve_must_be_owner(aTHX_ cv);
}

static void abandon(void)
{
    sve_bridge_abandon();
    sve_perl_loop_forget();
    sve_signals_end();
    registered.perl = NULL;
}

/* From here on libvirt's calls find no loop, and nothing enters the dying interpreter. */
static void owner_ends(pTHX_ void *unused)
{
    PERL_UNUSED_ARG(unused);
    if (registered.perl != PERL_GET_CONTEXT)
        return;
    abandon();
}

/* The owner is another thread, which the child does not have. The bridge has seen the fork first. */
static void in_child(void)
{
    if (!registered.perl || pthread_equal(pthread_self(), registered.thread))
        return;
    abandon();
}

static void become_owner(pTHX_ sve_registration kind)
{
    static bool sees_forks;

    if (!sees_forks)
        sees_forks = pthread_atfork(NULL, NULL, in_child) == 0;
    registered.kind = kind;
    registered.thread = pthread_self();
    registered.perl = PERL_GET_CONTEXT;
    sve_signals_come_here();
    call_atexit(owner_ends, NULL);
}

static void must_be_first(pTHX_ CV *cv)
{
    if (sve_bridge_probe() == SVE_OTHERS)
        sve_cannot(aTHX_ cv, "other code in this process has registered an event loop with libvirt already");
}

static void count(pTHX_ SV *text, size_t number, const char *noun)
{
    if (number)
        sv_catpvf(text, "%s%d %s%s", SvCUR(text) ? ", " : "", (int)number, noun, number == 1 ? "" : "s");
}

/* What is left with the registered object, in words. */
static SV *remains(pTHX)
{
    SV *left = sv_2mortal(newSVpvs(""));

    sve_settle_now(aTHX);
    sve_census census = sve_bridge_census();
    count(aTHX_ left, census.handles, "handle");
    count(aTHX_ left, census.timers, "timeout");
    count(aTHX_ left, census.due, "outstanding free function");
    return left;
}

/* Another object may take over while nothing is left with the registered one. */
static void let_go(pTHX_ CV *cv)
{
    sve_bridge_deliver();
    SV *left = remains(aTHX);

    if (sve_bridge_census().running || sve_is_locked(aTHX))
        sve_cannot(aTHX_ cv, "a callback of the registered event loop, %s, is running", sve_perl_loop_class(aTHX));
    if (!SvCUR(left)) {
        sve_bridge_let_go();
        left = remains(aTHX);            /* the method that took the wake watch away may have added something */
        if (!SvCUR(left))
            return;
        sve_bridge_deliver();
    }
    sve_cannot(aTHX_ cv, "the registered event loop, %s, still has %" SVf, sve_perl_loop_class(aTHX), SVfARG(left));
}

static void must_have_methods(pTHX_ CV *cv, SV *impl)
{
    SV *missing = sve_perl_loop_missing(aTHX_ impl);
    if (SvCUR(missing))
        sve_cannot(aTHX_ cv, "%s must provide %" SVf, sv_reftype(SvRV(impl), TRUE), SVfARG(missing));
}

SV *sve_register(pTHX_ CV *cv, SV *impl, sve_wake_policy wake)
{
    if (PL_dirty)                        /* perl has taken the registered object away by then */
        return impl;
    impl = sv_mortalcopy(impl);          /* the caller's variable may change in Perl code that is called */
    if (!sve_is_impl(aTHX_ impl))
        sve_cannot(aTHX_ cv, "%s is not an object of a subclass of Sys::Virt::Event or Sys::Virt::EventImpl",
                   sv_isobject(impl) ? sv_reftype(SvRV(impl), TRUE) : (SvOK(impl) ? SvPV_nolen(impl) : "undef"));
    must_have_methods(aTHX_ cv, impl);
    sve_must_be_owner(aTHX_ cv);
    if (registered.kind == SVE_DEFAULT)
        sve_cannot(aTHX_ cv, "register_default was called, and libvirt keeps its own event loop from then on");
    if (registered.kind == SVE_NONE) {
        must_be_first(aTHX_ cv);
        virEventRegisterImpl(sve_bridge_functions.add_handle, sve_bridge_functions.update_handle,
                             sve_bridge_functions.remove_handle, sve_bridge_functions.add_timeout,
                             sve_bridge_functions.update_timeout, sve_bridge_functions.remove_timeout);
        if (sve_bridge_probe() != SVE_US)
            must_be_first(aTHX_ cv);
    } else if (registered.perl) {
        if (SvRV(sve_perl_loop_object(aTHX)) == SvRV(impl))
            return impl;
        let_go(aTHX_ cv);
    }
    if (!registered.perl)
        become_owner(aTHX_ SVE_OBJECT);
    sve_perl_loop_serve(aTHX_ impl, wake);
    return impl;
}

void sve_register_default(pTHX_ CV *cv)
{
    sve_must_be_owner(aTHX_ cv);
    if (registered.kind == SVE_DEFAULT && registered.perl)
        return;
    if (registered.kind == SVE_OBJECT)
        sve_cannot(aTHX_ cv, "an object is registered as the event loop, and libvirt takes only one kind");
    if (registered.kind == SVE_NONE) {
        must_be_first(aTHX_ cv);
        if (virEventRegisterDefaultImpl() < 0)
            sve_cannot(aTHX_ cv, "%s", virGetLastErrorMessage());
    }
    become_owner(aTHX_ SVE_DEFAULT);
    sve_default_loop_serve();
}

static void with_inherited(pTHX_ CV *cv, void (*act)(void))
{
    sve_border border;

    sve_must_be_registered(aTHX_ cv);
    if (registered.kind == SVE_DEFAULT)
        sve_cannot(aTHX_ cv, "after register_default libvirt keeps its handles to itself");
    sve_border_open(aTHX_ &border, NULL);
    act();
    sve_border_close(aTHX_ &border);
}

void sve_adopt(pTHX_ CV *cv) { with_inherited(aTHX_ cv, sve_bridge_adopt); }
void sve_forget(pTHX_ CV *cv) { with_inherited(aTHX_ cv, sve_bridge_forget); }
