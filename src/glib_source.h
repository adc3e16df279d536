/* Sources of GLib's for contexts that are not its default one, to which Perl's Glib cannot attach any. Built where
 * GLib's headers are found. */
#ifndef SVE_GLIB_SOURCE_H
#define SVE_GLIB_SOURCE_H

#include "sve_perl.h"

#pragma GCC visibility push(hidden)

/* Both call code from the context, a Glib::MainContext. The result is the source's only owner: where it goes, so does
 * the source. */

/* As often as the fd is ready, has an error or is hung up; also in a run inside a call. */
SV *sve_glib_watch(pTHX_ SV *context, int fd, bool read, bool write, SV *code);

/* Once. */
SV *sve_glib_timer(pTHX_ SV *context, UV ms, SV *code);

#pragma GCC visibility pop

#endif
