//! Passkey enrolment: an invitation is single-use, expires, and is replaced by the next one.

use std::sync::Arc;

use dipylon_sdk::model::*;

use crate::support::passkey_votes::{ENROL, RP_ID, approve, passkeys_alone, pending_request_for};
use crate::support::software_authenticator::{PasskeyBehaviour, SoftwareAuthenticator};
use crate::support::*;

#[tokio::test(flavor = "multi_thread")]
async fn invitation_is_single_use() {
    let b = Arc::new(TestBroker::start().await);
    let code = b.invite("maria").await;
    let mut tries = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let (b, code) = (b.clone(), code.clone());
        tries.spawn(async move { b.enrol_with(&code, &PasskeyBehaviour::default()).await });
    }
    let mut enrolled = Vec::new();
    while let Some(tried) = tries.join_next().await {
        match tried.expect("no panic") {
            Ok(key) => enrolled.push(key),
            Err(refusal) => assert_eq!(refusal.reason, Reason::InvalidInvitation),
        }
    }
    assert_eq!(enrolled.len(), 1);
    assert!(b.sign_in(&enrolled[0]).await.is_ok());
    b.check_invariants();
}

#[tokio::test]
async fn invitation_expires_and_is_replaced() {
    let b = TestBroker::start().await;
    let unknown = Reason::InvalidInvitation;
    let first = b.invite("maria").await;
    let second = b.invite("maria").await;
    assert_eq!(refused(b.broker.begin_enrolment(ENROL, &first)), unknown);
    b.manual_clock.advance_millis(599_999);
    let lower = Secret::new(second.expose_secret().to_lowercase().replace('-', " "));
    let begun = b
        .broker
        .begin_enrolment(ENROL, &lower)
        .expect("typed in lower case with spaces");
    let (_, made) = SoftwareAuthenticator::create(RP_ID, CONSOLE, &begun.challenge, &begun.user);
    b.manual_clock.advance_millis(1);
    assert_eq!(
        refused(
            b.broker
                .finish_enrolment(ENROL, &second, &made, "Phone")
                .await
        ),
        unknown
    );
    assert_eq!(
        refused(
            b.broker
                .begin_enrolment(ENROL, &Secret::new("0".repeat(20)))
        ),
        unknown
    );

    // Enrolment has the same checks as a vote, and the invitation's own challenge.
    let third = b.invite("maria").await;
    let unverified = PasskeyBehaviour {
        verified: false,
        ..PasskeyBehaviour::default()
    };
    let spoiled = b.enrol_with(&third, &unverified).await;
    assert_eq!(
        spoiled.map(drop).map_err(|e| e.reason),
        Err(Reason::InvalidPasskeyAssertion)
    );
    let other = b.invite("lee").await;
    let lees = b.broker.begin_enrolment(ENROL, &other).expect("begun");
    let (_, made) = SoftwareAuthenticator::create(RP_ID, CONSOLE, &lees.challenge, &lees.user);
    let crossed = b
        .broker
        .finish_enrolment(ENROL, &third, &made, "Phone")
        .await;
    assert_eq!(refused(crossed), Reason::InvalidPasskeyAssertion);
    // The same registration cannot enrol another person.
    b.broker
        .finish_enrolment(ENROL, &other, &made, "Phone")
        .await
        .expect("lee's");
    let key = b
        .enrol_with(&third, &PasskeyBehaviour::default())
        .await
        .expect("still valid");
    assert!(b.sign_in(&key).await.is_ok());
    // Only operators may invite, and only registered people can be invited.
    let call = b.person_call("dipylon.v1.ApprovalService/InviteApprover", "maria");
    let maria = PersonId::parse("maria").expect("id");
    assert_eq!(
        refused(b.broker.invite_approver(&call, maria).await),
        Reason::NotPermitted
    );
    let call = b.person_call("dipylon.v1.ApprovalService/InviteApprover", "olga");
    let nobody = PersonId::parse("nobody").expect("id");
    assert_eq!(
        refused(b.broker.invite_approver(&call, nobody).await),
        Reason::NotFound
    );
    b.check_invariants();
}

/// Some browsers send an empty `userHandle` where there is none.
#[tokio::test]
async fn empty_user_handle_counts_as_absent() {
    let b = TestBroker::start().await;
    let key = b.enrol("maria").await;
    for (user, is_accepted) in [
        (Some(Vec::new()), true),
        (None, true),
        (Some(vec![7; 16]), false),
    ] {
        let challenge = b.broker.begin_sign_in().challenge;
        let assertion = dipylon::broker::Assertion {
            user: user.clone(),
            ..key.get(&challenge, CONSOLE)
        };
        let signed_in = b.broker.finish_sign_in("console/sign-in", assertion).await;
        assert_eq!(signed_in.is_ok(), is_accepted, "{user:?}");
    }
}

/// A passkey whose backup eligibility changed is refused, and its holder is told to enrol again; no other caller learns it.
#[tokio::test]
async fn changed_backup_eligibility_asks_for_a_new_enrolment() {
    let (b, _, _, request, [key]) = pending_request_for(passkeys_alone(), ["maria"]).await;
    let session = b.sign_in(&key).await.expect("signed in");
    let changed = PasskeyBehaviour {
        backup_eligible: false,
        backed_up: false,
        ..PasskeyBehaviour::default()
    };
    let challenge = b.broker.begin_sign_in().challenge;
    let assertion = key.get_as(&challenge, CONSOLE, &changed);
    let forged = dipylon::broker::Assertion {
        signature: vec![1; 70],
        ..assertion.clone()
    };
    let refused_sign_in = b.broker.finish_sign_in("console/sign-in", forged).await;
    assert_eq!(refused(refused_sign_in), Reason::NotAuthenticated);
    let refusal = b.broker.finish_sign_in("console/sign-in", assertion).await;
    let refusal = refusal.expect_err("changed");
    assert_eq!(refusal.reason, Reason::PasskeyChanged);
    assert!(
        refusal.message.ends_with("enrol it again"),
        "{}",
        refusal.message
    );

    let begun = b
        .begin_vote_in_session(&session, request, approve())
        .await
        .expect("begun");
    let assertion = key.get_as(begun.challenge.as_bytes(), CONSOLE, &changed);
    let proof = dipylon::broker::VoteProof::Passkey(assertion);
    let vote = b
        .cast_vote_in_session(&session, request, &begun, proof)
        .await;
    assert_eq!(refused(vote), Reason::PasskeyChanged);
}
