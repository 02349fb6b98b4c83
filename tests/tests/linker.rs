//! What the dynamic linker will make of a plugin is known and said before anything of it is loaded.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use handover_tests::{
    elf,
    host::{Host, Output, Setup, handover},
    plugins::{fixture, rewritten},
};
use serde_json::Value;

const DT_FLAGS: u64 = 30;
const DF_TEXTREL: u64 = 4;
const DF_STATIC_TLS: u64 = 16;
const DT_FLAGS_1: u64 = 0x6fff_fffb;
const DF_1_NODELETE: u64 = 8;

fn hello(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    rewritten("hello", |bytes| {
        elf::set_version(bytes, "3.0.0");
        change(bytes);
    })
}

/// `handover COMMAND --json` of these bytes.
async fn asked(command: &str, bytes: &[u8]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("plugin.so");
    std::fs::write(&file, bytes).unwrap();
    handover([command, "--json", file.to_str().unwrap()]).await
}

/// The note of that kind.
#[track_caller]
fn note(of: &Value, kind: &str) -> Value {
    let notes = of["notes"].as_array().unwrap();
    let note = notes.iter().find(|note| note["kind"] == kind);
    note.unwrap_or_else(|| panic!("no {kind} in {of}")).clone()
}

#[tokio::test]
async fn what_no_process_can_live_with_is_refused_with_what_to_do() {
    let host = Host::serving(&fixture("hello", "1.0.0")).await;
    let before = host.active("hello").await;
    let static_tls = hello(|bytes| elf::set_dynamic_bits(bytes, DT_FLAGS, DF_STATIC_TLS));
    let stack = hello(|bytes| elf::set_executable_stack(bytes));
    let mimalloc = rewritten("leaver", |bytes| {
        elf::set_texts(
            bytes,
            b"mimalloc: warning: \0no thread-local reserved for heap (%p)\n\0",
        );
    });
    for (bytes, words) in [
        (
            static_tls,
            &[
                "static TLS",
                "local_dynamic_tls",
                "disable_initial_exec_tls",
            ][..],
        ),
        (stack, &["executable stack", "noexecstack"]),
        (mimalloc, &["mimalloc 3", "`v2`", "own-heap"]),
    ] {
        host.deploy_bytes(&bytes)
            .await
            .expect_code(4)
            .expect_words(words);
        asked("check", &bytes)
            .await
            .expect_code(4)
            .expect_words(words);
        let told = asked("inspect", &bytes)
            .await
            .expect_code(0)
            .expect_words(words)
            .json();
        assert_eq!(told["accepted"], false, "{told}");
    }
    assert_eq!(host.active("hello").await.generation, before.generation);
    assert_eq!(host.get("/").await.text(), "hello 1.0.0");
}

#[tokio::test]
async fn a_library_that_would_never_unload_is_a_warning_and_comes_true() {
    let host = Setup::new()
        .config("[app.hello]\nroutes = [\"/\"]\n")
        .start()
        .await;
    let stays = hello(|bytes| elf::set_dynamic_bits(bytes, DT_FLAGS_1, DF_1_NODELETE));
    host.deploy_bytes(&stays)
        .await
        .expect_code(0)
        .expect_words(&["warning", "DF_1_NODELETE", "nodelete out"]);
    for command in ["check", "inspect"] {
        let told = asked(command, &stays).await.expect_code(0).json();
        assert_eq!(note(&told, "never_unloads")["warning"], true);
        let retained = told["notes"].as_array().unwrap().iter();
        assert_eq!(
            retained.filter(|note| note["kind"] == "retained").count(),
            0,
            "said twice: {told}"
        );
    }
    let generation = host.active("hello").await.generation;
    let warned = host
        .event("the warning", |event| event.kind == "warning")
        .await;
    assert_eq!(warned.generation, Some(generation));
    assert!(warned.message.contains("DF_1_NODELETE"), "{warned:?}");
    let history = host.cli(["history", "--json"]).await.expect_code(0).json();
    let warnings = &history["history"][0]["warnings"];
    assert!(
        warnings[0].as_str().unwrap().contains("DF_1_NODELETE"),
        "{history}"
    );
    host.deploy(&fixture("hello", "2.0.0")).await.expect_code(0);
    host.event("what was said", |event| {
        event.kind == "retained" && event.generation == Some(generation)
    })
    .await;
}

#[tokio::test]
async fn what_would_never_unload_is_refused_where_that_is_wanted() {
    let host = Setup::new()
        .config("[app.hello.check]\nleave = \"refuse\"\nstart = false\n")
        .start()
        .await;
    let stays = hello(|bytes| elf::set_dynamic_bits(bytes, DT_FLAGS_1, DF_1_NODELETE));
    host.deploy_bytes(&stays)
        .await
        .expect_code(4)
        .expect_words(&["DF_1_NODELETE", "check.leave"]);
    host.deploy(&fixture("hello", "1.0.0")).await.expect_code(0);
}

#[tokio::test]
async fn text_relocations_are_a_warning() {
    let writes = hello(|bytes| elf::set_dynamic_bits(bytes, DT_FLAGS, DF_TEXTREL));
    let told = asked("check", &writes).await.expect_code(0).json();
    let note = note(&told, "text_relocations");
    assert_eq!(note["warning"], true);
    assert!(note["message"].as_str().unwrap().contains("-fPIC"));
}

#[tokio::test]
async fn missing_libraries_are_named_all_of_them_in_the_words_of_the_linker() {
    let host = Host::serving(&fixture("hello", "1.0.0")).await;
    let lost = hello(|bytes| {
        elf::need_instead(bytes, "libgcc_s.so.1", "libnot_t.so.1");
        elf::need_instead(bytes, "libc.so.6", "libx.so.6");
    });
    let words = &[
        "cannot open shared object file: No such file or directory",
        "libnot_t.so.1",
        "libx.so.6",
        "LD_LIBRARY_PATH",
    ];
    host.deploy_bytes(&lost)
        .await
        .expect_code(4)
        .expect_words(words);
    asked("check", &lost)
        .await
        .expect_code(4)
        .expect_words(words);
    let told = asked("inspect", &lost).await.expect_code(0).json();
    let needed = told["needed"].as_array().unwrap();
    assert!(needed.contains(&"libx.so.6".into()), "{told}");
    assert_eq!(host.get("/").await.text(), "hello 1.0.0");
}

#[tokio::test]
async fn a_library_that_lies_beside_the_plugin_is_not_found_and_that_is_said() {
    let beside = hello(|bytes| elf::set_search_path(bytes, "$ORIGIN"));
    // Nothing lies there: it is a note.
    let told = asked("check", &beside).await.expect_code(0).json();
    assert_eq!(note(&told, "origin_path")["warning"], false);
    let told = asked("inspect", &beside).await.expect_code(0).json();
    note(&told, "origin_path");

    let needs = hello(|bytes| {
        elf::set_search_path(bytes, "$ORIGIN");
        elf::need_instead(bytes, "libgcc_s.so.1", "libnot_t.so.1");
    });
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("plugin.so");
    std::fs::write(&file, &needs).unwrap();
    std::fs::copy(
        fixture("hello", "1.0.0"),
        folder.path().join("libnot_t.so.1"),
    )
    .unwrap();
    handover(["check", file.to_str().unwrap()])
        .await
        .expect_code(4)
        .expect_words(&["libnot_t.so.1", "$ORIGIN", "-rpath"]);
    // By its whole path it is found.
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let libgcc = maps
        .split_whitespace()
        .find(|word| word.contains("/libgcc_s.so.1"))
        .unwrap();
    let folder = tempfile::Builder::new()
        .prefix("h")
        .tempdir_in("/tmp")
        .unwrap();
    std::os::unix::fs::symlink(libgcc, folder.path().join("libnot_t.so.1")).unwrap();
    let found = hello(|bytes| {
        elf::set_search_path(bytes, folder.path().to_str().unwrap());
        elf::need_instead(bytes, "libgcc_s.so.1", "libnot_t.so.1");
    });
    asked("check", &found).await.expect_code(0);
}

#[tokio::test]
async fn what_a_plugin_brings_with_it_is_named() {
    for (texts, kind, word) in [
        (
            &b"mimalloc: warning: %s\n\0"[..],
            "bundled_allocator",
            "mimalloc",
        ),
        (
            b"<jemalloc>: Error in atexit()\n\0",
            "bundled_allocator",
            "jemalloc",
        ),
        (
            b"SQLite format 3\0sqlite_autoindex_%s_%d\0",
            "bundled_sqlite",
            "busy_timeout",
        ),
    ] {
        let brings = rewritten("leaver", |bytes| elf::set_texts(bytes, texts));
        for command in ["check", "inspect"] {
            let told = asked(command, &brings).await.expect_code(0).json();
            let note = note(&told, kind);
            assert_eq!(note["warning"], false);
            assert!(note["message"].as_str().unwrap().contains(word), "{note}");
        }
    }
    let plain = std::fs::read(fixture("leaver", "1.0.0")).unwrap();
    let told = asked("check", &plain).await.expect_code(0).json();
    assert_eq!(told["notes"], serde_json::json!([]));
}

/// Builds a library that says `answer`, in the place of the one at `path`.
fn companion(path: &std::path::Path, answer: &str) {
    let (source, fresh) = (path.with_extension("c"), path.with_extension("fresh"));
    std::fs::write(&source, format!("int answer(void) {{ return {answer}; }}")).unwrap();
    let name = path.file_name().unwrap().to_str().unwrap();
    let built = std::process::Command::new("cc")
        .args(["-shared", "-fPIC", &format!("-Wl,-soname,{name}"), "-o"])
        .args([&fresh, &source])
        .status();
    assert!(built.unwrap().success());
    std::fs::rename(fresh, path).unwrap();
}

#[tokio::test]
async fn a_companion_that_is_not_the_one_that_preflight_ran_is_said() {
    let folder = tempfile::Builder::new()
        .prefix("c")
        .tempdir_in("/tmp")
        .unwrap();
    let library = folder.path().join("libnot_t.so.1");
    let version = |version: &str| {
        rewritten("hello", |bytes| {
            elf::set_version(bytes, version);
            elf::set_search_path(bytes, folder.path().to_str().unwrap());
            elf::need_instead(bytes, "libgcc_s.so.1", "libnot_t.so.1");
        })
    };
    let mut host = Host::start().await;
    companion(&library, "1");
    let said = host.deploy_bytes(&version("1.0.0")).await.expect_code(0);
    assert!(!said.text().contains("warning"), "{}", said.text());
    // Replaced while the first is live: preflight runs the new one, the host goes on with the old
    // one.
    companion(&library, "2");
    host.deploy_bytes(&version("2.0.0"))
        .await
        .expect_code(0)
        .expect_words(&["warning", "libnot_t.so.1", "not the one that preflight ran"]);
    host.event("the warning", |event| {
        event.kind == "warning" && event.message.contains("libnot_t.so.1")
    })
    .await;
    // After a restart it is the one of then.
    let told = async |host: &Host| {
        let events = host.events().await;
        events.iter().any(|event| event.kind == "warning")
    };
    host.crash(|_| {}).await;
    host.live("hello", "2.0.0").await;
    assert!(!told(&host).await);
    host.crash(|_| companion(&library, "3")).await;
    host.live("hello", "2.0.0").await;
    assert!(told(&host).await);
}
