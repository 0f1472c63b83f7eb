//! Credential keys: COSE_Key (RFC 9052 §7) to JWK.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ciborium::Value as Cbor;
use coset::iana::{Algorithm, EllipticCurve, EnumI64 as _, KeyType};
use coset::{AsCborValue as _, CoseKey, Label, RegisteredLabel, RegisteredLabelWithPrivate, iana};
use serde_json::{Value, json};

use super::WebauthnError;
use crate::jose::{AuthenticatorKey, KeyError};

/// Reads a key of one of [`super::ALGORITHMS`] in the one form there is for it: `alg` is there, no other optional parameter
/// is (WebAuthn L3 §6.5.1.1), curve and coordinates are as §5.8.5 has them, and no label stands twice.
pub(super) fn to_jwk(cose: Cbor) -> Result<Value, WebauthnError> {
    let cose = CoseKey::from_cbor_value(cose)
        .map_err(|_| WebauthnError::Key("not a COSE key with each label once"))?;
    if !cose.key_id.is_empty() || !cose.key_ops.is_empty() || !cose.base_iv.is_empty() {
        return Err(WebauthnError::Key("has an optional parameter"));
    }
    let Some(RegisteredLabelWithPrivate::Assigned(alg)) = cose.alg else {
        return Err(WebauthnError::Algorithm);
    };
    let kty = match cose.kty {
        RegisteredLabel::Assigned(kty) => kty,
        RegisteredLabel::Text(_) => return Err(WebauthnError::Key("kty does not fit alg")),
    };
    let jwk = match (alg, kty) {
        (Algorithm::ES256, KeyType::EC2) => {
            use iana::Ec2KeyParameter::{Crv, X, Y};
            exactly(&cose, &[Crv.to_i64(), X.to_i64(), Y.to_i64()])?;
            on(&cose, Crv.to_i64(), EllipticCurve::P_256)?;
            // A compressed point has a boolean for y, and is not allowed (§5.8.5).
            json!({
                "kty": "EC",
                "crv": "P-256",
                "x": bytes(&cose, X.to_i64())?,
                "y": bytes(&cose, Y.to_i64())?,
            })
        }
        (Algorithm::EdDSA, KeyType::OKP) => {
            use iana::OkpKeyParameter::{Crv, X};
            exactly(&cose, &[Crv.to_i64(), X.to_i64()])?;
            on(&cose, Crv.to_i64(), EllipticCurve::Ed25519)?;
            json!({ "kty": "OKP", "crv": "Ed25519", "x": bytes(&cose, X.to_i64())? })
        }
        (Algorithm::RS256, KeyType::RSA) => {
            use iana::RsaKeyParameter::{E, N};
            exactly(&cose, &[N.to_i64(), E.to_i64()])?;
            json!({
                "kty": "RSA",
                "n": bytes(&cose, N.to_i64())?,
                "e": bytes(&cose, E.to_i64())?,
            })
        }
        (Algorithm::ES256 | Algorithm::EdDSA | Algorithm::RS256, _) => {
            return Err(WebauthnError::Key("kty does not fit alg"));
        }
        (_, _) => return Err(WebauthnError::Algorithm),
    };
    match AuthenticatorKey::from_jwk(&jwk) {
        Ok(_) => Ok(jwk),
        Err(KeyError::Jwk(why)) => Err(WebauthnError::Key(why)),
        Err(KeyError::Published) => Err(WebauthnError::Key(
            "its private key is published, so anyone can sign with it",
        )),
        Err(
            KeyError::OffCurve
            | KeyError::Private
            | KeyError::Pem(_)
            | KeyError::Pkcs8
            | KeyError::Failed,
        ) => Err(WebauthnError::Key("cannot be read")),
    }
}

/// These parameters of the type and no others: private ones least of all.
fn exactly(cose: &CoseKey, labels: &[i64]) -> Result<(), WebauthnError> {
    let fits = cose.params.len() == labels.len()
        && labels.iter().all(|label| parameter(cose, *label).is_some());
    if fits {
        Ok(())
    } else {
        Err(WebauthnError::Key(
            "must have the required parameters and no others",
        ))
    }
}

fn on(cose: &CoseKey, label: i64, curve: EllipticCurve) -> Result<(), WebauthnError> {
    let is = parameter(cose, label).and_then(Cbor::as_integer);
    if is == Some(curve.to_i64().into()) {
        Ok(())
    } else {
        Err(WebauthnError::Key("curve does not fit alg"))
    }
}

fn bytes(cose: &CoseKey, label: i64) -> Result<String, WebauthnError> {
    let bytes = parameter(cose, label).and_then(Cbor::as_bytes);
    let bytes = bytes.ok_or(WebauthnError::Key("a parameter is not bytes"))?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

fn parameter(cose: &CoseKey, label: i64) -> Option<&Cbor> {
    let found = cose.params.iter().find(|(l, _)| *l == Label::Int(label));
    found.map(|(_, value)| value)
}
