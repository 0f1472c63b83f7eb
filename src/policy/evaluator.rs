//! Cedar evaluation: one request against a set of policies, with the schema and entities of a bundle.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use cedar_policy::{
    AuthorizationError, Authorizer, Context, Decision, EntityUid, EvalResult, EvaluationError,
    Expression, Policy, PolicySet, Request, RestrictedExpression, Schema, eval_expression,
};

use cedar_policy_core::ast::{Name, RestrictedExpr};
use serde_json::Value;

use super::calendar::{Calendar, LocalTime};
use super::counts::DeclaredCounts;
use super::entities::{EntityStore, inner_text};
use super::named_facts::DeclaredFacts;
use super::schema::{COUNTS_MEMBER, FACTS_MEMBER, OPERATE, WAITED};
use crate::model::{
    ActionName, AgentId, Audience, CountName, CountValues, EnvironmentName, EvidenceAges,
    EvidenceKind, FactName, FactValues, Param, ProfileName, Target, Timestamp,
};

/// The Cedar authorizer with a bundle's schema and entities, without its policies.
pub(super) struct Evaluator {
    schema: Schema,
    store: EntityStore,
    declared: DeclaredContext,
    authorizer: Authorizer,
}

/// What a bundle declares that rules read in the context beside what every bundle has.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct DeclaredContext {
    pub(super) calendar: Calendar,
    pub(super) facts: DeclaredFacts,
    pub(super) counts: DeclaredCounts,
}

/// An action request as policies see it.
pub(super) struct EvalRequest<'a> {
    pub(super) agent: &'a AgentId,
    pub(super) action: &'a ActionName,
    pub(super) target: &'a Target,
    pub(super) audience: &'a Audience,
    pub(super) parameters: &'a BTreeMap<String, Param>,
    pub(super) ttl_ms: i64,
    pub(super) approvals: &'a BTreeSet<ProfileName>,
    pub(super) evidence: EvidenceContext<'a>,
    pub(super) task_age_ms: i64,
    pub(super) task_depth: i64,
    pub(super) waited_ms: i64,
    pub(super) facts: &'a FactValues,
    pub(super) counts: &'a CountValues,
}

/// The agent's evidence and the time, as policies see them.
#[derive(Clone, Copy)]
pub(super) struct EvidenceContext<'a> {
    pub(super) kind: EvidenceKind,
    pub(super) ages: EvidenceAges,
    pub(super) binding: &'a str,
    pub(super) now: Timestamp,
}

/// The outcome of one evaluation, by ids of policies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum EvalOutcome {
    /// These permits apply and no forbid does.
    Allow(BTreeSet<String>),
    /// These forbids apply; none of them when no permit does either.
    Deny(BTreeSet<String>),
    /// These policies could not be evaluated, each with Cedar's error; none when the request itself is invalid. Cedar skips a
    /// failing policy, a forbid included; here it denies.
    Failed(BTreeMap<String, EvalError>),
}

/// Why Cedar could not evaluate a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EvalError {
    /// Cedar's words, which may carry values of the request.
    pub(super) text: String,
    /// The kind of the error, without any value.
    pub(super) kind: &'static str,
}

impl EvalError {
    fn of(error: &EvaluationError) -> Self {
        let kind = match error {
            EvaluationError::IntegerOverflow(_) => "integer overflow",
            EvaluationError::TypeError(_) => "values of the wrong type",
            EvaluationError::EntityDoesNotExist(_) => "an entity that does not exist",
            EvaluationError::EntityAttrDoesNotExist(_)
            | EvaluationError::RecordAttrDoesNotExist(_) => "an attribute that does not exist",
            EvaluationError::FailedExtensionFunctionExecution(_) => "a function that fails",
            EvaluationError::RecursionLimit(_) => "too deep a recursion",
            _ => "an error of evaluation",
        };
        Self {
            text: error.to_string(),
            kind,
        }
    }
}

impl Evaluator {
    pub(super) fn new(schema: Schema, store: EntityStore, declared: DeclaredContext) -> Self {
        Self {
            schema,
            store,
            declared,
            authorizer: Authorizer::new(),
        }
    }

    pub(super) fn store(&self) -> &EntityStore {
        &self.store
    }

    pub(super) const fn declared(&self) -> &DeclaredContext {
        &self.declared
    }

    #[cfg(test)]
    pub(super) fn store_mut(&mut self) -> &mut EntityStore {
        &mut self.store
    }

    /// Whether these policies allow the agent this action now.
    pub(super) fn evaluate(&self, policies: &PolicySet, request: &EvalRequest<'_>) -> EvalOutcome {
        self.cedar_request(request)
            .map_or(EvalOutcome::Failed(BTreeMap::new()), |request| {
                self.decide(policies, &request)
            })
    }

    /// Whether these policies allow the agent to operate in this environment now.
    pub(super) fn evaluate_operate(
        &self,
        policies: &PolicySet,
        agent: &AgentId,
        environment: &EnvironmentName,
        evidence: EvidenceContext<'_>,
    ) -> EvalOutcome {
        let request = || {
            let context = [
                evidence_member(evidence),
                binding_member(evidence),
                now_member(evidence),
            ];
            let mut context = context.into_iter().collect::<Option<Vec<_>>>()?;
            context.extend(self.local_member(evidence)?);
            let resource = self.store.uid("Environment", environment.as_str())?;
            self.request_by(agent, OPERATE, resource, context)
        };
        request().map_or(EvalOutcome::Failed(BTreeMap::new()), |request| {
            self.decide(policies, &request)
        })
    }

    /// The request in Cedar's form; `None` for an invalid one.
    pub(super) fn cedar_request(&self, request: &EvalRequest<'_>) -> Option<Request> {
        let resource = self.store.uid(&request.target.kind, &request.target.id)?;
        let approvals = request
            .approvals
            .iter()
            .map(|name| self.store.uid("StepUp", name.as_str()));
        let approvals = approvals
            .map(|uid| uid.map(RestrictedExpression::new_entity_uid))
            .collect::<Option<Vec<_>>>()?;
        let depth = RestrictedExpression::new_long(request.task_depth);
        let age = milliseconds(request.task_age_ms)?;
        let task = record([("age", age), ("depth", depth)])?;
        let parameters = request
            .parameters
            .iter()
            .map(|(name, param)| Some((name.clone(), value(param)?)));
        let parameters =
            RestrictedExpression::new_record(parameters.collect::<Option<Vec<_>>>()?).ok()?;
        let context = [
            evidence_member(request.evidence),
            binding_member(request.evidence),
            now_member(request.evidence),
            member("ttl", milliseconds(request.ttl_ms)?),
            member("approvals", RestrictedExpression::new_set(approvals)),
            member("task", task),
            member(
                "target_known",
                RestrictedExpression::new_bool(self.store.contains(&resource)),
            ),
            member(
                "audience",
                RestrictedExpression::new_string(request.audience.as_str().to_owned()),
            ),
            member("parameters", parameters),
            member(WAITED, milliseconds(request.waited_ms)?),
        ];
        let mut context = context.into_iter().collect::<Option<Vec<_>>>()?;
        context.extend(self.local_member(request.evidence)?);
        context.extend(self.facts_member(request.facts)?);
        context.extend(self.counts_member(request.counts)?);
        self.request_by(request.agent, request.action.as_str(), resource, context)
    }

    /// The value of each declared fact; `Some(None)` without facts.
    fn facts_member(
        &self,
        of_request: &FactValues,
    ) -> Option<Option<(String, RestrictedExpression)>> {
        let values = self.declared.facts.values(of_request);
        if values.is_empty() {
            return Some(None);
        }
        let value = |(name, value): (FactName, bool)| {
            (name.to_string(), RestrictedExpression::new_bool(value))
        };
        let values = RestrictedExpression::new_record(values.into_iter().map(value)).ok()?;
        Some(member(FACTS_MEMBER, values))
    }

    /// The value of each declared count; `Some(None)` without counts.
    fn counts_member(
        &self,
        of_request: &CountValues,
    ) -> Option<Option<(String, RestrictedExpression)>> {
        let values = self.declared.counts.values(of_request);
        if values.is_empty() {
            return Some(None);
        }
        let value = |(name, value): (CountName, u32)| {
            let value = RestrictedExpression::new_long(i64::from(value));
            (name.to_string(), value)
        };
        let values = RestrictedExpression::new_record(values.into_iter().map(value)).ok()?;
        Some(member(COUNTS_MEMBER, values))
    }

    /// The time in each zone of the calendar; `Some(None)` without zones.
    fn local_member(
        &self,
        evidence: EvidenceContext<'_>,
    ) -> Option<Option<(String, RestrictedExpression)>> {
        let zones = self.declared.calendar.at(evidence.now)?;
        if zones.is_empty() {
            return Some(None);
        }
        let local = |there: LocalTime| {
            let members = record([
                (
                    "weekday",
                    RestrictedExpression::new_string(there.weekday.to_owned()),
                ),
                ("time", milliseconds(there.time_ms)?),
                ("holiday", RestrictedExpression::new_bool(there.holiday)),
            ]);
            Some((there.zone, members?))
        };
        let zones = zones.into_iter().map(local).collect::<Option<Vec<_>>>()?;
        let zones = RestrictedExpression::new_record(zones).ok()?;
        Some(member("local", zones))
    }

    /// Whether a permit in JSON form allows a request; the error of one that cannot be evaluated.
    pub(super) fn is_met(&self, permit: &Value, request: &Request) -> Result<bool, String> {
        let policy = Policy::from_json(None, permit.clone()).map_err(|e| e.to_string())?;
        let policies = PolicySet::from_policies([policy]).map_err(|e| e.to_string())?;
        match self.decide(&policies, request) {
            EvalOutcome::Allow(_) => Ok(true),
            EvalOutcome::Deny(_) => Ok(false),
            EvalOutcome::Failed(errors) => {
                Err(errors.into_values().map(|error| error.text).collect())
            }
        }
    }

    /// The value of a variable or an attribute in a request, in Cedar's notation; of an entity that is no attribute, with the groups
    /// it is in.
    pub(super) fn value_text(&self, path: &str, request: &Request) -> String {
        let Ok(expression) = path.parse::<Expression>() else {
            return "unreadable".to_owned();
        };
        match eval_expression(request, self.store.entities(), &expression) {
            Ok(EvalResult::EntityUid(uid)) if !path.contains(['.', '[']) => {
                let groups = self.store.groups(&uid);
                let groups = groups.iter().map(|group| format!(", in {group}"));
                format!("{uid}{}", groups.collect::<String>())
            }
            Ok(value) => inner_text(&value),
            Err(
                EvaluationError::EntityDoesNotExist(_)
                | EvaluationError::EntityAttrDoesNotExist(_)
                | EvaluationError::RecordAttrDoesNotExist(_),
            ) => "absent".to_owned(),
            Err(error) => error.to_string(),
        }
    }

    fn request_by(
        &self,
        agent: &AgentId,
        action: &str,
        resource: EntityUid,
        context: Vec<(String, RestrictedExpression)>,
    ) -> Option<Request> {
        let principal = self.store.uid("Agent", agent.as_str())?;
        let action = self.store.uid("Action", action)?;
        Request::new(
            principal,
            action,
            resource,
            Context::from_pairs(context).ok()?,
            Some(&self.schema),
        )
        .ok()
    }

    fn decide(&self, policies: &PolicySet, request: &Request) -> EvalOutcome {
        // Cedar fails an evaluation when the stack runs short: the deepest rule that a bundle may have has enough.
        let response = stacker::maybe_grow(STACK_LEFT_BYTES, STACK_BYTES, || {
            self.authorizer
                .is_authorized(request, policies, self.store.entities())
        });
        let diagnostics = response.diagnostics();
        let mut failed = diagnostics.errors().peekable();
        if failed.peek().is_some() {
            return EvalOutcome::Failed(
                failed
                    .map(|error| match error {
                        AuthorizationError::PolicyEvaluationError(e) => {
                            (e.policy_id().to_string(), EvalError::of(e.inner()))
                        }
                    })
                    .collect(),
            );
        }
        let reasons = diagnostics.reason().map(ToString::to_string).collect();
        match response.decision() {
            Decision::Allow => EvalOutcome::Allow(reasons),
            Decision::Deny => EvalOutcome::Deny(reasons),
        }
    }
}

/// The stack that an evaluation needs, with room to spare: with less, it gets one of its own. Unoptimized frames are far larger.
const STACK_LEFT_BYTES: usize = if cfg!(debug_assertions) {
    4 << 20
} else {
    512 << 10
};
const STACK_BYTES: usize = 8 << 20;

type ContextMember = Option<(String, RestrictedExpression)>;

fn member(name: &str, value: RestrictedExpression) -> ContextMember {
    Some((name.to_owned(), value))
}

fn evidence_member(evidence: EvidenceContext<'_>) -> ContextMember {
    let kind = RestrictedExpression::new_string(evidence.kind.as_str().to_owned());
    member(
        "evidence",
        record([
            ("kind", kind),
            ("issued_age", milliseconds(evidence.ages.issued_ms)?),
            ("verified_age", milliseconds(evidence.ages.verified_ms)?),
        ])?,
    )
}

fn binding_member(evidence: EvidenceContext<'_>) -> ContextMember {
    member(
        "binding",
        RestrictedExpression::new_string(evidence.binding.to_owned()),
    )
}

/// Cedar takes a time as RFC 3339 with milliseconds, in the years 0 to 9999; any other time makes the request invalid.
pub(super) fn instant(at: Timestamp) -> Option<RestrictedExpression> {
    let seconds = at.to_string();
    let seconds = seconds.strip_suffix('Z')?;
    datetime(&format!("{seconds}.{:03}Z", at.millis().rem_euclid(1000)))
}

/// A time in Cedar's own form.
pub(super) fn datetime(text: &str) -> Option<RestrictedExpression> {
    extension_value(&DATETIME, text)
}

/// A duration in Cedar's own form.
pub(super) fn duration(text: &str) -> Option<RestrictedExpression> {
    extension_value(&DURATION, text)
}

fn now_member(evidence: EvidenceContext<'_>) -> ContextMember {
    member("now", instant(evidence.now)?)
}

pub(super) fn milliseconds(ms: i64) -> Option<RestrictedExpression> {
    duration(&format!("{ms}ms"))
}

/// The same as `RestrictedExpression::new_datetime` and `new_duration`, which parse the constructor's name with Cedar's
/// grammar at each call, and so cost more than the whole evaluation.
fn extension_value(name: &LazyLock<Option<Name>>, text: &str) -> Option<RestrictedExpression> {
    let name = LazyLock::force(name).clone()?;
    Some(RestrictedExpr::call_extension_fn(name, [RestrictedExpr::val(text)]).into())
}

static DATETIME: LazyLock<Option<Name>> =
    LazyLock::new(|| Name::parse_unqualified_name("datetime").ok());
static DURATION: LazyLock<Option<Name>> =
    LazyLock::new(|| Name::parse_unqualified_name("duration").ok());

fn record<const N: usize>(
    members: [(&str, RestrictedExpression); N],
) -> Option<RestrictedExpression> {
    RestrictedExpression::new_record(
        members
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value)),
    )
    .ok()
}

fn value(param: &Param) -> Option<RestrictedExpression> {
    Some(match param {
        Param::Str(s) => RestrictedExpression::new_string(s.clone()),
        Param::Bool(b) => RestrictedExpression::new_bool(*b),
        Param::Int(n) => RestrictedExpression::new_long(*n),
        Param::Set(items) => {
            RestrictedExpression::new_set(items.iter().map(value).collect::<Option<Vec<_>>>()?)
        }
        Param::Record(members) => {
            let members = members
                .iter()
                .map(|(name, param)| Some((name.clone(), value(param)?)));
            RestrictedExpression::new_record(members.collect::<Option<Vec<_>>>()?).ok()?
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extension_values_equal_those_of_cedar() {
        for ms in [0, 1, -1, 60_000, i64::MAX, i64::MIN] {
            assert_eq!(
                milliseconds(ms),
                Some(RestrictedExpression::new_duration(format!("{ms}ms")))
            );
        }
        let text = "2026-11-24T22:00:00.123Z";
        assert_eq!(
            extension_value(&DATETIME, text),
            Some(RestrictedExpression::new_datetime(text))
        );
    }
}
