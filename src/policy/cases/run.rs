//! Runs the tests of a bundle: each request is decided by the bundle, and compared.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

use serde_json::Value;

use super::{AuthzDecision, ChangedAttributes, Expected, TestReport, TestRequest, Tests};
use crate::model::{Binding, DeniedReason, EvidenceKind, RuleRef, format_seconds};
use crate::policy::files::{BundleFiles, ENTITIES};
use crate::policy::problem::BundleProblem;
use crate::policy::{AuthzRequest, OperateDecision, PolicyBundle};

/// Asks the bundle about every request. Failures are problems of the file that the test is in.
pub(in crate::policy) fn run(
    tests: &Tests,
    bundle: &PolicyBundle,
    files: &BundleFiles,
) -> TestReport {
    let mut report = TestReport {
        cases: tests.cases,
        matrices: tests.matrices,
        requests: tests.requests.len(),
        ..TestReport::default()
    };
    let mut changed: BTreeMap<Arc<ChangedAttributes>, Result<PolicyBundle, String>> =
        BTreeMap::new();
    for test in &tests.requests {
        let asked = match &test.attributes {
            None => Ok(bundle),
            Some(attributes) => changed
                .entry(Arc::clone(attributes))
                .or_insert_with(|| with_attributes(files, attributes))
                .as_ref()
                .map_err(String::as_str),
        };
        let outcome = match asked {
            Ok(bundle) => decide(bundle, test),
            Err(problem) => Err(problem.to_owned()),
        };
        let failure = match outcome {
            Ok(decision) => match test.expected.is_met_by(&decision) {
                true => {
                    let rules = rules_of(&decision);
                    let named = match &test.expected {
                        Expected::Denied { rules } => rules.as_ref(),
                        Expected::Allowed { .. } | Expected::Pending { .. } => None,
                    };
                    // Of several that forbid, the test rests on those that it names: without one of them the others forbid as well.
                    let is_covered = |rule: &&RuleRef| {
                        !matches!(decision, AuthzDecision::Denied { .. })
                            || rules.len() == 1
                            || named.is_some_and(|named| named.contains(&*rule.id))
                    };
                    let rules = rules.iter().filter(is_covered);
                    report.covered.extend(rules.map(|rule| rule.id.to_string()));
                    None
                }
                false => Some(format!(
                    "expected {}, got {}",
                    test.expected.in_words(),
                    in_words(&decision, bundle)
                )),
            },
            Err(problem) => Some(problem),
        };
        if let Some(failure) = failure {
            let message = format!("{}: {failure}", test.name);
            report
                .failures
                .push(BundleProblem::new(&test.file, test.line, message));
        }
    }
    report
}

/// The bundle, where a target has other attributes.
fn with_attributes(
    files: &BundleFiles,
    changed: &ChangedAttributes,
) -> Result<PolicyBundle, String> {
    let unreadable = || format!("{ENTITIES} cannot be read");
    let mut entities: Value =
        serde_json::from_str(files.text(ENTITIES).unwrap_or_default()).map_err(|_| unreadable())?;
    let target = &changed.target;
    let has_uid = |entity: &Value| {
        let uid = entity.get("uid");
        let uid = uid.map(|uid| uid.get("__entity").unwrap_or(uid));
        let text = |key| uid.and_then(|uid| uid.get(key)).and_then(Value::as_str);
        text("type") == Some(target.kind.as_str()) && text("id") == Some(target.id.as_str())
    };
    let entity = entities
        .as_array_mut()
        .and_then(|all| all.iter_mut().find(|entity| has_uid(entity)));
    let attributes = entity
        .and_then(|entity| entity.get_mut("attrs"))
        .and_then(Value::as_object_mut)
        .ok_or_else(|| {
            format!("target_attributes: {ENTITIES} has no {target}; add it, or name a target that is there")
        })?;
    for (name, value) in &changed.values {
        let value = serde_json::from_str(value).map_err(|e| e.to_string())?;
        attributes.insert(name.clone(), value);
    }
    let files = files.with_text(ENTITIES, entities.to_string());
    let bundle = files.and_then(|files| PolicyBundle::load(&files));
    let bundle = bundle.map_err(|e| format!("target_attributes: {e}"))?;
    match bundle.undeclared_entity(target) {
        Some(other) => Err(format!(
            "target_attributes: {target} names {other}, which nothing in this bundle declares"
        )),
        None => Ok(bundle),
    }
}

/// The decision of both gates' rules: whether the agent may operate, then its action.
fn decide(bundle: &PolicyBundle, test: &TestRequest) -> Result<AuthzDecision, String> {
    let (facts, agent) = (&test.facts, &test.agent);
    let binding = Binding::JKT;
    let operates = bundle.may_operate(agent, EvidenceKind::JwtSvid, facts.ages, binding, facts.at);
    let permits = match (operates, &test.action) {
        (OperateDecision::Allowed { rules }, _) => rules,
        (OperateDecision::Denied { why, rules }, None) => {
            return Ok(AuthzDecision::Denied { why, rules });
        }
        // Gate 1: the rules of the action are never asked.
        (OperateDecision::Denied { rules, .. }, Some(_)) if test.expected.is_plain_denial() => {
            return Ok(AuthzDecision::Denied {
                why: DeniedReason::ForbiddenByRule,
                rules,
            });
        }
        (OperateDecision::Denied { .. }, Some(_)) => {
            return Err(
                "the agent may not operate with these facts: a case of `operate` says that"
                    .to_owned(),
            );
        }
    };
    let Some(action) = &test.action else {
        return Ok(AuthzDecision::Allowed {
            ttl_ms: facts.ttl_ms,
            rules: permits,
        });
    };
    bundle
        .check_action(action)
        .map_err(|e| format!("the request is invalid: {e}"))?;
    let mut decision = bundle.authorize(&AuthzRequest {
        agent,
        action,
        ttl_ms: facts.ttl_ms,
        approvals: &facts.approvals,
        evidence_kind: EvidenceKind::JwtSvid,
        evidence_ages: facts.ages,
        binding,
        task_age_ms: facts.task_age_ms,
        task_depth: 0,
        waited_ms: facts.waited_ms,
        now: facts.at,
        executor: test.executor.as_ref(),
        facts: &facts.named,
        counts: &facts.counts,
    });
    if let AuthzDecision::Allowed { rules, .. } = &mut decision {
        rules.extend(permits);
    }
    Ok(decision)
}

impl Expected {
    /// A denial, whichever rule denies.
    const fn is_plain_denial(&self) -> bool {
        matches!(self, Self::Denied { rules: None })
    }

    /// Whether a decision is the expected one.
    fn is_met_by(&self, decision: &AuthzDecision) -> bool {
        let lives = |ttl_ms: &i64, expected: &Option<u32>| {
            expected.is_none_or(|seconds| *ttl_ms == i64::from(seconds).saturating_mul(1000))
        };
        match (self, decision) {
            (Self::Allowed { lifetime_s }, AuthzDecision::Allowed { ttl_ms, .. }) => {
                lives(ttl_ms, lifetime_s)
            }
            (
                Self::Pending {
                    profiles,
                    delay_s,
                    lifetime_s,
                },
                AuthzDecision::Needs {
                    profiles: needed,
                    delay,
                    ttl_ms,
                    ..
                },
            ) => {
                let seconds = delay.as_ref().map(|delay| delay.seconds);
                lives(ttl_ms, lifetime_s)
                    && *delay_s == seconds
                    && needed.iter().map(|p| &p.name).eq(profiles.iter())
            }
            // Rules that fail are never what a test means.
            (
                Self::Denied { .. },
                AuthzDecision::Denied {
                    why: DeniedReason::RuleEvaluationFailed,
                    ..
                },
            ) => false,
            (Self::Denied { rules: None }, AuthzDecision::Denied { .. }) => true,
            (Self::Denied { rules: Some(rules) }, AuthzDecision::Denied { why, rules: by }) => {
                let by: BTreeSet<&str> = by.iter().map(|rule| &*rule.id).collect();
                let reason = match rules.is_empty() {
                    true => DeniedReason::NoRuleAllows,
                    false => DeniedReason::ForbiddenByRule,
                };
                *why == reason && rules.iter().map(String::as_str).eq(by)
            }
            (
                Self::Allowed { .. } | Self::Pending { .. } | Self::Denied { .. },
                AuthzDecision::Allowed { .. }
                | AuthzDecision::Needs { .. }
                | AuthzDecision::Denied { .. },
            ) => false,
        }
    }

    fn in_words(&self) -> String {
        let lives = |lifetime_s: &Option<u32>| match lifetime_s {
            Some(seconds) => format!(" for {}", format_seconds(i64::from(*seconds))),
            None => String::new(),
        };
        match self {
            Self::Allowed { lifetime_s } => format!("allowed{}", lives(lifetime_s)),
            Self::Pending {
                profiles,
                delay_s,
                lifetime_s,
            } => {
                let names: Vec<&str> = profiles.iter().map(|name| name.as_str()).collect();
                let delay = delay_s.map(after).unwrap_or_default();
                let lives = lives(lifetime_s);
                format!("pending on {}{delay}{lives}", names.join(" and "))
            }
            Self::Denied { rules: None } => "denied".to_owned(),
            Self::Denied { rules: Some(rules) } if rules.is_empty() => {
                "denied, since no rule allows it".to_owned()
            }
            Self::Denied { rules: Some(rules) } => {
                let rules: Vec<String> = rules.iter().map(|id| format!("\"{id}\"")).collect();
                format!("denied by {}", rules.join(" and "))
            }
        }
    }
}

fn after(seconds: u32) -> String {
    format!(" or a delay of {}", format_seconds(seconds.into()))
}

fn rules_of(decision: &AuthzDecision) -> &[RuleRef] {
    match decision {
        AuthzDecision::Allowed { rules, .. }
        | AuthzDecision::Needs { rules, .. }
        | AuthzDecision::Denied { rules, .. } => rules,
    }
}

fn in_words(decision: &AuthzDecision, bundle: &PolicyBundle) -> String {
    let by = |rules: &[RuleRef]| {
        let mut text = String::new();
        for rule in rules {
            let place = bundle.rule(&rule.id).map_or_else(
                || rule.file.to_string(),
                |rule| format!("{}:{}", rule.file, rule.line),
            );
            let comma = if text.is_empty() { "" } else { ", " };
            // Writing to text cannot fail.
            let _ = write!(text, "{comma}\"{}\" ({place})", rule.id);
        }
        text
    };
    let lifetime = |ttl_ms: &i64| format_seconds(ttl_ms.div_euclid(1000));
    match decision {
        AuthzDecision::Allowed { ttl_ms, rules } => {
            format!("allowed for {} by {}", lifetime(ttl_ms), by(rules))
        }
        AuthzDecision::Needs {
            profiles,
            delay,
            ttl_ms,
            rules,
        } => {
            let names: Vec<&str> = profiles.iter().map(|p| p.name.as_str()).collect();
            let delay = delay.as_ref().map(|delay| after(delay.seconds));
            format!(
                "pending on {}{} for {} by {}",
                names.join(" and "),
                delay.unwrap_or_default(),
                lifetime(ttl_ms),
                by(rules)
            )
        }
        AuthzDecision::Denied {
            why: DeniedReason::OutsideCeiling,
            ..
        } => "denied, since `actions` of the agent does not have it".to_owned(),
        AuthzDecision::Denied { why, rules } if rules.is_empty() => match why {
            DeniedReason::NoRuleAllows => "denied, since no rule allows it".to_owned(),
            why => format!("denied, {}", why.as_str()),
        },
        AuthzDecision::Denied {
            why: DeniedReason::RuleEvaluationFailed,
            rules,
        } => format!("denied, since rules cannot be evaluated: {}", by(rules)),
        AuthzDecision::Denied { rules, .. } => format!("denied by {}", by(rules)),
    }
}
