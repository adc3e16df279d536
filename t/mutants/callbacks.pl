# Mutants for the cases of Cases/Callbacks.pm.
use strict;
use warnings;

my $POLL = 'lib/Sys/Virt/Event/Poll.pm';

my $AFTER_HANDLE = 'eval { $self->_dispatch_handle($pass, $handle, $events); 1 } or push @errors, $@;';
my $AFTER_TIMER  = 'eval { $self->_dispatch_timer($pass, $timer, $now); 1 } or push @errors, $@;';

# Poll marks what it is dispatching; without the marks the core alone stands in the way.
my @NO_MARKS = map { [$POLL, "    local \$$_\->{busy} = 1;\n", ''] } qw(handle timer);

# Each dispatch inside another frees all that was removed, be it on the stack.
sub freeing {
    my ($kind) = @_;
    return [
        ['src/bridge.c', '((*link)->running ||', "(((*link)->running && (from || (*link)->kind != $kind)) ||"],
        ['src/bridge.c', '    sve_watch_begin(watch);', '    if (core.running)
        sve_bridge_settle(0);
    sve_watch_begin(watch);'],
    ];
}

return (
    {
        case  => 'comes_out',
        also  => [qw(none_lost last_in_callback nested_exception)],
        what  => 'exceptions are swallowed',
        edits => [[$POLL, '    $self->_throw(@errors) if @errors;', '']],
    },
    {
        case  => 'comes_out',
        also  => [qw(last_in_callback nested_exception)],
        what  => 'an exception is a warning, too',
        edits => [['lib/Sys/Virt/Event/Loop.pm', 'for my $error (@others) {', 'for my $error ($first, @others) {']],
    },
    {
        case  => 'lives_on',
        what  => 'a handle is given up when its callback dies',
        edits => [[$POLL, $AFTER_HANDLE,
            $AFTER_HANDLE =~ s/push.*/do { push \@errors, \$@; \$handle->{events} = 0 };/r]],
    },
    {
        case  => 'lives_on',
        what  => 'a timer is set anew only when its callback returns',
        edits => [[$POLL, $AFTER_TIMER, $AFTER_TIMER =~ s/push.*/do { push \@errors, \$@; \$timer->{ms} = -1 };/r]],
    },
    {
        case  => 'others_run',
        what  => 'the rest of a pass is lost when a callback dies',
        edits => [[$POLL, $AFTER_TIMER, $AFTER_TIMER =~ s/push.*/do {
            push \@errors, \$@;
            \$_ != \$timer and \$_->{ms} = -1 for \@expired;
            last;
        };/r]],
    },
    {
        case  => 'none_lost',
        what  => 'only the first exception of a pass is told',
        edits => [['lib/Sys/Virt/Event/Loop.pm', 'for my $error (@others) {', 'for my $error (@others[1 .. $#others]) {']],
    },
    {
        case  => 'helper_throws',
        what  => 'exceptions are made strings',
        edits => [['src/callback.c', 'croak_sv(sv_2mortal(error));',
            'croak_sv(sv_2mortal(newSVpvf("%" SVf, SVfARG(error))));']],
    },
    {
        case  => 'helper_throws',
        what  => 'exceptions that are false are none',
        edits => [['src/callback.c', 'if (is_exception(aTHX_ ERRSV))',
            'if (is_exception(aTHX_ ERRSV) && SvTRUE(ERRSV))']],
    },
    {
        case  => 'last_in_callback',
        what  => 'callbacks are called on the stack of those who run the loop',
        edits => [
            ['src/callback.c', "    PUSHSTACKi(PERLSI_UNKNOWN);\n    PUSHMARK(SP);", '    PUSHMARK(SP);'],
            ['src/callback.c', '        POPSTACK;', ''],
            ['src/callback.c', "    POPSTACK;\n    return error;", '    return error;'],
        ],
    },
    {
        case  => 'add_dies',
        also  => [qw(refused refused_to_perl)],
        what  => 'nobody is warned of an add method that dies',
        edits => [['src/perl_loop.c', '    } else {
        sve_refuse(aTHX_ watch, error, refused);', '    } else if (!error) {
        sve_refuse(aTHX_ watch, error, refused);']],
    },
    {
        case  => 'no_key',
        also  => ['refused_to_perl'],
        what  => 'undef is a key',
        edits => [['src/perl_loop.c', 'if (!SvOK(key))', 'if (0)']],
    },
    {
        case  => 'no_key',
        what  => 'a negative number is a key',
        edits => [['src/perl_loop.c', 'if (is_negative(aTHX_ key))', 'if (0)']],
    },
    {
        case  => 'refused_to_perl',
        what  => 'the program is given -1',
        edits => [['src/callback.c', '    sve_border_close(aTHX_ border);
    sve_cannot(aTHX_ cv, "the event loop refused it");', '    PERL_UNUSED_VAR(cv);
    sve_leave(aTHX_ &border->frame);
    return id;']],
    },
    {
        case  => 'any_key',
        what  => 'keys are made numbers',
        edits => [['src/perl_loop.c', 'watch->slot = kept(aTHX_ key);',
            'watch->slot = SvROK(key) || looks_like_number(key) ? newSViv(SvIV(key)) : newSViv(0);']],
    },
    {
        case  => 'any_key',
        what  => 'a key that is false is none',
        edits => [['src/perl_loop.c', '    if (is_negative(aTHX_ key))',
            '    if (!SvTRUE(key))
        return failure(aTHX_ watch, ADD, "returned nothing");
    if (is_negative(aTHX_ key))']],
    },
    {
        case  => 'update_dies',
        what  => 'an update method that dies has removed the watch',
        edits => [['src/perl_loop.c', '        sve_park(aTHX_ error, failure(aTHX_ watch, UPDATE, "died: "));',
            '        sve_park(aTHX_ error, failure(aTHX_ watch, UPDATE, "died: ")), watch->attached = false;']],
    },
    {
        case  => 'remove_dies',
        what  => 'the free function is lost with a remove method that dies',
        edits => [['src/perl_loop.c', '        sve_warn(aTHX_ error, failure(aTHX_ watch, REMOVE, "died: "));',
            '        sve_warn(aTHX_ error, failure(aTHX_ watch, REMOVE, "died: ")), watch->ff = NULL;']],
    },
    {
        case  => 'libvirt_goes_on',
        what  => 'the exception of a method passes through C inside a callback',
        edits => [['src/perl_loop.c', '    if (error) {
        watch->told', '    if (error && sve_bridge_census().running)
        croak_sv(error);
    if (error) {
        watch->told']],
    },
    {
        case  => 'signal_waits',
        what  => 'signal handlers run inside methods',
        edits => [['src/callback.c', '        PL_signalhook = no_signals;', '']],
    },
    {
        case  => 'keeps_variables',
        also  => ['spoiling_callback'],
        what  => '$! is not kept',
        edits => [['src/errors.h', '    errno = errors->number;', '']],
    },
    {
        case  => 'keeps_variables',
        what  => '$_ is not localized',
        edits => [['src/callback.c', '    GvSV(PL_defgv) = NULL;               /* perl makes',
            '    GvSV(PL_defgv) = locked ? SvREFCNT_inc(frame->topic) : NULL; /* perl makes']],
    },
    {
        case  => 'keeps_error',
        what  => "libvirt's last error is not kept",
        edits => [['src/errors.h', '    if (errors->last)
        *errors->last = errors->error;', '']],
    },
    {
        case  => 'spoiling_callback',
        what  => '$@ is left as a callback has it',
        edits => [['src/callback.c', '    MY_CXT.border = border->outer;
    if', '    MY_CXT.border = border->outer;
    sv_setsv(border->frame.error, ERRSV);
    if']],
    },
    {
        case  => 'no_early_free',
        also  => ['no_early_free_in_c'],
        what  => 'a nested run frees handles whose callback is on the stack',
        edits => freeing('SVE_HANDLE'),
    },
    {
        case  => 'no_early_free_in_c',
        also  => ['no_early_free'],
        what  => 'a nested run frees timers whose callback is on the stack',
        edits => freeing('SVE_TIMER'),
    },
    {
        case  => 'frees_others',
        what  => 'nothing is freed before the outermost callback is done',
        edits => [
            ['src/bridge.c', '    sve_errors errors;
    sve_errors_put_aside(&errors);
', '    sve_errors errors;
    if (core.running)
        return;
    sve_errors_put_aside(&errors);
'],
            ['src/bridge.c', ' || (*link)->due_as < from', ''],
            ['src/bridge.c', '    bool due = watch->due_as && watch->running == 1;', '    core.last_due++;
    bool due = core.due;'],
            ['src/bridge.c', '    if (due)
        watch->due_as = ++core.last_due;', ''],
        ],
    },
    {
        case  => 'not_twice',
        also  => ['nested_sleeps'],
        what  => 'callbacks are called inside themselves',
        edits => [@NO_MARKS, ['src/bridge.c', '    if (watch->running)
        return SVE_BUSY;', '']],
    },
    {
        case  => 'nested_sleeps',
        what  => 'a nested run polls what is being dispatched',
        edits => [[$POLL, '$_->{events} && !$_->{closed} && !$_->{busy} }', '$_->{events} && !$_->{closed} }']],
    },
    {
        case  => 'nested_sleeps',
        what  => 'a nested run waits for the timer that is being dispatched',
        edits => [[$POLL, '$_->{busy} || $_->{ms} < 0 ? ()', '$_->{ms} < 0 ? ()']],
    },
    {
        case  => 'nothing_lost',
        what  => 'timers are set anew one by one, and a nested run ends the pass',
        edits => [
            [$POLL, '    for my $timer (@expired) {', '    $_->{due} = 1e99 for @expired;
    for my $timer (@expired) {
        last if $self->{passes} != $pass;
        $timer->{due} = $now if $timer->{due} == 1e99;'],
        ],
    },
    {
        case  => 'nothing_stale',
        what  => 'what a nested run has served is served again',
        edits => [[$POLL, ' || $watch->{served} > $pass;', ';']],
    },
    {
        case  => 'nested_exception',
        what  => 'an exception waits for the outermost run',
        edits => [['src/callback.c', '    if (!border || border->error)
        return false;', '    while (border && border->outer)
        border = border->outer;
    if (!border || border->error)
        return false;']],
    },
    {
        case  => 'forged',
        what  => 'an object of the class of tokens is believed',
        edits => [['src/token.c', '    if (!magic)
        sve_cannot(', '    if (!magic && sv_isobject(sv) && sv_derived_from(sv, "Sys::Virt::Event::Token"))
        return NULL;
    if (!magic)
        sve_cannot(']],
    },
    {
        case  => 'mixed',
        what  => 'the kind is not looked at',
        edits => [['src/token.c', 'if (watch && kind >= 0 && (int)watch->kind != kind)',
            'if (0 && kind >= 0 && (int)watch->kind != kind)']],
    },
    {
        case  => 'mixed',
        what  => '$opaque may be of another watch',
        edits => [['src/token.c', '&& watch != must_be_token(aTHX_ cv, opaque, "$opaque"))',
            '&& !must_be_token(aTHX_ cv, opaque, "$opaque"))']],
    },
    {
        case  => 'token_of_removed',
        what  => 'callbacks of removed watches are run',
        edits => [['src/bridge.c', '    if (!watch->attached)
        return SVE_GONE;
    if (watch->running)', '    if (watch->running)']],
    },
    {
        case  => 'early_free',
        what  => 'a watch is freed when the loop says so',
        edits => [['Event.xs', '    PERL_UNUSED_VAR(self);
    sve_token_watch(aTHX_ cv, ff, "$ff", opaque, -1);', '    PERL_UNUSED_VAR(self);
    sve_watch *watch = sve_token_watch(aTHX_ cv, ff, "$ff", opaque, -1);
    if (watch && watch->attached && watch->ff)
        watch->ff(watch->opaque);']],
    },
    {
        case  => 'own_id_and_fd',
        what  => 'callbacks are given the fd that the loop names',
        edits => [['Event.xs', '    PERL_UNUSED_VAR(self); PERL_UNUSED_VAR(watch); PERL_UNUSED_VAR(fd);
    sve_run_callback(', '    PERL_UNUSED_VAR(self); PERL_UNUSED_VAR(watch);
    sve_watch *known = sve_token_watch(aTHX_ cv, cb, "$cb", opaque, SVE_HANDLE);
    if (known && SvTRUE(fd))
        known->fd = SvIV(fd);
    sve_run_callback(']],
    },
    {
        case  => 'no_mask',
        what  => 'the bits of poll are handed on',
        edits => [['src/argument.c', 'if (events < 0 || events > 15)', 'if (events < 0)']],
    },
    {
        case  => 'code_is_copied',
        what  => "the caller's variable is kept",
        edits => [
            ['src/argument.c', 'SV *code = sv_mortalcopy(arg);', 'SV *code = arg;'],
            ['src/callback.c', '    code = newSVsv(code);
    sve_border_open(aTHX_ &border, code);
    int id = functions()->add_timeout', '    SvREFCNT_inc(code);
    sve_border_open(aTHX_ &border, code);
    int id = functions()->add_timeout'],
        ],
    },
    {
        case  => 'arguments',
        what  => 'the events are missing',
        edits => [['src/callback.c', '(int[]){ id, fd, events }, 3);', '(int[]){ id, fd, events }, 2);']],
    },
    {
        case  => 'interrupted',
        what  => 'a wait that a signal ends is an error',
        edits => [[$POLL, ' if $count < 0 && !$!{EINTR};', ' if $count < 0;']],
    },
);
