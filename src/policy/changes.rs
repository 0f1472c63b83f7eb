//! Who agrees to a change of the policy bundle: `[changes]` in `people.toml`.

use std::collections::BTreeMap;

use super::people::{Role, StepUpProfile};
use super::toml_reader::TableReader;
use crate::model::{GroupId, ParseError, ProfileName, VoteMethod, parse_duration};

/// Who agrees to a change of the policy bundle, beside the operator who proposes it. The bundle in force says it for the next one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangeRule {
    /// The people who agree.
    pub agree: ChangeAgreement,
    /// Seconds a proposal waits for them, when they are operators; a profile has its own.
    pub wait_s: u32,
}

/// The people who agree to a change of the policy bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChangeAgreement {
    /// `"nobody"`: one operator alone changes the rules.
    Nobody,
    /// `"operator"`: another operator, once two have ever held living keys.
    Operator,
    /// The name of a profile: its quorum of its group, without the proposer.
    Profile(ProfileName),
}

impl Default for ChangeRule {
    fn default() -> Self {
        Self {
            agree: ChangeAgreement::Operator,
            wait_s: WAIT_S,
        }
    }
}

/// Time that a proposal waits for another operator by default, in seconds: a day.
const WAIT_S: u32 = 86_400;
/// Longest time that a proposal waits, in seconds: seven days, the longest that a client signs an approval for.
const WAIT_MAX_S: u32 = 7 * 86_400;
/// The profile of operators who agree to a change. No bundle defines one of this name.
pub const ANOTHER_OPERATOR: &str = "another-operator";

impl ChangeRule {
    /// Reads the table; absent keys keep their defaults.
    pub(super) fn read(mut fields: TableReader<'_, '_>) -> Self {
        let or = Self::default();
        let read = Self {
            agree: fields.optional("agree", agreement).unwrap_or(or.agree),
            wait_s: fields.optional("wait", wait).unwrap_or(or.wait_s),
        };
        fields.finish();
        read
    }

    /// The profile of the people who agree; `None` when nobody else has to.
    pub(super) fn profile(
        &self,
        profiles: &BTreeMap<ProfileName, StepUpProfile>,
    ) -> Option<StepUpProfile> {
        match &self.agree {
            ChangeAgreement::Nobody => None,
            ChangeAgreement::Operator => self.another_operator(),
            ChangeAgreement::Profile(name) => profiles.get(name).cloned(),
        }
    }

    /// The profile of another operator.
    pub(super) fn another_operator(&self) -> Option<StepUpProfile> {
        Some(StepUpProfile {
            name: ProfileName::parse(ANOTHER_OPERATOR).ok()?,
            group: GroupId::parse("operators").ok()?,
            target_attribute: None,
            role: Role::Operator,
            quorum: 1,
            wait_s: self.wait_s,
            good_for_s: self.wait_s,
            method: VoteMethod::Key,
        })
    }
}

fn wait(text: &str) -> Result<u32, ParseError> {
    let seconds = parse_duration("wait", text)?;
    match seconds <= WAIT_MAX_S {
        true => Ok(seconds),
        false => Err(ParseError::new("wait", "must be at most 7d")),
    }
}

fn agreement(text: &str) -> Result<ChangeAgreement, ParseError> {
    match text {
        "nobody" => Ok(ChangeAgreement::Nobody),
        "operator" => Ok(ChangeAgreement::Operator),
        name => ProfileName::parse(name).map(ChangeAgreement::Profile),
    }
}
