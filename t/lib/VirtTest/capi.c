/* Calls libvirt's event API as C code does: with C callbacks, from any thread, from inside callbacks.
 *
 * A test gives lists of ops. One interpreter of ops, run_ops(), serves the calling thread, threads made here and
 * callbacks. What callbacks and free functions saw goes to one log. No Perl runs in anything that libvirt calls.
 */

#define PERL_NO_GET_CONTEXT
#include "EXTERN.h"
#include "perl.h"
#include "XSUB.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>

/* As packed by CApi.pm; an op is followed by its nested ones. */
struct event_op {
    char name[16];
    int32_t base, id, fd, value, flags, nested;
};

enum { BASE_LITERAL, BASE_RESULT, BASE_SELF };
enum { NULL_OPAQUE = 1, NULL_FF = 2, READ_BYTE = 4 };

/* One for each add, and never freed: a free function called twice is to be logged, not to crash, and another thread
 * may still run the ops. */
struct record {
    struct record *next;
    const char *kind;
    int id;
    int flags;
    const struct event_op *ops;
    int n_ops;
};

/* What is on a thread's stack: either a call to libvirt or a callback from it. */
struct frame {
    struct frame *outer;
    const char *call;
    const struct record *record;
};

enum { MAX_INSIDE = 8 };

struct entry {
    struct entry *next;
    const char *what, *kind;
    int id, added_as, fd, events, result;
    bool foreign, in_own;
    int depth, n_inside;
    const char *inside[MAX_INSIDE];
};

struct task {
    struct task *next;
    int number;
    pthread_t thread;
    struct event_op *ops;
    int n_ops, n_results;
    int *results;
    double slowest;
    bool done;
};

static pthread_t main_thread;
static __thread struct frame *stack_top;

/* Guards all that follows, and the changeable fields of records and tasks. Never held while calling libvirt. */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct record *records;
static struct entry *log_first, **log_end = &log_first;
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

static struct entry *entry_new(const char *what, int id, const struct record *record)
{
    struct entry *entry = zeroed(1, sizeof *entry);
    const struct frame *frame;

    entry->what = what;
    entry->id = id;
    entry->foreign = !pthread_equal(pthread_self(), main_thread);
    for (frame = stack_top; frame; frame = frame->outer) {
        if (!frame->call) {
            entry->depth++;
            entry->in_own |= record && frame->record == record;
        }
        else if (entry->n_inside < MAX_INSIDE)
            entry->inside[entry->n_inside++] = frame->call;
    }
    return entry;
}

static void entry_append(struct entry *entry)
{
    pthread_mutex_lock(&mutex);
    *log_end = entry;
    log_end = &entry->next;
    pthread_mutex_unlock(&mutex);
}

/* Callbacks */

static int run_ops(const struct event_op *ops, int n_ops, int *results, const struct record *self, double *slowest);

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

static void run_callback(const char *what, int id, int fd, int events, struct record *record)
{
    struct frame frame = { stack_top, NULL, record };
    struct entry *entry = entry_new(what, id, record);
    const struct event_op *ops = NULL;
    int n_ops = 0;
    char byte;

    entry->kind = what;
    entry->added_as = record_id(record);
    entry->fd = fd;
    entry->events = events;
    entry_append(entry);
    if (!record)
        return;

    stack_top = &frame;
    if ((record->flags & READ_BYTE) && (events & VIR_EVENT_HANDLE_READABLE) && read(fd, &byte, 1) < 0)
        perror("# capi.c: read");
    pthread_mutex_lock(&mutex);
    ops = record->ops;
    n_ops = record->n_ops;
    pthread_mutex_unlock(&mutex);
    if (n_ops) {
        int *results = zeroed(n_ops, sizeof *results);
        double slowest = 0;
        run_ops(ops, n_ops, results, record, &slowest);
        free(results);
    }
    stack_top = frame.outer;
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
    struct entry *entry = entry_new("ff", record_id(record), record);

    entry->kind = record ? record->kind : NULL;
    entry->added_as = entry->id;
    entry_append(entry);
}

/* Ops. Each is given its op and the id it is about, and returns its result. */

static void record_set_ops(struct record *record, const struct event_op *op)
{
    struct event_op *copy = zeroed(op->nested, sizeof *copy);
    memcpy(copy, op + 1, op->nested * sizeof *copy);
    record->ops = copy;
    record->n_ops = op->nested;
}

static struct record *record_new(const char *kind, const struct event_op *op)
{
    struct record *record = zeroed(1, sizeof *record);
    record->kind = kind;
    record->flags = op->flags;
    record_set_ops(record, op);
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

static int op_add_handle(const struct event_op *op, int id)
{
    struct record *record = record_new("handle", op);
    PERL_UNUSED_VAR(id);
    return record_added(record, virEventAddHandle(op->fd, op->value, on_handle,
                                                  op->flags & NULL_OPAQUE ? NULL : record,
                                                  op->flags & NULL_FF ? NULL : on_free));
}

static int op_update_handle(const struct event_op *op, int id)
{
    virEventUpdateHandle(id, op->value);
    return 0;
}

static int op_remove_handle(const struct event_op *op, int id)
{
    PERL_UNUSED_VAR(op);
    return virEventRemoveHandle(id);
}

static int op_add_timeout(const struct event_op *op, int id)
{
    struct record *record = record_new("timer", op);
    PERL_UNUSED_VAR(id);
    return record_added(record, virEventAddTimeout(op->value, on_timeout,
                                                   op->flags & NULL_OPAQUE ? NULL : record,
                                                   op->flags & NULL_FF ? NULL : on_free));
}

static int op_update_timeout(const struct event_op *op, int id)
{
    virEventUpdateTimeout(id, op->value);
    return 0;
}

static int op_remove_timeout(const struct event_op *op, int id)
{
    PERL_UNUSED_VAR(op);
    return virEventRemoveTimeout(id);
}

/* 0, or -1 if there was no such add. */
static int set_callback_ops(const char *kind, int id, const struct event_op *op)
{
    struct record *record;

    pthread_mutex_lock(&mutex);
    for (record = records; record; record = record->next)
        if (record->id == id && strEQ(record->kind, kind))
            break;
    if (record)
        record_set_ops(record, op);
    pthread_mutex_unlock(&mutex);
    return record ? 0 : -1;
}

static int op_on_handle(const struct event_op *op, int id)
{
    return set_callback_ops("handle", id, op);
}

static int op_on_timeout(const struct event_op *op, int id)
{
    return set_callback_ops("timer", id, op);
}

static void ignore_error(void *opaque, virErrorPtr error)
{
    PERL_UNUSED_VAR(opaque);
    PERL_UNUSED_VAR(error);
}

/* virSetError() is private to libvirt, so make libvirt fail and change the code of what it then has. 0 is no error. */
static int op_set_error(const struct event_op *op, int id)
{
    virErrorPtr error;

    PERL_UNUSED_VAR(id);
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

static int op_last_error_code(const struct event_op *op, int id)
{
    PERL_UNUSED_VAR(op);
    PERL_UNUSED_VAR(id);
    return virGetLastErrorCode();
}

static int op_sleep_ms(const struct event_op *op, int id)
{
    struct timespec pause = { op->value / 1000, op->value % 1000 * 1000000L };
    PERL_UNUSED_VAR(id);
    while (nanosleep(&pause, &pause) < 0 && errno == EINTR)
        ;
    return 0;
}

/* One iteration of libvirt's own loop. */
static int op_run_default(const struct event_op *op, int id)
{
    PERL_UNUSED_VAR(op);
    PERL_UNUSED_VAR(id);
    return virEventRunDefaultImpl();
}

static const struct op_kind {
    const char *name;
    int (*run)(const struct event_op *op, int id);
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
    { "set_error", op_set_error, false },
    { "last_error_code", op_last_error_code, false },
    { "sleep_ms", op_sleep_ms, false },
    { "run_default", op_run_default, false },
};

static const struct op_kind *op_kind(const struct event_op *op)
{
    size_t i;
    for (i = 0; i < C_ARRAY_LENGTH(op_kinds); i++)
        if (strnEQ(op_kinds[i].name, op->name, sizeof op->name))
            return &op_kinds[i];
    return NULL;
}

static int run_event_call(const struct op_kind *kind, const struct event_op *op, int id, double *slowest)
{
    struct frame frame = { stack_top, kind->name, NULL };
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
static int run_ops(const struct event_op *ops, int n_ops, int *results, const struct record *self, double *slowest)
{
    int i, n = 0;

    for (i = 0; i < n_ops; i += 1 + ops[i].nested, n++) {
        const struct event_op *op = &ops[i];
        const struct op_kind *kind = op_kind(op);
        int id = op->base == BASE_SELF ? record_id(self)
               : op->base == BASE_RESULT ? results[op->id]
               : op->id;

        results[n] = kind->is_event_call ? run_event_call(kind, op, id, slowest) : kind->run(op, id);
        if (self) {
            struct entry *entry = entry_new(kind->name, id, NULL);
            entry->result = results[n];
            entry_append(entry);
        }
    }
    return n;
}

/* Threads */

static void *task_main(void *argument)
{
    struct task *task = argument;

    task->n_results = run_ops(task->ops, task->n_ops, task->results, NULL, &task->slowest);
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

static struct task *task_new(const struct event_op *ops, int n_ops)
{
    struct task *task = zeroed(1, sizeof *task);
    task->ops = zeroed(n_ops, sizeof *ops);
    memcpy(task->ops, ops, n_ops * sizeof *ops);
    task->n_ops = n_ops;
    task->results = zeroed(n_ops, sizeof *task->results);
    return task;
}

static void task_free(struct task *task)
{
    free(task->ops);
    free(task->results);
    free(task);
}

/* Where the task of that number hangs in the list, or the end of the list. */
static struct task **task_find(int number)
{
    struct task **link = &tasks;
    while (*link && (*link)->number != number)
        link = &(*link)->next;
    return link;
}

/* An event loop that ignores all calls, for the part of other code that registered before us. */

static int deaf_add_handle(int fd, int events, virEventHandleCallback cb, void *opaque, virFreeCallback ff)
{
    static int last_id;
    PERL_UNUSED_VAR(fd);
    PERL_UNUSED_VAR(events);
    PERL_UNUSED_VAR(cb);
    PERL_UNUSED_VAR(opaque);
    PERL_UNUSED_VAR(ff);
    return ++last_id;
}

static int deaf_add_timeout(int ms, virEventTimeoutCallback cb, void *opaque, virFreeCallback ff)
{
    static int last_id;
    PERL_UNUSED_VAR(ms);
    PERL_UNUSED_VAR(cb);
    PERL_UNUSED_VAR(opaque);
    PERL_UNUSED_VAR(ff);
    return ++last_id;
}

static void deaf_update(int id, int value)
{
    PERL_UNUSED_VAR(id);
    PERL_UNUSED_VAR(value);
}

static int deaf_remove(int id)
{
    PERL_UNUSED_VAR(id);
    return 0;
}

/* XSUBs */

static const struct event_op *ops_of_sv(pTHX_ SV *packed, int *n_ops)
{
    STRLEN length;
    const struct event_op *ops = (const struct event_op *)SvPV(packed, length);
    int i;

    *n_ops = (int)(length / sizeof *ops);
    for (i = 0; i < *n_ops; i++)
        if (!op_kind(&ops[i]))
            croak("capi.c has no op %.*s", (int)sizeof ops[i].name, ops[i].name);
    return ops;
}

static void push_ints(pTHX_ const int *results, int n)
{
    dSP;
    int i;

    EXTEND(SP, n);
    for (i = 0; i < n; i++)
        mPUSHi(results[i]);
    PUTBACK;
}

static void push_task(pTHX_ const struct task *task)
{
    dSP;
    mXPUSHn(task->slowest);
    PUTBACK;
    push_ints(aTHX_ task->results, task->n_results);
}

/* Run the ops on the calling thread; returns the results. */
XS_INTERNAL(xs_run)
{
    dXSARGS;
    int n_ops, *results, n;
    const struct event_op *ops;
    double slowest = 0;
    SSize_t bottom;

    if (items != 1)
        croak_xs_usage(cv, "packed");
    ops = ops_of_sv(aTHX_ ST(0), &n_ops);
    SP -= items;
    PUTBACK;
    ENTER;
    Newxz(results, n_ops + 1, int);
    SAVEFREEPV(results);
    /* An event loop that lets exceptions through leaves our frames with a longjmp. */
    SAVEVPTR(stack_top);
    bottom = PL_stack_sp - PL_stack_base;
    n = run_ops(ops, n_ops, results, NULL, &slowest);
    /* Sys::Virt's own trampolines leave values behind. */
    PL_stack_sp = PL_stack_base + bottom;
    push_ints(aTHX_ results, n);
    LEAVE;
}

/* Run the ops on another thread, while this one is in C; returns the time of the slowest and the results. */
XS_INTERNAL(xs_run_blocked)
{
    dXSARGS;
    int n_ops, error;
    const struct event_op *ops;
    struct task *task;

    if (items != 1)
        croak_xs_usage(cv, "packed");
    ops = ops_of_sv(aTHX_ ST(0), &n_ops);
    task = task_new(ops, n_ops);
    if ((error = task_start(task)) != 0)
        croak("Cannot start thread: %s", strerror(error));
    pthread_join(task->thread, NULL);
    SP -= items;
    PUTBACK;
    push_task(aTHX_ task);
    task_free(task);
}

/* Returns the number of the task. */
XS_INTERNAL(xs_spawn)
{
    dXSARGS;
    static int last_number;
    int n_ops, error;
    const struct event_op *ops;
    struct task *task;

    if (items != 1)
        croak_xs_usage(cv, "packed");
    ops = ops_of_sv(aTHX_ ST(0), &n_ops);
    task = task_new(ops, n_ops);
    pthread_mutex_lock(&mutex);
    task->number = ++last_number;
    error = task_start(task);
    if (!error) {
        task->next = tasks;
        tasks = task;
    }
    pthread_mutex_unlock(&mutex);
    if (error)
        croak("Cannot start thread: %s", strerror(error));
    XSRETURN_IV(task->number);
}

XS_INTERNAL(xs_is_done)
{
    dXSARGS;
    struct task *task;
    bool done;

    if (items != 1)
        croak_xs_usage(cv, "number");
    pthread_mutex_lock(&mutex);
    task = *task_find(SvIV(ST(0)));
    done = !task || task->done;
    pthread_mutex_unlock(&mutex);
    ST(0) = boolSV(done);
    XSRETURN(1);
}

/* As run_blocked. */
XS_INTERNAL(xs_join)
{
    dXSARGS;
    struct task **link, *task;

    if (items != 1)
        croak_xs_usage(cv, "number");
    pthread_mutex_lock(&mutex);
    link = task_find(SvIV(ST(0)));
    task = *link;
    if (task)
        *link = task->next;
    pthread_mutex_unlock(&mutex);
    if (!task)
        croak("Cannot join thread: there is no number %" IVdf, SvIV(ST(0)));
    pthread_join(task->thread, NULL);
    SP -= items;
    PUTBACK;
    push_task(aTHX_ task);
    task_free(task);
}

static void store(pTHX_ HV *hash, const char *key, SV *value)
{
    (void)hv_store(hash, key, strlen(key), value, 0);
}

static SV *hash_of_entry(pTHX_ const struct entry *entry)
{
    HV *hash = newHV();
    AV *inside = newAV();
    int i;

    for (i = entry->n_inside - 1; i >= 0; i--)
        av_push(inside, newSVpv(entry->inside[i], 0));
    store(aTHX_ hash, "what", newSVpv(entry->what, 0));
    store(aTHX_ hash, "id", newSViv(entry->id));
    store(aTHX_ hash, "thread", newSVpv(entry->foreign ? "foreign" : "main", 0));
    store(aTHX_ hash, "inside", newRV_noinc((SV *)inside));
    store(aTHX_ hash, "in_callback", newSViv(entry->depth));
    if (!strEQ(entry->what, "handle") && !strEQ(entry->what, "timer") && !strEQ(entry->what, "ff")) {
        store(aTHX_ hash, "result", newSViv(entry->result));
        return newRV_noinc((SV *)hash);
    }
    store(aTHX_ hash, "in_own", newSViv(entry->in_own));
    store(aTHX_ hash, "added_as", newSViv(entry->added_as));
    store(aTHX_ hash, "kind", newSVpv(entry->kind, 0));
    if (strEQ(entry->what, "handle")) {
        store(aTHX_ hash, "fd", newSViv(entry->fd));
        store(aTHX_ hash, "events", newSViv(entry->events));
    }
    return newRV_noinc((SV *)hash);
}

XS_INTERNAL(xs_events)
{
    dXSARGS;
    struct entry *entry;

    if (items)
        croak_xs_usage(cv, "");
    pthread_mutex_lock(&mutex);
    entry = log_first;
    log_first = NULL;
    log_end = &log_first;
    pthread_mutex_unlock(&mutex);
    while (entry) {
        struct entry *next = entry->next;
        mXPUSHs(hash_of_entry(aTHX_ entry));
        free(entry);
        entry = next;
    }
    PUTBACK;
}

XS_INTERNAL(xs_register_impl_first)
{
    dXSARGS;
    if (items)
        croak_xs_usage(cv, "");
    virEventRegisterImpl(deaf_add_handle, deaf_update, deaf_remove, deaf_add_timeout, deaf_update, deaf_remove);
    XSRETURN_EMPTY;
}

XS_INTERNAL(xs_register_default_first)
{
    dXSARGS;
    if (items)
        croak_xs_usage(cv, "");
    XSRETURN_IV(virEventRegisterDefaultImpl());
}

XS_EXTERNAL(boot_capi)
{
    dXSARGS;
    if (items)
        croak_xs_usage(cv, "");
    if (virInitialize() < 0)
        croak("Cannot initialise libvirt");
    main_thread = pthread_self();
    newXS("VirtTest::CApi::_run", xs_run, __FILE__);
    newXS("VirtTest::CApi::_run_blocked", xs_run_blocked, __FILE__);
    newXS("VirtTest::CApi::_spawn", xs_spawn, __FILE__);
    newXS("VirtTest::CApi::_is_done", xs_is_done, __FILE__);
    newXS("VirtTest::CApi::_join", xs_join, __FILE__);
    newXS("VirtTest::CApi::_events", xs_events, __FILE__);
    newXS("VirtTest::CApi::_register_impl_first", xs_register_impl_first, __FILE__);
    newXS("VirtTest::CApi::_register_default_first", xs_register_default_first, __FILE__);
    XSRETURN_EMPTY;
}
