/* CPython: one interpreter for the process, a thread of Python's that runs for ever and calls a function of
   the plugin, and thread states of the threads that use it.
   With the shared library the interpreter is there for all generations: each gets a sub-interpreter of its own, and the tidy one ends
   that. Linked statically (FINALIZE) each generation has a whole one, and the tidy one ends it. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "library.h"

static PyInterpreterState *interpreter;

static _Atomic unsigned long ticks;

static PyObject *tick(PyObject *self, PyObject *arguments) {
    (void)self, (void)arguments;
    ticks++;
    Py_RETURN_NONE;
}

static PyMethodDef ours[] = {{"ticked", tick, METH_NOARGS, NULL}};

static const char prepare[] =
    "import json, threading, time\n"
    "stop = threading.Event()\n"
    "def tick():\n"
    "    while not stop.wait(0.005): ticked()\n"
    "thread = threading.Thread(target=tick, daemon=False)\n"
    "thread.start()\n"
    "def use(): return len(json.dumps(json.loads('{\"a\": [1, 2, 3]}')))\n";

/* Runs `code` in the generation's interpreter, on any thread. */
static int run(const char *code, char *error, size_t size) {
    PyThreadState *state = PyThreadState_New(interpreter);
    PyEval_RestoreThread(state);
    PyObject *module = PyImport_AddModule("__main__"), *type, *value, *trace;
    PyObject *globals = PyModule_GetDict(module);
    if (!PyDict_GetItemString(globals, "ticked")) {
        PyObject *function = PyCFunction_New(ours, NULL);
        PyDict_SetItemString(globals, "ticked", function);
        Py_XDECREF(function);
    }
    PyObject *result = PyRun_String(code, Py_file_input, globals, globals);
    int code_of = result ? 0 : -1;
    if (!result) {
        PyErr_Fetch(&type, &value, &trace);
        PyObject *text = value ? PyObject_Str(value) : NULL;
        snprintf(error, size, "python: %s", text ? PyUnicode_AsUTF8(text) : "?");
        Py_XDECREF(text), Py_XDECREF(type), Py_XDECREF(value), Py_XDECREF(trace);
    }
    Py_XDECREF(result);
    PyThreadState_Clear(state);
    PyThreadState_DeleteCurrent();
    return code_of;
}

int library_start(const char *folder, const char *file, const char *url, char *error, size_t size) {
    (void)folder, (void)file, (void)url;
    PyThreadState *state;
    if (!Py_IsInitialized()) {
        Py_InitializeEx(0);
        PyEval_SaveThread();
    }
#ifdef FINALIZE
    interpreter = PyInterpreterState_Main();
#else
    PyGILState_STATE held = PyGILState_Ensure();
    PyThreadState *main = PyThreadState_Get();
    state = Py_NewInterpreter();
    if (!state) FAIL("Py_NewInterpreter");
    interpreter = state->interp;
    PyThreadState_Swap(main);
    PyGILState_Release(held);
#endif
    (void)state;
    return run(prepare, error, size);
}

int library_use(char *error, size_t size) { return run("assert use() > 0", error, size); }

void library_stop(void) {
    char error[256];
    run("stop.set(); thread.join()", error, sizeof error);
#ifdef FINALIZE
    PyGILState_Ensure();
    Py_FinalizeEx();
#else
    PyGILState_STATE held = PyGILState_Ensure();
    PyThreadState *mine = PyThreadState_Get();
    PyThreadState *last = PyInterpreterState_ThreadHead(interpreter);
    PyThreadState_Swap(last);
    Py_EndInterpreter(last);
    PyThreadState_Swap(mine);
    PyGILState_Release(held);
#endif
}
