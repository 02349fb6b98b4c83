//! Files that the host serves for an app: those of the live version and of the versions before,
//! asked for by curl as a foreign client.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::collections::BTreeMap;

use handover_tests::{
    elf,
    host::{Host, Setup},
    metrics::Metrics,
    plugins::{fixture, rewritten},
};
use rustix::process::Signal;

const IMMUTABLE: &str = "public, max-age=31536000, immutable";

/// What curl got.
#[derive(Debug)]
struct Got {
    status: u16,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Got {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Has curl ask for `path` as it stands.
async fn curl(host: &Host, path: &str, arguments: &[&str]) -> Got {
    let url = format!("http://{}{path}", host.address);
    let output = tokio::process::Command::new("curl")
        .args(["--silent", "--show-error", "--include", "--path-as-is"])
        .args(arguments)
        .arg(&url)
        .output()
        .await
        .expect("curl is there");
    assert!(output.status.success(), "{path}: {output:?}");
    let end = output
        .stdout
        .windows(4)
        .position(|four| four == b"\r\n\r\n");
    let (head, body) = output.stdout.split_at(end.unwrap() + 4);
    let head = String::from_utf8(head.to_vec()).unwrap();
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap();
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()));
    Got {
        status: status.parse().unwrap(),
        headers: headers.collect(),
        body: body.to_vec(),
    }
}

fn version(version: &str) -> Vec<u8> {
    rewritten("assets", |bytes| elf::set_version(bytes, version))
}

/// The script of the version with this major.
fn script(major: u32) -> String {
    format!("/assets/js/app.a1b2c3d{major}.js")
}

async fn host(config: &str) -> Host {
    let config = format!("[app.assets]\nroutes = [\"/\"]\n{config}");
    let host = Setup::new().config(&config).start().await;
    host.deploy(&fixture("assets", "1.0.0"))
        .await
        .expect_code(0);
    host
}

/// Waits until the variants of the file at `path` are made.
async fn compressed(host: &Host, path: &str) {
    host.until("the variants", async || {
        let got = curl(host, path, &["--header", "accept-encoding: br"]).await;
        (got.header("content-encoding") == "br").then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_host_serves_them_without_the_app() {
    let host = host("").await;
    for flags in [&["--http1.1"][..], &["--http2-prior-knowledge"]] {
        let got = curl(&host, &script(1), flags).await;
        assert_eq!(got.status, 200);
        assert!(got.text().starts_with("// 1.0.0\n"), "{got:?}");
        assert_eq!(got.header("cache-control"), IMMUTABLE);
        assert_eq!(got.header("content-type"), "text/javascript; charset=utf-8");
        assert_eq!(got.header("vary"), "accept-encoding");
        assert!(got.header("etag").starts_with('"'), "{got:?}");

        let head = curl(&host, &script(1), &[flags, &["--head"]].concat()).await;
        let (length, body) = (head.header("content-length"), got.body.len());
        assert_eq!((head.status, length), (200, body.to_string().as_str()));
        let lost = curl(&host, &script(7), &[flags, &["--head"]].concat()).await;
        assert_eq!((lost.status, lost.body.len()), (404, 0));

        let not_modified = format!("if-none-match: {}", got.header("etag"));
        let arguments = [flags, &["--header", &not_modified]].concat();
        let again = curl(&host, &script(1), &arguments).await;
        assert_eq!((again.status, again.body.len()), (304, 0));

        let part = curl(&host, &script(1), &[flags, &["--range", "3-7"]].concat()).await;
        assert_eq!((part.status, part.text().as_str()), (206, "1.0.0"));
        let beyond = [flags, &["--range", "999999-"]].concat();
        assert_eq!(curl(&host, &script(1), &beyond).await.status, 416);
    }
    let picture = curl(&host, "/assets/logo.0f1e2d3c.png", &[]).await;
    assert_eq!(picture.header("content-type"), "image/png");
    assert_eq!((picture.header("vary"), picture.body.len()), ("", 3000));
    let post = curl(&host, &script(1), &["--data", "x"]).await;
    assert_eq!((post.status, post.header("allow")), (405, "GET, HEAD"));

    // No request of these reached it; what is no file of it does.
    assert_eq!(host.app("assets").await.generations[0].requests, 0);
    for path in [
        "/assets/index.html",
        "/assets/unknown.js",
        "/assets/js/../style.css",
        "/assets/%73tyle.css",
        "/assets",
        "/js/app.a1b2c3d1.js",
    ] {
        let got = curl(&host, path, &[]).await;
        assert!(
            got.text().starts_with("the app was asked for"),
            "{path}: {got:?}"
        );
    }
}

#[tokio::test]
async fn each_client_gets_the_encoding_that_it_likes_best() {
    let host = host("").await;
    let plain = curl(&host, &script(1), &[]).await;
    assert_eq!(plain.header("content-encoding"), "");
    compressed(&host, &script(1)).await;
    for (accepted, encoding) in [
        ("gzip, deflate, br, zstd", "br"),
        ("br;q=0.5, gzip", "gzip"),
        ("identity", ""),
        ("br;q=0, gzip;q=0", ""),
    ] {
        let header = format!("accept-encoding: {accepted}");
        // Decompressed by curl, which knows at least one of them.
        let got = curl(&host, &script(1), &["--header", &header]).await;
        assert_eq!(got.header("content-encoding"), encoding, "{accepted}");
        assert_eq!(got.body.len() < plain.body.len() / 10, !encoding.is_empty());
        assert_eq!(
            got.header("etag") == plain.header("etag"),
            encoding.is_empty()
        );
    }
    let header = ["--compressed", "--header", "accept-encoding: gzip"];
    let got = curl(&host, &script(1), &header).await;
    assert_eq!(got.header("content-encoding"), "gzip");
    assert_eq!(got.body, plain.body);
    // A picture is as small as it gets.
    let picture = curl(&host, "/assets/logo.0f1e2d3c.png", &header).await;
    assert_eq!(
        (picture.header("content-encoding"), picture.body.len()),
        ("", 3000)
    );
}

#[tokio::test]
async fn a_page_of_an_old_version_finds_its_script_after_swaps_and_restarts() {
    let mut host = host("keep_assets = 2\n").await;
    for (major, left) in [(2, 1), (3, 1), (4, 2)] {
        host.deploy_bytes(&version(&format!("{major}.0.0")))
            .await
            .expect_code(0);
        for old in left..=major {
            let got = curl(&host, &script(old), &[]).await;
            assert!(
                got.text().starts_with(&format!("// {old}.0.0")),
                "{old}: {got:?}"
            );
            assert_eq!(got.header("cache-control"), IMMUTABLE);
        }
    }
    let lost = curl(&host, &script(1), &[]).await;
    assert_eq!(
        (lost.status, lost.header("cache-control")),
        (404, "no-store")
    );
    // One name for all versions is that of the live one, and nobody keeps it.
    let style = curl(&host, "/assets/style.css", &[]).await;
    assert!(style.text().starts_with("/* 4.0.0 */"), "{style:?}");
    assert_eq!(style.header("cache-control"), "no-cache");

    // What is on the disk is written after the cutover: when all of it is compressed, it is there.
    compressed(&host, &script(4)).await;
    for clean in [false, true] {
        if clean {
            host.cli(["shutdown"]).await.expect_code(0);
            host.ended().await;
            host.again().await;
        } else {
            host.signal_inner(Signal::KILL);
            host.came_back().await;
        }
        host.live("assets", "4.0.0").await;
        for old in 2..=4 {
            let got = curl(&host, &script(old), &[]).await;
            assert!(
                got.text().starts_with(&format!("// {old}.0.0")),
                "{old}: {got:?}"
            );
        }
        assert_eq!(curl(&host, &script(1), &[]).await.status, 404);
    }

    // A rollback is one more change of what is live.
    host.cli(["rollback", "assets"]).await.expect_code(0);
    host.live("assets", "3.0.0").await;
    for known in 2..=4 {
        assert_eq!(
            curl(&host, &script(known), &[]).await.status,
            200,
            "{known}"
        );
    }
    let style = curl(&host, "/assets/style.css", &[]).await;
    assert!(style.text().starts_with("/* 3.0.0 */"), "{style:?}");
}

#[tokio::test]
async fn what_no_version_has_any_more_is_counted_as_skew() {
    let host = host("keep_assets = 0\n").await;
    host.deploy_bytes(&version("2.0.0")).await.expect_code(0);
    assert_eq!(curl(&host, &script(2), &[]).await.status, 200);
    for _ in 0..3 {
        assert_eq!(curl(&host, &script(1), &[]).await.status, 404);
    }
    curl(&host, "/assets/not-hashed.js", &[]).await;

    let assets = host.app("assets").await.assets.unwrap();
    assert_eq!(assets["skewed"], 3);
    assert_eq!(
        (&assets["requests"], &assets["files"]),
        (&1.into(), &3.into())
    );
    assert_eq!(assets["kept"], serde_json::json!([]));
    let scraped = host.ask("GET", "/metrics").await.unwrap().text();
    let metrics = Metrics::read(&scraped);
    let app = [("app", "assets")];
    assert_eq!(metrics.get("handover_assets_skewed_total", &app), Some(3.0));
    assert_eq!(
        metrics.get("handover_assets_requests_total", &app),
        Some(1.0)
    );
    host.cli(["status", "assets"])
        .await
        .expect_code(0)
        .expect_words(&[
            "3 files",
            "3 requests for files of versions that are not kept",
        ]);
}

#[tokio::test]
async fn those_of_a_staged_version_are_served_beside_the_live_ones() {
    let host = host("").await;
    let staged = host.scratch("assets-2.so");
    std::fs::write(&staged, version("2.0.0")).unwrap();
    host.cli(["deploy", "--stage", staged.to_str().unwrap()])
        .await
        .expect_code(0);
    for major in [1, 2] {
        let got = curl(&host, &script(major), &[]).await;
        assert_eq!(got.status, 200, "{major}");
    }
    let style = curl(&host, "/assets/style.css", &[]).await;
    assert!(style.text().starts_with("/* 1.0.0 */"), "{style:?}");
    // It was never live: nothing of it is kept.
    host.cli(["abort", "assets"]).await.expect_code(0);
    assert_eq!(curl(&host, &script(2), &[]).await.status, 404);
    assert_eq!(curl(&host, &script(1), &[]).await.status, 200);
}

#[tokio::test]
async fn they_are_below_the_path_of_their_app() {
    let host = Setup::new()
        .config(
            "[app.assets]\nroutes = [\"/shop\", \"alone.example/\"]\nconfig = { prefix = \"/static/\" }\n\
             [app.hello]\nroutes = [\"/\"]\n",
        )
        .start()
        .await;
    for path in [fixture("assets", "1.0.0"), fixture("hello", "1.0.0")] {
        host.deploy(&path).await.expect_code(0);
    }
    let below = "/shop/static/js/app.a1b2c3d1.js";
    assert_eq!(
        curl(&host, below, &[]).await.header("cache-control"),
        IMMUTABLE
    );
    let alone = ["--header", "host: alone.example"];
    let got = curl(&host, "/static/js/app.a1b2c3d1.js", &alone).await;
    assert_eq!(got.header("cache-control"), IMMUTABLE);
    // The other app has no assets: nothing of it is the host's to answer.
    let got = curl(&host, "/static/js/app.a1b2c3d1.js", &[]).await;
    assert_ne!(got.header("cache-control"), IMMUTABLE);
    assert_eq!(host.app("hello").await.generations[0].requests, 1);
    assert_eq!(host.app("hello").await.assets, None);
}

#[tokio::test]
async fn a_folder_is_handed_over_and_one_that_is_too_large_refuses_the_deploy() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("fonts")).unwrap();
    let file = folder.path().join("fonts/text-B7x_y9Zq.woff2");
    std::fs::write(file, [7; 5000]).unwrap();
    let config = format!("config = {{ none = true, folder = {:?} }}\n", folder.path());
    let served = host(&config).await;
    let path = "/files/fonts/text-B7x_y9Zq.woff2";
    let got = curl(&served, path, &[]).await;
    assert_eq!(
        (got.header("content-type"), got.body.len()),
        ("font/woff2", 5000)
    );

    let small = format!("[app.assets]\nassets_max_size = \"4KiB\"\n{config}");
    let refusing = Setup::new().config(&small).start().await;
    refusing
        .deploy(&fixture("assets", "1.0.0"))
        .await
        .expect_code(4)
        .expect_words(&[
            "fonts/text-B7x_y9Zq.woff2 is not taken",
            "assets_max_size, 4",
        ]);
}

#[tokio::test]
async fn check_names_the_files_without_a_hash() {
    let file = fixture("assets", "1.0.0");
    handover_tests::host::handover(["check".as_ref(), file.as_os_str()])
        .await
        .expect_code(0)
        .expect_words(&["without a hash", "`/assets/style.css`"]);
}
