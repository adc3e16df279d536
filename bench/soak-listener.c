/* The independent witness of bench/soak: prints each lifecycle event of a server as a line, "NAME EVENT DETAIL", in
 * libvirt's own loop, until the server goes. Nothing of this distribution takes part.
 *
 *   soak-listener URI
 */

#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

/* libvirt can have events in its queue when it tells that the connection is closed: they come in the next pass. */
enum { PASSES_AFTER_CLOSE = 3 };

static int closed;
static int passes_left = PASSES_AFTER_CLOSE;

static int print_event(virConnectPtr conn, virDomainPtr dom, int event, int detail, void *opaque)
{
    (void)conn;
    (void)opaque;
    printf("%s %d %d\n", virDomainGetName(dom), event, detail);
    return 0;
}

static void count_pass(int timer, void *opaque)
{
    (void)timer;
    (void)opaque;
    passes_left--;
}

static void note_closed(virConnectPtr conn, int reason, void *opaque)
{
    (void)conn;
    (void)reason;
    (void)opaque;
    closed = 1;
    virEventAddTimeout(0, count_pass, NULL, NULL);
}

/* libvirt's own handler prints. */
static void be_quiet(void *opaque, virErrorPtr error)
{
    (void)opaque;
    (void)error;
}

static void fail(const char *what)
{
    fprintf(stderr, "soak-listener: Cannot %s: %s\n", what, virGetLastErrorMessage());
    exit(1);
}

int main(int argc, char **argv)
{
    virConnectPtr conn;

    if (argc != 2) {
        fprintf(stderr, "Usage: soak-listener URI\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    virSetErrorFunc(NULL, be_quiet);
    setvbuf(stdout, NULL, _IOLBF, 0);

    if (virEventRegisterDefaultImpl() < 0)
        fail("register the event loop");
    if (!(conn = virConnectOpen(argv[1])))
        fail("open the connection");
    if (virConnectRegisterCloseCallback(conn, note_closed, NULL, NULL) < 0)
        fail("watch the connection");
    virConnectDomainEventGenericCallback print = VIR_DOMAIN_EVENT_CALLBACK(print_event);
    if (virConnectDomainEventRegisterAny(conn, NULL, VIR_DOMAIN_EVENT_ID_LIFECYCLE, print, NULL, NULL) < 0)
        fail("watch the domains");

    printf("ready\n");
    while (!closed || passes_left > 0)
        virEventRunDefaultImpl();
    return 0;
}
