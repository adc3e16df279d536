#include "perl_loop.h"
#include "callback.h"
#include "ev_loop.h"
#include "registration.h"
#include "token.h"

enum {
    ADD,
    UPDATE,
    REMOVE,
};

/* Where perl has it, a name that is no package's is found in the cache of methods at once. */
#ifdef G_METHOD_NAMED
enum { METHOD = G_METHOD_NAMED };
#else
enum { METHOD = G_METHOD };
#endif

static const char *const names[][2] = {
    [ADD] = { "add_handle", "add_timeout" },
    [UPDATE] = { "update_handle", "update_timeout" },
    [REMOVE] = { "remove_handle", "remove_timeout" },
};

/* One object at a time serves libvirt. watch->slot holds what its add method returned; NULL if it called exit. */
static struct {
    SV *impl;
    SV *methods[3][2];                   /* the names */
    sve_loop *successor;                 /* the loop of C that it has handed over to */
} object;

static SV *call_method_of(pTHX_ sve_watch *watch, int which, SV **args, I32 count, SV **result)
{
    args[0] = object.impl;
    return sve_eval(aTHX_ object.methods[which][watch->kind],
                    METHOD | (result ? G_SCALAR : G_VOID), args, count, result);
}

/* "Cannot add handle: My::Loop::add_handle <what>" */
static const char *failure(pTHX_ sve_watch *watch, int which, const char *what)
{
    const char *name = names[which][watch->kind];
    return SvPV_nolen(sv_2mortal(newSVpvf("Cannot %.*s %s: %s::%s %s",
                                          (int)(strchr(name, '_') - name), name, strchr(name, '_') + 1,
                                          sve_perl_loop_class(aTHX), name, what)));
}

static bool is_negative(pTHX_ SV *sv)
{
    if (SvIOK(sv))
        return SvIV_nomg(sv) < 0 && !SvIsUV(sv);
    return SvOK(sv) && !SvROK(sv) && looks_like_number(sv) && SvNV(sv) < 0;
}

static const char *refusal(pTHX_ sve_watch *watch, SV *error, SV *key)
{
    if (error)
        return failure(aTHX_ watch, ADD, "died: ");
    SvGETMAGIC(key);
    if (!SvOK(key))
        return failure(aTHX_ watch, ADD, "returned undef");
    if (is_negative(aTHX_ key))
        return failure(aTHX_ watch, ADD, form("returned %" SVf, SVfARG(key)));
    return NULL;
}

/* What nobody else will see again needs no copy. */
static SV *kept(pTHX_ SV *key)
{
    return SvTEMP(key) && SvREFCNT(key) == 1 && !SvMAGICAL(key) ? SvREFCNT_inc_simple_NN(key) : newSVsv(key);
}

static bool attach(sve_loop *loop, sve_watch *watch, int value)
{
    dTHXa(sve_owner());
    sve_frame frame;
    SV *args[6], *token, *key = NULL, *error;
    I32 count = 1;
    PERL_UNUSED_ARG(loop);

    if (PL_dirty)
        return false;
    sve_enter(aTHX_ &frame, true);
    if (watch->kind == SVE_HANDLE)
        args[count++] = sve_number(aTHX_ &frame, watch->fd);
    args[count++] = sve_number(aTHX_ &frame, value);
    args[count++] = token = sv_2mortal(sve_token_new(aTHX_ watch));
    for (int i = 0; i < 2; i++)
        args[count++] = sv_2mortal(newRV_inc(SvRV(token)));
    error = call_method_of(aTHX_ watch, ADD, args, count, &key);
    if (object.successor) {              /* which it has found to serve in its place */
        sve_leave(aTHX_ &frame);
        return object.successor->attach(object.successor, watch, value);
    }
    const char *refused = refusal(aTHX_ watch, error, key);
    if (!refused) {
        watch->slot = kept(aTHX_ key);
        SvREADONLY_on((SV *)watch->slot);
    } else if (sve_is_exiting(aTHX)) {
        refused = NULL;                  /* the call of libvirt shall end well: the program ends with it */
    } else if (watch->foreign || sve_bridge_is_own(watch)) {
        sve_warn(aTHX_ error, refused);
    } else {
        sve_refuse(aTHX_ watch, error, refused);
    }
    sve_leave(aTHX_ &frame);
    return !refused;
}

static void update(sve_loop *loop, sve_watch *watch, int value)
{
    dTHXa(sve_owner());
    sve_frame frame;
    SV *args[3], *error;
    PERL_UNUSED_ARG(loop);

    if (PL_dirty || !watch->slot)
        return;
    sve_enter(aTHX_ &frame, true);
    args[1] = sv_2mortal(SvREFCNT_inc_simple_NN((SV *)watch->slot));
    args[2] = sve_number(aTHX_ &frame, value);
    error = call_method_of(aTHX_ watch, UPDATE, args, 3, NULL);
    if (error) {
        watch->told = SVE_UNTOLD;
        sve_park(aTHX_ error, failure(aTHX_ watch, UPDATE, "died: "));
    }
    sve_leave(aTHX_ &frame);
}

static void detach(sve_loop *loop, sve_watch *watch)
{
    dTHXa(sve_owner());
    sve_frame frame;
    SV *args[2], *result = NULL, *error;
    PERL_UNUSED_ARG(loop);

    if (PL_dirty || !watch->slot)
        return;
    sve_enter(aTHX_ &frame, true);
    /* The frame releases the key: what its release runs is under libvirt's locks, too. */
    args[1] = sv_2mortal(watch->slot);
    watch->slot = NULL;
    error = call_method_of(aTHX_ watch, REMOVE, args, 2, &result);
    if (error)
        sve_warn(aTHX_ error, failure(aTHX_ watch, REMOVE, "died: "));
    else if (is_negative(aTHX_ result))
        sve_warn(aTHX_ NULL, failure(aTHX_ watch, REMOVE, form("returned %" SVf, SVfARG(result))));
    sve_leave(aTHX_ &frame);
}

/* Other threads read it at any moment, so but for the owner's wake_watch it never changes. */
static sve_loop object_loop = {
    .is_owner = sve_is_owner,
    .attach = attach,
    .update = update,
    .detach = detach,
    .later = sve_settle_later,
    .warn = sve_warn_of,
};

/* Code of the class's own: neither ours nor Sys::Virt's functions of the same names, which
 * `can` alone finds, be they inherited or imported. */
static bool provides(pTHX_ HV *stash, const char *name)
{
    GV *gv = gv_fetchmethod_autoload(stash, name, FALSE);
    CV *cv = gv && isGV(gv) ? GvCV(gv) : NULL;

    if (!cv || !(CvROOT(cv) || CvXSUB(cv)))
        return false;
    HV *home = CvGV(cv) ? GvSTASH(CvGV(cv)) : NULL;
    const char *package = home ? HvNAME(home) : NULL;
    return !package || (strNE(package, "Sys::Virt::Event") && strNE(package, "Sys::Virt::EventImpl"));
}

SV *sve_perl_loop_missing(pTHX_ SV *impl)
{
    SV *missing = sv_2mortal(newSVpvs(""));

    for (int kind = SVE_HANDLE; kind <= SVE_TIMER; kind++)
        for (int which = ADD; which <= REMOVE; which++)
            if (!provides(aTHX_ SvSTASH(SvRV(impl)), names[which][kind]))
                sv_catpvf(missing, "%s%s", SvCUR(missing) ? ", " : "", names[which][kind]);
    return missing;
}

static void make_names(pTHX)
{
    for (int kind = SVE_HANDLE; kind <= SVE_TIMER; kind++)
        for (int which = ADD; which <= REMOVE; which++)
            object.methods[which][kind] = newSVpvn_share(names[which][kind], (I32)strlen(names[which][kind]), 0);
}

sve_wake_policy sve_perl_loop_wake(pTHX_ SV *impl)
{
    return sv_isobject(impl) && gv_fetchmethod_autoload(SvSTASH(SvRV(impl)), "_knows_wake", FALSE)
        ? SVE_WAKE_ALWAYS
        : SVE_WAKE_AUTO;
}

void sve_perl_loop_serve(pTHX_ SV *impl, sve_wake_policy wake)
{
    if (object.impl)
        sv_2mortal(object.impl);
    else
        make_names(aTHX);
    object_loop.wake_watch = wake;
    object.successor = NULL;
    object.impl = newRV_inc(SvRV(impl));
    SvREADONLY_on(object.impl);
    sv_setsv(get_sv("Sys::Virt::Event::eventimpl", GV_ADD), impl);
    sve_bridge_set_loop(&object_loop);
#ifdef SVE_HAVE_EV
    sve_ev_loop_end(aTHX);
#endif
}

bool sve_perl_loop_has_handed_over(void) { return object.successor; }

void sve_perl_loop_hand_over(sve_loop *to)
{
    sve_bridge_let_go();
    object.successor = to;
    sve_bridge_set_loop(to);
}

void sve_perl_loop_forget(void)
{
    object.impl = NULL;
    object.successor = NULL;
#ifdef SVE_HAVE_EV
    sve_ev_loop_forget();
#endif
}

SV *sve_perl_loop_object(pTHX)
{
    PERL_UNUSED_CONTEXT;
    return object.impl;
}

const char *sve_perl_loop_class(pTHX)
{
    PERL_UNUSED_CONTEXT;
    return sv_reftype(SvRV(object.impl), TRUE);
}
