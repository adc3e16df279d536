/* Arguments in, one call into client.c, result or exception out. And one way from there into Perl: call_code(). */
#define PERL_NO_GET_CONTEXT
#include <EXTERN.h>
#include <perl.h>
#include <XSUB.h>

#include "client.h"

#include <string.h>
#include <libvirt/libvirt.h>

/* C callbacks are on the stack: neither an exception nor a loop control may leave them with a longjmp. */
static int call_code(int number)
{
    dTHX;
    dSP;
    bool lives;

    if (PL_dirty)
        return -1;
    ENTER;
    SAVETMPS;
    save_scalar(PL_errgv);
    /* What the code catches may have been thrown through frames of ours. */
    SAVEVPTR(*capi_stack());
    PUSHSTACKi(PERLSI_UNKNOWN);
    PUSHMARK(SP);
    mXPUSHi(number);
    PUTBACK;
    call_pv("Test::Sys::Virt::EventImpl::CApi::_call_code", G_SCALAR | G_EVAL);
    SPAGAIN;
    lives = SvTRUE(*SP);
    SP--;
    PUTBACK;
    POPSTACK;
    FREETMPS;
    LEAVE;
    return lives ? 0 : -1;
}

static const capi_op *ops_of_sv(pTHX_ SV *packed, int *n_ops)
{
    STRLEN length;
    const capi_op *ops = (const capi_op *)SvPV(packed, length);
    const capi_op *unknown;

    *n_ops = (int)(length / sizeof *ops);
    unknown = capi_unknown_op(ops, *n_ops);
    if (unknown)
        croak("Cannot run op: client.c has no %.*s", (int)sizeof unknown->name, unknown->name);
    return ops;
}

static void push_ints(pTHX_ const int *numbers, int n)
{
    dSP;

    EXTEND(SP, n);
    for (int i = 0; i < n; i++)
        mPUSHi(numbers[i]);
    PUTBACK;
}

static void push_run(pTHX_ SV *packed)
{
    int n_ops, n_results, *results;
    const capi_op *ops = ops_of_sv(aTHX_ packed, &n_ops);
    SSize_t bottom = PL_stack_sp - PL_stack_base;

    ENTER;
    Newxz(results, n_ops + 1, int);
    SAVEFREEPV(results);
    /* An event loop that lets exceptions through leaves our frames with a longjmp. */
    SAVEVPTR(*capi_stack());
    n_results = capi_run(ops, n_ops, results);
    /* Sys::Virt's own trampolines leave values behind. */
    PL_stack_sp = PL_stack_base + bottom;
    push_ints(aTHX_ results, n_results);
    LEAVE;
}

static int spawn(pTHX_ SV *packed)
{
    int n_ops;
    const capi_op *ops = ops_of_sv(aTHX_ packed, &n_ops);
    int number = capi_spawn(ops, n_ops);

    if (number < 0)
        croak("Cannot start thread: %s", strerror(-number));
    return number;
}

static void push_join(pTHX_ int number)
{
    dSP;
    capi_report *report = capi_join(number);

    if (!report)
        croak("Cannot join thread: there is no number %d", number);
    mXPUSHn(report->slowest);
    PUTBACK;
    push_ints(aTHX_ report->results, report->n_results);
    capi_report_free(report);
}

static void store(pTHX_ HV *hash, const char *key, SV *value)
{
    (void)hv_store(hash, key, (I32)strlen(key), value, 0);
}

static SV *hash_of_entry(pTHX_ const capi_entry *entry)
{
    HV *hash = newHV();
    AV *inside = newAV();

    for (int i = entry->n_inside - 1; i >= 0; i--)
        av_push(inside, newSVpv(entry->inside[i], 0));
    store(aTHX_ hash, "what", newSVpv(entry->what, 0));
    store(aTHX_ hash, "id", newSViv(entry->id));
    store(aTHX_ hash, "thread", newSVpv(entry->foreign ? "foreign" : "main", 0));
    store(aTHX_ hash, "inside", newRV_noinc((SV *)inside));
    store(aTHX_ hash, "in_callback", newSViv(entry->depth));
    if (entry->is_op) {
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

static void push_log(pTHX)
{
    dSP;
    capi_entry *entry = capi_take_log();

    while (entry) {
        capi_entry *next = entry->next;
        mXPUSHs(hash_of_entry(aTHX_ entry));
        capi_entry_free(entry);
        entry = next;
    }
    PUTBACK;
}

MODULE = Test::Sys::Virt::EventImpl::CApi  PACKAGE = Test::Sys::Virt::EventImpl::CApi

PROTOTYPES: DISABLE

BOOT:
    if (capi_start(call_code) < 0)
        croak("Cannot initialise libvirt");

void
start()
  CODE:
    if (capi_start(call_code) < 0)
        croak("Cannot initialise libvirt");

void
_run(packed)
    SV *packed
  PPCODE:
    PUTBACK;
    push_run(aTHX_ packed);
    SPAGAIN;

int
_spawn(packed)
    SV *packed
  CODE:
    RETVAL = spawn(aTHX_ packed);
  OUTPUT:
    RETVAL

void
_run_blocked(packed)
    SV *packed
  PPCODE:
    PUTBACK;
    push_join(aTHX_ spawn(aTHX_ packed));
    SPAGAIN;

bool
_is_done(number)
    int number
  CODE:
    RETVAL = capi_is_done(number);
  OUTPUT:
    RETVAL

void
_join(number)
    int number
  PPCODE:
    PUTBACK;
    push_join(aTHX_ number);
    SPAGAIN;

void
events()
  PPCODE:
    PUTBACK;
    push_log(aTHX);
    SPAGAIN;

void
register_impl_first()
  CODE:
    capi_register_deaf();

int
register_default_first()
  CODE:
    RETVAL = virEventRegisterDefaultImpl();
  OUTPUT:
    RETVAL
