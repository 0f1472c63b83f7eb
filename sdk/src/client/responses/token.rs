//! Responses about tokens: introspection, active tokens and revocation.

use super::{ReadWire, responses};
use crate::model::{Target, Timestamp, UseOutcome};
use crate::proto::v1;

responses! {
    /// The status of a token (after RFC 7662 §2.2).
    Introspection from IntrospectResponse {
        /// Whether it is valid now, for the caller's audience. All that follows is empty otherwise.
        active: bool = active,
        /// Its id.
        jti: String = jti,
        /// The task it belongs to.
        task_id: String = task_id,
        /// The agent that holds it.
        agent_id: String = agent_id,
        /// The attested workload, a SPIFFE ID.
        subject: String = subject,
        /// The resource server it is for.
        audience: String = audience,
        /// When it expires.
        expires_at: Option<Timestamp> = expires_at,
        /// Thumbprint of the key that its holder must prove (RFC 9449 §6).
        jkt: String = jkt,
        /// The action it is for.
        action: String = action,
        /// The target of the action.
        target: Option<Target> = target,
        /// The action digest, or its commitment, as the token has it.
        action_digest: String = action_digest,
        /// Uses in all; `None` when its lifetime is the only limit.
        uses: Option<u32> = uses,
        /// Uses left.
        uses_left: Option<u32> = uses_left,
    }

    /// The answer about one use of a token.
    TokenUseReport from ConsumeTokenResponse {
        /// The token's id.
        jti: String = jti,
        /// Uses left after this one; `None` when its lifetime is the only limit, and nothing was consumed.
        uses_left: Option<u32> = uses_left,
        /// Index of the journal entry of this use; `None` when nothing was consumed.
        position: Option<u64> = position,
        /// Whether this call spent the use; `None` when this client does not know the broker's word for it.
        outcome: Option<UseOutcome> = outcome,
    }

    /// An active token.
    ActiveToken from ActiveToken {
        /// Its id.
        jti: String = jti,
        /// The agent that holds it.
        agent_id: String = agent_id,
        /// The agent's owner, by opaque id.
        owner: String = owner,
        /// The task it belongs to.
        task_id: String = task_id,
        /// The action it is for.
        action: String = action,
        /// The target of the action.
        target: Option<Target> = target,
        /// The resource server it is for.
        audience: String = audience,
        /// When it was issued.
        issued_at: Option<Timestamp> = issued_at,
        /// When it expires.
        expires_at: Option<Timestamp> = expires_at,
        /// Uses left; `None` when its lifetime is the only limit.
        uses_left: Option<u32> = uses_left,
        /// Step-up profiles it was approved under; empty when rules alone allowed it.
        profiles: Vec<String> = profiles,
    }

    /// The result of revoking a token.
    TokenRevocation from RevokeTokenResponse {
        /// `false`: the token had ended already.
        changed: bool = changed,
        /// Why it ended: `operator`, `completed`, `deadline`, …
        cause: String = cause,
        /// Index of the journal entry that ended it: validators that have read this far refuse it. `None` when time alone
        /// ended it.
        position: Option<u64> = position,
    }
}
