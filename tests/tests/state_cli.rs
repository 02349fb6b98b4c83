//! The operator's hands on the state of an app: everything while it serves.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::{collections::BTreeMap, fs, path::Path};

use handover_tests::{
    client::Http1,
    host::{Host, Output},
    plugins::fixture,
};
use serde_json::{Value, json};

async fn started() -> Host {
    Host::serving(&fixture("state", "1.0.0")).await
}

async fn state(host: &Host, arguments: &[&str]) -> Output {
    let all = [&["state"], arguments].concat();
    host.cli(all).await
}

async fn put_all(host: &Host, keys: impl Iterator<Item = String>) {
    let mut http = Http1::connect(host.address).await.unwrap();
    for key in keys {
        let path = format!("/kv/{key}");
        let body = format!("value of {key}");
        let answer = http.request("PUT", &path, &[], Some(body.as_bytes())).await;
        assert_eq!(answer.unwrap().status, 200);
    }
}

fn lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[tokio::test]
async fn a_key_is_put_seen_by_the_app_listed_and_removed() {
    let host = started().await;
    let put = state(&host, &["put", "state", "title", "\"Corner shop\""]).await;
    assert_eq!(put.expect_code(0).stdout, "\"Corner shop\"\n");
    assert_eq!(host.get("/kv/title").await.text(), "Corner shop");
    let got = state(&host, &["get", "state", "title"])
        .await
        .expect_code(0);
    assert_eq!(got.stdout, "\"Corner shop\"\n");
    let other = ["--namespace", "other"];
    let nothing = state(&host, &[&["get", "state", "title"][..], &other].concat()).await;
    nothing.expect_code(1).expect_words(&["no such key"]);
    state(&host, &[&["put", "state", "b", "2"][..], &other].concat())
        .await
        .expect_code(0);
    put_all(&host, ["a1", "a2", "b1"].into_iter().map(str::to_owned)).await;
    let keys = state(&host, &["ls", "state"]).await.expect_code(0);
    assert_eq!(keys.stdout, "a1\na2\nb1\ntitle\n");
    let keys = state(&host, &["ls", "state", "a"]).await.expect_code(0);
    assert_eq!(keys.stdout, "a1\na2\n");
    let page = ["ls", "state", "--after", "a1", "--limit", "2"];
    assert_eq!(state(&host, &page).await.expect_code(0).stdout, "a2\nb1\n");
    let keys = state(&host, &["ls", "state", "title", "--json"]).await;
    let [key] = &lines(&keys.expect_code(0).stdout)[..] else {
        panic!("one line");
    };
    assert_eq!((&key["key"], &key["size"]), (&json!("title"), &json!(13)));
    state(&host, &["rm", "state", "title"]).await.expect_code(0);
    assert_eq!(host.get("/kv/title").await.status, 404);
    state(&host, &["rm", "state", "title"]).await.expect_code(1);
    let brief = ["put", "state", "brief", "1", "--ttl", "1ms"];
    state(&host, &brief).await.expect_code(0);
    host.until("it to be gone", async || {
        (state(&host, &["get", "state", "brief"]).await.code == Some(1)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_makes_no_sense_ends_with_the_codes_of_the_contract() {
    let host = started().await;
    let unknown = state(&host, &["ls", "nobody"]).await.expect_code(1);
    unknown.expect_words(&["knows no app `nobody`"]);
    state(&host, &["ls"]).await.expect_code(2);
    state(&host, &["ls", "state", "--namespace", "No"])
        .await
        .expect_code(1)
        .expect_words(&["is no namespace"]);
    let json = state(&host, &["get", "state", "none", "--json"]).await;
    assert_eq!(json.expect_code(1).json()["exit_code"], 1);
    let nowhere = ["state", "ls", "state"];
    handover_tests::host::handover(nowhere).await.expect_code(3);
    let answer = host.ask("GET", "/v1/state/state/nonsense").await.unwrap();
    assert_eq!(answer.status, 404);
}

#[tokio::test]
async fn an_export_is_lines_that_another_app_can_import() {
    let host = started().await;
    put_all(&host, (0..300).map(|n| format!("k{n:03}"))).await;
    let control = host.control();
    // A key and a value that are no text.
    let binary = "/v1/state/state/value?namespace=raw&key_base64=//8=";
    let mut http = Http1::connect_unix(&control).await.unwrap();
    let answer = http.request("PUT", binary, &[], Some(&[0, 255, 7])).await;
    assert_eq!(answer.unwrap().status, 200);
    let export = state(&host, &["export", "state"]).await.expect_code(0);
    let all = lines(&export.stdout);
    assert_eq!(all.len(), 301);
    let raw = all.iter().find(|line| line["namespace"] == "raw").unwrap();
    assert_eq!(raw["key_base64"], "//8=");
    assert_eq!(raw["value_base64"], "AP8H");
    // Resumed behind a key, it is the rest.
    let rest = [
        "export",
        "state",
        "--namespace",
        "default",
        "--after",
        "k297",
    ];
    let rest = lines(&state(&host, &rest).await.expect_code(0).stdout);
    assert_eq!(rest.len(), 2);
    assert_eq!(rest[0]["key"], "k298");
    for key in ["k000", "k001"] {
        state(&host, &["rm", "state", key]).await.expect_code(0);
    }
    let file = host.scratch("export.jsonl");
    fs::write(&file, &export.stdout).unwrap();
    let import = state(&host, &["import", "state", file.to_str().unwrap()]).await;
    import.expect_code(0).expect_words(&["301 entries"]);
    let again = state(&host, &["export", "state"]).await.expect_code(0);
    assert_eq!(again.stdout, export.stdout);
    fs::write(&file, "{\"namespace\":\"default\",\"key\":\"x\"}\n").unwrap();
    let wrong = state(&host, &["import", "state", file.to_str().unwrap()]).await;
    wrong.expect_code(1).expect_words(&["line 1", "`value`"]);
}

/// The keys and values of the app.
async fn content(host: &Host) -> BTreeMap<String, String> {
    let export = state(host, &["export", "state"]).await.expect_code(0);
    lines(&export.stdout)
        .into_iter()
        .map(|line| {
            let text = |name: &str| line[name].as_str().unwrap().to_owned();
            (text("key"), text("value"))
        })
        .collect()
}

#[tokio::test]
async fn a_backup_of_a_busy_app_is_of_one_time_and_is_restored_at_once() {
    let host = started().await;
    put_all(&host, (0..200).map(|n| format!("k{n:03}"))).await;
    // What moves from one account to the other is in none of them twice, whenever that is looked
    // at.
    let address = host.address;
    let (stop, mut stopped) = tokio::sync::watch::channel(false);
    let busy = tokio::spawn(async move {
        let mut http = Http1::connect(address).await.unwrap();
        while !*stopped.borrow_and_update() {
            let path = "/move?from=account-1&to=account-2&amount=3";
            assert_eq!(http.post(path, b"").await.unwrap().status, 200);
        }
    });
    let file = host.scratch("backup");
    let path = file.to_str().unwrap().to_owned();
    for _ in 0..3 {
        state(&host, &["backup", "state", &path])
            .await
            .expect_code(0);
        let drill = state(&host, &["verify", "state", &path]).await;
        drill.expect_code(0).expect_words(&["can be restored"]);
        let sum: i64 = fs::read_to_string(&file)
            .unwrap()
            .lines()
            .filter(|line| line.contains("account-"))
            .map(|line| {
                let line: Value = serde_json::from_str(line).unwrap();
                line["value"].as_str().unwrap().parse::<i64>().unwrap()
            })
            .sum();
        assert_eq!(sum, 0);
    }
    let now = state(&host, &["verify", "state", "--json"]).await;
    assert!(now.expect_code(0).json()["entries"].as_u64().unwrap() >= 202);
    stop.send(true).unwrap();
    busy.await.unwrap();
    state(&host, &["backup", "state", &path])
        .await
        .expect_code(0);
    let before = content(&host).await;
    state(&host, &["rm", "state", "k007"]).await.expect_code(0);
    put_all(&host, ["new".to_owned()].into_iter()).await;
    let restored = state(&host, &["restore", "state", &path]).await;
    restored.expect_code(0).expect_words(&["202 keys"]);
    assert_eq!(content(&host).await, before);
    assert_eq!(host.get("/kv/k007").await.text(), "value of k007");
    assert_eq!(host.get("/kv/new").await.status, 404);
    // It goes on from there, over a crash as well.
    let mut host = host;
    put_all(&host, ["later".to_owned()].into_iter()).await;
    host.crash(|_| ()).await;
    host.live("state", "1.0.0").await;
    assert_eq!(host.get("/kv/later").await.text(), "value of later");
    assert_eq!(host.get("/kv/k007").await.text(), "value of k007");
    no_backup_is_restored(&host, &file).await;
}

/// What was cut or changed is refused, and nothing of the app is touched.
async fn no_backup_is_restored(host: &Host, file: &Path) {
    let before = content(host).await;
    let whole = fs::read_to_string(file).unwrap();
    let cut = &whole[..whole.trim_end().rfind('\n').unwrap() + 1];
    let changed = whole.replace("value of k100", "value of k1oo");
    for (text, why) in [
        (cut, "it was cut"),
        (changed.as_str(), "its digest"),
        ("{}\n", "first line"),
    ] {
        let wrong = host.scratch("wrong");
        fs::write(&wrong, text).unwrap();
        for what in ["restore", "verify"] {
            let refused = state(host, &[what, "state", wrong.to_str().unwrap()]).await;
            refused.expect_code(1).expect_words(&[why]);
        }
    }
    assert_eq!(content(host).await, before);
}

#[tokio::test]
async fn stats_say_how_much_there_is() {
    let host = started().await;
    put_all(&host, (0..10).map(|n| format!("k{n}"))).await;
    put_all(&host, ["c?namespace=memory:cache".to_owned()].into_iter()).await;
    let stats = state(&host, &["stats", "state", "--json"]).await;
    let stats = stats.expect_code(0).json();
    assert_eq!(stats["keys"], 10);
    assert_eq!(stats["memory_keys"], 1);
    assert_eq!(stats["namespaces"], json!(["default", "memory:cache"]));
    assert_eq!(stats["max_bytes"], 1 << 30);
    let text = state(&host, &["stats", "state"]).await.expect_code(0);
    text.expect_words(&["10 keys", "redb", "default, memory:cache"]);
    let none = fs::read_dir(host.state().join("state"))
        .unwrap()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with('.'))
        .count();
    assert_eq!(none, 0, "no trial is left");
}
