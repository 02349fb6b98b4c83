//! The host as a service manager starts it: the folders that it has made for it, and where client
//! commands find it.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use handover_tests::{
    host::{DEADLINE, handover},
    plugins::{self, fixture},
};

/// A host of a unit with `StateDirectory=` and `RuntimeDirectory=`.
struct Service {
    folder: tempfile::TempDir,
    child: Child,
}

impl Service {
    fn start(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["etc", "state", "run", "elsewhere"] {
            std::fs::create_dir(path(name)).unwrap();
        }
        std::fs::write(path("etc/handover.toml"), config).unwrap();
        let child = Command::new(plugins::handover())
            .args(["run", "--listen", "127.0.0.1:0", "--config"])
            .arg(path("etc/handover.toml"))
            .current_dir(path("elsewhere"))
            .env("STATE_DIRECTORY", path("state"))
            .env("RUNTIME_DIRECTORY", path("run"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { folder, child }
    }

    async fn has(&self, name: &str) {
        let path = self.folder.path().join(name);
        let deadline = Instant::now() + DEADLINE;
        while !path.exists() {
            assert!(Instant::now() < deadline, "{name} does not come");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn files(&self, folder: &str) -> Vec<String> {
        let path = self.folder.path().join(folder);
        let entries = std::fs::read_dir(path).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Its host ends with the supervisor.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test]
async fn what_the_file_does_not_place_lies_where_services_have_it() {
    let service = Service::start("");
    service.has("run/control.sock").await;
    let socket = service.folder.path().join("run/control.sock");
    let file = fixture("probe", "1.0.0");
    handover(["deploy", text(&file), "--control", text(&socket)])
        .await
        .expect_code(0);
    service.has("state/artifacts").await;
    service.has("state/plugins").await;
    assert_eq!(service.files("etc"), ["handover.toml"]);
    assert!(service.files("elsewhere").is_empty());
}

#[tokio::test]
async fn what_the_file_places_lies_there() {
    let service = Service::start("[server]\nstate = \"own\"\nplugins = \"drops\"\n");
    service.has("etc/own/control.sock").await;
    service.has("etc/drops").await;
    assert!(service.files("state").is_empty() && service.files("run").is_empty());
}
