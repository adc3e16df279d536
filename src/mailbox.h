/* Calls from threads that do not own the loop: a queue of the watches they
 * touched, and an fd that wakes the owner.
 *
 * A watch is queued once however many calls are made for it: its `pending`
 * bits and its `value` say what the calls come to, so the queue needs no memory
 * and cannot outgrow the watches. That keeps the order of calls per id, which is
 * all that libvirt relies on.
 *
 * Pure C. The queue is touched with the core lock held, the fd with the bell's, see
 * bridge.c; sve_mailbox_is_empty may be called without.
 */
#ifndef SVE_MAILBOX_H
#define SVE_MAILBOX_H

#include "watch.h"

#include <sys/stat.h>

#pragma GCC visibility push(hidden)

enum {
    SVE_ADD = 1,
    SVE_UPDATE = 2,
    SVE_REMOVE = 4,
    SVE_CUT = 8,
};

typedef struct {
    sve_watch *head, *tail;
    atomic_size_t count;
    bool has_fd;
    int read_fd, write_fd;               /* a pipe's, */
    struct stat read_end, write_end;     /* and what is known of them */
} sve_mailbox;

/* Queues the watch, with a reference; true when the mailbox was empty before,
 * which is when the owner wants waking. */
bool sve_mailbox_post(sve_mailbox *box, sve_watch *watch, unsigned call);

/* The watch that was queued first, with the reference, or NULL; *calls is what to
 * carry out, and the watch can be queued anew from here on. */
sve_watch *sve_mailbox_take(sve_mailbox *box, unsigned *calls);

bool sve_mailbox_is_empty(const sve_mailbox *box);

/* The fd that becomes readable; made by the first call, -1 with errno where it
 * cannot be had. */
int sve_mailbox_fd(sve_mailbox *box);
void sve_mailbox_ring(sve_mailbox *box);
/* False if the fd is ours no longer: then the next sve_mailbox_fd makes another. */
bool sve_mailbox_silence(sve_mailbox *box);

/* In a child: the number stays, for the loop knows it, but what it stands for is no longer
 * the parent's. */
void sve_mailbox_renew_fd(sve_mailbox *box);

/* A pipe, close-on-exec and non-blocking. */
bool sve_make_pipe(int fds[2]);

/* The file of `by` takes the number fd, close-on-exec, and leaves its own; fd is closed where that fails. */
void sve_replace_fd(int fd, int by);

#pragma GCC visibility pop

#endif
