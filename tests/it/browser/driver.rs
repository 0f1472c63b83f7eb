//! WebDriver client: a real Chromium through chromedriver on loopback, with the WebAuthn extension.
//!
//! Each browser has its own chromedriver, profile and authenticator. Dropping it stops both processes by pid,
//! whether the test passed or not.

use std::fmt::Debug;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::support::requirement::skip_without;

/// Limit for conditions that must hold eventually.
const GENEROUS: Duration = Duration::from_secs(30);
/// Limit for a browser to close by itself.
const CLOSING: Duration = Duration::from_secs(5);
/// Polling interval.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Browsers open at one time, over all tests: one takes some 300 MB. A test that needs several opens them in one call.
const BROWSERS_MAX: usize = 4;
/// The key of a web element reference (WebDriver §12).
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// Viewport and media settings of a browser.
#[derive(Debug, Clone, Copy)]
pub struct Viewport {
    pub width: u32,
    pub height: u32,
    /// Device pixels per CSS pixel.
    pub scale: u32,
    pub dark: bool,
    pub scripts: bool,
}

impl Viewport {
    pub const DESK: Self = Self {
        width: 1_280,
        height: 900,
        scale: 1,
        dark: false,
        scripts: true,
    };
    pub const PHONE: Self = Self {
        width: 390,
        height: 844,
        ..Self::DESK
    };
}

/// One browser, one window, one authenticator.
pub struct Browser {
    look: Viewport,
    port: u16,
    /// The WebDriver session ID.
    id: String,
    authenticator: String,
    processes: Processes,
    _place: Arc<OwnedSemaphorePermit>,
}

/// Processes that must not outlive the test.
struct Processes {
    driver: Child,
    profile: tempfile::TempDir,
    /// The driver's port and session, once there is one.
    closing: Option<(u16, String)>,
}

impl Drop for Processes {
    fn drop(&mut self) {
        if let Some((port, id)) = &self.closing {
            // On request chromedriver ends and reaps its browser; if it does not, the kill below does.
            let _closed = close(*port, id);
        }
        let _gone = self.driver.kill();
        let _reaped = self.driver.wait();
        // The browser is chromedriver's child: it is recognised by our profile on its command line.
        for pid in processes_of(self.profile.path()) {
            let _gone = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

fn close(port: u16, id: &str) -> std::io::Result<()> {
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(CLOSING))?;
    write!(
        stream,
        "DELETE /session/{id} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n"
    )?;
    stream.read(&mut [0; 512]).map(drop)
}

/// The processes whose command line names this profile directory.
pub fn processes_of(profile: &Path) -> Vec<rustix::process::Pid> {
    let ours = profile.to_string_lossy().into_owned();
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter_map(|process| {
        let pid = process.file_name().to_string_lossy().parse::<i32>().ok()?;
        let line = std::fs::read(process.path().join("cmdline")).ok()?;
        let named = String::from_utf8_lossy(&line).contains(&ours);
        rustix::process::Pid::from_raw(pid).filter(|_| named)
    })
    .collect()
}

fn installed(name: &str) -> bool {
    Path::new("/usr/bin").join(name).exists()
}

/// Whether no browser is installed, so that the test is skipped.
pub fn is_skipped() -> bool {
    let missing: Vec<&str> = ["chromium", "chromedriver"]
        .into_iter()
        .filter(|name| !installed(name))
        .collect();
    if missing.is_empty() {
        return false;
    }
    skip_without("chromium", format_args!("/usr/bin has no {missing:?}"));
    true
}

impl Browser {
    pub async fn open(look: Viewport) -> Self {
        let [browser] = Self::open_together([look]).await;
        browser
    }

    /// Opens several at once: waiting for a second browser while holding the first could deadlock.
    pub async fn open_together<const N: usize>(looks: [Viewport; N]) -> [Self; N] {
        static PLACES: std::sync::LazyLock<Arc<Semaphore>> =
            std::sync::LazyLock::new(|| Arc::new(Semaphore::new(BROWSERS_MAX)));
        let places = u32::try_from(N).expect("few");
        let place = PLACES.clone().acquire_many_owned(places).await;
        let place = Arc::new(place.expect("never closed"));
        let mut browsers = Vec::new();
        for look in looks {
            browsers.push(Self::start(look, place.clone()).await);
        }
        browsers.try_into().unwrap_or_else(|_| unreachable!())
    }

    async fn start(look: Viewport, place: Arc<OwnedSemaphorePermit>) -> Self {
        let profile = tempfile::tempdir().expect("dir");
        let mut driver = Command::new("/usr/bin/chromedriver")
            .args(["--port=0", "--allowed-ips=127.0.0.1"])
            .env("TMPDIR", profile.path())
            .env("HOME", profile.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver starts");
        let stdout = driver.stdout.take().expect("piped");
        let processes = Processes {
            driver,
            profile,
            closing: None,
        };
        let (port_sender, port_receiver) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
            let port = lines.find_map(|line| {
                let (_, port) = line.split_once("started successfully on port ")?;
                port.trim_end_matches('.').parse::<u16>().ok()
            });
            let _gone = port_sender.send(port);
            // Keep reading, or the driver would block on a full pipe.
            lines.for_each(drop);
        });
        let port = tokio::time::timeout(GENEROUS, port_receiver).await;
        let port = port.expect("in time").expect("read").expect("a port");

        let mut arguments = vec![
            "--headless=new".to_owned(),
            "--disable-gpu".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            "--disable-background-networking".to_owned(),
            "--disable-component-update".to_owned(),
            "--disable-sync".to_owned(),
            "--no-first-run".to_owned(),
            "--no-default-browser-check".to_owned(),
            "--hide-scrollbars".to_owned(),
            "--force-device-scale-factor=1".to_owned(),
            format!("--window-size={},{}", look.width, look.height),
            format!(
                "--user-data-dir={}",
                processes.profile.path().join("profile").display()
            ),
        ];
        if rustix::process::geteuid().is_root() {
            // Chromium's sandbox does not run as root.
            arguments.push("--no-sandbox".to_owned());
        }
        let mut browser = Self {
            look,
            port,
            id: String::new(),
            authenticator: String::new(),
            processes,
            _place: place,
        };
        let capabilities = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome",
            "unhandledPromptBehavior": "dismiss",
            "goog:chromeOptions": { "binary": "/usr/bin/chromium", "args": arguments },
        } } });
        let session = browser.raw("POST", "/session", Some(capabilities)).await;
        let session = session.unwrap_or_else(|e| panic!("no browser: {e}"));
        browser.id = text(&session["sessionId"]);
        browser.processes.closing = Some((port, browser.id.clone()));
        browser.set_viewport(look).await;
        let scheme = if look.dark { "dark" } else { "light" };
        browser
            .cdp(
                "Emulation.setEmulatedMedia",
                json!({ "features": [
                    { "name": "prefers-color-scheme", "value": scheme },
                    { "name": "prefers-reduced-motion", "value": "reduce" },
                ] }),
            )
            .await;
        if !look.scripts {
            browser
                .cdp(
                    "Emulation.setScriptExecutionDisabled",
                    json!({ "value": true }),
                )
                .await;
        }
        browser.authenticator = browser.add_authenticator().await;
        browser
    }

    /// The profile directory of the browser and its driver.
    pub fn profile(&self) -> std::path::PathBuf {
        self.processes.profile.path().to_owned()
    }

    // ------------------------------------------------------------------ pages

    pub async fn navigate(&self, url: &str) {
        self.post("/url", json!({ "url": url })).await;
    }

    pub async fn url(&self) -> String {
        text(&self.get("/url").await)
    }

    /// Reloads the page.
    pub async fn reload(&self) {
        self.post("/refresh", json!({})).await;
    }

    /// The first element that a CSS selector matches, if any does.
    pub async fn find(&self, css: &str) -> Option<Element<'_>> {
        let id = self.find_id(css).await?;
        Some(Element {
            browser: self,
            css: css.to_owned(),
            id,
        })
    }

    async fn find_id(&self, css: &str) -> Option<String> {
        let query = json!({ "using": "css selector", "value": css });
        let found = self.post("/elements", query).await;
        let first = found.as_array().expect("a list").first()?;
        Some(text(&first[ELEMENT]))
    }

    /// Waits for an element; the test fails if it never comes.
    pub async fn wait(&self, css: &str) -> Element<'_> {
        self.until(css, async || self.find(css).await).await
    }

    /// Waits for a visible element.
    pub async fn seen(&self, css: &str) -> Element<'_> {
        self.until(css, async || {
            let element = self.find(css).await?;
            element.displayed().await.then_some(element)
        })
        .await
    }

    /// Clicks on a matching element, retrying while another one covers it.
    pub async fn click_on(&self, css: &str) {
        self.until(css, async || {
            let path = format!("/element/{}/click", self.find_id(css).await?);
            self.attempt("POST", &path, Some(json!({}))).await.ok()
        })
        .await;
    }

    /// Waits until no element matches.
    pub async fn wait_until_gone(&self, css: &str) {
        self.until(&format!("no {css}"), async || {
            self.find(css).await.is_none().then_some(())
        })
        .await;
    }

    /// Whether no such element is visible.
    pub async fn is_hidden(&self, css: &str) -> bool {
        match self.find(css).await {
            Some(element) => !element.displayed().await,
            None => true,
        }
    }

    /// Waits until a script returns a truthy value.
    pub async fn wait_for_script(&self, script: &str) -> Value {
        self.until(script, async || {
            let value = self.script(&format!("return ({script})"), json!([])).await;
            (!value.is_null() && value != false && value != "").then_some(value)
        })
        .await
    }

    async fn until<T>(&self, what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
        let searching = async {
            loop {
                if let Some(found) = look().await {
                    return found;
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        match tokio::time::timeout(GENEROUS, searching).await {
            Ok(found) => found,
            Err(_) => panic!(
                "timed out: {what}\n{}\n{}",
                self.url().await,
                self.text().await
            ),
        }
    }

    /// The text of the page, hidden parts included.
    pub async fn text(&self) -> String {
        let all = self.script("return document.documentElement.textContent", json!([]));
        text(&all.await)
    }

    /// Runs a script in the page; the page's content security policy does not apply to it.
    pub async fn script(&self, script: &str, args: Value) -> Value {
        self.post("/execute/sync", json!({ "script": script, "args": args }))
            .await
    }

    /// Runs an async function in the page and returns its result; a rejection is `{"error": its name}`.
    pub async fn run(&self, body: &str, args: Value) -> Value {
        let script = format!(
            "const done = arguments[arguments.length - 1];
             const args = Array.from(arguments).slice(0, -1);
             (async (...args) => {{ {body} }})(...args).then(done, (e) => done({{ error: e.name, message: e.message }}));"
        );
        self.post("/execute/async", json!({ "script": script, "args": args }))
            .await
    }

    /// Presses keys on the focused element.
    pub async fn press(&self, keys: &str) {
        let actions: Vec<Value> = keys
            .chars()
            .flat_map(|key| ["keyDown", "keyUp"].map(|kind| json!({ "type": kind, "value": key })))
            .collect();
        let all = json!({ "actions": [{ "type": "key", "id": "keys", "actions": actions }] });
        self.post("/actions", all).await;
    }

    /// The `id` attribute of the focused element, or its tag name.
    pub async fn focus(&self) -> String {
        let script = "return document.activeElement.id || document.activeElement.tagName";
        text(&self.script(script, json!([])).await)
    }

    pub async fn cookies(&self) -> Vec<Value> {
        self.get("/cookie")
            .await
            .as_array()
            .expect("a list")
            .clone()
    }

    pub async fn put_cookie(&self, name: &str, value: &str) {
        let cookie = json!({ "name": name, "value": value, "path": "/" });
        self.post("/cookie", json!({ "cookie": cookie })).await;
    }

    /// Switches to a frame.
    pub async fn enter_frame(&self, css: &str) {
        let frame = self.wait(css).await;
        self.post("/frame", json!({ "id": { ELEMENT: frame.id } }))
            .await;
    }

    pub async fn leave_frame(&self) {
        self.post("/frame", json!({ "id": null })).await;
    }

    /// A PNG of the window.
    pub async fn screenshot(&self) -> Vec<u8> {
        let png = text(&self.get("/screenshot").await);
        STANDARD.decode(png).expect("base64")
    }

    /// A PNG of the whole page, in a window of its height.
    pub async fn whole_page(&self) -> Vec<u8> {
        let height = "return document.documentElement.scrollHeight";
        let height = self.script(height, json!([])).await;
        let height = u32::try_from(height.as_u64().expect("a height")).expect("small");
        self.set_viewport(Viewport {
            height: height.max(self.look.height),
            ..self.look
        })
        .await;
        let png = self.screenshot().await;
        self.set_viewport(self.look).await;
        png
    }

    async fn set_viewport(&self, look: Viewport) {
        let metrics = json!({
            "width": look.width, "height": look.height, "deviceScaleFactor": look.scale, "mobile": look.width < 600,
        });
        self.cdp("Emulation.setDeviceMetricsOverride", metrics)
            .await;
    }

    // ------------------------------------------------------------------ the authenticator

    async fn add_authenticator(&self) -> String {
        let kind = json!({
            "protocol": "ctap2", "transport": "internal", "hasResidentKey": true, "hasUserVerification": true,
            "isUserConsenting": true, "isUserVerified": true,
        });
        text(&self.post("/webauthn/authenticator", kind).await)
    }

    /// Sets whether the authenticator verifies its user.
    pub async fn recognises(&self, user: bool) {
        let path = format!("/webauthn/authenticator/{}/uv", self.authenticator);
        self.post(&path, json!({ "isUserVerified": user })).await;
    }

    /// The authenticator's passkeys, private keys included.
    pub async fn passkeys(&self) -> Vec<Value> {
        let path = format!("/webauthn/authenticator/{}/credentials", self.authenticator);
        self.get(&path).await.as_array().expect("a list").clone()
    }

    /// Copies a passkey of another authenticator into this one.
    pub async fn copy_in(&self, passkey: &Value) {
        let path = format!("/webauthn/authenticator/{}/credential", self.authenticator);
        self.post(&path, passkey.clone()).await;
    }

    /// Deletes all passkeys.
    pub async fn forget_passkeys(&self) {
        let path = format!("/webauthn/authenticator/{}/credentials", self.authenticator);
        self.command("DELETE", &path, None).await;
    }

    // ------------------------------------------------------------------ the wire

    /// A Chrome DevTools Protocol command.
    pub async fn cdp(&self, command: &str, parameters: Value) -> Value {
        let order = json!({ "cmd": command, "params": parameters });
        self.post("/goog/cdp/execute", order).await
    }

    async fn get(&self, path: &str) -> Value {
        self.command("GET", path, None).await
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        self.command("POST", path, Some(body)).await
    }

    async fn command(&self, method: &str, path: &str, body: Option<Value>) -> Value {
        let full = format!("/session/{}{path}", self.id);
        let answer = self.raw(method, &full, body).await;
        answer.unwrap_or_else(|e| panic!("{method} {path}: {e}"))
    }

    /// A command that may fail, for example on a stale element.
    async fn attempt(
        &self,
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> Result<Value, String> {
        let full = format!("/session/{}{path}", self.id);
        self.raw(method, &full, body).await
    }

    async fn raw(&self, method: &str, path: &str, body: Option<Value>) -> Result<Value, String> {
        let describe = |e: &dyn Debug| format!("{e:?}");
        let exchange = async {
            let stream = TcpStream::connect(("127.0.0.1", self.port)).await;
            let stream = stream.map_err(|e| describe(&e))?;
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream))
                    .await
                    .map_err(|e| describe(&e))?;
            let connection = tokio::spawn(connection);
            let body = body.map_or_else(Bytes::new, |b| b.to_string().into());
            let request = http::Request::builder()
                .method(method)
                .uri(path)
                .header("host", format!("127.0.0.1:{}", self.port))
                .header("content-type", "application/json")
                .body(Full::new(body))
                .map_err(|e| describe(&e))?;
            let answer = sender
                .send_request(request)
                .await
                .map_err(|e| describe(&e))?;
            let body = answer
                .into_body()
                .collect()
                .await
                .map_err(|e| describe(&e))?;
            connection.abort();
            let mut value: Value =
                serde_json::from_slice(&body.to_bytes()).map_err(|e| describe(&e))?;
            let value = value["value"].take();
            match value["error"].as_str() {
                Some(error) if value["stacktrace"].is_string() => {
                    Err(format!("{error}: {}", text(&value["message"])))
                }
                _ => Ok(value),
            }
        };
        tokio::time::timeout(GENEROUS, exchange)
            .await
            .unwrap_or_else(|_| Err("no answer".to_owned()))
    }
}

/// A web element. Where a page that updates has replaced it, the element that its selector finds now takes its place.
pub struct Element<'a> {
    browser: &'a Browser,
    css: String,
    id: String,
}

impl Element<'_> {
    /// A command on the element. One on a stale element has done nothing, so it is sent again to the element in its place.
    async fn element_command(&self, method: &str, what: &str, body: Option<Value>) -> Value {
        let mut id = self.id.clone();
        loop {
            let path = format!("/element/{id}{what}");
            match self.browser.attempt(method, &path, body.clone()).await {
                Ok(value) => return value,
                Err(e) if e.starts_with("stale element reference") => {
                    let look = async || self.browser.find_id(&self.css).await;
                    id = self.browser.until(&self.css, look).await;
                }
                Err(e) => panic!("{method} {path}: {e}"),
            }
        }
    }

    pub async fn click(&self) {
        self.element_command("POST", "/click", Some(json!({})))
            .await;
    }

    /// Types after the present text.
    pub async fn type_in(&self, text: &str) {
        self.element_command("POST", "/value", Some(json!({ "text": text })))
            .await;
    }

    pub async fn clear(&self) {
        self.element_command("POST", "/clear", Some(json!({})))
            .await;
    }

    /// The visible text.
    pub async fn text(&self) -> String {
        text(&self.element_command("GET", "/text", None).await)
    }

    pub async fn attribute(&self, name: &str) -> Option<String> {
        let value = self
            .element_command("GET", &format!("/attribute/{name}"), None)
            .await;
        value.as_str().map(str::to_owned)
    }

    pub async fn property(&self, name: &str) -> Value {
        self.element_command("GET", &format!("/property/{name}"), None)
            .await
    }

    pub async fn displayed(&self) -> bool {
        let path = format!("/element/{}/displayed", self.id);
        let shown = self.browser.attempt("GET", &path, None).await;
        shown == Ok(json!(true))
    }
}

/// Non-printing keys (WebDriver §17.4.2).
pub mod keys {
    pub const TAB: &str = "\u{e004}";
    pub const ENTER: &str = "\u{e007}";
    pub const ESCAPE: &str = "\u{e00c}";
}

fn text(value: &Value) -> String {
    value
        .as_str()
        .unwrap_or_else(|| panic!("not text: {value}"))
        .to_owned()
}
