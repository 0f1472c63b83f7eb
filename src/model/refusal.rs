use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! reasons {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$vdoc])* #[serde(rename = $text)] $variant,)*
        }

        impl $name {
            /// Every reason of the set.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The upper-case word on the wire (AIP-193 `ErrorInfo.reason`).
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
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

reasons! {
    /// Why a call was refused: the closed set behind every error status.
    Reason {
        /// Gate 1 did not open, for whatever cause; the operator's `explain` names it.
        NotAuthenticated = "NOT_AUTHENTICATED",
        /// The proof needs the nonce sent along (RFC 9449 §8).
        UseDpopNonce = "USE_DPOP_NONCE",
        /// The evidence was verified too long ago; show it again.
        EvidenceStale = "EVIDENCE_STALE",
        /// This kind of caller may not call this method.
        NotPermitted = "NOT_PERMITTED",
        /// The message is not of its form.
        Malformed = "MALFORMED",
        /// The catalogue has no such action.
        UnknownAction = "UNKNOWN_ACTION",
        /// The policy bundle has no such target, or the action does not apply to its type.
        UnknownTarget = "UNKNOWN_TARGET",
        /// A parameter is missing, unknown, or of another type than the catalogue says.
        WrongParameters = "WRONG_PARAMETERS",
        /// No registered validator has this audience.
        UnknownAudience = "UNKNOWN_AUDIENCE",
        /// A time to live of zero or less.
        InvalidTtl = "INVALID_TTL",
        /// The policy bundle is not fit to be used.
        InvalidPolicyBundle = "INVALID_POLICY_BUNDLE",
        /// Nothing of yours has this id.
        NotFound = "NOT_FOUND",
        /// This `request_id` stands for something else.
        RequestIdReused = "REQUEST_ID_REUSED",
        /// The task is over.
        TaskEnded = "TASK_ENDED",
        /// The token of this `request_id` is dead; ask under a new one.
        TokenDead = "TOKEN_DEAD",
        /// The token's uses are spent.
        UseSpent = "USE_SPENT",
        /// The token is not good for you now.
        TokenInactive = "TOKEN_INACTIVE",
        /// The access request no longer waits.
        AccessRequestClosed = "ACCESS_REQUEST_CLOSED",
        /// Your vote would not count for this access request.
        NotEligible = "NOT_ELIGIBLE",
        /// No such statement waits for a signature, or it is too old.
        StatementUnknown = "STATEMENT_UNKNOWN",
        /// The signature is not of the statement by a registered key of yours.
        SignatureWrong = "SIGNATURE_WRONG",
        /// The position lies ahead of the journal.
        PositionAhead = "POSITION_AHEAD",
        /// The position is of another life of the journal.
        OtherEpoch = "OTHER_EPOCH",
        /// Others changed the same thing; nothing was done.
        Conflict = "CONFLICT",
        /// Too many access requests wait.
        TooManyPending = "TOO_MANY_PENDING",
        /// Too many tasks of the agent run.
        TooManyTasks = "TOO_MANY_TASKS",
        /// Too many refusals in a minute.
        TooManyRefusals = "TOO_MANY_REFUSALS",
        /// Too many calls at once.
        TooBusy = "TOO_BUSY",
        /// More calls from one source or caller than `[rates]` allows; nothing was done.
        RateLimited = "RATE_LIMITED",
        /// The journal cannot take entries now.
        JournalUnavailable = "JOURNAL_UNAVAILABLE",
        /// Could not decide; the gate stays closed.
        Undecided = "UNDECIDED",
    }
}

reasons! {
    /// Why gate 2 said no: part of an OK reply.
    DeniedReason {
        /// A rule forbids it.
        ForbiddenByRule = "FORBIDDEN_BY_RULE",
        /// No rule allows it.
        NoRuleAllows = "NO_RULE_ALLOWS",
        /// The agent's ceiling does not have the action.
        OutsideCeiling = "OUTSIDE_CEILING",
        /// A rule could not be evaluated; that denies.
        RuleFailed = "RULE_FAILED",
        /// A person said no.
        DeniedByPerson = "DENIED_BY_PERSON",
        /// Nobody decided in time.
        Expired = "EXPIRED",
        /// Fewer people than the quorum could ever say yes.
        NoEligibleApprover = "NO_ELIGIBLE_APPROVER",
    }
}
