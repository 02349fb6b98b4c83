//! Compiles the C that uses the library, and links what it names.
//!
//! Libraries that a distribution packages are found by pkg-config. The others are files of
//! `LIBRARIES_FOLDER`, which `fetch.sh` makes.

use std::{env, path::Path, process::Command};

fn main() {
    println!("cargo::rerun-if-changed=native");
    println!("cargo::rerun-if-env-changed=LIBRARIES_FOLDER");
    let features: Vec<String> = env::vars()
        .filter_map(|(name, _)| Some(name.strip_prefix("CARGO_FEATURE_")?.to_lowercase()))
        .filter(|name| name != "native")
        .collect();
    let mut build = cc::Build::new();
    build.warnings_into_errors(false).include("native");
    let link: &[&str] = match features.as_slice() {
        [] => return,
        [one] => match one.as_str() {
            "curl" => pkg_config(&mut build, "curl.c", "libcurl", &["curl"]),
            "duckdb" => {
                build.file("native/duckdb.c");
                let folder = env::var("LIBRARIES_FOLDER").expect("LIBRARIES_FOLDER is set");
                println!("cargo::rustc-link-search=native={folder}");
                // The dynamic linker is told where it is, as for any library outside of its own
                // folders.
                println!("cargo::rustc-link-arg=-Wl,-rpath,{folder}");
                &["duckdb"]
            }
            "git2" => pkg_config(&mut build, "git2.c", "libgit2", &["git2"]),
            "git2_static" => {
                let root = env::var("DEP_GIT2_ROOT").expect("libgit2-sys says where it is");
                build.include(Path::new(&root).join("include"));
                build.file("native/git2.c");
                &[]
            }
            "gstreamer" => pkg_config(
                &mut build,
                "gstreamer.c",
                "gstreamer-1.0",
                &["gstreamer-1.0", "gobject-2.0", "glib-2.0"],
            ),
            "jemalloc" => pkg_config(&mut build, "jemalloc.c", "jemalloc", &["jemalloc"]),
            "jemalloc_allocator" => {
                build.file("native/jemalloc_allocator.c");
                &[]
            }
            "lua" => pkg_config(&mut build, "lua.c", "lua5.4", &["lua5.4"]),
            "lua_static" => {
                lua_static(&mut build);
                build.file("native/lua.c");
                &[]
            }
            "onnxruntime" => {
                build.file("native/onnxruntime.c");
                &["dl"]
            }
            "openssl" => pkg_config(&mut build, "openssl.c", "openssl", &["ssl", "crypto"]),
            "openssl_static" => {
                pkg_config(&mut build, "openssl.c", "openssl", &[]);
                println!("cargo::rustc-link-arg=/usr/lib/x86_64-linux-gnu/libssl.a");
                println!("cargo::rustc-link-arg=/usr/lib/x86_64-linux-gnu/libcrypto.a");
                &[]
            }
            "python" => pkg_config(&mut build, "python.c", "python3-embed", &["python3.11"]),
            "python_static" => {
                build.define("FINALIZE", None);
                pkg_config(&mut build, "python.c", "python3-embed", &[]);
                let folder = "/usr/lib/python3.11/config-3.11-x86_64-linux-gnu";
                println!("cargo::rustc-link-arg={folder}/libpython3.11-pic.a");
                &["expat", "z", "m", "dl", "util"]
            }
            "rdkafka" => pkg_config(&mut build, "rdkafka.c", "rdkafka", &["rdkafka"]),
            // The headers of the distribution's version do for the newer one that rdkafka-sys
            // builds.
            "rdkafka_static" => pkg_config(&mut build, "rdkafka.c", "rdkafka", &[]),
            "rocksdb" => pkg_config(&mut build, "rocksdb.c", "rocksdb", &["rocksdb"]),
            other => panic!("{other} has no C"),
        },
        more => panic!("one library at a time, not {more:?}"),
    };
    build.compile("native");
    for name in link {
        println!("cargo::rustc-link-lib={name}");
    }
}

/// Compiles `file` with what pkg-config says of `package`.
fn pkg_config<'a>(
    build: &mut cc::Build,
    file: &str,
    package: &str,
    link: &'a [&'a str],
) -> &'a [&'a str] {
    let output = Command::new("pkg-config")
        .args(["--cflags", package])
        .output();
    let output = output.expect("pkg-config can be run");
    assert!(
        output.status.success(),
        "pkg-config does not know {package}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    for flag in String::from_utf8_lossy(&output.stdout).split_whitespace() {
        build.flag(flag);
    }
    build.file(Path::new("native").join(file));
    link
}

#[cfg(feature = "lua-static")]
fn lua_static(build: &mut cc::Build) {
    let artifacts = lua_src::Build::new().build(lua_src::Version::Lua54);
    build.include(artifacts.include_dir());
    artifacts.print_cargo_metadata();
}

#[cfg(not(feature = "lua-static"))]
fn lua_static(_: &mut cc::Build) {}
