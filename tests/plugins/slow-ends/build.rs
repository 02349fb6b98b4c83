//! Compiles what runs before the library's first function and after its last one.

fn main() {
    println!("cargo::rerun-if-changed=src/ends.c");
    cc::Build::new().file("src/ends.c").compile("ends");
}
