//! The use of a token: `token proof` for its holder, `token introspect` and `token consume` for validators.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::Args;
use http::Uri;
use serde::Deserialize;
use serde_json::{Value, json};

use super::connect::{self, KeyArgs};
use super::error::CliError;
use super::output::FieldList;
use super::task_store::SavedTask;
use super::{Common, Output, files, render};
use crate::client::{self, EvidenceSource, Identity, Transport, random_name};
use crate::clock::Clock;
use crate::jose::dpop::{self, ProofClaims};
use crate::keys;
use crate::model::text::escape_invisible;
use crate::model::{Exit, Secret, TaskId, Timestamp, UseOutcome};

/// Where the token is read from.
#[derive(Debug, Args)]
struct TokenFileArgs {
    /// A file with the token, or with the output of 'token request --json'; - reads it from stdin
    #[arg(long = "token", value_name = "FILE", default_value = "-")]
    file: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct ProofArgs {
    #[command(flatten)]
    token: TokenFileArgs,
    /// The request's method
    #[arg(long, value_name = "METHOD", default_value = "GET")]
    method: String,
    /// The request's URL at the resource server; its query is not part of the proof
    // The id is that of the global option, which it replaces here: no broker is called.
    #[arg(long = "url", id = "url", value_name = "URL", required = true)]
    request_url: String,
    /// The newest DPoP-Nonce of the resource server, if it requires one
    #[arg(long, value_name = "NONCE")]
    nonce: Option<String>,
    /// The private key of the token's task [default: the saved one]
    #[arg(long, value_name = "FILE")]
    task_key: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct IntrospectArgs {
    #[command(flatten)]
    token: TokenFileArgs,
    #[command(flatten)]
    validator: ValidatorArgs,
}

#[derive(Debug, Args)]
pub(super) struct ConsumeArgs {
    #[command(flatten)]
    token: TokenFileArgs,
    /// The id of this use: a repeated call with it consumes nothing, and exits with 15 [default: a random one]
    #[arg(long, value_name = "ID")]
    use_id: Option<String>,
    #[command(flatten)]
    validator: ValidatorArgs,
}

/// How a validator authenticates: by its registered key, or as a workload.
#[derive(Debug, Args)]
struct ValidatorArgs {
    #[command(flatten)]
    key: KeyArgs,
    /// Authenticate by the JWT-SVID in this file instead of a key; - reads it from stdin
    #[arg(long, value_name = "FILE", conflicts_with = "person")]
    evidence: Option<PathBuf>,
}

impl ValidatorArgs {
    fn identity(&self, common: &Common) -> Result<Identity, CliError> {
        Ok(match &self.evidence {
            Some(file) => {
                Identity::Svid(EvidenceSource::Fixed(Secret::new(files::read_text(file)?)))
            }
            None => Identity::Key(self.key.key(common)?),
        })
    }
}

impl TokenFileArgs {
    fn read(&self) -> Result<Secret, CliError> {
        let text = files::read_text(&self.file)?;
        if !text.starts_with('{') {
            return Ok(Secret::new(text));
        }
        let printed: Value = serde_json::from_str(&text).unwrap_or_default();
        match printed.get("token").and_then(Value::as_str) {
            Some(token) => Ok(Secret::new(token.to_owned())),
            None => Err(CliError::usage(format!(
                "{}: the JSON has no `token`: no token was issued",
                name_of(&self.file)
            ))),
        }
    }
}

fn name_of(file: &Path) -> String {
    match file.to_str() {
        Some("-") => "stdin".to_owned(),
        _ => file.display().to_string(),
    }
}

/// The claims of a token that its holder needs. Not verified: the holder got it from the broker.
#[derive(Debug, Deserialize)]
struct HolderClaims {
    txn: String,
    exp: i64,
    cnf: Confirmation,
}

#[derive(Debug, Deserialize)]
struct Confirmation {
    jkt: String,
}

impl HolderClaims {
    fn read(token: &Secret) -> Option<Self> {
        let payload = token.expose_secret().split('.').nth(1)?;
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
    }
}

/// Prints the headers of one request. Makes no call.
pub(super) fn proof(
    common: &Common,
    output: &Output,
    args: &ProofArgs,
) -> Result<ExitCode, CliError> {
    check_request(common, &args.method, &args.request_url)?;
    let token = args.token.read()?;
    let claims = HolderClaims::read(&token).ok_or_else(|| {
        CliError::usage(format!(
            "{}: expected an access token of a broker, got something else",
            name_of(&args.token.file)
        ))
        .with_next_step("'dipylon token request --json' and --show-token print one")
    })?;
    let now = Clock::system().now();
    if now.secs() >= claims.exp {
        return Err(CliError::failed(format!(
            "the token expired at {}",
            Timestamp::from_secs(claims.exp)
        ))
        .with_next_step("request another with 'dipylon token request'"));
    }
    let key = match &args.task_key {
        Some(file) => keys::read(file)?,
        None => keys::read(&SavedTask::load(TaskId::parse(&claims.txn)?)?.key)?,
    };
    if key.thumbprint().to_string() != claims.cnf.jkt {
        return Err(CliError::usage("the token is bound to another key")
            .with_next_step("--task-key is the key that its task was opened with"));
    }
    let url = args.request_url.split(['?', '#']).next();
    let proof = dpop::create(
        &key,
        &ProofClaims {
            htm: &args.method,
            htu: url.unwrap_or_default(),
            iat: now,
            jti: &random_name()?,
            nonce: args.nonce.as_deref(),
            ath: Some(dpop::ath(token.expose_secret())),
            action_digest: None,
            evidence_hash: None,
        },
    )
    .map_err(|error| CliError::failed(error.to_string()))?;
    let authorization = format!("DPoP {}", token.expose_secret());
    output.print(
        || json!({ "authorization": authorization, "dpop": proof.expose_secret() }),
        || {
            format!(
                "Authorization: {authorization}\nDPoP: {}",
                proof.expose_secret()
            )
        },
    );
    Ok(ExitCode::SUCCESS)
}

/// A proof names the method as sent and an absolute URL (RFC 9449 §4.2).
fn check_request(common: &Common, method: &str, url: &str) -> Result<(), CliError> {
    let is_method = http::Method::from_bytes(method.as_bytes()).is_ok();
    if !is_method || method.bytes().any(|byte| byte.is_ascii_lowercase()) {
        return Err(CliError::usage(format!(
            "`--method`: expected a method in upper case such as POST, got `{}`",
            escape_invisible(method)
        )));
    }
    let parts = url
        .parse::<Uri>()
        .ok()
        .filter(|uri| uri.authority().is_some());
    let Some((scheme, authority)) = parts.as_ref().and_then(|uri| {
        let scheme = uri
            .scheme_str()
            .filter(|scheme| ["http", "https"].contains(scheme))?;
        Some((scheme, uri.authority()?))
    }) else {
        return Err(CliError::usage(format!(
            "`--url`: expected the absolute URL of the request, got `{}`",
            escape_invisible(url)
        )));
    };
    // The same rule for the token as for evidence: not over plain http to another host. How the broker is reached does not
    // matter: the request goes elsewhere.
    let origin = format!("{scheme}://{authority}");
    Transport::check_url(&origin, common.allow_plain_http).map_err(|error| CliError {
        message: format!(
            "request URL: {}",
            error.to_string().trim_start_matches("broker URL: ")
        ),
        next_step: Some("--allow-plain-http allows it in a network that you trust".to_owned()),
        ..CliError::usage("")
    })
}

pub(super) async fn introspect(
    common: &Common,
    output: &Output,
    args: &IntrospectArgs,
) -> Result<ExitCode, CliError> {
    let endpoint = connect::endpoint(common)?;
    let identity = args.validator.identity(common)?;
    let token = args.token.read()?;
    let introspection = endpoint
        .introspect(&identity, token.expose_secret())
        .await?;
    let now = Clock::system().now();
    output.print(
        || {
            if !introspection.active {
                return json!({ "active": false });
            }
            json!({
                "active": true, "jti": introspection.jti, "task": introspection.task_id, "agent": introspection.agent_id, "subject": introspection.subject,
                "audience": introspection.audience, "expires_at": render::timestamp_json(introspection.expires_at.as_ref()), "jkt": introspection.jkt,
                "action": introspection.action, "target": render::target_json(introspection.target.as_ref()), "uses": introspection.uses,
                "uses_left": introspection.uses_left,
            })
        },
        || {
            if !introspection.active {
                return "inactive: expired, revoked, or issued for another audience".to_owned();
            }
            let mut fields = FieldList::default();
            fields.row("active", escape_invisible(&introspection.jti))
                .row("for", format!("{} on {}", escape_invisible(&introspection.action), render::target(introspection.target.as_ref())))
                .untrusted_row("agent", &format!("{} ({})", introspection.agent_id, introspection.subject))
                .untrusted_row("task", &introspection.task_id)
                .row("until", render::timestamp_with_distance(introspection.expires_at.as_ref(), now));
            if let (Some(uses), Some(left)) = (introspection.uses, introspection.uses_left) {
                fields.row("uses", format!("{left} of {uses} left"));
            }
            fields.to_text()
        },
    );
    Ok(if introspection.active {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(Exit::Denied.number())
    })
}

pub(super) async fn consume(
    common: &Common,
    output: &Output,
    args: ConsumeArgs,
) -> Result<ExitCode, CliError> {
    let endpoint = connect::endpoint(common)?;
    let identity = args.validator.identity(common)?;
    let token = args.token.read()?;
    // The answer says whether the validator may act: it is the only copy.
    output.require_writable()?;
    let is_own_id = args.use_id.is_none();
    let use_id = match args.use_id {
        Some(use_id) => use_id,
        None => random_name()?,
    };
    let mut used = endpoint
        .consume_token(&identity, token.expose_secret(), &use_id)
        .await
        .map_err(|error| with_use_id(error, &use_id))?;
    // No other call had this id: the call was repeated after its first answer was lost.
    if is_own_id && used.outcome == Some(UseOutcome::Repeated) {
        used.outcome = Some(UseOutcome::Spent);
    }
    let jti = escape_invisible(&used.jti);
    let left = used.uses_left.unwrap_or(0);
    let entry = used.position.unwrap_or(0);
    let (text, exit) = match used.outcome {
        Some(UseOutcome::Spent) => (
            format!("one use of {jti} is spent by entry {entry}, {left} left  (use id {use_id})"),
            Exit::Success,
        ),
        Some(UseOutcome::NoLimit) => (
            format!("{jti} has no limit of uses: nothing was spent"),
            Exit::Success,
        ),
        Some(UseOutcome::Repeated) => (
            format!("use {use_id} of {jti} was spent before, by entry {entry}: do not act again"),
            Exit::Conflict,
        ),
        None => (
            format!(
                "the broker's answer does not say whether the use was spent: do not act  (use id {use_id})"
            ),
            Exit::Failed,
        ),
    };
    output.print(
        || {
            json!({
                "jti": used.jti, "outcome": used.outcome.map(UseOutcome::as_str), "use_id": use_id,
                "uses_left": used.uses_left, "position": used.position,
            })
        },
        || text,
    );
    if output.is_closed() {
        output.warn(&format!(
            "dipylon: the answer for use id {} could not be written: ask again with --use-id",
            escape_invisible(&use_id)
        ));
    }
    Ok(ExitCode::from(exit.number()))
}

/// The error of a use. Where the broker did not refuse it, the use may be spent: its id is how to find out.
fn with_use_id(error: client::Error, use_id: &str) -> CliError {
    let is_refused = error.reason().is_some() && !error.is_retryable();
    let mut error = CliError::from(error);
    let id = escape_invisible(use_id);
    error.message = format!("{} (use id {id})", error.message);
    if !is_refused {
        error.next_step = Some(format!(
            "the use may be spent: repeat with --use-id {id}, which spends no second one; exit code 15 then means that this call spent it"
        ));
    }
    error
}
