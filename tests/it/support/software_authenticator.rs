//! Software authenticator: a passkey with its browser, conforming unless a test sets other behaviour.

use std::sync::atomic::{AtomicU32, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ciborium::cbor;
use ciborium::value::Value as Cbor;
use dipylon::webauthn::{Assertion, Registration};
use dipylon_sdk::model::Digest;
use ring::rand::{SecureRandom as _, SystemRandom};
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};

/// The algorithm of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    Es256,
    EdDsa,
}

enum KeyPair {
    Es256(EcdsaKeyPair),
    EdDsa(Ed25519KeyPair),
    /// A public key, as COSE_Key, and one signature over everything.
    Forged(Cbor, Vec<u8>),
}

/// Behaviour of authenticator and browser. [`PasskeyBehaviour::default`] conforms.
#[derive(Debug, Clone)]
pub struct PasskeyBehaviour {
    /// UP.
    pub present: bool,
    /// UV.
    pub verified: bool,
    /// BE.
    pub backup_eligible: bool,
    /// BS.
    pub backed_up: bool,
    /// `type`, if not the ceremony's.
    pub kind: Option<&'static str>,
    /// `origin`, if not the page's.
    pub origin: Option<String>,
    /// `crossOrigin`, if present.
    pub cross_origin: Option<Value>,
    /// `topOrigin`.
    pub top_origin: Option<String>,
    /// RP ID, if not its own.
    pub rp_id: Option<String>,
    /// The signature counter, if not incremented by one.
    pub sign_count: Option<u32>,
    /// Extension data, as a map.
    pub extensions: Option<Cbor>,
    /// Whether an assertion repeats the attested credential data, which is not allowed.
    pub attested_again: bool,
}

impl Default for PasskeyBehaviour {
    fn default() -> Self {
        Self {
            present: true,
            verified: true,
            backup_eligible: true,
            backed_up: true,
            kind: None,
            origin: None,
            cross_origin: Some(json!(false)),
            top_origin: None,
            rp_id: None,
            sign_count: None,
            extensions: None,
            attested_again: false,
        }
    }
}

/// One passkey of one person at one relying party.
pub struct SoftwareAuthenticator {
    rp_id: String,
    user: Vec<u8>,
    credential: Vec<u8>,
    pair: KeyPair,
    count: AtomicU32,
}

impl SoftwareAuthenticator {
    /// `navigator.credentials.create()` on a page of this origin: the passkey and its registration.
    pub fn create(
        rp_id: &str,
        origin: &str,
        challenge: &[u8],
        user: &[u8],
    ) -> (Self, Registration) {
        Self::create_as(
            KeyKind::Es256,
            rp_id,
            origin,
            challenge,
            user,
            &PasskeyBehaviour::default(),
        )
    }

    /// The same with another algorithm or behaviour.
    pub fn create_as(
        kind: KeyKind,
        rp_id: &str,
        origin: &str,
        challenge: &[u8],
        user: &[u8],
        behaviour: &PasskeyBehaviour,
    ) -> (Self, Registration) {
        let random = SystemRandom::new();
        let pair = match kind {
            KeyKind::Es256 => {
                let alg = &ECDSA_P256_SHA256_ASN1_SIGNING;
                let pkcs8 = EcdsaKeyPair::generate_pkcs8(alg, &random).expect("key");
                KeyPair::Es256(EcdsaKeyPair::from_pkcs8(alg, pkcs8.as_ref(), &random).expect("key"))
            }
            KeyKind::EdDsa => {
                let pkcs8 = Ed25519KeyPair::generate_pkcs8(&random).expect("key");
                KeyPair::EdDsa(Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).expect("key"))
            }
        };
        let passkey = Self::of_pair(pair, rp_id, user);
        let made = passkey.register_as(challenge, origin, behaviour);
        (passkey, made)
    }

    /// A passkey with the private key of something else, as PKCS#8.
    pub fn of_key(pkcs8: &[u8], rp_id: &str, user: &[u8]) -> Self {
        let alg = &ECDSA_P256_SHA256_ASN1_SIGNING;
        let pair = EcdsaKeyPair::from_pkcs8(alg, pkcs8, &SystemRandom::new()).expect("key");
        Self::of_pair(KeyPair::Es256(pair), rp_id, user)
    }

    /// A passkey without a private key: with this public key, as COSE_Key, and this signature over everything.
    pub fn forged(cose_key: Cbor, signature: Vec<u8>, rp_id: &str, user: &[u8]) -> Self {
        Self::of_pair(KeyPair::Forged(cose_key, signature), rp_id, user)
    }

    fn of_pair(pair: KeyPair, rp_id: &str, user: &[u8]) -> Self {
        let mut credential = vec![0; 32];
        SystemRandom::new().fill(&mut credential).expect("random");
        Self {
            rp_id: rp_id.to_owned(),
            user: user.to_vec(),
            credential,
            pair,
            count: AtomicU32::new(0),
        }
    }

    /// A registration of this passkey for another challenge, which no browser makes.
    pub fn register_as(
        &self,
        challenge: &[u8],
        origin: &str,
        behaviour: &PasskeyBehaviour,
    ) -> Registration {
        Registration {
            client_data_json: client_data("webauthn.create", origin, challenge, behaviour),
            attestation_object: attestation_object(&self.data(behaviour, true)),
        }
    }

    /// `navigator.credentials.get()` on a page of this origin.
    pub fn get(&self, challenge: &[u8], origin: &str) -> Assertion {
        self.get_as(challenge, origin, &PasskeyBehaviour::default())
    }

    /// The same with other behaviour. (For a replay, send an assertion again.)
    pub fn get_as(
        &self,
        challenge: &[u8],
        origin: &str,
        behaviour: &PasskeyBehaviour,
    ) -> Assertion {
        let client_data_json = client_data("webauthn.get", origin, challenge, behaviour);
        let authenticator_data = self.data(behaviour, behaviour.attested_again);
        self.sign(authenticator_data, client_data_json)
    }

    /// Signs any data: a valid signature over content that no authenticator would write.
    pub fn sign(&self, authenticator_data: Vec<u8>, client_data_json: Vec<u8>) -> Assertion {
        let client = Digest::sha256(&client_data_json);
        let message = [&authenticator_data[..], client.as_bytes()].concat();
        let signature = match &self.pair {
            KeyPair::Es256(pair) => pair
                .sign(&SystemRandom::new(), &message)
                .expect("signature")
                .as_ref()
                .to_vec(),
            KeyPair::EdDsa(pair) => pair.sign(&message).as_ref().to_vec(),
            KeyPair::Forged(_, signature) => signature.clone(),
        };
        Assertion {
            credential: self.credential.clone(),
            authenticator_data,
            client_data_json,
            signature,
            user: Some(self.user.clone()),
        }
    }

    /// The credential ID.
    pub fn credential(&self) -> &[u8] {
        &self.credential
    }

    /// The public key as COSE_Key, labels in CTAP2 canonical order.
    pub fn cose_key(&self) -> Cbor {
        match &self.pair {
            KeyPair::Es256(pair) => {
                let point = pair.public_key().as_ref();
                cbor!({
                    1 => 2,
                    3 => -7,
                    -1 => 1,
                    -2 => Cbor::Bytes(point[1..33].to_vec()),
                    -3 => Cbor::Bytes(point[33..].to_vec()),
                })
            }
            KeyPair::EdDsa(pair) => cbor!({
                1 => 1,
                3 => -8,
                -1 => 6,
                -2 => Cbor::Bytes(pair.public_key().as_ref().to_vec()),
            }),
            KeyPair::Forged(cose_key, _) => return cose_key.clone(),
        }
        .expect("a map")
    }

    fn data(&self, behaviour: &PasskeyBehaviour, attested: bool) -> Vec<u8> {
        let next = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        let flags = u8::from(behaviour.present)
            | u8::from(behaviour.verified) << 2
            | u8::from(behaviour.backup_eligible) << 3
            | u8::from(behaviour.backed_up) << 4
            | u8::from(attested) << 6
            | u8::from(behaviour.extensions.is_some()) << 7;
        let rp_id = behaviour.rp_id.as_ref().unwrap_or(&self.rp_id);
        let mut data = Digest::sha256(rp_id.as_bytes()).as_bytes().to_vec();
        data.push(flags);
        data.extend(behaviour.sign_count.unwrap_or(next).to_be_bytes());
        if attested {
            data.extend([0; 16]);
            let length = u16::try_from(self.credential.len()).expect("short");
            data.extend(length.to_be_bytes());
            data.extend(&self.credential);
            data.extend(encoded(&self.cose_key()));
        }
        if let Some(extensions) = &behaviour.extensions {
            data.extend(encoded(extensions));
        }
        data
    }
}

/// An attestation object of format "none" around authenticator data.
pub fn attestation_object(authenticator_data: &[u8]) -> Vec<u8> {
    let object = cbor!({
        "fmt" => "none",
        "attStmt" => Cbor::Map(Vec::new()),
        "authData" => Cbor::Bytes(authenticator_data.to_vec()),
    });
    encoded(&object.expect("a map"))
}

/// CBOR.
pub fn encoded(value: &Cbor) -> Vec<u8> {
    let mut out = Vec::new();
    ciborium::into_writer(value, &mut out).expect("CBOR");
    out
}

fn client_data(
    kind: &str,
    origin: &str,
    challenge: &[u8],
    behaviour: &PasskeyBehaviour,
) -> Vec<u8> {
    let mut client_data = json!({
        "type": behaviour.kind.unwrap_or(kind),
        "challenge": URL_SAFE_NO_PAD.encode(challenge),
        "origin": behaviour.origin.as_deref().unwrap_or(origin),
    });
    if let Some(crossed) = &behaviour.cross_origin {
        client_data["crossOrigin"] = crossed.clone();
    }
    if let Some(top) = &behaviour.top_origin {
        client_data["topOrigin"] = json!(top);
    }
    client_data.to_string().into_bytes()
}
