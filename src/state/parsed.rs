//! Parsed content of entries: the policy bundle in force, trusted keys and own keys.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwap, ArcSwapOption};

use super::anomaly::AgentRegistrationChange;
use super::{Trust, TrustedDomain};
use crate::jose::{KeySet, PublicKey, Usage};
use crate::journal::Committed;
use crate::model::{AgentId, Digest, Event, KeyId, Timestamp};
use crate::policy::{ActivePolicy, BundleFiles, PolicyBundle};

/// Parsed values of the journal's entries, kept for every call.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    rules: ArcSwapOption<ActivePolicy>,
    trust: ArcSwap<Trust>,
    own_keys: ArcSwap<Vec<(KeyId, PublicKey)>>,
    own_set: ArcSwapOption<KeySet>,
    /// Bundles parsed before their entry is committed, so that none is parsed twice.
    staged: Mutex<HashMap<Digest, Arc<PolicyBundle>>>,
    bundles: Arc<BundleCache>,
    failure: Mutex<Option<String>>,
    /// When a bundle after the first last registered or changed an agent.
    registrations: Mutex<HashMap<AgentId, AgentRegistrationChange>>,
}

/// The bundles parsed last, by content: a rollback and a second replay parse nothing. It saves work alone, because parsing is a
/// function of the content.
#[derive(Debug, Default)]
pub struct BundleCache(Mutex<VecDeque<Arc<PolicyBundle>>>);

/// Most bundles kept.
const BUNDLES_KEPT_MAX: usize = 8;

impl BundleCache {
    fn get(&self, version: &Digest) -> Option<Arc<PolicyBundle>> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut kept = kept.iter();
        kept.find(|bundle| bundle.version() == *version).cloned()
    }

    fn keep(&self, bundle: &Arc<PolicyBundle>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.iter().all(|known| known.version() != bundle.version()) {
            kept.push_back(Arc::clone(bundle));
            if kept.len() > BUNDLES_KEPT_MAX {
                kept.pop_front();
            }
        }
    }
}

impl Parsed {
    pub(super) fn with_bundles(bundles: Arc<BundleCache>) -> Self {
        Self {
            bundles,
            ..Self::default()
        }
    }

    /// Parses what a committed entry puts in force.
    pub(super) fn apply(&self, committed: &Committed) {
        match &committed.entry().event {
            Event::PolicyApplied(f) => {
                let staged = self
                    .staged
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .remove(&f.version);
                let known = staged.or_else(|| self.bundles.get(&f.version));
                let loaded = match known {
                    Some(bundle) => Ok(bundle),
                    None => committed
                        .blob(&f.version)
                        .ok_or_else(|| "its content is missing".to_owned())
                        .and_then(|text| BundleFiles::parse(text).map_err(|e| e.to_string()))
                        .and_then(|files| PolicyBundle::load(&files).map_err(|e| e.to_string()))
                        .map(Arc::new),
                };
                match loaded {
                    Ok(bundle) => {
                        self.bundles.keep(&bundle);
                        self.compare_agents(&bundle, committed.entry().at);
                        self.rules.store(Some(Arc::new(ActivePolicy::new(bundle))));
                    }
                    Err(why) => {
                        // INVARIANT (no rules, no mint): a bundle that does not load leaves none in force.
                        self.rules.store(None);
                        self.fail(format!("policy bundle {}: {why}", f.version));
                    }
                }
            }
            Event::TrustBundleChanged(f) => {
                let keys = committed
                    .blob(&f.bundle)
                    .ok_or("its content is missing".to_owned())
                    .and_then(|text| {
                        KeySet::parse(text.as_bytes(), Usage::JwtSvid).map_err(|e| e.to_string())
                    });
                match keys {
                    Ok(jwt_svid) => {
                        let next = self
                            .trust
                            .load()
                            .with(f.domain.clone(), TrustedDomain { jwt_svid });
                        self.trust.store(Arc::new(next));
                    }
                    Err(why) => self.fail(format!("trust bundle of {}: {why}", f.domain)),
                }
            }
            Event::KeyPublished(f) => match PublicKey::from_jwk(&f.jwk) {
                Ok(key) => {
                    let mut keys = (**self.own_keys.load()).clone();
                    keys.push((f.kid.clone(), key));
                    match KeySet::from_keys(keys.iter().map(|(kid, key)| (kid.clone(), key))) {
                        Ok(set) => self.own_set.store(Some(Arc::new(set))),
                        Err(why) => self.fail(format!("key {}: {why}", f.kid)),
                    }
                    self.own_keys.store(Arc::new(keys));
                }
                Err(why) => self.fail(format!("key {}: {why}", f.kid)),
            },
            Event::EpochStarted(_)
            | Event::AgentSuspended(_)
            | Event::AgentResumed(_)
            | Event::Frozen(_)
            | Event::Unfrozen(_)
            | Event::FactSet(_)
            | Event::TaskOpened(_)
            | Event::LeasesExtended(_)
            | Event::TaskEnded(_)
            | Event::RequestDenied(_)
            | Event::AccessRequestOpened(_)
            | Event::AccessRequestReassessed(_)
            | Event::VoteCast(_)
            | Event::VoteRefused(_)
            | Event::AccessRequestClosed(_)
            | Event::ApproverInvited(_)
            | Event::ApproverEnrolled(_)
            | Event::PasskeyConfirmed(_)
            | Event::ApproverKeysRevoked(_)
            | Event::TokenIssued(_)
            | Event::TokenReissued(_)
            | Event::TokenConsumed(_)
            | Event::GrantsEnded(_)
            | Event::RefusalsCounted(_) => {}
        }
    }

    /// Notes which agents the bundle registers or changes; the first bundle changes none.
    fn compare_agents(&self, next: &PolicyBundle, at: Timestamp) {
        let Some(before) = self.rules.load_full() else {
            return;
        };
        let mut registrations = self
            .registrations
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        registrations.retain(|id, _| next.agent(id).is_some());
        for agent in next.agents() {
            let known = before.bundle.agent(&agent.id);
            if known.as_ref() != Some(agent) {
                let new = known.is_none();
                registrations.insert(agent.id.clone(), AgentRegistrationChange { at, new });
            }
        }
    }

    /// When a policy bundle last registered or changed an agent; `None` for agents unchanged since the first bundle.
    pub(super) fn registration(&self, agent: &AgentId) -> Option<AgentRegistrationChange> {
        self.registrations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(agent)
            .copied()
    }

    /// Keeps a parsed bundle for the entry that will put it in force.
    pub(super) fn stage(&self, bundle: Arc<PolicyBundle>) {
        self.staged
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(bundle.version(), bundle);
    }

    /// Drops a parsed bundle whose entry was not appended.
    pub(super) fn unstage(&self, version: &Digest) {
        self.staged
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(version);
    }

    /// The policy bundle in force, with its version, in one piece.
    pub(super) fn rules(&self) -> Option<Arc<ActivePolicy>> {
        self.rules.load_full()
    }

    pub(super) fn trust(&self) -> Arc<Trust> {
        self.trust.load_full()
    }

    /// The keys that tokens issued here verify under.
    pub(super) fn own_keys(&self) -> Option<Arc<KeySet>> {
        self.own_set.load_full()
    }

    /// The first entry that could not be applied; the broker does not open with one.
    pub(super) fn failure(&self) -> Option<String> {
        self.failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn fail(&self, why: String) {
        tracing::error!(why, "journal entry cannot be applied");
        self.failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(why);
    }
}
