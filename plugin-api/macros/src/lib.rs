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
