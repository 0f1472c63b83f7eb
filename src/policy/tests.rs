use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::model::{DeniedReason, EvidenceKind, Param, Timestamp};

const SOC: [(&str, &str); 7] = [
    (
        "schema.cedarschema",
        include_str!("../../examples/soc/schema.cedarschema"),
    ),
    (
        "rules/10-agents.cedar",
        include_str!("../../examples/soc/rules/10-agents.cedar"),
    ),
    (
        "rules/20-guardrails.cedar",
        include_str!("../../examples/soc/rules/20-guardrails.cedar"),
    ),
    (
        "entities.json",
        include_str!("../../examples/soc/entities.json"),
    ),
    (
        "agents.toml",
        include_str!("../../examples/soc/agents.toml"),
    ),
    (
        "people.toml",
        include_str!("../../examples/soc/people.toml"),
    ),
    ("README.md", include_str!("../../examples/soc/README.md")),
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
        evidence_age_ms: 1_500,
        binding: "jkt",
        task_age_ms: 60_000,
        task_depth: 0,
        now: Timestamp::from_millis(1_792_656_000_123),
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

#[test]
fn example_bundle_has_no_warnings() {
    let bundle = soc();
    assert_eq!(bundle.warnings(), []);
    assert_eq!(bundle.actions().count(), 4);
    assert_eq!(bundle.rules().count(), 7);
    let disable = bundle
        .action(&ActionName::parse("account.disable").expect("name"))
        .expect("action");
    assert_eq!(
        disable.groups,
        BTreeSet::from(["destructive".to_owned(), "write".to_owned()])
    );
    assert!(disable.single_use && !disable.open_targets);
    assert_eq!(disable.risk, Some(Risk::Medium));
    let note = bundle
        .action(&ActionName::parse("case.note").expect("name"))
        .expect("action");
    assert_eq!(note.sensitive(), BTreeSet::from(["text".to_owned()]));
    assert_eq!(
        note.parameters["text"].title.as_deref(),
        Some("Text of the note")
    );
    let rule = bundle.rule("writes-are-short").expect("rule");
    assert_eq!(
        (rule.line, rule.effect, rule.remedy.clone()),
        (6, RuleEffect::Forbid, Some(Remedy::MaxTtl(600)))
    );
    assert!(rule.text.starts_with("@id(\"writes-are-short\")") && rule.text.ends_with("};"));
}

#[test]
fn example_readme_table() {
    let bundle = soc();
    assert_eq!(
        summary(&authorize(&bundle, &read(), 900, &[])),
        "allowed 900 [soc-acts-at-home]"
    );
    assert_eq!(
        summary(&authorize(&bundle, &note(), 900, &[])),
        "allowed 600 [soc-acts-at-home writes-are-short]"
    );
    assert_eq!(
        summary(&authorize(&bundle, &note(), 600, &[])),
        "allowed 600 [soc-acts-at-home]"
    );
    assert_eq!(
        summary(&authorize(&bundle, &note(), 1, &[])),
        "allowed 1 [soc-acts-at-home]"
    );
    assert_eq!(
        summary(&authorize(&bundle, &disable("ann"), 300, &[])),
        "needs one-security 300 [destructive-needs-a-yes soc-acts-at-home]"
    );
    assert_eq!(
        summary(&authorize(&bundle, &disable("ann"), 900, &[])),
        "needs one-security 600 [destructive-needs-a-yes soc-acts-at-home writes-are-short]"
    );
    assert_eq!(
        summary(&authorize(&bundle, &disable("ann"), 300, &["one-security"])),
        "allowed 300 [soc-acts-at-home]"
    );
    assert_eq!(
        summary(&authorize(&bundle, &isolate("web-1"), 300, &[])),
        "needs two-security 300 [isolating-production-needs-two soc-acts-at-home]"
    );
    assert_eq!(
        summary(&authorize(
            &bundle,
            &isolate("web-1"),
            300,
            &["one-security"]
        )),
        "needs two-security 300 [isolating-production-needs-two soc-acts-at-home]"
    );
    assert_eq!(
        summary(&authorize(
            &bundle,
            &isolate("web-1"),
            300,
            &["two-security"]
        )),
        "allowed 300 [soc-acts-at-home]"
    );
    assert_eq!(
        summary(&authorize(&bundle, &disable("break-glass"), 300, &[])),
        "FORBIDDEN_BY_RULE [protected-accounts-stay]"
    );
    assert_eq!(
        summary(&authorize(
            &bundle,
            &disable("break-glass"),
            300,
            &["one-security", "two-security"]
        )),
        "FORBIDDEN_BY_RULE [protected-accounts-stay]"
    );
    // Assumed approvals end in a default denial: no approval is requested for what no rule allows.
    assert_eq!(
        summary(&authorize(&bundle, &disable("bob"), 300, &[])),
        "NO_RULE_ALLOWS []"
    );
}

#[test]
fn ceiling_is_checked_first() {
    let bundle = soc();
    let reporter = agent(&bundle, "reporter");
    assert_eq!(
        summary(&authorize_as(&bundle, &reporter, &read(), 60, &[])),
        "allowed 60 [soc-acts-at-home]"
    );
    assert_eq!(
        summary(&authorize_as(&bundle, &reporter, &note(), 60, &[])),
        "OUTSIDE_CEILING []"
    );
}

#[test]
fn invalid_requests_are_denied() {
    let bundle = soc();
    assert_eq!(
        summary(&authorize(
            &bundle,
            &disable("nobody"),
            60,
            &["one-security"]
        )),
        "RULE_EVALUATION_FAILED []"
    );
    assert_eq!(
        summary(&authorize(&bundle, &note(), 0, &[])),
        "RULE_EVALUATION_FAILED []"
    );
    assert_eq!(
        summary(&authorize(&bundle, &note(), -5, &[])),
        "RULE_EVALUATION_FAILED []"
    );
    assert_eq!(
        summary(&authorize(
            &bundle,
            &action("case.note", "Case::INC-8841", &[]),
            60,
            &[]
        )),
        "RULE_EVALUATION_FAILED []"
    );
    let triage = agent(&bundle, "triage");
    let far = Timestamp::from_millis(i64::MAX);
    assert_eq!(
        bundle.may_operate(&triage, EvidenceKind::JwtSvid, 0, "jkt", far),
        OperateDecision::Denied {
            why: DeniedReason::RuleEvaluationFailed,
            rules: vec![]
        }
    );
    // An approval under an unknown profile counts for nothing.
    assert_eq!(
        summary(&authorize(&bundle, &read(), 60, &["three-security"])),
        "allowed 60 [soc-acts-at-home]"
    );
}

#[test]
fn operate_requires_fresh_evidence_and_a_key() {
    let bundle = soc();
    let triage = agent(&bundle, "triage");
    let operate = |age_ms, binding| {
        bundle.may_operate(
            &triage,
            EvidenceKind::JwtSvid,
            age_ms,
            binding,
            Timestamp::from_secs(0),
        )
    };
    assert!(
        matches!(operate(300_000, "jkt"), OperateDecision::Allowed { rules } if rules.len() == 1)
    );
    let none = OperateDecision::Denied {
        why: DeniedReason::NoRuleAllows,
        rules: vec![],
    };
    assert_eq!(operate(300_001, "jkt"), none);
    assert_eq!(operate(0, "bearer"), none);
    // No remedy lifts a forbid here.
    let bundle = soc_and(
        "@id(\"closed\") @step_up(\"one-security\") forbid (principal, action == Action::\"operate\", resource)
         when { context.now.toDate() == datetime(\"1970-01-01\") };",
    )
    .expect("bundle");
    let answer = bundle.may_operate(
        &agent(&bundle, "triage"),
        EvidenceKind::JwtSvid,
        0,
        "jkt",
        Timestamp::from_secs(5),
    );
    assert!(
        matches!(answer, OperateDecision::Denied { why: DeniedReason::ForbiddenByRule, rules } if &*rules[0].id == "closed")
    );
}

#[test]
fn context_has_millisecond_precision() {
    let rule = "@id(\"exact\") forbid (principal, action == Action::\"case.read\", resource) unless {
        context.now == datetime(\"2026-10-22T08:00:00.123Z\") && context.task.age == duration(\"1m\") &&
        context.evidence.age == duration(\"1500ms\") && context.evidence.kind == \"jwt-svid\" && context.task.depth == 0 &&
        context.ttl == duration(\"1m\") && context.target_known && context.audience == \"https://cases.soc.example\" &&
        context.binding == \"jkt\" && principal.model == \"example-large-2\" && principal.autonomy == \"supervised\" &&
        principal.owner in PersonGroup::\"security\" };";
    let bundle = soc_and(rule).expect("bundle");
    assert_eq!(
        summary(&authorize(&bundle, &read(), 60, &[])),
        "allowed 60 [soc-acts-at-home]"
    );
    assert_eq!(
        summary(&authorize(&bundle, &read(), 61, &[])),
        "FORBIDDEN_BY_RULE [exact]"
    );
}

#[test]
fn remedies_are_verified_by_cedar() {
    // A remedy that does not lift its forbid.
    let bundle = soc_and(
        "@id(\"wrong\") @step_up(\"one-security\") forbid (principal, action, resource is Case);",
    );
    assert_eq!(
        summary(&authorize(&bundle.expect("bundle"), &read(), 60, &[])),
        "FORBIDDEN_BY_RULE [wrong]"
    );
    let bundle =
        soc_and("@id(\"wrong\") @max_ttl(\"10s\") forbid (principal, action, resource is Case);");
    assert_eq!(
        summary(&authorize(&bundle.expect("bundle"), &read(), 60, &[])),
        "FORBIDDEN_BY_RULE [wrong]"
    );
    // Two bounds: the least holds. Two profiles that both matter: both are required.
    let bundle = soc_and(
        "@id(\"a\") @max_ttl(\"30s\") forbid (principal, action == Action::\"case.read\", resource)
         when { context.ttl > duration(\"30s\") };
         @id(\"b\") @max_ttl(\"20s\") forbid (principal, action == Action::\"case.read\", resource)
         when { context.ttl > duration(\"20s\") };
         @id(\"c\") @step_up(\"one-security\") forbid (principal, action == Action::\"case.read\", resource)
         unless { context.approvals.contains(StepUp::\"one-security\") };
         @id(\"d\") @step_up(\"two-security\") forbid (principal, action == Action::\"case.read\", resource)
         unless { context.approvals.contains(StepUp::\"two-security\") };",
    )
    .expect("bundle");
    assert_eq!(
        summary(&authorize(&bundle, &read(), 60, &[])),
        "needs one-security+two-security 20 [a b c d soc-acts-at-home]"
    );
    assert_eq!(
        summary(&authorize(&bundle, &read(), 25, &["two-security"])),
        "needs one-security 20 [b c soc-acts-at-home]"
    );
    assert_eq!(
        summary(&authorize(
            &bundle,
            &read(),
            20,
            &["one-security", "two-security"]
        )),
        "allowed 20 [soc-acts-at-home]"
    );
}

#[test]
fn max_ttl_is_tried_before_step_up() {
    let bundle = soc_and(
        "@id(\"long-takes-a-yes\") @step_up(\"one-security\") forbid (principal, action == Action::\"case.read\", resource)
         when { context.ttl > duration(\"20s\") } unless { context.approvals.contains(StepUp::\"one-security\") };
         @id(\"short\") @max_ttl(\"10s\") forbid (principal, action == Action::\"case.read\", resource)
         unless { context.ttl <= duration(\"10s\") };",
    )
    .expect("bundle");
    assert_eq!(
        summary(&authorize(&bundle, &read(), 60, &[])),
        "allowed 10 [short soc-acts-at-home]"
    );
}

#[test]
fn evaluation_errors_deny() {
    let mut files = soc_files();
    let schema = files.get_mut("schema.cedarschema").expect("schema");
    *schema = schema.replace(
        "@title(\"Read a case\")",
        "@title(\"Read a case\")\n@open_targets",
    );
    let bundle = load(files).expect("bundle");
    // The case is not in the bundle, so `resource.environment` has no value.
    assert_eq!(
        summary(&authorize(
            &bundle,
            &action("case.read", "Case::new", &[]),
            60,
            &[]
        )),
        "RULE_EVALUATION_FAILED [soc-acts-at-home]"
    );
    // Cedar skips a failing forbid and would allow; here that denies. Overflow passes validation.
    let bundle = soc_and(
        "@id(\"overflows\") forbid (principal, action == Action::\"case.read\", resource)
         when { 9223372036854775807 + context.task.depth + 1 > 0 };",
    )
    .expect("bundle");
    assert_eq!(
        summary(&authorize(&bundle, &read(), 60, &[])),
        "RULE_EVALUATION_FAILED [overflows]"
    );
}

#[test]
fn open_targets_set_target_known_false() {
    let mut files = soc_files();
    let schema = files.get_mut("schema.cedarschema").expect("schema");
    *schema = schema.replace(
        "@title(\"Read a case\")",
        "@title(\"Read a case\")\n@open_targets",
    );
    files.insert(
        "rules/30-more.cedar".into(),
        "@id(\"new-cases\") permit (principal, action == Action::\"case.read\", resource) when { !context.target_known };".into(),
    );
    let rules = files.get_mut("rules/10-agents.cedar").expect("policy");
    *rules = rules.replace(
        "when { principal.environment == resource.environment }",
        "when { context.target_known && principal.environment == resource.environment }",
    );
    let bundle = load(files).expect("bundle");
    assert_eq!(
        summary(&authorize(
            &bundle,
            &action("case.read", "Case::new", &[]),
            60,
            &[]
        )),
        "allowed 60 [new-cases]"
    );
    assert_eq!(
        summary(&authorize(&bundle, &read(), 60, &[])),
        "allowed 60 [soc-acts-at-home]"
    );
    let stranger = action("case.read", "Account::ann", &[]);
    assert_eq!(
        bundle.check_action(&stranger),
        Err(ActionError::UnknownTarget)
    );
}

#[test]
fn check_action_errors() {
    let bundle = soc();
    assert_eq!(
        bundle.check_action(&disable("ann")).expect("fits").title,
        "Disable an account"
    );
    let problem = |a: &Action| bundle.check_action(a).expect_err("refused");
    assert_eq!(
        problem(&action("account.delete", "Account::ann", &[])),
        ActionError::UnknownAction
    );
    assert_eq!(
        problem(&action("write", "Account::ann", &[])),
        ActionError::UnknownAction
    );
    assert_eq!(
        problem(&action("operate", "Environment::prod", &[])),
        ActionError::UnknownAction
    );
    assert_eq!(problem(&disable("Ann")), ActionError::UnknownTarget);
    assert_eq!(
        problem(&action("case.read", "Host::web-1", &[])),
        ActionError::UnknownTarget
    );
    let mut other = read();
    other.audience = Audience::parse("https://cases.soc.example/").expect("audience");
    assert_eq!(problem(&other), ActionError::UnknownAudience);
    let wrong = |message: &str| ActionError::InvalidParameters(message.to_owned());
    assert_eq!(
        problem(&action("account.disable", "Account::ann", &[])),
        wrong("end_sessions is missing")
    );
    let texts = [("end_sessions", Param::Str("s3cret".into()))];
    assert_eq!(
        problem(&action("account.disable", "Account::ann", &texts)),
        wrong("end_sessions must be true or false")
    );
    let more = [
        ("end_sessions", Param::Bool(true)),
        ("force", Param::Bool(true)),
    ];
    assert_eq!(
        problem(&action("account.disable", "Account::ann", &more)),
        wrong("force is not a parameter of this action")
    );
}

#[test]
fn nested_parameters_are_typed() {
    let bundle = soc_with(
        "schema.cedarschema",
        "text: String,",
        "text: String, tags?: Set<String>, where?: { line: Long, column?: Long },",
    )
    .expect("bundle");
    let with = |name, param| {
        action(
            "case.note",
            "Case::INC-8841",
            &[("text", Param::Str("x".into())), (name, param)],
        )
    };
    let record = |members: &[(&str, Param)]| {
        Param::Record(
            members
                .iter()
                .map(|(n, p)| ((*n).to_owned(), p.clone()))
                .collect(),
        )
    };
    let good = [
        with(
            "tags",
            Param::Set(vec![Param::Str("a".into()), Param::Str("b".into())]),
        ),
        with("tags", Param::Set(vec![])),
        with("where", record(&[("line", Param::Int(1))])),
    ];
    for a in good {
        assert!(bundle.check_action(&a).is_ok());
        assert!(
            summary(&authorize(&bundle, &a, 60, &[])).starts_with("allowed"),
            "{}",
            summary(&authorize(&bundle, &a, 60, &[]))
        );
    }
    let message = |a: Action| bundle.check_action(&a).expect_err("refused").to_string();
    assert!(message(with("tags", Param::Set(vec![Param::Int(1)]))).ends_with("tags must be text"));
    assert!(message(with("where", record(&[]))).ends_with("where.line is missing"));
    assert!(
        message(with(
            "where",
            record(&[("line", Param::Int(1)), ("x", Param::Int(1))])
        ))
        .contains("where.x is not")
    );
}

#[test]
fn target_attributes_as_text() {
    let bundle = soc();
    let facts = bundle
        .target_attributes(&Target::parse_pair("Account::ann").expect("target"))
        .expect("known");
    let expected = [
        ("environment", "Environment::prod"),
        ("name", "Ann Archer"),
        ("protected", "false"),
    ];
    assert_eq!(facts, expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
    assert_eq!(
        bundle.target_attributes(&Target::parse_pair("Account::zoe").expect("target")),
        None
    );
}

#[test]
fn self_test_detects_missing_action_entities() {
    let mut bundle = soc();
    assert_eq!(
        selftest::verify(&bundle.evaluator, &bundle.catalogue),
        Ok(())
    );
    bundle.evaluator.store_mut().remove_actions();
    let broken = selftest::verify(&bundle.evaluator, &bundle.catalogue).expect_err("noticed");
    assert!(
        broken
            .iter()
            .any(|m| m.starts_with("forbid over \"write\" does not reach \"account.disable\"")),
        "{broken:?}"
    );
    // And this is what would have happened: `forbid (…, action in …)` silent, a permit that names its action allowed.
    bundle.rules.set = "permit (principal, action, resource); forbid (principal, action in Action::\"write\", resource);"
        .parse()
        .expect("policy");
    bundle.policy_index = PolicyIndex::default();
    assert!(matches!(
        authorize(&bundle, &disable("ann"), 60, &[]),
        AuthzDecision::Allowed { .. }
    ));
}

#[test]
fn rule_validation_errors() {
    let permit = "permit (principal, action, resource);";
    refused(
        soc_and(permit),
        "rules/30-more.cedar:1: the rule needs an @id",
    );
    refused(
        soc_and(&format!("\n\n@id(\"a b\") {permit}")),
        "rules/30-more.cedar:3: the rule's @id must be",
    );
    refused(
        soc_and(&format!("@id(\"a\") @stepup(\"one-security\") {permit}")),
        "rule \"a\": unknown annotation @stepup (did you mean \"step_up\"?)",
    );
    refused(
        soc_and(&format!("@id(\"writes-are-short\") {permit}")),
        "taken by the rule at rules/20-guardrails.cedar:6",
    );
    refused(
        soc_and(&format!("@id(\"a\") @max_ttl(\"5m\") {permit}")),
        "only a forbid may carry a remedy",
    );
    let forbid = "forbid (principal, action, resource);";
    refused(
        soc_and(&format!(
            "@id(\"a\") @max_ttl(\"5m\") @step_up(\"one-security\") {forbid}"
        )),
        "not both",
    );
    refused(
        soc_and(&format!("@id(\"a\") @max_ttl(\"0m\") {forbid}")),
        "@max_ttl must be",
    );
    refused(
        soc_and(&format!("@id(\"a\") @step_up(\"one-securty\") {forbid}")),
        "(did you mean \"one-security\"?)",
    );
    refused(
        soc_and("@id(\"a\") permit (principal == ?principal, action, resource);"),
        "template",
    );
    refused(
        soc_and("@id(\"a\")\npermit (principal, action resource);"),
        "rules/30-more.cedar:2: ",
    );
    // What strict validation refuses: unknown actions, profiles, attributes, types that do not fit.
    for bad in [
        "forbid (principal, action == Action::\"account.delete\", resource);",
        "forbid (principal, action == Action::\"case.read\", resource)\nunless { context.approvals.contains(StepUp::\"one-securty\") };",
        "forbid (principal, action == Action::\"case.read\", resource)\nwhen { resource.enviroment == principal.environment };",
        "forbid (principal, action == Action::\"case.read\", resource)\nwhen { context.ttl > 10 };",
    ] {
        refused(
            soc_and(&format!("@id(\"a\")\n{bad}")),
            "rules/30-more.cedar:",
        );
    }
    let bundle = soc_and("@id(\"a\") forbid (principal in AgentGroup::\"sok\", action, resource);")
        .expect("bundle");
    assert!(
        bundle.warnings()[0]
            .message
            .contains("nothing in this bundle is AgentGroup::\"sok\""),
        "{:?}",
        bundle.warnings()
    );
}

#[test]
fn all_problems_are_reported_at_once() {
    let mut files = soc_files();
    let edit = |files: &mut BTreeMap<String, String>, path: &str, from: &str, to: &str| {
        let text = files.get_mut(path).expect("file");
        *text = text.replacen(from, to, 1);
    };
    edit(
        &mut files,
        "agents.toml",
        "owner = \"dana\"",
        "ownr = \"dana\"",
    );
    edit(&mut files, "people.toml", "quorum = 1", "quorum = 0");
    edit(
        &mut files,
        "rules/20-guardrails.cedar",
        "@max_ttl(\"10m\")\nforbid",
        "@max_ttl(\"ten\")\nforbid",
    );
    edit(
        &mut files,
        "schema.cedarschema",
        "@title(\"Read a case\")",
        "@titel(\"Read a case\")",
    );
    let error = load(files).expect_err("refused");
    let text = error.to_string();
    for part in [
        "agents.toml:4: agent: owner is missing",
        "agents.toml:7: agent: unknown key \"ownr\" (did you mean \"owner\"?)",
        "quorum: must be a whole number from 1 to 20",
        "rules/20-guardrails.cedar:6: rule \"writes-are-short\": @max_ttl must be",
        "unknown annotation @titel (did you mean \"title\"?)",
        "action \"case.read\": @title is missing",
    ] {
        assert!(text.contains(part), "wanted {part:?} in:\n{text}");
    }
    assert_eq!(text.lines().count(), error.problems().len());
}

#[test]
fn schema_validation_errors() {
    let schema = |from: &str, to: &str| soc_with("schema.cedarschema", from, to);
    refused(
        schema("ttl: duration, ", ""),
        "context differs (ttl: duration is missing); write context: { ttl: duration",
    );
    refused(
        schema("ttl: duration", "ttl: Long"),
        "ttl must be duration, not Long",
    );
    refused(
        schema("audience: String", "audience?: String"),
        "audience must not be optional",
    );
    refused(
        schema("audience: String", "audience: String, depth: Long"),
        "depth is not known",
    );
    refused(
        schema("evidence: Evidence", "evidence: { kind: String }"),
        "evidence must be { age: duration, kind: String }",
    );
    refused(
        schema("end_sessions: Bool", "end_sessions: decimal"),
        "parameter end_sessions: must be String, Bool",
    );
    refused(
        schema("end_sessions: Bool", "end_sessions: Account"),
        "not Account",
    );
    refused(
        schema("text: String", "text: { @sensitive a: String }"),
        "@sensitive belongs on the whole parameter",
    );
    refused(
        schema("@sensitive\n", "@sensitiv\n"),
        "unknown annotation @sensitiv (did you mean \"sensitive\"?)",
    );
    refused(
        schema("@single_use\n", "@singleuse\n"),
        "unknown annotation @singleuse (did you mean \"single_use\"?)",
    );
    refused(
        schema("@single_use\n", "@single_use(\"no\")\n"),
        "@single_use takes no text",
    );
    refused(
        schema("parameters: {\n", "@sensitive parameters: {\n"),
        "parameters takes no annotations",
    );
    refused(
        schema("binding: String", "@title(\"x\") binding: String"),
        "binding takes no annotations",
    );
    refused(
        schema(
            "entity Host = {",
            "type T = { @secret a: { b: Long } };\nentity Host = {",
        ),
        "type T: a: unknown annotation @secret",
    );
    refused(
        schema(
            "entity Host = {",
            "entity Host = {\n  x: { @sensitive y: String },",
        ),
        "entity Host: x.y: unknown annotation @sensitive",
    );
    refused(schema("@risk(\"low\")", "@risk(\"tiny\")"), "@risk must be");
    refused(
        schema("principal: [Agent]", "principal: [Agent, Person]"),
        "must have principal: [Agent]",
    );
    refused(
        schema("resource: [Case]", "resource: [Environment]"),
        "must be an entity type that this schema declares",
    );
    refused(
        schema("entity Host", "@colour(\"red\") entity Host"),
        "entity Host: unknown annotation @colour",
    );
    refused(
        schema("entity Host = {", "entity Agent;\nentity Host = {"),
        "\"Agent\" is already declared",
    );
    refused(
        schema("entity Host = {", "type duration = Long;\nentity Host = {"),
        "\"duration\"",
    );
    refused(
        schema("entity Host = {", "action operate;\nentity Host = {"),
        "\"operate\" is already declared",
    );
    refused(
        schema(
            "entity Host = {",
            "namespace X { entity Y; }\nentity Host = {",
        ),
        "namespace \"X\"",
    );
    refused(
        schema("entity Host = {", "entity Host = "),
        "schema.cedarschema:",
    );
    refused(schema("\"case.read\"", "\"case read\""), "its name must be");
    // A common type with the same members is equal.
    schema(
        "evidence: Evidence",
        "evidence: { age: duration, kind: String }",
    )
    .expect("same shape");
}

#[test]
fn entities_are_targets_only() {
    let entities = |from: &str, to: &str| soc_with("entities.json", from, to);
    let more = |entity: &str| entities("[\n", &format!("[\n{entity},"));
    refused(
        more(r#"{"uid": {"type": "Agent", "id": "x"}, "attrs": {}, "parents": []}"#),
        "Agent::x: holds only entities",
    );
    refused(
        more(r#"{"uid": {"type": "Action", "id": "case.read"}, "attrs": {}, "parents": []}"#),
        "Action::case.read",
    );
    refused(
        more(r#"{"uid": {"type": "Acount", "id": "x"}, "attrs": {}, "parents": []}"#),
        "(did you mean \"Account\"?)",
    );
    refused(
        more(r#"{"uid": {"type": "Host", "id": "a\u200bb"}, "attrs": {}, "parents": []}"#),
        "invisible",
    );
    let twice = r#"{"uid": {"type": "Host", "id": "web-1"}, "parents": [],
        "attrs": {"name": "web-1.prod.soc.example", "environment": {"type": "Environment", "id": "prod"}}}"#;
    refused(more(twice), "Host::web-1: is listed twice");
    refused(
        entities("\"protected\": false", "\"protected\": \"no\""),
        "entities.json: ",
    );
    refused(
        entities("\"protected\": false", "\"protcted\": false"),
        "entities.json: ",
    );
    refused(
        entities(
            "\"protected\": false",
            "\"protected\": false, \"protected\": true",
        ),
        "is listed twice",
    );
}

#[test]
fn registry_validation_errors() {
    let agents = |from: &str, to: &str| soc_with("agents.toml", from, to);
    refused(
        agents("id = \"reporter\"", "id = \"triage\""),
        "id \"triage\" is taken",
    );
    refused(
        agents("agent/reporter", "agent/triage"),
        "another agent has this spiffe_id",
    );
    refused(
        agents("\"host.isolate\"", "\"host.isolat\""),
        "action \"host.isolat\" is not in the catalogue (did you mean \"host.isolate\"?)",
    );
    refused(
        agents("owner = \"dana\"", "owner = \"dan\""),
        "(did you mean \"dana\"?)",
    );
    refused(
        agents("[[agent]]", "[[agents]]"),
        "unknown key \"agents\" (did you mean \"agent\"?)",
    );
    refused(
        agents("spiffe://soc", "spiffe://SOC"),
        "agents.toml:6: agent: spiffe_id: trust domain",
    );
    refused(
        agents("groups = [\"soc\"]", "groups = \"soc\""),
        "groups: must be a list",
    );
    refused(
        agents("model = \"example-large-2\"", "model = 2"),
        "model: must be text",
    );
    refused(agents("[[agent]]", "[agent"), "agents.toml:4: ");
    let people = |from: &str, to: &str| soc_with("people.toml", from, to);
    refused(
        people("id = \"maria\"", "id = \"lee\""),
        "id \"lee\" is taken",
    );
    refused(
        people("id = \"idp\"", "id = \"lee\""),
        "id \"lee\" is taken",
    );
    refused(
        people("method = \"key\"", "method = \"webauthn\""),
        "method: must be \"passkey\" or \"key\"",
    );
    refused(people("quorum = 2", "quorum = 21"), "quorum: must be");
    refused(people("wait = \"15m\"", "wait = \"soon\""), "wait: must be");
    refused(
        people("roles = [\"operator\"]", "roles = [\"root\"]"),
        "roles: must be",
    );
    refused(
        people("audiences = [\"https://idp.soc.example\"]", ""),
        "audiences must name at least one",
    );
    let warned = people(
        "group = \"security\"\nquorum = 2",
        "group = \"securty\"\nquorum = 2",
    )
    .expect("bundle");
    assert!(
        warned.warnings()[0]
            .message
            .contains("has 0 approvers, fewer than the quorum 2"),
        "{:?}",
        warned.warnings()
    );
}

/// The coordinates of a fresh public key.
fn point() -> (String, String) {
    let jwk = crate::jose::SigningKey::generate()
        .expect("key")
        .0
        .public()
        .to_jwk();
    let coordinate = |name: &str| jwk[name].as_str().expect("text").to_owned();
    (coordinate("x"), coordinate("y"))
}

/// p - y for the prime p of P-256 (FIPS 186-4 D.1.2.3).
fn negated(y: &str) -> String {
    let y = Digest::parse(y).expect("32 bytes");
    let mut p = [0xff; 32];
    p[4..8].copy_from_slice(&[0, 0, 0, 1]);
    p[8..20].fill(0);
    let mut borrow = 0;
    for i in (0..32).rev() {
        let difference = i32::from(p[i]) - i32::from(y.as_bytes()[i]) - borrow;
        borrow = i32::from(difference < 0);
        p[i] = u8::try_from(difference.rem_euclid(256)).expect("a byte");
    }
    Digest::from_bytes(p).to_string()
}

#[test]
fn one_key_one_person() {
    let (x, y) = point();
    let (other_x, other_y) = point();
    let key = |of: &str, x: &str, y: &str| {
        format!(
            "[[key]]\nof = \"{of}\"\njwk = {{ kty = \"EC\", crv = \"P-256\", x = \"{x}\", y = \"{y}\" }}\n"
        )
    };
    let with = |keys: &str| {
        let mut files = soc_files();
        files.get_mut("people.toml").expect("people").push_str(keys);
        load(files)
    };
    let bundle = with(&(key("maria", &x, &y) + &key("idp", &other_x, &other_y))).expect("bundle");
    let maria = bundle
        .person(&PersonId::parse("maria").expect("id"))
        .expect("person");
    assert_eq!(maria.keys[0].to_jwk()["x"], x);
    assert_eq!(
        bundle
            .service(&ServiceId::parse("idp").expect("id"))
            .expect("service")
            .keys
            .len(),
        1
    );
    refused(
        with(&(key("maria", &x, &y) + &key("lee", &x, &y))),
        "already registered for \"maria\"",
    );
    // The negated point has the same x; the holder of one key holds both.
    refused(
        with(&(key("maria", &x, &y) + &key("lee", &x, &negated(&y)))),
        "already registered for \"maria\"",
    );
    refused(with(&key("maria", &x, &other_y)), "curve");
    refused(
        with(&key("nobody", &x, &y)),
        "no person, validator or auditor",
    );
    refused(with(&key("maria", "AA", &y)), "x: must be 32 bytes");
    refused(
        with(&key("maria", &x, &y).replace("P-256", "P-384")),
        "crv: must be \"P-256\"",
    );
    let private = with(&key("maria", &x, &y).replace("x =", "d = \"ohno\", x ="))
        .expect_err("private")
        .to_string();
    assert!(
        private.contains("private part") && !private.contains("ohno"),
        "{private}"
    );
}

#[test]
fn profile_digest_covers_its_definition() {
    let digest = |bundle: &PolicyBundle, name: &str| {
        bundle
            .profile(&ProfileName::parse(name).expect("name"))
            .expect("profile")
            .digest()
    };
    let bundle = soc();
    let one = digest(&bundle, "one-security");
    assert_ne!(one, digest(&bundle, "two-security"));
    for (from, to) in [
        ("quorum = 1", "quorum = 3"),
        ("good_for = \"10m\"", "good_for = \"11m\""),
        ("wait = \"15m\"", "wait = \"16m\""),
    ] {
        assert_ne!(
            one,
            digest(
                &soc_with("people.toml", from, to).expect("bundle"),
                "one-security"
            ),
            "{to}"
        );
    }
    let same = soc_with("people.toml", "wait = \"15m\"", "wait = \"900s\"").expect("bundle");
    assert_eq!(one, digest(&same, "one-security"));
}

#[test]
fn a_bundle_without_profiles_or_agents_loads_and_denies() {
    let files = BTreeMap::from(
        [
            ("schema.cedarschema", "entity Thing;"),
            (
                "rules/a.cedar",
                "@id(\"none\") forbid (principal, action, resource);",
            ),
            ("entities.json", "[]"),
            ("agents.toml", ""),
            ("people.toml", ""),
        ]
        .map(|(path, text)| (path.to_owned(), text.to_owned())),
    );
    let bundle = load(files).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(
        bundle.check_action(&read()),
        Err(ActionError::UnknownAction)
    );
    assert!(
        bundle
            .agents_matching(&SpiffeId::parse("spiffe://soc.example/agent/triage").expect("id"))
            .is_empty()
    );
}

#[test]
fn bundle_is_send_and_sync() {
    fn shared<T: Send + Sync>(_: &T) {}
    shared(&soc());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn approvals_are_monotonic(
        which in 0..6_usize,
        ttl_s in 1..2_000_i64,
        fewer in proptest::sample::subsequence(vec!["one-security", "two-security"], 0..=2),
        more in proptest::sample::subsequence(vec!["one-security", "two-security"], 0..=2),
    ) {
        thread_local!(static BUNDLE: PolicyBundle = soc());
        BUNDLE.with(|bundle| {
            let action = [read(), note(), disable("ann"), disable("bob"), isolate("web-1"), isolate("lab-7")][which].clone();
            let all: Vec<_> = fewer.iter().chain(&more).copied().collect();
            let (before, after) = (authorize(bundle, &action, ttl_s, &fewer), authorize(bundle, &action, ttl_s, &all));
            match &before {
                AuthzDecision::Allowed { ttl_ms, .. } => prop_assert!(matches!(&after, AuthzDecision::Allowed { ttl_ms: t, .. } if t == ttl_ms), "{}", summary(&after)),
                AuthzDecision::Needs { profiles, .. } => {
                    prop_assert!(!matches!(after, AuthzDecision::Denied { .. }), "{}", summary(&after));
                    // The required profiles suffice, with the promised time to live.
                    let names: Vec<_> = fewer.iter().copied().chain(profiles.iter().map(|p| p.name.as_str())).collect();
                    let then = authorize(bundle, &action, ttl_s, &names);
                    prop_assert!(matches!(then, AuthzDecision::Allowed { .. }), "{}", summary(&then));
                }
                AuthzDecision::Denied { .. } => {}
            }
            Ok(())
        })?;
    }
}

/// One rule with a scope and a condition drawn at random. The conditions hold for every action, `operate` included; one
/// always fails to evaluate, and so shows whether Cedar evaluated a condition.
fn any_rule() -> impl Strategy<Value = String> {
    let effect = proptest::sample::select(vec!["permit", "forbid"]);
    let principal = proptest::sample::select(vec![
        "principal",
        "principal in AgentGroup::\"soc\"",
        "principal == Agent::\"triage\"",
        "principal == Agent::\"reporter\"",
    ]);
    let named = proptest::sample::select(vec![
        "read",
        "write",
        "destructive",
        "case.read",
        "case.note",
        "account.disable",
        "host.isolate",
        "operate",
    ]);
    let action = prop_oneof![
        Just("action".to_owned()),
        named
            .clone()
            .prop_map(|name| format!("action == Action::\"{name}\"")),
        named
            .clone()
            .prop_map(|name| format!("action in Action::\"{name}\"")),
        proptest::collection::vec(named, 1..4).prop_map(|names| {
            let names: Vec<_> = names
                .iter()
                .map(|name| format!("Action::\"{name}\""))
                .collect();
            format!("action in [{}]", names.join(", "))
        }),
    ];
    let resource = proptest::sample::select(vec![
        "resource",
        "resource is Case",
        "resource == Account::\"ann\"",
    ]);
    let condition = proptest::sample::select(vec![
        "",
        "when { context.binding == \"jkt\" }",
        "when { context.evidence.age <= duration(\"1s\") }",
        "unless { context.evidence.kind == \"jwt-svid\" }",
        "when { context.now.offset(duration(\"9223372036854775807ms\")) > context.now }",
    ]);
    (effect, principal, action, resource, condition).prop_map(
        |(effect, principal, action, resource, condition)| {
            format!("{effect} ({principal}, {action}, {resource}) {condition};\n")
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn policy_index_is_equivalent_to_full_set(
        rules in proptest::collection::vec(any_rule(), 1..8),
        groups in proptest::sample::subsequence(vec!["read", "write", "destructive", "case.read"], 0..=4),
        ages in proptest::sample::subsequence(vec![0, 1_500], 1..=2),
    ) {
        let mut files = soc_files();
        files.retain(|path, _| !path.starts_with("rules/"));
        let rules = rules.iter().enumerate().map(|(n, rule)| format!("@id(\"r-{n}\")\n{rule}"));
        files.insert("rules/any.cedar".into(), rules.collect());
        let schema = files.get_mut("schema.cedarschema").expect("file");
        let groups: Vec<_> = groups.iter().map(|group| format!("\"{group}\"")).collect();
        *schema = schema.replace(
            "action \"case.note\" in [\"write\"]",
            &match groups.as_slice() {
                [] => "action \"case.note\"".to_owned(),
                _ => format!("action \"case.note\" in [{}]", groups.join(", ")),
            },
        );
        let bundle = load(files).unwrap_or_else(|e| panic!("{e}"));
        let mut left_out = 0;
        for (name, age_ms) in bundle.catalogue.names().flat_map(|name| ages.iter().map(move |age| (name, *age))) {
            let catalogued = bundle.catalogue.action(&ActionName::parse(name).expect("name")).expect("known");
            for agent in ["triage", "reporter"] {
                for target in ["ann", "INC-8841"] {
                    let kind = catalogued.target_types.first().expect("a type");
                    let request = evaluator::EvalRequest {
                        agent: &AgentId::parse(agent).expect("id"),
                        action: &catalogued.name,
                        target: &Target::parse(kind, target).expect("target"),
                        audience: &Audience::parse("https://idp.soc.example").expect("audience"),
                        parameters: &catalogued.sample_parameters(),
                        ttl_ms: 1_000,
                        approvals: &BTreeSet::new(),
                        evidence: evaluator::EvidenceContext {
                            kind: EvidenceKind::JwtSvid,
                            age_ms,
                            binding: "jkt",
                            now: Timestamp::from_millis(1_792_656_000_123),
                        },
                        task_age_ms: 0,
                        task_depth: 0,
                    };
                    let slice = bundle.policy_index.policies_for(name, &bundle.rules.set);
                    left_out += bundle.rules.set.num_of_policies() - slice.num_of_policies();
                    prop_assert_eq!(
                        bundle.evaluator.evaluate(slice, &request),
                        bundle.evaluator.evaluate(&bundle.rules.set, &request),
                        "{} by {} on {}", name, agent, target
                    );
                }
            }
        }
        for agent in ["triage", "reporter"] {
            let agent = bundle.agent(&AgentId::parse(agent).expect("id")).expect("agent");
            let evidence = evaluator::EvidenceContext { kind: EvidenceKind::JwtSvid, age_ms: 0, binding: "jkt", now: Timestamp::from_secs(1) };
            let authorize = |rules| bundle.evaluator.evaluate_operate(rules, &agent.id, &agent.environment, evidence);
            prop_assert_eq!(authorize(bundle.policy_index.policies_for(OPERATE, &bundle.rules.set)), authorize(&bundle.rules.set));
        }
        // Guards the test: without this no smaller set would have been compared.
        let one_action = bundle.rules.set.policies().any(|rule| matches!(rule.action_constraint(), cedar_policy::ActionConstraint::Eq(_)));
        prop_assert!(!one_action || left_out > 0);
    }
}

#[test]
fn policy_index_leaves_out_other_actions() {
    let bundle = soc();
    let ids = |action: &str| -> BTreeSet<String> {
        let slice = bundle.policy_index.policies_for(action, &bundle.rules.set);
        slice.policies().map(|rule| rule.id().to_string()).collect()
    };
    assert_eq!(
        ids("case.read"),
        BTreeSet::from(["soc-acts-at-home".to_owned()])
    );
    assert_eq!(
        ids(OPERATE),
        BTreeSet::from(["agents-operate-with-fresh-evidence".to_owned()])
    );
    assert!(ids("host.isolate").contains("destructive-needs-a-yes"));
    assert!(
        ids("host.isolate").contains("writes-are-short"),
        "two groups up"
    );
    assert!(!ids("host.isolate").contains("protected-accounts-stay"));
    assert_eq!(
        bundle
            .policy_index
            .policies_for("no.such", &bundle.rules.set)
            .num_of_policies(),
        bundle.rules.set.num_of_policies(),
        "an unknown action is evaluated with every rule"
    );
}
