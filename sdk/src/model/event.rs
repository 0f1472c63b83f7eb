//! Events of journal entries, one type a kind, in their stored form.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::*;

/// The event of an entry: its kind and body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "body")]
#[allow(missing_docs)]
pub enum Event {
    EpochStarted(EpochStarted),
    TrustBundleChanged(TrustBundleChanged),
    KeyPublished(KeyPublished),
    PolicyApplied(PolicyApplied),
    AgentSuspended(AgentSuspended),
    AgentResumed(AgentResumed),
    Frozen(Frozen),
    Unfrozen(Unfrozen),
    FactSet(FactSet),
    TaskOpened(TaskOpened),
    LeasesExtended(LeasesExtended),
    TaskEnded(TaskEnded),
    RequestDenied(RequestDenied),
    AccessRequestOpened(AccessRequestOpened),
    AccessRequestReassessed(AccessRequestReassessed),
    VoteCast(VoteCast),
    VoteRefused(VoteRefused),
    AccessRequestClosed(AccessRequestClosed),
    ApproverInvited(ApproverInvited),
    ApproverEnrolled(ApproverEnrolled),
    PasskeyConfirmed(PasskeyConfirmed),
    ApproverKeysRevoked(ApproverKeysRevoked),
    TokenIssued(TokenIssued),
    TokenReissued(TokenReissued),
    TokenConsumed(TokenConsumed),
    GrantsEnded(GrantsEnded),
    RefusalsCounted(RefusalsCounted),
}

impl Event {
    /// The name of its kind, as stored.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::EpochStarted(_) => "EpochStarted",
            Self::TrustBundleChanged(_) => "TrustBundleChanged",
            Self::KeyPublished(_) => "KeyPublished",
            Self::PolicyApplied(_) => "PolicyApplied",
            Self::AgentSuspended(_) => "AgentSuspended",
            Self::AgentResumed(_) => "AgentResumed",
            Self::Frozen(_) => "Frozen",
            Self::Unfrozen(_) => "Unfrozen",
            Self::FactSet(_) => "FactSet",
            Self::TaskOpened(_) => "TaskOpened",
            Self::LeasesExtended(_) => "LeasesExtended",
            Self::TaskEnded(_) => "TaskEnded",
            Self::RequestDenied(_) => "RequestDenied",
            Self::AccessRequestOpened(_) => "AccessRequestOpened",
            Self::AccessRequestReassessed(_) => "AccessRequestReassessed",
            Self::VoteCast(_) => "VoteCast",
            Self::VoteRefused(_) => "VoteRefused",
            Self::AccessRequestClosed(_) => "AccessRequestClosed",
            Self::ApproverInvited(_) => "ApproverInvited",
            Self::ApproverEnrolled(_) => "ApproverEnrolled",
            Self::PasskeyConfirmed(_) => "PasskeyConfirmed",
            Self::ApproverKeysRevoked(_) => "ApproverKeysRevoked",
            Self::TokenIssued(_) => "TokenIssued",
            Self::TokenReissued(_) => "TokenReissued",
            Self::TokenConsumed(_) => "TokenConsumed",
            Self::GrantsEnded(_) => "GrantsEnded",
            Self::RefusalsCounted(_) => "RefusalsCounted",
        }
    }

    /// Hashes of the blobs that it names.
    pub fn blobs(&self) -> Vec<Digest> {
        match self {
            Self::TrustBundleChanged(f) => vec![f.bundle],
            Self::PolicyApplied(f) => vec![f.version],
            Self::AgentSuspended(f) => f.reason.into_iter().collect(),
            Self::Frozen(f) => f.reason.into_iter().collect(),
            Self::FactSet(f) => f.reason.into_iter().collect(),
            Self::TaskOpened(f) => vec![f.purpose],
            Self::RequestDenied(f) => f.secret.into_iter().collect(),
            Self::AccessRequestOpened(f) => {
                let by = f.by_person();
                let bundle = by.and_then(|by| by.bundle()).map(|(bundle, _)| *bundle);
                let proposed = bundle.into_iter().chain(by.map(|by| by.changes));
                f.secret
                    .into_iter()
                    .chain(f.reason)
                    .chain(proposed)
                    .collect()
            }
            Self::VoteCast(f) => [f.statement, f.facts]
                .into_iter()
                .chain(f.assertion)
                .collect(),
            Self::TokenIssued(f) => f.secret.into_iter().chain(f.reason).collect(),
            Self::EpochStarted(_)
            | Self::AccessRequestReassessed(_)
            | Self::KeyPublished(_)
            | Self::AgentResumed(_)
            | Self::Unfrozen(_)
            | Self::LeasesExtended(_)
            | Self::TaskEnded(_)
            | Self::VoteRefused(_)
            | Self::AccessRequestClosed(_)
            | Self::ApproverInvited(_)
            | Self::ApproverEnrolled(_)
            | Self::PasskeyConfirmed(_)
            | Self::ApproverKeysRevoked(_)
            | Self::TokenReissued(_)
            | Self::TokenConsumed(_)
            | Self::GrantsEnded(_)
            | Self::RefusalsCounted(_) => Vec::new(),
        }
    }
}

/// An incarnation of the journal begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EpochStarted {
    /// The realm that the journal belongs to.
    pub realm: Realm,
}

/// A trust domain's keys, journalled before their first use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustBundleChanged {
    /// The domain.
    pub domain: TrustDomain,
    /// Blob: the SPIFFE trust bundle as configured.
    pub bundle: Digest,
    /// The JWT-SVID keys in it.
    pub kids: Vec<KeyId>,
    /// Keys that the previous trust bundle had and this one has not: tasks and grants verified with them end.
    pub removed: Vec<KeyId>,
}

/// A token-signing key, journalled before its first use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyPublished {
    /// Its id in the JWKS.
    pub kid: KeyId,
    /// The public key.
    pub jwk: Value,
}

/// A policy bundle became active.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyApplied {
    /// Its version, and its blob: SHA-256 of the canonical form of all files.
    pub version: Digest,
    /// The operator who applied it; absent for the bundle that initialized the journal, and for one that recovered the operators.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<PersonId>,
    /// Present where the owner of the broker's host put it in force, since no operator could act.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery: Option<OperatorRecovery>,
    /// The approved proposal that it consumes; absent where the bundle before it let one operator alone change the rules.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proposal: Option<AccessRequestId>,
    /// The people of whom the operator says that they return: they are the ones who left or lost a role, and what ended with that
    /// counts again.
    #[serde(skip_serializing_if = "BTreeSet::is_empty", default)]
    pub returning: BTreeSet<PersonId>,
}

/// A recovery of the operators by the owner of the broker's host. No call makes one: it needs the files of a stopped broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OperatorRecovery {
    /// Why, for everyone who reads the journal.
    pub reason: RecoveryReason,
    /// The user of the host's system who ran the command, as that process found it. A claim: nothing proves it.
    pub host_user: HostUser,
    /// The keys of the operators before it were lost or in wrong hands: with this entry each of them is dead, passkeys too, unless the
    /// bundle registers it. Absent where no operator had a living key.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub operators_lost: bool,
}

/// An agent was suspended. Its tasks, grants and access requests end with this entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentSuspended {
    /// The agent.
    pub agent: AgentId,
    /// The operator, or the approver whose denial reached the limit.
    pub by: PersonId,
    /// Blob: the operator's reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Digest>,
    /// For an automatic suspension: the number of denials that reached the policy bundle's limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub denials: Option<u32>,
}

/// An operator resumed an agent. What ended stays ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentResumed {
    /// The agent.
    pub agent: AgentId,
    /// The operator.
    pub by: PersonId,
}

/// An operator froze everything, an agent, an owner's agents or an action: no token is issued in this scope until the
/// freeze is lifted, and the scope's tasks, grants and access requests end with this entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Frozen {
    /// The scope.
    pub scope: FreezeScope,
    /// The operator.
    pub by: PersonId,
    /// Blob: the operator's reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Digest>,
}

/// An operator lifted a freeze. What ended stays ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unfrozen {
    /// The scope.
    pub scope: FreezeScope,
    /// The operator.
    pub by: PersonId,
}

/// A named fact of the policy bundle was set: for a while to another value than its normal one, or back to that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FactSet {
    /// The fact.
    pub fact: FactName,
    /// Its value from now on.
    pub value: bool,
    /// When it is its normal value again; absent where it is set to that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// Digest of what the bundle in force declares of it: a value that is not safe counts while that stays.
    pub declared: Digest,
    /// The operator who set it, or whose proposal was approved.
    pub by: PersonId,
    /// Blob: the operator's reason; that of a proposal is with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Digest>,
    /// The approved proposal that it consumes; absent for the safe value, and where one operator alone may change the rules.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proposal: Option<AccessRequestId>,
}

/// A task was opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskOpened {
    /// Its id.
    pub task: TaskId,
    /// The agent.
    pub agent: AgentId,
    /// The agent's owner.
    pub owner: PersonId,
    /// The key that must sign the proof of every later call.
    pub binding: Binding,
    /// What the holder of that key can sign as: no person's or service's key.
    pub key_identity: KeyIdentity,
    /// The client's idempotency key.
    pub idempotency_key: IdempotencyKey,
    /// Seconds that the agent requested.
    pub requested_seconds: i64,
    /// When it was opened.
    pub opened_at: Timestamp,
    /// When it ends by time.
    pub deadline: Timestamp,
    /// Longest time between heartbeats, in seconds; absent for a task without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heartbeat_seconds: Option<i64>,
    /// Blob: the purpose, in the agent's words.
    pub purpose: Digest,
    /// The evidence that gate 1 verified.
    pub evidence: EvidenceFacts,
    /// Version of the policy bundle that permitted it.
    pub policy: Digest,
}

/// Leases of tasks were extended: by heartbeats, one entry for all of a short window, or by a broker that started after no
/// broker had served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeasesExtended {
    /// Each task and the new end of its lease.
    pub leases: Vec<(TaskId, Timestamp)>,
    /// For an extension after an outage: no broker served from this time on. Each lease ended at it or later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub served_until: Option<Timestamp>,
}

/// Tasks ended, and with them their grants and access requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskEnded {
    /// The tasks.
    pub tasks: Vec<TaskId>,
    /// The cause.
    pub cause: EndCause,
    /// The outcome that the agent reported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<TaskOutcome>,
    /// The operator, if an operator ordered it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<PersonId>,
}

/// A request was denied by gate 2, or refused after gate 1 because the catalogue does not have what it names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequestDenied {
    /// The decision's id.
    pub id: DecisionId,
    /// The task.
    pub task: TaskId,
    /// The client's idempotency key.
    pub idempotency_key: IdempotencyKey,
    /// The name of a [`DeniedReason`] or [`Reason`].
    pub reason: String,
    /// The requested action.
    pub action: ActionOnRecord,
    /// Blob: the action's secret part; absent without sensitive parameters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<Digest>,
    /// The decision, if the policy was evaluated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decision: Option<DecisionRecord>,
    /// The access request of the task that waits for this action meanwhile, and goes on waiting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<AccessRequestId>,
    /// The evidence that gate 1 verified.
    pub evidence: EvidenceFacts,
}

/// An access request was opened: the action needs approval by people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessRequestOpened {
    /// Its id.
    pub access_request: AccessRequestId,
    /// The requester: an agent in a task, or a person who proposes a policy bundle or a fact.
    pub requester: AccessRequester,
    /// The requested action.
    pub action: ActionOnRecord,
    /// Blob: the action's secret part; absent without sensitive parameters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<Digest>,
    /// Blob: the agent's reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Digest>,
    /// Longest lifetime of the token, in seconds; absent for an access request that asks for no token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_ttl: Option<i64>,
    /// Number of uses of the token; absent when its lifetime is the only limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uses: Option<u32>,
    /// When it expires and is denied.
    pub expires_at: Timestamp,
}

impl AccessRequestOpened {
    /// The agent's part; absent for a proposal by a person.
    pub const fn by_agent(&self) -> Option<&AgentRequester> {
        match &self.requester {
            AccessRequester::Agent(agent) => Some(agent),
            AccessRequester::Person(_) => None,
        }
    }

    /// The person's part; absent for the request of an agent.
    pub const fn by_person(&self) -> Option<&PersonRequester> {
        match &self.requester {
            AccessRequester::Agent(_) => None,
            AccessRequester::Person(person) => Some(person),
        }
    }

    /// The task; absent for a proposal by a person.
    pub fn task(&self) -> Option<TaskId> {
        self.by_agent().map(|by| by.task)
    }

    /// The agent; absent for a proposal by a person.
    pub fn agent(&self) -> Option<&AgentId> {
        self.by_agent().map(|by| &by.agent)
    }

    /// The executor of a recommendation; absent for any other request.
    pub fn executor(&self) -> Option<&Executor> {
        self.by_agent().and_then(|by| by.executor.as_ref())
    }

    /// The person who answers for it: the agent's owner at the opening, or the proposer.
    pub const fn owner(&self) -> &PersonId {
        match &self.requester {
            AccessRequester::Agent(agent) => &agent.owner,
            AccessRequester::Person(person) => &person.person,
        }
    }

    /// The profiles that it required when it was opened.
    pub fn required_profiles(&self) -> &[ProfileRef] {
        match &self.requester {
            AccessRequester::Agent(agent) => &agent.decision.required_profiles,
            AccessRequester::Person(person) => std::slice::from_ref(&person.needs),
        }
    }
}

/// The requester of an access request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AccessRequester {
    /// An agent, in a task: it asks for a token.
    Agent(Box<AgentRequester>),
    /// A person, who proposes a policy bundle or a fact: without a task, evidence or token.
    Person(Box<PersonRequester>),
}

/// An agent that requests a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentRequester {
    /// The task.
    pub task: TaskId,
    /// The agent.
    pub agent: AgentId,
    /// The agent's owner.
    pub owner: PersonId,
    /// The client's idempotency key that opened it; further keys may be attached.
    pub idempotency_key: IdempotencyKey,
    /// The decision, with the profiles it requires.
    pub decision: DecisionRecord,
    /// The evidence that gate 1 verified.
    pub evidence: EvidenceFacts,
    /// Who would execute the action: the agent is advisory, and gets no token itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub executor: Option<Executor>,
}

/// The agent that an approved recommendation is handed to. Its task and key are those with which it requests the token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Executor {
    /// The agent.
    pub agent: AgentId,
    /// Its owner.
    pub owner: PersonId,
}

/// A person who proposes a policy bundle, or the value of a named fact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PersonRequester {
    /// The operator.
    pub person: PersonId,
    /// The operator's key: the proposal is good while it lives.
    pub key: Thumbprint,
    /// The policy bundle in force, which it would replace or under which it would set a fact: the proposal is void under another.
    pub replaces: Digest,
    /// What would come in force.
    pub proposed: Proposed,
    /// Blob: what changes, [`PolicyChanges`] in canonical JSON.
    pub changes: Digest,
    /// The profile of the people who agree, by the bundle in force.
    pub needs: ProfileRef,
}

impl PersonRequester {
    /// The proposed bundle, with the people who return; absent for a proposal of something else.
    pub const fn bundle(&self) -> Option<(&Digest, &BTreeSet<PersonId>)> {
        match &self.proposed {
            Proposed::Bundle { bundle, returning } => Some((bundle, returning)),
            Proposed::Fact { .. } => None,
        }
    }
}

/// What a person proposes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Proposed {
    /// A policy bundle in place of the one in force.
    Bundle {
        /// Blob: the bundle; its digest is the bundle's version.
        bundle: Digest,
        /// People whom the bundle registers again and who are the same as before.
        #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
        returning: BTreeSet<PersonId>,
    },
    /// Another value than the safe one for a named fact of the bundle in force.
    Fact {
        /// The fact.
        fact: FactName,
        /// The value.
        value: bool,
        /// How long it would stand, in seconds from the last approval on; absent for the normal value.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        seconds: Option<u32>,
        /// Digest of what the bundle declares of the fact.
        declared: Digest,
    },
}

impl Proposed {
    /// The fact; absent for a bundle.
    pub const fn fact(&self) -> Option<&FactName> {
        match self {
            Self::Fact { fact, .. } => Some(fact),
            Self::Bundle { .. } => None,
        }
    }
}

/// What a pending access request requires has changed, by time, by the agent's evidence, or by a policy bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessRequestReassessed {
    /// The access request.
    pub access_request: AccessRequestId,
    /// The decision that takes the place of the one it was opened with.
    pub decision: DecisionRecord,
}

/// An approver's signed vote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VoteCast {
    /// The access request.
    pub access_request: AccessRequestId,
    /// The voter.
    pub voter: PersonId,
    /// The voter's signing key.
    pub key: Thumbprint,
    /// Approve or deny.
    pub verdict: Verdict,
    /// The profile it counts for.
    pub profile: ProfileRef,
    /// Blob: the facts that the voter's card showed, [`CardFacts`](crate::card::CardFacts) in canonical JSON.
    pub facts: Digest,
    /// Longest token lifetime that the voter approved, in seconds; absent where no token is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_ttl: Option<i64>,
    /// Number of uses that the voter approved; absent when the token's lifetime is the only limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uses: Option<u32>,
    /// When the approval stops counting.
    pub not_after: Timestamp,
    /// Blob: the signed statement.
    pub statement: Digest,
    /// Base64url. By a plain key: ES256, r and s, over the statement's digest. By a passkey: the assertion's signature.
    pub signature: String,
    /// Blob, for a vote by passkey: the WebAuthn evidence, signed together with the statement's digest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub assertion: Option<Digest>,
    /// The authenticator's signature counter, for a vote by passkey (WebAuthn L3 §6.1.1).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sign_count: Option<u32>,
}

impl VoteCast {
    /// How it was signed.
    pub const fn method(&self) -> VoteMethod {
        match self.assertion {
            Some(_) => VoteMethod::Passkey,
            None => VoteMethod::Key,
        }
    }
}

/// A vote that was refused and does not count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VoteRefused {
    /// The access request.
    pub access_request: AccessRequestId,
    /// The voter.
    pub voter: PersonId,
    /// Why it does not count.
    pub reason: String,
}

/// An access request was closed without a grant or a denial.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessRequestClosed {
    /// The access request.
    pub access_request: AccessRequestId,
    /// The cause.
    pub cause: CloseCause,
    /// A person had begun to vote when the agent cancelled it: counts like a denial for the agent's limits.
    #[serde(skip_serializing_if = "is_false", default)]
    pub voting_started: bool,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
const fn is_false(flag: &bool) -> bool {
    !*flag
}

const fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// A person was invited to enrol one passkey. An earlier invitation is void.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApproverInvited {
    /// Its id.
    pub invitation: InvitationId,
    /// The person.
    pub person: PersonId,
    /// SHA-256("dipylon/invitation/v1" ‖ 0x00 ‖ code). The code has 100 random bits and is shown once.
    pub code: Digest,
    /// When it stops being usable.
    pub expires_at: Timestamp,
    /// The operator.
    pub by: PersonId,
    /// The operator's key that gave it: it is good while this key lives and is an operator's.
    pub by_key: Thumbprint,
}

/// A person enrolled a passkey. The invitation is used up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApproverEnrolled {
    /// The person.
    pub person: PersonId,
    /// The invitation.
    pub invitation: InvitationId,
    /// The passkey.
    pub passkey: PasskeyOnRecord,
}

/// The public half of a passkey (WebAuthn L3 §4, credential record).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PasskeyOnRecord {
    /// The credential's id, base64url.
    pub credential: String,
    /// Thumbprint of its public key (RFC 7638): its name in votes.
    pub key: Thumbprint,
    /// What the holder of that key can sign as.
    pub key_identity: KeyIdentity,
    /// Its public key (RFC 7517).
    pub jwk: Value,
    /// The signature counter at enrolment.
    pub sign_count: u32,
    /// Whether it may be synced to other devices of its owner (WebAuthn backup eligibility); never changes.
    pub backup_eligible: bool,
    /// Whether it was synced at enrolment.
    pub backed_up: bool,
    /// The authenticator's model: AAGUID, 16 bytes, base64url; zeros when not disclosed.
    pub aaguid: String,
    /// The person's label for it.
    pub label: String,
}

/// A passkey was confirmed: another person than its inviter, or the owner of the broker's host, found that its person enrolled it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PasskeyConfirmed {
    /// The person of the passkey.
    pub person: PersonId,
    /// Thumbprint of its key (RFC 7638).
    pub key: Thumbprint,
    /// Who confirmed it.
    pub by: Confirmer,
}

/// Who confirmed a passkey.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Confirmer {
    /// An operator or approver: neither the person of the passkey nor its inviter.
    Person {
        /// The person.
        id: PersonId,
        /// Their key: registered in the policy bundle, or a confirmed passkey.
        key: Thumbprint,
    },
    /// The owner of the broker's host, where no such person has a key. No call makes it: it needs the files of a stopped broker.
    Host {
        /// The user of the host's system who ran the command, as that process found it. A claim: nothing proves it.
        user: HostUser,
    },
}

impl std::fmt::Display for Confirmer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Person { id, .. } => write!(f, "{id}"),
            Self::Host { user } => write!(f, "the host: {user} (unverified)"),
        }
    }
}

/// Keys were revoked for good: passkeys, or keys of `people.toml`. Their votes are void unless a grant has consumed them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApproverKeysRevoked {
    /// The person.
    pub person: PersonId,
    /// The keys, by their thumbprints (RFC 7638).
    pub keys: Vec<Thumbprint>,
    /// Every other key of the person dies too, those that no bundle registers any more.
    #[serde(skip_serializing_if = "is_false", default)]
    pub all: bool,
    /// The cause.
    pub cause: RevokeCause,
    /// The operator, if an operator ordered it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<PersonId>,
    /// With compromised keys, and a copied passkey: how many other passkeys were enrolled on invitations given with them and confirmed by
    /// no other key. They are revoked too.
    #[serde(skip_serializing_if = "is_zero", default)]
    pub invited: u32,
    /// How many other passkeys were confirmed with them. They await confirmation again.
    #[serde(skip_serializing_if = "is_zero", default)]
    pub unconfirmed: u32,
}

/// A token was issued. The grant is this entry; the token's claims are a pure function of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenIssued {
    /// The token's id.
    pub jti: TokenId,
    /// The task; the `txn` claim.
    pub task: TaskId,
    /// The `client_id` claim.
    pub agent: AgentId,
    /// The `sub` claim.
    pub subject: SpiffeId,
    /// The client's idempotency key; a retry with it gets this grant.
    pub idempotency_key: IdempotencyKey,
    /// Seconds that the agent requested.
    pub requested_ttl: i64,
    /// Blob: the agent's reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Digest>,
    /// The one approved action.
    pub action: Arc<ActionOnRecord>,
    /// Blob: the action's secret part; absent without sensitive parameters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<Digest>,
    /// The `iat` claim, Unix seconds.
    pub iat: i64,
    /// The `exp` claim, Unix seconds.
    pub exp: i64,
    /// The signing key.
    pub kid: KeyId,
    /// The key that the holder must prove.
    pub cnf: Binding,
    /// Number of uses; absent when its lifetime is the only limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uses: Option<u32>,
    /// Index of the last entry applied when it was decided: a revocation event above it can end it.
    pub pos: u64,
    /// The `approval` claim; absent when no approval was required.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approval: Option<Arc<ApprovalClaim>>,
    /// The access request that this grant consumed, whether its approval was required or not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consumed: Option<AccessRequestId>,
    /// The decision of gate 2.
    pub decision: DecisionRecord,
    /// The evidence that gate 1 verified.
    pub evidence: Arc<EvidenceFacts>,
}

/// A retry received its token again: same `jti`, same claims, new signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenReissued {
    /// The token.
    pub jti: TokenId,
    /// The key of the new signature.
    pub kid: KeyId,
}

/// A validator consumed one use of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenConsumed {
    /// The token.
    pub jti: TokenId,
    /// The validator.
    pub validator: ServiceId,
    /// Its idempotency key.
    pub use_id: UseId,
}

/// Grants ended while their tasks run on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantsEnded {
    /// The tokens, at most [`SELECTOR_MAX`].
    pub jtis: Vec<TokenId>,
    /// The cause.
    pub cause: EndCause,
    /// The operator, if an operator ordered it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<PersonId>,
}

/// Number of refusals before authentication, so that unauthenticated calls cannot fill the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RefusalsCounted {
    /// Start of the counted interval; its end is the entry's time.
    pub since: Timestamp,
    /// Number of refusals.
    pub count: u64,
    /// How many of them by method and reason, the most frequent first: at most [`REFUSAL_ROWS_MAX`].
    pub rows: Vec<RefusalCount>,
}

/// A number of refusals.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RefusalCount {
    /// The method or route of the calls.
    pub method: String,
    /// Why they were refused.
    pub reason: Reason,
    /// Their number.
    pub count: u64,
}

/// Most rows of one count of refusals.
pub const REFUSAL_ROWS_MAX: usize = 64;

/// Most ids in one entry or one feed event.
pub const SELECTOR_MAX: usize = 256;
