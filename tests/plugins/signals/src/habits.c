/* What C code does with signals, timers, the environment and the working directory. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int heard[65];
static struct sigaction before[65];
static char until[4096];

static void some_time(void) {
    struct timespec some = {0, 5 * 1000 * 1000};
    nanosleep(&some, NULL);
}

/* Goes on to what it was told was there before, as careful code does. */
static void on_signal(int signal) {
    void (*old)(int) = before[signal].sa_handler;
    heard[signal]++;
    errno = 0;
    if (old != SIG_DFL && old != SIG_IGN && old != on_signal)
        old(signal);
}

static void on_info(int signal, siginfo_t *info, void *context) {
    if (info && context && info->si_signo == signal)
        heard[signal]++;
}

static void on_hold(int signal) {
    heard[signal]++;
    while (access(until, F_OK))
        some_time();
}

/* 0 default, 1 ignored, 2 a handler of this library, 3 another one. */
static int kind(const struct sigaction *action) {
    void (*handler)(int) = action->sa_handler;
    if (handler == SIG_DFL)
        return 0;
    if (handler == SIG_IGN)
        return 1;
    return handler == on_signal || handler == on_hold || action->sa_sigaction == on_info ? 2 : 3;
}

static int answer(int signal, void (*old)(int)) {
    if (old == SIG_ERR)
        return -1;
    before[signal].sa_handler = old;
    return kind(&before[signal]);
}

int signals_listen(const char *way, int number) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    action.sa_flags = SA_RESTART;
    if (!strcmp(way, "signal"))
        return answer(number, signal(number, on_signal));
    if (!strcmp(way, "bsd_signal")) {
        extern void (*bsd_signal(int, void (*)(int)))(int);
        return answer(number, bsd_signal(number, on_signal));
    }
    if (!strcmp(way, "ssignal"))
        return answer(number, ssignal(number, on_signal));
    if (!strcmp(way, "sysv_signal"))
        return answer(number, sysv_signal(number, on_signal));
    if (!strcmp(way, "sigset"))
        return answer(number, sigset(number, on_signal));
    if (!strcmp(way, "query")) {
        if (sigaction(number, NULL, &before[number]))
            return -1;
        return sigaction(number, &action, NULL) ? -1 : kind(&before[number]);
    }
    if (!strcmp(way, "info")) {
        action.sa_sigaction = on_info;
        action.sa_flags |= SA_SIGINFO;
    }
    if (!strcmp(way, "hold"))
        action.sa_handler = on_hold;
    if (!strcmp(way, "once"))
        action.sa_flags |= SA_RESETHAND;
    if (!strcmp(way, "ignore"))
        action.sa_handler = SIG_IGN;
    if (!strcmp(way, "default"))
        action.sa_handler = SIG_DFL;
    if (!strcmp(way, "sigignore"))
        return sigignore(number);
    return sigaction(number, &action, &before[number]) ? -1 : kind(&before[number]);
}

void signals_hold_until(const char *path) { strncpy(until, path, sizeof until - 1); }

int signals_ask(int number) {
    struct sigaction action;
    return sigaction(number, NULL, &action) ? -1 : kind(&action);
}

int signals_heard(int number) { return heard[number]; }

int signals_arm(int milliseconds) {
    struct itimerval time = {{0, milliseconds * 1000}, {0, milliseconds * 1000}};
    return setitimer(ITIMER_REAL, &time, NULL);
}

int signals_is_armed(void) {
    struct itimerval time;
    return getitimer(ITIMER_REAL, &time) ? -1 : time.it_interval.tv_usec != 0;
}

static volatile int waits;

static void *wait_for(void *number) {
    waits = 1;
    while (!heard[*(int *)number])
        some_time();
    return NULL;
}

/* Tells a thread of its own. */
int signals_tell_thread(int number) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, wait_for, &number))
        return -1;
    while (!waits)
        some_time();
    if (pthread_kill(thread, number))
        return -1;
    return pthread_join(thread, NULL);
}

static char *page;

static void on_fault(int signal, siginfo_t *info, void *context) {
    (void)context;
    heard[signal]++;
    if (info->si_addr == page)
        mprotect(page, 4096, PROT_READ | PROT_WRITE);
    else
        _exit(99);
}

int signals_listen_to_faults(void) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO;
    return sigaction(SIGSEGV, &action, NULL);
}

/* A page is made usable by the fault of its first use, as databases and runtimes do. */
int signals_fault(void) {
    page = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED)
        return -1;
    *page = 7;
    return *page;
}

static void *faults(void *nothing) {
    while (access(until, F_OK)) {
        signals_fault();
        munmap(page, 4096);
        some_time();
    }
    return nothing;
}

/* A thread that lives on its faults, until a file is there. */
int signals_fault_on(const char *path) {
    pthread_t thread;
    strncpy(until, path, sizeof until - 1);
    return pthread_create(&thread, NULL, faults, NULL) || pthread_detach(thread) ? -1 : 0;
}

int signals_block(int number) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, number);
    return pthread_sigmask(SIG_BLOCK, &set, NULL);
}

static char own_stack[256 * 1024];

int signals_give_stack(void) {
    stack_t stack = {.ss_sp = own_stack, .ss_size = sizeof own_stack};
    return sigaltstack(&stack, NULL);
}

/* Whether this thread's alternate stack is memory that is there. */
int signals_stack_is_there(void) {
    stack_t stack;
    if (sigaltstack(NULL, &stack))
        return -1;
    if (stack.ss_flags & SS_DISABLE)
        return 1;
    unsigned long start = ((unsigned long)stack.ss_sp + 4095) & ~4095ul;
    return msync((void *)start, 4096, MS_ASYNC) == 0;
}

static char zone[] = "SIGNALS_ZONE=UTC";

int surroundings_put(void) { return putenv(zone); }

int surroundings_set(const char *name, const char *value) { return setenv(name, value, 1); }

int surroundings_go(const char *path) { return chdir(path); }

void surroundings_mask(int mask) { umask(mask); }
