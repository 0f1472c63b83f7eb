//! A task that was opened before its agent changed hands: a freeze of the owner it was opened under and one of today's owner both end it.

use std::sync::Arc;

use dipylon::broker::AccessRequestStatus;
use dipylon_sdk::model::*;

use crate::support::rounds::Rounds;
use crate::support::*;

const REQUEST_TOKEN: &str = "dipylon.v1.TaskService/RequestToken";

/// The freeze comes first, or between the last read of a mint and its append.
#[tokio::test]
async fn freeze_of_either_owner_ends_a_task_from_before_the_hand_over() {
    for (frozen, in_flight) in [
        ("owner/dana", true),
        ("owner/dana", false),
        ("owner/lee", true),
        ("owner/lee", false),
    ] {
        let case = format!("{frozen}, in flight: {in_flight}");
        let rounds = Rounds::default();
        let b = TestBroker::start_with(TestEnvironment::new(), rounds.faults()).await;
        let b = Arc::new(b);
        let triage = b.agent("triage");
        let task = b.open_task(&triage).await;
        let ask = async |action: &Action, key: &str| {
            b.request_token(&triage, task, action, 300, key).await
        };
        let read = ask(&read_case(), "read").await.token();
        let waiting = ask(&disable("ann"), "ann").await.pending().access_request;
        let approved = ask(&disable("cara"), "cara").await.pending().access_request;
        b.approve("maria", approved, "one-security").await;
        let files = b.env.policy_with("agents.toml", |text| {
            text.replacen("owner = \"dana\"", "owner = \"lee\"", 1)
        });
        b.apply_policy(files).await.expect("handed over");
        let (_, before) = b.broker.show().position();

        if in_flight {
            let other = Arc::clone(&b);
            rounds.interpose(REQUEST_TOKEN, async move {
                assert!(other.freeze(frozen).await.expect("acknowledged").changed);
            });
        } else {
            let summary = b.freeze(frozen).await.expect("acknowledged");
            let ended = (summary.tasks, summary.tokens, summary.access_requests);
            assert_eq!(ended, (1, 1, 2), "{case}");
        }
        // By rules, by votes, again, and by an access request that waits.
        for (action, key) in [
            (disable("cara"), "cara"),
            (read_case(), "read-2"),
            (read_case(), "read"),
            (disable("ann"), "ann"),
        ] {
            let late = refused(ask(&action, key).await);
            assert_eq!(late, Reason::TaskEnded, "{case}: {key}");
        }
        assert!(rounds.is_spent(), "{case}");
        assert!(!b.introspect("cases", &read.token).await, "{case}");
        for id in [waiting, approved] {
            let call = b.person_call("dipylon.v1.ApprovalService/GetCard", "maria");
            let view = b.broker.view_of(&call, &id).expect("known");
            assert_eq!(view.status, AccessRequestStatus::Ended, "{case}");
        }
        let (events, _, last) = b.broker.feed_after(Some(before));
        let selectors: Vec<_> = events.iter().map(|event| &event.selector).collect();
        let names_the_task = format!("{selectors:?}");
        assert!(
            names_the_task.contains("triage") || names_the_task.contains(&task.to_string()),
            "{case}: {names_the_task}"
        );
        assert_eq!(last, Some(before + 1), "{case}: one entry ends it");

        // Nothing is left to do, now or when its time comes.
        for _ in 0..2 {
            b.broker.maintenance_tick().await.expect("no error");
            assert_eq!(b.broker.show().position().1, before + 1, "{case}");
            b.manual_clock.advance_millis(4_000_000);
        }
        b.check_invariants();
    }
}
