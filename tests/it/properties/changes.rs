//! Random histories of proposals: whatever operators and approvers do, no bundle comes in force by fewer hands than the one before it asks
//! for. The checker of every journal (`support::invariants`) judges each entry.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use dipylon::broker::*;
use dipylon::journal::FaultInjection;
use dipylon_sdk::card::AccessRequestStatus;
use dipylon_sdk::model::*;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::support::agent_in_task::person_id;
use crate::support::*;

const OPERATORS: [&str; 3] = ["olga", "otto", "nina"];
const PEOPLE: [&str; 6] = ["olga", "otto", "nina", "dana", "maria", "lee"];

/// The change after which two of the group `security` agree to a change.
const TWO_SECURITY: usize = 4;

#[derive(Debug, Clone)]
enum Op {
    Propose {
        by: usize,
        change: usize,
    },
    Vote {
        proposal: usize,
        voter: usize,
        approve: bool,
    },
    Withdraw {
        proposal: usize,
    },
    Revoke {
        by: usize,
        whose: usize,
        compromised: bool,
    },
    Advance(u32),
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    // Most votes are for the newest proposal and every second change asks for two, so that many proposals are decided.
    let proposals = prop_oneof![8 => Just(0), 1 => 0..6_usize];
    let changes = prop_oneof![1 => 0..8_usize, 1 => Just(TWO_SECURITY)];
    prop_oneof![
        8 => (0..3_usize, changes).prop_map(|(by, change)| Op::Propose { by, change }),
        16 => (proposals.clone(), 0..6_usize, prop::bool::weighted(0.9)).prop_map(|(proposal, voter, approve)| Op::Vote { proposal, voter, approve }),
        1 => proposals.prop_map(|proposal| Op::Withdraw { proposal }),
        2 => (0..3_usize, 0..6_usize, any::<bool>()).prop_map(|(by, whose, compromised)| Op::Revoke { by, whose, compromised }),
        2 => prop_oneof![9 => 0..60_000_u32, 1 => Just(90_000_000_u32)].prop_map(Op::Advance),
        1 => Just(Op::Restart),
    ]
}

fn environment() -> TestEnvironment {
    let mut env = TestEnvironment::new();
    let people = env.policy.get_mut("people.toml").expect("people");
    for id in ["otto", "nina"] {
        people.push_str(&format!(
            "\n[[person]]\nid = \"{id}\"\nname = \"{id}\"\nroles = [\"operator\"]\n"
        ));
    }
    for id in ["otto", "nina"] {
        env.add_key(id);
    }
    env
}

/// The bundle in force with something else: a title, the rule of changes, or who has a role.
fn changed(files: &BTreeMap<String, String>, change: usize) -> BTreeMap<String, String> {
    let mut files = files.clone();
    let mut edit = |path: &str, from: &str, to: &str| {
        let text = files.get_mut(path).expect("a file");
        *text = text.replacen(from, to, 1);
    };
    let people = "people.toml";
    match change {
        0 => edit(
            "schema.cedarschema",
            "Disable an account",
            "Lock an account",
        ),
        1 => edit(
            "schema.cedarschema",
            "Lock an account",
            "Disable an account",
        ),
        2..5 => {
            let agree = ["nobody", "operator", "two-security"][change - 2];
            let text = files.get_mut(people).expect("people");
            let own = text.find("\n[changes]").unwrap_or(text.len());
            text.truncate(own);
            text.push_str(&format!("\n[changes]\nagree = \"{agree}\"\n"));
        }
        5 => edit(
            people,
            "name = \"nina\"\nroles = [\"operator\"]",
            "name = \"nina\"\nroles = [\"approver\"]",
        ),
        6 => edit(
            people,
            "name = \"nina\"\nroles = [\"approver\"]",
            "name = \"nina\"\nroles = [\"operator\"]",
        ),
        _ => edit(people, "quorum = 2", "quorum = 1"),
    }
    files
}

/// Bundles that came in force by votes.
static AGREED: AtomicUsize = AtomicUsize::new(0);

async fn history(ops: Vec<Op>) {
    let mut b = TestBroker::start_with(environment(), FaultInjection::default()).await;
    let mut in_force = b.env.policy.clone();
    let mut proposals: Vec<(AccessRequestId, usize, BTreeMap<String, String>)> = Vec::new();
    for op in ops {
        match op {
            Op::Propose { by, change } => {
                let files = changed(&in_force, change);
                let call = b.person_call(
                    "dipylon.v1.GovernanceService/ApplyPolicyBundle",
                    OPERATORS[by],
                );
                let Ok(operator) = b.broker.authenticate_person(&call) else {
                    continue;
                };
                let applied = b
                    .broker
                    .apply_policy_bundle(&call, operator, files.clone(), Default::default(), None)
                    .await;
                match applied {
                    Ok(applied) => match applied.proposal {
                        Some(waits) => proposals.push((waits.access_request, by, files)),
                        None => in_force = files,
                    },
                    Err(_refused) => {}
                }
            }
            Op::Vote {
                proposal,
                voter,
                approve,
            } => {
                let Some((id, _, files)) = proposals.iter().rev().nth(proposal).cloned() else {
                    continue;
                };
                let card = b.broker.card(
                    &b.person_call("dipylon.v1.ApprovalService/GetCard", PEOPLE[voter]),
                    &id,
                );
                let Some(need) = card.ok().and_then(|card| card.needs.first().cloned()) else {
                    continue;
                };
                let verdict = if approve {
                    Verdict::Approve
                } else {
                    Verdict::Deny
                };
                let voted = b
                    .vote(PEOPLE[voter], id, need.profile.name.as_str(), verdict)
                    .await;
                if voted.is_ok_and(|view| view.status == AccessRequestStatus::Consumed) {
                    in_force = files;
                    AGREED.fetch_add(1, Ordering::Relaxed);
                }
            }
            Op::Withdraw { proposal } => {
                let Some((id, by, _)) = proposals.iter().rev().nth(proposal).cloned() else {
                    continue;
                };
                let call = b.person_call(
                    "dipylon.v1.GovernanceService/WithdrawPolicyProposal",
                    OPERATORS[by],
                );
                let _ended = b.broker.withdraw_proposal(&call, id).await;
            }
            Op::Revoke {
                by,
                whose,
                compromised,
            } => {
                let call = b.person_call(
                    "dipylon.v1.ApprovalService/RevokeApproverKeys",
                    OPERATORS[by],
                );
                let revocation = KeyRevocation {
                    only: None,
                    compromised,
                };
                let _refused = b
                    .broker
                    .revoke_approver_keys(&call, person_id(PEOPLE[whose]), revocation)
                    .await;
            }
            Op::Advance(ms) => {
                b.manual_clock.advance_millis(ms);
                b.broker.maintenance_tick().await.expect("upkeep");
            }
            Op::Restart => b = b.restart(FaultInjection::default()).await,
        }
    }
    b.check_invariants();
}

#[test]
fn no_bundle_comes_in_force_by_fewer_hands() {
    let config = ProptestConfig {
        cases: super::cases(),
        max_shrink_iters: 200,
        ..ProptestConfig::default()
    };
    let run = TestRunner::new(config).run(&prop::collection::vec(op(), 10..40), |ops| {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("runtime");
        runtime.block_on(history(ops));
        Ok(())
    });
    run.expect("holds");
    let agreed = AGREED.load(Ordering::Relaxed);
    assert!(agreed > 0, "no history had a change that others agreed to");
}
