use std::sync::Arc;

use crate::broker::{Broker, CallContext, Refusal};
use crate::jose::access_token::{self, ExpectedToken};
use crate::journal::{Append, AppendError};
use crate::mint::claims_of;
use crate::model::*;
use crate::state::Grant;

/// A token that is good now, for the validator that asks.
#[derive(Debug)]
pub struct Introspected {
    /// The grant.
    pub grant: Arc<Grant>,
    /// Uses that are left; `None` when its life is the only limit.
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

/// How often a use is tried again when another came first.
const CONSUME_ATTEMPTS: usize = 128;

impl Broker {
    /// Whether a token is good now. `None` for every cause: a validator learns nothing of tokens that are not its own.
    pub fn introspect(
        &self,
        call: &CallContext,
        token: &Secret,
    ) -> Result<Option<Introspected>, Refusal> {
        let now = self.now();
        let caller = self.service(call, now)?;
        Ok(self
            .live_grant(token, &caller.audiences, now)
            .filter(|grant| !grant.spent())
            .map(|grant| {
                let uses_left = left(&grant, grant.uses.len());
                Introspected { grant, uses_left }
            }))
    }

    /// Spends one use. A crash before the append leaves the use unspent; after it, the same `use_id` gets this answer again.
    pub async fn consume_token(
        &self,
        call: &CallContext,
        token: &Secret,
        use_id: &UseId,
    ) -> Result<Consumed, Refusal> {
        let caller = self.service(call, self.now())?;
        let inactive = || {
            self.refuse(
                call.method,
                Reason::TokenInactive,
                "not live, or not for this validator's audiences",
            )
        };
        for _ in 0..CONSUME_ATTEMPTS {
            let now = self.now();
            let found = self
                .live_grant(token, &caller.audiences, now)
                .ok_or_else(inactive)?;
            let jti = found.issued.jti;
            // Versions first, then the question: whatever moves after this line refuses the append.
            let rules = self.views.rules().ok_or_else(inactive)?;
            let policy = rules.version;
            if !rules
                .bundle
                .service(&caller.id)
                .is_some_and(|s| s.audiences.contains(&found.issued.action.audience))
            {
                return Err(inactive());
            }
            let task = self.state.task(&found.issued.task);
            let until = Timestamp::from_secs(found.issued.exp);
            let lease = task.as_ref().and_then(|t| t.lease).map(|lease| lease.until);
            let until = lease.map_or(until, |lease| lease.min(until));
            let opened = task.as_ref().map(|t| &*t.opened);
            let freezes = self.freeze_premises(&found.issued, opened, &rules);
            let task = task.as_ref().map_or(Version::MAX, |t| t.version);
            let agent = self.state.standing(&found.issued.agent).version;
            let trust = self
                .state
                .trusted(&found.issued.subject.trust_domain())
                .map_or(Version::MAX, |t| t.version);
            let grant = self
                .state
                .grant(&jti)
                .filter(|grant| self.dead(grant, now).is_none())
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
            if grant.spent() {
                return Err(self.refuse(
                    call.method,
                    Reason::UseSpent,
                    "every use of the token is spent",
                ));
            }
            let fact = Event::TokenConsumed(TokenConsumed {
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
                ..Append::one(fact, vec![(Stream::Token(jti), grant.version)])
            };
            match self.journal.append(append).await {
                Ok(entry) => {
                    return Ok(Consumed {
                        jti,
                        uses_left: left(&grant, grant.uses.len() + 1),
                        index: Some(entry.index),
                    });
                }
                Err(AppendError::Conflict(_) | AppendError::Late) => {}
                Err(error) => return Err(self.refuse_append(call.method, &error)),
            }
        }
        Err(self.refuse(call.method, Reason::Conflict, "others keep using the token"))
    }

    /// The live grant a token stands for, if the token is ours, for one of these audiences, and says just what the grant says.
    fn live_grant(
        &self,
        token: &Secret,
        audiences: &std::collections::BTreeSet<Audience>,
        now: Timestamp,
    ) -> Option<Arc<Grant>> {
        let (jti, kid) = self.read(token, now)?;
        let grant = self.state.grant(&jti)?;
        if !audiences.contains(&grant.issued.action.audience) || !grant.kids.contains(&kid) {
            return None;
        }
        self.dead(&grant, now).is_none().then_some(grant)
    }

    /// The grant that a token of ours stands for and the key that signed it, if the token says just what the grant says. Says
    /// nothing of whether it lives.
    fn read(&self, token: &Secret, now: Timestamp) -> Option<(TokenId, KeyId)> {
        let keys = self.views.own_keys()?;
        let text = Digest::of(token.expose_secret().as_bytes());
        if let Some(read) = self.readings.of(&keys, &text) {
            return Some(read);
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
        let read = (claims.jti, checked.kid().clone());
        self.readings.note(&keys, text, read.0, read.1.clone());
        Some(read)
    }

    /// The bench read this token back before it left: it need not be read again here.
    pub(in crate::broker) fn was_read(&self, token: &Secret, issued: &TokenIssued) {
        if let Some(keys) = self.views.own_keys()
            && keys.get(&issued.kid).is_some()
        {
            let text = Digest::of(token.expose_secret().as_bytes());
            self.readings
                .note(&keys, text, issued.jti, issued.kid.clone());
        }
    }
}

fn left(grant: &Grant, used: usize) -> Option<u32> {
    grant
        .issued
        .uses
        .map(|uses| uses.saturating_sub(u32::try_from(used).unwrap_or(u32::MAX)))
}
