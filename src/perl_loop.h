/* The back-end that is a Perl object: the only caller of its methods. */
#ifndef SVE_PERL_LOOP_H
#define SVE_PERL_LOOP_H

#include "sve_perl.h"

#pragma GCC visibility push(hidden)

/* The names of those of the six methods that the object's class has no code of its own for. */
SV *sve_perl_loop_missing(pTHX_ SV *impl);

/* When the object gets a wake watch, unless its registration says otherwise: always, if its
 * class is one of ours, which tell the wake watch from others and do not run on for its sake. */
sve_wake_policy sve_perl_loop_wake(pTHX_ SV *impl);

/* The object serves libvirt from now on. */
void sve_perl_loop_serve(pTHX_ SV *impl, sve_wake_policy wake);

/* The object, asked for its first watch, lets a loop of C serve. Whether it has done so. */
void sve_perl_loop_hand_over(sve_loop *to);
bool sve_perl_loop_has_handed_over(void);

/* The interpreter that the object lived in is going. */
void sve_perl_loop_forget(void);

SV *sve_perl_loop_object(pTHX);
const char *sve_perl_loop_class(pTHX);

#pragma GCC visibility pop

#endif
