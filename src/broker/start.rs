//! Opening the broker: replays the journal, records new trust bundles and keys, and seeds the policy.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use ring::rand::{SecureRandom as _, SystemRandom};

use super::approval::notifier::Notifier;
use super::auth::replay_cache::ReplayCache;
use super::auth::session::SessionStore;
use super::order_queue::OrderQueue;
use super::query::receipt::RECEIPTS_AT_ONCE_MAX;
use super::token::verified_cache::VerifiedTokenCache;
use super::transaction::Tried;
use super::{Broker, BrokerSettings};
use crate::approve::DecisionLimits;
use crate::clock::Clock;
use crate::jose::{KeySet, KeySetError, Nonces, SigningKey, Usage};
use crate::journal::{
    AppendError, Blob, FaultInjection, Journal, JournalOptions, OpenError, StopMark,
};
use crate::mint::TokenIssuer;
use crate::model::*;
use crate::policy::{BundleError, BundleFiles, PolicyBundle};
use crate::rate_limit::{KeyedRateLimiter, LogThrottle};
use crate::state::{ArcMap, Draft, Read, State, StateFold};
use crate::telemetry::Metrics;

/// Inputs for opening a broker.
pub struct BrokerOptions {
    /// The configuration.
    pub settings: BrokerSettings,
    /// Directory of the journal.
    pub data_dir: PathBuf,
    /// The token-signing key.
    pub key: SigningKey,
    /// Trust domains and their SPIFFE trust bundles, as configured.
    pub trust: Vec<(TrustDomain, String)>,
    /// The policy bundle that seeds an empty journal.
    pub seed: Option<BundleFiles>,
    /// The time.
    pub clock: Clock,
    /// Faults of the journal, for tests.
    pub faults: FaultInjection,
}

/// Why a broker could not open.
#[derive(Debug, thiserror::Error)]
pub enum BrokerOpenError {
    /// The journal does not open.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// This version cannot use an entry.
    #[error("the journal has an entry this version cannot use: {0}")]
    Unusable(String),
    /// The system returned no random bytes.
    #[error("the system returned no random bytes")]
    Random,
    /// The signing key cannot be used.
    #[error("signing key: {0}")]
    Key(#[from] KeySetError),
    /// A configured trust bundle cannot be read.
    #[error("trust bundle of {domain}: {source}")]
    Trust {
        /// The domain.
        domain: TrustDomain,
        /// The cause.
        source: KeySetError,
    },
    /// The policy bundle for an empty journal cannot be loaded.
    #[error("policy bundle:\n{0}")]
    Policy(#[from] BundleError),
    /// A key changed under its `kid`: evidence verified by the old key could not be distinguished from the new key's.
    #[error(
        "trust bundle of {domain}: the key {kid} changed; publish the new key under a new `kid`"
    )]
    KeyChanged {
        /// The domain.
        domain: TrustDomain,
        /// Its `kid`.
        kid: String,
    },
    /// The policy bundle lists no operator.
    #[error("policy bundle: {0}")]
    Ungovernable(&'static str),
    /// The time of the last stop could not be removed: heartbeats that this broker reports missed could be revived later.
    #[error(
        "the file `served-until` cannot be removed from the data directory; check its disk and permissions: {0}"
    )]
    StopMark(std::io::Error),
    /// A first entry could not be appended.
    #[error("journal: {0}")]
    Append(#[from] AppendError),
}

impl Broker {
    /// Opens and replays the journal, records changes of the configuration, and ends the tasks and tokens it no longer
    /// allows.
    pub async fn open(options: BrokerOptions) -> Result<Arc<Self>, BrokerOpenError> {
        let random = SystemRandom::new();
        let mut boot_key = [0; 32];
        random
            .fill(&mut boot_key)
            .map_err(|_| BrokerOpenError::Random)?;
        let state = Arc::new(State::default());
        let latest_seen = Arc::new(AtomicI64::new(0));
        let notifier = Arc::new(Notifier::default());
        let fold = {
            let (latest_seen, notifier) = (latest_seen.clone(), notifier.clone());
            let shown = Arc::clone(&state);
            StateFold::new(
                Arc::clone(&state),
                move |committed: &crate::journal::Committed| {
                    let entry = committed.entry();
                    latest_seen.fetch_max(entry.at.millis(), Ordering::SeqCst);
                    notifier.notify(shown.show(), entry);
                },
            )
        };
        let metrics = Arc::new(Metrics::default());
        let observed = metrics.clone();
        let rates = options.settings.rate_limits;
        let before_append = options.faults.before_append.clone();
        let journal_options = JournalOptions {
            realm: options.settings.realm.clone(),
            clock: options.clock.clone(),
            latest_seen: latest_seen.clone(),
            faults: options.faults,
            observe: Some(Arc::new(move |took| observed.journal_appended(took))),
        };
        let journal = Journal::open(&options.data_dir, journal_options, Box::new(fold));
        // First: what an entry after it names as its own fault follows from it.
        if let Some(why) = state.failure() {
            return Err(BrokerOpenError::Unusable(why));
        }
        let journal = journal?;
        let last_entry_before_start = Timestamp::from_millis(latest_seen.load(Ordering::SeqCst));
        let started_at = options.clock.now();
        let broker = Arc::new(Self {
            limits: DecisionLimits {
                realm: options.settings.realm.clone(),
                party: options.settings.relying_party(),
                ttl_cap: options.settings.ttl_cap,
            },
            token_issuer: Arc::new(TokenIssuer::new(
                options.key,
                options.settings.issuer.clone(),
            )?),
            settings: options.settings,
            clock: options.clock,
            clock_watch: Mutex::default(),
            latest_seen,
            journal,
            stop_mark: StopMark::new(&options.data_dir),
            receipt_slots: Arc::new(tokio::sync::Semaphore::new(RECEIPTS_AT_ONCE_MAX)),
            last_entry_before_start,
            state,
            nonces: Nonces::new(&boot_key),
            page_tokens: super::PageTokens::new(&boot_key),
            sessions: SessionStore::new(&boot_key),
            card_views: Mutex::default(),
            random,
            replay_cache: ReplayCache::default(),
            open_task_replay_cache: ReplayCache::default(),
            attestations: ArcMap::default(),
            attached: Mutex::default(),
            last_denials: ArcMap::default(),
            refusal_counts: Mutex::default(),
            statements: Mutex::default(),
            reassessed: Mutex::default(),
            heard: Mutex::new(super::silence::HeardTime::start(started_at)),
            pending_heartbeats: Mutex::default(),
            pending_revocations: super::PendingRevocations::default(),
            order_queue: OrderQueue::default(),
            before_append,
            policy_lock: tokio::sync::Mutex::default(),
            plans: Mutex::default(),
            bootstrap_code: super::governance::bootstrap::BootstrapCode::default(),
            enforced: Mutex::default(),
            verified_tokens: VerifiedTokenCache::default(),
            started_at,
            recent_refusals: super::RecentRefusals::default(),
            refusal_tally: Mutex::default(),
            refusal_log_throttle: LogThrottle::default(),
            last_probe_ms: AtomicU64::new(0),
            stopping: tokio::sync::watch::Sender::new(false),
            metrics,
            caller_rates: KeyedRateLimiter::new(
                rates.caller_per_second,
                rates.caller_reserved_per_second,
            ),
            rate_limit_log_throttle: LogThrottle::default(),
            notifier,
            inbox_budgets: Mutex::default(),
            vote_proofs: crate::approve::vote_proof::VoteProofCache::default(),
            turns: super::keyed_mutex::KeyedMutex::default(),
            wait_permits: tokio::sync::Semaphore::new(super::WAITING_CALLS_MAX),
        });
        let configured: BTreeSet<TrustDomain> = options
            .trust
            .iter()
            .map(|(domain, _)| domain.clone())
            .collect();
        for (domain, bundle) in options.trust {
            broker.record_trust(domain, bundle).await?;
        }
        for domain in broker.show().trust_domains() {
            // A domain that is no longer configured keeps its name and loses its keys.
            if !configured.contains(&domain) {
                broker.record_trust(domain, NO_KEYS.to_owned()).await?;
            }
        }
        broker.publish_key().await?;
        if let Some(files) = options.seed.filter(|_| broker.show().rules().is_none()) {
            let bundle = PolicyBundle::load_checked(&files)?;
            bundle
                .check_has_operator()
                .map_err(BrokerOpenError::Ungovernable)?;
            broker.seed_bundle(bundle, &files).await?;
        }
        match broker.extend_leases_after_outage().await {
            Ok(()) => {}
            // It may become durable later, after this broker has said that a heartbeat was missed.
            Err(AppendError::OutcomeUnknown) => return Err(AppendError::OutcomeUnknown.into()),
            Err(error) => {
                tracing::warn!(%error, "missed heartbeats count: no task can get another one");
            }
        }
        // After it: a task that got another heartbeat may be one that the rules no longer allow.
        broker.revoke_disallowed().await?;
        match broker.restart_delays(broker.now()).await {
            Ok(()) => {}
            Err(AppendError::OutcomeUnknown) => return Err(AppendError::OutcomeUnknown.into()),
            // Nothing counts as having waited before its entry.
            Err(error) => {
                tracing::warn!(%error, "access requests with a delay wait until they can be put on record anew");
            }
        }
        broker.start_serving().map_err(BrokerOpenError::StopMark)?;
        broker.warn_about_operators();
        broker.learn_asking_agents();
        Ok(broker)
    }

    /// Finds out beside everything else which requests ask for which profile, where the bundle in force was not checked in this process.
    pub(super) fn learn_asking_agents(&self) {
        let rules = self.show().rules();
        let Some(rules) = rules.filter(|rules| rules.bundle.known_asking_agents().is_none()) else {
            return;
        };
        let thread = std::thread::Builder::new().name("policy".to_owned());
        let learning = thread.spawn(move || {
            let _lowered = rustix::process::setpriority_process(None, 15);
            let _known = rules.bundle.asking_agents();
        });
        if let Err(error) = learning {
            tracing::warn!(%error, "quorums that nobody can reach are not shown");
        }
    }

    /// Records a trust bundle that differs from the one in the journal before it is used.
    async fn record_trust(
        &self,
        domain: TrustDomain,
        bundle: String,
    ) -> Result<(), BrokerOpenError> {
        let keys = KeySet::parse(bundle.as_bytes(), Usage::JwtSvid);
        let keys = keys.map_err(|source| BrokerOpenError::Trust {
            domain: domain.clone(),
            source,
        })?;
        let blob = Blob::new(bundle);
        let known = self.show().trusted_keys(&domain);
        let before = known.and_then(|keys| keys.bundle);
        if let Some(before) = before.and_then(|hash| self.journal.blob(&hash).ok().flatten())
            && let Some(kid) = changed_kid(&before, blob.text())
        {
            return Err(BrokerOpenError::KeyChanged { domain, kid });
        }
        let kids: BTreeSet<KeyId> = keys.kids().cloned().collect();
        self.append_at_start(|read| {
            let known = read.trusted_keys(&domain);
            let known = known.as_ref();
            if known.is_some_and(|keys| keys.bundle == Some(blob.hash())) {
                return None;
            }
            let removed = known
                .map(|keys| keys.kids.difference(&kids).cloned().collect())
                .unwrap_or_default();
            let event = Event::TrustBundleChanged(TrustBundleChanged {
                domain: domain.clone(),
                bundle: blob.hash(),
                kids: kids.iter().cloned().collect(),
                removed,
            });
            Some(Draft::one(event).with_blobs([blob.clone()]))
        })
        .await?;
        Ok(())
    }

    /// One append before the broker serves: nothing else appends, so that nothing conflicts.
    pub(super) async fn append_at_start(
        &self,
        decide: impl FnOnce(&Read) -> Option<Draft>,
    ) -> Result<(), AppendError> {
        match self.try_append(decide).await? {
            Tried::Nothing | Tried::Appended => Ok(()),
            Tried::Conflict => Err(AppendError::Busy),
        }
    }

    /// Records the signing key before it signs. (The first key of a realm needs no time to spread.)
    async fn publish_key(&self) -> Result<(), BrokerOpenError> {
        let kid = self.token_issuer.kid().clone();
        let jwk = self
            .token_issuer
            .public()
            .to_jwk_named(&kid, Usage::Signature);
        self.append_at_start(|read| match read.signing_key(&kid) {
            Some(_) => None,
            None => Some(Draft::one(Event::KeyPublished(KeyPublished {
                kid: kid.clone(),
                jwk,
            }))),
        })
        .await?;
        Ok(())
    }
}

/// A trust bundle without keys.
const NO_KEYS: &str = "{\"keys\":[]}";

/// The `kid` of a key that is in both trust bundles with different material: the broker does not start with the second.
pub(crate) fn changed_kid(before: &str, after: &str) -> Option<String> {
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
