#include "readiness.h"

#include <poll.h>
#include <libvirt/libvirt.h>

int sve_readiness(int fd, int events)
{
    struct pollfd asked = {
        .fd = fd,
        .events = (short)((events & VIR_EVENT_HANDLE_READABLE ? POLLIN : 0)
                          | (events & VIR_EVENT_HANDLE_WRITABLE ? POLLOUT : 0)),
    };

    if (poll(&asked, 1, 0) <= 0)
        return 0;
    return (asked.revents & POLLIN ? VIR_EVENT_HANDLE_READABLE : 0)
        | (asked.revents & POLLOUT ? VIR_EVENT_HANDLE_WRITABLE : 0)
        | (asked.revents & POLLERR ? VIR_EVENT_HANDLE_ERROR : 0)
        | (asked.revents & POLLHUP ? VIR_EVENT_HANDLE_HANGUP : 0)
        | (asked.revents & POLLNVAL ? VIR_EVENT_HANDLE_ERROR | SVE_CLOSED : 0);
}
