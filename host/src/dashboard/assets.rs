//! The files of the page, compiled in.

/// A file.
#[derive(Debug)]
pub(super) struct Asset {
    /// Its path in a session.
    path: &'static str,
    /// Its `content-type`.
    pub(super) kind: &'static str,
    /// What is in it.
    pub(super) text: &'static str,
}

const ASSETS: [Asset; 3] = [
    Asset {
        path: "",
        kind: "text/html; charset=utf-8",
        text: include_str!("page/index.html"),
    },
    Asset {
        path: "style.css",
        kind: "text/css; charset=utf-8",
        text: include_str!("page/style.css"),
    },
    Asset {
        path: "app.js",
        kind: "text/javascript; charset=utf-8",
        text: include_str!("page/app.js"),
    },
];

/// The file at `path`.
pub(super) fn find(path: &str) -> Option<&'static Asset> {
    ASSETS.iter().find(|asset| asset.path == path)
}
