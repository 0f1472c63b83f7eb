//! Replay: decisions on record, decided again on their recorded input by two bundles, and what differs.
//!
//! In: entries of the journal, with the secret part of each action. Out: how many decisions stay, each class of change with
//! examples, and what people would have been asked. What cannot be decided again, since its input is not on record, is counted and
//! never guessed. Nor is what would tell a sensitive value: a rule written for it could ask for the value, letter by letter.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use serde_json::value::RawValue;

use super::{AlikeRequests, AuthzDecision, AuthzRequest, OperateDecision, PolicyBundle};
use crate::model::*;

/// An entry that may hold a decision, as far as a replay reads it: the journal that it comes from was verified at the start, and nothing
/// is decided by what is read here.
#[derive(Debug)]
pub struct DecisionEntry {
    /// When it was made.
    pub at: Timestamp,
    event: Event,
}

impl DecisionEntry {
    /// Reads the text of an entry; nothing for one of another kind. Cheaper than to parse the whole of it.
    pub fn parse(text: &str) -> Result<Option<Self>, serde_json::Error> {
        #[derive(serde::Deserialize)]
        struct Parts<'t> {
            at: Timestamp,
            kind: Cow<'t, str>,
            #[serde(borrow)]
            body: &'t RawValue,
        }
        let is_one = ["TokenIssued", "RequestDenied", "AccessRequestOpened"]
            .iter()
            .any(|kind| text.contains(&format!("\"kind\":\"{kind}\"")));
        if !is_one {
            return Ok(None);
        }
        let parts: Parts<'_> = serde_json::from_str(text)?;
        let body = parts.body.get();
        let event = match &*parts.kind {
            "TokenIssued" => Event::TokenIssued(serde_json::from_str(body)?),
            "RequestDenied" => Event::RequestDenied(serde_json::from_str(body)?),
            "AccessRequestOpened" => Event::AccessRequestOpened(serde_json::from_str(body)?),
            _ => return Ok(None),
        };
        let at = parts.at;
        Ok(Some(Self { at, event }))
    }
}

/// A decision of gate 2 in an entry.
#[derive(Debug, Clone, Copy)]
pub struct RecordedDecision<'e> {
    at: Timestamp,
    task: TaskId,
    subject: &'e SpiffeId,
    action: &'e ActionOnRecord,
    /// Blob: the secret part of the action; absent without sensitive parameters.
    pub secret: Option<Digest>,
    record: Option<&'e DecisionRecord>,
    kind: DecisionKind,
}

/// The kind of entry that a decision is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DecisionKind {
    Issued,
    Opened,
    Denied,
}

impl<'e> RecordedDecision<'e> {
    /// The decision of an entry; nothing for an entry of another kind, and for a proposal by a person.
    pub fn of(entry: &'e DecisionEntry) -> Option<Self> {
        let at = entry.at;
        match &entry.event {
            // A freeze refused it, and no rule.
            Event::RequestDenied(denied) if denied.reason == DeniedReason::Frozen.as_str() => None,
            // The rules for another agent decided, too.
            Event::RequestDenied(denied)
                if [
                    DeniedReason::RecommenderNotAllowed,
                    DeniedReason::ExecutorNotAllowed,
                ]
                .iter()
                .any(|why| denied.reason == why.as_str()) =>
            {
                None
            }
            // An invalid request: no rule was asked.
            Event::RequestDenied(denied) if denied.decision.is_none() => None,
            Event::RequestDenied(denied) => Some(Self {
                at,
                task: denied.task,
                subject: &denied.evidence.subject,
                action: &denied.action,
                secret: denied.secret,
                record: denied.decision.as_ref(),
                kind: DecisionKind::Denied,
            }),
            Event::AccessRequestOpened(opened) => {
                let by = opened.by_agent()?;
                Some(Self {
                    at,
                    task: by.task,
                    subject: &by.evidence.subject,
                    action: &opened.action,
                    secret: opened.secret,
                    record: Some(&by.decision),
                    kind: DecisionKind::Opened,
                })
            }
            Event::TokenIssued(issued) => Some(Self {
                at,
                task: issued.task,
                subject: &issued.subject,
                action: &issued.action,
                secret: issued.secret,
                record: Some(&issued.decision),
                kind: DecisionKind::Issued,
            }),
            _ => None,
        }
    }
}

/// An access request of the replay.
#[derive(Clone, Copy)]
struct Question {
    at_night: bool,
    approvals: u64,
}

/// Decides recorded decisions again by a bundle and by another one.
pub struct Replay {
    bundles: [Arc<PolicyBundle>; 2],
    summary: ReplaySummary,
    classes: BTreeMap<(ActionName, ReplayOutcome, ReplayOutcome, bool), ReplayClass>,
    /// What people are asked, by task and action.
    asked: [HashMap<(TaskId, Digest), Question>; 2],
    /// By action and sensitive parameters, whether decisions that have them are decided again.
    tells_nothing: BTreeMap<(ActionName, Vec<String>), bool>,
    alike: AlikeRequests,
}

impl Replay {
    /// Compares what `in_force` decides with what `candidate` would decide.
    pub fn new(in_force: Arc<PolicyBundle>, candidate: Arc<PolicyBundle>) -> Self {
        Self {
            alike: AlikeRequests::of(&in_force, &candidate),
            bundles: [in_force, candidate],
            summary: ReplaySummary::default(),
            classes: BTreeMap::new(),
            asked: [HashMap::new(), HashMap::new()],
            tells_nothing: BTreeMap::new(),
        }
    }

    /// Decides one decision again. `secret`: the secret part of its action, if it has one and it is still on record.
    pub fn add(&mut self, decision: &RecordedDecision<'_>, secret: Option<&ActionSecret>) {
        if decision.secret.is_some() && !self.tells_nothing_of(decision.action) {
            self.not_replayed(decision);
            return;
        }
        let action = decision.action.reopen(secret).ok();
        let (Some(record), Some(action)) = (decision.record, action) else {
            self.not_replayed(decision);
            return;
        };
        // Which key a task had is not on record with its decisions: under another pin nothing can be said.
        let pins = self
            .bundles
            .each_ref()
            .map(|bundle| pin(bundle, decision.subject));
        if let [was, Some(is)] = &pins
            && was.as_ref() != Some(is)
        {
            self.not_replayed(decision);
            return;
        }
        self.summary.decisions += 1;
        // What an advisory agent recommends is asked about two agents.
        let is_alike = record.input.executor.is_none() && self.is_alike(decision.subject, &action);
        let [base, candidate] = &self.bundles;
        if is_alike && record.policy == base.version() {
            // The bundle in force made this decision, and the other would make it too.
            self.summary.same += 1;
            let profiles = record.required_profiles.iter();
            let names: Vec<ProfileName> = profiles.map(|profile| profile.name.clone()).collect();
            [0, 1]
                .into_iter()
                .for_each(|of| self.count_question(of, &names, decision, record));
            return;
        }
        let would_be = decide(candidate, decision.subject, &action, &record.input);
        // What the bundle in force decided itself, and the other decides by the same rules to the same effect, needs no second answer.
        let was = match is_alike
            || (record.policy == base.version() && would_be.is_of(record, decision))
        {
            true => would_be.clone(),
            false => decide(base, decision.subject, &action, &record.input),
        };
        for (of, answer) in [&was, &would_be].into_iter().enumerate() {
            self.count_question(of, &answer.profiles, decision, record);
        }
        let outcomes = (was.outcome(would_be.ttl_ms), would_be.outcome(was.ttl_ms));
        if outcomes.0 == outcomes.1 {
            self.summary.same += 1;
            return;
        }
        let approved = !record.input.approvals.is_empty();
        let (before, after) = (outcomes.0.clone(), outcomes.1.clone());
        let key = (action.name.clone(), before, after, approved);
        let class = self.classes.entry(key).or_insert_with(|| ReplayClass {
            action: action.name.clone(),
            was: outcomes.0,
            would_be: outcomes.1,
            approved,
            count: 0,
            examples: Vec::new(),
        });
        class.count += 1;
        if class.examples.len() < EXAMPLES_MAX {
            class.examples.push(ReplayExample {
                decision: record.id.to_string(),
                at: decision.at.to_string(),
                subject: decision.subject.to_string(),
                target: action.target.in_sentence(),
                was_by: was.rules,
                was_denied: was.denied,
                would_be_by: would_be.rules,
                would_be_denied: would_be.denied,
            });
        }
    }

    /// Whether both bundles answer a request alike, so that one evaluation is enough.
    fn is_alike(&mut self, subject: &SpiffeId, action: &Action) -> bool {
        let [base, candidate] = &self.bundles;
        let (agents, others) = (
            base.agents_matching(subject),
            candidate.agents_matching(subject),
        );
        let ([agent], [_]) = (agents.as_slice(), others.as_slice()) else {
            return false;
        };
        let bundles = [&**base, &**candidate];
        self.alike.has(bundles, agent, &action.name, &action.target)
    }

    /// Whether both bundles ask the same of the sensitive parameters of an action: then what differs tells nothing about their values.
    fn tells_nothing_of(&mut self, action: &ActionOnRecord) -> bool {
        let key = (action.action.clone(), action.sensitive().cloned().collect());
        if let Some(known) = self.tells_nothing.get(&key) {
            return *known;
        }
        let [base, candidate] = &self.bundles;
        let tells_nothing = base.asks_the_same_of_secrets(candidate, action);
        self.tells_nothing.insert(key, tells_nothing);
        tells_nothing
    }

    fn not_replayed(&mut self, decision: &RecordedDecision<'_>) {
        let name = decision.action.action.clone();
        *self.summary.not_replayed.entry(name).or_default() += 1;
    }

    /// A request that no approval has answered yet, and that needs one, is a question; the same one of a task is asked once.
    fn count_question(
        &mut self,
        of: usize,
        profiles: &[ProfileName],
        decision: &RecordedDecision<'_>,
        record: &DecisionRecord,
    ) {
        let (Some(asked), Some(bundle)) = (self.asked.get_mut(of), self.bundles.get(of)) else {
            return;
        };
        if profiles.is_empty() || !record.input.approvals.is_empty() {
            return;
        }
        let hour = decision.at.secs().div_euclid(3_600).rem_euclid(24);
        let quorums = profiles.iter().filter_map(|name| bundle.profile(name));
        let question = Question {
            at_night: !DAY_HOURS.contains(&hour),
            approvals: quorums.map(|profile| u64::from(profile.quorum)).sum(),
        };
        if asked.len() >= QUESTIONS_MAX {
            self.summary.is_cut = true;
            return;
        }
        asked
            .entry((decision.task, decision.action.digest))
            .or_insert(question);
    }

    /// Adds what another replay by the same bundles found, of other decisions.
    pub fn merge(&mut self, other: Self) {
        self.summary.decisions += other.summary.decisions;
        self.summary.same += other.summary.same;
        for (action, count) in other.summary.not_replayed {
            *self.summary.not_replayed.entry(action).or_default() += count;
        }
        for (key, class) in other.classes {
            match self.classes.get_mut(&key) {
                None => drop(self.classes.insert(key, class)),
                Some(own) => {
                    own.count += class.count;
                    own.examples.extend(class.examples);
                    own.examples.sort_by(|a, b| b.at.cmp(&a.at));
                    own.examples.truncate(EXAMPLES_MAX);
                }
            }
        }
        self.summary.is_cut |= other.summary.is_cut;
        for (own, other) in self.asked.iter_mut().zip(other.asked) {
            own.extend(other);
        }
    }

    /// What it found.
    pub fn finish(self) -> ReplaySummary {
        let mut changes: Vec<ReplayClass> = self.classes.into_values().collect();
        changes.sort_by_key(|class| std::cmp::Reverse(class.count));
        let [asked, would_ask] = self.asked.map(|questions| {
            let all = questions.values();
            AskedOfPeople {
                requests: u64::try_from(all.len()).unwrap_or(u64::MAX),
                at_night: all
                    .clone()
                    .map(|question| u64::from(question.at_night))
                    .sum(),
                approvals: all.map(|question| question.approvals).sum(),
            }
        });
        ReplaySummary {
            changes,
            asked,
            would_ask,
            ..self.summary
        }
    }

    /// Decisions decided again so far.
    pub const fn decisions(&self) -> u64 {
        self.summary.decisions
    }
}

/// The key that a bundle pins the agent of a workload to.
fn pin(bundle: &PolicyBundle, subject: &SpiffeId) -> Option<Thumbprint> {
    let agents = bundle.agents_matching(subject);
    agents.first().and_then(|agent| agent.jkt)
}

/// The answer of one bundle.
#[derive(Clone)]
struct Answer {
    /// Milliseconds a token lives; zero for a denial.
    ttl_ms: i64,
    /// Profiles that people are asked under.
    profiles: Vec<ProfileName>,
    /// What time alone changes in that.
    delay: Option<Delay>,
    rules: Vec<RuleRef>,
    denied: Option<DeniedReason>,
}

impl Answer {
    fn denied(why: Option<DeniedReason>, rules: Vec<RuleRef>) -> Self {
        Self {
            ttl_ms: 0,
            profiles: Vec::new(),
            delay: None,
            rules,
            denied: why,
        }
    }

    /// Whether it is the decision on record: the same rules, the same profiles, the same lifetime and the same kind of entry.
    fn is_of(&self, record: &DecisionRecord, decision: &RecordedDecision<'_>) -> bool {
        let same_rules = self.rules.iter().eq(record.rules.iter());
        let profiles = record.required_profiles.iter().map(|profile| &profile.name);
        let same_effect = match decision.kind {
            DecisionKind::Issued => {
                self.denied.is_none()
                    && self.profiles.is_empty()
                    && self.ttl_ms / 1000 == record.ttl.granted
            }
            DecisionKind::Opened => {
                self.denied.is_none() && self.ttl_ms / 1000 == record.ttl.granted
            }
            // Its reason may be another than a rule's.
            DecisionKind::Denied => false,
        };
        same_rules && same_effect && self.delay == record.delay && self.profiles.iter().eq(profiles)
    }

    /// The outcome, beside the answer of another bundle.
    fn outcome(&self, other_ttl_ms: i64) -> ReplayOutcome {
        if self.ttl_ms <= 0 {
            return ReplayOutcome::Denied;
        }
        if !self.profiles.is_empty() {
            let profiles = self.profiles.clone();
            return match &self.delay {
                None => ReplayOutcome::Pending(profiles),
                Some(Delay { seconds, needs }) => ReplayOutcome::Delayed {
                    profiles,
                    seconds: *seconds,
                    needs: needs.iter().map(|need| need.name.clone()).collect(),
                },
            };
        }
        match self.ttl_ms.cmp(&other_ttl_ms) {
            std::cmp::Ordering::Less if other_ttl_ms > 0 => ReplayOutcome::AllowedShorter,
            std::cmp::Ordering::Greater if other_ttl_ms > 0 => ReplayOutcome::AllowedLonger,
            _ => ReplayOutcome::Allowed,
        }
    }
}

/// Both gates' rules on a recorded input.
fn decide(
    bundle: &PolicyBundle,
    subject: &SpiffeId,
    action: &Action,
    input: &PolicyInput,
) -> Answer {
    let agents = bundle.agents_matching(subject);
    let [agent] = agents.as_slice() else {
        return Answer::denied(None, Vec::new());
    };
    let operates = bundle.may_operate(
        agent,
        input.evidence_kind,
        input.evidence_ages(),
        &input.binding,
        input.now,
    );
    if let OperateDecision::Denied { why, rules } = operates {
        return Answer::denied(Some(why), rules);
    }
    if bundle.check_action(action).is_err() {
        return Answer::denied(None, Vec::new());
    }
    let approvals: BTreeSet<ProfileName> = input.approvals.iter().cloned().collect();
    let request = AuthzRequest::recorded(input, agent, action, &approvals);
    let decision = match (agent.autonomy, &input.executor) {
        (Autonomy::Advisory, Some(_)) => bundle.authorize(&request),
        (Autonomy::Advisory, None) => recommended(bundle, agent, &request),
        // It asks for itself.
        (Autonomy::Supervised | Autonomy::Autonomous, _) => bundle.authorize(&AuthzRequest {
            executor: None,
            ..request
        }),
    };
    match decision {
        AuthzDecision::Allowed { ttl_ms, rules } => Answer {
            delay: None,
            ttl_ms,
            profiles: Vec::new(),
            rules,
            denied: None,
        },
        AuthzDecision::Needs {
            profiles,
            delay,
            ttl_ms,
            rules,
        } => Answer {
            delay,
            ttl_ms,
            profiles: profiles.into_iter().map(|profile| profile.name).collect(),
            rules,
            denied: None,
        },
        AuthzDecision::Denied { why, rules } => Answer::denied(Some(why), rules),
    }
}

/// The answer to a request that was not made as a recommendation, of an agent that can only recommend: what people would be asked, for the
/// first of its executors to whom the rules do not deny it.
fn recommended(
    bundle: &PolicyBundle,
    agent: &RegisteredAgent,
    request: &AuthzRequest<'_>,
) -> AuthzDecision {
    let none = BTreeSet::new();
    let ask = |executor: &AgentId| {
        bundle.authorize(&AuthzRequest {
            executor: Some(executor),
            approvals: &none,
            ..*request
        })
    };
    let mut answers = agent.executors.iter().map(ask);
    let first = answers.next();
    let is_denied = |answer: &AuthzDecision| matches!(answer, AuthzDecision::Denied { .. });
    match first {
        Some(denied) if is_denied(&denied) => answers.find(|a| !is_denied(a)).unwrap_or(denied),
        Some(answer) => answer,
        // No bundle has an advisory agent without one.
        None => bundle.authorize(request),
    }
}

/// The hours of a day that are not night, UTC.
const DAY_HOURS: std::ops::Range<i64> = 6..22;
/// Most access requests of a replay that are told apart in one thread: 65 bytes each, in two maps.
const QUESTIONS_MAX: usize = 500_000;
/// Most examples of a class of changes.
const EXAMPLES_MAX: usize = 3;
