//! Outcome of a call that consumes a use of a token.

/// Whether a call spent a use of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UseOutcome {
    /// This call spent it: its caller may act.
    Spent,
    /// An earlier call of the same validator with the same `use_id` spent it: its caller must not act a second time.
    Repeated,
    /// The token has no limit of uses: nothing is spent.
    NoLimit,
}

impl UseOutcome {
    /// The name, in lower case.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Spent => "spent",
            Self::Repeated => "repeated",
            Self::NoLimit => "no_limit",
        }
    }
}
