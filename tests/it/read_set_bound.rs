//! In a realm of many people and tasks every entry rests on at most 64 streams: what is read of many records is one stream.

use std::collections::BTreeSet;
use std::sync::Arc;

use dipylon::journal::FaultInjection;
use dipylon_sdk::model::*;

use crate::concurrency::at_once;
use crate::support::*;

/// People who may approve, beside those of the example: fewer than a large realm has, because the test's build loads their bundle slowly.
const PEOPLE: usize = 1_000;
/// Agents, each of another owner.
const AGENTS: usize = 50;
/// Tasks that are open at once: fewer than a large realm has, to be opened in a second.
const TASKS: usize = 200;
/// Streams that an entry may rest on.
const STREAMS_MAX: usize = 64;

fn name(n: usize) -> String {
    format!("worker-{n}")
}

fn environment() -> TestEnvironment {
    let mut env = TestEnvironment::new();
    let people = env.policy.get_mut("people.toml").expect("people");
    for n in 0..PEOPLE {
        // The editors, who alone approve a note, have no key.
        let group = if n % 2 == 0 { "security" } else { "editors" };
        people.push_str(&format!(
            "\n[[person]]\nid = \"person-{n}\"\nname = \"Person {n}\"\ngroups = [\"{group}\"]\nroles = [\"approver\"]\n"
        ));
    }
    people.push_str(
        "\n[profile.one-editor]\ngroup = \"editors\"\nquorum = 1\nwait = \"15m\"\ngood_for = \"10m\"\nmethod = \"key\"\n",
    );
    let agents = env.policy.get_mut("agents.toml").expect("agents");
    for n in 0..AGENTS {
        let name = name(n);
        agents.push_str(&format!(
            "\n[[agent]]\nid = \"{name}\"\nspiffe_id = \"spiffe://soc.example/agent/{name}\"\nowner = \"person-{n}\"\n\
             environment = \"prod\"\nmodel = \"m\"\nautonomy = \"supervised\"\ngroups = [\"soc\"]\n\
             actions = [\"case.read\", \"case.note\", \"account.disable\"]\n"
        ));
    }
    let rules = env
        .policy
        .get_mut("rules/20-guardrails.cedar")
        .expect("rules");
    rules.push_str(
        "\n@id(\"notes-need-an-editor\")\n@why(\"For this story.\")\n@step_up(\"one-editor\")\n\
         forbid (principal, action == Action::\"case.note\", resource)\n\
         unless { context.approvals.contains(StepUp::\"one-editor\") };\n",
    );
    env
}

async fn open_tasks(b: &Arc<TestBroker>, round: usize) -> Vec<(TestAgent, TaskId)> {
    let jobs = (0..TASKS).map(|n| {
        let (b, agent) = (Arc::clone(b), b.agent(&name(n % AGENTS)));
        async move {
            let key = format!("open-{round}-{n}");
            let opened = b.try_open_task(&agent, "work", &key).await;
            (agent, opened.expect("opens").task.task)
        }
    });
    at_once(jobs.collect()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_rest_on_few_streams_in_a_large_realm() {
    let env = environment();
    let b = Arc::new(TestBroker::start_with(env, FaultInjection::default()).await);
    let tasks = open_tasks(&b, 0).await;
    let (agent, task) = &tasks[0];
    let ask =
        async |action: &Action, key: &str| b.request_token(agent, *task, action, 300, key).await;

    let id = ask(&disable("ann"), "ann").await.pending().access_request;
    b.approve("maria", id, "one-security").await;
    assert_eq!(
        ask(&disable("ann"), "ann").await.token().issued.consumed,
        Some(id)
    );

    let text = [("text", Param::Str("seen".to_owned()))];
    let note = action("case.note", "Case", "INC-8841", CASES, &text);
    ask(&note, "note").await.denied();

    // Every agent gets another owner, and every token that is out is judged anew.
    for (n, (agent, task)) in tasks.iter().take(AGENTS).enumerate() {
        b.request_token(agent, *task, &read_case(), 300, &format!("read-{n}"))
            .await
            .token();
    }
    let mut files = b.env.policy_with("agents.toml", |text| {
        (0..AGENTS).rev().fold(text.to_owned(), |text, n| {
            let (old, new) = (format!("\"person-{n}\""), format!("\"person-{}\"", n + 1));
            text.replace(&old, &new)
        })
    });
    let forbid = "@id(\"stop\")\n@why(\"Stop.\")\nforbid (principal, action == Action::\"case.read\", resource) when { context.evidence.verified_age < duration(\"365d\") };\n";
    files.insert("rules/30-stop.cedar".to_owned(), forbid.to_owned());
    let applied = b.apply_policy(files).await.expect("in force");
    assert_eq!((applied.revoked.tasks, applied.revoked.grants), (0, AGENTS));

    let frozen = b.freeze("all").await.expect("frozen");
    assert_eq!(frozen.tasks, TASKS);
    b.unfreeze("all").await.expect("lifted");

    // Time ends the tasks.
    open_tasks(&b, 1).await;
    b.manual_clock.advance_millis(3_600_000);
    b.broker.maintenance_tick().await.expect("written");
    assert_eq!(b.broker.show().open_tasks().len(), 0);

    let (_, head) = b.broker.show().position();
    let mut kinds = BTreeSet::new();
    for index in 0..=head {
        let stored = b
            .broker
            .journal()
            .entry(index)
            .expect("reads")
            .expect("an entry");
        let entry = Entry::parse(&stored.text).expect("parses");
        let kind = entry.event.kind();
        assert!(
            entry.read_set.len() <= STREAMS_MAX,
            "entry {index}, {kind}: {}",
            entry.read_set.len()
        );
        kinds.insert(kind);
    }
    for kind in [
        "TokenIssued",
        "RequestDenied",
        "PolicyApplied",
        "GrantsEnded",
        "Frozen",
        "TaskEnded",
    ] {
        assert!(kinds.contains(kind), "{kind}");
    }
}
