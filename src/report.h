/* What is registered now, for people who debug. */
#ifndef SVE_REPORT_H
#define SVE_REPORT_H

#include "sve_perl.h"

#pragma GCC visibility push(hidden)

/* An array of hashes, one a watch or timer, by id; lives as long as the caller's temporaries. */
AV *sve_watches(pTHX_ CV *cv);

/* Nothing is registered and no free function is outstanding. */
bool sve_is_idle(pTHX_ CV *cv);

/* The registered object, "default" or undef. */
SV *sve_registered_loop(pTHX);

#pragma GCC visibility pop

#endif
