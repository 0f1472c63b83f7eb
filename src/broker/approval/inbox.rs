//! What waits for people, for one person: in which order, how much of it at once, and what they may do about it.
//!
//! Nothing here decides: a vote is judged when it is begun, when it is cast, and at the mint. A row that says that somebody
//! may vote is news of that moment.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::approve::votes::{self, Ineligible};
use crate::broker::approval::vote::{AccessView, quorum_reached};
use crate::broker::auth::authentication::PersonCaller;
use crate::broker::query::revocation_feed::WATCH_MAX_MS;
use crate::broker::{Broker, CallContext, Position, Refusal};
use crate::model::*;
use crate::policy::{InForce, Risk};
use crate::state::{AccessRequest, Stir};

/// Which part of an inbox is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InboxQuery {
    /// Only what this person may decide.
    pub mine: bool,
    /// Most rows, 1 to [`INBOX_PAGE_MAX`].
    pub size: usize,
    /// Go on after this row.
    pub after: Option<InboxCursor>,
}

/// Most rows of one page.
pub const INBOX_PAGE_MAX: usize = 100;

/// One page of one person's inbox.
#[derive(Debug)]
pub struct InboxPage {
    /// Highest risk first, then the nearest deadline; alike ones of the page stand together.
    pub rows: Vec<InboxRow>,
    /// Alike ones on all pages, where there is more than one.
    pub groups: Vec<InboxGroup>,
    /// Where the next page goes on; `None` on the last.
    pub next: Option<InboxCursor>,
    /// Rows on all pages.
    pub total: usize,
    /// How many of them this person may decide.
    pub yours: usize,
    /// How many more this person may decide that wait their turn: they are reached by id alone.
    pub queued: usize,
    /// What has been read of the journal at least.
    pub as_of: Position,
}

/// One access request that waits.
#[derive(Debug)]
pub struct InboxRow {
    /// As anybody sees it.
    pub access: AccessView,
    /// For which profiles this person may vote, or why for none.
    pub vote: Result<Vec<ProfileName>, Ineligible>,
    /// What it is alike to.
    pub group: InboxGroupKey,
    /// Its place.
    pub cursor: InboxCursor,
}

/// Access requests that are alike. Each is decided by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InboxGroup {
    /// What they have in common.
    pub key: InboxGroupKey,
    /// The catalogue's title of their action.
    pub title: String,
    /// How many there are.
    pub size: usize,
}

/// The same action on targets of the same type, whoever asks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InboxGroupKey {
    /// As the catalogue calls it.
    pub action: ActionName,
    /// The type of what it is done to.
    pub target_type: Arc<str>,
}

impl InboxGroupKey {
    fn from_request(request: &AccessRequest) -> Self {
        let action = &request.opened.action;
        Self {
            action: action.action.clone(),
            target_type: action.target.kind.as_str().into(),
        }
    }
}

impl fmt::Display for InboxGroupKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.action, self.target_type)
    }
}

/// A row's place in the order of inboxes. It stays the same as long as the row is there, so that pages go on after it
/// whatever has come or gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct InboxCursor {
    /// 0 for high and for unknown, 1 for medium, 2 for low.
    rank: u8,
    expires_at: Timestamp,
    id: AccessRequestId,
}

impl InboxCursor {
    fn from_request(request: &AccessRequest, risk: Option<Risk>) -> Self {
        let rank = match risk {
            // What the catalogue says nothing of may be anything.
            None | Some(Risk::High) => 0,
            Some(Risk::Medium) => 1,
            Some(Risk::Low) => 2,
        };
        Self {
            rank,
            expires_at: request.opened.expires_at,
            id: request.opened.access_request,
        }
    }

    /// Reads a page token as it was given out.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        let wrong = || Malformed::new("page_token", "is not one that a page gave");
        let mut parts = text.splitn(3, '.');
        let mut part = || parts.next().ok_or_else(wrong);
        let (rank, millis, id) = (part()?, part()?, part()?);
        let cursor = Self {
            rank: rank.parse().map_err(|_| wrong())?,
            expires_at: Timestamp::from_millis(millis.parse().map_err(|_| wrong())?),
            id: AccessRequestId::parse(id).map_err(|_| wrong())?,
        };
        // One way to write it: no sign, no leading zero.
        if cursor.to_string() == text {
            Ok(cursor)
        } else {
            Err(wrong())
        }
    }
}

impl fmt::Display for InboxCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.rank, self.expires_at.millis(), self.id)
    }
}

/// Whose turn has come in the inbox of one person.
#[derive(Debug, Default)]
pub(in crate::broker) struct AskBudget {
    admitted: HashSet<AccessRequestId>,
    /// When the latest were let in, oldest first, and whose they are: at most as many as may be in a minute.
    recent: VecDeque<(Timestamp, AgentId)>,
    /// Whether any waited when the inbox was last read.
    waiting: bool,
}

/// The time that [`AskBudget`] counts by, in milliseconds.
const ASK_WINDOW_MS: i64 = 60_000;
/// Rows that one person may have before them at once; the others wait their turn.
const INBOX_ROWS_MAX: usize = 4_096;

impl AskBudget {
    /// Which of these, in this order, stand in the inbox; the others wait their turn. Agents take turns: whoever was let in
    /// least of late goes first, so that one that asks without end keeps nobody else out.
    fn admit(&mut self, wanted: &[(AccessRequestId, AgentId)], per_minute: usize, now: Timestamp) {
        while self
            .recent
            .front()
            .is_some_and(|(at, _)| now.since(*at) >= ASK_WINDOW_MS)
        {
            self.recent.pop_front();
        }
        let there: HashSet<_> = wanted.iter().map(|(id, _)| id).collect();
        self.admitted.retain(|id| there.contains(id));
        let mut had: HashMap<&AgentId, usize> = HashMap::new();
        for (_, agent) in wanted {
            had.entry(agent)
                .or_insert_with(|| self.recent.iter().filter(|(_, a)| a == agent).count());
        }
        let mut in_turn: Vec<(usize, &(AccessRequestId, AgentId))> = Vec::new();
        for new in wanted.iter().filter(|(id, _)| !self.admitted.contains(id)) {
            let turn = had.entry(&new.1).or_default();
            in_turn.push((*turn, new));
            *turn += 1;
        }
        in_turn.sort_by_key(|(turn, _)| *turn);
        for (_, (id, agent)) in in_turn {
            if self.recent.len() >= per_minute || self.admitted.len() >= INBOX_ROWS_MAX {
                return;
            }
            self.admitted.insert(*id);
            self.recent.push_back((now, agent.clone()));
        }
    }

    /// When the next turn comes.
    fn next_admission(&self) -> Option<Timestamp> {
        self.recent.front().map(|(at, _)| at.plus_millis(ASK_WINDOW_MS))
    }
}

/// Which votes have been verified for inboxes, and whether they were enough: what was approved and not yet consumed would be
/// verified anew at every look of everybody. Nothing else asks here: whatever decides verifies by itself.
#[derive(Debug, Default)]
pub(in crate::broker) struct Judged(Mutex<HashMap<AccessRequestId, (Basis, bool)>>);

/// All that the worth of the votes on an access request rests on.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Basis {
    request: Version,
    rules: Version,
    /// The keys of each voter.
    voters: Vec<Version>,
    /// When the first vote lapses of those that have not: it tells which those are.
    lapses: Option<Timestamp>,
}

impl Judged {
    /// Forgets all but these, which are in order.
    fn keep(&self, asked: &[AccessRequestId]) {
        self.lock().retain(|id, _| asked.binary_search(id).is_ok());
    }

    /// Whether the votes are enough; `verify` finds out, unless it has on the same basis.
    fn enough(&self, id: AccessRequestId, basis: Basis, verify: impl FnOnce() -> bool) -> bool {
        let known = self.lock().get(&id).cloned();
        match known {
            Some((before, enough)) if before == basis => enough,
            Some(_) | None => {
                // Not while others wait for it: two that verify the same find the same.
                let enough = verify();
                self.lock().insert(id, (basis, enough));
                enough
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<AccessRequestId, (Basis, bool)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A row before anything is rendered or verified for it.
struct QueueEntry {
    cursor: InboxCursor,
    request: Arc<AccessRequest>,
    vote: Result<Vec<ProfileName>, Ineligible>,
}

impl Broker {
    /// One page of what waits for people, as this person sees it. Votes are verified for the rows of the page, and for
    /// others that have any once, until something moves that they rest on.
    pub fn inbox(&self, call: &CallContext, ask: &InboxQuery) -> Result<InboxPage, Refusal> {
        let now = self.now();
        let person = self.authenticate_person(call)?;
        let rules = self.rules(call)?;
        // Before anything is read: a watch from here on misses nothing.
        let (epoch, index) = self.state.position();
        let asked = self.state.asked();
        self.judged.keep(&asked);
        let mut entries: Vec<QueueEntry> = asked
            .iter()
            .filter_map(|id| self.queue_entry(id, &person.id, &rules, now))
            .collect();
        entries.sort_unstable_by_key(|entry| entry.cursor);
        let per_minute = rules.bundle.approvals().asks_per_minute;
        let queued = self.visible_queue(&person.id, per_minute, &mut entries, now);
        let yours = entries.iter().filter(|entry| entry.vote.is_ok()).count();
        if ask.mine {
            entries.retain(|entry| entry.vote.is_ok());
        }
        let total = entries.len();
        let mut sizes: BTreeMap<InboxGroupKey, usize> = BTreeMap::new();
        for entry in &entries {
            *sizes.entry(InboxGroupKey::from_request(&entry.request)).or_default() += 1;
        }
        let first = match ask.after {
            Some(after) => entries.partition_point(|entry| entry.cursor <= after),
            None => 0,
        };
        let size = ask.size.clamp(1, INBOX_PAGE_MAX);
        let more = total > first.saturating_add(size);
        let page: Vec<InboxRow> = entries
            .into_iter()
            .skip(first)
            .take(size)
            .map(|entry| InboxRow {
                group: InboxGroupKey::from_request(&entry.request),
                access: self.view(entry.request, &rules, now),
                vote: entry.vote,
                cursor: entry.cursor,
            })
            .collect();
        let title = |key: &InboxGroupKey| {
            let action = rules.bundle.action(&key.action);
            action.map(|a| a.title.clone()).unwrap_or_default()
        };
        Ok(InboxPage {
            next: page.last().map(|row| row.cursor).filter(|_| more),
            rows: group_alike(page),
            groups: sizes
                .into_iter()
                .filter(|(_, size)| *size > 1)
                .map(|(key, size)| InboxGroup {
                    title: title(&key),
                    key,
                    size,
                })
                .collect(),
            total,
            yours,
            queued,
            as_of: Position { epoch, index },
        })
    }

    /// The access request, if it still waits for people.
    fn queue_entry(
        &self,
        id: &AccessRequestId,
        person: &PersonId,
        rules: &InForce,
        now: Timestamp,
    ) -> Option<QueueEntry> {
        let request = self.state.access_request(id)?;
        if !self.is_open_for_votes(&request, now) {
            return None;
        }
        // Without votes nobody has decided: the most of them by far.
        if !request.votes.is_empty() && self.judged_enough(&request, rules, now) {
            return None;
        }
        let risk = rules.bundle.action(&request.opened.action.action);
        Some(QueueEntry {
            cursor: InboxCursor::from_request(&request, risk.and_then(|a| a.risk)),
            vote: self.may_vote(person, &request, rules, now),
            request,
        })
    }

    fn judged_enough(&self, request: &AccessRequest, rules: &InForce, now: Timestamp) -> bool {
        let roster = self.state.roster();
        let votes = request.votes.iter().map(|vote| &vote.cast);
        // Read before the votes are verified: what moves meanwhile is found to have moved at the next look.
        let basis = Basis {
            request: request.version,
            rules: rules.version,
            voters: votes.clone().map(|v| roster.of(&v.voter).version).collect(),
            lapses: votes.map(|v| v.not_after).filter(|at| now < *at).min(),
        };
        let id = request.opened.access_request;
        self.judged
            .enough(id, basis, || quorum_reached(&self.needs(request, rules, now)))
    }

    /// For which profiles a yes of this person would count now.
    pub(in crate::broker) fn may_vote(
        &self,
        person: &PersonId,
        request: &AccessRequest,
        rules: &InForce,
        now: Timestamp,
    ) -> Result<Vec<ProfileName>, Ineligible> {
        self.reject_task_owner(request, person)?;
        let mut first = None;
        let mut profiles = Vec::new();
        for need in &request.opened.decision.needs {
            let voter_context = self.voter_context(&rules.bundle);
            match votes::eligible(
                person,
                &need.name,
                Verdict::Approve,
                request,
                voter_context,
                now,
            ) {
                Ok(_) => profiles.push(need.name.clone()),
                Err(why) => first = first.or(Some(why)),
            }
        }
        match (profiles.is_empty(), first) {
            (false, _) => Ok(profiles),
            (true, Some(why)) => Err(why),
            (true, None) => Err(Ineligible::ProfileNotNeeded),
        }
    }

    /// Takes out what this person may decide and whose turn has not come, and says how much that is.
    fn visible_queue(
        &self,
        person: &PersonId,
        per_minute: u32,
        entries: &mut Vec<QueueEntry>,
        now: Timestamp,
    ) -> usize {
        let theirs: Vec<(AccessRequestId, AgentId)> = entries
            .iter()
            .filter(|entry| entry.vote.is_ok())
            .map(|entry| (entry.cursor.id, entry.request.opened.agent.clone()))
            .collect();
        let mut budget = self.lock(&self.ask_budgets);
        if theirs.is_empty() && !budget.contains_key(person) {
            return 0;
        }
        // One for each registered person at most: nobody else comes this far.
        let budget = budget.entry(person.clone()).or_default();
        let per_minute = usize::try_from(per_minute).unwrap_or(usize::MAX);
        budget.admit(&theirs, per_minute, now);
        let before = entries.len();
        entries.retain(|entry| entry.vote.is_err() || budget.admitted.contains(&entry.cursor.id));
        let queued = before - entries.len();
        budget.waiting = queued > 0;
        queued
    }

    /// Begins a watch of what changes in inboxes, from now on or since a position.
    pub fn inbox_changes(
        &self,
        call: &CallContext,
        after: Option<Position>,
    ) -> Result<InboxWatch, Refusal> {
        let caller = self.authenticate_person(call)?;
        let changes = self.notifier.subscribe_inboxes();
        let (epoch, head) = self.state.position();
        let known = after.filter(|p| {
            p.epoch == epoch && p.index <= head && self.state.stirs_after(p.index, 1).is_some()
        });
        Ok(InboxWatch {
            caller: caller.id.clone(),
            life_ms: WATCH_MAX_MS,
            key: caller,
            snapshot: known.is_none(),
            next_admission: None,
            after: known.map_or(head, |p| p.index),
            changes,
            ready: VecDeque::new(),
        })
    }

    /// When more may come into this person's inbox, if anything waits for that.
    fn next_admission(&self, person: &PersonId) -> Option<Timestamp> {
        let budget = self.lock(&self.ask_budgets);
        budget.get(person).filter(|t| t.waiting)?.next_admission()
    }
}

/// Moves alike rows together, each group to the place of its first.
fn group_alike(page: Vec<InboxRow>) -> Vec<InboxRow> {
    let mut first: HashMap<InboxGroupKey, InboxCursor> = HashMap::new();
    for row in &page {
        first.entry(row.group.clone()).or_insert(row.cursor);
    }
    let mut page: Vec<_> = page
        .into_iter()
        .map(|row| (first.get(&row.group).copied(), row))
        .collect();
    page.sort_by_key(|(first, row)| (*first, row.cursor));
    page.into_iter().map(|(_, row)| row).collect()
}

/// A watch of what changes in inboxes.
#[derive(Debug)]
pub struct InboxWatch {
    /// Who watches.
    pub caller: PersonId,
    /// Longest life of the watch, in milliseconds: the caller proves itself again.
    pub life_ms: u64,
    key: PersonCaller,
    snapshot: bool,
    next_admission: Option<Timestamp>,
    after: u64,
    changes: watch::Receiver<u64>,
    ready: VecDeque<Arc<Stir>>,
}

/// What an inbox hears of.
#[derive(Debug, Clone)]
pub enum InboxEvent {
    /// Read the inbox now: what follows are changes from here on.
    Snapshot(Position),
    /// Something waits, waits no longer, or stands differently.
    Changed(Arc<Stir>),
    /// The turn of some that waited for it has come.
    BudgetChanged,
    /// Nothing new: everything up to here has been told.
    Heartbeat(Position),
}

/// How often a quiet watch says that it is alive.
pub(in crate::broker) const HEARTBEAT: Duration = Duration::from_secs(5);
/// Changes read at once.
const CHANGES_BATCH: usize = 256;

impl InboxWatch {
    /// The next news; `None` when the watch is over: the person is no longer registered, or the journal stopped.
    pub async fn next(&mut self, broker: &Broker) -> Option<InboxEvent> {
        let quiet = tokio::time::sleep(HEARTBEAT);
        tokio::pin!(quiet);
        loop {
            if let Some(change) = self.ready.pop_front() {
                self.after = change.index;
                return Some(InboxEvent::Changed(change));
            }
            self.changes.borrow_and_update();
            if broker.journal.tail().borrow().failed || !broker.may_still_read(&self.key) {
                return None;
            }
            let (epoch, index) = broker.state.position();
            if std::mem::take(&mut self.snapshot) {
                self.after = index;
                return Some(InboxEvent::Snapshot(Position { epoch, index }));
            }
            match broker.state.stirs_after(self.after, CHANGES_BATCH) {
                Some(changes) => self.ready.extend(changes),
                // Too slow for what is kept.
                None => self.snapshot = true,
            }
            if !self.ready.is_empty() || self.snapshot {
                continue;
            }
            let next_admission = broker
                .next_admission(&self.caller)
                .filter(|at| Some(*at) != self.next_admission);
            let admission_due = async {
                match next_admission {
                    Some(at) => tokio::time::sleep(at.after(broker.now())).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = &mut quiet => {
                    self.after = index;
                    return Some(InboxEvent::Heartbeat(Position { epoch, index }));
                }
                () = admission_due => {
                    // Told once: whoever reads then takes it.
                    self.next_admission = next_admission;
                    return Some(InboxEvent::BudgetChanged);
                }
                changed = self.changes.changed() => {
                    if changed.is_err() {
                        return None;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn votes_are_verified_once_until_something_moves_that_they_rest_on() {
        let at = Timestamp::from_secs(1_800_000_000);
        let basis = Basis {
            request: 2,
            rules: 1,
            voters: vec![1, 0],
            lapses: Some(at),
        };
        let moved = [
            Basis {
                request: 3,
                ..basis.clone()
            },
            Basis {
                rules: 2,
                ..basis.clone()
            },
            Basis {
                voters: vec![1, 1],
                ..basis.clone()
            },
            Basis {
                lapses: Some(at.plus_millis(1)),
                ..basis.clone()
            },
            Basis {
                lapses: None,
                ..basis.clone()
            },
        ];
        let (one, other) = (
            AccessRequestId::from_random([1; 16]),
            AccessRequestId::from_random([2; 16]),
        );
        for moved in moved {
            for was in [true, false] {
                let judged = Judged::default();
                assert_eq!(judged.enough(one, basis.clone(), || was), was);
                let again = || unreachable!("verified already");
                assert_eq!(judged.enough(one, basis.clone(), again), was);
                assert_eq!(judged.enough(other, basis.clone(), || !was), !was);
                assert_eq!(
                    judged.enough(one, moved.clone(), || !was),
                    !was,
                    "{moved:?}"
                );
                judged.keep(&[one]);
                assert_eq!(judged.lock().keys().collect::<Vec<_>>(), [&one]);
            }
        }
    }

    #[test]
    fn one_that_asks_without_end_keeps_nobody_else_out() {
        let agent = |name: &str| AgentId::parse(name).expect("id");
        let id = |n: u8| AccessRequestId::from_random([n; 16]);
        let mut budget = AskBudget::default();
        let mut now = Timestamp::from_secs(1_800_000_000);
        // Five of one agent at a time, all more urgent than the one of another, and new ones whenever some were let in.
        let flood = |first: u8| (first..first + 5).map(|n| (id(n), agent("loud")));
        let mut wanted: Vec<_> = flood(1).collect();
        wanted.push((id(200), agent("quiet")));
        budget.admit(&wanted, 2, now);
        assert!(budget.admitted.contains(&id(1)) && budget.admitted.contains(&id(200)));
        let mut budget = AskBudget::default();
        budget.admit(&flood(1).collect::<Vec<_>>(), 2, now);
        assert_eq!(budget.admitted.len(), 2, "alone, it has all budget");
        for minute in 1..4 {
            now = now.plus_millis(ASK_WINDOW_MS);
            let mut wanted: Vec<_> = flood(10 * minute).collect();
            wanted.push((id(201), agent("quiet")));
            budget.admit(&wanted, 2, now);
            assert!(budget.admitted.contains(&id(201)), "minute {minute}");
        }
    }
}
