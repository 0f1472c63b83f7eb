//! Sweeps: the records of many agents, each with an owner of its own, are ended, extended and closed in one pass, by entries that each
//! rest on no more than an entry may.

use std::collections::BTreeMap;
use std::sync::Arc;

use dipylon::broker::BundleApplied;
use dipylon::journal::FaultInjection;
use dipylon::state::StoredStatus;
use dipylon_sdk::model::*;

use crate::support::*;

/// Agents, each of another owner: their grounds are of no more than four tasks in common.
const AGENTS: usize = 26;

struct Fleet {
    b: TestBroker,
    agents: Vec<TestAgent>,
    tasks: Vec<TaskId>,
    tokens: Vec<TokenId>,
    requests: Vec<AccessRequestId>,
}

fn name(n: usize) -> String {
    format!("worker-{n}")
}

/// The bundle with the fleet, in which worker n belongs to owner n + `shift`.
fn bundle(policy: &BTreeMap<String, String>, shift: usize) -> BTreeMap<String, String> {
    let mut files = policy.clone();
    let agents = files.get_mut("agents.toml").expect("agents");
    for n in 0..AGENTS {
        let (name, owner) = (name(n), (n + shift) % AGENTS);
        agents.push_str(&format!(
            "\n[[agent]]\nid = \"{name}\"\nspiffe_id = \"spiffe://soc.example/agent/{name}\"\nowner = \"owner-{owner}\"\n\
             environment = \"prod\"\nmodel = \"m\"\nautonomy = \"supervised\"\ngroups = [\"soc\"]\n\
             actions = [\"case.read\", \"account.disable\"]\n"
        ));
    }
    files
}

fn environment() -> TestEnvironment {
    let mut env = TestEnvironment::new();
    let people = env.policy.get_mut("people.toml").expect("people");
    for n in 0..AGENTS {
        people.push_str(&format!(
            "\n[[person]]\nid = \"owner-{n}\"\nname = \"Owner {n}\"\nroles = [\"approver\"]\n"
        ));
    }
    env
}

impl Fleet {
    async fn start() -> Self {
        let b = TestBroker::start_with(environment(), FaultInjection::default()).await;
        let agents = (0..AGENTS).map(|n| b.agent(&name(n))).collect();
        let fleet = Self {
            b,
            agents,
            tasks: Vec::new(),
            tokens: Vec::new(),
            requests: Vec::new(),
        };
        fleet.apply(bundle(&fleet.b.env.policy, 0)).await;
        fleet
    }

    async fn apply(&self, files: BTreeMap<String, String>) -> BundleApplied {
        let applied = self.b.apply_policy(files).await.expect("in force");
        assert!(applied.changed);
        applied
    }

    /// A task with a heartbeat for each agent, with a token and a pending access request.
    async fn work(&mut self, key: &str) {
        self.tasks.clear();
        self.tokens.clear();
        self.requests.clear();
        let (reading, disabling) = (read_case(), disable("ann"));
        for agent in &self.agents {
            let opened = self.b.open_task_with(agent, "work", key, Some(60)).await;
            let task = opened.expect("opens").task.task;
            let read = self.b.request_token(agent, task, &reading, 300, "read");
            self.tokens.push(read.await.token().issued.jti);
            let ask = self.b.request_token(agent, task, &disabling, 120, "ask");
            self.requests.push(ask.await.pending().access_request);
            self.tasks.push(task);
        }
    }

    fn ended(&self) -> Vec<Option<EndCause>> {
        let ended = |id| self.b.broker.show().task(id).expect("known").ended;
        let mut causes: Vec<_> = self
            .tasks
            .iter()
            .map(|id| ended(id).map(|ended| ended.cause))
            .collect();
        causes.dedup();
        causes
    }

    fn statuses(&self) -> Vec<StoredStatus> {
        let request = |id| self.b.broker.show().access_request(id).expect("known");
        let mut statuses: Vec<_> = self.requests.iter().map(|id| request(id).status).collect();
        statuses.dedup();
        statuses
    }

    fn leases(&self) -> Vec<Timestamp> {
        let task = |id| self.b.broker.show().task(id).expect("known");
        let mut leases: Vec<_> = self
            .tasks
            .iter()
            .filter_map(|id| task(id).lease.map(|lease| lease.until))
            .collect();
        leases.dedup();
        leases
    }

    async fn keep_alive(&self) {
        let mut calls = tokio::task::JoinSet::new();
        for (agent, task) in self.agents.iter().zip(&self.tasks) {
            let call = self
                .b
                .call("dipylon.v1.TaskService/KeepAlive", &agent.key, None, None);
            let (broker, task) = (Arc::clone(&self.b.broker), *task);
            calls.spawn(async move { broker.keep_alive(&call, task).await });
        }
        for until in calls.join_all().await {
            assert_eq!(until.expect("extended"), self.b.now().plus_secs(60));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_records_of_many_agents_fit_into_entries() {
    let mut fleet = Fleet::start().await;
    fleet.work("first").await;

    // Every agent gets another owner: what it does rests on both. Nothing of it is disallowed.
    let moved = fleet.apply(bundle(&fleet.b.env.policy, 1)).await;
    assert_eq!(moved.revoked, Default::default());
    fleet.b.manual_clock.advance_millis(40_000);
    fleet.keep_alive().await;

    // An outage of a broker that had stopped.
    fleet.b.broker.stop_serving().await;
    fleet.b.manual_clock.advance_millis(70_000);
    fleet.b = fleet.b.restart(FaultInjection::default()).await;
    assert_eq!(fleet.leases(), [fleet.b.now().plus_secs(60)]);
    assert_eq!(fleet.ended(), [None]);

    // Rules that allow nothing any more: tasks go on, tokens and access requests end.
    let mut files = bundle(&fleet.b.env.policy, 1);
    let forbid = "@id(\"stop\")\n@why(\"Stop.\")\n\
        forbid (principal, action in [Action::\"read\", Action::\"write\"], resource) when { context.evidence.verified_age < duration(\"365d\") };\n";
    files.insert("rules/30-stop.cedar".to_owned(), forbid.to_owned());
    let revoked = fleet.apply(files).await.revoked;
    assert_eq!(
        (revoked.tasks, revoked.grants, revoked.requests),
        (0, AGENTS, AGENTS)
    );
    assert_eq!(fleet.statuses(), [StoredStatus::Closed(CloseCause::Policy)]);
    for jti in &fleet.tokens {
        let grant = fleet.b.broker.show().grant(jti).expect("known");
        assert_eq!(grant.ended.map(|ended| ended.cause), Some(EndCause::Policy));
    }

    // A bundle without the agents.
    let gone = fleet.apply(fleet.b.env.policy.clone()).await;
    assert_eq!(gone.revoked.tasks, AGENTS);
    assert_eq!(fleet.ended(), [Some(EndCause::Policy)]);

    // Time ends all of it: one tick records it.
    fleet.apply(bundle(&fleet.b.env.policy, 0)).await;
    fleet.work("second").await;
    fleet.b.manual_clock.advance_millis(40_000);
    for _ in 0..21 {
        fleet.keep_alive().await;
        fleet.b.manual_clock.advance_millis(40_000);
    }
    fleet.keep_alive().await;
    fleet.b.manual_clock.advance_millis(20_000);
    fleet.b.broker.maintenance_tick().await.expect("written");
    assert_eq!(fleet.ended(), [None]);
    assert_eq!(
        fleet.statuses(),
        [StoredStatus::Closed(CloseCause::Expired)]
    );
    fleet.b.manual_clock.advance_millis(60_000);
    fleet.b.broker.maintenance_tick().await.expect("written");
    assert_eq!(fleet.ended(), [Some(EndCause::Lease)]);
    fleet.b.check_invariants();
}

/// Heartbeats of tasks that lapse before their entry is decided are left out, and count as read: the one that is left is extended.
#[tokio::test]
async fn heartbeats_that_are_left_out_keep_no_other_from_its_entry() {
    let fleet = Fleet::start().await;
    let b = &fleet.b;
    let mut tasks = Vec::new();
    for (n, agent) in fleet.agents.iter().take(12).enumerate() {
        let heartbeat = if n == 11 { 79 } else { 60 };
        let opened = b.open_task_with(agent, "work", "first", Some(heartbeat));
        tasks.push(opened.await.expect("opens").task.task);
    }
    fleet.apply(bundle(&b.env.policy, 1)).await;
    b.manual_clock.advance_millis(40_000);
    let mut calls = Vec::new();
    for (agent, task) in fleet.agents.iter().zip(&tasks) {
        let call = b.call("dipylon.v1.TaskService/KeepAlive", &agent.key, None, None);
        let (broker, task) = (Arc::clone(&b.broker), *task);
        calls.push(tokio::spawn(
            async move { broker.keep_alive(&call, task).await },
        ));
    }
    // Each has handed in its heartbeat, and none is decided yet: this thread runs them one after the other.
    tokio::task::yield_now().await;
    b.manual_clock.advance_millis(20_000);
    let mut answers = Vec::new();
    for call in calls {
        answers.push(call.await.expect("answers"));
    }
    let last = answers.pop().expect("twelve");
    assert_eq!(last.expect("extended"), b.now().plus_secs(79));
    for answer in answers {
        assert_eq!(refused(answer), Reason::TaskEnded);
    }
    b.check_invariants();
}
