#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "mailbox.h"

#include <fcntl.h>
#include <unistd.h>

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

bool sve_make_pipe(int fds[2])
{
#ifdef __linux__
    return pipe2(fds, O_CLOEXEC | O_NONBLOCK) == 0;
#else
    if (pipe(fds) < 0)
        return false;
    for (int i = 0; i < 2; i++) {
        fcntl(fds[i], F_SETFD, FD_CLOEXEC);
        fcntl(fds[i], F_SETFL, O_NONBLOCK);
    }
    return true;
#endif
}

static bool make_pipe(sve_mailbox *box, int fds[2])
{
    return sve_make_pipe(fds) && fstat(fds[0], &box->read_end) == 0 && fstat(fds[1], &box->write_end) == 0;
}

/* A program may close all fds, as daemons do, and its next files take their numbers; libvirt does so itself in the
 * children that it forks. An eventfd could not be told from others: they all are one inode. */
static bool is_still(int fd, const struct stat *end)
{
    struct stat now;
    return fstat(fd, &now) == 0 && now.st_dev == end->st_dev && now.st_ino == end->st_ino;
}

static bool has_read_end(const sve_mailbox *box) { return box->has_fd && is_still(box->read_fd, &box->read_end); }
static bool has_write_end(const sve_mailbox *box) { return box->has_fd && is_still(box->write_fd, &box->write_end); }

int sve_mailbox_fd(sve_mailbox *box)
{
    if (!box->has_fd) {
        int fds[2];
        if (!make_pipe(box, fds))
            return -1;
        box->read_fd = fds[0];
        box->write_fd = fds[1];
        box->has_fd = true;
    }
    return box->read_fd;
}

void sve_mailbox_ring(sve_mailbox *box)
{
    /* A full pipe is readable already, so a failed write loses nothing; one that nobody reads would raise SIGPIPE. */
    if (has_read_end(box) && has_write_end(box) && write(box->write_fd, "", 1) < 0)
        return;
}

bool sve_mailbox_silence(sve_mailbox *box)
{
    char sink[256];
    bool reads = has_read_end(box), writes = has_write_end(box);

    /* One end alone is never silent: it hangs up for good. */
    if (reads && writes) {
        while (read(box->read_fd, sink, sizeof sink) == sizeof sink)
            continue;
        return true;
    }
    if (reads)
        close(box->read_fd);
    if (writes)
        close(box->write_fd);
    box->has_fd = false;
    return false;
}

void sve_replace_fd(int fd, int by)
{
#ifdef __linux__
    bool replaced = dup3(by, fd, O_CLOEXEC) >= 0;
#else
    bool replaced = dup2(by, fd) >= 0 && fcntl(fd, F_SETFD, FD_CLOEXEC) == 0;
#endif
    if (!replaced)
        close(fd);
    close(by);
}

void sve_mailbox_renew_fd(sve_mailbox *box)
{
    int fds[2];

    if (!has_read_end(box) || !has_write_end(box))
        return;
    if (!make_pipe(box, fds)) {
        close(box->write_fd);            /* the next bell of the parent is the occasion for another try */
        return;
    }
    sve_replace_fd(box->read_fd, fds[0]);
    sve_replace_fd(box->write_fd, fds[1]);
}
