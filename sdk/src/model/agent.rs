use std::collections::BTreeSet;

use super::{ActionName, AgentId, EnvironmentName, GroupId, PersonId, SpiffeId, Thumbprint};

/// A registered workload: what the security team says of it. Owner and model are the registry's claims, not attested.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    /// The name rules and people use.
    pub id: AgentId,
    /// The attested identity that may operate as this agent; matched byte by byte.
    pub spiffe_id: SpiffeId,
    /// The person answerable for it; never an approver of its requests.
    pub owner: PersonId,
    /// Where it runs.
    pub environment: EnvironmentName,
    /// The model behind it, as registered.
    pub model: String,
    /// How far it acts alone, as registered; a word of the team's choosing.
    pub autonomy: String,
    /// Groups that rules name.
    pub groups: BTreeSet<GroupId>,
    /// The only key its tasks may be bound to; absent when any will do. Pinned, a stolen JWT-SVID opens no task.
    pub jkt: Option<Thumbprint>,
    /// The only actions it may ever ask for.
    pub ceiling: BTreeSet<ActionName>,
}

/// What the journal alone says of an agent; a policy bundle never lifts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AgentStanding {
    /// Suspended by an operator and not resumed.
    pub suspended: bool,
}
