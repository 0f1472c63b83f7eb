//! Events of agents counted by the minute, for the counts that rules read.
//!
//! In: entries. Out: how many events of a kind there were in a window, for an agent, an owner or everyone, by action. Every event is
//! counted, also of kinds that no bundle declares a count for, so that the count of a new bundle begins with the events before it.

use std::collections::VecDeque;
use std::sync::Arc;

use serde_json::{Value, json};

use super::concurrent_map::ArcMap;
use super::{AccessRequest, State, sorted};
use crate::model::*;
use crate::policy::{DeclaredCount, PolicyBundle};

/// Minutes with events, oldest first, and how many each has.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
#[serde(transparent)]
pub(super) struct Minutes(VecDeque<(i64, u32)>);

/// Counted events.
#[derive(Debug, Default)]
pub(super) struct EventCounts {
    /// All events.
    all: ArcMap<(CountKind, CountSubject, ActionName), Minutes>,
    /// Those of decisions whose rules read the count, by which its stream moved.
    moved: ArcMap<CountKey, Minutes>,
}

/// What an entry is counted as.
#[derive(Debug)]
pub(super) struct CountedEvent {
    kinds: Vec<CountKind>,
    agent: AgentId,
    owner: PersonId,
    action: ActionName,
}

/// Minutes that are kept: those of the longest window, and an hour for a clock that is behind.
const MINUTES_KEPT: i64 = COUNT_WINDOW_MAX_S as i64 / 60 + 60;

impl Minutes {
    fn add(&mut self, minute: i64) {
        match self.0.back_mut() {
            Some((last, events)) if *last >= minute => *events = events.saturating_add(1),
            _ => self.0.push_back((minute, 1)),
        }
        self.forget(minute);
    }

    /// Forgets what no window reaches back to.
    fn forget(&mut self, now: i64) {
        while self
            .0
            .front()
            .is_some_and(|(minute, _)| *minute < now - MINUTES_KEPT)
        {
            self.0.pop_front();
        }
    }

    /// Events from a minute on.
    fn since(&self, first: i64) -> u32 {
        let newest = self.0.iter().rev();
        let inside = newest.take_while(|(minute, _)| *minute >= first);
        inside.fold(0, |sum, (_, events)| sum.saturating_add(*events))
    }

    fn total(&self) -> u64 {
        self.0.iter().map(|(_, events)| u64::from(*events)).sum()
    }
}

impl EventCounts {
    fn add(&self, event: &CountedEvent, minute: i64) {
        for kind in &event.kinds {
            for subject in [
                CountSubject::Everyone,
                CountSubject::Agent(event.agent.clone()),
                CountSubject::Owner(event.owner.clone()),
            ] {
                let key = (*kind, subject, event.action.clone());
                self.all
                    .update_or_default(key, |minutes: &mut Minutes| minutes.add(minute));
            }
        }
    }

    /// Events of a count from a minute on.
    fn since(&self, declared: &DeclaredCount, key: &CountKey, first: i64) -> u32 {
        let of_action = |action: &ActionName| {
            let of = (declared.of, key.subject.clone(), action.clone());
            self.all.get(&of).map_or(0, |minutes| minutes.since(first))
        };
        let actions = declared.actions.iter();
        let counted = actions.filter(|action| key.action.as_ref().is_none_or(|one| one == *action));
        counted.map(of_action).fold(0, u32::saturating_add)
    }

    /// Forgets what no window reaches back to, of agents and actions that no longer ask, too.
    fn forget(&self, minute: i64) {
        forget(&self.all, minute);
        forget(&self.moved, minute);
    }

    pub(super) fn canonical_snapshot(&self) -> Value {
        let all = sorted(self.all.all()).into_iter();
        let all: Vec<Value> = all.map(|(key, of)| json!([key, *of])).collect();
        let moved = sorted(self.moved.all()).into_iter();
        let moved: Vec<Value> = moved
            .map(|(key, of)| json!([key.to_string(), *of]))
            .collect();
        json!([all, moved])
    }

    /// How often each count's stream has moved, for the check that nothing else moves it.
    pub(super) fn moves(&self) -> Vec<(CountKey, u64)> {
        let all = sorted(self.moved.all()).into_iter();
        all.map(|(key, minutes)| (key, minutes.total())).collect()
    }
}

fn forget<K: Eq + std::hash::Hash + Clone>(all: &ArcMap<K, Minutes>, now: i64) {
    for (key, mut minutes) in all.all() {
        let before = minutes.0.len();
        let kept = Arc::make_mut(&mut minutes);
        kept.forget(now);
        if kept.0.is_empty() {
            all.remove(&key);
        } else if kept.0.len() < before {
            all.insert(key, kept.clone());
        }
    }
}

impl State {
    /// What an event is counted as in the state before it.
    pub(super) fn counted_event(&self, event: &Event) -> Option<CountedEvent> {
        match event {
            Event::RequestDenied(f) => {
                // What is not in the catalogue, or frozen, was not answered by rules; what waits counted when it was opened.
                if f.decision.is_none()
                    || f.waiting.is_some()
                    || has_reason(f, DeniedReason::Frozen)
                {
                    return None;
                }
                let task = self.tasks.get(&f.task)?;
                let denied = !has_reason(f, DeniedReason::NoEligibleApprover);
                let denied = denied.then_some(CountKind::Denials);
                let kinds = [CountKind::Requests].into_iter().chain(denied).collect();
                self.counted(kinds, &task.opened.agent, &f.action.action)
            }
            Event::AccessRequestOpened(f) => {
                self.counted(vec![CountKind::Requests], f.agent()?, &f.action.action)
            }
            Event::VoteCast(f) => {
                let request = self.requests.get(&f.access_request)?;
                let opened = &request.opened;
                let is_denial = f.verdict == Verdict::Deny;
                let kinds = is_denial.then(|| vec![CountKind::Denials])?;
                self.counted(kinds, opened.agent()?, &opened.action.action)
            }
            Event::TokenIssued(f) => {
                let consumed = f.consumed.and_then(|id| self.requests.get(&id));
                let own = consumed.filter(|request| request.opened.task() == Some(f.task));
                let request = own.is_none().then_some(CountKind::Requests);
                let kinds = request.into_iter().chain([CountKind::Tokens]).collect();
                self.counted(kinds, &f.agent, &f.action.action)
            }
            Event::TokenConsumed(f) => {
                let issued = &self.grants.get(&f.jti)?.issued;
                self.counted(vec![CountKind::Uses], &issued.agent, &issued.action.action)
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
            | Event::TaskOpened(_)
            | Event::LeasesExtended(_)
            | Event::TaskEnded(_)
            | Event::AccessRequestReassessed(_)
            | Event::AccessRequestClosed(_)
            | Event::VoteRefused(_)
            | Event::ApproverInvited(_)
            | Event::ApproverEnrolled(_)
            | Event::PasskeyConfirmed(_)
            | Event::ApproverKeysRevoked(_)
            | Event::TokenReissued(_)
            | Event::GrantsEnded(_)
            | Event::RefusalsCounted(_) => None,
        }
    }

    fn counted(
        &self,
        kinds: Vec<CountKind>,
        agent: &AgentId,
        action: &ActionName,
    ) -> Option<CountedEvent> {
        // An agent that is no longer registered has no owner, and asks for nothing.
        let owner = self.owner_now(agent)?;
        Some(CountedEvent {
            kinds,
            agent: agent.clone(),
            owner,
            action: action.clone(),
        })
    }

    /// Whether an event raises a count of the bundle in force.
    pub(super) fn raises(&self, event: &Event, declared: &DeclaredCount, key: &CountKey) -> bool {
        self.counted_event(event).is_some_and(|event| {
            let CountedEvent {
                kinds,
                agent,
                owner,
                action,
            } = event;
            kinds.contains(&declared.of)
                && declared.actions.contains(&action)
                && declared.key(&agent, &owner, &action) == *key
        })
    }

    /// Adds an entry's event, and what its streams say of the counts that its decision read.
    pub(super) fn apply_counted(&self, event: Option<&CountedEvent>, entry: &Entry) {
        let minute = entry.at.millis().div_euclid(COUNT_STEP_MS);
        if let Some(event) = event {
            self.event_counts.add(event, minute);
        }
        for (stream, _) in &entry.write_set {
            if let Stream::Count(key) = stream {
                let moved = &self.event_counts.moved;
                moved.update_or_default((**key).clone(), |minutes: &mut Minutes| {
                    minutes.add(minute);
                });
            }
        }
    }

    /// A bundle that declares a count otherwise has another count of that name.
    pub(super) fn apply_declared_counts(
        &self,
        before: Option<&PolicyBundle>,
        bundle: &PolicyBundle,
        at: Timestamp,
    ) {
        for (key, _) in self.event_counts.moved.all() {
            let was = before.and_then(|before| before.count(&key.name));
            if was != bundle.count(&key.name) {
                self.event_counts.moved.remove(&key);
            }
        }
        self.event_counts
            .forget(at.millis().div_euclid(COUNT_STEP_MS));
    }

    /// A count of the bundle in force, and which one of it is about this agent and action.
    pub(super) fn count_key(
        &self,
        name: &CountName,
        agent: &AgentId,
        action: &ActionName,
    ) -> Option<(DeclaredCount, CountKey)> {
        let declared = self.rules()?.bundle.count(name)?.clone();
        let key = declared.key(agent, &self.owner_now(agent)?, action);
        Some((declared, key))
    }

    /// The value of a count at a moment, without the request that is decided, where it waits.
    pub(super) fn count_value(
        &self,
        declared: &DeclaredCount,
        key: &CountKey,
        own: Option<&AccessRequest>,
        now: Timestamp,
    ) -> u32 {
        let first = first_minute(now, declared.within_s);
        let own = own.is_some_and(|own| is_counted(own, declared, key, first));
        let all = self.event_counts.since(declared, key, first);
        all.saturating_sub(u32::from(own))
    }

    /// The values that a decision may have read: what happened since it read them counts only where the rules of that read the count, too.
    pub(super) fn count_bounds(
        &self,
        declared: &DeclaredCount,
        key: &CountKey,
        own: Option<&AccessRequest>,
        now: Timestamp,
    ) -> std::ops::RangeInclusive<u32> {
        let first = first_minute(now, declared.within_s);
        let own_counts = own.is_some_and(|own| is_counted(own, declared, key, first));
        let moved = self.event_counts.moved.get(key);
        let moved = moved.map_or(0, |minutes| minutes.since(first));
        moved.saturating_sub(u32::from(own_counts))..=self.count_value(declared, key, own, now)
    }
}

/// Whether the opening of an access request is one of the events of a count.
fn is_counted(own: &AccessRequest, declared: &DeclaredCount, key: &CountKey, first: i64) -> bool {
    let opened = &own.opened;
    let action = &opened.action.action;
    let minute = own.opened_at.millis().div_euclid(COUNT_STEP_MS);
    declared.of == CountKind::Requests
        && declared.actions.contains(action)
        && minute >= first
        && opened
            .by_agent()
            .is_some_and(|by| declared.key(&by.agent, &by.owner, action) == *key)
}

fn has_reason(denied: &RequestDenied, reason: DeniedReason) -> bool {
    denied.reason == reason.as_str()
}
