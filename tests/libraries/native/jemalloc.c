/* jemalloc as the distribution's shared library, by its own functions, with its background threads. */
#include "library.h"

#include <jemalloc/jemalloc.h>
#include <stdbool.h>
#include <string.h>

static int background(bool wanted) { return mallctl("background_thread", NULL, NULL, &wanted, sizeof wanted); }

int library_start(const char *folder, const char *file, const char *url, char *error, size_t size) {
    (void)folder, (void)file, (void)url;
    if (background(true)) FAIL("there is no background thread");
    return 0;
}

int library_use(char *error, size_t size) {
    void *blocks[64];
    for (int n = 0; n < 64; n++) {
        blocks[n] = mallocx(1024 << (n % 8), 0);
        if (!blocks[n]) FAIL("no memory");
        memset(blocks[n], n, 1024);
    }
    for (int n = 0; n < 64; n++) dallocx(blocks[n], 0);
    return 0;
}

void library_stop(void) { background(false); }
