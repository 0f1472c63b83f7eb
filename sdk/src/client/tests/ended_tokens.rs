//! Tokens whose end the client has heard.

use super::*;

async fn issued_token(broker: &FakeBroker) -> (TaskHandle, AccessToken) {
    let task = broker.agent().open_task(&open()).await.expect("opens");
    match task.request_token(&order("")).await {
        Ok(TokenOutcome::Token(token)) => (task, token),
        other => panic!("a token: {other:?}"),
    }
}

#[tokio::test]
async fn headers_are_refused_once_the_token_has_ended() {
    let url = "https://idp.example/users/ann";
    let refused = |token: &AccessToken, cause: &str| {
        let error = token.headers("GET", url).expect_err("ended");
        let cause = cause.to_owned();
        assert_eq!(error, Error::TokenEnded { cause });
        assert!(!error.is_retryable());
    };
    // A refused heartbeat, heard by a clone of the handle.
    let broker = FakeBroker::start().await;
    let (task, token) = issued_token(&broker).await;
    task.keep_alive().await.expect("alive");
    broker.refuse([refusal(Code::Unavailable, Reason::JournalUnavailable)]);
    task.keep_alive().await.expect("retried");
    token.headers("GET", url).expect("still active");
    broker.refuse([refusal(Code::FailedPrecondition, Reason::TaskEnded)]);
    let refusal_text = task.clone().keep_alive().await.expect_err("ended");
    refused(&token.clone(), &refusal_text.to_string());
    assert_eq!(task.end_cause(), token.end_cause());
    // The task's own completion.
    let broker = FakeBroker::start().await;
    let (task, token) = issued_token(&broker).await;
    task.complete(crate::model::TaskOutcome::Succeeded)
        .await
        .expect("completed");
    refused(&token, "");
    // The task's status, once it says so.
    let broker = FakeBroker::start().await;
    let (task, token) = issued_token(&broker).await;
    task.status().await.expect("runs");
    token.headers("GET", url).expect("still active");
    "lease".clone_into(&mut broker.end_cause.lock().expect("cause"));
    task.status().await.expect("ended");
    refused(&token, "lease");
    // Its refusal.
    let broker = FakeBroker::start().await;
    let (task, token) = issued_token(&broker).await;
    broker.refuse([refusal(Code::FailedPrecondition, Reason::TaskEnded)]);
    let refusal_text = task.status().await.expect_err("ended").to_string();
    refused(&token, &refusal_text);
    // A watch of the token alone, over a broken stream: the task goes on.
    let broker = FakeBroker::start().await;
    let (task, token) = issued_token(&broker).await;
    assert_eq!(token.watch().ended().await.expect("ends"), "operator");
    refused(&token, "operator");
    assert_eq!(task.end_cause(), None);
    assert_eq!(broker.calls("TaskService/WatchToken"), 2);
}
