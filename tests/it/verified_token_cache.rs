//! Verified-token cache: a token's signature is verified once; whether it is active is checked each time.

use dipylon::journal::FaultInjection;
use dipylon_sdk::model::Secret;

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
    assert!(b.introspect("cases", &token).await && b.introspect("cases", &token).await);
    assert!(
        !b.introspect("idp", &token).await,
        "another validator's audience"
    );
    // Another signature is another token, even with the same header and claims.
    let at = token.expose_secret().len() - 10;
    let other = if token.expose_secret()[at..].starts_with('A') {
        "B"
    } else {
        "A"
    };
    let mut bent = token.expose_secret().to_owned();
    bent.replace_range(at..=at, other);
    let bent = Secret::new(bent);
    assert!(!b.introspect("cases", &bent).await && !b.introspect("cases", &bent).await);
    // A new process has an empty cache.
    let b = b.restart(FaultInjection::default()).await;
    assert!(
        !b.introspect("cases", &bent).await,
        "not before the valid token"
    );
    assert!(b.introspect("cases", &token).await && b.introspect("cases", &token).await);
    assert!(!b.introspect("cases", &bent).await, "not after it either");
    b.complete_task(&agent, task).await.expect("completes");
    assert!(!b.introspect("cases", &token).await, "cached, and ended");
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
    assert!(b.introspect("cases", &token).await);
    b.manual_clock.advance_millis(1_000);
    assert!(!b.introspect("cases", &token).await);
}
