/* errno and libvirt's last error of this thread, put aside while foreign code runs. Pure C. */
#ifndef SVE_ERRORS_H
#define SVE_ERRORS_H

#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>

typedef struct {
    int number;
    virErrorPtr last;                    /* the thread's own error object; NULL: there was no error */
    virError error;
} sve_errors;

void sve_errors_put_aside(sve_errors *errors);
void sve_errors_put_back(sve_errors *errors);

#endif
