//! A small realm in which every kind of call can be made once, and the calls.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, LazyLock, Mutex};

use dipylon::broker::*;
use dipylon::journal::FaultInjection;
use dipylon_sdk::model::*;

use super::between::Between;
use super::outcome;
use crate::support::agent_in_task::person_id;
use crate::support::software_authenticator::PasskeyBehaviour;
use crate::support::*;

/// A broker with a task that has a heartbeat, an access request that waits, one that maria approved for `disable("ann")` under the
/// idempotency key `ann`, a token, a token with one use, an
/// invitation, a suspended agent and a frozen action.
#[derive(Clone)]
pub struct World(Arc<Inner>);

pub struct Inner {
    pub b: TestBroker,
    pub triage: TestAgent,
    pub task: TaskId,
    /// Waits for `disable("pia")`.
    pub pending: AccessRequestId,
    /// Of `case.read`, under the idempotency key `read`.
    pub read_token: TokenId,
    /// Of `disable("eve")`: one use.
    pub single: Secret,
    pub single_id: TokenId,
    /// Lee's statement to approve `pending`, and Lee's to deny it.
    pub yes: String,
    pub no: String,
    /// The code with which lee may enrol a passkey.
    pub code: Secret,
    hook: Arc<Mutex<Hook>>,
}

type Order = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What comes between in the next round of a method.
#[derive(Default)]
struct Hook {
    method: &'static str,
    order: Option<Order>,
    /// Rounds of the method after that one.
    rounds: Option<usize>,
}

impl std::ops::Deref for World {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl World {
    pub async fn build() -> Self {
        let hook = Arc::new(Mutex::new(Hook::default()));
        let before_append = {
            let hook = hook.clone();
            Arc::new(move |method: &'static str| -> Order {
                let mut hook = hook.lock().expect("hook");
                let is_due = hook.method == method;
                let order = hook.order.take_if(|_| is_due);
                if let Some(order) = order {
                    // Rounds of the order itself, which may be of the same method, are none of the call's.
                    return order;
                }
                if hook.method == method {
                    hook.rounds = hook.rounds.map(|rounds| rounds + 1);
                }
                Box::pin(std::future::ready(()))
            })
        };
        let faults = FaultInjection {
            before_append: Some(before_append),
            ..FaultInjection::default()
        };
        let b = TestBroker::start_in(environment(), faults).await;
        let triage = b.agent("triage");
        let opened = b.open_task_with(&triage, "contain INC-8841", "open-1", Some(60));
        let task = opened.await.expect("opens").task.task;
        let ask = async |account: &str| {
            let action = disable(account);
            let asked = b.request_token(&triage, task, &action, 300, account);
            asked.await.pending().access_request
        };
        let (pending, approved, used) = (ask("pia").await, ask("ann").await, ask("eve").await);
        b.approve("maria", approved, "one-security").await;
        b.approve("maria", used, "one-security").await;
        let token = async |action: Action, key: &str| {
            let reply = b.request_token(&triage, task, &action, 300, key);
            reply.await.token()
        };
        let single = token(disable("eve"), "eve").await;
        let read_token = token(read_case(), "read").await.issued.jti;
        let begin = async |verdict| {
            let begun = b.begin_vote("lee", pending, "one-security", verdict);
            begun.await.expect("begins").statement
        };
        let (yes, no) = (begin(Verdict::Approve).await, begin(Verdict::Deny).await);
        let code = b.invite("lee").await;
        b.suspend("reporter").await.expect("suspended");
        b.freeze("action/case.note").await.expect("frozen");
        // Less than half of the heartbeat is left.
        b.manual_clock.advance_millis(40_000);
        Self(Arc::new(Inner {
            triage,
            task,
            pending,
            read_token,
            single_id: single.issued.jti,
            single: single.token,
            yes,
            no,
            code,
            hook,
            b,
        }))
    }

    /// Runs something between the last read of the next call and its append.
    pub fn interpose(&self, call: &Call, between: &'static Between) {
        let world = self.clone();
        let order = async move {
            between.run(&world).await;
            world.hook.lock().expect("hook").rounds = Some(0);
        };
        let mut hook = self.hook.lock().expect("hook");
        hook.method = call.method;
        hook.order = Some(Box::pin(order));
    }

    /// How often the call was asked anew after it; `None` when it made no round.
    pub fn rounds_after_the_hook(&self) -> Option<usize> {
        self.hook.lock().expect("hook").rounds
    }

    pub async fn token(&self, action: &Action, key: &str) -> String {
        let b = &self.b;
        let reply = b.request_token(&self.triage, self.task, action, 300, key);
        outcome(reply.await, |reply| match reply {
            TokenReply::Token(issued) if issued.reissued => "token again".to_owned(),
            TokenReply::Token(_) => "token".to_owned(),
            TokenReply::Pending(_) => "pending".to_owned(),
            TokenReply::Recommended(_) => "recommended".to_owned(),
            TokenReply::Denied(denied) => format!("denied: {}", denied.why.as_str()),
        })
    }

    pub async fn vote(&self, statement: &str) -> String {
        let cast = self.b.cast_vote("lee", self.pending, statement).await;
        outcome(cast, |view| format!("{:?}", view.status))
    }

    pub async fn apply(&self, change: &str) -> String {
        let files = self
            .b
            .env
            .policy_with("rules/30-more.cedar", |_| change.to_owned());
        let applied = self.b.apply_policy(files).await;
        outcome(applied, |applied| format!("changed: {}", applied.changed))
    }
}

/// The same for all worlds.
pub fn environment() -> Arc<TestEnvironment> {
    static SHARED: LazyLock<Arc<TestEnvironment>> = LazyLock::new(|| Arc::new(new_environment()));
    SHARED.clone()
}

fn new_environment() -> TestEnvironment {
    let mut env = TestEnvironment::new();
    let people = env.policy.get_mut("people.toml").expect("people");
    // A second operator, who is not an approver.
    people.push_str("\n[[person]]\nid = \"otto\"\nname = \"Otto Otis\"\nroles = [\"operator\"]\n\n[changes]\nagree = \"nobody\"\n");
    env.add_key("otto");
    let mut entities: Vec<serde_json::Value> =
        serde_json::from_str(&env.policy["entities.json"]).expect("entities");
    let ann = entities.first().expect("ann").to_string();
    for account in ["eve", "yan", "zed", "pia"] {
        entities.push(
            serde_json::from_str(&ann.replace("\"ann\"", &format!("\"{account}\"")))
                .expect("an account"),
        );
    }
    let entities = serde_json::Value::from(entities).to_string();
    env.policy.insert("entities.json".to_owned(), entities);
    env
}

/// A call of a use case.
pub struct Call {
    pub name: &'static str,
    /// The method as the transaction knows it.
    pub method: &'static str,
    /// Whether it passes a gate: then everything is interposed.
    pub passes_gate: bool,
    /// Its outcome when nothing comes between.
    pub alone: &'static str,
    /// Number of things between that make it be asked anew, at least.
    pub anew_at_least: usize,
    pub run: fn(World) -> Pin<Box<dyn Future<Output = String> + Send>>,
}

macro_rules! calls {
    ($($name:literal $method:literal $gate:literal $alone:literal $least:literal |$world:ident| $run:expr;)*) => {
        pub static CALLS: &[Call] = &[$(Call {
            name: $name,
            method: $method,
            passes_gate: $gate,
            alone: $alone,
            anew_at_least: $least,
            run: |$world| Box::pin(async move { $run }),
        },)*];
    };
}

calls! {
    "a token by rules" "dipylon.v1.TaskService/RequestToken" true "token" 8
        |w| w.token(&read_case(), "read-2").await;
    "a token by votes" "dipylon.v1.TaskService/RequestToken" true "token" 10
        |w| w.token(&disable("ann"), "ann").await;
    "a token again" "dipylon.v1.TaskService/RequestToken" true "token again" 8
        |w| w.token(&read_case(), "read").await;
    "an access request" "dipylon.v1.TaskService/RequestToken" true "pending" 8
        |w| w.token(&disable("zed"), "zed").await;
    "an unknown target" "dipylon.v1.TaskService/RequestToken" false "refused: UNKNOWN_TARGET" 1
        |w| w.token(&action("case.read", "Case", "INC-0", CASES, &[]), "none").await;
    "a use" "dipylon.v1.TokenService/ConsumeToken" true "Spent" 8 |w| {
        let spent = w.b.consume("idp", &w.single, "use-1").await;
        outcome(spent, |spent| format!("{:?}", spent.outcome))
    };
    "a task" "dipylon.v1.TaskService/OpenTask" true "opened" 5 |w| {
        let opened = w.b.try_open_task(&w.triage, "another", "open-2").await;
        outcome(opened, |_| "opened".to_owned())
    };
    "a yes" "dipylon.v1.ApprovalService/CastVote" true "Approved" 8 |w| w.vote(&w.yes).await;
    "a no" "dipylon.v1.ApprovalService/CastVote" false "Denied" 1 |w| w.vote(&w.no).await;
    "a cancellation" "dipylon.v1.TaskService/CancelAccessRequest" false "cancelled" 1 |w| {
        let method = "dipylon.v1.TaskService/CancelAccessRequest";
        let call = w.b.call(method, &w.triage.key, None, None);
        let done = w.b.broker.cancel_access_request(&call, w.task, w.pending).await;
        outcome(done, |()| "cancelled".to_owned())
    };
    "a completion" "dipylon.v1.TaskService/CompleteTask" false "Completed" 1 |w| {
        let done = w.b.complete_task(&w.triage, w.task).await;
        outcome(done, |report| format!("{:?}", report.cause))
    };
    "a heartbeat" "maintenance" false "extended" 1 |w| {
        let until = w.b.keep_alive(&w.triage, w.task).await;
        outcome(until, |_| "extended".to_owned())
    };
    "an end by an operator" "dipylon.v1.GovernanceService/EndTask" false "Operator" 1 |w| {
        let call = w.b.person_call("dipylon.v1.GovernanceService/EndTask", "olga");
        let input = EndTaskInput { task: w.task, outcome: None };
        let done = w.b.broker.end_task_as_operator(&call, input).await;
        outcome(done, |report| format!("{:?}", report.cause))
    };
    "a revocation" "dipylon.v1.TokenService/RevokeToken" false "changed: true, Operator" 1 |w| {
        let done = w.b.revoke(w.read_token).await;
        outcome(done, |r| format!("changed: {}, {:?}", r.changed, r.cause))
    };
    "a suspension" "dipylon.v1.GovernanceService/SuspendAgent" false "suspended" 1
        |w| outcome(w.b.suspend("triage").await, |_| "suspended".to_owned());
    "a resumption" "dipylon.v1.GovernanceService/ResumeAgent" false "resumed" 1
        |w| outcome(w.b.resume("reporter").await, |_| "resumed".to_owned());
    "a freeze of an agent" "dipylon.v1.GovernanceService/Freeze" false "changed: true" 1 |w| {
        outcome(w.b.freeze("agent/triage").await, |f| format!("changed: {}", f.changed))
    };
    "a freeze of an owner" "dipylon.v1.GovernanceService/Freeze" false "changed: true" 1 |w| {
        outcome(w.b.freeze("owner/dana").await, |f| format!("changed: {}", f.changed))
    };
    "an unfreeze" "dipylon.v1.GovernanceService/Unfreeze" false "lifted" 1
        |w| outcome(w.b.unfreeze("action/case.note").await, |_| "lifted".to_owned());
    "a policy bundle" "dipylon.v1.GovernanceService/ApplyPolicyBundle" false "changed: true" 1
        |w| w.apply(NEUTRAL).await;
    "an invitation" "dipylon.v1.ApprovalService/InviteApprover" false "invited" 1 |w| {
        let call = w.b.person_call("dipylon.v1.ApprovalService/InviteApprover", "olga");
        let invited = w.b.broker.invite_approver(&call, person_id("maria")).await;
        outcome(invited, |_| "invited".to_owned())
    };
    "an enrolment" "console/enrol" false "enrolled" 1 |w| {
        let enrolled = w.b.enrol_with(&w.code, &PasskeyBehaviour::default()).await;
        outcome(enrolled, |_| "enrolled".to_owned())
    };
    "a revocation of keys" "dipylon.v1.ApprovalService/RevokeApproverKeys" false "1 revoked" 1 |w| {
        let method = "dipylon.v1.ApprovalService/RevokeApproverKeys";
        let call = w.b.person_call(method, "olga");
        let revoked = w.b.broker.revoke_approver_keys(&call, person_id("maria"), Default::default()).await;
        outcome(revoked, |revoked| format!("{} revoked", revoked.keys))
    };
}

/// A rule that changes nothing, in a file of its own.
pub const NEUTRAL: &str = "@id(\"neutral\")\n@why(\"Changes nothing.\")\n\
     forbid (principal, action == Action::\"case.read\", resource)\n\
     when { resource == Case::\"INC-8841\" && context.ttl > duration(\"15m\") };\n";
