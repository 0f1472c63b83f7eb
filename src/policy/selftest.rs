//! Self-test of a bundle: permits allow, and forbids over action groups reach every action in them.

use std::collections::BTreeSet;

use cedar_policy::PolicySet;

use super::catalogue::{Catalogue, CatalogueAction};
use super::evaluator::{EvalOutcome, EvalRequest, Evaluator, EvidenceContext};
use super::policy_index::PolicyIndex;
use crate::model::{AgentId, Audience, EvidenceKind, Target, Timestamp};

/// Verifies, with the entities and requests of real decisions, that a permitted action is allowed and that a forbid over a
/// group reaches every action in it. Returns every check that failed.
pub(super) fn verify(evaluator: &Evaluator, catalogue: &Catalogue) -> Result<(), Vec<String>> {
    let mut failures = Vec::new();
    match policies(None) {
        Ok(permit) => {
            for action in catalogue.actions() {
                match evaluate(evaluator, action, &permit) {
                    Ok(EvalOutcome::Allow(_)) => {}
                    Ok(outcome) => failures.push(format!(
                        "permitted action \"{}\" is not allowed: {outcome:?}",
                        action.name
                    )),
                    Err(message) => failures.push(format!("action \"{}\": {message}", action.name)),
                }
            }
        }
        Err(message) => failures.push(message),
    }
    for group in catalogue.group_names() {
        let forbid = match policies(Some(group)) {
            Ok(forbid) => forbid,
            Err(message) => {
                failures.push(message);
                continue;
            }
        };
        for action in catalogue
            .actions()
            .filter(|a| a.groups.contains(group) || a.name.as_str() == group)
        {
            match evaluate(evaluator, action, &forbid) {
                Ok(EvalOutcome::Deny(forbids)) if !forbids.is_empty() => {}
                Ok(outcome) => failures.push(format!(
                    "forbid over \"{group}\" does not reach \"{}\": {outcome:?}",
                    action.name
                )),
                Err(message) => failures.push(format!("action \"{}\": {message}", action.name)),
            }
        }
    }
    if failures.is_empty() {
        Ok(())
    } else {
        Err(failures)
    }
}

fn policies(forbidden: Option<&str>) -> Result<PolicySet, String> {
    let mut text = "permit (principal, action, resource);".to_owned();
    if let Some(group) = forbidden {
        text.push_str(&format!(
            "forbid (principal, action in Action::\"{}\", resource);",
            group.escape_debug()
        ));
    }
    text.parse()
        .map_err(|e: cedar_policy::ParseErrors| e.to_string())
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
            age_ms: 0,
            binding: "self-test",
            now: Timestamp::from_millis(0),
        },
        task_age_ms: 0,
        task_depth: 0,
    };
    // Indexed as the bundle's own rules are: an index that lost the forbid fails here.
    let name = action.name.as_str();
    let policy_index = PolicyIndex::build(policies, evaluator.store(), [name].into_iter());
    Ok(evaluator.evaluate(policy_index.policies_for(name, policies), &request))
}
