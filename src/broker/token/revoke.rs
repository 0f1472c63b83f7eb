//! Revoking one token, for an operator.

use crate::broker::governance::pending_revocation::{PendingRevocation, RevocationTarget};
use crate::broker::transaction::UNTIL_DONE;
use crate::broker::{Broker, CallContext, Refusal};
use crate::journal::Append;
use crate::model::*;

/// A token after its revocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenRevoked {
    /// False: it had ended already.
    pub changed: bool,
    /// Why it ended.
    pub cause: EndCause,
    /// Index of the entry that ended it, where one did: a validator that has read the feed so far refuses it.
    pub index: Option<u64>,
}

impl Broker {
    /// Revokes one token for an operator; its task goes on. For a token that had ended it answers why. A crash before the
    /// entry leaves the token active and the operator without an answer.
    pub async fn revoke_token(
        &self,
        call: &CallContext,
        jti: TokenId,
    ) -> Result<TokenRevoked, Refusal> {
        let operator = self.authenticate_person(call)?;
        let hold = self.hold_revocation(call.method, RevocationTarget::Token(jti));
        let (operator, hold) = (&operator, &hold);
        self.transaction(
            call.method,
            UNTIL_DONE,
            "the token keeps changing while it is revoked",
            |attempt| async move {
                let rules = self.require_operator(call, operator)?;
                let Some(grant) = self.state.grant(&jti) else {
                    let message = format!("no token {jti} was issued here");
                    return Err(self.refuse(call.method, Reason::NotFound, message).into());
                };
                if let Some(cause) = self.state.end_cause(&grant, self.now()) {
                    let of_task = self.state.task(&grant.issued.task).and_then(|t| t.ended);
                    let ended = grant.ended.or(of_task).map(|ended| ended.index);
                    return Ok(TokenRevoked {
                        changed: false,
                        cause,
                        index: ended.or_else(|| self.state.action_frozen_at(&grant)),
                    });
                }
                let event = Event::GrantsEnded(GrantsEnded {
                    jtis: vec![jti],
                    cause: EndCause::Operator,
                    by: Some(operator.id.clone()),
                });
                let append = Append {
                    read_set: vec![(Stream::Policy, rules.version)],
                    ..Append::one(event, vec![(Stream::Token(jti), grant.version)])
                };
                let revocation = PendingRevocation::new(operator.id.clone(), EndCause::Operator);
                let entry = hold.append(attempt, append, revocation).await?;
                Ok(TokenRevoked {
                    changed: true,
                    cause: EndCause::Operator,
                    index: Some(entry.index),
                })
            },
        )
        .await
    }
}
