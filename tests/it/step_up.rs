//! Step-up with passkeys: one assertion per statement, narrowing, and votes that are void when the key is revoked.

use std::sync::Arc;

use dipylon::broker::KeyRevocation;
use dipylon::broker::*;
use dipylon::journal::FaultInjection;
use dipylon::webauthn::Assertion;
use dipylon_sdk::model::*;

use crate::support::passkey_votes::{
    approve, deny, high_risk_with_approvals, passkeys_alone, pending_request_for,
};
use crate::support::software_authenticator::PasskeyBehaviour;
use crate::support::*;

#[tokio::test]
async fn passkey_vote_yields_a_token() {
    let (b, triage, task, id, [key]) = pending_request_for(passkeys_alone(), ["maria"]).await;
    let session = b.sign_in(&key).await.expect("signed in");
    assert_eq!(session.person.as_str(), "maria");
    // A fresh session is not a vote.
    let still = b
        .request_token(&triage, task, &disable("ann"), 900, "r-1")
        .await
        .pending();
    assert!(still.needs[0].approvers.is_empty());
    // Nor is a key signature.
    let begun = b
        .begin_vote_in_session(&session, id, approve())
        .await
        .expect("begun");
    let signature = b.env.keys["maria"]
        .sign(begun.challenge.as_bytes())
        .expect("signed");
    let by_key = VoteProof::Signature(signature.to_vec());
    assert_eq!(
        refused(b.cast_vote_in_session(&session, id, &begun, by_key).await),
        Reason::NotEligible
    );
    assert_eq!(
        refused(b.vote("maria", id, "one-security", Verdict::Approve).await),
        Reason::NotEligible
    );
    let view = b
        .vote_in_session(&session, &key, id, approve())
        .await
        .expect("counts");
    assert_eq!(view.status, AccessRequestStatus::Approved);
    let b = b.restart(FaultInjection::default()).await;
    assert_eq!(
        refused(b.begin_vote_in_session(&session, id, approve()).await),
        Reason::NotAuthenticated,
        "a restart ends every session"
    );
    let reply = b
        .request_token_with_evidence(
            &triage,
            task,
            &disable("ann"),
            900,
            "r-1",
            Some(b.svid(&triage)),
        )
        .await
        .token();
    assert_eq!(reply.issued.consumed, Some(id));
    assert!(b.introspect("idp", &reply.token).await);
    b.check_invariants();
}

#[tokio::test]
async fn assertion_is_bound_to_statement_and_voter() {
    let voters = ["maria", "lee"];
    let (b, _, _, id, [marias, lees]) = pending_request_for(TestEnvironment::new(), voters).await;
    let session = b.sign_in(&marias).await.expect("signed in");
    let challenge = |begun: &VoteStatementReply| begun.challenge.as_bytes().to_vec();
    let wrong = Reason::InvalidPasskeyAssertion;

    // Another person's valid passkey.
    let begun = b
        .begin_vote_in_session(&session, id, approve())
        .await
        .expect("begun");
    let others = VoteProof::Passkey(lees.get(&challenge(&begun), CONSOLE));
    assert_eq!(
        refused(b.cast_vote_in_session(&session, id, &begun, others).await),
        wrong
    );

    // A sign-in assertion, and one for another statement of the same vote.
    for challenge in [
        b.broker.begin_sign_in().challenge,
        challenge(
            &b.begin_vote_in_session(&session, id, deny())
                .await
                .expect("begun"),
        ),
    ] {
        let begun = b
            .begin_vote_in_session(&session, id, approve())
            .await
            .expect("begun");
        let other = VoteProof::Passkey(marias.get(&challenge, CONSOLE));
        assert_eq!(
            refused(b.cast_vote_in_session(&session, id, &begun, other).await),
            wrong
        );
    }

    // Each check on the server: user verification, presence, origin, frame, type, relying party, backup eligibility.
    let bad: [fn(&mut PasskeyBehaviour); 8] = [
        |m| m.verified = false,
        |m| m.present = false,
        |m| m.origin = Some("http://localhost:7701".to_owned()),
        |m| m.origin = Some("http://evil-localhost:7700".to_owned()),
        |m| m.cross_origin = Some(serde_json::json!(true)),
        |m| m.kind = Some("webauthn.create"),
        |m| m.rp_id = Some("example.org".to_owned()),
        |m| (m.backup_eligible, m.backed_up) = (false, false),
    ];
    for (which, spoil) in bad.iter().enumerate() {
        let mut behaviour = PasskeyBehaviour::default();
        spoil(&mut behaviour);
        let begun = b
            .begin_vote_in_session(&session, id, approve())
            .await
            .expect("begun");
        let made = VoteProof::Passkey(marias.get_as(&challenge(&begun), CONSOLE, &behaviour));
        let cast = b.cast_vote_in_session(&session, id, &begun, made).await;
        let expected = match behaviour.backup_eligible {
            true => wrong,
            false => Reason::PasskeyChanged,
        };
        assert_eq!(refused(cast), expected, "{which}");
    }

    // The valid assertion counts once: a replay gets the answer of the recorded vote, and changes nothing.
    let begun = b
        .begin_vote_in_session(&session, id, approve())
        .await
        .expect("begun");
    let made = marias.get(&challenge(&begun), CONSOLE);
    let again = VoteProof::Passkey(made.clone());
    let cast = b
        .cast_vote_in_session(&session, id, &begun, VoteProof::Passkey(made))
        .await;
    assert_eq!(cast.expect("counts").status, AccessRequestStatus::Approved);
    let votes = |b: &TestBroker| b.broker.show().access_request(&id).map(|r| r.votes.len());
    let (recorded, position) = (votes(&b), b.broker.show().position());
    let cast = b.cast_vote_in_session(&session, id, &begun, again).await;
    assert_eq!(
        cast.expect("recorded").status,
        AccessRequestStatus::Approved
    );
    assert_eq!(
        (votes(&b), b.broker.show().position()),
        (recorded, position)
    );
    // After two minutes the statement has expired.
    let late = b
        .begin_vote_in_session(&session, id, deny())
        .await
        .expect("begun");
    b.manual_clock.advance_millis(120_000);
    let made = VoteProof::Passkey(marias.get(&challenge(&late), CONSOLE));
    assert_eq!(
        refused(b.cast_vote_in_session(&session, id, &late, made).await),
        Reason::VoteStatementExpired
    );
    b.check_invariants();
}

#[tokio::test]
async fn revoked_passkey_voids_unconsumed_votes() {
    let (b, triage, task, id, [key]) = pending_request_for(TestEnvironment::new(), ["maria"]).await;
    let session = b.sign_in(&key).await.expect("signed in");
    let approved = b
        .vote_in_session(&session, &key, id, approve())
        .await
        .expect("counts");
    assert_eq!(approved.status, AccessRequestStatus::Approved);
    let revoke = async |person: &str| {
        let call = b.person_call("dipylon.v1.ApprovalService/RevokeApproverKeys", "olga");
        let person = PersonId::parse(person).expect("id");
        b.broker
            .revoke_approver_keys(&call, person, Default::default())
            .await
            .expect("revoked")
            .keys
    };
    assert_eq!(
        revoke("maria").await,
        2,
        "the passkey and the key of people.toml"
    );
    assert_eq!(revoke("maria").await, 0);
    let pending = b
        .request_token(&triage, task, &disable("ann"), 900, "r-1")
        .await
        .pending();
    assert_eq!(
        (pending.access_request, pending.needs[0].approvers.len()),
        (id, 0)
    );
    // Session, passkey and the key of people.toml are all invalid, and applying a bundle does not change that.
    assert_eq!(
        refused(b.begin_vote_in_session(&session, id, approve()).await),
        Reason::NotAuthenticated
    );
    assert_eq!(
        b.sign_in(&key).await.map(drop).map_err(|e| e.reason),
        Err(Reason::NotAuthenticated)
    );
    let files = b
        .env
        .policy_with("people.toml", |text| format!("{text}\n# again\n"));
    b.apply_policy(files).await.expect("applied");
    assert_eq!(
        refused(
            b.begin_vote("maria", id, "one-security", Verdict::Approve)
                .await
        ),
        Reason::NotAuthenticated
    );
    // A new passkey of hers is valid, for later requests.
    let another = b.enrol("maria").await;
    let session = b.sign_in(&another).await.expect("signed in");
    assert_eq!(
        refused(b.begin_vote_in_session(&session, id, approve()).await),
        Reason::NotEligible
    );
    assert_eq!(revoke("lee").await, 2);
    b.check_invariants();
}

#[tokio::test]
async fn signature_counter_regression_revokes() {
    let (b, _, _, id, [key]) = pending_request_for(TestEnvironment::new(), ["maria"]).await;
    let session = b.sign_in(&key).await.expect("signed in");
    let begun = b
        .begin_vote_in_session(&session, id, approve())
        .await
        .expect("begun");
    let copy = PasskeyBehaviour {
        sign_count: Some(1),
        ..PasskeyBehaviour::default()
    };
    let made = key.get_as(begun.challenge.as_bytes(), CONSOLE, &copy);
    assert_eq!(
        refused(
            b.cast_vote_in_session(&session, id, &begun, VoteProof::Passkey(made))
                .await
        ),
        Reason::InvalidPasskeyAssertion
    );
    assert_eq!(
        refused(b.begin_vote_in_session(&session, id, approve()).await),
        Reason::NotAuthenticated,
        "its session is over too"
    );
    // An authenticator without a counter stays valid.
    let silent = PasskeyBehaviour {
        sign_count: Some(0),
        ..PasskeyBehaviour::default()
    };
    let code = b.invite("maria").await;
    let quiet = b.enrol_with(&code, &silent).await.expect("enrolled");
    for _ in 0..2 {
        let begun = b.broker.begin_sign_in();
        let made: Assertion = quiet.get_as(&begun.challenge, CONSOLE, &silent);
        b.broker
            .finish_sign_in("console/sign-in", made.clone())
            .await
            .expect("signed in");
        let replayed = b.broker.finish_sign_in("console/sign-in", made).await;
        assert_eq!(
            replayed.map(drop).map_err(|e| e.reason),
            Err(Reason::NotAuthenticated),
            "a challenge is answered once"
        );
    }
    b.check_invariants();
}

#[tokio::test]
async fn narrowing_and_denial_comment() {
    let (b, triage, task, id, [key]) = pending_request_for(TestEnvironment::new(), ["maria"]).await;
    let session = b.sign_in(&key).await.expect("signed in");
    let narrowed = |max_ttl, max_uses| VoteInput {
        narrowing: Narrowing { max_ttl, max_uses },
        ..approve()
    };
    for wider in [
        narrowed(Some(901), None),
        narrowed(Some(0), None),
        narrowed(None, Some(2)),
        narrowed(None, Some(0)),
    ] {
        assert!(b.begin_vote_in_session(&session, id, wider).await.is_err());
    }
    b.vote_in_session(&session, &key, id, narrowed(Some(120), Some(1)))
        .await
        .expect("counts");
    let reply = b
        .request_token(&triage, task, &disable("ann"), 900, "r-1")
        .await
        .token();
    assert_eq!(reply.issued.exp - reply.issued.iat, 120);
    assert_eq!(reply.issued.uses, Some(1));

    let id = b
        .request_token(&triage, task, &disable("cara"), 900, "r-2")
        .await
        .pending()
        .access_request;
    let comment = Comment::parse("use rotate, not disable").expect("plain");
    let denial = VoteInput {
        comment: Some(comment.clone()),
        ..deny()
    };
    b.vote_in_session(&session, &key, id, denial)
        .await
        .expect("counts");
    let denied = b
        .request_token(&triage, task, &disable("cara"), 900, "r-2")
        .await
        .denied();
    assert_eq!(denied.why, DeniedReason::DeniedByApprover);
    assert_eq!(denied.comment, Some(comment));
    for wrong in ["", "two\nlines", "zero\u{200B}width", &"x".repeat(201)] {
        assert!(Comment::parse(wrong).is_err(), "{wrong:?}");
    }
    b.check_invariants();
}

#[tokio::test]
async fn approver_can_limit_uses() {
    let mut env = TestEnvironment::new();
    let schema = env.policy.get_mut("schema.cedarschema").expect("schema");
    assert!(schema.contains("@single_use"));
    *schema = schema.replace("@single_use\n", "");
    let (b, triage, task, id, [key]) = pending_request_for(env, ["maria"]).await;
    let session = b.sign_in(&key).await.expect("signed in");
    let three = VoteInput {
        narrowing: Narrowing {
            max_ttl: None,
            max_uses: Some(3),
        },
        ..approve()
    };
    b.vote_in_session(&session, &key, id, three)
        .await
        .expect("counts");
    let reply = b
        .request_token(&triage, task, &disable("ann"), 300, "r-1")
        .await
        .token();
    assert_eq!(reply.issued.uses, Some(3));
    b.check_invariants();
}

#[tokio::test]
async fn unsatisfiable_step_up_is_denied() {
    let b = TestBroker::start_with(passkeys_alone(), FaultInjection::default()).await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let denied = b
        .request_token(&triage, task, &disable("ann"), 300, "r-1")
        .await
        .denied();
    assert_eq!(denied.why, DeniedReason::NoEligibleApprover);
    // The owner's passkey does not count; another person's does, for the same idempotency key.
    b.enrol("dana").await;
    let denied = b
        .request_token(&triage, task, &disable("ann"), 300, "r-1")
        .await
        .denied();
    assert_eq!(denied.why, DeniedReason::NoEligibleApprover);
    b.enrol("maria").await;
    b.request_token(&triage, task, &disable("ann"), 300, "r-1")
        .await
        .pending();
    b.check_invariants();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_mint_after_vote_key_revocation() {
    let b = Arc::new(TestBroker::start_with(passkeys_alone(), FaultInjection::default()).await);
    let triage = b.agent("triage");
    let (mut minted, mut refused) = (0, 0);
    for round in 0..40 {
        let key = b.enrol("maria").await;
        let session = b.sign_in(&key).await.expect("signed in");
        let task = b
            .try_open_task(&triage, "contain", &format!("open-{round}"))
            .await
            .expect("opens")
            .task
            .task;
        let id = b
            .request_token(&triage, task, &disable("ann"), 300, "r-1")
            .await
            .pending()
            .access_request;
        b.vote_in_session(&session, &key, id, approve())
            .await
            .expect("counts");
        let minting = {
            let (b, agent) = (b.clone(), triage.clone());
            tokio::spawn(async move {
                b.request_token(&agent, task, &disable("ann"), 300, "r-1")
                    .await
            })
        };
        let revoking = {
            let b = b.clone();
            tokio::spawn(async move {
                let call = b.person_call("dipylon.v1.ApprovalService/RevokeApproverKeys", "olga");
                let maria = PersonId::parse("maria").expect("id");
                let newest = b.broker.show().person(&maria);
                let newest = newest.passkeys.last().map(|p| p.record.key);
                let revocation = KeyRevocation {
                    only: newest,
                    compromised: false,
                };
                b.broker
                    .revoke_approver_keys(&call, maria, revocation)
                    .await
            })
        };
        revoking.await.expect("no panic").expect("revoked");
        match minting.await.expect("no panic") {
            Ok(TokenReply::Token(_)) => minted += 1,
            Ok(TokenReply::Denied(denied)) => {
                assert_eq!(denied.why, DeniedReason::NoEligibleApprover);
                refused += 1;
            }
            other => panic!("neither: {other:?}"),
        }
        b.complete_task(&triage, task).await.expect("completes");
    }
    // The invariants hold whichever came first; that both orders occur is not asserted.
    println!("{minted} minted before, {refused} refused after the revocation");
    b.check_invariants();
}

#[tokio::test]
async fn vote_requires_card_of_current_policy() {
    let env = high_risk_with_approvals("dwell = \"3s\"");
    let (b, _, _, id, [key]) = pending_request_for(env, ["maria"]).await;
    let card = |name: &str| {
        let call = b.person_call("dipylon.v1.ApprovalService/GetCard", name);
        b.broker.card(&call, &id).expect("a card")
    };
    let session = b.sign_in(&key).await.expect("signed in");
    let read = card("maria").policy;
    b.manual_clock.advance_millis(3_000);
    let as_read = |policy| VoteInput {
        policy: Some(policy),
        ..approve()
    };
    assert!(
        b.begin_vote_in_session(&session, id, as_read(read))
            .await
            .is_ok()
    );
    let files = b.env.policy_with("schema.cedarschema", |text| {
        text.replace(
            "The account can no longer sign in.",
            "The account and its mailbox are gone.",
        )
    });
    b.apply_policy(files).await.expect("applied");
    assert_eq!(
        refused(b.begin_vote_in_session(&session, id, as_read(read)).await),
        Reason::PolicyChanged
    );
    let read = card("maria").policy;
    assert_eq!(
        refused(b.begin_vote_in_session(&session, id, as_read(read)).await),
        Reason::DwellRequired,
        "the card must be read again"
    );
    b.manual_clock.advance_millis(3_000);
    assert!(
        b.begin_vote_in_session(&session, id, as_read(read))
            .await
            .is_ok()
    );
    b.check_invariants();
}

#[tokio::test]
async fn lapsed_vote_can_be_replaced() {
    let mut env = TestEnvironment::new();
    let people = env.policy.get_mut("people.toml").expect("people");
    *people = people.replace("good_for = \"10m\"", "good_for = \"1m\"");
    let (b, triage, task, id, [key, another]) = pending_request_for(env, ["maria", "maria"]).await;
    let session = b.sign_in(&key).await.expect("signed in");
    b.vote_in_session(&session, &key, id, approve())
        .await
        .expect("counts");
    assert_eq!(
        refused(b.begin_vote_in_session(&session, id, approve()).await),
        Reason::NotEligible
    );
    // The vote has expired.
    b.manual_clock.advance_millis(60_000);
    b.request_token(&triage, task, &disable("ann"), 300, "r-1")
        .await
        .pending();
    b.vote_in_session(&session, &key, id, approve())
        .await
        .expect("counts again");
    // Its key is revoked: she votes with another.
    let call = b.person_call("dipylon.v1.ApprovalService/RevokeApproverKeys", "olga");
    let maria = PersonId::parse("maria").expect("id");
    let first = b.broker.show().person(&maria).passkeys[0].record.key;
    let revocation = KeyRevocation {
        only: Some(first),
        compromised: false,
    };
    b.broker
        .revoke_approver_keys(&call, maria, revocation)
        .await
        .expect("revoked");
    let session = b.sign_in(&another).await.expect("signed in");
    b.vote_in_session(&session, &another, id, approve())
        .await
        .expect("counts");
    b.request_token(&triage, task, &disable("ann"), 300, "r-1")
        .await
        .token();
    b.check_invariants();
}
