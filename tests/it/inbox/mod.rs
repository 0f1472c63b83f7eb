//! Inbox: order, paging, the asks-per-minute queue, the watch; and that it shows exactly the requests open to votes.

mod votable_requests;

use std::collections::BTreeSet;
use std::time::Duration;

use dipylon::broker::{InboxEvent, InboxPage, InboxQuery, InboxWatch};
use dipylon::journal::FaultInjection;
use dipylon::state::InboxChangeKind;
use dipylon_sdk::model::*;

use crate::support::*;

const LIST: &str = "dipylon.v1.ApprovalService/ListAccessRequests";

const WATCH: &str = "dipylon.v1.ApprovalService/WatchAccessRequests";

/// The example with a second agent of another owner, and its own `[approvals]` limits.
fn env(asks_per_minute: u32) -> TestEnvironment {
    let mut env = TestEnvironment::with_high_risk();
    env.policy.get_mut("agents.toml").expect("agents").push_str(
        "\n[[agent]]\nid = \"hunter\"\nspiffe_id = \"spiffe://soc.example/agent/hunter\"\nowner = \"maria\"\nenvironment = \"prod\"\n\
         model = \"m\"\nautonomy = \"supervised\"\ngroups = [\"soc\"]\nactions = [\"case.read\", \"account.disable\", \"host.isolate\"]\n",
    );
    let people = env.policy.get_mut("people.toml").expect("people");
    *people = people.replace(
        "asks_per_minute = 100000",
        &format!(
            "asks_per_minute = {asks_per_minute}\npending_per_agent = 100\npending_per_owner = 200"
        ),
    );
    env
}

async fn broker(asks_per_minute: u32) -> TestBroker {
    start(env(asks_per_minute)).await
}

/// A broker whose approvers vote with passkeys.
async fn start(env: TestEnvironment) -> TestBroker {
    let b = TestBroker::start_with(env, FaultInjection::default()).await;
    b.enrol_voters(&["dana", "lee", "maria"]).await;
    b
}

fn isolate() -> Action {
    action("host.isolate", "Host", "web-1", IDP, &[])
}

fn page(b: &TestBroker, who: &str, ask: &InboxQuery) -> InboxPage {
    b.broker
        .inbox(&b.person_call(LIST, who), ask)
        .expect("reads")
}

fn first_page(b: &TestBroker, who: &str) -> InboxPage {
    page(b, who, &first_inbox_page())
}

fn ids(page: &InboxPage) -> Vec<AccessRequestId> {
    let id = |row: &dipylon::broker::InboxRow| row.access.request.opened.access_request;
    page.rows.iter().map(id).collect()
}

/// The rows of all pages, and the total of the first page.
fn all_pages(b: &TestBroker, who: &str, mine: bool, size: usize) -> (Vec<AccessRequestId>, usize) {
    let mut all = Vec::new();
    let mut after = None;
    let mut total = None;
    loop {
        let page = page(b, who, &InboxQuery { mine, size, after });
        assert!(page.rows.len() <= size);
        total.get_or_insert(page.total);
        all.extend(ids(&page));
        after = page.next;
        if after.is_none() {
            return (all, total.expect("a page"));
        }
    }
}

async fn pending(
    b: &TestBroker,
    agent: &TestAgent,
    task: TaskId,
    action: &Action,
    request: &str,
) -> AccessRequestId {
    let reply = b.request_token(agent, task, action, 300, request).await;
    reply.pending().access_request
}

#[tokio::test]
async fn ordered_by_risk_then_deadline_and_grouped() {
    let b = broker(1_000).await;
    let (triage, hunter) = (b.agent("triage"), b.agent("hunter"));
    let (triage_task, hunter_task) = (b.open_task(&triage).await, b.open_task(&hunter).await);
    let ann = pending(&b, &triage, triage_task, &disable("ann"), "r-1").await;
    b.manual_clock.advance_millis(1_000);
    let high = pending(&b, &triage, triage_task, &isolate(), "r-2").await;
    b.manual_clock.advance_millis(1_000);
    let cara = pending(&b, &hunter, hunter_task, &disable("cara"), "r-1").await;
    b.manual_clock.advance_millis(1_000);
    let same = pending(&b, &hunter, hunter_task, &disable("ann"), "r-2").await;
    b.manual_clock.advance_millis(1_000);
    let mut other_parameters = disable("ann");
    other_parameters
        .parameters
        .insert("end_sessions".to_owned(), Param::Bool(false));
    let other = pending(&b, &hunter, hunter_task, &other_parameters, "r-3").await;
    let again = pending(&b, &triage, triage_task, &disable("ann"), "r-3").await;
    assert_eq!(again, ann, "one action in one task is one access request");

    let lee = first_page(&b, "lee");
    // Adjacent and grouped are equal actions alone: not another target, nor another parameter.
    assert_eq!(ids(&lee), [high, ann, same, cara, other]);
    assert_eq!(
        (lee.total, lee.decidable, lee.queued, lee.next),
        (5, 5, 0, None)
    );
    let groups: Vec<_> = lee
        .groups
        .iter()
        .map(|g| (g.key.to_string(), g.title.as_str(), g.size))
        .collect();
    assert_eq!(
        groups,
        [(disable("ann").digest().to_string(), "Disable an account", 2)]
    );
    // Each has its own vote: approving one leaves the other.
    b.approve("lee", ann, "one-security").await;
    assert_eq!(
        ids(&first_page(&b, "lee")),
        [high, cara, same, other],
        "decided: no longer pending"
    );

    // The owner sees them, with the reason why they may not vote.
    let dana = first_page(&b, "dana");
    let why: Vec<_> = dana
        .rows
        .iter()
        .map(|row| row.vote.as_ref().map(Vec::len).map_err(ToString::to_string))
        .collect();
    assert_eq!(
        why,
        [
            Err(
                "owns an agent of the request, or owned it when its task or this access request was opened"
                    .to_owned()
            ),
            Ok(1),
            Ok(1),
            Ok(1)
        ]
    );
    let mine = page(
        &b,
        "dana",
        &InboxQuery {
            mine: true,
            ..first_inbox_page()
        },
    );
    assert_eq!(
        (ids(&mine), mine.total, mine.decidable),
        (vec![cara, same, other], 3, 3)
    );
    let olga = first_page(&b, "olga");
    assert!(olga.rows.iter().all(|row| row.vote.is_err()));
    assert_eq!((olga.rows.len(), olga.decidable), (4, 0));
    // Half of a quorum: the first approver has voted.
    b.approve("lee", high, "two-security").await;
    let lee = first_page(&b, "lee");
    assert_eq!(
        lee.rows[0].vote.as_ref().map_err(ToString::to_string),
        Err("has voted on this access request".to_owned())
    );
    assert_eq!(lee.rows[0].access.needs[0].approvers.len(), 1);
}

#[tokio::test]
async fn approved_request_returns_when_a_vote_lapses() {
    let b = broker(1_000).await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let ann = pending(&b, &triage, task, &disable("ann"), "r-1").await;
    let cara = pending(&b, &triage, task, &disable("cara"), "r-2").await;
    let waiting = || {
        let looks = ["maria", "olga"].map(|who| ids(&first_page(&b, who)));
        let [one, other] = looks.map(BTreeSet::from_iter);
        assert_eq!(one, other, "the same for every reader");
        one
    };
    assert_eq!(waiting(), [ann, cara].into());
    b.approve("lee", ann, "one-security").await;
    b.approve("maria", cara, "one-security").await;
    assert_eq!(waiting(), [].into());
    assert_eq!(waiting(), [].into(), "on the second read too");

    // Policy: an approver's vote lapses when they leave the group, and does not count again when they are back.
    let mut lee_left = b.env.policy_with("people.toml", |text| {
        text.replacen(IN_THE_GROUP, &IN_THE_GROUP.replace("\"security\"", ""), 1)
    });
    silence(&mut lee_left, "quorum-unreachable", "two-security");
    b.apply_policy(lee_left).await.expect("applied");
    assert_eq!(waiting(), [ann].into());
    b.apply_policy(b.env.policy.clone()).await.expect("applied");
    assert_eq!(waiting(), [ann].into());
    let voted = b.vote("lee", ann, "one-security", Verdict::Approve).await;
    assert_eq!(refused(voted), Reason::NotEligible, "opened before");
    b.approve("maria", ann, "one-security").await;
    assert_eq!(waiting(), [].into());
    // Key revocation.
    let other = b.try_open_task(&triage, "contain INC-8842", "open-2").await;
    let other = other.expect("opens").task.task;
    let later = pending(&b, &triage, other, &disable("ann"), "r-3").await;
    assert_eq!(waiting(), [later].into());
    b.approve("lee", later, "one-security").await;
    assert_eq!(waiting(), [].into());
    let call = b.person_call("dipylon.v1.ApprovalService/RevokeApproverKeys", "olga");
    let lee = PersonId::parse("lee").expect("id");
    let revoked = b
        .broker
        .revoke_approver_keys(&call, lee, Default::default())
        .await;
    revoked.expect("revoked");
    assert_eq!(waiting(), [later].into());
    // Expiry of the vote.
    b.manual_clock.advance_millis(599_000);
    assert_eq!(waiting(), [later].into());
    b.manual_clock.advance_millis(1_000);
    assert_eq!(waiting(), [ann, later, cara].into());
}

/// How `people.toml` has lee in the group that approves.
const IN_THE_GROUP: &str =
    "groups = [\"security\"]\nroles = [\"approver\"]\n\n[[person]]\nid = \"olga\"";

#[tokio::test]
async fn unrated_risk_is_listed_first() {
    let mut env = env(1_000);
    let schema = env.policy.get_mut("schema.cedarschema").expect("schema");
    *schema = schema.replace("@risk(\"medium\")\n", "");
    let people = env.policy.get_mut("people.toml").expect("people");
    *people = people.replace("method = \"key\"", "method = \"passkey\"");
    let b = start(env).await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let unrated = pending(&b, &triage, task, &disable("ann"), "r-1").await;
    b.manual_clock.advance_millis(1_000);
    let high = pending(&b, &triage, task, &isolate(), "r-2").await;
    assert_eq!(ids(&first_page(&b, "lee")), [unrated, high]);
}

#[tokio::test]
async fn pagination_is_stable_under_changes() {
    let b = broker(1_000).await;
    let triage = b.agent("triage");
    let mut opened = Vec::new();
    for n in 0..4 {
        let task = b
            .try_open_task(&triage, "x", &format!("open-{n}"))
            .await
            .expect("opens")
            .task
            .task;
        for (account, request) in [("ann", "r-1"), ("cara", "r-2")] {
            opened.push(pending(&b, &triage, task, &disable(account), request).await);
            // Each with its own deadline: listed in the order of arrival.
            b.manual_clock.advance_millis(500);
        }
    }
    for size in [1, 3, 8, 100] {
        let (all, total) = all_pages(&b, "lee", true, size);
        assert_eq!((all.len(), total), (8, 8), "{size}");
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 8, "{size}");
    }
    // The last row of the page is gone and another was inserted before it: the next page continues correctly.
    let first = page(
        &b,
        "lee",
        &InboxQuery {
            mine: true,
            size: 3,
            after: None,
        },
    );
    let task = b
        .try_open_task(&triage, "x", "open-9")
        .await
        .expect("opens")
        .task
        .task;
    let high = pending(&b, &triage, task, &isolate(), "r-1").await;
    b.vote("lee", opened[2], "one-security", Verdict::Deny)
        .await
        .expect("counts");
    let second = page(
        &b,
        "lee",
        &InboxQuery {
            mine: true,
            size: 100,
            after: first.next,
        },
    );
    // In the order of deadlines, but for equal actions, which are adjacent.
    let rest: BTreeSet<_> = ids(&second).into_iter().collect();
    assert_eq!(rest, opened[3..].iter().copied().collect());
    assert_eq!(second.total, 8);
    assert_eq!(ids(&first_page(&b, "lee"))[0], high);
}

#[tokio::test]
async fn asks_per_minute_queues_the_rest() {
    let b = broker(2).await;
    let triage = b.agent("triage");
    let mut opened = Vec::new();
    for n in 0..5 {
        let task = b
            .try_open_task(&triage, "x", &format!("open-{n}"))
            .await
            .expect("opens")
            .task
            .task;
        opened.push((
            task,
            pending(&b, &triage, task, &disable("ann"), "r-1").await,
        ));
        b.manual_clock.advance_millis(100);
    }
    let (task, high) = {
        let task = b
            .try_open_task(&triage, "x", "open-9")
            .await
            .expect("opens")
            .task
            .task;
        (task, pending(&b, &triage, task, &isolate(), "r-1").await)
    };
    let lee = first_page(&b, "lee");
    assert_eq!(
        ids(&lee),
        [high, opened[0].1],
        "highest risk, then nearest deadline"
    );
    assert_eq!((lee.total, lee.decidable, lee.queued), (2, 2, 4));
    assert_eq!(
        ids(&first_page(&b, "lee")),
        ids(&lee),
        "reading again shows no more"
    );
    // The queue is per approver; a reader who cannot vote sees all.
    assert_eq!(first_page(&b, "maria").queued, 4);
    assert_eq!(
        (first_page(&b, "olga").total, first_page(&b, "olga").queued),
        (6, 0)
    );
    // A decision frees no slot within the minute.
    b.approve("lee", opened[0].1, "one-security").await;
    assert_eq!(
        (ids(&first_page(&b, "lee")), first_page(&b, "lee").queued),
        (vec![high], 4)
    );
    // A queued request is still pending, and reachable by its id.
    let queued = opened[4];
    let still = b
        .request_token(&triage, queued.0, &disable("ann"), 300, "r-1")
        .await
        .pending();
    assert_eq!(still.access_request, queued.1);
    b.approve("lee", queued.1, "one-security").await;
    b.request_token(&triage, queued.0, &disable("ann"), 300, "r-1")
        .await
        .token();
    b.request_token(&triage, task, &isolate(), 300, "r-1")
        .await
        .pending();

    b.manual_clock.advance_millis(60_000);
    let lee = first_page(&b, "lee");
    assert_eq!(ids(&lee), [high, opened[1].1, opened[2].1]);
    assert_eq!(lee.queued, 1);
    b.manual_clock.advance_millis(59_999);
    assert_eq!(first_page(&b, "lee").queued, 1);
    b.manual_clock.advance_millis(1);
    assert_eq!(first_page(&b, "lee").queued, 0);
}

fn watch(b: &TestBroker, after: Option<JournalPosition>) -> InboxWatch {
    let call = b.person_call(WATCH, "lee");
    b.broker.inbox_changes(&call, after).expect("watches")
}

async fn changed(
    b: &TestBroker,
    watch: &mut InboxWatch,
) -> (InboxChangeKind, Vec<AccessRequestId>, JournalPosition) {
    match tokio::time::timeout(Duration::from_secs(20), watch.next(&b.broker)).await {
        Ok(Some(InboxEvent::Changed(change))) => {
            let at = JournalPosition {
                epoch: change.epoch,
                index: change.index,
            };
            (change.kind, change.ids.clone(), at)
        }
        other => panic!("not a change: {other:?}"),
    }
}

#[tokio::test]
async fn inbox_watch_resumes_after_restart() {
    let b = broker(1_000).await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let mut events = watch(&b, None);
    let Some(InboxEvent::Snapshot(start)) = events.next(&b.broker).await else {
        panic!("a snapshot comes first")
    };
    let ann = pending(&b, &triage, task, &disable("ann"), "r-1").await;
    let high = pending(&b, &triage, task, &isolate(), "r-2").await;
    b.approve("lee", high, "two-security").await;
    b.vote("maria", ann, "one-security", Verdict::Deny)
        .await
        .expect("counts");
    let cara = pending(&b, &triage, task, &disable("cara"), "r-3").await;
    b.complete_task(&triage, task).await.expect("ends");
    let mut changes = Vec::new();
    for _ in 0..6 {
        changes.push(changed(&b, &mut events).await);
    }
    let kinds: Vec<_> = changes
        .iter()
        .map(|(what, ids, _)| (*what, ids.clone()))
        .collect();
    assert_eq!(
        kinds,
        [
            (InboxChangeKind::Opened, vec![ann]),
            (InboxChangeKind::Opened, vec![high]),
            (InboxChangeKind::Voted, vec![high]),
            (InboxChangeKind::Closed, vec![ann]),
            (InboxChangeKind::Opened, vec![cara]),
            (InboxChangeKind::Closed, vec![high, cara]),
        ]
    );
    b.apply_policy(
        b.env
            .policy_with("rules/20-guardrails.cedar", |t| format!("{t}\n// v2\n")),
    )
    .await
    .expect("applies");
    assert_eq!(changed(&b, &mut events).await.0, InboxChangeKind::Rules);

    // After a restart a watcher with a position gets the rest, and others get a snapshot.
    let b = b.restart(FaultInjection::default()).await;
    let mut again = watch(&b, Some(changes[3].2));
    assert_eq!(changed(&b, &mut again).await, changes[4]);
    assert_eq!(changed(&b, &mut again).await, changes[5]);
    for position in [
        JournalPosition {
            epoch: start.epoch + 1,
            ..start
        },
        JournalPosition {
            index: 1_000_000,
            ..start
        },
    ] {
        let event = watch(&b, Some(position)).next(&b.broker).await;
        assert!(
            matches!(event, Some(InboxEvent::Snapshot(_))),
            "{position:?}"
        );
    }
    let mut quiet = watch(&b, None);
    let (first, second) = (quiet.next(&b.broker).await, quiet.next(&b.broker).await);
    assert!(matches!(
        (first, second),
        (
            Some(InboxEvent::Snapshot(_)),
            Some(InboxEvent::Heartbeat(_))
        )
    ));
    // A person removed by policy gets no more changes.
    b.apply_policy(b.env.policy_with("people.toml", |t| {
        let renamed = t.replace("id = \"lee\"", "id = \"lou\"");
        let without_key = |piece: &&str| !piece.contains("of = \"lee\"");
        let pieces: Vec<_> = renamed.split("[[key]]").filter(without_key).collect();
        pieces.join("[[key]]")
    }))
    .await
    .expect("applies");
    assert!(quiet.next(&b.broker).await.is_none());
}
