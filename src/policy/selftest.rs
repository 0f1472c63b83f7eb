use std::collections::BTreeSet;

use cedar_policy::PolicySet;

use super::catalogue::{Catalogue, CatalogueAction};
use super::judge::{Asked, Judge, Shown, Verdict};
use super::slices::Slices;
use crate::model::{AgentId, Audience, EvidenceKind, Target, Timestamp};

/// Proves, with the same entities and requests that decide, that what is permitted is allowed and that a forbid over a
/// group reaches every action in it. Says what does not hold.
pub(super) fn prove(judge: &Judge, catalogue: &Catalogue) -> Result<(), Vec<String>> {
    let mut broken = Vec::new();
    match policies(None) {
        Ok(permit) => {
            for action in catalogue.actions() {
                match ask(judge, action, &permit) {
                    Ok(Verdict::Allow(_)) => {}
                    Ok(said) => broken.push(format!(
                        "permitted action \"{}\" is not allowed: {said:?}",
                        action.name
                    )),
                    Err(message) => broken.push(format!("action \"{}\": {message}", action.name)),
                }
            }
        }
        Err(message) => broken.push(message),
    }
    for group in catalogue.group_names() {
        let forbid = match policies(Some(group)) {
            Ok(forbid) => forbid,
            Err(message) => {
                broken.push(message);
                continue;
            }
        };
        for action in catalogue
            .actions()
            .filter(|a| a.groups.contains(group) || a.name.as_str() == group)
        {
            match ask(judge, action, &forbid) {
                Ok(Verdict::Deny(forbids)) if !forbids.is_empty() => {}
                Ok(said) => broken.push(format!(
                    "forbid over \"{group}\" does not reach \"{}\": {said:?}",
                    action.name
                )),
                Err(message) => broken.push(format!("action \"{}\": {message}", action.name)),
            }
        }
    }
    if broken.is_empty() {
        Ok(())
    } else {
        Err(broken)
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

fn ask(judge: &Judge, action: &CatalogueAction, policies: &PolicySet) -> Result<Verdict, String> {
    let kind = action.target_types.first().ok_or("has no type of target")?;
    let asked = Asked {
        agent: &AgentId::parse("self-test").map_err(|e| e.to_string())?,
        action: &action.name,
        target: &Target::parse(kind, "self-test").map_err(|e| e.to_string())?,
        audience: &Audience::parse("self-test").map_err(|e| e.to_string())?,
        parameters: &action.sample_parameters(),
        ttl_ms: 1,
        approvals: &BTreeSet::new(),
        shown: Shown {
            kind: EvidenceKind::JwtSvid,
            age_ms: 0,
            binding: "self-test",
            now: Timestamp::from_millis(0),
        },
        task_age_ms: 0,
        task_depth: 0,
    };
    // Cut as the bundle's own rules are: a slice that lost the forbid would be noticed here.
    let name = action.name.as_str();
    let slices = Slices::cut(policies, judge.store(), [name].into_iter());
    Ok(judge.judge(slices.of(name, policies), &asked))
}
