#include "argument.h"

#include <limits.h>

/* "_run_handle_callback_helper" reads "run handle callback". */
static SV *words_of(pTHX_ CV *cv)
{
    const char *name = GvNAME(CvGV(cv));

    if (strEQ(name, "watches"))
        name = "list_watches";
    else if (strEQ(name, "is_idle"))
        name = "tell_whether_idle";
    SV *words = sv_2mortal(newSVpv(name + (*name == '_'), 0));
    STRLEN len;
    char *text = SvPV(words, len);
    static const char tail[] = "_helper";

    if (len > sizeof tail - 1 && strEQ(text + len - (sizeof tail - 1), tail))
        SvCUR_set(words, len - (sizeof tail - 1));
    for (char *at = text; at < SvEND(words); at++)
        if (*at == '_')
            *at = ' ';
    return words;
}

void sve_cannot(pTHX_ CV *cv, const char *format, ...)
{
    va_list args;
    SV *reason = sv_2mortal(newSVpvs(""));

    va_start(args, format);
    sv_vcatpvf(reason, format, &args);
    va_end(args);
    Perl_croak(aTHX_ "Cannot %" SVf ": %" SVf, SVfARG(words_of(aTHX_ cv)), SVfARG(reason));
}

/* How to name a value in a message. No overloading is asked. */
static const char *shown(pTHX_ SV *sv)
{
    SV *text = sv_newmortal();

    if (SvROK(sv) && SvOBJECT(SvRV(sv)))
        sv_setpvf(text, "an object of class %s", sv_reftype(SvRV(sv), TRUE));
    else if (SvROK(sv) && isGV_with_GP(SvRV(sv)))
        sv_setsv(text, SvRV(sv));
    else if (SvROK(sv))
        sv_setpvf(text, "a reference to %s", sv_reftype(SvRV(sv), FALSE));
    else if (!SvOK(sv))
        sv_setpvs(text, "undef");
    else if (isGV_with_GP(sv) || looks_like_number(sv))
        sv_setsv(text, sv);
    else
        sv_setpvf(text, "\"%" SVf "\"", SVfARG(sv));
    return SvPV_nolen(text);
}

static bool overloads(pTHX_ SV *ref, const char *operation)
{
    return SvOBJECT(SvRV(ref)) && gv_fetchmeth_pvn(SvSTASH(SvRV(ref)), operation, strlen(operation), 0, 0);
}

/* An object overloaded as a number stands for what that returns. */
static SV *plain(pTHX_ SV *arg)
{
    SV *converted = SvROK(arg) && SvAMAGIC(arg) ? AMG_CALLunary(arg, numer_amg) : NULL;
    return converted ? converted : arg;
}

static NV number(pTHX_ CV *cv, SV *arg, const char *what)
{
    SvGETMAGIC(arg);
    SV *sv = plain(aTHX_ arg);
    if (SvROK(sv) || !SvOK(sv) || isGV_with_GP(sv) || !looks_like_number(sv))
        sve_cannot(aTHX_ cv, "%s %s is not a number", what, shown(aTHX_ arg));
    NV value = SvNV_nomg(sv);
    if (Perl_isnan(value) || Perl_isinf(value))
        sve_cannot(aTHX_ cv, "%s %s is not a finite number", what, shown(aTHX_ arg));
    return value;
}

static int integer(pTHX_ CV *cv, SV *arg, const char *what)
{
    if (SvIOK_notUV(arg) && !SvGMAGICAL(arg) && SvIVX(arg) >= INT_MIN && SvIVX(arg) <= INT_MAX)
        return (int)SvIVX(arg);
    NV value = number(aTHX_ cv, arg, what);
    if (value <= (NV)INT_MIN - 1 || value >= (NV)INT_MAX + 1)
        sve_cannot(aTHX_ cv, "%s %s is out of range", what, shown(aTHX_ arg));
    return (int)value;
}

bool sve_is_impl(pTHX_ SV *sv)
{
    return sv_isobject(sv)
        && (sv_derived_from(sv, "Sys::Virt::Event") || sv_derived_from(sv, "Sys::Virt::EventImpl"));
}

void sve_abstract(pTHX_ CV *cv, SV *self)
{
    Perl_croak(aTHX_ "%s must provide %s",
               sv_isobject(self) ? sv_reftype(SvRV(self), TRUE) : SvPV_nolen(self), GvNAME(CvGV(cv)));
}

/* An abstract method whose arguments happen to be as many as the function's. */
static void refuse_method_call(pTHX_ CV *cv, SV *arg)
{
    if (SvROK(arg) && sve_is_impl(aTHX_ arg))
        sve_abstract(aTHX_ cv, arg);
}

void sve_usage(pTHX_ CV *cv, SV **args, I32 items, const char *params)
{
    static const char *const methods[] = {
        "add_handle", "update_handle", "remove_handle", "add_timeout", "update_timeout", "remove_timeout"
    };

    for (size_t i = 0; items && i < C_ARRAY_LENGTH(methods); i++)
        if (strEQ(GvNAME(CvGV(cv)), methods[i]))
            refuse_method_call(aTHX_ cv, args[0]);
    croak_xs_usage(cv, params);
}

int sve_arg_id(pTHX_ CV *cv, SV *arg)
{
    refuse_method_call(aTHX_ cv, arg);
    return integer(aTHX_ cv, arg, "id");
}

int sve_arg_ms(pTHX_ CV *cv, SV *arg)
{
    refuse_method_call(aTHX_ cv, arg);
    return integer(aTHX_ cv, arg, "interval");
}

int sve_arg_events_checked(pTHX_ CV *cv, SV *arg)
{
    int events = integer(aTHX_ cv, arg, "event mask");
    if (events < 0 || events > 15)
        sve_cannot(aTHX_ cv, "event mask %d is no combination of HANDLE_* constants", events);
    return events;
}

/* The glob or IO object that a handle is, NULL: it is none. */
static SV *glob_or_io(SV *arg)
{
    SV *sv = SvROK(arg) ? SvRV(arg) : arg;
    return SvTYPE(sv) == SVt_PVIO || isGV_with_GP(sv) ? sv : NULL;
}

int sve_arg_fd(pTHX_ CV *cv, SV *arg)
{
    refuse_method_call(aTHX_ cv, arg);
    SvGETMAGIC(arg);
    SV *handle = glob_or_io(arg);
    if (!handle) {
        int fd = integer(aTHX_ cv, arg, "file descriptor");
        if (fd < 0)
            sve_cannot(aTHX_ cv, "file descriptor %d is negative", fd);
        return fd;
    }
    IO *io = SvTYPE(handle) == SVt_PVIO ? (IO *)handle : GvIO((GV *)handle);
    if (io && SvRMAGICAL((SV *)io) && mg_find((SV *)io, PERL_MAGIC_tiedscalar))
        sve_cannot(aTHX_ cv, "handle %s is tied: it has no file descriptor", shown(aTHX_ arg));
    PerlIO *file = io ? IoIFP(io) : NULL;
    if (!file)
        sve_cannot(aTHX_ cv, "handle %s is %s", shown(aTHX_ arg),
                   io != NULL && IoDIRP(io) ? "a directory's" : "closed");
    int fd = PerlIO_fileno(file);
    if (fd < 0)
        sve_cannot(aTHX_ cv, "handle %s has no file descriptor", shown(aTHX_ arg));
    return fd;
}

SV *sve_arg_code(pTHX_ CV *cv, SV *arg)
{
    /* A copy is checked and kept: a tied variable may say something else the next time. */
    SV *code = sv_mortalcopy(arg);

    if (!SvROK(code) || (SvTYPE(SvRV(code)) != SVt_PVCV && !overloads(aTHX_ code, "(&{}")))
        sve_cannot(aTHX_ cv, "callback %s is not a code reference", shown(aTHX_ code));
    return code;
}

NV sve_arg_seconds(pTHX_ CV *cv, SV *arg)
{
    SvGETMAGIC(arg);
    if (!SvOK(arg))
        return -1;
    NV seconds = number(aTHX_ cv, arg, "number of seconds");
    if (seconds < 0)
        sve_cannot(aTHX_ cv, "number of seconds %s is negative", shown(aTHX_ arg));
    return seconds;
}
