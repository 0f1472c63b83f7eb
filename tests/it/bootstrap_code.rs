//! Bootstrap code: it admits the first operator once, in this process and with the real program.

use std::path::Path;
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

use crate::support::cli_deployment::CliDeployment;
use crate::support::{DOMAIN, START, TestEnvironment, URL, rand_u64, settings};

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
    assert!(!refusal.gives_nonce);
}

#[tokio::test]
async fn bootstrap_code_admits_first_operator_once() {
    let b = BrokerWithoutPolicy::start().await;
    assert!(b.broker.readiness().is_err());
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
    assert!(applied.changed && b.broker.readiness().is_ok());
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
    assert!(b.broker.readiness().is_err());
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

#[test]
fn bootstrap_code_end_to_end() {
    let site = CliDeployment::new();
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
    let site = CliDeployment::new();
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
