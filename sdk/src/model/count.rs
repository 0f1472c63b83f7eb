//! Counts of what happened a short while ago, which rules read: what is counted, for whom, and how far back.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::{ActionName, AgentId, CountName, ParseError, PersonId, Timestamp};

/// Values of counts.
pub type CountValues = BTreeMap<CountName, u32>;

/// What a count counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CountKind {
    /// Requests: put to people, or answered by rules at once.
    Requests,
    /// Requests that rules denied at once, and denials by a person.
    Denials,
    /// Tokens issued.
    Tokens,
    /// Uses of single-use tokens that a service recorded.
    Uses,
}

impl CountKind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Requests, Self::Denials, Self::Tokens, Self::Uses];

    /// The name in `counts.toml`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Denials => "denials",
            Self::Tokens => "tokens",
            Self::Uses => "uses",
        }
    }
}

/// Whose events a count counts.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CountSubject {
    /// Those of all agents.
    Everyone,
    /// Those of one agent.
    Agent(AgentId),
    /// Those of all agents that one person owned when they happened.
    Owner(PersonId),
}

/// One count: the name in rules, whose events, and of which action where each action has its own. Written `NAME`, `NAME/agent:ID` or
/// `NAME/owner:ID`, with `/action:NAME` at the end.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CountKey {
    /// The name in rules.
    pub name: CountName,
    /// Whose events.
    pub subject: CountSubject,
    /// The action, where each action is counted by itself.
    pub action: Option<ActionName>,
}

impl fmt::Display for CountKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            subject,
            action,
        } = self;
        write!(f, "{name}")?;
        match subject {
            CountSubject::Everyone => {}
            CountSubject::Agent(agent) => write!(f, "/agent:{agent}")?,
            CountSubject::Owner(owner) => write!(f, "/owner:{owner}")?,
        }
        action
            .iter()
            .try_for_each(|action| write!(f, "/action:{action}"))
    }
}

impl CountKey {
    /// Parses the written form.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let unknown = || ParseError::new("count", "must be a known count");
        let mut parts = text.split('/');
        let name = CountName::parse(parts.next().unwrap_or_default())?;
        let mut part = parts.next();
        let mut subject = CountSubject::Everyone;
        if let Some((kind @ ("agent" | "owner"), id)) = part.and_then(|part| part.split_once(':')) {
            subject = match kind {
                "agent" => CountSubject::Agent(AgentId::parse(id)?),
                _ => CountSubject::Owner(PersonId::parse(id)?),
            };
            part = parts.next();
        }
        let action = match part {
            None => None,
            Some(part) => {
                let name = part.strip_prefix("action:").ok_or_else(unknown)?;
                Some(ActionName::parse(name)?)
            }
        };
        match parts.next() {
            None => Ok(Self {
                name,
                subject,
                action,
            }),
            Some(_) => Err(unknown()),
        }
    }
}

/// Events are counted by the minute in which they happened.
pub const COUNT_STEP_MS: i64 = 60_000;
/// The longest window of a count, in seconds.
pub const COUNT_WINDOW_MAX_S: u32 = 86_400;

/// The first minute of a window that ends at a moment: an event of its first minute counts as a whole, so that a window is up to a minute
/// longer than declared, and never shorter.
pub fn first_minute(now: Timestamp, within_s: u32) -> i64 {
    now.plus_secs(-i64::from(within_s))
        .millis()
        .div_euclid(COUNT_STEP_MS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_forms_are_read_back() {
        for text in [
            "deletions",
            "deletions/agent:soc-bot",
            "deletions/owner:p-1",
            "deletions/action:account.delete",
            "deletions/agent:soc-bot/action:account.delete",
        ] {
            let key = CountKey::parse(text).expect(text);
            assert_eq!(key.to_string(), text);
        }
        for text in [
            "",
            "Deletions",
            "deletions/",
            "deletions/task:1",
            "deletions/agent:",
            "deletions/agent:a/owner:b",
            "deletions/action:a/agent:b",
            "deletions/action:a/action:b",
        ] {
            assert!(CountKey::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_window_begins_with_a_whole_minute() {
        let now = Timestamp::from_millis(10 * COUNT_STEP_MS + 1);
        assert_eq!(first_minute(now, 60), 9);
        assert_eq!(
            first_minute(Timestamp::from_millis(10 * COUNT_STEP_MS), 60),
            9
        );
        assert_eq!(
            first_minute(Timestamp::from_millis(10 * COUNT_STEP_MS - 1), 60),
            8
        );
    }
}
