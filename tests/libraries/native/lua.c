/* Lua: an interpreter for each use. */
#include "library.h"

#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>

int library_start(const char *folder, const char *file, const char *url, char *error, size_t size) {
    (void)folder, (void)file, (void)url;
    return library_use(error, size);
}

int library_use(char *error, size_t size) {
    lua_State *lua = luaL_newstate();
    if (!lua) FAIL("luaL_newstate");
    luaL_openlibs(lua);
    int code = luaL_dostring(lua,
        "local t = {} for n = 1, 100 do t[n] = tostring(n) end\n"
        "local ok = pcall(error, 'caught by longjmp')\n"
        "return #table.concat(t, ',') + (ok and 1 or 0)");
    long long length = lua_tointeger(lua, -1);
    if (code) snprintf(error, size, "%s", lua_tostring(lua, -1));
    lua_close(lua);
    if (code) return -1;
    if (length != 291) FAIL("the length is %lld", length);
    return 0;
}

void library_stop(void) {}
