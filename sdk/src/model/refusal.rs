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
        "authentication failed; an operator can look up the correlation id",
        "an operator finds the cause with 'dipylon explain' and the correlation id";
    UseDpopNonce = "USE_DPOP_NONCE" Unauthenticated NotAuthenticated Operator AfterMs(0),
        "the DPoP proof must contain the nonce of the dpop-nonce header",
        "repeat the call with a new proof that contains the nonce (RFC 9449 section 8); the client library does so";
    EvidenceStale = "EVIDENCE_STALE" Unauthenticated NotAuthenticated Operator Never,
        "the evidence is missing or too old for this call",
        "present fresh evidence: --evidence FILE, or --agent ID in development";
    NotPermitted = "NOT_PERMITTED" PermissionDenied Denied Operator Never,
        "this caller may not call this method",
        "use the key of a person or service whose role allows it";
    Malformed = "MALFORMED" InvalidArgument UsageError Caller Never,
        "the message is invalid",
        "correct the field that the message names";
    UnknownAction = "UNKNOWN_ACTION" InvalidArgument UsageError Caller Never,
        "the catalogue has no such action",
        "actions are declared in schema.cedarschema of the policy bundle";
    UnknownTarget = "UNKNOWN_TARGET" InvalidArgument UsageError Caller Never,
        "the policy bundle has no such target, or the action does not apply to its type",
        "targets are in entities.json of the policy bundle, the target types of actions in schema.cedarschema";
    WrongParameters = "WRONG_PARAMETERS" InvalidArgument UsageError Caller Never,
        "a parameter is missing, unknown, or of another type than in the catalogue",
        "an action's parameters are in schema.cedarschema of the policy bundle";
    UnknownAudience = "UNKNOWN_AUDIENCE" InvalidArgument UsageError Caller Never,
        "no registered validator has this audience",
        "audiences are in people.toml of the policy bundle, with their validators";
    InvalidTtl = "INVALID_TTL" InvalidArgument UsageError Caller Never,
        "the time to live is not positive or exceeds its limit",
        "request at least one second and at most the limit in the message";
    InvalidPolicyBundle = "INVALID_POLICY_BUNDLE" InvalidArgument Failed Caller Never,
        "the policy bundle is invalid",
        "'dipylon policy check DIR' lists every error with file and line";
    NotFound = "NOT_FOUND" NotFound Failed Operator Never,
        "the caller has no object with this id",
        "check the id, and the key or task of the call: an id of another caller gets the same answer as an unknown id";
    RequestIdReused = "REQUEST_ID_REUSED" AlreadyExists Conflict Caller Never,
        "this request_id was used for something else",
        "request again with a new --idempotency-key";
    ApprovalOutOfScope = "APPROVAL_OUT_OF_SCOPE" FailedPrecondition Conflict Caller Never,
        "the approval requested under this request_id is for another action",
        "request this action with a new --idempotency-key: it needs a new approval";
    TaskEnded = "TASK_ENDED" FailedPrecondition Failed Caller Never,
        "the task has ended",
        "open another task: 'dipylon task open'";
    TokenDead = "TOKEN_DEAD" FailedPrecondition Conflict Caller Never,
        "the token of this request_id is no longer valid",
        "request again with a new --idempotency-key";
    UseSpent = "USE_SPENT" FailedPrecondition Failed Caller Never,
        "every use of the token has been consumed",
        "the agent must request another token";
    TokenInactive = "TOKEN_INACTIVE" FailedPrecondition Failed Operator Never,
        "the token is not valid for this caller now",
        "reject the request that presented the token";
    AccessRequestClosed = "ACCESS_REQUEST_CLOSED" FailedPrecondition Conflict Caller Never,
        "the access request is no longer pending",
        "'dipylon inbox' lists pending access requests";
    NotEligible = "NOT_ELIGIBLE" PermissionDenied Denied Caller Never,
        "your vote would not count for this access request",
        "another approver must vote";
    StatementUnknown = "STATEMENT_UNKNOWN" FailedPrecondition Failed Caller Never,
        "the vote statement is unknown or has expired",
        "vote again: a statement must be signed within two minutes";
    SignatureWrong = "SIGNATURE_WRONG" InvalidArgument Failed Caller Never,
        "the signature is not a valid signature of the statement by a registered key of the caller",
        "sign the statement unchanged, with the key that makes the call";
    PasskeyWrong = "PASSKEY_WRONG" PermissionDenied Denied Caller Never,
        "the passkey assertion is invalid",
        "start again with an enrolled passkey, at the address of the broker's console";
    InvitationUnknown = "INVITATION_UNKNOWN" PermissionDenied Denied Operator Never,
        "the invitation is unknown, used, or expired",
        "ask an operator for a new invitation: 'dipylon approver invite'";
    TooSoon = "TOO_SOON" FailedPrecondition Failed Caller AfterMs(SECOND_MS),
        "the card was not displayed long enough before the approval",
        "read the card, then vote; [approvals] in people.toml sets the minimum time";
    CardChanged = "CARD_CHANGED" FailedPrecondition Conflict Caller Never,
        "the active policy changed after the card was shown",
        "read the card again, then vote";
    PositionAhead = "POSITION_AHEAD" OutOfRange Failed Caller Never,
        "the position is beyond the end of the journal",
        "the journal may have lost entries: tell its operators, and start without a position";
    OtherEpoch = "OTHER_EPOCH" FailedPrecondition Failed Caller Never,
        "the position is from another epoch of the journal",
        "start without a position: every token of an earlier epoch has ended";
    Conflict = "CONFLICT" Aborted Conflict Operator AfterMs(CONFLICT_RETRY_MS),
        "a concurrent change conflicted; nothing was done, try again",
        "try again";
    TooManyPending = "TOO_MANY_PENDING" ResourceExhausted LimitExceeded Caller AfterMs(MINUTE_MS),
        "too many access requests are pending",
        "wait for decisions, or cancel access requests that are not needed";
    BackOff = "BACK_OFF" ResourceExhausted LimitExceeded Caller AfterMs(MINUTE_MS),
        "people recently denied requests of this agent; new access requests must wait",
        "wait as long as the message says, and request something else";
    TooManyTasks = "TOO_MANY_TASKS" ResourceExhausted LimitExceeded Caller AfterMs(MINUTE_MS),
        "the agent has too many running tasks",
        "complete finished tasks: 'dipylon task complete'";
    TooManyRefusals = "TOO_MANY_REFUSALS" ResourceExhausted LimitExceeded Caller AfterMs(MINUTE_MS),
        "too many refused calls in one minute",
        "wait one minute, then try again";
    TooBusy = "TOO_BUSY" ResourceExhausted LimitExceeded Operator AfterMs(SECOND_MS),
        "too many concurrent calls; try again",
        "try again in one second";
    RateLimited = "RATE_LIMITED" ResourceExhausted LimitExceeded Operator AfterMs(SECOND_MS),
        "rate limit exceeded; nothing was done, try again after the given delay",
        "wait as long as RetryInfo says; [rate_limits] in dipylon.toml sets the limits";
    ClockUnsure = "CLOCK_UNSURE" FailedPrecondition Unavailable Caller Never,
        "the broker's wall clock jumped: no token is issued until it is reliable again",
        "'dipylon doctor' on the broker's host compares its clocks";
    JournalUnavailable = "JOURNAL_UNAVAILABLE" Unavailable Unavailable Operator AfterMs(SECOND_MS),
        "the journal cannot be written; nothing was done",
        "try again; if it persists, 'dipylon doctor' on the broker's host shows the cause";
    Undecided = "UNDECIDED" Unavailable Unavailable Operator AfterMs(SECOND_MS),
        "the decision could not be evaluated; nothing was done",
        "try again";
}

// variant = name, exit, text, next step
denials! {
    ForbiddenByRule = "FORBIDDEN_BY_RULE" Denied,
        "a rule forbids it",
        "'dipylon explain' names the rule and its line; an approval cannot override it";
    NoRuleAllows = "NO_RULE_ALLOWS" Denied,
        "no rule allows it",
        "the security team must write a rule that allows it";
    OutsideCeiling = "OUTSIDE_CEILING" Denied,
        "the action is outside the agent's ceiling",
        "the ceiling is in agents.toml of the policy bundle";
    RuleFailed = "RULE_FAILED" Denied,
        "a rule could not be evaluated, so the request is denied",
        "tell the security team: 'dipylon explain' names the rule";
    DeniedByPerson = "DENIED_BY_PERSON" Denied,
        "a person denied it",
        "request something else, or talk to the approver";
    Expired = "EXPIRED" ApprovalTimeout,
        "approval timed out",
        "request again with a new --idempotency-key when an approver is available";
    NoEligibleApprover = "NO_ELIGIBLE_APPROVER" QuorumUnreachable,
        "the quorum cannot be reached: too few people can approve",
        "the security team must add approvers, or invite them to enrol passkeys: the agent's owner never counts";
    Frozen = "FROZEN" Denied,
        "an operator froze the action",
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
