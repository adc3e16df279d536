/* Preloaded under gcov, which writes its counters when a process ends by exit(). Here it does by _exit(), too: that is
 * how the children of most tests end. COVERAGE_OBJECT names the shared object whose counters these are. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>

static void dump_counters(void)
{
    const char *name = getenv("COVERAGE_OBJECT");
    void *object = name ? dlopen(name, RTLD_LAZY | RTLD_NOLOAD) : NULL;
    void (*dump)(void) = object ? (void (*)(void))dlsym(object, "__gcov_dump") : NULL;

    if (dump)
        dump();
}

void _exit(int code)
{
    void (*libcs)(int) = (void (*)(int))dlsym(RTLD_NEXT, "_exit");

    dump_counters();
    libcs(code);
    abort();
}
