//! Fixed keys, and signatures that a file keeps: ECDSA here is randomized, so a signature that still verifies is not made anew.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use dipylon_sdk::jose::SigningKey;
use dipylon_sdk::model::json::canonical;
use serde_json::{Value, json};

/// `d`, `x` and `y` of keys that specifications publish, by the role they have here.
const PUBLISHED: [(&str, &str, [&str; 3]); 3] = [
    (
        "broker",
        "RFC 7515 appendix A.3",
        [
            "jpsQnnGQmL-YBIffH1136cspYG6-0iY7X1fCE9-E9LI",
            "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
            "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
        ],
    ),
    (
        "agent",
        "RFC 7517 appendix A.2",
        [
            "870MB6gfuTJ4HtUnUvYMyJpr5eUZNP4Bk43bVdj3eAE",
            "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
            "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM",
        ],
    ),
    (
        "voter",
        "RFC 6979 appendix A.2.5",
        [
            "ya-p2EW6dRZrXCFXZ7HWk05Qw9s26JsSe4piKxIPZyE",
            "YP7UuiVanTHJYet0xjVtaMBJuJI7Yfps5mliLmDyn7Y",
            "eQP-EAi4vJmkGunpVii8ZPLxsgwtfp9Rd6PClNRGIpk",
        ],
    ),
];

/// One of the fixed keys.
pub struct FixedKey {
    pub name: &'static str,
    pub source: &'static str,
    pub key: SigningKey,
    pub private_jwk: Value,
}

/// The fixed keys: `broker` signs tokens, `agent` proofs, `voter` votes.
pub fn all() -> [FixedKey; 3] {
    PUBLISHED.map(|(name, source, [d, x, y])| FixedKey {
        name,
        source,
        key: SigningKey::from_pkcs8(&pkcs8(d, x, y)).expect("key"),
        private_jwk: json!({ "kty": "EC", "crv": "P-256", "x": x, "y": y, "d": d }),
    })
}

/// The fixed key of this name.
pub fn fixed(name: &str) -> SigningKey {
    let found = all().into_iter().find(|fixed| fixed.name == name);
    found.expect("a fixed key").key
}

/// PKCS#8 of a P-256 key with its public key (RFC 5208, RFC 5915).
fn pkcs8(d: &str, x: &str, y: &str) -> Vec<u8> {
    const HEAD: [u8; 36] = [
        0x30, 0x81, 0x87, 0x02, 0x01, 0x00, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d,
        0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x04, 0x6d, 0x30,
        0x6b, 0x02, 0x01, 0x01, 0x04, 0x20,
    ];
    const PUBLIC: [u8; 6] = [0xa1, 0x44, 0x03, 0x42, 0x00, 0x04];
    [&HEAD[..], &decode(d), &PUBLIC[..], &decode(x), &decode(y)].concat()
}

pub fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

pub fn decode(text: &str) -> Vec<u8> {
    URL_SAFE_NO_PAD.decode(text).expect("base64url")
}

/// The signature of the message as base64url: the former one where it is the key's over these bytes.
pub fn signature(key: &SigningKey, message: &[u8], former: Option<&str>) -> String {
    let kept = former.filter(|former| {
        URL_SAFE_NO_PAD
            .decode(former)
            .is_ok_and(|signature| key.public().verify(message, &signature))
    });
    kept.map_or_else(
        || encode(&key.sign(message).expect("signature")),
        str::to_owned,
    )
}

/// A compact JWS over canonical JSON; a fraction, which has no canonical form, stands as it is.
pub fn jws(key: &SigningKey, header: &Value, claims: &Value, former: Option<&str>) -> String {
    let part = |value: &Value| canonical(value).unwrap_or_else(|_| value.to_string());
    jws_of_texts(key, &part(header), &part(claims), former)
}

/// A compact JWS over any texts.
pub fn jws_of_texts(key: &SigningKey, header: &str, claims: &str, former: Option<&str>) -> String {
    let signed = format!(
        "{}.{}",
        encode(header.as_bytes()),
        encode(claims.as_bytes())
    );
    let former = former.and_then(|former| former.strip_prefix(&format!("{signed}.")));
    let signature = signature(key, signed.as_bytes(), former);
    format!("{signed}.{signature}")
}

/// A good compact JWS in wrong forms, each with its name and the check that refuses it; `other` is another JWS of the key.
pub fn broken_forms(good: &str, other: &str) -> Vec<(&'static str, &'static str, String)> {
    let (signed, signature) = good.rsplit_once('.').expect("three parts");
    let (_, other) = other.rsplit_once('.').expect("three parts");
    let bytes = decode(signature);
    let of = |signature: &[u8]| format!("{signed}.{}", encode(signature));
    let longer = [&bytes[..], &[0]].concat();
    vec![
        (
            "another signature of the key",
            "signature",
            format!("{signed}.{other}"),
        ),
        ("a signature in DER", "signature", of(&der(&bytes))),
        ("a signature of 63 bytes", "signature", of(&bytes[..63])),
        ("a signature of 65 bytes", "signature", of(&longer)),
        ("a signature of zeros", "signature", of(&[0; 64])),
        ("padding", "form", format!("{good}==")),
        ("four parts", "form", format!("{good}.AA")),
        ("two parts", "form", signed.to_owned()),
        ("no signature", "form", format!("{signed}.")),
    ]
}

/// The claims as JSON, with the first member of `twice` before them.
pub fn with_member_twice(claims: &Value, twice: &str) -> String {
    let text = claims.to_string();
    format!("{{{twice},{}", text.get(1..).unwrap_or_default())
}

/// The DER form (RFC 3279 section 2.2.3) of a signature r ‖ s.
pub fn der(signature: &[u8]) -> Vec<u8> {
    let integer = |half: &[u8]| {
        let zeros = half.iter().take_while(|byte| **byte == 0).count();
        let mut bytes = half[zeros..].to_vec();
        if bytes.first().is_none_or(|byte| byte & 0x80 != 0) {
            bytes.insert(0, 0);
        }
        [&[2, u8::try_from(bytes.len()).expect("short")], &bytes[..]].concat()
    };
    let (r, s) = signature.split_at(32);
    let body = [integer(r), integer(s)].concat();
    [&[0x30, u8::try_from(body.len()).expect("short")], &body[..]].concat()
}

/// r ‖ s of a signature in DER.
pub fn from_der(der: &[u8]) -> Option<Vec<u8>> {
    let mut rest = der.strip_prefix(&[0x30])?.get(1..)?;
    let mut out = Vec::new();
    for _ in 0..2 {
        let length = usize::from(*rest.get(1)?);
        let integer = rest.strip_prefix(&[2])?.get(1..=length)?;
        let digits = integer.iter().skip_while(|byte| **byte == 0).copied();
        let digits: Vec<u8> = digits.collect();
        out.extend(std::iter::repeat_n(0, 32_usize.checked_sub(digits.len())?));
        out.extend(digits);
        rest = rest.get(length + 2..)?;
    }
    Some(out)
}
