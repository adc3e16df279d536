/* work.c for Perl: arguments in, one call, result out. And an XSUB that does nothing, which costs what the call of any
 * XSUB does. */
#define PERL_NO_GET_CONTEXT
#include <EXTERN.h>
#include <perl.h>
#include <XSUB.h>

#include "work.h"

/* What ends the loop, called within the last callback. */
static SV *stop_code;

static void stop(void)
{
    dTHX;
    dSP;
    PUSHMARK(SP);
    call_sv(stop_code, G_DISCARD | G_VOID | G_NOARGS);
}

static void (*stopper(pTHX_ SV *code))(void)
{
    SvREFCNT_dec(stop_code);
    stop_code = newSVsv(code);
    return SvROK(code) ? stop : NULL;
}

MODULE = Bench::Probe  PACKAGE = Bench::Probe

PROTOTYPES: DISABLE

void
nothing(...)
  CODE:
    PERL_UNUSED_VAR(items);

double
work_cpu()

double
work_now()

double
work_heap()

int
work_ready_fd()

int
work_quiet_fd()

int
work_add_handle(int fd, int events)

int
work_add_timeout(int ms)

void
work_update_handle(int id, long count, int same)

void
work_update_timeout(int id, long count)

void
work_add_remove(int fd, long count)

void
work_add_remove_timeout(long count)

long
work_not_freed()

void
work_add_quiet(long count, int timers)

void
work_register_nothing()

void
work_expect(long count, SV *code)
  CODE:
    work_expect(count, stopper(aTHX_ code));

int
work_is_over()

void
work_threads_beside(int threads, long calls, SV *code)
  CODE:
    work_threads_beside(threads, calls, stopper(aTHX_ code));

void
work_threads_result()
  PREINIT:
    double cpu, wall;
  PPCODE:
    cpu = work_threads_result(&wall);
    EXTEND(SP, 2);
    mPUSHn(cpu);
    mPUSHn(wall);

void
work_threads(int threads, long calls)
  PREINIT:
    double cpu, wall;
  PPCODE:
    cpu = work_threads(threads, calls, &wall);
    EXTEND(SP, 2);
    mPUSHn(cpu);
    mPUSHn(wall);

void
work_wake(long count, int by_fd, SV *code)
  CODE:
    work_wake(count, by_fd, stopper(aTHX_ code));

double
work_wake_percentile(int percent)
