//! `approver`: list approvers and their keys, invite them to enrol passkeys, revoke keys.

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::{Value, json};

use super::connect::KeyArgs;
use super::error::CliError;
use super::output::{FieldList, table};
use super::{Common, Output, render};
use crate::client;
use crate::clock::Clock;
use crate::model::text::escape_invisible;
use crate::model::{Digest, ParseError, PersonId, Thumbprint, Timestamp};

#[derive(Debug, Subcommand)]
pub(super) enum ApproverCommand {
    /// Invite a registered person to enrol a passkey with a single-use code, valid for ten minutes
    Invite {
        /// The person, by the id in people.toml
        #[arg(value_parser = PersonId::parse)]
        id: PersonId,
        #[command(flatten)]
        key: KeyArgs,
    },
    /// List people, their roles, keys and passkeys
    List {
        #[command(flatten)]
        key: KeyArgs,
    },
    /// Revoke all keys of a person, or one, permanently; their votes no longer count unless a token was issued on them
    Revoke {
        /// The person
        #[arg(value_parser = PersonId::parse)]
        id: PersonId,
        /// Revoke only this key or passkey, named by its thumbprint in 'approver list'
        #[arg(long = "only", value_name = "THUMBPRINT", value_parser = thumbprint, allow_hyphen_values = true)]
        only: Option<Thumbprint>,
        /// Another person may have the key: revoke it even if no operator with a living key is left. Then only 'dipylon recover
        /// operators' on the broker's host brings one back
        #[arg(long)]
        compromised: bool,
        #[command(flatten)]
        key: KeyArgs,
    },
}

fn thumbprint(text: &str) -> Result<Thumbprint, ParseError> {
    Digest::parse(text).map(Thumbprint)
}

pub(super) async fn run(
    common: &Common,
    output: &Output,
    command: ApproverCommand,
) -> Result<ExitCode, CliError> {
    match command {
        ApproverCommand::Invite { id, key } => {
            let client = key.operator_client(common)?;
            // The code is printed once and kept nowhere.
            output.require_writable()?;
            let invited = client.invite(&id).await?;
            let now = Clock::system().now();
            output.print(
                || {
                    json!({
                        "person": id, "code": invited.code.expose_secret(), "url": invited.url.expose_secret(),
                        "expires_at": render::timestamp_json(invited.expires_at.as_ref()),
                    })
                },
                || {
                    let mut fields = FieldList::default();
                    fields.row("open", escape_invisible(invited.url.expose_secret()))
                        .row("or code", escape_invisible(invited.code.expose_secret()))
                        .row("expires in", render::remaining(invited.expires_at.as_ref(), now));
                    format!(
                        "{id} can enrol one passkey. Send this to {id} only: the first person to use it can vote as {id}\n{}",
                        fields.to_text()
                    )
                },
            );
        }
        ApproverCommand::List { key } => {
            let people = key.operator_client(common)?.approvers().await?;
            let now = Clock::system().now();
            output.print(
                || people.iter().map(to_json).collect::<Value>(),
                || approvers_table(&people, now),
            );
        }
        ApproverCommand::Revoke {
            id,
            only,
            compromised,
            key,
        } => {
            let client = key.operator_client(common)?;
            let revoked = match compromised {
                true => client.revoke_compromised_keys(&id, only).await?,
                false => client.revoke_keys(&id, only).await?,
            };
            let next = match compromised {
                true => "; if no operator is left who can act: stop the broker and run 'dipylon recover operators' on its host".to_owned(),
                false => format!("; to enrol another passkey: dipylon approver invite {id}"),
            };
            output.print(
                || json!({ "person": id, "revoked": revoked }),
                || match revoked {
                    0 => format!("{id} has no active key to revoke"),
                    1 => format!("1 key of {id} is revoked, for everyone and for ever{next}"),
                    n => format!("{n} keys of {id} are revoked, for everyone and for ever{next}"),
                },
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// One row per key, and one for a person without keys.
fn approvers_table(people: &[client::ApproverInfo], now: Timestamp) -> String {
    let head = [
        "PERSON",
        "NAME",
        "ROLES",
        "GROUPS",
        "KEY",
        "TYPE",
        "LAST VOTE",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for person in people {
        let passkeys = person.passkeys.iter().map(|passkey| {
            let last = match &passkey.last_vote_at {
                Some(_) => render::timestamp_with_distance(passkey.last_vote_at.as_ref(), now),
                None => "never".to_owned(),
            };
            (
                escape_invisible(&passkey.key),
                format!("passkey {}", escape_invisible(&passkey.label)),
                last,
            )
        });
        let keys = person.keys.iter().map(|key| {
            (
                escape_invisible(key),
                "key in people.toml".to_owned(),
                String::new(),
            )
        });
        let revoked = person
            .revoked
            .iter()
            .map(|key| (escape_invisible(key), "revoked".to_owned(), String::new()));
        let invited = person.invited_until.iter().map(|until| {
            let left = render::remaining(Some(until), now);
            (
                String::new(),
                format!("invited, {left} left"),
                String::new(),
            )
        });
        let left_out = (person.left_out > 0).then(|| {
            (
                String::new(),
                format!("and {} more groups and keys", person.left_out),
                String::new(),
            )
        });
        let mut key_rows: Vec<_> = passkeys
            .chain(keys)
            .chain(invited)
            .chain(revoked)
            .chain(left_out)
            .collect();
        if key_rows.is_empty() {
            key_rows.push((String::new(), "no key".to_owned(), String::new()));
        }
        for (index, (key, kind, last)) in key_rows.into_iter().enumerate() {
            // The person's columns are filled in the first row only.
            let first_row = |text: String| if index == 0 { text } else { String::new() };
            rows.push(vec![
                first_row(escape_invisible(&person.person_id)),
                first_row(match person.name.as_str() {
                    "" => "(not in people.toml)".to_owned(),
                    name => escape_invisible(name),
                }),
                first_row(escape_invisible(&person.roles.join(", "))),
                first_row(escape_invisible(&person.groups.join(", "))),
                key,
                kind,
                last,
            ]);
        }
    }
    table(&rows)
}

fn to_json(person: &client::ApproverInfo) -> Value {
    let passkey = |p: &client::PasskeyInfo| {
        json!({
            "key": p.key, "label": p.label, "backup_eligible": p.backup_eligible,
            "added_at": render::timestamp_json(p.added_at.as_ref()),
            "last_vote_at": render::timestamp_json(p.last_vote_at.as_ref()),
        })
    };
    json!({
        "person": person.person_id, "name": person.name, "roles": person.roles, "groups": person.groups,
        "keys": person.keys, "passkeys": person.passkeys.iter().map(passkey).collect::<Value>(),
        "invited_until": render::timestamp_json(person.invited_until.as_ref()), "revoked": person.revoked,
        "left_out": person.left_out,
    })
}
