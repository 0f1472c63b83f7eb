//! Attacker's site: pages on a foreign origin that try to use the console.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, Uri, header};
use axum::response::{IntoResponse, Response};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// A loopback server of fixed pages that records the cookies it receives.
pub struct AttackerSite {
    pub address: SocketAddr,
    pages: Arc<Pages>,
    server: JoinHandle<()>,
}

#[derive(Default)]
struct Pages {
    pages: Mutex<BTreeMap<String, String>>,
    cookies: Mutex<Vec<String>>,
}

impl AttackerSite {
    pub async fn serve() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("address");
        let pages = Arc::<Pages>::default();
        let router = Router::new().fallback(page).with_state(pages.clone());
        let server = tokio::spawn(async move {
            axum::serve(listener, router).await.expect("serves");
        });
        Self {
            address,
            pages,
            server,
        }
    }

    pub fn put(&self, path: &str, html: &str) {
        let html = format!("<!doctype html><meta charset=utf-8><title>elsewhere</title>{html}");
        let mut pages = self.pages.pages.lock().expect("unpoisoned");
        pages.insert(path.to_owned(), html);
    }

    /// The console's host name on another port: same site, other origin.
    pub fn same_site_url(&self, path: &str) -> String {
        format!("http://localhost:{}{path}", self.address.port())
    }

    /// Another site.
    pub fn foreign_url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.address.port())
    }

    /// Every `Cookie` header received.
    pub fn cookies(&self) -> Vec<String> {
        self.pages.cookies.lock().expect("unpoisoned").clone()
    }
}

impl Drop for AttackerSite {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn page(State(pages): State<Arc<Pages>>, uri: Uri, headers: HeaderMap) -> Response {
    let cookies = headers.get_all(header::COOKIE).iter();
    let cookies = cookies.map(|c| String::from_utf8_lossy(c.as_bytes()).into_owned());
    pages.cookies.lock().expect("unpoisoned").extend(cookies);
    let page = pages
        .pages
        .lock()
        .expect("unpoisoned")
        .get(uri.path())
        .cloned();
    match page {
        Some(html) => ([(header::CONTENT_TYPE, "text/html")], html).into_response(),
        None => axum::http::StatusCode::NOT_FOUND.into_response(),
    }
}
