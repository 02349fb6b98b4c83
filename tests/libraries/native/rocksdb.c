/* RocksDB: a database whose memory table is small, so that threads of a pool for the whole process flush and compact all the time,
   and ask a function of the plugin about each entry. */
#include "library.h"

#include <rocksdb/c.h>
#include <stdlib.h>
#include <string.h>

static rocksdb_t *database;
static rocksdb_compactionfilter_t *filter;
static _Atomic unsigned long asked;

static void nothing(void *state) { (void)state; }

static const char *name(void *state) { return (void)state, "all stay"; }

static unsigned char leaves(void *state, int level, const char *key, size_t key_length, const char *value, size_t value_length,
                            char **other, size_t *other_length, unsigned char *changed) {
    (void)state, (void)level, (void)key, (void)key_length, (void)value, (void)value_length, (void)other, (void)other_length;
    *changed = 0;
    asked++;
    return 0;
}

int library_start(const char *folder, const char *file, const char *url, char *error, size_t size) {
    (void)file, (void)url;
    char path[512], *why = NULL;
    snprintf(path, sizeof path, "%s/database", folder);
    rocksdb_options_t *options = rocksdb_options_create();
    rocksdb_options_set_create_if_missing(options, 1);
    rocksdb_options_increase_parallelism(options, 4);
    rocksdb_options_set_write_buffer_size(options, 64 << 10);
    rocksdb_options_set_level0_file_num_compaction_trigger(options, 2);
    rocksdb_options_set_stats_dump_period_sec(options, 1);
    filter = rocksdb_compactionfilter_create(NULL, nothing, leaves, name);
    rocksdb_options_set_compaction_filter(options, filter);
    database = rocksdb_open(options, path, &why);
    rocksdb_options_destroy(options);
    if (why) FAIL("rocksdb_open: %s", why);
    return 0;
}

int library_use(char *error, size_t size) {
    static _Atomic unsigned turn;
    char key[32], value[1024], *why = NULL;
    size_t length = 0;
    int key_length = snprintf(key, sizeof key, "key %u", turn++ % 10000);
    memset(value, 'v', sizeof value);
    rocksdb_writeoptions_t *write = rocksdb_writeoptions_create();
    rocksdb_put(database, write, key, key_length, value, sizeof value, &why);
    rocksdb_writeoptions_destroy(write);
    if (why) FAIL("rocksdb_put: %s", why);
    rocksdb_readoptions_t *read = rocksdb_readoptions_create();
    char *found = rocksdb_get(database, read, key, key_length, &length, &why);
    rocksdb_readoptions_destroy(read);
    if (why) FAIL("rocksdb_get: %s", why);
    rocksdb_free(found);
    if (length != sizeof value) FAIL("%zu bytes instead of %zu", length, sizeof value);
    return 0;
}

void library_stop(void) {
    rocksdb_close(database);
    rocksdb_compactionfilter_destroy(filter);
}
