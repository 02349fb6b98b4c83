/* A C dependency as there are many: a key with a destructor, a thread of its own, a thread-local, things for the end of the process. */
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

static pthread_key_t key;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static __thread int touched;

static void make_key(void) { pthread_key_create(&key, free); }

static void *work(void *nothing) {
    struct timespec some = {0, 20 * 1000 * 1000};
    nanosleep(&some, NULL);
    return nothing;
}

int zoo_touch(void) {
    pthread_t thread;
    pthread_once(&once, make_key);
    if (!pthread_getspecific(key))
        pthread_setspecific(key, malloc(64));
    if (pthread_create(&thread, NULL, work, NULL) == 0)
        pthread_detach(thread);
    return ++touched;
}

static int ended;

static void at_end(void) { ended++; }

int zoo_at_exit(void) { return atexit(at_end) + pthread_atfork(at_end, at_end, at_end); }
