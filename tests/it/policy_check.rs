//! `policy check`, and the check at an apply and a seed: what each mistake is told, and that nothing of a refused bundle is in force.
//! `DIPYLON_BLESS=1` rewrites the golden file: read it aloud.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

use dipylon_sdk::jose::SigningKey;

use crate::golden::golden;
use crate::support::many_rules::{RuleScopes, many_rules};
use crate::support::served_broker::ServedBroker;
use crate::support::*;

/// What a person did, and the file, text and replacement.
type Mistake = (
    &'static str,
    &'static [(&'static str, &'static str, &'static str)],
);

const CATALOGUE: &str = "schema.cedarschema";
const PERMITS: &str = "rules/10-agents.cedar";
const GUARDS: &str = "rules/20-guardrails.cedar";
const AGENTS: &str = "agents.toml";
const PEOPLE: &str = "people.toml";

const MISTAKES: &[Mistake] = &[
    (
        "the environment of a guard, misspelled",
        &[(
            GUARDS,
            "Environment::\"prod\"",
            "Environment::\"production\"",
        )],
    ),
    (
        "the group of a permit, misspelled",
        &[(
            PERMITS,
            "AgentGroup::\"soc\",\n  action in",
            "AgentGroup::\"sok\",\n  action in",
        )],
    ),
    (
        "the audience of a rule, misspelled",
        &[(
            GUARDS,
            "https://cases.soc.example",
            "https://case.soc.example",
        )],
    ),
    (
        "an action group, misspelled",
        &[(
            GUARDS,
            "Action::\"destructive\", resource)",
            "Action::\"destrutive\", resource)",
        )],
    ),
    (
        "the profile of a remedy, misspelled",
        &[(
            GUARDS,
            "@step_up(\"two-security\")",
            "@step_up(\"two-securty\")",
        )],
    ),
    (
        "the profile of an exception, misspelled",
        &[(
            GUARDS,
            "contains(StepUp::\"two-security\")",
            "contains(StepUp::\"two-securty\")",
        )],
    ),
    (
        "a value that no account has",
        &[(
            GUARDS,
            "when { resource.protected }",
            "when { resource.name == \"Break-glass administartor\" }",
        )],
    ),
    (
        "a level of autonomy that does not exist, in a rule",
        &[(
            PERMITS,
            "when { principal.environment == resource.environment }",
            "when { principal.autonomy == \"supervized\" }",
        )],
    ),
    (
        "a level of autonomy that does not exist, of an agent",
        &[(AGENTS, "autonomy = \"autonomous\"", "autonomy = \"yolo\"")],
    ),
    (
        "a remedy that another profile lifts",
        &[(
            GUARDS,
            "contains(StepUp::\"two-security\")",
            "contains(StepUp::\"one-security\")",
        )],
    ),
    (
        "a remedy that is longer than its rule allows",
        &[(
            GUARDS,
            "@max_ttl(\"10m\")\nforbid",
            "@max_ttl(\"20m\")\nforbid",
        )],
    ),
    (
        "two remedies",
        &[(
            GUARDS,
            "@max_ttl(\"10m\")\nforbid",
            "@max_ttl(\"10m\")\n@step_up(\"one-security\")\nforbid",
        )],
    ),
    (
        "an annotation without its underscore",
        &[(
            GUARDS,
            "@step_up(\"two-security\")",
            "@stepup(\"two-security\")",
        )],
    ),
    (
        "a condition that contradicts itself",
        &[(
            GUARDS,
            "when { resource.protected }",
            "when { context.ttl < duration(\"1m\") && context.ttl > duration(\"1h\") }",
        )],
    ),
    (
        "a condition that is always true",
        &[(
            GUARDS,
            "when { resource.protected }",
            "when { resource.protected } when { context.ttl > duration(\"0s\") }",
        )],
    ),
    (
        "a forbid that an approval sets off",
        &[(
            GUARDS,
            "when { resource.protected }",
            "unless { context.approvals.isEmpty() }",
        )],
    ),
    (
        "a forbid that a short lifetime sets off",
        &[(
            GUARDS,
            "when { resource.protected }",
            "when { resource.protected && context.ttl < duration(\"1m\") }",
        )],
    ),
    (
        "a forbid whose condition was lost",
        &[(
            GUARDS,
            "resource)\nwhen { resource.protected }",
            "resource)",
        )],
    ),
    (
        "a permit for everything",
        &[(
            PERMITS,
            "@id(\"soc-acts-at-home\")",
            "@id(\"all\")\npermit (principal, action, resource);\n\n@id(\"soc-acts-at-home\")",
        )],
    ),
    (
        "a permit for everything that every agent has",
        &[(
            PERMITS,
            "@id(\"soc-acts-at-home\")",
            "@id(\"all\")\npermit (principal is Agent, action, resource);\n\n@id(\"soc-acts-at-home\")",
        )],
    ),
    (
        "an attribute that nothing has, beside one that accounts have",
        &[(
            GUARDS,
            "when { resource.protected }",
            "when { resource.protected || resource has protcted }",
        )],
    ),
    (
        "the permit to operate, deleted",
        &[
            (
                PERMITS,
                "action == Action::\"operate\"",
                "action == Action::\"case.read\"",
            ),
            (PERMITS, "  principal.environment == resource &&\n", ""),
        ],
    ),
    (
        "an action of a ceiling that no rule grants",
        &[(
            PERMITS,
            "action in [Action::\"read\", Action::\"write\"]",
            "action in [Action::\"read\", Action::\"destructive\", Action::\"severe\"]",
        )],
    ),
    (
        "an action of a ceiling, misspelled",
        &[(
            AGENTS,
            "actions = [\"case.read\"]",
            "actions = [\"case.raed\"]",
        )],
    ),
    (
        "an action without a rule about its audience",
        &[(
            GUARDS,
            "action in [Action::\"case.read\", Action::\"case.note\"], resource)\nunless",
            "action == Action::\"case.read\", resource)\nunless",
        )],
    ),
    (
        "a quorum that an owner makes impossible",
        &[(PEOPLE, "quorum = 2", "quorum = 3")],
    ),
    (
        "the group of a profile, misspelled",
        &[(
            PEOPLE,
            "group = \"security\"\nquorum = 2",
            "group = \"secrity\"\nquorum = 2",
        )],
    ),
    (
        "the environment of an agent, misspelled",
        &[(
            AGENTS,
            "environment = \"prod\"",
            "environment = \"porduction\"",
        )],
    ),
    (
        "the environment of a target, misspelled",
        &[("entities.json", "\"id\": \"staging\"", "\"id\": \"stagin\"")],
    ),
    (
        "one bad line of TOML",
        &[(PEOPLE, "[profile.two-security]", "[profile.two-security")],
    ),
    (
        "a risk that does not exist",
        &[(CATALOGUE, "@risk(\"high\")", "@risk(\"severe\")")],
    ),
    (
        "the whole context, declared again",
        &[(
            CATALOGUE,
            "context: { parameters: {\n    @title(\"Also",
            "context: { ttl: duration, parameters: {\n    @title(\"Also",
        )],
    ),
    (
        "an irreversible action that needs no person",
        &[(
            CATALOGUE,
            "@reversible(\"reversible\")\n@undo(\"Delete the note in the case system.\")",
            "@reversible(\"irreversible\")",
        )],
    ),
];

fn with(changes: &[(&str, &str, &str)]) -> BTreeMap<String, String> {
    let mut files = soc();
    for (path, from, to) in changes {
        let text = files.get_mut(*path).expect("a file");
        assert!(text.contains(from), "{path} has no {from}");
        *text = text.replacen(from, to, 1);
    }
    files
}

fn check(dir: &Path, options: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dipylon"));
    command.current_dir(dir.parent().expect("a parent"));
    command.args(options).args(["policy", "check", "policy"]);
    command.output().expect("runs")
}

#[test]
fn each_mistake_is_told_what_to_do() {
    let temp = tempfile::tempdir().expect("a directory");
    let mut said = String::new();
    for (what, changes) in MISTAKES {
        let dir = temp.path().join("policy");
        write_policy(&dir, &with(changes));
        let output = check(&dir, &[]);
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        let text: Vec<&str> = text
            .lines()
            .filter(|line| !line.starts_with("warning  people.toml: no operator"))
            .collect();
        said.push_str(&format!(
            "## {what}\n\n{}\n\nexit {}\n\n",
            text.join("\n"),
            output.status.code().expect("a code")
        ));
    }
    // The version changes with every word of the example.
    let said: Vec<&str> = said
        .lines()
        .map(|line| line.split(", version ").next().unwrap_or(line))
        .collect();
    let said = format!("{}\n", said.join("\n").trim_end());
    golden("policy_mistakes.md", &said);
}

/// Rules about many agents, actions and targets are all decided, and the one that is wrong is found among them.
#[test]
fn a_bundle_of_many_rules_is_decided() {
    let temp = tempfile::tempdir().expect("a directory");
    let dir = temp.path().join("policy");
    for scopes in [RuleScopes::Spread, RuleScopes::Conditions] {
        let mut files = many_rules(800, scopes);
        write_policy(&dir, &files);
        let output = check(&dir, &[]);
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        assert_eq!(output.status.code(), Some(0), "{text}");
        assert!(
            text.contains("valid: 800 rules") && !text.contains("undecided"),
            "{text}"
        );
        let rules = files.get_mut("rules/many.cedar").expect("a file");
        rules.push_str("@id(\"wrong\") permit (principal == Agent::\"agent-3\", action == Action::\"a3\", resource == Host::\"h9\")\nwhen { context.ttl < duration(\"0s\") };");
        write_policy(&dir, &files);
        let output = check(&dir, &[]);
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert_eq!(text.matches("error ").count(), 1, "{text}");
        assert!(
            text.contains("rules/many.cedar:802:1: rule \"wrong\": can never match"),
            "{text}"
        );
    }
}

/// Machines read the findings as objects.
#[test]
fn findings_are_objects() {
    let temp = tempfile::tempdir().expect("a directory");
    let dir = temp.path().join("policy");
    let typo = (
        GUARDS,
        "Environment::\"prod\"",
        "Environment::\"production\"",
    );
    let note = "@reversible(\"reversible\")\n@undo(\"Delete the note in the case system.\")";
    let warning = (CATALOGUE, note, "@reversible(\"irreversible\")");
    write_policy(&dir, &with(&[typo]));
    let output = check(&dir, &["--json"]);
    assert_eq!(output.status.code(), Some(1));
    let refused: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(refused["valid"], false);
    let finding = &refused["findings"][0];
    let place = (&finding["file"], &finding["line"], &finding["column"]);
    assert_eq!(place, (&GUARDS.into(), &28.into(), &32.into()));
    let kind = (&finding["severity"], &finding["check"]);
    assert_eq!(kind, (&"error".into(), &"undeclared-name".into()));
    assert!(
        finding["source"]
            .as_str()
            .expect("a line")
            .contains("production"),
        "{finding}"
    );
    write_policy(&dir, &with(&[warning]));
    let output = check(&dir, &["--json"]);
    assert_eq!(output.status.code(), Some(0));
    let valid: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(valid["valid"], true);
    let severities = valid["findings"].as_array().expect("a list").iter();
    assert!(
        severities
            .clone()
            .all(|finding| finding["severity"] == "warning" || finding["severity"] == "note"),
        "{valid}"
    );
    assert!(
        severities
            .clone()
            .any(|finding| finding["check"] == "irreversible-alone"),
        "{valid}"
    );
}

/// A directory that is none of a bundle is told apart from one with mistakes.
#[test]
fn a_directory_without_a_bundle_says_so() {
    let temp = tempfile::tempdir().expect("a directory");
    let dir = temp.path().join("policy");
    std::fs::create_dir(&dir).expect("created");
    let output = check(&dir, &[]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for missing in [
        "schema.cedarschema: is missing",
        "agents.toml: is missing",
        "rules/: must hold",
    ] {
        assert!(said.contains(missing), "{said}");
    }
}

/// A guard that cannot fire is refused at the apply and as the seed; the bundle in force goes on to decide.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_bundle_is_never_in_force() {
    let s = ServedBroker::start_in(TestEnvironment::new()).await;
    let olga = s.operator("olga");
    let wrong = s.env.policy_with(GUARDS, |text| {
        text.replacen("Environment::\"prod\"", "Environment::\"production\"", 1)
    });
    let finding = "nothing in this bundle is Environment::\"production\"";
    let refused = olga.apply_policy_bundle(&wrong).await.expect_err("refused");
    assert!(refused.to_string().contains(finding), "{refused}");
    // The guard of the bundle in force still asks for two.
    let rules = olga.rules().await.expect("rules");
    let guard = rules
        .iter()
        .find(|rule| rule.rule_id == "isolating-production-needs-two");
    assert_eq!(guard.expect("in force").remedy, "step_up two-security");
    let mut env = TestEnvironment::new();
    env.policy = wrong;
    let temp = tempfile::tempdir().expect("a directory");
    let (_, key) = SigningKey::generate().expect("key");
    let clock = dipylon_sdk::clock::Clock::system();
    let opened = test_broker::open(&env, temp.path(), &clock, &key, Default::default()).await;
    let refused = opened.err().expect("refused").to_string();
    assert!(refused.contains(finding), "{refused}");
}

/// Rules and types that nest too deep for the stack of a reader are refused, and the broker lives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bundle_that_nests_too_deep_is_refused() {
    let s = ServedBroker::start_in(TestEnvironment::new()).await;
    let olga = s.operator("olga");
    let terms = vec!["context.ttl > duration(\"1m\")"; 200].join(" || ");
    let alternatives = format!(
        "{}true{}",
        "if true then ".repeat(200),
        " else false".repeat(200)
    );
    let when = |condition: &str| {
        format!(
            "@id(\"deep\")\nforbid (principal, action in Action::\"write\", resource)\nwhen {{ {condition} }};\n"
        )
    };
    let sets = format!(
        "type Deep = {}String{};\n",
        "Set<".repeat(3_000),
        ">".repeat(3_000)
    );
    for (path, more, finding) in [
        (GUARDS, when(&terms), "a rule has more than 24 operators"),
        (
            GUARDS,
            when(&alternatives),
            "a rule has more than 24 operators",
        ),
        (CATALOGUE, sets, "types are nested more than 16 deep"),
    ] {
        let deep = s.env.policy_with(path, |text| format!("{text}\n{more}"));
        let refused = olga.apply_policy_bundle(&deep).await.expect_err("refused");
        let refused = refused.to_string();
        assert!(
            refused.contains(finding) && refused.contains(&format!("{path}:")),
            "{refused}"
        );
    }
    assert!(!olga.rules().await.expect("rules").is_empty());
}
