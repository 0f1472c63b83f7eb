//! Introspection of tokens, and the spending of their uses.

use crate::broker::auth::authentication::ServiceCaller;
use crate::broker::transaction::Step;
use crate::broker::{Broker, CallContext, Refusal};
use crate::jose::access_token::{self, ExpectedToken};
use crate::jose::jws;
use crate::mint::claims_of;
use crate::model::*;
use crate::policy::ServiceKind;
use crate::state::{Draft, Grant, Read, Recorded, Shown, TokenUse};

/// An active token, for a validator of its audience.
#[derive(Debug)]
pub struct Introspected {
    /// The grant.
    pub grant: Shown<Grant>,
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

impl Broker {
    /// Whether a token is active. `None` for every cause: a validator learns nothing of tokens for other audiences.
    pub async fn introspect(
        &self,
        call: &CallContext,
        token: &Secret,
    ) -> Result<Option<Introspected>, Refusal> {
        let caller = self.authenticate_service(call, self.now())?;
        let Some(signed) = self.parse_own_token(token) else {
            return Ok(None);
        };
        self.answer(|read| {
            let now = self.now();
            let grant = self.grant_for(read, call, &caller, &signed)?;
            let active = |grant: &Recorded<'_, Grant>| self.end_cause(read, grant, now).is_none();
            let active = grant.filter(active).filter(|grant| !grant.is_spent());
            Ok(active.map(|grant| Introspected {
                uses_left: left(&grant, grant.uses.len()),
                grant: Shown::from(&grant),
            }))
        })
        .await
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
        let deadline = self.journal.append_deadline();
        let caller = self.authenticate_service(call, self.now())?;
        let inactive = || {
            self.refuse(
                call.method,
                Reason::TokenInactive,
                "not active, or not for this validator's audiences",
            )
        };
        let signed = self.parse_own_token(token).ok_or_else(inactive)?;
        let jti = signed.0;
        // Other calls about the token wait: only its reissue or its end conflicts.
        let _turn = self
            .take_turn(Stream::Token(jti), call.method, deadline)
            .await?;
        let done = self
            .transaction_until(deadline, call.method)
            .run(|read| {
                let now = self.now();
                let grant = self.grant_for(read, call, &caller, &signed)?;
                let grant = grant.ok_or_else(inactive)?;
                if let Some(answer) = repeated(&grant, &caller.id, use_id) {
                    return Ok(Step::Answer(answer));
                }
                if self.end_cause(read, &grant, now).is_some() {
                    return Err(inactive());
                }
                if grant.issued.uses.is_none() {
                    return Ok(Step::Answer(Consumed {
                        jti,
                        outcome: UseOutcome::NoLimit,
                        uses_left: None,
                        index: None,
                    }));
                }
                if grant.is_spent() {
                    let message = "every use of the token is spent";
                    return Err(self.refuse(call.method, Reason::UsesExhausted, message));
                }
                let event = Event::TokenConsumed(TokenConsumed {
                    jti,
                    validator: caller.id.clone(),
                    use_id: use_id.clone(),
                });
                let expires_at = Timestamp::from_secs(grant.issued.exp);
                let task = read.task(&grant.issued.task);
                let lease = task.and_then(|task| task.lease).map(|lease| lease.until);
                let until = lease.map_or(expires_at, |until| until.min(expires_at));
                let spent = Consumed {
                    jti,
                    outcome: UseOutcome::Spent,
                    uses_left: left(&grant, grant.uses.len() + 1),
                    index: None,
                };
                Ok(Step::Append(Draft::one(event).not_after(until), spent))
            })
            .await?;
        let index = done.entry.map(|entry| entry.index);
        Ok(Consumed {
            index: index.or(done.value.index),
            ..done.value
        })
    }

    /// The grant of a token, active or ended, if the caller is still a validator of its audience; refuses a caller who is no longer
    /// registered with its credential.
    fn grant_for<'r>(
        &self,
        read: &'r Read,
        call: &CallContext,
        caller: &ServiceCaller,
        (jti, kid): &(TokenId, KeyId),
    ) -> Result<Option<Recorded<'r, Grant>>, Refusal> {
        let rules = self.require_service(read, call.method, caller, ServiceKind::Validator)?;
        let service = rules.bundle.service(&caller.id);
        let is_for = |audience: &Audience| service.is_some_and(|s| s.audiences.contains(audience));
        Ok(read
            .grant(jti)
            .filter(|grant| is_for(&grant.issued.action.audience) && grant.kids.contains(kid)))
    }

    /// The grant of a token issued here and the key that signed it, if its claims are exactly the grant's. Does not say
    /// whether the grant is active: its record has the token's expiry.
    fn parse_own_token(&self, token: &Secret) -> Option<(TokenId, KeyId)> {
        let keys = self.show().own_keys()?;
        let text = Digest::sha256(token.expose_secret().as_bytes());
        if let Some(cached) = self.verified_tokens.get(&keys, &text) {
            return Some(cached);
        }
        // Unverified: it only selects the grant whose claims the token must have.
        let jti = jws::unverified_string(token.expose_secret(), "jti").ok()?;
        let grant = self.show().grant(&TokenId::parse(&jti).ok()?)?;
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
        if let Some(keys) = self.show().own_keys()
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
