//! `approver`: list approvers and their keys, invite them to enrol passkeys, confirm passkeys, revoke keys.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use serde_json::{Value, json};

use super::connect::KeyArgs;
use super::error::CliError;
use super::output::{FieldList, table};
use super::{Common, Output, recover, render};
use crate::card::quoted;
use crate::client;
use crate::clock::Clock;
use crate::model::text::escape_invisible;
use crate::model::{ConfirmationCode, Digest, ParseError, PersonId, Thumbprint, Timestamp};

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
    /// Confirm that a person enrolled a passkey themselves: another operator or approver than the one who invited them does, with the code
    /// that the person reads out from their enrolment page
    Confirm {
        /// The person
        #[arg(value_parser = PersonId::parse)]
        id: PersonId,
        /// The code that the person reads out, or the passkey's thumbprint in 'approver list'
        #[arg(value_name = "CODE", value_parser = PasskeyName::parse, allow_hyphen_values = true)]
        passkey: PasskeyName,
        #[command(flatten)]
        key: KeyArgs,
    },
    /// Confirm a passkey on the broker's host, while the broker is stopped, where no other person has a key to confirm it with
    ConfirmOnHost {
        /// The broker's configuration [default: the development broker's]
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// The person
        #[arg(value_parser = PersonId::parse)]
        id: PersonId,
        /// The code that the person reads out, or the passkey's thumbprint in 'approver list'
        #[arg(value_name = "CODE", value_parser = PasskeyName::parse, allow_hyphen_values = true)]
        passkey: PasskeyName,
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

/// What a passkey is named by.
#[derive(Debug, Clone, Copy)]
pub(super) enum PasskeyName {
    Code(ConfirmationCode),
    Key(Thumbprint),
}

impl PasskeyName {
    fn parse(text: &str) -> Result<Self, ParseError> {
        match thumbprint(text) {
            Ok(key) => Ok(Self::Key(key)),
            Err(_) => ConfirmationCode::parse(text).map(Self::Code),
        }
    }

    /// Whether it names the passkey with this key.
    pub(super) fn is_of(self, key: Thumbprint) -> bool {
        match self {
            Self::Code(code) => code == ConfirmationCode::of(key),
            Self::Key(named) => named == key,
        }
    }
}

/// No passkey of the person has that name.
pub(super) fn no_such_passkey(person: &PersonId) -> CliError {
    CliError::failed(format!("{person} has no passkey with this code or thumbprint")).with_next_step(format!(
        "ask {person} to read the code out again; a passkey that {person} did not enrol has to be revoked: 'dipylon approver revoke {person} --only THUMBPRINT'"
    ))
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
                        "{id} can enrol one passkey. Send this to {id} only: the first person to use it can vote as {id}\n{}\
                         another operator or approver than you then confirms it: dipylon approver confirm {id} CODE, with the code that {id} reads out; until then it counts for no action of high risk",
                        fields.to_text()
                    )
                },
            );
        }
        ApproverCommand::Confirm { id, passkey, key } => {
            let client = key.operator_client(common)?;
            let passkey = match passkey {
                PasskeyName::Key(key) => key,
                PasskeyName::Code(_) => {
                    let people = client.approvers().await?;
                    let person = people.iter().find(|person| person.person_id == id.as_str());
                    let passkeys = person.into_iter().flat_map(|person| &person.passkeys);
                    let mut keys = passkeys.filter_map(|known| thumbprint(&known.key).ok());
                    keys.find(|key| passkey.is_of(*key))
                        .ok_or_else(|| no_such_passkey(&id))?
                }
            };
            let position = client.confirm_passkey(&id, passkey).await?;
            output.print(
                || json!({ "person": id, "key": passkey, "position": position }),
                || {
                    format!("the passkey {passkey} of {id} is confirmed: it counts for actions of every risk")
                },
            );
        }
        ApproverCommand::ConfirmOnHost {
            config,
            id,
            passkey,
        } => return recover::confirm_passkey(common, output, config, id, passkey).await,
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
            let named = |all: &[client::PersonPasskey]| -> Value {
                let name = |known: &client::PersonPasskey| json!({ "person": known.person_id, "key": known.key });
                all.iter().map(name).collect()
            };
            output.print(
                || {
                    json!({
                        "person": id, "revoked": revoked.revoked, "invited": named(&revoked.invited),
                        "unconfirmed": named(&revoked.unconfirmed), "left_out": revoked.left_out,
                    })
                },
                || revocation_text(&id, &revoked, &next),
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What was revoked, a passkey on a line.
fn revocation_text(id: &PersonId, revoked: &client::KeyRevocationReport, next: &str) -> String {
    let mut text = match revoked.revoked {
        0 => format!("{id} has no active key to revoke"),
        1 => format!("1 key of {id} is revoked, for everyone and for ever{next}"),
        n => format!("{n} keys of {id} are revoked, for everyone and for ever{next}"),
    };
    let mut line = |what: &str, known: &client::PersonPasskey| {
        let (person, key) = (
            escape_invisible(&known.person_id),
            escape_invisible(&known.key),
        );
        text.push_str(&format!("\nthe passkey {key} of {person} {what}"));
    };
    for known in &revoked.invited {
        line(
            "is revoked too: it was enrolled on an invitation of theirs, and no other person confirmed it",
            known,
        );
    }
    for known in &revoked.unconfirmed {
        line(
            "awaits confirmation again: it was confirmed with their key",
            known,
        );
    }
    if revoked.left_out > 0 {
        text.push_str(&format!(
            "\nand {} more, which the entry in the journal names",
            revoked.left_out
        ));
    }
    text
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
                match passkey.confirmed_by.as_str() {
                    "" => format!(
                        "passkey {}, not confirmed (invited by {})",
                        quoted(&passkey.label),
                        escape_invisible(&passkey.invited_by)
                    ),
                    by => format!(
                        "passkey {}, confirmed by {}",
                        quoted(&passkey.label),
                        escape_invisible(by)
                    ),
                },
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
            "invited_by": p.invited_by, "confirmed_by": p.confirmed_by,
            "confirmed_at": render::timestamp_json(p.confirmed_at.as_ref()),
        })
    };
    json!({
        "person": person.person_id, "name": person.name, "roles": person.roles, "groups": person.groups,
        "keys": person.keys, "passkeys": person.passkeys.iter().map(passkey).collect::<Value>(),
        "invited_until": render::timestamp_json(person.invited_until.as_ref()), "revoked": person.revoked,
        "left_out": person.left_out,
    })
}
