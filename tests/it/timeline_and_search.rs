//! Task timelines and journal search: what they show, to which callers, and how far one page goes.

use dipylon::broker::{SEARCH_SCAN_MAX, SearchPage, TaskTimeline, TimelineEvent};
use dipylon::journal::{Append, FaultInjection, Journal};
use dipylon_sdk::model::*;

use crate::support::agent_in_task::{AgentInTask, GOVERNANCE, full_life};
use crate::support::*;

async fn timeline(b: &TestBroker, who: &str, task: TaskId) -> Result<TaskTimeline, Reason> {
    let call = b.person_call(&format!("{GOVERNANCE}/GetTimeline"), who);
    let read = b.broker.timeline(&call, task).await;
    read.map_err(|refusal| refusal.reason)
}

pub async fn search(b: &TestBroker, query: &str, below: Option<u64>) -> SearchPage {
    let call = b.person_call(&format!("{GOVERNANCE}/SearchJournal"), "audit");
    let found = b.broker.search(&call, query, below).await;
    found.expect("may search")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn timeline_covers_the_whole_task() {
    let b = TestBroker::start().await;
    let agent_in_task = full_life(&b).await;
    let read = timeline(&b, "olga", agent_in_task.task)
        .await
        .expect("may read");
    let rows: Vec<_> = read
        .events
        .iter()
        .map(|m| (m.what, m.who.as_str()))
        .collect();
    assert_eq!(
        rows,
        [
            ("evidence verified", "spiffe://soc.example/agent/triage"),
            ("task opened", "triage"),
            ("approval requested", "triage"),
            ("vote rejected", "dana"),
            ("vote: approve", "maria"),
            ("token issued", "triage"),
            ("token used", "idp"),
            ("token issued", "triage"),
            ("token revoked", "olga"),
            ("token issued", "triage"),
            ("token expired", "broker"),
            ("token expired", "broker"),
            ("task ended", "broker"),
        ]
    );
    assert_eq!((read.ended, read.left_out), (Some(EndCause::Completed), 0));
    assert_eq!(
        (read.agent.as_str(), read.owner.as_str()),
        ("triage", "dana")
    );
    let issued = read.events.iter().find(|m| m.what == "token issued");
    let issued = issued.expect("one");
    assert_eq!(
        issued.detail,
        "account.disable on Account::ann for 1m, approved under one-security"
    );
    assert!(issued.ids[0].starts_with("tok_") && issued.ids[2].starts_with("areq_"));
    for moment in &read.events {
        let stored = moment.index.map(|index| b.broker.journal().entry(index));
        let stored = stored.map(|read| read.expect("readable").expect("there"));
        assert!(stored.is_none_or(|s| s.text.contains(&format!("\"kind\":\"{}\"", moment.kind))));
    }
    // After a restart it reads the same.
    let b = b.restart(FaultInjection::default()).await;
    let again = timeline(&b, "audit", agent_in_task.task)
        .await
        .expect("may read");
    assert_eq!(again.events, read.events);
    // A freeze ends it with its own entry.
    let frozen = AgentInTask::new(&b, "reporter").await;
    b.freeze("owner/maria").await.expect("frozen");
    let read = timeline(&b, "olga", frozen.task).await.expect("may read");
    assert_eq!(read.events.last().map(|m| m.what), Some("frozen"));
    assert_eq!(read.ended, Some(EndCause::Frozen));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn timeline_is_visible_to_asked_approvers_only() {
    let b = TestBroker::start().await;
    let mut agent_in_task = AgentInTask::new(&b, "triage").await;
    let unknown = TaskId::from_random([7; 16]);
    assert_eq!(
        timeline(&b, "maria", unknown).await.err(),
        Some(Reason::NotFound)
    );
    assert_eq!(
        timeline(&b, "maria", agent_in_task.task).await.err(),
        Some(Reason::NotFound),
        "no approver was asked yet"
    );
    timeline(&b, "olga", agent_in_task.task)
        .await
        .expect("operators see all");
    agent_in_task.pending(&b, &disable("ann")).await;
    timeline(&b, "maria", agent_in_task.task)
        .await
        .expect("asked");
    let elsewhere = |text: &str| {
        text.replacen(
            "name = \"Maria Moreau\"\ngroups = [\"security\"]",
            "name = \"Maria Moreau\"\ngroups = []",
            1,
        )
    };
    let mut files = b.env.policy_with("people.toml", elsewhere);
    silence(&mut files, "quorum-unreachable", "two-security");
    b.apply_policy(files).await.expect("in force");
    assert_eq!(
        timeline(&b, "maria", agent_in_task.task).await.err(),
        Some(Reason::NotFound),
        "other approvers were asked"
    );
    timeline(&b, "lee", agent_in_task.task)
        .await
        .expect("asked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn search_matches_whole_words() {
    let b = TestBroker::start().await;
    let agent_in_task = full_life(&b).await;
    let kinds = |found: &SearchPage| found.events.iter().map(|m| m.kind).collect::<Vec<_>>();
    assert_eq!(kinds(&search(&b, "maria", None).await), ["VoteCast"]);
    assert_eq!(kinds(&search(&b, "votecast", None).await), ["VoteCast"]);
    assert_eq!(
        kinds(&search(&b, "Account::ann", None).await),
        ["TokenIssued", "AccessRequestOpened"]
    );
    assert_eq!(
        kinds(&search(&b, "account.disable", None).await),
        ["TokenIssued", "AccessRequestOpened"]
    );
    let of_task = search(&b, &agent_in_task.task.to_string(), None).await;
    assert_eq!(of_task.events.first().map(|m| m.kind), Some("TaskEnded"));
    assert_eq!(of_task.events.last().map(|m| m.kind), Some("TaskOpened"));
    assert_eq!(of_task.next, None);
    for query in [
        "accoun",
        "mari",
        "task_",
        "INC-8841 ",
        "kind",
        "CANARY words",
        "phish confirmed",
    ] {
        assert!(search(&b, query, None).await.events.is_empty(), "{query}");
    }
    let all = search(&b, "", None).await;
    let indexes: Vec<u64> = all.events.iter().filter_map(|m| m.index).collect();
    let last = b.broker.show().position().1;
    assert_eq!(indexes, (0..=last).rev().collect::<Vec<_>>());
    // The next page continues below.
    let below = search(&b, "TokenIssued", indexes.get(3).copied()).await;
    let whole = search(&b, "TokenIssued", None).await;
    let expected = whole.events.iter().filter(|m| m.index < Some(indexes[3]));
    assert_eq!(below.events, expected.cloned().collect::<Vec<_>>());
    let call = b.person_call(&format!("{GOVERNANCE}/SearchJournal"), "olga");
    let long = b.broker.search(&call, &"x".repeat(257), None).await;
    assert_eq!(refused(long), Reason::Malformed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn search_is_bounded_and_resumable() {
    let b = TestBroker::start().await;
    let many = SEARCH_SCAN_MAX + 100;
    fill(b.broker.journal(), many).await;
    let first = search(&b, "EpochStarted", None).await;
    assert!(first.events.is_empty());
    let next = first.next.expect("more below");
    assert_eq!(b.broker.show().position().1 + 1 - next, SEARCH_SCAN_MAX);
    let second = search(&b, "EpochStarted", Some(next)).await;
    assert_eq!(second.events.len(), 1);
    assert_eq!(second.next, None);
    let page = search(&b, "RefusalsCounted", None).await;
    assert_eq!(page.events.len(), dipylon::broker::SEARCH_PAGE_MAX);
    assert_eq!(page.next, page.events.last().and_then(|m| m.index));
}

async fn fill(journal: &Journal, many: u64) {
    let fact = |count| {
        Event::RefusalsCounted(RefusalsCounted {
            since: START,
            count,
            rows: Vec::new(),
        })
    };
    for chunk in 0..many.div_ceil(1_000) {
        let left = (many - chunk * 1_000).min(1_000);
        let appends: Vec<_> = (0..left)
            .map(|n| {
                let journal = journal.clone();
                let append = Append::unread(fact(n));
                tokio::spawn(async move { journal.append(append).await })
            })
            .collect();
        for append in appends {
            append.await.expect("runs").expect("appended");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn search_leaks_no_text_or_secrets() {
    let b = TestBroker::start().await;
    let agent_in_task = full_life(&b).await;
    b.suspend("triage").await.expect("suspended");
    b.freeze("all").await.expect("frozen");
    let mut events: Vec<TimelineEvent> = timeline(&b, "olga", agent_in_task.task)
        .await
        .expect("may")
        .events;
    events.extend(search(&b, "", None).await.events);
    let events = format!("{events:?}");
    for shown in ["case.note on Case::INC-8841", "frozen", "agent suspended"] {
        assert!(events.contains(shown), "{shown}: {events}");
    }
    for secret in [
        "CANARY",
        "phish confirmed",
        "contain INC-8841",
        "an incident",
        "commitment",
        "not_after",
        "end_sessions",
    ] {
        assert!(!events.contains(secret), "{secret}");
    }
}
