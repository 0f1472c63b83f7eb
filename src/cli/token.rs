//! `token`: ask for one, look one up, end one.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::failure::Failure;
use super::net::{self, KeyArgs};
use super::parse::{self, NamedParam};
use super::say::{Rows, table};
use super::store::EvidenceArgs;
use super::task::Which;
use super::{Common, Say, dev, shapes};
use crate::client::{
    self, AccessToken as Given, Denial, Identity, PendingApproval, TokenOutcome, TokenRequest,
};
use crate::clock::Clock;
use crate::model::text::escape_invisible;
use crate::model::{Action, ActionName, Audience, DeniedReason, Exit, Target, Timestamp, TokenId};

#[derive(Debug, Subcommand)]
pub(super) enum Token {
    /// Ask for a token for one action: both gates
    Request(Box<Request>),
    /// Say whether a token is good now (validators, for their own audiences)
    Introspect(Introspect),
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
pub(super) struct Request {
    #[command(flatten)]
    which: Which,
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
    #[arg(long = "request-id", value_name = "ID")]
    idempotency_key: Option<String>,
    #[command(flatten)]
    evidence: EvidenceArgs,
    /// Print the token itself
    #[arg(long)]
    show_token: bool,
}

#[derive(Debug, Args)]
pub(super) struct Introspect {
    /// A file with the token; - reads it from stdin
    #[arg(long, value_name = "FILE")]
    token: PathBuf,
    #[command(flatten)]
    key: KeyArgs,
}

pub(super) async fn run(common: &Common, say: &Say, verb: Token) -> Result<ExitCode, Failure> {
    match verb {
        Token::Request(request) => self::request(common, say, *request).await,
        Token::Introspect(introspect) => self::introspect(common, say, introspect).await,
        Token::List { max, key } => {
            list(say, &key.operator(common)?.active_tokens(max).await?);
            Ok(ExitCode::SUCCESS)
        }
        Token::Revoke { jti, key } => {
            let done = key.operator(common)?.revoke_token(jti).await?;
            say.either(
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

fn list(say: &Say, tokens: &[client::ActiveToken]) {
    let now = Clock::system().now();
    say.either(
        || {
            let to_json = |t: &client::ActiveToken| {
                json!({
                    "jti": t.jti, "agent": t.agent_id, "owner": t.owner, "task": t.task_id, "action": t.action,
                    "target": shapes::target(t.target.as_ref()), "audience": t.audience,
                    "issued_at": shapes::moment(t.issued_at.as_ref()), "expires_at": shapes::moment(t.expires_at.as_ref()),
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
            let row = |t: &client::ActiveToken| {
                vec![
                    escape_invisible(&t.jti),
                    escape_invisible(&t.agent_id),
                    escape_invisible(&t.owner),
                    escape_invisible(&format!("{} on {}", t.action, shapes::target(t.target.as_ref()))),
                    shapes::left(t.expires_at.as_ref(), now),
                    t.uses_left.map_or_else(|| "any".to_owned(), |uses| uses.to_string()),
                    escape_invisible(&t.profiles.join(", ")),
                ]
            };
            let head = head.map(str::to_owned).to_vec();
            table(&std::iter::once(head).chain(tokens.iter().map(row)).collect::<Vec<_>>())
        },
    );
}

async fn request(common: &Common, say: &Say, verb: Request) -> Result<ExitCode, Failure> {
    let action = Action::new(
        verb.action,
        verb.audience,
        verb.target,
        parse::params(verb.params)?,
    )?;
    let mut task = verb.which.attach(common, &verb.evidence)?;
    if verb.evidence.given() {
        task = task.always_send_evidence();
    }
    let clock = Clock::system();
    let until = clock.now().plus_secs(i64::from(verb.wait.unwrap_or(0)));
    let mut order = TokenRequest {
        action,
        ttl_s: i64::from(verb.ttl),
        reason: verb.reason,
        idempotency_key: verb.idempotency_key,
        wait_s: 0,
    };
    let mut outcome = task.request_token(&order).await?;
    if let TokenOutcome::Pending(pending) = &outcome
        && verb.wait.is_some()
    {
        let needs = shapes::profile_lines(pending.needs()).replace('\n', "; ");
        say.aside(&format!(
            "waiting until {until} for people to decide {}: {needs}",
            pending.access_request_id()
        ));
        order.idempotency_key = Some(pending.idempotency_key().to_string());
        outcome = task.wait_for_token(&order, until).await?;
    }
    let now = clock.now();
    Ok(match outcome {
        TokenOutcome::Token(token) => {
            given(say, &token, verb.show_token, now);
            ExitCode::SUCCESS
        }
        TokenOutcome::Pending(pending) => {
            waits(say, &pending, &order.action, now);
            ExitCode::from(Exit::Pending.number())
        }
        TokenOutcome::Denied(no) => {
            denied(say, &no, &order.action);
            let exit = no.reason().map_or(Exit::Denied, DeniedReason::exit);
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

fn given(say: &Say, token: &Given, show: bool, now: Timestamp) {
    say.either(
        || {
            json!({
                "outcome": "token", "token": token.jwt().expose_secret(), "jti": token.jti(), "decision": token.decision_id(),
                "expires_at": token.expires_at().to_string(), "uses": token.uses(), "ttl": shapes::ttl(token.ttl()),
                "rules": shapes::rules(token.rules()), "reissued": token.reissued(), "openings": token.openings(),
            })
        },
        || {
            let uses = match token.uses() {
                Some(1) => "one".to_owned(),
                Some(uses) => uses.to_string(),
                None => "any number, while it lives".to_owned(),
            };
            let again = if token.reissued() { " (the same token, signed anew)" } else { "" };
            let mut rows = Rows::default();
            rows.own("token", format!("{}{again}", token.jti()))
                .own("for", what(token.action()))
                .own("until", format!("{}, {}", token.expires_at(), shapes::distance(token.expires_at(), now)))
                .own("uses", uses)
                .own("life", shapes::ttl_line(token.ttl()))
                .own("allowed by", shapes::rule_lines(token.rules()))
                .own("decision", token.decision_id().to_string());
            let text = rows.lines();
            if show { format!("{text}\n{}", token.jwt().expose_secret()) } else { format!("{text}  (--show-token prints it)") }
        },
    );
}

fn waits(say: &Say, pending: &PendingApproval, action: &Action, now: Timestamp) {
    say.either(
        || {
            json!({
                "outcome": "pending", "access_request": pending.access_request_id(),
                "match_phrase": pending.match_phrase().to_string(), "request_id": pending.idempotency_key(),
                "decision": pending.decision_id(), "expires_at": pending.expires_at().to_string(),
                "needs": shapes::profiles(pending.needs()), "rules": shapes::rules(pending.rules()),
                "ttl": shapes::ttl(pending.ttl()), "show_evidence": pending.send_evidence(),
            })
        },
        || {
            let mut rows = Rows::default();
            rows.own("waits", pending.access_request_id().to_string())
                .own("phrase", format!("{} (the approver's card says the same)", pending.match_phrase()))
                .own("for", what(action))
                .own("needs", shapes::profile_lines(pending.needs()))
                .own("because", shapes::rule_lines(pending.rules()))
                .own("until", format!("{}, {}", pending.expires_at(), shapes::distance(pending.expires_at(), now)))
                .own("decision", pending.decision_id().to_string());
            format!("{}\nask again with --request-id {}", rows.lines(), pending.idempotency_key())
        },
    );
}

fn denied(say: &Say, no: &Denial, action: &Action) {
    say.either(
        || {
            json!({
                "outcome": "denied", "reason": no.reason_str(), "comment": no.comment(), "rules": shapes::rules(no.rules()),
                "access_request": no.access_request_id(), "decision": no.decision_id(),
            })
        },
        || {
            let mut rows = Rows::default();
            rows.own("denied", escape_invisible(no.reason_str()))
                .theirs("they say", no.comment().unwrap_or_default())
                .own("for", what(action));
            let rules = shapes::rule_lines(no.rules());
            rows.own(
                "because",
                match (rules.is_empty(), no.reason()) {
                    (true, Some(reason)) => reason.text().to_owned(),
                    (true, None) => "the broker says no more".to_owned(),
                    (false, _) => rules,
                },
            );
            if let Some(reason) = no.reason() {
                rows.own("next", reason.next_step());
            }
            if let Some(id) = no.access_request_id() {
                rows.own("access request", id.to_string());
            }
            rows.own("decision", no.decision_id().to_string());
            format!(
                "{}\nan operator sees more:  dipylon explain {}",
                rows.lines(),
                no.decision_id()
            )
        },
    );
}

async fn introspect(common: &Common, say: &Say, verb: Introspect) -> Result<ExitCode, Failure> {
    let endpoint = net::endpoint(common)?;
    let identity = Identity::Key(verb.key.key(common)?);
    let found = endpoint
        .introspect(&identity, &dev::read_text(&verb.token)?)
        .await?;
    let now = Clock::system().now();
    say.either(
        || {
            if !found.active {
                return json!({ "active": false });
            }
            json!({
                "active": true, "jti": found.jti, "task": found.task_id, "agent": found.agent_id, "subject": found.subject,
                "audience": found.audience, "expires_at": shapes::moment(found.expires_at.as_ref()), "jkt": found.jkt,
                "action": found.action, "target": shapes::target(found.target.as_ref()), "uses": found.uses,
                "uses_left": found.uses_left,
            })
        },
        || {
            if !found.active {
                return "inactive: not good now, or not for this validator".to_owned();
            }
            let mut rows = Rows::default();
            rows.own("active", escape_invisible(&found.jti))
                .theirs("for", &format!("{} on {}", found.action, shapes::target(found.target.as_ref())))
                .theirs("agent", &format!("{} ({})", found.agent_id, found.subject))
                .theirs("task", &found.task_id)
                .own("until", shapes::when(found.expires_at.as_ref(), now));
            if let (Some(uses), Some(left)) = (found.uses, found.uses_left) {
                rows.own("uses", format!("{left} of {uses} left"));
            }
            rows.lines()
        },
    );
    Ok(if found.active {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(Exit::Denied.number())
    })
}
