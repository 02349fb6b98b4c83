//! Compiles what is in C and C++, and the shared library that comes along.

use std::{env, path::Path};

const CAME_ALONG: &str = "came-along/came_along.c";

fn main() {
    for source in ["src/habits.c", "src/habits.cpp", CAME_ALONG] {
        println!("cargo::rerun-if-changed={source}");
    }
    cc::Build::new().file("src/habits.c").compile("habits");
    cc::Build::new()
        .cpp(true)
        .file("src/habits.cpp")
        .compile("habits_cpp");
    came_along();
}

/// A shared library of its own that the plugin is linked to and finds where it was built.
fn came_along() {
    let out = env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    let library = Path::new(&out).join("libcame_along.so");
    let mut compiler = cc::Build::new().get_compiler().to_command();
    compiler
        .args([
            "-shared",
            "-fPIC",
            "-pthread",
            "-Wl,-soname,libcame_along.so",
            CAME_ALONG,
            "-o",
        ])
        .arg(&library);
    let status = compiler.status().expect("the C compiler can be run");
    assert!(status.success(), "{CAME_ALONG} does not compile");
    println!("cargo::rustc-link-search=native={out}");
    println!("cargo::rustc-link-lib=dylib=came_along");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-rpath,{out}");
}
