//! Gate 1 against evidence that is not what it should be (T01-T08, T10): one voice for every cause, and no entry.

use dipylon::broker::{OpenAsk, Refusal};
use dipylon::jose::{SigningKey, jws};
use dipylon::model::*;
use serde_json::{Value, json};

use super::harness::*;

async fn show(b: &TestBroker, token: Secret) -> Result<(), Refusal> {
    let agent = b.agent("triage");
    let evidence = Evidence::JwtSvid(token);
    let evh = dipylon::verify::evidence_hash(&evidence);
    let call = b.call(
        "dipylon.v1.TaskService/OpenTask",
        &agent.key,
        None,
        Some(evh),
    );
    let ask = OpenAsk {
        evidence,
        purpose: UntrustedText::parse("purpose", "x").expect("prose"),
        max_duration: 600,
        request_id: RequestId::parse("r").expect("id"),
        heartbeat: None,
    };
    b.broker.open_task(&call, ask).await.map(drop)
}

const ID: &str = "spiffe://soc.example/agent/triage";

#[tokio::test]
async fn evidence_that_is_not_what_it_should_be() {
    let b = TestBroker::start().await;
    let now = b.now().secs();
    let good = json!({ "sub": ID, "aud": [URL], "iat": now, "exp": now + 300 });
    show(&b, b.world.svid_with(good.clone()))
        .await
        .expect("the good one is good");
    show(
        &b,
        b.world
            .svid_with(json!({ "sub": ID, "aud": URL, "exp": now + 300 })),
    )
    .await
    .expect("iat is optional, aud may be a string");
    let entries = b.broker.state().position().1;

    let mut bad: Vec<(&str, Value)> = Vec::new();
    let with = |name: &str, value: Value| {
        let mut claims = good.clone();
        claims[name] = value;
        claims
    };
    for (why, aud) in [
        ("another audience", json!(["https://other"])),
        ("two audiences", json!([URL, "https://other"])),
        ("ours twice", json!([URL, URL])),
        ("no audience", json!([])),
        ("a prefix", json!(format!("{URL}/"))),
        ("a number", json!(7)),
        ("an object", json!({})),
    ] {
        bad.push((why, with("aud", aud)));
    }
    for (why, exp) in [
        ("expired", json!(now)),
        ("long expired", json!(now - 59)),
        ("a string", json!((now + 300).to_string())),
        ("a fraction", json!(now as f64 + 300.5)),
        ("huge", json!(1e18)),
        ("negative", json!(-1)),
        ("null", Value::Null),
        ("years away", json!(now + 90_000)),
    ] {
        bad.push((why, with("exp", exp)));
    }
    bad.push(("from the future", with("iat", json!(now + 60))));
    bad.push(("not yet", with("nbf", json!(now + 60))));
    bad.push(("iat a string", with("iat", json!("now"))));
    for sub in [
        "spiffe://SOC.example/agent/triage",
        "spiffe://soc.example/agent/triage/",
        "spiffe://soc.example//agent/triage",
        "spiffe://soc.example/agent/./triage",
        "spiffe://soc.example/agent/../agent/triage",
        "spiffe://soc.example/agent/%74riage",
        "spiffe://soc.example:443/agent/triage",
        "spiffe://x@soc.example/agent/triage",
        "spiffe://soc.example/agent/triage?x",
        "spiffe://soc.example/agent/triage#x",
        "spiffe://soc.example",
        "spiffe://soc.example/",
        "SPIFFE://soc.example/agent/triage",
        "https://soc.example/agent/triage",
        "spiffe://soc.example/agent/triag\u{0435}",
        "spiffe://other.example/agent/triage",
        "spiffe://soc.example/agent/Triage",
        "",
    ] {
        bad.push((sub, with("sub", json!(sub))));
    }
    for missing in ["sub", "aud", "exp"] {
        let mut claims = good.clone();
        claims.as_object_mut().expect("object").remove(missing);
        bad.push((missing, claims));
    }
    let count = bad.len();
    for (why, claims) in bad {
        let refusal = show(&b, b.world.svid_with(claims)).await.expect_err(why);
        assert_eq!(
            (refusal.reason, refusal.known),
            (Reason::NotAuthenticated, false),
            "{why}"
        );
    }
    assert!(count > 35);

    // Headers.
    let kid = KeyId::from_thumbprint(b.world.signer.thumbprint()).to_string();
    let stranger = SigningKey::generate().expect("key").0;
    let sign = |header: Value, key: &SigningKey| {
        Secret::new(jws::sign(&header, &good, key).expect("signed"))
    };
    for (why, token) in [
        (
            "another key under our kid",
            sign(
                json!({ "alg": "ES256", "kid": kid, "typ": "JWT" }),
                &stranger,
            ),
        ),
        (
            "an unknown kid",
            sign(json!({ "alg": "ES256", "kid": "other" }), &b.world.signer),
        ),
        ("no kid", sign(json!({ "alg": "ES256" }), &b.world.signer)),
        (
            "another type of token",
            sign(
                json!({ "alg": "ES256", "kid": kid, "typ": "at+jwt" }),
                &b.world.signer,
            ),
        ),
        (
            "crit",
            sign(
                json!({ "alg": "ES256", "kid": kid, "crit": ["exp"] }),
                &b.world.signer,
            ),
        ),
        (
            "an embedded key",
            sign(
                json!({ "alg": "ES256", "kid": kid, "jwk": stranger.public().to_jwk() }),
                &stranger,
            ),
        ),
        (
            "a url",
            sign(
                json!({ "alg": "ES256", "kid": kid, "jku": "https://evil.example" }),
                &b.world.signer,
            ),
        ),
        (
            "an unknown header",
            sign(
                json!({ "alg": "ES256", "kid": kid, "x": 1 }),
                &b.world.signer,
            ),
        ),
    ] {
        assert_eq!(
            refused(show(&b, token).await),
            Reason::NotAuthenticated,
            "{why}"
        );
    }
    // Bytes.
    let token = b.world.svid_with(good.clone()).expose_secret().to_owned();
    let parts: Vec<&str> = token.split('.').collect();
    let none = "eyJhbGciOiJub25lIn0";
    for (why, text) in [
        ("no signature", format!("{}.{}.", parts[0], parts[1])),
        ("alg none", format!("{none}.{}.", parts[1])),
        ("four parts", format!("{token}.x")),
        (
            "JSON serialisation",
            json!({ "payload": parts[1], "protected": parts[0], "signature": parts[2] })
                .to_string(),
        ),
        ("a space", format!(" {token}")),
        ("a newline", format!("{token}\n")),
        ("a megabyte of dots", ".".repeat(1 << 20)),
        ("nothing", String::new()),
    ] {
        assert_eq!(
            refused(show(&b, Secret::new(text)).await),
            Reason::NotAuthenticated,
            "{why}"
        );
    }
    assert_eq!(
        b.broker.state().position().1,
        entries,
        "what does not pass gate 1 writes nothing"
    );
    b.hand.advance_millis(61_000);
    b.broker.upkeep_once().await.expect("counts");
    b.broker.upkeep_once().await.expect("counts");
    assert_eq!(
        b.broker.state().position().1,
        entries + 1,
        "but the count of it"
    );
    b.check();
}

#[tokio::test]
async fn proofs_that_are_not_for_this_call() {
    let b = TestBroker::start().await;
    let triage = b.agent("triage");
    let task = b.open(&triage).await;
    let method = "dipylon.v1.TaskService/RequestToken";
    let ask = |action: Action| dipylon::broker::TokenAsk {
        task,
        action,
        ttl: 60,
        reason: None,
        request_id: RequestId::parse("r").expect("id"),
        wait_ms: 0,
        evidence: None,
    };
    // Signed for one action, sent with another.
    let call = b.call(method, &triage.key, Some(read_case().digest()), None);
    assert_eq!(
        refused(b.broker.request_token(&call, ask(disable("ann"))).await),
        Reason::NotAuthenticated
    );
    // Without the action's digest at all.
    let call = b.call(method, &triage.key, None, None);
    assert_eq!(
        refused(b.broker.request_token(&call, ask(read_case())).await),
        Reason::NotAuthenticated
    );
    // For another method.
    let mut call = b.call(
        "dipylon.v1.TaskService/CompleteTask",
        &triage.key,
        Some(read_case().digest()),
        None,
    );
    call.method = dipylon::serve::guard::row(method).expect("row").0;
    assert_eq!(
        refused(b.broker.request_token(&call, ask(read_case())).await),
        Reason::NotAuthenticated
    );
    // With a nonce that is old, or of another boot.
    let nonce = b.broker.nonce();
    b.hand.advance_millis(60_000);
    let call = b.call_with_nonce(
        method,
        &triage.key,
        Some(read_case().digest()),
        None,
        &nonce,
    );
    assert_eq!(
        refused(b.broker.request_token(&call, ask(read_case())).await),
        Reason::UseDpopNonce
    );
    let nonce = b.broker.nonce();
    let b = b.restart(dipylon::journal::FaultInjection::default()).await;
    let call = b.call_with_nonce(
        method,
        &triage.key,
        Some(read_case().digest()),
        None,
        &nonce,
    );
    assert_eq!(
        refused(b.broker.request_token(&call, ask(read_case())).await),
        Reason::UseDpopNonce
    );
    // After a restart this broker has verified nothing yet: evidence is asked for, and then it goes on.
    assert_eq!(
        refused(b.ask(&triage, task, &read_case(), 60, "r").await),
        Reason::EvidenceStale
    );
    let shown = b.svid(&triage);
    b.ask_showing(&triage, task, &read_case(), 60, "r", Some(shown))
        .await
        .token();
    b.check();
}

#[tokio::test]
async fn a_trust_domain_key_that_goes_takes_along_what_it_verified() {
    let mut b = TestBroker::start().await;
    let triage = b.agent("triage");
    let task = b.open(&triage).await;
    let given = b.ask(&triage, task, &read_case(), 300, "r").await.token();
    assert!(b.introspect("cases", &given.token));
    // The trust domain replaces its key; the broker learns it at its next start, enters it, and sweeps.
    let world = std::sync::Arc::get_mut(&mut b.world).expect("one handle");
    world.signer = SigningKey::generate().expect("key").0;
    let b = b.restart(dipylon::journal::FaultInjection::default()).await;
    assert!(!b.introspect("cases", &given.token));
    assert_eq!(
        b.broker
            .state()
            .task(&task)
            .expect("there")
            .ended
            .expect("ended")
            .cause,
        EndCause::Trust
    );
    b.try_open(&triage, "again", "open-2")
        .await
        .expect("evidence by the new key is good");
    b.check();
}
