//! `policy test`, and the tests of a bundle at an apply and a seed: each outcome and each mistake is said, and a bundle whose tests
//! fail is never in force. `DIPYLON_BLESS=1` rewrites the golden file: read it aloud.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

use dipylon_sdk::jose::SigningKey;
use serde_json::Value;

use crate::golden::golden;
use crate::support::served_broker::ServedBroker;
use crate::support::*;

/// Audiences and parameters of the example's actions.
const ACTIONS: &str = r#"
[action."case.read"]
audience = "https://cases.soc.example"
[action."account.disable"]
audience = "https://idp.soc.example"
parameters = { end_sessions = true }
"#;

/// Tests, and what they are about.
const FILES: &[(&str, &str)] = &[
    (
        "every outcome, as expected",
        r#"
[[case]]
name = "cases are read"
agent = "triage"
action = "case.read"
target = "Case::INC-8841"
expect = "allowed"

[[case]]
name = "a note lives ten minutes"
agent = "triage"
action = "case.note"
target = "Case::INC-8841"
audience = "https://cases.soc.example"
parameters = { text = "seen" }
ttl = "15m"
expect = "allowed"
lifetime = "10m"

[[case]]
name = "a person disables an account"
agent = "triage"
action = "account.disable"
target = "Account::ann"
expect = "pending"
profiles = ["one-security"]

[[case]]
name = "who has an approval disables it"
agent = "triage"
action = "account.disable"
target = "Account::ann"
approvals = ["one-security"]
expect = "allowed"

[[case]]
name = "accounts become protected"
agent = "triage"
action = "account.disable"
target = "Account::ann"
target_attributes = { protected = true }
rules = ["protected-accounts-stay"]

[[case]]
name = "another environment has no rule"
agent = "triage"
action = "account.disable"
target = "Account::bob"
rules = []

[[case]]
name = "agents work with fresh evidence"
agent = "reporter"
action = "operate"
at = 2026-03-01T23:30:00+01:00
expect = "allowed"
"#,
    ),
    (
        "every outcome, otherwise than expected",
        r#"
[[case]]
name = "no agent reads cases"
agent = "triage"
action = "case.read"
target = "Case::INC-8841"

[[case]]
name = "a short lifetime"
agent = "triage"
action = "case.read"
target = "Case::INC-8841"
ttl = "15m"
expect = "allowed"
lifetime = "10m"

[[case]]
name = "an account is disabled at once"
agent = "triage"
action = "account.disable"
target = "Account::ann"
expect = "allowed"

[[case]]
name = "it takes two"
agent = "triage"
action = "account.disable"
target = "Account::ann"
expect = "pending"
profiles = ["two-security"]

[[case]]
name = "the rule that denies is another"
agent = "triage"
action = "account.disable"
target = "Account::break-glass"
rules = ["destructive-needs-approval"]

[[case]]
name = "there is a rule that denies"
agent = "triage"
action = "account.disable"
target = "Account::break-glass"
rules = []

[[case]]
name = "the reporter disables accounts"
agent = "reporter"
action = "account.disable"
target = "Account::ann"
expect = "pending"
profiles = ["one-security"]

[[case]]
name = "bob is of another environment"
agent = "triage"
action = "account.disable"
target = "Account::bob"
expect = "allowed"
"#,
    ),
    (
        "a matrix: what it does not state is denied",
        r#"
[[matrix]]
name = "what agents may do"
agents = "*"
actions = ["case.read", "account.disable"]
targets = "*"
expect = [
  "*       case.read        Case::INC-8841   allowed",
  "triage  account.disable  Account::ann     pending one-security",
  "triage  account.disable  Account::ann     allowed",
]
"#,
    ),
    (
        "names that nothing has",
        r#"
[[case]]
name = "x"
agent = "traige"
action = "case.read"
target = "Case::INC-8841"

[[case]]
name = "x"
agent = "triage"
action = "case.raed"
target = "Case::INC-8841"

[[case]]
name = "y"
agent = "triage"
action = "case.read"
target = "Case::INC-1"
approvals = ["one-securty"]
rules = ["protected-acounts-stay"]

[[case]]
name = "z"
agent = "triage"
action = "account.disable"
target = "Account::ann"
target_attributes = { proteced = true }

[[matrix]]
name = "of nothing"
agents = []
actions = ["case.read"]
targets = ["Case::INC-8841"]

[[matrix]]
name = "m"
agents = ["triage", "tirage"]
actions = ["case.read", "case.note"]
targets = ["Case::INC-8841", "Case::INC-8842", "Key::billing-api"]
expect = ["triage case.read Case::INC-8841 alowed", "triage case.read", "triage case.read Case::INC-8841 pending"]
"#,
    ),
    (
        "values that do not fit",
        r#"
[defaults]
ttl = "0s"
at = "tomorrow"
target_attributes = { protected = true }

[[case]]
name = "audience"
agent = "triage"
action = "case.note"
target = "Case::INC-8841"
parameters = { text = "x" }

[[case]]
name = "parameters"
agent = "triage"
action = "account.disable"
target = "Account::ann"
parameters = { end_sesions = true }

[[case]]
name = "type"
agent = "triage"
action = "account.disable"
target = "Case::INC-8841"

[[case]]
name = "outcome"
agent = "triage"
action = "case.read"
target = "Case::INC-8841"
expect = "allow"

[[case]]
name = "operate"
agent = "triage"
action = "operate"
target = "Case::INC-8841"
expect = "pending"

[[case]]
name = "lifetime of nothing"
agent = "triage"
action = "case.read"
target = "Case::INC-8841"
lifetime = "5m"
profiles = ["one-security"]
when = "now"
"#,
    ),
];

fn run(dir: &Path, options: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dipylon"));
    command.current_dir(dir.parent().expect("a parent"));
    command.args(["policy", "test", "policy"]).args(options);
    command.output().expect("runs")
}

fn with_tests(text: &str) -> BTreeMap<String, String> {
    let mut files = soc();
    files.insert(
        "tests.toml".to_owned(),
        format!("{}{text}", ACTIONS.trim_start()),
    );
    files
}

#[test]
fn each_outcome_and_each_mistake_is_said() {
    let temp = tempfile::tempdir().expect("a directory");
    let dir = temp.path().join("policy");
    let mut said = String::new();
    for (what, tests) in FILES {
        write_policy(&dir, &with_tests(tests));
        let output = run(&dir, &[]);
        // What covers which rules is of the example, not of these tests.
        let text = String::from_utf8(output.stdout).expect("UTF-8")
            + &String::from_utf8(output.stderr).expect("UTF-8");
        let lines = text.lines().filter(|line| !line.starts_with("uncovered"));
        let lines: Vec<&str> = lines
            .map(|line| line.split(" rules covered").next().unwrap_or(line))
            .map(|line| match line.rsplit_once("; ") {
                Some((before, _))
                    if line.contains(" matrices; ") || line.contains(" 1 matrix; ") =>
                {
                    before
                }
                _ => line,
            })
            .collect();
        said.push_str(&format!(
            "## {what}\n\n{}\n\nexit {}\n\n",
            lines.join("\n"),
            output.status.code().expect("a code")
        ));
    }
    let said = format!("{}\n", said.trim_end());
    golden("policy_tests.md", &said);
}

/// The share of rules that passing tests rest on decides, where it is asked for.
#[test]
fn coverage_is_counted_and_demanded() {
    let temp = tempfile::tempdir().expect("a directory");
    let dir = temp.path().join("policy");
    write_policy(&dir, &with_tests(FILES[0].1));
    let json = |options: &[&str]| {
        let output = run(&dir, options);
        let json: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        (output.status.code(), json)
    };
    let (code, report) = json(&["--json", "--fail-under", "0"]);
    assert_eq!(
        (code, &report["passed"]),
        (Some(0), &true.into()),
        "{report}"
    );
    let uncovered = report["uncovered"].as_array().expect("a list");
    let names: Vec<&str> = uncovered
        .iter()
        .filter_map(|r| r["rule"].as_str())
        .collect();
    assert!(
        names.contains(&"isolating-production-needs-two"),
        "{report}"
    );
    assert!(!names.contains(&"protected-accounts-stay"), "{report}");
    let percent = report["covered_percent"].as_u64().expect("a number");
    assert!((1..100).contains(&percent), "{report}");
    let (code, _) = json(&["--json", "--fail-under", &percent.to_string()]);
    assert_eq!(code, Some(0));
    let (code, report) = json(&["--json", "--fail-under", &(percent + 1).to_string()]);
    assert_eq!((code, &report["passed"]), (Some(1), &false.into()));
    // What fails covers nothing, and is an object with its place.
    write_policy(&dir, &with_tests(FILES[1].1));
    let (code, report) = json(&["--json"]);
    assert_eq!(code, Some(1));
    assert_eq!(report["covered_percent"], 0);
    let failure = &report["failures"][0];
    assert_eq!(failure["file"], "tests.toml");
    assert!(
        failure["line"].is_u64() && failure["message"].is_string(),
        "{failure}"
    );
}

/// Tests may be divided into files; names are of the whole bundle.
#[test]
fn files_of_tests_are_one() {
    let temp = tempfile::tempdir().expect("a directory");
    let dir = temp.path().join("policy");
    let mut files = with_tests(FILES[0].1);
    files.insert(
        "tests/more.toml".to_owned(),
        format!("{ACTIONS}{}", FILES[0].1),
    );
    write_policy(&dir, &files);
    let output = run(&dir, &[]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("name \"cases are read\" is taken by the one at tests"),
        "{said}"
    );
    let renamed = FILES[0].1.replace("name = \"", "name = \"again: ");
    files.insert("tests/more.toml".to_owned(), format!("{ACTIONS}{renamed}"));
    write_policy(&dir, &files);
    let output = run(&dir, &[]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("passed: 14 requests of 14 cases"), "{said}");
}

/// A matrix of everything is bounded.
#[test]
fn too_many_requests_are_refused() {
    let temp = tempfile::tempdir().expect("a directory");
    let dir = temp.path().join("policy");
    let mut files = with_tests(
        "[[matrix]]\nname = \"m\"\nagents = \"*\"\nactions = [\"case.read\"]\ntargets = \"*\"\n",
    );
    let entities: Vec<String> = (0..5_001)
        .map(|n| format!("{{\"uid\":{{\"type\":\"Case\",\"id\":\"C{n}\"}},\"parents\":[],\"attrs\":{{\"title\":\"t\",\"environment\":{{\"type\":\"Environment\",\"id\":\"prod\"}}}}}}"))
        .collect();
    files.insert(
        "entities.json".to_owned(),
        format!("[{}]", entities.join(",")),
    );
    let agents = files.get_mut("agents.toml").expect("agents");
    for n in 0..4 {
        agents.push_str(&format!(
            "\n[[agent]]\nid = \"more-{n}\"\nspiffe_id = \"spiffe://soc.example/agent/more-{n}\"\nowner = \"dana\"\nenvironment = \"prod\"\nmodel = \"m\"\nautonomy = \"supervised\"\ngroups = [\"soc\"]\nactions = [\"case.read\"]\n"
        ));
    }
    write_policy(&dir, &files);
    let output = run(&dir, &[]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("have more than 20000 requests"), "{said}");
}

/// A bundle whose tests fail is refused at the apply and as the seed, with the test; the bundle in force goes on to decide.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bundle_whose_tests_fail_is_never_in_force() {
    let s = ServedBroker::start_in(TestEnvironment::new()).await;
    let olga = s.operator("olga");
    let version = olga.rules().await.expect("rules").len();
    let mut good = s.env.policy.clone();
    good.extend(with_tests(FILES[0].1).remove_entry("tests.toml"));
    let applied = olga.apply_policy_bundle(&good).await.expect("in force");
    assert!(applied.changed);
    // A guard is removed; a test remembers it.
    let mut bad = good.clone();
    let guards = bad.get_mut("rules/20-guardrails.cedar").expect("guards");
    *guards = guards.replace(
        "when { resource.protected };",
        "when { resource.protected && principal.autonomy == \"advisory\" };",
    );
    let finding = "case \"accounts become protected\": expected denied by \"protected-accounts-stay\", got pending on one-security";
    let refused = olga.apply_policy_bundle(&bad).await.expect_err("refused");
    assert!(refused.to_string().contains(finding), "{refused}");
    let rules = olga.rules().await.expect("rules");
    assert_eq!(rules.len(), version, "the bundle in force stays");
    let mut env = TestEnvironment::new();
    env.policy = bad;
    let temp = tempfile::tempdir().expect("a directory");
    let (_, key) = SigningKey::generate().expect("key");
    let clock = dipylon_sdk::clock::Clock::system();
    let opened = test_broker::open(&env, temp.path(), &clock, &key, Default::default()).await;
    let refused = opened.err().expect("refused").to_string();
    assert!(refused.contains(finding), "{refused}");
}
