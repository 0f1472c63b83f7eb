//! Status codes and exit codes of refusals, and their retry hints.

use std::fmt;

/// A gRPC status code (google.rpc.Code) that a refusal may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// The message or a field of it is invalid.
    InvalidArgument,
    /// The caller has no object with this id.
    NotFound,
    /// The idempotency key was used for something else.
    AlreadyExists,
    /// The caller is authenticated but not allowed.
    PermissionDenied,
    /// A limit or rate was exceeded.
    ResourceExhausted,
    /// The object is not in a state that allows the call.
    FailedPrecondition,
    /// A concurrent change conflicted.
    Aborted,
    /// The position is beyond the end.
    OutOfRange,
    /// The broker cannot serve the call now.
    Unavailable,
    /// The caller is not authenticated.
    Unauthenticated,
    /// The broker has no such method, or the method does not support this form of call.
    Unimplemented,
    /// The deadline passed before the call was answered.
    DeadlineExceeded,
    /// The broker failed.
    Internal,
}

impl Code {
    /// The gRPC name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidArgument => "INVALID_ARGUMENT",
            Self::NotFound => "NOT_FOUND",
            Self::AlreadyExists => "ALREADY_EXISTS",
            Self::PermissionDenied => "PERMISSION_DENIED",
            Self::ResourceExhausted => "RESOURCE_EXHAUSTED",
            Self::FailedPrecondition => "FAILED_PRECONDITION",
            Self::Aborted => "ABORTED",
            Self::OutOfRange => "OUT_OF_RANGE",
            Self::Unavailable => "UNAVAILABLE",
            Self::Unauthenticated => "UNAUTHENTICATED",
            Self::Unimplemented => "UNIMPLEMENTED",
            Self::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Self::Internal => "INTERNAL",
        }
    }

    /// The corresponding HTTP status (RFC 9110 §15). A failed precondition concerns the state of the object, not a header
    /// of the request: 409, not 412.
    pub const fn http(self) -> u16 {
        match self {
            Self::InvalidArgument | Self::OutOfRange => 400,
            Self::Unauthenticated => 401,
            Self::PermissionDenied => 403,
            Self::NotFound => 404,
            Self::AlreadyExists | Self::FailedPrecondition | Self::Aborted => 409,
            Self::ResourceExhausted => 429,
            Self::Internal => 500,
            Self::Unimplemented => 501,
            Self::Unavailable => 503,
            Self::DeadlineExceeded => 504,
        }
    }
}

macro_rules! exits {
    ($($variant:ident = $number:literal $text:literal,)*) => {
        /// Exit codes of the command line.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Exit {
            $(#[doc = $text] $variant,)*
        }

        impl Exit {
            /// Every exit code, in ascending order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The number.
            pub const fn number(self) -> u8 {
                match self { $(Self::$variant => $number),* }
            }

            /// The meaning.
            pub const fn text(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }
        }
    };
}

exits! {
    Success = 0 "success; for a request, a token was issued",
    Failed = 1 "failed",
    UsageError = 2 "usage error",
    Denied = 10 "denied",
    Pending = 11 "waiting for approval",
    ApprovalTimeout = 12 "approval timed out",
    QuorumUnreachable = 13 "quorum cannot be reached",
    Unavailable = 14 "the broker is unreachable or cannot write its journal",
    Conflict = 15 "conflict: the state changed or the idempotency key was reused; request again",
    LimitExceeded = 16 "rate limited or over quota",
    NotAuthenticated = 20 "not authenticated",
}

/// Who may see the detail of a refusal, besides the constant text of its reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DetailVisibility {
    /// The caller: the detail is about the caller's own input.
    Caller,
    /// Only operators, by `dipylon explain`; in development the caller too.
    Operator,
}

/// Whether the same call may succeed later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryHint {
    /// It will be refused again.
    Never,
    /// It may, after this many milliseconds.
    AfterMs(u32),
}

impl fmt::Display for RetryHint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Never => f.write_str("no"),
            Self::AfterMs(0) => f.write_str("at once"),
            Self::AfterMs(ms) if ms % 1_000 == 0 => write!(f, "after {} s", ms / 1_000),
            Self::AfterMs(ms) => write!(f, "after {ms} ms"),
        }
    }
}
