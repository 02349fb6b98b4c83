// Threads of C++: libstdc++ starts them, with a function of its own.
#include <string>
#include <thread>
#include <unistd.h>

extern "C" int cpp_thread(const char *file) {
    std::thread([until = std::string(file)] {
        while (access(until.c_str(), F_OK) != 0) usleep(1000);
    }).detach();
    return 0;
}
