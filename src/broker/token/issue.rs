use std::sync::Arc;

use crate::approve::{self, Approved};
use crate::broker::token::request::{Round, TokenGiven, TokenReply, Turn};
use crate::broker::{Broker, Refusal};
use crate::journal::{Append, AppendError, Blob};
use crate::mint::{MintError, Place};
use crate::model::*;
use crate::state::Grant;
use crate::verify::Verified;

impl Broker {
    /// Mints. A crash before the append leaves nothing in the world; after it, a recorded grant that a retry by
    /// `request_id` finds, and that dies with its task.
    pub(in crate::broker) async fn grant(
        &self,
        turn: &Turn<'_>,
        approved: Approved,
        position: (u64, u64),
    ) -> Result<Round, Refusal> {
        let Turn { call, ask, .. } = *turn;
        let facts = approved.verified().facts().clone();
        let rules = self.rules_shown(&approved.decision().rules);
        let reason = ask
            .reason
            .as_ref()
            .map(|prose| Blob::new(prose.blob(self.draw())));
        let place = Place {
            jti: TokenId::from_random(self.draw()),
            position,
            request_id: ask.request_id.clone(),
            reason: reason.as_ref().map(Blob::hash),
            request_version: turn.request_version,
            key_version: self.key_version(),
        };
        let minted = match self
            .token_issuer
            .mint(approved, place, self.now(), &mut || self.draw())
        {
            Ok(minted) => minted,
            Err(MintError::Late) => return Ok(Round::Again),
            Err(error) => {
                return Err(self.refuse(call.method, Reason::Undecided, error.to_string()));
            }
        };
        let issued = Arc::new(minted.issued);
        let append = Append {
            read_set: minted.read_set,
            not_after: Some(minted.not_after),
            blobs: minted
                .secret
                .as_ref()
                .map(|s| Blob::new(s.blob()))
                .into_iter()
                .chain(reason)
                .collect(),
            ..Append::one(Event::TokenIssued((*issued).clone()), minted.moves)
        };
        // INVARIANT (durable before release): the token is dropped here unless its entry is in the journal.
        match self.journal.append(append).await {
            Ok(_) => {
                self.count_decision("approved", &issued.decision.rules);
                self.was_read(&minted.token, &issued);
                Ok(Round::Done(TokenReply::Token(Box::new(TokenGiven {
                    token: minted.token,
                    issued,
                    openings: minted.secret,
                    reissued: false,
                    rules,
                    facts,
                }))))
            }
            Err(AppendError::Conflict(_) | AppendError::Late) => Ok(Round::Again),
            Err(error) => Err(self.refuse_append(call.method, &error)),
        }
    }

    /// A retry: the same words get the same grant, signed anew, while it lives and would still be given. A crash after
    /// the append leaves an entry saying so, and no new token.
    pub(in crate::broker) async fn grant_again(
        &self,
        turn: &Turn<'_>,
        verified: Verified,
        jti: &TokenId,
    ) -> Result<Round, Refusal> {
        let Turn {
            call, ask, rules, ..
        } = *turn;
        self.clock_sure(call.method)?;
        let Some(recorded) = self.state.recorded(jti) else {
            return Err(self.refuse(call.method, Reason::TokenDead, "the grant is gone"));
        };
        let grant = Arc::clone(recorded.grant());
        let same = grant.action.as_ref().is_some_and(|a| **a == ask.action)
            && grant.issued.asked_ttl == ask.ttl
            && grant.reason.as_ref().map(Prose::as_str) == ask.reason.as_ref().map(Prose::as_str);
        if !same {
            return Err(self.refuse(
                call.method,
                Reason::RequestIdReused,
                "this request_id was granted with another action, target, parameters, ttl or reason",
            ));
        }
        let dead = |why: String| Err(self.refuse(call.method, Reason::TokenDead, why));
        if let Some(cause) = self.dead(&grant, verified.now()) {
            return dead(format!(
                "the token of this request_id ended: {}",
                cause.as_str()
            ));
        }
        if grant.spent() {
            return dead("the token of this request_id is spent".to_owned());
        }
        let facts = verified.facts().clone();
        let consumed = grant
            .issued
            .consumed
            .and_then(|id| self.state.access_request(&id));
        let Ok(reapproved) = approve::reapprove(
            verified,
            recorded,
            consumed.as_deref(),
            self.action_freeze(&ask.action.name),
            self.decision_context(rules),
        ) else {
            return dead("today's rules would not give it".to_owned());
        };
        let reissued = match self
            .token_issuer
            .reissue(reapproved, self.key_version(), self.now())
        {
            Ok(reissued) => reissued,
            Err(error) => {
                return Err(self.refuse(call.method, Reason::Undecided, error.to_string()));
            }
        };
        let append = Append {
            read_set: reissued.read_set,
            not_after: Some(reissued.not_after),
            ..Append::one(Event::TokenReissued(reissued.fact), reissued.moves)
        };
        match self.journal.append(append).await {
            Ok(_) => {
                self.count_decision("reissued", &grant.issued.decision.rules);
                Ok(Round::Done(TokenReply::Token(Box::new(TokenGiven {
                    token: reissued.token,
                    issued: grant.issued.clone(),
                    openings: self.opened_secret(&grant),
                    reissued: true,
                    rules: self.rules_shown(&grant.issued.decision.rules),
                    facts,
                }))))
            }
            Err(AppendError::Conflict(_) | AppendError::Late) => Ok(Round::Again),
            Err(error) => Err(self.refuse_append(call.method, &error)),
        }
    }

    fn opened_secret(&self, grant: &Grant) -> Option<ActionSecret> {
        let text = grant
            .issued
            .secret
            .and_then(|hash| self.journal.blob(&hash).ok().flatten())?;
        ActionSecret::from_blob(&text)
    }

    /// Version of the signing key's stream; a missing one reads as never published, which no append accepts.
    fn key_version(&self) -> Version {
        self.state
            .key(self.token_issuer.kid())
            .map_or(Version::MAX, |at| at.version)
    }
}
