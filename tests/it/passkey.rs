//! A passkey in software: a browser and an authenticator in one, which do as real ones do unless told to misbehave.

use std::sync::atomic::{AtomicU32, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ciborium::cbor;
use ciborium::value::Value as Cbor;
use dipylon::model::Digest;
use dipylon::webauthn::{Assertion, Registration};
use ring::rand::{SecureRandom as _, SystemRandom};
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};

/// Which key it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Es256,
    EdDsa,
}

enum Pair {
    Es256(EcdsaKeyPair),
    EdDsa(Ed25519KeyPair),
}

/// How it answers. [`Manners::default`] is good.
#[derive(Debug, Clone)]
pub struct Manners {
    /// UP.
    pub present: bool,
    /// UV.
    pub verified: bool,
    /// BE.
    pub backup_eligible: bool,
    /// BS.
    pub backed_up: bool,
    /// `type`, where another than the ceremony's.
    pub kind: Option<&'static str>,
    /// `origin`, where another than the page's.
    pub origin: Option<String>,
    /// `crossOrigin`; absent where none.
    pub cross_origin: Option<Value>,
    /// `topOrigin`.
    pub top_origin: Option<String>,
    /// RP ID, where another than its own.
    pub rp_id: Option<String>,
    /// The signature counter, where it does not count on by one.
    pub sign_count: Option<u32>,
    /// Extension data, as a map.
    pub extensions: Option<Cbor>,
    /// Whether an assertion shows the credential's data again, as none may.
    pub attested_again: bool,
}

impl Default for Manners {
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
pub struct SoftPasskey {
    rp_id: String,
    user: Vec<u8>,
    credential: Vec<u8>,
    pair: Pair,
    count: AtomicU32,
}

impl SoftPasskey {
    /// What `navigator.credentials.create()` makes on a page of this origin: the passkey, and what is sent to enrol it.
    pub fn create(
        rp_id: &str,
        origin: &str,
        challenge: &[u8],
        user: &[u8],
    ) -> (Self, Registration) {
        Self::create_as(
            Kind::Es256,
            rp_id,
            origin,
            challenge,
            user,
            &Manners::default(),
        )
    }

    /// The same with another key or bad manners.
    pub fn create_as(
        kind: Kind,
        rp_id: &str,
        origin: &str,
        challenge: &[u8],
        user: &[u8],
        manners: &Manners,
    ) -> (Self, Registration) {
        let random = SystemRandom::new();
        let pair = match kind {
            Kind::Es256 => {
                let alg = &ECDSA_P256_SHA256_ASN1_SIGNING;
                let pkcs8 = EcdsaKeyPair::generate_pkcs8(alg, &random).expect("key");
                Pair::Es256(EcdsaKeyPair::from_pkcs8(alg, pkcs8.as_ref(), &random).expect("key"))
            }
            Kind::EdDsa => {
                let pkcs8 = Ed25519KeyPair::generate_pkcs8(&random).expect("key");
                Pair::EdDsa(Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).expect("key"))
            }
        };
        let mut credential = vec![0; 32];
        random.fill(&mut credential).expect("random");
        let passkey = Self {
            rp_id: rp_id.to_owned(),
            user: user.to_vec(),
            credential,
            pair,
            count: AtomicU32::new(0),
        };
        let made = Registration {
            client_data_json: client_data("webauthn.create", origin, challenge, manners),
            attestation_object: attestation_object(&passkey.data(manners, true)),
        };
        (passkey, made)
    }

    /// What `navigator.credentials.get()` gives on a page of this origin.
    pub fn get(&self, challenge: &[u8], origin: &str) -> Assertion {
        self.get_as(challenge, origin, &Manners::default())
    }

    /// The same with bad manners. (For a replay, keep an assertion and send it again.)
    pub fn get_as(&self, challenge: &[u8], origin: &str, manners: &Manners) -> Assertion {
        let client_data_json = client_data("webauthn.get", origin, challenge, manners);
        let authenticator_data = self.data(manners, manners.attested_again);
        self.sign(authenticator_data, client_data_json)
    }

    /// Signs whatever it is given: for tests that need a good signature over something no authenticator would write.
    pub fn sign(&self, authenticator_data: Vec<u8>, client_data_json: Vec<u8>) -> Assertion {
        let client = Digest::sha256(&client_data_json);
        let message = [&authenticator_data[..], client.as_bytes()].concat();
        let signature = match &self.pair {
            Pair::Es256(pair) => pair
                .sign(&SystemRandom::new(), &message)
                .expect("signature")
                .as_ref()
                .to_vec(),
            Pair::EdDsa(pair) => pair.sign(&message).as_ref().to_vec(),
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

    /// The key as COSE_Key, its labels in the order of CTAP2's canonical form.
    pub fn cose_key(&self) -> Cbor {
        match &self.pair {
            Pair::Es256(pair) => {
                let point = pair.public_key().as_ref();
                cbor!({
                    1 => 2,
                    3 => -7,
                    -1 => 1,
                    -2 => Cbor::Bytes(point[1..33].to_vec()),
                    -3 => Cbor::Bytes(point[33..].to_vec()),
                })
            }
            Pair::EdDsa(pair) => cbor!({
                1 => 1,
                3 => -8,
                -1 => 6,
                -2 => Cbor::Bytes(pair.public_key().as_ref().to_vec()),
            }),
        }
        .expect("a map")
    }

    fn data(&self, manners: &Manners, attested: bool) -> Vec<u8> {
        let next = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        let flags = u8::from(manners.present)
            | u8::from(manners.verified) << 2
            | u8::from(manners.backup_eligible) << 3
            | u8::from(manners.backed_up) << 4
            | u8::from(attested) << 6
            | u8::from(manners.extensions.is_some()) << 7;
        let rp_id = manners.rp_id.as_ref().unwrap_or(&self.rp_id);
        let mut data = Digest::sha256(rp_id.as_bytes()).as_bytes().to_vec();
        data.push(flags);
        data.extend(manners.sign_count.unwrap_or(next).to_be_bytes());
        if attested {
            data.extend([0; 16]);
            let length = u16::try_from(self.credential.len()).expect("short");
            data.extend(length.to_be_bytes());
            data.extend(&self.credential);
            data.extend(encoded(&self.cose_key()));
        }
        if let Some(extensions) = &manners.extensions {
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

fn client_data(kind: &str, origin: &str, challenge: &[u8], manners: &Manners) -> Vec<u8> {
    let mut said = json!({
        "type": manners.kind.unwrap_or(kind),
        "challenge": URL_SAFE_NO_PAD.encode(challenge),
        "origin": manners.origin.as_deref().unwrap_or(origin),
    });
    if let Some(crossed) = &manners.cross_origin {
        said["crossOrigin"] = crossed.clone();
    }
    if let Some(top) = &manners.top_origin {
        said["topOrigin"] = json!(top);
    }
    said.to_string().into_bytes()
}
