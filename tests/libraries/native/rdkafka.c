/* librdkafka: a producer with a mock cluster of one broker in it, and a consumer of what it writes. Each has a main thread, one for
   each broker, and sockets; the mock cluster has a thread and listeners. Its threads log by a function of the plugin. */
#include "library.h"

#include <librdkafka/rdkafka.h>
#include <librdkafka/rdkafka_mock.h>

static rd_kafka_t *producer, *consumer;

static _Atomic unsigned long logged;

static void heard(const rd_kafka_t *handle, int level, const char *facility, const char *text) {
    (void)handle, (void)level, (void)facility, (void)text;
    logged++;
}

static rd_kafka_conf_t *configuration(const char *name, const char *value) {
    char why[256];
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    rd_kafka_conf_set_log_cb(conf, heard);
    rd_kafka_conf_set(conf, "debug", "broker,protocol,queue", why, sizeof why);
    rd_kafka_conf_set(conf, name, value, why, sizeof why);
    return conf;
}

int library_start(const char *folder, const char *file, const char *url, char *error, size_t size) {
    (void)folder, (void)file, (void)url;
    char why[256];
    producer = rd_kafka_new(RD_KAFKA_PRODUCER, configuration("test.mock.num.brokers", "1"), why, sizeof why);
    if (!producer) FAIL("producer: %s", why);
    const rd_kafka_mock_cluster_t *cluster = rd_kafka_handle_mock_cluster(producer);
    rd_kafka_conf_t *conf = configuration("bootstrap.servers", rd_kafka_mock_cluster_bootstraps(cluster));
    rd_kafka_conf_set(conf, "group.id", "us", why, sizeof why);
    consumer = rd_kafka_new(RD_KAFKA_CONSUMER, conf, why, sizeof why);
    if (!consumer) FAIL("consumer: %s", why);
    rd_kafka_poll_set_consumer(consumer);
    rd_kafka_topic_partition_list_t *topics = rd_kafka_topic_partition_list_new(1);
    rd_kafka_topic_partition_list_add(topics, "work", RD_KAFKA_PARTITION_UA);
    rd_kafka_resp_err_t code = rd_kafka_subscribe(consumer, topics);
    rd_kafka_topic_partition_list_destroy(topics);
    if (code) FAIL("subscribe: %s", rd_kafka_err2str(code));
    return 0;
}

int library_use(char *error, size_t size) {
    rd_kafka_resp_err_t code = rd_kafka_producev(producer, RD_KAFKA_V_TOPIC("work"), RD_KAFKA_V_VALUE("hello", 5),
        RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY), RD_KAFKA_V_END);
    if (code) FAIL("produce: %s", rd_kafka_err2str(code));
    rd_kafka_poll(producer, 0);
    rd_kafka_message_t *message = rd_kafka_consumer_poll(consumer, 0);
    if (message) rd_kafka_message_destroy(message);
    return 0;
}

void library_stop(void) {
    rd_kafka_consumer_close(consumer);
    rd_kafka_destroy(consumer);
    rd_kafka_flush(producer, 1000);
    rd_kafka_destroy(producer);
}
