//! Self-test of a bundle: permits allow, and forbids over action groups reach every action in them.

use std::collections::BTreeSet;

use cedar_policy::PolicySet;

use super::catalogue::{Catalogue, CatalogueAction};
use super::evaluator::{EvalOutcome, EvalRequest, Evaluator, EvidenceContext};
use super::policy_index::{PolicyIndex, RequestScope};
use crate::model::{
    AgentId, Audience, CountValues, EvidenceAges, EvidenceKind, FactValues, Target, Timestamp,
};

/// Verifies, with the entities and requests of real decisions, that a permitted action is allowed and that a forbid over a
/// group reaches every action in it. Returns every check that failed.
pub(super) fn verify(evaluator: &Evaluator, catalogue: &Catalogue) -> Result<(), Vec<String>> {
    let groups: Vec<&str> = catalogue.group_names().into_iter().collect();
    let permit = "permit (principal, action, resource);".to_owned();
    let forbid = |group: &&str| {
        let group = group.escape_debug();
        format!("forbid (principal, action in Action::\"{group}\", resource);")
    };
    // Cedar numbers the policies of a text: the permit is policy0.
    let both = permit.clone() + &groups.iter().map(forbid).collect::<String>();
    let parse = |text: String| text.parse::<PolicySet>().map_err(|e| vec![e.to_string()]);
    let (permit, both) = (parse(permit)?, parse(both)?);
    let mut failures = Vec::new();
    for action in catalogue.actions() {
        let name = &action.name;
        match evaluate(evaluator, action, &permit) {
            Ok(EvalOutcome::Allow(_)) => {}
            Ok(outcome) => failures.push(format!(
                "permitted action \"{name}\" is not allowed: {outcome:?}"
            )),
            Err(message) => failures.push(format!("action \"{name}\": {message}")),
        }
        let reached = match evaluate(evaluator, action, &both) {
            Ok(EvalOutcome::Deny(forbids)) => forbids,
            Ok(EvalOutcome::Allow(_) | EvalOutcome::Failed(_)) => BTreeSet::new(),
            Err(message) => {
                failures.push(format!("action \"{name}\": {message}"));
                continue;
            }
        };
        for (n, group) in groups.iter().enumerate() {
            let is_in = action.groups.contains(*group) || name.as_str() == *group;
            if is_in && !reached.contains(&format!("policy{}", n + 1)) {
                failures.push(format!("forbid over \"{group}\" does not reach \"{name}\""));
            }
        }
    }
    if failures.is_empty() {
        Ok(())
    } else {
        Err(failures)
    }
}

fn evaluate(
    evaluator: &Evaluator,
    action: &CatalogueAction,
    policies: &PolicySet,
) -> Result<EvalOutcome, String> {
    let kind = action.target_types.first().ok_or("has no type of target")?;
    let request = EvalRequest {
        agent: &AgentId::parse("self-test").map_err(|e| e.to_string())?,
        action: &action.name,
        target: &Target::parse(kind, "self-test").map_err(|e| e.to_string())?,
        audience: &Audience::parse("self-test").map_err(|e| e.to_string())?,
        parameters: &action.sample_parameters(),
        ttl_ms: 1,
        approvals: &BTreeSet::new(),
        evidence: EvidenceContext {
            kind: EvidenceKind::JwtSvid,
            ages: EvidenceAges::ZERO,
            binding: "self-test",
            now: Timestamp::from_millis(0),
        },
        task_age_ms: 0,
        task_depth: 0,
        waited_ms: 0,
        facts: &FactValues::new(),
        counts: &CountValues::new(),
    };
    // Indexed as the bundle's own rules are: an index that lost the forbid fails here.
    let target = (kind.as_str(), "self-test");
    let scope = RequestScope::new(
        evaluator.store(),
        request.agent,
        action.name.as_str(),
        target,
    );
    let scope = scope.ok_or("has a type of target that is not declared")?;
    let policy_index = PolicyIndex::build(policies);
    let policies = policy_index.policies_for(&scope, policies, evaluator.store());
    Ok(evaluator.evaluate(&policies, &request))
}
