//! Certificates that the host orders by itself, from an authority that speaks the real protocol.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use handover_tests::{
    acme::FakeAuthority,
    client::{Fault, Http1, TlsClient, tls::shown},
    host::{Host, Setup, handover},
    metrics::Metrics,
};
use rustix::process::Signal;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

const TLS_ALPN: &str = "challenge = \"tls-alpn-01\"\n";

const NAMES: [&str; 2] = ["shop.example.org", "www.shop.example.org"];

/// An authority, and the folder with its certificate, which outlive their host.
struct World {
    ca: FakeAuthority,
    folder: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let ca = FakeAuthority::start().await;
        let folder = tempfile::Builder::new()
            .prefix("handover-acme-")
            .tempdir()
            .unwrap();
        fs::write(folder.path().join("ca.pem"), &ca.authority.pem).unwrap();
        Self { ca, folder }
    }

    /// A listener that wants a certificate for [`NAMES`], and one without TLS.
    fn config(&self, more: &str) -> String {
        format!(
            "[acme]\ndirectory = \"{}\"\nca_file = \"{}/ca.pem\"\ncontact = [\"ops@example.org\"]\n{more}\n\
             [[listen]]\naddress = \"127.0.0.1:0\"\ntls = {{ acme = [\"{}\", \"{}\"] }}\n\
             [[listen]]\naddress = \"127.0.0.1:0\"\nhttp_to_https = true\n",
            self.ca.directory,
            self.folder.path().display(),
            NAMES[0],
            NAMES[1],
        )
    }

    async fn host(&self, more: &str) -> Host {
        Setup::new().config(&self.config(more)).start().await
    }

    /// Starts the host again, which looks for its authority at once.
    async fn restart(&self, host: &mut Host, more: &str, meanwhile: impl FnOnce(&Path)) {
        // What waits for the port of the host is not to find the one before.
        self.ca.state().tls = None;
        host.reconfigure(&self.config(more));
        host.signal(Signal::TERM);
        assert_eq!(host.ended().await, Some(0));
        meanwhile(&folder_of(&host.state().join("acme")));
        host.again().await;
        self.ca.state().tls = Some(tls_at(host).await);
    }

    fn client(&self) -> TlsClient {
        TlsClient::trusting(&self.ca.authority)
    }

    /// Waits until a certificate is served that this authority has issued.
    async fn served(&self, host: &Host) -> TlsStream<TcpStream> {
        let at = tls_at(host).await;
        host.until("a certificate to be served", async || {
            self.client().connect(at, NAMES[0]).await.ok()
        })
        .await
    }
}

/// Where the host listens with TLS.
async fn tls_at(host: &Host) -> SocketAddr {
    let all = host.status().await.listen();
    let mut with_tls = all.iter().filter_map(|at| at.strip_prefix("https://"));
    with_tls.next().unwrap().parse().unwrap()
}

/// Where it redirects from.
async fn plain_at(host: &Host) -> SocketAddr {
    host.status().await.listen().pop().unwrap().parse().unwrap()
}

/// What the status says of the certificate.
async fn status(host: &Host) -> Value {
    let answer = host.ask("GET", "/v1/status").await.unwrap();
    answer.json()["host"]["certificates"][0].clone()
}

async fn orders(host: &Host, result: &str) -> f64 {
    let answer = host.ask("GET", "/metrics").await.unwrap();
    Metrics::read(&answer.text())
        .get(
            "handover_certificate_orders_total",
            &[("name", NAMES[0]), ("result", result)],
        )
        .unwrap()
}

/// Waits until an order has failed, and returns what is told of it.
async fn failure(host: &Host) -> String {
    let failed = host.event("a failure", |event| event.kind == "certificate_not_issued");
    failed.await.message
}

/// Waits until another certificate than `before` is served.
async fn another(world: &World, host: &Host, before: &[u8]) -> Vec<u8> {
    host.until("another certificate", async || {
        let certificate = shown(&world.served(host).await);
        (certificate != before).then_some(certificate)
    })
    .await
}

/// The only folder of an authority.
fn folder_of(acme: &Path) -> PathBuf {
    let mut folders = fs::read_dir(acme).unwrap();
    let folder = folders.next().unwrap().unwrap().path();
    assert!(folders.next().is_none());
    folder
}

#[tokio::test]
async fn a_certificate_is_ordered_at_the_start_and_shown_to_be_wanted_in_a_handshake() {
    let world = World::new().await;
    let mut host = world
        .host("challenge = \"tls-alpn-01\"\nprofile = \"short\"")
        .await;
    let at = tls_at(&host).await;
    // The authority waits until it knows where to look: there is nothing to serve yet.
    let refused = world.client().connect(at, NAMES[0]).await.unwrap_err();
    assert!(matches!(refused, Fault::Connect(_)), "{refused:?}");
    assert_eq!(status(&host).await["not_after"], Value::Null);
    world.ca.state().tls = Some(at);
    let event = host
        .event("the certificate", |event| {
            event.kind == "certificate_issued"
        })
        .await;
    assert!(
        event
            .message
            .contains("shop.example.org, www.shop.example.org")
    );
    let stream = world.served(&host).await;
    let certificate = shown(&stream);
    assert_eq!(Http1::over(stream).get("/").await.unwrap().status, 404);
    world.client().connect(at, NAMES[1]).await.unwrap();
    let told = status(&host).await;
    assert_eq!(told["names"][1], NAMES[1]);
    assert!(told["not_after"].is_string() && told["next_try"].is_string());
    assert_eq!(told["last_error"], Value::Null);
    assert_eq!(orders(&host, "issued").await, 1.0);
    let text = host.cli(["status"]).await.expect_code(0).text();
    assert!(
        text.contains("certificate shop.example.org and 1 other name: valid until"),
        "{text}"
    );
    {
        let state = world.ca.state();
        assert_eq!(state.payloads[0]["contact"][0], "mailto:ops@example.org");
        assert_eq!(state.payloads[1]["profile"], "short");
    }
    // Nobody else may read it.
    let folder = folder_of(&host.state().join("acme"));
    for (path, mode) in [
        (&folder, 0o700),
        (&folder.join("account.json"), 0o600),
        (&folder.join("shop.example.org.pem"), 0o600),
    ] {
        let is = fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(is, mode, "{}", path.display());
    }
    // What is on the disk is served, and nothing is ordered.
    let asked = world.ca.state().asked.len();
    world.restart(&mut host, TLS_ALPN, |_| {}).await;
    assert_eq!(shown(&world.served(&host).await), certificate);
    let after: Vec<_> = world.ca.state().asked[asked..].to_vec();
    assert!(after.iter().all(|one| one == "directory"), "{after:?}");
}

#[tokio::test]
async fn a_listener_without_tls_answers_the_authority_and_nobody_else() {
    let world = World::new().await;
    world.ca.state().bad_nonces = 1;
    let host = world.host("").await;
    let at = plain_at(&host).await;
    world.ca.state().http = Some(at);
    world.served(&host).await;
    // Afterwards that path is one like any other.
    let mut client = Http1::connect(at).await.unwrap();
    let answer = client
        .get("/.well-known/acme-challenge/token-2-0")
        .await
        .unwrap();
    assert_eq!(answer.status, 308);
    assert_eq!(orders(&host, "failed").await, 0.0);
}

#[tokio::test]
async fn a_certificate_is_renewed_before_its_end_and_connections_stay() {
    let world = World::new().await;
    world.ca.state().lifetime = Duration::from_secs(12);
    let host = world.host(TLS_ALPN).await;
    world.ca.state().tls = Some(tls_at(&host).await);
    let stream = world.served(&host).await;
    let first = shown(&stream);
    let mut client = Http1::over(stream);
    assert_eq!(client.get("/").await.unwrap().status, 404);
    world.ca.state().lifetime = Duration::from_secs(90 * 86_400);
    another(&world, &host, &first).await;
    assert_eq!(client.get("/").await.unwrap().status, 404);
    assert_eq!(world.ca.asked("account"), 1);
    assert_eq!(orders(&host, "failed").await, 0.0);
}

#[tokio::test]
async fn while_the_authority_is_down_the_old_certificate_is_served_and_a_lost_account_is_replaced()
{
    let world = World::new().await;
    let mut host = world.host(TLS_ALPN).await;
    world.ca.state().tls = Some(tls_at(&host).await);
    let first = shown(&world.served(&host).await);
    let due = format!("{TLS_ALPN}renew_before = \"90d\"");
    world.ca.state().is_down = true;
    world.restart(&mut host, &due, |_| {}).await;
    let event = failure(&host).await;
    assert!(
        event.contains("gave no answer") && event.contains("tried again at"),
        "{event}"
    );
    assert!(event.contains("the one before goes on"), "{event}");
    assert_eq!(shown(&world.served(&host).await), first);
    assert_eq!(orders(&host, "failed").await, 1.0);
    let told = status(&host).await;
    let error = told["last_error"].as_str().unwrap();
    assert!(
        error.contains("gave no answer") && told["not_after"].is_string(),
        "{told}"
    );
    let text = host.cli(["status"]).await.expect_code(0).text();
    assert!(text.contains("the last order failed"), "{text}");
    // The key of the account is lost here, then at the authority.
    world.ca.state().is_down = false;
    let lose = |folder: &Path| fs::remove_file(folder.join("account.json")).unwrap();
    world.restart(&mut host, &due, lose).await;
    let second = another(&world, &host, &first).await;
    assert_eq!(world.ca.asked("account"), 2);
    world.ca.state().forget_accounts();
    world.restart(&mut host, &due, |_| {}).await;
    another(&world, &host, &second).await;
    assert_eq!(world.ca.asked("account"), 3);
    assert_eq!(status(&host).await["last_error"], Value::Null);
}

#[tokio::test]
async fn a_certificate_is_renewed_when_its_authority_suggests_it() {
    let world = World::new().await;
    world.ca.state().window = Some(("2100-01-01T00:00:00Z", "2100-01-02T00:00:00Z"));
    let mut host = world.host(TLS_ALPN).await;
    world.ca.state().tls = Some(tls_at(&host).await);
    let first = shown(&world.served(&host).await);
    host.until("the authority to be asked", async || {
        (world.ca.asked("renewal") == 1).then_some(())
    })
    .await;
    world.ca.state().window = Some(("2020-01-01T00:00:00Z", "2020-01-02T00:00:00Z"));
    world.restart(&mut host, TLS_ALPN, |_| {}).await;
    another(&world, &host, &first).await;
    let state = world.ca.state();
    let orders: Vec<_> = state
        .payloads
        .iter()
        .filter(|one| one["identifiers"].is_array())
        .collect();
    assert_eq!(orders[0]["replaces"], Value::Null);
    assert!(orders[1]["replaces"].is_string(), "{orders:?}");
    assert_eq!(orders.len(), 2);
}

#[tokio::test]
async fn an_authority_that_refuses_is_asked_again_when_it_says() {
    let world = World::new().await;
    world.ca.state().refuse = Some(("rateLimited", 86_400));
    let host = world.host(TLS_ALPN).await;
    let event = failure(&host).await;
    assert!(event.contains("(rateLimited): not now"), "{event}");
    assert!(event.contains("refused until then"), "{event}");
    let later = tokio::process::Command::new("date")
        .args(["-u", "-d", "+23 hours", "+%FT%TZ"])
        .output()
        .await
        .unwrap();
    let later = String::from_utf8(later.stdout).unwrap();
    let next = status(&host).await["next_try"].as_str().unwrap().to_owned();
    assert!(*next > *later.trim(), "{next} {later}");
    assert_eq!(world.ca.asked("order"), 1);
}

#[tokio::test]
async fn a_name_that_is_not_of_this_host_is_told_with_what_the_authority_saw() {
    let world = World::new().await;
    world.ca.state().challenges = vec!["http-01"];
    // Nobody listens there.
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    world.ca.state().http = Some(closed.local_addr().unwrap());
    drop(closed);
    let host = world.host("").await;
    let event = failure(&host).await;
    assert!(
        event.contains("shop.example.org") && event.contains("(unauthorized)"),
        "{event}"
    );
}

#[tokio::test]
async fn what_cannot_be_ordered_is_an_error_of_the_configuration() {
    for (config, said) in [
        ("acme = [\"*.example.org\"]", "is a wildcard"),
        (
            "acme = [\"192.0.2.1\"]",
            "is no name that a certificate can be for",
        ),
        (
            "acme = []",
            "or `acme = [\"example.org\"]` to have one ordered",
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("handover.toml");
        let text = format!("[[listen]]\naddress = \"127.0.0.1:0\"\ntls = {{ {config} }}\n");
        fs::write(&path, text).unwrap();
        let checked = handover(["config", "check", path.to_str().unwrap()]).await;
        let told = checked.text();
        assert!(told.contains(said), "{config}: {told}");
    }
}
