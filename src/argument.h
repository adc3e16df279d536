/* What Perl programs pass in, checked. Each function returns a good value or throws,
 * naming the XSUB (cv) and the culprit from the caller's perspective. */
#ifndef SVE_ARGUMENT_H
#define SVE_ARGUMENT_H

#include "sve_perl.h"

#pragma GCC visibility push(hidden)

/* Throws "Cannot add handle: <reason>", the verb and noun made of the XSUB's name. */
void sve_cannot(pTHX_ CV *cv, const char *format, ...)
    __attribute__((noreturn, format(printf, pTHX_2, pTHX_3)));

int sve_arg_id(pTHX_ CV *cv, SV *arg);
int sve_arg_fd(pTHX_ CV *cv, SV *arg);
int sve_arg_events_checked(pTHX_ CV *cv, SV *arg);
int sve_arg_ms(pTHX_ CV *cv, SV *arg);
SV *sve_arg_code(pTHX_ CV *cv, SV *arg);

/* Every dispatch passes an event mask, nearly always a plain integer. */
static inline int sve_arg_events(pTHX_ CV *cv, SV *arg)
{
    if ((SvFLAGS(arg) & (SVf_IOK | SVs_GMG)) == SVf_IOK && !(SvUVX(arg) & ~(UV)15))
        return (int)SvUVX(arg);
    return sve_arg_events_checked(aTHX_ cv, arg);
}

/* Seconds, negative when the argument is undef: no limit. */
NV sve_arg_seconds(pTHX_ CV *cv, SV *arg);

/* The wrong number of arguments: as xsubpp says it, unless an object was asked for
 * a method that its class lacks and the function of the same name was found. */
void sve_usage(pTHX_ CV *cv, SV **args, I32 items, const char *params) __attribute__((noreturn));

/* One of the six methods that a subclass must provide. */
void sve_abstract(pTHX_ CV *cv, SV *self) __attribute__((noreturn));

/* Whether it is an object that could be registered, as far as its class goes. */
bool sve_is_impl(pTHX_ SV *sv);

#pragma GCC visibility pop

#endif
