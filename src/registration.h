/* Which loop libvirt has in this process, and who owns it. */
#ifndef SVE_REGISTRATION_H
#define SVE_REGISTRATION_H

#include "sve_perl.h"

#pragma GCC visibility push(hidden)

typedef enum {
    SVE_NONE,
    SVE_OBJECT,
    SVE_DEFAULT,
} sve_registration;

sve_registration sve_registered(void);

/* The interpreter that registered, NULL before and after its life. */
PerlInterpreter *sve_owner(void);

/* sve_loop's is_owner for every back-end: the interpreter and the thread must both be the
 * owner's, as a clone is made, and a joined thread's interpreter ended, on other's threads. */
bool sve_is_owner(sve_loop *loop);

/* Throw unless a loop is registered and this interpreter owns it. */
void sve_must_be_registered(pTHX_ CV *cv);
void sve_must_be_owner(pTHX_ CV *cv);

/* Returns the object that has been registered. */
SV *sve_register(pTHX_ CV *cv, SV *impl, sve_wake_policy wake);
void sve_register_default(pTHX_ CV *cv);

/* In a child process: sve_bridge_adopt and sve_bridge_forget. */
void sve_adopt(pTHX_ CV *cv);
void sve_forget(pTHX_ CV *cv);

#pragma GCC visibility pop

#endif
