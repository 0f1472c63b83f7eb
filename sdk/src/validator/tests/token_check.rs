//! Token check: action, parameters, key and uses.

use super::*;

#[tokio::test]
async fn action_parameters_and_key_are_enforced() {
    let mut broker = FakeBroker::start().await;
    let (validator, _feed) = broker.validator().await;
    let (holder, thief) = (
        SigningKey::generate().expect("key").0,
        SigningKey::generate().expect("key").0,
    );
    let token = broker.token(&holder, |_| ());
    let fresh = || proof(&holder, &token, |_| ());

    let used = fresh();
    let authorized = check(&validator, &token, Some(&used), &require())
        .await
        .expect("authorized");
    assert_eq!(
        (authorized.task_id(), authorized.uses()),
        (TaskId::from_random([2; 16]), None)
    );
    assert!(!format!("{authorized:?}").contains(&token));
    assert_eq!(
        check(&validator, &token, Some(&used), &require())
            .await
            .err(),
        Some(ValidationError::ProofReplayed)
    );

    let now = Clock::system().now();
    let rejected = [
        (None, ValidationError::ProofMissing),
        (
            Some(proof(&thief, &token, |_| ())),
            ValidationError::ProofOfOtherKey,
        ),
        (
            Some(proof(&holder, "other", |_| ())),
            ValidationError::ProofOfOtherToken,
        ),
        (
            Some(proof(&holder, &token, |p| p.ath = None)),
            ValidationError::ProofOfOtherToken,
        ),
        (
            Some(proof(&holder, &token, |p| p.htm = "GET")),
            ValidationError::Proof(ProofError::WrongMethod),
        ),
        (
            Some(proof(&holder, &token, |p| p.htu = "https://other/")),
            ValidationError::Proof(ProofError::WrongUrl),
        ),
        (
            Some(proof(&holder, &token, |p| p.iat = now.plus_secs(-62))),
            ValidationError::Proof(ProofError::Stale),
        ),
        (
            Some(proof(&holder, &token, |p| p.iat = now.plus_secs(64))),
            ValidationError::Proof(ProofError::Stale),
        ),
    ];
    for (proof, expected) in rejected {
        let error = check(&validator, &token, proof.as_deref(), &require())
            .await
            .expect_err("rejected");
        assert_eq!(error, expected);
        assert!(
            error
                .www_authenticate()
                .expect("challenge")
                .starts_with("DPoP error=\"invalid_"),
            "{error}"
        );
        assert_eq!(error.status(), 401);
    }

    let with = |bend: &dyn Fn(&mut RequiredAction)| {
        let mut require = require();
        bend(&mut require);
        require
    };
    let parameter = |name: &'static str, value: Param| {
        with(&move |r| {
            drop(
                r.parameters
                    .as_mut()
                    .expect("parameters")
                    .insert(name.to_owned(), value.clone()),
            )
        })
    };
    let wrong = [
        (
            with(&|r| r.action = ActionName::parse("account.enable").expect("name")),
            ValidationError::ActionMismatch,
        ),
        (
            with(&|r| r.target = Target::parse("Account", "bob").expect("target")),
            ValidationError::TargetMismatch,
        ),
        (
            parameter("end_sessions", Param::Bool(false)),
            ValidationError::ParametersMismatch,
        ),
        (
            parameter("note", Param::Str("other words".to_owned())),
            ValidationError::ParametersMismatch,
        ),
        (
            parameter("more", Param::Int(1)),
            ValidationError::ParametersMismatch,
        ),
        (
            with(&|r| r.parameters = Some(BTreeMap::new())),
            ValidationError::ParametersMismatch,
        ),
    ];
    for (require, expected) in wrong {
        let error = check(&validator, &token, Some(&fresh()), &require)
            .await
            .expect_err("rejected");
        assert_eq!(error, expected);
        assert!(
            error
                .www_authenticate()
                .expect("challenge")
                .contains("insufficient_scope")
        );
        assert_eq!(error.status(), 403);
    }
    assert!(
        check(
            &validator,
            &token,
            Some(&fresh()),
            &with(&|r| r.parameters = None)
        )
        .await
        .is_ok()
    );
    let unopened = PresentedToken {
        token: &token,
        dpop: Some(&fresh()),
        method: "POST",
        url: URL,
        openings: &BTreeMap::new(),
    };
    assert_eq!(
        validator.check(&unopened, &require()).await.err(),
        Some(ValidationError::ParametersMismatch)
    );

    for (bend, expected) in [
        (
            (|c| c.iss = "https://other".to_owned()) as fn(&mut AccessTokenClaims),
            TokenError::WrongIssuer,
        ),
        (
            |c| c.aud = Audience::parse("other").expect("audience"),
            TokenError::WrongAudience,
        ),
        (
            |c| (c.iat, c.nbf, c.exp) = (c.iat - 301, c.nbf - 301, c.exp - 301),
            TokenError::Expired,
        ),
    ] {
        let token = broker.token(&holder, bend);
        let proof = proof(&holder, &token, |_| ());
        assert_eq!(
            check(&validator, &token, Some(&proof), &require())
                .await
                .err(),
            Some(ValidationError::Token(expected))
        );
    }
}

#[tokio::test]
async fn only_limited_tokens_consume_uses() {
    let mut broker = FakeBroker::start().await;
    let (validator, _feed) = broker.validator().await;
    let holder = SigningKey::generate().expect("key").0;
    let admit = async |uses: Option<u32>| {
        let token = broker.token(&holder, |c| c.uses = uses);
        check(
            &validator,
            &token,
            Some(&proof(&holder, &token, |_| ())),
            &require(),
        )
        .await
        .expect("authorized")
    };
    let spent = validator
        .consume(admit(Some(1)).await, "good")
        .await
        .expect("spent");
    assert_eq!((spent.uses_left(), spent.position()), (Some(0), Some(77)));
    assert_eq!(spent.authorized().token_id(), TokenId::from_random([1; 16]));
    let free = validator
        .consume(admit(None).await, "no-call-is-made")
        .await
        .expect("free");
    assert_eq!((free.uses_left(), free.position()), (None, None));
    assert_eq!(
        validator.consume(admit(Some(1)).await, "spent").await.err(),
        Some(ValidationError::UsesExhausted)
    );
    let repeated = validator
        .consume(admit(Some(1)).await, "repeated")
        .await
        .expect_err("an earlier call may have acted");
    assert_eq!(repeated, ValidationError::UseRepeated { position: 77 });
    assert_eq!(repeated.status(), 401);
    assert!(
        repeated
            .www_authenticate()
            .is_some_and(|v| v.contains("spent before"))
    );
    assert_eq!(
        validator
            .consume(admit(Some(1)).await, "inactive")
            .await
            .err(),
        Some(ValidationError::Revoked)
    );
    for use_id in [
        "unspent",
        "other",
        "unknown",
        "no-outcome",
        "no-limit",
        "no good id",
    ] {
        let error = validator
            .consume(admit(Some(1)).await, use_id)
            .await
            .expect_err("rejected");
        assert!(
            matches!(error, ValidationError::Broker(_)),
            "{use_id}: {error}"
        );
        assert_eq!(error.status(), 503);
    }
    assert!(validator.introspect("token").await.expect("answer").active);
}
