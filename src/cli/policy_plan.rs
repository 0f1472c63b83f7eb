//! `policy plan`: what a policy directory would change, as the broker finds it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use super::error::CliError;
use super::{Output, files};
use crate::client::OperatorClient;
use crate::model::text::{counted, escape_invisible};
use crate::model::{
    AskedOfPeople, DeniedReason, Digest, PersonId, PlannedList, PolicyPlan, ReplayClass, RuleRef,
    json,
};

/// Has the broker plan these files, and prints the plan.
pub(super) async fn run(
    output: &Output,
    operator: &OperatorClient,
    files: &BTreeMap<String, String>,
    returning: &[PersonId],
    days: u32,
) -> Result<(), CliError> {
    let progress = |decisions| tracing::debug!(decisions, "planning");
    let plan = operator
        .plan_policy_bundle(files, returning, days, progress)
        .await?;
    let document = serde_json::to_value(&plan);
    let document = document.map_err(|e| CliError::failed(format!("the plan: {e}")))?;
    output.print(|| document, || text(&plan, days));
    Ok(())
}

/// The version that a plan was made on, if it is a plan of this bundle with these people.
pub(super) fn base_of(
    path: &Path,
    version: &Digest,
    returning: &[PersonId],
) -> Result<Digest, CliError> {
    let text = files::read_text(path)?;
    let plan: PolicyPlan = json::parse_as(text.trim().as_bytes()).map_err(|e| {
        CliError::failed(format!("{}: not a plan: {e}", path.display()))
            .with_next_step("write one with: dipylon policy plan DIR --json > FILE")
    })?;
    if plan.version != *version {
        return Err(CliError::failed(format!(
            "{}: is a plan of version {}, and the directory is version {version}",
            path.display(),
            plan.version
        ))
        .with_next_step("plan the directory again: it has changed since"));
    }
    if !plan
        .returning
        .iter()
        .eq(&BTreeSet::from_iter(returning.iter().cloned()))
    {
        return Err(CliError::failed(format!(
            "{}: is a plan with other people who return",
            path.display()
        ))
        .with_next_step("give plan and apply the same --returning"));
    }
    Ok(plan.base_version)
}

fn text(plan: &PolicyPlan, days: u32) -> String {
    let mut lines = vec![format!(
        "plan     version {} on {}, at {}",
        plan.version, plan.base_version, plan.planned_at
    )];
    if plan.changes.is_empty() {
        lines.push("changes  nothing that decides".to_owned());
    }
    lines.extend(
        plan.changes
            .iter()
            .map(|change| format!("changes  {}", escape_invisible(change))),
    );
    let ends = &plan.ends;
    lines.push(format!(
        "ends     {}, {}, {}; {} would need other approvals",
        counted(ends.tasks.count, "task"),
        counted(ends.tokens.count, "token"),
        counted(ends.access_requests.count, "access request"),
        counted(ends.reassessed.count, "access request"),
    ));
    if ends.uncertain.count > 0 {
        let waiting = counted(ends.uncertain.count, "token or access request");
        lines.push(format!(
            "ends     {waiting} more may end or change: people or keys change, or rules about a sensitive parameter"
        ));
    }
    for (what, list) in [
        ("task", &ends.tasks),
        ("token", &ends.tokens),
        ("request", &ends.access_requests),
        ("changed", &ends.reassessed),
        ("perhaps", &ends.uncertain),
    ] {
        lines.extend(named(what, list));
    }
    let replay = &plan.replay;
    let span = counted(days, "day");
    lines.push(format!(
        "decided  {} in the last {span}: {} would stay, {} would change{}",
        counted(replay.decisions, "decision"),
        replay.same,
        replay.decisions.saturating_sub(replay.same),
        if replay.is_cut {
            " (older ones are left out: too many)"
        } else {
            ""
        },
    ));
    lines.extend(replay.changes.iter().flat_map(class));
    lines.push(format!(
        "people   {}",
        asked(&replay.asked, &replay.would_ask)
    ));
    let warnings = plan.warnings.iter().cloned().chain(replay.warnings());
    lines.extend(warnings.map(|warning| format!("WARNING  {}", escape_invisible(&warning))));
    for (action, count) in &replay.not_replayed {
        let decisions = counted(*count, "decision");
        lines.push(format!(
            "unknown  {decisions} about {action} cannot be decided again: the input is not on record, or would be told"
        ));
    }
    lines.join("\n")
}

fn named(what: &str, list: &PlannedList) -> Vec<String> {
    let line = |item: &crate::model::PlannedItem| {
        let (id, who) = (escape_invisible(&item.id), escape_invisible(&item.who));
        format!("  {what:<8} {id}  {who}  {}", escape_invisible(&item.what))
            .trim_end()
            .to_owned()
    };
    let mut lines: Vec<String> = list.named.iter().map(line).collect();
    let named = u64::try_from(list.named.len()).unwrap_or(u64::MAX);
    let more = list.count.saturating_sub(named);
    if more > 0 {
        lines.push(format!("  {what:<8} and {more} more"));
    }
    lines
}

fn class(class: &ReplayClass) -> Vec<String> {
    let mut lines = vec![format!(
        "  {:<8} {}{}: {}, would be {}",
        class.count,
        class.action,
        class.approved_text(),
        class.was,
        class.would_be
    )];
    for example in &class.examples {
        let mut line = format!(
            "           {}  {}  {}  {}",
            example.at,
            escape_invisible(&example.subject),
            escape_invisible(&example.target),
            example.decision
        );
        // Writing to text cannot fail.
        let (was, would_be) = (
            rules(&example.was_by, example.was_denied),
            rules(&example.would_be_by, example.would_be_denied),
        );
        let _ = match was == would_be {
            true => write!(line, "  by {was}"),
            false => write!(line, "  by {was}, would be by {would_be}"),
        };
        lines.push(line);
    }
    lines
}

fn rules(rules: &[RuleRef], denied: Option<DeniedReason>) -> String {
    match (rules, denied) {
        ([], Some(DeniedReason::OutsideCeiling)) => "the agent's `actions`".to_owned(),
        ([], _) => "no rule".to_owned(),
        (rules, _) => {
            let names: Vec<String> = rules.iter().map(|rule| rule.id.to_string()).collect();
            names.join(", ")
        }
    }
}

/// What changes for people, in words.
fn asked(was: &AskedOfPeople, would_be: &AskedOfPeople) -> String {
    if was == would_be {
        return format!(
            "asked as before: {} with {}",
            counted(was.requests, "access request"),
            counted(was.approvals, "approval")
        );
    }
    let change = |was: u64, is: u64, what: &str| match is.checked_sub(was) {
        Some(more) => format!("{} more ({is} instead of {was})", counted(more, what)),
        None => format!("{} fewer ({is} instead of {was})", counted(was - is, what)),
    };
    format!(
        "{}, {} at night, {}",
        change(was.requests, would_be.requests, "access request"),
        change(was.at_night, would_be.at_night, "access request"),
        change(was.approvals, would_be.approvals, "approval"),
    )
}
