//! What was asked and decided before, counted: what people are shown when they decide, and what shows how they decide.
//!
//! Folded from entries like everything here, so that every node counts the same (law 9), and bounded: of what grows with
//! agents, actions and approvers the longest untouched is given up. INVARIANT (figures decide nothing): no gate reads them,
//! so what was given up, or counts from before a change of rules, can mislead nobody but a reader.
//!
//! INVARIANT (no agent makes itself familiar): what tells the usual from the unusual grows only by asks that were decided: a
//! token was given, or a person said no. Asks alone, which cost an agent nothing, are counted, never learned from.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use serde::Serialize;
use serde_json::{Value, json};

use super::unusual::{self, Oddity};
use super::{AccessRequest, AccessStatus, State, sorted};
use crate::model::*;

/// Everything that is counted. One writer folds; who reads takes copies.
#[derive(Debug, Default)]
pub struct Figures(RwLock<Counts>);

#[derive(Debug, Default)]
struct Counts {
    agents: Kept<AgentId, AgentFigures, AGENTS_MAX>,
    habits: Kept<(AgentId, ActionName), Habit, HABITS_MAX>,
    opinions: Kept<(PersonId, AgentId, ActionName), Opinion, OPINIONS_MAX>,
    approvers: Kept<PersonId, ApproverFigures, APPROVERS_MAX>,
    rules: Kept<Arc<str>, RuleFigures, RULES_MAX>,
    oddities: Kept<AccessRequestId, Arc<[Oddity]>, ODDITIES_MAX>,
}

/// Agents that are counted.
pub const AGENTS_MAX: usize = 16_384;
/// Pairs of an agent and an action whose habits are kept.
pub const HABITS_MAX: usize = 8_192;
/// Triples of an approver, an agent and an action whose yes and no are counted.
pub const OPINIONS_MAX: usize = 65_536;
/// Approvers that are counted.
pub const APPROVERS_MAX: usize = 4_096;
/// Rules that are counted.
pub const RULES_MAX: usize = 4_096;
/// Access requests of which it is remembered what was unusual when they were opened.
pub const ODDITIES_MAX: usize = 65_536;
/// Decide times that make a median: odd, so that one of them is it.
pub const TIMES_MAX: usize = 101;
/// Days with asks, today apart, that make a median day.
pub const DAYS_MAX: usize = 31;
/// Different targets of a habit that are told apart; with more, none is called new.
pub const TARGETS_MAX: usize = 32;

/// An agent, whatever it asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct AgentFigures {
    /// Times it asked for an action and rules answered.
    pub asked: u64,
    /// Those of them that were decided: a token was given, or a person said no.
    pub decided: u64,
    /// When evidence of it was last verified, as far as entries tell.
    pub attested_at: Option<Timestamp>,
}

/// One agent and one action.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Habit {
    /// Times it was asked for and rules answered, whatever they said. A retry with an unchanged answer is no ask.
    pub asked: u64,
    /// Tokens given.
    pub granted: u64,
    /// Times rules said no.
    pub refused: u64,
    /// Access requests that people said yes to and a token was given for.
    pub approved: u64,
    /// Access requests that a person said no to.
    pub denied: u64,
    /// Access requests that nobody decided in time.
    pub expired: u64,
    /// When people last approved one, and whose yes came last.
    pub last_approved: Option<(Timestamp, PersonId)>,
    /// When a person last denied one, and who.
    pub last_denied: Option<(Timestamp, PersonId)>,
    /// When it was first asked for.
    pub first_at: Option<Timestamp>,
    /// When it was last asked for.
    pub last_at: Option<Timestamp>,
    /// Decided asks by the hour of the day at which they were asked, UTC.
    pub hours: [u32; 24],
    /// The last days with asks, oldest first: days since 1970-01-01 UTC, and asks. At most [`DAYS_MAX`] and today.
    pub days: VecDeque<(i64, u32)>,
    /// Targets of decided asks.
    pub targets: Targets,
}

/// The different targets of a habit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Targets {
    /// All of them.
    All(Vec<Target>),
    /// More than [`TARGETS_MAX`].
    Many,
}

impl Default for Targets {
    fn default() -> Self {
        Self::All(Vec::new())
    }
}

impl Habit {
    /// Asks that were decided: a token was given, or a person said no.
    pub fn decided(&self) -> u64 {
        self.granted.saturating_add(self.denied)
    }

    /// Asks on the day of this moment, UTC.
    pub fn on_day_of(&self, now: Timestamp) -> u32 {
        let today = day_of(now);
        let of_today = self.days.iter().find(|(day, _)| *day == today);
        of_today.map_or(0, |(_, asks)| *asks)
    }

    /// The middle of the asks of days before this one that had any, and how many such days there are.
    pub fn median_day_before(&self, now: Timestamp) -> (Option<u32>, usize) {
        let today = day_of(now);
        let before = self.days.iter().filter(|(day, _)| *day < today);
        let mut asks: Vec<u32> = before.map(|(_, asks)| *asks).collect();
        (middle(&mut asks), asks.len())
    }

    pub(super) fn ask_at(&mut self, at: Timestamp) {
        add(&mut self.asked);
        self.first_at.get_or_insert(at);
        self.last_at = Some(at);
        match self.days.back_mut() {
            // Entries never go back in time.
            Some((day, asks)) if *day == day_of(at) => *asks = asks.saturating_add(1),
            Some(_) | None => {
                self.days.push_back((day_of(at), 1));
                if self.days.len() > DAYS_MAX + 1 {
                    self.days.pop_front();
                }
            }
        }
    }

    /// Learns from an ask at `asked_at` that was decided.
    pub(super) fn learn(&mut self, asked_at: Timestamp, target: &Target) {
        if let Some(hour) = self.hours.get_mut(hour_of(asked_at)) {
            *hour = hour.saturating_add(1);
        }
        if let Targets::All(known) = &mut self.targets
            && !known.contains(target)
        {
            if known.len() < TARGETS_MAX {
                known.push(target.clone());
            } else {
                self.targets = Targets::Many;
            }
        }
    }
}

/// What one approver said to one agent's asks for one action.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Opinion {
    /// Votes of yes.
    pub yes: u64,
    /// Votes of no.
    pub no: u64,
}

/// How an approver decides.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ApproverFigures {
    /// Votes of yes.
    pub yes: u64,
    /// Votes of no.
    pub no: u64,
    /// When the last vote was cast.
    pub last_at: Option<Timestamp>,
    /// How long the last votes took.
    pub times: Times,
}

/// A rule, by its `@id`, whatever its text was.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RuleFigures {
    /// Answers of gate 2 that it determined.
    pub hits: u64,
    /// Access requests that it had a part in.
    pub asked: u64,
    /// Those that people said yes to and a token was given for.
    pub approved: u64,
    /// Those that a person said no to.
    pub denied: u64,
    /// Those that nobody decided in time.
    pub expired: u64,
    /// When it last determined an answer.
    pub last_at: Option<Timestamp>,
    /// How long the last votes on them took.
    pub times: Times,
}

/// How long the last votes took, from the opening of the access request to the vote: at most [`TIMES_MAX`], in seconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Times(VecDeque<u32>);

impl Times {
    /// The middle one, in seconds; of an even number the lower of the two. `None` without any.
    pub fn median(&self) -> Option<u32> {
        middle(&mut self.0.iter().copied().collect::<Vec<_>>())
    }

    fn add(&mut self, seconds: u32) {
        if self.0.len() >= TIMES_MAX {
            self.0.pop_front();
        }
        self.0.push_back(seconds);
    }
}

/// Whether a share of yes and a median time look like nobody reads: at least [`STAMP_DECIDED_MIN`] decided, above
/// [`STAMP_APPROVED_PERCENT`] % of them with a yes, in less than [`STAMP_MEDIAN_S`] seconds.
pub fn rubber_stamp(yes: u64, no: u64, median_s: Option<u32>) -> bool {
    let decided = yes.saturating_add(no);
    decided >= STAMP_DECIDED_MIN
        && yes.saturating_mul(100) > decided.saturating_mul(STAMP_APPROVED_PERCENT)
        && median_s.is_some_and(|seconds| seconds < STAMP_MEDIAN_S)
}

/// Decisions below which nobody is said to rubber-stamp.
pub const STAMP_DECIDED_MIN: u64 = 20;
/// Share of yes, in percent, above which decisions look like rubber-stamping.
pub const STAMP_APPROVED_PERCENT: u64 = 95;
/// Median decide time, in seconds, below which decisions look like rubber-stamping.
pub const STAMP_MEDIAN_S: u32 = 3;

impl Figures {
    /// Counts an entry. `state` has not folded it yet.
    pub(super) fn on(&self, entry: &Entry, state: &State) {
        let at = entry.at;
        match &entry.fact {
            Event::TaskOpened(f) => {
                self.write().attest(&f.agent, &f.evidence, entry);
            }
            Event::RequestDenied(f) => {
                // Without a decision the action is none of the catalogue: no agent makes counters by inventing names.
                let (Some(decision), Some(task)) = (&f.decision, state.task(&f.task)) else {
                    return;
                };
                let mut counts = self.write();
                let asker = (&task.opened.agent, &f.evidence);
                let habit = counts.ask(asker, &f.action, entry);
                add(&mut habit.refused);
                counts.hit(&decision.rules, entry);
            }
            Event::AccessRequestOpened(f) => {
                let mut counts = self.write();
                let key = (f.agent.clone(), f.action.action.clone());
                let agent = counts.agents.get(&f.agent);
                let decided = agent.map_or(0, |agent| agent.decided);
                let before = counts.habits.get(&key);
                let odd = unusual::at_opening(before, decided, &f.action.target, at);
                *counts.oddities.touch(&f.access_request, entry.index) = odd.into();
                counts.ask((&f.agent, &f.evidence), &f.action, entry);
                counts.hit(&f.decision.rules, entry);
                counts.of_rules(&f.decision.rules, entry, |rule| add(&mut rule.asked));
            }
            Event::VoteCast(f) => {
                // A vote on what no longer waits changes nothing, here as in the fold.
                let request = state.access_request(&f.access_request);
                if let Some(request) = request.filter(|r| r.status == AccessStatus::Waiting) {
                    self.write().vote(f, &request, entry);
                }
            }
            Event::AccessRequestClosed(f) if f.cause == CloseCause::Expired => {
                let request = state.access_request(&f.access_request);
                if let Some(request) = request.filter(|r| r.status == AccessStatus::Waiting) {
                    let opened = &request.opened;
                    let mut counts = self.write();
                    let key = (opened.agent.clone(), opened.action.action.clone());
                    add(&mut counts.habits.touch(&key, entry.index).expired);
                    let rules = &opened.decision.rules;
                    counts.of_rules(rules, entry, |rule| add(&mut rule.expired));
                }
            }
            Event::TokenIssued(f) => {
                let mut counts = self.write();
                let consumed = f.consumed.and_then(|id| state.access_request(&id));
                let asked_at = match &consumed {
                    // It was counted when people were asked.
                    Some(request) => {
                        counts.attest(&f.agent, &f.evidence, entry);
                        request.opened_at
                    }
                    None => {
                        counts.ask((&f.agent, &f.evidence), &f.action, entry);
                        at
                    }
                };
                let habit = counts.decide(&f.agent, &f.action, asked_at, entry);
                add(&mut habit.granted);
                if let (Some(request), true) = (&consumed, f.approval.is_some()) {
                    add(&mut habit.approved);
                    let yes = request
                        .votes
                        .iter()
                        .rfind(|vote| vote.cast.verdict == Verdict::Approve);
                    habit.last_approved = yes.map(|vote| (vote.at, vote.cast.voter.clone()));
                    let rules = &request.opened.decision.rules;
                    counts.of_rules(rules, entry, |rule| add(&mut rule.approved));
                }
                counts.hit(&f.decision.rules, entry);
            }
            Event::EpochStarted(_)
            | Event::TrustBundleChanged(_)
            | Event::KeyPublished(_)
            | Event::PolicyApplied(_)
            | Event::AgentSuspended(_)
            | Event::AgentResumed(_)
            | Event::Frozen(_)
            | Event::Unfrozen(_)
            | Event::LeasesExtended(_)
            | Event::TaskEnded(_)
            | Event::ApproverInvited(_)
            | Event::ApproverEnrolled(_)
            | Event::ApproverKeysRevoked(_)
            | Event::VoteRefused(_)
            | Event::AccessRequestClosed(_)
            | Event::TokenReissued(_)
            | Event::TokenConsumed(_)
            | Event::GrantsEnded(_)
            | Event::RefusalsCounted(_) => {}
        }
    }

    /// An agent; one that was never seen counts nothing.
    pub fn agent(&self, agent: &AgentId) -> AgentFigures {
        self.read().agents.get(agent).cloned().unwrap_or_default()
    }

    /// What one agent asks of one action; `None` when it never did.
    pub fn habit(&self, agent: &AgentId, action: &ActionName) -> Option<Habit> {
        let key = (agent.clone(), action.clone());
        self.read().habits.get(&key).cloned()
    }

    /// Every habit of an agent, by action.
    pub fn habits_of(&self, agent: &AgentId) -> Vec<(ActionName, Habit)> {
        let read = self.read();
        let theirs = read.habits.all().filter(|((of, _), _)| of == agent);
        let theirs = theirs.map(|((_, action), habit)| (action.clone(), habit.clone()));
        sorted(theirs.collect())
    }

    /// What an approver said to an agent's asks for an action.
    pub fn opinion(&self, approver: &PersonId, agent: &AgentId, action: &ActionName) -> Opinion {
        let key = (approver.clone(), agent.clone(), action.clone());
        self.read().opinions.get(&key).copied().unwrap_or_default()
    }

    /// How an approver decides; one that never voted counts nothing.
    pub fn approver(&self, approver: &PersonId) -> ApproverFigures {
        let read = self.read();
        read.approvers.get(approver).cloned().unwrap_or_default()
    }

    /// Everyone who voted, by id.
    pub fn approvers(&self) -> Vec<(PersonId, ApproverFigures)> {
        let read = self.read();
        let all = read.approvers.all();
        sorted(all.map(|(id, f)| (id.clone(), f.clone())).collect())
    }

    /// A rule by its `@id`; one that never determined anything counts nothing.
    pub fn rule(&self, id: &str) -> RuleFigures {
        self.read().rules.get(id).cloned().unwrap_or_default()
    }

    /// What was unusual about an access request when it was opened; `None` when it is not remembered.
    pub fn oddities(&self, id: &AccessRequestId) -> Option<Arc<[Oddity]>> {
        self.read().oddities.get(id).cloned()
    }

    /// All of it as one JSON value (law 9).
    pub(super) fn picture(&self) -> Value {
        let read = self.read();
        json!({
            "agents": read.agents.picture(), "habits": read.habits.picture(), "opinions": read.opinions.picture(),
            "approvers": read.approvers.picture(), "rules": read.rules.picture(), "oddities": read.oddities.picture(),
        })
    }

    fn read(&self) -> RwLockReadGuard<'_, Counts> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Counts> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    fn attest(
        &mut self,
        agent: &AgentId,
        evidence: &EvidenceFacts,
        entry: &Entry,
    ) -> &mut AgentFigures {
        let agent = self.agents.touch(agent, entry.index);
        agent.attested_at = agent.attested_at.max(Some(evidence.verified_at));
        agent
    }

    fn ask(
        &mut self,
        (agent, evidence): (&AgentId, &EvidenceFacts),
        action: &ActionOnRecord,
        entry: &Entry,
    ) -> &mut Habit {
        add(&mut self.attest(agent, evidence, entry).asked);
        let key = (agent.clone(), action.action.clone());
        let habit = self.habits.touch(&key, entry.index);
        habit.ask_at(entry.at);
        habit
    }

    /// An ask at `asked_at` is decided by this entry.
    fn decide(
        &mut self,
        agent: &AgentId,
        action: &ActionOnRecord,
        asked_at: Timestamp,
        entry: &Entry,
    ) -> &mut Habit {
        add(&mut self.agents.touch(agent, entry.index).decided);
        let key = (agent.clone(), action.action.clone());
        let habit = self.habits.touch(&key, entry.index);
        habit.learn(asked_at, &action.target);
        habit
    }

    fn vote(&mut self, f: &VoteCast, request: &AccessRequest, entry: &Entry) {
        let opened = &request.opened;
        let took_ms = entry.at.since(request.opened_at).max(0);
        let seconds = u32::try_from(took_ms / 1000).unwrap_or(u32::MAX);
        let rules = &opened.decision.rules;
        let (agent, action) = (opened.agent.clone(), opened.action.action.clone());
        let approver = self.approvers.touch(&f.voter, entry.index);
        approver.last_at = Some(entry.at);
        approver.times.add(seconds);
        let opinion = (f.voter.clone(), agent, action);
        let opinion = self.opinions.touch(&opinion, entry.index);
        match f.verdict {
            Verdict::Approve => {
                add(&mut approver.yes);
                add(&mut opinion.yes);
                self.of_rules(rules, entry, |rule| rule.times.add(seconds));
            }
            Verdict::Deny => {
                add(&mut approver.no);
                add(&mut opinion.no);
                let asked_at = request.opened_at;
                let habit = self.decide(&opened.agent, &opened.action, asked_at, entry);
                add(&mut habit.denied);
                habit.last_denied = Some((entry.at, f.voter.clone()));
                self.of_rules(rules, entry, |rule| {
                    rule.times.add(seconds);
                    add(&mut rule.denied);
                });
            }
        }
    }

    fn hit(&mut self, rules: &[RuleRef], entry: &Entry) {
        self.of_rules(rules, entry, |rule| {
            add(&mut rule.hits);
            rule.last_at = Some(entry.at);
        });
    }

    fn of_rules(&mut self, rules: &[RuleRef], entry: &Entry, change: impl Fn(&mut RuleFigures)) {
        for rule in rules {
            change(self.rules.touch(&rule.id, entry.index));
        }
    }
}

/// A map of at most `MAX` keys. When one more comes, the eighth of them that was not touched for longest is given up: by the
/// index of the entry that touched it last, so that every node gives up the same.
#[derive(Debug)]
struct Kept<K, V, const MAX: usize>(HashMap<K, (u64, V)>);

impl<K, V, const MAX: usize> Default for Kept<K, V, MAX> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash + Clone, V: Default, const MAX: usize> Kept<K, V, MAX> {
    fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: std::borrow::Borrow<Q>,
    {
        self.0.get(key).map(|(_, value)| value)
    }

    fn touch(&mut self, key: &K, index: u64) -> &mut V {
        if self.0.len() >= MAX && !self.0.contains_key(key) {
            self.give_up();
        }
        let (last, value) = self.0.entry(key.clone()).or_default();
        *last = index;
        value
    }

    fn give_up(&mut self) {
        let mut touched: Vec<u64> = self.0.values().map(|(last, _)| *last).collect();
        let place = (touched.len() / 8).min(touched.len().saturating_sub(1));
        // By value and not by count: keys that one entry touched go together, whatever order the map has them in.
        let (_, oldest, _) = touched.select_nth_unstable(place);
        let oldest = *oldest;
        self.0.retain(|_, (last, _)| *last > oldest);
    }

    fn all(&self) -> impl Iterator<Item = (&K, &V)> {
        self.0.iter().map(|(key, (_, value))| (key, value))
    }

    fn picture(&self) -> Vec<Value>
    where
        K: Ord + Serialize,
        V: Serialize,
    {
        let mut all: Vec<_> = self.0.iter().collect();
        all.sort_by(|a, b| a.0.cmp(b.0));
        all.into_iter()
            .map(|(key, (last, value))| json!([key, last, value]))
            .collect()
    }
}

fn add(count: &mut u64) {
    *count = count.saturating_add(1);
}

/// The lower middle of some numbers.
fn middle(numbers: &mut [u32]) -> Option<u32> {
    let place = numbers.len().checked_sub(1)? / 2;
    Some(*numbers.select_nth_unstable(place).1)
}

/// Days since 1970-01-01, UTC.
fn day_of(at: Timestamp) -> i64 {
    at.secs().div_euclid(86_400)
}

/// Hour of the day, UTC: 0 to 23.
pub(super) fn hour_of(at: Timestamp) -> usize {
    usize::try_from(at.secs().rem_euclid(86_400) / 3_600).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_untouched_is_given_up() {
        let mut kept: Kept<u64, u64, 16> = Kept::default();
        for n in 0..16 {
            add(kept.touch(&n, n));
        }
        // Touched again, the first is none of the oldest any more; three of one entry go or stay together.
        add(kept.touch(&0, 100));
        for n in [1, 2, 3] {
            kept.touch(&n, 50);
        }
        add(kept.touch(&16, 101));
        assert_eq!(kept.get(&0), Some(&2));
        let gone: Vec<u64> = (0..17).filter(|n| kept.get(n).is_none()).collect();
        assert_eq!(gone, [4, 5, 6]);
        // A known key never costs another one its place.
        for n in 17..19 {
            kept.touch(&n, n + 100);
        }
        let before = kept.0.len();
        assert_eq!(before, 16);
        kept.touch(&0, 200);
        assert_eq!(kept.0.len(), before);
    }

    #[test]
    fn maps_never_grow_beyond_their_bound() {
        let mut kept: Kept<u64, u64, 64> = Kept::default();
        for n in 0..10_000 {
            kept.touch(&n, n / 3);
            assert!(kept.0.len() <= 64);
        }
        assert!(kept.get(&9_999).is_some());
    }

    #[test]
    fn a_median_is_of_the_last_times() {
        let mut times = Times::default();
        assert_eq!(times.median(), None);
        times.add(9);
        times.add(1);
        assert_eq!(times.median(), Some(1), "the lower of two");
        times.add(4);
        assert_eq!(times.median(), Some(4));
        for _ in 0..51 {
            times.add(2);
        }
        assert_eq!(times.median(), Some(2));
        for _ in 0..51 {
            times.add(8);
        }
        assert_eq!(times.0.len(), TIMES_MAX);
        assert_eq!(times.median(), Some(8), "old ones are forgotten");
    }

    #[test]
    fn who_never_says_no_in_no_time_stands_out() {
        assert!(rubber_stamp(20, 0, Some(2)));
        assert!(rubber_stamp(96, 4, Some(0)));
        assert!(!rubber_stamp(19, 0, Some(2)), "too few");
        assert!(!rubber_stamp(95, 5, Some(2)), "95 % is not above 95 %");
        assert!(!rubber_stamp(20, 0, Some(3)), "slow enough to read");
        assert!(!rubber_stamp(20, 0, None));
    }

    #[test]
    fn days_are_bounded_and_today_is_apart() {
        let mut habit = Habit::default();
        for day in 0..100 {
            for _ in 0..=day % 2 {
                habit.ask_at(Timestamp::from_secs(day * 86_400 + 7_200));
            }
        }
        let today = Timestamp::from_secs(99 * 86_400 + 80_000);
        assert_eq!(habit.days.len(), DAYS_MAX + 1);
        assert_eq!(habit.on_day_of(today), 2);
        assert_eq!(habit.median_day_before(today), (Some(1), DAYS_MAX));
        assert_eq!(habit.on_day_of(today.plus_secs(86_400)), 0);
        assert_eq!(habit.asked, 150);
    }

    #[test]
    fn an_ask_alone_teaches_nothing() {
        let target = Target::parse("Case", "1").expect("target");
        let mut habit = Habit::default();
        habit.ask_at(Timestamp::from_secs(7_200));
        assert_eq!(
            (habit.hours, &habit.targets),
            ([0; 24], &Targets::default())
        );
        habit.learn(Timestamp::from_secs(7_200), &target);
        assert_eq!(
            (habit.hours[2], &habit.targets),
            (1, &Targets::All(vec![target]))
        );
    }
}
