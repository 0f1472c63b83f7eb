//! Approver inbox: waiting access requests that one person may read, their order, pages, groups and the per-minute budget.
//!
//! Decides nothing: a vote is checked when it is begun, when it is cast, and when a token is issued. A row's voting right is
//! a snapshot.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::approve::facts;
use crate::approve::votes::{self, Ineligible, SigningWith};
use crate::broker::approval::access_request::AccessView;
use crate::broker::approval::progress::quorum_reached;
use crate::broker::approval::read_access::Readable;
use crate::broker::auth::authentication::{PersonCaller, WATCH_MAX_MS};
use crate::broker::{Broker, CallContext, Refusal};
use crate::model::*;
use crate::policy::{ActivePolicy, Risk};
use crate::state::{AccessRequest, InboxChange, InboxChangeKind, Read, Recorded};

/// The page of an inbox to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InboxQuery {
    /// Only access requests that this person may decide.
    pub mine: bool,
    /// Most rows, 1 to [`INBOX_PAGE_MAX`].
    pub size: usize,
    /// Start after this row.
    pub after: Option<InboxCursor>,
}

/// Most rows of one page.
pub const INBOX_PAGE_MAX: usize = 100;

/// One page of one person's inbox.
#[derive(Debug)]
pub struct InboxPage {
    /// Highest risk first, then the nearest deadline; rows of one group are adjacent within the page.
    pub rows: Vec<InboxRow>,
    /// Groups of at least two rows, counted over all pages.
    pub groups: Vec<InboxGroup>,
    /// Cursor of the next page; `None` on the last.
    pub next: Option<InboxCursor>,
    /// Rows on all pages.
    pub total: usize,
    /// How many of them this person may decide.
    pub decidable: usize,
    /// How many more this person may decide that are over the per-minute budget: they are reached by id alone.
    pub queued: usize,
    /// Journal position that the page includes at least.
    pub as_of: JournalPosition,
}

/// One waiting access request.
#[derive(Debug)]
pub struct InboxRow {
    /// Independent of the viewer.
    pub access: AccessView,
    /// For which profiles this person may vote, or why for none.
    pub vote: Result<Vec<ProfileName>, Ineligible>,
    /// The group it belongs to.
    pub group: InboxGroupKey,
    /// Whether the policy bundle has the target; an agent chose the id of any other.
    pub is_target_known: bool,
    /// Its place in the order.
    pub cursor: InboxCursor,
}

/// Access requests for equal actions. Each is decided by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InboxGroup {
    /// What they have in common.
    pub key: InboxGroupKey,
    /// The catalogue's title of their action.
    pub title: String,
    /// How many there are.
    pub size: usize,
}

/// The same action on the same target with equal parameters, for any agent: never more, because a group is read as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum InboxGroupKey {
    /// The digest of the action.
    Action(Digest),
    /// A request whose action is no longer on record is alone.
    Request(AccessRequestId),
}

impl InboxGroupKey {
    fn from_request(request: &AccessRequest) -> Self {
        let recorded = &request.opened.action;
        match &request.action {
            None => Self::Request(request.opened.access_request),
            // The digest on record of a sensitive action is salted: equal actions have different ones.
            Some(action) if recorded.has_sensitive() => Self::Action(action.digest()),
            Some(_) => Self::Action(recorded.digest),
        }
    }
}

impl fmt::Display for InboxGroupKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Action(digest) => digest.fmt(f),
            Self::Request(id) => id.fmt(f),
        }
    }
}

/// A row's place in the order of inboxes. It does not change while the row exists, so that paging is stable when other rows
/// appear or vanish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct InboxCursor {
    /// 0 for high and for unknown, 1 for medium, 2 for low.
    rank: u8,
    expires_at: Timestamp,
    id: AccessRequestId,
}

impl InboxCursor {
    fn from_request(request: &AccessRequest, risk: Option<Risk>) -> Self {
        let rank = match risk {
            // An action without a stated risk is treated as high risk.
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
}

/// Budget of access requests shown to one person per minute, shared fairly between agents.
#[derive(Debug, Default)]
pub(in crate::broker) struct InboxBudget {
    admitted: HashSet<AccessRequestId>,
    /// Time and agent of the latest admissions, oldest first: at most one minute's budget.
    recent: VecDeque<(Timestamp, AgentId)>,
    /// Whether any were over the budget when the inbox was last read.
    waiting: bool,
}

/// Window of the budget, in milliseconds.
const BUDGET_WINDOW_MS: i64 = 60_000;
/// Admitted rows in one inbox; the others stay queued.
const INBOX_ROWS_MAX: usize = 4_096;

impl InboxBudget {
    /// Admits as many of these, in this order, as the budget allows. The agent with the fewest recent admissions goes first,
    /// so that one flooding agent does not starve the others.
    fn admit(&mut self, waiting: &[(AccessRequestId, AgentId)], per_minute: usize, now: Timestamp) {
        while self
            .recent
            .front()
            .is_some_and(|(at, _)| now.since(*at) >= BUDGET_WINDOW_MS)
        {
            self.recent.pop_front();
        }
        let waiting_ids: HashSet<_> = waiting.iter().map(|(id, _)| id).collect();
        self.admitted.retain(|id| waiting_ids.contains(id));
        let mut had: HashMap<&AgentId, usize> = HashMap::new();
        for (_, agent) in waiting {
            had.entry(agent)
                .or_insert_with(|| self.recent.iter().filter(|(_, a)| a == agent).count());
        }
        let mut in_turn: Vec<(usize, &(AccessRequestId, AgentId))> = Vec::new();
        for new in waiting.iter().filter(|(id, _)| !self.admitted.contains(id)) {
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

    /// When the budget next allows an admission.
    fn next_admission(&self) -> Option<Timestamp> {
        self.recent
            .front()
            .map(|(at, _)| at.plus_millis(BUDGET_WINDOW_MS))
    }
}

/// A row before it is rendered.
struct QueueEntry {
    cursor: InboxCursor,
    request: Arc<AccessRequest>,
    vote: Result<Vec<ProfileName>, Ineligible>,
    /// Whether time alone would let it through, and a no of this person counts.
    may_stop: bool,
}

impl QueueEntry {
    /// Whether it is this person's to decide.
    const fn is_decidable(&self) -> bool {
        self.vote.is_ok() || self.may_stop
    }
}

impl Broker {
    /// One page of the caller's inbox.
    pub fn inbox(&self, call: &CallContext, query: &InboxQuery) -> Result<InboxPage, Refusal> {
        let now = self.now();
        let person = self.authenticate_person(call)?;
        // Before anything is read: a watch from this position misses nothing.
        let (epoch, index) = self.show().position();
        let rules = self.rules(call)?;
        let unclosed = self.show().unclosed_requests();
        // A round for each row: one for all would search its streams again for each row.
        let mut entries: Vec<QueueEntry> = unclosed
            .iter()
            .filter_map(|id| self.preview(|read| self.queue_entry(read, id, &person.id, now)))
            .collect();
        entries.sort_unstable_by_key(|entry| entry.cursor);
        let per_minute = rules.bundle.approval_limits().asks_per_minute;
        let queued = self.visible_queue(&person.id, per_minute, &mut entries, now);
        let decidable = entries.iter().filter(|entry| entry.is_decidable()).count();
        if query.mine {
            entries.retain(QueueEntry::is_decidable);
        }
        let total = entries.len();
        let mut sizes: BTreeMap<InboxGroupKey, (usize, ActionName)> = BTreeMap::new();
        for entry in &entries {
            let (size, _) = sizes
                .entry(InboxGroupKey::from_request(&entry.request))
                .or_insert_with(|| (0, entry.request.opened.action.action.clone()));
            *size += 1;
        }
        let first = match query.after {
            Some(after) => entries.partition_point(|entry| entry.cursor <= after),
            None => 0,
        };
        let size = query.size.clamp(1, INBOX_PAGE_MAX);
        let more = total > first.saturating_add(size);
        let page: Vec<InboxRow> = entries
            .into_iter()
            .skip(first)
            .take(size)
            .filter_map(|entry| {
                Some(InboxRow {
                    group: InboxGroupKey::from_request(&entry.request),
                    is_target_known: rules
                        .bundle
                        .target_attributes(&entry.request.opened.action.target)
                        .is_some(),
                    access: self.preview(|read| {
                        let request = read.access_request(&entry.cursor.id)?;
                        Some(self.view(read, &request, &*read.rules()?, now))
                    })?,
                    vote: entry.vote,
                    cursor: entry.cursor,
                })
            })
            .collect();
        let title = |action: &ActionName| {
            let action = rules.bundle.action(action);
            action.map(|a| a.title.clone()).unwrap_or_default()
        };
        Ok(InboxPage {
            next: page.last().map(|row| row.cursor).filter(|_| more),
            rows: group_alike(page),
            groups: sizes
                .into_iter()
                .filter(|(_, (size, _))| *size > 1)
                .map(|(key, (size, action))| InboxGroup {
                    title: title(&action),
                    key,
                    size,
                })
                .collect(),
            total,
            decidable,
            queued,
            as_of: JournalPosition { epoch, index },
        })
    }

    /// The inbox entry of an access request, if it still waits for votes and the person may read it.
    fn queue_entry(
        &self,
        read: &Read,
        id: &AccessRequestId,
        person: &PersonId,
        now: Timestamp,
    ) -> Option<QueueEntry> {
        let rules = read.rules()?;
        let request = read.access_request(id)?;
        if !self.is_open_for_votes(read, &request, now)
            || !self.may_read(person, &rules, Readable::AccessRequest(&request))
        {
            return None;
        }
        // Most waiting requests have no vote, and need no tally. One that needs nobody any more waits for its agent alone; what time has let
        // through stays, for a no.
        if (!request.votes.is_empty() || request.required_profiles().is_empty())
            && quorum_reached(&self.approval_progress(read, &request, &rules, now))
        {
            return None;
        }
        let risk = facts::risk(&request, &rules.bundle);
        Some(QueueEntry {
            cursor: InboxCursor::from_request(&request, risk),
            may_stop: request.delayed_until().is_some()
                && self
                    .may_vote(read, (person, Verdict::Deny), &request, &rules, now)
                    .is_ok(),
            vote: self.may_vote(read, (person, Verdict::Approve), &request, &rules, now),
            request: Arc::clone(request.to_answer()),
        })
    }

    /// Profiles under which a vote by this person would count now.
    pub(in crate::broker) fn may_vote(
        &self,
        read: &Read,
        (person, verdict): (&PersonId, Verdict),
        request: &Recorded<'_, AccessRequest>,
        rules: &ActivePolicy,
        now: Timestamp,
    ) -> Result<Vec<ProfileName>, Ineligible> {
        let voter_context = self.voter_context(read, rules);
        let mut first = None;
        let mut profiles = Vec::new();
        for need in request.required_profiles() {
            match votes::eligible(
                person,
                SigningWith::AnyKey,
                &need.name,
                verdict,
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

    /// Removes requests that this person may decide and the budget does not admit yet; returns their number.
    fn visible_queue(
        &self,
        person: &PersonId,
        per_minute: u32,
        entries: &mut Vec<QueueEntry>,
        now: Timestamp,
    ) -> usize {
        // Agents have a budget; a proposal by a person is shown at once.
        // INVARIANT (silence is that of people who could see it): so is what time lets through.
        let has_delay = |entry: &QueueEntry| entry.request.delayed_until().is_some();
        let waiting: Vec<(AccessRequestId, AgentId)> = entries
            .iter()
            .filter(|entry| entry.vote.is_ok() && !has_delay(entry))
            .filter_map(|entry| Some((entry.cursor.id, entry.request.opened.agent()?.clone())))
            .collect();
        let mut budget = self.lock(&self.inbox_budgets);
        if waiting.is_empty() && !budget.contains_key(person) {
            return 0;
        }
        // Bounded: one for each registered person.
        let budget = budget.entry(person.clone()).or_default();
        let per_minute = usize::try_from(per_minute).unwrap_or(usize::MAX);
        budget.admit(&waiting, per_minute, now);
        let before = entries.len();
        entries.retain(|entry| {
            entry.vote.is_err()
                || has_delay(entry)
                || entry.request.opened.agent().is_none()
                || budget.admitted.contains(&entry.cursor.id)
        });
        let queued = before - entries.len();
        budget.waiting = queued > 0;
        queued
    }

    /// Starts a watch of inbox changes, from now on or after a position.
    pub fn inbox_changes(
        &self,
        call: &CallContext,
        after: Option<JournalPosition>,
    ) -> Result<InboxWatch, Refusal> {
        let caller = self.authenticate_person(call)?;
        let changes = self.notifier.subscribe_inboxes();
        let (epoch, head) = self.show().position();
        let known = after.filter(|p| {
            p.epoch == epoch
                && p.index <= head
                && self.show().inbox_changes_after(p.index, 1).is_some()
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

    /// A change with the access requests that the person may read; `None` without any.
    fn readable_change(
        &self,
        person: &PersonId,
        change: Arc<InboxChange>,
    ) -> Option<Arc<InboxChange>> {
        match change.kind {
            InboxChangeKind::Rules => return Some(change),
            InboxChangeKind::Opened | InboxChangeKind::Voted | InboxChangeKind::Closed => {}
        }
        let rules = self.show().rules()?;
        let mut ids = change.ids.clone();
        ids.retain(|id| self.may_read_request(person, &rules, id));
        if ids.len() == change.ids.len() {
            return Some(change);
        }
        (!ids.is_empty()).then(|| {
            Arc::new(InboxChange {
                ids,
                ..(*change).clone()
            })
        })
    }

    /// When the budget next admits a queued request into this person's inbox, if any is queued.
    fn next_admission(&self, person: &PersonId) -> Option<Timestamp> {
        let budget = self.lock(&self.inbox_budgets);
        budget.get(person).filter(|t| t.waiting)?.next_admission()
    }
}

/// Makes rows of one group adjacent, at the place of the group's first row.
fn group_alike(page: Vec<InboxRow>) -> Vec<InboxRow> {
    let mut first: HashMap<InboxGroupKey, InboxCursor> = HashMap::new();
    for row in &page {
        first.entry(row.group).or_insert(row.cursor);
    }
    let mut page: Vec<_> = page
        .into_iter()
        .map(|row| (first.get(&row.group).copied(), row))
        .collect();
    page.sort_by_key(|(first, row)| (*first, row.cursor));
    page.into_iter().map(|(_, row)| row).collect()
}

/// A watch of inbox changes.
#[derive(Debug)]
pub struct InboxWatch {
    /// The watching person.
    pub caller: PersonId,
    /// Longest life of the watch, in milliseconds; then the caller authenticates again.
    pub life_ms: u64,
    key: PersonCaller,
    snapshot: bool,
    next_admission: Option<Timestamp>,
    after: u64,
    changes: watch::Receiver<u64>,
    ready: VecDeque<Arc<InboxChange>>,
}

/// An event of an inbox watch.
#[derive(Debug, Clone)]
pub enum InboxEvent {
    /// Read the inbox now; changes after this position follow.
    Snapshot(JournalPosition),
    /// An access request was opened, closed, or changed status.
    Changed(Arc<InboxChange>),
    /// The per-minute budget admits queued requests.
    BudgetChanged,
    /// No change up to this position.
    Heartbeat(JournalPosition),
}

/// Heartbeat interval of a watch without events.
pub(in crate::broker) const HEARTBEAT: Duration = Duration::from_secs(5);
/// Changes read at once.
const CHANGES_BATCH: usize = 256;

impl InboxWatch {
    /// The next event; `None` when the watch ends: the person may no longer read, or the journal stopped.
    pub async fn next(&mut self, broker: &Broker) -> Option<InboxEvent> {
        let quiet = tokio::time::sleep(HEARTBEAT);
        tokio::pin!(quiet);
        loop {
            if let Some(change) = self.ready.pop_front() {
                self.after = change.index;
                match broker.readable_change(&self.caller, change) {
                    Some(change) => return Some(InboxEvent::Changed(change)),
                    None => continue,
                }
            }
            self.changes.borrow_and_update();
            if broker.journal.head().borrow().failed || !broker.may_still_read(&self.key) {
                return None;
            }
            let (epoch, index) = broker.show().position();
            if std::mem::take(&mut self.snapshot) {
                self.after = index;
                return Some(InboxEvent::Snapshot(JournalPosition { epoch, index }));
            }
            match broker.show().inbox_changes_after(self.after, CHANGES_BATCH) {
                Some(changes) => self.ready.extend(changes),
                // The watcher fell behind the kept changes.
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
                    return Some(InboxEvent::Heartbeat(JournalPosition { epoch, index }));
                }
                () = admission_due => {
                    // Sent once: reading the inbox spends it.
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
    fn ask_budget_is_fair_between_agents() {
        let agent = |name: &str| AgentId::parse(name).expect("id");
        let id = |n: u8| AccessRequestId::from_random([n; 16]);
        let mut budget = InboxBudget::default();
        let mut now = Timestamp::from_secs(1_800_000_000);
        // Five of one agent at a time, all more urgent than the one of another, and new ones after each admission.
        let flood = |first: u8| (first..first + 5).map(|n| (id(n), agent("loud")));
        let mut waiting: Vec<_> = flood(1).collect();
        waiting.push((id(200), agent("quiet")));
        budget.admit(&waiting, 2, now);
        assert!(budget.admitted.contains(&id(1)) && budget.admitted.contains(&id(200)));
        let mut budget = InboxBudget::default();
        budget.admit(&flood(1).collect::<Vec<_>>(), 2, now);
        assert_eq!(
            budget.admitted.len(),
            2,
            "a lone agent gets the whole budget"
        );
        for minute in 1..4 {
            now = now.plus_millis(BUDGET_WINDOW_MS);
            let mut waiting: Vec<_> = flood(10 * minute).collect();
            waiting.push((id(201), agent("quiet")));
            budget.admit(&waiting, 2, now);
            assert!(budget.admitted.contains(&id(201)), "minute {minute}");
        }
    }
}
