/* Initialisers and finalisers of all kinds. They write down that they ran, with their arguments, and block in the host as long as a file says. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int path_of(char *path, size_t size, const char *name) {
    const char *folder = getenv("SLOW_ENDS");
    return folder && snprintf(path, size, "%s/%s", folder, name) < (int)size;
}

static int is_preflight(void) {
    char line[4096];
    int file = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
    ssize_t read_bytes = file < 0 ? 0 : read(file, line, sizeof line);
    close(file);
    return read_bytes > 0 && memmem(line, read_bytes, "preflight-child", 15) != NULL;
}

/* Appends a line to the file `told`. */
static void tell(const char *line) {
    char path[4096];
    if (is_preflight() || !path_of(path, sizeof path, "told")) return;
    int file = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (file < 0) return;
    if (write(file, line, strlen(line)) < 0) abort();
    close(file);
}

/* Waits as long as the file `name` is there, a minute at the longest. */
void slow_ends_wait(const char *name) {
    char path[4096], line[128];
    if (is_preflight() || !path_of(path, sizeof path, name) || access(path, F_OK) != 0) return;
    snprintf(line, sizeof line, "in %s\n", name);
    tell(line);
    for (int i = 0; i < 12000 && access(path, F_OK) == 0; i++) usleep(5000);
    snprintf(line, sizeof line, "out of %s\n", name);
    tell(line);
}

static void at_exit(void) {
    tell("atexit\n");
    slow_ends_wait("atexit");
}

__attribute__((constructor(200))) static void first(int argc, char **argv, char **envp) {
    char line[256];
    snprintf(line, sizeof line, "init 1 argv=%s null=%d env=%d\n", argc > 1 ? argv[1] : "", argv[argc] == NULL, envp && envp[0] != NULL);
    tell(line);
    atexit(at_exit);
}

__attribute__((constructor(300))) static void second(void) {
    tell("init 2\n");
    slow_ends_wait("init");
}

__attribute__((destructor(300))) static void last_but_one(void) {
    tell("fini 2\n");
    slow_ends_wait("fini");
}

__attribute__((destructor(200))) static void last(void) { tell("fini 1\n"); }
