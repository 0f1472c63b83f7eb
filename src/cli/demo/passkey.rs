//! A person's passkey and browser: a software authenticator (W3C Web Authentication Level 3) and the console's own calls. The broker
//! checks registration and assertions as it checks those of any device.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::http::{self, JsonResponse};
use crate::card::Card;
use crate::cli::error::CliError;
use crate::jose::SigningKey;
use crate::model::{Digest, ProfileName, Secret, Thumbprint};

/// An enrolled passkey, and the session that it opened at the console.
pub(super) struct ConsolePasskey {
    origin: String,
    rp_id: String,
    key: SigningKey,
    credential: [u8; 32],
    user: String,
    /// Signatures so far.
    count: u32,
    cookie: Secret,
}

/// User present and verified (WebAuthn L3 §6.1).
const PRESENT_AND_VERIFIED: u8 = 0x05;
/// Attested credential data are included.
const ATTESTED: u8 = 0x40;

impl ConsolePasskey {
    /// Makes a passkey, enrols it with the code of an invitation, and signs in with it.
    pub(super) async fn enrol(origin: &str, code: &str) -> Result<Self, CliError> {
        let begun = post(origin, "enrol/begin", None, &json!({ "code": code })).await?;
        let (key, _) = SigningKey::generate().map_err(|e| CliError::failed(e.to_string()))?;
        let credential = *Digest::sha256(key.thumbprint().to_string().as_bytes()).as_bytes();
        let mut passkey = Self {
            origin: origin.to_owned(),
            rp_id: text(&begun.body, "rp_id")?,
            key,
            credential,
            user: text(&begun.body, "user")?,
            count: 0,
            cookie: Secret::new(String::new()),
        };
        let finish = json!({
            "code": code,
            "label": "the demo's passkey",
            "client_data_json": URL_SAFE_NO_PAD.encode(passkey.client_data("webauthn.create", &text(&begun.body, "challenge")?)),
            "attestation_object": URL_SAFE_NO_PAD.encode(passkey.attestation_object()?),
        });
        post(origin, "enrol/finish", None, &finish).await?;
        let begun = post(origin, "sign-in/begin", None, &json!({})).await?;
        let assertion = passkey.assertion(&text(&begun.body, "challenge")?)?;
        let signed_in = post(origin, "sign-in/finish", None, &assertion).await?;
        passkey.cookie = signed_in
            .cookie
            .ok_or_else(|| CliError::failed("the console opened no session"))?;
        Ok(passkey)
    }

    /// The thumbprint of its key.
    pub(super) fn thumbprint(&self) -> Thumbprint {
        self.key.thumbprint()
    }

    /// Approves the request of a card under a profile, as the console's page does. Returns the status of the request.
    pub(super) async fn approve(
        &mut self,
        card: &Card,
        profile: &ProfileName,
    ) -> Result<String, CliError> {
        let vote = format!("requests/{}/vote", card.access_request);
        let begin = json!({
            "profile": profile,
            "policy": card.policy,
            "facts": card.facts().digest().map_err(|e| CliError::failed(e.to_string()))?,
            "verdict": "approve",
        });
        let path = format!("{vote}/begin");
        let begun = post(&self.origin, &path, Some(&self.cookie), &begin).await?;
        let mut cast = self.assertion(&text(&begun.body, "challenge")?)?;
        if let Some(members) = cast.as_object_mut() {
            members.insert(
                "statement".to_owned(),
                json!(text(&begun.body, "statement")?),
            );
        }
        let path = format!("{vote}/cast");
        let done = post(&self.origin, &path, Some(&self.cookie), &cast).await?;
        text(&done.body, "status")
    }

    /// `navigator.credentials.get()` on a page of the console.
    fn assertion(&mut self, challenge: &str) -> Result<Value, CliError> {
        self.count = self.count.saturating_add(1);
        let client_data = self.client_data("webauthn.get", challenge);
        let data = self.authenticator_data(PRESENT_AND_VERIFIED);
        let signed = [&data[..], Digest::sha256(&client_data).as_bytes()].concat();
        let signature = self.key.sign(&signed);
        let signature = signature.map_err(|e| CliError::failed(e.to_string()))?;
        let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        Ok(json!({
            "credential": part(&self.credential),
            "authenticator_data": part(&data),
            "client_data_json": part(&client_data),
            "signature": part(&der_signature(&signature)),
            "user": self.user,
        }))
    }

    /// `clientDataJSON` (§5.8.1): the challenge as the console sent it, in base64url.
    fn client_data(&self, kind: &str, challenge: &str) -> Vec<u8> {
        let data = json!({
            "type": kind,
            "challenge": challenge,
            "origin": self.origin,
            "crossOrigin": false,
        });
        data.to_string().into_bytes()
    }

    /// Relying party, flags and counter (§6.1).
    fn authenticator_data(&self, flags: u8) -> Vec<u8> {
        let mut data = Digest::sha256(self.rp_id.as_bytes()).as_bytes().to_vec();
        data.push(flags);
        data.extend(self.count.to_be_bytes());
        data
    }

    /// An attestation object of format "none" (§8.7): a map of `fmt`, `attStmt` and `authData` in CBOR.
    fn attestation_object(&self) -> Result<Vec<u8>, CliError> {
        let mut data = self.authenticator_data(PRESENT_AND_VERIFIED | ATTESTED);
        // No model of authenticator, then the credential and its public key (§6.5.1).
        data.extend([0; 16]);
        data.extend([0, 32]);
        data.extend(self.credential);
        data.extend(self.cose_key()?);
        let length = u8::try_from(data.len())
            .map_err(|_| CliError::failed("the authenticator data are too long"))?;
        let mut object = b"\xa3\x63fmt\x64none\x67attStmt\xa0\x68authData\x58".to_vec();
        object.push(length);
        object.extend(data);
        Ok(object)
    }

    /// The public key: `{1: 2, 3: -7, -1: 1, -2: x, -3: y}` in CBOR (RFC 9053 §7.1.1).
    fn cose_key(&self) -> Result<Vec<u8>, CliError> {
        let jwk = self.key.public().to_jwk();
        let coordinate = |name: &str| {
            URL_SAFE_NO_PAD
                .decode(text(&jwk, name)?)
                .map_err(|e| CliError::failed(e.to_string()))
        };
        let mut key = b"\xa5\x01\x02\x03\x26\x20\x01".to_vec();
        key.extend(b"\x21\x58\x20");
        key.extend(coordinate("x")?);
        key.extend(b"\x22\x58\x20");
        key.extend(coordinate("y")?);
        Ok(key)
    }
}

/// A call of the console's script.
async fn post(
    origin: &str,
    path: &str,
    cookie: Option<&Secret>,
    body: &Value,
) -> Result<JsonResponse, CliError> {
    let from = Secret::new(origin.to_owned());
    let mut headers = vec![("origin", &from)];
    headers.extend(cookie.map(|cookie| ("cookie", cookie)));
    let url = format!("{origin}/console/{path}");
    let response = http::call("POST", &url, &headers, Some(body)).await?;
    match response.status {
        200..=299 => Ok(response),
        status => {
            let problem = response.body.to_string();
            Err(CliError::failed(format!("{url}: {status} {problem}")))
        }
    }
}

fn text(value: &Value, name: &str) -> Result<String, CliError> {
    let found = value.get(name).and_then(Value::as_str);
    found
        .map(str::to_owned)
        .ok_or_else(|| CliError::failed(format!("expected `{name}` in the answer")))
}

/// An ES256 signature, r ‖ s, as authenticators write it (§6.5.5): `SEQUENCE { INTEGER r, INTEGER s }` in DER.
fn der_signature(signature: &[u8; 64]) -> Vec<u8> {
    let (r, s) = signature.split_at(32);
    let body = [der_integer(r), der_integer(s)].concat();
    let mut der = vec![0x30, u8::try_from(body.len()).unwrap_or(u8::MAX)];
    der.extend(body);
    der
}

/// A positive integer in DER: without leading zeros, but for one before a set top bit.
fn der_integer(bytes: &[u8]) -> Vec<u8> {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    let digits = bytes.get(zeros.min(bytes.len().saturating_sub(1))..);
    let digits = digits.unwrap_or_default();
    let sign = digits.first().is_some_and(|first| *first >= 0x80);
    let length = digits.len() + usize::from(sign);
    let mut der = vec![0x02, u8::try_from(length).unwrap_or(u8::MAX)];
    der.extend(sign.then_some(0));
    der.extend(digits);
    der
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jose::AuthenticatorKey;

    #[test]
    fn signatures_verify_as_an_authenticators() {
        let (key, _) = SigningKey::generate().expect("key");
        let public = AuthenticatorKey::from_jwk(&key.public().to_jwk()).expect("public key");
        // One in 256 has a leading zero in r, and one in 256 in s.
        for n in 0..2_000_u32 {
            let message = n.to_be_bytes();
            let signature = der_signature(&key.sign(&message).expect("signed"));
            assert!(public.verify(&message, &signature), "{signature:?}");
        }
    }

    #[test]
    fn integers_in_der() {
        for (bytes, der) in [
            (&[0, 0, 0][..], &[2, 1, 0][..]),
            (&[0, 0, 1], &[2, 1, 1]),
            (&[0, 0x80, 2], &[2, 3, 0, 0x80, 2]),
            (&[0x7f, 0, 0], &[2, 3, 0x7f, 0, 0]),
        ] {
            assert_eq!(der_integer(bytes), der);
        }
    }
}
