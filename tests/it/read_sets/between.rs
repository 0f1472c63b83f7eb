//! What may come between the last read of a call and its append: every kind of entry that is legal there, and what is undone again.

use std::future::Future;
use std::pin::Pin;

use dipylon::broker::*;
use dipylon_sdk::model::*;

use super::world::{NEUTRAL, World};
use crate::support::agent_in_task::person_id;
use crate::support::software_authenticator::PasskeyBehaviour;
use crate::support::*;

/// Something that may come between.
pub struct Between {
    pub name: &'static str,
    /// Whether it is interposed before orders too.
    pub meets_orders: bool,
    run: fn(World) -> Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Between {
    pub async fn run(&self, world: &World) {
        (self.run)(world.clone()).await;
    }
}

macro_rules! between {
    ($($name:literal $($orders:ident)? |$world:ident| $run:expr;)*) => {
        pub static BETWEEN: &[Between] = &[$(Between {
            name: $name,
            meets_orders: false $(|| is_for(stringify!($orders)))?,
            run: |$world| Box::pin(async move { let _outcome = $run; }),
        },)*];
    };
}

const fn is_for(_orders: &str) -> bool {
    true
}

between! {
    "a suspension" orders |w| w.b.suspend("triage").await;
    "a suspension, lifted" |w| (w.b.suspend("triage").await, w.b.resume("triage").await);
    "a resumption of another" orders |w| w.b.resume("reporter").await;
    "a freeze of all" |w| w.b.freeze("all").await;
    "a freeze of all, lifted" |w| (w.b.freeze("all").await, w.b.unfreeze("all").await);
    "a freeze of the agent" |w| w.b.freeze("agent/triage").await;
    "a freeze of the agent, lifted"
        |w| (w.b.freeze("agent/triage").await, w.b.unfreeze("agent/triage").await);
    "a freeze of the owner" orders |w| w.b.freeze("owner/dana").await;
    "a freeze of the owner, lifted"
        |w| (w.b.freeze("owner/dana").await, w.b.unfreeze("owner/dana").await);
    "a freeze of disabling" |w| w.b.freeze("action/account.disable").await;
    "a freeze of disabling, lifted"
        |w| (w.b.freeze("action/account.disable").await, w.b.unfreeze("action/account.disable").await);
    "a freeze of reading, lifted"
        |w| (w.b.freeze("action/case.read").await, w.b.unfreeze("action/case.read").await);
    "an unfreeze" orders |w| w.b.unfreeze("action/case.note").await;
    "rules that forbid all" |w| w.apply(
        "@id(\"stop\")\n@why(\"Stop.\")\nforbid (principal, action, resource) when { context.evidence.verified_age < duration(\"365d\") };\n",
    ).await;
    "rules that change nothing" orders |w| w.apply(NEUTRAL).await;
    "rules, rolled back" |w| (w.apply(NEUTRAL).await, w.apply("").await);
    "the agent's change of owner" |w| w.b.apply_policy(w.b.env.policy_with("agents.toml", |text| {
        text.replacen("owner = \"dana\"", "owner = \"maria\"", 1)
    })).await;
    "a revocation of olga's keys" orders |w| revoke_keys(&w, "otto", "olga").await;
    "a revocation of maria's keys" orders |w| revoke_keys(&w, "otto", "maria").await;
    "a revocation of lee's keys" |w| revoke_keys(&w, "otto", "lee").await;
    "a revocation of the token" orders |w| w.b.revoke(w.read_token).await;
    "a revocation of the single-use token" |w| w.b.revoke(w.single_id).await;
    "an end by an operator" orders |w| {
        let call = w.b.person_call("dipylon.v1.GovernanceService/EndTask", "olga");
        w.b.broker.end_task_as_operator(&call, EndTaskInput { task: w.task, outcome: None }).await
    };
    "a completion" |w| w.b.complete_task(&w.triage, w.task).await;
    "a heartbeat" orders |w| w.b.keep_alive(&w.triage, w.task).await;
    "a yes" |w| w.vote(&w.yes).await;
    "a no" |w| w.vote(&w.no).await;
    "a refused vote" |w| w.b.begin_vote("dana", w.pending, "one-security", Verdict::Approve).await;
    "a cancellation" |w| {
        let call = w.b.call("dipylon.v1.TaskService/CancelAccessRequest", &w.triage.key, None, None);
        w.b.broker.cancel_access_request(&call, w.task, w.pending).await
    };
    "a token" |w| w.token(&read_case(), "between").await;
    "a token by the same votes" |w| w.token(&disable("ann"), "between").await;
    "a token again" |w| w.token(&read_case(), "read").await;
    "an access request" |w| w.token(&disable("yan"), "between").await;
    "an access request for the same" |w| w.token(&disable("zed"), "between").await;
    "an unknown target" |w| {
        w.token(&action("case.read", "Case", "INC-1", CASES, &[]), "between").await
    };
    "a use" |w| w.b.consume("idp", &w.single, "between").await;
    "a task" |w| w.b.try_open_task(&w.triage, "another", "between").await;
    "an invitation of lee" |w| w.b.invite("lee").await;
    "an enrolment" orders |w| w.b.enrol_with(&w.code, &PasskeyBehaviour::default()).await.ok();
    "an enrolment of maria" |w| w.b.enrol("maria").await;
    "a count of refusals" |w| w.b.broker.record_final_counts().await;
    "nothing" orders |_w| ();
}

async fn revoke_keys(w: &World, by: &str, of: &str) -> Result<usize, Refusal> {
    let call =
        w.b.person_call("dipylon.v1.ApprovalService/RevokeApproverKeys", by);
    w.b.broker
        .revoke_approver_keys(&call, person_id(of), Default::default())
        .await
        .map(|revoked| revoked.keys)
}
