/* $cb, $opaque and $ff as Perl sees them: references to one blessed object per watch
 * that holds, by magic no Perl code can forge, a reference to the record. */
#ifndef SVE_TOKEN_H
#define SVE_TOKEN_H

#include "sve_perl.h"

#pragma GCC visibility push(hidden)

/* A new reference to a new token. */
SV *sve_token_new(pTHX_ sve_watch *watch);

/* The watch of two tokens that must be of one watch, and of this kind unless it is
 * negative; throws if they are not. NULL: a copy made by an ithread's clone, for which nothing is done. */
sve_watch *sve_token_watch(pTHX_ CV *cv, SV *first, const char *first_name,
                           SV *opaque, int kind);

bool sve_is_token(SV *sv);
bool sve_token_is_wake(pTHX_ SV *token);

#pragma GCC visibility pop

#endif
