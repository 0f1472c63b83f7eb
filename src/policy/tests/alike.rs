//! Requests that two bundles are said to answer alike get one answer of both.

use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::policy_index::{any_rule, hierarchy};
use super::*;

/// Pairs of bundles and requests that were said to be alike, and that were not.
static ALIKE: [AtomicUsize; 2] = [AtomicUsize::new(0), AtomicUsize::new(0)];

fn bundle(rules: &[String]) -> PolicyBundle {
    let mut files = hierarchy();
    let rules = rules.iter().enumerate();
    let rules = rules.map(|(n, rule)| format!("@id(\"r-{n}\")\n{rule}"));
    files.insert("rules/any.cedar".into(), rules.collect());
    load(files).unwrap_or_else(|e| panic!("{e}"))
}

fn compare(rules: Vec<String>, at: usize, other: String, ages: EvidenceAges) {
    let base = bundle(&rules);
    let mut changed = rules;
    let at = at % changed.len();
    changed[at] = other;
    let candidate = bundle(&changed);
    assert!(base.has_the_same_entities(&candidate));
    let differing = base.differing_rules(&candidate);
    let now = Timestamp::from_millis(1_792_656_000_123);
    for agent in base.agents() {
        for (name, target) in [
            ("case.read", "Case::INC-8841"),
            ("case.note", "Case::INC-8841"),
            ("account.disable", "Account::ann"),
            ("host.isolate", "Host::web-2"),
            ("host.isolate", "Host::web-3"),
            ("host.isolate", "Host::new"),
        ] {
            let parameters: &[(&str, Param)] = match name {
                "case.note" => &[("text", Param::Str("seen".into()))],
                "account.disable" => &[("end_sessions", Param::Bool(true))],
                _ => &[],
            };
            let action = action(name, target, parameters);
            let is_alike =
                base.answers_alike(&candidate, &differing, agent, &action.name, &action.target);
            ALIKE[usize::from(!is_alike)].fetch_add(1, Ordering::Relaxed);
            if !is_alike {
                continue;
            }
            let answer = |bundle: &PolicyBundle| {
                let kind = EvidenceKind::JwtSvid;
                let decision = bundle.authorize(&AuthzRequest {
                    agent,
                    action: &action,
                    ttl_ms: 60_000,
                    approvals: &BTreeSet::new(),
                    evidence_kind: kind,
                    evidence_ages: ages,
                    binding: "jkt",
                    task_age_ms: 0,
                    task_depth: 0,
                    waited_ms: 0,
                    now,
                    executor: None,
                    facts: &crate::model::FactValues::new(),
                    counts: &crate::model::CountValues::new(),
                });
                let operates = bundle.may_operate(agent, kind, ages, "jkt", now);
                (decision, operates)
            };
            assert_eq!(
                answer(&base),
                answer(&candidate),
                "{} {name} {target}",
                agent.id
            );
        }
    }
}

#[test]
fn bundles_that_answer_alike_give_one_answer() {
    let config = ProptestConfig::with_cases(64);
    let rules = proptest::collection::vec(any_rule(), 1..12);
    let ages = proptest::sample::select(vec![0, 1_500]);
    let run = TestRunner::new(config).run(
        &(rules, 0..12_usize, any_rule(), ages),
        |(rules, at, other, age)| {
            let ages = EvidenceAges {
                issued_ms: age,
                verified_ms: age,
            };
            compare(rules, at, other, ages);
            Ok(())
        },
    );
    run.expect("holds");
    let [alike, others] = ALIKE.each_ref().map(|n| n.load(Ordering::Relaxed));
    assert!(alike > 0 && others > 0, "{alike} alike, {others} not");
}

/// What a rule may read beside its scope keeps a request from being said to be answered alike.
#[test]
fn other_entities_agents_and_actions_are_not_alike() {
    let base = soc();
    let triage = base
        .agent(&AgentId::parse("triage").expect("id"))
        .expect("triage");
    let is_alike = |path: &str, from: &str, to: &str| {
        let other = soc_with(path, from, to).unwrap_or_else(|e| panic!("{e}"));
        let differing = base.differing_rules(&other);
        base.has_the_same_entities(&other)
            && base.answers_alike(&other, &differing, &triage, &read().name, &read().target)
    };
    assert!(is_alike("people.toml", "Maria Moreau", "Maria M."));
    for (path, from, to) in [
        ("entities.json", "Sign-ins from two continents", "Nothing"),
        ("agents.toml", "owner = \"dana\"", "owner = \"maria\""),
        ("people.toml", "quorum = 2", "quorum = 1"),
        (
            "schema.cedarschema",
            "@title(\"Read a case\")",
            "@title(\"Read cases\")",
        ),
        (
            "rules/10-agents.cedar",
            "duration(\"5m\")",
            "duration(\"4m\")",
        ),
    ] {
        assert!(!is_alike(path, from, to), "{path}");
    }
}
