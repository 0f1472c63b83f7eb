//! What a policy bundle changes, against the one in force: what its approvers are shown.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{Action, ActionName, Audience, Digest, Param, ParseError, PersonId, Target};

/// The action of a proposal to replace the policy bundle. The broker itself defines it; a catalogue has no name that begins with
/// [`POLICY_NAMESPACE`].
pub const POLICY_APPLY: &str = "policy.apply";
/// Names of actions that the broker itself defines begin with it.
pub const POLICY_NAMESPACE: &str = "policy.";

/// The resource that a proposal is for: the broker itself.
const AUDIENCE: &str = "urn:dipylon:broker";
/// The type of its target: a version of the policy bundle.
const TARGET_TYPE: &str = "PolicyBundle";

/// The action of a proposal: this bundle in place of that one. Everything that comes in force with it is in what people sign.
pub fn proposal_action(
    replaces: &Digest,
    bundle: &Digest,
    returning: &BTreeSet<PersonId>,
) -> Result<Action, ParseError> {
    let people = returning
        .iter()
        .map(|person| Param::Str(person.to_string()));
    Action::new(
        ActionName::parse(POLICY_APPLY)?,
        Audience::parse(AUDIENCE)?,
        Target::parse(TARGET_TYPE, &bundle.to_string())?,
        BTreeMap::from([
            ("replaces".to_owned(), Param::Str(replaces.to_string())),
            ("returning".to_owned(), Param::set(people.collect())?),
        ]),
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
