/* Arguments in, one call into src/, result or exception out. */
#include "src/sve_perl.h"
#include "src/argument.h"
#include "src/breaker.h"
#include "src/callback.h"
#include "src/default_loop.h"
#include "src/ev_loop.h"
#include "src/glib_source.h"
#include "src/perl_loop.h"
#include "src/readiness.h"
#include "src/registration.h"
#include "src/report.h"
#include "src/token.h"

/* A wrong number of arguments may be a call of a method that a class lacks. */
#undef croak_xs_usage
#define croak_xs_usage(cv, params) sve_usage(aTHX_ cv, &ST(0), items, params)

typedef int sve_id, sve_fd, sve_events, sve_ms;
typedef SV *sve_code;
typedef NV sve_seconds;

static const struct { const char *name; int value; } constants[] = {
    { "HANDLE_READABLE", VIR_EVENT_HANDLE_READABLE },
    { "HANDLE_WRITABLE", VIR_EVENT_HANDLE_WRITABLE },
    { "HANDLE_ERROR", VIR_EVENT_HANDLE_ERROR },
    { "HANDLE_HANGUP", VIR_EVENT_HANDLE_HANGUP },
};

static sve_wake_policy wake_option(pTHX_ CV *cv, SV *impl, SV **options, I32 count)
{
    sve_wake_policy wake = sve_perl_loop_wake(aTHX_ impl);

    if (count % 2)
        sve_cannot(aTHX_ cv, "the options are not pairs of name and value");
    for (I32 i = 0; i < count; i += 2) {
        if (strNE(SvPV_nolen(options[i]), "wake"))
            sve_cannot(aTHX_ cv, "there is no option %" SVf, SVfARG(options[i]));
        wake = SvTRUE(options[i + 1]) ? SVE_WAKE_ALWAYS : SVE_WAKE_NEVER;
    }
    return wake;
}

MODULE = Sys::Virt::Event  PACKAGE = Sys::Virt::Event

PROTOTYPES: DISABLE

BOOT:
{
    HV *stash = gv_stashpvs("Sys::Virt::Event", GV_ADD);
    AV *exports = get_av("Sys::Virt::Event::EXPORT_OK", GV_ADD);
    const char *trace = getenv("SYS_VIRT_EVENT_TRACE");

    if (virInitialize() < 0)
        croak("Cannot initialise libvirt: %s", virGetLastErrorMessage());
    sve_bridge_trace(trace && *trace && strNE(trace, "0"));
    sve_callback_boot(aTHX);
    for (size_t i = 0; i < C_ARRAY_LENGTH(constants); i++) {
        newCONSTSUB(stash, constants[i].name, newSViv(constants[i].value));
        av_push(exports, newSVpv(constants[i].name, 0));
    }
}

void
CLONE(...)
  CODE:
    PERL_UNUSED_VAR(items);
    sve_callback_clone(aTHX);

void
register(impl, ...)
    SV *impl
  PPCODE:
    ST(0) = sve_register(aTHX_ cv, impl, wake_option(aTHX_ cv, impl, &ST(1), items - 1));
    XSRETURN(1);

void
_register_impl()
  CODE:
    sve_register(aTHX_ cv, get_sv("Sys::Virt::Event::eventimpl", GV_ADD), SVE_WAKE_AUTO);

SV *
registered()
  CODE:
    RETVAL = sve_registered_loop(aTHX);
  OUTPUT:
    RETVAL

void
register_default()
  CODE:
    sve_register_default(aTHX_ cv);

void
run_default(max_seconds = -1)
    sve_seconds max_seconds
  CODE:
    sve_default_loop_run(aTHX_ cv, max_seconds);

sve_id
add_handle(fd, events, code)
    sve_fd fd
    sve_events events
    sve_code code
  CODE:
    RETVAL = sve_add_handle(aTHX_ cv, fd, events, code);
  OUTPUT:
    RETVAL

void
update_handle(id, events)
    sve_id id
    sve_events events
  CODE:
    sve_update(aTHX_ cv, SVE_HANDLE, id, events);

void
remove_handle(id)
    sve_id id
  CODE:
    sve_remove(aTHX_ cv, SVE_HANDLE, id);

sve_id
add_timeout(ms, code)
    sve_ms ms
    sve_code code
  CODE:
    RETVAL = sve_add_timeout(aTHX_ cv, ms, code);
  OUTPUT:
    RETVAL

void
update_timeout(id, ms)
    sve_id id
    sve_ms ms
  CODE:
    sve_update(aTHX_ cv, SVE_TIMER, id, ms);

void
remove_timeout(id)
    sve_id id
  CODE:
    sve_remove(aTHX_ cv, SVE_TIMER, id);

SV *
protect(code)
    sve_code code
  CODE:
    RETVAL = sve_protect(aTHX_ code);
  OUTPUT:
    RETVAL

SV *
_held(code, in_c = false)
    sve_code code
    bool in_c
  CODE:
    RETVAL = sve_held(aTHX_ code, in_c);
  OUTPUT:
    RETVAL

void
watches()
  PREINIT:
    AV *watches;
  PPCODE:
    watches = sve_watches(aTHX_ cv);
    if (GIMME_V != G_LIST)
        XSRETURN_IV(AvFILLp(watches) + 1);
    EXTEND(SP, AvFILLp(watches) + 1);
    for (SSize_t i = 0; i <= AvFILLp(watches); i++)
        PUSHs(AvARRAY(watches)[i]);

bool
is_idle()
  CODE:
    RETVAL = sve_is_idle(aTHX_ cv);
  OUTPUT:
    RETVAL

bool
drain(seconds = -1)
    sve_seconds seconds
  CODE:
    RETVAL = sve_drain(aTHX_ cv, seconds);
  OUTPUT:
    RETVAL

void
_hang_up(sve_id first, sve_id last)
  CODE:
    sve_bridge_hang_up(first, last);

bool
_limit_calls(sve_seconds seconds, sve_id first, sve_id last)
  CODE:
    RETVAL = sve_breaker_start(seconds, first, last);
  OUTPUT:
    RETVAL

bool
_end_limit()
  CODE:
    RETVAL = sve_breaker_stop();
  OUTPUT:
    RETVAL

int
_callbacks_running()
  CODE:
    RETVAL = sve_bridge_census().running;
  OUTPUT:
    RETVAL

void
adopt()
  CODE:
    sve_adopt(aTHX_ cv);

void
forget()
  CODE:
    sve_forget(aTHX_ cv);

void
_run_handle_callback(self, watch, fd, events, cb, opaque)
    SV *self
    SV *watch
    SV *fd
    sve_events events
    SV *cb
    SV *opaque
  CODE:
    PERL_UNUSED_VAR(self); PERL_UNUSED_VAR(watch); PERL_UNUSED_VAR(fd);
    sve_run_callback(aTHX_ sve_token_watch(aTHX_ cv, cb, "$cb", opaque, SVE_HANDLE), events);

void
_run_handle_callback_helper(watch, fd, events, cb, opaque)
    SV *watch
    SV *fd
    sve_events events
    SV *cb
    SV *opaque
  CODE:
    PERL_UNUSED_VAR(watch); PERL_UNUSED_VAR(fd);
    sve_run_callback(aTHX_ sve_token_watch(aTHX_ cv, cb, "$cb", opaque, SVE_HANDLE), events);

void
_run_timeout_callback(self, timer, cb, opaque)
    SV *self
    SV *timer
    SV *cb
    SV *opaque
  CODE:
    PERL_UNUSED_VAR(self); PERL_UNUSED_VAR(timer);
    sve_run_callback(aTHX_ sve_token_watch(aTHX_ cv, cb, "$cb", opaque, SVE_TIMER), 0);

void
_run_timeout_callback_helper(timer, cb, opaque)
    SV *timer
    SV *cb
    SV *opaque
  CODE:
    PERL_UNUSED_VAR(timer);
    sve_run_callback(aTHX_ sve_token_watch(aTHX_ cv, cb, "$cb", opaque, SVE_TIMER), 0);

void
_free_callback_opaque(self, ff, opaque)
    SV *self
    SV *ff
    SV *opaque
  CODE:
    PERL_UNUSED_VAR(self);
    sve_token_watch(aTHX_ cv, ff, "$ff", opaque, -1);

void
_free_callback_opaque_helper(ff, opaque)
    SV *ff
    SV *opaque
  CODE:
    sve_token_watch(aTHX_ cv, ff, "$ff", opaque, -1);

bool
_is_wake(token)
    SV *token
  CODE:
    RETVAL = sve_token_is_wake(aTHX_ token);
  OUTPUT:
    RETVAL

int
_poll_fd(fd, events)
    int fd
    int events
  CODE:
    RETVAL = sve_readiness(fd, events);
  OUTPUT:
    RETVAL

#ifdef SVE_HAVE_EV

bool
_serve_by_ev(self, loop, hold)
    SV *self
    SV *loop
    bool hold
  CODE:
    RETVAL = sve_is_owner(NULL) && sve_registered() == SVE_OBJECT && SvROK(self)
        && SvRV(self) == SvRV(sve_perl_loop_object(aTHX));
    if (RETVAL && !sve_perl_loop_has_handed_over())
        sve_perl_loop_hand_over(sve_ev_loop_begin(aTHX_ loop, hold));
  OUTPUT:
    RETVAL

#endif

#ifdef SVE_HAVE_GLIB

SV *
_watch_by_glib(context, fd, read, write, code)
    SV *context
    int fd
    bool read
    bool write
    sve_code code
  CODE:
    RETVAL = sve_glib_watch(aTHX_ context, fd, read, write, code);
  OUTPUT:
    RETVAL

SV *
_timer_by_glib(context, ms, code)
    SV *context
    UV ms
    sve_code code
  CODE:
    RETVAL = sve_glib_timer(aTHX_ context, ms, code);
  OUTPUT:
    RETVAL

#endif

void
_warn(prefix, error)
    SV *prefix
    SV *error
  CODE:
    sve_warn_now(aTHX_ prefix, error);

void
_copy(...)
  PPCODE:
    for (int i = 0; i < items; i++)
        ST(i) = sv_mortalcopy(ST(i));
    XSRETURN(items);

MODULE = Sys::Virt::Event  PACKAGE = Sys::Virt::EventImpl

void
add_handle(self, ...)
    SV *self
  ALIAS:
    update_handle = 1
    remove_handle = 2
    add_timeout = 3
    update_timeout = 4
    remove_timeout = 5
  CODE:
    PERL_UNUSED_VAR(ix);
    sve_abstract(aTHX_ cv, self);
