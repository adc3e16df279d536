#include "work.h"

#include <malloc.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>
#include <libvirt/libvirt.h>

enum { MAX_THREADS = 64 };
enum { HOUR = 3600 * 1000 };

static long added, freed, left;
static bool over;
static void (*stop_loop)(void);

static void fail(const char *what)
{
    fprintf(stderr, "bench: Cannot %s\n", what);
    exit(1);
}

static double clock_of(clockid_t clock)
{
    struct timespec time;
    clock_gettime(clock, &time);
    return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

double work_cpu(void) { return clock_of(CLOCK_PROCESS_CPUTIME_ID); }
double work_now(void) { return clock_of(CLOCK_MONOTONIC); }

double work_heap(void)
{
    struct mallinfo2 info = mallinfo2();
    return (double)(info.uordblks + info.hblkhd);
}

int work_ready_fd(void) { return eventfd(1, EFD_CLOEXEC); }
int work_quiet_fd(void) { return eventfd(0, EFD_CLOEXEC); }

static void finish(void)
{
    over = true;
    if (stop_loop)
        stop_loop();
}

static void fired(void)
{
    if (left && --left == 0)
        finish();
}

static void on_handle(int id, int fd, int events, void *opaque)
{
    (void)id, (void)fd, (void)events, (void)opaque;
    fired();
}

static void on_timeout(int id, void *opaque)
{
    (void)id, (void)opaque;
    fired();
}

static void on_free(void *opaque)
{
    (void)opaque;
    freed++;
}

static int added_as(int id)
{
    if (id < 0)
        fail("add a watch");
    added++;
    return id;
}

/* The module of Sys::Virt takes no opaque that is NULL. */
int work_add_handle(int fd, int events)
{
    return added_as(virEventAddHandle(fd, events, on_handle, &added, on_free));
}

int work_add_timeout(int ms)
{
    return added_as(virEventAddTimeout(ms, on_timeout, &added, on_free));
}

void work_update_handle(int id, long count, int same)
{
    for (long i = 0; i < count; i++)
        virEventUpdateHandle(id, same ? VIR_EVENT_HANDLE_READABLE : (int)(i & 1));
}

void work_update_timeout(int id, long count)
{
    for (long i = 0; i < count; i++)
        virEventUpdateTimeout(id, HOUR + (int)(i & 1));
}

void work_add_remove(int fd, long count)
{
    for (long i = 0; i < count; i++)
        virEventRemoveHandle(work_add_handle(fd, VIR_EVENT_HANDLE_READABLE));
}

void work_add_remove_timeout(long count)
{
    for (long i = 0; i < count; i++)
        virEventRemoveTimeout(work_add_timeout(HOUR));
}

/* Those that are registered have theirs to come. */
long work_not_freed(void) { return added - freed; }

void work_add_quiet(long count, int timers)
{
    for (long i = 0; i < count; i++) {
        int fd = timers ? -1 : work_quiet_fd();
        if (!timers && fd < 0)
            fail("open as many file descriptors");
        timers ? work_add_timeout(HOUR) : work_add_handle(fd, VIR_EVENT_HANDLE_READABLE);
    }
}

void work_expect(long count, void (*stop)(void))
{
    over = false;
    left = count;
    stop_loop = stop;
}

int work_is_over(void) { return over; }

/* A loop that does nothing. */

static int last_id;

static int no_handle(int fd, int events, virEventHandleCallback cb, void *opaque, virFreeCallback ff)
{
    (void)fd, (void)events, (void)cb, (void)opaque, (void)ff;
    return ++last_id;
}

static int no_timeout(int ms, virEventTimeoutCallback cb, void *opaque, virFreeCallback ff)
{
    (void)ms, (void)cb, (void)opaque, (void)ff;
    return ++last_id;
}

static void no_update(int id, int value) { (void)id, (void)value; }

static int no_remove(int id)
{
    (void)id;
    return 0;
}

void work_register_nothing(void)
{
    virEventRegisterImpl(no_handle, no_update, no_remove, no_timeout, no_update, no_remove);
}

/* Threads of libvirt. */

static struct {
    int count, running;
    long calls;
    double start, wall, cpu;
    pthread_mutex_t lock;
    pthread_t thread[MAX_THREADS];
    int timer[MAX_THREADS], last;
} team = { .lock = PTHREAD_MUTEX_INITIALIZER };

static void *call_often(void *timer)
{
    double start = clock_of(CLOCK_THREAD_CPUTIME_ID);
    for (long i = 0; i < team.calls; i++)
        virEventUpdateTimeout(*(int *)timer, HOUR + (int)(i & 1));
    double cpu = clock_of(CLOCK_THREAD_CPUTIME_ID) - start;

    pthread_mutex_lock(&team.lock);
    team.cpu += cpu;
    bool is_last = --team.running == 0;
    team.wall = work_now() - team.start;
    pthread_mutex_unlock(&team.lock);
    if (is_last && stop_loop)
        virEventUpdateTimeout(team.last, 0);
    return NULL;
}

static void start_team(int threads, long calls, void (*stop)(void))
{
    team.count = team.running = threads < MAX_THREADS ? threads : MAX_THREADS;
    team.calls = calls;
    team.cpu = 0;
    for (int i = 0; i < team.count; i++)
        team.timer[i] = work_add_timeout(HOUR);
    team.last = stop ? work_add_timeout(-1) : -1;
    work_expect(stop ? 1 : 0, stop);
    team.start = work_now();
    for (int i = 0; i < team.count; i++)
        if (pthread_create(&team.thread[i], NULL, call_often, &team.timer[i]) != 0)
            fail("start a thread");
}

double work_threads_result(double *wall)
{
    for (int i = 0; i < team.count; i++) {
        pthread_join(team.thread[i], NULL);
        virEventRemoveTimeout(team.timer[i]);
    }
    if (team.last >= 0)
        virEventRemoveTimeout(team.last);
    double calls = (double)team.calls * team.count;
    *wall = team.wall / calls;
    return team.cpu / calls;
}

double work_threads(int threads, long calls, double *wall)
{
    start_team(threads, calls, NULL);
    return work_threads_result(wall);
}

void work_threads_beside(int threads, long calls, void (*stop)(void)) { start_team(threads, calls, stop); }

/* Waking. */

static struct {
    long count, done;
    int timer, fd, handle;
    bool by_fd, by_thread;
    double *took, called;
    sem_t woken;
    pthread_t thread;
} alarm_clock;

static void woken(double now)
{
    alarm_clock.took[alarm_clock.done++] = now - alarm_clock.called;
    if (alarm_clock.done == alarm_clock.count)
        finish();
    sem_post(&alarm_clock.woken);
}

static void on_wake_fd(int id, int fd, int events, void *opaque)
{
    double now = work_now();
    eventfd_t value;
    (void)id, (void)events, (void)opaque;
    if (eventfd_read(fd, &value) == 0)
        woken(now);
}

static void on_wake_timer(int id, void *opaque)
{
    (void)opaque;
    double now = work_now();
    virEventUpdateTimeout(id, -1);
    woken(now);
}

static void *wake_often(void *unused)
{
    (void)unused;
    for (long i = 0; i < alarm_clock.count; i++) {
        usleep(300);                     /* by then the loop sleeps */
        alarm_clock.called = work_now();
        if (alarm_clock.by_fd)
            eventfd_write(alarm_clock.fd, 1);
        else
            virEventUpdateTimeout(alarm_clock.timer, 0);
        sem_wait(&alarm_clock.woken);
    }
    return NULL;
}

void work_wake(long count, int by_fd, void (*stop)(void))
{
    alarm_clock.count = count;
    alarm_clock.by_fd = by_fd;
    alarm_clock.took = calloc((size_t)count, sizeof *alarm_clock.took);
    alarm_clock.fd = work_quiet_fd();
    sem_init(&alarm_clock.woken, 0, 0);
    added += 2;
    alarm_clock.timer = virEventAddTimeout(-1, on_wake_timer, &added, on_free);
    alarm_clock.handle = virEventAddHandle(alarm_clock.fd, VIR_EVENT_HANDLE_READABLE, on_wake_fd, &added, on_free);
    work_expect(0, stop);
    alarm_clock.by_thread = true;
    if (pthread_create(&alarm_clock.thread, NULL, wake_often, NULL) != 0)
        fail("start a thread");
}

static int by_value(const void *a, const void *b)
{
    double left_one = *(const double *)a, right_one = *(const double *)b;
    return (left_one > right_one) - (left_one < right_one);
}

double work_wake_percentile(int percent)
{
    if (alarm_clock.by_thread)
        pthread_join(alarm_clock.thread, NULL);
    alarm_clock.by_thread = false;
    qsort(alarm_clock.took, (size_t)alarm_clock.count, sizeof *alarm_clock.took, by_value);
    return alarm_clock.took[(alarm_clock.count - 1) * percent / 100];
}
