use std::collections::BTreeSet;

use crate::approve::{PendingDecision, votes};
use crate::broker::token::request::{PendingReply, ProfileState, Round, TokenReply, Turn};
use crate::broker::{Broker, Refusal};
use crate::journal::{Append, AppendError, Blob};
use crate::model::*;
use crate::policy::{Approvals, InForce};
use crate::state::{AccessRequest, Asks, Versioned};

/// Longest action that people are asked about, in bytes of its canonical form: what nobody could read, or no message could
/// carry to them, nobody could refuse.
const ASKED_BYTES_MAX: usize = 16 * 1024;

impl Broker {
    /// People are asked. A crash before the append leaves nothing; after it, an access request that the same action in the
    /// same task finds again.
    pub(in crate::broker) async fn open_access_request(
        &self,
        turn: &Turn<'_>,
        pending: PendingDecision,
        asks: &Versioned<Asks>,
    ) -> Result<Round, Refusal> {
        let Turn {
            call,
            ask,
            authenticated,
            rules,
            task,
            now,
            ..
        } = *turn;
        // The owner by today's registration, which `stand` just matched: never eligible to vote.
        let owner = rules
            .bundle
            .agent(&task.opened.agent)
            .map_or_else(|| task.opened.owner.clone(), |a| a.owner.clone());
        let owner_asks = self.state.owner_asks(&owner);
        self.may_ask(turn, &asks.value, &owner_asks.value)?;
        let id = AccessRequestId::from_random(self.draw());
        let (action, secret) = ask
            .action
            .on_record(&pending.sensitive, &mut || self.draw());
        let secret = secret.map(|s| Blob::new(s.blob()));
        let reason = ask
            .reason
            .as_ref()
            .map(|prose| Blob::new(prose.blob(self.draw())));
        let fact = AccessRequestOpened {
            access_request: id,
            task: ask.task,
            agent: task.opened.agent.clone(),
            owner: owner.clone(),
            request_id: ask.request_id.clone(),
            action,
            secret: secret.as_ref().map(Blob::hash),
            reason: reason.as_ref().map(Blob::hash),
            max_ttl: pending.max_ttl,
            uses: pending.uses,
            expires_at: now.plus_secs(pending.wait).min(task.opened.deadline),
            decision: pending.decision,
            evidence: authenticated.facts().clone(),
        };
        let append = Append {
            read_set: pending.read_set,
            not_after: Some(pending.not_after),
            blobs: secret.into_iter().chain(reason).collect(),
            // INVARIANT (one open access request for an action): two openings of one agent cannot both have read `asks`,
            // nor an opening the noes that a vote adds to meanwhile.
            ..Append::one(
                Event::AccessRequestOpened(fact),
                vec![
                    (Stream::Access(id), 0),
                    (Stream::Asks(task.opened.agent.clone()), asks.version),
                    (Stream::OwnerAsks(owner), owner_asks.version),
                    // One request id cannot become a grant for one action and a question about another.
                    (
                        Stream::Request(ask.task, ask.request_id.clone()),
                        turn.request_version,
                    ),
                ],
            )
        };
        match self.journal.append(append).await {
            Ok(entry) => match self.state.access_request(&id) {
                // As of its opening: a vote that is there already wakes the wait at once.
                Some(request) => {
                    self.count_decision("pending", &request.opened.decision.rules);
                    Ok(Round::Done(self.pending_reply(
                        turn,
                        &request,
                        entry.index + 1,
                    )))
                }
                None => Ok(Round::Again),
            },
            Err(AppendError::Conflict(_) | AppendError::Late) => Ok(Round::Again),
            Err(error) => Err(self.refuse_append(call.method, &error)),
        }
    }

    /// Whether people may be asked once more: how much waits already, and how lately they said no.
    fn may_ask(
        &self,
        turn: &Turn<'_>,
        asks: &Asks,
        of_owner: &BTreeSet<AccessRequestId>,
    ) -> Result<(), Refusal> {
        let Turn {
            call,
            ask,
            rules,
            now,
            ..
        } = *turn;
        let size = json::canonical(&ask.action.to_json()).map_or(usize::MAX, |text| text.len());
        if size > ASKED_BYTES_MAX {
            let told = format!(
                "the action has {size} bytes; people are asked about at most {ASKED_BYTES_MAX}"
            );
            return Err(self.refuse(call.method, Reason::WrongParameters, told));
        }
        let bounds = rules.bundle.approvals();
        let counts = [
            ("agent", &asks.waiting, bounds.pending_per_agent),
            ("owner", of_owner, bounds.pending_per_owner),
        ];
        for (whose, waiting, max) in counts {
            let waiting = self.state.count_waiting(waiting, now);
            if waiting >= usize::try_from(max).unwrap_or(usize::MAX) {
                let told =
                    format!("{waiting} access requests of this {whose} wait; at most {max} may");
                return Err(self.refuse(call.method, Reason::TooManyPending, told));
            }
        }
        let opens = asks.opens_since(now.plus_secs(-60));
        let most = usize::try_from(bounds.opens_per_minute).unwrap_or(usize::MAX);
        if most > 0 && opens >= most {
            let told = format!(
                "people were asked {opens} times for this agent in a minute; at most {} are",
                bounds.opens_per_minute
            );
            return Err(self.refuse(call.method, Reason::BackOff, told));
        }
        let since = now.plus_secs(-Approvals::MEMORY_S);
        let noes = asks.noes_since(since);
        let pause = noes
            .checked_sub(1)
            .and_then(|n| bounds.back_off_s.get(n).or(bounds.back_off_s.last()));
        if let (Some(last), Some(pause)) = (asks.noes.last(), pause) {
            let until = last.plus_secs(i64::from(*pause));
            if now < until {
                let told = format!(
                    "people said no {} within the hour; ask again in {}",
                    match noes {
                        1 => "once".to_owned(),
                        n => format!("{n} times"),
                    },
                    show_seconds(until.since(now).div_euclid(1000) + 1)
                );
                return Err(Refusal {
                    retry_after: Some(until.after(now)),
                    ..self.refuse(call.method, Reason::BackOff, told)
                });
            }
        }
        Ok(())
    }

    pub(in crate::broker) fn pending_reply(
        &self,
        turn: &Turn<'_>,
        request: &AccessRequest,
        version: Version,
    ) -> TokenReply {
        TokenReply::Pending(Box::new(PendingReply {
            access_request: request.opened.access_request,
            decision: request.opened.decision.id,
            needs: self.needs(request, turn.rules, turn.now),
            expires_at: request.opened.expires_at,
            rules: self.rules_shown(&request.opened.decision.rules),
            ttl: request.opened.decision.ttl.clone(),
            show_evidence: false,
            facts: turn.authenticated.facts().clone(),
            basis: [
                version,
                turn.task.version,
                turn.agent_version,
                turn.rules.version,
            ],
        }))
    }

    /// The profiles an access request needs, and how far each is by today's roster.
    pub(in crate::broker) fn needs(
        &self,
        request: &AccessRequest,
        rules: &InForce,
        now: Timestamp,
    ) -> Vec<ProfileState> {
        let voter_context = self.voter_context(&rules.bundle);
        let tally = votes::tally(request, voter_context, now);
        let state = |need: &ProfileRef| {
            let defined = rules.bundle.profile(&need.name);
            ProfileState {
                profile: need.clone(),
                group: defined.map(|p| p.group.to_string()).unwrap_or_default(),
                quorum: defined.map_or(0, |p| p.quorum),
                method: defined.map(|p| p.method),
                approvers: tally
                    .counted
                    .get(&need.name)
                    .map(|set| set.iter().cloned().collect())
                    .unwrap_or_default(),
            }
        };
        request.opened.decision.needs.iter().map(state).collect()
    }
}
