//! Freeze scopes.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{ActionName, AgentId, ParseError, PersonId};

/// The scope of a freeze, written `all`, `agent/ID`, `owner/ID` or `action/NAME`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FreezeScope {
    /// Everything of the realm.
    All,
    /// One agent.
    Agent(AgentId),
    /// Every agent of an owner.
    Owner(PersonId),
    /// One action, of every agent.
    Action(ActionName),
}

impl FreezeScope {
    /// Reads the written form.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        match text.split_once('/') {
            None if text == "all" => Ok(Self::All),
            Some(("agent", id)) => Ok(Self::Agent(AgentId::parse(id)?)),
            Some(("owner", id)) => Ok(Self::Owner(PersonId::parse(id)?)),
            Some(("action", name)) => Ok(Self::Action(ActionName::parse(name)?)),
            None | Some(_) => Err(ParseError::new(
                "scope",
                "must be all, agent/ID, owner/ID or action/NAME",
            )),
        }
    }
}

impl fmt::Display for FreezeScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Agent(id) => write!(f, "agent/{id}"),
            Self::Owner(id) => write!(f, "owner/{id}"),
            Self::Action(name) => write!(f, "action/{name}"),
        }
    }
}

impl fmt::Debug for FreezeScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Serialize for FreezeScope {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for FreezeScope {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(d)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freeze_scope_roundtrip() {
        for text in [
            "all",
            "agent/triage",
            "owner/dana",
            "action/account.disable",
        ] {
            assert_eq!(FreezeScope::parse(text).expect(text).to_string(), text);
        }
        for text in [
            "",
            "ALL",
            "all/",
            "all/x",
            "agent",
            "agent/",
            "agent/a/b",
            "agents/a",
            "owner/ ",
            "action/*",
            "/",
        ] {
            assert!(FreezeScope::parse(text).is_err(), "{text}");
        }
    }
}
