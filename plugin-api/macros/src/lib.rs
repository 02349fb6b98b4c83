//! The attribute macros of handover-plugin.

mod app;

use proc_macro::TokenStream;

/// Makes a function the constructor of an app.
///
/// The function is `async` (or not), takes a `Context`, and gives a `Result` of a `tower::Service`
/// over `http` types, for instance an `axum::Router`. It is called once in each load.
///
/// - `name = "…"`: the app's name. Default: the name of the package.
/// - `schema = N`: the version of its state schema. Default: 0.
///
/// The version is that of the package, or of the environment variable `HANDOVER_VERSION` at build
/// time; `HANDOVER_COMMIT` may name a commit.
///
/// ```ignore
/// #[handover_plugin::app(name = "shop")]
/// async fn app(cx: Context) -> Result<axum::Router, Error> {
///     Ok(axum::Router::new())
/// }
/// ```
#[proc_macro_attribute]
pub fn app(attribute: TokenStream, item: TokenStream) -> TokenStream {
    match app::expand(attribute.into(), item.into()) {
        Ok(tokens) => tokens.into(),
        Err(error) => error.into_compile_error().into(),
    }
}

/// Makes the `main` of a program the constructor of an app as well: the crate is both, and one line
/// of it differs.
///
/// In a program it is what `tokio::main` is, whose arguments `flavor` and `worker_threads` it
/// takes. In a plugin it runs on a thread of its own until the generation is over, and the app is
/// what it gives to `handover_plugin::serve`; an error before that keeps the old code live. `name`
/// and `schema` are those of [`macro@app`].
///
/// ```ignore
/// #[handover_plugin::main]
/// async fn main() -> anyhow::Result<()> {
///     let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
///     handover_plugin::serve(listener, axum::Router::new()).await?;
///     Ok(())
/// }
/// ```
#[proc_macro_attribute]
pub fn main(attribute: TokenStream, item: TokenStream) -> TokenStream {
    match app::expand_main(attribute.into(), item.into()) {
        Ok(tokens) => tokens.into(),
        Err(error) => error.into_compile_error().into(),
    }
}
