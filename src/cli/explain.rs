//! `explain`: why something is as it is.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::connect::KeyArgs;
use super::error::CliError;
use super::output::FieldList;
use super::{Common, Output};
use crate::model::text::escape_invisible;

#[derive(Debug, Args)]
pub(super) struct ExplainArgs {
    /// dec_…, areq_…, task_…, tok_… or cor_…
    id: String,
    /// Print the journal's entries too
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
    let found = args.key.operator_client(common)?.explain(&args.id).await?;
    output.print(
        || {
            let lines: Value = found
                .lines
                .iter()
                .map(|l| json!({ "label": l.label, "text": l.text }))
                .collect();
            let entries: Value = found
                .entries
                .iter()
                .map(|e| serde_json::from_str(e).unwrap_or_else(|_| Value::String(e.clone())))
                .collect();
            json!({ "headline": found.headline, "lines": lines, "entries": entries })
        },
        || {
            let mut fields = FieldList::default();
            for line in &found.lines {
                fields.untrusted_row(&escape_invisible(&line.label), &line.text);
            }
            if args.entries {
                for entry in &found.entries {
                    fields.untrusted_row("entry", entry);
                }
            }
            format!(
                "{}\n{}",
                escape_invisible(&found.headline),
                fields.to_text()
            )
        },
    );
    Ok(ExitCode::SUCCESS)
}
