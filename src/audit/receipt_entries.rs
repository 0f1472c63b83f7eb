//! The entries of a token receipt: which there must be, and how each names the next.
//!
//! Streams link them. An entry names each stream that its decision read or that it advances with the version the stream had: 1 + the
//! index of the entry that advanced it last. So the issue of a token names the policy bundle, the signing key and the task that it
//! rests on and the last vote; each vote names the vote before it; each use names the use before it. None can be left out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::receipt::{ReceiptError, ReceiptPart, TokenReceipt};
use crate::model::*;

/// What the entries of a receipt say about its token.
#[derive(Debug)]
pub struct RecordedToken {
    /// Index of the issuing entry.
    pub index: u64,
    /// The issuing entry's time.
    pub at: Timestamp,
    /// The issuing entry's body.
    pub issued: Arc<TokenIssued>,
    /// Index of the entry that opened the task.
    pub task_index: u64,
    /// The entry that opened the task.
    pub task: TaskOpened,
    /// Index of the entry that put the policy bundle in force.
    pub policy_index: u64,
    /// The task that an advisory agent recommended it in; absent for a token that the agent itself requested.
    pub recommended_in: Option<TaskOpened>,
    /// The access request that it consumed, with the index of its entry.
    pub(super) request: Option<RecordedRequest>,
    /// Indexes of the votes on it, oldest first.
    pub vote_indexes: Vec<u64>,
    /// Number of uses on record.
    pub uses: usize,
    /// Number of reissues on record.
    pub reissues: usize,
    /// The first entry that ended it: index, time, kind.
    pub end: Option<(u64, Timestamp, &'static str)>,
}

/// The entries, each of which must be taken by one of the token's parts.
struct Entries<'a> {
    all: &'a BTreeMap<u64, Entry>,
    taken: BTreeSet<u64>,
}

fn refuse<T>(why: impl Into<String>) -> Result<T, ReceiptError> {
    Err(ReceiptError::new(ReceiptPart::Entries, why))
}

/// The version of a stream in a read set or write set.
fn version_in(set: &[(Stream, Version)], stream: &Stream) -> Option<Version> {
    let found = set.iter().find(|(named, _)| named == stream);
    found.map(|(_, version)| *version)
}

impl<'a> Entries<'a> {
    fn take(&mut self, index: u64, what: &str) -> Result<&'a Entry, ReceiptError> {
        let Some(entry) = self.all.get(&index) else {
            return refuse(format!("entry {index} is missing: {what}"));
        };
        self.taken.insert(index);
        Ok(entry)
    }

    /// The entry that advanced a stream last before `entry`, which read it.
    fn read_by(
        &mut self,
        entry: &Entry,
        stream: &Stream,
        what: &str,
    ) -> Result<&'a Entry, ReceiptError> {
        let version = version_in(&entry.read_set, stream).filter(|version| *version > 0);
        match version {
            Some(version) => self.take(version - 1, what),
            None => refuse(format!("entry {} does not rest on {stream}", entry.index)),
        }
    }
}

impl RecordedToken {
    /// Finds the parts of the token among the entries. Refuses a part that is missing, of another token, task or request, and an
    /// entry that is none.
    pub(super) fn find(
        receipt: &TokenReceipt,
        all: &BTreeMap<u64, Entry>,
    ) -> Result<Self, ReceiptError> {
        let taken = BTreeSet::new();
        let mut entries = Entries { all, taken };
        let first = entries.take(0, "the start of the journal, which names its realm")?;
        match &first.event {
            Event::EpochStarted(f) if f.realm == receipt.realm => {}
            _ => return refuse("entry 0 does not start a journal of this realm"),
        }
        let is_issue =
            |entry: &&Entry| matches!(&entry.event, Event::TokenIssued(f) if f.jti == receipt.jti);
        let Some(issue) = all.values().find(is_issue) else {
            return refuse("the issue of this token is missing");
        };
        entries.taken.insert(issue.index);
        let Event::TokenIssued(issued) = &issue.event else {
            return refuse("the issue of this token is missing");
        };
        let policy = entries.read_by(issue, &Stream::Policy, "the policy bundle")?;
        let is_policy = |f: &PolicyApplied| f.version == issued.decision.policy;
        if !matches!(&policy.event, Event::PolicyApplied(f) if is_policy(f)) {
            return refuse(format!(
                "entry {} is not the policy bundle that decided",
                policy.index
            ));
        }
        let key = entries.read_by(issue, &Stream::Key(issued.kid.clone()), "the signing key")?;
        if !matches!(&key.event, Event::KeyPublished(f) if f.kid == issued.kid) {
            return refuse(format!(
                "entry {} does not publish the token's key",
                key.index
            ));
        }
        let opening = entries.read_by(issue, &Stream::Task(issued.task), "the task")?;
        let Event::TaskOpened(task) = &opening.event else {
            return refuse(format!(
                "entry {} does not open the token's task",
                opening.index
            ));
        };
        if task.task != issued.task || task.agent != issued.agent || task.binding != issued.cnf {
            return refuse("the token is of another task, agent or key than its task");
        }
        let (request, vote_indexes) = entries.approval(issue, issued)?;
        let opened = request.as_ref().map(|request| &request.opened);
        let recommended_in = match opened.and_then(|opened| opened.task()) {
            Some(id) if id != issued.task => Some(entries.recommendation(issue, id)?),
            _ => None,
        };
        if recommended_in.as_ref().is_some_and(|other| {
            other.key_identity == task.key_identity
                || other.evidence.subject == task.evidence.subject
        }) {
            return refuse("the token is for the workload or key that recommended it");
        }
        entries.enrolments(&vote_indexes)?;
        let mut token = Self {
            index: issue.index,
            at: issue.at,
            issued: Arc::new(issued.clone()),
            task_index: opening.index,
            task: task.clone(),
            policy_index: policy.index,
            recommended_in,
            request,
            vote_indexes,
            uses: 0,
            reissues: 0,
            end: None,
        };
        token.add_later(receipt, &mut entries)?;
        token.add_end(&mut entries)?;
        match all.keys().find(|index| !entries.taken.contains(index)) {
            Some(other) => refuse(format!("entry {other} is no part of this token's record")),
            None => Ok(token),
        }
    }

    /// The task that its access request was opened in.
    pub(super) fn requested_in(&self) -> &TaskOpened {
        self.recommended_in.as_ref().unwrap_or(&self.task)
    }

    /// Reissues and uses, each of which names the one before it.
    fn add_later(
        &mut self,
        receipt: &TokenReceipt,
        entries: &mut Entries<'_>,
    ) -> Result<(), ReceiptError> {
        let (jti, token) = (self.issued.jti, Stream::Token(self.issued.jti));
        let mut last = self.index;
        for (index, entry) in entries.all.range(self.index.saturating_add(1)..) {
            let Some(version) = version_in(&entry.write_set, &token) else {
                continue;
            };
            if !receipt.uses_omitted && version != last.saturating_add(1) {
                return refuse(format!(
                    "an entry of the token is missing before entry {index}"
                ));
            }
            match &entry.event {
                Event::TokenReissued(f) if f.jti == jti && !receipt.uses_omitted => {
                    self.reissues += 1;
                }
                Event::TokenConsumed(f) if f.jti == jti && !receipt.uses_omitted => self.uses += 1,
                Event::GrantsEnded(f) if f.jtis.contains(&jti) => {
                    self.end
                        .get_or_insert((*index, entry.at, entry.event.kind()));
                }
                _ => return refuse(format!("entry {index} is no part of this token's record")),
            }
            entries.taken.insert(*index);
            last = *index;
        }
        Ok(())
    }

    /// The one other entry after the issue: what ended the task or the scope it was in.
    fn add_end(&mut self, entries: &mut Entries<'_>) -> Result<(), ReceiptError> {
        let later = entries.all.range(self.index.saturating_add(1)..);
        let mut others = later.filter(|(index, _)| !entries.taken.contains(index));
        let Some((index, entry)) = others.next() else {
            return Ok(());
        };
        let (issued, task) = (&self.issued, &self.task);
        let ends = match &entry.event {
            Event::TaskEnded(f) => f.tasks.contains(&issued.task),
            Event::AgentSuspended(f) => f.agent == issued.agent,
            Event::Frozen(f) => match &f.scope {
                FreezeScope::All => true,
                FreezeScope::Agent(agent) => *agent == issued.agent,
                // The owner of today may be another one than the task's.
                FreezeScope::Owner(_) => true,
                FreezeScope::Action(action) => *action == issued.action.action,
            },
            Event::TrustBundleChanged(f) => {
                f.removed.contains(&issued.evidence.kid) || f.removed.contains(&task.evidence.kid)
            }
            _ => false,
        };
        if !ends {
            return refuse(format!("entry {index} is no part of this token's record"));
        }
        let earlier = self.end.filter(|(end, ..)| end < index);
        self.end = earlier.or(Some((*index, entry.at, entry.event.kind())));
        let index = *index;
        entries.taken.insert(index);
        Ok(())
    }
}

/// An access request with the index of its entry, and the indexes of its votes.
type Approval = (Option<RecordedRequest>, Vec<u64>);

/// The access request of a token: its opening, and what it required when the token was issued.
#[derive(Debug, Clone)]
pub(super) struct RecordedRequest {
    /// The opening.
    pub opened: AccessRequestOpened,
    /// The profiles that it required last.
    pub required: Vec<ProfileRef>,
    /// Those of them that were left after the time that the token's decision says it had waited.
    pub required_after_delay: Vec<ProfileRef>,
}

impl Entries<'_> {
    /// The access request that the token consumed, and every vote on it, back from the issue.
    fn approval(&mut self, issue: &Entry, issued: &TokenIssued) -> Result<Approval, ReceiptError> {
        let claimed = issued.approval.as_ref().map(|claim| claim.access_request);
        // The last decision about what it required, and when it was recorded.
        let mut required = None;
        let waited_ms = issued.decision.input.waited_ms;
        let Some(id) = issued.consumed else {
            return match claimed {
                Some(_) => refuse("the token has an approval and consumed no access request"),
                None if waited_ms != 0 => {
                    refuse("the token waited for a delay and consumed no access request")
                }
                None => Ok((None, Vec::new())),
            };
        };
        if claimed.is_some_and(|claimed| claimed != id) {
            return refuse("the approval is of another access request than the token consumed");
        }
        let stream = Stream::AccessRequest(id);
        let (mut at, mut votes) = (issue, Vec::new());
        loop {
            let before =
                version_in(&at.write_set, &stream).and_then(|version| version.checked_sub(1));
            let Some(index) = before.filter(|index| *index < at.index) else {
                return refuse(format!(
                    "entry {} does not continue the access request",
                    at.index
                ));
            };
            let what = "the opening of the access request or a vote on it";
            at = self.take(index, what)?;
            match &at.event {
                Event::VoteCast(f) if f.access_request == id => votes.push(index),
                // The last one says what the approval had to be.
                Event::AccessRequestReassessed(f) if f.access_request == id => {
                    required.get_or_insert_with(|| (f.decision.clone(), at.at));
                }
                Event::AccessRequestOpened(f) if f.access_request == id => {
                    votes.reverse();
                    check_request(f, issued)?;
                    let Some(by) = f.by_agent() else {
                        return refuse("the token consumed the proposal of a person");
                    };
                    let (decision, since) =
                        required.unwrap_or_else(|| (by.decision.clone(), at.at));
                    let is_shown = decision.policy == issued.decision.policy
                        && decision.input.facts == issued.decision.input.facts
                        && decision.has_sound_delay();
                    let waited =
                        is_shown && decision.may_have_waited(waited_ms, issue.at.since(since));
                    if waited_ms != 0 && !waited {
                        return refuse(format!(
                            "the token says that its access request waited {waited_ms} ms, which it did not do under what it required last"
                        ));
                    }
                    let request = RecordedRequest {
                        opened: f.clone(),
                        required_after_delay: decision.required_after(waited_ms).to_vec(),
                        required: decision.required_profiles,
                    };
                    return Ok((Some(request), votes));
                }
                _ => {
                    return refuse(format!(
                        "entry {index} is neither a vote nor the opening of the access request"
                    ));
                }
            }
        }
    }

    /// The opening of the task in which an advisory agent recommended the action.
    fn recommendation(&mut self, issue: &Entry, id: TaskId) -> Result<TaskOpened, ReceiptError> {
        let what = "the task of the recommendation";
        let opening = self.read_by(issue, &Stream::Task(id), what)?;
        match &opening.event {
            Event::TaskOpened(task) if task.task == id => Ok(task.clone()),
            _ => refuse(format!("entry {} does not open {what}", opening.index)),
        }
    }

    /// The enrolment of each passkey that voted.
    fn enrolments(&mut self, votes: &[u64]) -> Result<(), ReceiptError> {
        for index in votes {
            let Some(Event::VoteCast(cast)) = self.all.get(index).map(|entry| &entry.event) else {
                continue;
            };
            if cast.assertion.is_some() {
                let Some((enrolment, _)) = enrolment(self.all, *index, cast) else {
                    return refuse(format!(
                        "the enrolment of the passkey of the vote in entry {index} is missing"
                    ));
                };
                self.taken.insert(enrolment);
            }
        }
        Ok(())
    }
}

/// The enrolment of the passkey of a vote, before the vote.
pub(super) fn enrolment<'a>(
    all: &'a BTreeMap<u64, Entry>,
    vote: u64,
    cast: &VoteCast,
) -> Option<(u64, &'a PasskeyOnRecord)> {
    all.range(..vote)
        .find_map(|(index, entry)| match &entry.event {
            Event::ApproverEnrolled(f) if f.person == cast.voter && f.passkey.key == cast.key => {
                Some((*index, &f.passkey))
            }
            _ => None,
        })
}

fn check_request(opened: &AccessRequestOpened, issued: &TokenIssued) -> Result<(), ReceiptError> {
    let is_own = match opened.executor() {
        None => opened.task() == Some(issued.task) && opened.agent() == Some(&issued.agent),
        Some(executor) => {
            executor.agent == issued.agent
                && opened.task() != Some(issued.task)
                && opened.agent() != Some(&issued.agent)
        }
    };
    if !is_own {
        return refuse("the access request is of another task or agent than the token");
    }
    if !is_same_action(&opened.action, &issued.action) {
        return refuse("the access request is for another action than the token");
    }
    Ok(())
}

/// Whether two records are of the same action, as far as they disclose it: each record has salts of its own.
fn is_same_action(one: &ActionOnRecord, other: &ActionOnRecord) -> bool {
    let commits = |value: &serde_json::Value| value.get("$commitment").is_some();
    let is_sensitive = |action: &ActionOnRecord| action.parameters.values().any(commits);
    one.action == other.action
        && one.audience == other.audience
        && one.target == other.target
        && one.parameters.len() == other.parameters.len()
        && one.parameters.iter().all(|(name, value)| {
            // A catalogue may have marked or unmarked the parameter in between: then a reader cannot compare it.
            let same = |there| value == there || commits(value) || commits(there);
            other.parameters.get(name).is_some_and(same)
        })
        && (is_sensitive(one) || is_sensitive(other) || one.digest == other.digest)
}
