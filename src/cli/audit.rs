//! `audit verify`: offline verification of the whole journal.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Subcommand};
use serde_json::json;

use super::error::CliError;
use super::{Common, Output};
use crate::approve::audit::ApprovalVerifier;
use crate::audit::{AuditError, AuditReport, Checkpoint, JournalVerifier, VoteReport};
use crate::config::Config;
use crate::journal::{self, JournalReader, OpenError};
use crate::state::{State, StateFold};

#[derive(Debug, Subcommand)]
pub(super) enum AuditCommand {
    /// Verify the bytes, the place and the legality of every entry, its read set, the tree, the blobs, every vote and every quorum; reads
    /// only, also while the broker runs
    Verify(AuditVerifyArgs),
}

#[derive(Debug, Args)]
pub(super) struct AuditVerifyArgs {
    /// The journal's directory, or a directory with a dipylon.toml
    #[arg(long, value_name = "DIR", conflicts_with = "config")]
    data_dir: Option<PathBuf>,
    /// The broker's configuration
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A checkpoint recorded outside the broker: proves that no entry before it was rewritten
    #[arg(long, value_name = "SIZE:ROOT", value_parser = Checkpoint::parse)]
    against: Option<Checkpoint>,
}

pub(super) fn run(
    common: &Common,
    output: &Output,
    command: AuditCommand,
) -> Result<ExitCode, CliError> {
    let AuditCommand::Verify(AuditVerifyArgs {
        data_dir,
        config,
        against,
    }) = command;
    let dir = match (data_dir, config) {
        (Some(dir), _) => journal_in(&dir)?,
        (None, Some(file)) => Config::read(&file)?.data_dir,
        (None, None) => match &common.dev_dir {
            Some(dir) => journal_in(dir)?,
            None => journal_in(&super::dev::default_dir()?)?,
        },
    };
    let (report, votes, _) = verify(&dir, against)?;
    output.print(
        || {
            json!({
                "valid": true,
                "entries": report.head.size,
                "checkpoint": report.head.to_string(),
                "epoch": report.epoch,
                "against": report.noted.map(|c| c.to_string()),
                "votes": { "by_key": votes.by_key, "by_passkey": votes.by_passkey, "origins": votes.origins },
                "approved_tokens": votes.approved_tokens,
            })
        },
        || {
            let against = match report.noted {
                Some(noted) => format!(", and the first {} match the given checkpoint", noted.size),
                None => "; --against SIZE:ROOT also detects a rewrite of the whole journal"
                    .to_owned(),
            };
            format!(
                "verified: {} entries, each legal where it stands, every read set valid, every blob present{against}\n{}\ncheckpoint {}",
                report.head.size,
                vote_summary(&votes),
                report.head
            )
        },
    );
    Ok(ExitCode::SUCCESS)
}

fn journal_in(dir: &Path) -> Result<PathBuf, CliError> {
    let config = dir.join(super::dev::CONFIG_FILE);
    if config.exists() {
        Ok(Config::read(&config)?.data_dir)
    } else {
        Ok(dir.to_owned())
    }
}

/// The votes in one line, with their WebAuthn origins: the auditor decides which of them are the broker's.
fn vote_summary(votes: &VoteReport) -> String {
    let VoteReport {
        by_key,
        by_passkey,
        origins,
        approved_tokens,
        agreed_changes,
    } = votes;
    let mut line = format!(
        "{} votes with valid signatures: {by_key} by keys, {by_passkey} by passkeys",
        by_key + by_passkey
    );
    if !origins.is_empty() {
        let origins: Vec<_> = origins.iter().map(String::as_str).collect();
        line.push_str(&format!(" on {}", origins.join(", ")));
    }
    line.push_str(&format!(
        "\n{approved_tokens} tokens with an approval, each by a quorum of distinct people with distinct living keys\n{agreed_changes} policy bundles and facts that others than their proposer agreed to"
    ));
    line
}

/// Verifies a journal from its first entry to its head, each entry against the state before it, as a start does. Returns the state
/// after the last one too.
pub(super) fn verify(
    dir: &Path,
    against: Option<Checkpoint>,
) -> Result<(AuditReport, VoteReport, Arc<State>), CliError> {
    let open = || {
        JournalReader::open(dir).map_err(|e| CliError::failed(format!("{}: {e}", dir.display())))
    };
    // The second handle reads blobs while the first iterates over entries.
    let (journal, blobs) = (open()?, open()?);
    let mut verifier = JournalVerifier::with_checkpoint(against);
    let mut votes = ApprovalVerifier::default();
    let damaged = |error: &dyn std::fmt::Display| {
        CliError::failed(format!("journal verification failed: {error}"))
            .with_next_step("keep an unchanged copy of this journal and compare it with a backup")
    };
    let state = Arc::new(State::default());
    let mut fold = StateFold::new(Arc::clone(&state), |_| {});
    let mut replayed = journal::replay(&journal, &blobs, &mut verifier, &mut fold, |entry| {
        votes.entry(entry, &state, |name| blobs.blob(name))
    });
    let unusable = state.failure();
    // Content that is damaged or cannot be loaded makes later entries look illegal: it is named first.
    if replayed.is_ok() || unusable.is_some() {
        let mut check = |name, content: &str| verifier.blob(name, content).map_err(OpenError::from);
        let stored = journal.blobs(&mut check);
        let stored = stored.and_then(|()| Ok(verifier.finish_blobs()?));
        replayed = stored.and(replayed);
    }
    let (head, epoch) = match (replayed, unusable) {
        (Ok(_) | Err(OpenError::Damaged(AuditError::Illegal { .. })), Some(why)) => {
            let message = format!("the journal has an entry that this version cannot use: {why}");
            return Err(CliError::failed(message)
                .with_next_step("verify it with the version of the program that wrote it"));
        }
        (Ok(head), None) => head,
        (Err(OpenError::Damaged(found)), _) => return Err(damaged(&found)),
        (
            Err(
                other @ (OpenError::Locked(_)
                | OpenError::Io { .. }
                | OpenError::Database(_)
                | OpenError::Schema(_)
                | OpenError::OldSqlite(_)
                | OpenError::HeadUnreadable
                | OpenError::RealmMismatch { .. }
                | OpenError::Entry(_)
                | OpenError::FirstEntry(_)),
            ),
            _,
        ) => return Err(CliError::failed(format!("{}: {other}", dir.display()))),
    };
    let report = verifier
        .finish(head, epoch)
        .map_err(|error| damaged(&error))?;
    let votes = votes.finish(&state).map_err(|error| damaged(&error))?;
    Ok((report, votes, state))
}
