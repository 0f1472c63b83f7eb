//! `freeze` and `unfreeze`: the emergency stop for everything, an agent, an owner's agents or an action.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::connect::KeyArgs;
use super::error::CliError;
use super::output::table;
use super::{Common, Output, render};
use crate::client;
use crate::clock::Clock;
use crate::model::FreezeScope;
use crate::model::text::{escape_invisible, escape_invisible_capped};

#[derive(Debug, Args)]
pub(super) struct FreezeArgs {
    /// What to freeze: all, agent/ID, owner/ID or action/NAME; without it, the freezes are listed
    #[arg(value_name = "SCOPE", value_parser = FreezeScope::parse)]
    scope: Option<FreezeScope>,
    /// The reason, recorded in the journal
    #[arg(long, default_value = "", requires = "scope")]
    reason: String,
    #[command(flatten)]
    key: KeyArgs,
}

#[derive(Debug, Args)]
pub(super) struct UnfreezeArgs {
    /// The scope as it was frozen: all, agent/ID, owner/ID or action/NAME
    #[arg(value_name = "SCOPE", value_parser = FreezeScope::parse)]
    scope: FreezeScope,
    #[command(flatten)]
    key: KeyArgs,
}

pub(super) async fn freeze(
    common: &Common,
    output: &Output,
    args: FreezeArgs,
) -> Result<ExitCode, CliError> {
    let operator = args.key.operator_client(common)?;
    let Some(scope) = args.scope else {
        let freezes = operator.freezes().await?;
        list(output, &freezes);
        return Ok(ExitCode::SUCCESS);
    };
    let report = operator.freeze(&scope, &args.reason).await?;
    output.print(
        || {
            json!({
                "scope": scope.to_string(), "frozen": true, "changed": report.changed, "position": report.position,
                "tasks_ended": report.tasks_ended, "tokens_ended": report.tokens_ended,
                "access_requests_closed": report.access_requests_closed,
            })
        },
        || {
            if !report.changed {
                return format!("{scope} was already frozen by entry {}", report.position);
            }
            format!(
                "{scope} is frozen by entry {}: {} tasks ended, {} tokens revoked, {} access requests closed\nto lift it:  dipylon unfreeze {scope}",
                report.position, report.tasks_ended, report.tokens_ended, report.access_requests_closed
            )
        },
    );
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn unfreeze(
    common: &Common,
    output: &Output,
    args: UnfreezeArgs,
) -> Result<ExitCode, CliError> {
    let scope = args.scope;
    let position = args.key.operator_client(common)?.unfreeze(&scope).await?;
    output.print(
        || json!({ "scope": scope.to_string(), "frozen": false, "position": position }),
        || {
            format!(
                "the freeze of {scope} is lifted by entry {position}; ended tasks and revoked tokens stay ended"
            )
        },
    );
    Ok(ExitCode::SUCCESS)
}

fn list(output: &Output, freezes: &[client::FreezeInfo]) {
    let now = Clock::system().now();
    output.print(
        || {
            let to_json = |f: &client::FreezeInfo| {
                json!({
                    "scope": f.scope, "since": render::timestamp_json(f.since.as_ref()), "by": f.by, "reason": f.reason,
                    "position": f.position,
                })
            };
            freezes.iter().map(to_json).collect::<Value>()
        },
        || {
            if freezes.is_empty() {
                return "nothing is frozen".to_owned();
            }
            let head = ["SCOPE", "BY", "SINCE", "ENTRY", "REASON"].map(str::to_owned).to_vec();
            let row = |f: &client::FreezeInfo| {
                vec![
                    escape_invisible(&f.scope),
                    escape_invisible(&f.by),
                    render::timestamp_with_distance(f.since.as_ref(), now),
                    f.position.to_string(),
                    escape_invisible_capped(&f.reason, 80),
                ]
            };
            let rows: Vec<_> = std::iter::once(head).chain(freezes.iter().map(row)).collect();
            table(&rows)
        },
    );
}
