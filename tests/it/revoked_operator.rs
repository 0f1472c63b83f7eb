//! An operator whose keys are revoked: a loop of her applies does not keep the revocation out, and after its acknowledgement no order of
//! hers is recorded.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use dipylon::broker::*;
use dipylon_sdk::jose::SigningKey;
use dipylon_sdk::model::*;
use tokio::sync::oneshot;

use crate::support::agent_in_task::{agent_id, person_id};
use crate::support::rounds::Rounds;
use crate::support::*;

const APPLY: &str = "dipylon.v1.GovernanceService/ApplyPolicyBundle";
const FREEZE: &str = "dipylon.v1.GovernanceService/Freeze";
const UNFREEZE: &str = "dipylon.v1.GovernanceService/Unfreeze";
const SUSPEND: &str = "dipylon.v1.GovernanceService/SuspendAgent";
const RESUME: &str = "dipylon.v1.GovernanceService/ResumeAgent";
const END_TASK: &str = "dipylon.v1.GovernanceService/EndTask";
const REVOKE_TOKEN: &str = "dipylon.v1.TokenService/RevokeToken";
const INVITE: &str = "dipylon.v1.ApprovalService/InviteApprover";
const REVOKE_KEYS: &str = "dipylon.v1.ApprovalService/RevokeApproverKeys";

/// Every order that only an operator gives.
const ORDERS: [&str; 9] = [
    APPLY,
    FREEZE,
    UNFREEZE,
    SUSPEND,
    RESUME,
    END_TASK,
    REVOKE_TOKEN,
    INVITE,
    REVOKE_KEYS,
];

/// Longest that an apply is given to pass a revocation that it must not pass: it decides nothing where the revocation is first.
const CHANCE_TO_PASS: Duration = Duration::from_millis(200);

/// A broker with a second operator, otto.
async fn start(rounds: &Rounds) -> Arc<TestBroker> {
    let mut env = TestEnvironment::new();
    let people = env.policy.get_mut("people.toml").expect("people");
    people.push_str("\n[[person]]\nid = \"otto\"\nname = \"Otto Otis\"\nroles = [\"operator\"]\n");
    // One operator alone changes the rules here.
    people.push_str("\n[changes]\nagree = \"nobody\"\n");
    env.add_key("otto");
    Arc::new(TestBroker::start_with(env, rounds.faults()).await)
}

fn new_key() -> Arc<SigningKey> {
    Arc::new(SigningKey::generate().expect("key").0)
}

/// The bundle with further keys of olga's.
fn with_keys(b: &TestBroker, keys: &[Arc<SigningKey>]) -> BTreeMap<String, String> {
    b.env.policy_with("people.toml", |text| {
        keys.iter().fold(text.to_owned(), |text, key| {
            let jwk = key.public().to_jwk();
            let (x, y) = (&jwk["x"], &jwk["y"]);
            format!(
                "{text}\n[[key]]\nof = \"olga\"\njwk = {{ kty = \"EC\", crv = \"P-256\", x = {x}, y = {y} }}\n"
            )
        })
    })
}

async fn apply(
    b: &TestBroker,
    key: &SigningKey,
    files: BTreeMap<String, String>,
) -> Result<(), Refusal> {
    let call = b.call(APPLY, key, None, None);
    let operator = b.broker.authenticate_person(&call)?;
    let applied = b
        .broker
        .apply_policy_bundle(&call, operator, files, Default::default(), None)
        .await?;
    assert!(applied.changed);
    Ok(())
}

/// Otto's revocation of all of olga's keys.
async fn revoke_olgas_keys(b: &TestBroker) -> Result<usize, Refusal> {
    let call = b.person_call(REVOKE_KEYS, "otto");
    let olga = person_id("olga");
    b.broker
        .revoke_approver_keys(&call, olga, Default::default())
        .await
        .map(|revoked| revoked.keys)
}

fn refused_as_stranger<T: std::fmt::Debug>(answer: Result<T, Refusal>, order: &str) {
    let reason = refused(answer);
    let expected = [Reason::NotAuthenticated, Reason::NotPermitted];
    assert!(expected.contains(&reason), "{order}: {reason:?}");
}

/// Each apply of the loop registers another key of the thief's and is signed with the one before. Every round of the revocation meets
/// one: it lands after two of them, and revokes also the keys that they registered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loop_of_applies_does_not_keep_a_revocation_out() {
    let rounds = Rounds::default();
    let b = start(&rounds).await;
    let keys: Vec<_> = (0..3).map(|_| new_key()).collect();
    for n in 0..2 {
        let (thief, keys) = (Arc::clone(&b), keys.clone());
        rounds.interpose(REVOKE_KEYS, async move {
            let by = match n {
                0 => &thief.env.keys["olga"],
                _ => &*keys[n - 1],
            };
            let files = with_keys(&thief, &keys[..=n]);
            apply(&thief, by, files).await.expect("in force");
        });
    }
    // The third is authenticated before the revocation is durable.
    let (sent, third) = oneshot::channel();
    let (thief, held) = (Arc::clone(&b), keys.clone());
    rounds.interpose(REVOKE_KEYS, async move {
        let call = thief.call(APPLY, &held[1], None, None);
        let operator = thief.broker.authenticate_person(&call);
        let operator = operator.expect("not revoked yet");
        let files = with_keys(&thief, &held);
        let applying = async move {
            let applied =
                thief
                    .broker
                    .apply_policy_bundle(&call, operator, files, Default::default(), None);
            applied.await
        };
        let mut applying = tokio::spawn(applying);
        let _passed = tokio::time::timeout(CHANCE_TO_PASS, &mut applying).await;
        sent.send(applying).expect("a test");
    });
    let revoked = revoke_olgas_keys(&b).await.expect("revoked");
    assert_eq!(revoked, 3, "her first key, and those of two bundles");
    assert_eq!(rounds.made(REVOKE_KEYS), 3);
    let third = third.await.expect("begun");
    refused_as_stranger(third.await.expect("answers"), "the third apply");
    let (_, head) = b.broker.show().position();
    for key in [&b.env.keys["olga"]]
        .into_iter()
        .chain(keys.iter().map(|key| &**key))
    {
        let again = apply(&b, key, b.env.policy.clone()).await;
        refused_as_stranger(again, "a later apply");
    }
    assert_eq!(b.broker.show().position().1, head, "nothing is recorded");
    b.check_invariants();
}

/// What the orders are about.
struct Subjects {
    task: TaskId,
    token: TokenId,
}

async fn order(
    b: &TestBroker,
    key: &SigningKey,
    method: &str,
    on: &Subjects,
) -> Result<(), Refusal> {
    let call = b.call(method, key, None, None);
    let broker = &b.broker;
    let scope = |scope: &str| FreezeScope::parse(scope).expect("scope");
    match method {
        APPLY => apply(b, key, with_keys(b, &[new_key()])).await,
        FREEZE => broker.freeze(&call, scope("all"), None).await.map(drop),
        UNFREEZE => {
            let lifted = broker.unfreeze(&call, scope("action/case.note")).await;
            lifted.map(drop)
        }
        SUSPEND => {
            let suspended = broker.suspend_agent(&call, agent_id("triage"), None).await;
            suspended.map(drop)
        }
        RESUME => {
            let resumed = broker.resume_agent(&call, agent_id("reporter")).await;
            resumed.map(drop)
        }
        END_TASK => {
            let input = EndTaskInput {
                task: on.task,
                outcome: None,
            };
            broker.end_task_as_operator(&call, input).await.map(drop)
        }
        REVOKE_TOKEN => broker.revoke_token(&call, on.token).await.map(drop),
        INVITE => {
            let invited = broker.invite_approver(&call, person_id("lee")).await;
            invited.map(drop)
        }
        REVOKE_KEYS => {
            let revoked = broker
                .revoke_approver_keys(&call, person_id("otto"), Default::default())
                .await;
            revoked.map(drop)
        }
        other => panic!("no such order: {other}"),
    }
}

/// By every door: the order that was on its way when the revocation was acknowledged, and every order after it.
#[tokio::test]
async fn no_order_lands_after_the_revocation_of_its_author() {
    let rounds = Rounds::default();
    let b = start(&rounds).await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let read = read_case();
    let read = b.request_token(&triage, task, &read, 300, "read");
    let issued = read.await.token();
    let on = Subjects {
        task,
        token: issued.issued.jti,
    };
    b.suspend("reporter").await.expect("suspended");
    b.freeze("action/case.note").await.expect("frozen");
    for method in ORDERS {
        let key = new_key();
        let files = with_keys(&b, &[Arc::clone(&key)]);
        apply(&b, &b.env.keys["otto"], files).await.expect("hers");
        let (_, before) = b.broker.show().position();
        let other = Arc::clone(&b);
        rounds.interpose(method, async move {
            revoke_olgas_keys(&other).await.expect("acknowledged");
        });
        refused_as_stranger(order(&b, &key, method, &on).await, method);
        assert!(rounds.is_spent(), "{method}: the revocation came between");
        for later in ORDERS {
            refused_as_stranger(order(&b, &key, later, &on).await, later);
        }
        let (_, after) = b.broker.show().position();
        assert_eq!(
            after,
            before + 1,
            "{method}: only the revocation is recorded"
        );
        assert!(
            b.introspect("cases", &issued.token).await,
            "{method}: nothing ended"
        );
    }
    b.check_invariants();
}
