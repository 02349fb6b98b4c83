// A C library with a thread, as many have one.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char until[4096];
static void (*subscriber)(void);

static void *run(void *unused) {
    (void)unused;
    pthread_setname_np(pthread_self(), "came-along");
    while (access(until, F_OK) != 0) {
        if (subscriber) subscriber();
        usleep(1000);
    }
    subscriber = NULL;
    return NULL;
}

// Calls `call` now and then, on a thread of its own, until the file is there.
int came_along_subscribe(void (*call)(void), const char *file) {
    pthread_t thread;
    strncpy(until, file, sizeof until - 1);
    subscriber = call;
    int failed = pthread_create(&thread, NULL, run, NULL);
    return failed ? failed : pthread_detach(thread);
}

// Starts a thread past the name that the dynamic linker knows, and calls nobody.
int came_along_hide(const char *file) {
    pthread_t thread;
    void *libc = dlopen("libc.so.6", RTLD_NOW | RTLD_NOLOAD);
    int (*create)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *) = dlsym(libc, "pthread_create");
    strncpy(until, file, sizeof until - 1);
    int failed = create(&thread, NULL, run, NULL);
    return failed ? failed : pthread_detach(thread);
}

// What is to be called at some time, as registers of callbacks are: in memory of this library's own.
struct callback {
    struct callback *next;
    void (*call)(void);
};
static struct callback *registered;

static void take_back(void) {
    while (registered) {
        struct callback *next = registered->next;
        free(registered);
        registered = next;
    }
}

// Calls the callbacks that are registered, and registers `call` in their place.
int came_along_register(void (*call)(void)) {
    for (struct callback *callback = registered; callback; callback = callback->next) callback->call();
    take_back();
    for (int i = 0; i < 3; i++) {
        struct callback *callback = malloc(sizeof *callback);
        if (!callback) return 12;
        *callback = (struct callback){ .next = registered, .call = call };
        registered = callback;
    }
    return 0;
}

// Registers `call`, and takes it back.
int came_along_register_briefly(void (*call)(void)) {
    int failed = came_along_register(call);
    take_back();
    return failed;
}
