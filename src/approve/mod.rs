//! Gate 2: should this action happen now, on this target?
//!
//! In: [`Verified`], with the round it was made in; the requested terms; the access request that waits for it (if any) with its votes.
//! Out: [`GateDecision`]: approved, pending on votes, or denied. [`Approved`] can be made only here, [`Reapproved`] only in `reapproval`.
//! Trusts the rules and registered keys. Refuses what no rule allows. Never sees evidence, the journal or the agent's text.

pub mod audit;
pub mod facts;
pub mod hand_over;
pub mod needs;
pub mod quorum;
mod reapproval;
pub mod silence;
pub mod vote_proof;
pub mod votes;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use crate::model::*;
use crate::policy::{AuthzDecision, AuthzRequest, PolicyBundle, StepUpProfile};
use crate::state::{AccessRequest, Read, Recorded};
use crate::verify::Verified;
use crate::webauthn::RelyingParty;
use needs::Assessment;
use quorum::VoteSubject;
pub use reapproval::{Reapproved, has_changed_fact, is_allowed_by, is_still_allowed, reapprove};
use vote_proof::VoteProofCache;
use votes::VoterContext;

/// The action and lifetime that a verified agent requests.
#[derive(Debug, Clone)]
pub struct TokenTerms {
    /// The action, checked against the catalogue.
    pub action: Action,
    /// Requested lifetime in seconds; above zero.
    pub ttl: i64,
    /// The agent that would execute it; exactly of an advisory agent.
    pub executor: Option<AgentId>,
}

/// Limits of every decision.
#[derive(Debug, Clone)]
pub struct DecisionLimits {
    /// The realm votes must be for.
    pub realm: Realm,
    /// The relying party of voters' passkeys.
    pub party: RelyingParty,
    /// Longest lifetime of a token, in seconds.
    pub ttl_cap: i64,
}

/// What a decision takes beside the request and the records it reads.
#[derive(Clone, Copy)]
pub struct DecisionContext<'a> {
    /// Limits of every decision.
    pub limits: &'a DecisionLimits,
    /// Votes whose proof verified before.
    pub proofs: &'a VoteProofCache,
    /// Since when people could be heard without a gap; in a gap no access request counts as having waited.
    pub heard_since: Option<Timestamp>,
}

impl<'a> DecisionContext<'a> {
    /// The inputs of vote eligibility in a round, under the rules it read.
    pub const fn voters(self, read: &'a Read, bundle: &'a PolicyBundle) -> VoterContext<'a> {
        VoterContext {
            read,
            bundle,
            realm: &self.limits.realm,
            proofs: self.proofs,
            executing: None,
        }
    }
}

/// The decision of gate 2. A denial is a decision; an `Err` means that it could not decide.
#[derive(Debug)]
pub enum GateDecision<'r> {
    /// Exactly this action is allowed.
    Approved(Box<Approved<'r>>),
    /// Votes are needed first.
    Pending(Box<PendingDecision>),
    /// The waiting access request requires something else than what is on record: that is recorded first.
    Reassessed(AccessRequestId, Box<crate::model::DecisionRecord>),
    /// People agree to what an advisory agent recommends: it gets no token, and its executor may ask for one.
    Recommended(AccessRequestId),
    /// Denied.
    Denied(Box<DeniedDecision>),
}

/// Why gate 2 could not decide. The gate stays closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApproveError {
    /// The proof is for another action than the requested one.
    #[error("the proof is for another action")]
    OtherAction,
    /// The call is not for a task.
    #[error("no task")]
    NoTask,
    /// Less than a second of lifetime is left.
    #[error("no time is left: {0}")]
    NoTime(&'static str),
    /// The rules refuse the action for the evidence's age alone: newer evidence answers it.
    #[error("the rules refuse evidence of this age")]
    StaleEvidence {
        /// The ages of the evidence.
        ages: EvidenceAges,
        /// The rules that deny it, or ask for more; empty when no rule allows it.
        rules: Vec<RuleRef>,
    },
    /// The rules in force would not issue the recorded grant.
    #[error("the rules in force would not issue it")]
    NotAllowed,
    /// An advisory agent without an executor, or another one with an executor.
    #[error("an advisory agent, and no other, names an executor")]
    Executor,
    /// The action is recommended to another executor already.
    #[error(
        "an access request of this task recommends this action to another executor: cancel it first, 'dipylon request cancel'"
    )]
    OtherExecutor,
    /// The agent does not execute this recommendation.
    #[error(transparent)]
    HandOver(#[from] hand_over::HandOverFault),
}

/// An approval of one action, once: made only by [`decide`], spent by moving it into the mint. It cannot leave its round.
#[derive(Debug)]
pub struct Approved<'r> {
    verified: Verified<'r>,
    action: Action,
    sensitive: BTreeSet<String>,
    uses: Option<u32>,
    ttl: i64,
    approval: Option<ApprovalClaim>,
    consumes: Option<AccessRequestId>,
    decision: crate::model::DecisionRecord,
    not_after: Timestamp,
}

/// A decision that still needs votes.
#[derive(Debug)]
pub struct PendingDecision {
    /// The decision so far, with the profiles it needs.
    pub decision: crate::model::DecisionRecord,
    /// Names of sensitive parameters.
    pub sensitive: BTreeSet<String>,
    /// Longest lifetime the token can have, in seconds.
    pub max_ttl: i64,
    /// How often the token may be used.
    pub uses: Option<u32>,
    /// Seconds until the request expires: the shortest wait of the profiles.
    pub wait: i64,
    /// When the decision expires.
    pub not_after: Timestamp,
}

/// A denial.
#[derive(Debug, Clone)]
pub struct DeniedDecision {
    /// The reason.
    pub why: DeniedReason,
    /// The decision, for the record.
    pub decision: crate::model::DecisionRecord,
}

/// Longest time between a decision and its entry, in milliseconds.
pub const DECISION_LIFE_MS: i64 = 10_000;

/// Decides one action for a verified agent. `is_held`: this process enforces a freeze of the action that is not in the journal yet.
pub fn decide<'r>(
    verified: Verified<'r>,
    terms: &TokenTerms,
    waiting: Option<&Recorded<'r, AccessRequest>>,
    is_held: bool,
    context: DecisionContext<'_>,
    id: DecisionId,
) -> Result<GateDecision<'r>, ApproveError> {
    let limits = context.limits;
    let now = verified.now();
    let task = verified.task().ok_or(ApproveError::NoTask)?.opened.clone();
    if verified.action_digest() != Some(terms.action.digest()) {
        return Err(ApproveError::OtherAction);
    }
    let is_advisory = verified.agent().autonomy == Autonomy::Advisory;
    if is_advisory != terms.executor.is_some() {
        return Err(ApproveError::Executor);
    }
    let read = verified.read();
    let rules = verified.rules().clone();
    let bundle = &rules.bundle;
    let catalogue = bundle.action(&terms.action.name);
    let own_task = verified.task().cloned();
    let mut voter_context = context.voters(read, bundle);
    // The recommendation of another agent that this one executes, in a task of its own.
    let handed_over = waiting.filter(|request| request.opened.task() != Some(task.task));
    let recommended_to = |request: &Recorded<'_, AccessRequest>| {
        let executor = request.opened.executor();
        executor.map(|executor| executor.agent.clone())
    };
    let own = waiting.filter(|_| handed_over.is_none());
    if own.is_some_and(|request| recommended_to(request) != terms.executor) {
        return Err(ApproveError::OtherExecutor);
    }
    let mut not_after = verified.not_after().min(now.plus_millis(DECISION_LIFE_MS));
    if let Some(request) = handed_over {
        voter_context.executing = own_task.as_deref();
        let until = hand_over::check(request, &terms.action, &verified, voter_context)?;
        not_after = not_after.min(until);
    }
    let sensitive = catalogue.map(|a| a.sensitive()).unwrap_or_default();
    // The named facts that rules about either agent read: the decision rests on each, as long as it stands.
    let of_request = waiting.and_then(|request| request.opened.agent());
    let agents = [
        Some(&verified.agent().id),
        terms.executor.as_ref(),
        of_request,
    ];
    let named = read.named_facts(
        bundle,
        agents.into_iter().flatten(),
        (&terms.action.name, &terms.action.target),
        now,
    );
    if let Some(until) = named.until {
        not_after = not_after.min(until);
    }
    // Of its own agent: an executor's are not asked for before it asks itself.
    let counts = read.counts(
        bundle,
        verified.agent(),
        (&terms.action.name, &terms.action.target),
        own.map(|own| &**own),
        now,
    );
    let mut recommender_counts = CountValues::new();
    let mut are_of_now = true;
    // INVARIANT (a yes is for what is asked now): votes are counted for what the rules ask of people at this moment, which is what is
    // on record.
    if let Some(request) = waiting {
        let assessment = match handed_over {
            None => {
                let (agent, shown) = (verified.agent(), Some(verified.evidence_ages()));
                let moment = needs::Moment {
                    facts: &named.values,
                    counts: &counts,
                    now,
                };
                needs::assess_now(request, agent, bundle, task.opened_at, shown, moment)
            }
            Some(request) => hand_over::assess(request, voter_context, now)?,
        };
        match assessment {
            Assessment::Changed(mut decision) => {
                decision.id = id;
                let id = request.opened.access_request;
                return Ok(GateDecision::Reassessed(id, decision));
            }
            // INVARIANT (a yes rests on the facts that it was given under): what the rules deny under other facts has no votes, also
            // where this call asks for less.
            Assessment::Denied => {
                let recorded = request.decision.as_ref();
                are_of_now = recorded.is_none_or(|r| r.input.facts == named.values);
            }
            Assessment::Same => {}
        }
    }
    let tally = waiting
        .filter(|_| are_of_now)
        .map(|request| votes::tally(request, voter_context, now))
        .unwrap_or_default();
    let waited_ms = waiting.map_or(0, |request| {
        silence::waited_ms(
            request,
            &tally,
            &named.values,
            context.heard_since,
            voter_context,
            now,
        )
    });
    // Who agreed to less is heard, whether the others did or not.
    let narrowed = waiting.filter(|_| waited_ms > 0);
    let narrowed: Vec<&VoteCast> = narrowed
        .iter()
        .flat_map(|request| request.votes.iter().map(|vote| &vote.cast))
        .collect();
    // The fewest of the catalogue's uses today, those shown to voters, and those they agreed to: no vote allows more than it
    // was given for.
    let uses = catalogue
        .is_some_and(|a| a.single_use)
        .then_some(1)
        .into_iter()
        .chain(waiting.and_then(|request| request.opened.uses))
        .chain(tally.uses)
        .chain(narrowed.iter().filter_map(|cast| cast.uses))
        .min();

    let mut ttl = Ttl::requested(terms.ttl);
    ttl.limit("cap", limits.ttl_cap);
    ttl.limit("task", task.deadline.since(now).div_euclid(1000));
    ttl.limit(
        "evidence",
        verified.facts().expires_at.since(now).div_euclid(1000),
    );
    if let Some(max_ttl) = waiting.and_then(|request| request.opened.max_ttl) {
        ttl.limit("request", max_ttl);
    }
    let narrowed = narrowed.iter().filter_map(|cast| cast.max_ttl);
    if let Some(max_ttl) = narrowed.chain(tally.max_ttl).min() {
        ttl.limit("narrowing", max_ttl);
    }
    if let Some(not_after) = tally.not_after {
        ttl.limit("approval", not_after.since(now).div_euclid(1000));
    }
    if ttl.0.granted <= 0 {
        return Err(ApproveError::NoTime(
            if task.deadline <= verified.facts().expires_at {
                "task"
            } else {
                "evidence"
            },
        ));
    }
    // INVARIANT (a hand-over rests on both agents): an executor gets no token for what the rules deny the agent that recommends, at this moment.
    let mut denied_to_recommender = None;
    let mut recommender_waited_ms = 0;
    if let Some(request) = handed_over {
        let asked = hand_over::Asked {
            ttl_ms: ttl.0.granted.saturating_mul(1000),
            approvals: &tally.satisfied,
            waited_ms,
        };
        let (answer, counts, counted_ms) =
            hand_over::recommender_answer(request, &terms.action, asked, voter_context, now)?;
        recommender_counts = counts;
        recommender_waited_ms = counted_ms;
        match answer {
            AuthzDecision::Denied { rules, .. } => denied_to_recommender = Some(rules),
            AuthzDecision::Allowed { ttl_ms, .. } | AuthzDecision::Needs { ttl_ms, .. } => {
                ttl.limit("recommendation", ttl_ms.div_euclid(1000));
            }
        }
    }
    let mut question = AuthzRequest {
        agent: verified.agent(),
        action: &terms.action,
        ttl_ms: ttl.0.granted.saturating_mul(1000),
        approvals: &tally.satisfied,
        evidence_kind: verified.facts().kind,
        evidence_ages: verified.evidence_ages(),
        binding: verified.binding().as_str(),
        task_age_ms: now.since(task.opened_at).max(0),
        task_depth: 0,
        waited_ms,
        now,
        executor: terms.executor.as_ref(),
        facts: &named.values,
        counts: &counts,
    };
    question.waited_ms = waiting
        .and_then(|request| request.decision.as_ref())
        .map_or(0, |recorded| {
            silence::counted_ms(bundle, &question, recorded, waited_ms)
        });
    // What either agent's rules count, of what people could be heard for.
    let shown_ms = waited_ms;
    let waited_ms = question.waited_ms.max(recommender_waited_ms);
    let mut never = BTreeSet::from([verified.agent().owner.clone(), task.owner.clone()]);
    match waiting {
        Some(request) => never.extend(hand_over::interested(
            request,
            voter_context.executing,
            voter_context,
        )),
        None => {
            let executor = terms.executor.as_ref().and_then(|id| bundle.agent(id));
            never.extend(executor.map(|executor| executor.owner.clone()));
        }
    }
    let never: Vec<&PersonId> = never.iter().collect();
    // What people were asked for a recommendation, by the rules for both agents; the executor's votes are those, and no others.
    let recommended: Option<&[ProfileRef]> = handed_over.map(|request| request.required_profiles());
    let subject = waiting.map_or(VoteSubject::action(&terms.action.name), |request| {
        VoteSubject::of(request)
    });
    // Whether the rules for the executor ask other people than those who were asked for both agents.
    let asks_more = |question: &AuthzRequest<'_>, profiles: &[ProfileRef]| {
        recommended.is_some_and(|all| {
            !profiles.iter().all(|need| all.contains(need))
                && !silence::is_enough(bundle, question, all)
        })
    };
    // Whether the action is to be had at all: at once, or once people approve it who can.
    let is_obtainable = |question: &AuthzRequest<'_>, answer: &AuthzDecision| match answer {
        AuthzDecision::Allowed { .. } => true,
        AuthzDecision::Needs { profiles, .. } => {
            if asks_more(question, profiles) {
                return false;
            }
            let target = &terms.action.target;
            let defined = profiles
                .iter()
                .filter_map(|need| bundle.profile_about(&need.name, target));
            let defined: Vec<Cow<'_, StepUpProfile>> = defined.collect();
            defined.len() == profiles.len()
                && quorum::can_be_met(&defined, subject, &tally, &never, voter_context)
        }
        AuthzDecision::Denied { .. } => false,
    };
    let scope = FreezeScope::Action(terms.action.name.clone());
    let (answer, obtainable) = if let Some(rules) = denied_to_recommender {
        let why = DeniedReason::RecommenderNotAllowed;
        (AuthzDecision::Denied { why, rules }, false)
    } else if read.is_frozen(&scope) || is_held {
        let frozen = AuthzDecision::Denied {
            why: DeniedReason::Frozen,
            rules: Vec::new(),
        };
        (frozen, false)
    } else {
        let answer = bundle.authorize(&question);
        let obtainable = is_obtainable(&question, &answer);
        let newest = AuthzRequest {
            evidence_ages: EvidenceAges::ZERO,
            ..question
        };
        if !obtainable && is_obtainable(&newest, &bundle.authorize(&newest)) {
            return Err(ApproveError::StaleEvidence {
                ages: question.evidence_ages,
                rules: answer.into_rules(),
            });
        }
        (answer, obtainable)
    };
    let mut decision = crate::model::DecisionRecord {
        id,
        policy: bundle.version(),
        rules: Arc::default(),
        required_profiles: Vec::new(),
        delay: None,
        ttl: ttl.0.clone(),
        input: PolicyInput {
            ttl_ms: question.ttl_ms,
            approvals: tally.satisfied.iter().cloned().collect(),
            evidence_kind: question.evidence_kind,
            evidence_issued_age_ms: question.evidence_ages.issued_ms,
            evidence_verified_age_ms: question.evidence_ages.verified_ms,
            binding: question.binding.into(),
            task_age_ms: question.task_age_ms,
            now,
            executor: terms.executor.clone(),
            facts: named.values.clone(),
            counts: counts.clone(),
            waited_ms,
            recommender_counts: CountValues::new(),
        },
    };
    if let Some(request) = waiting {
        not_after = not_after.min(request.opened.expires_at);
    }
    match answer {
        AuthzDecision::Denied { why, rules } => {
            decision.rules = rules.into();
            Ok(GateDecision::Denied(Box::new(DeniedDecision {
                why,
                decision,
            })))
        }
        AuthzDecision::Needs {
            profiles,
            delay,
            ttl_ms,
            rules,
        } => {
            // People have agreed to what is on record, and the rules ask for more because this call's evidence is older than the one on
            // record: newer evidence answers it, and the record, which all calls share, stays as it is.
            let is_met = own.is_some_and(|request| {
                let mut required = request.required_after(shown_ms).iter();
                let recorded = request.decision.as_ref();
                required.all(|need| tally.satisfied.contains(&need.name))
                    && recorded.is_some_and(|recorded| {
                        let recorded = recorded.input.evidence_ages();
                        question.evidence_ages.exceeds(recorded)
                    })
            });
            if is_met {
                let ages = question.evidence_ages;
                return Err(ApproveError::StaleEvidence { ages, rules });
            }
            shorten(&mut decision, &mut ttl, ttl_ms);
            decision.rules = rules.into();
            decision.required_profiles = profiles;
            decision.delay = delay;
            let defined: Vec<&StepUpProfile> = decision
                .required_profiles
                .iter()
                .filter_map(|n| bundle.profile(&n.name))
                .collect();
            if !obtainable {
                let why = match asks_more(&question, &decision.required_profiles) {
                    true => DeniedReason::ExecutorNotAllowed,
                    false => DeniedReason::NoEligibleApprover,
                };
                return Ok(GateDecision::Denied(Box::new(DeniedDecision {
                    why,
                    decision,
                })));
            }
            let wait = defined
                .iter()
                .map(|p| i64::from(p.wait_s))
                .min()
                .unwrap_or(0);
            // The agent has as long to come back after the delay.
            let delay = decision.delay.as_ref();
            let wait = wait.saturating_add(delay.map_or(0, |delay| delay.seconds.into()));
            let max_ttl = ttl.0.granted;
            Ok(GateDecision::Pending(Box::new(PendingDecision {
                decision,
                sensitive,
                max_ttl,
                uses,
                wait,
                not_after,
            })))
        }
        AuthzDecision::Allowed { ttl_ms, rules } => {
            shorten(&mut decision, &mut ttl, ttl_ms);
            decision.rules = rules.into();
            // INVARIANT (an advisory agent never holds a token): what people and rules allow it is a recommendation.
            if is_advisory {
                let request = waiting.ok_or(ApproveError::NotAllowed)?;
                return Ok(GateDecision::Recommended(request.opened.access_request));
            }
            let missing: Vec<ProfileRef> = handed_over
                .into_iter()
                .flat_map(|request| request.required_after(waited_ms))
                .filter(|need| !tally.satisfied.contains(&need.name))
                .cloned()
                .collect();
            if !missing.is_empty() {
                decision.required_profiles = missing;
                return Ok(GateDecision::Pending(Box::new(PendingDecision {
                    decision,
                    sensitive,
                    max_ttl: ttl.0.granted,
                    uses,
                    wait: 0,
                    not_after,
                })));
            }
            // INVARIANT (what a fact ends is over with its time): no token outlives the value that it was issued under. People are asked
            // without it: another value may stand once they agree.
            if let Some(ends_at) = named.ends_at {
                ttl.limit("fact", ends_at.since(now).div_euclid(1000));
                if ttl.0.granted <= 0 {
                    return Err(ApproveError::NoTime("fact"));
                }
                decision.input.ttl_ms = ttl.0.granted.saturating_mul(1000);
                decision.ttl = ttl.0.clone();
            }
            decision.input.recommender_counts = recommender_counts;
            let approval = waiting
                .filter(|_| !tally.satisfied.is_empty())
                .map(|request| ApprovalClaim {
                    access_request: request.opened.access_request,
                    profiles: tally.satisfied.iter().cloned().collect(),
                    at: tally.last_at.unwrap_or(now).secs(),
                });
            let not_after = tally.not_after.map_or(not_after, |t| t.min(not_after));
            // A token is durable before it expires, or is decided anew.
            let expires_at = Timestamp::from_secs(now.secs() + ttl.0.granted);
            let not_after = not_after.min(expires_at);
            let consumes = waiting.map(|request| request.opened.access_request);
            let ttl = ttl.0.granted;
            let action = terms.action.clone();
            Ok(GateDecision::Approved(Box::new(Approved {
                verified,
                action,
                sensitive,
                uses,
                ttl,
                approval,
                consumes,
                decision,
                not_after,
            })))
        }
    }
}

/// Records a TTL that the rules shortened.
fn shorten(decision: &mut crate::model::DecisionRecord, ttl: &mut Ttl, allowed_ms: i64) {
    if allowed_ms < decision.input.ttl_ms {
        ttl.limit("rules", allowed_ms.div_euclid(1000));
    }
    decision.input.ttl_ms = ttl.0.granted.saturating_mul(1000);
    decision.ttl = ttl.0.clone();
}

struct Ttl(TtlBreakdown);

impl Ttl {
    fn requested(seconds: i64) -> Self {
        Self(TtlBreakdown {
            requested: seconds,
            limits: Vec::new(),
            granted: seconds,
        })
    }

    fn limit(&mut self, by: &str, seconds: i64) {
        self.0.limits.push(TtlLimit {
            source: by.into(),
            seconds,
        });
        self.0.granted = self.0.granted.min(seconds);
    }
}

impl<'r> Approved<'r> {
    /// The pass of gate 1.
    pub const fn verified(&self) -> &Verified<'r> {
        &self.verified
    }

    /// The one approved action.
    pub const fn action(&self) -> &Action {
        &self.action
    }

    /// Names of parameters that the token holds as commitments.
    pub const fn sensitive(&self) -> &BTreeSet<String> {
        &self.sensitive
    }

    /// How often the token may be used; `None` without a limit.
    pub const fn uses(&self) -> Option<u32> {
        self.uses
    }

    /// Lifetime of the token, in seconds.
    pub const fn ttl(&self) -> i64 {
        self.ttl
    }

    /// The approval by votes, if one was needed.
    pub const fn approval(&self) -> Option<&ApprovalClaim> {
        self.approval.as_ref()
    }

    /// The access request the grant consumes.
    pub const fn consumes(&self) -> Option<AccessRequestId> {
        self.consumes
    }

    /// The decision, for the record.
    pub const fn decision(&self) -> &crate::model::DecisionRecord {
        &self.decision
    }

    /// The deadline for recording the grant.
    pub const fn not_after(&self) -> Timestamp {
        self.not_after
    }
}
