//! Compiles the C code.

fn main() {
    println!("cargo::rerun-if-changed=src/habits.c");
    cc::Build::new()
        .file("src/habits.c")
        // They are used, by old code.
        .flag_if_supported("-Wno-deprecated-declarations")
        .compile("habits");
}
