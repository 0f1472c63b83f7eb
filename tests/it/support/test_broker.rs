//! A broker in this process with a manual clock: start, restart, crash.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dipylon::broker::*;
use dipylon::journal::FaultInjection;
use dipylon::policy::BundleFiles;
use dipylon::rate_limit::RateLimitConfig;
use dipylon_sdk::clock::{Clock, ManualClock};
use dipylon_sdk::jose::SigningKey;
use dipylon_sdk::model::*;

use crate::support::environment::TestEnvironment;
use crate::support::{CONSOLE, DOMAIN, START, URL, origin, rand_u64};

pub struct TestBroker {
    pub env: Arc<TestEnvironment>,
    pub broker: Arc<Broker>,
    pub manual_clock: ManualClock,
    pub clock: Clock,
    pub dir: PathBuf,
    signing_pkcs8: Vec<u8>,
    _temp: Arc<tempfile::TempDir>,
}

pub fn settings() -> BrokerSettings {
    BrokerSettings {
        realm: Realm::parse("test").expect("realm"),
        issuer: URL.to_owned(),
        external_url: origin(URL),
        console_url: origin(CONSOLE),
        evidence_audience: URL.to_owned(),
        ttl_cap: 900,
        task_cap: 86_400,
        max_evidence_age: 300,
        expose_auth_errors: true,
        rate_limits: RateLimitConfig::default(),
    }
}

impl TestBroker {
    pub async fn start() -> Self {
        Self::start_with(TestEnvironment::new(), FaultInjection::default()).await
    }

    pub async fn start_with(env: TestEnvironment, faults: FaultInjection) -> Self {
        Self::start_in(Arc::new(env), faults).await
    }

    /// The same in an environment that other brokers share.
    pub async fn start_in(env: Arc<TestEnvironment>, faults: FaultInjection) -> Self {
        Self::start_as(settings(), env, faults).await
    }

    pub async fn start_at(rates: RateLimitConfig) -> Self {
        let settings = BrokerSettings {
            rate_limits: rates,
            ..settings()
        };
        let env = Arc::new(TestEnvironment::new());
        Self::start_as(settings, env, FaultInjection::default()).await
    }

    async fn start_as(
        settings: BrokerSettings,
        env: Arc<TestEnvironment>,
        faults: FaultInjection,
    ) -> Self {
        let temp = tempfile::tempdir().expect("dir");
        let (clock, manual_clock) = Clock::manual(START);
        let signing_pkcs8 = SigningKey::generate().expect("key").1.to_vec();
        let dir = temp.path().join("data");
        let broker = open_as(settings, &env, &dir, &clock, &signing_pkcs8, faults)
            .await
            .expect("starts");
        Self {
            env,
            broker,
            manual_clock,
            clock,
            dir,
            signing_pkcs8,
            _temp: Arc::new(temp),
        }
    }

    /// Drops the broker and opens its directory again, like a restart.
    pub async fn restart(self, faults: FaultInjection) -> Self {
        self.try_restart(faults).await.expect("restarts")
    }

    /// The same with something that is done to the directory in between.
    pub async fn restart_after(self, between: impl AsyncFnOnce(&Path, &Clock)) -> Self {
        let Self {
            env,
            broker,
            manual_clock,
            clock,
            dir,
            signing_pkcs8,
            _temp,
        } = self;
        gone(broker).await;
        between(&dir, &clock).await;
        let faults = FaultInjection::default();
        let broker = open(&env, &dir, &clock, &signing_pkcs8, faults).await;
        Self {
            broker: broker.expect("restarts"),
            env,
            manual_clock,
            clock,
            dir,
            signing_pkcs8,
            _temp,
        }
    }

    /// The same for a start that may fail.
    pub async fn try_restart(self, faults: FaultInjection) -> Result<Self, BrokerOpenError> {
        let Self {
            env,
            broker,
            manual_clock,
            clock,
            dir,
            signing_pkcs8,
            _temp,
        } = self;
        gone(broker).await;
        let broker = open(&env, &dir, &clock, &signing_pkcs8, faults).await?;
        Ok(Self {
            env,
            broker,
            manual_clock,
            clock,
            dir,
            signing_pkcs8,
            _temp,
        })
    }

    /// The same with other trust domains and another clock.
    pub async fn restart_with(
        self,
        trust: Vec<(TrustDomain, String)>,
        clock: Clock,
    ) -> Result<Self, BrokerOpenError> {
        let Self {
            env,
            broker,
            manual_clock,
            dir,
            signing_pkcs8,
            _temp,
            ..
        } = self;
        gone(broker).await;
        let broker = start(
            settings(),
            &env,
            trust,
            &dir,
            &clock,
            &signing_pkcs8,
            FaultInjection::default(),
        )
        .await?;
        Ok(Self {
            env,
            broker,
            manual_clock,
            clock,
            dir,
            signing_pkcs8,
            _temp,
        })
    }

    /// Opens a copy of the directory with its WAL cut to `wal_len` bytes: what a crash may leave.
    pub async fn crash(self, wal_len: u64, faults: FaultInjection) -> Self {
        let Self {
            env,
            broker,
            manual_clock,
            clock,
            dir,
            signing_pkcs8,
            _temp,
        } = self;
        let copy = dir.with_file_name(format!(
            "crash-{}",
            START.since(clock.now()).unsigned_abs() ^ rand_u64()
        ));
        std::fs::create_dir_all(&copy).expect("dir");
        std::fs::copy(dir.join("journal.db"), copy.join("journal.db")).expect("copy");
        let wal = std::fs::read(dir.join("journal.db-wal")).expect("wal");
        let keep = usize::try_from(wal_len).expect("small").min(wal.len());
        std::fs::write(copy.join("journal.db-wal"), &wal[..keep]).expect("wal");
        drop(broker);
        let broker = open(&env, &copy, &clock, &signing_pkcs8, faults)
            .await
            .expect("restarts after a crash");
        Self {
            env,
            broker,
            manual_clock,
            clock,
            dir: copy,
            signing_pkcs8,
            _temp,
        }
    }

    pub fn wal_len(&self) -> u64 {
        std::fs::metadata(self.dir.join("journal.db-wal")).map_or(0, |m| m.len())
    }
}

/// Drops a broker, and waits until nothing in this process holds it: what it began may still be ending.
async fn gone(broker: Arc<Broker>) {
    let left = Arc::downgrade(&broker);
    drop(broker);
    for _ in 0..12_000 {
        if left.strong_count() == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("something keeps the broker alive");
}

pub async fn open(
    env: &TestEnvironment,
    dir: &Path,
    clock: &Clock,
    key: &[u8],
    faults: FaultInjection,
) -> Result<Arc<Broker>, BrokerOpenError> {
    open_as(settings(), env, dir, clock, key, faults).await
}

pub async fn open_as(
    settings: BrokerSettings,
    env: &TestEnvironment,
    dir: &Path,
    clock: &Clock,
    key: &[u8],
    faults: FaultInjection,
) -> Result<Arc<Broker>, BrokerOpenError> {
    let trust = vec![(
        TrustDomain::parse(DOMAIN).expect("domain"),
        env.trust_bundle(),
    )];
    start(settings, env, trust, dir, clock, key, faults).await
}

pub async fn start(
    settings: BrokerSettings,
    env: &TestEnvironment,
    trust: Vec<(TrustDomain, String)>,
    dir: &Path,
    clock: &Clock,
    key: &[u8],
    faults: FaultInjection,
) -> Result<Arc<Broker>, BrokerOpenError> {
    let mut tries = 0;
    loop {
        let options = BrokerOptions {
            settings: settings.clone(),
            data_dir: dir.to_owned(),
            key: SigningKey::from_pkcs8(key).expect("key"),
            trust: trust.clone(),
            seed: Some(BundleFiles::new(env.policy.clone()).expect("files")),
            clock: clock.clone(),
            faults: faults.clone(),
        };
        match Broker::open(options).await {
            // The previous broker's writer may still hold the lock.
            Err(BrokerOpenError::Open(dipylon::journal::OpenError::Locked(_))) if tries < 200 => {
                tries += 1;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            other => return other,
        }
    }
}
