/* The table of watches against an array, under libFuzzer: each byte of the input is one step. */
#include "watch.h"

#include <stdint.h>
#include <stdlib.h>

enum { MOST = 1024 };

/* In the order of their ids, as these rise. */
typedef struct {
    sve_watch *watches[MOST];
    size_t count;
    int last_id;
} model;

#define check(what) ((what) ? (void)0 : abort())

static void check_table(const sve_table *table, const model *all)
{
    check(table->count == all->count);
    if (!table->buckets)
        return;
    /* Chains are short, and a table that has emptied gives its memory back. */
    check(table->size >= SVE_TABLE_MIN && (table->size & (table->size - 1)) == 0);
    check(table->count <= table->size);
    check(table->size == SVE_TABLE_MIN || table->count >= table->size / 8);
}

/* Ids have gaps, since some are given to others. */
static void insert(sve_table *table, model *all, unsigned n)
{
    for (; n && all->count < MOST; n--) {
        sve_watch *watch = sve_watch_new(SVE_TIMER, -1, 0, NULL, NULL);
        check(watch);
        all->last_id += 1 + (n % 8 == 0);
        watch->id = all->last_id;
        all->watches[all->count++] = watch;
        sve_table_insert(table, watch);
        check_table(table, all);
    }
}

static void remove_at(sve_table *table, model *all, size_t place)
{
    sve_watch *watch = all->watches[place];
    for (all->count--; place < all->count; place++)
        all->watches[place] = all->watches[place + 1];
    sve_table_remove(table, watch);
    check(!sve_table_find(table, watch->id));
    sve_watch_unref(watch);
    check_table(table, all);
}

static void remove_some(sve_table *table, model *all, unsigned n)
{
    size_t place = n * 7;
    for (; n && all->count; n--)
        remove_at(table, all, place % all->count);
}

static void find_all(const sve_table *table, const model *all)
{
    size_t next = 0;
    for (int id = -1; id <= all->last_id + 1; id++) {
        sve_watch *expected = next < all->count && all->watches[next]->id == id ? all->watches[next++] : NULL;
        check(sve_table_find(table, id) == expected);
    }
}

static void list(const sve_table *table, const model *all)
{
    size_t count;
    sve_watch **listed = sve_table_list(table, &count);
    check(count == all->count && !listed == !count);
    for (size_t i = 0; i < count; i++) {
        check(listed[i] == all->watches[i]);
        sve_watch_unref(listed[i]);
    }
    free(listed);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static model all;
    sve_table table = { 0 };

    all.count = 0;
    all.last_id = 0;
    for (size_t i = 0; i < size; i++) {
        unsigned n = data[i] & 63;
        switch (data[i] >> 6) {
        case 0: insert(&table, &all, n); break;
        case 1: remove_some(&table, &all, n); break;
        case 2: find_all(&table, &all); break;
        case 3: list(&table, &all); break;
        }
    }
    find_all(&table, &all);
    while (all.count)
        remove_at(&table, &all, all.count - 1);
    check(!table.buckets || table.buckets == table.first);
    return 0;
}
