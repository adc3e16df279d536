#include "callback.h"
#include "argument.h"
#include "registration.h"
#include "token.h"

/* What free functions wait on, see settle_later. */
typedef struct {
    const PERL_SI *stack;                /* the Perl frame for whose statement the mortal waits */
    I32 frame;
    const COP *statement;
    unsigned long from;                  /* the first free function that it will run */
} settling_mortal;

#define MY_CXT_KEY "Sys::Virt::Event::callback" XS_VERSION
typedef struct {
    sve_border *border;                  /* the innermost */
    int locked;                          /* calls under libvirt's locks on the stack */
    despatch_signals_proc_t signals;     /* perl's hook, in whose place is one of ours */
    const PERL_SI *held_stack;           /* where only C code is held */
    I32 held_frame;
    settling_mortal last_mortal;
    unsigned long settling;              /* the last one that any mortal will run */
    SV *spare_error;                     /* recycled by open_frame */
    SV *spare_number[SVE_NUMBERS];       /* recycled by sve_number */
    ANY *spare_savestack;                /* recycled by call_guarded */
    I32 spare_savestack_max;
    bool exiting;                        /* Perl code has called exit, which waits for libvirt's frames to go */
    I32 exit_status;
} my_cxt_t;
START_MY_CXT

/* Entering and leaving. */

/* What was lent to Perl code is lent again only if it is as plain as it was, and nobody else holds it. */

static SV *take_error(pTHX_ my_cxt_t *cxt)
{
    SV *sv = cxt->spare_error;
    cxt->spare_error = NULL;
    return sv ? sv : newSVpvs("");
}

static void give_error(pTHX_ my_cxt_t *cxt, SV *sv)
{
    if (!cxt->spare_error && sv && SvREFCNT(sv) == 1 && SvFLAGS(sv) == (SVt_PV | SVf_POK | SVp_POK)
        && SvCUR(sv) == 0)
        cxt->spare_error = sv;
    else
        SvREFCNT_dec(sv);
}

static void give_number(pTHX_ SV **spare, SV *sv)
{
    if (!*spare && SvREFCNT(sv) == 1 && SvFLAGS(sv) == (SVt_IV | SVf_IOK | SVp_IOK))
        *spare = sv;
    else
        SvREFCNT_dec(sv);
}

SV *sve_number(pTHX_ sve_frame *frame, int value)
{
    dMY_CXT;
    SV **spare = &MY_CXT.spare_number[frame->number_count];
    SV *sv = *spare;

    *spare = NULL;
    if (sv)
        SvIV_set(sv, value);
    else
        sv = newSViv(value);
    return frame->numbers[frame->number_count++] = sv;
}

/* Whoever called this is C code that the innermost border has called, or a destructor that such code has called. */
static bool is_within_border(pTHX_ const my_cxt_t *cxt)
{
    const sve_border *border = cxt->border;
    const PERL_SI *stack = PL_curstackinfo;

    if (!border)
        return false;
    while (stack != border->stack && stack->si_type == PERLSI_DESTROY)
        stack = stack->si_prev;
    return stack == border->stack && stack->si_cxix == border->depth;
}

static void no_signals(pTHX) { PERL_UNUSED_CONTEXT; }

/* In Perl code that the C code calls, handlers run. */
static void no_signals_in_c(pTHX)
{
    dMY_CXT;

    if (PL_curstackinfo != MY_CXT.held_stack || cxstack_ix > MY_CXT.held_frame)
        MY_CXT.signals(aTHX);
}

/* perl looks for signals as a call of Perl code ends, too: in C code of Sys::Virt's, which libvirt has called. In a
 * destructor it makes a warning of an exception. */
static void no_signals_in_border(pTHX)
{
    dMY_CXT;

    if (!is_within_border(aTHX_ &MY_CXT))
        MY_CXT.signals(aTHX);
}

static bool is_ours(despatch_signals_proc_t hook)
{
    return hook == no_signals || hook == no_signals_in_c || hook == no_signals_in_border;
}

/* Nothing takes the place of no_signals. */
static void set_signalhook(pTHX_ my_cxt_t *cxt, despatch_signals_proc_t hook)
{
    if (!is_ours(PL_signalhook))
        cxt->signals = PL_signalhook;
    if (PL_signalhook != no_signals)
        PL_signalhook = hook;
}

static void put_back(pTHX_ void *pointer)
{
    dMY_CXT;
    sve_frame *frame = pointer;
    SV *topic = GvSV(PL_defgv);

    /* A DESTROY that this runs may set both once more. */
    GvSV(PL_defgv) = NULL;
    SvREFCNT_dec(topic);
    SV *error = GvSV(PL_errgv);
    topic = GvSV(PL_defgv);
    GvSV(PL_errgv) = frame->error;
    GvSV(PL_defgv) = frame->topic;
    PL_tmps_floor = frame->temporaries;
    give_error(aTHX_ &MY_CXT, error);
    SvREFCNT_dec(topic);
    for (int i = 0; i < frame->number_count; i++)
        give_number(aTHX_ &MY_CXT.spare_number[i], frame->numbers[i]);
    if (frame->signals)
        PL_signalhook = frame->signals;
    if (frame->locked)
        MY_CXT.locked--;
    sve_errors_put_back(&frame->errors);
}

/* What ENTER and SAVETMPS do, with fewer entries on the savestack: every dispatch comes here. */
static void open_frame(pTHX_ my_cxt_t *cxt, sve_frame *frame, bool locked, DESTRUCTORFUNC_t destructor)
{
    frame->scope = PL_savestack_ix;
    frame->temporaries = PL_tmps_floor;
    PL_tmps_floor = PL_tmps_ix;
    sve_errors_put_aside(&frame->errors);
    frame->error = GvSV(PL_errgv);
    GvSV(PL_errgv) = take_error(aTHX_ cxt);
    frame->topic = GvSV(PL_defgv);
    GvSV(PL_defgv) = NULL;               /* perl makes one where it is used */
    frame->number_count = 0;
    frame->signals = NULL;
    frame->locked = locked;
    if (locked) {
        frame->signals = PL_signalhook;
        PL_signalhook = no_signals;
        cxt->locked++;
    }
    SAVEDESTRUCTOR_X(destructor, frame);
}

void sve_enter(pTHX_ sve_frame *frame, bool locked)
{
    dMY_CXT;
    open_frame(aTHX_ &MY_CXT, frame, locked, put_back);
}

static void leave_frame(pTHX_ sve_frame *frame)
{
    FREETMPS;
    LEAVE_SCOPE(frame->scope);
}

static void exit_later(pTHX);
static void release_guarded(pTHX);

/* Its release may run Perl code. */
static bool may_run_code(SV *sv)
{
    return sv && (SvTYPE(sv) >= SVt_PVMG || (SvROK(sv) && !sve_is_token(sv)));
}

/* What the innermost frame releases may run Perl code, which may call exit. */
static bool leaves_code(pTHX)
{
    PERL_UNUSED_CONTEXT;
    for (SSize_t i = PL_tmps_ix; i > PL_tmps_floor; i--)
        if (may_run_code(PL_tmps_stack[i]))
            return true;
    return may_run_code(GvSV(PL_defgv)) || may_run_code(GvSV(PL_errgv));
}

static void release(pTHX)
{
    SV *topic = GvSV(PL_defgv), *error = GvSV(PL_errgv);

    GvSV(PL_defgv) = NULL;
    GvSV(PL_errgv) = newSVpvs("");
    sv_2mortal(topic);
    sv_2mortal(error);
    FREETMPS;
}

void sve_leave(pTHX_ sve_frame *frame)
{
    dMY_CXT;
    bool exiting = MY_CXT.exiting;

    /* Among the temporaries of the frame may be the mortal of a frame within: it is too early. */
    MY_CXT.exiting = false;
    if (leaves_code(aTHX))
        release_guarded(aTHX);
    leave_frame(aTHX_ frame);
    MY_CXT.exiting |= exiting;
    if (MY_CXT.exiting && !is_within_border(aTHX_ &MY_CXT))
        exit_later(aTHX);
}

bool sve_is_locked(pTHX)
{
    dMY_CXT;
    return MY_CXT.locked != 0;
}

bool sve_is_exiting(pTHX)
{
    dMY_CXT;
    return MY_CXT.exiting;
}

/* Anything but a plain empty string: an object may be overloaded to look false. */
static bool is_exception(pTHX_ SV *sv)
{
    PERL_UNUSED_CONTEXT;
    return SvROK(sv) || isGV_with_GP(sv) || (SvPOK(sv) ? SvCUR(sv) != 0 : SvOK(sv));
}

static SV *list_of(pTHX_ SV **first, I32 count)
{
    AV *list = (AV *)sv_2mortal((SV *)newAV());
    for (I32 i = 0; i < count; i++)
        av_push(list, newSVsv(first[i]));
    return (SV *)list;
}

/* exit, too, must not jump over libvirt's frames. Before perl jumps it unwinds its stacks to their very beginnings.
 * So the code gets a savestack of its own, and perl takes the argument stack that it runs on for its first: what
 * lies beneath is still there when the jump ends here. */

enum { SAVESTACK = 128 };
enum { SAVESTACK_SLACK = 16 };           /* perl pushes a few entries more than it has asked for */

static void free_savestack(pTHX_ void *unused)
{
    dMY_CXT;
    PERL_UNUSED_ARG(unused);
    Safefree(MY_CXT.spare_savestack);
    MY_CXT.spare_savestack = NULL;
}

static void take_savestack(pTHX_ my_cxt_t *cxt)
{
    PL_savestack_ix = 0;
    PL_savestack = cxt->spare_savestack;
    PL_savestack_max = cxt->spare_savestack_max;
    cxt->spare_savestack = NULL;
    if (PL_savestack)
        return;
    Newx(PL_savestack, SAVESTACK, ANY);
    PL_savestack_max = SAVESTACK - SAVESTACK_SLACK;
}

static void give_savestack(pTHX_ my_cxt_t *cxt)
{
    Safefree(cxt->spare_savestack);
    cxt->spare_savestack = PL_savestack;
    cxt->spare_savestack_max = PL_savestack_max;
}

/* False: the code has called exit. NULL: what the innermost frame releases. */
static bool call_guarded(pTHX_ SV *code, I32 flags, I32 *returned)
{
    dMY_CXT;
    dJMPENV;
    int jump;
    AV *mainstack = PL_mainstack;
    ANY *savestack = PL_savestack;
    const I32 savestack_ix = PL_savestack_ix, savestack_max = PL_savestack_max, scope = PL_scopestack_ix;
    const SSize_t temporaries = PL_tmps_floor;
    COP *cop = PL_curcop;
    PMOP *match = PL_curpm;
    const volatile I32 status = STATUS_CURRENT;

    PL_mainstack = PL_curstack;
    take_savestack(aTHX_ &MY_CXT);
    JMPENV_PUSH(jump);
    if (jump == 0) {
        if (code)
            *returned = call_sv(code, flags | G_EVAL);
        else
            release(aTHX);
        LEAVE_SCOPE(0);
    }
    JMPENV_POP;
    give_savestack(aTHX_ &MY_CXT);
    PL_savestack = savestack;
    PL_savestack_ix = savestack_ix;
    PL_savestack_max = savestack_max;
    PL_mainstack = mainstack;
    if (jump == 0)
        return true;
    PL_scopestack_ix = scope;
    PL_tmps_floor = temporaries;
    PL_curcop = cop;
    PL_curpm = match;
    if (!MY_CXT.exiting)
        MY_CXT.exit_status = STATUS_EXIT;
    MY_CXT.exiting = true;
    STATUS_UNIX_SET(status);
    return false;
}

static void release_guarded(pTHX)
{
    dSP;
    const SSize_t mark = PL_markstack_ptr - PL_markstack;

    PUSHSTACKi(PERLSI_UNKNOWN);
    while (!call_guarded(aTHX_ NULL, 0, NULL)) {
        PL_markstack_ptr = PL_markstack + mark;
        PL_stack_sp = PL_stack_base;
    }
    POPSTACK;
}

static bool call(pTHX_ SV *code, I32 flags, I32 *returned, bool guarded)
{
    if (guarded)
        return call_guarded(aTHX_ code, flags, returned);
    *returned = call_sv(code, flags | G_EVAL);
    return true;
}

/* What is magical runs Perl code when it is read, a tied variable that an lvalue sub returns. */
static bool is_magical(SV **first, I32 count)
{
    for (I32 i = 0; i < count; i++)
        if (SvGMAGICAL(first[i]))
            return true;
    return false;
}

/* guarded: there are frames of libvirt between Perl's and these. */
static SV *eval_code(pTHX_ SV *code, I32 flags, SV **args, I32 count, SV **result, bool guarded)
{
    dSP;
    SV *error = NULL;
    I32 returned = 0;
    const SSize_t mark = PL_markstack_ptr - PL_markstack;

    PUSHSTACKi(PERLSI_UNKNOWN);
    PUSHMARK(SP);
    EXTEND(SP, count);
    for (I32 i = 0; i < count; i++)
        PUSHs(args[i]);
    PUTBACK;
    if (!call(aTHX_ code, flags, &returned, guarded)) {
        PL_markstack_ptr = PL_markstack + mark;
        PL_stack_sp = PL_stack_base;
        if (result)
            *result = (flags & G_WANT) == G_LIST ? list_of(aTHX_ NULL, 0) : &PL_sv_undef;
        POPSTACK;
        return NULL;
    }
    SPAGAIN;
    if (is_exception(aTHX_ ERRSV))
        error = sv_mortalcopy(ERRSV);
    else if (result && is_magical(SP - returned + 1, returned))
        error = eval_code(aTHX_ MUTABLE_SV(get_cv("Sys::Virt::Event::_copy", 0)), flags &G_WANT, SP - returned + 1,
                          returned, result, guarded);
    else if (result && (flags & G_WANT) == G_LIST)
        *result = list_of(aTHX_ SP - returned + 1, returned);
    else if (result)
        *result = returned ? TOPs : &PL_sv_undef;
    SP -= returned;
    PUTBACK;
    POPSTACK;
    return error;
}

SV *sve_eval(pTHX_ SV *code, I32 flags, SV **args, I32 count, SV **result)
{
    return eval_code(aTHX_ code, flags, args, count, result, true);
}

static void settle_later(pTHX);

/* exit goes on where nothing of libvirt's is in its way, on a mortal: when the border is closed, else when the
 * statement that made the call of libvirt is done. Under a border it is not left to a mortal of whoever called: that
 * may be Sys::Virt's C code, called by libvirt. Without one the two cannot be told apart. */

static int on_exit_mortal(pTHX_ SV *sv, MAGIC *magic)
{
    PERL_UNUSED_ARG(magic);

    if (PL_dirty)                        /* MY_CXT may be gone by then */
        return 0;
    dMY_CXT;
    if (MY_CXT.exiting) {
        SvREFCNT_inc_simple_void_NN(sv); /* the jump leaves it half freed: perl finds it at its end */
        MY_CXT.exiting = false;
        my_exit((U32)MY_CXT.exit_status);
    }
    return 0;
}

static const MGVTBL exit_vtbl = { .svt_free = on_exit_mortal };

static void exit_later(pTHX)
{
    sv_magicext(sv_newmortal(), NULL, PERL_MAGIC_ext, &exit_vtbl, NULL, 0);
}

/* Borders, parked exceptions and warnings. */

static void leave_border(pTHX_ void *pointer)
{
    dMY_CXT;
    sve_border *border = pointer;

    MY_CXT.border = border->outer;
    if (border->running)
        sve_bridge_end(border->running);
    put_back(aTHX_ &border->frame);
    /* Still there: something else is unwinding the stack, so the caller hears of that instead. */
    if (border->error) {
        sve_warn(aTHX_ border->error, SvPV_nolen(border->prefix));
        SvREFCNT_dec(border->error);
    }
    SvREFCNT_dec(border->prefix);
}

void sve_border_open(pTHX_ sve_border *border, SV *added)
{
    dMY_CXT;

    border->outer = MY_CXT.border;
    border->stack = PL_curstackinfo;
    border->depth = cxstack_ix;
    border->error = border->prefix = NULL;
    border->running = NULL;
    border->added = added;
    border->unseen = false;
    open_frame(aTHX_ &MY_CXT, &border->frame, false, leave_border);
    border->frame.signals = PL_signalhook;
    set_signalhook(aTHX_ &MY_CXT, no_signals_in_border);
    MY_CXT.border = border;
}

/* An exit that was put off goes on when the frame frees its temporaries. */
static void leave_border_frame(pTHX_ sve_border *border)
{
    if (sve_is_exiting(aTHX))
        exit_later(aTHX);
    leave_frame(aTHX_ &border->frame);
}

/* What was parked is a warning if the program exits. */
static SV *end_border(pTHX_ sve_border *border)
{
    SV *error = border->error;

    if (!sve_is_exiting(aTHX))
        border->error = NULL;
    leave_border_frame(aTHX_ border);
    return error;
}

void sve_border_close(pTHX_ sve_border *border)
{
    SV *error = end_border(aTHX_ border);

    if (!error)
        return;
    if (!border->unseen) {
        SAVESPTR(PL_diehook);
        PL_diehook = NULL;
    }
    croak_sv(sv_2mortal(error));
}

void sve_warn_now(pTHX_ SV *prefix, SV *error)
{
    if (SvOK(error))
        sv_catsv(prefix, error);
    warn_sv(prefix);
}

static bool keep_in_border(pTHX_ sve_border *border, SV *error, const char *prefix)
{
    if (!border || border->error)
        return false;
    border->error = newSVsv(error);
    SvREFCNT_dec(border->prefix);
    border->prefix = newSVpv(prefix, 0);
    return true;
}

void sve_warn(pTHX_ SV *error, const char *prefix)
{
    dMY_CXT;
    sve_frame frame;
    SV *args[2], *died;

    if (PL_dirty)
        return;
    sve_enter(aTHX_ &frame, true);
    args[0] = sv_2mortal(newSVpv(prefix, 0));
    args[1] = error ? sv_mortalcopy(error) : &PL_sv_undef;
    died = sve_eval(aTHX_ MUTABLE_SV(get_cv("Sys::Virt::Event::_warn", 0)), G_VOID, args, 2, NULL);
    if (died && !keep_in_border(aTHX_ MY_CXT.border, died, ""))
        PerlIO_printf(PerlIO_stderr(), "%s%s", prefix,
                      SvPOK(died) ? SvPV_nolen(died) : "the warning handler died\n");
    sve_leave(aTHX_ &frame);
    if (sve_is_owner(NULL))              /* others warn, too */
        settle_later(aTHX);
}

void sve_warn_of(sve_loop *loop, const char *message)
{
    dTHXa(sve_owner());
    PERL_UNUSED_ARG(loop);
    sve_warn(aTHX_ NULL, message);
}

void sve_park(pTHX_ SV *error, const char *prefix)
{
    dMY_CXT;

    if (!keep_in_border(aTHX_ MY_CXT.border, error, prefix))
        sve_warn(aTHX_ error, prefix);
}

void sve_refuse(pTHX_ const sve_watch *watch, SV *error, const char *prefix)
{
    dMY_CXT;
    sve_border *border = MY_CXT.border;
    if (border && (!border->added || border->added != watch->opaque))
        border = NULL;
    SV *reason = error ? error : sv_2mortal(newSVpv(prefix, 0));

    if (keep_in_border(aTHX_ border, reason, error ? prefix : ""))
        border->unseen = !error;
    else
        sve_warn(aTHX_ error, prefix);
}

/* Dispatch. */

static void refuse_to_run(pTHX_ sve_watch *watch, const char *why)
{
    if (watch->warned)
        return;
    watch->warned = true;
    sve_warn(aTHX_ NULL, why);
}

static bool may_run(pTHX_ sve_watch *watch, int events)
{
    /* A loop leaves a closed fd alone after that, whoever was called, until it is told the mask once more. */
    if (events & VIR_EVENT_HANDLE_ERROR)
        watch->told = SVE_UNTOLD;
    /* libvirt's callback would wait for a lock that its own thread holds. */
    if (sve_is_locked(aTHX) && watch->attached && !sve_bridge_is_own(watch)) {
        refuse_to_run(aTHX_ watch, "Cannot run callback: a method of the loop is running (the loop was run inside it)");
        return false;
    }
    sve_verdict verdict = sve_bridge_begin(watch);
    if (verdict == SVE_BUSY)
        refuse_to_run(aTHX_ watch, "Cannot run callback: it is running already (a loop was run inside it)");
    return verdict == SVE_GO;
}

static void end_dispatch(pTHX_ void *watch)
{
    PERL_UNUSED_CONTEXT;
    sve_bridge_end(watch);
}

void sve_dispatch(pTHX_ sve_watch *watch, int events)
{
    dMY_CXT;

    if (!may_run(aTHX_ watch, events))
        return;
    ENTER;
    SAVEDESTRUCTOR_X(end_dispatch, watch);
    sve_bridge_call(watch, events);
    LEAVE;
    if (MY_CXT.border)
        return;
    /* Another main loop runs libvirt's: no statement of Perl's ends before that loop does. */
    if (sve_bridge_has_due())
        sve_settle_now(aTHX);
    if (MY_CXT.exiting) {
        MY_CXT.exiting = false;
        my_exit((U32)MY_CXT.exit_status);
    }
}

static void run_in(pTHX_ sve_border *border, sve_watch *watch, int events)
{
    dMY_CXT;

    sve_border_open(aTHX_ border, NULL);
    if (PL_signalhook == no_signals && !MY_CXT.locked)
        PL_signalhook = no_signals_in_border;
    if (may_run(aTHX_ watch, events)) {
        border->running = watch;
        sve_bridge_call(watch, events);
    }
}

void sve_run_callback(pTHX_ sve_watch *watch, int events)
{
    sve_border border;

    if (!watch)
        return;
    run_in(aTHX_ &border, watch, events);
    sve_border_close(aTHX_ &border);
}

SV *sve_border_end(pTHX_ sve_border *border)
{
    SV *error = end_border(aTHX_ border);

    if (sve_bridge_has_due())            /* no statement of Perl's ends here */
        sve_settle_now(aTHX);
    return error;
}

SV *sve_run_callback_for_c(pTHX_ sve_watch *watch, int events)
{
    sve_border border;

    run_in(aTHX_ &border, watch, events);
    return sve_border_end(aTHX_ &border);
}

/* Free functions wait on a mortal: perl frees it when the statement is done that made the call of
 * libvirt, which has left the stack then. Perl code that this call runs meanwhile has statements of
 * its own; so a mortal runs only what became due at its own level or deeper. */

/* Then no call that this frame made before is still on the stack. Another frame of the same depth, called by the same
 * statement, is at another statement of its own. */
static bool has_mortal_here(pTHX_ const my_cxt_t *cxt)
{
    const settling_mortal *last = &cxt->last_mortal;
    return last->stack == PL_curstackinfo && last->frame == cxstack_ix && last->statement == PL_curcop;
}

static void settle_from(pTHX_ unsigned long from)
{
    sve_frame frame;

    sve_enter(aTHX_ &frame, false);
    sve_bridge_settle(from);
    sve_leave(aTHX_ &frame);
}

void sve_settle_now(pTHX)
{
    dMY_CXT;

    if (!MY_CXT.locked)
        settle_from(aTHX_ has_mortal_here(aTHX_ &MY_CXT) ? MY_CXT.last_mortal.from : MY_CXT.settling + 1);
}

static int settle(pTHX_ SV *sv, MAGIC *magic)
{
    settling_mortal notes[2];            /* on this mortal, and on the one before it */
    PERL_UNUSED_ARG(sv);

    if (PL_dirty)                        /* MY_CXT may be gone by then */
        return 0;
    dMY_CXT;
    memcpy(notes, magic->mg_ptr, sizeof notes);
    unsigned long from = notes[0].from;
    /* Mortals go in the reverse order of their coming, but for those that perl moves. */
    MY_CXT.last_mortal = MY_CXT.last_mortal.from == from ? notes[1] : (settling_mortal){ NULL, 0, NULL, 0 };
    if (!MY_CXT.locked)
        settle_from(aTHX_ from);
    else if (MY_CXT.settling >= from)
        MY_CXT.settling = from - 1;      /* the frame that holds the lock asks again when it is left */
    return 0;
}

static const MGVTBL settle_vtbl = { .svt_free = settle };

static void settle_later(pTHX)
{
    dMY_CXT;
    unsigned long from = MY_CXT.settling + 1;

    if (MY_CXT.locked || PL_dirty || sve_bridge_last_due() < from)
        return;
    MY_CXT.settling = sve_bridge_last_due();
    if (has_mortal_here(aTHX_ &MY_CXT))
        return;
    settling_mortal notes[2] = { { PL_curstackinfo, cxstack_ix, PL_curcop, from }, MY_CXT.last_mortal };
    sv_magicext(sv_newmortal(), NULL, PERL_MAGIC_ext, &settle_vtbl, (const char *)notes, sizeof notes);
    MY_CXT.last_mortal = notes[0];
}

void sve_settle_later(sve_loop *loop)
{
    dTHXa(sve_owner());
    PERL_UNUSED_ARG(loop);
    settle_later(aTHX);
}

/* Perl code that a program watches with. The opaque that libvirt keeps is the code. */

static void call_in(pTHX_ sve_frame *frame, SV *code, const int *numbers, I32 count, bool guarded)
{
    for (I32 i = 0; i < count; i++)
        sve_number(aTHX_ frame, numbers[i]);
    SV *error = eval_code(aTHX_ code, G_VOID, frame->numbers, count, NULL, guarded);
    if (error)
        sve_park(aTHX_ error, "Exception in an event callback: ");
}

static void call_back(SV *code, const int *numbers, I32 count)
{
    dTHXa(sve_owner());
    dMY_CXT;
    sve_border *border = MY_CXT.border;
    sve_frame frame;

    if (PL_dirty || MY_CXT.exiting)
        return;
    if (border && border->running && border->running->opaque == code) {
        call_in(aTHX_ &border->frame, code, numbers, count, false);
        return;
    }
    sve_enter(aTHX_ &frame, false);
    call_in(aTHX_ &frame, code, numbers, count, true);
    sve_leave(aTHX_ &frame);
}

static void on_handle(int id, int fd, int events, void *code)
{
    call_back(code, (int[]){ id, fd, events }, 3);
}

static void on_timeout(int id, void *code)
{
    call_back(code, &id, 1);
}

static void free_code(void *code)
{
    dTHXa(sve_owner());
    SvREFCNT_dec((SV *)code);
}

/* Under libvirt's own loop the bridge is entered directly, so that the ids are ours there too. */
static const sve_functions *functions(void)
{
    static const sve_functions libvirts = {
        virEventAddHandle, virEventUpdateHandle, virEventRemoveHandle,
        virEventAddTimeout, virEventUpdateTimeout, virEventRemoveTimeout
    };
    return sve_registered() == SVE_DEFAULT ? &sve_bridge_functions : &libvirts;
}

static int finish_add(pTHX_ CV *cv, sve_border *border, int id, SV *code)
{
    if (id > 0) {
        leave_border_frame(aTHX_ border); /* what else went wrong meanwhile is a warning */
        return id;
    }
    SvREFCNT_dec(code);
    sve_border_close(aTHX_ border);
    sve_cannot(aTHX_ cv, "the event loop refused it");
}

int sve_add_handle(pTHX_ CV *cv, int fd, int events, SV *code)
{
    sve_border border;

    sve_must_be_registered(aTHX_ cv);
    code = newSVsv(code);
    sve_border_open(aTHX_ &border, code);
    int id = functions()->add_handle(fd, events, on_handle, code, free_code);
    return finish_add(aTHX_ cv, &border, id, code);
}

int sve_add_timeout(pTHX_ CV *cv, int ms, SV *code)
{
    sve_border border;

    sve_must_be_registered(aTHX_ cv);
    code = newSVsv(code);
    sve_border_open(aTHX_ &border, code);
    int id = functions()->add_timeout(ms, on_timeout, code, free_code);
    return finish_add(aTHX_ cv, &border, id, code);
}

void sve_update(pTHX_ CV *cv, sve_kind kind, int id, int value)
{
    sve_border border;

    sve_must_be_registered(aTHX_ cv);
    if (!sve_bridge_gave(id))
        sve_cannot(aTHX_ cv, "no id %d was ever given out", id);
    sve_border_open(aTHX_ &border, NULL);
    if (kind == SVE_HANDLE)
        functions()->update_handle(id, value);
    else
        functions()->update_timeout(id, value);
    sve_border_close(aTHX_ &border);
}

void sve_remove(pTHX_ CV *cv, sve_kind kind, int id)
{
    sve_border border;

    sve_must_be_registered(aTHX_ cv);
    if (!sve_bridge_has(kind, id))
        sve_cannot(aTHX_ cv, "no %s with id %d is registered", kind == SVE_HANDLE ? "handle" : "timeout", id);
    sve_border_open(aTHX_ &border, NULL);
    if (kind == SVE_HANDLE)
        functions()->remove_handle(id);
    else
        functions()->remove_timeout(id);
    sve_border_close(aTHX_ &border);
}

/* XSUBs that carry code as their magic, which an ithread's clone duplicates. */

static const MGVTBL code_vtbl = { .svt_free = NULL };

static SV *code_of(pTHX_ CV *cv)
{
    PERL_UNUSED_CONTEXT;
    return mg_findext((SV *)cv, PERL_MAGIC_ext, &code_vtbl)->mg_obj;
}

static SV *carrier(pTHX_ XSUBADDR_t xsub, SV *code)
{
    CV *cv = newXS(NULL, xsub, __FILE__);
    SV *copy = newSVsv(code);

    sv_magicext((SV *)cv, copy, PERL_MAGIC_ext, &code_vtbl, NULL, 0);
    SvREFCNT_dec(copy);
    return newRV_noinc((SV *)cv);
}

XS_INTERNAL(sve_protected_call)
{
    dXSARGS;
    sve_frame frame;
    SV *error = NULL, *result = NULL;

    sve_enter(aTHX_ &frame, false);
    if (!sve_is_exiting(aTHX))
        error = sve_eval(aTHX_ code_of(aTHX_ cv), GIMME_V, &ST(0), items,
                         GIMME_V == G_VOID ? NULL : &result);
    if (error)
        sve_park(aTHX_ error, "Exception in a protected callback: ");
    /* A copy for the caller: ours dies with the frame. */
    if (result && GIMME_V != G_LIST)
        result = newSVsv(result);
    else
        SvREFCNT_inc(result);
    sve_leave(aTHX_ &frame);

    SP -= items;
    if (!result) {
        if (GIMME_V == G_SCALAR)
            XPUSHs(&PL_sv_undef);
    } else {
        sv_2mortal(result);
        if (GIMME_V != G_LIST) {
            XPUSHs(result);
        } else {
            AV *list = (AV *)result;
            EXTEND(SP, AvFILLp(list) + 1);
            for (SSize_t i = 0; i <= AvFILLp(list); i++)
                PUSHs(AvARRAY(list)[i]);
        }
    }
    PUTBACK;
}

SV *sve_protect(pTHX_ SV *code) { return carrier(aTHX_ sve_protected_call, code); }

/* Their arguments, results and exceptions are those of the code. */

XS_INTERNAL(sve_held_call)
{
    dXSARGS;
    dMY_CXT;

    ENTER;
    SAVEVPTR(PL_signalhook);
    set_signalhook(aTHX_ &MY_CXT, no_signals);
    PUSHMARK(SP - items);
    call_sv(code_of(aTHX_ cv), GIMME_V);
    LEAVE;
}

XS_INTERNAL(sve_held_in_c_call)
{
    dXSARGS;
    dMY_CXT;

    ENTER;
    SAVEVPTR(PL_signalhook);
    set_signalhook(aTHX_ &MY_CXT, no_signals_in_c);
    SAVEVPTR(MY_CXT.held_stack);
    SAVEI32(MY_CXT.held_frame);
    MY_CXT.held_stack = PL_curstackinfo;
    MY_CXT.held_frame = cxstack_ix + 1;  /* that of the code */
    PUSHMARK(SP - items);
    call_sv(code_of(aTHX_ cv), GIMME_V);
    LEAVE;
}

SV *sve_held(pTHX_ SV *code, bool in_c)
{
    return carrier(aTHX_ in_c ? sve_held_in_c_call : sve_held_call, code);
}

void sve_callback_boot(pTHX)
{
    MY_CXT_INIT;
    Zero(&MY_CXT, 1, my_cxt_t);
    sve_bridge_boot(on_handle, on_timeout);
    call_atexit(free_savestack, NULL);
}

void sve_callback_clone(pTHX)
{
#ifdef USE_ITHREADS
    MY_CXT_CLONE;
    Zero(&MY_CXT, 1, my_cxt_t);
    if (is_ours(PL_signalhook))          /* the thread was made inside */
        PL_signalhook = Perl_despatch_signals;
#else
    PERL_UNUSED_CONTEXT;
#endif
}
