//! A voter who is dropped, loses the role, or whose key is revoked, between the last read of a vote or a mint and its append: after the
//! acknowledgement no token rests on the vote.

use std::sync::Arc;

use dipylon_sdk::model::*;

use crate::support::passkey_votes::approve;
use crate::support::rounds::Rounds;
use crate::support::*;

const CAST: &str = "dipylon.v1.ApprovalService/CastVote";
const REQUEST: &str = "dipylon.v1.TaskService/RequestToken";
const APPLY: &str = "dipylon.v1.GovernanceService/ApplyPolicyBundle";
const ENROL: &str = crate::support::passkey_votes::ENROL;

/// What ends the vote of lee.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Revoked,
    Dropped,
    DroppedAndReturned,
    RoleTaken,
    RoleTakenAndGiven,
}

const ENDS: [End; 5] = [
    End::Revoked,
    End::Dropped,
    End::DroppedAndReturned,
    End::RoleTaken,
    End::RoleTakenAndGiven,
];

impl End {
    /// Whether the keys live again.
    const fn is_undone(self) -> bool {
        matches!(self, Self::DroppedAndReturned | Self::RoleTakenAndGiven)
    }

    /// To its acknowledgement.
    async fn run(self, b: &TestBroker) {
        let apply = async |files, returning: &[&str]| {
            b.apply_returning(files, returning)
                .await
                .expect("acknowledged");
        };
        match self {
            Self::Revoked => {
                let revoked = b.revoke_keys_of("lee", None).await;
                assert!(revoked.expect("acknowledged") > 0);
            }
            Self::Dropped => apply(b.env.without_person("lee"), &[]).await,
            Self::DroppedAndReturned => {
                apply(b.env.without_person("lee"), &[]).await;
                apply(b.env.policy.clone(), &["lee"]).await;
            }
            Self::RoleTaken => apply(b.env.without_role("lee"), &[]).await,
            Self::RoleTakenAndGiven => {
                apply(b.env.without_role("lee"), &[]).await;
                apply(b.env.policy.clone(), &["lee"]).await;
            }
        }
    }
}

/// By lee's key and by lee's passkey; the end comes during the vote, or during the mint that rests on it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_token_rests_on_a_vote_that_ended() {
    for end in ENDS {
        for method in [CAST, REQUEST] {
            let rounds = Rounds::default();
            let b = TestBroker::start_with(TestEnvironment::new(), rounds.faults()).await;
            let b = Arc::new(b);
            let triage = b.agent("triage");
            let task = b.open_task(&triage).await;
            let passkey = b.enrol("lee").await;
            let session = b.sign_in(&passkey).await.expect("signed in");
            let ask = async |account: &'static str| {
                b.request_token(&triage, task, &disable(account), 300, account)
                    .await
            };
            let by_key = ask("ann").await.pending().access_request;
            let by_passkey = ask("cara").await.pending().access_request;
            let vote_by_key = async || {
                b.vote("lee", by_key, "one-security", Verdict::Approve)
                    .await
            };
            let vote_by_passkey = async || {
                b.vote_in_session(&session, &passkey, by_passkey, approve())
                    .await
            };
            if method == REQUEST {
                vote_by_key().await.expect("counts");
                vote_by_passkey().await.expect("counts");
            }
            let other = b.clone();
            rounds.interpose(method, async move { end.run(&other).await });
            let case = format!("{end:?} before the append of {method}");
            if method == CAST {
                // The first is on its way, the second begins after it.
                let first = vote_by_passkey().await;
                assert!(rounds.is_spent(), "{case}");
                vote_by_passkey().await.expect_err(&case);
                // A passkey that lives again votes on later requests.
                assert!(first.is_err(), "{case}: {first:?}");
            }
            ask("cara").await.pending();
            assert!(rounds.is_spent(), "{case}");
            // The vote by the key is from before, or there is none.
            ask("ann").await.pending();
            b.check_invariants();
        }
    }
}

/// A vote by a key that is on its way: another person than the one who begins to vote, or none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vote_by_a_key_on_its_way_does_not_count_after_the_end() {
    for end in ENDS {
        let rounds = Rounds::default();
        let b = Arc::new(TestBroker::start_with(TestEnvironment::new(), rounds.faults()).await);
        let triage = b.agent("triage");
        let task = b.open_task(&triage).await;
        let ask = async || {
            b.request_token(&triage, task, &disable("ann"), 300, "ann")
                .await
        };
        let id = ask().await.pending().access_request;
        let other = b.clone();
        rounds.interpose(CAST, async move { end.run(&other).await });
        let voted = b.vote("lee", id, "one-security", Verdict::Approve).await;
        assert!(rounds.is_spent(), "{end:?}");
        // Lee's key lives after a return: the call is decided anew, and lee votes on later requests.
        let refusal = voted.expect_err("too late");
        let is_late = refusal.message.contains("after the access request");
        assert_eq!(is_late, end.is_undone(), "{end:?}: {}", refusal.message);
        ask().await.pending();
        b.check_invariants();
    }
}

/// An enrolment that is on its way when its person is dropped enrols nothing, also where the person returns.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn enrolment_on_its_way_ends_with_its_person() {
    for end in ENDS {
        let rounds = Rounds::default();
        let b = Arc::new(TestBroker::start_with(TestEnvironment::new(), rounds.faults()).await);
        let code = b.invite("lee").await;
        let other = b.clone();
        rounds.interpose(ENROL, async move { end.run(&other).await });
        let enrolled = b.enrol_with(&code, &Default::default()).await;
        assert!(rounds.is_spent(), "{end:?}");
        let reason = enrolled.map(drop).map_err(|e| e.reason);
        assert_eq!(reason, Err(Reason::InvalidInvitation), "{end:?}");
        b.check_invariants();
    }
}

/// An apply that was read before a key became another's, or died, is decided anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn apply_on_its_way_registers_no_key_that_became_anothers() {
    let rounds = Rounds::default();
    let b = Arc::new(TestBroker::start_with(TestEnvironment::new(), rounds.faults()).await);
    let key = Arc::new(own_key::OwnKey::generate());
    let files = b.env.policy_with("people.toml", |text| {
        format!("{text}{}", key.negated().row("dana"))
    });
    let (other, enrolled) = (b.clone(), key.clone());
    rounds.interpose(APPLY, async move {
        other.enrol_key("lee", &enrolled).await.expect("enrolled");
    });
    let applied = b.apply_policy(files).await;
    assert!(rounds.is_spent());
    assert_eq!(refused(applied), Reason::InvalidPolicyBundle);
    // And a bundle with a key of a person who returns, revoked meanwhile: the key stays dead.
    b.apply_policy(b.env.without_person("lee"))
        .await
        .expect("in force");
    let other = b.clone();
    rounds.interpose(APPLY, async move {
        let revoked = other.revoke_keys_of("lee", None).await;
        assert_eq!(revoked.expect("acknowledged"), 1, "and every other");
    });
    let applied = b
        .apply_returning(b.env.policy.clone(), &["lee"])
        .await
        .expect("in force");
    assert!(rounds.is_spent());
    assert!(
        applied.people[0].starts_with("lee returns: 0 passkeys"),
        "{:?}",
        applied.people
    );
    assert!(
        applied.warnings.concat().contains("is dead"),
        "{:?}",
        applied.warnings
    );
    b.check_invariants();
}
