//! A token of ours is verified once; whether it is good is asked each time.

use dipylon::journal::FaultInjection;
use dipylon::model::Secret;

use super::harness::{Expect, TestBroker, read_case};

#[tokio::test]
async fn what_was_read_is_asked_about_each_time() {
    let b = TestBroker::start().await;
    let agent = b.agent("triage");
    let task = b.open(&agent).await;
    let token = b
        .ask(&agent, task, &read_case(), 300, "r-1")
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
    let b = b.restart(FaultInjection::default()).await;
    assert!(!b.introspect("cases", &bent), "not before the good one");
    assert!(b.introspect("cases", &token) && b.introspect("cases", &token));
    assert!(!b.introspect("cases", &bent), "nor after it");
    b.complete(&agent, task).await.expect("completes");
    assert!(!b.introspect("cases", &token), "read, and dead");
    b.check();
}

#[tokio::test]
async fn what_was_read_expires() {
    let b = TestBroker::start().await;
    let agent = b.agent("triage");
    let task = b.open(&agent).await;
    let token = b
        .ask(&agent, task, &read_case(), 300, "r-1")
        .await
        .token()
        .token;
    b.hand.advance_millis(299_000);
    assert!(b.introspect("cases", &token));
    b.hand.advance_millis(1_000);
    assert!(!b.introspect("cases", &token));
}
