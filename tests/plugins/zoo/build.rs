//! Compiles the C dependency.

fn main() {
    println!("cargo::rerun-if-changed=src/habit.c");
    cc::Build::new().file("src/habit.c").compile("habit");
}
