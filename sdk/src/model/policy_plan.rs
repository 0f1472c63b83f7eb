//! Plans of policy bundles: what one would change before it is applied, as JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::text::counted;
use super::{ActionName, DeniedReason, Digest, PersonId, ProfileName, RuleRef, format_seconds};

/// What a policy bundle would change. It decides nothing: an apply looks at everything again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyPlan {
    /// Version of the bundle that was in force when it was planned.
    pub base_version: Digest,
    /// Version of the planned bundle.
    pub version: Digest,
    /// When (RFC 3339).
    pub planned_at: String,
    /// The decisions since this time are decided again (RFC 3339).
    pub since: String,
    /// The people who return with it, as for an apply.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub returning: BTreeSet<PersonId>,
    /// What differs, for people and otherwise, in sentences.
    pub changes: Vec<String>,
    /// What an apply would warn of.
    pub warnings: Vec<String>,
    /// What would end of what is open, or would need other approvals.
    pub ends: PlannedEnds,
    /// The decisions on record, decided again.
    pub replay: ReplaySummary,
}

impl PolicyPlan {
    /// What it says, in a few sentences, what is most dangerous first: for a card. `with_names`: what would end by its ids; else how much.
    pub fn sentences(&self, with_names: bool) -> Vec<String> {
        let (ends, replay) = (&self.ends, &self.replay);
        let mut all = vec![format!(
            "looked at {}, on version {}: {}, {} and {} would end, {} would need other approvals",
            self.planned_at,
            self.base_version,
            counted(ends.tasks.count, "task"),
            counted(ends.tokens.count, "token"),
            counted(ends.access_requests.count, "access request"),
            ends.reassessed.count,
        )];
        if ends.uncertain.count > 0 {
            let waiting = counted(ends.uncertain.count, "token or access request");
            all.push(format!(
                "{waiting} more may end or change: people or keys change, or rules about a sensitive parameter"
            ));
        }
        let warnings = replay.warnings().into_iter();
        let warnings: Vec<String> = warnings.chain(self.warnings.iter().cloned()).collect();
        let (mut left, mut told) = (SENTENCE_BYTES_MAX, 0);
        for warning in warnings.iter().take(WARNINGS_MAX) {
            let Some(rest) = usize::checked_sub(left, warning.len()) else {
                break;
            };
            (left, told) = (rest, told + 1);
            all.push(format!("WARNING: {warning}"));
        }
        let more = warnings.len() - told;
        if more > 0 {
            all.push(format!(
                "and {more} more warnings: 'dipylon policy plan' lists them"
            ));
        }
        for (what, list) in [
            ("tasks", &ends.tasks),
            ("tokens", &ends.tokens),
            ("access requests", &ends.access_requests),
        ] {
            if list.count > 0 && with_names {
                all.push(format!("would end, {what}: {}", list.names()));
            }
        }
        let cut = if replay.is_cut {
            " (older ones are left out: too many)"
        } else {
            ""
        };
        all.push(format!(
            "of {} since {}, {} would stay as they are{cut}",
            counted(replay.decisions, "decision"),
            self.since,
            replay.same
        ));
        let mut classes: Vec<&ReplayClass> = replay.changes.iter().collect();
        classes.sort_by_key(|class| (class.danger(), std::cmp::Reverse(class.count)));
        let more = classes.len().saturating_sub(SENTENCE_ITEMS_MAX);
        all.extend(classes.iter().take(SENTENCE_ITEMS_MAX).map(|class| {
            let decisions = counted(class.count, "decision");
            format!(
                "{decisions} about {}{}: {} would be {}",
                class.action,
                class.approved_text(),
                class.was,
                class.would_be
            )
        }));
        if more > 0 {
            all.push(format!(
                "and {more} more kinds of change: 'dipylon policy plan' lists them"
            ));
        }
        let (asked, would_ask) = (&replay.asked, &replay.would_ask);
        all.push(format!(
            "people would be asked {} instead of {}, {} instead of {} at night, for {} instead of {}",
            counted(would_ask.requests, "time"),
            asked.requests,
            would_ask.at_night,
            asked.at_night,
            counted(would_ask.approvals, "approval"),
            asked.approvals,
        ));
        let unknown: u64 = replay.not_replayed.values().sum();
        if unknown > 0 {
            all.push(format!(
                "{} cannot be decided again",
                counted(unknown, "decision")
            ));
        }
        all
    }
}

impl PlannedList {
    /// The first of them by name.
    fn names(&self) -> String {
        let named = self.named.iter().take(SENTENCE_ITEMS_MAX);
        let mut names: Vec<String> = named
            .map(|item| {
                format!("{} of {} {}", item.id, item.who, item.what)
                    .trim_end()
                    .to_owned()
            })
            .collect();
        let named = u64::try_from(names.len()).unwrap_or(u64::MAX);
        let more = self.count.saturating_sub(named);
        if more > 0 {
            names.push(format!("and {more} more"));
        }
        names.join(", ")
    }
}

impl ReplaySummary {
    /// What would be allowed that was not, in sentences.
    pub fn warnings(&self) -> Vec<String> {
        let count = |danger: u8| -> u64 {
            let classes = self.changes.iter().filter(|class| class.danger() == danger);
            classes.map(|class| class.count).sum()
        };
        let kinds = [
            (
                0,
                ["that was refused", "that were refused"],
                "would be allowed",
            ),
            (
                1,
                [
                    "that people were asked about",
                    "that people were asked about",
                ],
                "would be allowed without them",
            ),
            (
                2,
                [
                    "that people were asked about",
                    "that people were asked about",
                ],
                "would be allowed after a time without a no",
            ),
            (
                3,
                ["that was refused", "that were refused"],
                "would be allowed after a time without a no",
            ),
            (
                4,
                ["that was refused", "that were refused"],
                "would go to people",
            ),
        ];
        kinds
            .into_iter()
            .filter(|(danger, _, _)| count(*danger) > 0)
            .map(|(danger, [one, several], what)| {
                let count = count(danger);
                let which = if count == 1 { one } else { several };
                format!("{} {which} {what}", counted(count, "request"))
            })
            .collect()
    }
}

impl ReplayClass {
    /// Says of requests that people had approved that they were.
    pub const fn approved_text(&self) -> &'static str {
        match self.approved {
            true => " (approved)",
            false => "",
        }
    }

    /// How far it opens what was closed: 0 is the farthest.
    pub fn danger(&self) -> u8 {
        let is_allowed = |outcome: &ReplayOutcome| match outcome {
            ReplayOutcome::Allowed
            | ReplayOutcome::AllowedShorter
            | ReplayOutcome::AllowedLonger => true,
            ReplayOutcome::Pending(_) | ReplayOutcome::Delayed { .. } | ReplayOutcome::Denied => {
                false
            }
        };
        let is_pending = |outcome: &ReplayOutcome| {
            matches!(
                outcome,
                ReplayOutcome::Pending(_) | ReplayOutcome::Delayed { .. }
            )
        };
        // After how long time alone would do.
        let alone_after = |outcome: &ReplayOutcome| match outcome {
            ReplayOutcome::Delayed { seconds, needs, .. } if needs.is_empty() => Some(*seconds),
            ReplayOutcome::Delayed { .. } | ReplayOutcome::Pending(_) | ReplayOutcome::Denied => {
                None
            }
            ReplayOutcome::Allowed
            | ReplayOutcome::AllowedShorter
            | ReplayOutcome::AllowedLonger => Some(0),
        };
        let never = u32::MAX;
        let (was, now) = (alone_after(&self.was), alone_after(&self.would_be));
        let is_sooner = now.unwrap_or(never) < was.unwrap_or(never) && !self.approved;
        match (&self.was, &self.would_be) {
            (ReplayOutcome::Denied, now) if is_allowed(now) => 0,
            (was, now) if is_pending(was) && is_allowed(now) && !self.approved => 1,
            (ReplayOutcome::Denied, ReplayOutcome::Delayed { .. }) if is_sooner => 3,
            (_, ReplayOutcome::Delayed { .. }) if is_sooner => 2,
            (ReplayOutcome::Denied, now) if is_pending(now) => 4,
            (was, now) if is_pending(was) && is_pending(now) => 5,
            (_, ReplayOutcome::AllowedLonger) => 5,
            (_, _) => 6,
        }
    }
}

/// Most bytes of the warnings in the sentences of a plan, and most of them: with everything else a card fits into a message.
const SENTENCE_BYTES_MAX: usize = 4_096;
const WARNINGS_MAX: usize = 20;
/// Most things of one kind in the sentences of a plan.
const SENTENCE_ITEMS_MAX: usize = 8;

/// What would end of what was open at the time of a plan, or would need other approvals.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedEnds {
    /// Tasks that would end.
    pub tasks: PlannedList,
    /// Tokens that would end, those of these tasks among them.
    pub tokens: PlannedList,
    /// Access requests that would end, those of these tasks among them.
    pub access_requests: PlannedList,
    /// Access requests that would go on with other approvals, or without some that they have.
    pub reassessed: PlannedList,
    /// Access requests that wait while the bundle changes people or their keys, since who could still approve them is not looked at; and
    /// access requests and tokens with a sensitive parameter about which the bundle asks something else, since an answer would tell its
    /// value.
    pub uncertain: PlannedList,
}

/// Things by name, of very many the first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedList {
    /// How many they are.
    pub count: u64,
    /// The first 50 of them.
    pub named: Vec<PlannedItem>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedItem {
    /// Its id.
    pub id: String,
    /// The agent, or the person who proposes.
    pub who: String,
    /// The action with its target; empty for a task.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub what: String,
}

/// What deciding the decisions on record again found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplaySummary {
    /// Decisions that were decided again.
    pub decisions: u64,
    /// Those that stay as they are.
    pub same: u64,
    /// Those that differ, the most frequent class first.
    pub changes: Vec<ReplayClass>,
    /// Those that are not decided again, by action: their input is not on record, their agent would have another key, or the answer would
    /// tell the value of a sensitive parameter.
    pub not_replayed: BTreeMap<ActionName, u64>,
    /// What people are asked under the bundle in force.
    pub asked: AskedOfPeople,
    /// What they would be asked.
    pub would_ask: AskedOfPeople,
    /// The replay ended at its bound: older decisions of the span are left out.
    pub is_cut: bool,
}

/// What people are asked for the replayed decisions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AskedOfPeople {
    /// Access requests: the same request of one task is one.
    pub requests: u64,
    /// Those of them between 22:00 and 06:00 UTC.
    pub at_night: u64,
    /// Approvals that they need together: each profile counts with its quorum.
    pub approvals: u64,
}

/// Decisions about one action that differ alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplayClass {
    /// The action.
    pub action: ActionName,
    /// What the bundle in force decides.
    pub was: ReplayOutcome,
    /// What the planned one would decide.
    pub would_be: ReplayOutcome,
    /// Whether people had approved the requests: the approvals are part of what was decided on.
    pub approved: bool,
    /// Decisions.
    pub count: u64,
    /// The newest of them, at most three.
    pub examples: Vec<ReplayExample>,
}

/// The kind of a decision.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplayOutcome {
    /// A token at once.
    Allowed,
    /// A token at once that lives shorter than by the other bundle.
    AllowedShorter,
    /// A token at once that lives longer than by the other bundle.
    AllowedLonger,
    /// People are asked, under these profiles.
    Pending(Vec<ProfileName>),
    /// People are asked under these profiles, and time changes it, unless somebody says no.
    Delayed {
        /// The profiles.
        profiles: Vec<ProfileName>,
        /// Seconds without a no.
        seconds: u32,
        /// The profiles that are left then; empty: nobody.
        needs: Vec<ProfileName>,
    },
    /// No token.
    Denied,
}

impl fmt::Display for ReplayOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allowed => f.write_str("allowed"),
            Self::AllowedShorter => f.write_str("allowed for a shorter time"),
            Self::AllowedLonger => f.write_str("allowed for a longer time"),
            Self::Denied => f.write_str("denied"),
            Self::Pending(profiles) => write!(f, "pending on {}", joined(profiles)),
            Self::Delayed {
                profiles,
                seconds,
                needs,
            } => {
                let time = format_seconds(i64::from(*seconds));
                let then = match needs.is_empty() {
                    true => "allowed".to_owned(),
                    false => format!("only {}", joined(needs)),
                };
                let profiles = joined(profiles);
                write!(
                    f,
                    "pending on {profiles}, or {then} after {time} without a no"
                )
            }
        }
    }
}

fn joined(profiles: &[ProfileName]) -> String {
    let names: Vec<&str> = profiles.iter().map(ProfileName::as_str).collect();
    names.join(" and ")
}

/// One decision of a class.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplayExample {
    /// Its id, for `dipylon explain`.
    pub decision: String,
    /// When it was made (RFC 3339).
    pub at: String,
    /// The workload that asked.
    pub subject: String,
    /// What it asked for, as `Type::id`.
    pub target: String,
    /// The rules that decide by the bundle in force.
    pub was_by: Vec<RuleRef>,
    /// Why they deny it; absent where they do not, and where no agent has the identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub was_denied: Option<DeniedReason>,
    /// The rules that would decide.
    pub would_be_by: Vec<RuleRef>,
    /// Why they would deny it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub would_be_denied: Option<DeniedReason>,
}
