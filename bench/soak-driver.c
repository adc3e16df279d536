/* Causes the events that bench/soak counts: one domain after the other is defined, started, suspended, resumed,
 * stopped and undefined. Each has a name of its own, PREFIX-NUMBER-STAMP, where STAMP is the time before its first
 * event, in nanoseconds of CLOCK_MONOTONIC; so an event tells whether it was caused before or after another process
 * did something.
 *
 *   soak-driver URI PREFIX MICROSECONDS      between two domains
 *
 * After a line "settle" on stdin it makes one more domain, prints its name, and pauses: the last event of that domain
 * is the last of all. A line "go" lets it go on. It ends when stdin or the server does, and prints why.
 */

#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static char name[128];

/* libvirt's own handler prints. */
static void be_quiet(void *opaque, virErrorPtr error)
{
    (void)opaque;
    (void)error;
}

static void fail(const char *what)
{
    fprintf(stderr, "soak-driver: Cannot %s: %s\n", what, virGetLastErrorMessage());
    exit(1);
}

/* 0 when the server has gone. */
static int one_domain(virConnectPtr conn, const char *prefix)
{
    static long number;
    struct timespec now;
    char xml[512];
    virDomainPtr dom;
    int ok;

    clock_gettime(CLOCK_MONOTONIC, &now);
    snprintf(name, sizeof name, "%s-%ld-%lld%09ld", prefix, ++number, (long long)now.tv_sec, now.tv_nsec);
    snprintf(xml, sizeof xml,
             "<domain type='test'><name>%s</name><memory>1024</memory><os><type>hvm</type></os></domain>", name);
    if (!(dom = virDomainDefineXML(conn, xml)))
        return 0;
    ok = virDomainCreate(dom) == 0 && virDomainSuspend(dom) == 0 && virDomainResume(dom) == 0
        && virDomainDestroy(dom) == 0 && virDomainUndefine(dom) == 0;
    virDomainFree(dom);
    return ok;
}

/* The order on stdin, "" if there is none and wait is 0, NULL at its end. */
static const char *order(int wait)
{
    static char line[64];
    struct pollfd in = { .fd = 0, .events = POLLIN };

    if (!wait && poll(&in, 1, 0) <= 0)
        return "";
    return fgets(line, sizeof line, stdin);
}

int main(int argc, char **argv)
{
    virConnectPtr conn;
    const char *line;
    long pause;

    if (argc != 4) {
        fprintf(stderr, "Usage: soak-driver URI PREFIX MICROSECONDS\n");
        return 2;
    }
    pause = atol(argv[3]);
    signal(SIGPIPE, SIG_IGN);
    virSetErrorFunc(NULL, be_quiet);
    setvbuf(stdin, NULL, _IONBF, 0);
    setvbuf(stdout, NULL, _IOLBF, 0);

    if (!(conn = virConnectOpen(argv[1])))
        fail("open the connection");
    while (one_domain(conn, argv[2]) && (line = order(0))) {
        if (strcmp(line, "settle\n") != 0) {
            usleep(pause);
            continue;
        }
        if (!one_domain(conn, argv[2]))
            break;
        printf("%s\n", name);
        if (!order(1))
            break;
    }
    printf("ended: %s\n", feof(stdin) ? "no more orders" : virGetLastErrorMessage());
    return 0;
}
