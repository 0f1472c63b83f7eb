//! Every reason the broker gives, one row each. gRPC, HTTP, the command line and the client library take theirs from
//! here; `REASONS.md` shows the same to people. A new reason is a new row.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::status::{Code, Detail, Exit, Retry};

macro_rules! words {
    ($name:ident { $($variant:ident = $word:literal,)* }) => {
        impl $name {
            /// Every reason of the set.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The upper-case word on the wire (AIP-193 `ErrorInfo.reason`).
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),* }
            }

            /// The reason with this word.
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
        /// Why a call was refused: the closed set behind every error status.
        ///
        #[doc = include_str!("REASONS.md")]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum Reason {
            $(#[doc = $text] #[serde(rename = $word)] $variant,)*
        }

        words! { Reason { $($variant = $word,)* } }

        impl Reason {
            /// The gRPC code of its status, and by [`Code::http`] the HTTP one.
            pub const fn code(self) -> Code {
                match self { $(Self::$variant => Code::$code),* }
            }

            /// How a program ends that was refused for it.
            pub const fn exit(self) -> Exit {
                match self { $(Self::$variant => Exit::$exit),* }
            }

            /// Who learns more than [`Reason::text`].
            pub const fn detail(self) -> Detail {
                match self { $(Self::$variant => Detail::$detail),* }
            }

            /// Whether the same call, unchanged, may go through later.
            pub const fn retry(self) -> Retry {
                match self { $(Self::$variant => $retry),* }
            }

            /// What it says to a person, whatever the detail.
            pub const fn text(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }

            /// What the caller can do about it.
            pub const fn next(self) -> &'static str {
                match self { $(Self::$variant => $next),* }
            }
        }
    };
}

macro_rules! denials {
    ($($variant:ident = $word:literal $exit:ident, $text:literal, $next:literal;)*) => {
        /// Why gate 2 said no: part of an OK reply, so it has no status of its own.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum DeniedReason {
            $(#[doc = $text] #[serde(rename = $word)] $variant,)*
        }

        words! { DeniedReason { $($variant = $word,)* } }

        impl DeniedReason {
            /// How a program ends that was denied for it.
            pub const fn exit(self) -> Exit {
                match self { $(Self::$variant => Exit::$exit),* }
            }

            /// What it says to a person.
            pub const fn text(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }

            /// What the caller can do about it.
            pub const fn next(self) -> &'static str {
                match self { $(Self::$variant => $next),* }
            }
        }
    };
}

use Retry::{AfterMs, Never};

/// What others hold up for a moment, in milliseconds.
const SOON_MS: u32 = 50;
/// What the broker may be able to do again before long, in milliseconds.
const SECOND_MS: u32 = 1_000;
/// What is counted by the minute, in milliseconds.
const MINUTE_MS: u32 = 60_000;

// variant = word, gRPC code, exit, who learns the detail, whether a retry may help, the text, what to do next
refusals! {
    NotAuthenticated = "NOT_AUTHENTICATED" Unauthenticated NotAuthenticated Operator Never,
        "gate 1 did not open; an operator can explain the correlation id",
        "an operator finds the cause with 'dipylon explain' and the correlation id";
    UseDpopNonce = "USE_DPOP_NONCE" Unauthenticated NotAuthenticated Operator AfterMs(0),
        "make the proof again with the nonce in dpop-nonce",
        "repeat the call with a new proof that carries the nonce (RFC 9449 section 8); the client library does";
    EvidenceStale = "EVIDENCE_STALE" Unauthenticated NotAuthenticated Operator Never,
        "show the evidence again in this call",
        "show fresh evidence: --evidence FILE, or --agent ID in development";
    NotPermitted = "NOT_PERMITTED" PermissionDenied Denied Operator Never,
        "this caller may not call this method",
        "use the key of a person or service whose role allows it";
    Malformed = "MALFORMED" InvalidArgument NotUnderstood Caller Never,
        "the message is not of its form",
        "correct what the message names";
    UnknownAction = "UNKNOWN_ACTION" InvalidArgument NotUnderstood Caller Never,
        "the catalogue has no such action",
        "the catalogue is schema.cedarschema of the policy bundle";
    UnknownTarget = "UNKNOWN_TARGET" InvalidArgument NotUnderstood Caller Never,
        "the policy bundle has no such target, or the action does not apply to its type",
        "targets are in entities.json of the policy bundle, what an action applies to in schema.cedarschema";
    WrongParameters = "WRONG_PARAMETERS" InvalidArgument NotUnderstood Caller Never,
        "a parameter is missing, unknown, or of another type than the catalogue says",
        "an action's parameters are in schema.cedarschema of the policy bundle";
    UnknownAudience = "UNKNOWN_AUDIENCE" InvalidArgument NotUnderstood Caller Never,
        "no registered validator has this audience",
        "audiences are in people.toml of the policy bundle, with their validators";
    InvalidTtl = "INVALID_TTL" InvalidArgument NotUnderstood Caller Never,
        "the time to live is zero, less, or more than may be asked for",
        "ask for at least a second and at most what the text says";
    InvalidPolicyBundle = "INVALID_POLICY_BUNDLE" InvalidArgument Failed Caller Never,
        "the policy bundle is not fit to be used",
        "'dipylon policy check DIR' says all that is wrong, with file and line";
    NotFound = "NOT_FOUND" NotFound Failed Operator Never,
        "nothing of yours has this id",
        "compare the id, and the key or task you ask with: another's id and no id get this answer";
    RequestIdReused = "REQUEST_ID_REUSED" AlreadyExists Changed Caller Never,
        "this request_id stands for something else",
        "ask again under a new --idempotency-key";
    ApprovalOutOfScope = "APPROVAL_OUT_OF_SCOPE" FailedPrecondition Changed Caller Never,
        "the approval that this request_id asked for is for another action",
        "ask for this action under a new --idempotency-key: people decide it anew";
    TaskEnded = "TASK_ENDED" FailedPrecondition Failed Caller Never,
        "the task is over",
        "open another task: 'dipylon task open'";
    TokenDead = "TOKEN_DEAD" FailedPrecondition Changed Caller Never,
        "the token of this request_id is dead",
        "ask again under a new --idempotency-key";
    UseSpent = "USE_SPENT" FailedPrecondition Failed Caller Never,
        "the token's uses are spent",
        "the agent has to ask for another token";
    TokenInactive = "TOKEN_INACTIVE" FailedPrecondition Failed Operator Never,
        "the token is not good for this caller now",
        "refuse what the token was shown for";
    AccessRequestClosed = "ACCESS_REQUEST_CLOSED" FailedPrecondition Changed Caller Never,
        "the access request no longer waits",
        "'dipylon inbox' lists what still waits";
    NotEligible = "NOT_ELIGIBLE" PermissionDenied Denied Caller Never,
        "your vote would not count for this access request",
        "somebody else has to vote";
    StatementUnknown = "STATEMENT_UNKNOWN" FailedPrecondition Failed Caller Never,
        "no such statement waits for a signature, or it is too old",
        "vote again: a statement waits two minutes for its signature";
    SignatureWrong = "SIGNATURE_WRONG" InvalidArgument Failed Caller Never,
        "the signature is not of the statement by a registered key of yours",
        "sign the statement as it was given, with the key that calls";
    PasskeyWrong = "PASSKEY_WRONG" PermissionDenied Denied Caller Never,
        "the passkey's answer does not hold",
        "begin anew, with a passkey of yours, at the address the broker names";
    InvitationUnknown = "INVITATION_UNKNOWN" PermissionDenied Denied Operator Never,
        "the invitation is unknown, used, or too old",
        "ask an operator for another: 'dipylon approver invite'";
    TooSoon = "TOO_SOON" FailedPrecondition Failed Caller AfterMs(SECOND_MS),
        "the card was not before your eyes long enough for a yes",
        "read the card, then vote; [approvals] in people.toml says how long";
    CardChanged = "CARD_CHANGED" FailedPrecondition Changed Caller Never,
        "other rules are in force than when the card was shown",
        "read the card again, then vote";
    PositionAhead = "POSITION_AHEAD" OutOfRange Failed Caller Never,
        "the position lies ahead of the journal",
        "the broker may have lost entries: ask its operators, and start without a position";
    OtherEpoch = "OTHER_EPOCH" FailedPrecondition Failed Caller Never,
        "the position is of another life of the journal",
        "start without a position: everything of an earlier epoch has ended";
    Conflict = "CONFLICT" Aborted Changed Operator AfterMs(SOON_MS),
        "others changed the same thing at the same time; nothing was done, try again",
        "try again";
    TooManyPending = "TOO_MANY_PENDING" ResourceExhausted TooMany Caller AfterMs(MINUTE_MS),
        "too many access requests wait",
        "wait until people have decided, or cancel what is not needed";
    BackOff = "BACK_OFF" ResourceExhausted TooMany Caller AfterMs(MINUTE_MS),
        "people said no to this agent lately; they are not asked again so soon",
        "wait as long as it says, and ask for something else";
    TooManyTasks = "TOO_MANY_TASKS" ResourceExhausted TooMany Caller AfterMs(MINUTE_MS),
        "too many tasks of the agent run",
        "complete tasks that are done: 'dipylon task complete'";
    TooManyRefusals = "TOO_MANY_REFUSALS" ResourceExhausted TooMany Caller AfterMs(MINUTE_MS),
        "too many refusals in a minute",
        "wait a minute, then try again";
    TooBusy = "TOO_BUSY" ResourceExhausted TooMany Operator AfterMs(SECOND_MS),
        "too many calls at once; try again",
        "try again in a second";
    RateLimited = "RATE_LIMITED" ResourceExhausted TooMany Operator AfterMs(SECOND_MS),
        "too many calls; nothing was done, try again when told",
        "wait as long as RetryInfo says; [rates] in dipylon.toml says how much is too much";
    ClockUnsure = "CLOCK_UNSURE" FailedPrecondition Unavailable Caller Never,
        "the broker's wall clock jumped: nothing is minted until it can be trusted again",
        "'dipylon doctor' on the broker's host compares its clocks";
    JournalUnavailable = "JOURNAL_UNAVAILABLE" Unavailable Unavailable Operator AfterMs(SECOND_MS),
        "the journal cannot take entries now; nothing was done",
        "try again; if it lasts, 'dipylon doctor' on the broker's host says why";
    Undecided = "UNDECIDED" Unavailable Unavailable Operator AfterMs(SECOND_MS),
        "could not decide; nothing was done",
        "try again";
}

// variant = word, exit, the text, what to do next
denials! {
    ForbiddenByRule = "FORBIDDEN_BY_RULE" Denied,
        "a rule forbids it",
        "'dipylon explain' names the rule and its line; nobody can approve around it";
    NoRuleAllows = "NO_RULE_ALLOWS" Denied,
        "no rule allows it",
        "the security team has to write a rule that allows it";
    OutsideCeiling = "OUTSIDE_CEILING" Denied,
        "the agent's ceiling does not have the action",
        "the ceiling is in agents.toml of the policy bundle";
    RuleFailed = "RULE_FAILED" Denied,
        "a rule could not be evaluated; that denies",
        "tell the security team: 'dipylon explain' names the rule";
    DeniedByPerson = "DENIED_BY_PERSON" Denied,
        "a person said no",
        "ask for something else, or talk to them";
    Expired = "EXPIRED" NobodyDecided,
        "nobody decided in time",
        "ask again under a new --idempotency-key when somebody is there";
    NoEligibleApprover = "NO_ELIGIBLE_APPROVER" NoApprover,
        "fewer people than the quorum could ever say yes",
        "the security team has to add approvers, or invite them to enrol passkeys: the agent's owner never counts";
    Frozen = "FROZEN" Denied,
        "an operator froze the action",
        "ask again when the freeze is lifted; 'dipylon freeze' lists what is frozen";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_word_is_one_and_every_row_says_something() {
        let mut words = BTreeSet::new();
        for reason in Reason::ALL {
            assert!(words.insert(reason.as_str()), "{reason} stands twice");
            assert_eq!(Reason::parse(reason.as_str()), Some(*reason));
            assert!(!reason.text().is_empty() && !reason.next().is_empty());
            assert_ne!(reason.exit(), Exit::Done, "{reason}");
            let word = serde_json::to_value(reason).expect("json");
            assert_eq!(word, reason.as_str());
        }
        for reason in DeniedReason::ALL {
            assert!(words.insert(reason.as_str()), "{reason} stands twice");
            assert_eq!(DeniedReason::parse(reason.as_str()), Some(*reason));
            assert!(!reason.text().is_empty() && !reason.next().is_empty());
            assert_ne!(reason.exit(), Exit::Done, "{reason}");
        }
        let numbers: Vec<u8> = Exit::ALL.iter().map(|exit| exit.number()).collect();
        assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
    }

    #[test]
    fn who_is_not_known_learns_no_cause() {
        for reason in Reason::ALL {
            if reason.code() == Code::Unauthenticated {
                assert_eq!(reason.detail(), Detail::Operator, "{reason}");
                assert_eq!(reason.exit().number(), 20, "{reason}");
            }
            if reason.code() == Code::Unavailable {
                assert_eq!(reason.exit().number(), 14, "{reason}");
                assert_ne!(reason.retry(), Retry::Never, "{reason}");
            }
        }
    }
}
