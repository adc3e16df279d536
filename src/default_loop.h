/* The back-end that is libvirt's own loop (GLib's default context). libvirt enters it
 * directly; what comes through ours are the watches of our public functions. */
#ifndef SVE_DEFAULT_LOOP_H
#define SVE_DEFAULT_LOOP_H

#include "sve_perl.h"

#pragma GCC visibility push(hidden)

void sve_default_loop_serve(void);

/* One iteration of at most so many seconds; negative: until something happens. */
void sve_default_loop_run(pTHX_ CV *cv, NV max_seconds);

#pragma GCC visibility pop

#endif
