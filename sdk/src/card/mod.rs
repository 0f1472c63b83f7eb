//! Approval card: the view of an access request that an approver reads before a vote, with every field that the vote signs.
//!
//! In: plain values, from the broker or from the wire. Out: [`CardView`], sections of rows of text that is safe to show
//! anywhere. There is one renderer, [`Card::show`]; the terminal ([`render_terminal`]), a chat ([`render_chat`]) and the
//! console's pages only lay out its rows, so every approver decides on the same card.
//!
//! Verb, object and parameters come first, in the catalogue's words; the agent's own words come last, quoted and labelled.
//! Different actions never have equal rows: texts that agents chose are quoted, invisible and misleading characters are
//! written as codes ([`escape_untrusted`]) and flagged ([`confusable_warnings`]), and types are told apart. No untrusted text
//! makes a row or a label of its own. A long value is folded: its beginning, its length and its digest, and the whole on
//! request. A missing value is shown as unknown.
//! Never: reads a clock, decides anything, or writes HTML.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::*;

mod compact;
mod confusables;
mod escape;
mod facts;
mod layout;
mod render;
#[cfg(any(test, feature = "test-support"))]
#[allow(clippy::expect_used, reason = "for tests: constants that parse")]
pub mod sample;
mod view;

pub use compact::{COMPACT_CHARS_MAX, compact_parameters};
pub use confusables::confusable_warnings;
pub use escape::{escape_untrusted, plain_or_quoted, quoted, target_id, unquote};
pub use facts::{ActionFacts, AgentFacts, CardFacts, ExecutorFacts, NamedFact, PersonFacts};
pub use layout::{COLUMNS_MIN, LongValues, render_chat, render_terminal};
pub use view::{CardRow, CardSection, CardView, Extent, FoldLimits, Headline, SectionKind, Tone};

/// Everything an approver must know about one access request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// The access request.
    pub access_request: AccessRequestId,
    /// Its status.
    pub status: AccessRequestStatus,
    /// The realm the vote counts in.
    pub realm: Realm,
    /// The catalogue's verb; empty when the catalogue no longer has the action.
    pub title: String,
    /// The catalogue's description of its effect; empty when it has none.
    pub effect: String,
    /// `yes`, `no`, or in words; empty when the catalogue does not say.
    pub reversible: String,
    /// How it is undone; empty when the catalogue does not say.
    pub undo: String,
    /// Its risk; absent when the catalogue does not say.
    pub risk: Option<Risk>,
    /// The action with its plain parameters; absent when retention dropped it: then it cannot be decided any more.
    pub action: Option<Arc<Action>>,
    /// The catalogue's titles of its parameters, by path: `hosts`, `who.name`.
    pub parameter_titles: BTreeMap<String, String>,
    /// The target's attributes in the policy bundle; absent when the bundle does not have the target.
    pub target_attributes: Option<Vec<(String, String)>>,
    /// The openings of the commitments in the action that is signed; absent without sensitive parameters.
    pub openings: Option<ActionSecret>,
    /// What a proposed policy bundle changes; absent for the request of an agent.
    pub changes: Option<PolicyChanges>,
    /// The named facts that the rules in scope read, by name.
    pub named_facts: BTreeMap<String, NamedFact>,
    /// What it would end, and how it would have decided what is on record, in sentences that say when that was looked at. Beside what is
    /// signed. Empty for the request of an agent.
    pub plan: Vec<String>,
    /// The requester: an agent, or a person who proposes a policy bundle.
    pub requester: Requester,
    /// The rules that require approval.
    pub rules: Vec<RuleSummary>,
    /// The profiles they require, and the votes each has.
    pub needs: Vec<ProfileProgress>,
    /// What time alone changes in that, unless somebody says no.
    pub delay: Option<CardDelay>,
    /// Approvals that no longer count, since what they were given for has changed.
    pub void_votes: Vec<VoidVote>,
    /// Longest life of the token, in seconds, before narrowing; absent when no token is asked for.
    pub max_ttl: Option<i64>,
    /// How often the token may be used, before narrowing; absent when its life is the only limit.
    pub uses: Option<u32>,
    /// The policy bundle the card is rendered under.
    pub policy: Digest,
    /// When the access request was opened.
    pub opened_at: Timestamp,
    /// When it expires: then it is denied.
    pub expires_at: Timestamp,
    /// What is unusual about it, one sentence each, in the broker's words. Not known while [`field@Self::history`] is absent.
    pub anomalies: Vec<String>,
    /// How similar requests were decided; absent when their history is not known.
    pub history: Option<History>,
    /// How long the card must have been shown to its reader before an approval is accepted, in seconds; 0 for no dwell time.
    pub dwell_s: u32,
    /// The console's page of this access request, if the broker has a console.
    pub console_url: Option<String>,
    /// The task's purpose, in the agent's words.
    pub purpose: Option<UntrustedText>,
    /// The reason of the request, in the agent's words.
    pub reason: Option<UntrustedText>,
}

/// A delay of rules: what an access request still needs after a time without a no.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CardDelay {
    /// That time.
    pub at: Timestamp,
    /// The profiles that it still needs then; empty: nobody.
    pub needs: Vec<ProfileName>,
}

/// By when people have to have decided: before the delay is over, while it is not, or else before the access request expires.
pub fn decide_by(delay: Option<&CardDelay>, expires_at: Timestamp, now: Timestamp) -> Timestamp {
    let delay = delay.map(|delay| delay.at).filter(|at| *at > now);
    delay.map_or(expires_at, |at| at.min(expires_at))
}

impl CardDelay {
    /// It in words, while the access request waits.
    pub fn text(&self, now: Timestamp) -> String {
        let Self { at, needs } = self;
        let names: Vec<&str> = needs.iter().map(ProfileName::as_str).collect();
        let names = names.join(" and ");
        match (*at <= now, names.is_empty()) {
            (false, true) => format!("allowed at {at} unless somebody says no"),
            (false, false) => format!("only {names} from {at} on, unless somebody says no"),
            (true, true) => format!("allowed since {at}: nobody has said no; a no still ends it"),
            (true, false) => {
                format!("only {names} since {at}: nobody has said no; a no still ends it")
            }
        }
    }
}

impl Card {
    /// Words that approver and requester compare, to know that they speak of the same request (the `binding_message` of
    /// OpenID CIBA §7.1).
    pub fn phrase(&self) -> MatchPhrase {
        MatchPhrase::from_request(&self.access_request)
    }
}

/// The status of an access request, with expiry and the state of its task considered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessRequestStatus {
    /// It waits for approvers.
    Waiting,
    /// Enough people approved.
    Approved,
    /// A person denied it.
    Denied,
    /// A token was issued on it.
    Consumed,
    /// The agent cancelled it.
    Cancelled,
    /// It expired, and no approver had approved it.
    Expired,
    /// It expired after an approver had approved it, and before a token was issued.
    ApprovalExpired,
    /// The end of its task or agent, or a change of rules, closed it.
    Ended,
}

impl AccessRequestStatus {
    /// Its name on cards and in explanations.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Approved => "approved",
            Self::Denied => "denied",
            Self::Consumed => "consumed",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
            Self::ApprovalExpired => "approval_expired",
            Self::Ended => "ended",
        }
    }

    /// Whether the status is final.
    pub const fn is_final(self) -> bool {
        match self {
            Self::Waiting | Self::Approved => false,
            Self::Denied
            | Self::Consumed
            | Self::Cancelled
            | Self::Expired
            | Self::ApprovalExpired
            | Self::Ended => true,
        }
    }
}

/// A person: the id that is signed, and the display name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PersonRef {
    /// The opaque id of entries and votes.
    pub id: PersonId,
    /// As the policy bundle has it; absent when it no longer lists the person.
    pub name: Option<String>,
}

/// The requester of the action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Requester {
    /// An agent, in a task.
    Agent(Box<RequestingAgent>),
    /// A person, who proposes a policy bundle; never counts as an approver of it.
    Person(PersonRef),
}

impl Requester {
    /// The agent; absent for a person.
    pub fn agent(&self) -> Option<&RequestingAgent> {
        match self {
            Self::Agent(agent) => Some(agent),
            Self::Person(_) => None,
        }
    }

    /// The person who answers for it: the agent's owner, or the proposer.
    pub fn owner(&self) -> &PersonRef {
        match self {
            Self::Agent(agent) => &agent.owner,
            Self::Person(person) => person,
        }
    }
}

/// The agent that requests the action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestingAgent {
    /// Its id.
    pub id: AgentId,
    /// Its owner; never counts as an approver of it.
    pub owner: PersonRef,
    /// Its registration; absent when it is no longer registered.
    pub registered: Option<AgentRegistration>,
    /// What gate 1 verified.
    pub verified: Attestation,
    /// The task it belongs to.
    pub task: TaskId,
    /// Thumbprint of the key the token will be bound to; of an advisory agent's task no token is.
    pub task_key: Thumbprint,
    /// The agent that would execute what this one, which is advisory, recommends.
    pub executor: Option<ExecutingAgent>,
}

/// The agent that would execute a recommendation, with a task and a key of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecutingAgent {
    /// Its id.
    pub id: AgentId,
    /// Its owner; never counts as an approver of it.
    pub owner: PersonRef,
    /// Its registration; absent when it is no longer registered.
    pub registered: Option<AgentRegistration>,
}

/// An approval that does not count: its facts are not those of the card any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VoidVote {
    /// The voter.
    pub voter: PersonRef,
    /// What has changed since, in words such as `risk` and `target's name`.
    pub changed: Vec<String>,
}

/// The registration of an agent in the policy bundle: claims of the security team, not attested.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentRegistration {
    /// Where it runs.
    pub environment: String,
    /// The model behind it.
    pub model: String,
    /// How far it acts alone.
    pub autonomy: String,
}

/// The evidence that gate 1 verified when the request was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attestation {
    /// The kind of evidence, such as `jwt-svid`.
    pub kind: String,
    /// The workload it names.
    pub subject: SpiffeId,
    /// When its issuer issued it; absent when it does not say.
    pub issued_at: Option<Timestamp>,
    /// When the broker verified it.
    pub verified_at: Timestamp,
    /// When it expires.
    pub expires_at: Timestamp,
}

/// A policy rule with its annotations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleSummary {
    /// Its `@id`.
    pub id: String,
    /// Its file in the policy bundle.
    pub file: String,
    /// Its `@why`; empty when it has none.
    pub why: String,
    /// `permit`, `step_up`, `max_ttl` or `forbid`; empty when it is no longer in the active policy bundle.
    pub effect: String,
}

/// A step-up profile that must be satisfied, and its approvals so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProfileProgress {
    /// Name and digest.
    pub profile: ProfileRef,
    /// The group whose members may vote.
    pub group: String,
    /// How many different people must approve.
    pub quorum: u32,
    /// The approvals that count, one of each person.
    pub approvers: Vec<CountedApproval>,
    /// Whether only passkeys count.
    pub passkey: bool,
    /// What is unusual about the passkeys of those who approved, and of the card's reader: young, or not confirmed. In words.
    pub key_notes: Vec<String>,
}

/// An approval that counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CountedApproval {
    /// The person who approves.
    pub person: PersonRef,
    /// How the vote is signed: a registered key may be a script's.
    pub method: VoteMethod,
}

/// How requests like this one, of the same agent for the same action, were decided.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// How many were approved.
    pub approved: u32,
    /// How many were denied.
    pub denied: u32,
    /// Approvals by the card's reader.
    pub approved_by_caller: u32,
    /// Denials by the card's reader.
    pub denied_by_caller: u32,
    /// The last time one was approved.
    pub last_approved_at: Option<Timestamp>,
    /// The last time one was denied.
    pub last_denied_at: Option<Timestamp>,
    /// The person of the last denial.
    pub last_denied_by: Option<PersonRef>,
    /// How many were requested on this day (UTC), this one included.
    pub requested_today: u32,
    /// Whether none was decided before: no token issued, no denial by a person.
    pub first: bool,
}
