/* GStreamer: it scans its plugins in a child process and loads them, keeps a registry, GObject types and thread pools for the life of
   the process, and runs each pipeline on threads of its own. One pipeline runs always and calls a function of
   the plugin for each buffer, each use runs a short one. */
#include "library.h"

#include <gst/gst.h>

static GstElement *always;
static _Atomic unsigned long seen;

static void handoff(GstElement *element, GstBuffer *buffer, gpointer data) {
    (void)element, (void)buffer, (void)data;
    seen++;
}

int library_start(const char *folder, const char *file, const char *url, char *error, size_t size) {
    (void)folder, (void)file, (void)url;
    GError *why = NULL;
    if (!gst_init_check(NULL, NULL, &why)) FAIL("gst_init_check: %s", why->message);
    always = gst_parse_launch("fakesrc sizetype=fixed sizemax=64 ! identity name=passed signal-handoffs=true sleep-time=5000 ! queue ! fakesink sync=false", &why);
    if (!always) FAIL("gst_parse_launch: %s", why->message);
    GstElement *passed = gst_bin_get_by_name(GST_BIN(always), "passed");
    g_signal_connect(passed, "handoff", G_CALLBACK(handoff), NULL);
    gst_object_unref(passed);
    if (gst_element_set_state(always, GST_STATE_PLAYING) == GST_STATE_CHANGE_FAILURE) FAIL("it does not play");
    return 0;
}

int library_use(char *error, size_t size) {
    GError *why = NULL;
    GstElement *pipeline = gst_parse_launch("fakesrc num-buffers=5 ! queue ! fakesink sync=false", &why);
    if (!pipeline) FAIL("gst_parse_launch: %s", why->message);
    gst_element_set_state(pipeline, GST_STATE_PLAYING);
    GstBus *bus = gst_element_get_bus(pipeline);
    GstMessage *message = gst_bus_timed_pop_filtered(bus, 20 * GST_SECOND, GST_MESSAGE_ERROR | GST_MESSAGE_EOS);
    int ended = message && GST_MESSAGE_TYPE(message) == GST_MESSAGE_EOS;
    if (message) gst_message_unref(message);
    gst_object_unref(bus);
    gst_element_set_state(pipeline, GST_STATE_NULL);
    gst_object_unref(pipeline);
    if (!ended) FAIL("the pipeline did not come to its end");
    return 0;
}

/* Not gst_deinit: after that it cannot be used again in this process, and the next generation has the same one. */
void library_stop(void) {
    gst_element_set_state(always, GST_STATE_NULL);
    gst_object_unref(always);
}
