//! `token`: ask for one, look one up, end one.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::error::CliError;
use super::connect::{self, KeyArgs};
use super::parse::{self, NamedParam};
use super::output::{FieldList, table};
use super::task_store::EvidenceArgs;
use super::task::TaskSelector;
use super::{Common, Output, files, render};
use crate::client::{
    Denied, Identity, Order, Outcome, Pending, Token as Given, TokenOrder, methods,
};
use crate::clock::Clock;
use crate::model::text::escape_invisible;
use crate::model::{Action, ActionName, Audience, DeniedReason, Exit, Target, Timestamp, TokenId};
use crate::proto::v1;

#[derive(Debug, Subcommand)]
pub(super) enum TokenCommand {
    /// Ask for a token for one action: both gates
    TokenRequestArgs(Box<TokenRequestArgs>),
    /// Output whether a token is good now (validators, for their own audiences)
    IntrospectArgs(IntrospectArgs),
    /// List the tokens that are good now, the next to expire first (operators)
    List {
        /// Most rows
        #[arg(long, default_value = "100")]
        max: usize,
        #[command(flatten)]
        key: KeyArgs,
    },
    /// End one token; its task goes on (operators)
    Revoke {
        /// The token's id
        #[arg(value_name = "TOKEN", value_parser = TokenId::parse)]
        jti: TokenId,
        #[command(flatten)]
        key: KeyArgs,
    },
}

#[derive(Debug, Args)]
pub(super) struct TokenRequestArgs {
    #[command(flatten)]
    which: TaskSelector,
    /// What to do, as the catalogue calls it
    #[arg(long, value_parser = ActionName::parse)]
    action: ActionName,
    /// What it is done to
    #[arg(long, value_name = "TYPE::ID", value_parser = parse::target)]
    target: Target,
    /// With what: name=value, or name:=JSON for sets and records
    #[arg(long = "param", value_name = "NAME=VALUE", value_parser = parse::param)]
    params: Vec<NamedParam>,
    /// The resource server that will do it
    #[arg(long, value_name = "URI", value_parser = Audience::parse)]
    audience: Audience,
    /// How long the token should live
    #[arg(long, default_value = "5m", value_parser = parse::seconds)]
    ttl: u32,
    /// Why, in your words; people see it as unverified, rules not at all
    #[arg(long, default_value = "")]
    reason: String,
    /// How long to wait if people must decide
    #[arg(long, value_parser = parse::seconds)]
    wait: Option<u32>,
    /// Ask again under the id of an earlier request
    #[arg(long, value_name = "ID")]
    request_id: Option<String>,
    #[command(flatten)]
    evidence: EvidenceArgs,
    /// Print the token itself
    #[arg(long)]
    show_token: bool,
}

#[derive(Debug, Args)]
pub(super) struct IntrospectArgs {
    /// A file with the token; - reads it from stdin
    #[arg(long, value_name = "FILE")]
    token: PathBuf,
    #[command(flatten)]
    key: KeyArgs,
}

pub(super) async fn run(common: &Common, output: &Output, command: TokenCommand) -> Result<ExitCode, CliError> {
    match command {
        TokenCommand::TokenRequestArgs(request) => self::request(common, output, *request).await,
        TokenCommand::IntrospectArgs(introspect) => self::introspect(common, output, introspect).await,
        TokenCommand::List { max, key } => {
            list(output, &key.person_client(common)?.live_tokens(max).await?);
            Ok(ExitCode::SUCCESS)
        }
        TokenCommand::Revoke { jti, key } => {
            let done = key.person_client(common)?.revoke_token(jti).await?;
            output.print(
                || json!({ "token": jti, "changed": done.changed, "cause": done.cause, "position": done.position }),
                || {
                    let by = done.position.map(|p| format!(" by entry {p}")).unwrap_or_default();
                    if done.changed {
                        format!("{jti} is revoked{by}")
                    } else {
                        format!("{jti} was dead already{by}: {}", escape_invisible(&done.cause))
                    }
                },
            );
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn list(output: &Output, tokens: &[v1::LiveToken]) {
    let now = Clock::system().now();
    output.print(
        || {
            let to_json = |t: &v1::LiveToken| {
                json!({
                    "jti": t.jti, "agent": t.agent_id, "owner": t.owner, "task": t.task_id, "action": t.action,
                    "target": render::target(t.target.as_ref()), "audience": t.audience,
                    "issued_at": render::timestamp_json(t.issued_at.as_ref()), "expires_at": render::timestamp_json(t.expires_at.as_ref()),
                    "uses_left": t.uses_left, "profiles": t.profiles,
                })
            };
            tokens.iter().map(to_json).collect::<Value>()
        },
        || {
            if tokens.is_empty() {
                return "no token is good now".to_owned();
            }
            let head = ["TOKEN", "AGENT", "OWNER", "FOR", "LEFT", "USES LEFT", "APPROVED UNDER"];
            let row = |t: &v1::LiveToken| {
                vec![
                    escape_invisible(&t.jti),
                    escape_invisible(&t.agent_id),
                    escape_invisible(&t.owner),
                    escape_invisible(&format!("{} on {}", t.action, render::target(t.target.as_ref()))),
                    render::remaining(t.expires_at.as_ref(), now),
                    t.uses_left.map_or_else(|| "any".to_owned(), |uses| uses.to_string()),
                    escape_invisible(&t.profiles.join(", ")),
                ]
            };
            let head = head.map(str::to_owned).to_vec();
            table(&std::iter::once(head).chain(tokens.iter().map(row)).collect::<Vec<_>>())
        },
    );
}

async fn request(common: &Common, output: &Output, args: TokenRequestArgs) -> Result<ExitCode, CliError> {
    let action = Action::new(
        args.action,
        args.audience,
        args.target,
        parse::params(args.params)?,
    )?;
    let mut task = args.which.attach(common, &args.evidence)?;
    if args.evidence.is_given() {
        task = task.showing_evidence();
    }
    let clock = Clock::system();
    let until = clock.now().plus_secs(i64::from(args.wait.unwrap_or(0)));
    let mut order = TokenOrder {
        action,
        ttl_s: i64::from(args.ttl),
        reason: args.reason,
        request_id: args.request_id,
        wait_s: 0,
    };
    let mut outcome = task.request_token(&order).await?;
    if let Outcome::Pending(pending) = &outcome
        && args.wait.is_some()
    {
        let needs = render::profile_lines(pending.needs()).replace('\n', "; ");
        output.note(&format!(
            "waiting until {until} for people to decide {}: {needs}",
            pending.access_request_id()
        ));
        order.request_id = Some(pending.request_id().to_string());
        outcome = task.wait_for_token(&order, until).await?;
    }
    let now = clock.now();
    Ok(match outcome {
        Outcome::Token(token) => {
            given(output, &token, args.show_token, now);
            ExitCode::SUCCESS
        }
        Outcome::Pending(pending) => {
            waits(output, &pending, &order.action, now);
            ExitCode::from(Exit::Waiting.number())
        }
        Outcome::Denied(no) => {
            denied(output, &no, &order.action);
            let exit = no.known_reason().map_or(Exit::Denied, DeniedReason::exit);
            ExitCode::from(exit.number())
        }
    })
}

fn what(action: &Action) -> String {
    escape_invisible(&format!(
        "{} on {} at {}",
        action.name, action.target, action.audience
    ))
}

fn given(output: &Output, token: &Given, show: bool, now: Timestamp) {
    output.print(
        || {
            json!({
                "outcome": "token", "token": token.jwt().expose_secret(), "jti": token.jti(), "decision": token.decision_id(),
                "expires_at": token.expires_at().to_string(), "uses": token.uses(), "ttl": render::ttl_json(token.ttl()),
                "rules": render::rules_json(token.rules()), "reissued": token.reissued(), "openings": token.openings(),
            })
        },
        || {
            let uses = match token.uses() {
                Some(1) => "one".to_owned(),
                Some(uses) => uses.to_string(),
                None => "any number, while it lives".to_owned(),
            };
            let again = if token.reissued() { " (the same token, signed anew)" } else { "" };
            let mut fields = FieldList::default();
            fields.row("token", format!("{}{again}", token.jti()))
                .row("for", what(token.action()))
                .row("until", format!("{}, {}", token.expires_at(), render::relative_time(token.expires_at(), now)))
                .row("uses", uses)
                .row("life", render::ttl_line(token.ttl()))
                .row("allowed by", render::rule_lines(token.rules()))
                .row("decision", token.decision_id().to_string());
            let text = fields.to_text();
            if show { format!("{text}\n{}", token.jwt().expose_secret()) } else { format!("{text}  (--show-token prints it)") }
        },
    );
}

fn waits(output: &Output, pending: &Pending, action: &Action, now: Timestamp) {
    output.print(
        || {
            json!({
                "outcome": "pending", "access_request": pending.access_request_id(),
                "match_phrase": pending.match_phrase().to_string(), "request_id": pending.request_id(),
                "decision": pending.decision_id(), "expires_at": pending.expires_at().to_string(),
                "needs": render::profiles_json(pending.needs()), "rules": render::rules_json(pending.rules()),
                "ttl": render::ttl_json(pending.ttl()), "show_evidence": pending.show_evidence(),
            })
        },
        || {
            let mut fields = FieldList::default();
            fields.row("waits", pending.access_request_id().to_string())
                .row("phrase", format!("{} (the approver's card says the same)", pending.match_phrase()))
                .row("for", what(action))
                .row("needs", render::profile_lines(pending.needs()))
                .row("because", render::rule_lines(pending.rules()))
                .row("until", format!("{}, {}", pending.expires_at(), render::relative_time(pending.expires_at(), now)))
                .row("decision", pending.decision_id().to_string());
            format!("{}\nask again with --request-id {}", fields.to_text(), pending.request_id())
        },
    );
}

fn denied(output: &Output, no: &Denied, action: &Action) {
    output.print(
        || {
            json!({
                "outcome": "denied", "reason": no.reason(), "comment": no.comment(), "rules": render::rules_json(no.rules()),
                "access_request": no.access_request_id(), "decision": no.decision_id(),
            })
        },
        || {
            let mut fields = FieldList::default();
            fields.row("denied", escape_invisible(no.reason()))
                .untrusted_row("they say", no.comment().unwrap_or_default())
                .row("for", what(action));
            let rules = render::rule_lines(no.rules());
            fields.row(
                "because",
                match (rules.is_empty(), no.known_reason()) {
                    (true, Some(reason)) => reason.text().to_owned(),
                    (true, None) => "the broker says no more".to_owned(),
                    (false, _) => rules,
                },
            );
            if let Some(reason) = no.known_reason() {
                fields.row("next", reason.next());
            }
            if let Some(id) = no.access_request_id() {
                fields.row("access request", id.to_string());
            }
            fields.row("decision", no.decision_id().to_string());
            format!(
                "{}\nan operator sees more:  dipylon explain {}",
                fields.to_text(),
                no.decision_id()
            )
        },
    );
}

async fn introspect(common: &Common, output: &Output, args: IntrospectArgs) -> Result<ExitCode, CliError> {
    let endpoint = connect::endpoint(common)?;
    let identity = Identity::Key(args.key.key(common)?);
    let request = v1::IntrospectRequest {
        token: files::read_text(&args.token)?,
    };
    let found = endpoint
        .call::<methods::Introspect>(Order::by(&identity), &[request])
        .await?;
    let now = Clock::system().now();
    output.print(
        || {
            if !found.active {
                return json!({ "active": false });
            }
            json!({
                "active": true, "jti": found.jti, "task": found.task_id, "agent": found.agent_id, "subject": found.subject,
                "audience": found.audience, "expires_at": render::timestamp_json(found.expires_at.as_ref()), "jkt": found.jkt,
                "action": found.action, "target": render::target(found.target.as_ref()), "uses": found.uses,
                "uses_left": found.uses_left,
            })
        },
        || {
            if !found.active {
                return "inactive: not good now, or not for this validator".to_owned();
            }
            let mut fields = FieldList::default();
            fields.row("active", escape_invisible(&found.jti))
                .untrusted_row("for", &format!("{} on {}", found.action, render::target(found.target.as_ref())))
                .untrusted_row("agent", &format!("{} ({})", found.agent_id, found.subject))
                .untrusted_row("task", &found.task_id)
                .row("until", render::timestamp_with_distance(found.expires_at.as_ref(), now));
            if let (Some(uses), Some(left)) = (found.uses, found.uses_left) {
                fields.row("uses", format!("{left} of {uses} left"));
            }
            fields.to_text()
        },
    );
    Ok(if found.active {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(Exit::Denied.number())
    })
}
