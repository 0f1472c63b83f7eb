//! Risk levels of actions, and how far they can be undone.

use super::ParseError;

/// How much harm an action can do, as the policy bundle declares it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Risk {
    /// `low`
    Low,
    /// `medium`
    Medium,
    /// `high`
    High,
}

impl Risk {
    /// Every level, the lowest first.
    pub const ALL: [Self; 3] = [Self::Low, Self::Medium, Self::High];

    /// Parses the name in the catalogue.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        Self::ALL
            .into_iter()
            .find(|risk| risk.as_str() == text)
            .ok_or_else(|| ParseError::new("risk", "must be \"low\", \"medium\" or \"high\""))
    }

    /// The name in the catalogue.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }
}

/// How far an action can be undone, as the policy bundle declares it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reversibility {
    /// `nothing-changes`: it only reads.
    NothingChanges,
    /// `reversible`: the opposite action undoes it.
    Reversible,
    /// `recoverable`: only another process, such as a restore, undoes it.
    Recoverable,
    /// `irreversible`: nothing undoes it.
    Irreversible,
}

impl Reversibility {
    /// Every degree, the most reversible first.
    pub const ALL: [Self; 4] = [
        Self::NothingChanges,
        Self::Reversible,
        Self::Recoverable,
        Self::Irreversible,
    ];

    /// Parses the name in the catalogue.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let found = Self::ALL.into_iter().find(|degree| degree.as_str() == text);
        found.ok_or_else(|| {
            let names =
                "must be \"nothing-changes\", \"reversible\", \"recoverable\" or \"irreversible\"";
            ParseError::new("reversible", names)
        })
    }

    /// The name in the catalogue, and of the built-in action group.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NothingChanges => "nothing-changes",
            Self::Reversible => "reversible",
            Self::Recoverable => "recoverable",
            Self::Irreversible => "irreversible",
        }
    }
}
