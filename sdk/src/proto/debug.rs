//! `Debug` for messages that carry secrets: ids and shapes, never the secret.

use std::fmt::{Debug, Formatter, Result};

use super::spiffe::Jwtsvid;
use super::v1::{
    BeginVoteResponse, CastVoteRequest, ConsumeTokenRequest, Evidence, IntrospectRequest,
    InviteApproverResponse, IssuedToken, Opening, PasskeyAssertion, Value, evidence, value,
};

const REDACTED: &str = "redacted";

impl Debug for Evidence {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match &self.kind {
            Some(kind) => Debug::fmt(kind, f),
            None => f.write_str("Evidence(none)"),
        }
    }
}

impl Debug for evidence::Kind {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str(match self {
            Self::JwtSvid(_) => "JwtSvid(redacted)",
        })
    }
}

/// Any value may be sensitive: only its shape is printed.
impl Debug for Value {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match &self.kind {
            Some(kind) => Debug::fmt(kind, f),
            None => f.write_str("none"),
        }
    }
}

impl Debug for value::Kind {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str(match self {
            Self::StringValue(_) => "string",
            Self::BoolValue(_) => "bool",
            Self::IntValue(_) => "int",
            Self::SetValue(_) => "set",
            Self::RecordValue(_) => "record",
        })
    }
}

impl Debug for IssuedToken {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("IssuedToken")
            .field("token", &REDACTED)
            .field("jti", &self.jti)
            .field("expires_at", &self.expires_at)
            .field("uses", &self.uses)
            .field("reissued", &self.reissued)
            .finish_non_exhaustive()
    }
}

impl Debug for Opening {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("Opening")
            .field("parameter", &self.parameter)
            .field("salt", &REDACTED)
            .finish()
    }
}

impl Debug for IntrospectRequest {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("IntrospectRequest")
            .field("token", &REDACTED)
            .finish()
    }
}

impl Debug for ConsumeTokenRequest {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("ConsumeTokenRequest")
            .field("token", &REDACTED)
            .field("use_id", &self.use_id)
            .finish()
    }
}

/// A statement holds the action in plain.
impl Debug for BeginVoteResponse {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("BeginVoteResponse")
            .field("statement", &REDACTED)
            .finish()
    }
}

/// A whole assertion is a vote: redacted.
impl Debug for PasskeyAssertion {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("PasskeyAssertion")
            .field("credential_id", &self.credential_id)
            .field("signature", &REDACTED)
            .finish()
    }
}

/// The code lets its holder enrol: redacted.
impl Debug for InviteApproverResponse {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("InviteApproverResponse")
            .field("code", &REDACTED)
            .field("expires_at", &self.expires_at)
            .finish()
    }
}

impl Debug for CastVoteRequest {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("CastVoteRequest")
            .field("access_request_id", &self.access_request_id)
            .field("statement", &REDACTED)
            .field("signature", &REDACTED)
            .finish()
    }
}

impl Debug for Jwtsvid {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("Jwtsvid")
            .field("spiffe_id", &self.spiffe_id)
            .field("svid", &REDACTED)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::super::v1::{
        Action, OpenTaskRequest, Parameter, RequestTokenRequest, RequestTokenResponse, ValueRecord,
        ValueSet,
    };
    use super::*;

    const SECRET: &str = "s3cr3t";

    fn text(text: &str) -> Value {
        Value {
            kind: Some(value::Kind::StringValue(text.to_owned())),
        }
    }

    fn parameter(name: &str, value: Value) -> Parameter {
        Parameter {
            name: name.to_owned(),
            value: Some(value),
        }
    }

    #[test]
    fn no_secret_prints() {
        use super::super::v1::request_token_response::Outcome;
        let evidence = Evidence {
            kind: Some(evidence::Kind::JwtSvid(SECRET.to_owned())),
        };
        let set = Value {
            kind: Some(value::Kind::SetValue(ValueSet {
                elements: vec![text(SECRET)],
            })),
        };
        let record = ValueRecord {
            members: vec![
                parameter("inner", text(SECRET)),
                parameter("set", set.clone()),
            ],
        };
        let record = Value {
            kind: Some(value::Kind::RecordValue(record)),
        };
        let number = Value {
            kind: Some(value::Kind::IntValue(735_193)),
        };
        let action = Action {
            name: "account.disable".to_owned(),
            parameters: vec![
                parameter("a", text(SECRET)),
                parameter("b", set),
                parameter("c", record),
                parameter("d", number),
            ],
            ..Action::default()
        };
        let opening = Opening {
            parameter: "a".to_owned(),
            salt: SECRET.to_owned(),
        };
        let token = IssuedToken {
            token: SECRET.to_owned(),
            jti: "tok_1".to_owned(),
            openings: vec![opening.clone()],
            ..IssuedToken::default()
        };
        let printed = [
            format!(
                "{:?}",
                OpenTaskRequest {
                    evidence: Some(evidence.clone()),
                    ..OpenTaskRequest::default()
                }
            ),
            format!(
                "{:?}",
                RequestTokenRequest {
                    evidence: Some(evidence.clone()),
                    action: Some(action),
                    ..RequestTokenRequest::default()
                }
            ),
            format!("{evidence:?} {:?} {opening:?}", evidence.kind),
            format!(
                "{:#?}",
                RequestTokenResponse {
                    outcome: Some(Outcome::Token(token)),
                    ..RequestTokenResponse::default()
                }
            ),
            format!(
                "{:?}",
                IntrospectRequest {
                    token: SECRET.to_owned()
                }
            ),
            format!(
                "{:?}",
                ConsumeTokenRequest {
                    token: SECRET.to_owned(),
                    use_id: "u1".to_owned()
                }
            ),
            format!(
                "{:?}",
                BeginVoteResponse {
                    statement: SECRET.to_owned(),
                    challenge: SECRET.as_bytes().to_vec(),
                    credentials: Vec::new(),
                }
            ),
            format!(
                "{:?}",
                CastVoteRequest {
                    access_request_id: "areq_1".to_owned(),
                    statement: SECRET.to_owned(),
                    signature: SECRET.as_bytes().to_vec(),
                    passkey: None,
                }
            ),
            format!(
                "{:?}",
                PasskeyAssertion {
                    credential_id: b"c1".to_vec(),
                    authenticator_data: SECRET.as_bytes().to_vec(),
                    client_data_json: SECRET.as_bytes().to_vec(),
                    signature: SECRET.as_bytes().to_vec(),
                    user_handle: SECRET.as_bytes().to_vec(),
                }
            ),
            format!(
                "{:?}",
                InviteApproverResponse {
                    code: SECRET.to_owned(),
                    url: SECRET.to_owned(),
                    expires_at: None,
                }
            ),
        ];
        let svid = Jwtsvid {
            svid: SECRET.to_owned(),
            ..Jwtsvid::default()
        };
        let svids = super::super::spiffe::JwtsvidResponse { svids: vec![svid] };
        let printed = printed.into_iter().chain([format!("{svids:?}")]);
        let printed: Vec<String> = printed.collect();
        for text in &printed {
            assert!(
                !text.contains(SECRET) && !text.contains("735193") && !text.contains("115, 51"),
                "{text}"
            );
        }
        for shown in ["account.disable", "tok_1", "u1", "areq_1"] {
            assert!(printed.iter().any(|text| text.contains(shown)), "{shown}");
        }
    }
}
