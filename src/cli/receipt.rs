//! `receipt`: the signed receipt of a token from the broker, and its verification without it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::connect::{KeyArgs, connect_options, endpoint};
use super::error::CliError;
use super::output::FieldList;
use super::{Common, Output, files, http_client};
use crate::audit::{
    Checkpoint, ExpectedReceipt, RECEIPT_BYTES_MAX, TokenReceipt, VerifiedReceipt, verify_receipt,
};
use crate::client::Transport;
use crate::jose::{KeySet, Usage};
use crate::model::text::escape_invisible;
use crate::model::{Realm, TokenId, format_seconds};

/// Longest file of published keys, in bytes.
const KEYS_BYTES_MAX: usize = 256 * 1024;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct ReceiptArgs {
    #[command(subcommand)]
    command: Option<ReceiptCommand>,
    /// The token's id: tok_…
    #[arg(value_name = "TOKEN", value_parser = TokenId::parse, required = true)]
    jti: Option<TokenId>,
    /// Write the receipt to this file as well
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    key: KeyArgs,
}

#[derive(Debug, Subcommand)]
enum ReceiptCommand {
    /// Verify a receipt: its signature, the proof of each entry and vote, the quorum; without the broker if the keys are in a file
    Verify(ReceiptVerifyArgs),
}

#[derive(Debug, Args)]
struct ReceiptVerifyArgs {
    /// The receipt; `-` is stdin
    #[arg(value_name = "FILE")]
    receipt: PathBuf,
    /// The broker's published keys: a saved /.well-known/jwks.json, or the URL of one
    #[arg(long, value_name = "FILE|URL")]
    keys: String,
    /// The realm that it must be of
    #[arg(long, env = "DIPYLON_REALM", value_parser = Realm::parse)]
    realm: Option<Realm>,
    /// A checkpoint noted elsewhere, which must be its
    #[arg(long, value_name = "SIZE:ROOT", value_parser = Checkpoint::parse)]
    checkpoint: Option<Checkpoint>,
}

pub(super) async fn run(
    common: &Common,
    output: &Output,
    args: ReceiptArgs,
) -> Result<ExitCode, CliError> {
    match (args.command, args.jti) {
        (Some(ReceiptCommand::Verify(verify)), _) => run_verify(common, output, verify).await,
        (None, Some(jti)) => fetch(common, output, jti, args.out, args.key).await,
        (None, None) => Err(CliError::usage("no token given: use its id, tok_…")),
    }
}

async fn fetch(
    common: &Common,
    output: &Output,
    jti: TokenId,
    out: Option<PathBuf>,
    key: KeyArgs,
) -> Result<ExitCode, CliError> {
    let text = key.operator_client(common)?.token_receipt(jti).await?;
    let refused = |error: &dyn std::fmt::Display| {
        let error = escape_invisible(&error.to_string());
        CliError::failed(format!("the broker's receipt does not verify: {error}"))
    };
    let receipt = TokenReceipt::parse(&text).map_err(|e| refused(&e))?;
    if receipt.jti != jti {
        return Err(CliError::failed(
            "the broker sent the receipt of another token",
        ));
    }
    // With the keys that the broker publishes now: a broken receipt is found, one that the broker forges is not.
    let endpoint = endpoint(common)?;
    let keys = read_keys(common, endpoint.url()).await?;
    let expected = ExpectedReceipt {
        keys: &keys,
        realm: None,
        checkpoint: None,
    };
    let verified = verify_receipt(&receipt, &expected).map_err(|e| refused(&e))?;
    if let Some(file) = &out {
        files::write_private(file, &format!("{text}\n"))?;
    }
    output.print(
        || serde_json::from_str(&text).unwrap_or(Value::Null),
        || {
            let file = out.as_deref().unwrap_or_else(|| Path::new("FILE"));
            let file = escape_invisible(&file.display().to_string());
            format!(
                "{}\nchecked with the keys that the broker publishes now; to trust it, check it with keys that you have kept:\n  dipylon receipt verify {file} --keys JWKS",
                summary(&verified)
            )
        },
    );
    Ok(ExitCode::SUCCESS)
}

async fn run_verify(
    common: &Common,
    output: &Output,
    args: ReceiptVerifyArgs,
) -> Result<ExitCode, CliError> {
    let text = files::read_bounded(&args.receipt, RECEIPT_BYTES_MAX + 1)?;
    let keys = read_keys(common, &args.keys).await?;
    let expected = ExpectedReceipt {
        keys: &keys,
        realm: args.realm.as_ref(),
        checkpoint: args.checkpoint,
    };
    let verified = TokenReceipt::parse(&text)
        .and_then(|receipt| verify_receipt(&receipt, &expected))
        .map_err(|error| {
            let why = escape_invisible(&error.to_string());
            CliError::failed(format!("the receipt is refused: {why}")).with_next_step(
                "get it again with 'dipylon receipt', and compare the broker's published keys",
            )
        })?;
    output.print(
        || to_json(&verified),
        || format!("verified: {}", summary(&verified)),
    );
    Ok(ExitCode::SUCCESS)
}

/// The published keys, from a file or over HTTP.
async fn read_keys(common: &Common, from: &str) -> Result<KeySet, CliError> {
    let is_url = from.starts_with("https://") || from.starts_with("http://");
    let text = if is_url {
        let origin_end = from.find("://").map_or(0, |at| at + 3);
        let path_at = from.get(origin_end..).and_then(|rest| rest.find('/'));
        let (origin, path) = match path_at {
            Some(at) => from.split_at(origin_end + at),
            None => (from, "/.well-known/jwks.json"),
        };
        let route = Transport::new(origin, &connect_options(common))?;
        let unreachable = |why: String| {
            CliError::failed(format!(
                "{}: {}",
                escape_invisible(from),
                escape_invisible(&why)
            ))
        };
        let response = http_client::get(&route, path).await.map_err(unreachable)?;
        if response.status != 200 {
            return Err(unreachable(format!(
                "expected HTTP status 200, got {}",
                response.status
            )));
        }
        response.text()
    } else {
        files::read_bounded(Path::new(from), KEYS_BYTES_MAX)?
    };
    KeySet::parse(text.as_bytes(), Usage::Signature).map_err(|error| {
        CliError::failed(format!("{}: {error}", escape_invisible(from)))
            .with_next_step("give the key set of the broker, /.well-known/jwks.json")
    })
}

fn summary(verified: &VerifiedReceipt) -> String {
    let token = verified.token();
    let issued = &token.issued;
    let mut rows = FieldList::default();
    rows.row(
        "agent",
        format!(
            "{} of {}, as {}",
            issued.agent, token.task.owner, issued.subject
        ),
    );
    if let Some(task) = &token.recommended_in {
        rows.row(
            "recommended by",
            format!(
                "{} of {}, as {}, in {}",
                task.agent, task.owner, task.evidence.subject, task.task
            ),
        );
    }
    rows.row(
        "evidence",
        format!(
            "{} by key {}, verified {}",
            issued.evidence.kind.as_str(),
            issued.evidence.kid,
            issued.evidence.verified_at
        ),
    );
    rows.row(
        "task",
        format!("{}, opened {}", issued.task, token.task.opened_at),
    );
    rows.untrusted_row(
        "action",
        &format!(
            "{} on {}",
            issued.action.action,
            issued.action.target.in_sentence()
        ),
    );
    rows.row("audience", issued.action.audience.to_string());
    for (name, value) in &issued.action.parameters {
        let shown = match value.get("$commitment") {
            Some(_) => "sensitive".to_owned(),
            None => value.to_string(),
        };
        rows.untrusted_row("parameter", &format!("{name} = {shown}"));
    }
    rows.row("issued", format!("{}, by entry {}", token.at, token.index));
    let ttl = &issued.decision.ttl;
    let limits: Vec<String> = ttl
        .limits
        .iter()
        .map(|limit| format!("{} {}", limit.source, format_seconds(limit.seconds)))
        .collect();
    rows.untrusted_row(
        "life",
        &format!(
            "{} = least of asked {}, {}",
            format_seconds(ttl.granted),
            format_seconds(ttl.requested),
            limits.join(", ")
        ),
    );
    for rule in issued.decision.rules.iter() {
        rows.untrusted_row("rule", &format!("{} ({})", rule.id, rule.file));
    }
    rows.row(
        "policy",
        format!(
            "{}, in force by entry {}",
            issued.decision.policy, token.policy_index
        ),
    );
    for vote in verified.votes() {
        let mut how = format!("{} {}", vote.method.signed_by(), vote.key);
        if let Some(origin) = &vote.origin {
            how = format!("{how} on {origin}");
        }
        let text = format!(
            "{} {} for {}, at most {}, {}, {how}, entry {}",
            vote.voter,
            vote.verdict.as_str(),
            vote.profile,
            format_seconds(vote.max_ttl),
            vote.at,
            vote.index
        );
        rows.untrusted_row("vote", &text);
        let shown = &vote.facts.action;
        let risk = match shown.risk.as_str() {
            "" => "not stated",
            risk => risk,
        };
        let text = format!("{} saw risk {risk}, effect: {}", vote.voter, shown.effect);
        rows.untrusted_row("shown", &text);
    }
    let waited_ms = issued.decision.input.waited_ms;
    if waited_ms > 0 {
        let waited = format_seconds(waited_ms / 1_000);
        rows.row(
            "waited",
            format!("{waited} without a no, as its rules allow"),
        );
    }
    if verified.votes().is_empty() {
        rows.row("votes", "none was needed");
    }
    rows.row("used", uses(verified));
    rows.row(
        "end",
        match token.end {
            Some((index, at, kind)) => format!("{at}, by entry {index} ({kind})"),
            None => format!(
                "by {} at the latest",
                crate::model::Timestamp::from_secs(issued.exp)
            ),
        },
    );
    let signed = verified.checkpoint();
    rows.row(
        "entries",
        format!(
            "{} proved in checkpoint {}",
            verified.entries().count(),
            signed.checkpoint()
        ),
    );
    rows.row("signed", format!("{} by key {}", signed.at, verified.kid()));
    for limit in verified.limits() {
        rows.row("not proved", limit);
    }
    format!(
        "{} of realm {}, issued by {}\n{}",
        issued.jti,
        verified.realm(),
        escape_invisible(verified.issuer()),
        rows.to_text()
    )
}

fn uses(verified: &VerifiedReceipt) -> String {
    let token = verified.token();
    if verified.uses_omitted() {
        return "more often than a receipt holds: uses and reissues are left out".to_owned();
    }
    let of = token
        .issued
        .uses
        .map_or_else(String::new, |uses| format!(" of {uses}"));
    format!("{}{of}, signed again {} times", token.uses, token.reissues)
}

fn to_json(verified: &VerifiedReceipt) -> Value {
    let token = verified.token();
    let votes: Vec<Value> = verified
        .votes()
        .iter()
        .map(|vote| {
            json!({
                "entry": vote.index, "at": vote.at.millis(), "voter": vote.voter, "key": vote.key, "method": vote.method,
                "origin": vote.origin, "verdict": vote.verdict, "profile": vote.profile, "shown": vote.facts,
            })
        })
        .collect();
    let entries: Vec<Value> = verified
        .entries()
        .map(|(index, kind)| json!({ "index": index, "kind": kind }))
        .collect();
    json!({
        "valid": true,
        "jti": token.issued.jti,
        "realm": verified.realm(),
        "issuer": verified.issuer(),
        "kid": verified.kid(),
        "checkpoint": verified.checkpoint().checkpoint().to_string(),
        "entries": entries,
        "votes": votes,
        "waited_ms": token.issued.decision.input.waited_ms,
        "ended": token.end.map(|(index, at, kind)| json!({ "entry": index, "at": at.millis(), "kind": kind })),
        "not_proved": verified.limits(),
    })
}
