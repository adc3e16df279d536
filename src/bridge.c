/* Between libvirt and the loop.
 *
 * What libvirt does, and what follows for the code below:
 *
 * a. It calls the six functions with mutexes of its own held, which are not
 *    recursive. So nothing here calls libvirt back, and a free function is never
 *    run from within the six: it goes on the due list.
 * b. It calls them from threads of its own, also while the owner sits in a
 *    libvirt call that waits for just that thread. So a call of another thread
 *    never waits for the owner: it leaves a note in the mailbox and returns.
 * c. add must return the id at once, also to such a thread. So ids are ours.
 * d. 0 and -1 mean "none" in places, so ids start at 1; late calls for removed
 *    ids do occur, so an id is never used again.
 * e. A caller whose add failed frees the opaque itself; one whose add succeeded
 *    relies on its free function, exactly once, after the callback has returned.
 *    So the due list skips a watch whose callback is on the stack.
 * f. It registers once per process and silently ignores the second attempt. So
 *    the functions are fixed, and the loop behind them can be replaced.
 * g. It knows nothing of fork. A child has the same sockets, and what one process
 *    reads there is lost to the other; at the end of a child a connection that
 *    goes would tell the server to close. So in a child they are silent, see claim.h.
 *
 * One lock guards the table, the mailbox and what watch.h says it does. It is never
 * held while anything foreign runs: no back-end, no callback, no free function. Another one,
 * the bell's, is held while the owner is woken, and by those who change what wakes it: so
 * that an owner who is awake before the waking is done need not wait for that.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "bridge.h"
#include "claim.h"
#include "errors.h"
#include "mailbox.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#if defined(__GLIBC__) && defined(__has_include)
#if __has_include(<sys/single_threaded.h>)
#include <sys/single_threaded.h>
#define SINGLE_THREADED __libc_single_threaded
#endif
#endif
#ifndef SINGLE_THREADED
#define SINGLE_THREADED 0
#endif
#ifdef __linux__
#include <link.h>
#endif

/* A watch of the bridge's own, that nobody asked for. */
struct own_watch {
    sve_watch *watch;
    bool refused, tending;
};

static struct {
    pthread_mutex_t lock, bell;          /* taken in this order; the lock may be left first */
    sve_table table;
    sve_mailbox mailbox;
    int last_id;
    sve_claim *claims, *claim;           /* all, and the one of what is added now */

    sve_loop *_Atomic loop;
    atomic_bool foreign_seen;
    bool driver_seen;
    bool tracing;

    /* Owner. */
    struct own_watch wake, look;
    bool emptying;
    bool shares, looking, hush_due, told;    /* There are silent handles; their claims are looked at; the loop is to
                                              * be told of a change; the program was told. */
    sve_watch *due, **due_end;
    size_t due_count;
    unsigned long last_due;
    int running;
} core = { .lock = PTHREAD_MUTEX_INITIALIZER, .bell = PTHREAD_MUTEX_INITIALIZER, .due_end = &core.due };

static void lock(void) { pthread_mutex_lock(&core.lock); }
static void unlock(void) { pthread_mutex_unlock(&core.lock); }

static void lock_bell(void) { pthread_mutex_lock(&core.bell); }
static void unlock_bell(void) { pthread_mutex_unlock(&core.bell); }

static void lock_with_bell(void)
{
    lock();
    lock_bell();
}

static void unlock_with_bell(void)
{
    unlock_bell();
    unlock();
}

void sve_bridge_trace(bool on) { core.tracing = on; }

/* What the program itself has added is called back by these. */
static virEventHandleCallback programs_handle;
static virEventTimeoutCallback programs_timeout;

static bool is_owner(sve_loop *loop) { return loop && loop->is_owner(loop); }

#define trace(...) do { if (core.tracing) print_trace(__VA_ARGS__); } while (0)

__attribute__((format(printf, 1, 2))) static void print_trace(const char *format, ...)
{
    int saved = errno;
    char what[160];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    fprintf(stderr, "Sys::Virt::Event %ld %s %#lx: %s\n", (long)getpid(),
            is_owner(core.loop) ? "owner" : "thread", (unsigned long)pthread_self(), what);
    errno = saved;
}

static const char *noun(sve_kind kind) { return kind == SVE_HANDLE ? "handle" : "timeout"; }

/* The wake watch, and the timer that looks at the claims of silent handles. */

static void give(sve_loop *loop, struct own_watch *own, sve_watch *watch)
{
    if (!watch)
        return;
    own->watch = watch;
    watch->attached = loop->attach(loop, watch, watch->value);
    if (watch->attached)
        return;
    own->watch = NULL;
    own->refused = true;
    sve_watch_unref(watch);
}

static void take_away(sve_loop *loop, struct own_watch *own)
{
    sve_watch *watch = own->watch;
    own->watch = NULL;
    own->refused = false;
    if (!watch)
        return;
    /* The loop's method may enter, and is not given another one then. */
    own->tending = true;
    watch->attached = false;
    loop->detach(loop, watch);
    sve_watch_unref(watch);
    own->tending = false;
}

static void on_wake(int id, int fd, int events, void *opaque)
{
    (void)id, (void)fd, (void)events, (void)opaque;
    /* Silence first: what is posted after that rings again. */
    lock_bell();
    bool is_ours = sve_mailbox_silence(&core.mailbox);
    unlock_bell();
    /* The program has closed the fd: the delivery gives the loop a new one. */
    if (!is_ours)
        take_away(core.loop, &core.wake);
    sve_bridge_deliver();
}

static void on_look(int id, void *opaque)
{
    (void)id, (void)opaque;
    sve_bridge_deliver();
    if (!core.shares || core.told)
        return;
    core.told = true;
    core.loop->warn(core.loop, "Connections that were opened before this process was forked stay silent, as long as "
                               "the other process lives: call Sys::Virt::Event::adopt() to take them over, "
                               "or forget()");
}

static sve_watch *new_wake_watch(void)
{
    lock_bell();
    int fd = sve_mailbox_fd(&core.mailbox);
    unlock_bell();
    sve_watch *watch = fd < 0 ? NULL
                              : sve_watch_new(SVE_HANDLE, fd, VIR_EVENT_HANDLE_READABLE, NULL, NULL);
    if (watch)
        watch->cb.handle = on_wake;
    return watch;
}

static sve_watch *new_look_timer(void)
{
    sve_watch *watch = sve_watch_new(SVE_TIMER, -1, 1000, NULL, NULL);
    if (watch)
        watch->cb.timer = on_look;
    return watch;
}

/* The driver of a hypervisor that runs in this process is a module of libvirt's. Its threads come with the first
 * machine, and speak up before the owner calls again. */
#ifdef __linux__
/* The count of all loads so far tells whether there is anything new to look at. */
struct look {
    unsigned long long loads_before, loads;
    bool driver;
};

static int look_at(struct dl_phdr_info *object, size_t size, void *opaque)
{
    struct look *look = opaque;
    (void)size;
    look->loads = object->dlpi_adds;
    look->driver |= look->loads != look->loads_before && strstr(object->dlpi_name, "/libvirt_driver_");
    return look->driver || look->loads == look->loads_before;
}

static bool has_driver(void)
{
    static struct look look;
    look.loads_before = look.loads;
    dl_iterate_phdr(look_at, &look);
    return look.driver;
}
#else
static bool has_driver(void) { return false; }
#endif

static bool has_threads(void) { return core.foreign_seen || core.driver_seen || !SINGLE_THREADED; }

/* Nothing depends on it where threads have shown already, or the loop can be woken in any case. */
static void look_for_driver(const sve_loop *loop)
{
    if (!has_threads() && !loop->wake && loop->wake_watch == SVE_WAKE_AUTO)
        core.driver_seen = has_driver();
}

static bool wants_wake_watch(const sve_loop *loop)
{
    if (loop->wake || core.wake.refused)
        return false;
    if (loop->wake_watch != SVE_WAKE_AUTO)
        return loop->wake_watch == SVE_WAKE_ALWAYS;
    return has_threads() && atomic_load(&core.table.count);
}

static void tend(sve_loop *loop, struct own_watch *own, bool wanted, sve_watch *(*new_watch)(void))
{
    if (own->tending || wanted == !!own->watch)
        return;
    own->tending = true;
    if (own->watch)
        take_away(loop, own);
    else if (!own->refused)
        give(loop, own, new_watch());
    own->tending = false;
}

static void tend_own_watches(sve_loop *loop)
{
    tend(loop, &core.wake, wants_wake_watch(loop), new_wake_watch);
    tend(loop, &core.look, core.shares, new_look_timer);
}

bool sve_bridge_is_wake(const sve_watch *watch)
{
    return watch->kind == SVE_HANDLE && watch->cb.handle == on_wake;
}

bool sve_bridge_is_own(const sve_watch *watch)
{
    return sve_bridge_is_wake(watch) || (watch->kind == SVE_TIMER && watch->cb.timer == on_look);
}

/* The table, and claims. Under the lock. */

static bool is_programs(const sve_watch *watch)
{
    return watch->kind == SVE_HANDLE ? watch->cb.handle == programs_handle : watch->cb.timer == programs_timeout;
}

static size_t *counter(sve_claim *claim, sve_kind kind)
{
    return kind == SVE_HANDLE ? &claim->handles : &claim->timers;
}

static void enter_table(sve_watch *watch)
{
    sve_table_insert(&core.table, watch);
    watch->claim = is_programs(watch) ? NULL : core.claim;
    if (watch->claim)
        ++*counter(watch->claim, watch->kind);
}

static void lose_claim(sve_watch *watch)
{
    if (watch->claim)
        --*counter(watch->claim, watch->kind);
    watch->claim = NULL;
}

static void leave_table(sve_watch *watch)
{
    sve_table_remove(&core.table, watch);
    lose_claim(watch);
}

static bool is_silent(const sve_watch *watch)
{
    return watch->kind == SVE_HANDLE && watch->claim && !watch->claim->held;
}

/* What the process does with the socket of a silent handle from now on does not reach the server: it is
 * replaced, under its number, by the end of a pipe that nobody writes to and nobody can write to. */
static void cut(sve_watch *watch)
{
    struct stat is;
    int fds[2];

    if (fstat(watch->fd, &is) < 0 || !S_ISSOCK(is.st_mode) || is.st_dev != watch->device || is.st_ino != watch->inode)
        return;
    lose_claim(watch);
    if (!sve_make_pipe(fds)) {
        close(watch->fd);
        return;
    }
    close(fds[1]);
    sve_replace_fd(watch->fd, fds[0]);
}

/* Later its number may stand for something else: a child may close all fds. */
static void identify(sve_watch *watch)
{
    struct stat is;

    if (!watch->claim || watch->kind != SVE_HANDLE || fstat(watch->fd, &is) < 0)
        return;
    watch->device = is.st_dev;
    watch->inode = is.st_ino;
}

static void begin_claim(void)
{
    core.claim = sve_claim_new();
    if (!core.claim)
        return;
    core.claim->next = core.claims;
    core.claims = core.claim;
}

static void end_claims(bool (*is_over)(const sve_claim *claim))
{
    for (sve_claim **link = &core.claims, *claim; (claim = *link);) {
        if (!is_over(claim)) {
            link = &claim->next;
            continue;
        }
        *link = claim->next;
        sve_claim_free(claim);
    }
}

static bool any_is_over(const sve_claim *claim)
{
    (void)claim;
    return true;
}
static bool empty_is_over(const sve_claim *claim) { return !claim->handles && !claim->timers; }

/* The threads that made the calls are not in the child, and have left behind whatever they had locked. So nothing comes
 * of these calls; only what the loop knows, and was removed, it is told of. */
static void drop_calls(void)
{
    for (size_t left = atomic_load(&core.mailbox.count); left; left--) {
        unsigned calls;
        sve_watch *watch = sve_mailbox_take(&core.mailbox, &calls);
        if (calls & SVE_REMOVE) {
            watch->ff = NULL;
            sve_mailbox_post(&core.mailbox, watch, SVE_REMOVE);
        } else if (calls & SVE_ADD) {
            leave_table(watch);
            sve_watch_unref(watch);
        }
        sve_watch_unref(watch);
    }
}

static void in_child(void)
{
    drop_calls();
    sve_mailbox_renew_fd(&core.mailbox);
    core.shares = core.told = false;
    for (sve_claim *claim = core.claims; claim; claim = claim->next) {
        claim->held = false;
        claim->inherited = true;
        core.shares |= claim->handles != 0;
    }
    end_claims(empty_is_over);
    sve_table_each(&core.table, identify);
    core.hush_due = true;
    core.claim = NULL;
    if (is_owner(core.loop))
        begin_claim();
    /* The loop is to look at the handles before it watches them. */
    if (core.shares || !sve_mailbox_is_empty(&core.mailbox))
        sve_mailbox_ring(&core.mailbox);
    unlock_with_bell();
}

static void see_forks(void) { pthread_atfork(lock_with_bell, unlock_with_bell, in_child); }

void sve_bridge_boot(virEventHandleCallback on_handle, virEventTimeoutCallback on_timeout)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    pthread_once(&once, see_forks);
    programs_handle = on_handle;
    programs_timeout = on_timeout;
}

/* What the owner does for libvirt, directly or out of the mailbox. */

static void put_on_due_list(sve_watch *watch)
{
    watch->due_as = ++core.last_due;
    watch->next_due = NULL;
    *core.due_end = watch;
    core.due_end = &watch->next_due;
    core.due_count++;
}

/* The watch has left the table; its reference is ours to pass on or drop. */
static void retire(sve_loop *loop, sve_watch *watch)
{
    if (watch->attached) {
        watch->attached = false;
        loop->detach(loop, watch);
    }
    if (watch->ff)
        put_on_due_list(watch);
    else
        sve_watch_unref(watch);
}

/* The loop is not told of the mask that it has. An interval it is told of in any case: that starts anew. */
static void change(sve_loop *loop, sve_watch *watch, int value)
{
    if (!watch->attached || (watch->kind == SVE_HANDLE && watch->told == value))
        return;
    watch->told = value;
    loop->update(loop, watch, value);
    /* The loop's method has told it something else meanwhile, and nobody knows which came last. */
    if (watch->told != value)
        watch->told = SVE_UNTOLD;
}

static bool attach(sve_loop *loop, sve_watch *watch, int value)
{
    watch->told = value;
    return watch->attached = loop->attach(loop, watch, value);
}

static void carry_out(sve_loop *loop, sve_watch *watch, unsigned calls, int value)
{
    if (calls & SVE_REMOVE) {
        retire(loop, watch);
    } else if (calls & SVE_ADD) {
        watch->attaching = true;
        attach(loop, watch, value);
        watch->attaching = false;
    } else if (calls & SVE_UPDATE) {
        if (calls & SVE_CUT)
            watch->told = SVE_UNTOLD;
        change(loop, watch, value);
    }
}

/* Only as many as were there at the start: a busy thread must not hold the owner up. Not from within
 * itself: a call must not overtake the one for the same id that is being carried out. An attach may replace the
 * loop. */
static void empty_mailbox(void)
{
    if (core.emptying)
        return;
    core.emptying = true;
    for (size_t left = atomic_load(&core.mailbox.count); left; left--) {
        unsigned calls;
        lock();
        sve_watch *watch = sve_mailbox_take(&core.mailbox, &calls);
        int value = watch ? watch->value : 0;
        if (watch && is_silent(watch))
            calls &= ~SVE_UPDATE;
        unlock();
        if (!watch)
            break;
        carry_out(core.loop, watch, calls, value);
        sve_watch_unref(watch);
    }
    core.emptying = false;
}

/* Under the bell. */
static void wake_owner(void)
{
    sve_loop *loop = core.loop;
    if (loop && loop->wake)
        loop->wake(loop);
    else
        sve_mailbox_ring(&core.mailbox);
}

/* What came while the mailbox was not empty, or before it had its fd, has woken nobody. */
static void wake_for_the_rest(void)
{
    if (sve_mailbox_is_empty(&core.mailbox))
        return;
    lock_bell();
    wake_owner();
    unlock_bell();
}

static bool needs_delivery(sve_loop *loop)
{
    return !sve_mailbox_is_empty(&core.mailbox) || core.shares
        || (loop && wants_wake_watch(loop) != !!core.wake.watch);
}

static bool is_to_be_silent(const sve_watch *watch)
{
    lock();
    bool silent = is_silent(watch);
    unlock();
    return silent;
}

/* Silent handles are masked off in the loop, which would be busy with them for nothing; the others are not. */
static void hush(sve_loop *loop)
{
    size_t count;
    sve_watch **list = sve_bridge_list(&count);

    core.hush_due = !list && count;
    for (size_t i = 0; list && i < count; i++) {
        if (list[i]->kind == SVE_HANDLE)
            change(loop, list[i], is_to_be_silent(list[i]) ? 0 : sve_bridge_value(list[i]));
    }
    if (list)
        sve_bridge_list_free(list, count);
}

static void look_at_claims(sve_loop *loop)
{
    if (core.looking)
        return;
    core.looking = true;
    lock();
    core.shares = false;
    for (sve_claim *claim = core.claims; claim; claim = claim->next) {
        if (!claim->held && claim->handles)
            core.hush_due |= claim->held = sve_claim_take(claim);
        core.shares |= claim->handles && !claim->held;
    }
    unlock();
    if (core.hush_due)
        hush(loop);
    core.looking = false;
}

/* Every call of libvirt begins and ends with these two. */
static sve_loop *enter(void)
{
    sve_loop *loop = core.loop;
    if (!is_owner(loop))
        return NULL;
    if (core.shares || core.hush_due)
        look_at_claims(loop);
    if (!sve_mailbox_is_empty(&core.mailbox))
        empty_mailbox();
    return core.loop;
}

static void leave(sve_loop *loop)
{
    tend_own_watches(loop);
    wake_for_the_rest();
    if (core.due)
        loop->later(loop);
}

void sve_bridge_deliver(void)
{
    sve_loop *loop = enter();
    if (loop)
        leave(loop);
}

/* The end of another thread's call: gives up the lock. */
static void post_and_unlock(sve_watch *watch, unsigned call)
{
    core.foreign_seen = true;
    bool wakes = sve_mailbox_post(&core.mailbox, watch, call);
    if (wakes)
        lock_bell();
    unlock();
    if (!wakes)
        return;
    wake_owner();
    unlock_bell();
}

static bool take_id(sve_watch *watch)
{
    lock();
    bool left = core.last_id < INT_MAX;
    if (left)
        watch->id = ++core.last_id;
    unlock();
    return left;
}

/* Nobody has heard of it. */
static void give_back_id(const sve_watch *watch)
{
    lock();
    if (core.last_id == watch->id)
        core.last_id--;
    unlock();
}

static void insert(sve_watch *watch, unsigned call)
{
    lock();
    enter_table(watch);
    if (call)
        post_and_unlock(watch, call);
    else
        unlock();
}

/* The id, or -1. The watch is in the table only once the loop has it: before that no one
 * can know the id. From another thread it is the other way round. */
static int add(sve_watch *watch)
{
    int id = -1;
    if (!watch || !core.loop || !take_id(watch)) {
        if (watch)
            sve_watch_unref(watch);
        return -1;
    }
    sve_loop *loop = enter();
    if (!loop) {
        id = watch->id;
        watch->foreign = true;
        insert(watch, SVE_ADD);
        return id;
    }
    if (attach(loop, watch, watch->value)) {
        id = watch->id;
        insert(watch, 0);
        look_for_driver(loop);
    } else {
        give_back_id(watch);
        sve_watch_unref(watch);
    }
    leave(core.loop);
    return id;
}

static sve_watch *find(sve_kind kind, int id)
{
    sve_watch *watch = sve_table_find(&core.table, id);
    return watch && watch->kind == kind ? watch : NULL;
}

/* Whether the owner may carry the call out at once. It may not while the watch is just being
 * attached, out of the mailbox: then its call waits there, too. */
static bool is_direct(sve_loop *loop, const sve_watch *watch) { return loop && !watch->attaching; }

static void update(sve_kind kind, int id, int value)
{
    sve_loop *loop = enter();
    bool direct = false, is_posted = false;
    unsigned calls = 0;

    trace("update_%s(%d, %d)", noun(kind), id, value);
    lock();
    sve_watch *watch = find(kind, id);
    if (watch) {
        watch->value = value;
        /* Before it uses the socket itself, libvirt asks the loop to leave it alone. */
        bool is_cut = value == 0 && is_silent(watch);
        if (is_cut)
            cut(watch);
        direct = is_direct(loop, watch);
        if (direct && is_cut)
            watch->told = SVE_UNTOLD;    /* the fd stands for another file */
        is_posted = !direct;
        calls = SVE_UPDATE | (is_cut ? SVE_CUT : 0);
        direct = direct && !is_silent(watch);
    }
    if (is_posted)
        post_and_unlock(watch, calls);
    else
        unlock();
    if (direct) {
        sve_watch_hold(watch);
        change(loop, watch, value);
        sve_watch_release(watch);
    }
    if (loop)
        leave(loop);
}

static int remove_(sve_kind kind, int id)
{
    sve_loop *loop = enter();
    bool direct = false;

    trace("remove_%s(%d)", noun(kind), id);
    lock();
    sve_watch *watch = find(kind, id);
    if (watch) {
        leave_table(watch);
        direct = is_direct(loop, watch);
        if (direct)
            watch->pending = 0;
    }
    if (watch && !direct)
        post_and_unlock(watch, SVE_REMOVE);
    else
        unlock();
    if (direct)
        retire(loop, watch);
    if (loop)
        leave(loop);
    return watch ? 0 : -1;
}

/* The six. */

static int add_handle(int fd, int events, virEventHandleCallback cb, void *opaque, virFreeCallback ff)
{
    sve_watch *watch = sve_watch_new(SVE_HANDLE, fd, events, opaque, ff);
    if (watch)
        watch->cb.handle = cb;
    int id = add(watch);
    trace("add_handle(fd %d, %d) = %d", fd, events, id);
    return id;
}

static void update_handle(int id, int events) { update(SVE_HANDLE, id, events); }
static int remove_handle(int id) { return remove_(SVE_HANDLE, id); }

static atomic_bool probe_came;
static void probe_callback(int id, void *opaque) { (void)id, (void)opaque; }

static int add_timeout(int ms, virEventTimeoutCallback cb, void *opaque, virFreeCallback ff)
{
    if (cb == probe_callback) {
        probe_came = true;
        return -1;
    }
    sve_watch *watch = sve_watch_new(SVE_TIMER, -1, ms, opaque, ff);
    if (watch)
        watch->cb.timer = cb;
    int id = add(watch);
    trace("add_timeout(%d) = %d", ms, id);
    return id;
}

static void update_timeout(int id, int ms) { update(SVE_TIMER, id, ms); }
static int remove_timeout(int id) { return remove_(SVE_TIMER, id); }

const sve_functions sve_bridge_functions = {
    add_handle, update_handle, remove_handle, add_timeout, update_timeout, remove_timeout
};

sve_registrant sve_bridge_probe(void)
{
    probe_came = false;
    int id = virEventAddTimeout(-1, probe_callback, NULL, NULL);
    if (id >= 0)
        virEventRemoveTimeout(id);
    return probe_came ? SVE_US : (id >= 0 ? SVE_OTHERS : SVE_NOBODY);
}

/* Callbacks and free functions. */

sve_verdict sve_bridge_begin(sve_watch *watch)
{
    if (needs_delivery(core.loop)) {
        /* A removal delivered now may end the token, and with it the caller's hold on the watch. */
        sve_watch_ref(watch);
        sve_bridge_deliver();
        bool gone = !watch->attached || (core.shares && is_to_be_silent(watch));
        sve_watch_unref(watch);
        if (gone)
            return SVE_GONE;
    }
    if (!watch->attached)
        return SVE_GONE;
    if (watch->running)
        return SVE_BUSY;
    sve_watch_begin(watch);
    core.running++;
    return SVE_GO;
}

void sve_bridge_end(sve_watch *watch)
{
    sve_loop *loop = core.loop;
    bool due = watch->due_as && watch->running == 1;

    if (due)
        watch->due_as = ++core.last_due;
    sve_watch_end(watch);
    core.running--;
    if (due && loop)
        loop->later(loop);
}

void sve_bridge_call(sve_watch *watch, int events)
{
    if (watch->kind == SVE_HANDLE) {
        trace("call back handle %d (fd %d, %d)", watch->id, watch->fd, events);
        watch->cb.handle(watch->id, watch->fd, events, watch->opaque);
    } else {
        trace("call back timeout %d", watch->id);
        watch->cb.timer(watch->id, watch->opaque);
    }
}

static sve_watch *take_due(unsigned long from)
{
    sve_watch **link = &core.due, *watch;
    while (*link && ((*link)->running || (*link)->due_as < from))
        link = &(*link)->next_due;
    watch = *link;
    if (watch) {
        *link = watch->next_due;
        if (!*link)
            core.due_end = link;
        core.due_count--;
    }
    return watch;
}

unsigned long sve_bridge_last_due(void) { return core.last_due; }
bool sve_bridge_has_due(void) { return core.due; }

void sve_bridge_settle(unsigned long from)
{
    sve_errors errors;
    sve_errors_put_aside(&errors);

    /* A free function may remove other watches, and settle in its turn: look from the start each time. */
    for (sve_watch *watch; (watch = take_due(from));) {
        virFreeCallback ff = watch->ff;
        void *opaque = watch->opaque;
        trace("free %s %d", noun(watch->kind), watch->id);
        sve_watch_unref(watch);
        ff(opaque);
    }
    sve_errors_put_back(&errors);
}

/* For those who ask. */

void sve_bridge_let_go(void)
{
    take_away(core.loop, &core.wake);
    take_away(core.loop, &core.look);
}

void sve_bridge_set_loop(sve_loop *loop)
{
    lock_bell();                         /* another thread may just be waking the one before */
    core.loop = loop;
    unlock_bell();
    if (!core.claim)
        begin_claim();
    leave(loop);
}

static void forget_own(struct own_watch *own)
{
    if (own->watch)
        sve_watch_unref(own->watch);
    *own = (struct own_watch){ NULL, false, false };
}

static void abandon(sve_watch *watch)
{
    watch->attached = false;
    watch->claim = NULL;
    sve_watch_unref(watch);
}

void sve_bridge_abandon(void)
{
    unsigned calls;
    sve_watch *watch;

    lock_with_bell();
    core.loop = NULL;
    while ((watch = sve_mailbox_take(&core.mailbox, &calls))) {
        watch->attached = false;
        if (calls & SVE_REMOVE)
            sve_watch_unref(watch);
        sve_watch_unref(watch);
    }
    sve_table_clear(&core.table, abandon);
    end_claims(any_is_over);
    core.claim = NULL;
    unlock_with_bell();
    while ((watch = core.due)) {
        core.due = watch->next_due;
        sve_watch_unref(watch);
    }
    forget_own(&core.wake);
    forget_own(&core.look);
    core.emptying = core.looking = core.shares = core.hush_due = false;
    core.due_end = &core.due;
    core.due_count = 0;
    core.running = 0;
}

void sve_bridge_adopt(void)
{
    lock();
    for (sve_claim *claim = core.claims; claim; claim = claim->next) {
        if (!claim->held && !sve_claim_take(claim))
            sve_claim_renew(claim);
        claim->held = true;
        claim->inherited = false;
    }
    core.hush_due = true;
    unlock();
    sve_bridge_deliver();
}

/* Whether it was inherited, and has left the table. */
static bool forget(sve_watch *watch)
{
    lock();
    bool forgotten = watch->claim && watch->claim->inherited;
    if (forgotten) {
        leave_table(watch);
        watch->ff = NULL;
        if (watch->kind == SVE_HANDLE)
            cut(watch);
    }
    unlock();
    return forgotten;
}

void sve_bridge_forget(void)
{
    size_t count;
    sve_watch **list = sve_bridge_list(&count);

    for (size_t i = 0; list && i < count; i++)
        if (forget(list[i]))
            retire(core.loop, list[i]);
    if (list)
        sve_bridge_list_free(list, count);
    sve_bridge_deliver();
}

bool sve_bridge_gave(int id)
{
    lock();
    bool gave = id >= 1 && id <= core.last_id;
    unlock();
    return gave;
}

bool sve_bridge_has(sve_kind kind, int id)
{
    lock();
    bool has = find(kind, id) != NULL;
    unlock();
    return has;
}

int sve_bridge_value(sve_watch *watch)
{
    lock();
    int value = watch->value;
    unlock();
    return value;
}

sve_watch **sve_bridge_list(size_t *count)
{
    lock();
    sve_watch **list = sve_table_list(&core.table, count);
    unlock();
    return list;
}

void sve_bridge_list_free(sve_watch **list, size_t count)
{
    for (size_t i = 0; i < count; i++)
        sve_watch_unref(list[i]);
    free(list);
}

/* Under the lock libvirt cannot remove the handle, and close the socket, meanwhile. */
void sve_bridge_hang_up(int first, int last)
{
    lock();
    for (size_t i = 0; core.table.buckets && i < core.table.size; i++)
        for (const sve_watch *watch = core.table.buckets[i]; watch; watch = watch->next_in_bucket)
            if (watch->kind == SVE_HANDLE && watch->claim && !watch->foreign
                && watch->id >= first && watch->id <= last)
                shutdown(watch->fd, SHUT_RDWR);
    unlock();
}

sve_census sve_bridge_census(void)
{
    sve_census census = { .due = core.due_count, .running = core.running };

    lock();
    /* A removal of another thread that came after the last delivery is still to be carried out. */
    for (const sve_watch *watch = core.mailbox.head; watch; watch = watch->next_posted)
        census.due += (watch->pending & SVE_REMOVE) != 0;
    for (size_t i = 0; core.table.buckets && i < core.table.size; i++)
        for (const sve_watch *watch = core.table.buckets[i]; watch; watch = watch->next_in_bucket)
            watch->kind == SVE_HANDLE ? census.handles++ : census.timers++;
    unlock();
    return census;
}
