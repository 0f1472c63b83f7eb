//! Orders of operators: what their entries say, and what a policy bundle may not register.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ciborium::Value as Cbor;
use dipylon::broker::*;
use dipylon::journal::FaultInjection;
use dipylon_sdk::model::*;
use tokio::sync::oneshot;

use crate::support::passkey_votes::{ENROL, RP_ID};
use crate::support::software_authenticator::SoftwareAuthenticator;
use crate::support::*;

pub type Waiting = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What comes once between the last read of a call of a method and its append.
#[derive(Clone, Default)]
pub struct Between(Arc<Mutex<Vec<(&'static str, Waiting)>>>);

impl Between {
    pub fn set(&self, method: &'static str, what: impl Future<Output = ()> + Send + 'static) {
        self.0.lock().expect("slot").push((method, Box::pin(what)));
    }

    pub fn take(&self, method: &'static str) -> Waiting {
        let mut all = self.0.lock().expect("slot");
        match all.iter().position(|(of, _)| *of == method) {
            Some(found) => all.remove(found).1,
            None => Box::pin(std::future::ready(())),
        }
    }

    pub fn is_spent(&self) -> bool {
        self.0.lock().expect("slot").is_empty()
    }
}

pub async fn start() -> (Arc<TestBroker>, Between) {
    start_with(FaultInjection::default()).await
}

pub async fn start_with(faults: FaultInjection) -> (Arc<TestBroker>, Between) {
    let between = Between::default();
    let slot = between.clone();
    let faults = FaultInjection {
        before_append: Some(Arc::new(move |method| slot.take(method))),
        ..faults
    };
    let b = TestBroker::start_with(TestEnvironment::new(), faults).await;
    (Arc::new(b), between)
}

/// Events of the journal, oldest first.
pub fn events(b: &TestBroker) -> Vec<Event> {
    let (_, head) = b.broker.show().position();
    (0..=head)
        .filter_map(|index| b.broker.journal().entry(index).expect("reads"))
        .map(|stored| Entry::parse(&stored.text).expect("parses").event)
        .collect()
}

pub const END_TASK: &str = "dipylon.v1.GovernanceService/EndTask";

pub async fn end_task(b: &TestBroker, task: TaskId) -> Result<EndReport, Refusal> {
    let outcome = None;
    let call = b.person_call(END_TASK, "olga");
    let input = EndTaskInput { task, outcome };
    b.broker.end_task_as_operator(&call, input).await
}

/// A heartbeat that is recorded first keeps the task: the operator ends it, not the lease that the order had read. A bundle that comes
/// first changes nothing.
#[tokio::test]
async fn an_operators_end_is_the_operators() {
    let (b, between) = start().await;
    let agent = b.agent("triage");
    for case in ["heartbeat", "bundle"] {
        let opened = b.open_task_with(&agent, "work", case, Some(60)).await;
        let task = opened.expect("opens").task.task;
        let lease = move |b: &TestBroker| b.broker.show().task(&task).and_then(|task| task.lease);
        b.manual_clock.advance_millis(40_000);
        let read_lease = lease(&b).expect("a lease").until;
        let broker = Arc::clone(&b);
        if case == "heartbeat" {
            // Decided before the order, and recorded after the order's last read.
            let (decided, is_decided) = oneshot::channel();
            let (go, gone) = oneshot::channel::<()>();
            between.set("maintenance", async move {
                decided.send(()).expect("a test");
                gone.await.expect("an order");
            });
            let call = b.call("dipylon.v1.TaskService/KeepAlive", &agent.key, None, None);
            let alive = Arc::clone(&b.broker);
            let alive = tokio::spawn(async move { alive.keep_alive(&call, task).await });
            is_decided.await.expect("decided");
            between.set(END_TASK, async move {
                go.send(()).expect("a heartbeat");
                // The order is enforced from before its append, also here.
                let alive = alive.await.expect("answers");
                assert_eq!(refused(alive), Reason::TaskEnded);
                let extended = lease(&broker).expect("a lease").until;
                assert!(read_lease < extended);
                broker.manual_clock.advance_millis(30_000);
                assert!(read_lease < broker.now() && broker.now() < extended);
            });
        } else {
            between.set(END_TASK, async move {
                let files = broker
                    .env
                    .policy_with("people.toml", |text| format!("{text}\n# 2\n"));
                assert!(broker.apply_policy(files).await.expect("applied").changed);
            });
        }
        let report = end_task(&b, task).await.expect("ended");
        assert_eq!(report.cause, EndCause::Operator, "{case}");
        assert!(between.is_spent(), "{case} came between");
        let last = events(&b).pop();
        let is_operators = matches!(&last, Some(Event::TaskEnded(ended))
            if ended.by == Some(PersonId::parse("olga").expect("id")) && ended.tasks == [task]);
        assert!(is_operators, "{case}: {last:?}");
    }
    b.check_invariants();
}

/// A heartbeat that was missed is the cause, before any order.
#[tokio::test]
async fn a_missed_heartbeat_comes_before_an_order() {
    let (b, _) = start().await;
    let agent = b.agent("triage");
    for by_agent in [true, false] {
        let key = format!("{by_agent}");
        let opened = b.open_task_with(&agent, "work", &key, Some(60)).await;
        let task = opened.expect("opens").task.task;
        b.manual_clock.advance_millis(60_000);
        let report = match by_agent {
            true => b.complete_task(&agent, task).await,
            false => end_task(&b, task).await,
        };
        assert_eq!(report.expect("ended").cause, EndCause::Lease);
        let last = events(&b).pop();
        let is_nobodys = matches!(&last, Some(Event::TaskEnded(ended))
            if ended.by.is_none() && ended.outcome.is_none());
        assert!(is_nobodys, "{last:?}");
    }
}

/// A freeze of an action ends its tokens; a bundle that disallows them later records no other end, and the report of the task's end
/// stays the same through a freeze that comes after it.
#[tokio::test]
async fn a_frozen_token_has_one_end() {
    let (b, _) = start().await;
    let agent = b.agent("triage");
    let task = b.open_task(&agent).await;
    let read = b
        .request_token(&agent, task, &read_case(), 300, "read")
        .await;
    let jti = read.token().issued.jti;
    let frozen = b.freeze("action/case.read").await.expect("frozen");
    assert_eq!(frozen.tokens, 1);
    let forbid = "@id(\"stop\")\n@why(\"Stop.\")\n\
        forbid (principal, action == Action::\"case.read\", resource) when { context.evidence.verified_age < duration(\"365d\") };\n";
    let files = b
        .env
        .policy_with("rules/30-stop.cedar", |_| forbid.to_owned());
    let applied = b.apply_policy(files).await.expect("in force");
    assert_eq!(applied.revoked.grants, 0);
    let revoked = b.revoke(jti).await.expect("answers");
    let index = Some(frozen.index);
    let cause = EndCause::Frozen;
    assert_eq!(
        revoked,
        TokenRevoked {
            changed: false,
            cause,
            index
        }
    );

    b.unfreeze("action/case.read").await.expect("lifted");
    b.apply_policy(b.env.policy.clone())
        .await
        .expect("in force");
    let task = b.try_open_task(&agent, "work", "second").await;
    let task = task.expect("opens").task.task;
    let read = b
        .request_token(&agent, task, &read_case(), 300, "read")
        .await;
    read.token();
    for _ in 0..2 {
        let report = b.complete_task(&agent, task).await.expect("ended");
        assert_eq!((report.tokens.len(), report.revoked), (1, 1));
        let _changed = b.freeze("action/case.read").await.expect("frozen");
    }
    b.check_invariants();
}

/// The coordinates of a passkey's public key.
fn jwk_of(key: &SoftwareAuthenticator) -> serde_json::Value {
    let cose = key.cose_key();
    let map = cose.as_map().expect("a map");
    let member = |label: i64| {
        let found = map
            .iter()
            .find(|(l, _)| *l == Cbor::from(label))
            .expect("a label");
        URL_SAFE_NO_PAD.encode(found.1.as_bytes().expect("bytes"))
    };
    serde_json::json!({ "x": member(-2), "y": member(-3) })
}

pub const APPLY: &str = "dipylon.v1.GovernanceService/ApplyPolicyBundle";

/// A key that a person enrolled as a passkey is registered for no person and no service, whether the passkey lives or not, and also
/// when it is enrolled while the bundle is put in force.
#[tokio::test]
async fn a_passkey_is_no_registered_key() {
    let (b, between) = start().await;
    let in_force = || b.broker.show().rules().expect("in force").bundle.version();
    let before = in_force();
    let passkey = |person: &str| {
        let person = PersonId::parse(person).expect("id");
        let keys = b.broker.show().person(&person);
        keys.passkeys.first().expect("enrolled").record.clone()
    };
    let with_key = |of: &str, jwk: &serde_json::Value| {
        b.env.policy_with("people.toml", |text| {
            let row = format!(
                "jwk = {{ kty = \"EC\", crv = \"P-256\", x = {}, y = {} }}",
                jwk["x"], jwk["y"]
            );
            format!("{text}\n[[key]]\nof = \"{of}\"\n{row}\n")
        })
    };
    b.enrol("maria").await;
    let marias = passkey("maria");
    for is_revoked in [false, true] {
        if is_revoked {
            let call = b.person_call("dipylon.v1.ApprovalService/RevokeApproverKeys", "olga");
            let maria = PersonId::parse("maria").expect("id");
            let revoked = b
                .broker
                .revoke_approver_keys(&call, maria, Default::default())
                .await;
            assert!(revoked.expect("revoked").keys > 0);
        }
        for of in ["maria", "lee", "idp"] {
            let refused = b.apply_policy(with_key(of, &marias.jwk)).await;
            let refused = refused.expect_err("refused");
            assert_eq!(refused.reason, Reason::InvalidPolicyBundle);
            let (of, whose) = match of {
                "maria" => ("maria", "it is enrolled as a passkey of maria"),
                "idp" => ("the service idp", "it is a key of maria"),
                other => (other, "it is a key of maria"),
            };
            let expected = format!(
                "`people.toml`: the key {} of {of}: {whose}; register another key",
                marias.key
            );
            assert_eq!(refused.message, expected);
            assert_eq!(in_force(), before);
        }
    }

    // Lee enrols the key while the bundle that registers it is on its way.
    let code = b.invite("lee").await;
    let begun = b.broker.begin_enrolment(ENROL, &code).expect("begun");
    let (key, made) = SoftwareAuthenticator::create(RP_ID, CONSOLE, &begun.challenge, &begun.user);
    let jwk = jwk_of(&key);
    let broker = Arc::clone(&b);
    between.set(APPLY, async move {
        let enrolled = broker.broker.finish_enrolment(ENROL, &code, &made, "Phone");
        enrolled.await.expect("enrolled");
    });
    let refused = b.apply_policy(with_key("lee", &jwk)).await;
    assert_eq!(
        refused.expect_err("refused").reason,
        Reason::InvalidPolicyBundle
    );
    assert!(between.is_spent() && in_force() == before);
    b.check_invariants();
}
