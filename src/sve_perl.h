/* First include of every unit that knows Perl. */
#ifndef SVE_PERL_H
#define SVE_PERL_H

#define PERL_NO_GET_CONTEXT
#include <EXTERN.h>
#include <perl.h>
#include <XSUB.h>

#include "bridge.h"

#ifndef G_LIST
#define G_LIST G_ARRAY
#endif

/* Magic's svt_dup: a clone belongs to an interpreter that does not own the loop, and stands for nothing. */
#ifdef USE_ITHREADS
static inline int sve_stand_for_nothing(pTHX_ MAGIC *magic, CLONE_PARAMS *params)
{
    PERL_UNUSED_CONTEXT;
    PERL_UNUSED_ARG(params);
    magic->mg_ptr = NULL;
    return 0;
}
#define SVE_DUP sve_stand_for_nothing
#else
#define SVE_DUP NULL
#endif

#endif
