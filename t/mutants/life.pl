# Mutants for the cases of Cases/Life.pm. Most of what they are about is kept by the core.
use strict;
use warnings;

my $POLL         = 'lib/Sys/Virt/Event/Poll.pm';
my $REGISTRATION = 'src/registration.c';

# After the methods that libvirt calls.
my $METHODS_END = '# What the program runs.';

return (
    {
        case  => 'adds_unregistered',
        what  => 'add_timeout without a loop returns an id',
        edits => [['src/callback.c', "int sve_add_timeout(pTHX_ CV *cv, int ms, SV *code)\n{",
            "int sve_add_timeout(pTHX_ CV *cv, int ms, SV *code)\n{\n    if (!sve_owner())\n        return 1;"]],
    },
    {
        case  => 'runs_unregistered',
        what  => 'run_default without a loop returns',
        edits => [['src/default_loop.c', 'sve_must_be_registered(aTHX_ cv);', 'if (!sve_owner()) return;']],
    },
    {
        case  => 'runs_default_of_object',
        what  => 'run_default of an object returns',
        edits => [['src/default_loop.c', '    if (sve_registered() != SVE_DEFAULT)',
            "    if (sve_registered() == SVE_OBJECT)\n        return;\n    if (sve_registered() != SVE_DEFAULT)"]],
    },
    {
        case  => 'default_after_object',
        what  => 'register_default after an object is ignored',
        edits => [[$REGISTRATION, "    if (registered.kind == SVE_OBJECT)\n        sve_cannot",
            "    if (registered.kind == SVE_OBJECT)\n        return;\n    if (0)\n        sve_cannot"]],
    },
    {
        case  => 'object_after_default',
        what  => 'an object after register_default is ignored',
        edits => [[$REGISTRATION, "    if (registered.kind == SVE_DEFAULT)\n        sve_cannot(aTHX_ cv, \"register",
            "    if (registered.kind == SVE_DEFAULT)\n        return impl;\n"
            . "    if (0)\n        sve_cannot(aTHX_ cv, \"register"]],
    },
    {
        case  => 'others_first',
        what  => 'libvirt is not asked who was first',
        edits => [[$REGISTRATION, 'if (sve_bridge_probe() == SVE_OTHERS)', 'if (0)']],
    },
    {
        case  => 'registered_twice',
        what  => 'the registered object counts as another one',
        edits => [[$REGISTRATION, '        if (SvRV(sve_perl_loop_object(aTHX)) == SvRV(impl))', '        if (0)']],
    },
    {
        case  => 'no_loop_object',
        what  => 'any object with the methods will do',
        edits => [[$REGISTRATION, '    if (!sve_is_impl(aTHX_ impl))', '    if (!sv_isobject(impl))']],
    },
    {
        case  => 'method_missing',
        what  => 'nobody looks for the methods',
        edits => [[$REGISTRATION, 'must_have_methods(aTHX_ cv, impl);', 'if (0) must_have_methods(aTHX_ cv, impl);']],
    },
    {
        case  => 'object_is_held',
        what  => 'the object is not held',
        edits => [
            ['src/perl_loop.c', '    SvREADONLY_on(object.impl);', '    sv_rvweaken(object.impl);'],
            ['src/perl_loop.c', '    sv_setsv(get_sv("Sys::Virt::Event::eventimpl", GV_ADD), impl);', ''],
        ],
    },
    {
        case  => 'busy_object_stays',
        what  => 'any object is replaced',
        edits => [
            [$REGISTRATION, '    if (!SvCUR(left)) {', '    if (1) {'],
            [$REGISTRATION, "        if (!SvCUR(left))\n", "        if (1)\n"],
        ],
    },
    {
        case  => 'running_object_stays',
        what  => 'an object whose callback is running is replaced',
        edits => [
            [$REGISTRATION, '    if (sve_bridge_census().running || sve_is_locked(aTHX))', '    if (0)'],
            [$REGISTRATION, '    count(aTHX_ left, census.due, "outstanding free function");', ''],
        ],
    },
    {
        case  => 'idle_object_replaced',
        what  => 'a second object is ignored',
        edits => [
            [$REGISTRATION, '        sve_bridge_let_go();', ''],
            [$REGISTRATION, 'let_go(aTHX_ cv);', 'let_go(aTHX_ cv); return impl;'],
        ],
    },
    {
        case  => 'idle_object_replaced',
        what  => 'ids start anew with each object',
        edits => [['src/bridge.c', '    take_away(core.loop, &core.look);',
            '    take_away(core.loop, &core.look); core.last_id = 0;']],
    },
    {
        case  => 'watches_left',
        what  => 'the loop complains of work that is left',
        edits => [[$POLL, $METHODS_END, <<'PERL']],
sub DESTROY {
    my ($self) = @_;
    my @handles = grep { !$_->{wake} } values %{ $self->{handles} };
    warn "There is work left\n" if @handles && grep { $_->{ms} == 0 } values %{ $self->{timers} };
}
PERL
    },
    {
        case  => 'exit_in_callback',
        what  => 'a destructor changes $?',
        edits => [
            [$POLL, $METHODS_END, "sub Sys::Virt::Event::Poll::Guard::DESTROY { system 'true' }\n"],
            [$POLL, '    local $timer->{busy} = 1;', <<'PERL'],
    local $timer->{busy} = 1;
    my $guard = bless [], 'Sys::Virt::Event::Poll::Guard';
PERL
        ],
    },
    {
        case  => 'removed_at_end',
        what  => 'the methods are called when perl destroys what is left',
        edits => [
            [$REGISTRATION, '    if (registered.perl != PERL_GET_CONTEXT)', '    if (1)'],
            ['src/perl_loop.c', '    if (PL_dirty || !watch->slot)
        return;
    sve_enter(aTHX_ &frame, true);
    /* The', '    if (!watch->slot)
        return;
    sve_enter(aTHX_ &frame, true);
    /* The'],
        ],
    },
    {
        case  => 'other_thread_left',
        what  => 'a call of another thread at the end is fatal',
        edits => [[$REGISTRATION, '    PerlInterpreter *perl = registered.perl;', <<'C']],
    PerlInterpreter *perl = registered.perl;
    dTHXa(perl);
    if (perl && PL_phase == PERL_PHASE_DESTRUCT && !pthread_equal(pthread_self(), registered.thread))
        abort();
C
    },
    {
        case  => 'local_connection_left',
        what  => 'the loop complains of timers that are left, though off',
        edits => [[$POLL, $METHODS_END, <<'PERL']],
sub DESTROY {
    my ($self) = @_;
    warn "There are timers left\n" if grep { $_->{ms} < 0 } values %{ $self->{timers} };
}
PERL
    },
);
