#include "ev_loop.h"
#include "callback.h"
#include "readiness.h"
#include "registration.h"

#include <pthread.h>
#include <stdlib.h>

#include <EV/EVAPI.h>

#ifndef ev_io_modify                     /* EV before 4.32 */
#define ev_io_modify(io, events) ev_io_set((io), (io)->fd, (events))
#endif

enum {
    READ_OR_WRITE = VIR_EVENT_HANDLE_READABLE | VIR_EVENT_HANDLE_WRITABLE,
    ERRORS = VIR_EVENT_HANDLE_ERROR | VIR_EVENT_HANDLE_HANGUP,
};

/* How long an fd is left alone, in seconds, on which there is something that nobody wants, or which libev cannot
 * watch. */
#define PAUSE 0.1

typedef struct ev_slot ev_slot;

/* The end of a handle's pause. Few ever have one, and EV's watchers are large. */
typedef struct {
    ev_timer timer;                      /* must be first */
    ev_slot *slot;
} ev_pause;

/* watch->slot. */
struct ev_slot {
    union {                              /* must be first */
        ev_io io;
        ev_timer timer;
    };
    ev_pause *pause;                     /* handles; NULL: there was none yet */
    sve_watch *watch;                    /* with a reference */
    int value;                           /* event mask or ms */
    bool missed;                         /* it came while the callback was running */
};

static struct {
    struct ev_loop *loop;                /* NULL: it does not serve */
    SV *object;                          /* Perl's, which keeps it */
    bool hold;                           /* what is registered keeps the loop running */
    size_t registered;
    ev_async wake;
    ev_fork forked;
} ev;

/* What shall not keep the loop running is not counted by it. What libev has stopped by itself, since it has happened,
 * is counted again when it is called for that, or when that is called off. */

static void uncount(void)
{
    if (!ev.hold && ev.loop)
        ev_unref(ev.loop);
}

static void count(void)
{
    if (!ev.hold && ev.loop)
        ev_ref(ev.loop);
}

static void stop_io(ev_io *io)
{
    if (!ev_is_active(io) && !ev_is_pending(io))
        return;
    count();
    ev_io_stop(ev.loop, io);
}

static void stop_timer(ev_timer *timer)
{
    if (!ev_is_active(timer) && !ev_is_pending(timer))
        return;
    count();
    ev_timer_stop(ev.loop, timer);
}

/* From now on, not from when libev last slept. */
static void start_timer(ev_timer *timer, ev_tstamp seconds)
{
    ev_now_update(ev.loop);
    ev_timer_set(timer, seconds, 0.);
    ev_timer_start(ev.loop, timer);
    uncount();
}

/* libev knows no interest in errors alone: it reports them as what can be read or written. */
static int events_for(int mask)
{
    return (mask & VIR_EVENT_HANDLE_READABLE ? EV_READ : 0) | (mask & VIR_EVENT_HANDLE_WRITABLE ? EV_WRITE : 0)
        | (mask && !(mask & READ_OR_WRITE) ? EV_READ : 0);
}

/* libev makes the changes of an iteration one of the kernel's. */
static void arm_handle(ev_slot *slot)
{
    int events = events_for(slot->value);

    if (slot->pause)
        stop_timer(&slot->pause->timer);
    stop_io(&slot->io);
    slot->missed = false;
    if (!events || slot->watch->fd < 0)
        return;
    ev_io_modify(&slot->io, events);
    ev_io_start(ev.loop, &slot->io);
    uncount();
}

static void arm_timer(ev_slot *slot)
{
    stop_timer(&slot->timer);
    slot->missed = false;
    if (slot->value >= 0)
        start_timer(&slot->timer, slot->value / 1000.);
}

static bool is_for_owner(void) { return sve_is_owner(NULL); }

static void on_pause_end(EV_P_ ev_timer *timer, int revents)
{
    (void)loop, (void)revents;
    count();                             /* libev has stopped it */
    if (is_for_owner())
        arm_handle(((ev_pause *)timer)->slot);
}

/* Short of memory there is none. */
static void pause_handle(ev_slot *slot)
{
    if (!slot->pause) {
        slot->pause = malloc(sizeof *slot->pause);
        if (!slot->pause)
            return;
        *slot->pause = (ev_pause){ .slot = slot };
        ev_init(&slot->pause->timer, on_pause_end);
    }
    stop_io(&slot->io);
    start_timer(&slot->pause->timer, PAUSE);
}

/* An exception goes where those of EV's own callbacks do. */
static void report(pTHX_ SV *error)
{
    sve_frame frame;

    if (!error)
        return;
    sve_enter(aTHX_ &frame, false);
    sv_setsv(ERRSV, sv_2mortal(error));
    dSP;
    PUSHMARK(SP);
    call_sv(get_sv("EV::DIED", GV_ADD), G_DISCARD | G_VOID | G_EVAL | G_KEEPERR);
    sve_leave(aTHX_ &frame);
}

/* False: the slot is gone. */
static bool call_back(ev_slot *slot, int events)
{
    dTHXa(sve_owner());
    sve_watch *watch = sve_watch_ref(slot->watch);

    report(aTHX_ sve_run_callback_for_c(aTHX_ watch, events));
    bool is_there = watch->slot == slot;
    sve_watch_unref(watch);
    return is_there;
}

static void on_io(EV_P_ ev_io *io, int revents)
{
    ev_slot *slot = (ev_slot *)io;

    if (revents & EV_ERROR)              /* libev has stopped it */
        count();
    if (!is_for_owner()) {
        slot->watch->told = SVE_UNTOLD;
        ev_io_stop(loop, io);
        return;
    }
    if (slot->watch->running) {
        stop_io(io);
        slot->missed = true;
        return;
    }
    int events = sve_readiness(slot->watch->fd, slot->value) & (slot->value | ERRORS | SVE_CLOSED);
    if (events & SVE_CLOSED)             /* it is reported once */
        stop_io(io);
    if ((!events && !(slot->value & READ_OR_WRITE)) || (revents & EV_ERROR && !(events & SVE_CLOSED)))
        pause_handle(slot);
    events &= ~SVE_CLOSED;
    if (events && call_back(slot, events) && slot->missed)
        arm_handle(slot);
}

static void on_timer(EV_P_ ev_timer *timer, int revents)
{
    ev_slot *slot = (ev_slot *)timer;
    (void)loop, (void)revents;

    count();                             /* libev has stopped it */
    if (!is_for_owner())
        return;
    if (slot->watch->running) {
        slot->missed = true;
        return;
    }
    arm_timer(slot);
    if (call_back(slot, 0) && slot->missed) {
        slot->missed = false;
        start_timer(&slot->timer, 0.);
    }
}

/* What came from other threads, and what a fork has changed. */
static void deliver(void)
{
    dTHXa(sve_owner());
    sve_border border;

    if (!is_for_owner())
        return;
    sve_border_open(aTHX_ &border, NULL);
    sve_bridge_deliver();
    report(aTHX_ sve_border_end(aTHX_ &border));
}

static void on_wake(EV_P_ ev_async *async, int revents)
{
    (void)loop, (void)async, (void)revents;
    deliver();
}

static void on_fork(EV_P_ ev_fork *forked, int revents)
{
    (void)loop, (void)forked, (void)revents;
    deliver();
}

/* EV sees to its default loop only. */
static void in_child(void)
{
    if (ev.loop)
        ev_loop_fork(ev.loop);
}

/* The back-end. */

/* At the very end of the program its loop may be gone before it. */

static bool attach(sve_loop *loop, sve_watch *watch, int value)
{
    dTHXa(sve_owner());
    ev_slot *slot = PL_dirty ? NULL : malloc(sizeof *slot);
    (void)loop;

    if (!slot)
        return false;
    *slot = (ev_slot){ .watch = sve_watch_ref(watch), .value = value };
    watch->slot = slot;
    if (watch->kind == SVE_HANDLE) {
        ev_io_init(&slot->io, on_io, watch->fd, EV_READ);
        arm_handle(slot);
    } else {
        ev_init(&slot->timer, on_timer);
        arm_timer(slot);
    }
    if (!sve_bridge_is_own(watch) && !ev.registered++ && ev.hold)
        ev_ref(ev.loop);
    return true;
}

static void update(sve_loop *loop, sve_watch *watch, int value)
{
    dTHXa(sve_owner());
    ev_slot *slot = watch->slot;
    (void)loop;

    if (PL_dirty)
        return;
    slot->value = value;
    if (watch->kind == SVE_HANDLE)
        arm_handle(slot);
    else
        arm_timer(slot);
}

static void detach(sve_loop *loop, sve_watch *watch)
{
    dTHXa(sve_owner());
    ev_slot *slot = watch->slot;
    (void)loop;

    if (PL_dirty)
        return;
    if (watch->kind == SVE_HANDLE) {
        stop_io(&slot->io);
        if (slot->pause)
            stop_timer(&slot->pause->timer);
        free(slot->pause);
    } else {
        stop_timer(&slot->timer);
    }
    if (!sve_bridge_is_own(watch) && !--ev.registered && ev.hold)
        ev_unref(ev.loop);
    watch->slot = NULL;
    sve_watch_unref(slot->watch);
    free(slot);
}

static void wake(sve_loop *loop)
{
    (void)loop;
    ev_async_send(ev.loop, &ev.wake);
}

static sve_loop evs_loop = {
    .is_owner = sve_is_owner,
    .attach = attach,
    .update = update,
    .detach = detach,
    .wake = wake,
    .wake_watch = SVE_WAKE_NEVER,
    .later = sve_settle_later,
    .warn = sve_warn_of,
};

sve_loop *sve_ev_loop_begin(pTHX_ SV *loop, bool hold)
{
    static bool sees_forks;

    I_EV_API("Sys::Virt::Event");
    if (!sees_forks)
        sees_forks = pthread_atfork(NULL, NULL, in_child) == 0;
    ev.object = SvREFCNT_inc_simple_NN(SvRV(loop));    /* a reference would be taken away before the last watches are */
    ev.loop = INT2PTR(struct ev_loop *, SvIV(SvRV(loop)));
    ev.hold = hold;
    ev.registered = 0;
    ev_async_init(&ev.wake, on_wake);
    ev_async_start(ev.loop, &ev.wake);
    ev_unref(ev.loop);
    ev_fork_init(&ev.forked, on_fork);
    ev_fork_start(ev.loop, &ev.forked);
    ev_unref(ev.loop);
    return &evs_loop;
}

void sve_ev_loop_end(pTHX)
{
    if (!ev.loop)
        return;
    ev_ref(ev.loop);
    ev_async_stop(ev.loop, &ev.wake);
    ev_ref(ev.loop);
    ev_fork_stop(ev.loop, &ev.forked);
    ev.loop = NULL;
    SvREFCNT_dec(ev.object);
}

void sve_ev_loop_forget(void) { ev.loop = NULL; }
