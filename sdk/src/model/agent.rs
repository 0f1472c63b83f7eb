//! Registered agents, and their status in the journal.

use std::collections::BTreeSet;

use super::{
    ActionName, AgentId, EnvironmentName, GroupId, ParseError, PersonId, SpiffeId, Thumbprint,
};

/// An agent as registered in the policy bundle. Owner and model are the security team's claims, not attested.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegisteredAgent {
    /// The id that rules and people use.
    pub id: AgentId,
    /// The attested identity that may act as this agent; compared byte by byte.
    pub spiffe_id: SpiffeId,
    /// The person answerable for it; never an approver of its requests.
    pub owner: PersonId,
    /// The deployment environment it runs in.
    pub environment: EnvironmentName,
    /// The model behind it, as registered.
    pub model: String,
    /// Its level of autonomy, as registered.
    pub autonomy: Autonomy,
    /// Groups it belongs to, for rules.
    pub groups: BTreeSet<GroupId>,
    /// The only key its tasks may be bound to; absent for any key. With a pinned key a stolen JWT-SVID opens no task.
    pub jkt: Option<Thumbprint>,
    /// The only actions it may ever request.
    pub ceiling: BTreeSet<ActionName>,
    /// The agents that an approved recommendation of it may be handed to; empty unless it is advisory.
    pub executors: BTreeSet<AgentId>,
}

/// How far an agent acts by itself, as the policy bundle registers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Autonomy {
    /// `advisory`: it recommends, and never gets a token. People decide on each recommendation, and another agent executes it.
    Advisory,
    /// `supervised`: it needs people for the actions that the bundle marks under `[autonomy]`, also where its rules allow them.
    Supervised,
    /// `autonomous`: rules alone decide.
    Autonomous,
}

impl Autonomy {
    /// Every level, the least autonomous first.
    pub const ALL: [Self; 3] = [Self::Advisory, Self::Supervised, Self::Autonomous];

    /// Parses the name in the policy bundle.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        Self::ALL
            .into_iter()
            .find(|autonomy| autonomy.as_str() == text)
            .ok_or_else(|| {
                let names = "must be \"advisory\", \"supervised\" or \"autonomous\"";
                ParseError::new("autonomy", names)
            })
    }

    /// The name in the policy bundle, which rules see.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Advisory => "advisory",
            Self::Supervised => "supervised",
            Self::Autonomous => "autonomous",
        }
    }
}

/// The status of an agent in the journal; a policy bundle never changes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AgentStatus {
    /// Suspended by an operator and not resumed.
    pub suspended: bool,
}
