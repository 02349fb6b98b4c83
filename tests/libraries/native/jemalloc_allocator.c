/* jemalloc as the plugin's global allocator, as Rust programs have it, with its background threads. */
#include "library.h"

#include <stdbool.h>

int _rjem_mallctl(const char *name, void *old, size_t *old_size, void *new, size_t new_size);

static int background(bool wanted) { return _rjem_mallctl("background_thread", NULL, NULL, &wanted, sizeof wanted); }

int library_start(const char *folder, const char *file, const char *url, char *error, size_t size) {
    (void)folder, (void)file, (void)url;
    int code = background(true);
    if (code) FAIL("there is no background thread: %d", code);
    return 0;
}

/* The plugin itself allocates. */
int library_use(char *error, size_t size) {
    (void)error, (void)size;
    return 0;
}

void library_stop(void) { background(false); }
