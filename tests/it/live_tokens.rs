//! Live tokens: the list by expiry, and how much of its ceiling an agent uses.

use dipylon::broker::{LiveToken, TokenCursor};
use dipylon_sdk::model::*;

use crate::support::agent_in_task::{AgentInTask, GOVERNANCE, agent_id};
use crate::support::*;

async fn live(b: &TestBroker, after: Option<TokenCursor>, max: usize) -> Vec<LiveToken> {
    let call = b.person_call(&format!("{GOVERNANCE}/ListTokens"), "olga");
    let page = b.broker.live_tokens(&call, after, max).await;
    page.expect("may read")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agent_ceiling_usage() {
    let b = TestBroker::start().await;
    let mut agent_in_task = AgentInTask::new(&b, "triage").await;
    b.manual_clock.advance_millis(5_000);
    agent_in_task.requests = 1;
    agent_in_task.token(&b, &read_case()).await;
    agent_in_task.approved(&b, &disable("ann"), 1).await;
    let show = |id: &str| {
        let call = b.person_call(&format!("{GOVERNANCE}/GetAgent"), "audit");
        b.broker.get_agent(&call, &agent_id(id)).expect("may read")
    };
    let triage = show("triage");
    assert_eq!(triage.attested_at, Some(START.plus_secs(6)));
    let used: Vec<_> = triage
        .activity
        .iter()
        .map(|used| (used.action.as_str(), used.stats.requested, used.in_ceiling))
        .collect();
    assert_eq!(
        used,
        [
            ("account.disable", 1, true),
            ("case.read", 1, true),
            ("case.note", 0, true),
            ("host.collect", 0, true),
            ("host.isolate", 0, true),
            ("logs.search", 0, true),
            ("session.end", 0, true),
        ]
    );
    let reporter = show("reporter");
    assert_eq!(reporter.attested_at, None);
    assert_eq!(reporter.activity.len(), 1);
    // Actions used before the ceiling was lowered stay listed.
    let lower = |text: &str| text.replacen("\"account.disable\", ", "", 1);
    b.apply_policy(b.env.policy_with("agents.toml", lower))
        .await
        .expect("in force");
    let triage = show("triage").activity;
    let denied_row = triage.iter().find(|used| !used.in_ceiling).expect("one");
    assert_eq!(
        (denied_row.action.as_str(), denied_row.stats.approved),
        ("account.disable", 1)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn live_tokens_are_listed_by_expiry() {
    let b = TestBroker::start().await;
    let mut triage = AgentInTask::new(&b, "triage").await;
    let reporter = AgentInTask::new(&b, "reporter").await;
    let disabling = triage.approved(&b, &disable("ann"), 0).await;
    let mut jtis = vec![disabling];
    for (n, ttl) in [300, 120, 500].into_iter().enumerate() {
        let evidence = Some(b.svid(&reporter.agent));
        let request = format!("r-{n}");
        let case = read_case();
        let reply = b.request_token_with_evidence(
            &reporter.agent,
            reporter.task,
            &case,
            ttl,
            &request,
            evidence,
        );
        jtis.push(reply.await.token().issued.jti);
    }
    let order: Vec<_> = live(&b, None, 100).await.iter().map(|t| t.jti).collect();
    assert_eq!(order, [jtis[0], jtis[2], jtis[1], jtis[3]]);
    let page = live(&b, None, 2).await;
    assert_eq!(page.len(), 2);
    let rest = live(&b, Some(page[1].cursor()), 2).await;
    let rest: Vec<_> = rest.iter().map(|t| t.jti).collect();
    assert_eq!(rest, order[2..]);
    let first = &page[0];
    assert_eq!(first.uses_left, Some(1));
    assert_eq!(
        first.profiles,
        [ProfileName::parse("one-security").expect("name")]
    );
    assert_eq!(
        (
            first.agent.as_str(),
            first.owner.as_str(),
            first.target.id.as_str()
        ),
        ("triage", "dana", "ann")
    );
    assert_eq!(page[1].uses_left, None);
    // Revoked, used up or expired tokens are not listed.
    b.revoke(jtis[3]).await.expect("revoked");
    assert_eq!(live(&b, None, 100).await.len(), 3);
    b.manual_clock.advance_millis(121_000);
    let left: Vec<_> = live(&b, None, 100).await.iter().map(|t| t.jti).collect();
    assert_eq!(left, [jtis[1]]);
    b.suspend("reporter").await.expect("suspended");
    assert!(live(&b, None, 100).await.is_empty());
}
