//! Hands files to the host whose names and contents follow from its version.

use std::path::PathBuf;

use axum::{Router, http::Uri, response::Html, routing::get};
use handover_plugin::{Context, Error};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    /// Where the assets are.
    prefix: String,
    /// A folder with more of them, which go below `/files`.
    folder: Option<PathBuf>,
    /// Whether there are none.
    none: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            prefix: "/assets".to_owned(),
            folder: None,
            none: false,
        }
    }
}

#[handover_plugin::app]
async fn app(cx: Context) -> Result<Router, Error> {
    let settings: Settings = cx.config()?;
    let version = cx.version().to_owned();
    let script = format!(
        "a1b2c3d{}.js",
        version.split('.').next().unwrap_or_default()
    );
    if !settings.none {
        let text = format!("// {version}\n{}", "console.log('hello');\n".repeat(1000));
        let style = format!("/* {version} */\n{}", "p { color: red }\n".repeat(200));
        // Noise, as a picture is.
        let mut number = 1_u32;
        let picture = std::iter::repeat_with(|| {
            number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            number.to_be_bytes()[0]
        });
        cx.assets(
            &settings.prefix,
            [
                (format!("js/app.{script}"), text.into_bytes()),
                ("style.css".to_owned(), style.into_bytes()),
                ("logo.0f1e2d3c.png".to_owned(), picture.take(3000).collect()),
                ("index.html".to_owned(), b"never served".to_vec()),
            ],
        )?;
    }
    if let Some(folder) = settings.folder {
        cx.assets_in("/files", folder)?;
    }
    let page = Html(format!(
        "<script src={}{}/js/app.{script}></script>\n",
        cx.base_path(),
        settings.prefix
    ));
    let own = async |uri: Uri| format!("the app was asked for {}\n", uri.path());
    Ok(Router::new().route("/", get(async || page)).fallback(own))
}
