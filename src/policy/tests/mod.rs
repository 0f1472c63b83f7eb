//! Tests of the policy: the example bundle, changed in one place each.

mod alike;
mod autonomy;
mod bundle;
mod check;
mod check_grants;
mod counts;
mod decisions;
mod key_votes;
mod named_facts;
mod nesting;
mod oracle;
mod policy_index;
mod registry;
mod rules;
mod schema;

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::model::{DeniedReason, EvidenceAges, EvidenceKind, Param, Timestamp};

const SOC: [(&str, &str); 7] = [
    (
        "schema.cedarschema",
        include_str!("../../../examples/soc/schema.cedarschema"),
    ),
    (
        "rules/10-agents.cedar",
        include_str!("../../../examples/soc/rules/10-agents.cedar"),
    ),
    (
        "rules/20-guardrails.cedar",
        include_str!("../../../examples/soc/rules/20-guardrails.cedar"),
    ),
    (
        "entities.json",
        include_str!("../../../examples/soc/entities.json"),
    ),
    (
        "agents.toml",
        include_str!("../../../examples/soc/agents.toml"),
    ),
    (
        "people.toml",
        include_str!("../../../examples/soc/people.toml"),
    ),
    ("README.md", include_str!("../../../examples/soc/README.md")),
];

fn soc_files() -> BTreeMap<String, String> {
    SOC.map(|(path, text)| (path.to_owned(), text.to_owned()))
        .into()
}

fn load(files: BTreeMap<String, String>) -> Result<PolicyBundle, BundleError> {
    PolicyBundle::load(&BundleFiles::new(files)?)
}

fn soc() -> PolicyBundle {
    load(soc_files()).unwrap_or_else(|e| panic!("{e}"))
}

/// The soc bundle with `from` replaced by `to` in one file.
fn soc_with(path: &str, from: &str, to: &str) -> Result<PolicyBundle, BundleError> {
    let mut files = soc_files();
    let text = files.get_mut(path).expect("file");
    assert!(text.contains(from), "{path} has no {from}");
    *text = text.replacen(from, to, 1);
    load(files)
}

/// The soc bundle with one more file of rules.
fn soc_and(rules: &str) -> Result<PolicyBundle, BundleError> {
    let mut files = soc_files();
    files.insert("rules/30-more.cedar".into(), rules.into());
    load(files)
}

fn refused(bundle: Result<PolicyBundle, BundleError>, part: &str) {
    let text = bundle.expect_err(part).to_string();
    assert!(text.contains(part), "wanted {part:?} in:\n{text}");
}

fn action(name: &str, target: &str, parameters: &[(&str, Param)]) -> Action {
    let audience = if name.starts_with("case") {
        "https://cases.soc.example"
    } else {
        "https://idp.soc.example"
    };
    Action::new(
        ActionName::parse(name).expect("name"),
        Audience::parse(audience).expect("audience"),
        Target::parse_pair(target).expect("target"),
        parameters
            .iter()
            .map(|(name, param)| ((*name).to_owned(), param.clone()))
            .collect(),
    )
    .expect("action")
}

fn read() -> Action {
    action("case.read", "Case::INC-8841", &[])
}

fn note() -> Action {
    action(
        "case.note",
        "Case::INC-8841",
        &[("text", Param::Str("seen".into()))],
    )
}

fn disable(account: &str) -> Action {
    action(
        "account.disable",
        &format!("Account::{account}"),
        &[("end_sessions", Param::Bool(true))],
    )
}

fn isolate(host: &str) -> Action {
    action("host.isolate", &format!("Host::{host}"), &[])
}

fn profiles(names: &[&str]) -> BTreeSet<ProfileName> {
    names
        .iter()
        .map(|name| ProfileName::parse(name).expect("profile"))
        .collect()
}

fn authorize_as(
    bundle: &PolicyBundle,
    agent: &RegisteredAgent,
    action: &Action,
    ttl_s: i64,
    approvals: &[&str],
) -> AuthzDecision {
    bundle.authorize(&AuthzRequest {
        agent,
        action,
        ttl_ms: ttl_s * 1000,
        approvals: &profiles(approvals),
        evidence_kind: EvidenceKind::JwtSvid,
        evidence_ages: EvidenceAges {
            issued_ms: 31_000,
            verified_ms: 1_500,
        },
        binding: "jkt",
        task_age_ms: 60_000,
        task_depth: 0,
        waited_ms: 0,
        now: Timestamp::from_millis(1_792_656_000_123),
        executor: None,
        facts: &crate::model::FactValues::new(),
        counts: &crate::model::CountValues::new(),
    })
}

fn agent(bundle: &PolicyBundle, id: &str) -> Arc<RegisteredAgent> {
    bundle
        .agent(&AgentId::parse(id).expect("id"))
        .expect("agent")
}

fn authorize(
    bundle: &PolicyBundle,
    action: &Action,
    ttl_s: i64,
    approvals: &[&str],
) -> AuthzDecision {
    authorize_as(bundle, &agent(bundle, "triage"), action, ttl_s, approvals)
}

/// A decision in one line: what, seconds, profiles, rules.
fn summary(decision: &AuthzDecision) -> String {
    let ids = |rules: &[crate::model::RuleRef]| {
        rules
            .iter()
            .map(|r| r.id.clone())
            .collect::<Vec<_>>()
            .join(" ")
    };
    match decision {
        AuthzDecision::Allowed { ttl_ms, rules } => {
            format!("allowed {} [{}]", ttl_ms / 1000, ids(rules))
        }
        AuthzDecision::Needs {
            profiles,
            ttl_ms,
            rules,
            ..
        } => {
            let names: Vec<_> = profiles.iter().map(|p| p.name.as_str()).collect();
            format!(
                "needs {} {} [{}]",
                names.join("+"),
                ttl_ms / 1000,
                ids(rules)
            )
        }
        AuthzDecision::Denied { why, rules } => format!("{why} [{}]", ids(rules)),
    }
}
