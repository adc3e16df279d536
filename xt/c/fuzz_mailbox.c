/* The mailbox against an array, under libFuzzer: each byte of the input is one step. */
#include "mailbox.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { WATCHES = 16 };

typedef struct {
    sve_watch *watches[WATCHES];
    unsigned pending[WATCHES];           /* 0: it is not queued */
    int queue[WATCHES], queued;
    bool has_fd, reader, writer;         /* made, and which of its ends are open */
    bool rung;
} model;

#define check(what) ((what) ? (void)0 : abort())

static void post(sve_mailbox *box, model *all, int which, unsigned call)
{
    check(sve_mailbox_post(box, all->watches[which], call) == (all->queued == 0));
    if (!all->pending[which])
        all->queue[all->queued++] = which;
    all->pending[which] |= call;
}

static void take(sve_mailbox *box, model *all)
{
    unsigned calls;
    sve_watch *watch = sve_mailbox_take(box, &calls);
    if (!all->queued) {
        check(!watch);
        return;
    }
    int which = all->queue[0];
    for (int i = 1; i < all->queued; i++)
        all->queue[i - 1] = all->queue[i];
    all->queued--;
    check(watch == all->watches[which] && calls == all->pending[which]);
    all->pending[which] = 0;
    sve_watch_unref(watch);
}

static bool is_readable(int fd)
{
    struct pollfd poll_fd = { .fd = fd, .events = POLLIN };
    check(poll(&poll_fd, 1, 0) >= 0);
    return poll_fd.revents & POLLIN;
}

static void use_fd(sve_mailbox *box, model *all)
{
    int fd = sve_mailbox_fd(box);
    check(fd >= 0);
    if (!all->has_fd)
        all->has_fd = all->reader = all->writer = true;
    if (all->reader)
        check(is_readable(fd) == all->rung);
}

static void ring(sve_mailbox *box, model *all)
{
    sve_mailbox_ring(box);
    if (all->reader && all->writer)
        all->rung = true;
}

/* The program may close what it does not know, and the number is another file's next: here of a pipe with one byte in
 * it, which nobody may write to, read from, or close. */
static int stranger[2];

static void lose(int fd, bool *is_open, int end)
{
    if (*is_open)
        check(dup2(stranger[end], fd) == fd);
    *is_open = false;
}

static bool is_open(int fd) { return fcntl(fd, F_GETFD) >= 0; }

static void check_stranger(void)
{
    int bytes;
    check(ioctl(stranger[0], FIONREAD, &bytes) == 0 && bytes == 1);
}

static void silence(sve_mailbox *box, model *all)
{
    check(sve_mailbox_silence(box) == all->reader);
    all->rung = false;
    if (all->reader || !all->has_fd)
        return;
    check(is_open(box->read_fd) && is_open(box->write_fd) == !all->writer);
    close(box->read_fd);
    if (!all->writer)
        close(box->write_fd);
    all->has_fd = all->writer = false;
}

static void step_of_fd(sve_mailbox *box, model *all, unsigned which)
{
    switch (which) {
    case 0:
    case 1: use_fd(box, all); break;
    case 2:
    case 3: ring(box, all); break;
    case 4:
    case 5: silence(box, all); break;
    /* A reader without its writer is no bell any more, so that is not tried. */
    case 7:
        lose(box->write_fd, &all->writer, 1);
        /* fall through */
    case 6:
        lose(box->read_fd, &all->reader, 0);
        all->rung = false;
    }
    check_stranger();
}

static void check_mailbox(const sve_mailbox *box, const model *all)
{
    check(box->count == (size_t)all->queued);
    check(sve_mailbox_is_empty(box) == (all->queued == 0));
    for (int i = 0; i < WATCHES; i++) {
        const sve_watch *watch = all->watches[i];
        check(watch->pending == all->pending[i] && watch->posted == (all->pending[i] != 0));
        check(watch->refs == 1 + watch->posted);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const unsigned calls[] = { SVE_ADD, SVE_UPDATE, SVE_REMOVE };
    sve_mailbox box = { 0 };
    model all = { 0 };

    if (!stranger[1])
        check(signal(SIGPIPE, SIG_IGN) != SIG_ERR && pipe(stranger) == 0 && write(stranger[1], "", 1) == 1);
    for (int i = 0; i < WATCHES; i++)
        check(all.watches[i] = sve_watch_new(SVE_TIMER, -1, 0, NULL, NULL));
    for (size_t i = 0; i < size; i++) {
        unsigned kind = data[i] >> 4;
        if (kind < 9)
            post(&box, &all, data[i] & 15, calls[kind % 3]);
        else if (kind < 15)
            take(&box, &all);
        else
            step_of_fd(&box, &all, data[i] & 7);
        check_mailbox(&box, &all);
    }
    while (all.queued)
        take(&box, &all);
    check_mailbox(&box, &all);
    for (int i = 0; i < WATCHES; i++)
        sve_watch_unref(all.watches[i]);
    if (all.has_fd) {
        close(box.read_fd);
        close(box.write_fd);
    }
    return 0;
}
