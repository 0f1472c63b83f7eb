//! `explain`: the recorded reasons of a decision, access request, task, token or refused call.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::connect::KeyArgs;
use super::error::CliError;
use super::output::FieldList;
use super::{Common, Output};
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
            json!({ "headline": explanation.headline, "lines": lines, "entries": entries })
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
