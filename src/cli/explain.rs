//! `explain`: why something is as it is.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::failure::Failure;
use super::net::KeyArgs;
use super::say::Rows;
use super::{Common, Say};
use crate::model::text::escape_invisible;

#[derive(Debug, Args)]
pub(super) struct Explain {
    /// dec_…, areq_…, task_…, tok_… or cor_…
    id: String,
    /// Print the journal's entries too
    #[arg(long)]
    entries: bool,
    #[command(flatten)]
    key: KeyArgs,
}

pub(super) async fn run(common: &Common, say: &Say, verb: Explain) -> Result<ExitCode, Failure> {
    let found = verb.key.operator(common)?.explain(&verb.id).await?;
    say.either(
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
            let mut rows = Rows::default();
            for line in &found.lines {
                rows.theirs(&escape_invisible(&line.label), &line.text);
            }
            if verb.entries {
                for entry in &found.entries {
                    rows.theirs("entry", entry);
                }
            }
            format!("{}\n{}", escape_invisible(&found.headline), rows.lines())
        },
    );
    Ok(ExitCode::SUCCESS)
}
