//! Explanations: why a decision, task, token, access request or refused call is as it is.

use super::facts_lines;
use crate::approve::facts::rule_effect;
use crate::approve::votes;
use crate::broker::approval::card::key_note;
use crate::broker::query::decision_facts::{CeilingMiss, DecisionFacts, RuleInput};
use crate::broker::refusals::REFUSALS_KEPT_MAX;
use crate::broker::{AccessRequestStatus, Broker, CallContext, Refusal};
use crate::model::*;
use crate::policy::{NearestPermit, RuleFailure};
use crate::state::{AccessRequest, Grant, Shown, StoredStatus};

/// The explanation of a decision, task, token, access request or refused call.
#[derive(Debug, Default)]
pub struct Explanation {
    /// The summary, in one line that is safe to print.
    pub headline: String,
    /// Labels and texts, in reading order. Every text is safe to print.
    pub lines: Vec<(String, String)>,
    /// The journal entries behind it.
    pub entries: Vec<String>,
    /// What rules saw, for an id with a decision of gate 2.
    pub input: Option<RuleInput>,
    /// Of a denial because no rule allows it: the permit that came closest.
    pub nearest: Option<NearestPermit>,
    /// Of a denial because rules could not be evaluated: these, with the errors.
    pub failures: Vec<RuleFailure>,
    /// Of a denial by the agent's ceiling: what the ceiling has.
    pub ceiling: Option<CeilingMiss>,
}

impl Explanation {
    pub(super) fn line(&mut self, label: &str, text: impl Into<String>) {
        self.lines
            .push((label.to_owned(), text::escape_invisible(&text.into())));
    }

    /// A line for each of the newest items, oldest first, and one that counts the rest. `all` is ordered oldest first.
    fn newest<T>(&mut self, label: &str, all: &[T], format: impl Fn(&T) -> String) {
        let mut left = LISTED_BYTES_MAX;
        let mut texts = Vec::new();
        for item in all.iter().rev().take(LISTED_MAX) {
            let text = text::escape_invisible(&format(item));
            let cost = line_bytes(label, &text);
            if cost > left {
                break;
            }
            left -= cost;
            texts.push(text);
        }
        let more = all.len() - texts.len();
        for text in texts.into_iter().rev() {
            self.lines.push((label.to_owned(), text));
        }
        if more > 0 {
            self.line(label, format!("and {more} more, older than these"));
        }
    }

    /// Drops the last lines that exceed one message with so many bytes reserved in it, and says how many. The entries stay whole: an
    /// entry is shorter than half of a message, and there is one at most.
    fn fit(mut self, reserved: usize) -> Self {
        self.headline = text::escape_invisible(&self.headline);
        let entries: usize = self.entries.iter().map(String::len).sum();
        let mut left = EXPLANATION_BYTES_MAX
            .saturating_sub(reserved)
            .saturating_sub(entries)
            .saturating_sub(self.headline.len());
        let fits = |(label, text): &&(String, String)| {
            let rest = left.checked_sub(line_bytes(label, text));
            left = rest.unwrap_or(0);
            rest.is_some()
        };
        let kept = self.lines.iter().take_while(fits).count();
        let left_out = self.lines.len() - kept;
        if left_out > 0 {
            self.lines.truncate(kept);
            self.line(
                "left out",
                format!("{left_out} more lines, too long for one answer"),
            );
        }
        self
    }
}

/// The wire size of a line.
const fn line_bytes(label: &str, text: &str) -> usize {
    label.len() + text.len() + LINE_FRAME_BYTES
}

/// Most bytes of an explanation on the wire: below the longest message.
const EXPLANATION_BYTES_MAX: usize = 60 * 1024;
/// Bytes of them that the facts of a decision take at most.
const FACTS_BYTES_MAX: usize = 16 * 1024;
/// Bytes of a line's framing on the wire.
const LINE_FRAME_BYTES: usize = 16;
/// Most characters of a task's purpose.
const PURPOSE_CHARS_MAX: usize = 500;
/// Most tokens, access requests or uses listed, of each.
const LISTED_MAX: usize = 200;
/// Most bytes of such a list on the wire.
const LISTED_BYTES_MAX: usize = 20 * 1024;

impl Broker {
    /// Explains an id: a decision, an access request, a task, a token, or a refused call.
    pub async fn explain(&self, call: &CallContext, id: &str) -> Result<Explanation, Refusal> {
        let now = self.now();
        self.authenticate_reader(call, now)?;
        let facts = match self.decision_entry(id) {
            Some(index) => self.decision_facts(index).await,
            None => DecisionFacts::default(),
        };
        let found = match id.split_once('_').map(|(prefix, _)| prefix) {
            Some("dec") => DecisionId::parse(id)
                .ok()
                .and_then(|id| self.show().decision_index(&id))
                .map(|i| self.explain_entry(i, &facts, true)),
            Some("areq") => AccessRequestId::parse(id)
                .ok()
                .and_then(|id| self.explain_access_request(call, &id, &facts)),
            Some("task") => TaskId::parse(id)
                .ok()
                .and_then(|id| self.explain_task(&id, now)),
            Some("tok") => TokenId::parse(id)
                .ok()
                .and_then(|id| self.explain_token(&id, now, &facts)),
            Some("cor") => CorrelationId::parse(id)
                .ok()
                .and_then(|id| self.explain_refusal(&id)),
            _ => None,
        };
        let reserved = match &facts.input {
            Some(_) => FACTS_BYTES_MAX,
            None => 0,
        };
        let found = found.map(|found| Explanation {
            input: facts.input,
            nearest: facts.nearest,
            failures: facts.failures,
            ceiling: facts.ceiling,
            ..found.fit(reserved)
        });
        found.ok_or_else(|| {
            let message = if id.starts_with("cor_") {
                format!(
                    "no refused call with this id is remembered: the broker remembers the latest {REFUSALS_KEPT_MAX} before and \
                     as many after authentication, since its start at {}; its log has earlier ones",
                    self.started_at
                )
            } else {
                "no record has this id".to_owned()
            };
            // The caller is an operator or auditor, who may know.
            Refusal {
                message: message.clone(),
                ..self.refuse(call.method, Reason::NotFound, message)
            }
        })
    }

    /// The entry of the decision that an id stands for.
    fn decision_entry(&self, id: &str) -> Option<u64> {
        let show = self.show();
        match id.split_once('_')?.0 {
            "dec" => show.decision_index(&DecisionId::parse(id).ok()?),
            // The one in force, where the request was reassessed.
            "areq" => {
                let request = show.access_request(&AccessRequestId::parse(id).ok()?)?;
                let decision = request.decision.as_ref();
                decision
                    .and_then(|decision| show.decision_index(&decision.id))
                    .or(Some(request.index))
            }
            "tok" => Some(show.grant(&TokenId::parse(id).ok()?)?.index),
            _ => None,
        }
    }

    fn explain_refusal(&self, id: &CorrelationId) -> Option<Explanation> {
        let refused = self.recent_refusals.find(id)?;
        let mut out = Explanation {
            headline: format!("{} refused {}", refused.method, refused.reason),
            ..Explanation::default()
        };
        out.line("when", refused.at.to_string());
        out.line("why", refused.detail);
        Some(out)
    }

    fn explain_entry(
        &self,
        index: u64,
        facts: &DecisionFacts,
        shows_decision: bool,
    ) -> Explanation {
        let mut out = Explanation {
            headline: format!("entry {index}"),
            ..Explanation::default()
        };
        let Ok(Some(stored)) = self.journal.entry(index) else {
            return out;
        };
        if let Ok(entry) = Entry::parse(&stored.text) {
            out.line("when", entry.at.to_string());
            match &entry.event {
                Event::RequestDenied(f) => {
                    out.headline = format!(
                        "denied {}: {} on {}",
                        f.reason,
                        f.action.action,
                        f.action.target.in_sentence()
                    );
                    out.line("task", f.task.to_string());
                    if let Some(id) = &f.waiting {
                        out.line("waits", format!("{id}, and is not counted again"));
                    }
                    self.explain_evidence(&mut out, &f.evidence);
                    if let Some(decision) = &f.decision {
                        self.explain_decision(&mut out, decision, &f.reason, facts);
                    }
                }
                Event::AccessRequestOpened(f) => {
                    out.headline = format!(
                        "approval needed: {} on {}",
                        f.action.action,
                        f.action.target.in_sentence()
                    );
                    out.line("access request", f.access_request.to_string());
                    match &f.requester {
                        AccessRequester::Agent(by) => {
                            out.line("task", by.task.to_string());
                            if let Some(executor) = &by.executor {
                                out.line("recommended by", by.agent.to_string());
                                let executor = format!("{} of {}", executor.agent, executor.owner);
                                out.line("executor", executor);
                            }
                            self.explain_evidence(&mut out, &by.evidence);
                            self.superseded(&mut out, &f.access_request, &by.decision.id);
                            if shows_decision {
                                self.explain_decision(&mut out, &by.decision, "", facts);
                            }
                        }
                        AccessRequester::Person(by) => {
                            out.line("proposed by", by.person.to_string());
                            match &by.proposed {
                                Proposed::Bundle { .. } => {
                                    out.line("replaces", by.replaces.to_string());
                                }
                                Proposed::Fact { value, seconds, .. } => {
                                    out.line("value", value.to_string());
                                    out.line("under", by.replaces.to_string());
                                    if let Some(seconds) = seconds {
                                        out.line("for", format_seconds((*seconds).into()));
                                    }
                                }
                            }
                        }
                    }
                }
                Event::TokenIssued(f) => {
                    out.headline = format!(
                        "approved: {} on {}",
                        f.action.action,
                        f.action.target.in_sentence()
                    );
                    out.line("task", f.task.to_string());
                    out.line("token", f.jti.to_string());
                    self.explain_evidence(&mut out, &f.evidence);
                    self.explain_decision(&mut out, &f.decision, "", facts);
                }
                Event::AccessRequestReassessed(f) => {
                    out.headline = match &f.decision.delay {
                        None => format!("{} requires other approvals", f.access_request),
                        Some(_) => format!("{} waits anew", f.access_request),
                    };
                    out.line("access request", f.access_request.to_string());
                    self.superseded(&mut out, &f.access_request, &f.decision.id);
                    self.explain_decision(&mut out, &f.decision, "", facts);
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
                | Event::VoteCast(_)
                | Event::VoteRefused(_)
                | Event::AccessRequestClosed(_)
                | Event::ApproverInvited(_)
                | Event::ApproverEnrolled(_)
                | Event::PasskeyConfirmed(_)
                | Event::ApproverKeysRevoked(_)
                | Event::TokenReissued(_)
                | Event::TokenConsumed(_)
                | Event::GrantsEnded(_)
                | Event::RefusalsCounted(_) => {}
            }
        }
        out.entries.push(stored.text);
        out
    }

    /// The decision in force about an access request that was reassessed, and since when; `None` where the one that opened it is.
    fn decision_in_force<'d>(
        &self,
        request: &'d AccessRequest,
    ) -> Option<(&'d DecisionRecord, Timestamp)> {
        let decision = request.decision.as_deref()?;
        let index = self.show().decision_index(&decision.id)?;
        if index == request.index {
            return None;
        }
        let stored = self.journal.entry(index).ok().flatten()?;
        Some((decision, Entry::parse(&stored.text).ok()?.at))
    }

    /// A line about a decision that is not in force any more, because its access request was reassessed after it.
    fn superseded(&self, out: &mut Explanation, id: &AccessRequestId, decision: &DecisionId) {
        let Some(request) = self.show().access_request(id) else {
            return;
        };
        if let Some((now, since)) = self.decision_in_force(&request)
            && now.id != *decision
        {
            let text = format!("{decision}, by {}, in force since {since}", now.id);
            out.line("superseded", text);
        }
    }

    fn explain_evidence(&self, out: &mut Explanation, facts: &EvidenceFacts) {
        out.line(
            "gate 1",
            format!(
                "{} verified {} by key {} at {}, {}",
                facts.subject,
                facts.kind.as_str(),
                facts.kid,
                facts.verified_at,
                match facts.issued_at {
                    Some(at) => format!("issued at {at}"),
                    None => "which does not say when it was issued".to_owned(),
                }
            ),
        );
    }

    fn explain_decision(
        &self,
        out: &mut Explanation,
        decision: &DecisionRecord,
        denied: &str,
        facts: &DecisionFacts,
    ) {
        let in_force = match facts.input.as_ref().map(|input| input.is_in_force) {
            Some(true) => " (in force)",
            Some(false) => " (no longer in force)",
            None => "",
        };
        out.line("decision", decision.id.to_string());
        out.line("policy bundle", format!("{}{in_force}", decision.policy));
        if denied == DeniedReason::NoRuleAllows.as_str() {
            out.line("rules", "no rule allows it: the default is deny");
        }
        for rule in decision.rules.iter() {
            let known = facts.bundle.as_ref();
            let known = known.and_then(|bundle| bundle.rule(&rule.id));
            // Named apart: the rule that allows the action, and the rule because of which it is not simply allowed.
            let label = match known.map(rule_effect) {
                Some(_) if facts.failures.iter().any(|failed| failed.is_of(rule)) => {
                    "rule that fails"
                }
                Some("permit") => "allowed by rule",
                Some("step_up") => "approval required by rule",
                Some("max_ttl") => "lifetime limited by rule",
                Some(_) => "forbidden by rule",
                None => "rule",
            };
            let (location, why) = match known {
                Some(info) => (
                    format!("{}:{}", rule.file, info.line),
                    info.why.clone().unwrap_or_default(),
                ),
                None => (rule.file.to_string(), String::new()),
            };
            out.line(label, format!("{} ({location}) {why}", rule.id));
        }
        facts_lines::misses(out, facts);
        for need in &decision.required_profiles {
            out.line("needs", format!("an approval under {}", need.name));
        }
        if let Some(delay) = &decision.delay {
            out.line("or", delay.text());
        }
        if decision.input.waited_ms > 0 {
            let waited = format_seconds(decision.input.waited_ms / 1_000);
            out.line("waited", format!("{waited} without a no"));
        }
        let bounds: Vec<String> = decision
            .ttl
            .limits
            .iter()
            .map(|b| format!("{} {}", b.source, format_seconds(b.seconds)))
            .collect();
        out.line(
            "ttl",
            format!(
                "{} = least of asked {}, {}",
                format_seconds(decision.ttl.granted),
                format_seconds(decision.ttl.requested),
                bounds.join(", ")
            ),
        );
        facts_lines::input(out, facts);
    }

    fn explain_access_request(
        &self,
        call: &CallContext,
        id: &AccessRequestId,
        facts: &DecisionFacts,
    ) -> Option<Explanation> {
        let request = self.show().access_request(id)?;
        let in_force = self.decision_in_force(&request);
        let mut out = self.explain_entry(request.index, facts, in_force.is_none());
        if let Some((decision, _)) = in_force {
            self.explain_decision(&mut out, decision, "", facts);
        }
        let view = self.view_of(call, id).ok()?;
        out.headline = format!(
            "{}: {} on {}",
            view.status.as_str(),
            request.opened.action.action,
            request.opened.action.target.in_sentence()
        );
        for need in &view.needs {
            let approvals: Vec<String> = need
                .approvers
                .iter()
                .map(|(person, method)| format!("{person} {}", method.signed_by()))
                .collect();
            out.line(
                "profile",
                format!(
                    "{}: {} of {} from {} [{}]",
                    need.profile.name,
                    approvals.len(),
                    need.quorum,
                    need.group,
                    approvals.join(", ")
                ),
            );
        }
        self.explain_votes(&mut out, &request);
        // A request that no longer waits has no deadline; its end is what counts.
        let denied = request.votes.iter().rev();
        let denied = denied
            .filter(|vote| vote.cast.verdict == Verdict::Deny)
            .map(|vote| vote.at)
            .next();
        match view.status {
            AccessRequestStatus::Waiting | AccessRequestStatus::Approved => {
                out.line("waits until", request.opened.expires_at.to_string());
            }
            AccessRequestStatus::Expired | AccessRequestStatus::ApprovalExpired => {
                out.line("expired at", request.opened.expires_at.to_string());
            }
            AccessRequestStatus::Denied => {
                out.line(
                    "denied at",
                    denied.map_or_else(String::new, |at| at.to_string()),
                );
            }
            AccessRequestStatus::Cancelled | AccessRequestStatus::Ended => {
                let ended = self.end_of_request(&request);
                ended.into_iter().for_each(|ended| out.line("ended", ended));
            }
            AccessRequestStatus::Consumed => {}
        }
        Some(out)
    }

    /// The votes about an access request, each with how it was signed.
    fn explain_votes(&self, out: &mut Explanation, request: &AccessRequest) {
        let rules = self.show().rules();
        let void = rules.map(|rules| votes::void_votes(request, &rules.bundle));
        let void = void.unwrap_or_default();
        for (n, vote) in request.votes.iter().enumerate() {
            let changed = void.get(&n).map(|changed| {
                format!(
                    "; APPROVAL VOID: what it was given for has changed: {}",
                    changed.join(", ")
                )
            });
            out.line(
                "vote",
                format!(
                    "{} {} under {}, {}, at {}{}",
                    vote.cast.voter,
                    vote.cast.verdict.as_str(),
                    vote.cast.profile.name,
                    vote.cast.method().signed_by(),
                    vote.at,
                    changed.unwrap_or_default()
                ),
            );
            let enrolled = self.show().person(&vote.cast.voter);
            let passkey = enrolled.passkey(vote.cast.key);
            let note = passkey.and_then(|passkey| key_note(&vote.cast.voter, passkey, request));
            if let Some(note) = note {
                out.line("key", note);
            }
        }
    }

    /// Why an access request ended that nobody decided, and when: by the last entry about it.
    fn end_of_request(&self, request: &AccessRequest) -> Option<String> {
        if request.status == StoredStatus::Pending {
            let task = self.show().task(&request.opened.task()?)?;
            let ended = task.ended?;
            let cause = ended.cause.as_str();
            return Some(format!(
                "{} by entry {}: with its task, {cause}",
                ended.at, ended.index
            ));
        }
        let index = request.version.checked_sub(1)?;
        let stored = self.journal.entry(index).ok().flatten()?;
        let entry = Entry::parse(&stored.text).ok()?;
        let why = match &entry.event {
            Event::AccessRequestClosed(closed) => match closed.cause {
                CloseCause::Cancelled => "cancelled by its agent or its proposer",
                CloseCause::Expired => "expired undecided",
                CloseCause::Policy => {
                    "the policy bundle in force no longer asks for it, or denies it"
                }
                CloseCause::Frozen => "the action was frozen",
                CloseCause::NoEligibleApprover => "too few people are left who could approve it",
            },
            _ => "by another entry",
        };
        Some(format!("{} by entry {index}: {why}", entry.at))
    }

    fn explain_task(&self, id: &TaskId, now: Timestamp) -> Option<Explanation> {
        let task = self.show().task(id)?;
        let ends = match task.ended {
            Some(ended) => format!("ended: {}", ended.cause.as_str()),
            None => match task.expired_cause(now) {
                None => "runs".to_owned(),
                Some(cause) => format!("ended: {}", cause.as_str()),
            },
        };
        let mut out = Explanation {
            headline: format!("task of {}, {ends}", task.opened.agent),
            ..Explanation::default()
        };
        out.line("opened", task.opened.opened_at.to_string());
        out.line("deadline", task.opened.deadline.to_string());
        if let Some(lease) = task.lease {
            out.line("kept alive until", lease.until.to_string());
        }
        if let Some(ended) = task.ended {
            out.line("ended", format!("{} by entry {}", ended.at, ended.index));
        }
        out.line("key", task.opened.binding.jkt().to_string());
        self.explain_evidence(&mut out, &task.opened.evidence);
        if let Some(purpose) = &task.purpose {
            let (head, more) = text::cut(purpose.as_str(), PURPOSE_CHARS_MAX);
            let more = match more {
                0 => String::new(),
                more => format!(" and {more} more characters"),
            };
            let words = format!("{}{more}", text::quote(head));
            out.line("agent says (unverified)", words);
        }
        out.newest("token", &self.show().grants_of_task(id), |grant| {
            let state = self.token_state(grant, now);
            let issued = &grant.issued;
            format!(
                "{} {} on {}, {state}",
                issued.jti,
                issued.action.action,
                issued.action.target.in_sentence()
            )
        });
        out.newest(
            "access request",
            &self.show().requests_of_task(id),
            |request| {
                let opened = &request.opened;
                format!(
                    "{} {} on {}",
                    opened.access_request,
                    opened.action.action,
                    opened.action.target.in_sentence()
                )
            },
        );
        // The entry that opened it, or the one that ended it.
        let (of_task, _) = self.show().task_entries(id);
        let ended = task.ended.map(|ended| ended.index);
        let index = ended.or_else(|| of_task.first().copied())?;
        let stored = self.journal.entry(index).ok().flatten();
        out.entries.extend(stored.map(|stored| stored.text));
        Some(out)
    }

    fn token_state(&self, grant: &Shown<Grant>, now: Timestamp) -> String {
        match self.shown_end_cause(grant, now) {
            Some(cause) => format!("ended: {}", cause.as_str()),
            None if grant.is_spent() => "spent".to_owned(),
            None => "live".to_owned(),
        }
    }

    fn explain_token(
        &self,
        id: &TokenId,
        now: Timestamp,
        facts: &DecisionFacts,
    ) -> Option<Explanation> {
        let grant = self.show().grant(id)?;
        let mut out = self.explain_entry(grant.index, facts, true);
        let state = self.token_state(&grant, now);
        out.headline = format!(
            "token, {state}: {} on {}",
            grant.issued.action.action,
            grant.issued.action.target.in_sentence()
        );
        if let Some(uses) = grant.issued.uses {
            out.line("uses", format!("{} of {uses} spent", grant.uses.len()));
        }
        out.newest("use", &grant.uses, |used| {
            format!("{} {} by entry {}", used.validator, used.use_id, used.index)
        });
        if let Some(request) = grant.issued.consumed {
            out.line("consumed", request.to_string());
            if let Some(request) = self.show().access_request(&request) {
                if let (Some(_), Some(by)) = (request.opened.executor(), request.opened.by_agent())
                {
                    let by = format!("{} of {}, in {}", by.agent, by.owner, by.task);
                    out.line("recommended by", by);
                }
                self.explain_votes(&mut out, &request);
            }
        }
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(all: &[usize], width: usize) -> Vec<String> {
        let mut out = Explanation::default();
        out.newest("token", all, |n| format!("{n:0width$}"));
        out.lines.into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn lists_keep_the_newest_and_count_the_others() {
        let all: Vec<usize> = (0..5_000).collect();
        let listed_few = listed(&all[..LISTED_MAX], 4);
        assert_eq!(listed_few.len(), LISTED_MAX);
        assert_eq!(listed_few.first().map(String::as_str), Some("0000"));
        let many = listed(&all, 4);
        assert_eq!(many.len(), LISTED_MAX + 1);
        assert_eq!((many[0].as_str(), many[199].as_str()), ("4800", "4999"));
        assert_eq!(many[200], "and 4800 more, older than these");
        assert_eq!(listed(&[], 4), [""; 0]);
    }

    #[test]
    fn long_lines_make_a_shorter_list() {
        let all: Vec<usize> = (0..5_000).collect();
        let long = listed(&all, 1_000);
        let bytes: usize = long.iter().map(|text| text.len() + 16).sum();
        assert!(bytes <= LISTED_BYTES_MAX + 64 && long.len() > 15, "{bytes}");
        let more = all.len() + 1 - long.len();
        let ending = format!("and {more} more, older than these");
        assert_eq!(long.last(), Some(&ending));
    }
}
