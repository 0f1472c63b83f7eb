//! Named facts: what an operator sets for a while without a new bundle.
//!
//! The safe value takes one operator. The other one takes what a change of the bundle takes: where others have to agree, an access request
//! that they approve. A value that is not the normal one stands for a bounded time, and one that is not safe only while the bundle in
//! force declares the fact as it did.

use std::sync::Arc;
use std::time::Duration;

use crate::approve::needs;
use crate::broker::governance::disallowed::close_all;
use crate::broker::governance::proposal::{NewProposal, ProposalReply};
use crate::broker::transaction::Step;
use crate::broker::{Broker, CallContext, PersonCaller, Refusal};
use crate::journal::Blob;
use crate::model::text::nearest_word;
use crate::model::*;
use crate::policy::{ActivePolicy, DeclaredFact, PolicyBundle, sentences};
use crate::state::{AccessRequest, Draft, FactSetting, Read, Recorded};

/// What an operator orders of a fact.
#[derive(Debug, Clone)]
pub struct FactOrder {
    /// The fact.
    pub fact: FactName,
    /// Its value.
    pub value: bool,
    /// How long it stands, in seconds; absent for the normal value, which has no end.
    pub seconds: Option<u32>,
    /// Why, in the operator's words, for those who must agree.
    pub reason: Option<UntrustedText>,
}

/// What an order of a fact came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FactOutcome {
    /// It has the value.
    InForce {
        /// When it is its normal value again; absent for that.
        until: Option<Timestamp>,
        /// False: it had the value before, and nothing was recorded.
        changed: bool,
    },
    /// Others have to agree first.
    Waits(ProposalReply),
}

/// A fact of the bundle in force.
#[derive(Debug, Clone)]
pub struct FactStatus {
    /// What the bundle declares.
    pub declared: DeclaredFact,
    /// Its value now.
    pub value: bool,
    /// The setting by which it has another value than its normal one.
    pub setting: Option<Arc<FactSetting>>,
    /// The rules that read it, by id.
    pub rules: Vec<String>,
    /// Proposals to set it that wait.
    pub proposals: Vec<AccessRequestId>,
}

impl Broker {
    /// Sets a named fact, or proposes to. A crash before the append leaves it as it was; after it, as ordered: tokens that it ends are
    /// refused from the entry on, and ended by entries soon, by this call, by maintenance or after the next start.
    ///
    /// It waits for no sweep: a later setting of the fact brings back no token that an entry disallowed.
    pub async fn set_fact(
        self: &Arc<Self>,
        call: &CallContext,
        order: &FactOrder,
    ) -> Result<FactOutcome, Refusal> {
        let operator = self.authenticate_person(call)?;
        let ordered = self.transaction(call.method).ordered_by(&operator);
        let done = ordered
            .run(|read| self.decide_fact(read, call, &operator, order))
            .await?;
        let FactOutcome::InForce { until, changed } = done.value else {
            return Ok(done.value);
        };
        let changed = changed && done.entry.is_some();
        if changed {
            self.after_fact_change(&order.fact).await;
        }
        Ok(FactOutcome::InForce { until, changed })
    }

    /// One round of an order.
    fn decide_fact(
        &self,
        read: &Read,
        call: &CallContext,
        operator: &PersonCaller,
        order: &FactOrder,
    ) -> Result<Step<FactOutcome>, Refusal> {
        let now = self.now();
        let rules = self.require_operator(read, call, operator)?;
        let name = &order.fact;
        let declared = rules.bundle.fact(name).ok_or_else(|| {
            let near = nearest_word(name.as_str(), rules.bundle.facts().map(|f| f.name.as_str()));
            let near = near.map(|near| format!(": did you mean {near}?"));
            let message = format!(
                "the policy bundle in force declares no fact {name}{}; 'dipylon fact list' shows those that it has",
                near.unwrap_or_default()
            );
            self.refuse(call.method, Reason::NotFound, message)
        })?;
        let setting = read.fact_setting(name);
        let standing = setting.filter(|setting| setting.stands(declared, now));
        let is_normal = order.value == declared.normal;
        let longest = declared.max_s;
        let invalid =
            |rule: String| self.malformed(call.method, &ParseError::new("valid_for", rule));
        let until = match (is_normal, order.seconds) {
            (true, None) => None,
            (true, Some(_)) => {
                let value = order.value;
                let rule = format!(
                    "{value} is the normal value of {name}, which has no end: leave the time out"
                );
                return Err(invalid(rule));
            }
            (false, Some(seconds)) if (1..=longest).contains(&seconds) => {
                Some(now.plus_secs(seconds.into()))
            }
            (false, seconds) => {
                let longest = format_seconds(longest.into());
                let rule = match seconds {
                    None => format!(
                        "{} is not the normal value of {name}: say how long it stands, at most {longest}",
                        order.value
                    ),
                    Some(seconds) => format!(
                        "{} is not within 1s and {longest}, the longest time of {name}",
                        format_seconds(seconds.into())
                    ),
                };
                return Err(invalid(rule));
            }
        };
        // One hand ends no safe value earlier than it would end.
        let stands = standing
            .as_ref()
            .filter(|setting| setting.set.value == order.value);
        let until = match order.value == declared.safe {
            true => until.max(stands.and_then(|setting| setting.set.until)),
            false => until,
        };
        let reason = order.reason.as_ref();
        let reason = reason.map(|text| Blob::new(text.blob(self.random_bytes())));
        let set = |proposal: Option<AccessRequestId>| {
            Event::FactSet(FactSet {
                reason: reason
                    .as_ref()
                    .filter(|_| proposal.is_none())
                    .map(Blob::hash),
                fact: name.clone(),
                value: order.value,
                until,
                declared: declared.digest(),
                by: operator.id.clone(),
                proposal,
            })
        };
        let in_force = |changed| FactOutcome::InForce { until, changed };
        let is_so = stands
            .is_some_and(|setting| setting.set.until == until && order.value == declared.safe);
        if is_so || is_normal && standing.is_none() {
            // The safe value ends what waits for the other one, also where it stands already.
            let waiting = match order.value == declared.safe {
                true => self.proposals_of_fact(read, name, now),
                false => Vec::new(),
            };
            return Ok(match waiting.is_empty() {
                true => Step::Answer(in_force(false)),
                false => Step::Append(close_all(waiting, CloseCause::Policy), in_force(false)),
            });
        }
        // Decided anew where the time of what stands, or of the order itself, is over before its entry.
        let stands_until = standing.as_ref().and_then(|setting| setting.set.until);
        let within = |draft: Draft, agreed: Option<Timestamp>| {
            let limits = [stands_until, until, agreed].into_iter().flatten();
            match limits.min() {
                Some(limit) => draft.not_after(limit),
                None => draft,
            }
        };
        let others = match order.value == declared.safe {
            true => None,
            false => read.change_profile(),
        };
        let Some(profile) = others else {
            let draft = within(Draft::one(set(None)).with_blobs(reason.clone()), None);
            return Ok(Step::Append(draft, in_force(true)));
        };
        let proposed = Proposed::Fact {
            fact: name.clone(),
            value: order.value,
            seconds: order.seconds,
            declared: declared.digest(),
        };
        let is_same = |request: &Recorded<'_, AccessRequest>| {
            let by = request.opened.by_person();
            by.is_some_and(|by| by.proposed == proposed)
        };
        let own = read.proposals_of(&operator.id, now);
        if let Some(request) = own.into_iter().find(is_same) {
            let id = request.opened.access_request;
            if let Some(agreed) = self.agreed_until(read, &request, &rules, now) {
                let draft = within(Draft::one(set(Some(id))), Some(agreed));
                return Ok(Step::Append(draft, in_force(true)));
            }
            return Ok(Step::Answer(FactOutcome::Waits(ProposalReply {
                access_request: id,
                expires_at: request.opened.expires_at,
            })));
        }
        let changes = sentences::of_fact(&rules.bundle, &proposed).unwrap_or_default();
        let proposal = NewProposal {
            operator,
            proposed,
            changes,
            reason: order.reason.as_ref(),
            blobs: Vec::new(),
        };
        let (draft, reply) = self.draft_proposal(read, call, proposal, (&rules, &profile))?;
        Ok(Step::Append(draft, FactOutcome::Waits(reply)))
    }

    /// Sets the fact of a proposal that enough people agree to, in its proposer's name and for its time from now on; nothing when they do
    /// not.
    pub(in crate::broker) async fn set_agreed_fact(
        self: &Arc<Self>,
        method: &'static str,
        id: AccessRequestId,
    ) -> Result<(), Refusal> {
        let done = self.transaction(method).applying().run(|read| {
            let now = self.now();
            let (Some(rules), Some(request)) = (read.rules(), read.access_request(&id)) else {
                return Ok(Step::Answer(Agreed::No));
            };
            let agreed = match request.is_pending(now) {
                true => self.agreed_until(read, &request, &rules, now),
                false => None,
            };
            let asked = read.change_profile().map(|profile| profile.reference());
            let proposed = request.opened.by_person();
            let proposed = proposed.filter(|by| asked.as_ref() == Some(&by.needs));
            let (Some(agreed), Some(by)) = (agreed, proposed) else {
                return Ok(Step::Answer(Agreed::No));
            };
            let Proposed::Fact {
                fact,
                value,
                seconds,
                declared,
            } = &by.proposed
            else {
                return Ok(Step::Answer(Agreed::No));
            };
            if !needs::can_be_set(&request, self.voter_context(read, &rules), now) {
                let close = AccessRequestClosed {
                    access_request: id,
                    cause: CloseCause::Policy,
                    voting_started: false,
                };
                let draft = Draft::one(Event::AccessRequestClosed(close));
                return Ok(Step::Append(draft, Agreed::No));
            }
            let set = FactSet {
                fact: fact.clone(),
                value: *value,
                until: seconds.map(|seconds| now.plus_secs(seconds.into())),
                declared: *declared,
                by: by.person.clone(),
                reason: None,
                proposal: Some(id),
            };
            // Decided anew where the time of what stands is over before its entry.
            let standing = read
                .fact_setting(fact)
                .and_then(|setting| setting.set.until);
            let standing = standing.filter(|until| now < *until);
            let own = seconds.map(|seconds| now.plus_secs(seconds.into()));
            let limit = [standing, own]
                .into_iter()
                .flatten()
                .fold(agreed, Timestamp::min);
            let draft = Draft::one(Event::FactSet(set)).not_after(limit);
            Ok(Step::Append(draft, Agreed::Set(fact.clone())))
        });
        let done = done.await?.value;
        if let Agreed::Set(fact) = done {
            self.after_fact_change(&fact).await;
        }
        Ok(())
    }

    /// Ends what a changed fact disallows, and asks anew for what it changes, in a task of its own: for a moment within the call, then
    /// beside it. What fails is left to maintenance.
    async fn after_fact_change(self: &Arc<Self>, fact: &FactName) {
        let (broker, name) = (Arc::clone(self), fact.clone());
        let ending = tokio::spawn(async move {
            let ended = async {
                let _alone = broker.policy_lock.lock().await;
                broker.revoke_disallowed().await?;
                let waiting = broker.show().unclosed_requests();
                broker.reassess_requests(waiting).await.outcome()
            };
            if let Err(error) = ended.await {
                tracing::warn!(fact = %name, %error, "what the fact changes has not ended yet; maintenance tries again");
            }
        });
        let _goes_on = tokio::time::timeout(ENDING_TIME, ending).await;
        let set = self.show().fact_setting(fact);
        if let Some(setting) = set {
            let FactSet {
                value, until, by, ..
            } = &setting.set;
            let until = until.map(|until| until.to_string());
            tracing::info!(%fact, value, until, %by, position = setting.index, "a fact was set");
        }
    }

    /// The proposals to set a fact that wait.
    fn proposals_of_fact(
        &self,
        read: &Read,
        name: &FactName,
        now: Timestamp,
    ) -> Vec<AccessRequestId> {
        let is_of = |request: &AccessRequest| {
            let by = request.opened.by_person();
            by.is_some_and(|by| by.proposed.fact() == Some(name))
        };
        let waiting = self.show().pending_requests(now).into_iter();
        let ids = waiting
            .filter(|request| is_of(request))
            .map(|request| request.opened.access_request);
        // As many as one entry may rest on; the same order again ends the others.
        ids.filter(|id| read.access_request(id).is_some_and(|r| r.is_pending(now)))
            .take(CLOSED_MAX)
            .collect()
    }

    /// The facts of the bundle in force.
    pub fn facts(&self, call: &CallContext) -> Result<Vec<FactStatus>, Refusal> {
        let now = self.now();
        self.authenticate_reader(call, now)?;
        let proposals = self.show().pending_requests(now);
        let status = |rules: &ActivePolicy| -> Vec<FactStatus> {
            let of = |declared: &DeclaredFact| {
                let setting = self.show().fact_setting(&declared.name);
                let setting = setting.filter(|setting| setting.stands(declared, now));
                let is_of = |request: &AccessRequest| {
                    let by = request.opened.by_person();
                    by.is_some_and(|by| matches!(&by.proposed, Proposed::Fact { fact, .. } if *fact == declared.name))
                };
                let waiting = proposals.iter().filter(|request| is_of(request));
                FactStatus {
                    value: setting
                        .as_ref()
                        .map_or(declared.normal, |setting| setting.set.value),
                    setting,
                    rules: first_of(rules.bundle.rules_reading(&declared.name)),
                    proposals: waiting.map(|r| r.opened.access_request).collect(),
                    declared: declared.clone(),
                }
            };
            rules.bundle.facts().map(of).collect()
        };
        let rules = self.show().rules();
        Ok(rules.map_or_else(Vec::new, |rules| status(&rules)))
    }

    /// A sentence for each fact that has another value than its normal one: what becomes of it when another bundle comes in force.
    pub(super) fn facts_under(&self, candidate: &PolicyBundle, now: Timestamp) -> Vec<String> {
        let Some(rules) = self.show().rules() else {
            return Vec::new();
        };
        let sentence = |declared: &DeclaredFact| {
            let setting = self.show().fact_setting(&declared.name)?;
            setting.stands(declared, now).then_some(())?;
            let next = candidate.fact(&declared.name);
            let becomes = match next {
                None => "it goes".to_owned(),
                Some(next) if setting.is_of(next) => "it stays".to_owned(),
                Some(next) => format!("it becomes {}, its normal value", next.normal),
            };
            let FactSet { value, by, .. } = &setting.set;
            let name = &declared.name;
            Some(format!("the fact {name} is {value} by {by}: {becomes}"))
        };
        rules.bundle.facts().filter_map(sentence).collect()
    }

    /// A sentence for each fact that has another value than its normal one, for inboxes and pages.
    pub(in crate::broker) fn fact_notices(&self, now: Timestamp) -> Vec<String> {
        let Some(rules) = self.show().rules() else {
            return Vec::new();
        };
        let notice = |declared: &DeclaredFact| {
            let setting = self.show().fact_setting(&declared.name)?;
            let (set, until) = (&setting.set, setting.set.until?);
            let is_true = match set.value {
                true => "is true",
                false => "is not true",
            };
            setting.stands(declared, now).then(|| {
                format!(
                    "fact {}: until {until} it {is_true} that {}: set by {}; operators set it back: 'dipylon fact clear {}'",
                    declared.name,
                    text::quote(&declared.title),
                    set.by,
                    declared.name
                )
            })
        };
        rules.bundle.facts().filter_map(notice).collect()
    }
}

/// The first names, and how many more there are.
fn first_of(mut names: Vec<String>) -> Vec<String> {
    let more = names.len().saturating_sub(NAMED_MAX);
    names.truncate(NAMED_MAX);
    if more > 0 {
        names.push(format!("and {more} more"));
    }
    names
}

/// Most proposals that one order ends beside a setting.
const CLOSED_MAX: usize = 12;
/// How long a call waits for the ends that its fact brings; they go on without it.
const ENDING_TIME: Duration = Duration::from_secs(2);
/// Most rules that a list names for a fact: eight facts fit into a message.
const NAMED_MAX: usize = 40;

/// What a round that sets an agreed fact came to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Agreed {
    Set(FactName),
    /// It is not, or no longer, agreed.
    No,
}
