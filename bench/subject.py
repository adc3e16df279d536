#!/usr/bin/python3
"""Measures libvirt-python's event loops, as subject.pl does Perl's.

    subject.py DIRECTORY functions|libvirtaio WHAT COUNT[:SECONDS] [URI]

functions is a loop of plain functions on epoll, given to virEventRegisterImpl.
"""
import asyncio
import ctypes
import select
import sys
import time

import libvirt

DIRECTORY, NAME, WHAT, COUNT = sys.argv[1:5]
URI = sys.argv[5] if len(sys.argv) > 5 else None
COUNT, _, LIMIT = COUNT.partition(":")
COUNT, LIMIT = int(COUNT), float(LIMIT or 0)

STOP = ctypes.CFUNCTYPE(None)
work = ctypes.CDLL(DIRECTORY + "/work.so")
for name in ("work_cpu", "work_now", "work_heap", "work_wake_percentile", "work_threads", "work_threads_result"):
    getattr(work, name).restype = ctypes.c_double
for name in ("work_update_handle", "work_update_timeout", "work_add_remove"):
    getattr(work, name).argtypes = [ctypes.c_int, ctypes.c_long, ctypes.c_int][:3 if name[-6:] == "handle" else 2]
work.work_not_freed.restype = ctypes.c_long


def found(name, value):
    print(name, repr(float(value)), flush=True)


class Functions:
    """Handles in an epoll set, timers in a dictionary."""

    def __init__(self):
        self.epoll = select.epoll()
        self.handles, self.fds, self.timers, self.free = {}, {}, {}, []
        self.last = 0
        self.is_stopped = False
        libvirt.virEventRegisterImpl(self.add_handle, self.update_handle, self.remove_handle,
                                     self.add_timeout, self.update_timeout, self.remove_timeout)

    @staticmethod
    def mask(events):
        return (select.EPOLLIN if events & 1 else 0) | (select.EPOLLOUT if events & 2 else 0)

    def add_handle(self, fd, events, cb, opaque):
        self.last += 1
        self.handles[self.last] = self.fds[fd] = [self.last, fd, events, cb, opaque]
        self.epoll.register(fd, self.mask(events))
        return self.last

    def update_handle(self, watch, events):
        handle = self.handles[watch]
        handle[2] = events
        self.epoll.modify(handle[1], self.mask(events))

    def remove_handle(self, watch):
        handle = self.handles.pop(watch)
        del self.fds[handle[1]]
        self.epoll.unregister(handle[1])
        self.free.append(handle[4])
        return 0

    def add_timeout(self, ms, cb, opaque):
        self.last += 1
        self.timers[self.last] = [self.last, ms, time.monotonic() + ms / 1000, cb, opaque]
        return self.last

    def update_timeout(self, timer, ms):
        self.timers[timer][1:3] = ms, time.monotonic() + ms / 1000

    def remove_timeout(self, timer):
        self.free.append(self.timers.pop(timer)[4])
        return 0

    def turn(self):
        free, self.free = self.free, []
        for opaque in free:
            libvirt.virEventInvokeFreeCallback(opaque)
        due = [timer[2] for timer in self.timers.values() if timer[1] >= 0]
        wait = max(0, min(due) - time.monotonic()) if due else None
        if free:
            wait = 0
        for fd, bits in self.epoll.poll(wait):
            handle = self.fds.get(fd)
            if handle:
                events = (1 if bits & select.EPOLLIN else 0) | (2 if bits & select.EPOLLOUT else 0)
                handle[3](handle[0], fd, events, handle[4])
        now = time.monotonic()
        for timer in [timer for timer in self.timers.values() if timer[1] >= 0 and timer[2] <= now]:
            timer[2] = now + timer[1] / 1000
            timer[3](timer[0], timer[4])

    def run(self):
        self.is_stopped = False
        while not self.is_stopped:
            self.turn()

    def stop(self):
        self.is_stopped = True


class Asyncio:
    def __init__(self):
        import libvirtaio
        self.loop = asyncio.new_event_loop()
        self.impl = libvirtaio.virEventRegisterAsyncIOImpl(self.loop)

    def turn(self):
        self.loop.run_until_complete(asyncio.sleep(0))

    def run(self):
        self.loop.run_forever()

    def stop(self):
        self.loop.stop()


def measure_dispatch(loop):
    calls = 0

    def on_handle(watch, fd, events, opaque):
        nonlocal calls
        calls += 1

    def on_timeout(timer, opaque):
        nonlocal calls
        calls += 1

    by_c = WHAT.endswith("_c")
    quiet = work.work_quiet_fd()
    if "handle" in WHAT:
        watch = work.work_add_handle(quiet, 1) if by_c else libvirt.virEventAddHandle(quiet, 1, on_handle, None)
        cb, opaque = loop.handles[watch][3:]
        start = work.work_cpu()
        for _ in range(COUNT):
            cb(watch, quiet, 1, opaque)
    else:
        timer = work.work_add_timeout(1000) if by_c else libvirt.virEventAddTimeout(1000, on_timeout, None)
        cb, opaque = loop.timers[timer][3:]
        start = work.work_cpu()
        for _ in range(COUNT):
            cb(timer, opaque)
    found(WHAT, (work.work_cpu() - start) / COUNT)
    if not by_c and calls != COUNT:
        sys.exit("bench: there were %d calls" % calls)


def measure_update(loop):
    handle = work.work_add_handle(work.work_quiet_fd(), 1)
    timer = work.work_add_timeout(1000)
    start = work.work_cpu()
    if WHAT == "update_timeout":
        work.work_update_timeout(timer, COUNT)
    else:
        work.work_update_handle(handle, COUNT, WHAT == "update_same")
    found(WHAT, (work.work_cpu() - start) / COUNT)


def measure_add_remove(loop):
    fd = work.work_quiet_fd()
    start = work.work_cpu()
    for _ in range(COUNT // 10):
        if WHAT == "add_remove":
            work.work_add_remove(fd, 10)
        else:
            work.work_add_remove_timeout(10)
        while work.work_not_freed():
            loop.turn()
    found(WHAT, (work.work_cpu() - start) / COUNT)


def run_for(loop, events):
    stop = STOP(loop.stop)
    work.work_expect(events, stop)
    start = work.work_cpu()
    loop.run()
    return work.work_cpu() - start


def measure_among(loop):
    kind, numbers = WHAT.split("_")
    registered = 1
    if kind == "timer":
        work.work_add_timeout(0)
    else:
        work.work_add_handle(work.work_ready_fd(), 1)
    for among in map(int, numbers.split(",")):
        work.work_add_quiet(among - registered, kind == "timer")
        registered = among
        run_for(loop, 5)
        count = COUNT
        if LIMIT:
            count = max(5, min(count, int(LIMIT * 1e9 * 5 / run_for(loop, 5))))
        found("%s_%d" % (kind, among), run_for(loop, count) / count)


# Calls of other threads do not wake these loops.
def measure_threads(loop):
    wall = ctypes.c_double()
    found("threads_alone", work.work_threads(1, COUNT, ctypes.byref(wall)))


def measure_events(loop):
    conn = libvirt.open(URI)
    left, end = COUNT, 0

    def on_event(conn, domain, event, detail, opaque):
        nonlocal left
        left -= 1
        if left <= end:
            loop.stop()

    conn.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, on_event, None)
    domain = conn.lookupByName("test")
    count = COUNT
    if WHAT == "events_daemon":
        print("ready", flush=True)
        end = COUNT - 1
        loop.run()
        cpu, now, end = work.work_cpu(), work.work_now(), 0
        loop.run()
        count -= 1
    else:
        cpu, now = work.work_cpu(), work.work_now()
        while left > 0:
            end = left - 10
            for _ in range(5):
                domain.suspend()
                domain.resume()
            loop.run()
    found(WHAT, (work.work_cpu() - cpu) / count)
    found(WHAT + "_wall", (work.work_now() - now) / count)


MEASURE = {
    "dispatch": measure_dispatch, "update": measure_update, "add": measure_add_remove, "handle": measure_among,
    "timer": measure_among, "threads": measure_threads, "events": measure_events,
}
MEASURE[WHAT.split("_")[0]](Functions() if NAME == "functions" else Asyncio())
