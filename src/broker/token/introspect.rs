//! Introspection of tokens, and the spending of their uses.

use std::sync::Arc;

use crate::broker::{Broker, CallContext, Refusal};
use crate::jose::access_token::{self, ExpectedToken};
use crate::journal::Append;
use crate::mint::claims_of;
use crate::model::*;
use crate::state::Grant;

/// An active token, for a validator of its audience.
#[derive(Debug)]
pub struct Introspected {
    /// The grant.
    pub grant: Arc<Grant>,
    /// Uses that are left; `None` when only its lifetime limits it.
    pub uses_left: Option<u32>,
}

/// A spent use.
#[derive(Debug, PartialEq, Eq)]
pub struct Consumed {
    /// The token.
    pub jti: TokenId,
    /// Uses that were left after this one; `None` when there is no limit and nothing was spent.
    pub uses_left: Option<u32>,
    /// Index of the entry that holds the use.
    pub index: Option<u64>,
}

/// Attempts to spend a use.
const CONSUME_ATTEMPTS: usize = 128;

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
    /// same answer.
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
        let caller = &caller;
        self.transaction(
            call.method,
            CONSUME_ATTEMPTS,
            "other validators keep using the token",
            |attempt| async move {
                let now = self.now();
                let found = self
                    .active_grant(token, &caller.audiences, now)
                    .ok_or_else(inactive)?;
                let jti = found.issued.jti;
                // Versions first, then the check: a stream that moves after this line makes the append conflict.
                let rules = self.projections.rules().ok_or_else(inactive)?;
                let policy = rules.version;
                if !rules
                    .bundle
                    .service(&caller.id)
                    .is_some_and(|s| s.audiences.contains(&found.issued.action.audience))
                {
                    return Err(inactive().into());
                }
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
                let grant = self
                    .state
                    .grant(&jti)
                    .filter(|grant| self.end_cause(grant, now).is_none())
                    .ok_or_else(inactive)?;
                if grant.issued.uses.is_none() {
                    return Ok(Consumed {
                        jti,
                        uses_left: None,
                        index: None,
                    });
                }
                if let Some(place) = grant
                    .uses
                    .iter()
                    .position(|u| u.validator == caller.id && u.use_id == *use_id)
                {
                    let index = grant.uses.get(place).map(|u| u.index);
                    return Ok(Consumed {
                        jti,
                        uses_left: left(&grant, place + 1),
                        index,
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
                    (Stream::Policy, policy),
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
        audiences: &std::collections::BTreeSet<Audience>,
        now: Timestamp,
    ) -> Option<Arc<Grant>> {
        let (jti, kid) = self.parse_own_token(token, now)?;
        let grant = self.state.grant(&jti)?;
        if !audiences.contains(&grant.issued.action.audience) || !grant.kids.contains(&kid) {
            return None;
        }
        self.end_cause(&grant, now).is_none().then_some(grant)
    }

    /// The grant of a token issued here and the key that signed it, if its claims are exactly the grant's. Does not say
    /// whether the grant is active.
    fn parse_own_token(&self, token: &Secret, now: Timestamp) -> Option<(TokenId, KeyId)> {
        let keys = self.projections.own_keys()?;
        let text = Digest::sha256(token.expose_secret().as_bytes());
        if let Some(cached) = self.verified_tokens.get(&keys, &text) {
            return Some(cached);
        }
        let expect = ExpectedToken {
            iss: &self.settings.issuer,
            aud: None,
            now,
        };
        let checked = access_token::check(token.expose_secret(), &keys, &expect).ok()?;
        let claims = checked.claims();
        let grant = self.state.grant(&claims.jti)?;
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

fn left(grant: &Grant, used: usize) -> Option<u32> {
    grant
        .issued
        .uses
        .map(|uses| uses.saturating_sub(u32::try_from(used).unwrap_or(u32::MAX)))
}
