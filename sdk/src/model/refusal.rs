//! Reasons of refusals and denials: one table for gRPC, HTTP, the command line and the client library. `REASONS.md` shows
//! the same table to people. A new reason is a new row.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::status::{Code, DetailVisibility, Exit, RetryHint};

macro_rules! names {
    ($name:ident { $($variant:ident = $word:literal,)* }) => {
        impl $name {
            /// Every reason of the set.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The upper-case name on the wire (AIP-193 `ErrorInfo.reason`).
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),* }
            }

            /// The reason with this name.
            pub fn parse(text: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|r| r.as_str() == text)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

macro_rules! refusals {
    ($($variant:ident = $word:literal $code:ident $exit:ident $detail:ident $retry:expr, $text:literal, $next:literal;)*) => {
        /// Why a call was refused: the closed set of reasons behind every error status.
        ///
        #[doc = include_str!("REASONS.md")]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum Reason {
            $(#[doc = $text] #[serde(rename = $word)] $variant,)*
        }

        names! { Reason { $($variant = $word,)* } }

        impl Reason {
            /// Its gRPC code, and by [`Code::http`] its HTTP status.
            pub const fn code(self) -> Code {
                match self { $(Self::$variant => Code::$code),* }
            }

            /// The exit code of a command that was refused for it.
            pub const fn exit(self) -> Exit {
                match self { $(Self::$variant => Exit::$exit),* }
            }

            /// Who may see more than [`Reason::text`].
            pub const fn detail(self) -> DetailVisibility {
                match self { $(Self::$variant => DetailVisibility::$detail),* }
            }

            /// Whether the same call may succeed later.
            pub const fn retry(self) -> RetryHint {
                match self { $(Self::$variant => $retry),* }
            }

            /// The constant text.
            pub const fn text(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }

            /// What the caller can do about it.
            pub const fn next_step(self) -> &'static str {
                match self { $(Self::$variant => $next),* }
            }
        }
    };
}

macro_rules! denials {
    ($($variant:ident = $word:literal $exit:ident, $text:literal, $next:literal;)*) => {
        /// Why gate 2 denied a request: part of an OK reply, so it has no status code.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum DeniedReason {
            $(#[doc = $text] #[serde(rename = $word)] $variant,)*
        }

        names! { DeniedReason { $($variant = $word,)* } }

        impl DeniedReason {
            /// The exit code of a command that was denied for it.
            pub const fn exit(self) -> Exit {
                match self { $(Self::$variant => Exit::$exit),* }
            }

            /// The constant text.
            pub const fn text(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }

            /// What the caller can do about it.
            pub const fn next_step(self) -> &'static str {
                match self { $(Self::$variant => $next),* }
            }
        }
    };
}

use RetryHint::{AfterMs, Never};

/// Retry delay after a concurrent change, in milliseconds.
const CONFLICT_RETRY_MS: u32 = 50;
/// Retry delay after overload or an outage, in milliseconds.
const SECOND_MS: u32 = 1_000;
/// Retry delay after a limit per minute, in milliseconds.
const MINUTE_MS: u32 = 60_000;

// variant = name, gRPC code, exit, who may see the detail, retry hint, text, next step
refusals! {
    NotAuthenticated = "NOT_AUTHENTICATED" Unauthenticated NotAuthenticated Operator Never,
        "authentication failed; ask an operator to look up the correlation id",
        "check the evidence, the broker's URL, and whether the agent is frozen or suspended; an operator finds the cause with 'dipylon explain' and the correlation id";
    UseDpopNonce = "USE_DPOP_NONCE" Unauthenticated NotAuthenticated Operator AfterMs(0),
        "the proof needs the server nonce in dpop-nonce",
        "repeat the call with a new proof that carries the nonce (RFC 9449 section 8); the client library does";
    EvidenceStale = "EVIDENCE_STALE" Unauthenticated NotAuthenticated Operator Never,
        "the evidence is too old for this call",
        "send fresh evidence with the call: --evidence FILE, or --agent ID in development";
    NotPermitted = "NOT_PERMITTED" PermissionDenied Denied Operator Never,
        "the caller's role does not allow this call",
        "use the key of a person or service whose role allows it";
    Malformed = "MALFORMED" InvalidArgument UsageError Caller Never,
        "the message is malformed",
        "correct the request as the message says";
    NotGrpc = "NOT_GRPC" InvalidArgument UsageError Caller Never,
        "the request is not a gRPC call over HTTP/2",
        "use a gRPC client, and have every proxy on the way speak HTTP/2 to the broker; over HTTP the status is 400, 405, 415 or 505";
    UnknownMethod = "UNKNOWN_METHOD" Unimplemented UsageError Caller Never,
        "the broker has no such method",
        "check the name of the method, and that the client is not newer than the broker";
    UnsupportedEncoding = "UNSUPPORTED_ENCODING" Unimplemented UsageError Caller Never,
        "compressed messages are not supported",
        "send messages without compression";
    RequestTooLarge = "REQUEST_TOO_LARGE" ResourceExhausted UsageError Caller Never,
        "the request is larger than its limit",
        "send less, as the message says; over HTTP the status is 413 or 431";
    DeadlineExceeded = "DEADLINE_EXCEEDED" DeadlineExceeded Unavailable Caller Never,
        "the deadline of the call has passed; whether it took effect is unknown",
        "repeat it with the same idempotency key and a longer deadline";
    UnknownAction = "UNKNOWN_ACTION" InvalidArgument UsageError Caller Never,
        "the catalogue does not have this action",
        "the catalogue is schema.cedarschema of the policy bundle";
    UnknownTarget = "UNKNOWN_TARGET" InvalidArgument UsageError Caller Never,
        "the policy bundle does not have this target, or the action does not apply to its type",
        "targets are in entities.json of the policy bundle, the types of an action in schema.cedarschema";
    InvalidParameters = "INVALID_PARAMETERS" InvalidArgument UsageError Caller Never,
        "a parameter is missing, unknown, or not of the type in the catalogue",
        "the parameters of an action are in schema.cedarschema of the policy bundle";
    UnknownAudience = "UNKNOWN_AUDIENCE" InvalidArgument UsageError Caller Never,
        "no registered validator has this audience",
        "audiences are in people.toml of the policy bundle, with their validators";
    InvalidTtl = "INVALID_TTL" InvalidArgument UsageError Caller Never,
        "a duration of the request is outside its bounds",
        "request a duration within the bounds that the message gives";
    InvalidPolicyBundle = "INVALID_POLICY_BUNDLE" InvalidArgument Failed Caller Never,
        "the policy bundle is invalid",
        "correct what the message names; 'dipylon policy check DIR' lists every problem of the files, with its line, and none that only the journal knows";
    NotFound = "NOT_FOUND" NotFound Failed Operator Never,
        "not found, or not visible to this caller",
        "check the id, and the key or task that the call was made with";
    ReceiptUnavailable = "RECEIPT_UNAVAILABLE" FailedPrecondition Failed Caller Never,
        "no receipt of this token can be made",
        "the message says what is missing; 'dipylon explain' with the token's id shows what the journal still has";
    IdempotencyKeyReused = "IDEMPOTENCY_KEY_REUSED" AlreadyExists Conflict Caller Never,
        "this idempotency key was used for another request",
        "request again with a new --idempotency-key";
    InvalidExecutor = "INVALID_EXECUTOR" InvalidArgument UsageError Caller Never,
        "the executor is missing, or not one that the bundle lists for the agent",
        "name an agent of `executors` in agents.toml; only an advisory agent names one";
    ExecutorStopped = "EXECUTOR_STOPPED" FailedPrecondition Denied Caller Never,
        "the executor is suspended or frozen",
        "name another executor, or recommend the action when the executor is resumed";
    AdvisoryAgent = "ADVISORY_AGENT" PermissionDenied Denied Caller Never,
        "an advisory agent gets no token",
        "recommend the action; another agent that the bundle lists as executor requests the token once people approved";
    NotAnotherAgent = "NOT_ANOTHER_AGENT" PermissionDenied Denied Caller Never,
        "the executor is not apart from the agent that recommends: it has the same key, workload or owner",
        "execute with an agent that runs as another workload, with a key of its own, for another owner";
    ApprovalOutOfScope = "APPROVAL_OUT_OF_SCOPE" FailedPrecondition Conflict Caller Never,
        "what people were asked is for another action or executor",
        "request exactly what they were asked; or this with a new --idempotency-key, which people decide separately";
    TaskEnded = "TASK_ENDED" FailedPrecondition Failed Caller Never,
        "the task has ended",
        "open another task with 'dipylon task open'";
    TokenNoLongerValid = "TOKEN_NO_LONGER_VALID" FailedPrecondition Conflict Caller Never,
        "the token of this idempotency key was revoked or has expired",
        "request again with a new --idempotency-key";
    UsesExhausted = "USES_EXHAUSTED" FailedPrecondition Failed Caller Never,
        "the token has no uses left",
        "the agent has to request another token";
    TokenInactive = "TOKEN_INACTIVE" FailedPrecondition Failed Operator Never,
        "the token is not active for this caller",
        "reject the call that the token came with";
    AccessRequestClosed = "ACCESS_REQUEST_CLOSED" FailedPrecondition Conflict Caller Never,
        "the access request is no longer pending",
        "'dipylon request list' shows the pending ones";
    NotEligible = "NOT_ELIGIBLE" PermissionDenied Denied Caller Never,
        "your vote would not count for this access request",
        "another person has to vote; the message says why";
    LastOperatorKey = "LAST_OPERATOR_KEY" FailedPrecondition Failed Caller Never,
        "no operator would have a living key after it",
        "apply a policy bundle that registers another operator's key first, or revoke it as compromised, 'dipylon approver revoke PERSON --compromised', after which only 'dipylon recover operators' on the broker's host puts a bundle in force";
    ChangeQuorumUnreachable = "CHANGE_QUORUM_UNREACHABLE" FailedPrecondition QuorumUnreachable Caller Never,
        "too few people are left who could agree to a change of the policy bundle",
        "'dipylon recover operators' on the broker's host puts a bundle in force; freezing, suspending and revoking need nobody else";
    VoteStatementExpired = "VOTE_STATEMENT_EXPIRED" FailedPrecondition Failed Caller Never,
        "the vote statement is unknown or has expired",
        "vote again: a statement is valid for two minutes";
    InvalidSignature = "INVALID_SIGNATURE" InvalidArgument Failed Caller Never,
        "the signature does not verify over the statement with a registered key of the caller",
        "sign the statement exactly as returned, with the key of the call";
    InvalidPasskeyAssertion = "INVALID_PASSKEY_ASSERTION" PermissionDenied Denied Caller Never,
        "the passkey assertion is invalid",
        "try again with a passkey of yours, at the console's address";
    PasskeyChanged = "PASSKEY_CHANGED" FailedPrecondition Failed Caller Never,
        "the passkey now says otherwise than at its enrolment whether it may be synced to other devices, so it is no longer accepted; enrol it again",
        "ask an operator for an invitation, 'dipylon approver invite', and enrol the passkey again at the console; revoke the old one with 'dipylon approver revoke'";
    InvalidInvitation = "INVALID_INVITATION" PermissionDenied Denied Operator Never,
        "the invitation is unknown, used, or expired",
        "ask an operator for another one: 'dipylon approver invite'";
    NotConfirmable = "NOT_CONFIRMABLE" FailedPrecondition Denied Caller Never,
        "the passkey is confirmed already, or has no living key to confirm",
        "'dipylon approver list' shows which passkeys await confirmation";
    NotAnotherHand = "NOT_ANOTHER_HAND" PermissionDenied Denied Caller Never,
        "a passkey is confirmed by an operator or approver who is neither its person nor its inviter, with a registered key or a confirmed passkey",
        "ask another operator or approver to confirm it; where there is none, the owner of the broker's host can: 'dipylon approver confirm-on-host PERSON CODE'";
    DwellRequired = "DWELL_REQUIRED" FailedPrecondition Failed Caller AfterMs(SECOND_MS),
        "the card has to be open longer before an approval is accepted",
        "read the card, then vote; `[approvals]` in `people.toml` sets the time";
    PolicyChanged = "POLICY_CHANGED" FailedPrecondition Conflict Caller Never,
        "the policy has changed since the card was shown, or the bundle was planned",
        "read the card again, then vote; or plan the bundle again: 'dipylon policy plan'";
    ApprovalVoid = "APPROVAL_VOID" FailedPrecondition Conflict Caller Never,
        "approval void: what it was given for has changed",
        "read the card again: the message says what has changed; then vote";
    PositionAhead = "POSITION_AHEAD" OutOfRange Failed Caller Never,
        "the position is ahead of the journal",
        "the broker may have lost entries: ask its operators, and start without a position";
    EpochMismatch = "EPOCH_MISMATCH" FailedPrecondition Failed Caller Never,
        "the position is from another epoch of the journal",
        "start without a position: everything of an earlier epoch has ended";
    Conflict = "CONFLICT" Aborted Conflict Operator AfterMs(CONFLICT_RETRY_MS),
        "a concurrent change got there first; nothing was done",
        "try again";
    TooManyPending = "TOO_MANY_PENDING" ResourceExhausted LimitExceeded Caller AfterMs(MINUTE_MS),
        "too many access requests are pending",
        "wait until approvers have decided, or cancel requests that are not needed";
    DenialBackoff = "DENIAL_BACKOFF" ResourceExhausted LimitExceeded Caller AfterMs(MINUTE_MS),
        "approvers denied requests of this agent recently; new ones have to wait",
        "wait for the time that the message and RetryInfo give, up to half an hour, and request something else";
    TooManyTasks = "TOO_MANY_TASKS" ResourceExhausted LimitExceeded Caller AfterMs(MINUTE_MS),
        "the agent has too many running tasks",
        "complete finished tasks: 'dipylon task complete'";
    TooManyRefusals = "TOO_MANY_REFUSALS" ResourceExhausted LimitExceeded Caller AfterMs(MINUTE_MS),
        "too many refused requests in a minute",
        "wait a minute, then try again";
    Overloaded = "OVERLOADED" ResourceExhausted LimitExceeded Operator AfterMs(SECOND_MS),
        "the broker is overloaded; nothing was done",
        "try again in a second";
    RateLimited = "RATE_LIMITED" ResourceExhausted LimitExceeded Operator AfterMs(SECOND_MS),
        "rate limit exceeded; nothing was done",
        "wait for the time that RetryInfo gives (the client library does); `[rate_limits]` in `dipylon.toml` sets the limits";
    ClockUnreliable = "CLOCK_UNRELIABLE" FailedPrecondition Unavailable Caller Never,
        "the broker's wall clock is unreliable; no token is issued until it has been steady for a minute",
        "'dipylon doctor' on the broker's host compares its clocks";
    JournalUnavailable = "JOURNAL_UNAVAILABLE" Unavailable Unavailable Operator AfterMs(SECOND_MS),
        "the journal cannot take entries; nothing was done",
        "try again; if it lasts, 'dipylon doctor' on the broker's host says why";
    ConnectionClosing = "CONNECTION_CLOSING" Unavailable Unavailable Caller AfterMs(0),
        "the connection is closing",
        "reconnect, and resume the stream from its last position";
    InternalError = "INTERNAL_ERROR" Internal Failed Operator Never,
        "the broker failed; whether the call took effect is unknown",
        "repeat it with the same idempotency key, and report it with the correlation id";
    OutcomeUnknown = "OUTCOME_UNKNOWN" Unavailable Unavailable Operator AfterMs(SECOND_MS),
        "the outcome is unknown: the journal has not confirmed the entry of this call, which may count all the same",
        "repeat the call with the same idempotency key when the broker is ready again, which is always safe; for a call without one, look first whether it took effect, in the lists or on the console's journal page";
    DecisionUnavailable = "DECISION_UNAVAILABLE" Unavailable Unavailable Operator AfterMs(SECOND_MS),
        "no decision was possible; nothing was done",
        "try again";
}

// variant = name, exit, text, next step
denials! {
    ForbiddenByRule = "FORBIDDEN_BY_RULE" Denied,
        "a rule forbids it",
        "'dipylon explain' names the rule and its line; an approval cannot override it";
    NoRuleAllows = "NO_RULE_ALLOWS" Denied,
        "no rule allows it",
        "the security team has to write a rule that allows it";
    OutsideCeiling = "OUTSIDE_CEILING" Denied,
        "the action is outside the agent's ceiling",
        "the ceiling is in agents.toml of the policy bundle";
    RuleEvaluationFailed = "RULE_EVALUATION_FAILED" Denied,
        "a rule could not be evaluated, which denies",
        "report it to the security team: 'dipylon explain' names the rule";
    DeniedByApprover = "DENIED_BY_APPROVER" Denied,
        "an approver denied it",
        "request something else, or talk to the approver";
    Expired = "EXPIRED" ApprovalTimeout,
        "approval timed out",
        "request again with a new --idempotency-key when an approver is available";
    ApprovalExpired = "APPROVAL_EXPIRED" ApprovalTimeout,
        "an approver approved it, and the access request expired before a token was issued",
        "request again with a new --idempotency-key when every approver it needs is available, and wait for the answer: --wait";
    NoEligibleApprover = "NO_ELIGIBLE_APPROVER" QuorumUnreachable,
        "quorum cannot be reached: too few people could approve",
        "the security team has to add approvers, or invite them to enrol passkeys: the agent's owner never counts";
    ExecutorNotAllowed = "EXECUTOR_NOT_ALLOWED" Denied,
        "the bundle does not list this executor any more, or asks more of people for it than the recommendation did",
        "recommend the action again, to an agent of `executors` in agents.toml";
    RecommenderNotAllowed = "RECOMMENDER_NOT_ALLOWED" Denied,
        "the rules do not allow the action any more to the agent that recommended it",
        "'dipylon explain' names the rules; when they allow it again, the agent has to recommend it again";
    Frozen = "FROZEN" Denied,
        "the action is frozen",
        "request again when the freeze is lifted; 'dipylon freeze' lists active freezes";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn reason_table_is_complete() {
        let mut names = BTreeSet::new();
        for reason in Reason::ALL {
            assert!(names.insert(reason.as_str()), "{reason} is listed twice");
            assert_eq!(Reason::parse(reason.as_str()), Some(*reason));
            assert!(!reason.text().is_empty() && !reason.next_step().is_empty());
            assert_ne!(reason.exit(), Exit::Success, "{reason}");
            let name = serde_json::to_value(reason).expect("json");
            assert_eq!(name, reason.as_str());
        }
        for reason in DeniedReason::ALL {
            assert!(names.insert(reason.as_str()), "{reason} is listed twice");
            assert_eq!(DeniedReason::parse(reason.as_str()), Some(*reason));
            assert!(!reason.text().is_empty() && !reason.next_step().is_empty());
            assert_ne!(reason.exit(), Exit::Success, "{reason}");
        }
        let numbers: Vec<u8> = Exit::ALL.iter().map(|exit| exit.number()).collect();
        assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
    }

    #[test]
    fn unauthenticated_callers_get_no_detail() {
        for reason in Reason::ALL {
            if reason.code() == Code::Unauthenticated {
                assert_eq!(reason.detail(), DetailVisibility::Operator, "{reason}");
                assert_eq!(reason.exit().number(), 20, "{reason}");
            }
            if reason.code() == Code::Unavailable {
                assert_eq!(reason.exit().number(), 14, "{reason}");
                assert_ne!(reason.retry(), RetryHint::Never, "{reason}");
            }
        }
    }
}
