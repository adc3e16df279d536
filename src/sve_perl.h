/* First include of every unit that knows Perl. */
#ifndef SVE_PERL_H
#define SVE_PERL_H

#define PERL_NO_GET_CONTEXT
#include <EXTERN.h>
#include <perl.h>
#include <XSUB.h>

#include "bridge.h"

#ifndef G_LIST
#define G_LIST G_ARRAY
#endif

#endif
