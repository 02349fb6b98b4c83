/* libcurl: global initialisation, a multi handle with kept connections, and the threaded resolver, whose threads it detaches when a
   transfer is given up before the name is known. */
#include "library.h"

#include <curl/curl.h>
#include <pthread.h>
#include <string.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static CURLM *multi;
static char server[256];

static size_t swallow(char *bytes, size_t size, size_t count, void *sum) {
    (void)bytes;
    *(size_t *)sum += size * count;
    return size * count;
}

int library_start(const char *folder, const char *file, const char *url, char *error, size_t size) {
    (void)folder, (void)file;
    if (curl_global_init(CURL_GLOBAL_ALL) != CURLE_OK) FAIL("curl_global_init");
    multi = curl_multi_init();
    if (!multi) FAIL("curl_multi_init");
    snprintf(server, sizeof server, "%s", url);
    return 0;
}

static CURL *transfer(size_t *sum) {
    CURL *easy = curl_easy_init();
    curl_easy_setopt(easy, CURLOPT_URL, server);
    curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, swallow);
    curl_easy_setopt(easy, CURLOPT_WRITEDATA, sum);
    curl_easy_setopt(easy, CURLOPT_TIMEOUT_MS, 20000L);
    /* Each asks the resolver again. */
    curl_easy_setopt(easy, CURLOPT_DNS_CACHE_TIMEOUT, 0L);
    return easy;
}

int library_use(char *error, size_t size) {
    size_t sum = 0;
    int running = 0, left;
    pthread_mutex_lock(&lock);
    CURL *given_up = transfer(&sum), *easy = transfer(&sum);
    curl_multi_add_handle(multi, given_up);
    curl_multi_perform(multi, &running);
    curl_multi_remove_handle(multi, given_up);
    curl_easy_cleanup(given_up);

    curl_multi_add_handle(multi, easy);
    do {
        curl_multi_perform(multi, &running);
        if (running) curl_multi_poll(multi, NULL, 0, 1000, NULL);
    } while (running);
    CURLcode code = CURLE_FAILED_INIT;
    CURLMsg *message;
    while ((message = curl_multi_info_read(multi, &left)))
        if (message->msg == CURLMSG_DONE && message->easy_handle == easy) code = message->data.result;
    curl_multi_remove_handle(multi, easy);
    curl_easy_cleanup(easy);
    pthread_mutex_unlock(&lock);
    if (code != CURLE_OK) FAIL("%s", curl_easy_strerror(code));
    if (sum == 0) FAIL("an empty answer");
    return 0;
}

void library_stop(void) {
    curl_multi_cleanup(multi);
    curl_global_cleanup();
}
