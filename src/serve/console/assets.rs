//! Static assets: one stylesheet, one script, one logo, under paths that change with their content.

use std::sync::LazyLock;

use axum::extract::Path;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};

use crate::model::Digest;

const CSS: &str = include_str!("assets/console.css");
const JS: &str = include_str!("assets/console.js");
const MARK: &str = include_str!("assets/mark.svg");

/// Characters of the digest in a path: 96 bits.
const HASH_CHARS: usize = 16;
/// A year: the content under a hash never changes (RFC 8246).
const IMMUTABLE: HeaderValue = HeaderValue::from_static("public, max-age=31536000, immutable");

/// The paths of the assets.
#[derive(Debug)]
pub(super) struct AssetPaths {
    pub(super) css: String,
    pub(super) js: String,
    pub(super) mark: String,
}

/// The paths of this build's assets.
pub(super) static ASSETS: LazyLock<AssetPaths> = LazyLock::new(|| AssetPaths {
    css: hashed_path("console.css", CSS),
    js: hashed_path("console.js", JS),
    mark: hashed_path("mark.svg", MARK),
});

fn hashed_path(name: &str, content: &str) -> String {
    let digest = Digest::sha256(content.as_bytes()).to_string();
    let hash: String = digest
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .take(HASH_CHARS)
        .collect();
    format!("/console/assets/{hash}/{name}")
}

/// An asset of this build; those of other builds are not found.
pub(super) async fn asset(Path((hash, name)): Path<(String, String)>) -> Response {
    let path = format!("/console/assets/{hash}/{name}");
    let (kind, content) = match name.as_str() {
        "console.css" if path == ASSETS.css => ("text/css; charset=utf-8", CSS),
        "console.js" if path == ASSETS.js => ("text/javascript; charset=utf-8", JS),
        "mark.svg" if path == ASSETS.mark => ("image/svg+xml", MARK),
        _ => return StatusCode::NOT_FOUND.into_response(),
    };
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        (header::CACHE_CONTROL, IMMUTABLE),
    ];
    (headers, content).into_response()
}
