//! The statement of a vote: made for a vote that would count, and kept until it is signed.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::{
    BegunVote, PendingStatement, STATEMENT_LIFE_MS, STATEMENTS_MAX, VoteInput, VoteRefusal,
    VoteStatementReply,
};
use crate::approve::facts;
use crate::approve::votes::{self, SigningWith};
use crate::broker::transaction::Step;
use crate::broker::{Broker, CallContext, PersonCaller, Refusal};
use crate::card::CardFacts;
use crate::model::*;
use crate::policy::ActivePolicy;
use crate::state::{AccessRequest, Draft, Read, Recorded};

impl Broker {
    /// Returns the statement to sign, if the caller's vote would count. It is kept in memory for two minutes.
    pub async fn begin_vote(
        &self,
        call: &CallContext,
        id: AccessRequestId,
        input: VoteInput,
    ) -> Result<VoteStatementReply, Refusal> {
        let voter = self.authenticate_person(call)?;
        let mut is_counted = false;
        let begun = self
            .transaction(call.method)
            .run(|read| self.decide_statement(read, call, id, &voter, &input, &mut is_counted))
            .await?
            .value;
        let (statement, facts) = begun.map_err(|why| self.refuse_vote(call, why))?;
        let now = self.now();
        let broken = |e: json::JsonError| {
            self.refuse(call.method, Reason::DecisionUnavailable, e.to_string())
        };
        let text = statement.canonical().map_err(broken)?;
        let challenge = statement.digest().map_err(broken)?;
        let vote = (&input.profile, input.verdict);
        let credentials =
            self.preview(|read| self.counting_passkeys(read, call, &id, &voter.id, vote, now))?;
        self.keep_statement(text.clone(), facts, statement, voter.id, now);
        Ok(VoteStatementReply {
            statement: text,
            challenge,
            credentials,
        })
    }

    /// The passkeys of a person that would count for this vote, by credential id in base64url.
    fn counting_passkeys(
        &self,
        read: &Read,
        call: &CallContext,
        id: &AccessRequestId,
        voter: &PersonId,
        vote: (&ProfileName, Verdict),
        now: Timestamp,
    ) -> Result<Vec<String>, Refusal> {
        let rules = self.rules_in_force(read, call)?;
        let request = self.find_request(read, call, id)?;
        let enrolled = read.person(voter);
        let counts = |key: Thumbprint| {
            let signed = (voter, SigningWith::Key(key));
            let eligible = self.eligible_profile(read, &rules, &request, signed, vote, now);
            eligible.is_ok()
        };
        let passkeys = enrolled.passkeys.iter().map(|passkey| &passkey.record);
        let counting = passkeys.filter(|record| counts(record.key));
        Ok(counting.map(|record| record.credential.clone()).collect())
    }

    /// The statement of a vote that would count.
    fn decide_statement(
        &self,
        read: &Read,
        call: &CallContext,
        id: AccessRequestId,
        voter: &PersonCaller,
        input: &VoteInput,
        is_counted: &mut bool,
    ) -> Result<Step<Result<BegunVote, VoteRefusal>>, Refusal> {
        let now = self.now();
        let rules = self.require_person(read, call, voter)?;
        let request = self.open_for_votes(read, call, &id, now)?;
        if let Some(step) = self.reassess_first(read, &request, &rules, (now, false)) {
            return Ok(step);
        }
        let vote = (&input.profile, input.verdict);
        let signed = (&voter.id, SigningWith::AnyKey);
        let defined = match self.eligible_profile(read, &rules, &request, signed, vote, now) {
            Ok(defined) => defined,
            Err(why) => {
                return self.record_refusal(read, call, &request, &voter.id, why, is_counted);
            }
        };
        // INVARIANT (what the approver sees is what is signed): the catalogue's words on the card are of this bundle.
        if input
            .policy
            .is_some_and(|policy| policy != rules.bundle.version())
        {
            let message = "other rules are in force than when the card was shown";
            return Err(self.refuse(call.method, Reason::PolicyChanged, message));
        }
        let facts = facts::card_facts(&request, &rules.bundle);
        let digest = facts
            .digest()
            .map_err(|e| self.refuse(call.method, Reason::DecisionUnavailable, e.to_string()))?;
        if input.facts.is_some_and(|shown| shown != digest) {
            let message = "what the card showed has changed: read it again";
            return Err(self.refuse(call.method, Reason::ApprovalVoid, message));
        }
        if input.verdict == Verdict::Approve {
            self.check_dwell(call, &voter.id, &request, &facts, now)?;
        }
        let (max_ttl, uses) = self.narrowed(call, &request.opened, &input.narrowing)?;
        let gone = |what: &str| {
            let message = format!("{what} is no longer on record");
            self.refuse(call.method, Reason::AccessRequestClosed, message)
        };
        if request.action.is_none() {
            return Err(gone("the action"));
        }
        let requester = votes::requester_of(&request, self.voter_context(read, &rules));
        let requester = requester.ok_or_else(|| gone("the agent"))?;
        if request.opened.by_person().is_some() && request.changes.is_none() {
            return Err(gone("what the policy bundle changes"));
        }
        let statement = VoteStatement {
            v: VOTE_STATEMENT_FORM,
            realm: self.settings.realm.clone(),
            access_request_id: id,
            requester,
            action: request.opened.action.clone(),
            facts: digest,
            max_ttl,
            uses,
            comment: input.comment.clone(),
            policy: rules.bundle.version(),
            profile: defined.reference(),
            verdict: input.verdict,
            not_after: now.plus_secs(i64::from(defined.good_for_s)).secs(),
            nonce: URL_SAFE_NO_PAD.encode(self.random_bytes()),
        };
        Ok(Step::Answer(Ok((statement, facts))))
    }

    /// The entry about what an access request requires now, before a vote on what it required when its card was shown. `denies`: the vote
    /// is a denial, which counts as one also where the request ends by this entry.
    pub(super) fn reassess_first<T>(
        &self,
        read: &Read,
        request: &Recorded<'_, AccessRequest>,
        rules: &ActivePolicy,
        (now, denies): (Timestamp, bool),
    ) -> Option<Step<Result<T, VoteRefusal>>> {
        let mut event = self.reassessed(read, request, rules, now)?;
        let why = match &mut event {
            Event::AccessRequestClosed(closed) => {
                closed.voting_started = denies;
                VoteRefusal::Ended
            }
            _ => VoteRefusal::Reassessed,
        };
        let draft = Draft::one(event).not_after(request.opened.expires_at);
        Some(Step::Append(draft, Err(why)))
    }

    /// The lifetime and the uses that a vote agrees to: the requested ones, or fewer.
    fn narrowed(
        &self,
        call: &CallContext,
        opened: &AccessRequestOpened,
        narrowing: &Narrowing,
    ) -> Result<(Option<i64>, Option<u32>), Refusal> {
        let uses = match (narrowing.max_uses, opened.uses) {
            (Some(0), _) => {
                return Err(self.refuse(
                    call.method,
                    Reason::Malformed,
                    "`max_uses`: expected a number above zero, got 0",
                ));
            }
            (Some(fewer), Some(uses)) if fewer > uses => {
                let message = format!("`max_uses`: expected 1 to {uses}, got {fewer}");
                return Err(self.refuse(call.method, Reason::Malformed, message));
            }
            (Some(fewer), _) => Some(fewer),
            (None, uses) => uses,
        };
        let max_ttl = match (narrowing.max_ttl, opened.max_ttl) {
            (Some(ttl), Some(most)) if ttl <= 0 || ttl > most => {
                let message = format!("`max_ttl`: expected 1 to {most} seconds, got {ttl}");
                return Err(self.refuse(call.method, Reason::InvalidTtl, message));
            }
            (Some(_), None) => {
                let message = "`max_ttl`: expected none, since no token is asked for";
                return Err(self.refuse(call.method, Reason::InvalidTtl, message));
            }
            (narrowed, most) => narrowed.or(most),
        };
        Ok((max_ttl, uses))
    }

    /// Keeps a statement until it is signed or expires.
    fn keep_statement(
        &self,
        text: String,
        facts: CardFacts,
        statement: VoteStatement,
        voter: PersonId,
        now: Timestamp,
    ) {
        let mut statements = self.lock(&self.statements);
        statements.retain(|_, pending| now < pending.until);
        let of_voter = statements
            .iter()
            .filter(|(_, pending)| pending.voter == voter);
        // The person's oldest statement is dropped: one person cannot displace the statements of others.
        if of_voter.clone().count() >= STATEMENTS_MAX {
            let oldest = of_voter
                .min_by_key(|(_, pending)| pending.until)
                .map(|(nonce, _)| nonce.clone());
            oldest.map(|nonce| statements.remove(&nonce));
        }
        let nonce = statement.nonce.clone();
        let pending = PendingStatement {
            text,
            facts,
            statement,
            voter,
            until: now.plus_millis(STATEMENT_LIFE_MS),
        };
        statements.insert(nonce, pending);
    }
}
