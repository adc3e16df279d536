/* Calls libvirt's event API as C code does: with C callbacks, from any thread, from inside callbacks.
 *
 * A test gives lists of ops. One interpreter of ops, run_ops(), serves the calling thread, threads made here and
 * callbacks. What callbacks and free functions saw goes to one log. No Perl runs in anything that libvirt calls,
 * but for the op `call`.
 */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "client.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>

enum {
    BASE_LITERAL,
    BASE_RESULT,
    BASE_SELF,
};
enum {
    NULL_OPAQUE = 1,
    NULL_FF = 2,
    READ_BYTE = 4,
    QUIET = 8,
};

/* Never freed, as another thread may still run one that was replaced. */
struct op_list {
    struct op_list *replaced;
    int n;
    capi_op ops[];
};

/* One for each add, and never freed: a free function called twice is to be logged, not to crash. */
struct record {
    struct record *next;
    const char *kind;
    int id;
    int flags;
    struct op_list *in_callback, *in_free;
};

/* What is on a thread's stack: a call to libvirt, a free function (call is ff), or a callback (call is NULL). */
struct capi_frame {
    struct capi_frame *outer;
    const char *call;
    const struct record *record;
};

struct task {
    struct task *next;
    int number;
    pthread_t thread;
    capi_op *ops;
    int n_ops;
    capi_report *report;
    bool done;
};

static pthread_t main_thread;
static capi_call_code call_code;
static _Thread_local struct capi_frame *stack_top;
static _Thread_local bool has_no_interpreter;        /* it was made here */

/* Guards all that follows, and the changeable fields of records and tasks. Never held while calling libvirt. */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct record *records;
static capi_entry *log_first, **log_end = &log_first;
static struct task *tasks;

static void *zeroed(size_t count, size_t size)
{
    void *memory = calloc(count ? count : 1, size);
    if (!memory)
        abort();
    return memory;
}

static double seconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec / 1e9;
}

/* The log */

static capi_entry *entry_new(const char *what, int id, const struct record *record)
{
    capi_entry *entry = zeroed(1, sizeof *entry);
    const struct capi_frame *frame;

    entry->what = what;
    entry->id = id;
    entry->foreign = !pthread_equal(pthread_self(), main_thread);
    for (frame = stack_top; frame; frame = frame->outer) {
        if (!frame->call) {
            entry->depth++;
            entry->in_own |= record && frame->record == record;
        } else if (entry->n_inside < CAPI_MAX_INSIDE)
            entry->inside[entry->n_inside++] = frame->call;
    }
    return entry;
}

static void entry_append(capi_entry *entry)
{
    pthread_mutex_lock(&mutex);
    *log_end = entry;
    log_end = &entry->next;
    pthread_mutex_unlock(&mutex);
}

capi_entry *capi_take_log(void)
{
    capi_entry *first;

    pthread_mutex_lock(&mutex);
    first = log_first;
    log_first = NULL;
    log_end = &log_first;
    pthread_mutex_unlock(&mutex);
    return first;
}

void capi_entry_free(capi_entry *entry)
{
    free(entry);
}

/* Callbacks */

static int run_ops(const capi_op *ops, int n_ops, int *results, const struct record *self, double *slowest);

static int record_id(const struct record *record)
{
    int id;
    if (!record)
        return 0;
    pthread_mutex_lock(&mutex);
    id = record->id;
    pthread_mutex_unlock(&mutex);
    return id;
}

static bool is_quiet(const struct record *record)
{
    return record && record->flags & QUIET;
}

/* With the frame on the stack. */
static void run_list(const struct record *record, struct op_list *const *place, struct capi_frame *frame)
{
    const struct op_list *list;

    pthread_mutex_lock(&mutex);
    list = *place;
    pthread_mutex_unlock(&mutex);
    stack_top = frame;
    if (list && list->n) {
        int *results = zeroed(list->n, sizeof *results);
        double slowest = 0;
        run_ops(list->ops, list->n, results, record, &slowest);
        free(results);
    }
    stack_top = frame->outer;
}

static void run_callback(const char *what, int id, int fd, int events, struct record *record)
{
    struct capi_frame frame = { stack_top, NULL, record };
    char byte;

    if (!is_quiet(record)) {
        capi_entry *entry = entry_new(what, id, record);
        entry->kind = what;
        entry->added_as = record_id(record);
        entry->fd = fd;
        entry->events = events;
        entry_append(entry);
    }
    if (!record)
        return;

    if ((record->flags & READ_BYTE) && (events & VIR_EVENT_HANDLE_READABLE) && read(fd, &byte, 1) < 0)
        perror("# capi: read");
    run_list(record, &record->in_callback, &frame);
}

static void on_handle(int watch, int fd, int events, void *opaque)
{
    run_callback("handle", watch, fd, events, opaque);
}

static void on_timeout(int timer, void *opaque)
{
    run_callback("timer", timer, -1, 0, opaque);
}

static void on_free(void *opaque)
{
    struct record *record = opaque;
    struct capi_frame frame = { stack_top, "ff", record };
    capi_entry *entry;

    if (is_quiet(record))
        return;
    entry = entry_new("ff", record_id(record), record);
    entry->kind = record ? record->kind : NULL;
    entry->added_as = entry->id;
    entry_append(entry);
    if (record)
        run_list(record, &record->in_free, &frame);
}

/* Ops. Each is given its op and the id it is about, and returns its result. */

static struct op_list *nested_in(const capi_op *op)
{
    struct op_list *list = zeroed(1, sizeof *list + op->nested * sizeof *op);
    list->n = op->nested;
    memcpy(list->ops, op + 1, op->nested * sizeof *op);
    return list;
}

static struct record *record_new(const char *kind, const capi_op *op)
{
    struct record *record = zeroed(1, sizeof *record);
    record->kind = kind;
    record->flags = op->flags;
    record->in_callback = op->nested ? nested_in(op) : NULL;
    pthread_mutex_lock(&mutex);
    record->next = records;
    records = record;
    pthread_mutex_unlock(&mutex);
    return record;
}

static int record_added(struct record *record, int id)
{
    pthread_mutex_lock(&mutex);
    record->id = id;
    pthread_mutex_unlock(&mutex);
    return id;
}

static void *opaque_of(const capi_op *op, struct record *record) { return op->flags & NULL_OPAQUE ? NULL : record; }
static virFreeCallback ff_of(const capi_op *op) { return op->flags & NULL_FF ? NULL : on_free; }

static int op_add_handle(const capi_op *op, int id)
{
    struct record *record = record_new("handle", op);
    (void)id;
    return record_added(record, virEventAddHandle(op->fd, op->value, on_handle, opaque_of(op, record), ff_of(op)));
}

static int op_update_handle(const capi_op *op, int id)
{
    virEventUpdateHandle(id, op->value);
    return 0;
}

static int op_remove_handle(const capi_op *op, int id)
{
    (void)op;
    return virEventRemoveHandle(id);
}

static int op_add_timeout(const capi_op *op, int id)
{
    struct record *record = record_new("timer", op);
    (void)id;
    return record_added(record, virEventAddTimeout(op->value, on_timeout, opaque_of(op, record), ff_of(op)));
}

static int op_update_timeout(const capi_op *op, int id)
{
    virEventUpdateTimeout(id, op->value);
    return 0;
}

static int op_remove_timeout(const capi_op *op, int id)
{
    (void)op;
    return virEventRemoveTimeout(id);
}

/* 0, or -1 if there was no such add. */
static int set_ops(const char *kind, int id, const capi_op *op, bool in_free)
{
    struct op_list **place, *list;
    struct record *record;

    pthread_mutex_lock(&mutex);
    for (record = records; record; record = record->next)
        if (record->id == id && !strcmp(record->kind, kind))
            break;
    if (record) {
        place = in_free ? &record->in_free : &record->in_callback;
        list = nested_in(op);
        list->replaced = *place;
        *place = list;
    }
    pthread_mutex_unlock(&mutex);
    return record ? 0 : -1;
}

static int op_on_handle(const capi_op *op, int id)
{
    return set_ops("handle", id, op, false);
}

static int op_on_timeout(const capi_op *op, int id)
{
    return set_ops("timer", id, op, false);
}

static int op_on_handle_free(const capi_op *op, int id)
{
    return set_ops("handle", id, op, true);
}

static int op_on_timeout_free(const capi_op *op, int id)
{
    return set_ops("timer", id, op, true);
}

static void ignore_error(void *opaque, virErrorPtr error)
{
    (void)opaque;
    (void)error;
}

/* virSetError() is private to libvirt, so make libvirt fail and change the code of what it then has. 0 is no error. */
static int op_set_error(const capi_op *op, int id)
{
    virErrorPtr error;

    (void)id;
    virResetLastError();
    if (!op->value)
        return 0;
    virSetErrorFunc(NULL, ignore_error);
    virDomainFree(NULL);
    error = virGetLastError();
    if (!error)
        return -1;
    error->code = op->value;
    return 0;
}

static int op_last_error_code(const capi_op *op, int id)
{
    (void)op;
    (void)id;
    return virGetLastErrorCode();
}

static int op_sleep_ms(const capi_op *op, int id)
{
    struct timespec pause = { op->value / 1000, op->value % 1000 * 1000000L };
    (void)id;
    while (nanosleep(&pause, &pause) < 0 && errno == EINTR)
        ;
    return 0;
}

/* One iteration of libvirt's own loop. */
static int op_run_default(const capi_op *op, int id)
{
    (void)op;
    (void)id;
    return virEventRunDefaultImpl();
}

static int op_call(const capi_op *op, int id)
{
    (void)id;
    return has_no_interpreter ? -1 : call_code(op->value);
}

static const struct op_kind {
    const char *name;
    int (*run)(const capi_op *op, int id);
    bool is_event_call;
} op_kinds[] = {
    { "add_handle", op_add_handle, true },
    { "update_handle", op_update_handle, true },
    { "remove_handle", op_remove_handle, true },
    { "add_timeout", op_add_timeout, true },
    { "update_timeout", op_update_timeout, true },
    { "remove_timeout", op_remove_timeout, true },
    { "on_handle", op_on_handle, false },
    { "on_timeout", op_on_timeout, false },
    { "on_handle_free", op_on_handle_free, false },
    { "on_timeout_free", op_on_timeout_free, false },
    { "set_error", op_set_error, false },
    { "last_error_code", op_last_error_code, false },
    { "sleep_ms", op_sleep_ms, false },
    { "run_default", op_run_default, false },
    { "call", op_call, false },
};

static const struct op_kind *op_kind(const capi_op *op)
{
    for (size_t i = 0; i < sizeof op_kinds / sizeof *op_kinds; i++)
        if (!strncmp(op_kinds[i].name, op->name, sizeof op->name))
            return &op_kinds[i];
    return NULL;
}

static int run_event_call(const struct op_kind *kind, const capi_op *op, int id, double *slowest)
{
    struct capi_frame frame = { stack_top, kind->name, NULL };
    double start = seconds_now(), took;
    int result;

    stack_top = &frame;
    result = kind->run(op, id);
    stack_top = frame.outer;
    took = seconds_now() - start;
    if (took > *slowest)
        *slowest = took;
    return result;
}

/* Returns the number of results, one for each op that is not nested in another. */
static int run_ops(const capi_op *ops, int n_ops, int *results, const struct record *self, double *slowest)
{
    int i, n = 0;

    for (i = 0; i < n_ops; i += 1 + ops[i].nested, n++) {
        const capi_op *op = &ops[i];
        const struct op_kind *kind = op_kind(op);
        int id = op->base == BASE_SELF ? record_id(self) : (op->base == BASE_RESULT ? results[op->id] : op->id);

        results[n] = kind->is_event_call ? run_event_call(kind, op, id, slowest) : kind->run(op, id);
        if (self && !is_quiet(self)) {
            capi_entry *entry = entry_new(kind->name, id, NULL);
            entry->is_op = true;
            entry->result = results[n];
            entry_append(entry);
        }
    }
    return n;
}

int capi_run(const capi_op *ops, int n_ops, int *results)
{
    double slowest = 0;
    return run_ops(ops, n_ops, results, NULL, &slowest);
}

const capi_op *capi_unknown_op(const capi_op *ops, int n_ops)
{
    for (int i = 0; i < n_ops; i++)
        if (!op_kind(&ops[i]))
            return &ops[i];
    return NULL;
}

struct capi_frame **capi_stack(void)
{
    return &stack_top;
}

/* Threads */

static void *task_main(void *argument)
{
    struct task *task = argument;
    capi_report *report = task->report;

    has_no_interpreter = true;
    report->n_results = run_ops(task->ops, task->n_ops, report->results, NULL, &report->slowest);
    pthread_mutex_lock(&mutex);
    task->done = true;
    pthread_mutex_unlock(&mutex);
    return NULL;
}

/* Signals stay with the interpreter's thread: perl's own handler crashes in a thread without an interpreter. */
static int task_start(struct task *task)
{
    sigset_t all, before;
    int error;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    error = pthread_create(&task->thread, NULL, task_main, task);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return error;
}

static struct task *task_new(const capi_op *ops, int n_ops)
{
    struct task *task = zeroed(1, sizeof *task);

    task->ops = zeroed(n_ops, sizeof *ops);
    memcpy(task->ops, ops, n_ops * sizeof *ops);
    task->n_ops = n_ops;
    task->report = zeroed(1, sizeof *task->report + n_ops * sizeof *task->report->results);
    return task;
}

/* Leaves the report to the caller. */
static capi_report *task_free(struct task *task)
{
    capi_report *report = task->report;

    free(task->ops);
    free(task);
    return report;
}

/* Where the task of that number hangs in the list, or the end of the list. */
static struct task **task_find(int number)
{
    struct task **link = &tasks;
    while (*link && (*link)->number != number)
        link = &(*link)->next;
    return link;
}

int capi_spawn(const capi_op *ops, int n_ops)
{
    static int last_number;
    struct task *task = task_new(ops, n_ops);
    int error, number = 0;

    pthread_mutex_lock(&mutex);
    error = task_start(task);
    if (!error) {
        number = task->number = ++last_number;
        task->next = tasks;
        tasks = task;
    }
    pthread_mutex_unlock(&mutex);
    if (!error)
        return number;
    capi_report_free(task_free(task));
    return -error;
}

bool capi_is_done(int number)
{
    struct task *task;
    bool done;

    pthread_mutex_lock(&mutex);
    task = *task_find(number);
    done = !task || task->done;
    pthread_mutex_unlock(&mutex);
    return done;
}

capi_report *capi_join(int number)
{
    struct task **link, *task;

    pthread_mutex_lock(&mutex);
    link = task_find(number);
    task = *link;
    if (task)
        *link = task->next;
    pthread_mutex_unlock(&mutex);
    if (!task)
        return NULL;
    pthread_join(task->thread, NULL);
    return task_free(task);
}

void capi_report_free(capi_report *report)
{
    free(report);
}

/* An event loop that ignores all calls, for the part of other code that registered before us. */

static int deaf_add_handle(int fd, int events, virEventHandleCallback cb, void *opaque, virFreeCallback ff)
{
    static int last_id;
    (void)fd;
    (void)events;
    (void)cb;
    (void)opaque;
    (void)ff;
    return ++last_id;
}

static int deaf_add_timeout(int ms, virEventTimeoutCallback cb, void *opaque, virFreeCallback ff)
{
    static int last_id;
    (void)ms;
    (void)cb;
    (void)opaque;
    (void)ff;
    return ++last_id;
}

static void deaf_update(int id, int value)
{
    (void)id;
    (void)value;
}

static int deaf_remove(int id)
{
    (void)id;
    return 0;
}

void capi_register_deaf(void)
{
    virEventRegisterImpl(deaf_add_handle, deaf_update, deaf_remove, deaf_add_timeout, deaf_update, deaf_remove);
}

int capi_start(capi_call_code code)
{
    main_thread = pthread_self();
    call_code = code;
    return virInitialize();
}
