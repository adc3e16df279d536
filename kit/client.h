/* A C program's side of libvirt's event API: ops, what their callbacks saw, threads that run them, a deaf loop.
 * Pure C. */
#ifndef CAPI_CLIENT_H
#define CAPI_CLIENT_H

#include <stdbool.h>
#include <stdint.h>

/* As packed by CApi.pm; an op is followed by its nested ones. */
typedef struct {
    char name[16];
    int32_t base, id, fd, value, flags, nested;
} capi_op;

/* What one callback, free function or op in a callback saw. */
typedef struct capi_entry capi_entry;

enum { CAPI_MAX_INSIDE = 8 };

struct capi_entry {
    capi_entry *next;
    const char *what, *kind;
    int id, added_as, fd, events, result;
    bool is_op, foreign, in_own;
    int depth, n_inside;
    const char *inside[CAPI_MAX_INSIDE];     /* innermost first */
};

/* What has come of a thread's ops. */
typedef struct {
    double slowest;
    int n_results;
    int results[];
} capi_report;

/* Runs the code of that number, which an op `call` has as its value: 0, or -1 if that failed. Must return. */
typedef int (*capi_call_code)(int number);

/* The calling thread becomes the one that the log calls main. Call it before all others; 0, or -1 if libvirt fails. */
int capi_start(capi_call_code call_code);

/* The first op that there is not, or NULL. The others take only ops that are known. */
const capi_op *capi_unknown_op(const capi_op *ops, int n_ops);

/* Runs the ops on the calling thread. There is room for n_ops results; returns how many there are, one for each op
 * that is not nested in another. */
int capi_run(const capi_op *ops, int n_ops, int *results);

/* Where this thread keeps what is on its C stack: whoever leaves our frames with a longjmp has to put that back. */
struct capi_frame **capi_stack(void);

/* Starts a thread that runs the ops. Returns its number, from 1, or minus the errno. */
int capi_spawn(const capi_op *ops, int n_ops);
bool capi_is_done(int number);

/* Waits for that thread's end. NULL if there is no such thread. */
capi_report *capi_join(int number);
void capi_report_free(capi_report *report);

/* The log so far, oldest first; it starts anew. */
capi_entry *capi_take_log(void);
void capi_entry_free(capi_entry *entry);

/* An event loop that ignores all calls is registered, for the part of other code that came first. */
void capi_register_deaf(void);

#endif
