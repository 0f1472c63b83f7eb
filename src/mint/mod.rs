//! Issues access tokens, and signs records of them: the only module that holds the signing key.
//!
//! In: [`Approved`] or [`Reapproved`], by value. Out: [`Minted`]: the signed token and the entry that must be durable
//! before the token leaves. Trusts: no token it signed until it has read it back with the validators' own check.
//! Never: sees evidence, rules or the journal.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::approve::{Approved, Reapproved};
use crate::jose::access_token::{
    self, AccessTokenClaims, ActionDetail, Confirmation, ExpectedToken, TokenError,
};
use crate::jose::{KeyError, KeySet, KeySetError, PublicKey, SigningKey};
use crate::model::*;
use crate::verify::Verified;

/// Why no token was signed.
#[derive(Debug, thiserror::Error)]
pub enum MintError {
    /// The token cannot be signed.
    #[error("signing: {0}")]
    Sign(TokenError),
    /// The signed token does not read back.
    #[error("read back: {0}")]
    ReadBack(TokenError),
    /// The token reads back with other claims.
    #[error("the signed token reads back with other claims than the grant's")]
    ReadBackMismatch,
    /// The approval expired before the token was signed.
    #[error("the approval expired before the token was signed")]
    Expired,
    /// The approval is not for a task.
    #[error("the approval is not for a task")]
    NoTask,
    /// The signing key is not in the journal.
    #[error("the signing key is not published")]
    UnpublishedKey,
}

/// Signs tokens: the key, and the claims all tokens share.
#[derive(Debug)]
pub struct TokenIssuer {
    key: SigningKey,
    kid: KeyId,
    issuer: String,
    own: KeySet,
}

/// The ids of a new grant.
pub struct GrantContext {
    /// The token's id, random.
    pub jti: TokenId,
    /// The client's idempotency key.
    pub idempotency_key: IdempotencyKey,
    /// Hash of the blob with the agent's reason.
    pub reason: Option<Digest>,
}

/// A signed token and the grant that must be durable before it leaves.
pub struct Minted {
    /// The token. Drop it when the append fails: then it was never issued.
    pub token: Secret,
    /// The grant.
    pub issued: TokenIssued,
    /// The sensitive part of its action.
    pub secret: Option<ActionSecret>,
    /// The entry must be durable before this.
    pub not_after: Timestamp,
}

/// A recorded token signed anew, and the entry that must be durable before it leaves.
pub struct Reissued {
    /// The token.
    pub token: Secret,
    /// The entry.
    pub event: TokenReissued,
    /// The entry must be durable before this.
    pub not_after: Timestamp,
}

impl TokenIssuer {
    /// An issuer with a key; `issuer` is the `iss` of every token.
    pub fn new(key: SigningKey, issuer: String) -> Result<Self, KeySetError> {
        let kid = Self::key_id(key.public());
        let own = KeySet::from_keys([(kid.clone(), key.public())])?;
        Ok(Self {
            key,
            kid,
            issuer,
            own,
        })
    }

    /// The `kid` is the key's thumbprint (RFC 7638), so one `kid` never means two keys.
    fn key_id(key: &PublicKey) -> KeyId {
        KeyId::from_thumbprint(key.thumbprint())
    }

    /// The `kid` of the signing key.
    pub const fn kid(&self) -> &KeyId {
        &self.kid
    }

    /// The public key.
    pub fn public(&self) -> &PublicKey {
        self.key.public()
    }

    /// Signs one token for one approved action. Consumes the approval: a second use does not compile.
    ///
    /// `now` is the moment of signing; `random_bytes` gives random salts for sensitive parameters.
    pub fn mint(
        &self,
        approval: Approved<'_>,
        context: GrantContext,
        now: Timestamp,
        random_bytes: &mut dyn FnMut() -> [u8; 16],
    ) -> Result<Minted, MintError> {
        if now >= approval.not_after() {
            return Err(MintError::Expired);
        }
        let verified = approval.verified();
        let task = verified.task().ok_or(MintError::NoTask)?.opened.task;
        self.require_published(verified)?;
        let (epoch, pos) = verified.read().position();
        let (action, secret) = approval
            .action()
            .on_record(approval.sensitive(), random_bytes);
        let iat = verified.now().secs();
        let blob = secret.as_ref().map(ActionSecret::blob);
        let issued = TokenIssued {
            jti: context.jti,
            task,
            agent: verified.agent().id.clone(),
            subject: verified.facts().subject.clone(),
            idempotency_key: context.idempotency_key,
            requested_ttl: approval.decision().ttl.requested,
            reason: context.reason,
            action: Arc::new(action),
            secret: blob.as_ref().map(|text| Digest::sha256(text.as_bytes())),
            iat,
            // Counted from the second of the decision, so that it stays within every limit of the lifetime.
            exp: iat + approval.ttl(),
            kid: self.kid.clone(),
            cnf: verified.binding(),
            uses: approval.uses(),
            pos,
            approval: approval.approval().cloned().map(Arc::new),
            consumed: approval.consumes(),
            decision: approval.decision().clone(),
            evidence: Arc::new(verified.facts().clone()),
        };
        let token = self.sign(&issued, epoch, now)?;
        Ok(Minted {
            token,
            issued,
            secret,
            not_after: approval.not_after(),
        })
    }

    /// Signs a recorded grant again: the same `jti`, the same claims. Consumes the approval.
    pub fn reissue(&self, approval: Reapproved<'_>, now: Timestamp) -> Result<Reissued, MintError> {
        let grant = approval.grant();
        self.require_published(approval.verified())?;
        let token = self.sign(&grant.issued, grant.epoch, now)?;
        Ok(Reissued {
            token,
            event: TokenReissued {
                jti: grant.issued.jti,
                kid: self.kid.clone(),
            },
            // A signature is durable before the token expires, or the retry is answered anew.
            not_after: approval
                .verified()
                .not_after()
                .min(Timestamp::from_secs(grant.issued.exp)),
        })
    }

    /// Signs the digest of a checkpoint or a receipt (ES256), as base64url. Says that entries are on record, and lets no holder act.
    ///
    /// INVARIANT (a record is no token): the signed message is the 32 bytes of the digest. The signing input of a JWS is text with
    /// its base64url header before a dot (RFC 7515 §5.1), and one that names `alg`, `typ` and `kid`, as every token of this key
    /// does, is longer than 32 bytes. So no signature made here is one of a token, and none of a token is one of a record.
    pub fn sign_record(&self, digest: &Digest) -> Result<String, KeyError> {
        Ok(URL_SAFE_NO_PAD.encode(self.key.sign(digest.as_bytes())?))
    }

    /// Validators must be able to find the key.
    fn require_published(&self, verified: &Verified<'_>) -> Result<(), MintError> {
        let published = verified.read().signing_key(&self.kid);
        published.map(drop).ok_or(MintError::UnpublishedKey)
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
            Err(MintError::ReadBackMismatch)
        }
    }
}

/// How far `nbf` lies before `iat`, in seconds: a resource server whose clock is behind accepts a token at once. It makes no
/// token valid longer, because `exp` and the computation of the lifetime do not depend on it.
pub const NOT_BEFORE_S: i64 = 30;

/// The claims of a grant: a pure function of its entry; no field of the request is read after the decision.
pub fn claims_of(issued: &TokenIssued, epoch: u64, issuer: &str) -> AccessTokenClaims {
    AccessTokenClaims {
        iss: issuer.to_owned(),
        sub: issued.subject.clone(),
        aud: issued.action.audience.clone(),
        exp: issued.exp,
        iat: issued.iat,
        nbf: issued.iat.saturating_sub(NOT_BEFORE_S).max(0),
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
