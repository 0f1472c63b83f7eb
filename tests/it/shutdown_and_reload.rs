//! Shutdown (SIGTERM), reload (SIGHUP) and file-descriptor exhaustion of the real process: acknowledged work is kept, and
//! retries succeed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dipylon_sdk::client::{ConnectOptions, Endpoint, Error, TokenOutcome};
use dipylon_sdk::model::*;
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::support::certificate_authority::{
    Authority, certificate_digest, presented_certificate, replace_file,
};
use crate::support::invariants;
use crate::support::served_broker::token_request;
use crate::support::transport_server::open;
use crate::support::wait::{in_time, until};
use crate::support::{DOMAIN, TestEnvironment, disable, read_case};

/// A directory from which a broker is run, over TLS and a Unix socket.
struct TlsDeployment {
    root: PathBuf,
    env: TestEnvironment,
    authority: Authority,
    url: String,
    address: std::net::SocketAddr,
}

impl TlsDeployment {
    /// `more` is appended to the configuration.
    fn new(root: &Path, more: &str) -> Self {
        let env = TestEnvironment::new();
        let address = std::net::TcpListener::bind("127.0.0.1:0")
            .expect("a port")
            .local_addr()
            .expect("address");
        let url = format!("https://{address}");
        for (path, text) in &env.policy {
            let file = root.join("policy").join(path);
            std::fs::create_dir_all(file.parent().expect("parent")).expect("dir");
            std::fs::write(file, text).expect("file");
        }
        let authority = Authority::new();
        replace_file(&root.join("trust.json"), &env.trust_bundle(), 0o644);
        replace_file(&root.join("ca.pem"), &authority.pem, 0o644);
        let text = format!(
            "realm = \"test\"\nlisten = \"{address}\"\nexternal_url = \"{url}\"\ndata_dir = \"data\"\nkey_dir = \"keys\"\n\
             policy = \"policy\"\nunix_socket = \"dipylon.sock\"\n[tls]\ncertificate = \"tls.crt\"\nkey = \"tls.key\"\n\
             [[trust_domain]]\nname = \"{DOMAIN}\"\nbundle = \"trust.json\"\n{more}"
        );
        replace_file(&root.join("dipylon.toml"), &text, 0o644);
        let site = Self {
            root: root.to_owned(),
            env,
            authority,
            url,
            address,
        };
        site.renew();
        site
    }

    /// A new certificate; its fingerprint.
    fn renew(&self) -> Digest {
        let (certificate, key) = self.authority.certify();
        replace_file(&self.root.join("tls.key"), &key, 0o600);
        replace_file(&self.root.join("tls.crt"), &certificate, 0o644);
        certificate_digest(&certificate)
    }

    /// The real process, started by a shell after the command `before`.
    async fn broker(&self, before: &str) -> Child {
        let ready = self.root.join("ready.json");
        let _none = std::fs::remove_file(&ready);
        let mut child = Command::new("sh")
            .arg("-c")
            .arg(format!(
                "{before} exec \"$0\" serve --config dipylon.toml --ready-file ready.json"
            ))
            .arg(env!("CARGO_BIN_EXE_dipylon"))
            .current_dir(&self.root)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .env("DIPYLON_LOG", "error")
            .kill_on_drop(true)
            .spawn()
            .expect("the broker starts");
        until("the broker is ready", || {
            if let Ok(Some(status)) = child.try_wait() {
                panic!("the broker did not start: {status}");
            }
            ready.exists()
        })
        .await;
        child
    }

    fn endpoint(&self) -> Endpoint {
        let reach = ConnectOptions {
            ca: Some(self.root.join("ca.pem")),
            socket: None,
            ..ConnectOptions::default()
        };
        Endpoint::connect_with(&self.url, &reach)
            .expect("endpoint")
            .with_retry_ms(0)
    }

    fn through_the_socket(&self) -> Endpoint {
        let reach = ConnectOptions {
            ca: None,
            socket: Some(self.root.join("dipylon.sock")),
            ..ConnectOptions::default()
        };
        Endpoint::connect_with(&self.url, &reach)
            .expect("endpoint")
            .with_retry_ms(0)
    }
}

fn pid(child: &Child) -> Pid {
    let id = child.id().expect("it runs");
    Pid::from_raw(i32::try_from(id).expect("a pid")).expect("a pid")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_under_load_loses_nothing() {
    let temp = tempfile::tempdir().expect("dir");
    let site = Arc::new(TlsDeployment::new(temp.path(), ""));
    let mut broker = site.broker("").await;
    let acknowledged = Arc::new(Mutex::new(BTreeSet::new()));
    let next = Arc::new(AtomicU64::new(0));
    let mut load = tokio::task::JoinSet::new();
    for n in 0..8 {
        let endpoint = if n % 2 == 0 {
            site.endpoint()
        } else {
            site.through_the_socket()
        };
        let task = open(&site.env, &site.url, endpoint).await.expect("opens");
        let (acknowledged, next) = (acknowledged.clone(), next.clone());
        // Each continues until the broker stops.
        load.spawn(async move {
            loop {
                let name = format!("r-{}", next.fetch_add(1, Ordering::SeqCst));
                match task.request_token(&token_request(read_case(), &name)).await {
                    Ok(TokenOutcome::Token(token)) => {
                        acknowledged
                            .lock()
                            .expect("acknowledged")
                            .insert(token.jti());
                    }
                    Ok(other) => panic!("{other:?}"),
                    Err(error) => return error,
                }
            }
        });
    }
    let waiter = open(&site.env, &site.url, site.endpoint())
        .await
        .expect("opens");
    let mut request = token_request(disable("ann"), "waits");
    request.wait_s = 60;
    let waiting = tokio::spawn(async move { waiter.request_token(&request).await });
    let journal = dipylon::journal::JournalReader::open(&site.root.join("data")).expect("journal");
    until("a request is pending, and tokens are issued", || {
        let mut is_pending = false;
        let read = journal.read_all(|entry| {
            is_pending |= entry.text.contains("\"kind\":\"AccessRequestOpened\"");
            Ok(())
        });
        read.expect("readable");
        is_pending && acknowledged.lock().expect("acknowledged").len() > 100
    })
    .await;
    drop(journal);
    assert!(site.root.join("dipylon.sock").exists());
    kill_process(pid(&broker), Signal::TERM).expect("SIGTERM");
    // A waiting call is answered with pending.
    let answer = in_time("the waiting call is answered", waiting)
        .await
        .expect("joined");
    assert!(matches!(answer, Ok(TokenOutcome::Pending(_))), "{answer:?}");
    while let Some(error) = in_time("the load ends", load.join_next()).await {
        let error = error.expect("joined");
        // No call in flight is cut: the next one finds no listener, is not sent, or meets a closing connection.
        let clean = match &error {
            Error::Unreachable { cause, .. } => {
                let cause = cause.to_lowercase();
                [
                    "nothing listens",
                    "there is no socket",
                    "operation was canceled",
                    "not a result of an error",
                    "reset",
                    "broken pipe",
                ]
                .iter()
                .any(|word| cause.contains(word))
            }
            other => other.code() == Some("UNAVAILABLE"),
        };
        assert!(clean, "{error}");
    }
    let status = in_time("it exits", broker.wait()).await.expect("waited");
    assert!(status.success(), "{status}");
    assert!(!site.root.join("dipylon.sock").exists());
    let found = invariants::check(&site.root.join("data"));
    let acknowledged = acknowledged.lock().expect("acknowledged");
    eprintln!(
        "{} tokens received, {} in the journal",
        acknowledged.len(),
        found.tokens.len()
    );
    assert!(acknowledged.iter().all(|jti| found.tokens.contains(jti)));
    // Conversely, every entry's caller was answered.
    assert_eq!(acknowledged.len(), found.tokens.len(), "a reply was lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sighup_reloads_certificate() {
    let temp = tempfile::tempdir().expect("dir");
    let site = TlsDeployment::new(temp.path(), "");
    let mut broker = site.broker("").await;
    let task = open(&site.env, &site.url, site.endpoint())
        .await
        .expect("opens");
    let renewed = site.renew();
    kill_process(pid(&broker), Signal::HUP).expect("SIGHUP");
    let shows = async {
        while presented_certificate(site.address, &site.authority.pem).await != Some(renewed) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    in_time("the new certificate is shown", shows).await;
    replace_file(&site.root.join("tls.key"), "garbage", 0o600);
    kill_process(pid(&broker), Signal::HUP).expect("SIGHUP");
    // The open connection continues, new ones get the last valid certificate.
    task.request_token(&token_request(read_case(), "r-1"))
        .await
        .expect("served");
    assert_eq!(
        presented_certificate(site.address, &site.authority.pem).await,
        Some(renewed)
    );
    assert!(broker.try_wait().expect("asked").is_none());
    broker.kill().await.expect("killed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recovers_from_fd_exhaustion() {
    let temp = tempfile::tempdir().expect("dir");
    let site = TlsDeployment::new(
        temp.path(),
        "[connections]\nmax = 1000\nmax_per_source = 1000\nfirst_request_timeout = \"2s\"\n",
    );
    let mut broker = site.broker("ulimit -n 64;").await;
    let task = open(&site.env, &site.url, site.endpoint())
        .await
        .expect("opens");
    for round in 0..3 {
        let mut held = Vec::new();
        for n in 0..200 {
            let Ok(mut stream) = TcpStream::connect(site.address).await else {
                continue;
            };
            if n % 2 == 0 {
                // Half a ClientHello, then nothing.
                use tokio::io::AsyncWriteExt as _;
                let _broken = stream.write_all(b"\x16\x03\x01\x01\x00\x01").await;
            } else {
                held.push(stream);
            }
        }
        // Open connections are served, entries are written.
        task.request_token(&token_request(read_case(), &format!("in-{round}")))
            .await
            .expect("served");
        // A new client is served as soon as the idle connections are closed.
        let patient = site.endpoint().with_retry_ms(60_000);
        in_time(
            "the next client is served",
            open(&site.env, &site.url, patient),
        )
        .await
        .expect("opens");
    }
    assert!(broker.try_wait().expect("asked").is_none());
    broker.kill().await.expect("killed");
    invariants::check(&site.root.join("data"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cli_over_tls_and_unix_socket() {
    let temp = tempfile::tempdir().expect("dir");
    let site = TlsDeployment::new(temp.path(), "");
    let mut broker = site.broker("").await;
    let now = dipylon_sdk::clock::Clock::system().now();
    let id = format!("spiffe://{DOMAIN}/agent/triage");
    let evidence = site.env.svid_for(&site.url, &id, now, 3_600);
    replace_file(&site.root.join("svid"), evidence.expose_secret(), 0o600);
    let dipylon = async |ways: &[(&str, &str)]| {
        let done = Command::new(env!("CARGO_BIN_EXE_dipylon"))
            .args(["task", "open", "--purpose", "x", "--evidence", "svid"])
            .args(["--json", "--url", &site.url])
            .current_dir(&site.root)
            .env("HOME", &site.root)
            .env_remove("DIPYLON_CA")
            .env_remove("DIPYLON_SOCKET")
            .envs(ways.iter().copied())
            .output()
            .await
            .expect("runs");
        let output = String::from_utf8_lossy(&done.stdout).into_owned()
            + &String::from_utf8_lossy(&done.stderr);
        (done.status.code(), output)
    };
    for ways in [
        [("DIPYLON_CA", "ca.pem")],
        [("DIPYLON_SOCKET", "dipylon.sock")],
    ] {
        let (code, output) = dipylon(&ways).await;
        assert_eq!(code, Some(0), "{output}");
        assert!(output.contains("task_"), "{output}");
    }
    let (code, output) = dipylon(&[("DIPYLON_CA", "trust.json")]).await;
    assert_eq!(code, Some(2), "{output}");
    assert!(output.contains("trust.json"), "{output}");
    let (code, output) = dipylon(&[]).await;
    assert!(code == Some(14) || code == Some(2), "{output}");
    assert!(output.contains("certificate"), "{output}");
    broker.kill().await.expect("killed");
}
