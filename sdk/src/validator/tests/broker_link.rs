//! The validator's link to its broker: feed, keys and authentication.

use super::*;

#[tokio::test]
async fn feed_resumes_after_disconnect_and_restarts_after_gap() {
    let mut broker = FakeBroker::start().await;
    let (validator, feed) = broker.validator().await;
    let holder = SigningKey::generate().expect("key").0;
    let good = broker.token(&holder, |c| c.txn = TaskId::from_random([5; 16]));
    let token = broker.token(&holder, |_| ());
    let ask = async |token: &str| {
        check(
            &validator,
            token,
            Some(&proof(&holder, token, |_| ())),
            &require(),
        )
        .await
        .err()
    };
    assert_eq!((ask(&good).await, ask(&token).await), (None, None));

    feed.send(Ok(ended(12, None, 2))).expect("sent");
    assert_eq!(
        validator.wait_for_position(12).await,
        JournalPosition {
            epoch: 1,
            index: 12
        }
    );
    assert_eq!(
        (ask(&good).await, ask(&token).await),
        (None, Some(ValidationError::Revoked))
    );

    // The broker closes watches after some minutes.
    drop(feed);
    let feed = broker.watch(Some(12)).await;
    assert_eq!(ask(&good).await, None);
    feed.send(Ok(ended(14, Some(13), 6))).expect("sent");
    let feed = broker.watch(None).await;
    assert_eq!(
        (ask(&good).await, validator.position()),
        (Some(ValidationError::Stale), None)
    );
    assert!(
        validator
            .last_error()
            .is_some_and(|e| e.to_string().contains("an event is missing"))
    );
    feed.send(Ok(ended(13, Some(12), 5))).expect("sent");
    feed.send(Ok(heartbeat(14, Some(13)))).expect("sent");
    validator.wait_for_position(14).await;
    assert_eq!(
        (ask(&good).await, ask(&token).await),
        (
            Some(ValidationError::Revoked),
            Some(ValidationError::Revoked)
        )
    );
}

#[tokio::test]
async fn stale_feed_rejects_all() {
    let mut broker = FakeBroker::start().await;
    let (clock, hand) = Clock::manual(Clock::system().now());
    let config = ValidatorConfig {
        clock,
        ..broker.config()
    };
    let connecting = tokio::spawn(Validator::connect(config));
    let feed = broker.watch(None).await;
    feed.send(Ok(heartbeat(10, None))).expect("sent");
    let validator = connecting.await.expect("join").expect("validator");
    let holder = SigningKey::generate().expect("key").0;
    let token = broker.token(&holder, |_| ());
    let ask = async || {
        check(
            &validator,
            &token,
            Some(&proof(&holder, &token, |_| ())),
            &require(),
        )
        .await
        .err()
    };
    hand.advance_millis(5_000);
    assert_eq!(ask().await, None);
    hand.advance_millis(1);
    let error = ask().await.expect("rejected");
    assert_eq!(
        (&error, error.status(), error.www_authenticate()),
        (&ValidationError::Stale, 503, None)
    );
    feed.send(Ok(heartbeat(11, None))).expect("sent");
    validator.wait_for_position(11).await;
    assert_eq!(ask().await, None);
}

#[tokio::test]
async fn unknown_key_is_refetched_once() {
    let mut broker = FakeBroker::start().await;
    let (clock, hand) = Clock::manual(Clock::system().now());
    let config = ValidatorConfig {
        clock,
        max_silence_ms: 3_600_000,
        ..broker.config()
    };
    let connecting = tokio::spawn(Validator::connect(config));
    let feed = broker.watch(None).await;
    feed.send(Ok(heartbeat(10, None))).expect("sent");
    let validator = connecting.await.expect("join").expect("validator");
    let holder = SigningKey::generate().expect("key").0;
    broker.key = SigningKey::generate().expect("key").0;
    let token = broker.token(&holder, |_| ());
    let ask = async || {
        check(
            &validator,
            &token,
            Some(&proof(&holder, &token, |_| ())),
            &require(),
        )
        .await
        .err()
    };
    let unknown = Some(ValidationError::Token(TokenError::UnknownKey));
    assert_eq!(
        (ask().await, broker.fetches.load(Ordering::SeqCst)),
        (unknown.clone(), 1)
    );
    hand.advance_millis(10_000);
    assert_eq!(
        (
            ask().await,
            ask().await,
            broker.fetches.load(Ordering::SeqCst)
        ),
        (unknown.clone(), unknown, 2)
    );
    *broker.keys.lock().await = jwks(broker.key.public());
    hand.advance_millis(10_000);
    assert_eq!(
        (
            ask().await,
            ask().await,
            broker.fetches.load(Ordering::SeqCst)
        ),
        (None, None, 3)
    );
}

#[tokio::test]
async fn validator_may_authenticate_with_a_key() {
    let mut broker = FakeBroker::start().await;
    let identity = Identity::Key(Arc::new(SigningKey::generate().expect("key").0));
    let connecting = tokio::spawn(Validator::connect(ValidatorConfig {
        identity,
        ..broker.config()
    }));
    let feed = broker.watch(None).await;
    feed.send(Ok(heartbeat(10, None))).expect("sent");
    let validator = connecting.await.expect("join").expect("validator");
    assert_eq!(
        validator.position(),
        Some(JournalPosition {
            epoch: 1,
            index: 10
        })
    );
}

#[tokio::test]
async fn connect_requires_keys_and_feed() {
    let broker = FakeBroker::start().await;
    *broker.keys.lock().await = serde_json::json!({});
    assert_eq!(
        Validator::connect(broker.config()).await.err(),
        Some(ConnectError::Keys(FetchError::Form))
    );
}

/// A set with one weak key is refused whole: a validator does not start with it.
#[tokio::test]
async fn weak_broker_keys_are_refused() {
    let ed25519 = |x: &str| serde_json::json!({ "kty": "OKP", "crv": "Ed25519", "x": x });
    let weak = [
        (
            ed25519("AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"),
            "the point is not of the prime order",
        ),
        (
            ed25519("8P_______________________________________38"),
            "the point is not encoded canonically",
        ),
        (
            // RFC 7515 appendix A.3.
            serde_json::json!({ "kty": "EC", "crv": "P-256", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
                "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0" }),
            "its private key is published, so anyone can sign with it",
        ),
    ];
    let broker = FakeBroker::start().await;
    for (mut key, why) in weak {
        key["kid"] = serde_json::json!("weak");
        let mut keys = jwks(broker.key.public());
        keys["keys"].as_array_mut().expect("an array").push(key);
        *broker.keys.lock().await = keys;
        assert_eq!(
            Validator::connect(broker.config()).await.err(),
            Some(ConnectError::Keys(FetchError::Key(why)))
        );
    }
}
