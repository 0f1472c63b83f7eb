//! Introspection of tokens, and the spending of their uses.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::broker::{Broker, CallContext, Refusal};
use crate::jose::access_token::{self, ExpectedToken};
use crate::jose::jws;
use crate::journal::Append;
use crate::mint::claims_of;
use crate::model::*;
use crate::state::{Grant, TokenUse};

/// An active token, for a validator of its audience.
#[derive(Debug)]
pub struct Introspected {
    /// The grant.
    pub grant: Arc<Grant>,
    /// Uses that are left; `None` when only its lifetime limits it.
    pub uses_left: Option<u32>,
}

/// The answer to a validator that consumes a use.
#[derive(Debug, PartialEq, Eq)]
pub struct Consumed {
    /// The token.
    pub jti: TokenId,
    /// Whether this call spent the use.
    pub outcome: UseOutcome,
    /// Uses that were left after this one; `None` when there is no limit and nothing was spent.
    pub uses_left: Option<u32>,
    /// Index of the entry that holds the use.
    pub index: Option<u64>,
}

/// Attempts to spend a use: other calls about the token wait, so only its reissue or its end conflicts.
const CONSUME_ATTEMPTS: usize = 16;

impl Broker {
    /// Whether a token is active. `None` for every cause: a validator learns nothing of tokens for other audiences.
    pub fn introspect(
        &self,
        call: &CallContext,
        token: &Secret,
    ) -> Result<Option<Introspected>, Refusal> {
        let now = self.now();
        let caller = self.authenticate_service(call, now)?;
        Ok(self
            .active_grant(token, &caller.audiences, now)
            .filter(|grant| !grant.is_spent())
            .map(|grant| {
                let uses_left = left(&grant, grant.uses.len());
                Introspected { grant, uses_left }
            }))
    }

    /// Spends one use. A crash before the append leaves the use unspent; after it, a retry with the same `use_id` gets the
    /// same answer, as one that repeats it.
    ///
    /// INVARIANT (an answer about a use stays): the entry of a use answers its `use_id` as long as the grant is on record,
    /// also after the token has expired or ended. A grant keeps at most as many use ids as it has uses.
    pub async fn consume_token(
        &self,
        call: &CallContext,
        token: &Secret,
        use_id: &UseId,
    ) -> Result<Consumed, Refusal> {
        let caller = self.authenticate_service(call, self.now())?;
        let inactive = || {
            self.refuse(
                call.method,
                Reason::TokenInactive,
                "not active, or not for this validator's audiences",
            )
        };
        let jti = self
            .issued_grant(token, &caller.audiences)
            .ok_or_else(inactive)?
            .issued
            .jti;
        let caller = &caller;
        self.transaction_on(
            Stream::Token(jti),
            call.method,
            CONSUME_ATTEMPTS,
            "the token keeps changing while it is used",
            |attempt| async move {
                let now = self.now();
                // Versions first, then the checks: a stream that moves after these lines makes the append conflict.
                let rules = self.projections.rules().ok_or_else(inactive)?;
                let found = self.state.grant(&jti).ok_or_else(inactive)?;
                let task = self.state.task(&found.issued.task);
                let until = Timestamp::from_secs(found.issued.exp);
                let lease = task.as_ref().and_then(|t| t.lease).map(|lease| lease.until);
                let until = lease.map_or(until, |lease| lease.min(until));
                let opened = task.as_ref().map(|t| &*t.opened);
                let freezes = self.freeze_read_set(&found.issued, opened, &rules);
                let task = task.as_ref().map_or(Version::MAX, |t| t.version);
                let agent = self.state.agent_status(&found.issued.agent).version;
                let trust = self
                    .state
                    .trusted_keys(&found.issued.subject.trust_domain())
                    .map_or(Version::MAX, |t| t.version);
                let grant = self.state.grant(&jti).ok_or_else(inactive)?;
                if let Some(answer) = repeated(&grant, &caller.id, use_id) {
                    return Ok(answer);
                }
                let is_for_caller = rules
                    .bundle
                    .service(&caller.id)
                    .is_some_and(|s| s.audiences.contains(&grant.issued.action.audience));
                if !is_for_caller || self.end_cause(&grant, now).is_some() {
                    return Err(inactive().into());
                }
                if grant.issued.uses.is_none() {
                    return Ok(Consumed {
                        jti,
                        outcome: UseOutcome::NoLimit,
                        uses_left: None,
                        index: None,
                    });
                }
                if grant.is_spent() {
                    return Err(self
                        .refuse(
                            call.method,
                            Reason::UsesExhausted,
                            "every use of the token is spent",
                        )
                        .into());
                }
                let event = Event::TokenConsumed(TokenConsumed {
                    jti,
                    validator: caller.id.clone(),
                    use_id: use_id.clone(),
                });
                let mut read_set = vec![
                    (Stream::Task(grant.issued.task), task),
                    (Stream::Agent(grant.issued.agent.clone()), agent),
                    (Stream::Policy, rules.version),
                    (Stream::Trust(grant.issued.subject.trust_domain()), trust),
                ];
                read_set.extend(freezes);
                let append = Append {
                    read_set,
                    not_after: Some(until),
                    ..Append::one(event, vec![(Stream::Token(jti), grant.version)])
                };
                let entry = attempt.append(append).await?;
                Ok(Consumed {
                    jti,
                    outcome: UseOutcome::Spent,
                    uses_left: left(&grant, grant.uses.len() + 1),
                    index: Some(entry.index),
                })
            },
        )
        .await
    }

    /// The active grant of a token, if it was issued here, for one of these audiences, with exactly the grant's claims.
    fn active_grant(
        &self,
        token: &Secret,
        audiences: &BTreeSet<Audience>,
        now: Timestamp,
    ) -> Option<Arc<Grant>> {
        self.issued_grant(token, audiences)
            .filter(|grant| self.end_cause(grant, now).is_none())
    }

    /// The same, active or ended.
    fn issued_grant(&self, token: &Secret, audiences: &BTreeSet<Audience>) -> Option<Arc<Grant>> {
        let (jti, kid) = self.parse_own_token(token)?;
        self.state.grant(&jti).filter(|grant| {
            audiences.contains(&grant.issued.action.audience) && grant.kids.contains(&kid)
        })
    }

    /// The grant of a token issued here and the key that signed it, if its claims are exactly the grant's. Does not say
    /// whether the grant is active: its record has the token's expiry.
    fn parse_own_token(&self, token: &Secret) -> Option<(TokenId, KeyId)> {
        let keys = self.projections.own_keys()?;
        let text = Digest::sha256(token.expose_secret().as_bytes());
        if let Some(cached) = self.verified_tokens.get(&keys, &text) {
            return Some(cached);
        }
        // Unverified: it only selects the grant whose claims the token must have.
        let jti = jws::unverified_string(token.expose_secret(), "jti").ok()?;
        let grant = self.state.grant(&TokenId::parse(&jti).ok()?)?;
        let expect = ExpectedToken {
            iss: &self.settings.issuer,
            aud: None,
            now: Timestamp::from_secs(grant.issued.iat),
        };
        let checked = access_token::check(token.expose_secret(), &keys, &expect).ok()?;
        let claims = checked.claims();
        if *claims != claims_of(&grant.issued, grant.epoch, &self.settings.issuer) {
            return None;
        }
        let verified = (claims.jti, checked.kid().clone());
        self.verified_tokens
            .insert(&keys, text, verified.0, verified.1.clone());
        Some(verified)
    }

    /// Caches a token that the issuer verified before it left.
    pub(in crate::broker) fn cache_verified_token(&self, token: &Secret, issued: &TokenIssued) {
        if let Some(keys) = self.projections.own_keys()
            && keys.get(&issued.kid).is_some()
        {
            let text = Digest::sha256(token.expose_secret().as_bytes());
            self.verified_tokens
                .insert(&keys, text, issued.jti, issued.kid.clone());
        }
    }
}

/// The answer to a use that is on record.
fn repeated(grant: &Grant, validator: &ServiceId, use_id: &UseId) -> Option<Consumed> {
    let same = |u: &TokenUse| u.validator == *validator && u.use_id == *use_id;
    let place = grant.uses.iter().position(same)?;
    Some(Consumed {
        jti: grant.issued.jti,
        outcome: UseOutcome::Repeated,
        uses_left: left(grant, place + 1),
        index: grant.uses.get(place).map(|u| u.index),
    })
}

fn left(grant: &Grant, used: usize) -> Option<u32> {
    grant
        .issued
        .uses
        .map(|uses| uses.saturating_sub(u32::try_from(used).unwrap_or(u32::MAX)))
}
