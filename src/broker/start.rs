use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use ring::rand::{SecureRandom as _, SystemRandom};

use super::approval::notifier::Notifier;
use super::auth::replay_cache::Once;
use super::auth::session::SessionStore;
use super::projections::Views;
use super::token::verified_cache::Readings;
use super::{Broker, Settings};
use crate::approve::DecisionLimits;
use crate::clock::Clock;
use crate::jose::{KeySet, KeySetError, Nonces, SigningKey, Usage};
use crate::journal::{Append, AppendError, Blob, Faults, Journal, OpenError, Options};
use crate::mint::TokenIssuer;
use crate::model::*;
use crate::policy::{BundleError, BundleFiles, PolicyBundle};
use crate::rate_limit::{Limits, Seldom};
use crate::state::{State, Table};
use crate::telemetry::Metrics;

/// Everything a broker starts from.
pub struct Start {
    /// What it is configured to be.
    pub settings: Settings,
    /// Where the journal lies.
    pub data_dir: PathBuf,
    /// The token-signing key.
    pub key: SigningKey,
    /// Trust domains and their SPIFFE trust bundles, as configured.
    pub trust: Vec<(TrustDomain, String)>,
    /// The policy bundle that seeds an empty journal.
    pub seed: Option<BundleFiles>,
    /// The time.
    pub clock: Clock,
    /// How the journal may fail in a test.
    pub faults: Faults,
}

/// Why a broker does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The journal does not open.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// An entry cannot be used by this version.
    #[error("the journal holds what this version cannot use: {0}")]
    Unusable(String),
    /// The system gives no random bytes.
    #[error("the system gives no random bytes")]
    Random,
    /// The signing key.
    #[error("signing key: {0}")]
    Key(#[from] KeySetError),
    /// A configured trust bundle.
    #[error("trust bundle of {domain}: {source}")]
    Trust {
        /// The domain.
        domain: TrustDomain,
        /// Why.
        source: KeySetError,
    },
    /// The policy bundle that should seed the journal.
    #[error("policy bundle:\n{0}")]
    Policy(#[from] BundleError),
    /// Another key under a known name: what rests on the old one could not be told from what rests on the new.
    #[error(
        "trust bundle of {domain}: the key {kid} is another one than before; publish it under a new kid"
    )]
    KeyChanged {
        /// The domain.
        domain: TrustDomain,
        /// The key's name.
        kid: String,
    },
    /// Nobody could govern with that bundle.
    #[error("policy bundle: {0}")]
    Ungovernable(&'static str),
    /// A first entry could not be written.
    #[error("journal: {0}")]
    Append(#[from] AppendError),
}

impl Broker {
    /// Opens the journal, replays it, enters what is new in the configuration, and sweeps what that no longer allows.
    pub async fn start(start: Start) -> Result<Arc<Self>, StartError> {
        let random = SystemRandom::new();
        let mut boot_key = [0; 32];
        random.fill(&mut boot_key).map_err(|_| StartError::Random)?;
        let state = Arc::new(State::default());
        let views = Arc::new(Views::default());
        let high_water = Arc::new(AtomicI64::new(0));
        let notifier = Arc::new(Notifier::default());
        let apply = {
            let (state, views, high_water) = (state.clone(), views.clone(), high_water.clone());
            let notifier = notifier.clone();
            Box::new(move |committed: &crate::journal::Committed| {
                high_water.fetch_max(committed.entry().at.millis(), Ordering::SeqCst);
                views.apply(&state, committed);
                notifier.notify(&state, committed.entry().index);
            })
        };
        let metrics = Arc::new(Metrics::default());
        let observed = metrics.clone();
        let rates = start.settings.rates;
        let options = Options {
            realm: start.settings.realm.clone(),
            clock: start.clock.clone(),
            faults: start.faults,
            observe: Some(Arc::new(move |took| observed.appended(took))),
        };
        let journal = Journal::open(&start.data_dir, options, apply)?;
        if let Some(why) = views.broken() {
            return Err(StartError::Unusable(why));
        }
        let broker = Arc::new(Self {
            limits: DecisionLimits {
                realm: start.settings.realm.clone(),
                party: start.settings.relying_party(),
                ttl_cap: start.settings.ttl_cap,
            },
            token_issuer: TokenIssuer::new(start.key, start.settings.issuer.clone())?,
            settings: start.settings,
            clock: start.clock,
            clock_watch: Mutex::default(),
            high_water,
            journal,
            state,
            views,
            nonces: Nonces::new(&boot_key),
            sessions: SessionStore::new(&boot_key),
            card_views: Mutex::default(),
            random,
            once: Once::default(),
            openings: Once::default(),
            seen: Table::default(),
            joined: Mutex::default(),
            denials: Table::default(),
            refusals: Mutex::default(),
            statements: Mutex::default(),
            leases: Mutex::default(),
            pending_revocations: Mutex::default(),
            policy_lock: tokio::sync::Mutex::default(),
            bootstrap_code: super::auth::bootstrap::BootstrapCode::default(),
            enforced_policy_version: AtomicU64::new(0),
            readings: Readings::default(),
            log: Mutex::default(),
            uncounted: Mutex::default(),
            stopping: tokio::sync::watch::Sender::new(false),
            metrics,
            callers: Limits::new(rates.caller_per_second, rates.caller_reserved_per_second),
            rate_told: Seldom::default(),
            notifier,
            ask_budgets: Mutex::default(),
            vote_proofs: crate::approve::vote_proof::VoteProofCache::default(),
            waits: tokio::sync::Semaphore::new(super::WAITS_MAX),
        });
        let configured: BTreeSet<TrustDomain> = start
            .trust
            .iter()
            .map(|(domain, _)| domain.clone())
            .collect();
        for (domain, bundle) in start.trust {
            broker.enter_trust(domain, bundle).await?;
        }
        for domain in broker.state.trust_domains() {
            // A domain that is no longer configured is trusted no longer: it keeps its name and loses its keys.
            if !configured.contains(&domain) {
                broker.enter_trust(domain, NO_KEYS.to_owned()).await?;
            }
        }
        broker.publish_key().await?;
        if let Some(files) = start.seed.filter(|_| broker.views.rules().is_none()) {
            let bundle = PolicyBundle::load(&files)?;
            bundle.governable().map_err(StartError::Ungovernable)?;
            broker.record_bundle(bundle, &files, 0, None).await?;
        }
        broker.revoke_disallowed().await?;
        Ok(broker)
    }

    /// A trust bundle that differs from the one in the journal is entered before it is used.
    async fn enter_trust(&self, domain: TrustDomain, bundle: String) -> Result<(), StartError> {
        let keys = KeySet::parse(bundle.as_bytes(), Usage::JwtSvid);
        let keys = keys.map_err(|source| StartError::Trust {
            domain: domain.clone(),
            source,
        })?;
        let blob = Blob::new(bundle);
        let known = self.state.trusted(&domain);
        if known
            .as_ref()
            .is_some_and(|k| k.value.bundle == Some(blob.hash()))
        {
            return Ok(());
        }
        if let Some(before) = known
            .as_ref()
            .and_then(|k| k.value.bundle)
            .and_then(|hash| self.journal.blob(&hash).ok().flatten())
            && let Some(kid) = changed_under_its_name(&before, blob.text())
        {
            return Err(StartError::KeyChanged { domain, kid });
        }
        let kids: BTreeSet<KeyId> = keys.kids().cloned().collect();
        let removed = known
            .as_ref()
            .map(|k| k.value.kids.difference(&kids).cloned().collect())
            .unwrap_or_default();
        let version = known.map_or(0, |k| k.version);
        let fact = Event::TrustBundleChanged(TrustBundleChanged {
            domain: domain.clone(),
            bundle: blob.hash(),
            kids: kids.into_iter().collect(),
            removed,
        });
        self.journal
            .append(Append {
                blobs: vec![blob],
                ..Append::one(fact, vec![(Stream::Trust(domain), version)])
            })
            .await?;
        Ok(())
    }

    /// The signing key is in the journal before it signs. (The first key of a realm needs no time to spread.)
    async fn publish_key(&self) -> Result<(), StartError> {
        let kid = self.token_issuer.kid().clone();
        if self.state.key(&kid).is_some() {
            return Ok(());
        }
        let jwk = self
            .token_issuer
            .public()
            .to_jwk_named(&kid, Usage::Signature);
        let fact = Event::KeyPublished(KeyPublished {
            kid: kid.clone(),
            jwk,
        });
        self.journal
            .append(Append::one(fact, vec![(Stream::Key(kid), 0)]))
            .await?;
        Ok(())
    }
}

/// A trust bundle that trusts nobody.
const NO_KEYS: &str = "{\"keys\":[]}";

/// The name of a key that stands in both trust bundles with different material.
fn changed_under_its_name(before: &str, after: &str) -> Option<String> {
    let keys = |text: &str| {
        let set = crate::model::json::parse(text.as_bytes()).ok();
        set.and_then(|set| set.get("keys").and_then(|keys| keys.as_array().cloned()))
            .unwrap_or_default()
    };
    let material = |key: &serde_json::Value| {
        ["kty", "crv", "x", "y", "n", "e"].map(|member| key.get(member).cloned())
    };
    let after = keys(after);
    keys(before).iter().find_map(|old| {
        let kid = old.get("kid")?;
        let new = after.iter().find(|key| key.get("kid") == Some(kid))?;
        (material(old) != material(new)).then(|| kid.as_str().unwrap_or_default().to_owned())
    })
}
