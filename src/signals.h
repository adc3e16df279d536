/* What stands between the kernel and perl's own handler of the signals in %SIG. */
#ifndef SVE_SIGNALS_H
#define SVE_SIGNALS_H

#include "sve_perl.h"

#pragma GCC visibility push(hidden)

/* From now on a signal that comes to a thread which is not Perl's goes to the calling one. */
void sve_signals_come_here(void);

/* The thread ends: such signals are lost. */
void sve_signals_end(void);

#pragma GCC visibility pop

#endif
