/* Signals that the kernel gives to one of libvirt's threads. */
#ifndef SVE_SIGNALS_H
#define SVE_SIGNALS_H

#include "sve_perl.h"

#pragma GCC visibility push(hidden)

/* From now on such a signal goes to the calling thread, if %SIG has a handler for it. */
void sve_signals_come_here(void);

/* The thread ends: such signals are lost. */
void sve_signals_end(void);

#pragma GCC visibility pop

#endif
