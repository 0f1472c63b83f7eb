//! WatchToken through real sockets: a watch says why its token ended, also when the token ended before, and over a restart.

use std::sync::Arc;

use dipylon_sdk::client::{
    AccessToken, AgentClient, OpenTaskRequest, TaskHandle, TokenOutcome, TokenRequest,
};
use dipylon_sdk::clock::Clock;
use dipylon_sdk::jose::{SigningKey, dpop};
use dipylon_sdk::model::*;
use dipylon_sdk::proto::v1;
use dipylon_sdk::proto::v1::task_service_client::TaskServiceClient;

use crate::support::read_case;
use crate::support::served_broker::{ServedBroker, token_request};
use crate::support::wait::in_time;

const URL: &str = "https://cases.soc.example/cases/INC-8841";

async fn token(task: &TaskHandle, ttl_s: i64) -> AccessToken {
    let request = TokenRequest {
        ttl_s,
        ..token_request(read_case(), &format!("r-{ttl_s}"))
    };
    match task.request_token(&request).await {
        Ok(TokenOutcome::Token(token)) => token,
        other => panic!("not a token: {other:?}"),
    }
}

async fn ended(token: &AccessToken) -> String {
    let mut watch = token.watch();
    in_time("the end", watch.ended()).await.expect("watches")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_says_why_the_token_ended() {
    let s = ServedBroker::start().await;
    let (task, completing) = s.task_with_second_handle("triage").await;
    let (short, revoked, completed) = (
        token(&task, 1).await,
        token(&task, 299).await,
        token(&task, 300).await,
    );
    // Each ends alone: the task and its other tokens go on.
    assert_eq!(ended(&short).await, "expired");
    short
        .headers("GET", URL)
        .expect("the resource server's clock decides");
    let olga = s.operator("olga");
    let (cause, revocation) = tokio::join!(ended(&revoked), olga.revoke_token(revoked.jti()));
    assert!(revocation.expect("revokes").changed);
    assert_eq!(cause, "operator");
    revoked.headers("GET", URL).expect_err("it has ended");
    completed.headers("GET", URL).expect("it is active");
    let (cause, report) = tokio::join!(
        ended(&completed),
        completing.complete(TaskOutcome::Succeeded)
    );
    report.expect("completes");
    assert_eq!(cause, "completed");
    completed.headers("GET", URL).expect_err("it has ended");
    // Over a restart, and for tokens that ended before the watch.
    let s = s.restart().await;
    for (token, cause) in [
        (&short, "expired"),
        (&revoked, "operator"),
        (&completed, "completed"),
    ] {
        assert_eq!(ended(token).await, cause);
    }
    drop(s);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_is_for_the_tasks_own_tokens() {
    let s = ServedBroker::start().await;
    let key = Arc::new(SigningKey::generate().expect("key").0);
    let agent = AgentClient::new(s.endpoint(), s.evidence("triage"), Some(key.clone()));
    let opening = OpenTaskRequest {
        purpose: "contain INC-8841".into(),
        max_duration_s: 600,
        idempotency_key: None,
        heartbeat_s: None,
    };
    let task = agent.open_task(&opening).await.expect("opens");
    let other = s.task("triage").await;
    let token = token(&other, 300).await;
    // With this task's key: another task's token, another task, and an unknown token.
    for (task, jti) in [
        (task.id(), token.jti()),
        (other.id(), token.jti()),
        (task.id(), TokenId::from_random([7; 16])),
    ] {
        let message = v1::WatchTokenRequest {
            task_id: task.to_string(),
            jti: jti.to_string(),
        };
        let claims = dpop::ProofClaims {
            htm: "POST",
            htu: &format!("{}/dipylon.v1.TaskService/WatchToken", s.url),
            iat: Clock::system().now(),
            jti: &format!("p{}", crate::support::rand_u64()),
            nonce: Some(&s.broker.nonce()),
            ath: None,
            action_digest: None,
            evidence_hash: None,
        };
        let proof = dpop::create(&key, &claims).expect("proof");
        let mut request = tonic::Request::new(message);
        let value = proof.expose_secret().parse().expect("ascii");
        request.metadata_mut().insert("dpop", value);
        let mut client = TaskServiceClient::connect(s.url.clone())
            .await
            .expect("connects");
        let status = client.watch_token(request).await.expect_err("refused");
        assert_eq!(status.code(), tonic::Code::NotFound, "{status:?}");
    }
}
