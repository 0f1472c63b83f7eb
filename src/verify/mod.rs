//! Gate 1: may this workload operate in this role, now?
//!
//! In: evidence as shown, a proof of possession, the trust snapshot, what the journal says of the agent, the rules in
//! force, `now`. Out: [`Attested`] (the evidence is good), [`Possession`] (the key is held), [`Authenticated`] (both, for this
//! call), and [`Verified`] (and the agent may operate). Each can be made only here, by the check it is named for.
//! Trusts configured trust domains. Refuses everything else; the caller learns only that gate 1 did not open.
//! Nothing here performs I/O or reads a clock.

mod jwt_svid;
mod possession;
mod trust;

use std::sync::Arc;

use crate::model::*;
use crate::policy::{InForce, OperateAnswer};

pub use possession::{CallProof, Possession};
pub use trust::{Trust, TrustedDomain};

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
    UnknownDomain(TrustDomain),
    /// The evidence is for someone else.
    #[error("the evidence is for another audience")]
    WrongAudience,
    /// The evidence has expired.
    #[error("the evidence expired at {0}")]
    Expired(Timestamp),
    /// The evidence is not valid yet, or lives longer than any honest one.
    #[error("the evidence's dates are not acceptable")]
    Dates,
    /// No proof of possession came along.
    #[error("no proof of possession")]
    NoProof,
    /// The proof does not hold.
    #[error("{0}")]
    Proof(#[from] crate::jose::dpop::ProofError),
    /// The proof's nonce is missing, old, or of another boot. Decided after its signature.
    #[error("the proof's nonce is missing, old, or of another boot")]
    Nonce,
    /// The proof was used before.
    #[error("the proof was used before")]
    Replayed,
    /// One key shows more proofs than any honest client.
    #[error("too many proofs by one key")]
    TooManyProofs,
    /// The proof is for another action or other evidence than the call carries.
    #[error("the proof is not for this {0}")]
    ProofElsewhere(&'static str),
    /// The key is not the task's, or there is no such task.
    #[error("the key is not the task's")]
    NotOfTask,
    /// The evidence is not of the workload that opened the task.
    #[error("the evidence names {shown}, the task belongs to {opened}")]
    OtherWorkload {
        /// Whom the evidence names.
        shown: SpiffeId,
        /// Who opened the task.
        opened: SpiffeId,
    },
    /// The evidence was verified too long ago. Decided after possession.
    #[error("the evidence was verified too long ago")]
    Stale,
    /// No policy bundle is in force.
    #[error("no policy bundle is in force")]
    NoRules,
    /// No registered person or service has this key or identity.
    #[error("no registered person or service has this key or identity")]
    NotRegistered,
    /// The one-time code of the first operator does not hold.
    #[error("the one-time code does not hold: {0}")]
    Code(&'static str),
    /// The cookie is of no session that goes on.
    #[error("the session does not hold: {0}")]
    Session(&'static str),
    /// A passkey does not hold.
    #[error("the passkey does not hold: {0}")]
    Passkey(String),
    /// Not exactly one registered agent matches.
    #[error("{0} registered agents match, not one")]
    Agents(usize),
    /// The task belongs to another registered agent than the evidence matches today.
    #[error("the task was opened as agent {0}, which the evidence no longer matches")]
    OtherAgent(AgentId),
    /// An operator suspended the agent.
    #[error("agent {0} is suspended")]
    Suspended(AgentId),
    /// An operator froze everything, the agent, or its owner.
    #[error("{0} is frozen")]
    Frozen(FreezeScope),
    /// The agent's tasks are pinned to another key.
    #[error("agent {0} is pinned to another key")]
    OtherKey(AgentId),
    /// The key that verified the evidence is no longer trusted.
    #[error("the key that verified the evidence is no longer trusted")]
    KeyRemoved,
    /// The rules say it may not operate now.
    #[error("the rules do not let it operate: {why}{}", rules.iter().map(|r| format!(", {} ({})", r.id, r.file)).collect::<String>())]
    MayNotOperate {
        /// Why.
        why: DeniedReason,
        /// The rules that say so.
        rules: Vec<RuleRef>,
    },
}

/// Evidence that was good when it was checked. Made only by [`attest`].
#[derive(Debug)]
pub struct Attested {
    facts: EvidenceFacts,
}

impl Attested {
    /// What stays of the evidence.
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

/// The hash a proof carries for evidence in the same call (`evh`).
pub fn evidence_hash(evidence: &Evidence) -> Digest {
    match evidence {
        Evidence::JwtSvid(token) => Digest::sha256(token.expose_secret().as_bytes()),
    }
}

/// Good evidence and a held key, together, for one call. It may be asked again and again during the call, each time with
/// a new `now`: it is not yet permission for anything.
#[derive(Debug)]
pub struct Authenticated {
    attested: Arc<Attested>,
    possession: Possession,
}

impl Authenticated {
    /// Joins evidence and possession for opening a task.
    pub fn for_opening(attested: Arc<Attested>, possession: Possession) -> Self {
        Self {
            attested,
            possession,
        }
    }

    /// Joins evidence and possession for a task: the key must be the task's, the workload the one that opened it.
    pub fn for_task(
        attested: Arc<Attested>,
        possession: Possession,
        opened: &TaskOpened,
    ) -> Result<Self, VerifyError> {
        possession.is_of(&opened.binding)?;
        if attested.facts.subject != opened.evidence.subject {
            return Err(VerifyError::OtherWorkload {
                shown: attested.facts.subject.clone(),
                opened: opened.evidence.subject.clone(),
            });
        }
        Ok(Self {
            attested,
            possession,
        })
    }

    /// The evidence, to be remembered for later calls.
    pub const fn attested(&self) -> &Arc<Attested> {
        &self.attested
    }

    /// What the evidence said.
    pub fn facts(&self) -> &EvidenceFacts {
        &self.attested.facts
    }

    /// The key that is held.
    pub const fn jkt(&self) -> Thumbprint {
        self.possession.jkt()
    }

    /// Asks gate 1 in full: the evidence is fresh, exactly one agent matches, nothing stands against it, and the rules let
    /// it operate now. The answer carries the version of everything it rests on.
    pub fn verify(
        &self,
        standing: Gate1Context<'_>,
        now: Timestamp,
    ) -> Result<Verified, VerifyError> {
        let facts = &self.attested.facts;
        let age_ms = now.since(facts.verified_at).max(0);
        if now >= facts.expires_at || age_ms > standing.max_evidence_age_ms {
            return Err(VerifyError::Stale);
        }
        let rules = standing.rules.ok_or(VerifyError::NoRules)?;
        let trust_version = standing.trust.ok_or(VerifyError::KeyRemoved)?;
        let agent = match rules.bundle.agents_matching(&facts.subject).as_slice() {
            [one] => Arc::clone(one),
            others => return Err(VerifyError::Agents(others.len())),
        };
        if let Some(task) = &standing.task
            && task.agent != agent.id
        {
            return Err(VerifyError::OtherAgent(task.agent.clone()));
        }
        let (suspended, agent_version) = (standing.agent)(&agent.id);
        if suspended {
            return Err(VerifyError::Suspended(agent.id.clone()));
        }
        if agent.jkt.is_some_and(|pinned| pinned != self.jkt()) {
            return Err(VerifyError::OtherKey(agent.id.clone()));
        }
        let scopes = [
            FreezeScope::All,
            FreezeScope::Agent(agent.id.clone()),
            FreezeScope::Owner(agent.owner.clone()),
        ];
        let mut freezes = Vec::with_capacity(scopes.len());
        for scope in scopes {
            let (frozen, version) = (standing.freeze)(&scope);
            if frozen {
                return Err(VerifyError::Frozen(scope));
            }
            freezes.push((Stream::Freeze(scope), version));
        }
        let binding = Binding::Jkt(self.jkt());
        match rules
            .bundle
            .operate(&agent, facts.kind, age_ms, binding.as_str(), now)
        {
            OperateAnswer::Allowed { .. } => {}
            OperateAnswer::Denied { why, rules } => {
                return Err(VerifyError::MayNotOperate { why, rules });
            }
        }
        let mut read_set = vec![
            (Stream::Agent(agent.id.clone()), agent_version),
            (
                Stream::Person(agent.owner.clone()),
                (standing.person)(&agent.owner),
            ),
            (Stream::Policy, rules.version),
            (Stream::Trust(facts.subject.trust_domain()), trust_version),
        ];
        read_set.extend(freezes);
        let mut not_after = facts
            .expires_at
            .min(facts.verified_at.plus_millis(standing.max_evidence_age_ms));
        if let Some(task) = &standing.task {
            read_set.push((Stream::Task(task.id), task.version));
            not_after = not_after.min(task.deadline);
            // A token may outlive a heartbeat's length, but nothing is begun for a task whose heartbeat was missed.
            not_after = task.lease_until.map_or(not_after, |t| t.min(not_after));
        }
        Ok(Verified {
            agent,
            facts: facts.clone(),
            binding,
            task: standing.task,
            adg: self.possession.adg(),
            evidence_age_ms: age_ms,
            read_set,
            not_after,
            now,
        })
    }
}

/// Whether an agent is suspended, and the version of its stream.
pub type AskStanding<'a> = Box<dyn Fn(&AgentId) -> (bool, Version) + 'a>;

/// Whether a scope is frozen, and the version of its stream.
pub type AskFreeze<'a> = Box<dyn Fn(&FreezeScope) -> (bool, Version) + 'a>;

/// The version of a person's stream.
pub type AskPerson<'a> = Box<dyn Fn(&PersonId) -> Version + 'a>;

/// What the journal and the policy bundle say at one moment, gathered by the caller for [`Authenticated::stand`].
pub struct Gate1Context<'a> {
    /// The policy bundle in force.
    pub rules: Option<&'a InForce>,
    /// Version of the trust domain's stream; `None` when the key that verified the evidence is gone from it.
    pub trust: Option<Version>,
    /// Whether an agent is suspended, and the version of its stream.
    pub agent: AskStanding<'a>,
    /// Whether a scope is frozen, and the version of its stream.
    pub freeze: AskFreeze<'a>,
    /// The version of a person's stream.
    pub person: AskPerson<'a>,
    /// The task the call is for, when it is for one.
    pub task: Option<TaskStanding>,
    /// Longest time since this broker verified the evidence.
    pub max_evidence_age_ms: i64,
}

/// A running task, as of one version of its stream.
#[derive(Debug, Clone)]
pub struct TaskStanding {
    /// Its id.
    pub id: TaskId,
    /// The agent that opened it.
    pub agent: AgentId,
    /// When.
    pub opened_at: Timestamp,
    /// When it ends by itself.
    pub deadline: Timestamp,
    /// When a missed heartbeat ends it.
    pub lease_until: Option<Timestamp>,
    /// Version of its stream.
    pub version: Version,
}

/// Gate 1 is open for this call: made only by [`Authenticated::stand`], spent by moving it into gate 2 or into opening a task.
/// It says nothing about any action.
#[derive(Debug)]
pub struct Verified {
    agent: Arc<RegisteredAgent>,
    facts: EvidenceFacts,
    binding: Binding,
    task: Option<TaskStanding>,
    adg: Option<Digest>,
    evidence_age_ms: i64,
    read_set: Vec<(Stream, Version)>,
    not_after: Timestamp,
    now: Timestamp,
}

impl Verified {
    /// The registered agent.
    pub const fn agent(&self) -> &Arc<RegisteredAgent> {
        &self.agent
    }

    /// What the evidence said.
    pub const fn facts(&self) -> &EvidenceFacts {
        &self.facts
    }

    /// What the task's tokens will be bound to.
    pub const fn binding(&self) -> Binding {
        self.binding
    }

    /// The task, when the call is for one.
    pub const fn task(&self) -> Option<&TaskStanding> {
        self.task.as_ref()
    }

    /// The action digest the proof was made for.
    pub const fn adg(&self) -> Option<Digest> {
        self.adg
    }

    /// Milliseconds since the evidence was verified.
    pub const fn evidence_age_ms(&self) -> i64 {
        self.evidence_age_ms
    }

    /// Every stream it rests on, with its version.
    pub fn read_set(&self) -> &[(Stream, Version)] {
        &self.read_set
    }

    /// Until when it holds at the latest.
    pub const fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// The moment it was made.
    pub const fn now(&self) -> Timestamp {
        self.now
    }
}
