//! Plans of policy bundles from the command line: what would end, what history would have come out, and an apply of what was planned.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::cli::setup::{CliSetup, DISABLE, READ, text};
use crate::support::*;

const GUARDS: &str = "rules/20-guardrails.cedar";
const OLGA: [&str; 2] = ["--key", "olga.pem"];
/// Reading a case takes a person.
const READING_ASKS: &str = "\n@id(\"reading-asks\")\n@step_up(\"one-security\")\n\
    forbid (principal, action == Action::\"case.read\", resource)\n\
    unless { context.approvals.containsAny([StepUp::\"one-security\", StepUp::\"two-security\"]) };\n";

type Files = BTreeMap<String, String>;

async fn as_olga(setup: &CliSetup, args: &[&str], code: i32) -> Value {
    let args = [&["policy"], args, &OLGA[..]].concat();
    setup.json(&args, code).await
}

fn write(setup: &CliSetup, dir: &str, files: &Files) {
    write_policy(&setup.path(dir), files);
}

/// The bundle in which reading a case takes a person, and disabling an account does not.
fn turned_around(files: &Files) -> Files {
    let mut files = files.clone();
    let guards = files.get_mut(GUARDS).expect("rules");
    let from = guards
        .find("@id(\"destructive-needs-approval\")")
        .expect("a rule");
    let end = guards[from..].find("};").expect("its end") + 2;
    guards.replace_range(from..from + end, READING_ASKS);
    files
}

fn without_agent(files: &Files, id: &str) -> Files {
    let mut files = files.clone();
    let agents = files.get_mut("agents.toml").expect("agents");
    let from = agents
        .find(&format!("[[agent]]\nid = \"{id}\""))
        .expect("an agent");
    let end = agents[from + 2..]
        .find("[[")
        .map_or(agents.len(), |end| from + 2 + end);
    agents.replace_range(from..end, "");
    files
}

fn class<'a>(plan: &'a Value, action: &str) -> &'a Value {
    let classes = plan["replay"]["changes"].as_array().expect("classes");
    let found = classes.iter().find(|class| class["action"] == action);
    found.unwrap_or_else(|| panic!("no class of {action}: {plan}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_says_what_would_end_and_what_would_have_come_out() {
    let setup = CliSetup::start().await;
    let seed = setup.served.env.policy.clone();
    write(&setup, "seed", &seed);
    let task = setup.open_task("triage").await;
    let request = async |args: &[&str], code: i32| {
        let args = [&["token", "request"], args].concat();
        setup.json(&args, code).await
    };
    let token = text(&request(&READ, 0).await["jti"]);
    request(&DISABLE, 11).await;
    let bob: Vec<&str> = DISABLE
        .iter()
        .map(|a| {
            if *a == "Account::ann" {
                "Account::bob"
            } else {
                a
            }
        })
        .collect();
    request(&bob, 10).await;

    // The bundle in force changes nothing.
    let same = as_olga(&setup, &["plan", "seed"], 0).await;
    assert_eq!(same["base_version"], same["version"]);
    let replay = &same["replay"];
    let is = (&replay["decisions"], &replay["same"], &replay["changes"]);
    assert_eq!(is, (&json!(3), &json!(3), &json!([])), "{same}");
    assert_eq!(replay["asked"], replay["would_ask"]);
    assert_eq!(replay["asked"]["requests"], 1);
    assert_eq!(same["ends"]["tasks"]["count"], 0);

    let turned = turned_around(&seed);
    write(&setup, "turned", &turned);
    let plan = as_olga(&setup, &["plan", "turned"], 0).await;
    let read = class(&plan, "case.read");
    let is = (&read["was"], &read["would_be"], &read["count"]);
    assert_eq!(
        is,
        (
            &json!("allowed"),
            &json!({ "pending": ["one-security"] }),
            &json!(1)
        ),
        "{plan}"
    );
    let example = &read["examples"][0];
    assert_eq!(example["target"], "Case::INC-8841");
    let by = example["would_be_by"].as_array().expect("rules");
    assert!(
        by.iter().any(|rule| rule["id"] == "reading-asks"),
        "{example}"
    );
    // What time alone would let through is said as that.
    let mut slow = turned.clone();
    let rule = READING_ASKS
        .replace(
            "@step_up(\"one-security\")",
            "@step_up(\"one-security\") @delay(\"15m\")",
        )
        .replace(" };", " || context.waited >= duration(\"15m\") };");
    let guards = slow.get_mut(GUARDS).expect("rules");
    *guards = guards.replace(READING_ASKS, &rule);
    write(&setup, "slow", &slow);
    let of_slow = as_olga(&setup, &["plan", "slow"], 0).await;
    let would_be =
        json!({ "delayed": { "profiles": ["one-security"], "seconds": 900, "needs": [] } });
    assert_eq!(class(&of_slow, "case.read")["would_be"], would_be);

    let disable = class(&plan, "account.disable");
    let is = (&disable["was"], &disable["would_be"], &disable["count"]);
    assert_eq!(
        is,
        (
            &json!({ "pending": ["one-security"] }),
            &json!("allowed"),
            &json!(1)
        )
    );
    let (asked, would_ask) = (&plan["replay"]["asked"], &plan["replay"]["would_ask"]);
    assert_eq!(
        (&asked["requests"], &would_ask["requests"]),
        (&json!(1), &json!(1))
    );
    let tokens = &plan["ends"]["tokens"];
    assert_eq!(tokens["count"], 1);
    assert_eq!(tokens["named"][0]["id"], json!(token));
    assert_eq!(tokens["named"][0]["what"], "case.read on Case::INC-8841");
    assert_eq!(plan["ends"]["reassessed"]["count"], 1, "{plan}");
    let shown = setup
        .run(&[&["policy", "plan", "turned"], &OLGA[..]].concat())
        .await;
    for part in [
        "ends     0 tasks, 1 token, 0 access requests; 1 access request would need other approvals",
        "case.read: allowed, would be pending on one-security",
        "WARNING  1 request that people were asked about would be allowed without them",
    ] {
        assert!(shown.code(0).out().contains(part), "{}", shown.out());
    }

    write(&setup, "gone", &without_agent(&seed, "triage"));
    let gone = as_olga(&setup, &["plan", "gone"], 0).await;
    let tasks = &gone["ends"]["tasks"];
    assert_eq!(
        (&tasks["count"], &tasks["named"][0]["id"]),
        (&json!(1), &json!(task))
    );
    assert_eq!(gone["ends"]["tokens"]["count"], 1, "its token with it");
    assert_eq!(gone["ends"]["access_requests"]["count"], 1);

    // Nothing was applied, and the token lives.
    let status = as_olga(&setup, &["status"], 0).await;
    assert_eq!(status["version"], same["version"]);

    // An apply is held to the version that was planned on.
    std::fs::write(setup.path("turned.json"), plan.to_string()).expect("written");
    std::fs::write(setup.path("gone.json"), gone.to_string()).expect("written");
    let other = as_olga(&setup, &["apply", "gone", "--plan", "turned.json"], 1).await;
    let said = text(&other["error"]["message"]);
    assert!(said.contains("is a plan of version"), "{said}");
    let applied = as_olga(&setup, &["apply", "turned", "--plan", "turned.json"], 0).await;
    assert_eq!(
        (&applied["changed"], &applied["tokens_ended"]),
        (&json!(true), &json!(1))
    );
    let late = setup
        .run(
            &[
                &["policy", "apply", "gone", "--plan", "gone.json", "--json"],
                &OLGA[..],
            ]
            .concat(),
        )
        .await;
    assert_ne!(late.0.status.code(), Some(0));
    assert_eq!(
        late.json()["error"]["reason"],
        "POLICY_CHANGED",
        "{}",
        late.out()
    );
    let status = as_olga(&setup, &["status"], 0).await;
    assert_eq!(status["version"], applied["version"]);
    // What is in force already stays: nothing is done on another version.
    let again = as_olga(&setup, &["apply", "turned", "--plan", "turned.json"], 0).await;
    assert_eq!(again["changed"], false);
}

/// A decision whose sensitive input is no longer on record is counted by its action.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_decided_again_is_counted() {
    let CliSetup { served, home } = CliSetup::start().await;
    let setup = CliSetup { served, home };
    setup.open_task("triage").await;
    let note = [
        "token",
        "request",
        "--action",
        "case.note",
        "--target",
        "Case::INC-8841",
        "--audience",
        CASES,
        "--param",
        "text=seen from a tower",
    ];
    setup.json(&note, 0).await;
    setup
        .json(&[&["token", "request"], &READ[..]].concat(), 0)
        .await;
    let CliSetup { served, home } = setup;
    let served = served
        .restart_after(async |dir, _| {
            let db = rusqlite::Connection::open(dir.join("journal.db")).expect("database");
            let gone = db.execute(
                "DELETE FROM blobs WHERE content LIKE '%seen from a tower%'",
                [],
            );
            assert_eq!(gone.expect("deleted"), 1);
        })
        .await;
    let setup = CliSetup { served, home };
    write(&setup, "seed", &setup.served.env.policy);
    let plan = as_olga(&setup, &["plan", "seed"], 0).await;
    let replay = &plan["replay"];
    let is = (
        &replay["decisions"],
        &replay["same"],
        &replay["not_replayed"],
    );
    assert_eq!(
        is,
        (&json!(1), &json!(1), &json!({ "case.note": 1 })),
        "{plan}"
    );
}

/// What a rule would have decided by a sensitive value is not said: a plan for each guess would tell the value.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_tells_no_sensitive_value() {
    let setup = CliSetup::start().await;
    let seed = setup.served.env.policy.clone();
    setup.open_task("triage").await;
    let note = [
        "--action",
        "case.note",
        "--target",
        "Case::INC-8841",
        "--audience",
        CASES,
        "--param",
        "text=seen from a tower",
    ];
    setup
        .json(&[&["token", "request"], &note[..]].concat(), 0)
        .await;
    let replay = async |name: &str, files: &Files| {
        write(&setup, name, files);
        as_olga(&setup, &["plan", name], 0).await["replay"].clone()
    };
    let with_rule = |files: &Files, id: &str, action: &str, condition: &str| {
        let mut files = files.clone();
        let rules = files.get_mut(GUARDS).expect("rules");
        rules.push_str(&format!(
            "\n@id(\"{id}\")\nforbid (principal, action == Action::\"{action}\", resource)\nwhen {{ {condition} }};\n"
        ));
        files
    };
    let guess = |text: &str| format!("context.parameters.text == \"{text}\"");
    let is_withheld = |replay: &Value| {
        assert_eq!(replay["decisions"], 0, "{replay}");
        assert_eq!(replay["changes"], json!([]), "{replay}");
        assert_eq!(
            replay["not_replayed"],
            json!({ "case.note": 1 }),
            "{replay}"
        );
    };
    let right = with_rule(&seed, "guess", "case.note", &guess("seen from a tower"));
    is_withheld(&replay("right", &right).await);
    let wrong = with_rule(&seed, "guess", "case.note", &guess("seen from a hill"));
    is_withheld(&replay("wrong", &wrong).await);
    // Nor by a rule that compares it with what another bundle says of a target.
    let compared = "context.target_known && context.parameters.text == resource.title";
    let compared = with_rule(&seed, "compared", "case.note", compared);
    write(&setup, "compared", &compared);
    as_olga(&setup, &["apply", "compared"], 0).await;
    let mut retitled = compared.clone();
    let entities = retitled.get_mut("entities.json").expect("entities");
    *entities = entities.replacen("Sign-ins from two continents", "seen from a tower", 1);
    assert_ne!(retitled, compared);
    is_withheld(&replay("retitled", &retitled).await);
    // A parameter that is no longer sensitive is no way around it.
    let mut open = right.clone();
    let catalogue = open.get_mut("schema.cedarschema").expect("catalogue");
    *catalogue = catalogue.replace("@sensitive", "");
    is_withheld(&replay("open", &open).await);
    // What asks nothing about it is decided again.
    let other = with_rule(
        &compared,
        "closed",
        "case.read",
        "context.ttl > duration(\"1m\")",
    );
    let replay = replay("other", &other).await;
    assert_eq!(
        (&replay["decisions"], &replay["not_replayed"]),
        (&json!(1), &json!({})),
        "{replay}"
    );
}

/// The card of a proposal shows its plan beside what is signed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_card_of_a_proposal_has_its_plan() {
    let mut env = TestEnvironment::new();
    let people = env.policy.get_mut("people.toml").expect("people");
    people.push_str("\n[[person]]\nid = \"otto\"\nname = \"Otto Otis\"\nroles = [\"operator\"]\n");
    env.add_key("otto");
    let setup = CliSetup::start_in(env).await;
    setup.open_task("triage").await;
    setup
        .json(&[&["token", "request"], &READ[..]].concat(), 0)
        .await;
    write(&setup, "turned", &turned_around(&setup.served.env.policy));
    let waits = as_olga(&setup, &["apply", "turned"], 11).await;
    let id = text(&waits["access_request"]);
    let card = async || {
        let show = ["request", "show", &id, "--key", "otto.pem"];
        setup.run(&show).await.code(0).out()
    };
    let mut shown = card().await;
    for _ in 0..200 {
        if !shown.contains("plan is being made") {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        shown = card().await;
    }
    // Folded at the width of the terminal.
    let shown: Vec<&str> = shown.split_whitespace().collect();
    let shown = shown.join(" ");
    for part in [
        "0 tasks, 1 token and 0 access requests would end",
        "1 decision about case.read: allowed would be pending on one-security",
    ] {
        assert!(shown.contains(part), "{shown}");
    }
}

/// What an apply would do to waiting requests and to approvals that were given, and what it would warn of, is in the plan.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_approvals_and_pins_are_looked_at() {
    let setup = CliSetup::start().await;
    let seed = setup.served.env.policy.clone();
    setup.open_task("triage").await;
    let request = [&["token", "request"], &DISABLE[..]].concat();
    let pending = setup.json(&request, 11).await;
    let id = text(&pending["access_request"]);

    // Who could approve it changes with the bundle.
    let mut fewer = seed.clone();
    let people = fewer.get_mut("people.toml").expect("people");
    *people = people.replacen(
        "name = \"Maria Moreau\"\ngroups = [\"security\"]",
        "name = \"Maria Moreau\"\ngroups = []",
        1,
    );
    silence(&mut fewer, "quorum-unreachable", "two-security");
    write(&setup, "fewer", &fewer);
    let plan = as_olga(&setup, &["plan", "fewer"], 0).await;
    assert_eq!(
        plan["ends"]["uncertain"]["named"][0]["id"],
        json!(id),
        "{plan}"
    );
    let warnings = plan["warnings"].to_string();
    assert!(warnings.contains("silenced by the bundle"), "{warnings}");

    // An approval would be void, since its card would say something else.
    let vote = [
        "approve",
        &id,
        "--yes",
        "--realm",
        "test",
        "--key",
        "maria.pem",
    ];
    setup.json(&vote, 0).await;
    let mut retold = seed.clone();
    let catalogue = retold.get_mut("schema.cedarschema").expect("catalogue");
    *catalogue = catalogue.replacen(
        "The account can no longer sign in.",
        "The account is gone.",
        1,
    );
    write(&setup, "retold", &retold);
    let plan = as_olga(&setup, &["plan", "retold"], 0).await;
    assert_eq!(
        plan["ends"]["reassessed"]["named"][0]["id"],
        json!(id),
        "{plan}"
    );

    // Under another key of the agent nothing is said of decisions whose key is not on record.
    let mut pinned = seed.clone();
    let agents = pinned.get_mut("agents.toml").expect("agents");
    let jkt = dipylon_sdk::model::Digest::sha256(b"another key");
    *agents = agents.replacen(
        "id = \"triage\"\n",
        &format!("id = \"triage\"\njkt = \"{jkt}\"\n"),
        1,
    );
    write(&setup, "pinned", &pinned);
    let plan = as_olga(&setup, &["plan", "pinned"], 0).await;
    assert_eq!(plan["ends"]["tasks"]["count"], 1);
    assert_eq!(
        plan["replay"]["not_replayed"],
        json!({ "account.disable": 1 }),
        "{plan}"
    );
    assert_eq!(plan["replay"]["decisions"], 0);
}
