//! Decision statistics: counters about agents, approvers and rules, shown to people who decide and to reviewers.
//!
//! Computed from entries, so that every node counts the same (INV-9), and bounded: each map evicts its least recently
//! updated keys. INVARIANT (stats decide nothing): no gate reads them, so an evicted counter, or one from before a change
//! of rules, changes no decision.
//!
//! INVARIANT (no agent makes itself familiar): the history behind anomalies grows only by decided requests: a token was
//! issued, or a person denied it. Undecided requests, which cost an agent nothing, are counted and never part of it.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use serde::Serialize;
use serde_json::{Value, json};

use super::action_stats::ActionStats;
use super::anomaly::{self, Anomaly};
use super::counters::{BoundedMap, add};
pub use super::counters::{DURATIONS_MAX, DurationWindow};
use super::{AccessRequest, State, StoredStatus, sorted};
use crate::model::*;

/// All counters. The journal's writer updates them; readers get copies.
#[derive(Debug, Default)]
pub struct DecisionStats(RwLock<Counters>);

#[derive(Debug, Default)]
struct Counters {
    agents: BoundedMap<AgentId, AgentStats, AGENTS_MAX>,
    actions: BoundedMap<(AgentId, ActionName), ActionStats, ACTION_STATS_MAX>,
    approver_actions:
        BoundedMap<(PersonId, AgentId, ActionName), ApproverActionStats, APPROVER_ACTIONS_MAX>,
    approvers: BoundedMap<PersonId, ApproverStats, APPROVERS_MAX>,
    rules: BoundedMap<Arc<str>, RuleStats, RULES_MAX>,
    anomalies: BoundedMap<AccessRequestId, Arc<[Anomaly]>, ANOMALIES_MAX>,
}

/// Most agents with counters.
pub const AGENTS_MAX: usize = 16_384;
/// Most pairs of an agent and an action with counters.
pub const ACTION_STATS_MAX: usize = 8_192;
/// Most triples of an approver, an agent and an action with counters.
pub const APPROVER_ACTIONS_MAX: usize = 65_536;
/// Most approvers with counters.
pub const APPROVERS_MAX: usize = 4_096;
/// Most rules with counters.
pub const RULES_MAX: usize = 4_096;
/// Most access requests whose anomalies at opening are kept.
pub const ANOMALIES_MAX: usize = 65_536;
/// Counters of one agent, over all actions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct AgentStats {
    /// Requests that the policy answered.
    pub requested: u64,
    /// Decided requests: a token was issued, or a person denied it.
    pub decided: u64,
    /// Latest verification of its evidence that an entry records.
    pub attested_at: Option<Timestamp>,
}

/// Votes of one approver on one agent's requests for one action.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ApproverActionStats {
    /// Votes to approve.
    pub approvals: u64,
    /// Votes to deny.
    pub denials: u64,
}

/// Counters of one approver.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ApproverStats {
    /// Votes to approve.
    pub approvals: u64,
    /// Of these, votes by a registered key; the others are by passkey.
    pub approvals_by_key: u64,
    /// Votes to deny.
    pub denials: u64,
    /// Time of the last vote.
    pub last_at: Option<Timestamp>,
    /// Seconds from opening to vote, for the last votes.
    pub decide_times: DurationWindow,
}

/// Counters of one rule `@id`, across all versions of its text.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RuleStats {
    /// Decisions of gate 2 that it determined.
    pub hits: u64,
    /// Access requests whose opening decision it determined.
    pub requested: u64,
    /// Those that people approved and a token was issued for.
    pub approved: u64,
    /// Of these, those with a vote to approve by a registered key.
    pub approved_by_key: u64,
    /// Those that a person denied.
    pub denied: u64,
    /// Those that expired undecided.
    pub expired: u64,
    /// Time of the last decision that it determined.
    pub last_at: Option<Timestamp>,
    /// Seconds from opening to vote, for the last votes on them.
    pub decide_times: DurationWindow,
}

/// Whether decisions look like rubber-stamping: at least [`RUBBER_STAMP_DECIDED_MIN`] of them, more than
/// [`RUBBER_STAMP_APPROVED_PERCENT`] % approvals, and a median below [`RUBBER_STAMP_MEDIAN_S`] seconds.
pub fn is_rubber_stamp(approvals: u64, denials: u64, median_s: Option<u32>) -> bool {
    let decided = approvals.saturating_add(denials);
    decided >= RUBBER_STAMP_DECIDED_MIN
        && approvals.saturating_mul(100) > decided.saturating_mul(RUBBER_STAMP_APPROVED_PERCENT)
        && median_s.is_some_and(|seconds| seconds < RUBBER_STAMP_MEDIAN_S)
}

/// Fewest decisions that can look like rubber-stamping.
pub const RUBBER_STAMP_DECIDED_MIN: u64 = 20;
/// Share of approvals, in percent, above which decisions look like rubber-stamping.
pub const RUBBER_STAMP_APPROVED_PERCENT: u64 = 95;
/// Median time to decide, in seconds, below which decisions look like rubber-stamping.
pub const RUBBER_STAMP_MEDIAN_S: u32 = 3;

impl DecisionStats {
    /// Counts an entry that `state` has not applied yet.
    pub(super) fn record(&self, entry: &Entry, state: &State) {
        let at = entry.at;
        match &entry.event {
            Event::TaskOpened(f) => {
                self.write().record_evidence(&f.agent, &f.evidence, entry);
            }
            Event::RequestDenied(f) => {
                // Without a decision the action is not in the catalogue: an agent cannot create counters by inventing names.
                let (Some(decision), Some(task)) = (&f.decision, state.tasks.get(&f.task)) else {
                    return;
                };
                let mut counts = self.write();
                let requester = (&task.opened.agent, &f.evidence);
                let action = counts.record_request(requester, &f.action, entry);
                add(&mut action.denied_by_rules);
                counts.record_rules(&decision.rules, entry);
            }
            Event::AccessRequestOpened(f) => {
                // A proposal by a person is no agent's request.
                let Some(by) = f.by_agent() else {
                    return;
                };
                let mut counts = self.write();
                let key = (by.agent.clone(), f.action.action.clone());
                let agent = counts.agents.get(&by.agent);
                let decided = agent.map_or(0, |agent| agent.decided);
                let before = counts.actions.get(&key);
                let anomalies = anomaly::at_open(before, decided, &f.action.target, at);
                *counts.anomalies.entry(&f.access_request, entry.index) = anomalies.into();
                counts.record_request((&by.agent, &by.evidence), &f.action, entry);
                counts.record_rules(&by.decision.rules, entry);
                counts.update_rules(&by.decision.rules, entry, |rule| add(&mut rule.requested));
            }
            Event::VoteCast(f) => {
                // A vote on a closed access request changes no counter, as it changes no state.
                let request = state.requests.get(&f.access_request);
                if let Some(request) = request.filter(|r| r.status == StoredStatus::Pending) {
                    self.write().record_vote(f, &request, entry);
                }
            }
            Event::AccessRequestClosed(f) if f.cause == CloseCause::Expired => {
                let request = state.requests.get(&f.access_request);
                if let Some(request) = request.filter(|r| r.status == StoredStatus::Pending) {
                    let opened = &request.opened;
                    let Some(agent) = opened.agent() else {
                        return;
                    };
                    let mut counts = self.write();
                    let key = (agent.clone(), opened.action.action.clone());
                    add(&mut counts.actions.entry(&key, entry.index).expired);
                    counts.update_rules(request.rules(), entry, |rule| add(&mut rule.expired));
                }
            }
            Event::TokenIssued(f) => {
                let mut counts = self.write();
                let consumed = f.consumed.and_then(|id| state.requests.get(&id));
                // What people decided about a recommendation is the history of the agent that made it.
                let recommended_by = consumed.as_ref().and_then(|r| r.opened.agent());
                let decided_for = recommended_by.unwrap_or(&f.agent).clone();
                let requested_at = match &consumed {
                    // Counted when the access request was opened.
                    Some(request) => {
                        counts.record_evidence(&f.agent, &f.evidence, entry);
                        request.opened_at
                    }
                    None => {
                        counts.record_request((&f.agent, &f.evidence), &f.action, entry);
                        at
                    }
                };
                let action = counts.record_decided(&decided_for, &f.action, requested_at, entry);
                add(&mut action.granted);
                if let (Some(request), true) = (&consumed, f.approval.is_some()) {
                    add(&mut action.approved);
                    let approval = request
                        .votes
                        .iter()
                        .rfind(|vote| vote.cast.verdict == Verdict::Approve);
                    action.last_approved = approval.map(|vote| (vote.at, vote.cast.voter.clone()));
                    let rules = request.rules();
                    let by_key = request.votes.iter().any(|vote| {
                        vote.cast.verdict == Verdict::Approve
                            && vote.cast.method() == VoteMethod::Key
                    });
                    counts.update_rules(rules, entry, |rule| {
                        add(&mut rule.approved);
                        if by_key {
                            add(&mut rule.approved_by_key);
                        }
                    });
                }
                counts.record_rules(&f.decision.rules, entry);
            }
            Event::EpochStarted(_)
            | Event::TrustBundleChanged(_)
            | Event::KeyPublished(_)
            | Event::PolicyApplied(_)
            | Event::AgentSuspended(_)
            | Event::AgentResumed(_)
            | Event::Frozen(_)
            | Event::Unfrozen(_)
            | Event::FactSet(_)
            | Event::LeasesExtended(_)
            | Event::TaskEnded(_)
            | Event::ApproverInvited(_)
            | Event::ApproverEnrolled(_)
            | Event::PasskeyConfirmed(_)
            | Event::ApproverKeysRevoked(_)
            | Event::VoteRefused(_)
            | Event::AccessRequestReassessed(_)
            | Event::AccessRequestClosed(_)
            | Event::TokenReissued(_)
            | Event::TokenConsumed(_)
            | Event::GrantsEnded(_)
            | Event::RefusalsCounted(_) => {}
        }
    }

    /// Counters of an agent; zero for an unknown one.
    pub fn agent(&self, agent: &AgentId) -> AgentStats {
        self.read().agents.get(agent).cloned().unwrap_or_default()
    }

    /// Counters of an agent and an action; `None` without a request, or when evicted.
    pub fn action_stats(&self, agent: &AgentId, action: &ActionName) -> Option<ActionStats> {
        let key = (agent.clone(), action.clone());
        self.read().actions.get(&key).cloned()
    }

    /// Counters of every action of an agent, sorted by action.
    pub fn actions_of_agent(&self, agent: &AgentId) -> Vec<(ActionName, ActionStats)> {
        let read = self.read();
        let all = read.actions.all().filter(|((of, _), _)| of == agent);
        let all = all.map(|((_, action), stats)| (action.clone(), stats.clone()));
        sorted(all.collect())
    }

    /// Votes of an approver on an agent's requests for an action.
    pub fn approver_action(
        &self,
        approver: &PersonId,
        agent: &AgentId,
        action: &ActionName,
    ) -> ApproverActionStats {
        let key = (approver.clone(), agent.clone(), action.clone());
        self.read()
            .approver_actions
            .get(&key)
            .copied()
            .unwrap_or_default()
    }

    /// Counters of an approver; zero without a vote.
    pub fn approver(&self, approver: &PersonId) -> ApproverStats {
        let read = self.read();
        read.approvers.get(approver).cloned().unwrap_or_default()
    }

    /// Counters of every approver who voted, sorted by id.
    pub fn approvers(&self) -> Vec<(PersonId, ApproverStats)> {
        let read = self.read();
        let all = read.approvers.all();
        sorted(all.map(|(id, f)| (id.clone(), f.clone())).collect())
    }

    /// Counters of a rule by its `@id`; zero for an unknown one.
    pub fn rule(&self, id: &str) -> RuleStats {
        self.read().rules.get(id).cloned().unwrap_or_default()
    }

    /// Anomalies of an access request at its opening; `None` when they were evicted.
    pub fn anomalies(&self, id: &AccessRequestId) -> Option<Arc<[Anomaly]>> {
        self.read().anomalies.get(id).cloned()
    }

    /// All counters as one JSON value, for tests (INV-9).
    pub(super) fn canonical_snapshot(&self) -> Value {
        let read = self.read();
        json!({
            "agents": read.agents.canonical_snapshot(), "actions": read.actions.canonical_snapshot(), "approver_actions": read.approver_actions.canonical_snapshot(),
            "approvers": read.approvers.canonical_snapshot(), "rules": read.rules.canonical_snapshot(), "anomalies": read.anomalies.canonical_snapshot(),
        })
    }

    fn read(&self) -> RwLockReadGuard<'_, Counters> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Counters> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counters {
    fn record_evidence(
        &mut self,
        agent: &AgentId,
        evidence: &EvidenceFacts,
        entry: &Entry,
    ) -> &mut AgentStats {
        let agent = self.agents.entry(agent, entry.index);
        agent.attested_at = agent.attested_at.max(Some(evidence.verified_at));
        agent
    }

    fn record_request(
        &mut self,
        (agent, evidence): (&AgentId, &EvidenceFacts),
        action: &ActionOnRecord,
        entry: &Entry,
    ) -> &mut ActionStats {
        add(&mut self.record_evidence(agent, evidence, entry).requested);
        let key = (agent.clone(), action.action.clone());
        let stats = self.actions.entry(&key, entry.index);
        stats.record_request(entry.at);
        stats
    }

    /// Counts a request made at `requested_at` that this entry decides.
    fn record_decided(
        &mut self,
        agent: &AgentId,
        action: &ActionOnRecord,
        requested_at: Timestamp,
        entry: &Entry,
    ) -> &mut ActionStats {
        add(&mut self.agents.entry(agent, entry.index).decided);
        let key = (agent.clone(), action.action.clone());
        let stats = self.actions.entry(&key, entry.index);
        stats.record_decided(requested_at, &action.target);
        stats
    }

    fn record_vote(&mut self, f: &VoteCast, request: &AccessRequest, entry: &Entry) {
        let opened = &request.opened;
        let took_ms = entry.at.since(request.opened_at).max(0);
        let seconds = u32::try_from(took_ms / 1000).unwrap_or(u32::MAX);
        let rules = request.rules();
        let approver = self.approvers.entry(&f.voter, entry.index);
        approver.last_at = Some(entry.at);
        approver.decide_times.push(seconds);
        let Some(agent) = opened.agent() else {
            match f.verdict {
                Verdict::Approve => {
                    add(&mut approver.approvals);
                    if f.method() == VoteMethod::Key {
                        add(&mut approver.approvals_by_key);
                    }
                }
                Verdict::Deny => add(&mut approver.denials),
            }
            return;
        };
        let key = (f.voter.clone(), agent.clone(), opened.action.action.clone());
        let votes = self.approver_actions.entry(&key, entry.index);
        match f.verdict {
            Verdict::Approve => {
                add(&mut approver.approvals);
                if f.method() == VoteMethod::Key {
                    add(&mut approver.approvals_by_key);
                }
                add(&mut votes.approvals);
                self.update_rules(rules, entry, |rule| rule.decide_times.push(seconds));
            }
            Verdict::Deny => {
                add(&mut approver.denials);
                add(&mut votes.denials);
                let requested_at = request.opened_at;
                let action = self.record_decided(agent, &opened.action, requested_at, entry);
                add(&mut action.denied);
                action.last_denied = Some((entry.at, f.voter.clone()));
                self.update_rules(rules, entry, |rule| {
                    rule.decide_times.push(seconds);
                    add(&mut rule.denied);
                });
            }
        }
    }

    fn record_rules(&mut self, rules: &[RuleRef], entry: &Entry) {
        self.update_rules(rules, entry, |rule| {
            add(&mut rule.hits);
            rule.last_at = Some(entry.at);
        });
    }

    fn update_rules(&mut self, rules: &[RuleRef], entry: &Entry, change: impl Fn(&mut RuleStats)) {
        for rule in rules {
            change(self.rules.entry(&rule.id, entry.index));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rubber_stamp_detection() {
        assert!(is_rubber_stamp(20, 0, Some(2)));
        assert!(is_rubber_stamp(96, 4, Some(0)));
        assert!(!is_rubber_stamp(19, 0, Some(2)), "too few");
        assert!(!is_rubber_stamp(95, 5, Some(2)), "95 % is not above 95 %");
        assert!(!is_rubber_stamp(20, 0, Some(3)), "slow enough to read");
        assert!(!is_rubber_stamp(20, 0, None));
    }
}
