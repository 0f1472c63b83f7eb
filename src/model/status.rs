use std::fmt;

/// A gRPC status code (google.rpc.Code) that a refusal may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// The message or what it names is not of its form.
    InvalidArgument,
    /// Nothing of the caller's has this id.
    NotFound,
    /// The name stands for something else.
    AlreadyExists,
    /// Known, and not allowed.
    PermissionDenied,
    /// Too much of something.
    ResourceExhausted,
    /// What it is about is in no state for it.
    FailedPrecondition,
    /// Others were faster.
    Aborted,
    /// Beyond the end.
    OutOfRange,
    /// Not now.
    Unavailable,
    /// Not known.
    Unauthenticated,
}

impl Code {
    /// As gRPC writes it.
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
        }
    }

    /// The HTTP status that says the same (RFC 9110 §15). A failed precondition is a conflict with the state of the thing,
    /// not with a header of the request: 409, not 412.
    pub const fn http(self) -> u16 {
        match self {
            Self::InvalidArgument | Self::OutOfRange => 400,
            Self::Unauthenticated => 401,
            Self::PermissionDenied => 403,
            Self::NotFound => 404,
            Self::AlreadyExists | Self::FailedPrecondition | Self::Aborted => 409,
            Self::ResourceExhausted => 429,
            Self::Unavailable => 503,
        }
    }
}

macro_rules! exits {
    ($($variant:ident = $number:literal $text:literal,)*) => {
        /// How a program that asked the broker ends: one number for each kind of answer.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Exit {
            $(#[doc = $text] $variant,)*
        }

        impl Exit {
            /// Every one, by number.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The exit code.
            pub const fn number(self) -> u8 {
                match self { $(Self::$variant => $number),* }
            }

            /// What it says.
            pub const fn text(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }
        }
    };
}

exits! {
    Done = 0 "done, or a token was given",
    Failed = 1 "failed",
    NotUnderstood = 2 "usage error",
    Denied = 10 "denied",
    Waiting = 11 "waiting for approval",
    NobodyDecided = 12 "approval timed out",
    NoApprover = 13 "quorum cannot be reached",
    Unavailable = 14 "the broker cannot be reached, or cannot write",
    Changed = 15 "conflict: request again",
    TooMany = 16 "rate limited or over quota",
    NotAuthenticated = 20 "authentication failed (gate 1)",
}

/// Who learns the detail of a refusal, beside the constant text of its reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// The caller: it is about their own words.
    Caller,
    /// The operator alone, by `explain`; the caller too in development.
    Operator,
}

/// Whether the same call, unchanged, may go through later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// It will be refused again.
    Never,
    /// It may after so many milliseconds.
    AfterMs(u32),
}

impl fmt::Display for Retry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Never => f.write_str("no"),
            Self::AfterMs(0) => f.write_str("at once"),
            Self::AfterMs(ms) if ms % 1_000 == 0 => write!(f, "after {} s", ms / 1_000),
            Self::AfterMs(ms) => write!(f, "after {ms} ms"),
        }
    }
}
