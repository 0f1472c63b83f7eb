//! Key sets: JWK sets (RFC 7517 §5) and SPIFFE trust bundles, parsed whole or refused.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;

use serde_json::{Map, Value};

use super::PublicKey;
use super::jwk::{KeySetError, Usage, VerifyingKey, text};
use super::key::PRIVATE_MEMBERS;
use crate::model::KeyId;
use crate::model::json::{self, INTEGER_MAX};

/// Longest key set, in bytes.
pub const KEY_SET_BYTES_MAX: usize = 256 * 1024;

/// Most entries of a key set, those not for us included.
pub const KEYS_MAX: usize = 64;

/// The public keys of one issuer or trust domain, by `kid`. Immutable; the caller knows whose they are.
#[derive(Clone)]
pub struct KeySet {
    keys: BTreeMap<KeyId, VerifyingKey>,
    ignored: usize,
    sequence: Option<i64>,
    refresh_hint: Option<i64>,
}

impl KeySet {
    /// Reads a JWK set or a SPIFFE trust bundle. Entries that are for something else (another `use`, an unknown `kty`,
    /// curve or `alg`) are passed over; anything wrong with a key that counts, or dangerous anywhere, refuses the set whole.
    pub fn parse(bytes: &[u8], usage: Usage) -> Result<Self, KeySetError> {
        let set = Self::sound(bytes, usage)?;
        if set.keys.values().any(VerifyingKey::is_published) {
            return Err(KeySetError::Key(
                "its private key is published, so anyone can sign with it",
            ));
        }
        Ok(set)
    }

    /// Like [`KeySet::parse`], for test vectors: their keys are published.
    #[cfg(test)]
    pub(crate) fn parse_vector(bytes: &[u8], usage: Usage) -> Result<Self, KeySetError> {
        Self::sound(bytes, usage)
    }

    fn sound(bytes: &[u8], usage: Usage) -> Result<Self, KeySetError> {
        if bytes.len() > KEY_SET_BYTES_MAX {
            return Err(KeySetError::TooLarge);
        }
        let Value::Object(set) = json::parse(bytes).map_err(|_| KeySetError::Json)? else {
            return Err(KeySetError::Form("must be an object"));
        };
        let entries = set
            .get("keys")
            .and_then(Value::as_array)
            .ok_or(KeySetError::Form("keys must be an array"))?;
        if entries.len() > KEYS_MAX {
            return Err(KeySetError::TooLarge);
        }
        let mut out = Self {
            keys: BTreeMap::new(),
            ignored: 0,
            sequence: count(
                &set,
                "spiffe_sequence",
                "spiffe_sequence must be an integer and not negative",
            )?,
            refresh_hint: count(
                &set,
                "spiffe_refresh_hint",
                "spiffe_refresh_hint must be an integer and not negative",
            )?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let jwk = entry
                .as_object()
                .ok_or(KeySetError::Form("an entry is not an object"))?;
            if text(jwk, "kty")? == Some("oct")
                || PRIVATE_MEMBERS.iter().any(|m| jwk.contains_key(*m))
            {
                return Err(KeySetError::Private);
            }
            if let Some(kid) = text(jwk, "kid")? {
                if names.contains(&kid) {
                    return Err(KeySetError::DuplicateKid);
                }
                names.push(kid);
            }
            match VerifyingKey::read(jwk, usage)? {
                Some(key) => out.insert(key)?,
                None => out.ignored += 1,
            }
        }
        Ok(out)
    }

    /// The set of ES256 keys held here by name, such as this broker's own. Refuses a name twice.
    pub fn from_keys<'a>(
        keys: impl IntoIterator<Item = (KeyId, &'a PublicKey)>,
    ) -> Result<Self, KeySetError> {
        let mut out = Self {
            keys: BTreeMap::new(),
            ignored: 0,
            sequence: None,
            refresh_hint: None,
        };
        for (kid, key) in keys {
            out.insert(VerifyingKey::es256(kid, key.clone()))?;
        }
        Ok(out)
    }

    fn insert(&mut self, key: VerifyingKey) -> Result<(), KeySetError> {
        match self.keys.entry(key.kid().clone()) {
            Entry::Vacant(place) => {
                place.insert(key);
                Ok(())
            }
            Entry::Occupied(_) => Err(KeySetError::DuplicateKid),
        }
    }

    /// The names of the keys that count, sorted.
    pub fn kids(&self) -> impl Iterator<Item = &KeyId> {
        self.keys.keys()
    }

    /// The key of that name.
    pub fn get(&self, kid: &KeyId) -> Option<&VerifyingKey> {
        self.keys.get(kid)
    }

    /// The only key, when there is exactly one.
    pub fn only(&self) -> Option<&VerifyingKey> {
        let mut keys = self.keys.values();
        keys.next().filter(|_| keys.next().is_none())
    }

    /// How many keys count.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether no key counts: valid, and nothing verifies under it.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// How many entries were passed over as not for this usage.
    pub fn ignored(&self) -> usize {
        self.ignored
    }

    /// `spiffe_sequence`: grows with each change of the trust bundle (SPIFFE trust domain and bundle §4.1.1).
    pub fn sequence(&self) -> Option<i64> {
        self.sequence
    }

    /// `spiffe_refresh_hint`: how often to look again, in seconds (§4.1.2).
    pub fn refresh_hint(&self) -> Option<i64> {
        self.refresh_hint
    }
}

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.keys.keys()).finish()
    }
}

fn count(
    set: &Map<String, Value>,
    name: &str,
    rule: &'static str,
) -> Result<Option<i64>, KeySetError> {
    match set.get(name) {
        None => Ok(None),
        Some(value) => match value.as_i64() {
            Some(n) if (0..=INTEGER_MAX).contains(&n) => Ok(Some(n)),
            _ => Err(KeySetError::Form(rule)),
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::jose::weak_keys::{PRIME_ORDER, modulus, okp};
    use crate::jose::{Alg, SigningKey, encode};

    fn jwk(kid: &str) -> Value {
        let (key, _) = SigningKey::generate().expect("key");
        key.public()
            .to_jwk_named(&KeyId::parse(kid).expect("kid"), Usage::Signature)
    }

    fn parse(set: &Value, usage: Usage) -> Result<KeySet, KeySetError> {
        KeySet::parse(set.to_string().as_bytes(), usage)
    }

    fn one(name: &str, value: Value) -> Result<KeySet, KeySetError> {
        let mut entry = jwk("a");
        entry[name] = value;
        parse(&json!({ "keys": [entry] }), Usage::Signature)
    }

    #[test]
    fn keys_are_found_by_kid() {
        let set = parse(&json!({ "keys": [jwk("a"), jwk("b")] }), Usage::Signature).expect("set");
        assert_eq!(
            set.kids().map(KeyId::as_str).collect::<Vec<_>>(),
            ["a", "b"]
        );
        assert_eq!(
            set.get(&KeyId::parse("a").expect("kid"))
                .map(VerifyingKey::algs),
            Some(&[Alg::Es256][..])
        );
        assert!(set.only().is_none());
        let none = parse(
            &json!({ "keys": [], "spiffe_sequence": 7, "spiffe_refresh_hint": 60 }),
            Usage::JwtSvid,
        )
        .expect("none");
        assert!(none.is_empty());
        assert_eq!((none.sequence(), none.refresh_hint()), (Some(7), Some(60)));
    }

    #[test]
    fn private_or_symmetric_keys_reject_the_set() {
        let (a, b) = (jwk("a"), jwk("b"));
        assert_eq!(
            parse(&json!({ "keys": [a, a] }), Usage::Signature).err(),
            Some(KeySetError::DuplicateKid)
        );
        let mut passed_over = a.clone();
        passed_over["use"] = json!("enc");
        assert_eq!(
            parse(&json!({ "keys": [a, passed_over] }), Usage::Signature).err(),
            Some(KeySetError::DuplicateKid)
        );
        let oct = json!({ "kty": "oct", "kid": "s", "k": encode(&[1; 32]) });
        assert_eq!(
            parse(&json!({ "keys": [a, oct] }), Usage::Signature).err(),
            Some(KeySetError::Private)
        );
        assert_eq!(
            parse(&json!({ "keys": [oct] }), Usage::JwtSvid).err(),
            Some(KeySetError::Private)
        );
        for member in PRIVATE_MEMBERS {
            let mut other = b.clone();
            other["use"] = json!("enc");
            other[member] = json!("AA");
            let set = json!({ "keys": [a, other] });
            assert_eq!(
                parse(&set, Usage::Signature).err(),
                Some(KeySetError::Private),
                "{member}, even where it is passed over"
            );
        }
        let many: Vec<Value> = (0..=KEYS_MAX)
            .map(|i| json!({ "kty": "x", "kid": i.to_string() }))
            .collect();
        assert_eq!(
            parse(&json!({ "keys": many }), Usage::Signature).err(),
            Some(KeySetError::TooLarge)
        );
        let long = json!({ "keys": [], "x": " ".repeat(KEY_SET_BYTES_MAX) });
        assert_eq!(
            parse(&long, Usage::Signature).err(),
            Some(KeySetError::TooLarge)
        );
        assert_eq!(
            KeySet::parse(br#"{"keys":[],"keys":[]}"#, Usage::Signature).err(),
            Some(KeySetError::Json)
        );
        for form in [
            json!([]),
            json!({}),
            json!({ "keys": {} }),
            json!({ "keys": [1] }),
            json!({ "keys": [{}] }),
        ] {
            assert!(
                matches!(parse(&form, Usage::Signature), Err(KeySetError::Form(_))),
                "{form}"
            );
        }
        for bad in [json!(-1), json!(1.5), json!("1"), Value::Null] {
            assert!(
                parse(
                    &json!({ "keys": [], "spiffe_sequence": bad }),
                    Usage::JwtSvid
                )
                .is_err()
            );
        }
    }

    #[test]
    fn malformed_key_rejects_the_set() {
        assert!(one("use", json!("sig")).is_ok());
        for (name, value) in [
            ("alg", json!("RS256")),
            ("alg", json!("ES384")),
            ("alg", json!(1)),
            ("kty", json!("RSA")),
            ("crv", json!("P-384")),
            ("x", json!(encode(&[1; 32]))),
            ("x", json!(encode(&[1; 31]))),
            ("kid", json!("")),
            ("kid", json!("k".repeat(129))),
            ("kid", json!("a b")),
            ("kid", json!(1)),
            ("key_ops", json!(["sign"])),
            ("key_ops", json!("verify")),
        ] {
            assert!(one(name, value.clone()).is_err(), "{name} {value}");
        }
        let mut unnamed = jwk("a");
        unnamed.as_object_mut().expect("object").remove("kid");
        assert_eq!(
            parse(&json!({ "keys": [unnamed] }), Usage::Signature).err(),
            Some(KeySetError::MissingKid)
        );
        for (name, value) in [
            ("alg", json!("HS256")),
            ("alg", json!("es256")),
            ("use", json!("enc")),
            ("kty", json!("new")),
            ("crv", json!("P-521")),
        ] {
            let set = one(name, value.clone()).expect("passed over");
            assert_eq!((set.len(), set.ignored()), (0, 1), "{name} {value}");
        }
    }

    #[test]
    fn a_trust_bundle_counts_jwt_svid_keys_only() {
        let (mut svid, mut bare) = (jwk("a"), jwk("b"));
        svid["use"] = json!("jwt-svid");
        bare.as_object_mut().expect("object").remove("use");
        let x509 = json!({ "kty": "EC", "crv": "P-521", "use": "x509-svid", "x": "AA", "y": "AA" });
        let set = parse(
            &json!({ "keys": [svid, bare, jwk("c"), x509] }),
            Usage::JwtSvid,
        )
        .expect("set");
        assert_eq!((set.len(), set.ignored()), (1, 3));
        let mut ed = okp(&PRIME_ORDER);
        ed["kid"] = json!("e");
        ed["use"] = json!("jwt-svid");
        assert!(parse(&json!({ "keys": [ed] }), Usage::JwtSvid).is_err());
    }

    #[test]
    fn rsa_bounds() {
        let rsa = |n: &[u8], e: &[u8]| {
            let entry = json!({ "kty": "RSA", "kid": "r", "n": encode(n), "e": encode(e) });
            parse(&json!({ "keys": [entry] }), Usage::Signature)
        };
        let (mut n, e) = (modulus(2048), [1, 0, 1]);
        let set = rsa(&n, &e).expect("2048 bits");
        assert_eq!(set.only().map(VerifyingKey::algs), Some(&[Alg::Rs256][..]));
        assert!(rsa(&modulus(4096), &e).is_ok());
        assert!(rsa(&modulus(4104), &e).is_err());
        assert!(rsa(&modulus(2040), &e).is_err());
        for bad in [
            &[1][..],
            &[3],
            &[1, 0, 0],
            &[0xff, 0xff],
            &[0, 1, 0, 1],
            &[],
            &[2, 0, 0, 0, 1],
            &[0xff; 9],
        ] {
            assert!(rsa(&n, bad).is_err(), "{bad:?}");
        }
        n[0] = 0x7f;
        assert!(rsa(&n, &e).is_err(), "2047 bits");
    }
}
