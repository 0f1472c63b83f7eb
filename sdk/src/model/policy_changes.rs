//! What a policy bundle changes, against the one in force: what its approvers are shown.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Action, ActionName, Audience, Digest, Param, ParseError, Proposed, Target};

/// The action of a proposal to replace the policy bundle. The broker itself defines it; a catalogue has no name that begins with
/// [`POLICY_NAMESPACE`].
pub const POLICY_APPLY: &str = "policy.apply";
/// The action of a proposal to set a named fact of the policy bundle to another value than its safe one.
pub const POLICY_SET_FACT: &str = "policy.set-fact";
/// Names of actions that the broker itself defines begin with it.
pub const POLICY_NAMESPACE: &str = "policy.";

/// The resource that a proposal is for: the broker itself.
const AUDIENCE: &str = "urn:dipylon:broker";
/// The type of its target: a version of the policy bundle.
const TARGET_TYPE: &str = "PolicyBundle";
/// The type of the target of a named fact.
const FACT_TYPE: &str = "Fact";

/// The action of a proposal. Everything that comes in force with it is in what people sign.
pub fn proposal_action(replaces: &Digest, proposed: &Proposed) -> Result<Action, ParseError> {
    let replaces = ("replaces".to_owned(), Param::Str(replaces.to_string()));
    match proposed {
        Proposed::Bundle { bundle, returning } => {
            let people = returning
                .iter()
                .map(|person| Param::Str(person.to_string()));
            let returning = ("returning".to_owned(), Param::set(people.collect())?);
            let parameters = BTreeMap::from([replaces, returning]);
            built_in(POLICY_APPLY, (TARGET_TYPE, &bundle.to_string()), parameters)
        }
        Proposed::Fact {
            fact,
            value,
            seconds,
            ..
        } => {
            let mut parameters = BTreeMap::from([
                ("under".to_owned(), replaces.1),
                ("value".to_owned(), Param::Bool(*value)),
            ]);
            if let Some(seconds) = seconds {
                parameters.insert("seconds".to_owned(), Param::Int((*seconds).into()));
            }
            built_in(POLICY_SET_FACT, (FACT_TYPE, fact.as_str()), parameters)
        }
    }
}

fn built_in(
    name: &str,
    (kind, id): (&str, &str),
    parameters: BTreeMap<String, Param>,
) -> Result<Action, ParseError> {
    Action::new(
        ActionName::parse(name)?,
        Audience::parse(AUDIENCE)?,
        Target::parse(kind, id)?,
        parameters,
    )
}

/// The differences between the policy bundle in force and a proposed one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyChanges {
    /// What changes for people, agents and those who agree to changes, each in one sentence of the broker's.
    pub summary: Vec<String>,
    /// Every file that differs, by path.
    pub files: Vec<FileChange>,
}

/// A file of a policy bundle that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileChange {
    /// Path inside the policy bundle.
    pub path: String,
    /// The lines that differ, in order, with three that stay around them: `-` and the line for one that goes, `+` and the line for one that
    /// comes, a blank and the line for one that stays; before each run `@`, the number of its first line in the new file, and the table or
    /// rule that it is inside of. Of a line above 2,000 bytes the part that differs.
    pub lines: Vec<String>,
}
