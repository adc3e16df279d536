#include "errors.h"

#include <errno.h>
#include <string.h>

/* libvirt offers no public function to set an error, but virGetLastError returns the
 * thread's own object. So its content is moved out and in again, allocating nothing. */

void sve_errors_put_aside(sve_errors *errors)
{
    errors->number = errno;
    errors->last = virGetLastError();
    if (errors->last) {
        errors->error = *errors->last;
        memset(errors->last, 0, sizeof *errors->last);
    }
}

void sve_errors_put_back(sve_errors *errors)
{
    if (virGetLastErrorCode())
        virResetLastError();
    if (errors->last)
        *errors->last = errors->error;
    errno = errors->number;
}
