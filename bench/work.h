/* libvirt's side of a measurement: what is done through its event API, the same for all that are measured. It is
 * linked to the programs in C, and loaded by those in Perl and in Python. Pure C.
 *
 * Callbacks and free functions do nothing but count. Times are in nanoseconds.
 */
#ifndef BENCH_WORK_H
#define BENCH_WORK_H

/* Processor time of this process, all threads. */
double work_cpu(void);
double work_now(void);

/* Bytes in use on the heap, what malloc takes from mmap included. */
double work_heap(void);

/* A file descriptor on which there is always something to read; one on which there never is. */
int work_ready_fd(void);
int work_quiet_fd(void);

/* As virEventAddHandle and virEventAddTimeout; their opaque is none of what libvirt frees. Exits when refused. */
int work_add_handle(int fd, int events);
int work_add_timeout(int ms);

/* So many updates: each changes something, or with same none but the first. */
void work_update_handle(int id, long count, int same);
void work_update_timeout(int id, long count);

/* So many watches added and removed. */
void work_add_remove(int fd, long count);
void work_add_remove_timeout(long count);

/* An event loop that does nothing: what libvirt itself does for the sake of one. */
void work_register_nothing(void);

/* How many free functions are still to be run. */
long work_not_freed(void);

/* So many quiet handles or timers of an hour, there to be passed over. */
void work_add_quiet(long count, int timers);

/* After so many callbacks, stop is called, within the last. */
void work_expect(long count, void (*stop)(void));
int work_is_over(void);

/* So many threads each update a timer of their own so many times, and the caller waits for them. Returns what one call
 * takes of its thread's time; *wall is what it takes of all the time, over all threads. */
double work_threads(int threads, long calls, double *wall);

/* The same, but the caller goes on: it is to run the loop until work_is_over. */
void work_threads_beside(int threads, long calls, void (*stop)(void));
double work_threads_result(double *wall);

/* A thread that lets the loop fall asleep and wakes it, so many times: by a timer that it makes due, or by an fd that
 * it writes to. After that, stop is called within the last callback; the result is the time from the call to the
 * callback that so many of a hundred do not exceed. */
void work_wake(long count, int by_fd, void (*stop)(void));
double work_wake_percentile(int percent);

#endif
