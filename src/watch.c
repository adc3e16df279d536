/* The record of a watch or timer and the table of those that are registered.
 *
 * Ids rise one by one and are never reused, so the low bits of an id are as
 * good a hash as any. The table doubles when its chains get longer than one on
 * average and halves when they are emptier than an eighth, hence its size
 * follows the live watches, not the ids ever given out.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "watch.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

long long sve_now(void)
{
    struct timespec now;
#ifdef CLOCK_MONOTONIC_COARSE
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
#else
    clock_gettime(CLOCK_MONOTONIC, &now);
#endif
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

sve_watch *sve_watch_new(sve_kind kind, int fd, int value, void *opaque, virFreeCallback ff)
{
    /* Not calloc: glibc does not keep freed memory at hand for that. */
    sve_watch *watch = malloc(sizeof *watch);
    if (!watch)
        return NULL;
    *watch = (sve_watch){
        .kind = kind, .fd = fd, .value = value, .opaque = opaque, .ff = ff, .added = sve_now(), .refs = 1
    };
    return watch;
}

sve_watch *sve_watch_ref(sve_watch *watch)
{
    atomic_fetch_add_explicit(&watch->refs, 1, memory_order_relaxed);
    return watch;
}

void sve_watch_unref(sve_watch *watch)
{
    if (atomic_fetch_sub_explicit(&watch->refs, 1, memory_order_acq_rel) == 1 && !watch->held)
        free(watch);
}

void sve_watch_hold(sve_watch *watch) { watch->held++; }

void sve_watch_release(sve_watch *watch)
{
    if (--watch->held == 0 && atomic_load_explicit(&watch->refs, memory_order_acquire) == 0)
        free(watch);
}

void sve_watch_begin(sve_watch *watch)
{
    sve_watch_hold(watch);
    watch->running++;
    watch->dispatched++;
    watch->last = sve_now();
}

void sve_watch_end(sve_watch *watch)
{
    watch->running--;
    sve_watch_release(watch);
}

static sve_watch **bucket_of(const sve_table *table, int id)
{
    return &table->buckets[(size_t)id & (table->size - 1)];
}

static void link_in(sve_table *table, sve_watch *watch)
{
    sve_watch **bucket = bucket_of(table, watch->id);
    watch->next_in_bucket = *bucket;
    *bucket = watch;
}

static void resize(sve_table *table, size_t size)
{
    sve_watch **old = table->buckets;
    size_t old_size = table->size;
    sve_watch **buckets = size > SVE_TABLE_MIN ? calloc(size, sizeof *buckets) : table->first;

    if (!buckets)
        return;
    if (buckets == table->first)
        memset(table->first, 0, sizeof table->first);
    table->buckets = buckets;
    table->size = size;
    for (size_t i = 0; i < old_size; i++) {
        for (sve_watch *watch = old[i], *next; watch; watch = next) {
            next = watch->next_in_bucket;
            link_in(table, watch);
        }
    }
    if (old != table->first)
        free(old);
}

void sve_table_insert(sve_table *table, sve_watch *watch)
{
    if (!table->buckets) {
        table->buckets = table->first;
        table->size = SVE_TABLE_MIN;
    }
    if (atomic_load(&table->count) >= table->size)
        resize(table, table->size * 2);
    link_in(table, watch);
    atomic_fetch_add(&table->count, 1);
}

void sve_table_remove(sve_table *table, sve_watch *watch)
{
    sve_watch **link = bucket_of(table, watch->id);

    while (*link != watch)
        link = &(*link)->next_in_bucket;
    *link = watch->next_in_bucket;
    atomic_fetch_sub(&table->count, 1);
    if (table->size > SVE_TABLE_MIN && atomic_load(&table->count) < table->size / 8)
        resize(table, table->size / 2);
}

void sve_table_each(const sve_table *table, void (*visit)(sve_watch *watch))
{
    for (size_t i = 0; i < table->size; i++) {
        for (sve_watch *watch = table->buckets[i], *next; watch; watch = next) {
            next = watch->next_in_bucket;
            visit(watch);
        }
    }
}

void sve_table_clear(sve_table *table, void (*visit)(sve_watch *watch))
{
    sve_table_each(table, visit);
    if (table->buckets != table->first)
        free(table->buckets);
    memset(table, 0, sizeof *table);
}

sve_watch *sve_table_find(const sve_table *table, int id)
{
    if (!table->buckets)
        return NULL;
    sve_watch *watch = *bucket_of(table, id);
    while (watch && watch->id != id)
        watch = watch->next_in_bucket;
    return watch;
}

static int by_id(const void *a, const void *b)
{
    const sve_watch *const *left = a, *const *right = b;
    return (*left)->id < (*right)->id ? -1 : 1;
}

sve_watch **sve_table_list(const sve_table *table, size_t *count)
{
    size_t total = atomic_load(&table->count), n = 0;
    sve_watch **list = total ? malloc(total * sizeof *list) : NULL;

    *count = total && !list;
    if (!list)
        return NULL;
    for (size_t i = 0; i < table->size; i++)
        for (sve_watch *watch = table->buckets[i]; watch; watch = watch->next_in_bucket)
            list[n++] = sve_watch_ref(watch);
    qsort(list, n, sizeof *list, by_id);
    *count = n;
    return list;
}
