//! A key is one holder's: each key that an entry has named, and its negative, is refused for every other holder and purpose, whole and
//! with a reason, also after a restart. A dead key does nothing for its own person either.

use std::collections::BTreeMap;
use std::sync::Arc;

use dipylon::journal::FaultInjection;
use dipylon_sdk::jose::SigningKey;
use dipylon_sdk::model::*;

use crate::support::agent_in_task::person_id;
use crate::support::cli_deployment::CliDeployment;
use crate::support::own_key::OwnKey;
use crate::support::passkey_votes::{ENROL, RP_ID, approve};
use crate::support::rounds::Rounds;
use crate::support::software_authenticator::PasskeyBehaviour;
use crate::support::*;

const APPLY: &str = "dipylon.v1.GovernanceService/ApplyPolicyBundle";
const FREEZE: &str = "dipylon.v1.GovernanceService/Freeze";
const INBOX: &str = "dipylon.v1.ApprovalService/ListAccessRequests";
const INTROSPECT: &str = "dipylon.v1.TokenService/Introspect";
const OPEN: &str = "dipylon.v1.TaskService/OpenTask";

type Files = BTreeMap<String, String>;

fn with_file(files: &Files, path: &str, change: impl FnOnce(&str) -> String) -> Files {
    let mut changed = files.clone();
    let text = change(&files[path]);
    assert_ne!(text, files[path], "{path}");
    changed.insert(path.to_owned(), text);
    changed
}

fn people_with(files: &Files, more: &str) -> Files {
    with_file(files, "people.toml", |text| format!("{text}{more}"))
}

/// The bundle with an agent pinned to a key.
fn pinned(files: &Files, agent: &str, key: &SigningKey) -> Files {
    with_file(files, "agents.toml", |text| {
        let id = format!("id = \"{agent}\"\n");
        text.replacen(&id, &format!("{id}jkt = \"{}\"\n", key.thumbprint()), 1)
    })
}

/// A key that entries have named.
struct Held {
    name: &'static str,
    key: OwnKey,
    /// Its table in the bundle in force, if it has one.
    row: Option<String>,
    /// The agent that may open tasks with it.
    agent: Option<&'static str>,
}

/// A broker with a key of each kind.
struct World {
    b: TestBroker,
    /// The bundle in force.
    files: Files,
    held: Vec<Held>,
}

async fn world() -> World {
    let mut env = TestEnvironment::new();
    let people = env.policy.get_mut("people.toml").expect("people");
    people.push_str(
        "\n[[person]]\nid = \"nora\"\nname = \"Nora Nilsen\"\ngroups = [\"security\"]\nroles = [\"approver\"]\n\
         \n[[validator]]\nid = \"spare\"\naudiences = [\"https://spare.soc.example\"]\n",
    );
    env.add_key("nora");
    env.add_key("spare");
    let (second, of_agent) = (OwnKey::generate(), OwnKey::generate());
    env.policy = people_with(&env.policy, &second.row("maria"));
    env.policy = pinned(&env.policy, "reporter", &of_agent.key);
    let b = TestBroker::start_with(env, FaultInjection::default()).await;
    let (passkey, revoked_passkey, of_task) =
        (OwnKey::generate(), OwnKey::generate(), OwnKey::generate());
    for key in [&passkey, &revoked_passkey] {
        b.enrol_key("lee", key).await.expect("enrolled");
    }
    for (of, key) in [("lee", &revoked_passkey), ("maria", &second)] {
        let revoked = b.revoke_keys_of(of, Some(key.key.thumbprint())).await;
        assert_eq!(revoked.expect("revoked"), 1);
    }
    let triage = TestAgent {
        key: Arc::new(OwnKey::of(&of_task.pkcs8).key),
        ..b.agent("triage")
    };
    b.open_task(&triage).await;
    // Nora and a validator go; maria's revoked key stays listed.
    let spare = b.env.own_key("spare").row("spare");
    let files = with_file(&b.env.without_person("nora"), "people.toml", |text| {
        text.replace(&spare, "")
    });
    b.apply_policy(files.clone()).await.expect("in force");
    let listed = |name: &'static str, of: &'static str| {
        let key = b.env.own_key(of);
        let row = Some(key.row(of));
        Held {
            name,
            key,
            row,
            agent: None,
        }
    };
    let held = |name, key, agent| Held {
        name,
        key,
        row: None,
        agent,
    };
    let held = vec![
        listed("a person's", "maria"),
        listed("a validator's", "idp"),
        listed("an auditor's", "audit"),
        held("a passkey", passkey, None),
        held("a pinned one", of_agent, Some("reporter")),
        held("a task's", of_task, Some("triage")),
        held("a revoked passkey", revoked_passkey, None),
        held("a revoked one", second, None),
        held("of a person who left", b.env.own_key("nora"), None),
        held("of a validator that is gone", b.env.own_key("spare"), None),
    ];
    World { b, files, held }
}

impl World {
    /// The bundle in which another key stands for the held one, so that nothing but the journal knows it.
    fn without(&self, held: &Held) -> Files {
        let Some(row) = &held.row else {
            return self.files.clone();
        };
        let of = row.split('"').nth(1).expect("of").to_owned();
        with_file(&self.files, "people.toml", |text| {
            text.replace(row, &OwnKey::generate().row(&of))
        })
    }

    async fn refuses_bundle(&self, files: Files, what: &str) {
        let refusal = self.b.apply_policy(files).await.expect_err(what);
        assert_eq!(refusal.reason, Reason::InvalidPolicyBundle, "{what}");
        let file = ["people.toml", "agents.toml"];
        assert!(
            file.iter().any(|file| refusal.message.contains(file)),
            "{what}: {refusal}"
        );
    }

    async fn refuses_every_use(&self, held: &Held, key: &OwnKey, is_twin: bool) {
        let (b, what) = (&self.b, held.name);
        let (_, before) = b.broker.show().position();
        let name = |what: &str| {
            format!(
                "{}{}: {what}",
                held.name,
                if is_twin { ", negated" } else { "" }
            )
        };
        let files = self.without(held);
        // For another person, another validator, an auditor; of the same person under another id.
        for of in ["dana", "cases", "audit"] {
            if !(of == "audit" && what == "an auditor's") {
                let more = people_with(&files, &key.row(of));
                self.refuses_bundle(more, &name(of)).await;
            }
        }
        let again = "\n[[person]]\nid = \"anew\"\nname = \"Ann Other\"\nroles = [\"operator\"]\n";
        let more = people_with(&files, &format!("{again}{}", key.row("anew")));
        self.refuses_bundle(more, &name("another id")).await;
        // A pin has a thumbprint alone, and no entry has the key of one.
        if held.agent.is_none() {
            let more = pinned(&files, "triage", &key.key);
            self.refuses_bundle(more, &name("a pin")).await;
        }
        let enrolled = b.enrol_key("dana", key).await;
        let refusal = enrolled.map(drop).expect_err(what);
        assert_eq!(
            refusal.reason,
            Reason::InvalidPasskeyAssertion,
            "{}",
            name("enrolment")
        );
        for agent in ["triage", "reporter"] {
            if held.agent == Some(agent) || what == "a task's" {
                continue;
            }
            let agent = TestAgent {
                key: Arc::new(OwnKey::of(&key.pkcs8).key),
                ..b.agent(agent)
            };
            let opened = b.try_open_task(&agent, "purpose", "held").await;
            assert_eq!(
                refused(opened),
                Reason::NotAuthenticated,
                "{}",
                name("a task")
            );
        }
        for method in [FREEZE, INBOX, INTROSPECT] {
            let call = b.call(method, &key.key, None, None);
            let caller = b.broker.authenticate_person(&call);
            let reason = match caller {
                Ok(caller) => {
                    assert!(
                        method == INBOX && what == "a person's" && !is_twin,
                        "{caller:?}"
                    );
                    continue;
                }
                Err(refusal) => refusal.reason,
            };
            assert!(
                [Reason::NotAuthenticated, Reason::NotPermitted].contains(&reason),
                "{}: {reason:?}",
                name(method)
            );
        }
        // Only the invitation of dana is recorded.
        assert_eq!(
            b.broker.show().position().1,
            before + 1,
            "{}",
            name("nothing half done")
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn key_is_refused_for_every_other_holder_and_use() {
    let mut world = world().await;
    for is_restarted in [false, true] {
        for (n, held) in world.held.iter().enumerate() {
            // Every key as it is and negated, before a restart or after it.
            let is_twin = (n % 2 == 0) == is_restarted;
            let key = match is_twin {
                true => held.key.negated(),
                false => OwnKey::of(&held.key.pkcs8),
            };
            world.refuses_every_use(held, &key, is_twin).await;
        }
        world.b.check_invariants();
        if !is_restarted {
            world.b = world.b.restart(FaultInjection::default()).await;
        }
    }
}

/// What no bundle may register at once: at the check, the apply, and the first start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bundle_registers_no_key_twice() {
    let site = CliDeployment::new();
    let b = TestBroker::start().await;
    let one = OwnKey::generate();
    let negated = one.negated();
    let policy = &b.env.policy;
    let twice = |first: &str, second: &str, key: &OwnKey| {
        people_with(policy, &(one.row(first) + &key.row(second)))
    };
    let with_pin =
        |of: &str, key: &OwnKey| pinned(&people_with(policy, &one.row(of)), "triage", &key.key);
    let rows: [(&str, Files); 11] = [
        ("two people", twice("maria", "lee", &one)),
        ("two people, negated", twice("maria", "lee", &negated)),
        ("one person, negated", twice("maria", "maria", &negated)),
        ("person and validator", twice("maria", "idp", &one)),
        (
            "person and auditor, negated",
            twice("maria", "audit", &negated),
        ),
        ("validator and auditor", twice("idp", "audit", &negated)),
        ("a pin and a person", with_pin("maria", &one)),
        ("a pin and a person, negated", with_pin("maria", &negated)),
        ("a pin and a validator", with_pin("idp", &one)),
        ("a pin and an auditor, negated", with_pin("audit", &negated)),
        (
            "two pins",
            pinned(&pinned(policy, "triage", &one.key), "reporter", &one.key),
        ),
    ];
    let says_why = |text: &str| {
        let words = ["the same key is already registered", "a key of its own"];
        words.iter().any(|words| text.contains(words))
    };
    let (_, before) = b.broker.show().position();
    for (what, files) in rows {
        for (path, text) in &files {
            site.write(&format!("policy/{path}"), text);
        }
        let (code, error, _) = site.run(&["policy", "check", "policy"]);
        assert_eq!(code, 1, "{what}: {error}");
        assert!(says_why(&error), "{what}: {error}");
        let refusal = b.apply_policy(files.clone()).await.expect_err(what);
        assert_eq!(refusal.reason, Reason::InvalidPolicyBundle, "{what}");
        assert!(says_why(&refusal.message), "{what}: {refusal}");
        let mut env = TestEnvironment::new();
        env.policy = files;
        let temp = tempfile::tempdir().expect("dir");
        let key = SigningKey::generate().expect("key").1;
        let dir = temp.path().join("data");
        let seeded = open_as(
            settings(),
            &env,
            &dir,
            &b.clock,
            &key,
            FaultInjection::default(),
        );
        let error = seeded.await.map(drop).expect_err(what).to_string();
        assert!(says_why(&error), "{what}: {error}");
    }
    assert_eq!(b.broker.show().position().1, before);
    b.check_invariants();
}

/// A revoked key that its own person's registration keeps: a warning, and it does nothing. A rollback does not bring it back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_key_of_its_own_person_does_nothing() {
    let mut b = TestBroker::start().await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let ann = disable("ann");
    let ask = async |b: &TestBroker| {
        // A start forgets evidence.
        let evidence = Some(b.svid(&triage));
        let asked = b.request_token_with_evidence(&triage, task, &ann, 300, "ann", evidence);
        asked.await
    };
    let id = ask(&b).await.pending().access_request;
    b.approve("maria", id, "one-security").await;
    let dead = b.env.keys["maria"].thumbprint();
    assert_eq!(b.revoke_keys_of("maria", None).await.expect("revoked"), 1);
    let rotated = people_with(&b.env.policy, &OwnKey::generate().row("maria"));
    let negated = people_with(&rotated, &b.env.own_key("maria").negated().row("lee"));
    let refusal = b.apply_policy(negated).await.expect_err("one key twice");
    assert_eq!(refusal.reason, Reason::InvalidPolicyBundle);
    // The negative in place of the key is the same dead key under another thumbprint.
    let row = b.env.own_key("maria").row("maria");
    let negated = b.env.own_key("maria").negated();
    let in_its_place = with_file(&rotated, "people.toml", |text| {
        text.replace(&row, &negated.row("maria"))
    });
    let warning = format!("the key {dead} of maria is dead and does nothing: remove it");
    // Without maria's key one person is too few for two approvals.
    let mut with_dead_key = b.env.policy.clone();
    silence(&mut with_dead_key, "quorum-unreachable", "two-security");
    for is_restarted in [false, true] {
        let refusal = b.apply_policy(in_its_place.clone()).await;
        assert_eq!(refused(refusal), Reason::InvalidPolicyBundle);
        // Forth and back.
        for files in [rotated.clone(), with_dead_key.clone()] {
            let applied = b.apply_policy(files).await.expect("in force");
            assert!(
                applied.warnings.iter().any(|w| w.contains(&warning)),
                "{:?}",
                applied.warnings
            );
            for key in [&b.env.keys["maria"], &negated.key] {
                let call = b.call(INBOX, key, None, None);
                let caller = b.broker.authenticate_person(&call);
                assert_eq!(refused(caller), Reason::NotAuthenticated);
            }
            let vote = b.vote("maria", id, "one-security", Verdict::Approve).await;
            assert_eq!(refused(vote), Reason::NotAuthenticated);
            // Nor does the vote from before.
            ask(&b).await.pending();
        }
        b.check_invariants();
        if !is_restarted {
            b = b.restart(FaultInjection::default()).await;
        }
    }
}

/// A key with which a task is opened in the moment in which it becomes a person's: it acts for neither, and its vote never counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn key_of_a_task_and_a_person_at_once_acts_for_neither() {
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Door {
        Bundle,
        Enrolment,
    }
    for (door, is_task_first) in [
        (Door::Bundle, true),
        (Door::Bundle, false),
        (Door::Enrolment, true),
        (Door::Enrolment, false),
    ] {
        let case = format!("{door:?}, task first: {is_task_first}");
        let rounds = Rounds::default();
        let b = TestBroker::start_with(TestEnvironment::new(), rounds.faults()).await;
        let b = Arc::new(b);
        let key = OwnKey::generate();
        let triage = TestAgent {
            key: Arc::new(OwnKey::of(&key.pkcs8).key),
            ..b.agent("triage")
        };
        let files = people_with(&b.env.policy, &key.row("lee"));
        let code = b.invite("lee").await;
        let begun = b.broker.begin_enrolment(ENROL, &code).expect("begins");
        let passkey = Arc::new(key.passkey(RP_ID, &begun.user));
        let made = passkey.register_as(&begun.challenge, CONSOLE, &PasskeyBehaviour::default());
        let enter = {
            let b = b.clone();
            async move {
                match door {
                    Door::Bundle => b.apply_policy(files).await.map(drop),
                    Door::Enrolment => {
                        let enrolled = b.broker.finish_enrolment(ENROL, &code, &made, "Phone");
                        enrolled.await.map(drop)
                    }
                }
            }
        };
        let (is_entered, is_opened) = if is_task_first {
            let (other, agent) = (b.clone(), triage.clone());
            let method = match door {
                Door::Bundle => APPLY,
                Door::Enrolment => ENROL,
            };
            rounds.interpose(method, async move {
                other.open_task(&agent).await;
            });
            (enter.await.is_ok(), true)
        } else {
            rounds.interpose(OPEN, async move { enter.await.expect("entered") });
            let opened = b.try_open_task(&triage, "purpose", "open-1").await;
            (true, opened.is_ok())
        };
        assert!(rounds.is_spent(), "{case}");
        assert!(is_entered || is_opened, "{case}");
        let ask = async |task| {
            b.request_token(&triage, task, &read_case(), 300, "read")
                .await
        };
        let task = b
            .broker
            .show()
            .open_tasks()
            .first()
            .map(|task| task.opened.task);
        // An apply ends the task whose key is somebody else's.
        let is_ended = is_task_first && matches!(door, Door::Bundle);
        assert_eq!(task.is_some(), is_opened && !is_ended, "{case}");
        if let (true, Some(task)) = (is_entered, task) {
            assert_eq!(refused(ask(task).await), Reason::NotAuthenticated, "{case}");
        }
        // Another task's request, on which lee may vote with another key.
        let other = b.agent("triage");
        let second = b.try_open_task(&other, "purpose", "open-2").await;
        let second = second.expect("opens").task.task;
        let ann = disable("ann");
        let asked = b.request_token(&other, second, &ann, 300, "ann");
        let id = asked.await.pending().access_request;
        if is_opened {
            let call = b.call(INBOX, &key.key, None, None);
            assert!(b.broker.authenticate_person(&call).is_err(), "{case}");
            assert!(b.sign_in(&passkey).await.is_err(), "{case}");
        } else if door == Door::Enrolment {
            let session = b.sign_in(&passkey).await.expect("lee's alone");
            let cast = b.vote_in_session(&session, &passkey, id, approve()).await;
            cast.expect("counts");
        }
        b.check_invariants();
        assert!(
            !b.broker.show().living_keys(&person_id("lee")).is_empty(),
            "{case}"
        );
    }
}
