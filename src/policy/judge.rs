use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use cedar_policy::{
    Authorizer, Context, Decision, EntityUid, PolicySet, Request, RestrictedExpression, Schema,
};

use cedar_policy_core::ast::{Name, RestrictedExpr};

use super::entities::Store;
use super::schema::OPERATE;
use crate::model::{
    ActionName, AgentId, Audience, EnvironmentName, EvidenceKind, Param, ProfileName, Target,
    Timestamp,
};

/// Cedar with everything but the rules: the schema, what is true, and how a question is put.
pub(super) struct Judge {
    schema: Schema,
    store: Store,
    authorizer: Authorizer,
}

/// One question as rules see it.
pub(super) struct Asked<'a> {
    pub(super) agent: &'a AgentId,
    pub(super) action: &'a ActionName,
    pub(super) target: &'a Target,
    pub(super) audience: &'a Audience,
    pub(super) parameters: &'a BTreeMap<String, Param>,
    pub(super) ttl_ms: i64,
    pub(super) approvals: &'a BTreeSet<ProfileName>,
    pub(super) shown: Shown<'a>,
    pub(super) task_age_ms: i64,
    pub(super) task_depth: i64,
}

/// What the agent showed, and when.
#[derive(Clone, Copy)]
pub(super) struct Shown<'a> {
    pub(super) kind: EvidenceKind,
    pub(super) age_ms: i64,
    pub(super) binding: &'a str,
    pub(super) now: Timestamp,
}

/// What Cedar said, by ids of policies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// These permits apply and no forbid does.
    Allow(BTreeSet<String>),
    /// These forbids apply; none of them when no permit does either.
    Deny(BTreeSet<String>),
    /// These policies could not be evaluated, or the question itself could not be put. Cedar would pass over a failing
    /// policy, a forbid included; here it denies.
    Failed(BTreeSet<String>),
}

impl Judge {
    pub(super) fn new(schema: Schema, store: Store) -> Self {
        Self {
            schema,
            store,
            authorizer: Authorizer::new(),
        }
    }

    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    #[cfg(test)]
    pub(super) fn store_mut(&mut self) -> &mut Store {
        &mut self.store
    }

    /// May this agent do this action now?
    pub(super) fn judge(&self, policies: &PolicySet, asked: &Asked<'_>) -> Verdict {
        self.request(asked)
            .map_or(Verdict::Failed(BTreeSet::new()), |request| {
                self.decide(policies, &request)
            })
    }

    /// May this agent operate in this environment now?
    pub(super) fn judge_operate(
        &self,
        policies: &PolicySet,
        agent: &AgentId,
        environment: &EnvironmentName,
        shown: Shown<'_>,
    ) -> Verdict {
        let request = || {
            let context = [evidence(shown), binding(shown), now(shown)];
            let resource = self.store.uid("Environment", environment.as_str())?;
            self.put(
                agent,
                OPERATE,
                resource,
                context.into_iter().collect::<Option<Vec<_>>>()?,
            )
        };
        request().map_or(Verdict::Failed(BTreeSet::new()), |request| {
            self.decide(policies, &request)
        })
    }

    fn request(&self, asked: &Asked<'_>) -> Option<Request> {
        let resource = self.store.uid(&asked.target.kind, &asked.target.id)?;
        let approvals = asked
            .approvals
            .iter()
            .map(|name| self.store.uid("StepUp", name.as_str()));
        let approvals = approvals
            .map(|uid| uid.map(RestrictedExpression::new_entity_uid))
            .collect::<Option<Vec<_>>>()?;
        let depth = RestrictedExpression::new_long(asked.task_depth);
        let age = milliseconds(asked.task_age_ms)?;
        let task = record([("age", age), ("depth", depth)])?;
        let parameters = asked
            .parameters
            .iter()
            .map(|(name, param)| Some((name.clone(), value(param)?)));
        let parameters =
            RestrictedExpression::new_record(parameters.collect::<Option<Vec<_>>>()?).ok()?;
        let context = [
            evidence(asked.shown),
            binding(asked.shown),
            now(asked.shown),
            named("ttl", milliseconds(asked.ttl_ms)?),
            named("approvals", RestrictedExpression::new_set(approvals)),
            named("task", task),
            named(
                "target_known",
                RestrictedExpression::new_bool(self.store.knows(&resource)),
            ),
            named(
                "audience",
                RestrictedExpression::new_string(asked.audience.as_str().to_owned()),
            ),
            named("parameters", parameters),
        ];
        self.put(
            asked.agent,
            asked.action.as_str(),
            resource,
            context.into_iter().collect::<Option<Vec<_>>>()?,
        )
    }

    fn put(
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

    fn decide(&self, policies: &PolicySet, request: &Request) -> Verdict {
        let response = self
            .authorizer
            .is_authorized(request, policies, self.store.entities());
        let said = response.diagnostics();
        let mut failed = said.errors().peekable();
        if failed.peek().is_some() {
            return Verdict::Failed(
                failed
                    .map(|error| match error {
                        cedar_policy::AuthorizationError::PolicyEvaluationError(e) => {
                            e.policy_id().to_string()
                        }
                    })
                    .collect(),
            );
        }
        let reasons = said.reason().map(ToString::to_string).collect();
        match response.decision() {
            Decision::Allow => Verdict::Allow(reasons),
            Decision::Deny => Verdict::Deny(reasons),
        }
    }
}

type Named = Option<(String, RestrictedExpression)>;

fn named(name: &str, value: RestrictedExpression) -> Named {
    Some((name.to_owned(), value))
}

fn evidence(shown: Shown<'_>) -> Named {
    let kind = RestrictedExpression::new_string(shown.kind.as_str().to_owned());
    named(
        "evidence",
        record([("kind", kind), ("age", milliseconds(shown.age_ms)?)])?,
    )
}

fn binding(shown: Shown<'_>) -> Named {
    named(
        "binding",
        RestrictedExpression::new_string(shown.binding.to_owned()),
    )
}

/// Cedar reads a moment as RFC 3339 with milliseconds, in the years 0 to 9999; another moment makes no context.
fn now(shown: Shown<'_>) -> Named {
    let text = shown.now.to_string();
    let seconds = text.strip_suffix('Z')?;
    let moment = format!("{seconds}.{:03}Z", shown.now.millis().rem_euclid(1000));
    named("now", constructed(&DATETIME, &moment)?)
}

fn milliseconds(ms: i64) -> Option<RestrictedExpression> {
    constructed(&DURATION, &format!("{ms}ms"))
}

/// What `RestrictedExpression::new_datetime` and `new_duration` make; they parse the constructor's name with Cedar's grammar
/// at each call, which costs more than the whole evaluation.
fn constructed(name: &LazyLock<Option<Name>>, text: &str) -> Option<RestrictedExpression> {
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
    fn durations_and_moments_are_those_that_cedar_makes() {
        for ms in [0, 1, -1, 60_000, i64::MAX, i64::MIN] {
            assert_eq!(
                milliseconds(ms),
                Some(RestrictedExpression::new_duration(format!("{ms}ms")))
            );
        }
        let text = "2026-11-24T22:00:00.123Z";
        assert_eq!(
            constructed(&DATETIME, text),
            Some(RestrictedExpression::new_datetime(text))
        );
    }
}
