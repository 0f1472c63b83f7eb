//! Policy index: the subset of rules gives the decision of all rules.

use proptest::prelude::*;

use super::*;
use crate::policy::policy_index::RequestScope;
use crate::policy::schema::OPERATE;

/// Agents in several groups, targets in groups of groups, an action with open targets, and an action in two groups.
pub(super) fn hierarchy() -> BTreeMap<String, String> {
    let mut files = soc_files();
    files.retain(|path, _| !path.starts_with("rules/"));
    let schema = files.get_mut("schema.cedarschema").expect("file");
    schema.push_str("entity Area in [Area];\nentity Rack in [Area];\n");
    *schema = schema
        .replace("entity Host = {", "entity Host in [Rack, Area] = {")
        .replace("entity Account = {", "entity Account in [Area] = {")
        .replace(
            "@title(\"Isolate a host\")",
            "@title(\"Isolate a host\")\n@open_targets",
        );
    let agents = files.get_mut("agents.toml").expect("file");
    *agents = agents.replacen(
        "groups = [\"soc\"]",
        "groups = [\"soc\", \"night\", \"alone\"]",
        1,
    );
    let host = |id: &str, parents: &str| {
        format!(
            r#"{{ "uid": {{ "type": "Host", "id": "{id}" }}, "parents": [{parents}],
               "attrs": {{ "name": "{id}", "environment": {{ "type": "Environment", "id": "prod" }} }} }}"#
        )
    };
    let uid = |kind: &str, id: &str| format!(r#"{{ "type": "{kind}", "id": "{id}" }}"#);
    let plain = |kind: &str, id: &str, parents: &str| {
        format!(
            r#"{{ "uid": {}, "parents": [{parents}], "attrs": {{}} }}"#,
            uid(kind, id)
        )
    };
    let more = [
        host("web-2", &uid("Rack", "r-1")),
        host(
            "web-3",
            &format!("{}, {}", uid("Rack", "r-2"), uid("Area", "south")),
        ),
        plain("Rack", "r-1", &uid("Area", "north")),
        plain("Rack", "r-2", ""),
        plain("Area", "north", &uid("Area", "world")),
        plain("Area", "south", &uid("Area", "world")),
        plain("Area", "world", ""),
    ];
    let entities = files.get_mut("entities.json").expect("file");
    let end = entities.rfind(']').expect("a list");
    entities.truncate(end);
    entities.push_str(&format!(", {}]", more.join(", ")));
    *entities = entities.replacen(
        r#""id": "ann" }, "parents": []"#,
        r#""id": "ann" }, "parents": [{ "type": "Area", "id": "south" }]"#,
        1,
    );
    files
}

/// One rule with a scope and a condition drawn at random. The conditions hold for every action, `operate` included; one
/// always fails to evaluate, and so shows whether Cedar evaluated a condition.
pub(super) fn any_rule() -> impl Strategy<Value = String> {
    let effect = proptest::sample::select(vec!["permit", "forbid"]);
    let principal = proptest::sample::select(vec![
        "principal",
        "principal",
        "principal in AgentGroup::\"soc\"",
        "principal in AgentGroup::\"night\"",
        "principal in AgentGroup::\"none\"",
        "principal == Agent::\"triage\"",
        "principal in Agent::\"triage\"",
        "principal == Agent::\"reporter\"",
        "principal == Agent::\"gone\"",
        "principal is Agent",
        "principal is Agent in AgentGroup::\"night\"",
    ]);
    let named = proptest::sample::select(vec![
        "read",
        "write",
        "destructive",
        "reversible",
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
        "resource",
        "resource is Case",
        "resource is Host",
        "resource == Account::\"ann\"",
        "resource == Host::\"web-2\"",
        "resource == Host::\"new\"",
        "resource in Host::\"web-2\"",
        "resource in Host::\"new\"",
        "resource in Rack::\"r-1\"",
        "resource in Area::\"north\"",
        "resource in Area::\"south\"",
        "resource in Area::\"world\"",
        "resource == Area::\"world\"",
        "resource is Host in Area::\"world\"",
        "resource is Account in Area::\"world\"",
        "resource is Environment",
        "resource == Environment::\"prod\"",
    ]);
    let condition = proptest::sample::select(vec![
        "",
        "when { context.binding == \"jkt\" }",
        "when { context.evidence.verified_age <= duration(\"1s\") }",
        "unless { context.evidence.kind == \"jwt-svid\" }",
        "when { context.now.offset(duration(\"9223372036854775807ms\")) > context.now }",
    ]);
    (effect, principal, action, resource, condition).prop_map(
        |(effect, principal, action, resource, condition)| {
            format!("{effect} ({principal}, {action}, {resource}) {condition};\n")
        },
    )
}

/// Agents and targets of requests; one of each is not in the bundle.
const AGENTS: [&str; 3] = ["triage", "reporter", "gone"];
const TARGETS: [&str; 5] = ["ann", "INC-8841", "web-2", "web-3", "new"];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn policy_index_is_equivalent_to_full_set(
        rules in proptest::collection::vec(any_rule(), 1..24),
        groups in proptest::sample::subsequence(vec!["read", "write", "destructive", "case.read"], 0..=4),
        age_ms in proptest::sample::select(vec![0, 1_500]),
    ) {
        let mut files = hierarchy();
        let rules = rules.iter().enumerate().map(|(n, rule)| format!("@id(\"r-{n}\")\n{rule}"));
        files.insert("rules/any.cedar".into(), rules.collect());
        let schema = files.get_mut("schema.cedarschema").expect("file");
        let groups: Vec<_> = groups.iter().map(|group| format!("\"{group}\"")).collect();
        // An action that is a group to others can be undone as far as they.
        *schema = schema.replace(
            "@reversible(\"reversible\")\n@undo(\"Delete the note in the case system.\")",
            "@reversible(\"nothing-changes\")",
        );
        *schema = schema.replace(
            "action \"case.note\" in [\"write\"]",
            &match groups.as_slice() {
                [] => "action \"case.note\"".to_owned(),
                _ => format!("action \"case.note\" in [{}]", groups.join(", ")),
            },
        );
        let bundle = load(files).unwrap_or_else(|e| panic!("{e}"));
        let (all, store) = (&bundle.rules.set, bundle.evaluator.store());
        let evidence = evaluator::EvidenceContext {
            kind: EvidenceKind::JwtSvid,
            ages: EvidenceAges { issued_ms: age_ms, verified_ms: age_ms },
            binding: "jkt",
            now: Timestamp::from_millis(1_792_656_000_123),
        };
        let mut left_out = 0;
        let mut slice = |scope: &RequestScope| {
            // As it is selected, also where it is not worth a set of its own.
            let kept = bundle.policy_index.ids_for(scope, store);
            left_out += all.num_of_policies() - kept.len();
            let kept = kept.into_iter().map(|id| all.policy(id).expect("a rule").clone());
            cedar_policy::PolicySet::from_policies(kept).expect("a set")
        };
        for agent in AGENTS {
            let agent = AgentId::parse(agent).expect("id");
            for catalogued in bundle.catalogue.actions() {
                for target in TARGETS {
                    let kind = catalogued.target_types.first().expect("a type");
                    let request = evaluator::EvalRequest {
                        agent: &agent,
                        action: &catalogued.name,
                        target: &Target::parse(kind, target).expect("target"),
                        audience: &Audience::parse("https://idp.soc.example").expect("audience"),
                        parameters: &catalogued.sample_parameters(),
                        ttl_ms: 1_000,
                        approvals: &BTreeSet::new(),
                        evidence,
                        task_age_ms: 0,
                        task_depth: 0,
                        waited_ms: 0,
                        facts: &crate::model::FactValues::new(),
                        counts: &crate::model::CountValues::new(),
                    };
                    let scope = RequestScope::new(store, &agent, catalogued.name.as_str(), (kind, target)).expect("a scope");
                    let whole = bundle.evaluator.evaluate(all, &request);
                    prop_assert_eq!(
                        &bundle.evaluator.evaluate(&slice(&scope), &request),
                        &whole,
                        "{} by {} on {}", &catalogued.name, &agent, target
                    );
                    let chosen = bundle.policy_index.policies_for(&scope, all, store);
                    prop_assert_eq!(bundle.evaluator.evaluate(&chosen, &request), whole);
                }
            }
            for environment in ["prod", "staging"] {
                let environment = crate::model::EnvironmentName::parse(environment).expect("a name");
                let scope = RequestScope::new(store, &agent, OPERATE, ("Environment", environment.as_str())).expect("a scope");
                let slice = slice(&scope);
                let operate = |rules| bundle.evaluator.evaluate_operate(rules, &agent, &environment, evidence);
                prop_assert_eq!(operate(&slice), operate(all));
            }
        }
        // Guards the test: without this no smaller set would have been compared.
        let one_action = all.policies().any(|rule| matches!(rule.action_constraint(), cedar_policy::ActionConstraint::Eq(_)));
        prop_assert!(!one_action || left_out > 0);
    }
}

#[test]
fn policy_index_leaves_out_what_the_scope_excludes() {
    let more = "@id(\"one-host\") permit (principal == Agent::\"triage\", action, resource == Host::\"web-2\");
        @id(\"north\") permit (principal in AgentGroup::\"night\", action, resource in Area::\"north\");
        @id(\"hosts\") permit (principal, action, resource is Host in Area::\"world\");
        @id(\"south\") permit (principal, action in [Action::\"severe\", Action::\"host.isolate\"], resource in Area::\"south\");";
    let mut files = hierarchy();
    for (path, text) in SOC.iter().filter(|(path, _)| path.starts_with("rules/")) {
        files.insert((*path).to_owned(), (*text).to_owned());
    }
    files.insert("rules/30-more.cedar".to_owned(), more.to_owned());
    let bundle = load(files).unwrap_or_else(|e| panic!("{e}"));
    let store = bundle.evaluator.store();
    let ids = |agent: &str, action: &str, target: (&str, &str)| -> Vec<String> {
        let agent = AgentId::parse(agent).expect("id");
        let scope = RequestScope::new(store, &agent, action, target).expect("a scope");
        let ids = bundle.policy_index.ids_for(&scope, store);
        let mut ids: Vec<String> = ids.into_iter().map(ToString::to_string).collect();
        ids.sort();
        ids
    };
    let case = ["cases-belong-to-the-case-system", "soc-acts-at-home"];
    assert_eq!(ids("triage", "case.read", ("Case", "INC-8841")), case);
    assert_eq!(
        ids("stranger", "case.read", ("Case", "INC-8841")),
        ["cases-belong-to-the-case-system"],
        "an agent that the bundle does not have is in no group"
    );
    assert_eq!(
        ids("triage", OPERATE, ("Environment", "prod")),
        ["agents-operate-with-fresh-evidence"]
    );
    let every_host = [
        "autonomy-advisory",
        "hosts-belong-to-the-identity-provider",
        "isolating-production-needs-two",
        "severe-needs-a-passkey",
        "soc-acts-at-home",
        "writes-are-short",
    ];
    assert_eq!(ids("triage", "host.isolate", ("Host", "new")), every_host);
    let and = |more: &[&'static str]| {
        let mut ids: Vec<&'static str> = every_host.iter().chain(more).copied().collect();
        ids.sort_unstable();
        ids
    };
    assert_eq!(
        ids("triage", "host.isolate", ("Host", "web-2")),
        and(&["hosts", "north", "one-host"])
    );
    assert_eq!(
        ids("reporter", "host.isolate", ("Host", "web-2")),
        and(&["hosts"])
    );
    assert_eq!(
        ids("triage", "host.isolate", ("Host", "web-3")),
        and(&["hosts", "south"]),
        "once, though its action is named twice"
    );
}
