//! Revoking one token, for an operator.

use crate::broker::governance::pending_revocation::{PendingRevocation, RevocationTarget};
use crate::broker::transaction::Step;
use crate::broker::{Broker, CallContext, Refusal};
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
        let hold = self.hold_revocation(RevocationTarget::Token(jti));
        let order = self
            .transaction(call.method)
            .ordered_by(&operator)
            .holding(&hold);
        let done = order
            .run(|read| {
                self.require_operator(read, call, &operator)?;
                let grant = read.grant(&jti).ok_or_else(|| {
                    let message = format!("no token {jti} was issued here");
                    self.refuse(call.method, Reason::NotFound, message)
                })?;
                if let Some(cause) = read.end_cause(&grant, self.now()) {
                    // The first of its ends counts, so that a repetition has the same answer.
                    let first = read.first_end(&grant);
                    return Ok(Step::Answer(TokenRevoked {
                        changed: false,
                        cause: first.map_or(cause, |ended| ended.cause),
                        index: first.map(|ended| ended.index),
                    }));
                }
                let revoked = TokenRevoked {
                    changed: true,
                    cause: EndCause::Operator,
                    index: None,
                };
                let revocation = PendingRevocation::new(&operator, EndCause::Operator);
                let draft = revocation.end_of_token(read, &grant);
                Ok(Step::Revoke(draft, revocation, revoked))
            })
            .await?;
        Ok(TokenRevoked {
            index: done
                .entry
                .map_or(done.value.index, |entry| Some(entry.index)),
            ..done.value
        })
    }
}
