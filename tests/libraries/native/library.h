/* What each library is made to do. One of these is in a plugin. */
#ifndef LIBRARY_H
#define LIBRARY_H

#include <stddef.h>
#include <stdio.h>

/* Starts it. `folder` is the generation's own, `file` the path of the shared library where it is opened by that, `url` a server.
   Returns 0, or -1 with the reason in `error`. */
int library_start(const char *folder, const char *file, const char *url, char *error, size_t size);

/* Has it work; may be called by many threads at once. Returns 0, or -1 with the reason in `error`. */
int library_use(char *error, size_t size);

/* Shuts it down, as its documentation has it. Nobody uses it any more. */
void library_stop(void);

#define FAIL(...) return snprintf(error, size, __VA_ARGS__), -1

#endif
