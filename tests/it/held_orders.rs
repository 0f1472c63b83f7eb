//! Orders that the journal does not take at once: each is enforced, and recorded under an author who may still give it; and ends that
//! time, a freeze or a bundle overtakes between the decision and its entry.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dipylon::broker::*;
use dipylon::journal::FaultInjection;
use dipylon::state::StoredStatus;
use dipylon_sdk::model::*;
use tokio::sync::oneshot;

use crate::hung_disk::HungDisk;
use crate::orders::*;
use crate::support::wait::until;
use crate::support::*;

const FREEZE: &str = "dipylon.v1.GovernanceService/Freeze";

/// The example's people, of whom these are operators.
fn operators(b: &TestBroker, operators: &[&str]) -> std::collections::BTreeMap<String, String> {
    b.env.policy_with("people.toml", |text| {
        let mut text = text.replace("roles = [\"operator\"]", "roles = [\"approver\"]");
        // One operator alone changes the rules here.
        text.push_str("\n[changes]\nagree = \"nobody\"\n");
        for id in operators {
            let start = text.find(&format!("id = \"{id}\"")).expect("listed");
            let roles = start + text[start..].find("roles = [").expect("roles");
            text.insert_str(roles + "roles = [".len(), "\"operator\", ");
        }
        text
    })
}

async fn apply_as(b: &TestBroker, by: &str, files: std::collections::BTreeMap<String, String>) {
    let call = b.person_call(APPLY, by);
    let operator = b.broker.authenticate_person(&call).expect("an operator");
    let applied = b
        .broker
        .apply_policy_bundle(&call, operator, files, Default::default(), None)
        .await;
    assert!(applied.expect("applied").changed);
}

async fn freeze_as(b: &TestBroker, by: &str, scope: &str) -> Result<FreezeSummary, Refusal> {
    let reason = UntrustedText::parse("reason", &format!("the reason of {by}")).expect("text");
    let scope = FreezeScope::parse(scope).expect("scope");
    let call = b.person_call(FREEZE, by);
    b.broker.freeze(&call, scope, Some(reason)).await
}

fn assert_held(answer: Result<FreezeSummary, Refusal>) {
    let message = answer.expect_err("not recorded").message;
    assert!(message.contains("enforced on this broker now"), "{message}");
}

/// The author of a freeze in force, and the reason that they gave.
fn author(b: &TestBroker, scope: &str) -> Option<(String, String)> {
    let scope = FreezeScope::parse(scope).expect("scope");
    let frozen = b.broker.show().freeze(&scope)?;
    let reason = frozen.reason.expect("a reason").as_str().to_owned();
    Some((frozen.by.to_string(), reason))
}

fn full_disk() -> (Arc<AtomicBool>, FaultInjection) {
    let full = Arc::<AtomicBool>::default();
    let faults = FaultInjection {
        disk_full: Some(full.clone()),
        ..FaultInjection::default()
    };
    (full, faults)
}

/// Two operators order the same freeze while the disk is full; the first is none any more when it recovers. An order that is given
/// while maintenance drops the first one's is kept as well, and one that is repeated counts once.
#[tokio::test]
async fn an_order_is_recorded_under_an_author_who_may_give_it() {
    let (full, faults) = full_disk();
    let (b, between) = start_with(faults).await;
    let lees = || Some(("lee".to_owned(), "the reason of lee".to_owned()));
    for meanwhile in [false, true] {
        if meanwhile {
            b.broker.maintenance_tick().await.expect("upkeep");
            let lifted = FreezeScope::parse("action/case.read").expect("scope");
            let call = b.person_call("dipylon.v1.GovernanceService/Unfreeze", "lee");
            b.broker.unfreeze(&call, lifted).await.expect("lifted");
            apply_as(&b, "lee", operators(&b, &["olga", "lee"])).await;
        } else {
            b.apply_policy(operators(&b, &["olga", "lee"]))
                .await
                .expect("applied");
        }
        full.store(true, Ordering::SeqCst);
        for _ in 0..3 {
            assert_held(freeze_as(&b, "olga", "action/case.read").await);
        }
        if meanwhile {
            let call = b.person_call("dipylon.v1.GovernanceService/SuspendAgent", "lee");
            let reporter = AgentId::parse("reporter").expect("id");
            refused(b.broker.suspend_agent(&call, reporter, None).await);
            let (full, broker) = (full.clone(), Arc::clone(&b));
            // While the suspension is recorded, after the tick has found olga's order alone.
            between.set("maintenance", async move {
                full.store(true, Ordering::SeqCst);
                assert_held(freeze_as(&broker, "lee", "action/case.read").await);
                full.store(false, Ordering::SeqCst);
            });
        } else {
            assert_held(freeze_as(&b, "lee", "action/case.read").await);
        }
        assert_eq!(b.broker.pending_revocations(), 1 + usize::from(meanwhile));
        full.store(false, Ordering::SeqCst);
        apply_as(&b, "lee", operators(&b, &["lee"])).await;
        b.broker.maintenance_tick().await.expect("upkeep");
        assert!(between.is_spent());
        if meanwhile {
            assert_eq!(b.broker.pending_revocations(), 1, "lee's is not lost");
            assert_eq!(author(&b, "action/case.read"), None);
            b.broker.maintenance_tick().await.expect("upkeep");
        }
        assert_eq!(author(&b, "action/case.read"), lees());
        assert_eq!(b.broker.pending_revocations(), 0);
    }
    b.check_invariants();
}

/// Without an author who may give it an order is dropped.
#[tokio::test]
async fn an_order_without_an_author_is_dropped() {
    let (full, faults) = full_disk();
    let (b, _) = start_with(faults).await;
    b.apply_policy(operators(&b, &["olga", "lee"]))
        .await
        .expect("applied");
    full.store(true, Ordering::SeqCst);
    assert_held(freeze_as(&b, "olga", "all").await);
    full.store(false, Ordering::SeqCst);
    apply_as(&b, "lee", operators(&b, &["lee"])).await;
    b.broker.maintenance_tick().await.expect("upkeep");
    assert_eq!(b.broker.pending_revocations(), 0);
    assert!(b.broker.show().freezes().is_empty());
}

/// An order that loses two rounds, and then has no time left to queue behind an apply.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_that_lost_its_rounds_is_held() {
    let faults = FaultInjection {
        append_time_max: Some(Duration::from_secs(1)),
        ..FaultInjection::default()
    };
    let (b, between) = start_with(faults).await;
    let (queued, is_queued) = oneshot::channel::<()>();
    let (release, released) = oneshot::channel::<()>();
    between.set(APPLY, async move {
        queued.send(()).expect("a test");
        let _released = released.await;
    });
    let applying = Arc::clone(&b);
    let files = operators(&b, &["olga", "lee"]);
    let applying = tokio::spawn(async move { applying.apply_policy(files).await });
    is_queued.await.expect("the apply has the queue");
    for _ in 0..2 {
        let broker = Arc::clone(&b);
        between.set(FREEZE, async move {
            let _key = broker.enrol("olga").await;
        });
    }
    let refusal = freeze_as(&b, "olga", "all")
        .await
        .expect_err("no time left");
    assert_eq!(refusal.reason, Reason::Overloaded);
    assert!(
        refusal.message.contains("enforced on this broker now"),
        "{refusal}"
    );
    assert!(between.is_spent(), "it lost two rounds");
    assert_eq!(b.broker.pending_revocations(), 1);
    release.send(()).expect("an apply");
    let _refused = applying.await.expect("answers");
    b.broker.maintenance_tick().await.expect("upkeep");
    assert_eq!(b.broker.pending_revocations(), 0);
    assert!(author(&b, "all").is_some());
}

/// A lease or token that lapses between an order's last read and its entry has lapsed.
#[tokio::test]
async fn what_lapsed_before_its_entry_has_lapsed() {
    let (b, between) = start().await;
    let agent = b.agent("triage");
    for by_agent in [true, false] {
        let key = format!("{by_agent}");
        let opened = b.open_task_with(&agent, "work", &key, Some(60)).await;
        let task = opened.expect("opens").task.task;
        let clock = b.manual_clock.clone();
        let method = match by_agent {
            true => "dipylon.v1.TaskService/CompleteTask",
            false => END_TASK,
        };
        between.set(method, async move { clock.advance_millis(60_000) });
        let report = match by_agent {
            true => b.complete_task(&agent, task).await,
            false => end_task(&b, task).await,
        };
        assert_eq!(report.expect("ended").cause, EndCause::Lease, "{method}");
        assert!(between.is_spent());
    }
    let task = b.open_task(&agent).await;
    let read = b
        .request_token(&agent, task, &read_case(), 60, "read")
        .await;
    let clock = b.manual_clock.clone();
    let method = "dipylon.v1.TokenService/RevokeToken";
    between.set(method, async move { clock.advance_millis(61_000) });
    let revoked = b.revoke(read.token().issued.jti).await.expect("answers");
    assert_eq!(
        (revoked.changed, revoked.cause),
        (false, EndCause::Deadline)
    );
    assert!(between.is_spent());
    b.check_invariants();
}

/// The end of a task overtakes the entry that says that its access request has expired: the other requests expire all the same.
#[tokio::test]
async fn one_request_keeps_no_other_from_expiring() {
    let (b, between) = start().await;
    let (first, second) = (b.agent("triage"), b.agent("triage"));
    let mut requests = Vec::new();
    let mut tasks = Vec::new();
    for (agent, key, target) in [(&first, "a", "ann"), (&second, "b", "ann")] {
        let task = b.try_open_task(agent, "work", key).await.expect("opens");
        let task = task.task.task;
        let ask = b
            .request_token(agent, task, &disable(target), 120, "ask")
            .await;
        requests.push(ask.pending().access_request);
        tasks.push(task);
    }
    b.manual_clock.advance_millis(1_000_000);
    let (broker, ended) = (Arc::clone(&b), tasks[0]);
    between.set("maintenance", async move {
        end_task(&broker, ended).await.expect("ended");
    });
    b.broker.maintenance_tick().await.expect("no illegal entry");
    assert!(between.is_spent());
    let status = |id| b.broker.show().access_request(id).expect("known").status;
    assert_eq!(
        status(&requests[1]),
        StoredStatus::Closed(CloseCause::Expired)
    );
    b.check_invariants();
}

/// A bundle whose apply had no answer comes in force while the next one is on its way: what it disallows is ended first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bundle_is_swept_before_the_next_one() {
    let (disk, faults) = HungDisk::new(Some(Duration::from_millis(1_500)));
    let (b, between) = start_with(faults).await;
    let agent = b.agent("triage");
    let task = b.open_task(&agent).await;
    disk.hang();
    let without = b.env.policy_with("agents.toml", |text| {
        text.replace("agent/triage\"", "agent/other\"")
    });
    let unanswered = b.apply_policy(without).await.expect_err("no answer");
    assert_eq!(unanswered.reason, Reason::OutcomeUnknown);
    let before = b.broker.show().version(&Stream::Policy);
    let broker = Arc::clone(&b);
    between.set(APPLY, async move {
        drop(disk);
        let show = || broker.broker.show();
        until("it is in force", || {
            show().version(&Stream::Policy) > before
        })
        .await;
    });
    let with = b
        .env
        .policy_with("agents.toml", |text| format!("{text}\n# 2\n"));
    assert!(b.apply_policy(with).await.expect("applied").changed);
    assert!(between.is_spent());
    let ended = b.broker.show().task(&task).expect("known").ended;
    assert_eq!(ended.map(|ended| ended.cause), Some(EndCause::Policy));
    b.check_invariants();
}

/// What a repeated order answers does not change with freezes and ends that come after it; a freeze that never was is not lifted.
#[tokio::test]
async fn a_repeated_answer_is_the_same() {
    let (b, _) = start().await;
    let never = b
        .unfreeze("action/case.read")
        .await
        .expect_err("never frozen");
    assert_eq!(never.reason, Reason::NotFound);
    assert!(never.message.contains("was never frozen"), "{never}");
    let never = b.resume("triage").await.expect_err("never suspended");
    assert_eq!(never.reason, Reason::NotFound);

    let agent = b.agent("triage");
    let task = b.open_task(&agent).await;
    let read = b
        .request_token(&agent, task, &read_case(), 300, "read")
        .await;
    let jti = read.token().issued.jti;
    let first = b.freeze("action/case.read").await.expect("frozen").index;
    let lifted = b.unfreeze("action/case.read").await.expect("lifted");
    assert_eq!(b.unfreeze("action/case.read").await.expect("again"), lifted);
    let expected = TokenRevoked {
        changed: false,
        cause: EndCause::Frozen,
        index: Some(first),
    };
    assert_eq!(b.revoke(jti).await.expect("answers"), expected);
    for _ in 0..2 {
        let report = b.complete_task(&agent, task).await.expect("ended");
        assert_eq!((report.tokens.len(), report.revoked), (1, 0));
        assert_eq!(b.revoke(jti).await.expect("answers"), expected);
        let _changed = b.freeze("action/case.read").await.expect("frozen");
    }
    b.check_invariants();
}
