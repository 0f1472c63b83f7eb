//! The facts of a decision: the input that rules saw, and where a denial needs more than the names of rules, what came closest to
//! allowing the request, under the policy bundle that decided.

use std::sync::Arc;

use crate::broker::Broker;
use crate::model::text::{cut, nearest_word};
use crate::model::*;
use crate::policy::{
    AuthzDecision, AuthzRequest, BundleFiles, EntityFacts, NearestPermit, PolicyBundle, ReadValue,
    RuleFailure,
};

/// The input that rules saw, as of the policy bundle that decided. Long values are cut.
#[derive(Debug, Clone)]
pub struct RuleInput {
    /// Version of the policy bundle that decided.
    pub policy: Digest,
    /// Whether it is in force now.
    pub is_in_force: bool,
    /// The agent; `None` when the bundle that decided cannot be read.
    pub agent: Option<AgentId>,
    /// Its attributes and groups.
    pub agent_facts: EntityFacts,
    /// The action, its target and its audience, without parameters.
    pub action: ActionOnRecord,
    /// The attributes and groups of the target; `None` for a target that the bundle does not have.
    pub target_facts: Option<EntityFacts>,
    /// Parameters by name, as JSON; sensitive ones as commitments.
    pub parameters: Vec<(String, String)>,
    /// Whether the evidence says when it was issued. Otherwise it counts as issued in 1970.
    pub is_issue_time_known: bool,
    /// Lifetime, approvals, evidence, binding, task and time.
    pub context: PolicyInput,
    /// The time in each zone of the calendar, in words.
    pub local: Vec<String>,
    /// Attributes, groups and parameters that are left out here, because there are too many.
    pub left_out: usize,
}

/// An action that an agent's ceiling does not have.
#[derive(Debug, Clone)]
pub struct CeilingMiss {
    /// The nearest name that the ceiling has, when one is near.
    pub nearest: Option<String>,
    /// The actions of the ceiling, by name.
    pub actions: Vec<String>,
    /// How many more there are.
    pub left_out: usize,
}

/// What an explanation tells about one decision of gate 2.
#[derive(Debug, Default)]
pub(in crate::broker) struct DecisionFacts {
    /// The bundle that decided.
    pub(in crate::broker) bundle: Option<Arc<PolicyBundle>>,
    pub(in crate::broker) input: Option<RuleInput>,
    pub(in crate::broker) nearest: Option<NearestPermit>,
    pub(in crate::broker) failures: Vec<RuleFailure>,
    pub(in crate::broker) ceiling: Option<CeilingMiss>,
    /// Why some of it is missing.
    pub(in crate::broker) problem: Option<String>,
}

/// A decision on record with what it was about.
struct Decided {
    decision: DecisionRecord,
    action: ActionOnRecord,
    secret: Option<Digest>,
    evidence: Option<EvidenceFacts>,
    /// The name of a [`DeniedReason`]; empty for another decision.
    reason: String,
}

impl Broker {
    /// The facts of the decision in an entry; none for an entry without one.
    pub(in crate::broker) async fn decision_facts(&self, index: u64) -> DecisionFacts {
        let Some(decided) = self.decided(index) else {
            return DecisionFacts::default();
        };
        let in_force = self.show().rules().map(|rules| Arc::clone(&rules.bundle));
        let version = decided.decision.policy;
        let in_force = in_force.filter(|bundle| bundle.version() == version);
        let is_in_force = in_force.is_some();
        let text = match &in_force {
            Some(_) => Ok(None),
            None => self.journal.blob(&version),
        };
        let secret = decided.secret.map(|hash| self.journal.blob(&hash));
        let secret = secret.and_then(|blob| ActionSecret::from_blob(&blob.ok().flatten()?));
        // Loading a bundle and asking about each of its rules takes long enough to keep off the threads that answer calls.
        let gathering = tokio::task::spawn_blocking(move || {
            let load = |text: Option<Arc<str>>| {
                let text = text.ok_or("it is no longer on record".to_owned())?;
                let files = BundleFiles::parse(&text).map_err(|e| e.to_string())?;
                PolicyBundle::load(&files)
                    .map(Arc::new)
                    .map_err(|e| e.to_string())
            };
            let bundle = match (in_force, text) {
                (Some(bundle), _) => Ok(bundle),
                (None, Ok(text)) => load(text),
                (None, Err(error)) => Err(error.to_string()),
            };
            decided.facts(bundle, is_in_force, secret.as_ref())
        });
        gathering.await.unwrap_or_else(|error| DecisionFacts {
            problem: Some(format!("the facts could not be gathered: {error}")),
            ..DecisionFacts::default()
        })
    }

    fn decided(&self, index: u64) -> Option<Decided> {
        let stored = self.journal.entry(index).ok().flatten()?;
        match Entry::parse(&stored.text).ok()?.event {
            Event::RequestDenied(f) => Some(Decided {
                decision: f.decision?,
                action: f.action,
                secret: f.secret,
                evidence: Some(f.evidence),
                reason: f.reason,
            }),
            Event::AccessRequestOpened(f) => match f.requester {
                AccessRequester::Agent(by) => Some(Decided {
                    decision: by.decision,
                    action: f.action,
                    secret: f.secret,
                    evidence: Some(by.evidence),
                    reason: String::new(),
                }),
                AccessRequester::Person(_) => None,
            },
            Event::TokenIssued(f) => Some(Decided {
                decision: f.decision,
                action: (*f.action).clone(),
                secret: f.secret,
                evidence: Some((*f.evidence).clone()),
                reason: String::new(),
            }),
            Event::AccessRequestReassessed(f) => {
                let request = self.show().access_request(&f.access_request)?;
                let opened = &request.opened;
                Some(Decided {
                    decision: f.decision,
                    action: opened.action.clone(),
                    secret: opened.secret,
                    evidence: opened.by_agent().map(|by| by.evidence.clone()),
                    reason: String::new(),
                })
            }
            _ => None,
        }
    }
}

impl Decided {
    fn facts(
        self,
        bundle: Result<Arc<PolicyBundle>, String>,
        is_in_force: bool,
        secret: Option<&ActionSecret>,
    ) -> DecisionFacts {
        let (bundle, mut problem) = match bundle {
            Ok(bundle) => (Some(bundle), None),
            Err(why) => {
                let version = self.decision.policy;
                let problem = format!("the policy bundle {version} cannot be read: {why}");
                (None, Some(problem))
            }
        };
        let agent = bundle.as_ref().and_then(|bundle| {
            let subject = &self.evidence.as_ref()?.subject;
            match bundle.agents_matching(subject).as_slice() {
                [one] => Some(Arc::clone(one)),
                _ => None,
            }
        });
        let mut facts = DecisionFacts::default();
        if let (Some(bundle), Some(agent)) = (&bundle, &agent) {
            match self.action.reopen(secret) {
                Ok(action) => self.ask(bundle, agent, &action, &mut facts),
                Err(_) => {
                    problem = Some("the sensitive parameters are no longer on record".to_owned());
                }
            }
        }
        facts.input = Some(self.input(bundle.as_deref(), agent.as_deref(), is_in_force));
        DecisionFacts {
            bundle,
            problem,
            ..facts
        }
    }

    /// What a denial came closest to, by the rules themselves.
    fn ask(
        &self,
        bundle: &PolicyBundle,
        agent: &RegisteredAgent,
        action: &Action,
        facts: &mut DecisionFacts,
    ) {
        let input = &self.decision.input;
        let approvals = input.approvals.iter().cloned().collect();
        let own = AuthzRequest {
            executor: None,
            ..AuthzRequest::recorded(input, agent, action, &approvals)
        };
        // Of a recommendation whichever of the two agents the rules deny it to; the recommending one first.
        let executor = input.executor.as_ref().and_then(|id| bundle.agent(id));
        let is_denied = matches!(bundle.authorize(&own), AuthzDecision::Denied { .. });
        let (question, agent) = match &executor {
            Some(executor) if !is_denied => {
                let agent: &RegisteredAgent = executor;
                (AuthzRequest { agent, ..own }, agent)
            }
            _ => (own, agent),
        };
        if self.reason == DeniedReason::NoRuleAllows.as_str() {
            facts.nearest = bundle.nearest_permit(&question).map(shortened_permit);
        } else if self.reason == DeniedReason::RuleEvaluationFailed.as_str() {
            facts.failures = bundle.rule_failures(&question);
            facts.failures.truncate(FAILURES_MAX);
            for failure in &mut facts.failures {
                failure.error = shortened(&failure.error, CLAUSE_CHARS_MAX);
            }
        } else if self.reason == DeniedReason::OutsideCeiling.as_str() {
            let names = || agent.ceiling.iter().map(ActionName::as_str);
            let nearest = nearest_word(action.name.as_str(), names());
            facts.ceiling = Some(CeilingMiss {
                nearest: nearest.map(str::to_owned),
                actions: names().take(CEILING_MAX).map(str::to_owned).collect(),
                left_out: agent.ceiling.len().saturating_sub(CEILING_MAX),
            });
        }
    }

    fn input(
        &self,
        bundle: Option<&PolicyBundle>,
        agent: Option<&RegisteredAgent>,
        is_in_force: bool,
    ) -> RuleInput {
        let mut budget = Budget::default();
        let target = bundle.and_then(|bundle| bundle.target_facts(&self.action.target));
        let agent_facts = bundle.zip(agent).and_then(|(b, a)| b.agent_facts(&a.id));
        let parameters = self.action.parameters.iter().map(|(name, value)| {
            let text = match commitment(value) {
                Some(commitment) => format!("commitment {commitment}"),
                None => value.to_string(),
            };
            (name.clone(), text)
        });
        let mut action = self.action.clone();
        action.parameters.clear();
        let parameters = budget.pairs(parameters.collect());
        let agent_facts = budget.entity(agent_facts.unwrap_or_default());
        let target_facts = target.map(|target| budget.entity(target));
        RuleInput {
            policy: self.decision.policy,
            is_in_force,
            agent: agent.map(|agent| agent.id.clone()),
            agent_facts,
            action,
            target_facts,
            parameters,
            is_issue_time_known: self
                .evidence
                .as_ref()
                .is_some_and(|evidence| evidence.issued_at.is_some()),
            local: bundle.map_or_else(Vec::new, |bundle| {
                bundle.local_times(self.decision.input.now)
            }),
            context: self.decision.input.clone(),
            left_out: budget.left_out,
        }
    }
}

/// The commitment of a sensitive parameter on record.
fn commitment(value: &serde_json::Value) -> Option<&str> {
    value.as_object()?.get("$commitment")?.as_str()
}

fn shortened_permit(mut permit: NearestPermit) -> NearestPermit {
    permit.misses.truncate(MISSES_MAX);
    for miss in &mut permit.misses {
        miss.clause = shortened(&miss.clause, CLAUSE_CHARS_MAX);
        miss.error = miss
            .error
            .as_ref()
            .map(|error| shortened(error, CLAUSE_CHARS_MAX));
        miss.values.truncate(READ_MAX);
        for ReadValue { path, value } in &mut miss.values {
            *path = shortened(path, READ_CHARS_MAX);
            *value = shortened(value, READ_CHARS_MAX);
        }
    }
    permit
}

/// The beginning of a text, with the number of characters that follow.
fn shortened(text: &str, chars_max: usize) -> String {
    match cut(text, chars_max) {
        (head, 0) => head.to_owned(),
        (head, more) => format!("{head}… and {more} more characters"),
    }
}

/// Bytes left for names and values of facts.
struct Budget {
    left: usize,
    left_out: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            left: FACTS_BYTES_MAX,
            left_out: 0,
        }
    }
}

impl Budget {
    fn takes(&mut self, bytes: usize) -> bool {
        match self.left.checked_sub(bytes) {
            Some(left) => {
                self.left = left;
                true
            }
            None => {
                self.left_out += 1;
                false
            }
        }
    }

    fn pairs(&mut self, pairs: Vec<(String, String)>) -> Vec<(String, String)> {
        let mut kept = Vec::new();
        for (name, value) in pairs {
            let value = shortened(&value, VALUE_CHARS_MAX);
            if self.takes(name.len() + value.len()) {
                kept.push((name, value));
            }
        }
        kept
    }

    fn entity(&mut self, facts: EntityFacts) -> EntityFacts {
        let attributes = self.pairs(facts.attributes);
        let groups = facts
            .groups
            .into_iter()
            .filter(|group| self.takes(group.len()))
            .collect();
        EntityFacts { attributes, groups }
    }
}

/// Most bytes of names and values of facts: a small part of the longest message.
const FACTS_BYTES_MAX: usize = 8 * 1024;
/// Most characters of a value of a fact.
const VALUE_CHARS_MAX: usize = 400;
/// Most parts of a permit that an explanation shows, and values of one.
const MISSES_MAX: usize = 4;
const READ_MAX: usize = 6;
/// Most characters of a part, and of a value it read.
const CLAUSE_CHARS_MAX: usize = 300;
const READ_CHARS_MAX: usize = 120;
/// Most rules that could not be evaluated.
const FAILURES_MAX: usize = 8;
/// Most actions of a ceiling.
const CEILING_MAX: usize = 40;
