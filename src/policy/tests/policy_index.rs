//! Policy index: the subset of rules gives the decision of all rules.

use proptest::prelude::*;

use super::*;

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
    assert!(ids("host.isolate").contains("severe-needs-a-passkey"));
    assert!(!ids("host.isolate").contains("destructive-needs-approval"));
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
