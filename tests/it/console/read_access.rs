//! What an approver may read: one rule for cards, inboxes, their watches and timelines, over gRPC and at the console.

use dipylon_sdk::client::{ApproverClient, Error, InboxUpdate, InboxUpdateKind, InboxWatcher};
use dipylon_sdk::model::*;
use serde_json::json;

use super::{ConsoleUser, HttpResponse, pending};
use crate::support::served_broker::ServedBroker;
use crate::support::wait::in_time;
use crate::support::{IDP, TestEnvironment, action, disable};

/// The example with a second group of approvers: nina is in it alone, and isolating a host needs it alone.
fn env() -> TestEnvironment {
    let mut env = TestEnvironment::new();
    env.add_key("nina");
    let people = env.policy.get_mut("people.toml").expect("people");
    people.push_str("\n[[person]]\nid = \"nina\"\nname = \"Nina Novak\"\ngroups = [\"network\"]\nroles = [\"approver\"]\n");
    *people = people.replace(
        "[profile.two-security]\ngroup = \"security\"\nquorum = 2",
        "[profile.two-security]\ngroup = \"network\"\nquorum = 1",
    );
    let rules = env
        .policy
        .get_mut("rules/20-guardrails.cedar")
        .expect("rules");
    *rules = rules.replace(
        "action in Action::\"destructive\"",
        "action == Action::\"account.disable\"",
    );
    env
}

fn isolate() -> Action {
    action("host.isolate", "Host", "web-1", IDP, &[])
}

/// The text of a refusal without its ids.
fn words(error: &Error, id: &str) -> String {
    mask_ids(&format!("{error}"), id)
}

/// The text of a page without its ids and its time.
fn page_words(page: &HttpResponse, id: &str) -> String {
    let (_, shown) = page.body.split_once("<h1>").expect("a title");
    mask_ids(shown, id)
}

fn mask_ids(text: &str, id: &str) -> String {
    let text = text.replace(id, "ID");
    let mut parts = text.split("cor_");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |all, part| {
        all + "COR" + part.get(22..).unwrap_or_default()
    })
}

async fn first_opened(watch: &mut InboxWatcher) -> Vec<String> {
    loop {
        match in_time("an update", watch.next()).await.expect("reads") {
            Some(InboxUpdate::Changed {
                kind: InboxUpdateKind::Opened,
                access_request_ids,
                ..
            }) => {
                return access_request_ids;
            }
            Some(_) => {}
            None => panic!("the watch ended"),
        }
    }
}

/// Whether a person reads an access request: the same by every door.
async fn reads_request(
    s: &ServedBroker,
    user: &ConsoleUser,
    who: &str,
    id: AccessRequestId,
) -> bool {
    let unknown = AccessRequestId::from_random([9; 16]);
    let client = s.approver(who);
    let page = user.browser.get(&format!("/console/requests/{id}")).await;
    let card = client.card(id).await;
    assert_eq!(card.is_ok(), page.status == 200, "{who} {id}");
    if let Err(error) = &card {
        let none = client.card(unknown).await.expect_err("unknown");
        assert_eq!(
            words(error, &id.to_string()),
            words(&none, &unknown.to_string())
        );
        let path = format!("/console/requests/{unknown}");
        let none = user.browser.get(&path).await;
        assert_eq!((page.status, none.status), (404, 404), "{who} {id}");
        assert_eq!(
            page_words(&page, &id.to_string()),
            page_words(&none, &unknown.to_string())
        );
    }
    card.is_ok()
}

async fn is_listed(client: &ApproverClient, user: &ConsoleUser, id: AccessRequestId) -> bool {
    let id = id.to_string();
    let inbox = client.inbox().await.expect("reads");
    let (rows, queued) = (inbox.rows, inbox.queued);
    let found = rows
        .iter()
        .any(|row| row.access_request.access_request_id == id);
    assert_eq!(queued, 0);
    for path in ["/console", "/console/fragment/inbox"] {
        let page = user.browser.get(path).await.ok().body;
        assert_eq!(page.contains(&id), found, "{path} {id}");
    }
    found
}

/// The ids of a task's timeline, if the person reads it: the same by every door, and each leads to a page.
async fn timeline_ids(
    s: &ServedBroker,
    user: &ConsoleUser,
    who: &str,
    task: TaskId,
) -> Option<Vec<String>> {
    let client = s.operator(who);
    let page = user.browser.get(&format!("/console/tasks/{task}")).await;
    match client.timeline(task).await {
        Ok(timeline) => {
            assert_eq!(page.status, 200, "{who} {task}");
            for link in page.body.split("href=\"").skip(1) {
                let path = link.split('"').next().unwrap_or_default();
                if path.starts_with("/console/requests/") || path.starts_with("/console/tasks/") {
                    user.browser.get(path).await.ok();
                }
            }
            Some(
                timeline
                    .entries
                    .into_iter()
                    .flat_map(|entry| entry.ids)
                    .collect(),
            )
        }
        Err(error) => {
            let unknown = TaskId::from_random([9; 16]);
            let none = client.timeline(unknown).await.expect_err("unknown");
            assert_eq!(
                words(&error, &task.to_string()),
                words(&none, &unknown.to_string())
            );
            let none = user.browser.get(&format!("/console/tasks/{unknown}")).await;
            assert_eq!((page.status, none.status), (404, 404), "{who} {task}");
            assert_eq!(
                page_words(&page, &task.to_string()),
                page_words(&none, &unknown.to_string())
            );
            None
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_approver_reads_what_they_may_vote_on() {
    let s = ServedBroker::start_in(env()).await;
    let mut users = std::collections::BTreeMap::new();
    for who in ["maria", "nina", "dana", "olga", "lee"] {
        users.insert(who, ConsoleUser::sign_in(&s, who).await);
    }
    let mut watches = Vec::new();
    for who in ["maria", "nina"] {
        watches.push(s.approver(who).watch_inbox(None).await.expect("watches"));
    }
    for watch in &mut watches {
        let first = in_time("a snapshot", watch.next()).await.expect("reads");
        assert!(matches!(first, Some(InboxUpdate::Snapshot(_))));
    }
    // One task asks both groups, one the network group alone, one nobody.
    let (both, network) = (s.task("triage").await, s.task("triage").await);
    let quiet = s.task("reporter").await;
    let alone = pending(&network, isolate(), "r-1").await;
    let ann = pending(&both, disable("ann"), "r-1").await;
    let web = pending(&both, isolate(), "r-2").await;
    let [maria_saw, nina_saw] = [
        first_opened(&mut watches[0]).await,
        first_opened(&mut watches[1]).await,
    ];
    assert_eq!(
        (maria_saw, nina_saw),
        (vec![ann.to_string()], vec![alone.to_string()])
    );
    assert_eq!(first_opened(&mut watches[1]).await, [web.to_string()]);

    // (person, ann, web, alone, both, network, quiet): dana owns triage, maria owns reporter.
    for (who, requests, tasks) in [
        ("maria", [true, false, false], [true, false, true]),
        ("nina", [false, true, true], [true, true, false]),
        ("dana", [true, true, true], [true, true, false]),
        ("olga", [true, true, true], [true, true, true]),
    ] {
        let user = &users[who];
        for (id, expected) in [ann, web, alone].into_iter().zip(requests) {
            assert_eq!(
                reads_request(&s, user, who, id).await,
                expected,
                "{who} {id}"
            );
            assert_eq!(
                is_listed(&s.approver(who), user, id).await,
                expected,
                "{who} {id}"
            );
        }
        for (task, expected) in [&both, &network, &quiet].into_iter().zip(tasks) {
            let ids = timeline_ids(&s, user, who, task.id()).await;
            assert_eq!(ids.is_some(), expected, "{who} {}", task.id());
            for (id, is_read) in [ann, web, alone].into_iter().zip(requests) {
                let shown = ids.iter().flatten().any(|shown| *shown == id.to_string());
                assert!(!shown || is_read, "{who} {id}");
            }
        }
    }

    // An approver who voted reads on after they left the group; one who did not vote does not.
    let ask = json!({ "profile": "one-security", "verdict": "approve" });
    users["lee"].vote(ann, ask).await.ok();
    let files = s.env.policy_with("people.toml", |text| {
        let others = ["sam", "uma"].map(|id| {
            format!("\n[[person]]\nid = \"{id}\"\nname = \"{id}\"\ngroups = [\"security\"]\nroles = [\"approver\"]\n")
        });
        text.replace("groups = [\"security\"]", "groups = []") + &others.concat()
    });
    s.operator("olga")
        .apply_policy_bundle(&files)
        .await
        .expect("applies");
    for (who, expected) in [
        ("lee", true),
        ("maria", false),
        ("dana", true),
        ("nina", false),
    ] {
        let user = &users[who];
        assert_eq!(reads_request(&s, user, who, ann).await, expected, "{who}");
        let ids = timeline_ids(&s, user, who, both.id()).await;
        assert_eq!(ids.is_some(), expected || who == "nina", "{who}");
    }
}
