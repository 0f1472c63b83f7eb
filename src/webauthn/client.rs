//! Client data: `clientDataJSON` of the browser (WebAuthn L3 §5.8.1).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::{CHALLENGE_BYTES_MIN, CLIENT_DATA_BYTES_MAX, RelyingParty, WebauthnError, within};
use crate::model::json;

/// The expected ceremony.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ceremony {
    Create,
    Get,
}

impl Ceremony {
    const fn type_name(self) -> &'static str {
        match self {
            Self::Create => "webauthn.create",
            Self::Get => "webauthn.get",
        }
    }
}

/// Checks type, challenge, origin and frame. Unknown members are ignored, as §5.8.1 requires; a duplicate member is
/// rejected, because two parsers could take different ones.
pub(super) fn check(
    ceremony: Ceremony,
    rp: &RelyingParty,
    challenge: &[u8],
    client_data_json: &[u8],
) -> Result<(), WebauthnError> {
    let data = read(client_data_json)?;
    if text(&data, "type")? != ceremony.type_name() {
        return Err(WebauthnError::Type);
    }
    // Any signature ever made would answer an empty challenge.
    if challenge.len() < CHALLENGE_BYTES_MIN
        || text(&data, "challenge")? != URL_SAFE_NO_PAD.encode(challenge)
    {
        return Err(WebauthnError::Challenge);
    }
    if text(&data, "origin")? != rp.origin {
        return Err(WebauthnError::Origin);
    }
    // No page of ours is ever framed. `tokenBinding` is reserved and says nothing (§5.8.1).
    match data.get("crossOrigin") {
        None | Some(Value::Bool(false)) => {}
        Some(Value::Bool(true)) => return Err(WebauthnError::CrossOrigin),
        Some(_) => return Err(WebauthnError::ClientData("crossOrigin must be a boolean")),
    }
    if data.contains_key("topOrigin") {
        return Err(WebauthnError::CrossOrigin);
    }
    Ok(())
}

/// The origin it names, unchecked.
pub(super) fn origin(client_data_json: &[u8]) -> Result<String, WebauthnError> {
    text(&read(client_data_json)?, "origin").map(str::to_owned)
}

fn read(client_data_json: &[u8]) -> Result<Map<String, Value>, WebauthnError> {
    within(
        "client data",
        client_data_json,
        &(1..=CLIENT_DATA_BYTES_MAX),
    )?;
    match json::parse(client_data_json) {
        Ok(Value::Object(data)) => Ok(data),
        Ok(_) => Err(WebauthnError::ClientData("not an object")),
        Err(_) => Err(WebauthnError::ClientData(
            "not one JSON text with each member once",
        )),
    }
}

fn text<'a>(data: &'a Map<String, Value>, name: &str) -> Result<&'a str, WebauthnError> {
    data.get(name)
        .and_then(Value::as_str)
        .ok_or(WebauthnError::ClientData(
            "type, challenge and origin must be strings",
        ))
}
