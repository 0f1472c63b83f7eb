//! The check of a bundle before it is applied: rules that cannot be meant as they are written.
//!
//! A bundle that loads is sound enough to decide by; this finds what its authors would not want to decide by. It asks Cedar about
//! sample requests: for each rule every agent, action, target and value that the rule can tell apart, by the entities and values
//! that the bundle declares. What the samples cannot prove is a warning that says so. Nothing is decided by it later: the bundle
//! in force, also after a restart, is one that loads.

mod conditions;
mod constants;
mod decisions;
pub(super) mod direction;
mod grants;
pub(super) mod location;
pub(super) mod names;
mod population;
pub(super) mod reading;
mod report;
mod samples;
mod values;

use std::collections::{BTreeMap, BTreeSet};

use cedar_policy::{ActionConstraint, PrincipalConstraint, ResourceConstraint};

use super::PolicyBundle;
use super::files::{BundleFiles, COUNTS, FACTS};
use super::problem::Problems;
use super::rule::RuleEffect;
use crate::model::{AgentId, ProfileName};
use report::{Check, Report, SilencedQuorums};
use samples::Samples;

/// What else is known of a bundle once it was checked.
#[derive(Default)]
pub(super) struct Checked {
    /// For each profile of a remedy the agents whose requests may ask for it; nothing where not everything was looked at.
    pub(super) asking: Option<BTreeMap<ProfileName, BTreeSet<AgentId>>>,
    /// The quorums that the bundle silences.
    pub(super) silenced_quorums: SilencedQuorums,
}

/// Adds every finding to `problems`, or to `warnings` where the bundle silences it. `is_sound`: the bundle loaded without a problem;
/// else only what each rule says by itself is looked at. `samples_max`: the most samples that are asked about.
pub(super) fn check(
    bundle: &PolicyBundle,
    files: &BundleFiles,
    is_sound: bool,
    samples_max: usize,
    problems: &mut Problems,
    warnings: &mut Problems,
) -> Checked {
    let mut asking = None;
    let mut report = Report::new(files, problems, warnings);
    let total = bundle.rules.infos.len();
    let Some((samples, cases)) = Samples::of(bundle, samples_max) else {
        report.not_decided(total, total, samples_max);
        return Checked {
            asking,
            silenced_quorums: report.finish(false, bundle),
        };
    };
    let mut left_out = total.saturating_sub(cases.len());
    names::check(&samples, &cases, files, &mut report);
    if is_sound {
        unconstrained(bundle, &mut report);
        unread_facts(bundle, files, &mut report);
        unread_counts(bundle, files, &mut report);
        left_out += conditions::check(&samples, &cases, &mut report);
        if report.is_all_declared() {
            asking = Some(grants::check(&samples, &cases, files, &mut report));
        }
    }
    if left_out > 0 || samples.is_spent() {
        report.not_decided(left_out, total, samples_max);
    }
    let is_complete = is_sound && report.is_all_declared() && !samples.is_spent();
    Checked {
        asking,
        silenced_quorums: report.finish(is_complete, bundle),
    }
}

/// For each profile of a remedy the agents whose requests may ask for it.
pub(super) fn askers(bundle: &PolicyBundle) -> BTreeMap<ProfileName, BTreeSet<AgentId>> {
    match Samples::of(bundle, SAMPLES_MAX) {
        Some((samples, cases)) => grants::askers(&samples, &cases),
        None => BTreeMap::new(),
    }
}

/// Refuses a permit for everyone and everything.
fn unconstrained(bundle: &PolicyBundle, report: &mut Report<'_>) {
    for policy in bundle.rules.set.policies() {
        let id: &str = policy.id().as_ref();
        let Some(rule) = bundle.rules.infos.get(id) else {
            continue;
        };
        let has_conditions = policy.has_non_scope_constraint();
        // Every principal is an agent.
        let is_any_agent = match policy.principal_constraint() {
            PrincipalConstraint::Any => true,
            PrincipalConstraint::Is(kind) => kind.basename() == "Agent",
            _ => false,
        };
        let is_open = is_any_agent
            && policy.action_constraint() == ActionConstraint::Any
            && policy.resource_constraint() == ResourceConstraint::Any;
        if rule.effect == RuleEffect::Permit && is_open && !has_conditions {
            let message = "permits every agent every action on every target; say which agents, actions or targets it is for";
            report.rule(Check::Unconstrained, rule, None, message);
        }
    }
}

/// Facts that no rule reads, so that neither value decides anything.
fn unread_facts(bundle: &PolicyBundle, files: &BundleFiles, report: &mut Report<'_>) {
    let text = files.text(FACTS).unwrap_or_default();
    let unread = bundle.facts().map(|fact| &fact.name);
    for name in unread.filter(|name| bundle.rules_reading(name).is_empty()) {
        let line = grants::table_line(text, &format!("fact.{name}"));
        let message = format!(
            "fact.{name}: no rule reads it: write context.facts.{name} in a condition, or take it out"
        );
        report.thing(Check::UnreadFact, name.as_str(), (FACTS, line), message);
    }
}

/// Counts that decide nothing, however high they are.
fn unread_counts(bundle: &PolicyBundle, files: &BundleFiles, report: &mut Report<'_>) {
    let text = files.text(COUNTS).unwrap_or_default();
    let unread = bundle.counts().map(|count| &count.name);
    for name in unread.filter(|name| bundle.rules_reading_count(name).is_empty()) {
        let line = grants::table_line(text, &format!("count.{name}"));
        let message = format!(
            "count.{name}: no rule reads it: write context.counts.{name} in a condition, or take it out"
        );
        report.thing(Check::UnreadCount, name.as_str(), (COUNTS, line), message);
    }
}

/// Most samples that are asked about for one bundle.
pub(super) const SAMPLES_MAX: usize = 300_000;
