/* The back-end that is EV's loop: libvirt's watches are libev's, with nothing of Perl between them. Built where EV
 * is found, and used when a loop object says so. */
#ifndef SVE_EV_LOOP_H
#define SVE_EV_LOOP_H

#include "sve_perl.h"

#pragma GCC visibility push(hidden)

/* What serves in place of the object that runs on that loop, an EV::Loop; throws where EV's C interface is not the
 * one that this was built for. */
sve_loop *sve_ev_loop_begin(pTHX_ SV *loop, bool hold);

/* It serves no more; nothing is attached to it. */
void sve_ev_loop_end(pTHX);

/* The interpreter whose loop it is is going; what is attached stays as it is, and does nothing. */
void sve_ev_loop_forget(void);

#pragma GCC visibility pop

#endif
