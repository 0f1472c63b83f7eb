//! `request approve` and `request deny`: a signed vote on exactly the card that was printed, or a passkey vote at the console.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::connect::{self, KeyArgs};
use super::error::CliError;
use super::{Common, Output, card, console_vote, parse, render};
use crate::card::Card;
use crate::client::vote::ReviewedCard;
use crate::clock::Clock;
use crate::model::{AccessRequestId, Comment, Exit, Narrowing, ProfileName, Realm, Verdict};

#[derive(Debug, Args)]
pub(super) struct VoteArgs {
    /// The access request
    #[arg(value_name = "ACCESS_REQUEST", value_parser = AccessRequestId::parse)]
    access_request: AccessRequestId,
    #[command(flatten)]
    key: KeyArgs,
    /// The step-up profile to vote under, if the access request needs several
    #[arg(long, value_parser = ProfileName::parse)]
    profile: Option<ProfileName>,
    /// Shorter lifetime for the token; it cannot be made longer
    #[arg(long, value_parser = parse::seconds)]
    ttl: Option<u32>,
    /// Fewer uses of the token; they cannot be increased
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    uses: Option<u32>,
    /// Comment shown to the agent: one line of at most 200 characters
    #[arg(long, value_parser = Comment::parse)]
    comment: Option<Comment>,
    #[command(flatten)]
    full: card::FullArg,
    /// Vote without asking for confirmation
    #[arg(long)]
    yes: bool,
    /// The realm of the vote [default: the development broker's]
    #[arg(long, env = "DIPYLON_REALM", value_parser = Realm::parse)]
    realm: Option<Realm>,
}

pub(super) async fn run(
    common: &Common,
    output: &Output,
    args: VoteArgs,
    verdict: Verdict,
) -> Result<ExitCode, CliError> {
    let approver = args.key.approver_client(common)?;
    let realm = connect::realm(common, args.realm)?;
    let card = approver.card(args.access_request).await?;
    if card.realm != realm {
        return Err(CliError::usage(format!(
            "the broker's realm is `{}`, expected `{realm}`: no vote was cast",
            card.realm
        ))
        .with_next_step(
            "correct --realm or DIPYLON_REALM; if it is right, this is not the broker you mean to vote at",
        ));
    }
    let must_confirm = verdict == Verdict::Approve && !args.yes;
    let clock = Clock::system();
    // Nothing is signed before the card is where the approver, or the reader of stdout, gets it.
    if output.is_json() {
        output.require_writable()?;
    } else {
        let text = args.full.text(&card, clock.now());
        output.require_read(&text, must_confirm && output.can_prompt())?;
    }
    let viewed_at = clock.uptime();
    let profile = profile(args.profile, &card)?;
    let need = card.needs.iter().find(|n| n.profile.name == profile);
    if need.is_some_and(|need| need.passkey) {
        if args.ttl.is_some() || args.uses.is_some() || args.comment.is_some() {
            let text =
                "this request requires a passkey: set lifetime, uses and comment at the console";
            return Err(
                CliError::usage(text).with_next_step("leave out --ttl, --uses and --comment")
            );
        }
        return console_vote::wait_for_console_vote(output, &approver, card, verdict).await;
    }
    // Nor before the approver has confirmed the printed card.
    if must_confirm && !confirmed(output).await? {
        return Err(CliError::new(Exit::Failed, "no vote was cast"));
    }
    if verdict == Verdict::Approve {
        console_vote::wait_for_dwell(&card, &clock, viewed_at).await;
    }
    let narrowing = Narrowing {
        max_ttl: args.ttl.map(i64::from),
        max_uses: args.uses,
    };
    let reviewed = ReviewedCard {
        card: &card,
        realm: &realm,
        profile: &profile,
        verdict,
        narrowing,
        comment: args.comment.as_ref(),
    };
    let vote = approver.sign_vote(&reviewed).await?;
    let (after, suspended) = approver.cast_vote(&vote).await?;
    output.print(
        || json!({ "card": card::to_json(&card), "profile": profile, "verdict": verdict, "access_request": render::access_request_json(&after), "agent_suspended": suspended }),
        || {
            let word = match verdict {
                Verdict::Approve => "approval",
                Verdict::Deny => "denial",
            };
            let next = match render::status(after.status) {
                "approved" if card.changes.is_some() => "; what was proposed comes in force",
                "consumed" if card.changes.is_some() => "; what was proposed is in force",
                "approved" => "; its token can be requested now",
                _ => "",
            };
            let until = match verdict {
                Verdict::Approve => format!(", valid until {}", vote.not_after()),
                Verdict::Deny => String::new(),
            };
            let so_far = match (render::status(after.status), after.needs.as_slice()) {
                ("waiting", [need]) => format!(" ({} of {})", need.approvals, need.quorum),
                _ => String::new(),
            };
            let delay = after.delay.as_ref().map(|delay| format!(", or {}", delay.text(clock.now())));
            let so_far = format!("{so_far}{}", delay.unwrap_or_default());
            let consequence = match suspended {
                true => "\nthis denial reached the suspension limit: the agent is suspended and its tasks and tokens are revoked",
                false => "",
            };
            format!(
                "your {word} is recorded{until}: {} is {}{so_far}{next}{consequence}",
                args.access_request,
                render::status(after.status)
            )
        },
    );
    Ok(ExitCode::SUCCESS)
}

/// The profile given, or the only one the card needs.
fn profile(given: Option<ProfileName>, card: &Card) -> Result<ProfileName, CliError> {
    match (given, card.needs.as_slice()) {
        (Some(profile), needs) => {
            let mut names = needs.iter().map(|need| need.profile.name.as_str());
            if names.clone().any(|name| name == profile.as_str()) {
                return Ok(profile);
            }
            let near = connect::did_you_mean(profile.as_str(), names.clone());
            let known = names.by_ref().collect::<Vec<_>>().join(", ");
            Err(CliError::usage(format!(
                "the access request does not need the profile `{profile}`{near}"
            ))
            .with_next_step(format!("it needs {known}")))
        }
        (None, [only]) => Ok(only.profile.name.clone()),
        (None, needs) => {
            let names: Vec<String> = needs
                .iter()
                .map(|need| need.profile.name.to_string())
                .collect();
            Err(CliError::usage(format!(
                "the access request needs several profiles: choose one with --profile {}",
                names.join(" or --profile ")
            )))
        }
    }
}

/// Prompts for confirmation at the terminal.
async fn confirmed(output: &Output) -> Result<bool, CliError> {
    if !output.can_prompt() {
        return Err(CliError::usage(
            "cannot prompt for confirmation: stdin or stderr is not a terminal",
        )
        .with_next_step("use --yes to vote without confirmation"));
    }
    let line = output
        .prompt("\nType yes to approve exactly this: ")
        .await?;
    Ok(line.trim() == "yes")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::PathBuf;
    use std::sync::{Arc, Mutex};

    use tonic::{Request, Response, Status};

    use super::*;
    use crate::card::sample::{PROFILE, card};
    use crate::model::{StatementRequester, VOTE_STATEMENT_FORM, VoteStatement};
    use crate::proto::v1;
    use dipylon_sdk::proto::servers::v1::approval_service_server::{
        ApprovalService, ApprovalServiceServer,
    };

    #[test]
    fn ambiguous_profile_is_an_error() {
        let mut card = card();
        let first = profile(None, &card).expect("the only one");
        assert_eq!(first.as_str(), PROFILE);
        let mut second = card.needs[0].clone();
        second.profile.name = ProfileName::parse("two").expect("name");
        card.needs.push(second);
        assert!(
            profile(None, &card)
                .expect_err("ambiguous")
                .message
                .contains("--profile two")
        );
        card.needs.clear();
        assert!(profile(None, &card).is_err());
    }

    type Mutation = fn(&mut VoteStatement);

    /// A broker that shows one card and returns a statement changed by `mutation`.
    struct MisleadingBroker {
        card: Card,
        mutation: Mutation,
        cast: Arc<Mutex<usize>>,
    }

    fn matching_statement(card: &Card) -> VoteStatement {
        let agent = card.requester.agent().expect("an agent");
        let action = card.action.as_ref().expect("action");
        VoteStatement {
            v: VOTE_STATEMENT_FORM,
            realm: card.realm.clone(),
            access_request_id: card.access_request,
            requester: StatementRequester::Agent {
                id: agent.id.clone(),
                owner: agent.owner.id.clone(),
                task: agent.task,
                task_key: agent.task_key,
            },
            action: action.on_record(&BTreeSet::new(), &mut || [0; 16]).0,
            facts: card.facts().digest().expect("digest"),
            max_ttl: Some(300),
            uses: card.uses,
            comment: None,
            policy: card.policy,
            profile: card.needs.first().expect("need").profile.clone(),
            verdict: Verdict::Approve,
            not_after: Clock::system().now().plus_secs(600).secs(),
            nonce: "AAAAAAAAAAAAAAAAAAAAAA".to_owned(),
        }
    }

    #[tonic::async_trait]
    impl ApprovalService for MisleadingBroker {
        async fn list_access_requests(
            &self,
            _: Request<v1::ListAccessRequestsRequest>,
        ) -> Result<Response<v1::ListAccessRequestsResponse>, Status> {
            Err(Status::unimplemented("unused"))
        }

        type WatchAccessRequestsStream =
            tokio_stream::Empty<Result<v1::WatchAccessRequestsResponse, Status>>;

        async fn watch_access_requests(
            &self,
            _: Request<v1::WatchAccessRequestsRequest>,
        ) -> Result<Response<Self::WatchAccessRequestsStream>, Status> {
            Err(Status::unimplemented("unused"))
        }

        async fn get_card(
            &self,
            _: Request<v1::GetCardRequest>,
        ) -> Result<Response<v1::GetCardResponse>, Status> {
            Ok(Response::new(v1::GetCardResponse {
                card: Some(crate::proto::card::to_wire(&self.card)),
            }))
        }

        async fn begin_vote(
            &self,
            _: Request<v1::BeginVoteRequest>,
        ) -> Result<Response<v1::BeginVoteResponse>, Status> {
            let mut statement = matching_statement(&self.card);
            (self.mutation)(&mut statement);
            Ok(Response::new(v1::BeginVoteResponse {
                statement: statement.canonical().expect("canonical"),
                ..v1::BeginVoteResponse::default()
            }))
        }

        async fn cast_vote(
            &self,
            _: Request<v1::CastVoteRequest>,
        ) -> Result<Response<v1::CastVoteResponse>, Status> {
            *self.cast.lock().expect("lock") += 1;
            let status = v1::AccessRequestStatus::Approved.into();
            let access_request = v1::AccessRequest {
                status,
                ..v1::AccessRequest::default()
            };
            Ok(Response::new(v1::CastVoteResponse {
                access_request: Some(access_request),
                agent_suspended: false,
            }))
        }

        async fn invite_approver(
            &self,
            _: Request<v1::InviteApproverRequest>,
        ) -> Result<Response<v1::InviteApproverResponse>, Status> {
            Err(Status::unimplemented("unused"))
        }

        async fn confirm_passkey(
            &self,
            _: Request<v1::ConfirmPasskeyRequest>,
        ) -> Result<Response<v1::ConfirmPasskeyResponse>, Status> {
            Err(Status::unimplemented("unused"))
        }

        async fn list_approvers(
            &self,
            _: Request<v1::ListApproversRequest>,
        ) -> Result<Response<v1::ListApproversResponse>, Status> {
            Err(Status::unimplemented("unused"))
        }

        async fn revoke_approver_keys(
            &self,
            _: Request<v1::RevokeApproverKeysRequest>,
        ) -> Result<Response<v1::RevokeApproverKeysResponse>, Status> {
            Err(Status::unimplemented("unused"))
        }
    }

    /// Runs `approve` against such a broker: the result and the number of votes it received.
    async fn approve(key: PathBuf, mutation: Mutation) -> (Result<ExitCode, CliError>, usize) {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .expect("bind");
        let url = format!("http://{}", listener.local_addr().expect("address"));
        let card = Card {
            dwell_s: 0,
            ..card()
        };
        let cast = Arc::new(Mutex::new(0));
        let access_request = card.access_request;
        let service = ApprovalServiceServer::new(MisleadingBroker {
            card,
            mutation,
            cast: cast.clone(),
        });
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let serving = tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming),
        );
        let common = Common {
            json: true,
            url: Some(url),
            dev_dir: None,
            ca: None,
            socket: None,
            allow_plain_http: false,
        };
        let args = VoteArgs {
            access_request,
            key: KeyArgs::from_file(key),
            profile: None,
            ttl: None,
            uses: None,
            comment: None,
            full: card::FullArg::default(),
            yes: true,
            realm: Some(Realm::parse("prod").expect("realm")),
        };
        let result = run(
            &common,
            &Output::new(true, crate::cli::output::ErrorStream::Stdout),
            args,
            Verdict::Approve,
        )
        .await;
        serving.abort();
        let cast = *cast.lock().expect("lock");
        (result, cast)
    }

    #[tokio::test]
    async fn mismatching_statement_is_not_signed() {
        let dir = tempfile::tempdir().expect("dir");
        let key = dir.path().join("maria.pem");
        crate::keys::create(&key).expect("key");
        let (result, cast) = approve(key.clone(), |_| {}).await;
        assert!(
            result.is_ok() && cast == 1,
            "the broker gets a vote on a matching statement: {result:?}"
        );
        let mutations: [(&str, Mutation); 10] = [
            ("action", |s| s.action.target.id = "bob".to_owned()),
            ("action", |s| {
                let name = "end_sessions".to_owned();
                s.action.parameters.insert(name, false.into());
            }),
            ("max_ttl", |s| s.max_ttl = Some(900)),
            ("uses", |s| s.uses = None),
            ("comment", |s| {
                s.comment = Some(Comment::parse("go on").expect("comment"))
            }),
            ("verdict", |s| s.verdict = Verdict::Deny),
            ("requester", |s| {
                if let StatementRequester::Agent { id, .. } = &mut s.requester {
                    *id = crate::model::AgentId::parse("reporter").expect("id");
                }
            }),
            ("requester", |s| {
                if let StatementRequester::Agent { task_key, .. } = &mut s.requester {
                    *task_key = crate::model::Thumbprint(crate::model::Digest::sha256(b"thief"));
                }
            }),
            ("facts", |s| {
                s.facts = crate::model::Digest::sha256(b"other facts")
            }),
            ("realm", |s| s.realm = Realm::parse("dev").expect("realm")),
        ];
        for (member, mutation) in mutations {
            let (result, cast) = approve(key.clone(), mutation).await;
            let error = result.expect_err(member);
            assert!(
                error.message.contains("differs") && error.message.contains(member),
                "{member}: {}",
                error.message
            );
            assert!(
                error
                    .next_step
                    .expect("a next step")
                    .contains("do not vote")
            );
            assert_eq!(cast, 0, "{member}: no vote was cast");
        }
    }
}
