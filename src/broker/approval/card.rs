//! Approval card: everything an approver reads about an access request.

use std::sync::Arc;

use crate::approve::facts::{self, person_ref};
use crate::broker::{AccessView, Broker, CallContext, Refusal};
use crate::card::{
    AgentFacts, AgentRegistration, Attestation, Card, CountedApproval, ExecutingAgent, PersonFacts,
    PersonRef, ProfileProgress, Requester, RequestingAgent, VoidVote,
};
use crate::model::*;
use crate::policy::PolicyBundle;
use crate::state::{AccessRequest, Passkey, Read};

impl Broker {
    /// The card of an access request that the caller may read, rendered for them. The view is recorded: approving a high-risk action requires a
    /// dwell time.
    pub fn card(
        self: &Arc<Self>,
        call: &CallContext,
        id: &AccessRequestId,
    ) -> Result<Card, Refusal> {
        let now = self.now();
        let reader = self.authenticate_person(call)?;
        let mut card = self.preview(|read| self.card_for(read, call, &reader.id, id, now))?;
        let request = self.show().access_request(id);
        let proposal = request.as_ref().filter(|request| request.is_pending(now));
        if let Some(proposal) = proposal
            && let Some(by) = proposal.opened.by_person()
            && by.bundle().is_some()
        {
            let is_operator = self.preview(|read| self.is_operator(read, &reader));
            card.plan = self.plan_of_proposal(by, proposal.opened_at, is_operator);
        }
        Ok(card)
    }

    fn card_for(
        &self,
        read: &Read,
        call: &CallContext,
        reader: &PersonId,
        id: &AccessRequestId,
        now: Timestamp,
    ) -> Result<Card, Refusal> {
        let rules = self.rules_in_force(read, call)?;
        let request = self.find_readable_request(read, call, reader, id)?;
        let dwell = self.dwell_time(&request, &rules);
        let AccessView {
            request,
            status,
            needs,
            title,
            risk,
            void,
            delay,
        } = self.view(read, &request, &rules, now);
        let opened = &request.opened;
        let bundle = &rules.bundle;
        let facts = facts::card_facts(&request, bundle);
        self.record_card_view(reader, &request, &facts, now);
        let (anomalies, history) = self.anomalies_and_history(&request, reader, bundle, now);
        let need = |need: crate::broker::ProfileState| ProfileProgress {
            key_notes: self.key_notes(&request, &need, reader, bundle),
            profile: need.profile,
            group: need.group,
            quorum: need.quorum,
            approvers: need
                .approvers
                .into_iter()
                .map(|(id, method)| CountedApproval {
                    person: person_ref(bundle, id),
                    method,
                })
                .collect(),
            passkey: need.method == Some(VoteMethod::Passkey),
        };
        let person = |facts: PersonFacts| PersonRef {
            id: facts.id,
            name: Some(facts.name).filter(|name| !name.is_empty()),
        };
        let registration = |agent: AgentFacts| AgentRegistration {
            environment: agent.environment,
            model: agent.model,
            autonomy: agent.autonomy,
        };
        let owner = person(facts.owner);
        let mut purpose = None;
        let requester = match &opened.requester {
            AccessRequester::Person(_) => Requester::Person(owner),
            AccessRequester::Agent(by) => {
                let task = read.task(&by.task).ok_or_else(|| {
                    let message = "the task of the access request is missing";
                    self.refuse(call.method, Reason::DecisionUnavailable, message)
                })?;
                purpose = task.purpose.clone();
                Requester::Agent(Box::new(RequestingAgent {
                    id: by.agent.clone(),
                    owner,
                    registered: facts.agent.map(registration),
                    verified: Attestation {
                        kind: by.evidence.kind.as_str().to_owned(),
                        subject: by.evidence.subject.clone(),
                        issued_at: by.evidence.issued_at,
                        verified_at: by.evidence.verified_at,
                        expires_at: by.evidence.expires_at,
                    },
                    task: by.task,
                    task_key: task.opened.binding.jkt(),
                    executor: facts.executor.map(|executor| ExecutingAgent {
                        id: executor.id,
                        owner: person(executor.owner),
                        registered: executor.agent.map(registration),
                    }),
                }))
            }
        };
        Ok(Card {
            access_request: opened.access_request,
            status,
            realm: self.settings.realm.clone(),
            title,
            effect: facts.action.effect,
            reversible: facts.action.reversible,
            undo: facts.action.undo,
            risk,
            action: request.action.clone(),
            parameter_titles: facts.action.parameters,
            target_attributes: facts.target.map(|all| all.into_iter().collect()),
            openings: request.secret.as_deref().cloned(),
            changes: facts.changes,
            named_facts: facts.facts,
            plan: Vec::new(),
            requester,
            rules: facts::asking_rules(request.rules(), bundle),
            needs: needs.into_iter().map(need).collect(),
            delay,
            void_votes: void
                .into_iter()
                .map(|vote| VoidVote {
                    voter: person_ref(bundle, vote.voter),
                    changed: vote.changed,
                })
                .collect(),
            max_ttl: opened.max_ttl,
            uses: opened.uses,
            policy: bundle.version(),
            opened_at: request.opened_at,
            expires_at: opened.expires_at,
            anomalies,
            history,
            dwell_s: u32::try_from(dwell.as_secs()).unwrap_or(u32::MAX),
            console_url: Some(format!(
                "{}/console/requests/{}",
                self.relying_party().origin,
                opened.access_request
            )),
            purpose,
            reason: request.reason.clone(),
        })
    }

    /// What is unusual about the passkeys that people approved with under a profile, and about the reader's own.
    fn key_notes(
        &self,
        request: &AccessRequest,
        need: &crate::broker::ProfileState,
        reader: &PersonId,
        bundle: &PolicyBundle,
    ) -> Vec<String> {
        let counted = need.approvers.keys().filter_map(|person| {
            let mut votes = request.votes.iter().rev();
            let vote = votes.find(|vote| {
                vote.cast.voter == *person && vote.cast.profile.name == need.profile.name
            })?;
            Some((person, vec![vote.cast.key]))
        });
        let may_offer = bundle.person(reader).is_some_and(|person| {
            person
                .all_groups()
                .any(|group| group.as_str() == need.group)
        });
        let offers = may_offer && !need.approvers.contains_key(reader);
        let offered = offers.then(|| {
            let enrolled = self.show().person(reader);
            (
                reader,
                enrolled.passkeys.iter().map(|p| p.record.key).collect(),
            )
        });
        let note = |(person, keys): (&PersonId, Vec<Thumbprint>)| -> Vec<String> {
            let enrolled = self.show().person(person);
            let passkeys = keys.iter().filter_map(|key| enrolled.passkey(*key));
            passkeys
                .filter_map(|passkey| key_note(person, passkey, request))
                .collect()
        };
        counted.chain(offered).flat_map(note).collect()
    }
}

/// What is unusual about a passkey of a person for an access request: it is younger than a day, or not confirmed.
pub(in crate::broker) fn key_note(
    person: &PersonId,
    passkey: &Passkey,
    request: &AccessRequest,
) -> Option<String> {
    let age_s = request.opened_at.since(passkey.added_at).div_euclid(1_000);
    if age_s >= YOUNG_KEY_S && passkey.confirmation.is_some() {
        return None;
    }
    let by = &passkey.invited_by;
    let confirmed = match &passkey.confirmation {
        Some(known) => format!("confirmed by {}", known.by),
        None => "not confirmed".to_owned(),
    };
    let key = passkey.record.key;
    Some(match passkey.index < request.index {
        true => format!(
            "the passkey {key} of {person} was enrolled {} before this request, on an invitation of {by}, {confirmed}",
            format_seconds(age_s.max(0))
        ),
        false => format!(
            "the passkey {key} of {person} was enrolled after this request was opened, on an invitation of {by}, {confirmed}: it does not count for it"
        ),
    })
}

/// Age below which a passkey is shown, in seconds.
const YOUNG_KEY_S: i64 = 86_400;
