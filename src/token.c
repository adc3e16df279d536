#include "token.h"
#include "argument.h"

static int forget_watch(pTHX_ SV *sv, MAGIC *magic)
{
    PERL_UNUSED_CONTEXT;
    PERL_UNUSED_ARG(sv);
    if (magic->mg_ptr)
        sve_watch_unref((sve_watch *)magic->mg_ptr);
    magic->mg_ptr = NULL;
    return 0;
}

/* The value of a `local` is no token. */
static int keep_to_itself(pTHX_ SV *sv, MAGIC *magic)
{
    PERL_UNUSED_CONTEXT;
    PERL_UNUSED_ARG(sv);
    PERL_UNUSED_ARG(magic);
    return 0;
}

static const MGVTBL token_vtbl = { .svt_free = forget_watch, .svt_dup = SVE_DUP, .svt_local = keep_to_itself };

SV *sve_token_new(pTHX_ sve_watch *watch)
{
    SV *token = newSV_type(SVt_PVMG);
    MAGIC *magic;

    sv_setiv(token, watch->id);
    magic = sv_magicext(token, NULL, PERL_MAGIC_ext, &token_vtbl, (char *)sve_watch_ref(watch), 0);
    magic->mg_flags |= MGf_DUP | MGf_LOCAL;
    SV *reference = sv_bless(newRV_noinc(token), gv_stashpvs("Sys::Virt::Event::Token", GV_ADD));
    SvREADONLY_on(token);
    return reference;
}

static inline MAGIC *magic_of(SV *sv)
{
    if (!SvROK(sv) || SvTYPE(SvRV(sv)) < SVt_PVMG)
        return NULL;
    MAGIC *magic = SvMAGIC(SvRV(sv));
    while (magic && magic->mg_virtual != &token_vtbl)
        magic = magic->mg_moremagic;
    return magic;
}

bool sve_is_token(SV *sv) { return magic_of(sv); }

static sve_watch *must_be_token(pTHX_ CV *cv, SV *sv, const char *name)
{
    SvGETMAGIC(sv);
    MAGIC *magic = magic_of(sv);
    if (!magic)
        sve_cannot(aTHX_ cv, "%s is not what add_handle or add_timeout was given", name);
    return (sve_watch *)magic->mg_ptr;
}

sve_watch *sve_token_watch(pTHX_ CV *cv, SV *first, const char *first_name,
                           SV *opaque, int kind)
{
    sve_watch *watch = must_be_token(aTHX_ cv, first, first_name);

    if (!(SvROK(opaque) && SvRV(opaque) == SvRV(first))
        && watch != must_be_token(aTHX_ cv, opaque, "$opaque"))
        sve_cannot(aTHX_ cv, "%s and $opaque belong to different watches", first_name);
    if (watch && kind >= 0 && (int)watch->kind != kind)
        sve_cannot(aTHX_ cv, "%s belongs to a %s", first_name,
                   watch->kind == SVE_HANDLE ? "handle" : "timeout");
    return watch;
}

bool sve_token_is_wake(pTHX_ SV *token)
{
    PERL_UNUSED_CONTEXT;
    MAGIC *magic = magic_of(token);
    return magic && magic->mg_ptr && sve_bridge_is_wake((sve_watch *)magic->mg_ptr);
}
