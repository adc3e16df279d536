/* errno and libvirt's last error of this thread, put aside while foreign code runs. Pure C. */
#ifndef SVE_ERRORS_H
#define SVE_ERRORS_H

#include <errno.h>
#include <string.h>
#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>

typedef struct {
    int number;
    virErrorPtr last;                    /* the thread's own error object; NULL: there was no error */
    virError error;
} sve_errors;

/* libvirt offers no public function to set an error, but virGetLastError returns the
 * thread's own object. So its content is moved out and in again, allocating nothing. */

static inline void sve_errors_put_aside(sve_errors *errors)
{
    errors->number = errno;
    errors->last = virGetLastError();
    if (errors->last) {
        errors->error = *errors->last;
        memset(errors->last, 0, sizeof *errors->last);
    }
}

static inline void sve_errors_put_back(sve_errors *errors)
{
    if (virGetLastErrorCode())
        virResetLastError();
    if (errors->last)
        *errors->last = errors->error;
    errno = errors->number;
}

#endif
