//! Issuing a token, and signing it again for a retry.

use std::sync::Arc;

use crate::approve::{self, Approved};
use crate::broker::Broker;
use crate::broker::token::request::{IssuedReply, TokenAttempt, TokenReply};
use crate::broker::transaction::{Transaction, TransactionError};
use crate::journal::{Append, Blob};
use crate::mint::{GrantContext, MintError};
use crate::model::*;
use crate::state::Grant;
use crate::verify::Verified;

impl Broker {
    /// Signs a token and journals its grant. A crash before the append leaves nothing; after it, a grant that a retry with
    /// the same idempotency key finds, and that ends with its task.
    pub(in crate::broker) async fn issue(
        &self,
        attempt: &TokenAttempt<'_>,
        approved: Approved,
        position: (u64, u64),
        transaction: Transaction<'_>,
    ) -> Result<TokenReply, TransactionError> {
        let TokenAttempt { call, input, .. } = *attempt;
        let facts = approved.verified().facts().clone();
        let rules = self.rules_shown(&approved.decision().rules);
        let reason = input
            .reason
            .as_ref()
            .map(|prose| Blob::new(prose.blob(self.random_bytes())));
        let context = GrantContext {
            jti: TokenId::from_random(self.random_bytes()),
            position,
            idempotency_key: input.idempotency_key.clone(),
            reason: reason.as_ref().map(Blob::hash),
            request_version: attempt.request_version,
            key_version: self.key_version(),
        };
        let minted = match self
            .token_issuer
            .mint(approved, context, self.now(), &mut || self.random_bytes())
        {
            Ok(minted) => minted,
            Err(MintError::Expired) => return Err(TransactionError::Retry),
            Err(error) => {
                return Err(self
                    .refuse(call.method, Reason::DecisionUnavailable, error.to_string())
                    .into());
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
            ..Append::one(Event::TokenIssued((*issued).clone()), minted.write_set)
        };
        // INVARIANT (durable before release): the token is dropped here unless its entry is in the journal.
        transaction.append(append).await?;
        self.count_decision("approved", &issued.decision.rules);
        self.cache_verified_token(&minted.token, &issued);
        Ok(TokenReply::Token(Box::new(IssuedReply {
            token: minted.token,
            issued,
            openings: minted.secret,
            reissued: false,
            rules,
            facts,
        })))
    }

    /// Answers a retry: the same grant, signed anew, while it is active and the rules in force would still issue it. A crash
    /// after the append leaves the entry, and no new token.
    pub(in crate::broker) async fn reissue(
        &self,
        attempt: &TokenAttempt<'_>,
        verified: Verified,
        jti: &TokenId,
        transaction: Transaction<'_>,
    ) -> Result<TokenReply, TransactionError> {
        let TokenAttempt {
            call, input, rules, ..
        } = *attempt;
        self.require_reliable_clock(call.method)?;
        let Some(recorded) = self.state.recorded_grant(jti) else {
            return Err(self
                .refuse(
                    call.method,
                    Reason::TokenNoLongerValid,
                    "the grant is no longer on record",
                )
                .into());
        };
        let grant = Arc::clone(recorded.grant());
        let same = grant.action.as_ref().is_some_and(|a| **a == input.action)
            && grant.issued.requested_ttl == input.ttl
            && grant.reason.as_ref().map(UntrustedText::as_str)
                == input.reason.as_ref().map(UntrustedText::as_str);
        if !same {
            return Err(self.refuse(
                call.method,
                Reason::IdempotencyKeyReused,
                "this idempotency key was granted with another action, target, parameters, ttl or reason",
            ).into());
        }
        let inactive = |why: String| {
            Err(self
                .refuse(call.method, Reason::TokenNoLongerValid, why)
                .into())
        };
        if let Some(cause) = self.end_cause(&grant, verified.now()) {
            return inactive(format!(
                "the token of this idempotency key has ended: {}",
                cause.as_str()
            ));
        }
        if grant.is_spent() {
            return inactive("every use of the token of this idempotency key is spent".to_owned());
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
            self.action_freeze(&input.action.name),
            self.decision_context(rules),
        ) else {
            return inactive("the rules in force would not issue it".to_owned());
        };
        let reissued = match self
            .token_issuer
            .reissue(reapproved, self.key_version(), self.now())
        {
            Ok(reissued) => reissued,
            Err(error) => {
                return Err(self
                    .refuse(call.method, Reason::DecisionUnavailable, error.to_string())
                    .into());
            }
        };
        let append = Append {
            read_set: reissued.read_set,
            not_after: Some(reissued.not_after),
            ..Append::one(Event::TokenReissued(reissued.event), reissued.write_set)
        };
        transaction.append(append).await?;
        self.count_decision("reissued", &grant.issued.decision.rules);
        Ok(TokenReply::Token(Box::new(IssuedReply {
            token: reissued.token,
            issued: grant.issued.clone(),
            openings: self.action_secret(&grant),
            reissued: true,
            rules: self.rules_shown(&grant.issued.decision.rules),
            facts,
        })))
    }

    fn action_secret(&self, grant: &Grant) -> Option<ActionSecret> {
        let text = grant
            .issued
            .secret
            .and_then(|hash| self.journal.blob(&hash).ok().flatten())?;
        ActionSecret::from_blob(&text)
    }

    /// Version of the signing key's stream; for an unpublished key a version that no append accepts.
    fn key_version(&self) -> Version {
        self.state
            .key(self.token_issuer.kid())
            .map_or(Version::MAX, |at| at.version)
    }
}
