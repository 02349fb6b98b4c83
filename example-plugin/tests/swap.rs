//! The example on a real host: what it keeps outlives its code, and the process.

use handover_plugin::{Error, testing::TestHost};

#[tokio::test]
async fn links_outlive_a_swap_and_a_crash() -> Result<(), Error> {
    if !TestHost::is_installed() {
        eprintln!("not tested: there is no program `handover` (see HANDOVER and PATH)");
        return Ok(());
    }
    let host = TestHost::start().await?;
    let first = host.generation().await?;
    let wish = http::Request::post("/api/links")
        .header("content-type", "application/json")
        .body(r#"{"url":"https://example.org/page","slug":"mine"}"#)?;
    assert_eq!(host.request(wish).await?.status(), 201);

    assert!(host.swap().await? > first);
    assert_eq!(host.get("/mine").await?.status(), 302);

    host.crash().await?;
    let followed = host.get("/mine").await?;
    assert_eq!(followed.headers()["location"], "https://example.org/page");

    let listed = host.get("/api/links").await?;
    let links: serde_json::Value = serde_json::from_slice(listed.body())?;
    assert_eq!(links["links"][0]["hits"], 2);
    Ok(())
}
