#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "mailbox.h"

#include <fcntl.h>
#include <stdint.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/eventfd.h>
#endif

bool sve_mailbox_post(sve_mailbox *box, sve_watch *watch, unsigned call)
{
    bool was_empty = !box->head;

    watch->pending |= call;
    if (watch->posted)
        return false;
    watch->posted = true;
    watch->next_posted = NULL;
    if (was_empty)
        box->head = sve_watch_ref(watch);
    else
        box->tail->next_posted = sve_watch_ref(watch);
    box->tail = watch;
    atomic_fetch_add_explicit(&box->count, 1, memory_order_release);
    return was_empty;
}

sve_watch *sve_mailbox_take(sve_mailbox *box, unsigned *calls)
{
    sve_watch *watch = box->head;

    if (!watch)
        return NULL;
    box->head = watch->next_posted;
    atomic_fetch_sub_explicit(&box->count, 1, memory_order_release);
    *calls = watch->pending;
    watch->pending = 0;
    watch->posted = false;
    return watch;
}

bool sve_mailbox_is_empty(const sve_mailbox *box)
{
    return atomic_load_explicit(&box->count, memory_order_acquire) == 0;
}

static int make_fd(int fds[2])
{
#ifdef __linux__
    return fds[0] = fds[1] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
#else
    if (pipe(fds) < 0)
        return -1;
    for (int i = 0; i < 2; i++) {
        fcntl(fds[i], F_SETFD, FD_CLOEXEC);
        fcntl(fds[i], F_SETFL, O_NONBLOCK);
    }
    return fds[0];
#endif
}

int sve_mailbox_fd(sve_mailbox *box)
{
    if (!box->has_fd) {
        int fds[2];
        if (make_fd(fds) < 0)
            return -1;
        box->read_fd = fds[0];
        box->write_fd = fds[1];
        box->has_fd = true;
    }
    return box->read_fd;
}

void sve_mailbox_ring(sve_mailbox *box)
{
    /* A full pipe or counter is readable already, so a failed write loses nothing. */
    uint64_t one = 1;
    if (box->has_fd && write(box->write_fd, &one, sizeof one) < 0)
        return;
}

void sve_mailbox_silence(sve_mailbox *box)
{
    char sink[256];
    while (box->has_fd && read(box->read_fd, sink, sizeof sink) == sizeof sink)
        continue;
}

static void replace_fd(int fd, int by)
{
    dup2(by, fd);
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    close(by);
}

void sve_mailbox_renew_fd(sve_mailbox *box)
{
    int fds[2];
    bool two = box->read_fd != box->write_fd;

    if (!box->has_fd || make_fd(fds) < 0)
        return;
    replace_fd(box->read_fd, fds[0]);
    if (two)
        replace_fd(box->write_fd, fds[1]);
}
