/* Measures event loops in plain C; see bench/run, which has a table of what each argument means.
 *
 *   subject default|libev|libev_bare WHAT COUNT[:SECONDS]
 *
 * libev is how a program in C would serve libvirt from its loop and keep all of the contract: a lock for libvirt's
 * threads, the exact bits from poll(2), a timer that starts anew with each update, free functions from a clean stack.
 * libev_bare leaves out the lock and the bits, which libvirt does not always need. watchers is for memory only: what
 * libev itself needs for a watcher.
 */
#include "work.h"

#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ev.h>
#include <libvirt/libvirt.h>

typedef struct watch watch;
struct watch {
    union {
        ev_io io;
        ev_timer timer;
    } ev;
    int id, value, running;
    bool is_handle, removed;
    union {
        virEventHandleCallback handle;
        virEventTimeoutCallback timer;
    } cb;
    void *opaque;
    virFreeCallback ff;
    watch *next;                         /* in its bucket, then among the removed */
};

enum { BUCKETS = 16384 };

static struct ev_loop *loop;
static bool bare;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_t owner;
static watch *buckets[BUCKETS], *removed;
static int last_id;
static ev_prepare free_removed;
static ev_async wake;

static void lock(void)
{
    if (!bare)
        pthread_mutex_lock(&mutex);
}
static void unlock(void)
{
    if (!bare)
        pthread_mutex_unlock(&mutex);
}

/* What another thread has changed is seen in the next iteration. */
static void wake_loop(void)
{
    if (!bare && !pthread_equal(pthread_self(), owner))
        ev_async_send(loop, &wake);
}

static watch **link_of(int id, bool is_handle)
{
    watch **link = &buckets[id & (BUCKETS - 1)];
    while (*link && ((*link)->id != id || (*link)->is_handle != is_handle))
        link = &(*link)->next;
    return link;
}

static int bits_of(int fd, int value, int revents)
{
    int bits = (revents & EV_READ ? VIR_EVENT_HANDLE_READABLE : 0)
        | (revents & EV_WRITE ? VIR_EVENT_HANDLE_WRITABLE : 0);
    if (bare)
        return bits;
    struct pollfd asked = { .fd = fd };
    asked.events = (value & VIR_EVENT_HANDLE_READABLE ? POLLIN : 0)
        | (value & VIR_EVENT_HANDLE_WRITABLE ? POLLOUT : 0);
    if (poll(&asked, 1, 0) <= 0)
        return 0;
    return (asked.revents & POLLIN ? VIR_EVENT_HANDLE_READABLE : 0)
        | (asked.revents & POLLOUT ? VIR_EVENT_HANDLE_WRITABLE : 0)
        | (asked.revents & POLLERR ? VIR_EVENT_HANDLE_ERROR : 0)
        | (asked.revents & POLLHUP ? VIR_EVENT_HANDLE_HANGUP : 0);
}

static void call_back(watch *it, int bits)
{
    it->running++;
    unlock();
    if (it->is_handle)
        it->cb.handle(it->id, it->ev.io.fd, bits, it->opaque);
    else
        it->cb.timer(it->id, it->opaque);
    lock();
    it->running--;
}

static void on_io(EV_P_ ev_io *io, int revents)
{
    watch *it = (watch *)io;
    (void)loop;
    lock();
    int bits = it->running ? 0 : bits_of(io->fd, it->value, revents);
    if (bits)
        call_back(it, bits);
    unlock();
}

static void arm(watch *it, int value)
{
    it->value = value;
    if (it->is_handle) {
        ev_io_stop(loop, &it->ev.io);
        int bits = (value & VIR_EVENT_HANDLE_READABLE ? EV_READ : 0)
            | (value & VIR_EVENT_HANDLE_WRITABLE ? EV_WRITE : 0);
        ev_io_modify(&it->ev.io, bits);
        if (value)
            ev_io_start(loop, &it->ev.io);
        return;
    }
    ev_timer_stop(loop, &it->ev.timer);
    if (value < 0)
        return;
    ev_now_update(loop);
    ev_timer_set(&it->ev.timer, value / 1000., 0.);
    ev_timer_start(loop, &it->ev.timer);
}

static void on_timer(EV_P_ ev_timer *timer, int revents)
{
    watch *it = (watch *)timer;
    (void)loop, (void)revents;
    lock();
    arm(it, it->value);
    if (!it->running)
        call_back(it, 0);
    unlock();
}

static void on_prepare(EV_P_ ev_prepare *prepare, int revents)
{
    (void)loop, (void)prepare, (void)revents;
    lock();
    for (watch **link = &removed, *it; (it = *link);) {
        if (it->running) {
            link = &it->next;
            continue;
        }
        *link = it->next;
        unlock();
        if (it->ff)
            it->ff(it->opaque);
        free(it);
        lock();
        link = &removed;
    }
    unlock();
}

static int add(watch *it, int value, void *opaque, virFreeCallback ff)
{
    it->opaque = opaque;
    it->ff = ff;
    lock();
    if (last_id == INT_MAX) {
        unlock();
        free(it);
        return -1;
    }
    it->id = ++last_id;
    it->next = buckets[it->id & (BUCKETS - 1)];
    buckets[it->id & (BUCKETS - 1)] = it;
    arm(it, value);
    unlock();
    wake_loop();
    return it->id;
}

static int add_handle(int fd, int events, virEventHandleCallback cb, void *opaque, virFreeCallback ff)
{
    watch *it = calloc(1, sizeof *it);
    if (!it)
        return -1;
    it->is_handle = true;
    it->cb.handle = cb;
    ev_io_init(&it->ev.io, on_io, fd, EV_READ);
    return add(it, events, opaque, ff);
}

static int add_timeout(int ms, virEventTimeoutCallback cb, void *opaque, virFreeCallback ff)
{
    watch *it = calloc(1, sizeof *it);
    if (!it)
        return -1;
    it->cb.timer = cb;
    ev_init(&it->ev.timer, on_timer);
    return add(it, ms, opaque, ff);
}

static void update(int id, int value, bool is_handle)
{
    lock();
    watch *it = *link_of(id, is_handle);
    if (it && (!is_handle || it->value != value))
        arm(it, value);
    unlock();
    wake_loop();
}

static int remove_(int id, bool is_handle)
{
    lock();
    watch **link = link_of(id, is_handle), *it = *link;
    if (it) {
        arm(it, is_handle ? 0 : -1);
        *link = it->next;
        it->next = removed;
        removed = it;
    }
    unlock();
    wake_loop();
    return it ? 0 : -1;
}

static void update_handle(int id, int events) { update(id, events, true); }
static void update_timeout(int id, int ms) { update(id, ms, false); }
static int remove_handle(int id) { return remove_(id, true); }
static int remove_timeout(int id) { return remove_(id, false); }

/* Other threads change libev's own data: while it works with that, it has the lock; while it sleeps, it has not. */
static void release(EV_P)
{
    (void)loop;
    unlock();
}
static void acquire(EV_P)
{
    (void)loop;
    lock();
}
static void on_wake(EV_P_ ev_async *async, int revents) { (void)loop, (void)async, (void)revents; }
static void invoke(EV_P)
{
    unlock();
    ev_invoke_pending(loop);
    lock();
}

static void serve_by_libev(void)
{
    loop = ev_default_loop(0);
    owner = pthread_self();
    ev_prepare_init(&free_removed, on_prepare);
    ev_prepare_start(loop, &free_removed);
    ev_unref(loop);
    ev_async_init(&wake, on_wake);
    ev_async_start(loop, &wake);
    ev_unref(loop);
    if (!bare) {
        ev_set_loop_release_cb(loop, release, acquire);
        ev_set_invoke_pending_cb(loop, invoke);
    }
    virEventRegisterImpl(add_handle, update_handle, remove_handle, add_timeout, update_timeout, remove_timeout);
}

/* Running whichever it is. */

static void stop(void)
{
    if (loop)
        ev_break(loop, EVBREAK_ALL);
}

static void run_until_over(void)
{
    if (loop) {
        lock();
        ev_run(loop, 0);
        unlock();
    } else {
        while (!work_is_over())
            virEventRunDefaultImpl();
    }
}

/* libvirt's own loop always blocks, unless there is something to free. */
static void iterate(void)
{
    if (loop) {
        lock();
        ev_run(loop, EVRUN_NOWAIT);
        unlock();
    } else {
        virEventRunDefaultImpl();
    }
}

/* Ten in one iteration of the loop. */
static void add_and_remove(const char *what, long count, int fd)
{
    long registered = work_not_freed();

    for (long i = 0; i < count; i += 10) {
        strcmp(what, "add_remove") == 0 ? work_add_remove(fd, 10) : work_add_remove_timeout(10);
        while (work_not_freed() > registered)
            iterate();
    }
}

static void print(const char *name, double value) { printf("%s %.17g\n", name, value); }

static bool measure_call(const char *what, long count)
{
    int handle = work_add_handle(work_quiet_fd(), VIR_EVENT_HANDLE_READABLE), timer = work_add_timeout(1000);
    int fd = work_quiet_fd();
    double start = work_cpu();

    if (strcmp(what, "update_handle") == 0)
        work_update_handle(handle, count, 0);
    else if (strcmp(what, "update_timeout") == 0)
        work_update_timeout(timer, count);
    else if (strcmp(what, "update_same") == 0)
        work_update_handle(handle, count, 1);
    else if (strncmp(what, "add_remove", 10) == 0)
        add_and_remove(what, count, fd);
    else
        return false;
    print(what, (work_cpu() - start) / (double)count);
    return true;
}

static double run_for(long events)
{
    double start = work_cpu();
    work_expect(events, stop);
    run_until_over();
    return work_cpu() - start;
}

static long affordable(long count, double seconds)
{
    long events = (long)(seconds * 1e9 * 5 / run_for(5));
    return events < 5 ? 5 : (events < count ? events : count);
}

/* WHAT is handle_ or timer_ and the numbers of watches, the ready one included. The first events pay for the
 * watches that are new. */
static bool measure_among(char *what, long count, double seconds)
{
    char name[64], *number = strpbrk(what, "0123456789");
    int timers = strncmp(what, "timer", 5) == 0, registered = 1;

    if (!number || (!timers && strncmp(what, "handle", 6) != 0))
        return false;
    number[-1] = '\0';
    timers ? work_add_timeout(0) : work_add_handle(work_ready_fd(), VIR_EVENT_HANDLE_READABLE);
    for (number = strtok(number, ","); number; number = strtok(NULL, ",")) {
        int among = atoi(number);
        work_add_quiet(among - registered, timers);
        registered = among;
        run_for(5);
        long events = seconds > 0 ? affordable(count, seconds) : count;
        snprintf(name, sizeof name, "%s_%d", what, among);
        print(name, run_for(events) / (double)events);
    }
    return true;
}

static void start_watchers(long count, int timers)
{
    for (long i = 0; i < count; i++) {
        ev_io *io = timers ? NULL : malloc(sizeof *io);
        ev_timer *timer = timers ? malloc(sizeof *timer) : NULL;
        if (io) {
            ev_io_init(io, on_io, work_quiet_fd(), EV_READ);
            ev_io_start(loop, io);
        } else if (timer) {
            ev_timer_init(timer, on_timer, 3600., 0.);
            ev_timer_start(loop, timer);
        }
    }
}

static void measure_memory(long count, void (*add)(long count, int timers))
{
    for (int timers = 0; timers <= 1; timers++) {
        add(100, timers);
        double before = work_heap();
        add(count, timers);
        print(timers ? "memory_timeout" : "memory_handle", (work_heap() - before) / (double)count);
    }
}

static void measure_threads(long count)
{
    for (int threads = 1; threads <= 8; threads *= 2) {
        char name[32];
        double wall;
        work_threads_beside(threads, count, stop);
        run_until_over();
        double cpu = work_threads_result(&wall);
        snprintf(name, sizeof name, "threads_%d", threads);
        print(name, cpu);
        snprintf(name, sizeof name, "threads_%d_wall", threads);
        print(name, wall);
    }
}

static void measure_wake(long count, int by_fd)
{
    work_wake(count, by_fd, stop);
    run_until_over();
    print(by_fd ? "fd_50" : "wake_50", work_wake_percentile(50));
    print(by_fd ? "fd_99" : "wake_99", work_wake_percentile(99));
}

int main(int argc, char **argv)
{
    if (argc != 4)
        return 2;
    const char *subject = argv[1];
    char *what = argv[2], *limit = strchr(argv[3], ':');
    long count = atol(argv[3]);

    bare = strcmp(subject, "libev_bare") == 0;
    if (virInitialize() < 0)
        return 1;
    if (strcmp(subject, "default") == 0)
        virEventRegisterDefaultImpl();
    else
        serve_by_libev();
    if (strcmp(what, "memory") == 0)
        measure_memory(count, strcmp(subject, "watchers") == 0 ? start_watchers : work_add_quiet);
    else if (strcmp(what, "threads") == 0)
        measure_threads(count);
    else if (strcmp(what, "wake") == 0)
        measure_wake(count, 0);
    else if (strcmp(what, "fd") == 0)
        measure_wake(count, 1);
    else if (!measure_among(what, count, limit ? atof(limit + 1) : 0) && !measure_call(what, count))
        return 2;
    return 0;
}
