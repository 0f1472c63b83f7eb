//! `token`: request, list and revoke tokens; [`super::token_use`] has the verbs that use one.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::connect::KeyArgs;
use super::error::CliError;
use super::output::{FieldList, table};
use super::parse::{self, NamedParam, Wait};
use super::task::TaskSelector;
use super::task_store::EvidenceArgs;
use super::token_use::{self, ConsumeArgs, IntrospectArgs, ProofArgs};
use super::{Common, Output, approval_wait, render};
use crate::client::{
    self, AccessToken, ApprovedRecommendation, Denial, PendingApproval, TaskHandle, TokenOutcome,
    TokenRequest,
};
use crate::clock::Clock;
use crate::model::text::escape_invisible;
use crate::model::{
    AccessRequestId, Action, ActionName, AgentId, Audience, DeniedReason, Exit, Target, Timestamp,
    TokenId,
};

#[derive(Debug, Subcommand)]
pub(super) enum TokenCommand {
    /// Request a token for one action
    Request(Box<TokenRequestArgs>),
    /// Print the headers of one request with a token and a new proof of its key, for 'curl -H @-' (agents)
    Proof(ProofArgs),
    /// Show whether a token is active (validators, for their own audiences)
    Introspect(IntrospectArgs),
    /// Consume one use of a token, before acting on it (validators, for their own audiences)
    Consume(ConsumeArgs),
    /// List the active tokens, the next to expire first (operators)
    List {
        /// Maximum number of rows
        #[arg(long, default_value = "100")]
        max: usize,
        #[command(flatten)]
        key: KeyArgs,
    },
    /// Revoke one token; its task continues (operators)
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
    selector: TaskSelector,
    /// The action, by its name in the policy's schema
    #[arg(long, value_parser = ActionName::parse, required_unless_present = "recommendation")]
    action: Option<ActionName>,
    /// The resource the action applies to
    #[arg(long, value_name = "TYPE::ID", value_parser = parse::target, required_unless_present = "recommendation")]
    target: Option<Target>,
    /// A parameter: name=value, or name:=JSON for sets and records. The command line is visible to all users of this machine:
    /// pass a sensitive value as name=@FILE, name=@- (stdin) or name=@env:VARIABLE
    #[arg(long = "param", value_name = "NAME=VALUE", value_parser = parse::param)]
    params: Vec<NamedParam>,
    /// The resource server that performs the action
    #[arg(long, value_name = "URI", value_parser = Audience::parse, required_unless_present = "recommendation")]
    audience: Option<Audience>,
    /// Advisory agents: the agent that would execute the action [default: the only one that agents.toml lists]
    #[arg(long, value_name = "AGENT", value_parser = AgentId::parse, conflicts_with = "recommendation")]
    executor: Option<AgentId>,
    /// Execute what an advisory agent recommended to this agent. Once people approved it the action need not be given: it is the
    /// recommended one
    #[arg(long, value_name = "ACCESS_REQUEST", value_parser = AccessRequestId::parse)]
    recommendation: Option<AccessRequestId>,
    /// Requested lifetime of the token
    #[arg(long, default_value = "5m", value_parser = parse::seconds)]
    ttl: u32,
    /// Reason shown to approvers as unverified; policy rules never see it
    #[arg(long, default_value = "")]
    reason: String,
    /// Wait for approvers: for this long, or without a value until the access request expires
    #[arg(long, value_name = "DURATION", num_args = 0..=1, default_missing_value = "deadline", value_parser = parse::wait)]
    wait: Option<Wait>,
    /// Repeat the request with this key: it is settled once, and a retry gets the same result
    #[arg(long, value_name = "KEY", allow_hyphen_values = true)]
    idempotency_key: Option<String>,
    #[command(flatten)]
    evidence: EvidenceArgs,
    /// Print the token itself
    #[arg(long)]
    show_token: bool,
}

pub(super) async fn run(
    common: &Common,
    output: &Output,
    command: TokenCommand,
) -> Result<ExitCode, CliError> {
    match command {
        TokenCommand::Request(request) => self::request(common, output, *request).await,
        TokenCommand::Proof(args) => token_use::proof(common, output, &args),
        TokenCommand::Introspect(args) => token_use::introspect(common, output, &args).await,
        TokenCommand::Consume(args) => token_use::consume(common, output, args).await,
        TokenCommand::List { max, key } => {
            list(
                output,
                &key.operator_client(common)?.active_tokens(max).await?,
            );
            Ok(ExitCode::SUCCESS)
        }
        TokenCommand::Revoke { jti, key } => {
            let report = key.operator_client(common)?.revoke_token(jti).await?;
            output.print(
                || json!({ "token": jti, "changed": report.changed, "cause": report.cause, "position": report.position }),
                || {
                    let by = report.position.map(|p| format!(" by entry {p}")).unwrap_or_default();
                    if report.changed {
                        format!("{jti} is revoked{by}")
                    } else {
                        format!("{jti} had already ended{by}: {}", escape_invisible(&report.cause))
                    }
                },
            );
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn list(output: &Output, tokens: &[client::ActiveToken]) {
    let now = Clock::system().now();
    output.print(
        || {
            let to_json = |t: &client::ActiveToken| {
                json!({
                    "jti": t.jti, "agent": t.agent_id, "owner": t.owner, "task": t.task_id, "action": t.action,
                    "target": render::target_json(t.target.as_ref()), "audience": t.audience,
                    "issued_at": render::timestamp_json(t.issued_at.as_ref()), "expires_at": render::timestamp_json(t.expires_at.as_ref()),
                    "uses_left": t.uses_left, "profiles": t.profiles,
                })
            };
            tokens.iter().map(to_json).collect::<Value>()
        },
        || {
            if tokens.is_empty() {
                return "no active tokens".to_owned();
            }
            let head = ["TOKEN", "AGENT", "OWNER", "FOR", "LEFT", "USES LEFT", "APPROVED UNDER"];
            let row = |t: &client::ActiveToken| {
                vec![
                    escape_invisible(&t.jti),
                    escape_invisible(&t.agent_id),
                    escape_invisible(&t.owner),
                    format!("{} on {}", escape_invisible(&t.action), render::target(t.target.as_ref())),
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

async fn request(
    common: &Common,
    output: &Output,
    args: TokenRequestArgs,
) -> Result<ExitCode, CliError> {
    let task = args.selector.attach(common, &args.evidence)?;
    let action = match (args.action, args.target, args.audience) {
        (Some(name), Some(target), Some(audience)) => {
            Action::new(name, audience, target, parse::params(args.params)?)?
        }
        _ => recommended_action(&task, args.recommendation).await?,
    };
    if args.show_token || output.is_json() {
        output.require_writable()?;
    }
    let clock = Clock::system();
    let began = clock.now();
    let mut order = TokenRequest {
        action,
        ttl_s: i64::from(args.ttl),
        reason: args.reason,
        idempotency_key: args.idempotency_key,
        wait_s: 0,
        executor: args.executor,
        recommendation: args.recommendation,
    };
    // Evidence that was given is sent once; later the broker says when it needs some again.
    let first = match args.evidence.is_given() {
        true => task.clone().always_send_evidence(),
        false => task.clone(),
    };
    let mut outcome = first.request_token(&order).await?;
    if let TokenOutcome::Pending(pending) = &outcome
        && let Some(wait) = args.wait
    {
        let give_up = match wait {
            Wait::Seconds(seconds) => Some(began.plus_secs(i64::from(seconds))),
            Wait::Deadline => None,
        };
        let until = give_up.unwrap_or(pending.expires_at());
        let needs = render::profile_lines(pending.needs()).replace('\n', "; ");
        let delay = pending.delay();
        let delay = delay.map(|delay| format!("; or {}", delay.text(clock.now())));
        output.note(&format!(
            "waiting until {until} for approval of {}: {needs}{}",
            pending.access_request_id(),
            delay.unwrap_or_default()
        ));
        order.idempotency_key = Some(pending.idempotency_key().to_string());
        outcome = match give_up {
            Some(give_up) => task.wait_for_token(&order, give_up).await?,
            None => approval_wait::until_decided(&task, &order, pending, &clock).await?,
        };
    }
    let now = clock.now();
    Ok(match outcome {
        TokenOutcome::Token(token) => {
            print_token(output, &token, args.show_token, now);
            ExitCode::SUCCESS
        }
        TokenOutcome::Pending(pending) => {
            print_pending(output, &pending, &order.action, now);
            let exit = match args.wait {
                Some(_) => Exit::ApprovalTimeout,
                None => Exit::Pending,
            };
            ExitCode::from(exit.number())
        }
        TokenOutcome::Recommended(recommended) => {
            print_recommended(output, &recommended, &order.action, now);
            ExitCode::SUCCESS
        }
        TokenOutcome::Denied(denial) => {
            print_denied(output, &denial, &order.action);
            let exit = denial.reason().map_or(Exit::Denied, DeniedReason::exit);
            ExitCode::from(exit.number())
        }
    })
}

/// The action of a recommendation that the task's agent may execute.
async fn recommended_action(
    task: &TaskHandle,
    id: Option<AccessRequestId>,
) -> Result<Action, CliError> {
    let id = id.map(|id| id.to_string());
    let listed = task.recommendations().await?.into_iter();
    let mut found = listed.filter(|request| Some(&request.access_request_id) == id.as_ref());
    let action = found.next().and_then(|request| request.action);
    action.ok_or_else(|| {
        CliError::failed("no recommendation with this id is approved for this agent and not executed yet").with_next_step(
            "'dipylon request recommended' lists those that are; give --action, --target and --audience as recommended to wait for the approval, or to be told why there is none",
        )
    })
}

fn action_text(action: &Action) -> String {
    escape_invisible(&format!(
        "{} on {} at {}",
        action.name,
        action.target.in_sentence(),
        action.audience
    ))
}

fn print_token(output: &Output, token: &AccessToken, show: bool, now: Timestamp) {
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
                                Some(uses) => uses.to_string(),
                None => "unlimited until it expires".to_owned(),
            };
            let reissued = if token.reissued() { " (reissued: the same token, signed again)" } else { "" };
            let mut fields = FieldList::default();
            fields.row("token", format!("{}{reissued}", token.jti()))
                .row("for", action_text(token.action()))
                .row("until", format!("{}, {}", token.expires_at(), render::relative_time(token.expires_at(), now)))
                .row("uses", uses)
                .row("lifetime", render::ttl_line(token.ttl()))
                .row("allowed by", render::rule_lines(token.rules()))
                .row("decision", token.decision_id().to_string());
            let text = fields.to_text();
            if show { format!("{text}\n{}", token.jwt().expose_secret()) } else { format!("{text}  (--show-token prints it, 'token proof' makes the headers of a request)") }
        },
    );
}

fn print_pending(output: &Output, pending: &PendingApproval, action: &Action, now: Timestamp) {
    output.print(
        || {
            json!({
                "outcome": "pending", "access_request": pending.access_request_id(),
                "match_phrase": pending.match_phrase().to_string(), "idempotency_key": pending.idempotency_key(),
                "decision": pending.decision_id(), "expires_at": pending.expires_at().to_string(),
                "needs": render::profiles_json(pending.needs()), "rules": render::rules_json(pending.rules()),
                "ttl": render::ttl_json(pending.ttl()), "evidence_required": pending.send_evidence(),
                "void_votes": render::void_json(pending.void_votes()), "executor": pending.executor(),
                "delay": render::delay_json(pending.delay()),
            })
        },
        || {
            let mut fields = FieldList::default();
            let (asking, allowing) = render::rules_apart(pending.rules());
            fields.row("pending", pending.access_request_id().to_string());
            if let Some(executor) = pending.executor() {
                fields.row("recommends", format!("to {executor}, which alone gets the token"));
            }
            fields
                .row("phrase", format!("{} (also on the approver's card)", pending.match_phrase()))
                .row("for", action_text(action))
                .row("needs", render::profile_lines(pending.needs()));
            if let Some(delay) = pending.delay() {
                fields.row("or", delay.text(now));
            }
            if !pending.void_votes().is_empty() {
                fields.row("void", render::void_lines(pending.void_votes()));
            }
            fields
                .row("because of", render::rule_lines(asking))
                .row("allowed by", render::rule_lines(allowing))
                .row("until", format!("{}, {}", pending.expires_at(), render::relative_time(pending.expires_at(), now)))
                .row("decision", pending.decision_id().to_string());
            format!("{}\nto repeat this request:  --idempotency-key {}", fields.to_text(), pending.idempotency_key())
        },
    );
}

fn print_recommended(
    output: &Output,
    recommended: &ApprovedRecommendation,
    action: &Action,
    now: Timestamp,
) {
    let id = recommended.access_request_id();
    output.print(
        || {
            json!({
                "outcome": "recommended", "access_request": id, "executor": recommended.executor(),
                "expires_at": recommended.expires_at().to_string(), "jti": recommended.jti(), "decision": recommended.decision_id(),
            })
        },
        || {
            let mut fields = FieldList::default();
            fields.row("recommended", id.to_string())
                .row("for", action_text(action))
                .row("executor", recommended.executor().to_string())
                .row("until", format!("{}, {}", recommended.expires_at(), render::relative_time(recommended.expires_at(), now)));
            if let Some(jti) = recommended.jti() {
                fields.row("executed", jti.to_string());
            }
            fields.row("decision", recommended.decision_id().to_string());
            match recommended.jti() {
                Some(_) => fields.to_text(),
                None => format!("{}\nthe executor requests the token:  dipylon token request --recommendation {id}", fields.to_text()),
            }
        },
    );
}

fn print_denied(output: &Output, denial: &Denial, action: &Action) {
    output.print(
        || {
            json!({
                "outcome": "denied", "reason": denial.reason_str(), "comment": denial.comment(), "rules": render::rules_json(denial.rules()),
                "access_request": denial.access_request_id(), "decision": denial.decision_id(),
            })
        },
        || {
            let mut fields = FieldList::default();
            fields.row("denied", escape_invisible(denial.reason_str()));
            if let Some(comment) = denial.comment() {
                fields.untrusted_row("comment", comment);
            }
            fields.row("for", action_text(action));
            let rules = render::rule_lines(denial.rules());
            fields.row(
                "because",
                match (rules.is_empty(), denial.reason()) {
                    (true, Some(reason)) => reason.text().to_owned(),
                    (true, None) => "the broker gives no reason".to_owned(),
                    (false, _) => rules,
                },
            );
            if let Some(reason) = denial.reason() {
                fields.row("next", reason.next_step());
            }
            if let Some(id) = denial.access_request_id() {
                fields.row("access request", id.to_string());
            }
            fields.row("decision", denial.decision_id().to_string());
            format!(
                "{}\nan operator can see the details:  dipylon explain {}",
                fields.to_text(),
                denial.decision_id()
            )
        },
    );
}
