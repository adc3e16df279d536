#include "default_loop.h"
#include "argument.h"
#include "callback.h"
#include "registration.h"

#include <limits.h>
#include <stdint.h>

/* watch->slot holds libvirt's id; libvirt's opaque is the watch, with a reference. */

static int libvirts_id(const sve_watch *watch) { return (int)(intptr_t)watch->slot; }

/* A watch that a former owner left behind when it ended. */
static bool is_left(const sve_watch *watch)
{
    return !sve_owner() || (sve_is_owner(NULL) && !watch->attached);
}

static void dispatch(sve_watch *watch, int events)
{
    dTHXa(sve_owner());
    if (sve_is_owner(NULL))
        sve_dispatch(aTHX_ watch, events);
}

static void on_handle(int id, int fd, int events, void *watch)
{
    (void)fd;
    if (is_left(watch))
        virEventRemoveHandle(id);
    else
        dispatch(watch, events);
}

static void on_timeout(int id, void *watch)
{
    if (is_left(watch))
        virEventRemoveTimeout(id);
    else
        dispatch(watch, 0);
}

static void release(void *watch) { sve_watch_unref(watch); }

static bool attach(sve_loop *loop, sve_watch *watch, int value)
{
    (void)loop;
    sve_watch_ref(watch);
    int id = watch->kind == SVE_HANDLE
        ? virEventAddHandle(watch->fd, value, on_handle, watch, release)
        : virEventAddTimeout(value, on_timeout, watch, release);
    if (id < 0)
        sve_watch_unref(watch);
    watch->slot = (void *)(intptr_t)id;
    return id >= 0;
}

static void update(sve_loop *loop, sve_watch *watch, int value)
{
    (void)loop;
    if (watch->kind == SVE_HANDLE)
        virEventUpdateHandle(libvirts_id(watch), value);
    else
        virEventUpdateTimeout(libvirts_id(watch), value);
}

static void detach(sve_loop *loop, sve_watch *watch)
{
    (void)loop;
    if (watch->kind == SVE_HANDLE)
        virEventRemoveHandle(libvirts_id(watch));
    else
        virEventRemoveTimeout(libvirts_id(watch));
}

static sve_loop libvirts_loop = {
    .is_owner = sve_is_owner,
    .attach = attach,
    .update = update,
    .detach = detach,
    .wake_watch = SVE_WAKE_NEVER,
    .later = sve_settle_later,
    .warn = sve_warn_of,
};

void sve_default_loop_serve(void) { sve_bridge_set_loop(&libvirts_loop); }

/* The limit is a timer that is disabled between runs: libvirt does work in the iteration after
 * a removal, so one that is added and removed each time would keep the loop from ever sleeping.
 * It takes a millisecond at least: beside a timer that is always due, libvirt never comes to free
 * anything. */

static int limit_timer = -1;

static void on_limit(int id, void *unused) { (void)id, (void)unused; }

static void lift_limit(pTHX_ void *unused)
{
    PERL_UNUSED_CONTEXT;
    PERL_UNUSED_ARG(unused);
    virEventUpdateTimeout(limit_timer, -1);
}

static void set_limit(pTHX_ CV *cv, NV seconds)
{
    NV ms = seconds > 0.001 ? Perl_ceil(seconds * 1000) : 1;

    if (limit_timer < 0)
        limit_timer = virEventAddTimeout(-1, on_limit, NULL, NULL);
    if (limit_timer < 0)
        sve_cannot(aTHX_ cv, "libvirt refused a timeout");
    SAVEDESTRUCTOR_X(lift_limit, NULL);
    virEventUpdateTimeout(limit_timer, ms < INT_MAX ? (int)ms : INT_MAX);
}

void sve_default_loop_run(pTHX_ CV *cv, NV max_seconds)
{
    sve_border border;

    sve_must_be_registered(aTHX_ cv);
    if (sve_registered() != SVE_DEFAULT)
        sve_cannot(aTHX_ cv, "register_default was not called");
    ENTER;
    if (max_seconds >= 0)
        set_limit(aTHX_ cv, max_seconds);
    sve_border_open(aTHX_ &border, NULL);
    if (virEventRunDefaultImpl() < 0)
        sve_park(aTHX_ sv_2mortal(newSVpvf("Cannot run default: %s", virGetLastErrorMessage())), "");
    sve_border_close(aTHX_ &border);
    LEAVE;
    PERL_ASYNC_CHECK();
}
