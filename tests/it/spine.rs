//! The main job at the broker: both gates, one token, its use and its end.

use super::harness::*;
use dipylon::journal::Faults;
use dipylon::model::*;

#[tokio::test]
async fn a_case_is_read_at_once_and_the_token_dies_with_its_task() {
    let b = TestBroker::start().await;
    let triage = b.agent("triage");
    let task = b.open(&triage).await;
    let given = b.ask(&triage, task, &read_case(), 300, "r-1").await.token();
    assert_eq!(given.issued.exp - given.issued.iat, 300);
    assert!(b.introspect("cases", &given.token));
    assert!(
        !b.introspect("idp", &given.token),
        "another validator's token is nothing"
    );
    let report = b.complete(&triage, task).await.expect("completes");
    assert_eq!(
        (report.cause, report.revoked, report.tokens),
        (EndCause::Completed, 1, vec![given.issued.jti])
    );
    assert!(!b.introspect("cases", &given.token));
    assert_eq!(
        refused(b.ask(&triage, task, &read_case(), 300, "r-2").await),
        Reason::TaskEnded
    );
    let again = b.complete(&triage, task).await.expect("idempotent");
    assert_eq!(again.index, report.index);
    let b = b.restart(Faults::default()).await;
    assert!(
        !b.introspect("cases", &given.token),
        "a restart revives nothing"
    );
    b.check();
}

#[tokio::test]
async fn disabling_an_account_needs_another_persons_yes_and_is_spent_once() {
    let b = TestBroker::start().await;
    let triage = b.agent("triage");
    let task = b.open(&triage).await;
    let pending = b
        .ask(&triage, task, &disable("ann"), 900, "r-1")
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
        Reason::NotPermitted
    );
    b.ask(&triage, task, &disable("ann"), 900, "r-1")
        .await
        .pending();
    b.yes("maria", id, "one-security").await;
    assert_eq!(
        refused(b.vote("maria", id, "one-security", Verdict::Approve).await),
        Reason::NotEligible
    );

    // Approved for ann, asked for bob: a new access request, nothing minted.
    let other = b
        .ask(&triage, task, &disable("cara"), 900, "r-2")
        .await
        .pending();
    assert_ne!(other.access_request, id);

    let given = b
        .ask(&triage, task, &disable("ann"), 900, "r-1")
        .await
        .token();
    assert_eq!(
        given.issued.exp - given.issued.iat,
        600,
        "destructive tokens are short"
    );
    assert_eq!(given.issued.uses, Some(1));
    assert_eq!(given.issued.consumed, Some(id));
    let first = b
        .consume("idp", &given.token, "use-1")
        .await
        .expect("spends");
    assert_eq!(first.uses_left, Some(0));
    assert_eq!(
        b.consume("idp", &given.token, "use-1")
            .await
            .expect("the same answer"),
        first
    );
    assert_eq!(
        refused(b.consume("idp", &given.token, "use-2").await),
        Reason::UseSpent
    );
    assert_eq!(
        refused(b.consume("cases", &given.token, "use-1").await),
        Reason::TokenInactive
    );
    assert!(
        !b.introspect("idp", &given.token),
        "a spent token is not active"
    );

    // The approval is spent: the same action asks people again.
    let third = b
        .ask(&triage, task, &disable("ann"), 900, "r-3")
        .await
        .pending();
    assert_ne!(third.access_request, id);
    b.check();
}

#[tokio::test]
async fn a_retry_gets_its_own_token_again_and_nothing_else() {
    let b = TestBroker::start().await;
    let triage = b.agent("triage");
    let task = b.open(&triage).await;
    let first = b.ask(&triage, task, &read_case(), 300, "r-1").await.token();
    b.hand.advance_millis(20_000);
    let again = b.ask(&triage, task, &read_case(), 300, "r-1").await.token();
    assert!(again.reissued);
    assert_eq!(again.issued, first.issued, "the same jti, the same claims");
    assert_eq!(
        refused(b.ask(&triage, task, &read_case(), 299, "r-1").await),
        Reason::RequestIdReused
    );
    assert_eq!(
        refused(b.ask(&triage, task, &disable("ann"), 300, "r-1").await),
        Reason::RequestIdReused
    );
    b.hand.advance_millis(281_000);
    let refreshed = b.svid(&triage);
    let dead = b
        .ask_showing(&triage, task, &read_case(), 300, "r-1", Some(refreshed))
        .await;
    assert_eq!(
        refused(dead),
        Reason::TokenDead,
        "an expired grant is not given again"
    );

    // Opening is idempotent too, for the same words under the same key.
    let same = b
        .try_open(&triage, "contain INC-8841", "open-1")
        .await
        .expect("the same task");
    assert_eq!(same.task.task, task);
    assert_eq!(
        refused(b.try_open(&triage, "something else", "open-1").await),
        Reason::RequestIdReused
    );
    b.check();
}

#[tokio::test]
async fn gate_1_says_no_in_one_voice() {
    let b = TestBroker::start().await;
    let stranger = b.agent("stranger");
    let refusal = b
        .try_open(&stranger, "x", "open-1")
        .await
        .expect_err("not registered");
    assert_eq!(
        (refusal.reason, refusal.known),
        (Reason::NotAuthenticated, false)
    );
    let triage = b.agent("triage");
    let task = b.open(&triage).await;
    // Another key, a real task: no oracle.
    let thief = TestAgent {
        key: b.agent("triage").key,
        ..triage.clone()
    };
    let theirs = b
        .ask(&thief, task, &read_case(), 60, "r-1")
        .await
        .expect_err("not theirs");
    let none = b
        .ask(
            &thief,
            TaskId::from_random([7; 16]),
            &read_case(),
            60,
            "r-1",
        )
        .await
        .expect_err("none");
    assert_eq!(
        (theirs.reason, none.reason),
        (Reason::NotFound, Reason::NotFound)
    );
    // Stale evidence is asked for; after showing it, it goes on.
    b.hand.advance_millis(301_000);
    assert_eq!(
        refused(b.ask(&triage, task, &read_case(), 60, "r-1").await),
        Reason::EvidenceStale
    );
    let shown = b.svid(&triage);
    b.ask_showing(&triage, task, &read_case(), 60, "r-1", Some(shown))
        .await
        .token();
    b.ask(&triage, task, &read_case(), 60, "r-2").await.token();
    // Someone else's evidence does not serve this task.
    let other = b.svid(&b.agent("reporter"));
    assert_eq!(
        refused(
            b.ask_showing(&triage, task, &read_case(), 60, "r-3", Some(other))
                .await
        ),
        Reason::NotAuthenticated
    );
    b.check();
}

#[tokio::test]
async fn rules_that_tighten_between_yes_and_mint_refuse() {
    let b = TestBroker::start().await;
    let triage = b.agent("triage");
    let task = b.open(&triage).await;
    let read = b.ask(&triage, task, &read_case(), 300, "r-0").await.token();
    let id = b
        .ask(&triage, task, &disable("ann"), 300, "r-1")
        .await
        .pending()
        .access_request;
    b.yes("maria", id, "one-security").await;
    let tight = b.world.policy_with("rules/20-guardrails.cedar", |text| {
        format!("{text}\n@id(\"no-disabling\") forbid (principal, action == Action::\"account.disable\", resource);\n")
    });
    let applied = b.apply(tight).await.expect("applied");
    assert!(applied.changed);
    assert_eq!(
        applied.revoked.requests, 1,
        "the access request ends: nobody is asked for what is forbidden"
    );
    assert_eq!(
        b.ask(&triage, task, &disable("ann"), 300, "r-1")
            .await
            .denied()
            .why,
        DeniedReason::ForbiddenByRule
    );
    assert!(
        b.introspect("cases", &read.token),
        "what is still allowed lives on"
    );
    let shut = b.world.policy_with("rules/20-guardrails.cedar", |text| {
        format!("{text}\n@id(\"no-reading\") forbid (principal, action == Action::\"case.read\", resource);\n")
    });
    assert_eq!(b.apply(shut).await.expect("applied").revoked.grants, 1);
    assert!(
        !b.introspect("cases", &read.token),
        "what is not allowed any more is dead"
    );
    b.apply(b.world.policy.clone()).await.expect("applied");
    assert!(
        !b.introspect("cases", &read.token),
        "and stays dead when the rules come back"
    );
    b.check();
}

#[tokio::test]
async fn a_suspended_agent_has_nothing_and_gets_nothing_back() {
    let b = TestBroker::start().await;
    let triage = b.agent("triage");
    let task = b.open(&triage).await;
    let given = b.ask(&triage, task, &read_case(), 300, "r-1").await.token();
    assert_eq!(b.suspend("triage").await.expect("suspends").0, 1);
    assert!(!b.introspect("cases", &given.token));
    assert_eq!(
        refused(b.ask(&triage, task, &read_case(), 300, "r-2").await),
        Reason::TaskEnded
    );
    assert_eq!(
        refused(b.try_open(&triage, "again", "open-2").await),
        Reason::NotAuthenticated
    );
    b.resume("triage").await.expect("resumes");
    assert!(
        !b.introspect("cases", &given.token),
        "nothing that ended comes back"
    );
    assert_eq!(
        refused(b.ask(&triage, task, &read_case(), 300, "r-2").await),
        Reason::TaskEnded
    );
    b.try_open(&triage, "again", "open-2")
        .await
        .expect("it may open anew");
    b.check();
}

#[tokio::test]
async fn one_no_ends_it_and_time_says_no() {
    let b = TestBroker::start().await;
    let triage = b.agent("triage");
    let task = b.open(&triage).await;
    let id = b
        .ask(&triage, task, &disable("ann"), 300, "r-1")
        .await
        .pending()
        .access_request;
    b.yes("maria", id, "one-security").await;
    b.vote("lee", id, "one-security", Verdict::Deny)
        .await
        .expect("no");
    let denied = b
        .ask(&triage, task, &disable("ann"), 300, "r-1")
        .await
        .denied();
    assert_eq!(
        (denied.why, denied.access_request),
        (DeniedReason::DeniedByPerson, Some(id))
    );
    assert_eq!(
        refused(b.vote("maria", id, "one-security", Verdict::Approve).await),
        Reason::AccessRequestClosed
    );

    let late = b
        .ask(&triage, task, &disable("cara"), 300, "r-2")
        .await
        .pending()
        .access_request;
    let begun = b
        .begin("maria", late, "one-security", Verdict::Approve)
        .await
        .expect("begun");
    b.hand.advance_millis(15 * 60 * 1000);
    assert_eq!(
        refused(b.cast("maria", late, &begun.statement).await),
        Reason::StatementUnknown
    );
    let shown = b.svid(&triage);
    let expired = b
        .ask_showing(&triage, task, &disable("cara"), 300, "r-2", Some(shown))
        .await
        .denied();
    assert_eq!(expired.why, DeniedReason::Expired);
    b.broker.upkeep_once().await.expect("news");
    assert_eq!(
        b.ask(&triage, task, &disable("cara"), 300, "r-2")
            .await
            .denied()
            .why,
        DeniedReason::Expired
    );
    b.check();
}

#[tokio::test]
async fn isolating_a_production_host_takes_two_and_the_narrowest_wins() {
    let b = TestBroker::start().await;
    let triage = b.agent("triage");
    let task = b.open(&triage).await;
    let host = {
        let entities: serde_json::Value =
            serde_json::from_str(&b.world.policy["entities.json"]).expect("json");
        let host = entities
            .as_array()
            .expect("array")
            .iter()
            .find(|e| e["uid"]["type"] == "Host")
            .expect("a host");
        host["uid"]["id"].as_str().expect("id").to_owned()
    };
    let isolate = action("host.isolate", "Host", &host, IDP, &[]);
    let pending = b.ask(&triage, task, &isolate, 600, "r-1").await.pending();
    assert_eq!(
        pending
            .needs
            .iter()
            .map(|n| n.profile.name.as_str())
            .collect::<Vec<_>>(),
        ["two-security"]
    );
    let id = pending.access_request;
    b.yes("maria", id, "two-security").await;
    b.ask(&triage, task, &isolate, 600, "r-1").await.pending();
    let begun = b
        .begin_narrowed("lee", id, "two-security", Verdict::Approve, Some(120))
        .await
        .expect("begun");
    assert_eq!(
        refused(
            b.begin_narrowed("lee", id, "two-security", Verdict::Approve, Some(601))
                .await
        ),
        Reason::InvalidTtl
    );
    assert_eq!(
        refused(
            b.begin_narrowed("lee", id, "two-security", Verdict::Approve, Some(0))
                .await
        ),
        Reason::InvalidTtl
    );
    b.cast("lee", id, &begun.statement).await.expect("second");
    let given = b.ask(&triage, task, &isolate, 600, "r-1").await.token();
    assert_eq!(given.issued.exp - given.issued.iat, 120);
    b.check();
}

#[tokio::test]
async fn what_is_not_there_is_named_and_entered() {
    let b = TestBroker::start().await;
    let triage = b.agent("triage");
    let task = b.open(&triage).await;
    let before = b.broker.state().position().1;
    for (action, reason) in [
        (
            action("account.delete", "Account", "ann", IDP, &[]),
            Reason::UnknownAction,
        ),
        (disable("nobody"), Reason::UnknownTarget),
        (
            action(
                "account.disable",
                "Case",
                "INC-8841",
                IDP,
                &[("end_sessions", Param::Bool(true))],
            ),
            Reason::UnknownTarget,
        ),
        (
            action(
                "account.disable",
                "Account",
                "ann",
                "https://evil.example",
                &[("end_sessions", Param::Bool(true))],
            ),
            Reason::UnknownAudience,
        ),
        (
            action("account.disable", "Account", "ann", IDP, &[]),
            Reason::WrongParameters,
        ),
        (
            action(
                "account.disable",
                "Account",
                "ann",
                IDP,
                &[("end_sessions", Param::Int(1))],
            ),
            Reason::WrongParameters,
        ),
    ] {
        assert_eq!(
            refused(b.ask(&triage, task, &action, 300, "r-1").await),
            reason,
            "{action:?}"
        );
    }
    assert_eq!(
        b.broker.state().position().1,
        before + 6,
        "every refusal after gate 1 is an entry"
    );
    assert_eq!(
        refused(b.ask(&triage, task, &read_case(), 0, "r-1").await),
        Reason::InvalidTtl
    );
    assert_eq!(
        refused(b.ask(&triage, task, &read_case(), -5, "r-1").await),
        Reason::InvalidTtl
    );
    // Outside the ceiling, a plain forbid.
    let reporter = b.agent("reporter");
    let theirs = b.open(&reporter).await;
    assert_eq!(
        b.ask(&reporter, theirs, &disable("ann"), 60, "r-1")
            .await
            .denied()
            .why,
        DeniedReason::OutsideCeiling
    );
    assert_eq!(
        b.ask(&triage, task, &disable("break-glass"), 60, "r-9")
            .await
            .denied()
            .why,
        DeniedReason::ForbiddenByRule
    );
    // An unchanged answer writes nothing.
    let at = b.broker.state().position().1;
    b.ask(&triage, task, &disable("break-glass"), 60, "r-9")
        .await
        .denied();
    assert_eq!(b.broker.state().position().1, at);
    b.check();
}

#[tokio::test]
async fn sensitive_words_stay_out_of_entries_and_tokens() {
    let b = TestBroker::start().await;
    let triage = b.agent("triage");
    let task = b.open(&triage).await;
    let canary = "CANARY-the-password-is-xyzzy";
    let note = action(
        "case.note",
        "Case",
        "INC-8841",
        CASES,
        &[("text", Param::Str(canary.to_owned()))],
    );
    let given = b.ask(&triage, task, &note, 300, "r-1").await.token();
    let payload = given
        .token
        .expose_secret()
        .split('.')
        .nth(1)
        .expect("payload")
        .to_owned();
    use base64::Engine as _;
    let payload = String::from_utf8(
        base64::engine::general_purpose::URL_SAFE_NO_PAD
            .decode(payload)
            .expect("base64"),
    )
    .expect("text");
    assert!(
        !payload.contains("CANARY") && payload.contains("$commitment"),
        "{payload}"
    );
    let opening = &given.openings.as_ref().expect("openings").parameters["text"];
    assert!(payload.contains(&opening.commitment().to_string()));
    let journal = dipylon::journal::ReadOnly::open(&b.dir).expect("journal");
    let mut entries = 0;
    journal
        .all(|stored| {
            entries += 1;
            assert!(
                !stored.text.contains("CANARY") && !stored.text.contains("phish confirmed"),
                "{}",
                stored.text
            );
            assert!(!stored.text.contains(given.token.expose_secret()));
            Ok(())
        })
        .expect("readable");
    assert!(entries > 4);
    // A retry opens the same commitments.
    assert_eq!(
        b.ask(&triage, task, &note, 300, "r-1")
            .await
            .token()
            .openings,
        given.openings
    );
    b.check();
}

#[tokio::test]
async fn a_yes_does_not_keep_for_ever() {
    let b = TestBroker::start().await;
    let triage = b.agent("triage");
    let task = b.open(&triage).await;
    let id = b
        .ask(&triage, task, &disable("ann"), 300, "r-1")
        .await
        .pending()
        .access_request;
    b.yes("maria", id, "one-security").await;
    b.hand.advance_millis(10 * 60 * 1000);
    let shown = b.svid(&triage);
    let still = b
        .ask_showing(&triage, task, &disable("ann"), 300, "r-1", Some(shown))
        .await
        .pending();
    assert_eq!(still.access_request, id, "it still waits");
    assert_eq!(
        still.needs[0].approvers,
        [],
        "but nobody's yes is good any more"
    );
    // Another person's is, and bounds the token by its own life.
    b.yes("lee", id, "one-security").await;
    let given = b
        .ask(&triage, task, &disable("ann"), 300, "r-1")
        .await
        .token();
    assert_eq!(given.issued.exp - given.issued.iat, 300);
    b.check();
}

/// An approver who is out of the roster at the mint does not count, whatever they were at the vote.
#[tokio::test]
async fn eligibility_is_never_remembered() {
    let b = TestBroker::start().await;
    let triage = b.agent("triage");
    let task = b.open(&triage).await;
    let id = b
        .ask(&triage, task, &disable("ann"), 300, "r-1")
        .await
        .pending()
        .access_request;
    b.yes("maria", id, "one-security").await;
    let without = b.world.policy_with("people.toml", |t| {
        t.replacen(
            "name = \"Maria Moreau\"\ngroups = [\"security\"]",
            "name = \"Maria Moreau\"\ngroups = []",
            1,
        )
    });
    assert!(b.apply(without).await.expect("applied").changed);
    let still = b
        .ask(&triage, task, &disable("ann"), 300, "r-1")
        .await
        .pending();
    assert_eq!(
        (still.access_request, still.needs[0].approvers.len()),
        (id, 0)
    );
    // A profile that is defined anew makes the former question void.
    let redefined = b.world.policy_with("people.toml", |t| {
        t.replacen("good_for = \"10m\"", "good_for = \"9m\"", 1)
    });
    assert_eq!(b.apply(redefined).await.expect("applied").revoked.requests, 1);
    let anew = b
        .ask(&triage, task, &disable("ann"), 300, "r-1")
        .await
        .pending();
    assert_ne!(anew.access_request, id);
    b.check();
}
