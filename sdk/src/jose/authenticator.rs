use std::fmt;

use serde_json::Value;

use super::jwk::Material;
use super::{Alg, KeyError, KeySetError, Usage, published};
use crate::model::json::canonical;
use crate::model::{Digest, KeyIdentity, Thumbprint};

/// The public key of a passkey: P-256, Ed25519 or RSA, each with the one algorithm that WebAuthn gives its type (Level 3
/// §5.8.5): ES256, EdDSA, RS256.
#[derive(Clone)]
pub struct AuthenticatorKey {
    material: Material,
    alg: Alg,
    thumbprint: Thumbprint,
}

impl AuthenticatorKey {
    /// Reads a JWK of exactly the members its type requires (RFC 7638 §3.2), so that one key has one record. Refuses every key
    /// that no key set may have either: a point off its curve or of another order, an RSA modulus or exponent out of bounds, a
    /// key whose private half is published.
    pub fn from_jwk(jwk: &Value) -> Result<Self, KeyError> {
        let key = Self::sound(jwk)?;
        if published::contains(&key.identity()) {
            return Err(KeyError::Published);
        }
        Ok(key)
    }

    /// Like [`AuthenticatorKey::from_jwk`], for test vectors: their keys are published.
    #[cfg(any(test, feature = "test-support"))]
    pub fn from_vector(jwk: &Value) -> Result<Self, KeyError> {
        Self::sound(jwk)
    }

    fn sound(jwk: &Value) -> Result<Self, KeyError> {
        let members = jwk.as_object().ok_or(KeyError::Jwk("must be an object"))?;
        let text = |name: &str| members.get(name).and_then(Value::as_str);
        let (alg, required): (Alg, &[&str]) = match (text("kty"), text("crv")) {
            (Some("EC"), Some("P-256")) => (Alg::Es256, &["crv", "kty", "x", "y"]),
            (Some("OKP"), Some("Ed25519")) => (Alg::EdDsa, &["crv", "kty", "x"]),
            (Some("RSA"), None) => (Alg::Rs256, &["e", "kty", "n"]),
            (_, _) => return Err(KeyError::Jwk("must be P-256, Ed25519 or RSA")),
        };
        if members.len() != required.len() || !required.iter().all(|m| members.contains_key(*m)) {
            return Err(KeyError::Jwk(
                "must have the required members and no others",
            ));
        }
        let read = Material::read(members, text("kty"), Usage::Signature);
        let material = match read {
            Ok(Some((material, _))) => material,
            Ok(None) => return Err(KeyError::Jwk("must be P-256, Ed25519 or RSA")),
            Err(KeySetError::Key(why) | KeySetError::Form(why)) => return Err(KeyError::Jwk(why)),
            Err(
                KeySetError::TooLarge
                | KeySetError::Json
                | KeySetError::Private
                | KeySetError::DuplicateKid
                | KeySetError::MissingKid,
            ) => return Err(KeyError::Jwk("cannot be read")),
        };
        // The canonical form of the required members is the one RFC 7638 §3 hashes.
        let text = canonical(jwk).map_err(|_| KeyError::Jwk("cannot be written"))?;
        Ok(Self {
            material,
            alg,
            thumbprint: Thumbprint(Digest::sha256(text.as_bytes())),
        })
    }

    /// The JWK thumbprint (RFC 7638, SHA-256): the key's name.
    pub fn thumbprint(&self) -> Thumbprint {
        self.thumbprint
    }

    /// What its holder can sign as.
    pub fn identity(&self) -> KeyIdentity {
        self.material.identity()
    }

    /// Its thumbprint first, then those of the other keys that its holder has by it, where there is one: the negative of a point.
    pub fn thumbprints(&self) -> Vec<Thumbprint> {
        match &self.material {
            Material::P256(key) => key.thumbprints().to_vec(),
            Material::P384(_) | Material::Rsa { .. } | Material::Ed25519(_) => {
                vec![self.thumbprint]
            }
        }
    }

    /// Its one algorithm.
    pub fn alg(&self) -> Alg {
        self.alg
    }

    /// Whether the signature, in the form authenticators give it (WebAuthn Level 3 §6.5.5: DER for ECDSA, as in JOSE for the
    /// others), is this key's over the message.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        match &self.material {
            Material::P256(key) => key.verify_der(message, signature),
            Material::P384(_) => false,
            other @ (Material::Rsa { .. } | Material::Ed25519(_)) => {
                other.verify(self.alg, message, signature)
            }
        }
    }
}

impl fmt::Debug for AuthenticatorKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AuthenticatorKey({}, {:?})", self.thumbprint, self.alg)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::jose::{SigningKey, encode, weak_keys};

    #[test]
    fn webauthn_jwk_is_canonical() {
        let (key, _) = SigningKey::generate().expect("key");
        let jwk = key.public().to_jwk();
        let read = AuthenticatorKey::from_jwk(&jwk).expect("key");
        assert_eq!(read.thumbprint(), key.thumbprint());
        assert_eq!(read.alg(), Alg::Es256);
        for (name, value) in [
            ("alg", json!("ES256")),
            ("kid", json!("k")),
            ("d", json!(encode(&[1; 32]))),
            ("x", json!(encode(&[1; 32]))),
            ("x", json!(1)),
            ("crv", json!("P-384")),
            ("kty", json!("oct")),
            ("kty", json!("OKP")),
        ] {
            let mut other = jwk.clone();
            other[name] = value.clone();
            assert!(
                AuthenticatorKey::from_jwk(&other).is_err(),
                "{name} {value}"
            );
        }
        assert_eq!(
            AuthenticatorKey::from_jwk(&weak_keys::okp(&weak_keys::PRIME_ORDER))
                .expect("key")
                .alg(),
            Alg::EdDsa
        );
        let rsa = |bits| weak_keys::rsa(&weak_keys::modulus(bits));
        assert!(AuthenticatorKey::from_jwk(&rsa(2048)).is_ok());
        assert!(AuthenticatorKey::from_jwk(&rsa(1024)).is_err());
    }

    #[test]
    fn raw_signature_is_rejected() {
        let (key, _) = SigningKey::generate().expect("key");
        let read = AuthenticatorKey::from_jwk(&key.public().to_jwk()).expect("key");
        let raw = key.sign(b"message").expect("signature");
        assert!(key.public().verify(b"message", &raw));
        assert!(!read.verify(b"message", &raw));
    }
}
