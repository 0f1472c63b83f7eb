//! Operator setup: the reasons page, the bootstrap code, configuration, `doctor`, packaging.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dipylon::broker::*;
use dipylon::journal::FaultInjection;
use dipylon::rate_limit::ConcurrencyPermit;
use dipylon::serve::authorization;
use dipylon_sdk::client::{Endpoint, OperatorClient};
use dipylon_sdk::clock::{Clock, ManualClock};
use dipylon_sdk::jose::{SigningKey, dpop};
use dipylon_sdk::model::*;

use super::transport::Authority;
use crate::support::{DOMAIN, START, TestEnvironment, URL, rand_u64, settings};

#[test]
fn reasons_doc_matches_table() {
    let mut page = String::from(
        "Every reason of a refusal or denial, by the same name in gRPC (`ErrorInfo.reason`), the command line (`--json`) and the\n\
         client library, with its HTTP status. A test compares this page with the table.\n\n\
         Refused calls. With detail `operator` the caller gets only the text, and an operator finds the detail with\n\
         `dipylon explain`:\n\n\
         | reason | gRPC | HTTP | exit | text | detail | retry | what to do |\n|---|---|---|---|---|---|---|---|\n",
    );
    for r in Reason::ALL {
        let detail = match r.detail() {
            DetailVisibility::Caller => "caller",
            DetailVisibility::Operator => "operator",
        };
        let (code, http, exit) = (r.code().as_str(), r.code().http(), r.exit().number());
        page.push_str(&format!(
            "| `{r}` | {code} | {http} | {exit} | {} | {detail} | {} | {} |\n",
            r.text(),
            r.retry(),
            r.next_step()
        ));
    }
    page.push_str("\nDenials by gate 2 (an OK reply in gRPC):\n\n| reason | exit | text | what to do |\n|---|---|---|---|\n");
    for r in DeniedReason::ALL {
        let exit = r.exit().number();
        page.push_str(&format!(
            "| `{r}` | {exit} | {} | {} |\n",
            r.text(),
            r.next_step()
        ));
    }
    page.push_str("\nExit codes of the command line:\n\n| exit | |\n|---|---|\n");
    for exit in Exit::ALL {
        page.push_str(&format!("| {} | {} |\n", exit.number(), exit.text()));
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("sdk/src/model/REASONS.md");
    if std::env::var_os("DIPYLON_BLESS").is_some() {
        std::fs::write(&path, &page).expect("written");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        page, written,
        "REASONS.md is stale: run with DIPYLON_BLESS=1"
    );
}

// ---- The first operator ----

const APPLY: &str = "dipylon.v1.GovernanceService/ApplyPolicyBundle";

/// A broker in this process whose journal has no policy bundle, with a manual clock.
struct BrokerWithoutPolicy {
    env: TestEnvironment,
    broker: Arc<Broker>,
    manual_clock: ManualClock,
    clock: Clock,
    key: Vec<u8>,
    dir: tempfile::TempDir,
}

impl BrokerWithoutPolicy {
    async fn start() -> Self {
        let (clock, manual_clock) = Clock::manual(START);
        let key = SigningKey::generate().expect("key").1.to_vec();
        let (env, dir) = (TestEnvironment::new(), tempfile::tempdir().expect("dir"));
        let broker = Self::open(&env, dir.path(), &clock, &key).await;
        Self {
            env,
            broker,
            manual_clock,
            clock,
            key,
            dir,
        }
    }

    async fn open(env: &TestEnvironment, dir: &Path, clock: &Clock, key: &[u8]) -> Arc<Broker> {
        for _ in 0..500 {
            let options = BrokerOptions {
                settings: BrokerSettings {
                    expose_auth_errors: false,
                    ..settings()
                },
                data_dir: dir.join("data"),
                key: SigningKey::from_pkcs8(key).expect("key"),
                trust: vec![(
                    TrustDomain::parse(DOMAIN).expect("domain"),
                    env.trust_bundle(),
                )],
                seed: None,
                clock: clock.clone(),
                faults: FaultInjection::default(),
            };
            match Broker::open(options).await {
                Err(BrokerOpenError::Open(dipylon::journal::OpenError::Locked(_))) => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                other => return other.expect("starts"),
            }
        }
        panic!("the journal stays locked");
    }

    async fn restart(self) -> Self {
        let Self {
            env,
            broker,
            manual_clock,
            clock,
            key,
            dir,
        } = self;
        drop(broker);
        let broker = Self::open(&env, dir.path(), &clock, &key).await;
        Self {
            env,
            broker,
            manual_clock,
            clock,
            key,
            dir,
        }
    }

    fn code(&self) -> Secret {
        self.broker.bootstrap_code().expect("a code")
    }

    fn call(&self, method: &str, name: &str) -> CallContext {
        let policy = authorization::method_policy(method).expect("a method with a row");
        let claims = dpop::ProofClaims {
            htm: "POST",
            htu: &format!("{URL}/{method}"),
            iat: self.clock.now(),
            jti: &format!("{:016x}{:016x}", rand_u64(), rand_u64()),
            nonce: Some(&self.broker.nonce()),
            ath: None,
            action_digest: None,
            evidence_hash: None,
        };
        let proof = Some(dpop::create(&self.env.keys[name], &claims).expect("proof"));
        CallContext {
            method: policy.name,
            allowed_roles: policy.allowed_roles,
            proof,
            bearer: None,
            session: None,
            permit: ConcurrencyPermit::unlimited(policy.rate_class),
        }
    }

    fn show_code(&self, name: &str, code: &Secret) -> Result<FirstOperator, Refusal> {
        self.broker.first_operator(&self.call(APPLY, name), code)
    }

    async fn apply(&self, name: &str, code: &Secret) -> Result<BundleApplied, Refusal> {
        let call = self.call(APPLY, name);
        let first = self.broker.first_operator(&call, code)?;
        self.broker
            .apply_first_policy_bundle(&call, first, self.env.policy.clone())
            .await
    }
}

/// Asserts gate 1's uniform refusal: no cause, no nonce.
fn assert_not_authenticated<T: std::fmt::Debug>(result: Result<T, Refusal>) {
    let refusal = result.expect_err("closed");
    assert_eq!(refusal.reason, Reason::NotAuthenticated);
    assert_eq!(refusal.message, Reason::NotAuthenticated.text());
    assert!(!refusal.authenticated);
}

#[tokio::test]
async fn bootstrap_code_admits_first_operator_once() {
    let b = BrokerWithoutPolicy::start().await;
    assert!(b.broker.ready().is_err());
    assert_not_authenticated(
        b.broker
            .authenticate_person(&b.call(APPLY, "olga"))
            .map(|_| ()),
    );
    let code = b.code();
    let entries = || b.broker.journal().head().borrow().checkpoint.to_string();
    let before = entries();

    // The code admits only operators of the bundle: others are refused, and it stays valid.
    for name in ["maria", "idp"] {
        let refusal = b.apply(name, &code).await.expect_err(name);
        assert_eq!(refusal.reason, Reason::InvalidPolicyBundle, "{name}");
    }
    // It is valid for one method, and not beside another credential.
    assert_not_authenticated(
        b.broker
            .first_operator(&b.call("dipylon.v1.TaskService/OpenTask", "olga"), &code),
    );
    let mut two = b.call(APPLY, "olga");
    two.bearer = Some(Secret::new("a.b.c".into()));
    assert_not_authenticated(b.broker.first_operator(&two, &code));
    let mut none = b.call(APPLY, "olga");
    none.proof = None;
    assert_not_authenticated(b.broker.first_operator(&none, &code));
    assert_eq!(entries(), before, "no entry was written");

    let applied = b.apply("olga", &code).await.expect("applies");
    assert!(applied.changed && b.broker.ready().is_ok());
    assert_not_authenticated(b.show_code("olga", &code));
    assert!(b.broker.bootstrap_code().is_none());
    b.broker
        .authenticate_person(&b.call(APPLY, "olga"))
        .expect("an operator now");
    let b = b.restart().await;
    assert!(
        b.broker.bootstrap_code().is_none(),
        "not after a restart either"
    );
    crate::support::invariants::check(&b.dir.path().join("data"));
}

#[tokio::test]
async fn bootstrap_code_expiry() {
    let b = BrokerWithoutPolicy::start().await;
    let code = b.code();
    for n in 0..50 {
        assert_not_authenticated(b.show_code("olga", &Secret::new(format!("WRONG-{n}"))));
    }
    b.show_code("olga", &code)
        .expect("wrong codes do not invalidate it");

    let b = b.restart().await;
    assert_not_authenticated(b.show_code("olga", &code));
    let code = b.code();
    b.manual_clock.advance_millis(599_000);
    b.show_code("olga", &code).expect("not yet expired");
    b.manual_clock.advance_millis(1_000);
    assert_not_authenticated(b.show_code("olga", &code));

    // A code that was valid when the upload began, and expired before it was complete.
    let b = b.restart().await;
    let code = b.code();
    let first = b.show_code("olga", &code).expect("valid");
    b.manual_clock.advance_millis(600_000);
    let (call, files) = (b.call(APPLY, "olga"), b.env.policy.clone());
    assert_not_authenticated(
        b.broker
            .apply_first_policy_bundle(&call, first, files)
            .await,
    );
    assert!(b.broker.ready().is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_bootstrap_code_uses_one_wins() {
    let b = Arc::new(BrokerWithoutPolicy::start().await);
    let code = b.code();
    // All present the code before any bundle is applied.
    let uses: Vec<_> = (0..50)
        .map(|_| {
            let call = b.call(APPLY, "olga");
            let first = b.broker.first_operator(&call, &code).expect("good");
            (call, first)
        })
        .collect();
    let uses: Vec<_> = uses
        .into_iter()
        .map(|(call, first)| {
            let b = b.clone();
            tokio::spawn(async move {
                let files = b.env.policy.clone();
                b.broker
                    .apply_first_policy_bundle(&call, first, files)
                    .await
            })
        })
        .collect();
    let mut won = 0;
    for using in uses {
        match using.await.expect("joined") {
            Ok(applied) => {
                assert!(applied.changed);
                won += 1;
            }
            refused => assert_not_authenticated(refused),
        }
    }
    assert_eq!(won, 1);
}

// ---- The real program ----

/// A directory with everything a production broker needs.
struct Deployment {
    root: tempfile::TempDir,
    env: TestEnvironment,
    url: String,
    port: u16,
}

/// A started broker, killed on drop.
struct RunningBroker {
    child: std::process::Child,
    stderr: PathBuf,
}

impl Drop for RunningBroker {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

impl RunningBroker {
    fn stderr(&self) -> String {
        std::fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    fn code(&self) -> Option<String> {
        let stderr = self.stderr();
        let after = stderr.split("one-time code ").nth(1)?;
        Some(after.split_whitespace().next()?.to_owned())
    }
}

impl Deployment {
    fn new() -> Self {
        let root = tempfile::tempdir().expect("dir");
        let env = TestEnvironment::new();
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = free.local_addr().expect("address").port();
        let site = Self {
            root,
            env,
            url: format!("http://127.0.0.1:{port}"),
            port,
        };
        for (path, text) in &site.env.policy {
            site.write(&format!("policy/{path}"), text);
        }
        site.write("trust.json", &site.env.trust_bundle());
        site.write("dipylon.toml", &site.config());
        for name in ["olga", "maria"] {
            site.write(&format!("{name}.pem"), &site.env.pem_of(name));
            site.mode(&format!("{name}.pem"), 0o600);
        }
        site
    }

    fn config(&self) -> String {
        format!(
            "realm = \"test\"\nlisten = \"127.0.0.1:{}\"\nexternal_url = \"{}\"\ndata_dir = \"data\"\nkey_dir = \"keys\"\n\n\
             [[trust_domain]]\nname = \"{DOMAIN}\"\nbundle = \"trust.json\"\n",
            self.port, self.url
        )
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("parent")).expect("dir");
        std::fs::write(path, text).expect("written");
    }

    fn mode(&self, name: &str, mode: u32) {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(self.path(name), mode).expect("chmod");
    }

    /// Runs a command in the directory: exit code, stdout, stderr.
    fn run(&self, args: &[&str]) -> (i32, String, String) {
        let out = std::process::Command::new(env!("CARGO_BIN_EXE_dipylon"))
            .args(args)
            .current_dir(self.root.path())
            .env_remove("DIPYLON_URL")
            .env("HOME", self.root.path())
            .stdin(std::process::Stdio::null())
            .output()
            .expect("runs");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        (
            out.status.code().expect("ended"),
            text(out.stdout),
            text(out.stderr),
        )
    }

    fn serve(&self) -> RunningBroker {
        let (ready, stderr) = (self.path("ready.json"), self.path("stderr.txt"));
        let _none = std::fs::remove_file(&ready);
        let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_dipylon"))
            .args([
                "serve",
                "--json",
                "--config",
                "dipylon.toml",
                "--ready-file",
                "ready.json",
            ])
            .current_dir(self.root.path())
            .env("DIPYLON_LOG", "debug")
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(std::fs::File::create(&stderr).expect("file"))
            .spawn()
            .expect("starts");
        for _ in 0..1_500 {
            if ready.exists() {
                return RunningBroker { child, stderr };
            }
            let ended = child.try_wait().expect("asked");
            assert!(
                ended.is_none(),
                "{}",
                std::fs::read_to_string(&stderr).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("the broker is not ready");
    }
}

#[test]
fn bootstrap_code_end_to_end() {
    let site = Deployment::new();
    let running = site.serve();
    let first = running.code().expect("printed");
    let apply = |code: &str, key: &str| {
        site.run(&[
            "policy", "apply", "policy", "--url", &site.url, "--key", key, "--code", code,
        ])
    };
    // Without a code every key is unknown.
    let (code, _, stderr) = site.run(&[
        "policy", "apply", "policy", "--url", &site.url, "--key", "olga.pem",
    ]);
    assert_eq!(code, 20, "{stderr}");
    for n in 0..5 {
        let (code, _, stderr) = apply(&format!("AAAAA-{n}"), "olga.pem");
        assert_eq!(
            (code, stderr.contains("authentication failed")),
            (20, true),
            "{stderr}"
        );
    }
    drop(running);

    let running = site.serve();
    let second = running.code().expect("another");
    assert_ne!(first, second);
    assert_eq!(
        apply(&first, "olga.pem").0,
        20,
        "the earlier code ended with its process"
    );
    site.write("code.txt", &format!("{}\n", second.to_lowercase()));
    let args = [
        "policy",
        "apply",
        "policy",
        "--url",
        &site.url,
        "--key",
        "olga.pem",
        "--code-file",
        "code.txt",
    ];
    let (code, out, stderr) = site.run(&args);
    assert_eq!((code, out.contains("in force")), (0, true), "{out}{stderr}");
    assert_eq!(apply(&second, "olga.pem").0, 20, "once");
    let (code, _, stderr) = site.run(&[
        "policy", "apply", "policy", "--url", &site.url, "--key", "olga.pem",
    ]);
    assert_eq!(code, 0, "an ordinary operator now: {stderr}");
    // The code is printed only: it is in no log record at any level, and in no file of the broker.
    assert_eq!(running.stderr().matches(&second).count(), 1);
    for file in std::fs::read_dir(site.path("data")).expect("dir") {
        let bytes = std::fs::read(file.expect("file").path()).expect("read");
        let second = second.as_bytes();
        assert!(!bytes.windows(second.len()).any(|window| window == second));
    }
    drop(running);
    let running = site.serve();
    assert_eq!(running.code(), None, "no code once a bundle is in force");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_bootstrap_clients_one_wins() {
    let site = Deployment::new();
    let running = site.serve();
    let code = Secret::new(running.code().expect("printed"));
    let clients: Vec<_> = (0..50)
        .map(|_| {
            let endpoint = Endpoint::connect(&site.url).expect("endpoint");
            let person = OperatorClient::new(endpoint, Arc::new(site.env.key_of("olga")));
            let (files, code) = (site.env.policy.clone(), code.clone());
            tokio::spawn(async move { person.apply_first_policy_bundle(&files, &code).await })
        })
        .collect();
    let mut won = 0;
    for client in clients {
        match client.await.expect("joined") {
            Ok(applied) => won += usize::from(applied.changed),
            Err(error) => assert_eq!(error.reason(), Some(Reason::NotAuthenticated), "{error}"),
        }
    }
    assert_eq!(won, 1);
}

// ---- The configuration ----

#[test]
fn config_check_reports_every_problem() {
    let site = Deployment::new();
    let check = |text: &str| {
        site.write("dipylon.toml", text);
        site.run(&["config", "check", "dipylon.toml"])
    };
    let good = format!("policy = \"policy\"\n{}", site.config());
    let (code, out, _) = check(&good);
    assert_eq!(code, 0, "{out}");
    assert!(
        out.contains("1 JWT-SVID keys") && out.contains("the first start creates it"),
        "{out}"
    );

    let (code, out, _) = check(&good.replace("realm", "reallm").replace("key_dir", "keydir"));
    assert_eq!(code, 1, "{out}");
    for expected in [
        "unknown key `reallm` at line 2",
        "did you mean `realm`?",
        "unknown key `keydir` at line 6",
    ] {
        assert!(out.contains(expected), "{expected}: {out}");
    }
    let (code, out, _) = check(&format!("signing_key_password = \"hunter2\"\n{good}"));
    assert_eq!(
        (code, out.contains("put it into a file")),
        (1, true),
        "{out}"
    );
    assert!(!out.contains("hunter2"), "{out}");
    let (_, _, stderr) = site.run(&["serve", "--config", "dipylon.toml"]);
    assert!(
        stderr.contains("`signing_key_password` holds a secret at line 1")
            && !stderr.contains("hunter2"),
        "{stderr}"
    );

    // Every file it names is checked, and all problems are reported at once.
    site.write("keys/token-signing.pem", &site.env.pem_of("olga"));
    site.mode("keys", 0o750);
    site.mode("keys/token-signing.pem", 0o640);
    site.write("trust.json", "{\"keys\": 1}");
    site.write("policy/people.toml", "[[person]]\n");
    let (code, out, _) = check(&good);
    assert_eq!(code, 1);
    for expected in [
        "keys: mode 750",
        "token-signing.pem: mode 640",
        "trust.json",
        "policy directory",
    ] {
        assert!(
            out.lines()
                .any(|line| line.contains(expected) && line.contains("[fail]")),
            "{expected}: {out}"
        );
    }
    site.write("dipylon.toml", &good);
    let (code, out, _) = site.run(&["config", "check", "--json", "dipylon.toml"]);
    let json: serde_json::Value = serde_json::from_str(&out).expect("json");
    assert_eq!((code, json["passed"].as_bool()), (1, Some(false)), "{json}");
    let (code, out, _) = check(&good.replace("\"keys\"", "\"data/keys\""));
    assert_eq!(
        (code, out.contains("must not be inside the data directory")),
        (1, true),
        "{out}"
    );
}

#[test]
fn config_show_roundtrip() {
    let site = Deployment::new();
    let (code, shown, stderr) = site.run(&["config", "show", "dipylon.toml"]);
    assert_eq!(code, 0, "{stderr}");
    let line = |start: &str| {
        shown
            .lines()
            .find(|line| line.starts_with(start))
            .expect(start)
            .to_owned()
    };
    assert!(line("realm = \"test\"").ends_with("# line 1"));
    assert!(line("ttl_cap = \"900s\"").ends_with("# default"));
    assert!(line("issuer = ").contains(&site.url));
    assert!(line("data_dir = ").contains(site.root.path().to_str().expect("text")));
    site.write("elsewhere/again.toml", &shown);
    let (code, again, stderr) = site.run(&["config", "show", "elsewhere/again.toml"]);
    assert_eq!(code, 0, "{stderr}");
    let values = |text: &str| -> Vec<String> {
        text.lines()
            .map(|line| {
                line.split(" # ")
                    .next()
                    .unwrap_or_default()
                    .trim_end()
                    .to_owned()
            })
            .collect()
    };
    assert_eq!(values(&shown), values(&again));
    let (code, json, _) = site.run(&["--json", "config", "show", "dipylon.toml"]);
    let json: serde_json::Value = serde_json::from_str(&json).expect("json");
    let realm = json["keys"]
        .as_array()
        .expect("keys")
        .iter()
        .find(|k| k["key"] == "realm")
        .expect("realm");
    assert_eq!(
        (code, &realm["line"], &realm["value"]),
        (0, &1.into(), &"test".into())
    );
}

// ---- The doctor ----

#[test]
fn doctor_checks_online_and_offline() {
    let site = Deployment::new();
    let doctor = || site.run(&["doctor", "--config", "dipylon.toml"]);
    let has = |out: &str, level: &str, expected: &str| {
        let found = out
            .lines()
            .any(|line| line.trim_start().starts_with(level) && line.contains(expected));
        assert!(found, "{level} {expected}\n{out}");
    };
    // Before the first start.
    let (code, out, stderr) = doctor();
    assert_eq!(code, 0, "{out}{stderr}");
    has(&out, "[ok]", "none yet: the first start creates it");
    has(&out, "[warn]", "no policy bundle: every request is denied");
    has(&out, "[ok]", "is free: no broker is running");

    // RunningBroker, and not yet in service.
    let running = site.serve();
    let (code, out, _) = doctor();
    assert_eq!(code, 1, "{out}");
    has(&out, "[fail]", "not ready: no policy bundle is in force");
    has(&out, "[ok]", "is served by the broker of this journal");

    // With a policy in force.
    let code = running.code().expect("printed");
    let apply = [
        "policy", "apply", "policy", "--url", &site.url, "--key", "olga.pem", "--code", &code,
    ];
    assert_eq!(site.run(&apply).0, 0);
    let (code, out, _) = doctor();
    assert_eq!(code, 0, "{out}");
    for expected in [
        "responds and is ready",
        "clocks agree",
        "verified: ",
        "policy bundle in force",
        "0 days old",
        "matches the listen address",
    ] {
        assert!(out.contains(expected), "{expected}: {out}");
    }
    let (code, out, _) = site.run(&["doctor", "--url", &site.url, "--key", "maria.pem"]);
    assert_eq!(code, 0, "{out}");
    has(
        &out,
        "[ok]",
        "the key is registered; 0 access requests are waiting",
    );
    site.write(
        "stranger.pem",
        SigningKey::to_pem(&SigningKey::generate().expect("key").1).as_str(),
    );
    site.mode("stranger.pem", 0o600);
    let (code, out, _) = site.run(&["doctor", "--url", &site.url, "--key", "stranger.pem"]);
    assert_eq!(code, 1, "{out}");
    has(&out, "[fail]", "NOT_AUTHENTICATED");

    // Stopped: the offline checks still work; then each bad state in turn.
    drop(running);
    let (code, out, _) = doctor();
    assert_eq!(code, 0, "{out}");
    has(&out, "[ok]", "is free: no broker is running");
    has(&out, "[ok]", "verified: ");

    let other = std::net::TcpListener::bind(("127.0.0.1", site.port)).expect("free");
    let answering = std::thread::spawn(move || {
        for _ in 0..2 {
            let (mut stream, _) = other.accept().expect("asked");
            let _read = std::io::Read::read(&mut stream, &mut [0; 1024]);
            let date = "Sun, 06 Nov 1994 08:49:37 GMT";
            let answer =
                format!("HTTP/1.1 200 OK\r\ndate: {date}\r\ncontent-length: 2\r\n\r\n{{}}");
            std::io::Write::write_all(&mut stream, answer.as_bytes()).expect("answered");
        }
    });
    let (code, out, _) = doctor();
    answering.join().expect("two requests");
    assert_eq!(code, 1, "{out}");
    has(&out, "[fail]", "is in use by another process");
    has(&out, "[fail]", "clocks: ");

    site.mode("keys", 0o755);
    let (code, out, _) = doctor();
    assert_eq!(code, 1, "{out}");
    has(&out, "[fail]", "mode 755 gives other users access");
    site.mode("keys", 0o700);

    let good = site.config();
    let elsewhere = good.replace(
        &format!("external_url = \"{}\"", site.url),
        "external_url = \"http://127.0.0.1:9\"",
    );
    site.write("dipylon.toml", &elsewhere);
    let (code, out, _) = doctor();
    assert_eq!(code, 1, "{out}");
    has(&out, "[fail]", "does not match the listen address");
    site.write("dipylon.toml", &good);

    // A changed entry.
    let db = rusqlite::Connection::open(site.path("data/journal.db")).expect("opens");
    let changed = db.execute(
        "UPDATE entries SET entry = replace(entry, '1', '2') WHERE idx = 1",
        [],
    );
    assert_eq!(changed.expect("changed"), 1);
    drop(db);
    let (code, out, _) = doctor();
    assert_eq!(code, 1, "{out}");
    has(&out, "[fail]", "journal verification failed");
}

#[test]
fn doctor_counts_eligible_approvers() {
    let site = Deployment::new();
    site.write(
        "dipylon.toml",
        &format!("policy = \"policy\"\n{}", site.config()),
    );
    // Only the owner is left to approve; and a profile that no rule uses.
    let people = site.env.policy["people.toml"].clone();
    let mut kept = String::new();
    for block in people.split("\n[[") {
        let whose = ["of = \"maria\"", "of = \"lee\""];
        let cut = block.starts_with("key]]") && whose.iter().any(|of| block.contains(of));
        if !cut {
            kept.push_str(if kept.is_empty() { "" } else { "\n[[" });
            kept.push_str(block);
        }
    }
    kept.push_str("\n[profile.idle]\ngroup = \"security\"\nwait = \"5m\"\ngood_for = \"5m\"\nmethod = \"key\"\n");
    site.write("policy/people.toml", &kept);
    let (_, out, _) = site.run(&["doctor", "--config", "dipylon.toml"]);
    assert!(out.contains("profile idle: no rule uses it"), "{out}");
    assert!(out.contains("too few are eligible for"), "{out}");
}

#[test]
fn doctor_checks_tls_certificate() {
    let site = Deployment::new();
    let authority = Authority::new();
    let put = |days: i64| {
        let now = Clock::system().now().secs();
        let (certificate, key) = authority.certify_with(|params| {
            let at = |s| time::OffsetDateTime::from_unix_timestamp(s).expect("moment");
            params.not_before = at(now - 90 * 86_400);
            params.not_after = at(now + days * 86_400 + 3_600);
        });
        site.write("tls.crt", &certificate);
        site.write("tls.key", &key);
        site.mode("tls.key", 0o600);
        certificate
    };
    let config = site
        .config()
        .replace("external_url = \"http:", "external_url = \"https:");
    site.write(
        "dipylon.toml",
        &format!("{config}[tls]\ncertificate = \"tls.crt\"\nkey = \"tls.key\"\n"),
    );
    site.write("ca.pem", &authority.pem);
    let check = || site.run(&["config", "check", "dipylon.toml"]);
    for (days, code, mark) in [
        (90, 0, "[ok]   certificate"),
        (3, 0, "[warn] certificate"),
        (-1, 1, "[fail] certificate"),
    ] {
        put(days);
        let (found, out, _) = check();
        assert_eq!((found, out.contains(mark)), (code, true), "{days}: {out}");
    }
    put(90);
    site.mode("tls.key", 0o640);
    let (code, out, _) = check();
    assert_eq!(
        (code, out.contains("lets other users read the key")),
        (1, true),
        "{out}"
    );
    site.write("tls.key", &authority.certify().1);
    site.mode("tls.key", 0o600);
    let (code, out, _) = check();
    assert_eq!(
        (code, out.contains("[fail] certificate")),
        (1, true),
        "another's key: {out}"
    );

    let certificate = put(90);
    let _running = site.serve();
    let held = "is served by the broker of this journal";
    // Trusted by `--ca`; by the certificate chain; and by neither.
    let (_, out, _) = site.run(&["doctor", "--config", "dipylon.toml", "--ca", "ca.pem"]);
    assert!(
        out.contains(held) && out.contains("TLS, terminated by the broker"),
        "{out}"
    );
    let (_, out, _) = site.run(&["doctor", "--config", "dipylon.toml"]);
    assert!(
        !out.contains(held) && out.contains("does not respond"),
        "{out}"
    );
    site.write("tls.crt", &format!("{certificate}{}", authority.pem));
    let (_, out, _) = site.run(&["doctor", "--config", "dipylon.toml"]);
    assert!(out.contains(held), "{out}");
    let url = format!("https://127.0.0.1:{}", site.port);
    let (_, out, _) = site.run(&["doctor", "--url", &url, "--ca", "ca.pem"]);
    assert!(out.contains("not ready: no policy bundle"), "{out}");
}

// ---- Packaging ----

fn example(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("examples")
        .join(path)
}

#[test]
fn production_example_is_valid() {
    let site = Deployment::new();
    let file = example("production/dipylon.toml");
    let (code, out, stderr) = site.run(&["config", "check", file.to_str().expect("text")]);
    assert_eq!(code, 0, "{out}{stderr}");
    assert!(out.contains("soc.example: 1 JWT-SVID keys"), "{out}");
    let (code, shown, stderr) = site.run(&["config", "show", file.to_str().expect("text")]);
    assert_eq!(code, 0, "{stderr}");
    // The unit and the image provide these two directories.
    let unit = std::fs::read_to_string(example("systemd/dipylon.service")).expect("unit");
    let image = std::fs::read_to_string(example("container/Containerfile")).expect("image");
    assert!(unit.contains("StateDirectory=dipylon/data dipylon/keys\nStateDirectoryMode=0700"));
    for dir in ["/var/lib/dipylon/data", "/var/lib/dipylon/keys"] {
        assert!(shown.contains(&format!("\"{dir}\"")), "{shown}");
        assert!(image.contains(&format!("\"{dir}\"")), "{dir}");
    }
    // The program accepts every argument they start it with.
    for line in unit.lines().filter_map(|line| line.strip_prefix("Exec")) {
        let Some((_, args)) = line.split_once("/usr/local/bin/dipylon ") else {
            continue;
        };
        let args: Vec<&str> = args.split_whitespace().collect();
        let (code, _, stderr) = site.run(&[&args[..], &["--help"]].concat());
        assert_eq!(code, 0, "{args:?}: {stderr}");
    }
}

#[test]
fn sd_notify_ready_and_stopping() {
    use rustix::process::{Pid, Signal, kill_process};
    let site = Deployment::new();
    let path = site.path("notify.sock");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).expect("bound");
    socket
        .set_read_timeout(Some(Duration::from_secs(30)))
        .expect("timeout");
    let next = || {
        let mut state = [0; 64];
        let n = socket.recv(&mut state).expect("told");
        String::from_utf8(state[..n].to_vec()).expect("text")
    };
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_dipylon"))
        .args(["serve", "--config", "dipylon.toml"])
        .current_dir(site.root.path())
        .env("NOTIFY_SOCKET", &path)
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("starts");
    assert_eq!(next(), "READY=1");
    let answers = || {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", site.port)).expect("listens");
        std::io::Write::write_all(
            &mut stream,
            b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        )
        .expect("asked");
        let mut answer = String::new();
        let _read = std::io::Read::read_to_string(&mut stream, &mut answer);
        answer.contains("alive")
    };
    assert!(answers());
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::HUP).expect("sent");
    assert!(answers(), "SIGHUP does not end it");
    kill_process(pid, Signal::TERM).expect("sent");
    assert_eq!(next(), "STOPPING=1");
    assert!(child.wait().expect("ended").success());
}
