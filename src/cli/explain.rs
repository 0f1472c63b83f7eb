//! `explain`: the recorded reasons of a decision, access request, task, token or refused call.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::connect::KeyArgs;
use super::error::CliError;
use super::output::FieldList;
use super::{Common, Output, render};
use crate::client;
use crate::model::text::escape_rendered;

#[derive(Debug, Args)]
pub(super) struct ExplainArgs {
    /// The id: dec_…, areq_…, task_…, tok_… or cor_…
    id: String,
    /// Print the journal's entries as well
    #[arg(long)]
    entries: bool,
    #[command(flatten)]
    key: KeyArgs,
}

fn input_json(input: &client::RuleInputInfo) -> Value {
    json!({
        "policy": input.policy_version, "policy_in_force": input.policy_in_force,
        "agent": text_or_null(&input.agent_id), "agent_entity": input.agent.as_ref().map(entity_json),
        "action": input.action, "target": input.target.as_ref().map(ToString::to_string),
        "target_entity": input.target_entity.as_ref().map(entity_json), "target_known": input.target_entity.is_some(),
        "audience": input.audience, "parameters": values_json(&input.parameters), "ttl_ms": input.ttl_ms,
        "approvals": input.approvals, "evidence_kind": input.evidence_kind,
        "evidence_issued_age_ms": input.evidence_issued_age_ms, "evidence_verified_age_ms": input.evidence_verified_age_ms,
        "binding": input.binding, "task_age_ms": input.task_age_ms, "waited_ms": input.waited_ms, "now": render::timestamp_json(input.now.as_ref()),
        "left_out": input.left_out, "local": input.local, "facts": input.facts, "counts": input.counts, "executor": text_or_null(&input.executor),
    })
}

fn entity_json(entity: &client::RuleEntityInfo) -> Value {
    json!({ "attributes": values_json(&entity.attributes), "groups": entity.groups })
}

fn values_json(values: &[client::RuleValueInfo]) -> Value {
    let pair = |read: &client::RuleValueInfo| (read.name.clone(), read.value.clone().into());
    Value::Object(values.iter().map(pair).collect())
}

fn nearest_json(permit: &client::NearestPermitInfo) -> Value {
    let miss = |miss: &client::PermitMissInfo| {
        json!({
            "part": miss.part, "clause": miss.clause, "error": text_or_null(&miss.error), "values": values_json(&miss.values),
        })
    };
    let misses: Value = permit.misses.iter().map(miss).collect();
    json!({ "rule": permit.rule_id, "file": permit.file, "line": permit.line, "misses": misses })
}

fn text_or_null(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

pub(super) async fn run(
    common: &Common,
    output: &Output,
    args: ExplainArgs,
) -> Result<ExitCode, CliError> {
    let explanation = args.key.operator_client(common)?.explain(&args.id).await?;
    output.print(
        || {
            let lines: Value = explanation
                .lines
                .iter()
                .map(|l| json!({ "label": l.label, "text": l.text }))
                .collect();
            let entries: Value = explanation
                .entries
                .iter()
                .map(|e| serde_json::from_str(e).unwrap_or_else(|_| Value::String(e.clone())))
                .collect();
            let failures = explanation.rule_failures.iter().map(|failure| {
                json!({
                    "rule": text_or_null(&failure.rule_id), "file": text_or_null(&failure.file), "line": failure.line,
                    "error": failure.error,
                })
            });
            json!({
                "headline": explanation.headline, "lines": lines, "entries": entries,
                "input": explanation.input.as_ref().map(input_json),
                "nearest": explanation.nearest_permit.as_ref().map(nearest_json),
                "failures": failures.collect::<Value>(),
                "ceiling": explanation.ceiling.as_ref().map(|ceiling| json!({
                    "nearest": text_or_null(&ceiling.nearest), "actions": ceiling.actions, "left_out": ceiling.left_out,
                })),
            })
        },
        || {
            let mut fields = FieldList::default();
            for line in &explanation.lines {
                fields.row(&escape_rendered(&line.label), escape_rendered(&line.text));
            }
            if args.entries {
                for entry in &explanation.entries {
                    fields.untrusted_row("entry", entry);
                }
            }
            format!(
                "{}\n{}",
                escape_rendered(&explanation.headline),
                fields.to_text()
            )
        },
    );
    Ok(ExitCode::SUCCESS)
}
