//! The entries of the journal: the one form every fact has.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::json::{self, JsonError};
use super::*;

/// One fact. Canonical JSON, stored exactly as hashed; `index` from 0 is the Merkle leaf.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Version of the form: 1.
    pub v: u32,
    /// The life of the journal.
    pub epoch: u64,
    /// Place in the log, gapless from 0.
    pub index: u64,
    /// The writer's clock, in milliseconds; never below the entry before.
    pub at: Timestamp,
    /// Streams this entry moves.
    pub moves: Vec<Stream>,
    /// Streams it rests on, with the versions they had.
    pub read_set: Vec<(Stream, Version)>,
    /// What happened.
    #[serde(flatten)]
    pub fact: Event,
}

impl Entry {
    /// The exact bytes that are stored and hashed.
    pub fn canonical(&self) -> Result<String, JsonError> {
        json::canonical_of(self)
    }

    /// Reads stored bytes; refuses anything but the canonical form of a known entry.
    pub fn parse(text: &str) -> Result<Self, JsonError> {
        let mut value = json::parse(text.as_bytes())?;
        if json::canonical(&value)? != text {
            return Err(JsonError::Number);
        }
        // serde cannot refuse unknown members beside a flattened enum, so the two halves are read apart.
        let fact = match &mut value {
            Value::Object(members) => {
                let (kind, body) = (members.remove("kind"), members.remove("body"));
                let mut half = serde_json::Map::new();
                half.extend(kind.map(|k| ("kind".to_owned(), k)));
                half.extend(body.map(|b| ("body".to_owned(), b)));
                serde_json::from_value(Value::Object(half))?
            }
            _ => return Err(JsonError::Number),
        };
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Envelope {
            v: u32,
            epoch: u64,
            index: u64,
            at: Timestamp,
            moves: Vec<Stream>,
            read_set: Vec<(Stream, Version)>,
        }
        let Envelope {
            v,
            epoch,
            index,
            at,
            moves,
            read_set,
        } = serde_json::from_value(value)?;
        Ok(Self {
            v,
            epoch,
            index,
            at,
            moves,
            read_set,
            fact,
        })
    }
}

/// Longest entry, in bytes of its canonical form; larger content lies in blobs.
pub const ENTRY_BYTES_MAX: usize = 32 * 1024;

/// Why something ended. One end, one cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndCause {
    /// The agent said the task is done.
    Completed,
    /// The task's deadline passed.
    Deadline,
    /// Its heartbeat was missed.
    Lease,
    /// An operator ended it.
    Operator,
    /// The agent was suspended.
    Suspended,
    /// The agent, its owner, the action or everything was frozen.
    Frozen,
    /// The policy bundle no longer allows it.
    Policy,
    /// The key that verified its evidence is no longer trusted.
    Trust,
}

impl EndCause {
    /// The word in entries, replies and explanations.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Deadline => "deadline",
            Self::Lease => "lease",
            Self::Operator => "operator",
            Self::Suspended => "suspended",
            Self::Frozen => "frozen",
            Self::Policy => "policy",
            Self::Trust => "trust",
        }
    }
}

/// How the agent says the task went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskOutcome {
    /// It reached its purpose.
    Succeeded,
    /// It did not.
    Failed,
    /// It was given up.
    Abandoned,
}

/// Why an access request stopped waiting without a grant or a vote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CloseCause {
    /// The agent took it back.
    Cancelled,
    /// Nobody decided in time.
    Expired,
    /// The policy bundle no longer asks for it in this form.
    Policy,
    /// The action was frozen.
    Frozen,
}

/// What a token's holder must show (RFC 7800).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Binding {
    /// Proofs by the key with this thumbprint (RFC 9449).
    Jkt(Thumbprint),
}

impl Binding {
    /// The name rules see.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Jkt(_) => "jkt",
        }
    }

    /// The key's thumbprint.
    pub const fn jkt(&self) -> Thumbprint {
        match self {
            Self::Jkt(t) => *t,
        }
    }
}

/// The `approval` claim: which access request, which profiles, when. No names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApprovalClaim {
    /// The consumed access request.
    pub access_request: AccessRequestId,
    /// Satisfied profiles.
    pub profiles: Vec<ProfileName>,
    /// Unix seconds of the last counted vote.
    pub at: i64,
}

/// Every kind of entry, with its body.
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
    TaskOpened(TaskOpened),
    LeasesExtended(LeasesExtended),
    TaskEnded(TaskEnded),
    RequestDenied(RequestDenied),
    AccessRequestOpened(AccessRequestOpened),
    VoteCast(VoteCast),
    VoteRefused(VoteRefused),
    AccessRequestClosed(AccessRequestClosed),
    ApproverInvited(ApproverInvited),
    ApproverEnrolled(ApproverEnrolled),
    ApproverKeysRevoked(ApproverKeysRevoked),
    TokenIssued(TokenIssued),
    TokenReissued(TokenReissued),
    TokenConsumed(TokenConsumed),
    GrantsEnded(GrantsEnded),
    RefusalsCounted(RefusalsCounted),
}

impl Event {
    /// The blobs it names.
    pub fn blobs(&self) -> Vec<Digest> {
        match self {
            Self::TrustBundleChanged(f) => vec![f.bundle],
            Self::PolicyApplied(f) => vec![f.version],
            Self::AgentSuspended(f) => f.reason.into_iter().collect(),
            Self::Frozen(f) => f.reason.into_iter().collect(),
            Self::TaskOpened(f) => vec![f.purpose],
            Self::RequestDenied(f) => f.secret.into_iter().collect(),
            Self::AccessRequestOpened(f) => f.secret.into_iter().chain(f.reason).collect(),
            Self::VoteCast(f) => std::iter::once(f.statement).chain(f.assertion).collect(),
            Self::TokenIssued(f) => f.secret.into_iter().chain(f.reason).collect(),
            Self::EpochStarted(_)
            | Self::KeyPublished(_)
            | Self::AgentResumed(_)
            | Self::Unfrozen(_)
            | Self::LeasesExtended(_)
            | Self::TaskEnded(_)
            | Self::VoteRefused(_)
            | Self::AccessRequestClosed(_)
            | Self::ApproverInvited(_)
            | Self::ApproverEnrolled(_)
            | Self::ApproverKeysRevoked(_)
            | Self::TokenReissued(_)
            | Self::TokenConsumed(_)
            | Self::GrantsEnded(_)
            | Self::RefusalsCounted(_) => Vec::new(),
        }
    }
}

/// The journal begins a life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EpochStarted {
    /// Whose journal it is.
    pub realm: Realm,
}

/// A trust domain's keys, before their first use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustBundleChanged {
    /// The domain.
    pub domain: TrustDomain,
    /// Blob: the SPIFFE trust bundle as configured.
    pub bundle: Digest,
    /// The keys it holds for JWT-SVIDs.
    pub kids: Vec<KeyId>,
    /// Keys that were there before and are gone: what rests on them ends.
    pub removed: Vec<KeyId>,
}

/// A token-signing key, before its first use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyPublished {
    /// Its name in the JWKS.
    pub kid: KeyId,
    /// The public key.
    pub jwk: Value,
}

/// A policy bundle, whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyApplied {
    /// Its version and its blob: SHA-256 of the canonical form of all files.
    pub version: Digest,
    /// The operator who applied it; absent for the bundle that seeded the journal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<PersonId>,
}

/// An operator took an agent out of service. Everything it had ends with this entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentSuspended {
    /// Which.
    pub agent: AgentId,
    /// Who did it: an operator, or the approver whose no was one too many.
    pub by: PersonId,
    /// Blob: why, in the operator's words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Digest>,
    /// For a quarantine: how many noes of people it took, within the policy bundle's time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub denials: Option<u32>,
}

/// An operator let an agent operate again. Nothing that ended comes back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentResumed {
    /// Which.
    pub agent: AgentId,
    /// Who did it.
    pub by: PersonId,
}

/// An operator stopped everything, an agent, an owner's agents or an action: nothing is minted for it until it is lifted,
/// and what it had ends with this entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Frozen {
    /// What.
    pub scope: FreezeScope,
    /// The agents of the owner, by the policy bundle in force and by their running tasks; empty for every other scope. At
    /// most [`SELECTOR_MAX`]: more of them go on in further entries of the same append.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub agents: Vec<AgentId>,
    /// Who did it.
    pub by: PersonId,
    /// Blob: why, in the operator's words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Digest>,
}

/// An operator lifted a freeze. Nothing that ended comes back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unfrozen {
    /// What.
    pub scope: FreezeScope,
    /// Who did it.
    pub by: PersonId,
}

/// A bounded piece of work begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskOpened {
    /// Its id.
    pub task: TaskId,
    /// Whose it is.
    pub agent: AgentId,
    /// Who answers for the agent.
    pub owner: PersonId,
    /// The key that must prove every later call.
    pub binding: Binding,
    /// The client's idempotency key.
    #[serde(rename = "request_id")]
    pub idempotency_key: IdempotencyKey,
    /// Seconds the agent asked for.
    pub asked_seconds: i64,
    /// When it was opened.
    pub opened_at: Timestamp,
    /// When it ends by itself.
    pub deadline: Timestamp,
    /// Seconds it may go without a sign of life; absent when only the deadline ends it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heartbeat_seconds: Option<i64>,
    /// Blob: the purpose, in the agent's words.
    pub purpose: Digest,
    /// What gate 1 saw.
    pub evidence: EvidenceFacts,
    /// The policy bundle that let it operate.
    pub policy: Digest,
}

/// Tasks gave a sign of life. Gathered: one entry for all that came within moments of each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeasesExtended {
    /// Each task and the moment its lease now ends.
    pub leases: Vec<(TaskId, Timestamp)>,
}

/// A task is over, and with it its grants and access requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskEnded {
    /// The task and its descendants.
    pub tasks: Vec<TaskId>,
    /// Why.
    pub cause: EndCause,
    /// What the agent said of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<TaskOutcome>,
    /// The operator, if one did it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<PersonId>,
}

/// Gate 2 said no, or a verified agent asked for what is not there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequestDenied {
    /// The answer's id.
    pub id: DecisionId,
    /// In which task.
    pub task: TaskId,
    /// The client's idempotency key.
    #[serde(rename = "request_id")]
    pub idempotency_key: IdempotencyKey,
    /// A word of [`DeniedReason`] or [`Reason`].
    pub reason: String,
    /// What was asked.
    pub action: ActionOnRecord,
    /// Blob: its sensitive part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<Digest>,
    /// The answer, when the rules gave one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decision: Option<Decision>,
    /// What gate 1 saw.
    pub evidence: EvidenceFacts,
}

/// Gate 2 waits for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessRequestOpened {
    /// Its id.
    pub access_request: AccessRequestId,
    /// In which task.
    pub task: TaskId,
    /// Whose.
    pub agent: AgentId,
    /// Who answers for the agent.
    pub owner: PersonId,
    /// The request id that opened it; others may join.
    #[serde(rename = "request_id")]
    pub idempotency_key: IdempotencyKey,
    /// What is asked.
    pub action: ActionOnRecord,
    /// Blob: its sensitive part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<Digest>,
    /// Blob: the agent's reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Digest>,
    /// Longest life the token can have, in seconds.
    pub max_ttl: i64,
    /// How often the token may be used; absent when its life is the only limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uses: Option<u32>,
    /// When waiting ends: then it is denied.
    pub expires_at: Timestamp,
    /// The answer so far.
    pub decision: Decision,
    /// What gate 1 saw.
    pub evidence: EvidenceFacts,
}

/// One approver's signed yes or no.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VoteCast {
    /// On what.
    pub access_request: AccessRequestId,
    /// By whom.
    pub voter: PersonId,
    /// With which of their keys.
    pub key: Thumbprint,
    /// Yes or no.
    pub verdict: Verdict,
    /// For which profile.
    pub profile: ProfileRef,
    /// Seconds of life the voter agreed to.
    pub max_ttl: i64,
    /// Uses the voter agreed to; absent when the token's life is the only limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uses: Option<u32>,
    /// Until when the yes counts.
    pub not_after: Timestamp,
    /// Blob: the signed statement.
    pub statement: Digest,
    /// Base64url. By a key: ES256, r and s, over the statement's digest. By a passkey: the assertion's signature.
    pub signature: String,
    /// Blob, for a vote by passkey: what the authenticator signed beside the statement's digest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub assertion: Option<Digest>,
    /// The authenticator's signature counter, for a vote by passkey (WebAuthn L3 §6.1.1).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sign_count: Option<u32>,
}

/// A vote that does not count: it ends nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VoteRefused {
    /// On what.
    pub access_request: AccessRequestId,
    /// By whom.
    pub voter: PersonId,
    /// Why it does not count.
    pub why: String,
}

/// An access request no longer waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessRequestClosed {
    /// Which.
    pub access_request: AccessRequestId,
    /// Why.
    pub cause: CloseCause,
    /// A person had begun to vote when the agent took it back: it weighs on the agent like a no.
    #[serde(skip_serializing_if = "is_false", default)]
    pub begun: bool,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde asks with a reference"
)]
const fn is_false(flag: &bool) -> bool {
    !*flag
}

/// A registered person may enrol one passkey. An earlier invitation of theirs is void.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApproverInvited {
    /// Its id.
    pub invitation: InvitationId,
    /// Who.
    pub person: PersonId,
    /// SHA-256("dipylon/invitation/v1" ‖ 0x00 ‖ code): 100 random bits, shown once.
    pub code: Digest,
    /// Until when it may be used.
    pub expires_at: Timestamp,
    /// The operator.
    pub by: PersonId,
}

/// A person enrolled a passkey. The invitation is spent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApproverEnrolled {
    /// Who.
    pub person: PersonId,
    /// By which invitation.
    pub invitation: InvitationId,
    /// What was enrolled.
    pub passkey: PasskeyOnRecord,
}

/// The public half of a passkey (WebAuthn L3 §4, credential record).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PasskeyOnRecord {
    /// The credential's id, base64url.
    pub credential: String,
    /// Thumbprint of its public key (RFC 7638): the name votes call it by.
    pub key: Thumbprint,
    /// Its public key (RFC 7517).
    pub jwk: Value,
    /// The signature counter at enrolment.
    pub sign_count: u32,
    /// Whether it may be copied to other devices of its owner; never changes.
    pub backup_eligible: bool,
    /// Whether it was, at enrolment.
    pub backed_up: bool,
    /// The authenticator's model, 16 bytes, base64url; zeros when it does not say.
    pub aaguid: String,
    /// What the person calls it.
    pub label: String,
}

/// Keys that count no more, ever: passkeys, and keys of `people.toml` alike. Votes by them are void where no grant has
/// consumed them, and the person's open invitation is void.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApproverKeysRevoked {
    /// Whose.
    pub person: PersonId,
    /// Which, by their thumbprints (RFC 7638).
    pub keys: Vec<Thumbprint>,
    /// Why.
    pub cause: RevokeCause,
    /// The operator, if one did it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<PersonId>,
}

/// Why a key counts no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RevokeCause {
    /// An operator took it out.
    Operator,
    /// Its signature counter went back: there may be a second copy of it (WebAuthn L3 §6.1.1).
    Counter,
}

/// One token. The grant is this entry; the token's claims are a pure function of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenIssued {
    /// The token's id.
    pub jti: TokenId,
    /// In which task; the `txn` claim.
    pub task: TaskId,
    /// The `client_id` claim.
    pub agent: AgentId,
    /// The `sub` claim.
    pub subject: SpiffeId,
    /// The client's idempotency key, and what stands for a retry.
    #[serde(rename = "request_id")]
    pub idempotency_key: IdempotencyKey,
    /// Seconds the agent asked for.
    pub asked_ttl: i64,
    /// Blob: the agent's reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Digest>,
    /// The one approved action.
    pub action: Arc<ActionOnRecord>,
    /// Blob: its sensitive part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<Digest>,
    /// Unix seconds.
    pub iat: i64,
    /// Unix seconds.
    pub exp: i64,
    /// The signing key.
    pub kid: KeyId,
    /// What the holder must prove.
    pub cnf: Binding,
    /// How often it may be used; absent when its life is the only limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uses: Option<u32>,
    /// The index of the last entry folded when it was decided: an event above it can end it.
    pub pos: u64,
    /// What people approved, if they had to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approval: Option<Arc<ApprovalClaim>>,
    /// The access request this grant consumed, needed or not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consumed: Option<AccessRequestId>,
    /// The answer of gate 2.
    pub decision: Decision,
    /// What gate 1 saw.
    pub evidence: Arc<EvidenceFacts>,
}

/// A retry got its token again: same `jti`, same claims, signed anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenReissued {
    /// Which.
    pub jti: TokenId,
    /// The key that signed it this time.
    pub kid: KeyId,
}

/// A validator spent a use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenConsumed {
    /// Which token.
    pub jti: TokenId,
    /// Which validator.
    pub validator: ServiceId,
    /// Its idempotency key.
    pub use_id: UseId,
}

/// Grants that ended apart from their tasks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantsEnded {
    /// Which; at most [`SELECTOR_MAX`].
    pub jtis: Vec<TokenId>,
    /// Why.
    pub cause: EndCause,
    /// The operator, if one did it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<PersonId>,
}

/// Refusals before gate 1, counted: nobody can fill the journal from outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RefusalsCounted {
    /// From when.
    pub since: Timestamp,
    /// How many.
    pub count: u64,
}

/// Most ids that one entry or one feed event names.
pub const SELECTOR_MAX: usize = 256;
