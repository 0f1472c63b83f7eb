//! `approve`, `deny`: a signed vote on exactly what was printed; where only passkeys count, it is given at the console.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::failure::Failure;
use super::net::{self, KeyArgs};
use super::{Common, Say, at_console, card, parse, shapes};
use crate::card::Card;
use crate::client::vote::ReviewedCard;
use crate::clock::Clock;
use crate::model::{AccessRequestId, Comment, Exit, Narrowing, ProfileName, Realm, Verdict};

#[derive(Debug, Args)]
pub(super) struct Vote {
    /// The access request
    #[arg(value_name = "ACCESS_REQUEST", value_parser = AccessRequestId::parse)]
    access_request: AccessRequestId,
    #[command(flatten)]
    key: KeyArgs,
    /// The step-up profile the vote is for, where several are asked
    #[arg(long, value_parser = ProfileName::parse)]
    profile: Option<ProfileName>,
    /// A shorter life for the token; never a longer one
    #[arg(long, value_parser = parse::seconds)]
    ttl: Option<u32>,
    /// Fewer uses of the token; never more
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    uses: Option<u32>,
    /// What the agent is told: one line of at most 200 characters
    #[arg(long, value_parser = Comment::parse)]
    comment: Option<Comment>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// The realm you vote in; without it, the development broker's
    #[arg(long, env = "DIPYLON_REALM", value_parser = Realm::parse)]
    realm: Option<Realm>,
}

pub(super) async fn run(
    common: &Common,
    say: &Say,
    verb: Vote,
    verdict: Verdict,
) -> Result<ExitCode, Failure> {
    let person = verb.key.approver(common)?;
    let realm = net::realm(common, verb.realm)?;
    let shown = person.card(verb.access_request).await?;
    let card_viewed_at = Clock::system().now();
    if !say.json() {
        say.text(&card::text(&shown, card_viewed_at));
    }
    let profile = profile(verb.profile, &shown)?;
    let asked = shown.needs.iter().find(|n| n.profile.name == profile);
    if asked.is_some_and(|need| need.passkey) {
        if verb.ttl.is_some() || verb.uses.is_some() || verb.comment.is_some() {
            let told =
                "only a passkey counts here: narrow and comment where you vote, at the console";
            return Err(Failure::usage(told).next("leave out --ttl, --uses and --comment"));
        }
        return at_console::decide(say, &person, shown, verdict).await;
    }
    let asks = verdict == Verdict::Approve && !verb.yes;
    // Nothing is signed before a person has said yes to what was printed.
    if asks && !confirmed(say).await? {
        return Err(Failure::new(Exit::Failed, "no vote was cast"));
    }
    if verdict == Verdict::Approve {
        at_console::check_dwell(&shown, card_viewed_at).await;
    }
    let narrowing = Narrowing {
        max_ttl: verb.ttl.map(i64::from),
        max_uses: verb.uses,
    };
    let seen = ReviewedCard {
        card: &shown,
        realm: &realm,
        profile: &profile,
        verdict,
        narrowing,
        comment: verb.comment.as_ref(),
    };
    let ballot = person.sign_vote(&seen).await?;
    let (after, suspended) = person.cast_vote(&ballot).await?;
    say.either(
        || json!({ "card": card::to_json(&shown), "profile": profile, "verdict": verdict, "access_request": shapes::access_request(&after), "agent_suspended": suspended }),
        || {
            let word = match verdict {
                Verdict::Approve => "yes",
                Verdict::Deny => "no",
            };
            let next = match shapes::status(after.status) {
                "approved" => "; the agent may ask for its token now",
                _ => "",
            };
            let until = match verdict {
                Verdict::Approve => format!(" until {}", ballot.not_after()),
                Verdict::Deny => String::new(),
            };
            let so_far = match (shapes::status(after.status), after.needs.as_slice()) {
                ("waiting", [need]) => format!(" ({} of {})", need.approvals, need.quorum),
                _ => String::new(),
            };
            let consequence = match suspended {
                true => "\nthat was one no too many for this agent: it is suspended, and all it had has ended",
                false => "",
            };
            format!(
                "your {word} counts{until}: {} is {}{so_far}{next}{consequence}",
                verb.access_request,
                shapes::status(after.status)
            )
        },
    );
    Ok(ExitCode::SUCCESS)
}

/// The profile asked for, or the only one there is.
fn profile(given: Option<ProfileName>, card: &Card) -> Result<ProfileName, Failure> {
    match (given, card.needs.as_slice()) {
        (Some(profile), _) => Ok(profile),
        (None, [only]) => Ok(only.profile.name.clone()),
        (None, needs) => {
            let names: Vec<String> = needs
                .iter()
                .map(|need| need.profile.name.to_string())
                .collect();
            Err(Failure::usage(format!(
                "which profile is the vote for? --profile {}",
                names.join(" or --profile ")
            )))
        }
    }
}

/// Asks the person at the terminal.
async fn confirmed(say: &Say) -> Result<bool, Failure> {
    if !say.can_ask() {
        return Err(
            Failure::usage("there is no terminal to ask at").next("--yes votes without asking")
        );
    }
    let line = say.ask("\nType yes to approve exactly this: ").await?;
    Ok(line.trim() == "yes")
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::{Arc, Mutex};

    use tonic::{Request, Response, Status};

    use super::*;
    use crate::card::sample::{PROFILE, card};
    use crate::model::VoteStatement;
    use crate::proto::v1;
    use dipylon_sdk::proto::servers::v1::approval_service_server::{
        ApprovalService, ApprovalServiceServer,
    };

    #[test]
    fn a_vote_is_for_one_profile() {
        let mut card = card();
        let first = profile(None, &card).expect("the only one");
        assert_eq!(first.as_str(), PROFILE);
        let mut second = card.needs[0].clone();
        second.profile.name = ProfileName::parse("two").expect("name");
        card.needs.push(second);
        assert!(
            profile(None, &card)
                .expect_err("which")
                .message
                .contains("--profile two")
        );
        card.needs.clear();
        assert!(profile(None, &card).is_err());
    }

    type Lie = fn(&mut VoteStatement);

    /// A broker that shows one card, and asks to sign what `lie` makes of it.
    struct FakeBroker {
        card: Card,
        lie: Lie,
        cast: Arc<Mutex<usize>>,
    }

    fn honest(card: &Card) -> VoteStatement {
        VoteStatement {
            v: 1,
            realm: card.realm.clone(),
            access_request_id: card.access_request,
            agent: card.agent.id.clone(),
            owner: card.agent.owner.id.clone(),
            task: card.task,
            task_key: card.task_key,
            action: card.action.as_ref().expect("action").to_json(),
            max_ttl: 300,
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
    impl ApprovalService for FakeBroker {
        async fn list_access_requests(
            &self,
            _: Request<v1::ListAccessRequestsRequest>,
        ) -> Result<Response<v1::ListAccessRequestsResponse>, Status> {
            Err(Status::unimplemented("not asked here"))
        }

        type WatchAccessRequestsStream =
            tokio_stream::Empty<Result<v1::WatchAccessRequestsResponse, Status>>;

        async fn watch_access_requests(
            &self,
            _: Request<v1::WatchAccessRequestsRequest>,
        ) -> Result<Response<Self::WatchAccessRequestsStream>, Status> {
            Err(Status::unimplemented("not asked here"))
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
            let mut statement = honest(&self.card);
            (self.lie)(&mut statement);
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
            Err(Status::unimplemented("not asked here"))
        }

        async fn list_approvers(
            &self,
            _: Request<v1::ListApproversRequest>,
        ) -> Result<Response<v1::ListApproversResponse>, Status> {
            Err(Status::unimplemented("not asked here"))
        }

        async fn revoke_approver_keys(
            &self,
            _: Request<v1::RevokeApproverKeysRequest>,
        ) -> Result<Response<v1::RevokeApproverKeysResponse>, Status> {
            Err(Status::unimplemented("not asked here"))
        }
    }

    /// Runs `approve` against such a broker; how it went, and how many votes arrived.
    async fn approve(key: PathBuf, lie: Lie) -> (Result<ExitCode, Failure>, usize) {
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
        let service = ApprovalServiceServer::new(FakeBroker {
            card,
            lie,
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
        };
        let verb = Vote {
            access_request,
            key: KeyArgs::of_file(key),
            profile: None,
            ttl: None,
            uses: None,
            comment: None,
            yes: true,
            realm: Some(Realm::parse("prod").expect("realm")),
        };
        let done = run(&common, &Say::new(true), verb, Verdict::Approve).await;
        serving.abort();
        let cast = *cast.lock().expect("lock");
        (done, cast)
    }

    #[tokio::test]
    async fn a_broker_that_shows_one_thing_and_asks_to_sign_another_gets_no_vote() {
        let dir = tempfile::tempdir().expect("dir");
        let key = dir.path().join("maria.pem");
        crate::keys::create(&key).expect("key");
        let (done, cast) = approve(key.clone(), |_| {}).await;
        assert!(
            done.is_ok() && cast == 1,
            "an honest broker gets the vote: {done:?}"
        );
        let lies: [(&str, Lie); 9] = [
            ("action", |s| s.action["target"]["id"] = "bob".into()),
            ("action", |s| {
                s.action["parameters"]["end_sessions"] = false.into()
            }),
            ("max_ttl", |s| s.max_ttl = 900),
            ("uses", |s| s.uses = None),
            ("comment", |s| {
                s.comment = Some(Comment::parse("go on").expect("comment"))
            }),
            ("verdict", |s| s.verdict = Verdict::Deny),
            ("agent", |s| {
                s.agent = crate::model::AgentId::parse("reporter").expect("id")
            }),
            ("task_key", |s| {
                s.task_key = crate::model::Thumbprint(crate::model::Digest::sha256(b"thief"))
            }),
            ("realm", |s| s.realm = Realm::parse("dev").expect("realm")),
        ];
        for (member, lie) in lies {
            let (done, cast) = approve(key.clone(), lie).await;
            let failure = done.expect_err(member);
            assert!(
                failure.message.contains("differs") && failure.message.contains(member),
                "{member}: {}",
                failure.message
            );
            assert!(failure.next.expect("hint").contains("do not vote"));
            assert_eq!(cast, 0, "{member}: nothing was handed in");
        }
    }
}
