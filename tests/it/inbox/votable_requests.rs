//! Property test: after any history an inbox shows exactly the requests on which the person can vote.

use std::collections::{BTreeMap, BTreeSet};

use dipylon::broker::{AccessRequestStatus, TokenReply};
use dipylon_sdk::model::*;
use proptest::prelude::*;

use super::{IN_THE_GROUP, all_pages, broker, first_page, isolate};
use crate::support::*;

#[derive(Debug, Clone)]
enum Op {
    Open(usize),
    Ask {
        task: usize,
        action: usize,
    },
    Vote {
        request: usize,
        voter: usize,
        approve: bool,
    },
    Mint {
        request: usize,
    },
    Cancel {
        request: usize,
    },
    End {
        task: usize,
    },
    Freeze(usize),
    Suspend,
    Rules(usize),
    Advance(u32),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (0..2_usize).prop_map(Op::Open),
        12 => (0..8_usize, 0..3_usize).prop_map(|(task, action)| Op::Ask { task, action }),
        8 => (0..16_usize, 0..3_usize, prop::bool::weighted(0.8)).prop_map(|(request, voter, approve)| Op::Vote { request, voter, approve }),
        3 => (0..16_usize).prop_map(|request| Op::Mint { request }),
        2 => (0..16_usize).prop_map(|request| Op::Cancel { request }),
        1 => (0..8_usize).prop_map(|task| Op::End { task }),
        1 => (0..2_usize).prop_map(Op::Freeze),
        1 => Just(Op::Suspend),
        1 => (0..3_usize).prop_map(Op::Rules),
        3 => prop_oneof![4 => 0..60_000_u32, 1 => Just(700_000_u32)].prop_map(Op::Advance),
    ]
}

struct OpenedRequest {
    agent: TestAgent,
    task: TaskId,
    action: Action,
    request: String,
    id: AccessRequestId,
}

async fn history(ops: Vec<Op>) {
    let b = broker(100_000).await;
    let agents = [b.agent("triage"), b.agent("hunter")];
    let actions = [disable("ann"), disable("cara"), isolate()];
    let mut tasks: Vec<(TestAgent, TaskId)> = Vec::new();
    let mut requests: Vec<OpenedRequest> = Vec::new();
    for (n, op) in ops.into_iter().enumerate() {
        match op {
            Op::Open(agent) => {
                let agent = &agents[agent];
                if let Ok(opened) = b.try_open_task(agent, "x", &format!("open-{n}")).await {
                    tasks.push((agent.clone(), opened.task.task));
                }
            }
            Op::Ask { task, action } => {
                let Some((agent, task)) = tasks.get(task).cloned() else {
                    continue;
                };
                let (action, request) = (actions[action].clone(), format!("r-{n}"));
                let evidence = b.svid(&agent);
                let reply = b
                    .request_token_with_evidence(
                        &agent,
                        task,
                        &action,
                        300,
                        &request,
                        Some(evidence),
                    )
                    .await;
                if let Ok(TokenReply::Pending(p)) = reply {
                    requests.push(OpenedRequest {
                        agent,
                        task,
                        action,
                        request,
                        id: p.access_request,
                    });
                }
            }
            Op::Vote {
                request,
                voter,
                approve,
            } => {
                let Some(a) = requests.get(request) else {
                    continue;
                };
                let profile = if a.action.name.as_str() == "host.isolate" {
                    "two-security"
                } else {
                    "one-security"
                };
                let verdict = if approve {
                    Verdict::Approve
                } else {
                    Verdict::Deny
                };
                let _may_not = b
                    .vote(["dana", "maria", "lee"][voter], a.id, profile, verdict)
                    .await;
            }
            Op::Mint { request } => {
                let Some(a) = requests.get(request) else {
                    continue;
                };
                let (agent, task, action) = (a.agent.clone(), a.task, a.action.clone());
                let (request, evidence) = (a.request.clone(), b.svid(&agent));
                let reply = b
                    .request_token_with_evidence(
                        &agent,
                        task,
                        &action,
                        300,
                        &request,
                        Some(evidence),
                    )
                    .await;
                // A request closed by a policy change is opened anew.
                if let Ok(TokenReply::Pending(p)) = reply {
                    let id = p.access_request;
                    requests.push(OpenedRequest {
                        agent,
                        task,
                        action,
                        request,
                        id,
                    });
                }
            }
            Op::Cancel { request } => {
                let Some(a) = requests.get(request) else {
                    continue;
                };
                let call = b.call(
                    "dipylon.v1.TaskService/CancelAccessRequest",
                    &a.agent.key,
                    None,
                    None,
                );
                let _closed = b.broker.cancel_access_request(&call, a.task, a.id).await;
            }
            Op::End { task } => {
                let Some((agent, task)) = tasks.get(task).cloned() else {
                    continue;
                };
                b.complete_task(&agent, task).await.expect("ends");
            }
            Op::Freeze(which) => {
                let scope = ["action/account.disable", "agent/hunter"][which];
                b.freeze(scope).await.expect("freezes");
                b.unfreeze(scope).await.expect("lifts");
            }
            Op::Suspend => {
                b.suspend("triage").await.expect("suspends");
                b.resume("triage").await.expect("resumes");
            }
            Op::Rules(which) => {
                let files = match which {
                    0 => b.env.policy.clone(),
                    1 => b.env.policy_with("people.toml", |t| {
                        t.replacen(IN_THE_GROUP, &IN_THE_GROUP.replace("\"security\"", ""), 1)
                    }),
                    _ => b.env.policy_with("people.toml", |t| {
                        t.replacen("good_for = \"10m\"", "good_for = \"9m\"", 1)
                    }),
                };
                let _same = b.apply_policy(files).await;
            }
            Op::Advance(ms) => {
                b.manual_clock.advance_millis(ms);
                b.broker.maintenance_tick().await.expect("upkeep");
            }
        }
        // A person may hold a hundred statements: each round begins after the old ones lapsed.
        if n % 8 == 7 {
            b.manual_clock.advance_millis(121_000);
        }
        // Read throughout: cached results must not outlive the versions they depend on.
        for who in ["dana", "lee"] {
            first_page(&b, who);
        }
    }
    let mut expected: BTreeMap<&str, BTreeSet<AccessRequestId>> = BTreeMap::new();
    let mut shown: BTreeMap<&str, BTreeSet<AccessRequestId>> = BTreeMap::new();
    for who in ["dana", "maria", "lee"] {
        let (rows, total) = all_pages(&b, who, true, 3);
        assert_eq!(rows.len(), total);
        shown.insert(who, rows.into_iter().collect());
        let mut votable = BTreeSet::new();
        for a in &requests {
            let call = b.person_call("dipylon.v1.ApprovalService/GetCard", who);
            let waits = b.broker.view_of(&call, &a.id).expect("known").status
                == AccessRequestStatus::Waiting;
            let profile = if a.action.name.as_str() == "host.isolate" {
                "two-security"
            } else {
                "one-security"
            };
            if waits
                && b.begin_vote(who, a.id, profile, Verdict::Approve)
                    .await
                    .is_ok()
            {
                votable.insert(a.id);
            }
        }
        expected.insert(who, votable);
    }
    assert_eq!(shown, expected);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn inbox_equals_votable_requests(ops in prop::collection::vec(op(), 10..60)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
        runtime.block_on(history(ops));
    }
}
