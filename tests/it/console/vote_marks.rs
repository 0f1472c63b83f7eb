//! How a vote is signed is shown wherever the vote is: on cards, in explanations, timelines and statistics. An action of high risk
//! takes votes by passkey alone.

use dipylon_sdk::card::{LongValues, render_terminal};
use dipylon_sdk::client::TokenOutcome;
use dipylon_sdk::model::*;
use serde_json::json;

use super::{ConsoleUser, pending};
use crate::end_to_end::approve;
use crate::support::served_broker::{ServedBroker, token_request};
use crate::support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn votes_say_how_they_were_signed() {
    let s = ServedBroker::start_in(TestEnvironment::with_high_risk()).await;
    let (maria, lee) = (
        ConsoleUser::sign_in(&s, "maria").await,
        ConsoleUser::sign_in(&s, "lee").await,
    );
    let (marias_key, olga) = (s.approver("maria"), s.operator("olga"));
    let task = s.task("triage").await;
    let issued = async |action: Action, key: &str| match task
        .request_token(&token_request(action, key))
        .await
    {
        Ok(TokenOutcome::Token(_)) => {}
        other => panic!("no token: {other:?}"),
    };
    let shown = async |id| {
        let card = marias_key.card(id).await.expect("a card");
        let approvals = card.needs[0].approvers.iter();
        let approvals = approvals.map(|a| (a.person.id.to_string(), a.method));
        (
            approvals.collect::<Vec<_>>(),
            render_terminal(&card, card.opened_at, 100, LongValues::Full),
        )
    };

    // Of medium risk: a registered key's vote counts, and is marked.
    let by_key = pending(&task, disable("ann"), "ann").await;
    approve(&marias_key, by_key, "one-security").await;
    let (approvals, text) = shown(by_key).await;
    assert_eq!(approvals, [("maria".to_owned(), VoteMethod::Key)]);
    let line = "approved: Maria Moreau (maria), by a registered key";
    assert!(text.contains(line), "{text}");
    let path = format!("/console/requests/{by_key}");
    let page = maria.browser.get(&path).await.ok().body;
    assert!(page.contains(line), "{page}");
    issued(disable("ann"), "ann").await;

    // Of high risk: the same person's key does not count, a passkey does.
    let isolate = action("host.isolate", "Host", "web-1", IDP, &[]);
    let by_passkey = pending(&task, isolate.clone(), "web-1").await;
    for verdict in ["approve", "deny"] {
        let profile = ProfileName::parse("two-security").expect("profile");
        let verdict = match verdict {
            "approve" => Verdict::Approve,
            _ => Verdict::Deny,
        };
        let card = marias_key.card(by_passkey).await.expect("a card");
        assert!(card.needs[0].passkey);
        let realm = Realm::parse("test").expect("realm");
        let seen = dipylon_sdk::client::vote::ReviewedCard {
            card: &card,
            realm: &realm,
            profile: &profile,
            verdict,
            narrowing: Narrowing::default(),
            comment: None,
        };
        let refused = marias_key.vote(&seen).await.expect_err("by key");
        assert_eq!(refused.reason(), Some(Reason::NotEligible), "{refused}");
        assert!(refused.to_string().contains("passkey"), "{refused}");
    }
    let ask = json!({ "profile": "two-security", "verdict": "approve" });
    maria.vote(by_passkey, ask.clone()).await.ok();
    let (approvals, text) = shown(by_passkey).await;
    assert_eq!(approvals, [("maria".to_owned(), VoteMethod::Passkey)]);
    let line = "approved: Maria Moreau (maria), by passkey";
    assert!(text.contains(line), "{text}");
    lee.vote(by_passkey, ask).await.ok();
    issued(isolate, "web-1").await;

    for (id, how) in [(by_key, "by a registered key"), (by_passkey, "by passkey")] {
        let found = olga.explain(&id.to_string()).await.expect("explained");
        let all = |label: &str| {
            let lines = found.lines.iter().filter(|line| line.label == label);
            lines.map(|line| line.text.clone()).collect::<Vec<_>>()
        };
        let votes = all("vote");
        assert!(!votes.is_empty(), "{found:?}");
        for text in votes.iter().chain(&all("profile")) {
            assert!(text.contains(how), "{text}");
        }
        let timeline = olga.timeline(task.id()).await.expect("a timeline");
        let votes = timeline
            .entries
            .iter()
            .filter(|e| e.kind == "VoteCast" && e.ids.contains(&id.to_string()));
        let votes: Vec<_> = votes.map(|e| e.detail.clone()).collect();
        assert!(!votes.is_empty(), "{timeline:?}");
        assert!(votes.iter().all(|v| v.contains(how)), "{votes:?}");
    }

    let people = olga.approver_statistics().await.expect("statistics");
    let counted = |who: &str| {
        let of = people.iter().find(|row| row.person_id == who);
        let of = of.expect("a row");
        (of.approved, of.approved_by_key)
    };
    assert_eq!((counted("maria"), counted("lee")), ((2, 1), (1, 0)));
    let rules = olga.rules().await.expect("rules");
    let counted = |rule: &str| {
        let of = rules.iter().find(|row| row.rule_id == rule).expect("a row");
        (of.approved, of.approved_by_key)
    };
    assert_eq!(counted("destructive-needs-approval"), (1, 1));
    assert_eq!(counted("isolating-production-needs-two"), (1, 0));
    let page = maria.browser.get("/console/rules").await.ok().body;
    assert!(page.contains("<p data-by-key>1 by key</p>"), "{page}");

    let olga = ConsoleUser::sign_in(&s, "olga").await;
    let page = olga.browser.get("/console/approvers").await.ok().body;
    for words in ["1 by passkey, 1 by key", "1 by passkey<"] {
        assert!(page.contains(words), "{words}: {page}");
    }
}
