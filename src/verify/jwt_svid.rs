//! JWT-SVID evidence (SPIFFE JWT-SVID §2, §3): a signed, short-lived claim that a workload has a SPIFFE ID, for one
//! audience.

use super::VerifyError;
use crate::jose::{HeaderRules, KidRule, TypRule, jws};
use crate::model::{Digest, EvidenceFacts, EvidenceKind, Secret, SpiffeId, Timestamp};
use crate::state::Trust;

const RULES: HeaderRules = HeaderRules {
    typ: TypRule::Optional(&["JWT", "JOSE"]),
    kid: KidRule::Required,
    extras: &[],
};

/// Seconds a signer's clock may run ahead.
const LEEWAY_S: i64 = 5;
/// Longest remaining lifetime of evidence, in seconds: an SVID is valid for minutes to hours.
const LIFETIME_MAX_S: i64 = 24 * 3_600;

pub(super) fn check(
    token: &Secret,
    trust: &Trust,
    audience: &str,
    now: Timestamp,
) -> Result<EvidenceFacts, VerifyError> {
    let compact = token.expose_secret();
    // The unverified subject only selects the trust domain's keys; the subject that counts is read from the verified claims
    // below, and must be in the same domain.
    let hint =
        SpiffeId::parse(&jws::unverified_string(compact, "sub")?).map_err(VerifyError::Subject)?;
    let domain = hint.trust_domain();
    let keys = trust
        .domain(&domain)
        .ok_or_else(|| VerifyError::UntrustedDomain(domain.clone()))?;
    let jws = jws::verify(compact, &keys.jwt_svid, &RULES)?;
    let claims = jws.claims();
    let subject = SpiffeId::parse(claims.string("sub")?).map_err(VerifyError::Subject)?;
    if subject.trust_domain() != domain {
        return Err(VerifyError::UntrustedDomain(subject.trust_domain()));
    }
    if claims.audience()? != audience {
        return Err(VerifyError::WrongAudience);
    }
    let expires_at = Timestamp::from_secs(claims.seconds("exp")?);
    if now >= expires_at {
        return Err(VerifyError::Expired(expires_at));
    }
    let ahead = now.plus_secs(LEEWAY_S);
    let issued_at = claims.optional_seconds("iat")?.map(Timestamp::from_secs);
    let not_before = claims.optional_seconds("nbf")?.map(Timestamp::from_secs);
    if [issued_at, not_before]
        .into_iter()
        .flatten()
        .any(|at| at > ahead)
    {
        return Err(VerifyError::InvalidDates);
    }
    if expires_at > now.plus_secs(LIFETIME_MAX_S) {
        return Err(VerifyError::InvalidDates);
    }
    Ok(EvidenceFacts {
        kind: EvidenceKind::JwtSvid,
        subject,
        kid: jws.kid().clone(),
        sha256: Digest::sha256(compact.as_bytes()),
        issued_at,
        verified_at: now,
        expires_at,
    })
}
