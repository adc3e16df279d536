/* What an fd is ready for just now. Pure C. */
#ifndef SVE_READINESS_H
#define SVE_READINESS_H

#pragma GCC visibility push(hidden)

enum { SVE_CLOSED = 16 };                /* with VIR_EVENT_HANDLE_ERROR: there is no such fd */

/* Of these events, and errors and hang-ups; in bits of libvirt's. It does not wait. */
int sve_readiness(int fd, int events);

#pragma GCC visibility pop

#endif
