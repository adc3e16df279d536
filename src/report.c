#include "report.h"
#include "argument.h"
#include "callback.h"
#include "default_loop.h"
#include "perl_loop.h"
#include "registration.h"

#include <time.h>

static SV *seconds(pTHX_ long long nanoseconds)
{
    return newSVnv((NV)nanoseconds / 1e9);
}

static HV *described(pTHX_ sve_watch *watch, long long now)
{
    HV *hash = newHV();
    int value = sve_bridge_value(watch);

    hv_stores(hash, "id", newSViv(watch->id));
    if (watch->kind == SVE_HANDLE) {
        hv_stores(hash, "kind", newSVpvs("handle"));
        hv_stores(hash, "fd", newSViv(watch->fd));
        hv_stores(hash, "events", newSViv(value));
    } else {
        hv_stores(hash, "kind", newSVpvs("timeout"));
        hv_stores(hash, "ms", newSViv(value));
    }
    hv_stores(hash, "dispatched", newSVuv(watch->dispatched));
    hv_stores(hash, "age", seconds(aTHX_ now - watch->added));
    hv_stores(hash, "last_dispatch", watch->dispatched ? seconds(aTHX_ now - watch->last) : newSV(0));
    return hash;
}

AV *sve_watches(pTHX_ CV *cv)
{
    AV *watches = (AV *)sv_2mortal((SV *)newAV());
    size_t count;

    sve_must_be_owner(aTHX_ cv);
    sve_bridge_deliver();
    sve_watch **list = sve_bridge_list(&count);
    if (!list && count)
        sve_cannot(aTHX_ cv, "out of memory");
    long long now = sve_now();
    for (size_t i = 0; i < count; i++)
        av_push(watches, newRV_noinc((SV *)described(aTHX_ list[i], now)));
    sve_bridge_list_free(list, count);
    return watches;
}

bool sve_is_idle(pTHX_ CV *cv)
{
    sve_must_be_owner(aTHX_ cv);
    sve_bridge_deliver();
    sve_settle_now(aTHX);
    sve_census census = sve_bridge_census();
    return !census.handles && !census.timers && !census.due;
}

/* The loop object's method that runs it for a while. */
static const char *runner(pTHX_ CV *cv)
{
    HV *stash = SvSTASH(SvRV(sve_perl_loop_object(aTHX)));
    static const char *const names[] = { "run_for", "run_once" };

    for (size_t i = 0; i < C_ARRAY_LENGTH(names); i++)
        if (gv_fetchmethod_autoload(stash, names[i], FALSE))
            return names[i];
    sve_cannot(aTHX_ cv, "%s has neither run_for nor run_once", sve_perl_loop_class(aTHX));
}

static void run_object(pTHX_ const char *method, NV seconds)
{
    dSP;

    PUSHMARK(SP);
    EXTEND(SP, 2);
    PUSHs(sv_mortalcopy(sve_perl_loop_object(aTHX)));
    mPUSHn(seconds);
    PUTBACK;
    call_method(method, G_DISCARD);
}

/* sve_now is too coarse: not a moment before the time is over. */
static NV clock_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (NV)now.tv_sec + (NV)now.tv_nsec / 1e9;
}

bool sve_drain(pTHX_ CV *cv, NV seconds)
{
    const NV slice = 0.01;               /* run_for does not return earlier */

    sve_must_be_registered(aTHX_ cv);
    if (PL_dirty)                        /* perl has taken the loop object away by then */
        return sve_is_idle(aTHX_ cv);
    if (sve_bridge_census().running)
        sve_cannot(aTHX_ cv, "a callback is running, which cannot go before it returns");
    const char *method = sve_registered() == SVE_OBJECT ? runner(aTHX_ cv) : NULL;
    NV end = clock_seconds() + seconds;
    while (!sve_is_idle(aTHX_ cv)) {
        NV left = seconds < 0 ? slice : end - clock_seconds();
        if (left <= 0)
            return false;
        left = left < slice ? left : slice;
        ENTER;
        SAVETMPS;
        if (method)
            run_object(aTHX_ method, left);
        else
            sve_default_loop_run(aTHX_ cv, left);
        FREETMPS;
        LEAVE;
    }
    return true;
}

SV *sve_registered_loop(pTHX)
{
    if (sve_registered() == SVE_DEFAULT)
        return newSVpvs("default");
    if (sve_registered() == SVE_OBJECT && sve_is_owner(NULL))
        return newSVsv(sve_perl_loop_object(aTHX));
    return newSV(0);
}
