/* DuckDB: a database in memory with four task threads, which a query over many rows keeps busy. */
#include "library.h"

#include <stdint.h>
#include <string.h>

/* duckdb.h is not part of the package that has the library. */
typedef struct {
    uint64_t columns, rows, changed;
    void *column;
    char *message;
    void *internal;
} duckdb_result;
int duckdb_create_config(void **config);
int duckdb_set_config(void *config, const char *name, const char *option);
void duckdb_destroy_config(void **config);
int duckdb_open_ext(const char *path, void **database, void *config, char **error);
int duckdb_connect(void *database, void **connection);
int duckdb_query(void *connection, const char *query, duckdb_result *result);
const char *duckdb_result_error(duckdb_result *result);
int64_t duckdb_value_int64(duckdb_result *result, uint64_t column, uint64_t row);
void duckdb_destroy_result(duckdb_result *result);
void duckdb_disconnect(void **connection);
void duckdb_close(void **database);

static void *database;

int library_start(const char *folder, const char *file, const char *url, char *error, size_t size) {
    (void)folder, (void)file, (void)url;
    void *config = NULL, *connection = NULL;
    char *why = NULL;
    if (duckdb_create_config(&config)) FAIL("duckdb_create_config");
    if (duckdb_set_config(config, "threads", "4")) FAIL("threads");
    if (duckdb_open_ext(NULL, &database, config, &why)) FAIL("%s", why);
    duckdb_destroy_config(&config);
    if (duckdb_connect(database, &connection)) FAIL("duckdb_connect");
    duckdb_result result;
    if (duckdb_query(connection, "create table t as select range as n from range(300000)", &result)) FAIL("create");
    duckdb_destroy_result(&result);
    duckdb_disconnect(&connection);
    return 0;
}

int library_use(char *error, size_t size) {
    void *connection = NULL;
    duckdb_result result;
    if (duckdb_connect(database, &connection)) FAIL("duckdb_connect");
    if (duckdb_query(connection, "select sum(n) from t where n % 7 = 3", &result)) {
        snprintf(error, size, "%s", duckdb_result_error(&result));
        return -1;
    }
    int64_t sum = duckdb_value_int64(&result, 0, 0);
    duckdb_destroy_result(&result);
    duckdb_disconnect(&connection);
    if (sum <= 0) FAIL("the sum is %lld", (long long)sum);
    return 0;
}

void library_stop(void) { duckdb_close(&database); }
