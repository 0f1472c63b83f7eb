//! Gate 1, authentication: whether this workload may operate as this agent now.
//!
//! In: evidence, a proof of possession, the trust snapshot, the journal's records of the agent, the rules in force, `now`.
//! Out: [`Attested`] (the evidence is valid), [`Possession`] (the key is held), [`Authenticated`] (both, for this call), and
//! [`Verified`] (the agent may operate). Each can be made only here, by the check it is named for.
//! Trusts: configured trust domains. Refuses: everything else; the caller learns only that gate 1 did not open.
//! Never: performs I/O or reads a clock.

mod jwt_svid;
mod possession;

use std::sync::Arc;

use crate::model::*;
use crate::policy::{ActivePolicy, OperateDecision};
use crate::state::{KeyRefusal, Read, Recorded, TaskRecord, Trust};

pub use possession::{DpopInput, Possession};

/// Why gate 1 did not open. For the operator and the log, never for the caller.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The evidence is not a token of its kind.
    #[error("evidence: {0}")]
    Evidence(#[from] crate::jose::JoseError),
    /// A claim of the evidence is missing or wrong.
    #[error("evidence claim: {0}")]
    Claim(#[from] crate::jose::ClaimError),
    /// The evidence names no workload in SPIFFE's grammar.
    #[error("evidence subject: {0}")]
    Subject(ParseError),
    /// The trust domain is not configured.
    #[error("trust domain {0} is not trusted here")]
    UntrustedDomain(TrustDomain),
    /// The evidence is for another audience.
    #[error("the evidence is for another audience")]
    WrongAudience,
    /// The evidence has expired.
    #[error("the evidence expired at {0}")]
    Expired(Timestamp),
    /// The evidence is not valid yet, or is valid for too long.
    #[error("the evidence is not valid yet, or is valid for too long")]
    InvalidDates,
    /// The call has no proof of possession.
    #[error("no proof of possession")]
    MissingProof,
    /// The proof is not valid.
    #[error("{0}")]
    Proof(#[from] crate::jose::dpop::ProofError),
    /// The proof's nonce is missing, old, or of another boot. Decided after its signature.
    #[error("the proof's nonce is missing, old, or of another boot")]
    InvalidNonce,
    /// The proof was used before.
    #[error("the proof was used before")]
    Replayed,
    /// One key has more unexpired proofs than any honest client needs.
    #[error("too many proofs by one key")]
    TooManyProofs,
    /// One of our claims in the proof is missing, is not expected in this call, or is of something else.
    #[error("proof: claim {claim}: {problem}")]
    ProofClaim {
        /// The claim.
        claim: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The call carries a second credential: two could be read as two callers.
    #[error("expected one credential in a call, got two")]
    SecondCredential,
    /// The key is not the task's, or there is no such task.
    #[error("the key is not the task's")]
    TaskKeyMismatch,
    /// The evidence names another workload than the one that opened the task.
    #[error("the evidence names {shown}, the task belongs to {opened}")]
    WorkloadMismatch {
        /// The workload the evidence names.
        shown: SpiffeId,
        /// The workload that opened the task.
        opened: SpiffeId,
    },
    /// The evidence has expired, or was verified too long ago. Decided after possession.
    #[error("the evidence has expired, or was verified too long ago")]
    Stale,
    /// The rules refuse the evidence for its age alone. Decided after possession.
    #[error("the rules refuse evidence of this age: {}, {} s since it was verified{}", since_issue(*issued_at, *ages), ages.verified_ms.div_euclid(1000), listed(rules))]
    TooOldForRules {
        /// When it was issued, where it says so.
        issued_at: Option<Timestamp>,
        /// The ages of the evidence.
        ages: EvidenceAges,
        /// The rules that deny it; empty when no rule allows it.
        rules: Vec<RuleRef>,
    },
    /// No policy bundle is in force.
    #[error("no policy bundle is in force")]
    NoRules,
    /// The key is on record and may not act.
    #[error("the key may not act: {0}")]
    KeyMayNotAct(KeyRefusal),
    /// No registered person or service has this key or identity.
    #[error("no registered person or service has this key or identity")]
    NotRegistered,
    /// The one-time code of the first operator is not valid.
    #[error("the one-time code is not valid: {0}")]
    OneTimeCode(&'static str),
    /// The cookie belongs to no active session.
    #[error("the session is not valid: {0}")]
    Session(&'static str),
    /// A passkey assertion is not valid.
    #[error("the passkey is not valid: {0}")]
    Passkey(String),
    /// Not exactly one registered agent matches.
    #[error("{0} registered agents match, not one")]
    AmbiguousAgent(usize),
    /// The task belongs to another registered agent than the evidence matches today.
    #[error("the task was opened as agent {0}, which the evidence no longer matches")]
    AgentMismatch(AgentId),
    /// An operator suspended the agent.
    #[error("agent {0} is suspended")]
    Suspended(AgentId),
    /// An operator froze everything, the agent, or its owner.
    #[error("{0} is frozen")]
    Frozen(FreezeScope),
    /// The agent's tasks are pinned to another key.
    #[error("agent {0} is pinned to another key")]
    PinnedKeyMismatch(AgentId),
    /// The key is or was a person's or a service's, or another agent's: it may hold no task.
    #[error("an agent uses a key of its own: {0}")]
    RegisteredKey(KeyRefusal),
    /// The key that verified the evidence is no longer trusted.
    #[error("the key that verified the evidence is no longer trusted")]
    UntrustedKey,
    /// The rules do not let the agent operate now.
    #[error("the rules do not let the agent operate: {why}{}", listed(rules))]
    MayNotOperate {
        /// The reason.
        why: DeniedReason,
        /// The rules that deny it.
        rules: Vec<RuleRef>,
    },
}

fn since_issue(issued_at: Option<Timestamp>, ages: EvidenceAges) -> String {
    match issued_at {
        Some(_) => format!("{} s since it was issued", ages.issued_ms.div_euclid(1000)),
        None => "it does not say when it was issued".to_owned(),
    }
}

fn listed(rules: &[RuleRef]) -> String {
    rules
        .iter()
        .map(|rule| format!(", {} ({})", rule.id, rule.file))
        .collect()
}

/// Evidence that was valid when it was checked. Made only by [`attest`].
#[derive(Debug)]
pub struct Attested {
    facts: EvidenceFacts,
}

impl Attested {
    /// The facts kept of the evidence.
    pub const fn facts(&self) -> &EvidenceFacts {
        &self.facts
    }
}

/// Checks evidence against the trust snapshot.
pub fn attest(
    evidence: &Evidence,
    trust: &Trust,
    audience: &str,
    now: Timestamp,
) -> Result<Attested, VerifyError> {
    match evidence {
        Evidence::JwtSvid(token) => {
            jwt_svid::check(token, trust, audience, now).map(|facts| Attested { facts })
        }
    }
}

/// The hash a proof carries for evidence in the same call (DPoP claim `evh`).
pub fn evidence_hash(evidence: &Evidence) -> Digest {
    match evidence {
        Evidence::JwtSvid(token) => Digest::sha256(token.expose_secret().as_bytes()),
    }
}

/// Valid evidence and a held key, together, for one call. It may be verified several times during the call, each time with
/// a new `now`: it is not yet permission for anything.
#[derive(Debug)]
pub struct Authenticated {
    attested: Arc<Attested>,
    possession: Possession,
}

impl Authenticated {
    /// Joins evidence and possession.
    pub const fn new(attested: Arc<Attested>, possession: Possession) -> Self {
        Self {
            attested,
            possession,
        }
    }

    /// The evidence, to be cached for later calls.
    pub const fn attested(&self) -> &Arc<Attested> {
        &self.attested
    }

    /// The facts of the evidence.
    pub fn facts(&self) -> &EvidenceFacts {
        &self.attested.facts
    }

    /// Thumbprint of the key that is held.
    pub const fn jkt(&self) -> Thumbprint {
        self.possession.jkt()
    }

    /// What the holder of that key can sign as.
    pub fn key_identity(&self) -> KeyIdentity {
        self.possession.key().identity()
    }

    /// Runs gate 1 in full, in one round: the evidence is fresh and its key still trusted, exactly one agent matches, the task is of
    /// this workload and key, the agent is neither suspended nor frozen, and the rules let it operate now. Whether the task runs is
    /// the caller's to say.
    pub fn verify<'r>(
        &self,
        read: &'r Read,
        task: Option<&TaskId>,
        max_evidence_age_ms: i64,
        now: Timestamp,
    ) -> Result<Verified<'r>, VerifyError> {
        let facts = &self.attested.facts;
        let ages = facts.ages(now);
        if now >= facts.expires_at || ages.verified_ms > max_evidence_age_ms {
            return Err(VerifyError::Stale);
        }
        let rules = read.rules().ok_or(VerifyError::NoRules)?;
        if !read.is_trusted(facts) {
            return Err(VerifyError::UntrustedKey);
        }
        let task = match task {
            None => None,
            Some(id) => Some(self.own_task(read, id)?),
        };
        let agent = match rules.bundle.agents_matching(&facts.subject).as_slice() {
            [one] => Arc::clone(one),
            others => return Err(VerifyError::AmbiguousAgent(others.len())),
        };
        if let Some(task) = &task
            && task.opened.agent != agent.id
        {
            return Err(VerifyError::AgentMismatch(task.opened.agent.clone()));
        }
        if read.is_suspended(&agent.id) {
            return Err(VerifyError::Suspended(agent.id.clone()));
        }
        let jkt = self.jkt();
        if agent.jkt.is_some_and(|pinned| pinned != jkt) {
            return Err(VerifyError::PinnedKeyMismatch(agent.id.clone()));
        }
        // The key of a task is no person's and no service's, also when it was registered after the task was opened.
        read.may_hold_task(&self.possession.key().into(), &agent.id)
            .map_err(VerifyError::RegisteredKey)?;
        let opener = task.as_ref().map(|task| &task.opened.owner);
        let owners = opener.into_iter().chain([&agent.owner]);
        let scopes = [FreezeScope::All, FreezeScope::Agent(agent.id.clone())]
            .into_iter()
            .chain(owners.map(|owner| FreezeScope::Owner(owner.clone())));
        for scope in scopes {
            if read.is_frozen(&scope) {
                return Err(VerifyError::Frozen(scope));
            }
        }
        let binding = Binding::Jkt(jkt);
        let asked = |ages| {
            let bundle = &rules.bundle;
            bundle.may_operate(&agent, facts.kind, ages, binding.as_str(), now)
        };
        if let OperateDecision::Denied { why, rules } = asked(ages) {
            return Err(match asked(EvidenceAges::ZERO) {
                OperateDecision::Allowed { .. } => VerifyError::TooOldForRules {
                    issued_at: facts.issued_at,
                    ages,
                    rules,
                },
                OperateDecision::Denied { .. } => VerifyError::MayNotOperate { why, rules },
            });
        }
        let mut not_after = facts
            .expires_at
            .min(facts.verified_at.plus_millis(max_evidence_age_ms));
        if let Some(task) = &task {
            not_after = not_after.min(task.opened.deadline);
            // A token may be valid for longer than a heartbeat, but nothing starts for a task whose heartbeat was missed.
            not_after = task
                .lease
                .map_or(not_after, |lease| lease.until.min(not_after));
        }
        Ok(Verified {
            read,
            rules,
            agent,
            facts: facts.clone(),
            binding,
            task,
            action_digest: self.possession.action_digest(),
            evidence_ages: ages,
            not_after,
            now,
        })
    }

    /// The task, when its key is held and it was opened by this workload.
    fn own_task<'r>(
        &self,
        read: &'r Read,
        id: &TaskId,
    ) -> Result<Recorded<'r, TaskRecord>, VerifyError> {
        let task = read.task(id).ok_or(VerifyError::TaskKeyMismatch)?;
        self.possession.matches(&task.opened.binding)?;
        let shown = &self.attested.facts.subject;
        let opened = &task.opened.evidence.subject;
        if shown != opened {
            return Err(VerifyError::WorkloadMismatch {
                shown: shown.clone(),
                opened: opened.clone(),
            });
        }
        Ok(task)
    }
}

/// Proof that gate 1 was passed in this call: made only by [`Authenticated::verify`], spent by moving it into gate 2 or into
/// opening a task. It permits no action, and cannot leave the round in which it was made.
#[derive(Debug)]
pub struct Verified<'r> {
    read: &'r Read,
    rules: Recorded<'r, ActivePolicy>,
    agent: Arc<RegisteredAgent>,
    facts: EvidenceFacts,
    binding: Binding,
    task: Option<Recorded<'r, TaskRecord>>,
    action_digest: Option<Digest>,
    evidence_ages: EvidenceAges,
    not_after: Timestamp,
    now: Timestamp,
}

impl<'r> Verified<'r> {
    /// The round it was made in.
    pub const fn read(&self) -> &'r Read {
        self.read
    }

    /// The rules it was made under.
    pub const fn rules(&self) -> &Recorded<'r, ActivePolicy> {
        &self.rules
    }

    /// The registered agent.
    pub const fn agent(&self) -> &Arc<RegisteredAgent> {
        &self.agent
    }

    /// The facts of the evidence.
    pub const fn facts(&self) -> &EvidenceFacts {
        &self.facts
    }

    /// What the task's tokens will be bound to.
    pub const fn binding(&self) -> Binding {
        self.binding
    }

    /// The task, when the call is for one.
    pub const fn task(&self) -> Option<&Recorded<'r, TaskRecord>> {
        self.task.as_ref()
    }

    /// The action digest the proof was made for.
    pub const fn action_digest(&self) -> Option<Digest> {
        self.action_digest
    }

    /// The ages of the evidence.
    pub const fn evidence_ages(&self) -> EvidenceAges {
        self.evidence_ages
    }

    /// Until when it is valid at most.
    pub const fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// The moment it was made.
    pub const fn now(&self) -> Timestamp {
        self.now
    }
}
