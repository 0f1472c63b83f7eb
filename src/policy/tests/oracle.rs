//! An independent model of gate 2: it evaluates rules of its own form, without Cedar and without the product's code, by the documented
//! semantics. Both decide random requests about random bundles, and must agree.

mod generator;
mod model;

use proptest::prelude::*;

use super::*;
use generator::{any_request, any_rules, any_world, directed};
use model::{ModelAnswer, ModelWorld, Request, Rule, decide};

/// The product's bundle of a world and its rules.
fn bundle(world: &ModelWorld, rules: &[Rule]) -> PolicyBundle {
    load(world.files(rules)).unwrap_or_else(|e| panic!("{e}\n{}", world.text(rules)))
}

fn ask(bundle: &PolicyBundle, request: &Request) -> AuthzDecision {
    let action = Action::new(
        ActionName::parse(request.action).expect("name"),
        Audience::parse(request.audience).expect("audience"),
        Target::parse("Box", request.target).expect("target"),
        BTreeMap::new(),
    );
    bundle.authorize(&AuthzRequest {
        agent: &agent(bundle, request.agent),
        action: &action.expect("action"),
        ttl_ms: request.ttl_ms,
        approvals: &profiles(&request.approvals.iter().copied().collect::<Vec<_>>()),
        evidence_kind: EvidenceKind::JwtSvid,
        evidence_ages: EvidenceAges::ZERO,
        binding: "jkt",
        task_age_ms: 0,
        task_depth: request.depth,
        waited_ms: 0,
        now: Timestamp::from_secs(1_792_656_000),
        executor: None,
        facts: &crate::model::FactValues::new(),
        counts: &crate::model::CountValues::new(),
    })
}

fn answer(decision: &AuthzDecision) -> ModelAnswer {
    let ids =
        |rules: &[crate::model::RuleRef]| rules.iter().map(|rule| rule.id.to_string()).collect();
    match decision {
        AuthzDecision::Allowed { ttl_ms, rules } => ModelAnswer::Allowed {
            ttl_ms: *ttl_ms,
            rules: ids(rules),
        },
        AuthzDecision::Needs {
            profiles,
            ttl_ms,
            rules,
            ..
        } => ModelAnswer::Needs {
            profiles: profiles.iter().map(|p| p.name.to_string()).collect(),
            ttl_ms: *ttl_ms,
            rules: ids(rules),
        },
        AuthzDecision::Denied { why, rules } => ModelAnswer::Denied {
            why: why.to_string(),
            rules: ids(rules),
        },
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn the_model_and_the_bundle_agree(
        world in any_world(),
        rules in any_rules(),
        requests in proptest::collection::vec(any_request(), 48),
    ) {
        let bundle = bundle(&world, &rules);
        for request in &requests {
            prop_assert_eq!(
                answer(&ask(&bundle, request)),
                decide(&world, &rules, request),
                "{:?}\n{}\n{:?}", request, world.text(&rules), world
            );
        }
    }

    /// Over rules that use approvals and lifetimes in the documented direction, and that do not fail.
    #[test]
    fn more_approvals_and_shorter_lifetimes_keep_a_yes(
        world in any_world(),
        rules in any_rules(),
        requests in proptest::collection::vec((any_request(), any_request()), 48),
    ) {
        let rules: Vec<Rule> = rules.iter().map(directed).collect();
        let bundle = bundle(&world, &rules);
        for (request, other) in &requests {
            if !matches!(ask(&bundle, request), AuthzDecision::Allowed { .. }) {
                continue;
            }
            let mut better = request.clone();
            better.approvals.extend(&other.approvals);
            better.ttl_ms = other.ttl_ms.clamp(1, request.ttl_ms);
            let decision = ask(&bundle, &better);
            prop_assert!(
                matches!(decision, AuthzDecision::Allowed { .. }),
                "{:?} after {:?}: {}\n{}", better, request, summary(&decision), world.text(&rules)
            );
        }
    }

    /// A rule that the check does not refuse for its direction has one, and the other way round.
    #[test]
    fn the_check_finds_the_direction_of_a_rule(rules in any_rules()) {
        for rule in &rules {
            let has_direction = *rule == generator::turned(rule);
            let found = crate::policy::check::direction::findings(&rule.text(0));
            prop_assert_eq!(found.is_empty(), has_direction, "{:?}: {}", found, rule.text(0));
        }
    }
}

/// Guards the properties: the generator reaches every kind of answer.
#[test]
fn every_answer_is_generated() {
    use proptest::strategy::ValueTree as _;
    use proptest::test_runner::TestRunner;

    let mut runner = TestRunner::deterministic();
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let requests = proptest::collection::vec(any_request(), 48);
    let all = (any_world(), any_rules(), requests);
    for _ in 0..400 {
        let (world, rules, requests) = all.new_tree(&mut runner).expect("drawn").current();
        for request in &requests {
            let what = match decide(&world, &rules, request) {
                ModelAnswer::Allowed { ttl_ms, .. } if ttl_ms < request.ttl_ms => {
                    "allowed, shorter".to_owned()
                }
                ModelAnswer::Allowed { .. } => "allowed".to_owned(),
                ModelAnswer::Needs {
                    profiles, ttl_ms, ..
                } => {
                    let shorter = if ttl_ms < request.ttl_ms {
                        ", shorter"
                    } else {
                        ""
                    };
                    format!("needs {}{shorter}", profiles.len().min(2))
                }
                ModelAnswer::Denied { why, .. } => why,
            };
            *seen.entry(what).or_default() += 1;
        }
    }
    for what in [
        "allowed",
        "allowed, shorter",
        "needs 1",
        "needs 1, shorter",
        "needs 2",
        "OUTSIDE_CEILING",
        "NO_RULE_ALLOWS",
        "FORBIDDEN_BY_RULE",
        "RULE_EVALUATION_FAILED",
    ] {
        assert!(seen.get(what).is_some_and(|n| *n >= 20), "{what}: {seen:?}");
    }
}
