//! The facts of a decision as lines of an explanation.

use super::decision_facts::{DecisionFacts, RuleInput};
use super::explain::Explanation;
use crate::model::text::quote;
use crate::model::{ProfileName, format_seconds};
use crate::policy::EntityFacts;

/// What came closest to allowing the request, and what could not be evaluated.
pub(super) fn misses(out: &mut Explanation, facts: &DecisionFacts) {
    for sentence in facts.nearest.iter().flat_map(|nearest| nearest.sentences()) {
        out.line("nearest", sentence);
    }
    for failure in &facts.failures {
        let rule = match &failure.rule {
            Some((rule, line)) => format!("rule \"{}\" ({}:{line})", rule.id, rule.file),
            None => "the request".to_owned(),
        };
        out.line("cannot be evaluated", format!("{rule}: {}", failure.error));
    }
    if let Some(ceiling) = &facts.ceiling {
        let has = match (ceiling.actions.is_empty(), ceiling.left_out) {
            (true, _) => "no action".to_owned(),
            (false, 0) => ceiling.actions.join(", "),
            (false, more) => format!("{} and {more} more", ceiling.actions.join(", ")),
        };
        out.line("ceiling", format!("the agent's `actions` has {has}"));
        if let Some(nearest) = &ceiling.nearest {
            out.line("nearest", format!("the ceiling has {nearest}"));
        }
    }
    if let Some(problem) = &facts.problem {
        out.line("not known", problem.as_str());
    }
}

/// Everything that rules saw.
pub(super) fn input(out: &mut Explanation, facts: &DecisionFacts) {
    let Some(input) = &facts.input else {
        return;
    };
    if let Some(agent) = &input.agent {
        out.line(
            "agent",
            entity(&format!("Agent::\"{agent}\""), &input.agent_facts),
        );
    }
    if let Some(executor) = &input.context.executor {
        out.line("executor", executor.to_string());
    }
    let target = input.action.target.in_sentence();
    out.line(
        "target",
        match &input.target_facts {
            Some(facts) => entity(&target, facts),
            None => format!("{target}; entities.json does not have it (target_known is false)"),
        },
    );
    out.line("audience", input.action.audience.as_str());
    for (name, value) in &input.parameters {
        out.line("parameter", format!("{name}: {value}"));
    }
    let context = &input.context;
    out.line("evidence", evidence(input));
    let approvals: Vec<&str> = context.approvals.iter().map(ProfileName::as_str).collect();
    out.line(
        "context",
        format!(
            "ttl {}, bound {}, task aged {}, waited {}, approvals [{}], at {}",
            age(context.ttl_ms),
            context.binding,
            age(context.task_age_ms),
            age(context.waited_ms),
            approvals.join(", "),
            context.now
        ),
    );
    for (name, value) in &input.context.facts {
        out.line("fact", format!("{name}: {value}"));
    }
    let context = &input.context;
    let of_recommender = context.recommender_counts.iter();
    let counts = context.counts.iter().map(|count| ("", count));
    for (of, (name, value)) in
        counts.chain(of_recommender.map(|count| (" of the recommender", count)))
    {
        let declared = facts.bundle.as_ref().and_then(|bundle| bundle.count(name));
        let said = declared.map(|declared| {
            let within = format_seconds(declared.within_s.into());
            format!(" ({}, within {within})", quote(&declared.title))
        });
        let said = said.unwrap_or_default();
        out.line("count", format!("{name}{of}: {value}{said}"));
    }
    for there in &input.local {
        out.line("local", there.as_str());
    }
    if input.left_out > 0 {
        let more = format!("{} more attributes, groups and parameters", input.left_out);
        out.line("left out", more);
    }
}

fn evidence(input: &RuleInput) -> String {
    let context = &input.context;
    let issued = match input.is_issue_time_known {
        true => format!("issued {} before", age(context.evidence_issued_age_ms)),
        false => "which does not say when it was issued and counts as issued in 1970".to_owned(),
    };
    format!(
        "{}, {issued}, verified {} before",
        context.evidence_kind.as_str(),
        age(context.evidence_verified_age_ms)
    )
}

/// An age or a lifetime; below a minute, or where it is no whole number of seconds, with milliseconds.
fn age(ms: i64) -> String {
    match ms.rem_euclid(1_000) {
        0 => format_seconds(ms.div_euclid(1_000)),
        rest => format!("{}.{rest:03}s", ms.div_euclid(1_000)),
    }
}

fn entity(name: &str, facts: &EntityFacts) -> String {
    let attributes = facts
        .attributes
        .iter()
        .map(|(attribute, value)| format!("{attribute} is {value}"));
    let groups = facts.groups.iter().map(|group| format!("in {group}"));
    let all: Vec<String> = attributes.chain(groups).collect();
    match all.is_empty() {
        true => name.to_owned(),
        false => format!("{name}; {}", all.join(", ")),
    }
}
