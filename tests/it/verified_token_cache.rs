//! A token of ours is verified once; whether it is good is asked each time.

use dipylon::journal::Faults;
use dipylon::model::Secret;

use crate::support::{ExpectReply, TestBroker, read_case};

#[tokio::test]
async fn cached_tokens_are_rechecked() {
    let b = TestBroker::start().await;
    let agent = b.agent("triage");
    let task = b.open_task(&agent).await;
    let token = b
        .request_token(&agent, task, &read_case(), 300, "r-1")
        .await
        .token()
        .token;
    assert!(b.introspect("cases", &token) && b.introspect("cases", &token));
    assert!(!b.introspect("idp", &token), "another's audience");
    // Other bytes are another token, even where header and claims are the same.
    let at = token.expose_secret().len() - 10;
    let other = if token.expose_secret()[at..].starts_with('A') {
        "B"
    } else {
        "A"
    };
    let mut bent = token.expose_secret().to_owned();
    bent.replace_range(at..=at, other);
    let bent = Secret::new(bent);
    assert!(!b.introspect("cases", &bent) && !b.introspect("cases", &bent));
    // A new process has read nothing.
    let b = b.restart(Faults::default()).await;
    assert!(!b.introspect("cases", &bent), "not before the good one");
    assert!(b.introspect("cases", &token) && b.introspect("cases", &token));
    assert!(!b.introspect("cases", &bent), "nor after it");
    b.complete_task(&agent, task).await.expect("completes");
    assert!(!b.introspect("cases", &token), "read, and dead");
    b.check_invariants();
}

#[tokio::test]
async fn cached_tokens_expire() {
    let b = TestBroker::start().await;
    let agent = b.agent("triage");
    let task = b.open_task(&agent).await;
    let token = b
        .request_token(&agent, task, &read_case(), 300, "r-1")
        .await
        .token()
        .token;
    b.manual_clock.advance_millis(299_000);
    assert!(b.introspect("cases", &token));
    b.manual_clock.advance_millis(1_000);
    assert!(!b.introspect("cases", &token));
}
