//! What the functions that the host puts before libc's cost a plugin: each beside libc's own, in
//! the same process.
//!
//! ```text
//! cargo bench -p handover-tests --bench interposed
//! ```
//!
//! `tests/plugins/interposed` has the cases.

use handover_tests::{
    bench,
    host::{Host, Setup},
    plugins::fixture,
};

#[tokio::main]
async fn main() {
    if !bench::asked_for(&[]) {
        return;
    }
    let host: Host = Setup::new().start().await;
    host.deploy(&fixture("interposed", "1.0.0"))
        .await
        .expect_code(0);
    let answer = host.get("/cost").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    println!("| What a plugin does | libc's own | the host's | more |");
    println!("| --- | --- | --- | --- |");
    for line in answer.text().lines() {
        let mut parts = line.split('\t');
        let what = parts.next().unwrap_or_default();
        let mut nanoseconds = || -> f64 {
            let part = parts.next().and_then(|part| part.parse().ok());
            part.unwrap_or_else(|| panic!("not a line of figures: {line}"))
        };
        let (libcs, hosts) = (nanoseconds(), nanoseconds());
        println!(
            "| {what} | {libcs:.0} ns | {hosts:.0} ns | {:+.0} ns, × {:.2} |",
            hosts - libcs,
            hosts / libcs
        );
    }
}
