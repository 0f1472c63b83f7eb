//! Responses of the broker as plain values: what [`super::TaskHandle`], [`super::ApproverClient`] and
//! [`super::OperatorClient`] return.
//!
//! Identifiers are texts as the broker sent them; `parse` of the model's types reads them. Times have milliseconds, durations
//! are whole seconds. An optional field is `None` when the broker left it out, and when this client cannot read it: a newer
//! broker may say more than this client knows.

use crate::card::AccessRequestStatus;
use crate::model::{Action, ParseError, Secret, Target, Timestamp};
use crate::proto::{card, convert, v1};

/// A wire value read as a plain one. Not `From`: no generated type in the public interface.
pub(super) trait ReadWire<T> {
    fn read(self) -> T;
}

impl<T> ReadWire<T> for T {
    fn read(self) -> T {
        self
    }
}

impl ReadWire<Option<Timestamp>> for Option<prost_types::Timestamp> {
    fn read(self) -> Option<Timestamp> {
        convert::timestamp("time", &self?).ok()
    }
}

impl ReadWire<Option<i64>> for Option<prost_types::Duration> {
    fn read(self) -> Option<i64> {
        Some(self?.seconds)
    }
}

impl ReadWire<Option<Action>> for Option<v1::Action> {
    fn read(self) -> Option<Action> {
        convert::action(&self?).ok()
    }
}

impl ReadWire<Option<Target>> for Option<v1::Target> {
    fn read(self) -> Option<Target> {
        convert::target(&self?).ok()
    }
}

impl ReadWire<Option<AccessRequestStatus>> for i32 {
    fn read(self) -> Option<AccessRequestStatus> {
        card::status(self).ok()
    }
}

/// Declares a response with the message it is read from: same fields, plain types.
macro_rules! responses {
    ($($(#[$meta:meta])* $name:ident from $wire:ident { $($(#[$doc:meta])* $field:ident: $type:ty = $from:ident,)* })*) => {
        $(
            $(#[$meta])*
            #[derive(Debug, Clone, Default, PartialEq, Eq)]
            pub struct $name {
                $($(#[$doc])* pub $field: $type,)*
            }

            impl ReadWire<$name> for v1::$wire {
                fn read(self) -> $name {
                    $name { $($field: self.$from.read(),)* }
                }
            }

            impl ReadWire<Vec<$name>> for Vec<v1::$wire> {
                fn read(self) -> Vec<$name> {
                    self.into_iter().map(ReadWire::read).collect()
                }
            }

            impl ReadWire<Option<$name>> for Option<v1::$wire> {
                fn read(self) -> Option<$name> {
                    self.map(ReadWire::read)
                }
            }
        )*
    };
}

responses! {
    /// What gate 1 verified of a workload's evidence.
    EvidenceVerification from Verification {
        /// The kind of evidence, such as `jwt-svid`.
        evidence_kind: String = evidence_kind,
        /// The SPIFFE ID that the evidence names.
        subject: String = subject,
        /// When the broker verified it.
        verified_at: Option<Timestamp> = verified_at,
        /// When the evidence expires.
        expires_at: Option<Timestamp> = expires_at,
    }

    /// A policy rule that determined a decision.
    MatchedRule from Rule {
        /// Its `@id`.
        id: String = id,
        /// Its file in the policy bundle.
        file: String = file,
        /// Its `@why`; empty without one.
        why: String = why,
    }

    /// A step-up profile that must be satisfied, and its votes so far.
    RequiredProfile from Profile {
        /// Its name.
        name: String = name,
        /// SHA-256 of its definition, base64url.
        digest: String = digest,
        /// The group whose members may vote.
        group: String = group,
        /// How many different people must approve.
        quorum: u32 = quorum,
        /// How many have approved.
        approvals: u32 = approvals,
        /// The people who approved, by opaque id; only approvers and operators see them.
        approvers: Vec<String> = approvers,
        /// How an approval is given: `key` (passkeys too), `passkey` (nothing else), empty for a profile that is no longer
        /// defined.
        method: String = method,
    }

    /// How the lifetime of a token was computed: the least of what was requested and of every limit.
    GrantedTtl from TtlBreakdown {
        /// The requested lifetime, in seconds.
        requested: Option<i64> = requested,
        /// Every limit that applied.
        limits: Vec<TtlLimitInfo> = limits,
        /// The lifetime of the token, in seconds.
        granted: Option<i64> = granted,
    }

    /// One limit on the lifetime of a token.
    TtlLimitInfo from TtlLimit {
        /// What sets it: `cap`, `task`, `evidence`, `rules`, `narrowing` or `approval`.
        by: String = by,
        /// The limit, in seconds.
        ttl: Option<i64> = ttl,
    }

    /// An access request: an action that waits for people, or waited.
    AccessRequestInfo from AccessRequest {
        /// Its id.
        access_request_id: String = access_request_id,
        /// The task it belongs to.
        task_id: String = task_id,
        /// The agent that requested it.
        agent_id: String = agent_id,
        /// The requested action.
        action: Option<Action> = action,
        /// Its status; `None` for one that this client does not know.
        status: Option<AccessRequestStatus> = status,
        /// The profiles it needs, and their votes so far.
        needs: Vec<RequiredProfile> = needs,
        /// When it was opened.
        opened_at: Option<Timestamp> = opened_at,
        /// When it expires: then it is denied.
        expires_at: Option<Timestamp> = expires_at,
        /// The catalogue's verb for the action; empty when it has none.
        title: String = title,
        /// `low`, `medium` or `high`; empty when the catalogue does not say.
        risk: String = risk,
    }

    /// What the end of a task ended.
    TaskEndReport from EndReport {
        /// The task.
        task_id: String = task_id,
        /// `completed`, `deadline`, `lease`, `operator`, `suspended`, `frozen`, `policy` or `trust`: the first cause stays.
        cause: String = cause,
        /// When it ended.
        ended_at: Option<Timestamp> = ended_at,
        /// Index of the journal entry: validators that have read this far refuse every token of the task.
        position: u64 = position,
        /// Tokens of the task, oldest first: the newest 1,000 of them.
        tokens: Vec<String> = tokens,
        /// Tokens that were still active when the task ended.
        tokens_revoked: u32 = tokens_revoked,
        /// Access requests that were still waiting.
        access_requests_closed: u32 = access_requests_closed,
        /// All tokens the task ever had.
        tokens_total: u32 = tokens_total,
    }

    /// One page of an approver's inbox.
    InboxListing from ListAccessRequestsResponse {
        /// Highest risk first (unknown counts as high), then the nearest deadline; similar ones of a page stand together.
        rows: Vec<InboxEntry> = rows,
        /// Groups of more than one similar entry, counted over all pages.
        groups: Vec<InboxEntryGroup> = groups,
        /// `page_token` of the next page; empty on the last.
        next_page_token: String = next_page_token,
        /// Entries on all pages.
        total: u32 = total,
        /// How many of them the caller may decide.
        decidable: u32 = decidable,
        /// How many more wait for their turn; they are reached by id alone.
        queued: u32 = queued,
        /// The journal position that the listing reflects, at least.
        as_of: Option<JournalPosition> = as_of,
    }

    /// One waiting access request in an inbox.
    InboxEntry from InboxRow {
        /// The access request.
        access_request: AccessRequestInfo = access_request,
        /// Profiles for which an approval of the caller would count now.
        profiles: Vec<String> = profiles,
        /// Why there are none; empty otherwise.
        ineligible_reason: String = ineligible_reason,
        /// The group of similar entries it belongs to.
        group: String = group,
        /// The agent's owner, by opaque id.
        owner: String = owner,
        /// Its parameters are too long for a list and left out: the card has them all.
        parameters_omitted: bool = parameters_omitted,
    }

    /// Similar access requests: one action on targets of one type. Each is decided by itself.
    InboxEntryGroup from InboxGroup {
        /// Its name, as in [`InboxEntry::group`].
        group: String = group,
        /// The catalogue's verb.
        title: String = title,
        /// Entries in it.
        size: u32 = size,
    }

    /// A person of the policy bundle, with the keys that count.
    ApproverInfo from Approver {
        /// The opaque id.
        person_id: String = person_id,
        /// Empty for a person who left the policy bundle.
        name: String = name,
        /// The person's groups.
        groups: Vec<String> = groups,
        /// `approver`, `operator`, `auditor`.
        roles: Vec<String> = roles,
        /// Thumbprints of the keys in `people.toml` that count.
        keys: Vec<String> = keys,
        /// Enrolled passkeys that count.
        passkeys: Vec<PasskeyInfo> = passkeys,
        /// Until when an open invitation may be used.
        invited_until: Option<Timestamp> = invited_until,
        /// Thumbprints of revoked keys.
        revoked: Vec<String> = revoked,
    }

    /// An enrolled passkey.
    PasskeyInfo from Passkey {
        /// Thumbprint of its key.
        key: String = key,
        /// The label that the person gave it.
        label: String = label,
        /// When it was enrolled.
        added_at: Option<Timestamp> = added_at,
        /// When it last signed a vote.
        last_vote_at: Option<Timestamp> = last_vote_at,
        /// Whether it may be synchronised between devices.
        backup_eligible: bool = backup_eligible,
    }

    /// What applying a policy bundle changed.
    AppliedBundle from ApplyPolicyBundleResponse {
        /// The bundle's version: its digest.
        version: String = version,
        /// `false`: the bundle was in force already.
        changed: bool = changed,
        /// Rules in it.
        rules: u32 = rules,
        /// Agents in it.
        agents: u32 = agents,
        /// What is allowed but probably not meant.
        warnings: Vec<String> = warnings,
        /// Tasks that it no longer allows, ended.
        tasks_ended: u32 = tasks_ended,
        /// Tokens that it no longer allows, revoked.
        tokens_ended: u32 = tokens_ended,
        /// Access requests closed.
        access_requests_closed: u32 = access_requests_closed,
    }

    /// What a suspension ended.
    SuspensionReport from SuspendAgentResponse {
        /// Tasks ended, with their tokens.
        tasks_ended: u32 = tasks_ended,
        /// Index of the journal entry: validators that have read this far refuse every token of the agent.
        position: u64 = position,
    }

    /// An agent: its registration, its status and its use.
    AgentInfo from RegisteredAgent {
        /// Its id.
        agent_id: String = agent_id,
        /// `false`: the policy bundle in force does not list it, and the fields up to `actions` are empty.
        registered: bool = registered,
        /// The workload that may act as it.
        spiffe_id: String = spiffe_id,
        /// The person who answers for it, by opaque id.
        owner: String = owner,
        /// Where it runs.
        environment: String = environment,
        /// The model behind it.
        model: String = model,
        /// How far it acts alone.
        autonomy: String = autonomy,
        /// Its groups.
        groups: Vec<String> = groups,
        /// Thumbprint of the only key its tasks may be bound to; empty when any key may be.
        jkt: String = jkt,
        /// Its ceiling: the only actions it may request.
        actions: Vec<String> = actions,
        /// Whether it is suspended.
        suspended: bool = suspended,
        /// Freezes in force that stop it: `all`, `agent/ID`, `owner/ID`.
        frozen: Vec<String> = frozen,
        /// Its running tasks.
        tasks_running: u32 = tasks_running,
        /// Its active tokens.
        tokens_active: u32 = tokens_active,
        /// When this broker process last verified its evidence.
        verified_at: Option<Timestamp> = verified_at,
        /// When its evidence was last verified, by the journal.
        attested_at: Option<Timestamp> = attested_at,
        /// Its use of each action, the most requested first; empty in a list of agents.
        activity: Vec<AgentActionStats> = activity,
    }

    /// An agent's use of one action, counted.
    AgentActionStats from ActionUse {
        /// The action.
        action: String = action,
        /// Whether the agent's ceiling has the action today.
        in_ceiling: bool = in_ceiling,
        /// Requests that were decided; 0: never used.
        requested: u64 = requested,
        /// Tokens issued.
        granted: u64 = granted,
        /// Requests that rules denied.
        refused: u64 = refused,
        /// Access requests that people approved.
        approved: u64 = approved,
        /// Access requests that people denied.
        denied: u64 = denied,
        /// Access requests that expired.
        expired: u64 = expired,
        /// The last request.
        last_at: Option<Timestamp> = last_at,
        /// The last denial by a person.
        last_denied_at: Option<Timestamp> = last_denied_at,
        /// That person, by opaque id; empty without one.
        last_denied_by: String = last_denied_by,
    }

    /// What a freeze ended.
    FreezeReport from FreezeResponse {
        /// `false`: the scope was frozen already.
        changed: bool = changed,
        /// Index of the journal entry: validators that have read this far refuse every token it ended.
        position: u64 = position,
        /// Tasks ended.
        tasks_ended: u32 = tasks_ended,
        /// Tokens revoked.
        tokens_ended: u32 = tokens_ended,
        /// Access requests closed.
        access_requests_closed: u32 = access_requests_closed,
    }

    /// A freeze in force.
    FreezeInfo from ActiveFreeze {
        /// `all`, `agent/ID`, `owner/ID` or `action/NAME`.
        scope: String = scope,
        /// Since when.
        since: Option<Timestamp> = since,
        /// The operator who ordered it, by opaque id.
        by: String = by,
        /// The operator's reason.
        reason: String = reason,
        /// Index of the journal entry.
        position: u64 = position,
    }

    /// A task in a list.
    TaskInfo from TaskSummary {
        /// Its id.
        task_id: String = task_id,
        /// The agent that opened it.
        agent_id: String = agent_id,
        /// The agent's owner, by opaque id.
        owner: String = owner,
        /// When it was opened.
        opened_at: Option<Timestamp> = opened_at,
        /// When it ends by itself.
        deadline: Option<Timestamp> = deadline,
        /// When a missed heartbeat ends it; `None` without a heartbeat.
        lease_until: Option<Timestamp> = lease_until,
        /// Why it ended; empty while it runs.
        ended: String = ended,
        /// Its active tokens.
        tokens_active: u32 = tokens_active,
        /// Its waiting access requests.
        access_requests_waiting: u32 = access_requests_waiting,
        /// The agent's own words, unverified; at most 200 characters of them.
        purpose: String = purpose,
    }

    /// The result of revoking a token.
    TokenRevocation from RevokeTokenResponse {
        /// `false`: the token had ended already.
        changed: bool = changed,
        /// Why it ended: `operator`, `completed`, `deadline`, …
        cause: String = cause,
        /// Index of the journal entry that ended it: validators that have read this far refuse it. `None` when time alone
        /// ended it.
        position: Option<u64> = position,
    }

    /// Why something is as it is: the answer of `explain`.
    Explanation from ExplainResponse {
        /// The answer in one line.
        headline: String = headline,
        /// The details.
        lines: Vec<ExplanationLine> = lines,
        /// The journal entries it rests on, each as JSON.
        entries: Vec<String> = entries,
    }

    /// One detail of an explanation.
    ExplanationLine from ExplainLine {
        /// What it is about.
        label: String = label,
        /// The detail.
        text: String = text,
    }

    /// A rule in force, with statistics of its decisions.
    RuleStatistics from RuleStats {
        /// Its `@id`.
        rule_id: String = rule_id,
        /// Its path in the policy bundle.
        file: String = file,
        /// Its line, from 1.
        line: u32 = line,
        /// Its `@why`.
        why: String = why,
        /// `permit` or `forbid`.
        kind: String = kind,
        /// What lifts it: `step_up PROFILE` or `max_ttl SECONDSs`; empty when nothing does.
        remedy: String = remedy,
        /// Decisions of gate 2 that it determined.
        matches: u64 = matches,
        /// Access requests that it opened.
        step_ups: u64 = step_ups,
        /// Those that people approved.
        approved: u64 = approved,
        /// Those that people denied.
        denied: u64 = denied,
        /// Those that expired.
        expired: u64 = expired,
        /// Share of approvals among those decided, in percent, rounded down; `None` when none was decided.
        approved_percent: Option<u32> = approved_percent,
        /// Median of the last 101 decision times, in seconds.
        median_seconds: Option<u32> = median_seconds,
        /// Its last decision.
        last_at: Option<Timestamp> = last_at,
        /// At least 20 decided, more than 95 % approved, in a median below 3 s.
        rubber_stamp: bool = rubber_stamp,
    }

    /// An approver's votes, counted.
    ApproverStatistics from ApproverStats {
        /// The opaque id.
        person_id: String = person_id,
        /// Empty when the policy bundle in force does not list the person.
        name: String = name,
        /// Approvals.
        approved: u64 = approved,
        /// Denials.
        denied: u64 = denied,
        /// Share of approvals, in percent, rounded down; `None` without a vote.
        approved_percent: Option<u32> = approved_percent,
        /// Median of the last 101 decision times, in seconds.
        median_seconds: Option<u32> = median_seconds,
        /// The last vote.
        last_at: Option<Timestamp> = last_at,
        /// At least 20 votes, more than 95 % approvals, in a median below 3 s.
        rubber_stamp: bool = rubber_stamp,
    }

    /// An active token.
    ActiveToken from ActiveToken {
        /// Its id.
        jti: String = jti,
        /// The agent that holds it.
        agent_id: String = agent_id,
        /// The agent's owner, by opaque id.
        owner: String = owner,
        /// The task it belongs to.
        task_id: String = task_id,
        /// The action it is for.
        action: String = action,
        /// The target of the action.
        target: Option<Target> = target,
        /// The resource server it is for.
        audience: String = audience,
        /// When it was issued.
        issued_at: Option<Timestamp> = issued_at,
        /// When it expires.
        expires_at: Option<Timestamp> = expires_at,
        /// Uses left; `None` when its lifetime is the only limit.
        uses_left: Option<u32> = uses_left,
        /// Step-up profiles it was approved under; empty when rules alone allowed it.
        profiles: Vec<String> = profiles,
    }

    /// The history of a task.
    TaskTimeline from GetTimelineResponse {
        /// The task.
        task_id: String = task_id,
        /// Its agent.
        agent_id: String = agent_id,
        /// The agent's owner, by opaque id.
        owner: String = owner,
        /// Why it ended; empty while it runs.
        ended: String = ended,
        /// Its events, in order of time.
        entries: Vec<TimelineEntry> = events,
        /// Journal entries in the midst of a very long task that are left out.
        left_out: u64 = left_out,
    }

    /// One event of a timeline or of a search.
    TimelineEntry from TimelineEvent {
        /// Index of its journal entry; `None` for what time alone brought.
        index: Option<u64> = index,
        /// When it happened.
        at: Option<Timestamp> = at,
        /// The kind of the journal entry; empty for what time alone brought.
        kind: String = kind,
        /// What happened.
        what: String = what,
        /// An agent, a person, a service, or `broker`.
        who: String = who,
        /// More of it.
        detail: String = detail,
        /// Ids to search on with.
        ids: Vec<String> = ids,
    }

    /// One page of a journal search.
    JournalSearchPage from SearchJournalResponse {
        /// The newest first; at most 50.
        entries: Vec<TimelineEntry> = events,
        /// `below` of the next page; `None` at the journal's beginning. A page with few entries is not the last while this is
        /// there.
        next: Option<u64> = next,
    }

    /// The status of a token (after RFC 7662 §2.2).
    Introspection from IntrospectResponse {
        /// Whether it is valid now, for the caller's audience. All that follows is empty otherwise.
        active: bool = active,
        /// Its id.
        jti: String = jti,
        /// The task it belongs to.
        task_id: String = task_id,
        /// The agent that holds it.
        agent_id: String = agent_id,
        /// The attested workload, a SPIFFE ID.
        subject: String = subject,
        /// The resource server it is for.
        audience: String = audience,
        /// When it expires.
        expires_at: Option<Timestamp> = expires_at,
        /// Thumbprint of the key that its holder must prove (RFC 9449 §6).
        jkt: String = jkt,
        /// The action it is for.
        action: String = action,
        /// The target of the action.
        target: Option<Target> = target,
        /// The action digest, or its commitment, as the token has it.
        action_digest: String = action_digest,
        /// Uses in all; `None` when its lifetime is the only limit.
        uses: Option<u32> = uses,
        /// Uses left.
        uses_left: Option<u32> = uses_left,
    }
}

/// An invitation to enrol one passkey. Its code is a secret: the first person to use it enrols.
#[derive(Debug, Clone)]
pub struct EnrolmentInvitation {
    /// The one-time code.
    pub code: Secret,
    /// The console's page, with the code in it.
    pub url: Secret,
    /// Until when it may be used.
    pub expires_at: Option<Timestamp>,
}

impl ReadWire<EnrolmentInvitation> for v1::InviteApproverResponse {
    fn read(self) -> EnrolmentInvitation {
        EnrolmentInvitation {
            code: Secret::new(self.code),
            url: Secret::new(self.url),
            expires_at: self.expires_at.read(),
        }
    }
}

impl ReadWire<AccessRequestInfo> for Option<v1::AccessRequest> {
    fn read(self) -> AccessRequestInfo {
        self.unwrap_or_default().read()
    }
}

/// A position in the journal: ordered by epoch, then by index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JournalPosition {
    /// The incarnation of the journal: restoring a backup begins another.
    pub epoch: u64,
    /// Index of an entry.
    pub index: u64,
}

impl JournalPosition {
    pub(crate) fn from_wire(wire: v1::Position) -> Self {
        Self {
            epoch: wire.epoch,
            index: wire.index,
        }
    }

    pub(crate) fn to_wire(self) -> v1::Position {
        v1::Position {
            epoch: self.epoch,
            index: self.index,
        }
    }
}

impl ReadWire<Option<JournalPosition>> for Option<v1::Position> {
    fn read(self) -> Option<JournalPosition> {
        self.map(JournalPosition::from_wire)
    }
}

/// One message of [`super::ApproverClient::watch_inbox`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InboxUpdate {
    /// List the inbox anew; changes after this position follow.
    Snapshot(JournalPosition),
    /// Some access requests changed. One journal entry may bring several updates of one position.
    Changed {
        /// The journal entry that changed them.
        position: JournalPosition,
        /// How.
        kind: InboxUpdateKind,
        /// Which, by id.
        access_request_ids: Vec<String>,
    },
    /// A queued access request may have had its turn: list the inbox anew.
    QueueAdvanced,
    /// Nothing changed up to this position.
    Heartbeat(JournalPosition),
}

/// How access requests in an inbox changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InboxUpdateKind {
    /// They wait now.
    Opened,
    /// An approval was recorded.
    Voted,
    /// They wait no longer.
    Closed,
    /// Rules or voters changed: any access request may be affected.
    PolicyChanged,
    /// A kind that this client does not know: list the inbox anew.
    Unknown,
}

impl InboxUpdate {
    pub(super) fn read(wire: v1::WatchAccessRequestsResponse) -> Result<Self, ParseError> {
        use v1::watch_access_requests_response::Message;
        let missing = |field| ParseError::new(field, "is required");
        Ok(match wire.message.ok_or_else(|| missing("message"))? {
            Message::Snapshot(snapshot) => Self::Snapshot(JournalPosition::from_wire(
                snapshot.as_of.ok_or_else(|| missing("as_of"))?,
            )),
            Message::Change(change) => Self::Changed {
                position: JournalPosition::from_wire(
                    change.position.ok_or_else(|| missing("position"))?,
                ),
                kind: match change.kind() {
                    v1::InboxChangeKind::Opened => InboxUpdateKind::Opened,
                    v1::InboxChangeKind::Voted => InboxUpdateKind::Voted,
                    v1::InboxChangeKind::Closed => InboxUpdateKind::Closed,
                    v1::InboxChangeKind::Rules => InboxUpdateKind::PolicyChanged,
                    v1::InboxChangeKind::Unspecified => InboxUpdateKind::Unknown,
                },
                access_request_ids: change.access_request_ids,
            },
            Message::BudgetChanged(v1::InboxBudgetChanged {}) => Self::QueueAdvanced,
            Message::Heartbeat(heartbeat) => {
                let position = heartbeat.position.ok_or_else(|| missing("position"))?;
                Self::Heartbeat(JournalPosition::from_wire(position))
            }
        })
    }
}
