//! What the rules in force ask of people for a waiting access request, at this moment.
//!
//! In: the access request, its agent as registered, the bundle, the moment. Out: whether it is still what is on record. The record is
//! what people are shown, vote for and what a token rests on; one that is no longer true is replaced by an entry before anything else.

use std::collections::BTreeSet;

use crate::model::*;
use crate::policy::{AuthzDecision, AuthzRequest, OperateDecision, PolicyBundle, Remedy};
use crate::state::{AccessRequest, NamedFacts, Recorded};

use super::hand_over;
use super::quorum::{self, VoteSubject};
use super::votes::{self, VoteTally, VoterContext};

/// The input of rules that changes while an access request waits.
#[derive(Debug, Clone, Copy)]
struct AskedInput<'a> {
    /// Kind of the evidence.
    evidence_kind: EvidenceKind,
    /// Ages of the evidence.
    evidence_ages: EvidenceAges,
    /// How the token would be bound.
    binding: &'a str,
    /// Age of the task, in milliseconds.
    task_age_ms: i64,
    /// The moment.
    now: Timestamp,
    /// The named facts that rules in scope read.
    facts: &'a FactValues,
    /// The counts that rules in scope read.
    counts: &'a CountValues,
}

impl<'a> AskedInput<'a> {
    /// As on record.
    fn of(input: &'a PolicyInput) -> Self {
        Self {
            evidence_kind: input.evidence_kind,
            evidence_ages: input.evidence_ages(),
            binding: &input.binding,
            task_age_ms: input.task_age_ms,
            now: input.now,
            facts: &input.facts,
            counts: &input.counts,
        }
    }
}

/// What changes by itself and by others while an access request waits.
#[derive(Debug, Clone, Copy)]
pub struct Moment<'a> {
    /// The named facts that rules in scope read.
    pub facts: &'a FactValues,
    /// The counts that rules in scope read.
    pub counts: &'a CountValues,
    /// The time.
    pub now: Timestamp,
}

/// A waiting access request against the rules in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Assessment {
    /// It requires what is on record.
    Same,
    /// It requires something else: the decision to record. Its id is the recorded one's, to be replaced.
    Changed(Box<DecisionRecord>),
    /// The rules in force deny it, or its agent may not operate.
    Denied,
}

/// What the rules ask of people now for an access request of an agent. Votes are left out: they answer it.
fn assess(
    request: &AccessRequest,
    agent: &RegisteredAgent,
    bundle: &PolicyBundle,
    input: &AskedInput<'_>,
) -> Assessment {
    let (Some(recorded), Some(action)) = (&request.decision, &request.action) else {
        return Assessment::Same;
    };
    let answer = bundle.authorize(&AuthzRequest {
        agent,
        action,
        ttl_ms: recorded.input.ttl_ms,
        approvals: &BTreeSet::new(),
        evidence_kind: input.evidence_kind,
        evidence_ages: input.evidence_ages,
        binding: input.binding,
        task_age_ms: input.task_age_ms,
        task_depth: 0,
        // What is asked in full: time answers it, as votes do.
        waited_ms: 0,
        now: input.now,
        executor: recorded.input.executor.as_ref(),
        facts: input.facts,
        counts: input.counts,
    });
    let (profiles, delay, rules) = match answer {
        AuthzDecision::Needs {
            profiles,
            delay,
            rules,
            ..
        } => (profiles, delay, rules),
        AuthzDecision::Allowed { rules, .. } => (Vec::new(), None, rules),
        AuthzDecision::Denied { .. } => return Assessment::Denied,
    };
    let (asks, asked) = (asking(bundle, &rules), asking(bundle, &recorded.rules));
    // Under one bundle who agrees to what several rules ask agrees to what some of them ask: newer evidence voids no approval.
    let is_covered = match recorded.policy == bundle.version() {
        true => asks.is_subset(&asked),
        false => {
            let mut rules = recorded.rules.iter();
            asks == asked && rules.all(|rule| bundle.rule(&rule.id).is_some())
        }
    };
    // A yes rests on the facts that the rules in scope read.
    let is_same = *input.facts == recorded.input.facts;
    // Silence answers what a card showed: under another bundle it may show something else, and the time begins anew.
    let is_heard = recorded.delay.is_none() || recorded.policy == bundle.version();
    let is_asked = profiles == recorded.required_profiles && delay == recorded.delay && is_heard;
    if is_asked && is_covered && is_same {
        return Assessment::Same;
    }
    Assessment::Changed(Box::new(DecisionRecord {
        id: recorded.id,
        policy: bundle.version(),
        rules: rules.into(),
        required_profiles: profiles,
        delay,
        ttl: recorded.ttl.clone(),
        input: PolicyInput {
            ttl_ms: recorded.input.ttl_ms,
            approvals: Vec::new(),
            evidence_kind: input.evidence_kind,
            evidence_issued_age_ms: input.evidence_ages.issued_ms,
            evidence_verified_age_ms: input.evidence_ages.verified_ms,
            binding: input.binding.into(),
            task_age_ms: input.task_age_ms,
            now: input.now,
            executor: recorded.input.executor.clone(),
            facts: input.facts.clone(),
            counts: input.counts.clone(),
            waited_ms: 0,
            recommender_counts: CountValues::new(),
        },
    }))
}

/// The same at a moment, with the evidence on record: the record is one for all calls of the agent. `shown`: the ages of the evidence of
/// a call. Each counts where it is less than the one on record, so that newer evidence is answered by what the rules ask for it, and
/// older evidence of another call never makes the record ask for more.
pub fn assess_now(
    request: &AccessRequest,
    agent: &RegisteredAgent,
    bundle: &PolicyBundle,
    task_opened_at: Timestamp,
    shown: Option<EvidenceAges>,
    Moment { facts, counts, now }: Moment<'_>,
) -> Assessment {
    let Some(recorded) = &request.decision else {
        return Assessment::Same;
    };
    let recorded = AskedInput::of(&recorded.input);
    let ages = recorded.evidence_ages;
    let input = AskedInput {
        evidence_ages: shown.map_or(ages, |shown| shown.least(ages)),
        task_age_ms: now.since(task_opened_at).max(0),
        now,
        facts,
        counts,
        ..recorded
    };
    assess(request, agent, bundle, &input)
}

/// The named facts that rules in scope of an agent's access request read: those about its agent, and about the executor of a
/// recommendation.
pub(super) fn facts_of(
    request: &AccessRequest,
    VoterContext { read, bundle, .. }: VoterContext<'_>,
    now: Timestamp,
) -> NamedFacts {
    let opened = &request.opened;
    let executor = opened.executor().map(|executor| &executor.agent);
    let agents = opened.agent().into_iter().chain(executor);
    read.named_facts(
        bundle,
        agents,
        (&opened.action.action, &opened.action.target),
        now,
    )
}

/// The counts that rules in scope of an agent's access request read.
pub(super) fn counts_of(
    request: &AccessRequest,
    agent: &RegisteredAgent,
    VoterContext { read, bundle, .. }: VoterContext<'_>,
    now: Timestamp,
) -> CountValues {
    let action = &request.opened.action;
    let of = (&action.action, &action.target);
    read.counts(bundle, agent, of, Some(request), now)
}

/// The rules among these that ask for an approval.
fn asking<'r>(bundle: &PolicyBundle, rules: &'r [RuleRef]) -> BTreeSet<&'r str> {
    let asks = |rule: &&RuleRef| {
        let rule = bundle.rule(&rule.id);
        rule.is_some_and(|rule| matches!(rule.remedy, Some(Remedy::StepUp(_))))
    };
    rules.iter().filter(asks).map(|rule| &*rule.id).collect()
}

/// What becomes of a waiting access request without its agent's asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reassessment {
    /// It stays as it is.
    Same,
    /// It requires something else.
    Changed(Box<DecisionRecord>),
    /// It can no longer be approved.
    Ends(CloseCause),
}

/// The same with the evidence on record, for people and for the sweep: whether it goes on as it is, requires something else, or ends.
pub fn reassess(
    request: &Recorded<'_, AccessRequest>,
    context: VoterContext<'_>,
    now: Timestamp,
) -> Reassessment {
    let Some(by) = request.opened.by_agent() else {
        let is_of_now = can_be_set(request, context, now);
        return match is_of_now && can_be_agreed(request, context, now) {
            true => Reassessment::Same,
            false if !is_of_now => Reassessment::Ends(CloseCause::Policy),
            false => Reassessment::Ends(CloseCause::NoEligibleApprover),
        };
    };
    let VoterContext { read, bundle, .. } = context;
    let (Some(agent), Some(task)) = (bundle.agent(&by.agent), read.task(&by.task)) else {
        return Reassessment::Ends(CloseCause::Policy);
    };
    let Some(recorded) = &request.decision else {
        return Reassessment::Same;
    };
    if (agent.autonomy == Autonomy::Advisory) != by.executor.is_some() {
        return Reassessment::Ends(CloseCause::Policy);
    }
    let operates = bundle.may_operate(
        &agent,
        recorded.input.evidence_kind,
        recorded.input.evidence_ages(),
        &recorded.input.binding,
        recorded.input.now,
    );
    if !matches!(operates, OperateDecision::Allowed { .. }) {
        return Reassessment::Ends(CloseCause::Policy);
    }
    let facts = facts_of(request, context, now).values;
    let opened_at = task.opened.opened_at;
    let moment = Moment {
        facts: &facts,
        // As on record: no number of requests keeps a vote or a sweep from its entry, and the gate asks again with those of its moment.
        counts: &recorded.input.counts,
        now,
    };
    let changed = match assess_now(request, &agent, bundle, opened_at, None, moment) {
        // A denial by time alone may pass; a token is not issued meanwhile. A request that a fact denies ends: the fact may stand for long.
        Assessment::Denied => {
            let then = AskedInput {
                facts: &facts,
                ..AskedInput::of(&recorded.input)
            };
            // And a count may be lower again: no count forbids more than none.
            let none = CountValues::new();
            let at_best = AskedInput {
                counts: &none,
                ..then
            };
            if assess(request, &agent, bundle, &at_best) == Assessment::Denied {
                return Reassessment::Ends(CloseCause::Policy);
            }
            // What waits in silence is on record as the bundle and the facts of now have it, also at a time that denies it.
            match assess(request, &agent, bundle, &then) {
                Assessment::Changed(decision) if recorded.delay.is_some() => Some(decision),
                Assessment::Changed(_) | Assessment::Same | Assessment::Denied => None,
            }
        }
        Assessment::Changed(decision) => Some(decision),
        Assessment::Same => None,
    };
    // Of what is asked anew no approval is there yet.
    let (profiles, tally) = match &changed {
        Some(decision) => (&decision.required_profiles[..], VoteTally::default()),
        None => (
            request.required_profiles(),
            votes::tally(request, context, now),
        ),
    };
    match (can_be_met(request, profiles, &tally, context), changed) {
        (false, _) => Reassessment::Ends(CloseCause::NoEligibleApprover),
        (true, Some(decision)) => Reassessment::Changed(decision),
        (true, None) => Reassessment::Same,
    }
}

/// Whether enough people are left who could approve an agent's access request under these profiles, beside those who have.
pub(super) fn can_be_met(
    request: &AccessRequest,
    profiles: &[ProfileRef],
    tally: &VoteTally,
    context: VoterContext<'_>,
) -> bool {
    let target = &request.opened.action.target;
    let defined: Vec<_> = profiles
        .iter()
        .filter_map(|need| context.bundle.profile_about(&need.name, target))
        .collect();
    let never = hand_over::interested(request, context.executing, context);
    let never: Vec<&PersonId> = never.iter().collect();
    let subject = VoteSubject::of(request);
    quorum::can_be_met(&defined, subject, tally, &never, context)
}

/// Whether what a proposal is for can still be done: a fact is not set back to the normal value that it has again.
pub fn can_be_set(
    request: &AccessRequest,
    VoterContext { read, bundle, .. }: VoterContext<'_>,
    now: Timestamp,
) -> bool {
    let proposed = request.opened.by_person().map(|by| &by.proposed);
    let Some(Proposed::Fact {
        fact,
        value,
        seconds: None,
        ..
    }) = proposed
    else {
        return true;
    };
    let declared = bundle.fact(fact);
    declared.is_some_and(|declared| read.fact_value(declared, now) != *value)
}

fn can_be_agreed(
    request: &Recorded<'_, AccessRequest>,
    context: VoterContext<'_>,
    now: Timestamp,
) -> bool {
    let defined: Vec<_> = request
        .required_profiles()
        .iter()
        .filter_map(|need| {
            let target = &request.opened.action.target;
            context.bundle.profile_about(&need.name, target)
        })
        .collect();
    let tally = votes::tally(request, context, now);
    quorum::can_be_met(
        &defined,
        VoteSubject::of(request),
        &tally,
        &[request.opened.owner()],
        context,
    )
}
