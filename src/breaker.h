/* A limit to how long libvirt waits for a server. Pure C.
 *
 * libvirt waits for an answer as long as it takes, in the owner's thread. While it may, a thread of ours looks at the
 * time; when that is over it hangs up on the server, and the call fails as if the server had gone. */
#ifndef SVE_BREAKER_H
#define SVE_BREAKER_H

#include <stdbool.h>

#pragma GCC visibility push(hidden)

/* From now on, for at most so many seconds, the handles of sve_bridge_hang_up. One at a time: false if
 * there is one already, or no thread is to be had. */
bool sve_breaker_start(double seconds, int first, int last);

/* Calls it off. True if it has hung up. */
bool sve_breaker_stop(void);

#pragma GCC visibility pop

#endif
