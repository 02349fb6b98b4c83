// Threads that libc starts for this library, and threads that nobody told libc about.
#define _GNU_SOURCE
#include <aio.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <mqueue.h>
#include <netdb.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static char until[4096];
static atomic_int calls;

static void wait_for(const char *file) {
    strncpy(until, file, sizeof until - 1);
}

static void *in_libc(const char *name) {
    return dlsym(dlopen("libc.so.6", RTLD_NOW | RTLD_NOLOAD), name);
}

static void *thread(void *unused) {
    (void)unused;
    while (access(until, F_OK) != 0) usleep(1000);
    return NULL;
}

// pthread_create, past the name that the dynamic linker knows.
int hidden_thread(const char *file) {
    pthread_t made;
    int (*create)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *) = in_libc("pthread_create");
    wait_for(file);
    int failed = create(&made, NULL, thread, NULL);
    return failed ? failed : pthread_detach(made);
}

// A system call that leaves errno alone: what clone makes without thread-locals shares those of its maker.
static long raw(long number, long a, long b, long c, long d) {
#if defined(__x86_64__)
    long answer;
    register long r10 __asm__("r10") = d;
    __asm__ volatile("syscall" : "=a"(answer) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
    return answer;
#elif defined(__aarch64__)
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
    return x0;
#endif
}

static int task(void *unused) {
    (void)unused;
    const struct timespec moment = {.tv_nsec = 1000000};
    while (raw(SYS_faccessat, AT_FDCWD, (long)until, F_OK, 0) != 0)
        raw(SYS_nanosleep, (long)&moment, 0, 0, 0);
    return 0;
}

typedef int cloning(int (*)(void *), void *, int, void *, ...);

static int cloned(cloning *by, const char *file) {
    const size_t size = 64 << 10;
    char *stack = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (stack == MAP_FAILED) return errno;
    wait_for(file);
    int tid = by(task, stack + size, CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM, NULL);
    return tid > 0 ? 0 : errno;
}

int a_clone(const char *file) { return cloned(clone, file); }
int hidden_clone(const char *file) { return cloned(in_libc("clone"), file); }

static void expired(union sigval value) {
    atomic_fetch_add((atomic_int *)value.sival_ptr, 1);
    usleep(5000);
}

static struct sigevent by_thread(void) {
    struct sigevent event = {0};
    event.sigev_notify = SIGEV_THREAD;
    event.sigev_notify_function = expired;
    event.sigev_value.sival_ptr = &calls;
    return event;
}

static int timer(struct sigevent event) {
    timer_t made;
    if (timer_create(CLOCK_MONOTONIC, &event, &made) != 0) return errno;
    const struct itimerspec often = {{0, 1000000}, {0, 1000000}};
    return timer_settime(made, 0, &often, NULL) ? errno : 0;
}

int timer_thread(const char *unused) {
    (void)unused;
    return timer(by_thread());
}

// A signal that nobody minds.
int timer_signal(const char *unused) {
    (void)unused;
    struct sigevent event = {0};
    event.sigev_notify = SIGEV_SIGNAL;
    event.sigev_signo = SIGURG;
    return timer(event);
}

// Makes and deletes timers, whose last calls may be on their way.
int timers_deleted(const char *unused) {
    (void)unused;
    for (int i = 0; i < 100; i++) {
        timer_t made;
        struct sigevent event = by_thread();
        if (timer_create(CLOCK_MONOTONIC, &event, &made) != 0) return errno;
        const struct itimerspec once = {{0, 0}, {0, 1}};
        timer_settime(made, 0, &once, NULL);
        timer_delete(made);
    }
    return 0;
}

int told_of_messages(const char *unused) {
    (void)unused;
    char name[64];
    struct sigevent event = by_thread();
    snprintf(name, sizeof name, "/handover-test-%d-%p", getpid(), (void *)&calls);
    struct mq_attr attributes = {.mq_maxmsg = 1, .mq_msgsize = 8};
    mqd_t queue = mq_open(name, O_CREAT | O_RDWR | O_NONBLOCK, 0600, &attributes);
    if (queue == (mqd_t)-1) return errno;
    mq_unlink(name);
    // Told once, and to be told again.
    if (mq_notify(queue, &event) != 0) return errno;
    if (mq_send(queue, "x", 1, 0) != 0) return errno;
    char message[8];
    mq_receive(queue, message, sizeof message, NULL);
    return mq_notify(queue, &event) ? errno : 0;
}

static char buffer[16];

// Reads from a pipe that nobody has written into.
int reading(const char *file) {
    static struct aiocb request;
    char pipe[4096];
    snprintf(pipe, sizeof pipe, "%s.pipe", file);
    if (mkfifo(pipe, 0600) != 0) return errno == EEXIST ? 0 : errno;
    request.aio_fildes = open(pipe, O_RDWR | O_CLOEXEC);
    request.aio_buf = buffer;
    request.aio_nbytes = 1;
    return aio_read(&request) ? errno : 0;
}

// Reads what is there, and is called when it was read.
int reading_calls(const char *unused) {
    (void)unused;
    struct aiocb *request = calloc(1, sizeof *request);
    request->aio_fildes = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    request->aio_buf = buffer;
    request->aio_nbytes = sizeof buffer;
    request->aio_sigevent = by_thread();
    int failed = aio_read(request) ? errno : 0;
    struct aiocb *list[] = {calloc(1, sizeof *request)};
    list[0]->aio_fildes = request->aio_fildes;
    list[0]->aio_lio_opcode = LIO_READ;
    list[0]->aio_buf = buffer;
    list[0]->aio_nbytes = sizeof buffer;
    struct sigevent event = by_thread();
    return failed ? failed : lio_listio(LIO_NOWAIT, list, 1, &event) ? errno : 0;
}

int looking_up(const char *unused) {
    (void)unused;
    struct gaicb *request = calloc(1, sizeof *request);
    request->ar_name = "127.0.0.1";
    struct sigevent event = by_thread();
    return getaddrinfo_a(GAI_NOWAIT, &request, 1, &event);
}

int called(void) { return atomic_load(&calls); }
