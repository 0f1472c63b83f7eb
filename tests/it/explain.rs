//! `dipylon explain` of decisions: the nearest miss of a denial, rules that could not be evaluated, and the facts that rules saw.

use std::collections::BTreeMap;

use dipylon_sdk::client::{Denial, TaskHandle, TokenOutcome};
use dipylon_sdk::model::*;
use serde_json::Value;

use crate::support::served_broker::{ServedBroker, token_request};
use crate::support::{CASES, IDP, action, disable, read_case, silence};

const RULES: &str = r#"
@id("guests-operate")
permit (principal in AgentGroup::"guests", action == Action::"operate", resource)
when { context.evidence.verified_age <= duration("1d") };

@id("guests-note")
permit (principal in AgentGroup::"guests", action == Action::"case.note", resource is Case)
when { context.target_known && resource.title like "Phishing  *" && context.parameters.text == "seen" };

@id("overflows-with-a-secret")
forbid (principal, action == Action::"case.weigh", resource)
when { context.parameters.weight * 9223372036854775 > 0 };

@id("overflows")
forbid (principal, action == Action::"host.isolate", resource)
when { context.ttl.toMilliseconds() + 9223372036854775807 > 0 };
"#;

/// A note of two words lives for a minute only, and no rule allows one that lives for less than an hour.
const SHORTENED: &str = r#"
@id("short-notes")
@max_ttl("1m")
forbid (principal in AgentGroup::"guests", action == Action::"case.note", resource)
when { context.parameters.text == "hush" && context.ttl > duration("1m") };

@id("guests-note-at-length")
permit (principal in AgentGroup::"guests", action == Action::"case.note", resource is Case)
when { context.target_known && resource.title like "Sign-ins*" && context.ttl > duration("50m") };
"#;

const EXPORT: &str = r#"
@title("Export a case")
@effect("The case leaves the case system.")
action "case.export" appliesTo { principal: [Agent], resource: [Case] };

@title("Weigh a case")
@effect("Nothing changes.")
@risk("low")
action "case.weigh" in ["read"] appliesTo {
  principal: [Agent],
  resource: [Case],
  context: { parameters: { @title("Weight") @sensitive weight: Long } },
};
"#;

const VISITOR: &str = r#"
[[agent]]
id = "visitor"
spiffe_id = "spiffe://soc.example/agent/visitor"
owner = "dana"
environment = "staging"
model = "m"
autonomy = "autonomous"
groups = ["guests"]
actions = ["case.read", "case.note"]
"#;

fn policy(files: &mut BTreeMap<String, String>) {
    let mut change = |file: &str, change: &dyn Fn(&mut String)| {
        change(files.get_mut(file).expect("a file"));
    };
    change("rules/20-guardrails.cedar", &|text| text.push_str(RULES));
    change("schema.cedarschema", &|text| text.push_str(EXPORT));
    change("agents.toml", &|text| {
        *text = text.replace(
            "\"host.collect\"]",
            "\"host.collect\", \"case.export\", \"case.weigh\"]",
        );
        text.push_str(VISITOR);
    });
    for agent in ["triage", "visitor"] {
        silence(files, "never-granted", agent);
    }
    silence(files, "never-matches", "guests-note");
    silence(files, "any-audience", "case.export");
    silence(files, "any-audience", "case.weigh");
}

struct Explained {
    s: ServedBroker,
    home: tempfile::TempDir,
}

impl Explained {
    async fn start() -> Self {
        Self::start_with(policy).await
    }

    async fn start_with(change: impl FnOnce(&mut BTreeMap<String, String>)) -> Self {
        let s = ServedBroker::start_with_policy(change).await;
        let home = tempfile::tempdir().expect("dir");
        let key = home.path().join("olga.pem");
        std::fs::write(&key, s.env.pem_of("olga")).expect("key");
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(key, mode).expect("chmod");
        Self { s, home }
    }

    /// What `dipylon explain` prints: the text and the JSON.
    async fn explain(&self, id: &str) -> (String, Value) {
        let run = async |json: &[&str]| {
            let out = tokio::process::Command::new(env!("CARGO_BIN_EXE_dipylon"))
                .args(["explain", id, "--key", "olga.pem", "--url", &self.s.url])
                .args(json)
                .env("HOME", self.home.path())
                .current_dir(self.home.path())
                .output()
                .await
                .expect("runs");
            assert!(out.status.success(), "{out:?}");
            String::from_utf8(out.stdout).expect("text")
        };
        let text = run(&[]).await;
        let json = serde_json::from_str(&run(&["--json"]).await).expect("JSON");
        (text, json)
    }
}

async fn denied(task: &TaskHandle, action: Action, key: &str) -> Denial {
    match task.request_token(&token_request(action, key)).await {
        Ok(TokenOutcome::Denied(denied)) => denied,
        other => panic!("{other:?}"),
    }
}

fn note(text: &str) -> Action {
    let text = Param::Str(text.to_owned());
    action("case.note", "Case", "INC-8841", CASES, &[("text", text)])
}

#[track_caller]
fn says(text: &str, line: &str) {
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words(text).contains(&words(line)), "{line}\n{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn denials_by_default_name_the_nearest_permit() {
    let e = Explained::start().await;
    let triage = e.s.task("triage").await;
    let visitor = e.s.task("visitor").await;
    let denied_by_default = async |task: &TaskHandle, action, key: &str| {
        let denied = denied(task, action, key).await;
        assert_eq!(denied.reason(), Some(DeniedReason::NoRuleAllows));
        assert!(denied.rules().is_empty(), "an agent learns no rule");
        assert!(!format!("{denied:?}").contains("soc-acts-at-home"));
        e.explain(&denied.decision_id().to_string()).await
    };
    // By environment: a condition.
    let (text, json) = denied_by_default(&triage, disable("bob"), "r-1").await;
    says(
        &text,
        "nearest rule \"soc-acts-at-home\" (rules/10-agents.cedar:12): when { principal.environment == resource.environment } is \
         false: principal.environment is Environment::\"prod\", resource.environment is Environment::\"staging\"",
    );
    let nearest = &json["nearest"];
    assert_eq!(nearest["rule"], "soc-acts-at-home");
    assert_eq!(
        (&nearest["file"], &nearest["line"]),
        (&"rules/10-agents.cedar".into(), &12.into())
    );
    let miss = &nearest["misses"][0];
    assert_eq!(miss["part"], "when");
    assert_eq!(
        miss["values"]["principal.environment"],
        "Environment::\"prod\""
    );
    assert_eq!(nearest["misses"].as_array().expect("list").len(), 1);

    // By group: the scope's principal.
    let (text, json) = denied_by_default(&visitor, read_case(), "r-1").await;
    says(
        &text,
        "nearest rule \"soc-acts-at-home\" (rules/10-agents.cedar:12) is for AgentGroup::\"soc\": principal is \
         Agent::\"visitor\", in AgentGroup::\"guests\"",
    );
    assert_eq!(json["nearest"]["misses"][0]["part"], "principal");

    // By action.
    let export = action("case.export", "Case", "INC-8841", CASES, &[]);
    let (text, json) = denied_by_default(&triage, export, "r-2").await;
    says(
        &text,
        "nearest rule \"soc-acts-at-home\" (rules/10-agents.cedar:12) is for Action::\"read\" or Action::\"write\": action is \
         Action::\"case.export\", in Action::\"irreversible\"",
    );
    assert_eq!(json["nearest"]["misses"][0]["part"], "action");

    // Of several terms each that is not met, and no value of a sensitive parameter.
    let (text, json) = denied_by_default(&visitor, note("s3cr3t"), "r-2").await;
    says(
        &text,
        "nearest rule \"guests-note\" (rules/20-guardrails.cedar:",
    );
    says(
        &text,
        "when { resource.title like \"Phishing  *\" } is false: resource.title is \"Sign-ins from two continents\"",
    );
    // White space in a string is part of the rule.
    assert!(text.contains("Phishing  *"), "{text}");
    says(
        &text,
        ": a term of the when reads a sensitive parameter: neither the term nor whether it is met is shown: \
         context.parameters.text is a sensitive parameter",
    );
    assert!(!text.contains("\"seen\""), "the constant beside it");
    assert!(!json["nearest"].to_string().contains("seen"));
    assert_eq!(
        json["nearest"]["misses"].as_array().expect("list").len(),
        2,
        "{json}"
    );
    assert!(!format!("{text}{json}").contains("s3cr3t"));
    // Met or not, the explanation is the same.
    let seen = denied_by_default(&visitor, note("seen"), "r-3").await.1;
    assert_eq!(seen["nearest"], json["nearest"]);
}

/// Nor does what a rule that reads one asks for: the lifetime and the approvals shown are those of the request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn remedies_for_a_sensitive_parameter_tell_no_value() {
    let e = Explained::start_with(|files| {
        policy(files);
        let rules = files.get_mut("rules/20-guardrails.cedar").expect("rules");
        rules.push_str(SHORTENED);
        silence(files, "shorter-forbids", "guests-note-at-length");
    })
    .await;
    let visitor = e.s.task("visitor").await;
    let mut told = Vec::new();
    for (text, key) in [("hush", "r-1"), ("loud", "r-2")] {
        let denied = denied(&visitor, note(text), key).await;
        assert_eq!(denied.reason(), Some(DeniedReason::NoRuleAllows));
        let (text, json) = e.explain(&denied.decision_id().to_string()).await;
        says(&text, "context.ttl is duration(\"300000ms\")");
        told.push(json["nearest"].clone());
    }
    assert_eq!(told[0], told[1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_of_rules_that_read_a_sensitive_parameter_name_no_value() {
    let e = Explained::start().await;
    let triage = e.s.task("triage").await;
    let weight = &[("weight", Param::Int(9_007_199_254_740))];
    let weigh = action("case.weigh", "Case", "INC-8841", CASES, weight);
    let denied = denied(&triage, weigh, "r-1").await;
    assert_eq!(denied.reason(), Some(DeniedReason::RuleEvaluationFailed));
    let (text, json) = e.explain(&denied.decision_id().to_string()).await;
    says(
        &text,
        "integer overflow; the rule reads a sensitive parameter, so no value is shown",
    );
    assert_eq!(json["failures"][0]["rule"], "overflows-with-a-secret");
    assert!(!format!("{text}{json}").contains("9007199254740"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ceilings_are_named_with_the_nearest_action() {
    let e = Explained::start().await;
    let reporter = e.s.task("reporter").await;
    let denied = denied(&reporter, note("x"), "r-1").await;
    assert_eq!(denied.reason(), Some(DeniedReason::OutsideCeiling));
    let (text, json) = e.explain(&denied.decision_id().to_string()).await;
    says(&text, "ceiling the agent's `actions` has case.read");
    says(&text, "nearest the ceiling has case.read");
    assert!(!text.contains("no rule allows it"), "{text}");
    assert_eq!(json["ceiling"]["actions"], serde_json::json!(["case.read"]));
    assert_eq!(json["ceiling"]["nearest"], "case.read");
    assert_eq!(json["nearest"], Value::Null);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_that_fail_are_explained_with_their_errors() {
    let e = Explained::start().await;
    let triage = e.s.task("triage").await;
    let isolate = action("host.isolate", "Host", "web-1", IDP, &[]);
    let denied = denied(&triage, isolate, "r-1").await;
    assert_eq!(denied.reason(), Some(DeniedReason::RuleEvaluationFailed));
    let named: Vec<String> = denied.rules().iter().map(|r| r.id.clone()).collect();
    assert_eq!(named, ["overflows"]);
    let (text, json) = e.explain(&denied.decision_id().to_string()).await;
    says(&text, "cannot be evaluated rule \"overflows\"");
    says(&text, "overflow");
    assert_eq!(json["failures"][0]["rule"], "overflows");
    let error = json["failures"][0]["error"].as_str().expect("text");
    assert!(error.contains("overflow"), "{error}");
    assert!(
        !format!("{denied:?}").contains("integer overflow"),
        "an agent does not learn it"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn explanations_list_what_rules_saw_under_the_bundle_that_decided() {
    let e = Explained::start().await;
    let triage = e.s.task("triage").await;
    let asked = triage
        .request_token(&token_request(note("s3cr3t"), "r-1"))
        .await;
    let Ok(TokenOutcome::Token(token)) = asked else {
        panic!("a token")
    };
    let denied = denied(&triage, disable("bob"), "r-2").await;
    let (text, json) = e.explain(&token.jti().to_string()).await;
    says(
        &text,
        "agent Agent::\"triage\"; autonomy is \"supervised\", environment is Environment::\"prod\", model is \"example-large-2\", \
         owner is Person::\"dana\", in AgentGroup::\"soc\"",
    );
    says(
        &text,
        "target Case::INC-8841; environment is Environment::\"prod\", title is \"Sign-ins from two continents\"",
    );
    says(&text, "audience https://cases.soc.example");
    says(&text, "parameter text: commitment ");
    says(&text, "evidence jwt-svid, issued ");
    says(&text, "context ttl 5m, bound jkt, task aged ");
    says(&text, "approvals [], at 2");
    let input = &json["input"];
    assert_eq!(input["agent"], "triage");
    assert_eq!(
        input["agent_entity"]["groups"],
        serde_json::json!(["AgentGroup::\"soc\""])
    );
    assert_eq!(
        (&input["target"], &input["target_known"]),
        (&"Case::INC-8841".into(), &true.into())
    );
    assert_eq!(
        input["target_entity"]["attributes"]["title"],
        "\"Sign-ins from two continents\""
    );
    assert_eq!(
        (&input["binding"], &input["ttl_ms"]),
        (&"jkt".into(), &300_000.into())
    );
    assert!(input["evidence_issued_age_ms"].as_i64().expect("an age") < 60_000);
    assert!(input["evidence_verified_age_ms"].as_i64().expect("an age") < 60_000);
    assert!(input["task_age_ms"].as_i64().expect("an age") < 60_000);
    assert_eq!(input["policy_in_force"], true);
    assert!(!format!("{text}{json}").contains("s3cr3t"));

    // Another bundle in force: the one that decided is read again.
    let files = e.s.env.policy_with("rules/10-agents.cedar", |text| {
        format!(
            "// moved\n\n\n{}",
            text.replace("soc-acts-at-home", "soc-acts")
        )
    });
    let olga = e.s.operator("olga");
    olga.apply_policy_bundle(&files).await.expect("applied");
    let (text, json) = e.explain(&denied.decision_id().to_string()).await;
    says(&text, "(no longer in force)");
    says(
        &text,
        "nearest rule \"soc-acts-at-home\" (rules/10-agents.cedar:12): when { principal.environment == resource.environment }",
    );
    assert_eq!(json["input"]["policy_in_force"], false);
    assert_eq!(
        json["input"]["target_entity"]["attributes"]["name"],
        "\"Bob Baker\""
    );
}
