//! Responses to agents: access requests, decisions, and the end of a task.

use super::{ReadWire, responses};
use crate::card::{AccessRequestStatus, CardDelay};
use crate::model::{Action, Timestamp};
use crate::proto::v1;

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
        /// `permit`, `step_up`, `max_ttl` or `forbid`; empty when it is no longer in the active policy bundle.
        effect: String = effect,
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
        /// The people who approved; only approvers and operators see them.
        approvers: Vec<ProfileApproval> = approvers,
        /// How an approval of this request is given: `key` (passkeys too), `passkey` (nothing else, because the profile or the
        /// action's risk requires it), empty for a profile that is no longer defined.
        method: String = method,
    }

    /// An approval that counts.
    ProfileApproval from ProfileApproval {
        /// The person who approves, by opaque id.
        person_id: String = person_id,
        /// How the vote is signed: `key` or `passkey`.
        method: String = method,
    }

    /// An approval that no longer counts, because what it was given for has changed.
    VoidApproval from VoidVote {
        /// The voter, by opaque id; empty for agents.
        voter: String = voter,
        /// What has changed since the vote, in words such as `risk` and `target's name`.
        changed: Vec<String> = changed,
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
        /// What sets it: `cap`, `task`, `evidence`, `rules`, `fact`, `recommendation`, `narrowing` or `approval`.
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
        /// Approvals that no longer count, because what they were given for has changed.
        void_votes: Vec<VoidApproval> = void_votes,
        /// What time alone changes in what it needs, unless somebody says no.
        delay: Option<CardDelay> = delay,
        /// When it was opened.
        opened_at: Option<Timestamp> = opened_at,
        /// When it expires: then it is denied.
        expires_at: Option<Timestamp> = expires_at,
        /// The catalogue's verb for the action; empty when it has none.
        title: String = title,
        /// `low`, `medium` or `high`; empty when the catalogue does not say.
        risk: String = risk,
        /// The proposer of a policy bundle; empty for the request of an agent.
        proposer: String = proposer,
        /// The agent that would execute what an advisory agent recommends; empty for any other request.
        executor: String = executor,
    }

    /// Whether a task runs, until when, and how it ended.
    TaskStatus from GetTaskResponse {
        /// The task.
        task_id: String = task_id,
        /// The agent it belongs to.
        agent_id: String = agent_id,
        /// When it ends at the latest.
        deadline: Option<Timestamp> = deadline,
        /// When a missed heartbeat ends it; `None` without a heartbeat.
        lease_until: Option<Timestamp> = lease_until,
        /// Empty while it runs; then the cause of its first end, as in [`TaskEndReport::cause`].
        end_cause: String = end_cause,
        /// When it ended; `None` while it runs, and while its end waits to be journalled.
        ended_at: Option<Timestamp> = ended_at,
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
}

impl ReadWire<AccessRequestInfo> for Option<v1::AccessRequest> {
    fn read(self) -> AccessRequestInfo {
        self.unwrap_or_default().read()
    }
}
