//! Public keys under which others than a holder can sign, and what each is refused for.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

/// A JWK with its required members.
pub struct WeakKey {
    pub name: &'static str,
    pub jwk: Value,
    pub why: &'static str,
}

const OFF_CURVE: &str = "the point is not on the curve";
const NOT_CANONICAL: &str = "the point is not encoded canonically";
const NOT_PRIME_ORDER: &str = "the point is not of the prime order";
pub const PUBLISHED: &str = "its private key is published, so anyone can sign with it";
pub const FACTORED: &str = "the RSA modulus can be factored";

/// x of P-256 points that are on the curve modulo p alone, with y.
const P256: [(&str, &str, &str, &str); 4] = [
    (
        "P-256 with x = p + 5",
        "ffffffff00000001000000000000000000000001000000000000000000000004",
        "459243b9aa581806fe913bce99817ade11ca503c64d9a3c533415c083248fbcc",
        OFF_CURVE,
    ),
    (
        "P-256 with y = p + 5",
        "d7325d7646cd60d80a92738ceb345f844cffaf35841022cab176f692de8de1d7",
        "ffffffff00000001000000000000000000000001000000000000000000000004",
        OFF_CURVE,
    ),
    (
        "P-256, the base point",
        "6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296",
        "4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5",
        PUBLISHED,
    ),
    (
        "P-256, RFC 7515 appendix A.3",
        "7fcdce2770f6c45d4183cbee6fdb4b7b580733357be9ef13bacf6e3c7bd15445",
        "c7f144cd1bbd9b7e872cdfedb9eeb9f4b3695d6ea90b24ad8a4623288588e5ad",
        PUBLISHED,
    ),
];

const ED25519: [(&str, &str, &str); 10] = [
    (
        "Ed25519, the identity",
        "0100000000000000000000000000000000000000000000000000000000000000",
        NOT_PRIME_ORDER,
    ),
    (
        "Ed25519 of order 2",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        NOT_PRIME_ORDER,
    ),
    (
        "Ed25519 of order 4",
        "0000000000000000000000000000000000000000000000000000000000000080",
        NOT_PRIME_ORDER,
    ),
    (
        "Ed25519 of order 8",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        NOT_PRIME_ORDER,
    ),
    (
        "Ed25519 with a part of order 8",
        "3deb8ca9e3d031548d729bed3aa7f3840e256888362f1ea239c189f03b281f24",
        NOT_PRIME_ORDER,
    ),
    (
        "Ed25519 with a part of order 2",
        "1ff7ca2a110ca2c28e6b6fbbd754e611cf4895031aa677c4c4cabd66b1bd50ba",
        NOT_PRIME_ORDER,
    ),
    (
        "Ed25519 with y = p + 3",
        "f0ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        NOT_CANONICAL,
    ),
    (
        "Ed25519 with x = 0 and its sign",
        "0100000000000000000000000000000000000000000000000000000000000080",
        NOT_CANONICAL,
    ),
    (
        "Ed25519 off the curve",
        "0200000000000000000000000000000000000000000000000000000000000000",
        OFF_CURVE,
    ),
    (
        "Ed25519, RFC 8032 section 7.1",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        PUBLISHED,
    ),
];

fn base64url(hex: &str) -> String {
    let bytes = (0..hex.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&hex[i..i + 2], 16).expect("hexadecimal"));
    URL_SAFE_NO_PAD.encode(bytes.collect::<Vec<u8>>())
}

/// Those of P-256.
pub fn p256() -> Vec<WeakKey> {
    let keys = P256.into_iter().map(|(name, x, y, why)| WeakKey {
        name,
        jwk: json!({ "kty": "EC", "crv": "P-256", "x": base64url(x), "y": base64url(y) }),
        why,
    });
    keys.collect()
}

/// An RSA modulus that 3 divides.
pub fn rsa() -> WeakKey {
    WeakKey {
        name: "RSA with a small factor",
        jwk: json!({ "kty": "RSA", "n": URL_SAFE_NO_PAD.encode([0xd7; 256]), "e": "AQAB" }),
        why: FACTORED,
    }
}

/// All, of each type that a passkey may have.
pub fn all() -> Vec<WeakKey> {
    let ed25519 = ED25519.into_iter().map(|(name, x, why)| WeakKey {
        name,
        jwk: json!({ "kty": "OKP", "crv": "Ed25519", "x": base64url(x) }),
        why,
    });
    p256().into_iter().chain(ed25519).chain([rsa()]).collect()
}
