//! Gate 1 evidence checks (INV-12, INV-18): one indistinguishable error for every cause, and no journal entry.

use dipylon::broker::{OpenTaskInput, Refusal};
use dipylon_sdk::jose::{SigningKey, jws};
use dipylon_sdk::model::*;
use serde_json::{Value, json};

use crate::support::*;

async fn open_task_with_svid(b: &TestBroker, token: Secret) -> Result<(), Refusal> {
    let agent = b.agent("triage");
    let evidence = Evidence::JwtSvid(token);
    let evh = dipylon::verify::evidence_hash(&evidence);
    let call = b.call(
        "dipylon.v1.TaskService/OpenTask",
        &agent.key,
        None,
        Some(evh),
    );
    let ask = OpenTaskInput {
        evidence,
        purpose: UntrustedText::parse("purpose", "x").expect("prose"),
        max_duration: 600,
        idempotency_key: IdempotencyKey::parse("r").expect("id"),
        heartbeat: None,
    };
    b.broker.open_task(&call, ask).await.map(drop)
}

const ID: &str = "spiffe://soc.example/agent/triage";

#[tokio::test]
async fn malformed_evidence_is_rejected() {
    let b = TestBroker::start().await;
    let now = b.now().secs();
    let good = json!({ "sub": ID, "aud": [URL], "iat": now, "exp": now + 300 });
    open_task_with_svid(&b, b.env.svid_with(good.clone()))
        .await
        .expect("the valid SVID is accepted");
    open_task_with_svid(
        &b,
        b.env
            .svid_with(json!({ "sub": ID, "aud": URL, "iat": now, "exp": now + 300 })),
    )
    .await
    .expect("aud may be a string");
    let fractions = json!({
        "sub": ID, "aud": URL, "exp": now as f64 + 300.75, "iat": now as f64 + 0.25, "nbf": now as f64 - 0.5,
    });
    open_task_with_svid(&b, b.env.svid_with(fractions))
        .await
        .expect("dates may have fractions (RFC 7519 section 2)");
    let entries = b.broker.show().position().1;

    let mut bad: Vec<(&str, Value)> = Vec::new();
    let with = |name: &str, value: Value| {
        let mut claims = good.clone();
        claims[name] = value;
        claims
    };
    for (why, aud) in [
        ("another audience", json!(["https://other"])),
        ("two audiences", json!([URL, "https://other"])),
        ("the same audience twice", json!([URL, URL])),
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
        ("a fraction of the present second", json!(now as f64 + 0.9)),
        ("a negative fraction", json!(-0.5)),
        ("a fraction in a string", json!("1800000300.5")),
        ("beyond every integer", json!(1e300)),
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
        let refusal = open_task_with_svid(&b, b.env.svid_with(claims))
            .await
            .expect_err(why);
        assert_eq!(
            (refusal.reason, refusal.gives_nonce),
            (Reason::NotAuthenticated, false),
            "{why}"
        );
    }
    assert!(count > 35);

    // Headers.
    let kid = KeyId::from_thumbprint(b.env.signer.thumbprint()).to_string();
    let stranger = SigningKey::generate().expect("key").0;
    let sign = |header: Value, key: &SigningKey| {
        Secret::new(jws::sign(&header, &good, key).expect("signed"))
    };
    for (why, token) in [
        (
            "another key under the known kid",
            sign(
                json!({ "alg": "ES256", "kid": kid, "typ": "JWT" }),
                &stranger,
            ),
        ),
        (
            "an unknown kid",
            sign(json!({ "alg": "ES256", "kid": "other" }), &b.env.signer),
        ),
        ("no kid", sign(json!({ "alg": "ES256" }), &b.env.signer)),
        (
            "another type of token",
            sign(
                json!({ "alg": "ES256", "kid": kid, "typ": "at+jwt" }),
                &b.env.signer,
            ),
        ),
        (
            "crit",
            sign(
                json!({ "alg": "ES256", "kid": kid, "crit": ["exp"] }),
                &b.env.signer,
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
                &b.env.signer,
            ),
        ),
        (
            "an unknown header",
            sign(json!({ "alg": "ES256", "kid": kid, "x": 1 }), &b.env.signer),
        ),
    ] {
        assert_eq!(
            refused(open_task_with_svid(&b, token).await),
            Reason::NotAuthenticated,
            "{why}"
        );
    }
    // Bytes.
    let token = b.env.svid_with(good.clone()).expose_secret().to_owned();
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
            refused(open_task_with_svid(&b, Secret::new(text)).await),
            Reason::NotAuthenticated,
            "{why}"
        );
    }
    assert_eq!(
        b.broker.show().position().1,
        entries,
        "a call that fails gate 1 writes nothing"
    );
    b.manual_clock.advance_millis(61_000);
    b.broker.maintenance_tick().await.expect("counts");
    b.broker.maintenance_tick().await.expect("counts");
    assert_eq!(
        b.broker.show().position().1,
        entries + 1,
        "only the counter"
    );
    b.check_invariants();
}

#[tokio::test]
async fn dpop_proofs_for_other_calls_are_rejected() {
    let b = TestBroker::start().await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let method = "dipylon.v1.TaskService/RequestToken";
    let ask = |action: Action| dipylon::broker::RequestTokenInput {
        task,
        action,
        ttl: 60,
        reason: None,
        idempotency_key: IdempotencyKey::parse("r").expect("id"),
        wait_ms: 0,
        evidence: None,
        executor: None,
        recommendation: None,
    };
    // A proof for one action, sent with another.
    let call = b.call(method, &triage.key, Some(read_case().digest()), None);
    assert_eq!(
        refused(b.broker.request_token(&call, ask(disable("ann"))).await),
        Reason::NotAuthenticated
    );
    // Without the action's digest.
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
    call.method = dipylon::serve::authorization::method_policy(method)
        .expect("row")
        .name;
    assert_eq!(
        refused(b.broker.request_token(&call, ask(read_case())).await),
        Reason::NotAuthenticated
    );
    // With an old nonce, or one of another process.
    let nonce = b.broker.nonce();
    b.manual_clock.advance_millis(60_000);
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
    // After a restart no evidence is verified yet: the broker asks for it, and then continues.
    assert_eq!(
        refused(b.request_token(&triage, task, &read_case(), 60, "r").await),
        Reason::EvidenceStale
    );
    let shown = b.svid(&triage);
    b.request_token_with_evidence(&triage, task, &read_case(), 60, "r", Some(shown))
        .await
        .token();
    b.check_invariants();
}

#[tokio::test]
async fn trust_key_removal_ends_its_tasks() {
    let mut b = TestBroker::start().await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let reply = b
        .request_token(&triage, task, &read_case(), 300, "r")
        .await
        .token();
    assert!(b.introspect("cases", &reply.token).await);
    // The trust domain replaces its key; the broker journals that at its next start and sweeps.
    let env = std::sync::Arc::get_mut(&mut b.env).expect("one handle");
    env.signer = SigningKey::generate().expect("key").0;
    let b = b.restart(dipylon::journal::FaultInjection::default()).await;
    assert!(!b.introspect("cases", &reply.token).await);
    assert_eq!(
        b.broker
            .show()
            .task(&task)
            .expect("there")
            .ended
            .expect("ended")
            .cause,
        EndCause::Trust
    );
    b.try_open_task(&triage, "again", "open-2")
        .await
        .expect("evidence by the new key is good");
    b.check_invariants();
}
