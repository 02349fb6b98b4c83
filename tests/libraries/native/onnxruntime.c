/* ONNX runtime: opened by its path as its wrappers for many languages do, an environment and a session with threads of its own, and a
   multiplication of matrices for each use. It logs by a function of the plugin. Its C interface is a table of functions; the names below are their places in it. */
#include "library.h"

#include <dlfcn.h>
#include <stdint.h>
#include <string.h>

enum {
    GET_ERROR_MESSAGE = 2, CREATE_ENV_WITH_LOGGER = 4, CREATE_SESSION_FROM_ARRAY = 8, RUN = 9, CREATE_SESSION_OPTIONS = 10, SET_INTRA_OP_NUM_THREADS = 24,
    CREATE_TENSOR_WITH_DATA = 49, GET_TENSOR_MUTABLE_DATA = 51, CREATE_CPU_MEMORY_INFO = 69,
    RELEASE_ENV = 92, RELEASE_STATUS = 93, RELEASE_MEMORY_INFO = 94, RELEASE_SESSION = 95, RELEASE_VALUE = 96, RELEASE_SESSION_OPTIONS = 100,
};

/* A model (opset 13): y = x * x, matrices of 64 by 64 floats. */
static const unsigned char model[] = {
    8, 7, 58, 64, 10, 17, 10, 1, 120, 10, 1, 120, 18, 1, 121, 34, 6, 77, 97, 116,
    77, 117, 108, 18, 1, 103, 90, 19, 10, 1, 120, 18, 14, 10, 12, 8, 1, 18, 8, 10,
    2, 8, 64, 10, 2, 8, 64, 98, 19, 10, 1, 121, 18, 14, 10, 12, 8, 1, 18, 8,
    10, 2, 8, 64, 10, 2, 8, 64, 66, 2, 16, 13,
};

typedef struct {
    void *const *(*api)(uint32_t version);
    const char *(*version)(void);
} Base;

static void *handle, *environment, *session, *memory;
static void *const *api;

static _Atomic unsigned long logged;

static void heard(void *state, int level, const char *category, const char *id, const char *place, const char *text) {
    (void)state, (void)level, (void)category, (void)id, (void)place, (void)text;
    logged++;
}

#define CALL(place, ...) ((void *(*)())api[place])(__VA_ARGS__)
#define TRY(place, ...) do { \
        void *status = CALL(place, __VA_ARGS__); \
        if (status) { \
            snprintf(error, size, #place ": %s", ((const char *(*)(void *))api[GET_ERROR_MESSAGE])(status)); \
            CALL(RELEASE_STATUS, status); \
            return -1; \
        } \
    } while (0)

int library_start(const char *folder, const char *file, const char *url, char *error, size_t size) {
    (void)folder, (void)url;
    void *options;
    handle = dlopen(file, RTLD_NOW | RTLD_LOCAL);
    if (!handle) FAIL("%s", dlerror());
    const Base *(*base)(void) = (const Base *(*)(void))dlsym(handle, "OrtGetApiBase");
    if (!base) FAIL("%s", dlerror());
    api = base()->api(16);
    if (!api) FAIL("version %s has no interface 16", base()->version());
    /* Everything from the level of information on. */
    TRY(CREATE_ENV_WITH_LOGGER, heard, NULL, 1, "library", &environment);
    TRY(CREATE_SESSION_OPTIONS, &options);
    TRY(SET_INTRA_OP_NUM_THREADS, options, 3);
    TRY(CREATE_SESSION_FROM_ARRAY, environment, model, sizeof model, options, &session);
    CALL(RELEASE_SESSION_OPTIONS, options);
    TRY(CREATE_CPU_MEMORY_INFO, 0, 0, &memory);
    return 0;
}

int library_use(char *error, size_t size) {
    float numbers[64 * 64], *product;
    int64_t shape[] = {64, 64};
    const char *in = "x", *out = "y";
    void *x = NULL, *y = NULL;
    for (int n = 0; n < 64 * 64; n++) numbers[n] = 1;
    TRY(CREATE_TENSOR_WITH_DATA, memory, numbers, sizeof numbers, shape, (size_t)2, 1, &x);
    TRY(RUN, session, NULL, &in, &x, (size_t)1, &out, (size_t)1, &y);
    TRY(GET_TENSOR_MUTABLE_DATA, y, &product);
    float first = product[0];
    CALL(RELEASE_VALUE, x);
    CALL(RELEASE_VALUE, y);
    if (first != 64) FAIL("the product is %f", first);
    return 0;
}

void library_stop(void) {
    CALL(RELEASE_MEMORY_INFO, memory);
    CALL(RELEASE_SESSION, session);
    CALL(RELEASE_ENV, environment);
    dlclose(handle);
}
