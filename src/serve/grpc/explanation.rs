//! Explanations on the wire.

use crate::broker::{CeilingMiss, Explanation, RuleInput};
use crate::policy::{EntityFacts, NearestPermit, PermitMiss, RuleFailure};
use crate::proto::convert::{self, timestamp_to_wire};
use crate::proto::v1;

pub(super) fn explanation(explained: Explanation) -> v1::ExplainResponse {
    let lines = explained.lines.into_iter();
    v1::ExplainResponse {
        headline: explained.headline,
        lines: lines
            .map(|(label, text)| v1::ExplainLine { label, text })
            .collect(),
        entries: explained.entries,
        input: explained.input.map(input),
        nearest_permit: explained.nearest.map(nearest),
        rule_failures: explained.failures.into_iter().map(failure).collect(),
        ceiling: explained.ceiling.map(ceiling),
    }
}

fn input(input: RuleInput) -> v1::RuleInput {
    let context = input.context;
    v1::RuleInput {
        policy_version: input.policy.to_string(),
        policy_in_force: input.is_in_force,
        agent_id: input.agent.map_or_else(String::new, |id| id.to_string()),
        agent: Some(entity(input.agent_facts)),
        action: input.action.action.to_string(),
        target: Some(convert::target_to_wire(&input.action.target)),
        target_entity: input.target_facts.map(entity),
        audience: input.action.audience.to_string(),
        parameters: values(input.parameters),
        ttl_ms: context.ttl_ms,
        approvals: context.approvals.iter().map(ToString::to_string).collect(),
        evidence_kind: context.evidence_kind.as_str().to_owned(),
        evidence_issued_age_ms: input
            .is_issue_time_known
            .then_some(context.evidence_issued_age_ms),
        evidence_verified_age_ms: context.evidence_verified_age_ms,
        binding: context.binding.to_string(),
        task_age_ms: context.task_age_ms,
        waited_ms: context.waited_ms,
        now: Some(timestamp_to_wire(context.now)),
        left_out: count(input.left_out),
        local: input.local.clone(),
        facts: context
            .facts
            .iter()
            .map(|(name, value)| format!("{name}: {value}"))
            .collect(),
        counts: context
            .counts
            .iter()
            .map(|(name, value)| format!("{name}: {value}"))
            .chain(
                context
                    .recommender_counts
                    .iter()
                    .map(|(name, value)| format!("{name} of the recommender: {value}")),
            )
            .collect(),
        executor: context
            .executor
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
    }
}

fn entity(facts: EntityFacts) -> v1::RuleEntity {
    v1::RuleEntity {
        attributes: values(facts.attributes),
        groups: facts.groups,
    }
}

fn values(values: Vec<(String, String)>) -> Vec<v1::RuleValue> {
    let values = values.into_iter();
    values
        .map(|(name, value)| v1::RuleValue { name, value })
        .collect()
}

fn nearest(permit: NearestPermit) -> v1::NearestPermit {
    v1::NearestPermit {
        rule_id: permit.rule.id.to_string(),
        file: permit.rule.file.to_string(),
        line: count(permit.line),
        misses: permit.misses.into_iter().map(miss).collect(),
    }
}

fn miss(miss: PermitMiss) -> v1::PermitMiss {
    let read = miss.values.into_iter().map(|read| (read.path, read.value));
    v1::PermitMiss {
        part: miss.part.as_str().to_owned(),
        clause: miss.clause,
        error: miss.error.unwrap_or_default(),
        values: values(read.collect()),
    }
}

fn failure(failure: RuleFailure) -> v1::RuleFailure {
    let (rule, line) = failure.rule.unzip();
    v1::RuleFailure {
        rule_id: rule.as_ref().map_or_else(String::new, |r| r.id.to_string()),
        file: rule.map_or_else(String::new, |r| r.file.to_string()),
        line: count(line.unwrap_or_default()),
        error: failure.error,
    }
}

fn ceiling(miss: CeilingMiss) -> v1::CeilingMiss {
    v1::CeilingMiss {
        nearest: miss.nearest.unwrap_or_default(),
        actions: miss.actions,
        left_out: count(miss.left_out),
    }
}

fn count(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
