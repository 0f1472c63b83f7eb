use crate::broker::governance::pending_revocation::{RevocationTarget, PendingRevocation};
use crate::broker::{Broker, CallContext, Refusal};
use crate::journal::{Append, AppendError};
use crate::model::*;

/// How a token stands after it was revoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenRevoked {
    /// False: it was dead already.
    pub changed: bool,
    /// Why it is dead.
    pub cause: EndCause,
    /// Index of the entry that ended it, where one did: validators that have read this far refuse it.
    pub index: Option<u64>,
}

impl Broker {
    /// An operator ends one token; its task goes on. Of a dead one it says why it is dead. A crash before the entry leaves
    /// the token alive and the operator without an answer.
    pub async fn revoke_token(
        &self,
        call: &CallContext,
        jti: TokenId,
    ) -> Result<TokenRevoked, Refusal> {
        let operator = self.authenticate_person(call)?;
        loop {
            let rules = self.require_operator(call, &operator)?;
            let Some(grant) = self.state.grant(&jti) else {
                let told = format!("no token {jti} was ever issued here");
                return Err(self.refuse(call.method, Reason::NotFound, told));
            };
            if let Some(cause) = self.state.dead(&grant, self.now()) {
                let of_task = self.state.task(&grant.issued.task).and_then(|t| t.ended);
                let ended = grant.ended.or(of_task).map(|ended| ended.index);
                return Ok(TokenRevoked {
                    changed: false,
                    cause,
                    index: ended.or_else(|| self.state.action_frozen_at(&grant)),
                });
            }
            let fact = Event::GrantsEnded(GrantsEnded {
                jtis: vec![jti],
                cause: EndCause::Operator,
                by: Some(operator.id.clone()),
            });
            let append = Append {
                read_set: vec![(Stream::Policy, rules.version)],
                ..Append::one(fact, vec![(Stream::Token(jti), grant.version)])
            };
            match self.journal.append(append).await {
                Ok(entry) => {
                    self.clear_pending(&RevocationTarget::Token(jti));
                    return Ok(TokenRevoked {
                        changed: true,
                        cause: EndCause::Operator,
                        index: Some(entry.index),
                    });
                }
                Err(AppendError::Conflict(_)) => {}
                Err(error) => {
                    let order = PendingRevocation::new(operator.id, EndCause::Operator);
                    return Err(self.defer_revocation(call.method, RevocationTarget::Token(jti), order, &error));
                }
            }
        }
    }
}
