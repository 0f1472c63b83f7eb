//! `freeze`, `unfreeze`: the brake.

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
    /// all, agent/ID, owner/ID or action/NAME; without it, what is frozen is listed
    #[arg(value_name = "SCOPE", value_parser = FreezeScope::parse)]
    scope: Option<FreezeScope>,
    /// Why, for the journal
    #[arg(long, default_value = "", requires = "scope")]
    reason: String,
    #[command(flatten)]
    key: KeyArgs,
}

#[derive(Debug, Args)]
pub(super) struct UnfreezeArgs {
    /// As it was frozen: all, agent/ID, owner/ID or action/NAME
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
        let frozen = operator.freezes().await?;
        list(output, &frozen);
        return Ok(ExitCode::SUCCESS);
    };
    let done = operator.freeze(&scope, &args.reason).await?;
    output.print(
        || {
            json!({
                "scope": scope.to_string(), "frozen": true, "changed": done.changed, "position": done.position,
                "tasks_ended": done.tasks_ended, "tokens_ended": done.tokens_ended,
                "access_requests_closed": done.access_requests_closed,
            })
        },
        || {
            if !done.changed {
                return format!("{scope} has been frozen since entry {}", done.position);
            }
            format!(
                "{scope} is frozen by entry {}: {} tasks, {} tokens and {} access requests ended\nlift it:  dipylon unfreeze {scope}",
                done.position, done.tasks_ended, done.tokens_ended, done.access_requests_closed
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
    let done = args.key.operator_client(common)?.unfreeze(&scope).await?;
    output.print(
        || json!({ "scope": scope.to_string(), "frozen": false, "position": done }),
        || {
            format!(
                "the freeze of {scope} was lifted by entry {}; nothing that ended came back",
                done
            )
        },
    );
    Ok(ExitCode::SUCCESS)
}

fn list(output: &Output, frozen: &[client::FreezeInfo]) {
    let now = Clock::system().now();
    output.print(
        || {
            let to_json = |f: &client::FreezeInfo| {
                json!({
                    "scope": f.scope, "since": render::timestamp_json(f.since.as_ref()), "by": f.by, "reason": f.reason,
                    "position": f.position,
                })
            };
            frozen.iter().map(to_json).collect::<Value>()
        },
        || {
            if frozen.is_empty() {
                return "nothing is frozen".to_owned();
            }
            let head = ["FROZEN", "BY", "SINCE", "ENTRY", "WHY"].map(str::to_owned).to_vec();
            let row = |f: &client::FreezeInfo| {
                vec![
                    escape_invisible(&f.scope),
                    escape_invisible(&f.by),
                    render::timestamp_with_distance(f.since.as_ref(), now),
                    f.position.to_string(),
                    escape_invisible_capped(&f.reason, 80),
                ]
            };
            let rows: Vec<_> = std::iter::once(head).chain(frozen.iter().map(row)).collect();
            table(&rows)
        },
    );
}
