//! `audit verify`: the whole journal checked without its broker.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::json;

use super::Say;
use super::failure::Failure;
use crate::audit::{JournalVerifier as Walk, AuditReport, Checkpoint, VoteVerifier, VoteReport};
use crate::config::Config;
use crate::journal::{OpenError, JournalReader};

#[derive(Debug, Subcommand)]
pub(super) enum Audit {
    /// Verify every entry, the tree, the blobs, what each entry rests on, and every vote; reads only, also beside a running broker
    Verify(Verify),
}

#[derive(Debug, Args)]
pub(super) struct Verify {
    /// The journal's directory, or one with a dipylon.toml
    #[arg(long, value_name = "DIR", conflicts_with = "config")]
    data_dir: Option<PathBuf>,
    /// The broker's configuration
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A checkpoint noted earlier and elsewhere: proves that nothing before it was rewritten
    #[arg(long, value_name = "SIZE:ROOT", value_parser = Checkpoint::parse)]
    against: Option<Checkpoint>,
}

pub(super) fn run(say: &Say, verb: Audit) -> Result<ExitCode, Failure> {
    let Audit::Verify(Verify {
        data_dir,
        config,
        against,
    }) = verb;
    let dir = match (data_dir, config) {
        (Some(dir), _) => journal_in(&dir)?,
        (None, Some(file)) => Config::read(&file)?.data_dir,
        (None, None) => journal_in(&super::dev::default_dir()?)?,
    };
    let (report, votes) = verify(&dir, against)?;
    say.either(
        || {
            json!({
                "whole": true,
                "entries": report.head.size,
                "checkpoint": report.head.to_string(),
                "epoch": report.epoch,
                "against": report.noted.map(|c| c.to_string()),
                "votes": { "by_key": votes.by_key, "by_passkey": votes.by_passkey, "origins": votes.origins },
            })
        },
        || {
            let met = match report.noted {
                Some(noted) => format!(", and the first {} are those noted before", noted.size),
                None => "; with --against SIZE:ROOT, a rewrite of all of it would be found too"
                    .to_owned(),
            };
            format!(
                "whole: {} entries, every premise held, every blob there{met}\n{}\ncheckpoint {}",
                report.head.size,
                told(&votes),
                report.head
            )
        },
    );
    Ok(ExitCode::SUCCESS)
}

fn journal_in(dir: &Path) -> Result<PathBuf, Failure> {
    let config = dir.join(super::dev::CONFIG_FILE);
    if config.exists() {
        Ok(Config::read(&config)?.data_dir)
    } else {
        Ok(dir.to_owned())
    }
}

/// The votes in one line. Which origins are the broker's own, the reader knows and the journal does not.
fn told(votes: &VoteReport) -> String {
    let VoteReport {
        by_key,
        by_passkey,
        origins,
    } = votes;
    let mut line = format!(
        "{} votes proved by their signatures: {by_key} by keys, {by_passkey} by passkeys",
        by_key + by_passkey
    );
    if !origins.is_empty() {
        let origins: Vec<_> = origins.iter().map(String::as_str).collect();
        line.push_str(&format!(" on {}", origins.join(", ")));
    }
    line
}

/// Walks a journal from its first entry to its head.
pub(super) fn verify(
    dir: &Path,
    against: Option<Checkpoint>,
) -> Result<(AuditReport, VoteReport), Failure> {
    let open =
        || JournalReader::open(dir).map_err(|e| Failure::failed(format!("{}: {e}", dir.display())));
    // The second finds blobs while the first walks; what is on record for the one is so for the other.
    let (journal, blobs) = (open()?, open()?);
    let mut walk = Walk::with_checkpoint(against);
    let mut votes = VoteVerifier::default();
    let damaged = |error: &dyn std::fmt::Display| {
        Failure::failed(format!("NOT WHOLE: {error}"))
            .next("keep a copy of this journal as it is, and compare it with a backup")
    };
    let walked = journal.read_all(|stored| {
        let entry = walk.entry(&stored.text, stored.leaf)?;
        votes.entry(&entry, |name| blobs.blob(name))
    });
    let walked = walked.and_then(|head| {
        journal.blobs(|name, content| walk.blob(name, content).map_err(OpenError::Damaged))?;
        walk.finish_blobs()?;
        Ok(head)
    });
    let (head, epoch) = walked.map_err(|error| match error {
        OpenError::Damaged(found) => damaged(&found),
        other @ (OpenError::Locked(_)
        | OpenError::Io { .. }
        | OpenError::Database(_)
        | OpenError::OldSqlite(_)
        | OpenError::HeadUnreadable
        | OpenError::RealmMismatch { .. }
        | OpenError::Entry(_)
        | OpenError::FirstEntry(_)) => Failure::failed(format!("{}: {other}", dir.display())),
    })?;
    let report = walk.finish(head, epoch).map_err(|error| damaged(&error))?;
    Ok((report, votes.report().clone()))
}
