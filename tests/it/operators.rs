//! What operators meet: reasons, configuration, the first of them, and what to do when something is wrong.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dipylon::broker::*;
use dipylon::client::{Endpoint, OperatorClient};
use dipylon::clock::{Clock, ManualClock};
use dipylon::jose::{SigningKey, dpop};
use dipylon::journal::Faults;
use dipylon::model::*;
use dipylon::rate_limit::ConcurrencyPermit;
use dipylon::serve::guard;

use super::harness::{DOMAIN, START, URL, World, rand_u64, settings};
use super::transport::Authority;

#[test]
fn the_page_of_reasons_is_the_table() {
    let mut page = String::from(
        "Every reason the broker gives: the same word in gRPC (`ErrorInfo.reason`), the command line (`--json`) and the\n\
         client library; HTTP is the status that goes with it. This page is compared with the table by a test.\n\n\
         A refused call (the text of some is all that the caller learns; an operator finds the detail with `dipylon explain`):\n\n\
         | reason | gRPC | HTTP | exit | text | detail | retry | what to do |\n|---|---|---|---|---|---|---|---|\n",
    );
    for r in Reason::ALL {
        let detail = match r.detail() {
            Detail::Caller => "caller",
            Detail::Operator => "operator",
        };
        let (code, http, exit) = (r.code().as_str(), r.code().http(), r.exit().number());
        page.push_str(&format!(
            "| `{r}` | {code} | {http} | {exit} | {} | {detail} | {} | {} |\n",
            r.text(),
            r.retry(),
            r.next()
        ));
    }
    page.push_str("\nA no of gate 2 (an OK reply in gRPC):\n\n| reason | exit | text | what to do |\n|---|---|---|---|\n");
    for r in DeniedReason::ALL {
        let exit = r.exit().number();
        page.push_str(&format!(
            "| `{r}` | {exit} | {} | {} |\n",
            r.text(),
            r.next()
        ));
    }
    page.push_str("\nExit codes of the command line:\n\n| exit | |\n|---|---|\n");
    for exit in Exit::ALL {
        page.push_str(&format!("| {} | {} |\n", exit.number(), exit.text()));
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/model/REASONS.md");
    if std::env::var_os("DIPYLON_BLESS").is_some() {
        std::fs::write(&path, &page).expect("written");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(page, written, "REASONS.md: DIPYLON_BLESS=1 writes it anew");
}

// ---- The first operator ----

const APPLY: &str = "dipylon.v1.GovernanceService/ApplyPolicyBundle";

/// A broker in this process whose journal has no policy bundle, with a clock moved by hand.
struct Bare {
    world: World,
    broker: Arc<Broker>,
    hand: ManualClock,
    clock: Clock,
    key: Vec<u8>,
    dir: tempfile::TempDir,
}

impl Bare {
    async fn start() -> Self {
        let (clock, hand) = Clock::manual(START);
        let key = SigningKey::generate().expect("key").1.to_vec();
        let (world, dir) = (World::new(), tempfile::tempdir().expect("dir"));
        let broker = Self::open(&world, dir.path(), &clock, &key).await;
        Self {
            world,
            broker,
            hand,
            clock,
            key,
            dir,
        }
    }

    async fn open(world: &World, dir: &Path, clock: &Clock, key: &[u8]) -> Arc<Broker> {
        for _ in 0..500 {
            let start = Start {
                settings: Settings {
                    tell_callers: false,
                    ..settings()
                },
                data_dir: dir.join("data"),
                key: SigningKey::from_pkcs8(key).expect("key"),
                trust: vec![(
                    TrustDomain::parse(DOMAIN).expect("domain"),
                    world.trust_bundle(),
                )],
                seed: None,
                clock: clock.clone(),
                faults: Faults::default(),
            };
            match Broker::start(start).await {
                Err(StartError::Open(dipylon::journal::OpenError::Locked(_))) => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                other => return other.expect("starts"),
            }
        }
        panic!("the journal stays locked");
    }

    async fn restart(self) -> Self {
        let Self {
            world,
            broker,
            hand,
            clock,
            key,
            dir,
        } = self;
        drop(broker);
        let broker = Self::open(&world, dir.path(), &clock, &key).await;
        Self {
            world,
            broker,
            hand,
            clock,
            key,
            dir,
        }
    }

    fn code(&self) -> Secret {
        self.broker.bootstrap_code().expect("a code")
    }

    fn call(&self, method: &str, name: &str) -> CallContext {
        let (method, allowed_roles) = guard::row(method).expect("a method with a row");
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
        let proof = Some(dpop::create(&self.world.keys[name], &claims).expect("proof"));
        CallContext {
            method,
            allowed_roles,
            proof,
            bearer: None,
            session: None,
            permit: ConcurrencyPermit::unlimited(guard::class(method)),
        }
    }

    fn show(&self, name: &str, code: &Secret) -> Result<FirstOperator, Refusal> {
        self.broker.first_operator(&self.call(APPLY, name), code)
    }

    async fn apply(&self, name: &str, code: &Secret) -> Result<Applied, Refusal> {
        let call = self.call(APPLY, name);
        let first = self.broker.first_operator(&call, code)?;
        self.broker
            .apply_first_policy_bundle(&call, first, self.world.policy.clone())
            .await
    }
}

/// A refusal as gate 1 gives it to anybody: no cause, no nonce.
fn closed<T: std::fmt::Debug>(result: Result<T, Refusal>) {
    let refusal = result.expect_err("closed");
    assert_eq!(refusal.reason, Reason::NotAuthenticated);
    assert_eq!(refusal.told, Reason::NotAuthenticated.text());
    assert!(!refusal.known);
}

#[tokio::test]
async fn the_first_operator_comes_in_by_a_code_once() {
    let b = Bare::start().await;
    assert!(b.broker.ready().is_err());
    closed(b.broker.person(&b.call(APPLY, "olga")).map(|_| ()));
    let code = b.code();
    let entries = || b.broker.journal().tail().borrow().head.to_string();
    let before = entries();

    // The code is for whoever the bundle lists: an approver and a stranger are told so, and it stays good.
    for name in ["maria", "idp"] {
        let refusal = b.apply(name, &code).await.expect_err(name);
        assert_eq!(refusal.reason, Reason::InvalidPolicyBundle, "{name}");
    }
    // It opens one method, and not beside another credential.
    closed(
        b.broker
            .first_operator(&b.call("dipylon.v1.TaskService/OpenTask", "olga"), &code),
    );
    let mut two = b.call(APPLY, "olga");
    two.bearer = Some(Secret::new("a.b.c".into()));
    closed(b.broker.first_operator(&two, &code));
    let mut none = b.call(APPLY, "olga");
    none.proof = None;
    closed(b.broker.first_operator(&none, &code));
    assert_eq!(entries(), before, "nothing was written");

    let applied = b.apply("olga", &code).await.expect("applies");
    assert!(applied.changed && b.broker.ready().is_ok());
    closed(b.show("olga", &code));
    assert!(b.broker.bootstrap_code().is_none());
    b.broker
        .person(&b.call(APPLY, "olga"))
        .expect("an operator now");
    let b = b.restart().await;
    assert!(b.broker.bootstrap_code().is_none(), "nor after a restart");
    super::laws::check(&b.dir.path().join("data"));
}

#[tokio::test]
async fn a_code_dies_of_age_and_of_a_restart_and_of_nothing_a_stranger_does() {
    let b = Bare::start().await;
    let code = b.code();
    for n in 0..50 {
        closed(b.show("olga", &Secret::new(format!("WRONG-{n}"))));
    }
    b.show("olga", &code)
        .expect("wrong ones make it no less right");

    let b = b.restart().await;
    closed(b.show("olga", &code));
    let code = b.code();
    b.hand.advance_millis(599_000);
    b.show("olga", &code).expect("not yet too old");
    b.hand.advance_millis(1_000);
    closed(b.show("olga", &code));

    // One that was good when the bundle began to come, and is not when it is there.
    let b = b.restart().await;
    let code = b.code();
    let first = b.show("olga", &code).expect("good");
    b.hand.advance_millis(600_000);
    let (call, files) = (b.call(APPLY, "olga"), b.world.policy.clone());
    closed(
        b.broker
            .apply_first_policy_bundle(&call, first, files)
            .await,
    );
    assert!(b.broker.ready().is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_fifty_uses_at_once_one_wins() {
    let b = Arc::new(Bare::start().await);
    let code = b.code();
    // All have shown the code before any bundle is applied.
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
                let files = b.world.policy.clone();
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
            refused => closed(refused),
        }
    }
    assert_eq!(won, 1);
}

// ---- The real program ----

/// A directory with all that a broker in earnest needs, and the program itself.
struct Site {
    root: tempfile::TempDir,
    world: World,
    url: String,
    port: u16,
}

/// A started broker; ended with the test.
struct Running {
    child: std::process::Child,
    told: PathBuf,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

impl Running {
    fn told(&self) -> String {
        std::fs::read_to_string(&self.told).unwrap_or_default()
    }

    fn code(&self) -> Option<String> {
        let told = self.told();
        let after = told.split("one-time code ").nth(1)?;
        Some(after.split_whitespace().next()?.to_owned())
    }
}

impl Site {
    fn new() -> Self {
        let root = tempfile::tempdir().expect("dir");
        let world = World::new();
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = free.local_addr().expect("address").port();
        let site = Self {
            root,
            world,
            url: format!("http://127.0.0.1:{port}"),
            port,
        };
        for (path, text) in &site.world.policy {
            site.write(&format!("policy/{path}"), text);
        }
        site.write("trust.json", &site.world.trust_bundle());
        site.write("dipylon.toml", &site.config());
        for name in ["olga", "maria"] {
            site.write(&format!("{name}.pem"), &site.world.pem_of(name));
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

    /// Runs a verb in the directory: exit code, stdout, stderr.
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

    fn serve(&self) -> Running {
        let (ready, told) = (self.path("ready.json"), self.path("told.txt"));
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
            .stderr(std::fs::File::create(&told).expect("file"))
            .spawn()
            .expect("starts");
        for _ in 0..1_500 {
            if ready.exists() {
                return Running { child, told };
            }
            let ended = child.try_wait().expect("asked");
            assert!(
                ended.is_none(),
                "{}",
                std::fs::read_to_string(&told).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("the broker is not ready");
    }
}

#[test]
fn a_production_broker_is_taken_into_service_by_its_code() {
    let site = Site::new();
    let running = site.serve();
    let first = running.code().expect("printed");
    let apply = |code: &str, key: &str| {
        site.run(&[
            "policy", "apply", "policy", "--url", &site.url, "--key", key, "--code", code,
        ])
    };
    // Without a code nobody is known, whatever their key.
    let (code, _, told) = site.run(&[
        "policy", "apply", "policy", "--url", &site.url, "--key", "olga.pem",
    ]);
    assert_eq!(code, 20, "{told}");
    for n in 0..5 {
        let (code, _, told) = apply(&format!("AAAAA-{n}"), "olga.pem");
        assert_eq!(
            (code, told.contains("gate 1 did not open")),
            (20, true),
            "{told}"
        );
    }
    drop(running);

    let running = site.serve();
    let second = running.code().expect("another");
    assert_ne!(first, second);
    assert_eq!(
        apply(&first, "olga.pem").0,
        20,
        "the earlier one died with its process"
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
    let (code, out, told) = site.run(&args);
    assert_eq!((code, out.contains("in force")), (0, true), "{out}{told}");
    assert_eq!(apply(&second, "olga.pem").0, 20, "once");
    let (code, _, told) = site.run(&[
        "policy", "apply", "policy", "--url", &site.url, "--key", "olga.pem",
    ]);
    assert_eq!(code, 0, "an operator like any other now: {told}");
    // Printed, and nowhere else: not in a log record at any level, not in a file of the broker's.
    assert_eq!(running.told().matches(&second).count(), 1);
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
async fn of_fifty_clients_with_the_code_one_is_let_in() {
    let site = Site::new();
    let running = site.serve();
    let code = Secret::new(running.code().expect("printed"));
    let clients: Vec<_> = (0..50)
        .map(|_| {
            let endpoint = Endpoint::connect(&site.url).expect("endpoint");
            let person = OperatorClient::new(endpoint, Arc::new(site.world.key_of("olga")));
            let (files, code) = (site.world.policy.clone(), code.clone());
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
fn a_configuration_is_checked_whole() {
    let site = Site::new();
    let check = |text: &str| {
        site.write("dipylon.toml", text);
        site.run(&["config", "check", "dipylon.toml"])
    };
    let good = format!("policy = \"policy\"\n{}", site.config());
    let (code, out, _) = check(&good);
    assert_eq!(code, 0, "{out}");
    assert!(
        out.contains("1 JWT-SVID keys") && out.contains("the first start makes it"),
        "{out}"
    );

    let (code, out, _) = check(&good.replace("realm", "reallm").replace("key_dir", "keydir"));
    assert_eq!(code, 1, "{out}");
    for told in [
        "unknown key `reallm` at line 2",
        "did you mean `realm`?",
        "unknown key `keydir` at line 6",
    ] {
        assert!(out.contains(told), "{told}: {out}");
    }
    let (code, out, _) = check(&format!("signing_key_password = \"hunter2\"\n{good}"));
    assert_eq!(
        (code, out.contains("put it into a file")),
        (1, true),
        "{out}"
    );
    assert!(!out.contains("hunter2"), "{out}");
    let (_, _, told) = site.run(&["serve", "--config", "dipylon.toml"]);
    assert!(
        told.contains("`signing_key_password` holds a secret at line 1")
            && !told.contains("hunter2"),
        "{told}"
    );

    // Everything it names is looked at, and all of it is told at once.
    site.write("keys/token-signing.pem", &site.world.pem_of("olga"));
    site.mode("keys", 0o750);
    site.mode("keys/token-signing.pem", 0o640);
    site.write("trust.json", "{\"keys\": 1}");
    site.write("policy/people.toml", "[[person]]\n");
    let (code, out, _) = check(&good);
    assert_eq!(code, 1);
    for told in [
        "keys: mode 750",
        "token-signing.pem: mode 640",
        "trust.json",
        "policy directory",
    ] {
        assert!(
            out.lines()
                .any(|line| line.contains(told) && line.contains("[fail]")),
            "{told}: {out}"
        );
    }
    site.write("dipylon.toml", &good);
    let (code, out, _) = site.run(&["config", "check", "--json", "dipylon.toml"]);
    let json: serde_json::Value = serde_json::from_str(&out).expect("json");
    assert_eq!((code, json["good"].as_bool()), (1, Some(false)), "{json}");
    let (code, out, _) = check(&good.replace("\"keys\"", "\"data/keys\""));
    assert_eq!(
        (code, out.contains("must not lie in the data directory")),
        (1, true),
        "{out}"
    );
}

#[test]
fn the_effective_configuration_is_shown_and_can_be_fed_back() {
    let site = Site::new();
    let (code, shown, told) = site.run(&["config", "show", "dipylon.toml"]);
    assert_eq!(code, 0, "{told}");
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
    let (code, again, told) = site.run(&["config", "show", "elsewhere/again.toml"]);
    assert_eq!(code, 0, "{told}");
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
fn the_doctor_looks_at_everything_with_and_without_a_broker() {
    let site = Site::new();
    let doctor = || site.run(&["doctor", "--config", "dipylon.toml"]);
    let has = |out: &str, level: &str, told: &str| {
        let found = out
            .lines()
            .any(|line| line.trim_start().starts_with(level) && line.contains(told));
        assert!(found, "{level} {told}\n{out}");
    };
    // Before the first start.
    let (code, out, told) = doctor();
    assert_eq!(code, 0, "{out}{told}");
    has(&out, "[ok]", "none yet: the first start makes it");
    has(&out, "[warn]", "no policy bundle: everything is denied");
    has(&out, "[ok]", "is free: no broker runs");

    // Running, and not yet in service.
    let running = site.serve();
    let (code, out, _) = doctor();
    assert_eq!(code, 1, "{out}");
    has(&out, "[fail]", "not ready: no policy bundle is in force");
    has(&out, "[ok]", "is held by the broker of this journal");

    // In service.
    let code = running.code().expect("printed");
    let apply = [
        "policy", "apply", "policy", "--url", &site.url, "--key", "olga.pem", "--code", &code,
    ];
    assert_eq!(site.run(&apply).0, 0);
    let (code, out, _) = doctor();
    assert_eq!(code, 0, "{out}");
    for told in [
        "answers and is ready",
        "clocks agree",
        "whole: ",
        "policy bundle in force",
        "0 days old",
        "is where it listens",
    ] {
        assert!(out.contains(told), "{told}: {out}");
    }
    let (code, out, _) = site.run(&["doctor", "--url", &site.url, "--key", "maria.pem"]);
    assert_eq!(code, 0, "{out}");
    has(&out, "[ok]", "the key is known; 0 access requests wait");
    site.write(
        "stranger.pem",
        SigningKey::to_pem(&SigningKey::generate().expect("key").1).as_str(),
    );
    site.mode("stranger.pem", 0o600);
    let (code, out, _) = site.run(&["doctor", "--url", &site.url, "--key", "stranger.pem"]);
    assert_eq!(code, 1, "{out}");
    has(&out, "[fail]", "NOT_AUTHENTICATED");

    // Stopped, and the offline parts go on; then each bad state in turn.
    drop(running);
    let (code, out, _) = doctor();
    assert_eq!(code, 0, "{out}");
    has(&out, "[ok]", "is free: no broker runs");
    has(&out, "[ok]", "whole: ");

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
    answering.join().expect("asked twice");
    assert_eq!(code, 1, "{out}");
    has(&out, "[fail]", "is held by something else");
    has(&out, "[fail]", "clocks: ");

    site.mode("keys", 0o755);
    let (code, out, _) = doctor();
    assert_eq!(code, 1, "{out}");
    has(&out, "[fail]", "mode 755 lets others in");
    site.mode("keys", 0o700);

    let good = site.config();
    let elsewhere = good.replace(
        &format!("external_url = \"{}\"", site.url),
        "external_url = \"http://127.0.0.1:9\"",
    );
    site.write("dipylon.toml", &elsewhere);
    let (code, out, _) = doctor();
    assert_eq!(code, 1, "{out}");
    has(&out, "[fail]", "is not where it listens");
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
    has(&out, "[fail]", "NOT WHOLE");
}

#[test]
fn the_doctor_counts_who_could_say_yes() {
    let site = Site::new();
    site.write(
        "dipylon.toml",
        &format!("policy = \"policy\"\n{}", site.config()),
    );
    // Only the owner is left to approve; and a profile that nothing asks for.
    let people = site.world.policy["people.toml"].clone();
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
    assert!(out.contains("profile idle: no rule asks for it"), "{out}");
    assert!(out.contains("fewer could ever say yes for"), "{out}");
}

#[test]
fn the_doctor_knows_a_broker_with_a_certificate_of_its_own() {
    let site = Site::new();
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
        (code, out.contains("lets others read the key")),
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
    let held = "is held by the broker of this journal";
    // By its authority; by the certificates that lead to it; and by neither.
    let (_, out, _) = site.run(&["doctor", "--config", "dipylon.toml", "--ca", "ca.pem"]);
    assert!(
        out.contains(held) && out.contains("TLS of its own"),
        "{out}"
    );
    let (_, out, _) = site.run(&["doctor", "--config", "dipylon.toml"]);
    assert!(
        !out.contains(held) && out.contains("does not answer"),
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
fn the_production_example_is_understood() {
    let site = Site::new();
    let file = example("production/dipylon.toml");
    let (code, out, told) = site.run(&["config", "check", file.to_str().expect("text")]);
    assert_eq!(code, 0, "{out}{told}");
    assert!(out.contains("soc.example: 1 JWT-SVID keys"), "{out}");
    let (code, shown, told) = site.run(&["config", "show", file.to_str().expect("text")]);
    assert_eq!(code, 0, "{told}");
    // The unit and the image keep these two directories, apart from each other.
    let unit = std::fs::read_to_string(example("systemd/dipylon.service")).expect("unit");
    let image = std::fs::read_to_string(example("container/Containerfile")).expect("image");
    assert!(unit.contains("StateDirectory=dipylon/data dipylon/keys\nStateDirectoryMode=0700"));
    for dir in ["/var/lib/dipylon/data", "/var/lib/dipylon/keys"] {
        assert!(shown.contains(&format!("\"{dir}\"")), "{shown}");
        assert!(image.contains(&format!("\"{dir}\"")), "{dir}");
    }
    // Every argument they start the program with is one that it takes.
    for line in unit.lines().filter_map(|line| line.strip_prefix("Exec")) {
        let Some((_, args)) = line.split_once("/usr/local/bin/dipylon ") else {
            continue;
        };
        let args: Vec<&str> = args.split_whitespace().collect();
        let (code, _, told) = site.run(&[&args[..], &["--help"]].concat());
        assert_eq!(code, 0, "{args:?}: {told}");
    }
}

#[test]
fn the_supervisor_learns_when_the_broker_is_ready_and_when_it_stops() {
    use rustix::process::{Pid, Signal, kill_process};
    let site = Site::new();
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
