//! The bench: the only place where a token is signed.
//!
//! In: [`Approved`] or [`Reapproved`], by value. Out: [`Minted`]: the signed token and the entry that must be durable
//! before the token leaves. Trusts nothing it signed until it has read it back with the validators' own check.
//! Never sees evidence, rules or the journal.

use std::sync::Arc;

use crate::approve::{Approved, Reapproved};
use crate::jose::access_token::{
    self, AccessTokenClaims, ActionDetail, Confirmation, ExpectedToken, TokenError,
};
use crate::jose::{KeySet, KeySetError, PublicKey, SigningKey};
use crate::model::*;

/// Why nothing was minted.
#[derive(Debug, thiserror::Error)]
pub enum MintError {
    /// The token cannot be signed.
    #[error("signing: {0}")]
    Sign(TokenError),
    /// The signed token does not read back.
    #[error("read back: {0}")]
    ReadBack(TokenError),
    /// What reads back is not what was ordered.
    #[error("what was signed is not what was ordered")]
    Differs,
    /// The order's time ran out on the bench.
    #[error("the order's time ran out")]
    Late,
    /// The grant and the call do not belong together.
    #[error("not for a task")]
    NoTask,
}

/// The key, and the claims every token has in common.
#[derive(Debug)]
pub struct TokenIssuer {
    key: SigningKey,
    kid: KeyId,
    issuer: String,
    own: KeySet,
}

/// What the ledger gives a new grant.
pub struct Place {
    /// The token's id, freshly drawn.
    pub jti: TokenId,
    /// (epoch, index of the last entry folded) when it was decided.
    pub position: (u64, u64),
    /// The client's idempotency key.
    pub request_id: RequestId,
    /// Blob: the agent's reason.
    pub reason: Option<Digest>,
    /// Version of the stream of that key in this task: 0, or that of the access request it opened.
    pub request_version: Version,
    /// Version of the signing key's stream.
    pub key_version: Version,
}

/// A signed token and the grant that must be durable before it leaves.
pub struct Minted {
    /// The token. Drop it when the append fails: then it was never there.
    pub token: Secret,
    /// The grant.
    pub issued: TokenIssued,
    /// The sensitive part of its action.
    pub secret: Option<ActionSecret>,
    /// Streams the grant moves.
    pub moves: Vec<(Stream, Version)>,
    /// Streams it rests on.
    pub read_set: Vec<(Stream, Version)>,
    /// It must be durable before this.
    pub not_after: Timestamp,
}

/// A recorded token signed anew, and the entry that must be durable before it leaves.
pub struct Reissued {
    /// The token.
    pub token: Secret,
    /// The entry.
    pub fact: TokenReissued,
    /// Streams the entry moves.
    pub moves: Vec<(Stream, Version)>,
    /// Streams it rests on.
    pub read_set: Vec<(Stream, Version)>,
    /// It must be durable before this.
    pub not_after: Timestamp,
}

impl TokenIssuer {
    /// A bench with a key; `issuer` is the `iss` of every token.
    pub fn new(key: SigningKey, issuer: String) -> Result<Self, KeySetError> {
        let kid = Self::kid_of(key.public());
        let own = KeySet::from_keys([(kid.clone(), key.public())])?;
        Ok(Self {
            key,
            kid,
            issuer,
            own,
        })
    }

    /// A key is named by its thumbprint (RFC 7638), so one name never means two keys.
    fn kid_of(key: &PublicKey) -> KeyId {
        KeyId::of(key.thumbprint())
    }

    /// The key's name.
    pub const fn kid(&self) -> &KeyId {
        &self.kid
    }

    /// The public key.
    pub fn public(&self) -> &PublicKey {
        self.key.public()
    }

    /// Signs one token for one approved action. Consumes the pass: a second use does not compile.
    ///
    /// `now` is the moment of signing; `draw` gives random salts for sensitive parameters.
    pub fn mint(
        &self,
        order: Approved,
        place: Place,
        now: Timestamp,
        draw: &mut dyn FnMut() -> [u8; 16],
    ) -> Result<Minted, MintError> {
        if now >= order.not_after() {
            return Err(MintError::Late);
        }
        let verified = order.verified();
        let task = verified.task().ok_or(MintError::NoTask)?;
        let (action, secret) = order.action().on_record(order.sensitive(), draw);
        let iat = verified.now().secs();
        let blob = secret.as_ref().map(ActionSecret::blob);
        let issued = TokenIssued {
            jti: place.jti,
            task: task.id,
            agent: verified.agent().id.clone(),
            subject: verified.facts().subject.clone(),
            request_id: place.request_id.clone(),
            asked_ttl: order.decision().ttl.asked,
            reason: place.reason,
            action: Arc::new(action),
            secret: blob.as_ref().map(|text| Digest::of(text.as_bytes())),
            iat,
            // Counted from the second the decision was made in, so that it lies within every bound of the sum.
            exp: iat + order.ttl(),
            kid: self.kid.clone(),
            cnf: verified.binding(),
            uses: order.uses(),
            pos: place.position.1,
            approval: order.approval().cloned().map(Arc::new),
            consumed: order.consumes().map(|(id, _)| id),
            decision: order.decision().clone(),
            evidence: Arc::new(verified.facts().clone()),
        };
        let token = self.sign(&issued, place.position.0, now)?;
        let mut moves = vec![(
            Stream::Request(task.id, place.request_id),
            place.request_version,
        )];
        moves.extend(
            order
                .consumes()
                .map(|(id, version)| (Stream::Access(id), version)),
        );
        let mut read_set = order.read_set();
        read_set.push((Stream::Key(self.kid.clone()), place.key_version));
        Ok(Minted {
            token,
            issued,
            secret,
            moves,
            read_set,
            not_after: order.not_after(),
        })
    }

    /// Signs a recorded grant anew: the same `jti`, the same claims. Consumes the pass.
    pub fn reissue(
        &self,
        order: Reapproved,
        key_version: Version,
        now: Timestamp,
    ) -> Result<Reissued, MintError> {
        let grant = order.grant();
        let token = self.sign(&grant.issued, grant.epoch, now)?;
        let mut read_set = order.verified().read_set().to_vec();
        read_set.push(order.freeze());
        read_set.extend(order.counted());
        read_set.push((Stream::Key(self.kid.clone()), key_version));
        Ok(Reissued {
            token,
            fact: TokenReissued {
                jti: grant.issued.jti,
                kid: self.kid.clone(),
            },
            moves: vec![(Stream::Token(grant.issued.jti), grant.version)],
            read_set,
            not_after: order.verified().not_after(),
        })
    }

    fn sign(&self, issued: &TokenIssued, epoch: u64, now: Timestamp) -> Result<Secret, MintError> {
        let claims = claims_of(issued, epoch, &self.issuer);
        let token = access_token::sign(&claims, &self.kid, &self.key).map_err(MintError::Sign)?;
        let expect = ExpectedToken {
            iss: &self.issuer,
            aud: Some(&issued.action.audience),
            now,
        };
        let read = access_token::check(token.expose_secret(), &self.own, &expect)
            .map_err(MintError::ReadBack)?;
        // INVARIANT (check your own work): a token leaves only if a validator would read exactly the grant in it.
        if *read.claims() == claims {
            Ok(token)
        } else {
            Err(MintError::Differs)
        }
    }
}

/// The claims of a grant: a pure function of its entry (no field of any request is read after the decision).
pub fn claims_of(issued: &TokenIssued, epoch: u64, issuer: &str) -> AccessTokenClaims {
    AccessTokenClaims {
        iss: issuer.to_owned(),
        sub: issued.subject.clone(),
        aud: issued.action.audience.clone(),
        exp: issued.exp,
        iat: issued.iat,
        nbf: issued.iat,
        jti: issued.jti,
        client_id: issued.agent.clone(),
        cnf: Confirmation {
            jkt: issued.cnf.jkt(),
        },
        authorization_details: [ActionDetail::from(&*issued.action)],
        txn: issued.task,
        epoch,
        pos: issued.pos,
        uses: issued.uses,
        approval: issued.approval.as_deref().cloned(),
    }
}
