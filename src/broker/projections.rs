//! Projections of the journal: the policy bundle in force, trust keys and own keys, parsed for the gates.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwap, ArcSwapOption};

use crate::broker::{Broker, CallContext, Refusal};
use crate::card::RuleSummary;
use crate::jose::{KeySet, PublicKey, Usage};
use crate::journal::Committed;
use crate::model::{AgentId, Digest, Event, KeyId, Reason, RuleRef, Timestamp};
use crate::policy::{ActivePolicy, BundleFiles, PolicyBundle, Remedy, RuleEffect, RuleInfo};
use crate::state::State;
use crate::state::anomaly::AgentRegistrationChange;
use crate::verify::{Trust, TrustedDomain};

/// Parsed values of the journal's entries, kept for every call.
#[derive(Default)]
pub(super) struct Projections {
    rules: ArcSwapOption<ActivePolicy>,
    trust: ArcSwap<Trust>,
    own_keys: ArcSwap<Vec<(KeyId, PublicKey)>>,
    own_set: ArcSwapOption<KeySet>,
    /// Bundles parsed before their entry is committed, so that none is parsed twice.
    staged: Mutex<HashMap<Digest, PolicyBundle>>,
    failure: Mutex<Option<String>>,
    /// When a bundle after the first last registered or changed an agent.
    registrations: Mutex<HashMap<AgentId, AgentRegistrationChange>>,
}

impl Projections {
    /// Applies a committed entry: state first, then the projections.
    pub(super) fn apply(&self, state: &State, committed: &Committed) {
        state.apply(committed);
        match &committed.entry().event {
            Event::PolicyApplied(f) => {
                let staged = self
                    .staged
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .remove(&f.version);
                let loaded = staged.ok_or("not loaded yet".to_owned()).or_else(|_| {
                    let text = committed.blob(&f.version).ok_or("its content is missing")?;
                    let files = BundleFiles::parse(text).map_err(|e| e.to_string())?;
                    PolicyBundle::load(&files).map_err(|e| e.to_string())
                });
                match loaded {
                    Ok(bundle) => {
                        self.compare_agents(&bundle, committed.entry().at);
                        let version = committed.entry().index + 1;
                        self.rules
                            .store(Some(Arc::new(ActivePolicy::new(bundle, version))));
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
            | Event::TaskOpened(_)
            | Event::LeasesExtended(_)
            | Event::TaskEnded(_)
            | Event::RequestDenied(_)
            | Event::AccessRequestOpened(_)
            | Event::VoteCast(_)
            | Event::VoteRefused(_)
            | Event::AccessRequestClosed(_)
            | Event::ApproverInvited(_)
            | Event::ApproverEnrolled(_)
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
    pub(super) fn stage(&self, bundle: PolicyBundle) {
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

impl Broker {
    /// The policy bundle in force; refuses the call when there is none.
    pub(in crate::broker) fn rules(
        &self,
        call: &CallContext,
    ) -> Result<Arc<ActivePolicy>, Refusal> {
        self.projections.rules().ok_or_else(|| {
            self.refuse(
                call.method,
                Reason::DecisionUnavailable,
                "no policy bundle is in force",
            )
        })
    }

    /// The first rules of a decision with their `@why` in the bundle in force: as many as leave room for the rest of a reply.
    /// `Explain` names the others.
    pub(in crate::broker) fn rules_shown(&self, rules: &[RuleRef]) -> Vec<RuleSummary> {
        let in_force = self.projections.rules();
        let known = |id: &str| in_force.as_ref().and_then(|r| r.bundle.rule(id));
        let mut left = RULES_SHOWN_BYTES_MAX;
        let fits = |rule: &RuleSummary| {
            let bytes = rule.id.len() + rule.file.len() + rule.why.len();
            let rest = left.checked_sub(bytes);
            left = rest.unwrap_or(0);
            rest.is_some()
        };
        rules
            .iter()
            .take(RULES_SHOWN_MAX)
            .map(|r| RuleSummary {
                id: r.id.to_string(),
                file: r.file.to_string(),
                why: known(&r.id).and_then(|r| r.why.clone()).unwrap_or_default(),
                effect: known(&r.id).map(rule_effect).unwrap_or_default().to_owned(),
            })
            .take_while(fits)
            .collect()
    }
}

/// Most rules of a decision in a reply or on a card.
const RULES_SHOWN_MAX: usize = 16;
/// Most bytes of their texts.
const RULES_SHOWN_BYTES_MAX: usize = 8 * 1024;

/// What a rule does to a decision that it determines.
pub(in crate::broker) const fn rule_effect(rule: &RuleInfo) -> &'static str {
    match (rule.effect, &rule.remedy) {
        (RuleEffect::Permit, _) => "permit",
        (RuleEffect::Forbid, Some(Remedy::StepUp(_))) => "step_up",
        (RuleEffect::Forbid, Some(Remedy::MaxTtl(_))) => "max_ttl",
        (RuleEffect::Forbid, None) => "forbid",
    }
}
