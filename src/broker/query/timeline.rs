//! Timeline of a task, and journal search. Reads entries alone, never the blobs beside them: no agent text, sensitive
//! parameter or vote statement is returned.

use std::fmt::Write as _;

use serde_json::Value;

use crate::broker::approval::read_access::Readable;
use crate::broker::{Broker, CallContext, Refusal};
use crate::journal::StoredEntry;
use crate::model::*;
use crate::policy::ActivePolicy;
use crate::state::{Grant, TaskRecord};

/// One event of a timeline. Every text is safe to print.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineEvent {
    /// Its entry; `None` for an expiry without one.
    pub index: Option<u64>,
    /// When.
    pub at: Timestamp,
    /// The entry's kind; empty without an entry.
    pub kind: &'static str,
    /// A short constant description.
    pub what: &'static str,
    /// Whether a request or a vote was denied.
    pub is_denial: bool,
    /// The actor: an agent, a person, a service, or `broker`.
    pub who: String,
    /// Details.
    pub detail: String,
    /// Related ids.
    pub ids: Vec<String>,
}

/// A task from its verification to its end.
#[derive(Debug, Clone)]
pub struct TaskTimeline {
    /// The task.
    pub task: TaskId,
    /// Its agent.
    pub agent: AgentId,
    /// The agent's owner at the opening.
    pub owner: PersonId,
    /// Why it ended; `None` while it runs.
    pub ended: Option<EndCause>,
    /// In chronological order.
    pub events: Vec<TimelineEvent>,
    /// Entries in the middle that are left out.
    pub left_out: u64,
}

/// A page of search results.
#[derive(Debug, Clone, Default)]
pub struct SearchPage {
    /// Newest first.
    pub events: Vec<TimelineEvent>,
    /// The next page has entries below this index; `None` at the beginning of the journal.
    pub next: Option<u64>,
}

/// Longest query, in bytes.
pub const QUERY_BYTES_MAX: usize = 256;
/// Most rows of a page of the search.
pub const SEARCH_PAGE_MAX: usize = 50;
/// Entries scanned by one search; the next continues from there.
pub const SEARCH_SCAN_MAX: u64 = 20_000;
/// Entries read in one batch.
const READ_AT_ONCE: u32 = 256;

impl Broker {
    /// A task's timeline: from the journal's entries of it, at most 512 of them. A task that the caller may not read and an unknown
    /// id get the same answer; ids of other records that the caller may not read are left out.
    pub async fn timeline(&self, call: &CallContext, id: TaskId) -> Result<TaskTimeline, Refusal> {
        let now = self.now();
        let reader = self.authenticate_reader_person(call, now)?;
        let unknown = || self.refuse(call.method, Reason::NotFound, format!("no task {id}"));
        let task = self.show().task(&id).ok_or_else(unknown)?;
        let rules = self.rules(call)?;
        if let Some(person) = &reader
            && !self.may_read(&person.id, &rules, Readable::Task(&task))
        {
            return Err(unknown());
        }
        let (mut indexes, left_out) = self.show().task_entries(&id);
        // One entry may end many tasks.
        let ended = task.ended.map(|ended| ended.index);
        indexes.extend(ended.filter(|index| !indexes.contains(index)));
        let journal = self.journal.clone();
        let read = move || {
            let stored = indexes.iter().map(|index| journal.entry(*index));
            stored.collect::<Result<Vec<_>, _>>()
        };
        let stored = self.spawn_blocking_read(call, read).await?;
        let mut events = vec![verified(&task)];
        events.extend(
            stored
                .iter()
                .flatten()
                .filter_map(|s| self.timeline_event(s)),
        );
        let grants = self.show().grants_of_task(&id);
        events.extend(grants.iter().filter_map(|grant| expired(grant, &task, now)));
        events.sort_by_key(TimelineEvent::place);
        if let Some(person) = &reader {
            for event in &mut events {
                event
                    .ids
                    .retain(|id| self.may_read_id(&person.id, &rules, id));
            }
        }
        Ok(TaskTimeline {
            task: id,
            agent: task.opened.agent.clone(),
            owner: task.opened.owner.clone(),
            ended: task
                .ended
                .map(|ended| ended.cause)
                .or_else(|| task.expired_cause(now))
                .or_else(|| self.pending_task_end(&task)),
            events,
            left_out,
        })
    }

    /// Entries that name `query`, byte by byte: an id, an agent, a person, a service, an action, a target (`Type::id`), or a
    /// kind of entry; every entry for an empty one. Newest first, below the index `below`.
    ///
    /// Scans at most [`SEARCH_SCAN_MAX`] entries and returns at most [`SEARCH_PAGE_MAX`]: while `next` is present, a short or
    /// empty page is not the end.
    pub async fn search(
        &self,
        call: &CallContext,
        query: &str,
        below: Option<u64>,
    ) -> Result<SearchPage, Refusal> {
        let now = self.now();
        self.authenticate_reader(call, now)?;
        if query.len() > QUERY_BYTES_MAX {
            let message = format!("must be at most {QUERY_BYTES_MAX} bytes");
            return Err(self.malformed(call.method, &ParseError::new("query", message)));
        }
        let head = self.show().position().1.saturating_add(1);
        let mut index_below = below.unwrap_or(head).min(head);
        let journal = self.journal.clone();
        let query = query.to_owned();
        let read = move || {
            let stop = index_below.saturating_sub(SEARCH_SCAN_MAX);
            let mut found = Vec::new();
            while index_below > stop {
                for stored in journal.entries_below(index_below, READ_AT_ONCE)? {
                    index_below = stored.index;
                    if mentions(&stored.text, &query) {
                        found.push(stored);
                    }
                    if found.len() >= SEARCH_PAGE_MAX || index_below <= stop {
                        return Ok((found, index_below));
                    }
                }
            }
            Ok((found, index_below))
        };
        let (found, index_below) = self.spawn_blocking_read(call, read).await?;
        Ok(SearchPage {
            events: found
                .iter()
                .filter_map(|s| self.timeline_event(s))
                .collect(),
            next: (index_below > 0).then_some(index_below),
        })
    }

    async fn spawn_blocking_read<T: Send + 'static>(
        &self,
        call: &CallContext,
        read: impl FnOnce() -> Result<T, crate::journal::OpenError> + Send + 'static,
    ) -> Result<T, Refusal> {
        let unreadable = |why: String| self.refuse(call.method, Reason::JournalUnavailable, why);
        tokio::task::spawn_blocking(read)
            .await
            .map_err(|e| unreadable(e.to_string()))?
            .map_err(|e| unreadable(e.to_string()))
    }

    /// Whether an id of an event leads the person to a record: an event of one task may name others.
    fn may_read_id(&self, person: &PersonId, rules: &ActivePolicy, id: &str) -> bool {
        if let Ok(request) = AccessRequestId::parse(id) {
            return self.may_read_request(person, rules, &request);
        }
        let task = match TokenId::parse(id) {
            Ok(token) => self.show().grant(&token).map(|grant| grant.issued.task),
            Err(_) => match TaskId::parse(id) {
                Ok(task) => Some(task),
                // Of a decision or an invitation: it leads to no page.
                Err(_) => return true,
            },
        };
        task.is_some_and(|task| self.may_read_task(person, rules, &task))
    }

    /// An entry as a timeline event; `None` for one that this version cannot parse.
    fn timeline_event(&self, stored: &StoredEntry) -> Option<TimelineEvent> {
        let entry = Entry::parse(&stored.text).ok()?;
        let by = |person: &Option<PersonId>| match person {
            Some(person) => person.to_string(),
            None => BROKER.to_owned(),
        };
        let doing = |a: &ActionOnRecord| format!("{} on {}", a.action, a.target.in_sentence());
        let (kind, what, who, detail, ids): (_, _, String, String, Vec<String>) = match &entry.event
        {
            Event::EpochStarted(f) => (
                "EpochStarted",
                "journal started",
                BROKER.to_owned(),
                format!("realm {}", f.realm),
                vec![],
            ),
            Event::TrustBundleChanged(f) => (
                "TrustBundleChanged",
                "trusted keys changed",
                BROKER.to_owned(),
                format!(
                    "{}: {} keys, {} removed",
                    f.domain,
                    f.kids.len(),
                    f.removed.len()
                ),
                vec![],
            ),
            Event::KeyPublished(f) => (
                "KeyPublished",
                "signing key published",
                BROKER.to_owned(),
                f.kid.to_string(),
                vec![],
            ),
            Event::PolicyApplied(f) => match &f.recovery {
                None => (
                    "PolicyApplied",
                    "policy bundle put in force",
                    by(&f.by),
                    f.version.to_string(),
                    vec![],
                ),
                Some(recovery) => (
                    "PolicyApplied",
                    "operators recovered on the broker's host",
                    format!("{} (unverified)", recovery.host_user),
                    recovery_detail(f.version, recovery),
                    vec![],
                ),
            },
            Event::AgentSuspended(f) => (
                "AgentSuspended",
                match f.denials {
                    None => "agent suspended",
                    Some(_) => "agent suspended after denials",
                },
                f.by.to_string(),
                match f.denials {
                    None => f.agent.to_string(),
                    Some(count) => {
                        format!(
                            "{}: {count} denials within the policy bundle's window",
                            f.agent
                        )
                    }
                },
                vec![f.agent.to_string()],
            ),
            Event::AgentResumed(f) => (
                "AgentResumed",
                "agent resumed",
                f.by.to_string(),
                f.agent.to_string(),
                vec![f.agent.to_string()],
            ),
            Event::Frozen(f) => (
                "Frozen",
                "frozen",
                f.by.to_string(),
                f.scope.to_string(),
                vec![],
            ),
            Event::Unfrozen(f) => (
                "Unfrozen",
                "freeze lifted",
                f.by.to_string(),
                f.scope.to_string(),
                vec![],
            ),
            Event::FactSet(f) => (
                "FactSet",
                match f.until {
                    Some(_) => "fact set",
                    None => "fact set back to its normal value",
                },
                f.by.to_string(),
                match f.until {
                    Some(until) => format!("{} is {} until {until}", f.fact, f.value),
                    None => format!("{} is {}", f.fact, f.value),
                },
                f.proposal.iter().map(ToString::to_string).collect(),
            ),
            Event::ApproverInvited(f) => (
                "ApproverInvited",
                "approver invited",
                f.by.to_string(),
                f.person.to_string(),
                vec![f.invitation.to_string()],
            ),
            Event::ApproverEnrolled(f) => (
                "ApproverEnrolled",
                "passkey enrolled",
                f.person.to_string(),
                f.passkey.key.to_string(),
                vec![f.invitation.to_string()],
            ),
            Event::PasskeyConfirmed(f) => (
                "PasskeyConfirmed",
                match &f.by {
                    Confirmer::Person { .. } => "passkey confirmed",
                    Confirmer::Host { .. } => "passkey confirmed by the owner of the host",
                },
                f.by.to_string(),
                format!("{}, {}", f.person, f.key),
                vec![],
            ),
            Event::ApproverKeysRevoked(f) => (
                "ApproverKeysRevoked",
                match f.cause {
                    RevokeCause::Operator => "approver's keys revoked",
                    RevokeCause::Compromised => "approver's keys revoked as compromised",
                    RevokeCause::Counter => "approver's key revoked: its counter went back",
                },
                by(&f.by),
                {
                    let mut text = format!("{}, {} keys", f.person, f.keys.len());
                    if f.invited > 0 {
                        let _ = write!(text, "; {} passkeys on their invitations die", f.invited);
                    }
                    if f.unconfirmed > 0 {
                        let _ = write!(
                            text,
                            "; {} passkeys await confirmation again",
                            f.unconfirmed
                        );
                    }
                    text
                },
                vec![],
            ),
            Event::TaskOpened(f) => (
                "TaskOpened",
                "task opened",
                f.agent.to_string(),
                format!("owner {}, until {}", f.owner, f.deadline),
                vec![f.task.to_string()],
            ),
            Event::LeasesExtended(f) => (
                "LeasesExtended",
                "leases extended",
                BROKER.to_owned(),
                match f.served_until {
                    None => format!("of {} tasks", f.leases.len()),
                    Some(from) => {
                        format!("of {} tasks: no broker served from {from}", f.leases.len())
                    }
                },
                vec![],
            ),
            Event::TaskEnded(f) => (
                "TaskEnded",
                "task ended",
                by(&f.by),
                format!("{}, {} tasks", f.cause.as_str(), f.tasks.len()),
                named(&f.tasks),
            ),
            Event::RequestDenied(f) => (
                "RequestDenied",
                "denied by policy",
                String::new(),
                format!("{}: {}", f.reason, doing(&f.action)),
                vec![f.id.to_string(), f.task.to_string()],
            ),
            Event::AccessRequestOpened(f) => {
                let needs = f.required_profiles().iter();
                let needs: Vec<_> = needs.map(|n| n.name.as_str()).collect();
                let task = f.task().map(|task| task.to_string());
                let (title, to) = match f.executor() {
                    None => ("approval requested", String::new()),
                    Some(executor) => ("recommended", format!(", for {}", executor.agent)),
                };
                (
                    "AccessRequestOpened",
                    title,
                    f.agent()
                        .map_or_else(|| f.owner().to_string(), ToString::to_string),
                    format!(
                        "{}{to}, under {}{}",
                        doing(&f.action),
                        needs.join(", "),
                        f.by_agent()
                            .map(|by| or_delay(&by.decision))
                            .unwrap_or_default()
                    ),
                    std::iter::once(f.access_request.to_string())
                        .chain(task)
                        .collect(),
                )
            }
            Event::AccessRequestReassessed(f) => {
                let needs = f.decision.required_profiles.iter();
                let needs: Vec<_> = needs.map(|n| n.name.as_str()).collect();
                (
                    "AccessRequestReassessed",
                    match &f.decision.delay {
                        None => "approval requirements changed",
                        Some(_) => "the wait begins anew",
                    },
                    BROKER.to_owned(),
                    match needs.is_empty() {
                        true => "no approval is required".to_owned(),
                        false => {
                            format!("under {}{}", needs.join(", "), or_delay(&f.decision))
                        }
                    },
                    vec![f.access_request.to_string()],
                )
            }
            Event::VoteCast(f) => (
                "VoteCast",
                match f.verdict {
                    Verdict::Approve => "vote: approve",
                    Verdict::Deny => "vote: deny",
                },
                f.voter.to_string(),
                match f.verdict {
                    Verdict::Approve => {
                        let most = f
                            .max_ttl
                            .map(|ttl| format!(", for at most {}", format_seconds(ttl)));
                        format!(
                            "under {}, {}{}",
                            f.profile.name,
                            f.method().signed_by(),
                            most.unwrap_or_default()
                        )
                    }
                    Verdict::Deny => {
                        format!("under {}, {}", f.profile.name, f.method().signed_by())
                    }
                },
                vec![f.access_request.to_string()],
            ),
            Event::VoteRefused(f) => (
                "VoteRefused",
                "vote rejected",
                f.voter.to_string(),
                f.reason.clone(),
                vec![f.access_request.to_string()],
            ),
            Event::AccessRequestClosed(f) => (
                "AccessRequestClosed",
                match f.cause {
                    CloseCause::Cancelled => "request cancelled",
                    CloseCause::Expired => "request expired",
                    CloseCause::Policy => "request ended by a policy change",
                    CloseCause::Frozen => "request ended by a freeze",
                    CloseCause::NoEligibleApprover => "request ended: too few approvers",
                },
                BROKER.to_owned(),
                String::new(),
                vec![f.access_request.to_string()],
            ),
            Event::TokenIssued(f) => {
                let approval = f.approval.as_ref();
                let profiles = approval.map(|a| a.profiles.iter().map(ProfileName::as_str));
                let under = match profiles.map(|names| names.collect::<Vec<_>>().join(", ")) {
                    Some(names) => format!(", approved under {names}"),
                    None => String::new(),
                };
                let waited = match f.decision.input.waited_ms {
                    0 => String::new(),
                    ms => format!(", after {} without a no", format_seconds(ms / 1_000)),
                };
                let life = format_seconds(f.exp.saturating_sub(f.iat));
                let consumed = f.consumed.iter().map(ToString::to_string);
                (
                    "TokenIssued",
                    "token issued",
                    f.agent.to_string(),
                    format!("{} for {life}{under}{waited}", doing(&f.action)),
                    [f.jti.to_string(), f.decision.id.to_string()]
                        .into_iter()
                        .chain(consumed)
                        .collect(),
                )
            }
            Event::TokenReissued(f) => (
                "TokenReissued",
                "token reissued",
                BROKER.to_owned(),
                format!("by key {}", f.kid),
                vec![f.jti.to_string()],
            ),
            Event::TokenConsumed(f) => (
                "TokenConsumed",
                "token used",
                f.validator.to_string(),
                f.use_id.to_string(),
                vec![f.jti.to_string()],
            ),
            Event::GrantsEnded(f) => (
                "GrantsEnded",
                match f.cause {
                    EndCause::Operator => "token revoked",
                    EndCause::Completed
                    | EndCause::Deadline
                    | EndCause::Lease
                    | EndCause::Suspended
                    | EndCause::Frozen
                    | EndCause::Policy
                    | EndCause::Trust => "token ended",
                },
                by(&f.by),
                format!("{}, {} tokens", f.cause.as_str(), f.jtis.len()),
                named(&f.jtis),
            ),
            Event::RefusalsCounted(f) => (
                "RefusalsCounted",
                "unauthenticated calls refused",
                BROKER.to_owned(),
                refusal_counts(f),
                vec![],
            ),
        };
        Some(TimelineEvent {
            index: Some(entry.index),
            at: entry.at,
            kind,
            what,
            is_denial: is_denial(&entry.event),
            who: text::escape_invisible(&who),
            detail: text::escape_invisible(&detail),
            ids,
        })
    }
}

/// Why, and what became of the keys of the operators before.
fn recovery_detail(version: Digest, recovery: &OperatorRecovery) -> String {
    let lost = match recovery.operators_lost {
        true => "the keys of the operators before it are dead unless the bundle registers them",
        false => "no operator had a living key",
    };
    format!("bundle {version}: {}; {lost}", recovery.reason)
}

/// The total, and the most frequent methods and reasons.
fn refusal_counts(counted: &RefusalsCounted) -> String {
    let rows = counted.rows.iter().take(REFUSAL_ROWS_SHOWN_MAX);
    let rows: Vec<String> = rows
        .map(|row| format!("{} {} by {}", row.count, row.reason, row.method))
        .collect();
    let of_them = if rows.is_empty() { "" } else { ": " };
    format!(
        "{} since {}{of_them}{}",
        counted.count,
        counted.since,
        rows.join(", ")
    )
}

/// Most rows of a count of refusals that one event shows.
const REFUSAL_ROWS_SHOWN_MAX: usize = 5;
/// The actor of events without a caller.
const BROKER: &str = "broker";
/// Most ids of an event.
const IDS_MAX: usize = 8;

fn named<T: ToString>(ids: &[T]) -> Vec<String> {
    ids.iter().take(IDS_MAX).map(ToString::to_string).collect()
}

/// Whether the event denies a request: by rule, by a refused vote, or by an approver.
fn is_denial(event: &Event) -> bool {
    match event {
        Event::RequestDenied(_) | Event::VoteRefused(_) => true,
        Event::VoteCast(vote) => vote.verdict == Verdict::Deny,
        _ => false,
    }
}

/// The verification of the evidence, from the entry that opened the task.
fn verified(task: &TaskRecord) -> TimelineEvent {
    let facts = &task.opened.evidence;
    TimelineEvent {
        index: None,
        at: facts.verified_at,
        kind: "",
        what: "evidence verified",
        is_denial: false,
        who: text::escape_invisible(facts.subject.as_str()),
        detail: text::escape_invisible(&format!("{} by key {}", facts.kind.as_str(), facts.kid)),
        ids: Vec::new(),
    }
}

/// The expiry of a token that was not ended before.
fn expired(grant: &Grant, task: &TaskRecord, now: Timestamp) -> Option<TimelineEvent> {
    let at = Timestamp::from_secs(grant.issued.exp);
    let ended = [grant.ended, task.ended];
    let before = ended.iter().flatten().any(|ended| ended.at < at);
    (now >= at && !before).then(|| TimelineEvent {
        index: None,
        at,
        kind: "",
        what: "token expired",
        is_denial: false,
        who: BROKER.to_owned(),
        detail: text::escape_invisible(&format!(
            "{} on {}",
            grant.issued.action.action,
            grant.issued.action.target.in_sentence()
        )),
        ids: vec![grant.issued.jti.to_string()],
    })
}

/// Whether a stored entry mentions the query: as its kind, or as a whole text in its body, parameters excluded.
fn mentions(stored: &str, query: &str) -> bool {
    if query.is_empty() || kind(stored).is_some_and(|kind| kind.eq_ignore_ascii_case(query)) {
        return true;
    }
    // Parsing is expensive: most entries do not contain the bytes at all.
    let last = query.rsplit("::").next().unwrap_or(query);
    let Ok(needle) = json::canonical(&Value::String(last.to_owned())) else {
        return false;
    };
    if !stored.contains(needle.trim_matches('"')) {
        return false;
    }
    let entry = json::parse(stored.as_bytes()).ok();
    entry
        .as_ref()
        .and_then(|entry| entry.get("body"))
        .is_some_and(|body| names(body, query))
}

/// The kind of a stored entry: the last member of that name, since the canonical form puts the body before it.
fn kind(stored: &str) -> Option<&str> {
    let (_, rest) = stored.rsplit_once("\"kind\":\"")?;
    rest.split('"').next()
}

fn names(value: &Value, query: &str) -> bool {
    match value {
        Value::String(text) => text == query,
        Value::Array(items) => items.iter().any(|item| names(item, query)),
        Value::Object(members) => {
            let text = |name: &str| members.get(name).and_then(Value::as_str);
            let target = match (text("type"), text("id")) {
                (Some(kind), Some(id)) => query
                    .strip_prefix(kind)
                    .and_then(|rest| rest.strip_prefix("::"))
                    .is_some_and(|rest| rest == id),
                (None, _) | (_, None) => false,
            };
            let mut others = members.iter().filter(|(name, _)| *name != "parameters");
            target || others.any(|(_, member)| names(member, query))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

/// What time alone changes in what a decision asks of people, in words after them.
fn or_delay(decision: &DecisionRecord) -> String {
    let delay = decision.delay.as_ref();
    delay.map_or_else(String::new, |delay| format!("; or {}", delay.text()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STORED: &str = concat!(
        r#"{"at":1,"body":{"action":{"action":"account.disable","parameters":{"note":"ann","salted":{"commitment":"c0"}},"#,
        r#""target":{"id":"ann","type":"Account"}},"evidence":{"kind":"jwt_svid"},"task":"task_1"},"epoch":1,"index":7,"#,
        r#""kind":"RequestDenied","read_set":[],"v":1,"write_set":["task:task_2"]}"#
    );

    #[test]
    fn search_matches_whole_tokens() {
        for hit in [
            "",
            "RequestDenied",
            "requestdenied",
            "account.disable",
            "ann",
            "Account::ann",
            "task_1",
        ] {
            assert!(mentions(STORED, hit), "{hit}");
        }
        for miss in [
            "an",
            "account",
            "TokenIssued",
            "kind",
            "task_2",
            "c0",
            "Host::ann",
            "Account::",
            "\"",
            "body",
        ] {
            assert!(!mentions(STORED, miss), "{miss}");
        }
        let only_a_parameter = STORED.replace(r#"{"id":"ann","#, r#"{"id":"bob","#);
        assert!(!mentions(&only_a_parameter, "ann"));
    }
}
