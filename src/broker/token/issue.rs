//! Issuing a token, and signing it again for a retry.

use std::sync::Arc;

use crate::approve::{self, ApproveError, Approved};
use crate::broker::token::request::{Evaluation, IssuedReply, TokenAttempt, TokenReply};
use crate::broker::transaction::Step;
use crate::broker::{Broker, Refusal};
use crate::journal::Blob;
use crate::mint::{GrantContext, MintError};
use crate::model::*;
use crate::state::{Draft, Grant, Recorded};
use crate::verify::{Verified, VerifyError};

impl Broker {
    /// Signs a token and drafts its grant. A crash before the append leaves nothing; after it, a grant that a retry with the same
    /// idempotency key finds, and that ends with its task.
    pub(in crate::broker) fn issue(
        &self,
        attempt: &TokenAttempt<'_, '_>,
        approved: Approved<'_>,
    ) -> Result<Step<Evaluation>, Refusal> {
        let input = attempt.input;
        let facts = approved.verified().facts().clone();
        let rules = self.rules_shown(&approved.decision().rules);
        let reason = input
            .reason
            .as_ref()
            .map(|prose| Blob::new(prose.blob(self.random_bytes())));
        let context = GrantContext {
            jti: TokenId::from_random(self.random_bytes()),
            idempotency_key: input.idempotency_key.clone(),
            reason: reason.as_ref().map(Blob::hash),
        };
        let minted = self
            .token_issuer
            .mint(approved, context, self.now(), &mut || self.random_bytes())
            .map_err(|error| self.refuse_mint(attempt, &error))?;
        let secret = minted.secret.as_ref().map(|s| Blob::new(s.blob()));
        let issued = Arc::new(minted.issued);
        let draft = Draft::one(Event::TokenIssued((*issued).clone()))
            .not_after(minted.not_after)
            .with_blobs(secret.into_iter().chain(reason));
        // INVARIANT (durable before release): the token is dropped unless its entry is in the journal.
        Ok(Step::Append(
            draft,
            Evaluation::Issued(Box::new(IssuedReply {
                token: minted.token,
                issued,
                openings: minted.secret,
                reissued: false,
                rules,
                facts,
            })),
        ))
    }

    /// Answers a retry: the same grant, signed anew, while it is active and the rules in force would still issue it. A crash
    /// after the append leaves the entry, and no new token.
    pub(in crate::broker) fn reissue<'r>(
        &self,
        attempt: &TokenAttempt<'_, 'r>,
        verified: Verified<'r>,
        grant: Recorded<'r, Grant>,
    ) -> Result<Step<Evaluation>, Refusal> {
        let TokenAttempt {
            call, input, read, ..
        } = *attempt;
        self.require_reliable_clock(call.method)?;
        let same = grant.action.as_ref().is_some_and(|a| **a == input.action)
            && grant.issued.requested_ttl == input.ttl
            && grant.reason.as_ref().map(UntrustedText::as_str)
                == input.reason.as_ref().map(UntrustedText::as_str);
        if !same {
            return Err(self.refuse(
                call.method,
                Reason::IdempotencyKeyReused,
                "this idempotency key was granted with another action, target, parameters, ttl or reason",
            ));
        }
        let inactive = |why: String| Err(self.refuse(call.method, Reason::TokenNoLongerValid, why));
        if let Some(cause) = self.end_cause(read, &grant, verified.now()) {
            return inactive(format!(
                "the token of this idempotency key has ended: {}",
                cause.as_str()
            ));
        }
        if grant.is_spent() {
            return inactive("every use of the token of this idempotency key is spent".to_owned());
        }
        let facts = verified.facts().clone();
        let issued = grant.issued.clone();
        let scope = FreezeScope::Action(input.action.name.clone());
        let is_held = self.is_freeze_held(&scope);
        let reapproved = match approve::reapprove(verified, grant, is_held) {
            Ok(reapproved) => reapproved,
            Err(ApproveError::StaleEvidence { ages, rules }) => {
                let issued_at = facts.issued_at;
                let too_old = VerifyError::TooOldForRules {
                    issued_at,
                    ages,
                    rules,
                };
                return Err(self.refuse_gate_1(call.method, &too_old));
            }
            Err(_) => return inactive("the rules in force would not issue it".to_owned()),
        };
        let reissued = self
            .token_issuer
            .reissue(reapproved, self.now())
            .map_err(|error| self.refuse_mint(attempt, &error))?;
        let draft = Draft::one(Event::TokenReissued(reissued.event)).not_after(reissued.not_after);
        Ok(Step::Append(
            draft,
            Evaluation::Issued(Box::new(IssuedReply {
                token: reissued.token,
                openings: None,
                reissued: true,
                rules: self.rules_shown(&issued.decision.rules),
                issued,
                facts,
            })),
        ))
    }

    fn refuse_mint(&self, attempt: &TokenAttempt<'_, '_>, error: &MintError) -> Refusal {
        let method = attempt.call.method;
        match error {
            // What the approval rests on expired while it was decided.
            MintError::Expired => self.refuse_gate_1(method, &VerifyError::Stale),
            MintError::Sign(_)
            | MintError::ReadBack(_)
            | MintError::ReadBackMismatch
            | MintError::NoTask
            | MintError::UnpublishedKey => {
                self.refuse(method, Reason::DecisionUnavailable, error.to_string())
            }
        }
    }

    /// The reply with a token whose entry is durable.
    pub(in crate::broker) fn token_reply(&self, mut issued: Box<IssuedReply>) -> TokenReply {
        let rules = &issued.issued.decision.rules;
        if issued.reissued {
            self.count_decision("reissued", rules);
            issued.openings = self.action_secret(&issued.issued);
        } else {
            self.count_decision("approved", rules);
            self.cache_verified_token(&issued.token, &issued.issued);
        }
        TokenReply::Token(issued)
    }

    fn action_secret(&self, issued: &TokenIssued) -> Option<ActionSecret> {
        let text = issued
            .secret
            .and_then(|hash| self.journal.blob(&hash).ok().flatten())?;
        ActionSecret::from_blob(&text)
    }
}
