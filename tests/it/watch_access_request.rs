//! WatchAccessRequest through real sockets: a watch reports each status of its access request to the last, across restarts of
//! both sides, and wakes only for its request.

use std::process::Stdio;
use std::sync::Arc;

use dipylon_sdk::card::AccessRequestStatus as Status;
use dipylon_sdk::client::vote::ReviewedCard;
use dipylon_sdk::client::{
    AccessRequestWatcher, AgentClient, ApproverClient, Endpoint, OpenTaskRequest, PendingApproval,
    TaskHandle, TokenOutcome,
};
use dipylon_sdk::clock::Clock;
use dipylon_sdk::jose::{SigningKey, dpop};
use dipylon_sdk::model::*;
use dipylon_sdk::proto::v1;
use dipylon_sdk::proto::v1::task_service_client::TaskServiceClient;

use crate::support::broker_deployment::BrokerDeployment;
use crate::support::served_broker::{ServedBroker, token_request};
use crate::support::wait::{in_time, until};
use crate::support::{disable, rand_u64};

async fn pending(task: &TaskHandle, idempotency_key: &str) -> PendingApproval {
    match task
        .request_token(&token_request(disable("ann"), idempotency_key))
        .await
    {
        Ok(TokenOutcome::Pending(pending)) => pending,
        other => panic!("not pending: {other:?}"),
    }
}

async fn vote(person: &ApproverClient, id: AccessRequestId, verdict: Verdict) {
    let cast = try_vote(person, id, verdict).await;
    cast.expect("the vote counts");
}

async fn try_vote(
    person: &ApproverClient,
    id: AccessRequestId,
    verdict: Verdict,
) -> Result<(), dipylon_sdk::client::Error> {
    let card = person.card(id).await.expect("card");
    let profile = ProfileName::parse("one-security").expect("profile");
    let seen = ReviewedCard {
        card: &card,
        realm: &Realm::parse("test").expect("realm"),
        profile: &profile,
        verdict,
        narrowing: Narrowing::default(),
        comment: None,
    };
    person.vote(&seen).await.map(drop)
}

async fn next_status(watch: &mut AccessRequestWatcher) -> Option<Status> {
    let next = in_time("an answer", watch.next()).await.expect("watches");
    next.map(|request| request.status.expect("known"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_reports_every_final_status() {
    let s = ServedBroker::start().await;
    let maria = s.approver("maria");
    let lee = s.approver("lee");

    let begin = async |agent_task: &TaskHandle, idempotency_key: &str| {
        let id = pending(agent_task, idempotency_key)
            .await
            .access_request_id();
        let mut watch = agent_task.watch(id);
        assert_eq!(next_status(&mut watch).await, Some(Status::Waiting));
        (id, watch)
    };
    let task = s.task("triage").await;
    let (id, mut watch) = begin(&task, "r-yes").await;
    vote(&maria, id, Verdict::Approve).await;
    assert_eq!(next_status(&mut watch).await, Some(Status::Approved));
    let beyond = try_vote(&lee, id, Verdict::Approve).await;
    assert_eq!(
        beyond.expect_err("beyond the quorum").reason(),
        Some(Reason::NotEligible)
    );
    // The watch mints nothing: RequestToken does.
    let outcome = task
        .request_token(&token_request(disable("ann"), "r-yes"))
        .await;
    assert!(matches!(outcome, Ok(TokenOutcome::Token(_))), "{outcome:?}");
    assert_eq!(next_status(&mut watch).await, Some(Status::Consumed));
    assert_eq!(next_status(&mut watch).await, None);

    let (id, mut watch) = begin(&task, "r-no").await;
    vote(&maria, id, Verdict::Deny).await;
    assert_eq!(next_status(&mut watch).await, Some(Status::Denied));
    assert_eq!(next_status(&mut watch).await, None);
    let mut late = task.watch(id);
    assert_eq!(
        next_status(&mut late).await,
        Some(Status::Denied),
        "a late watcher gets the final status"
    );
    assert_eq!(next_status(&mut late).await, None);

    let (id, mut watch) = begin(&task, "r-back").await;
    task.cancel(id).await.expect("cancels");
    assert_eq!(next_status(&mut watch).await, Some(Status::Cancelled));

    // Its own broker: elsewhere in this test no request may expire.
    let brief = ServedBroker::start_with_policy(|files| {
        let people = files.get_mut("people.toml").expect("people");
        *people = people.replacen("wait = \"15m\"", "wait = \"4s\"", 1);
    })
    .await;
    let (_, mut watch) = begin(&brief.task("triage").await, "r-late").await;
    assert_eq!(
        next_status(&mut watch).await,
        Some(Status::Expired),
        "expired without an entry"
    );
    assert_eq!(next_status(&mut watch).await, None);

    let other = s.task("triage").await;
    let (_, mut watch) = begin(&other, "r-frozen").await;
    let olga = s.operator("olga");
    let scope = FreezeScope::parse("action/account.disable").expect("scope");
    olga.freeze(&scope, "").await.expect("freezes");
    assert_eq!(next_status(&mut watch).await, Some(Status::Ended));
    olga.unfreeze(&scope).await.expect("lifts");

    let (_, mut watch) = begin(&other, "r-over").await;
    other.complete(TaskOutcome::Abandoned).await.expect("ends");
    assert_eq!(next_status(&mut watch).await, Some(Status::Ended));
    assert_eq!(next_status(&mut watch).await, None);
    let metrics = s.broker.read_metrics();
    assert!(
        metrics.contains("dipylon_open_streams{kind=\"access_request\"} 0\n"),
        "{metrics}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_requests_are_not_found() {
    let s = ServedBroker::start().await;
    let (mine, theirs) = (s.task("triage").await, s.task("triage").await);
    let id = pending(&mine, "r-1").await.access_request_id();
    let nothing = AccessRequestId::from_random([9; 16]);
    let refused = async |task: &TaskHandle, id| {
        let error = in_time("an answer", task.watch(id).next())
            .await
            .expect_err("refused");
        (error.reason(), error.code())
    };
    assert_eq!(
        refused(&theirs, id).await,
        (Some(Reason::NotFound), Some("NOT_FOUND"))
    );
    assert_eq!(refused(&theirs, nothing).await, refused(&theirs, id).await);
    // An unknown key for an existing task.
    let stranger = Arc::new(SigningKey::generate().expect("key").0);
    let stolen = TaskHandle::attach(s.endpoint(), s.evidence("triage"), mine.id(), stranger);
    assert_eq!(refused(&stolen, id).await, refused(&theirs, id).await);
    let mut own = mine.watch(id);
    assert_eq!(next_status(&mut own).await, Some(Status::Waiting));
}

/// The first wire message of a watch that resumes from a mark.
async fn first_message(
    s: &ServedBroker,
    key: &SigningKey,
    task: TaskId,
    id: AccessRequestId,
    seen: Option<v1::AccessRequestCursor>,
) -> Option<v1::watch_access_request_response::Message> {
    let method = "dipylon.v1.TaskService/WatchAccessRequest";
    let claims = dpop::ProofClaims {
        htm: "POST",
        htu: &format!("{}/{method}", s.url),
        iat: Clock::system().now(),
        jti: &format!("{:x}{:x}", rand_u64(), rand_u64()),
        nonce: Some(&s.broker.nonce()),
        ath: None,
        action_digest: None,
        evidence_hash: None,
    };
    let mut request = tonic::Request::new(v1::WatchAccessRequestRequest {
        task_id: task.to_string(),
        access_request_id: id.to_string(),
        after: seen,
    });
    let proof = dpop::create(key, &claims).expect("proof");
    request
        .metadata_mut()
        .insert("dpop", proof.expose_secret().parse().expect("ascii"));
    let mut tasks = TaskServiceClient::connect(s.url.clone())
        .await
        .expect("connects");
    let answer = tasks.watch_access_request(request).await.expect("watches");
    let mut stream = answer.into_inner();
    stream
        .message()
        .await
        .expect("a message")
        .and_then(|m| m.message)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_resumes_and_sends_heartbeats() {
    use dipylon_sdk::proto::v1::watch_access_request_response::Message;
    let s = ServedBroker::start().await;
    let key = Arc::new(SigningKey::generate().expect("key").0);
    let agent = AgentClient::new(s.endpoint(), s.evidence("triage"), Some(key.clone()));
    let opening = OpenTaskRequest {
        purpose: "contain".into(),
        max_duration_s: 600,
        idempotency_key: None,
        heartbeat_s: None,
    };
    let task = agent.open_task(&opening).await.expect("opens");
    let id = pending(&task, "r-1").await.access_request_id();
    let first = in_time("an answer", first_message(&s, &key, task.id(), id, None)).await;
    let Some(Message::State(stands)) = first else {
        panic!("{first:?}")
    };
    assert!(!stands.is_final);
    // A known status is not repeated: a heartbeat comes instead.
    let next = in_time(
        "an answer",
        first_message(&s, &key, task.id(), id, stands.cursor),
    )
    .await;
    let Some(Message::Heartbeat(heartbeat)) = next else {
        panic!("{next:?}")
    };
    assert_eq!(heartbeat.cursor, stands.cursor);
    // An older mark gets the current status, which covers all changes since.
    vote(&s.approver("maria"), id, Verdict::Approve).await;
    let now = in_time(
        "an answer",
        first_message(&s, &key, task.id(), id, stands.cursor),
    )
    .await;
    let Some(Message::State(now)) = now else {
        panic!("{now:?}")
    };
    assert_eq!(
        now.access_request.expect("one").status(),
        v1::AccessRequestStatus::Approved
    );
    assert!(now.cursor.expect("one").version > stands.cursor.expect("one").version);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_wake_only_for_their_request() {
    let s = ServedBroker::start().await;
    let task = s.task("triage").await;
    let waiting = {
        let (task, mut ask) = (task.clone(), token_request(disable("ann"), "r-1"));
        ask.wait_s = 60;
        tokio::spawn(async move { task.request_token(&ask).await })
    };
    until("the request is open", || {
        !s.broker.show().unclosed_requests().is_empty()
    })
    .await;
    let id = s.broker.show().unclosed_requests()[0];
    let answers = || {
        let text = s.broker.read_metrics();
        let pending = text
            .lines()
            .filter(|l| l.starts_with("dipylon_decisions_total{outcome=\"pending\""));
        pending
            .map(|l| {
                l.rsplit(' ')
                    .next()
                    .expect("a number")
                    .parse::<u64>()
                    .expect("a number")
            })
            .sum::<u64>()
    };
    // The request shows in the state before its call has counted the answer.
    until("the first answer is counted", || answers() > 0).await;
    let before = answers();
    // A hundred entries about other requests, two of them of the same agent. Its opening rested on the agent's denials, for the
    // back-off: a denial asks it once again.
    let other = s.task("triage").await;
    let second = pending(&other, "r-2").await.access_request_id();
    for n in 0..100 {
        let read = crate::support::read_case();
        other
            .request_token(&token_request(read, &format!("r-read-{n}")))
            .await
            .expect("answers");
    }
    vote(&s.approver("maria"), second, Verdict::Deny).await;
    until("both are counted", || answers() >= before + 2).await;
    assert!(!waiting.is_finished());
    vote(&s.approver("maria"), id, Verdict::Approve).await;
    let outcome = in_time("an answer", waiting).await.expect("joins");
    assert!(matches!(outcome, Ok(TokenOutcome::Token(_))), "{outcome:?}");
    assert_eq!(
        answers(),
        before + 2,
        "the other's, and one after its denial"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_survives_broker_and_agent_restart() {
    let temp = tempfile::tempdir().expect("dir");
    let realm = BrokerDeployment::new(temp.path());
    let mut broker = realm.broker_with_log(Stdio::inherit(), "error").await;
    let evidence = realm.evidence();
    let endpoint = || Endpoint::connect(&realm.url).expect("endpoint");
    let key = Arc::new(SigningKey::generate().expect("key").0);
    let opening = OpenTaskRequest {
        purpose: "contain".into(),
        max_duration_s: 600,
        idempotency_key: None,
        heartbeat_s: None,
    };
    let agent = AgentClient::new(endpoint(), evidence.clone(), Some(key.clone()));
    let task = agent.open_task(&opening).await.expect("opens");
    let approval = pending(&task, "r-1").await;
    let until = Clock::system().now().plus_secs(120);
    let mut watch = task.watch(approval.access_request_id());
    assert_eq!(next_status(&mut watch).await, Some(Status::Waiting));
    let waiting = {
        let task = task.clone();
        tokio::spawn(async move {
            task.wait_for_token(&token_request(disable("ann"), "r-1"), until)
                .await
        })
    };
    broker.kill().await.expect("SIGKILL");
    let _next = realm.broker_with_log(Stdio::inherit(), "error").await;

    // The agent restarts: with its key and the same action it finds the same access request.
    let again = TaskHandle::attach(endpoint(), evidence, task.id(), key);
    let mut ask = token_request(disable("ann"), "r-after");
    ask.wait_s = 0;
    let found = match again.request_token(&ask).await {
        Ok(TokenOutcome::Pending(pending)) => pending.access_request_id(),
        other => panic!("{other:?}"),
    };
    assert_eq!(found, approval.access_request_id());
    let maria = ApproverClient::new(endpoint(), Arc::new(realm.env.key_of("maria")));
    vote(&maria, found, Verdict::Approve).await;
    let outcome = in_time("an answer", waiting).await.expect("joins");
    assert!(matches!(outcome, Ok(TokenOutcome::Token(_))), "{outcome:?}");
    // The watch begun before the kill gets it too: it may have missed `approved`.
    let mut last = None;
    while let Some(status) = next_status(&mut watch).await {
        last = Some(status);
    }
    assert_eq!(last, Some(Status::Consumed));
}
