#include "glib_source.h"
#include "callback.h"

#include <pthread.h>
#include <glib-unix.h>

typedef struct {
    SV *code;                            /* the object's that Perl has of the source */
    PerlInterpreter *perl;
    pthread_t thread;
} call;

/* A context can be run by other threads than that of its interpreter. */
static bool may_enter(const call *call)
{
    dTHXa(call->perl);
    return PERL_GET_CONTEXT == call->perl && pthread_equal(pthread_self(), call->thread) && !PL_dirty;
}

/* To where exceptions of Perl's Glib go. */
static void report(pTHX_ SV *error)
{
    sve_frame frame;

    sve_enter(aTHX_ &frame, false);
    error = sve_eval(aTHX_ MUTABLE_SV(get_cv("Sys::Virt::Event::Glib::_report", 0)), G_VOID, &error, 1, NULL);
    if (error)
        sve_warn(aTHX_ error, "");
    sve_leave(aTHX_ &frame);
}

/* Nothing may jump over GLib. */
static gboolean run(const call *call, gboolean then)
{
    dTHXa(call->perl);
    sve_frame frame;

    if (!may_enter(call))
        return G_SOURCE_CONTINUE;        /* the owner's turn comes */
    sve_enter(aTHX_ &frame, false);
    SV *error = sve_eval(aTHX_ call->code, G_VOID, NULL, 0, NULL);
    if (error)
        report(aTHX_ error);
    sve_leave(aTHX_ &frame);
    return then;
}

static gboolean on_ready(gint fd, GIOCondition conditions, gpointer data)
{
    (void)fd, (void)conditions;
    return run(data, G_SOURCE_CONTINUE);
}

static gboolean on_due(gpointer data) { return run(data, G_SOURCE_REMOVE); }

/* What G_SOURCE_FUNC of newer GLibs is. */
#define AS_CALLBACK(function) ((GSourceFunc)(void (*)(void))(function))

static int end_source(pTHX_ SV *sv, MAGIC *magic)
{
    GSource *source = (GSource *)magic->mg_ptr;

    PERL_UNUSED_CONTEXT;
    PERL_UNUSED_ARG(sv);
    magic->mg_ptr = NULL;
    if (source) {
        g_source_destroy(source);
        g_source_unref(source);
    }
    return 0;
}

static const MGVTBL source_vtbl = { .svt_free = end_source, .svt_dup = SVE_DUP };

static SV *start(pTHX_ GSource *source, SV *context, GSourceFunc function, SV *code)
{
    call *call = malloc(sizeof *call);
    SV *owner = newSV_type(SVt_PVMG);

    if (!call)
        croak("Out of memory");
    code = sv_2mortal(newSVsv(code));
    MAGIC *magic = sv_magicext(owner, code, PERL_MAGIC_ext, &source_vtbl, (char *)source, 0);
    magic->mg_flags |= MGf_DUP;
    call->code = code;
    call->perl = PERL_GET_THX;    /* aTHX is nothing in a perl without ithreads */
    call->thread = pthread_self();
    g_source_set_callback(source, function, call, free);
    g_source_attach(source, INT2PTR(GMainContext *, SvIV(SvRV(context))));
    return newRV_noinc(owner);
}

SV *sve_glib_watch(pTHX_ SV *context, int fd, bool read, bool write, SV *code)
{
    GIOCondition conditions = G_IO_ERR | G_IO_HUP | G_IO_NVAL;

    if (read)
        conditions |= G_IO_IN;
    if (write)
        conditions |= G_IO_OUT;
    GSource *source = g_unix_fd_source_new(fd, conditions);
    g_source_set_can_recurse(source, TRUE);
    return start(aTHX_ source, context, AS_CALLBACK(on_ready), code);
}

SV *sve_glib_timer(pTHX_ SV *context, UV ms, SV *code)
{
    return start(aTHX_ g_timeout_source_new((guint)ms), context, on_due, code);
}
