/* What is registered now, and waiting until nothing is. */
#ifndef SVE_REPORT_H
#define SVE_REPORT_H

#include "sve_perl.h"

#pragma GCC visibility push(hidden)

/* An array of hashes, one a watch or timer, by id; lives as long as the caller's temporaries. */
AV *sve_watches(pTHX_ CV *cv);

/* Nothing is registered and no free function is outstanding. */
bool sve_is_idle(pTHX_ CV *cv);

/* Runs the loop until that is so, at most so many seconds (negative: without limit). */
bool sve_drain(pTHX_ CV *cv, NV seconds);

/* The registered object, "default" or undef. */
SV *sve_registered_loop(pTHX);

#pragma GCC visibility pop

#endif
