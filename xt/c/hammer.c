/* The pure C core under fire: threads that do not own the loop call the six functions at random, while the owner
 * dispatches, calls, delivers, settles and sleeps. The back-end here checks all that it is told.
 *
 *     hammer WAKE SEED SECONDS
 *
 * WAKE is function (the back-end's own), always or auto (the wake watch). After so many seconds SIGALRM ends it:
 * threads wait for the owner now and then, so a lost wake-up stops everything.
 *
 * Who may call for an id is settled on a board of atomic words. These are relaxed, as is everything else that
 * threads share here: only the core's own lock orders what they do, and ThreadSanitizer sees what it does not guard.
 */
#define _GNU_SOURCE
#include "bridge.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
    THREADS = 8,
    CALLS_OF_THREADS = 100000,
    CALLS_OF_OWNER = 50000,
    CALLS_BETWEEN_WAITS = 4,
    RECORDS = CALLS_OF_THREADS + CALLS_OF_OWNER + 1000,
    BOARD = 64,
    STALE = 16,
    DEEPEST = 3,
};

#define check(what) ((what) ? (void)0 : fail(#what, __LINE__))

__attribute__((noreturn)) static void fail(const char *what, int line)
{
    fprintf(stderr, "hammer.c:%d: this is not so: %s\n", line, what);
    _exit(1);
}

/* What libvirt would pass as opaque. */
typedef enum {
    ASKED_FOR,
    ATTACHED,
    REFUSED,
    DETACHED,
} state;

typedef struct {
    sve_kind kind;
    int fd, first_value;
    bool wants_free;
    atomic_int id;                       /* what add returned */
    atomic_int seen;                     /* the value that the back-end was told last; -1 when it refused */

    /* Owner. */
    state state;
    int value, running, freed;
    sve_watch *watch;
    size_t place;                        /* in live */
} record;

static record records[RECORDS];
static atomic_int record_count;
static atomic_bool removed[RECORDS];     /* by id: somebody has begun to remove it */

/* Everything below is the owner's. */
static record *by_id[RECORDS];
static record *live[RECORDS];
static size_t live_count;
static sve_watch *stale[STALE], *wake;
static int in_backend, in_call, depth;
static bool is_due;
static unsigned long callbacks, frees, gone, busy, wake_ups;

static pthread_t owner;
static bool is_owner(sve_loop *loop)
{
    (void)loop;
    return pthread_equal(pthread_self(), owner);
}

/* Random numbers of one caller, and how many calls it has made. */
typedef struct {
    uint64_t random;
    int calls;
} caller;
static caller the_owner;

static unsigned below(caller *self, unsigned limit)
{
    self->random ^= self->random << 13;
    self->random ^= self->random >> 7;
    self->random ^= self->random << 17;
    return (unsigned)(self->random >> 32) % limit;
}

static bool one_in(caller *self, unsigned n) { return below(self, n) == 0; }

/* The right to call for an id, and the value it was given last. */
typedef struct {
    int id, value;
    sve_kind kind;
} ticket;
static _Atomic uint64_t board[BOARD];

static uint64_t word_of(ticket t) { return (uint64_t)t.value << 32 | (uint64_t)t.id << 1 | (uint64_t)t.kind; }
static ticket ticket_of(uint64_t word)
{
    return (ticket){ .id = (int)((word & UINT32_MAX) >> 1), .value = (int)(word >> 32), .kind = (sve_kind)(word & 1) };
}

static bool take(unsigned place, ticket *t)
{
    *t = ticket_of(atomic_exchange_explicit(&board[place], 0, memory_order_relaxed));
    return t->id != 0;
}

static bool put_up(caller *self, ticket t)
{
    uint64_t none = 0;
    return atomic_compare_exchange_strong_explicit(&board[below(self, BOARD)], &none, word_of(t),
                                                   memory_order_relaxed, memory_order_relaxed);
}

/* The calls. */

static void on_call(record *it, int id);
static void on_handle(int id, int fd, int events, void *opaque)
{
    record *it = opaque;
    check(fd == it->fd && events == 1);
    on_call(it, id);
}
static void on_timeout(int id, void *opaque) { on_call(opaque, id); }
static void on_free(void *opaque);

static void begin_call(caller *self)
{
    self->calls++;
    if (self == &the_owner)
        in_call++;
}

static void end_call(caller *self)
{
    if (self == &the_owner)
        in_call--;
}

/* Whether the back-end knows by now what the caller has asked for. */
static bool is_done_at_once(const caller *self) { return self == &the_owner && !in_backend; }

static int call_add(caller *self, record *it)
{
    virFreeCallback free_function = it->wants_free ? on_free : NULL;
    begin_call(self);
    int id = it->kind == SVE_HANDLE
        ? sve_bridge_functions.add_handle(it->fd, it->first_value, on_handle, it, free_function)
        : sve_bridge_functions.add_timeout(it->first_value, on_timeout, it, free_function);
    end_call(self);
    atomic_store_explicit(&it->id, id, memory_order_relaxed);
    check(id > 0 || (id == -1 && self == &the_owner && it->state == REFUSED));
    if (id > 0 && self == &the_owner)
        check(it->state == ATTACHED && it->watch->id == id);
    return id;
}

static record *new_record(caller *self)
{
    int n = atomic_fetch_add_explicit(&record_count, 1, memory_order_relaxed);
    check(n < RECORDS);
    record *it = &records[n];
    it->kind = below(self, 2) ? SVE_HANDLE : SVE_TIMER;
    it->fd = (int)below(self, 1000);
    it->first_value = 1;
    it->wants_free = !one_in(self, 8);
    return it;
}

static void call_update(caller *self, ticket *t)
{
    t->value++;
    begin_call(self);
    if (t->kind == SVE_HANDLE)
        sve_bridge_functions.update_handle(t->id, t->value);
    else
        sve_bridge_functions.update_timeout(t->id, t->value);
    end_call(self);
    if (is_done_at_once(self)) {
        check(by_id[t->id]);
        check(by_id[t->id]->state != ATTACHED || by_id[t->id]->value == t->value);
    }
}

static int remove_as(caller *self, sve_kind kind, int id)
{
    begin_call(self);
    int result = kind == SVE_HANDLE ? sve_bridge_functions.remove_handle(id) : sve_bridge_functions.remove_timeout(id);
    end_call(self);
    return result;
}

static void call_remove(caller *self, ticket t)
{
    if (one_in(self, 8))
        check(remove_as(self, t.kind == SVE_HANDLE ? SVE_TIMER : SVE_HANDLE, t.id) == -1);
    atomic_store_explicit(&removed[t.id], true, memory_order_relaxed);
    check(remove_as(self, t.kind, t.id) == 0);
    if (is_done_at_once(self))
        check(by_id[t.id]->state == REFUSED || by_id[t.id]->state == DETACHED);
    if (one_in(self, 8)) {
        check(remove_as(self, t.kind, t.id) == -1);
        call_update(self, &t);
    }
}

static void turn(caller *self)
{
    ticket t;
    if (!take(below(self, BOARD), &t)) {
        record *it = new_record(self);
        t = (ticket){ .id = call_add(self, it), .value = it->first_value, .kind = it->kind };
        if (t.id < 0)
            return;
    }
    for (unsigned n = below(self, 4); n; n--)
        call_update(self, &t);
    if (one_in(self, 3) || !put_up(self, t))
        call_remove(self, t);
}

static void own_turn(void)
{
    if (depth < DEEPEST && the_owner.calls < CALLS_OF_OWNER) {
        depth++;
        turn(&the_owner);
        depth--;
    }
}

/* The back-end. */

static void enter_backend(void)
{
    check(is_owner(NULL));
    in_backend++;
}

/* Methods of a Perl object may call libvirt in their turn. */
static void leave_backend(void)
{
    if (one_in(&the_owner, 32))
        own_turn();
    in_backend--;
}

static bool attach(sve_loop *loop, sve_watch *watch, int value)
{
    (void)loop;
    check(is_owner(NULL));
    if (sve_bridge_is_wake(watch)) {
        check(!wake);
        wake = sve_watch_ref(watch);
        return true;
    }
    enter_backend();
    record *it = watch->opaque;
    check(it->state == ASKED_FOR && !it->freed && watch->kind == it->kind && value >= it->first_value);
    check(it->kind == SVE_TIMER || watch->fd == it->fd);
    by_id[watch->id] = it;
    it->state = one_in(&the_owner, 32) ? REFUSED : ATTACHED;
    bool taken = it->state == ATTACHED;
    if (taken) {
        it->watch = sve_watch_ref(watch);
        it->value = value;
        it->place = live_count;
        live[live_count++] = it;
    }
    atomic_store_explicit(&it->seen, taken ? value : -1, memory_order_relaxed);
    leave_backend();
    return taken;
}

static void update(sve_loop *loop, sve_watch *watch, int value)
{
    (void)loop;
    enter_backend();
    record *it = watch->opaque;
    check(it->state == ATTACHED && it->watch == watch && value >= it->value);
    it->value = value;
    atomic_store_explicit(&it->seen, value, memory_order_relaxed);
    leave_backend();
}

/* Loops do dispatch what was removed earlier in the same pass. */
static void keep_for_a_while(sve_watch *watch)
{
    sve_watch **place = &stale[below(&the_owner, STALE)];
    if (*place)
        sve_watch_unref(*place);
    *place = watch;
}

static void detach(sve_loop *loop, sve_watch *watch)
{
    (void)loop;
    check(is_owner(NULL));
    if (sve_bridge_is_wake(watch)) {
        check(watch == wake);
        wake = NULL;
        sve_watch_unref(watch);
        return;
    }
    enter_backend();
    record *it = watch->opaque;
    check(it->state == ATTACHED && it->watch == watch && !it->freed);
    it->state = DETACHED;
    live[it->place] = live[--live_count];
    live[it->place]->place = it->place;
    keep_for_a_while(watch);
    leave_backend();
}

static void later(sve_loop *loop)
{
    (void)loop;
    check(is_owner(NULL));
    is_due = true;
}

static int bell[2], done[2];

static void ring(sve_loop *loop)
{
    (void)loop;
    /* A full pipe is readable already. */
    if (write(bell[1], "", 1) < 0)
        return;
}

static sve_loop backend = {
    .is_owner = is_owner, .attach = attach, .update = update, .detach = detach, .later = later
};

/* What the owner does of its own accord. */

static void settle(void)
{
    is_due = false;
    sve_bridge_settle(0);
}

static void dispatch(sve_watch *watch)
{
    switch (sve_bridge_begin(watch)) {
    case SVE_GO:
        sve_bridge_call(watch, 1);
        sve_bridge_end(watch);
        break;
    case SVE_GONE:
        gone++;
        break;
    case SVE_BUSY:
        busy++;
        break;
    }
}

static void dispatch_one(void)
{
    if (!live_count)
        return;
    sve_watch *watch = sve_watch_ref(live[below(&the_owner, (unsigned)live_count)]->watch);
    dispatch(watch);
    sve_watch_unref(watch);
}

static void dispatch_stale(void)
{
    sve_watch *watch = stale[below(&the_owner, STALE)];
    if (!watch)
        return;
    sve_watch_ref(watch);
    check(sve_bridge_begin(watch) == SVE_GONE);
    sve_watch_unref(watch);
}

/* The callback that removes itself, where nobody else is just calling for it. */
static void remove_if_on_board(int id)
{
    for (unsigned i = 0; i < BOARD; i++) {
        ticket t = ticket_of(atomic_load_explicit(&board[i], memory_order_relaxed));
        if (t.id != id || !take(i, &t))
            continue;
        call_remove(&the_owner, t);
        return;
    }
}

static void on_call(record *it, int id)
{
    check(is_owner(NULL) && !in_call && !in_backend);
    check(it->state == ATTACHED && it->watch->id == id && !it->running && !it->freed);
    callbacks++;
    it->running++;
    if (one_in(&the_owner, 4))
        remove_if_on_board(id);
    if (one_in(&the_owner, 2))
        own_turn();
    if (one_in(&the_owner, 4)) {
        check(sve_bridge_begin(it->watch) != SVE_GO);
        settle();
    }
    if (depth < DEEPEST && one_in(&the_owner, 2)) {
        depth++;
        dispatch_one();
        depth--;
    }
    it->running--;
}

static void on_free(void *opaque)
{
    record *it = opaque;
    int id = atomic_load_explicit(&it->id, memory_order_relaxed);
    check(is_owner(NULL) && !in_call && !in_backend);
    check(it->wants_free && it->freed == 0 && !it->running && it->state != ATTACHED);
    check(id > 0 && atomic_load_explicit(&removed[id], memory_order_relaxed));
    it->freed++;
    frees++;
    if (one_in(&the_owner, 32))
        own_turn();
}

static void answer_wake_up(void)
{
    char sink[64];
    wake_ups++;
    if (!backend.wake) {
        dispatch(wake);
        return;
    }
    while (read(bell[0], sink, sizeof sink) == sizeof sink)
        continue;
    sve_bridge_deliver();
}

/* Returns how many threads have ended meanwhile. */
static int sleep_till_woken(void)
{
    char ended[THREADS];
    check(backend.wake || wake);
    struct pollfd fds[] = {
        { .fd = backend.wake ? bell[0] : wake->fd, .events = POLLIN }, { .fd = done[0], .events = POLLIN }
    };
    while (poll(fds, 2, -1) < 0)
        continue;
    if (fds[0].revents)
        answer_wake_up();
    return fds[1].revents ? (int)read(done[0], ended, sizeof ended) : 0;
}

static void run_until_threads_end(void)
{
    /* Only now has the process threads, for which the loop gets its wake watch. */
    sve_bridge_deliver();
    for (int left = THREADS; left;) {
        if (is_due)
            settle();
        switch (below(&the_owner, 8)) {
        case 0: own_turn(); break;
        case 1: dispatch_stale(); break;
        case 2:
        case 3: left -= sleep_till_woken(); break;
        default: dispatch_one();
        }
    }
}

/* The threads. */

static void wait_for_the_owner(caller *self)
{
    record *it = new_record(self);
    ticket t = { .id = call_add(self, it), .value = it->first_value, .kind = it->kind };
    if (one_in(self, 2))
        call_update(self, &t);
    for (int seen = 0; seen != t.value && seen != -1;) {
        nanosleep(&(struct timespec){ .tv_nsec = 20000 }, NULL);
        seen = atomic_load_explicit(&it->seen, memory_order_relaxed);
    }
    call_remove(self, t);
}

static void *hammer(void *opaque)
{
    caller *self = opaque;
    while (self->calls < CALLS_OF_THREADS / THREADS) {
        int next_wait = self->calls + CALLS_BETWEEN_WAITS;
        while (self->calls < next_wait)
            turn(self);
        wait_for_the_owner(self);
    }
    check(write(done[1], "", 1) == 1);
    return NULL;
}

static int run_threads(uint64_t seed)
{
    pthread_t threads[THREADS];
    caller callers[THREADS] = { 0 };
    int calls = 0;
    for (int i = 0; i < THREADS; i++) {
        callers[i].random = (seed + (uint64_t)i + 1) * 0x9e3779b97f4a7c15;
        check(pthread_create(&threads[i], NULL, hammer, &callers[i]) == 0);
    }
    run_until_threads_end();
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        calls += callers[i].calls;
    }
    return calls;
}

/* What is left when all threads have ended. */

static void check_and_remove_survivors(int lasting)
{
    size_t registered = 1, count;
    ticket t;
    sve_bridge_deliver();
    for (unsigned i = 0; i < BOARD; i++) {
        t = ticket_of(atomic_load(&board[i]));
        if (!t.id)
            continue;
        registered++;
        check(sve_bridge_has(t.kind, t.id));
        check(by_id[t.id]->state == REFUSED || by_id[t.id]->value == t.value);
        check(by_id[t.id]->freed == 0);
    }
    sve_census census = sve_bridge_census();
    check(census.handles + census.timers == registered);
    for (unsigned i = 0; i < BOARD; i++)
        if (take(i, &t))
            call_remove(&the_owner, t);
    call_remove(&the_owner, (ticket){ .id = lasting, .kind = SVE_TIMER });
    settle();
    check(sve_bridge_list(&count) == NULL && count == 0);
    census = sve_bridge_census();
    check(!census.handles && !census.timers && !census.due && !census.running && !live_count);
}

static void check_records(void)
{
    for (int i = 0; i < record_count; i++) {
        const record *it = &records[i];
        check(it->state != ATTACHED && !it->running);
        check(it->freed == (it->id > 0 && it->wants_free));
    }
}

static void let_go(void)
{
    sve_bridge_let_go();
    check(!wake);
    sve_bridge_abandon();
    for (int i = 0; i < STALE; i++)
        if (stale[i])
            sve_watch_unref(stale[i]);
}

/* There is a wake watch only while something is registered. The back-end must not refuse this one. */
static int add_lasting(void)
{
    record *it = new_record(&the_owner);
    it->kind = SVE_TIMER;
    int id;
    do {
        it->state = ASKED_FOR;
        id = call_add(&the_owner, it);
    } while (id < 0);
    return id;
}

int main(int argc, char **argv)
{
    if (argc != 4) {
        fprintf(stderr, "Usage: hammer function|always|auto SEED SECONDS\n");
        return 2;
    }
    uint64_t seed = strtoull(argv[2], NULL, 10);
    alarm((unsigned)atoi(argv[3]));
    if (strcmp(argv[1], "function") == 0)
        backend.wake = ring;
    else
        backend.wake_watch = strcmp(argv[1], "auto") == 0 ? SVE_WAKE_AUTO : SVE_WAKE_ALWAYS;
    owner = pthread_self();
    the_owner.random = (seed + THREADS + 1) * 0x9e3779b97f4a7c15;
    check(virInitialize() == 0 && pipe2(bell, O_NONBLOCK) == 0 && pipe(done) == 0);

    sve_bridge_boot(NULL, NULL);
    sve_bridge_set_loop(&backend);
    int lasting = add_lasting();
    int calls = run_threads(seed);
    the_owner.calls = CALLS_OF_OWNER;
    check_and_remove_survivors(lasting);
    check_records();
    let_go();
    printf("%d calls, %d watches, %lu callbacks, %lu gone, %lu busy, %lu frees, %lu wake-ups\n",
           calls, record_count, callbacks, gone, busy, frees, wake_ups);
    return 0;
}
