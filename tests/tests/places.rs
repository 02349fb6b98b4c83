//! Names and places: files in odd states, names that are no text, folders that come and go.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::{
    fs,
    io::{Seek, SeekFrom, Write},
};

use handover_tests::{
    host::{Host, Setup},
    plugins::{fixture, hello_as, misfit},
};

#[tokio::test]
async fn a_file_that_is_open_for_writing_is_not_taken() {
    let host = Host::serving(&fixture("hello", "1.0.0")).await;
    // As a downloader does it: its whole length first, then the pieces, the one in the middle last.
    let bytes = hello_as("2.0.0");
    let (begin, end) = (bytes.len() / 2, bytes.len() / 2 + 65536);
    let path = host.plugins().join("hello.so");
    let mut file = fs::File::create(&path).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    file.write_all(&bytes[..begin]).unwrap();
    file.seek(SeekFrom::Start(end as u64)).unwrap();
    file.write_all(&bytes[end..]).unwrap();
    let told = host
        .event("the wait to be told", |event| event.kind == "waiting")
        .await;
    let me = format!("(process {}) still has it open", std::process::id());
    assert!(told.message.contains(&me), "{}", told.message);
    host.cli(["reload", "hello"])
        .await
        .expect_code(1)
        .expect_words(&["hello.so waits", "open for writing"]);
    assert_eq!(host.get("/").await.text(), "hello 1.0.0");
    assert!(!path.with_extension("so.failed").exists());
    file.seek(SeekFrom::Start(begin as u64)).unwrap();
    file.write_all(&bytes[begin..end]).unwrap();
    drop(file);
    host.live("hello", "2.0.0").await;
    let waits = host.events().await;
    let waits = waits.iter().filter(|event| event.kind == "waiting");
    assert_eq!(waits.count(), 2, "told once, and once to who asked");
}

#[tokio::test]
async fn an_error_of_any_length_is_told_at_once_and_cut() {
    for (habit, config) in [
        ("start-wordy", ""),
        ("live-wordy", ""),
        ("start-wordy", "[app.misfit.check]\nstart = false\n"),
    ] {
        let host = Setup::new().config(config).start().await;
        let said = host.deploy_bytes(&misfit(habit)).await.expect_code(4);
        let said = said
            .expect_words(&["502 Bad Gateway", "more bytes)"])
            .text();
        assert!(said.len() < 32 << 10, "{} bytes", said.len());
        assert!(!said.contains('\x1b'), "{said}");
        let history = host.cli(["history"]).await.expect_code(0).text();
        assert!(history.len() < 32 << 10, "{} bytes", history.len());
        let events = host.cli(["events"]).await.expect_code(0).text();
        assert!(
            !events.lines().any(|line| line.starts_with("<p>")),
            "{events}"
        );
    }
}

#[tokio::test]
async fn a_name_forges_no_line() {
    let host = Host::start().await;
    let forged = "2026-11-25T00:00:00Z active    hello 9.9.9 is live as generation 9 \x1b[31m";
    let name = format!("x\n{forged}.so");
    fs::write(host.plugins().join(&name), "no plugin").unwrap();
    let told = host
        .event("the refusal", |event| event.kind == "rejected")
        .await;
    assert!(told.message.contains("x\\n2026-11-25"), "{}", told.message);
    let events = host.cli(["events"]).await.expect_code(0).stdout;
    let log = host.log().join("\n");
    for shown in [events, log] {
        assert!(!shown.contains('\x1b'), "{shown}");
        assert!(
            !shown
                .lines()
                .any(|line| line.starts_with("2026-11-25T00:00:00Z"))
        );
    }
    // Its answer lies beside it all the same.
    let answer = host.verdict(&name, "failed").await;
    assert!(
        answer.lines().nth(1).unwrap().starts_with("sha256 "),
        "{answer}"
    );
}
