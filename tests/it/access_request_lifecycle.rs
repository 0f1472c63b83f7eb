//! Access request lifecycle: quorum, denial, expiry, and approvals that lapse before the token is minted.

use dipylon_sdk::model::*;

use crate::support::*;

#[tokio::test]
async fn step_up_needs_another_person_and_is_single_use() {
    let b = TestBroker::start().await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let pending = b
        .request_token(&triage, task, &disable("ann"), 900, "r-1")
        .await
        .pending();
    let id = pending.access_request;
    assert_eq!(pending.needs.len(), 1);
    assert_eq!(
        refused(b.vote("dana", id, "one-security", Verdict::Approve).await),
        Reason::NotEligible
    );
    assert_eq!(
        refused(b.vote("dana", id, "one-security", Verdict::Deny).await),
        Reason::NotEligible
    );
    assert_eq!(
        refused(b.vote("olga", id, "one-security", Verdict::Approve).await),
        Reason::NotEligible
    );
    b.request_token(&triage, task, &disable("ann"), 900, "r-1")
        .await
        .pending();
    b.approve("maria", id, "one-security").await;
    assert_eq!(
        refused(b.vote("maria", id, "one-security", Verdict::Approve).await),
        Reason::NotEligible
    );

    // Approved for ann, requested for cara: a new access request, nothing minted.
    let other = b
        .request_token(&triage, task, &disable("cara"), 900, "r-2")
        .await
        .pending();
    assert_ne!(other.access_request, id);

    let reply = b
        .request_token(&triage, task, &disable("ann"), 900, "r-1")
        .await
        .token();
    assert_eq!(
        reply.issued.exp - reply.issued.iat,
        600,
        "destructive tokens have a short ttl"
    );
    assert_eq!(reply.issued.uses, Some(1));
    assert_eq!(reply.issued.consumed, Some(id));
    let first = b
        .consume("idp", &reply.token, "use-1")
        .await
        .expect("spends");
    assert_eq!(first.uses_left, Some(0));
    let again = b
        .consume("idp", &reply.token, "use-1")
        .await
        .expect("the same reply");
    assert_eq!(
        (again.uses_left, again.index),
        (first.uses_left, first.index)
    );
    assert_eq!(
        (first.outcome, again.outcome),
        (UseOutcome::Spent, UseOutcome::Repeated)
    );
    assert_eq!(
        refused(b.consume("idp", &reply.token, "use-2").await),
        Reason::UsesExhausted
    );
    assert_eq!(
        refused(b.consume("cases", &reply.token, "use-1").await),
        Reason::TokenInactive
    );
    assert!(
        !b.introspect("idp", &reply.token).await,
        "a used-up token is inactive"
    );

    // The approval is consumed: the same action needs a new one.
    let third = b
        .request_token(&triage, task, &disable("ann"), 900, "r-3")
        .await
        .pending();
    assert_ne!(third.access_request, id);
    b.check_invariants();
}

#[tokio::test]
async fn denial_and_expiry_close_requests() {
    let b = TestBroker::start().await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let id = b
        .request_token(&triage, task, &disable("ann"), 300, "r-1")
        .await
        .pending()
        .access_request;
    b.approve("maria", id, "one-security").await;
    b.vote("lee", id, "one-security", Verdict::Deny)
        .await
        .expect("no");
    let denied = b
        .request_token(&triage, task, &disable("ann"), 300, "r-1")
        .await
        .denied();
    assert_eq!(
        (denied.why, denied.access_request),
        (DeniedReason::DeniedByApprover, Some(id))
    );
    assert_eq!(
        refused(b.vote("maria", id, "one-security", Verdict::Approve).await),
        Reason::AccessRequestClosed
    );

    let late = b
        .request_token(&triage, task, &disable("cara"), 300, "r-2")
        .await
        .pending()
        .access_request;
    let begun = b
        .begin_vote("maria", late, "one-security", Verdict::Approve)
        .await
        .expect("begun");
    b.manual_clock.advance_millis(15 * 60 * 1000);
    assert_eq!(
        refused(b.cast_vote("maria", late, &begun.statement).await),
        Reason::VoteStatementExpired
    );
    let shown = b.svid(&triage);
    let expired = b
        .request_token_with_evidence(&triage, task, &disable("cara"), 300, "r-2", Some(shown))
        .await
        .denied();
    assert_eq!(expired.why, DeniedReason::Expired);
    b.broker.maintenance_tick().await.expect("news");
    assert_eq!(
        b.request_token(&triage, task, &disable("cara"), 300, "r-2")
            .await
            .denied()
            .why,
        DeniedReason::Expired
    );
    b.check_invariants();
}

#[tokio::test]
async fn two_person_quorum_and_narrowest_ttl() {
    let b = TestBroker::start().await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let host = {
        let entities: serde_json::Value =
            serde_json::from_str(&b.env.policy["entities.json"]).expect("json");
        let host = entities
            .as_array()
            .expect("array")
            .iter()
            .find(|e| e["uid"]["type"] == "Host")
            .expect("a host");
        host["uid"]["id"].as_str().expect("id").to_owned()
    };
    let isolate = action("host.isolate", "Host", &host, IDP, &[]);
    let pending = b
        .request_token(&triage, task, &isolate, 600, "r-1")
        .await
        .pending();
    assert_eq!(
        pending
            .needs
            .iter()
            .map(|n| n.profile.name.as_str())
            .collect::<Vec<_>>(),
        ["two-security"]
    );
    let id = pending.access_request;
    b.approve("maria", id, "two-security").await;
    b.request_token(&triage, task, &isolate, 600, "r-1")
        .await
        .pending();
    let begun = b
        .begin_narrowed_vote("lee", id, "two-security", Verdict::Approve, Some(120))
        .await
        .expect("begun");
    assert_eq!(
        refused(
            b.begin_narrowed_vote("lee", id, "two-security", Verdict::Approve, Some(601))
                .await
        ),
        Reason::InvalidTtl
    );
    assert_eq!(
        refused(
            b.begin_narrowed_vote("lee", id, "two-security", Verdict::Approve, Some(0))
                .await
        ),
        Reason::InvalidTtl
    );
    b.cast_vote("lee", id, &begun.statement)
        .await
        .expect("second");
    let reply = b
        .request_token(&triage, task, &isolate, 600, "r-1")
        .await
        .token();
    assert_eq!(reply.issued.exp - reply.issued.iat, 120);
    b.check_invariants();
}

#[tokio::test]
async fn approvals_expire() {
    let b = TestBroker::start().await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let id = b
        .request_token(&triage, task, &disable("ann"), 300, "r-1")
        .await
        .pending()
        .access_request;
    b.approve("maria", id, "one-security").await;
    b.manual_clock.advance_millis(10 * 60 * 1000);
    let shown = b.svid(&triage);
    let still = b
        .request_token_with_evidence(&triage, task, &disable("ann"), 300, "r-1", Some(shown))
        .await
        .pending();
    assert_eq!(still.access_request, id, "still pending");
    assert!(
        still.needs[0].approvers.is_empty(),
        "but no vote counts any more"
    );
    // Another person's vote counts, and its lifetime bounds the token's.
    b.approve("lee", id, "one-security").await;
    let reply = b
        .request_token(&triage, task, &disable("ann"), 300, "r-1")
        .await
        .token();
    assert_eq!(reply.issued.exp - reply.issued.iat, 300);
    b.check_invariants();
}

/// An approver who has lost the role by the time of mint does not count.
#[tokio::test]
async fn eligibility_is_rechecked_at_mint() {
    let b = TestBroker::start().await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let id = b
        .request_token(&triage, task, &disable("ann"), 300, "r-1")
        .await
        .pending()
        .access_request;
    b.approve("maria", id, "one-security").await;
    let mut without = b.env.policy_with("people.toml", |t| {
        t.replacen(
            "name = \"Maria Moreau\"\ngroups = [\"security\"]",
            "name = \"Maria Moreau\"\ngroups = []",
            1,
        )
    });
    silence(&mut without, "quorum-unreachable", "two-security");
    assert!(b.apply_policy(without).await.expect("applied").changed);
    let still = b
        .request_token(&triage, task, &disable("ann"), 300, "r-1")
        .await
        .pending();
    assert_eq!(
        (still.access_request, still.needs[0].approvers.len()),
        (id, 0)
    );
    // A changed profile voids the votes: the access request goes on, and requires the profile as it is now.
    let redefined = b.env.policy_with("people.toml", |t| {
        t.replacen("good_for = \"10m\"", "good_for = \"9m\"", 1)
    });
    assert_eq!(
        b.apply_policy(redefined)
            .await
            .expect("applied")
            .revoked
            .requests,
        0
    );
    let anew = b
        .request_token(&triage, task, &disable("ann"), 300, "r-1")
        .await
        .pending();
    assert_eq!(
        (anew.access_request, anew.needs[0].approvers.len()),
        (id, 0)
    );
    let request = b.broker.show().access_request(&id).expect("known");
    let required = &request.required_profiles()[0];
    assert_ne!(*required, request.opened.required_profiles()[0]);
    b.approve("lee", id, "one-security").await;
    b.request_token(&triage, task, &disable("ann"), 300, "r-1")
        .await
        .token();
    b.check_invariants();
}
