//! Keys that verify signatures of others than their holder: refused by each reader, for their own reason.

use curve25519_dalek::constants::EIGHT_TORSION;
use curve25519_dalek::edwards::{CompressedEdwardsY, EdwardsPoint};
use curve25519_dalek::scalar::Scalar;
use proptest::prelude::*;
use ring::agreement::{ECDH_P256, ECDH_P384};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};

use super::jwk::Material;
use super::key::is_on_curve;
use super::*;
use crate::model::{Digest, KeyIdentity};

/// A point of Ed25519 of the prime order.
pub(super) const PRIME_ORDER: [u8; 32] =
    hex("ce0835d5eef35d3d7194904428ab19ee30b76afce559883b3b3542994e42af45");

const OFF_CURVE: &str = "the point is not on the curve";
const NOT_CANONICAL: &str = "the point is not encoded canonically";
const NOT_PRIME_ORDER: &str = "the point is not of the prime order";
const FACTORED: &str = "the RSA modulus can be factored";

const fn hex<const N: usize>(digits: &str) -> [u8; N] {
    const fn value(digit: u8) -> u8 {
        match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => panic!("no hexadecimal digit"),
        }
    }
    let digits = digits.as_bytes();
    assert!(digits.len() == 2 * N);
    let (mut out, mut i) = ([0; N], 0);
    while i < N {
        out[i] = value(digits[2 * i]) * 16 + value(digits[2 * i + 1]);
        i += 1;
    }
    out
}

pub(super) fn okp(x: &[u8]) -> Value {
    json!({ "kty": "OKP", "crv": "Ed25519", "x": encode(x) })
}

pub(super) fn rsa(n: &[u8]) -> Value {
    json!({ "kty": "RSA", "e": "AQAB", "n": encode(n) })
}

fn ec(crv: &str, x: &[u8], y: &[u8]) -> Value {
    json!({ "kty": "EC", "crv": crv, "x": encode(x), "y": encode(y) })
}

/// An odd number of so many bits without a small factor; each call gives the same.
pub(super) fn modulus(bits: usize) -> Vec<u8> {
    number(bits, 0)
}

fn number(bits: usize, which: u8) -> Vec<u8> {
    let bytes = bits / 8;
    let mut out: Vec<u8> = (0..=bytes / 32)
        .flat_map(|i| *Digest::sha256(&[which, u8::try_from(i).expect("few")]).as_bytes())
        .take(bytes)
        .collect();
    out[0] |= 0xc0;
    let fits = |n: &[u8]| {
        (2..1000_u32).all(|p| n.iter().fold(0, |r, b| (r * 256 + u32::from(*b)) % p) != 0)
    };
    while !fits(&out) {
        let low: [u8; 2] = out[bytes - 2..].try_into().expect("two");
        let next = u16::from_be_bytes(low).wrapping_add(1).to_be_bytes();
        out[bytes - 2..].copy_from_slice(&next);
    }
    out
}

fn product(a: &[u8], b: &[u8]) -> Vec<u8> {
    let mut out = vec![0_u32; a.len() + b.len()];
    for (i, x) in a.iter().rev().enumerate() {
        let mut carry = 0;
        for (j, y) in b.iter().rev().enumerate() {
            let sum = out[i + j] + u32::from(*x) * u32::from(*y) + carry;
            (out[i + j], carry) = (sum % 256, sum / 256);
        }
        out[i + b.len()] += carry;
    }
    let bytes = out
        .into_iter()
        .rev()
        .map(|b| u8::try_from(b).expect("a byte"));
    bytes.skip_while(|b| *b == 0).collect()
}

/// The key by every reader that knows its type; all must agree.
fn read(jwk: &Value) -> Result<(), &'static str> {
    let mut entry = jwk.clone();
    entry["kid"] = json!("k");
    let set = json!({ "keys": [entry] }).to_string();
    let of_set = match KeySet::parse(set.as_bytes(), Usage::Signature) {
        Ok(set) => {
            assert_eq!(set.len(), 1);
            Ok(())
        }
        Err(KeySetError::Key(why)) => Err(why),
        Err(other) => panic!("{other}"),
    };
    if jwk["crv"] != "P-384" {
        let passkey = AuthenticatorKey::from_jwk(jwk).map(drop);
        assert_eq!(passkey, of_set.map_err(KeyError::Jwk), "{jwk}");
    }
    if jwk["crv"] == "P-256" {
        let key = PublicKey::from_jwk(jwk).map(drop);
        assert_eq!(key, of_set.map_err(|_| KeyError::OffCurve), "{jwk}");
    }
    if jwk["kty"] == "EC" {
        let mut svid = jwk.clone();
        svid["kid"] = json!("k");
        svid["use"] = json!("jwt-svid");
        let bundle = json!({ "keys": [svid] }).to_string();
        let bundle = KeySet::parse(bundle.as_bytes(), Usage::JwtSvid).map(drop);
        assert_eq!(bundle, of_set.map_err(KeySetError::Key), "{jwk}");
    }
    of_set
}

#[test]
fn ed25519_points() {
    assert_eq!(read(&okp(&PRIME_ORDER)), Ok(()));
    let prime = CompressedEdwardsY(PRIME_ORDER)
        .decompress()
        .expect("a point");
    for (i, torsion) in EIGHT_TORSION.iter().enumerate() {
        let small = okp(torsion.compress().as_bytes());
        assert_eq!(read(&small), Err(NOT_PRIME_ORDER), "small order, {i}");
        let mixed = okp((prime + torsion).compress().as_bytes());
        let expected = if i == 0 { Ok(()) } else { Err(NOT_PRIME_ORDER) };
        assert_eq!(read(&mixed), expected, "mixed order, {i}");
    }
    // y of p to 2^255 - 1 in both signs: none is the encoding of a point.
    let mut decoded = 0;
    for low in 0xed..=0xff_u8 {
        for high in [0x7f, 0xff] {
            let mut point = [0xff; 32];
            (point[0], point[31]) = (low, high);
            decoded += usize::from(CompressedEdwardsY(point).decompress().is_some());
            let read = read(&okp(&point));
            assert!(
                [Err(OFF_CURVE), Err(NOT_CANONICAL)].contains(&read),
                "{point:?}: {read:?}"
            );
        }
    }
    assert!(
        decoded > 10,
        "{decoded} for which the curve alone is no reason"
    );
    for (name, point, why) in [
        (
            "no x for this y",
            hex("0200000000000000000000000000000000000000000000000000000000000000"),
            OFF_CURVE,
        ),
        (
            "x = 0 with a sign, y = 1",
            hex("0100000000000000000000000000000000000000000000000000000000000080"),
            NOT_CANONICAL,
        ),
        (
            "x = 0 with a sign, y = -1",
            hex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff"),
            NOT_CANONICAL,
        ),
        ("all zeros", [0; 32], NOT_PRIME_ORDER),
    ] {
        assert_eq!(read(&okp(&point)), Err(why), "{name}");
    }
    assert!(read(&okp(&PRIME_ORDER[..31])).is_err());
    assert!(read(&okp(&[&PRIME_ORDER[..], &[0]].concat())).is_err());
}

/// What a point of small order is good for: a signature without a signer, which ring accepts.
#[test]
fn small_order_point_verifies_a_constant() {
    use ring::signature::{ED25519, UnparsedPublicKey};
    let identity = [&[1][..], &[0; 31]].concat();
    // R = the identity, S = 0.
    let constant = [&identity[..], &[0; 32]].concat();
    for message in ["yes", "no"] {
        let key = UnparsedPublicKey::new(&ED25519, &identity);
        assert!(key.verify(message.as_bytes(), &constant).is_ok());
    }
    assert_eq!(read(&okp(&identity)), Err(NOT_PRIME_ORDER));
}

/// Coordinates in range, on the curve: both as ring sees them and through every reader.
#[test]
fn p256_and_p384_points() {
    let p256: [(&str, [u8; 32], [u8; 32], bool); 8] = [
        (
            "x = 0",
            [0; 32],
            hex("66485c780e2f83d72433bd5d84a06bb6541c2af31dae871728bf856a174f93f4"),
            true,
        ),
        (
            "x = p",
            hex("ffffffff00000001000000000000000000000000ffffffffffffffffffffffff"),
            hex("66485c780e2f83d72433bd5d84a06bb6541c2af31dae871728bf856a174f93f4"),
            false,
        ),
        (
            "x = 5",
            hex("0000000000000000000000000000000000000000000000000000000000000005"),
            hex("459243b9aa581806fe913bce99817ade11ca503c64d9a3c533415c083248fbcc"),
            true,
        ),
        (
            "x = p + 5",
            hex("ffffffff00000001000000000000000000000001000000000000000000000004"),
            hex("459243b9aa581806fe913bce99817ade11ca503c64d9a3c533415c083248fbcc"),
            false,
        ),
        (
            "y = 5",
            hex("d7325d7646cd60d80a92738ceb345f844cffaf35841022cab176f692de8de1d7"),
            hex("0000000000000000000000000000000000000000000000000000000000000005"),
            true,
        ),
        (
            "y = p + 5",
            hex("d7325d7646cd60d80a92738ceb345f844cffaf35841022cab176f692de8de1d7"),
            hex("ffffffff00000001000000000000000000000001000000000000000000000004"),
            false,
        ),
        ("zero", [0; 32], [0; 32], false),
        ("off the curve", [1; 32], [2; 32], false),
    ];
    for (name, x, y, is_point) in p256 {
        let point = [&[4][..], &x, &y].concat();
        assert_eq!(is_on_curve(&ECDH_P256, &point), is_point, "{name}");
        let expected = if is_point { Ok(()) } else { Err(OFF_CURVE) };
        assert_eq!(read(&ec("P-256", &x, &y)), expected, "{name}");
    }
    let p384: [(&str, [u8; 48], [u8; 48], bool); 8] = [
        (
            "x = 0",
            [0; 48],
            hex(
                "c306610fb0ae5a159cf45c06069f22a6c5eb3641c602d42dea2c4b4f75550793406d80d2b91ad54f9048bd487af1ade1",
            ),
            true,
        ),
        (
            "x = p",
            hex(
                "fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffeffffffff0000000000000000ffffffff",
            ),
            hex(
                "c306610fb0ae5a159cf45c06069f22a6c5eb3641c602d42dea2c4b4f75550793406d80d2b91ad54f9048bd487af1ade1",
            ),
            false,
        ),
        (
            "x = 2",
            hex(
                "000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000002",
            ),
            hex(
                "8cdeadbbd04911a3c1931e26df3fa6439dca9c7eb286fbd46fc319f0e2bb780232baf57825fc0c1912ada2fefe84024c",
            ),
            true,
        ),
        (
            "x = p + 2",
            hex(
                "fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffeffffffff000000000000000100000001",
            ),
            hex(
                "8cdeadbbd04911a3c1931e26df3fa6439dca9c7eb286fbd46fc319f0e2bb780232baf57825fc0c1912ada2fefe84024c",
            ),
            false,
        ),
        (
            "y = 1",
            hex(
                "2261b2bf605c22f2f3aef6338719b2c486388ad5240719a5257315969ef01ba27f0a104c89704773a81fdabee6ab5c78",
            ),
            hex(
                "000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000001",
            ),
            true,
        ),
        (
            "y = p + 1",
            hex(
                "2261b2bf605c22f2f3aef6338719b2c486388ad5240719a5257315969ef01ba27f0a104c89704773a81fdabee6ab5c78",
            ),
            hex(
                "fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffeffffffff000000000000000100000000",
            ),
            false,
        ),
        ("zero", [0; 48], [0; 48], false),
        ("off the curve", [1; 48], [2; 48], false),
    ];
    for (name, x, y, is_point) in p384 {
        let point = [&[4][..], &x, &y].concat();
        assert_eq!(is_on_curve(&ECDH_P384, &point), is_point, "{name}");
        let expected = if is_point { Ok(()) } else { Err(OFF_CURVE) };
        assert_eq!(read(&ec("P-384", &x, &y)), expected, "{name}");
    }
    for infinity in [&[0][..], &[4], &[]] {
        assert!(!is_on_curve(&ECDH_P256, infinity));
        assert!(!is_on_curve(&ECDH_P384, infinity));
    }
}

#[test]
fn rsa_moduli() {
    let (p, q) = (number(1024, 1), number(1024, 2));
    assert_eq!(read(&rsa(&product(&p, &q))), Ok(()));
    assert_eq!(read(&rsa(&product(&p, &p))), Err(FACTORED), "a square");
    let wide = number(2048, 3);
    assert_eq!(
        read(&rsa(&product(&wide, &wide))),
        Err(FACTORED),
        "a square"
    );
    for factor in [2_u16, 3, 5, 7, 167, 173, 499, 991, 997] {
        let n = product(&modulus(2048), &factor.to_be_bytes());
        assert_eq!(read(&rsa(&n)), Err(FACTORED), "a multiple of {factor}");
    }
}

fn identity(jwk: &Value) -> KeyIdentity {
    let members = jwk.as_object().expect("an object");
    let kty = members["kty"].as_str();
    let read = Material::read(members, kty, Usage::Signature);
    read.expect("sound").expect("known").0.identity()
}

/// SHA-256 of the tag, the type and what a key shares with its negative: as another program has computed them.
#[test]
fn identities_of_known_keys() {
    let p256 = ec(
        "P-256",
        &[0; 32],
        &hex::<32>("66485c780e2f83d72433bd5d84a06bb6541c2af31dae871728bf856a174f93f4"),
    );
    let p384 = ec(
        "P-384",
        &[0; 48],
        &hex::<48>(
            "c306610fb0ae5a159cf45c06069f22a6c5eb3641c602d42dea2c4b4f75550793406d80d2b91ad54f9048bd487af1ade1",
        ),
    );
    for (jwk, expected) in [
        (p256, "HPbDVhzstZzLndOy5kXhB9tQzE6aKj7L6id7_7SMgGI"),
        (p384, "LqDVYOllADsUG-P-HMXN-vMnMBZOZ-ydSU_huMZNeLE"),
        (
            okp(&PRIME_ORDER),
            "Jp5jah1pyJNyDBkR5tzuk8x01-jqjdQOek7pwRH7ldg",
        ),
        (
            rsa(&[0x80; 255]
                .iter()
                .chain(&[0x81])
                .copied()
                .collect::<Vec<u8>>()),
            "c2m_LFQ1tyH4gZD0nFE9sAfk_Jm1_SrcDYmdVjQ28aQ",
        ),
    ] {
        let found = if jwk["kty"] == "RSA" {
            Material::Rsa {
                n: decode(jwk["n"].as_str().expect("n")).expect("bytes"),
                e: vec![1, 0, 1],
            }
            .identity()
        } else {
            identity(&jwk)
        };
        assert_eq!(found.to_string(), expected, "{jwk}");
    }
    // 2G and its negative.
    let x = hex::<32>("7cf27b188d034f7e8a52380304b51ac3c08969e277f21b35a60b48fc47669978");
    let y = hex("07775510db8ed040293d9ac69f7430dbba7dade63ce982299e04b79d227873d1");
    let negative = hex("f888aaee24712fc0d6c26539608bcf244582521ac3167dd661fb4862dd878c2e");
    let (key, other) = (
        PublicKey::from_coordinates(&x, &y),
        PublicKey::from_coordinates(&x, &negative),
    );
    assert_eq!(key.negated(), other);
    assert_eq!(key.thumbprints(), [key.thumbprint(), other.thumbprint()]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn negated_p256_key(_seed in any::<u8>()) {
        let key = SigningKey::generate().expect("key").0;
        let key = key.public();
        let other = key.negated();
        prop_assert_ne!(key, &other);
        prop_assert!(PublicKey::from_jwk(&other.to_jwk()).is_ok(), "on the curve");
        prop_assert_eq!(&other.negated(), key);
        prop_assert_eq!(other.identity(), key.identity());
        prop_assert_eq!(key.thumbprints(), [key.thumbprint(), other.thumbprint()]);
        prop_assert_eq!(other.thumbprints(), [other.thumbprint(), key.thumbprint()]);
        let passkey = AuthenticatorKey::from_jwk(&other.to_jwk()).expect("key");
        prop_assert_eq!(passkey.identity(), key.identity());
        prop_assert_ne!(SigningKey::generate().expect("key").0.public().identity(), key.identity());
    }

    /// Every key of a seed is accepted, its negative too, with the same identity.
    #[test]
    fn negated_ed25519_key(seed in any::<[u8; 32]>()) {
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).expect("key");
        let jwk = okp(pair.public_key().as_ref());
        let mut other: [u8; 32] = pair.public_key().as_ref().try_into().expect("32 bytes");
        other[31] ^= 0x80;
        prop_assert_eq!(read(&jwk), Ok(()));
        prop_assert_eq!(read(&okp(&other)), Ok(()));
        prop_assert_eq!(identity(&jwk), identity(&okp(&other)));
        let key = AuthenticatorKey::from_jwk(&jwk).expect("key");
        prop_assert_ne!(key.thumbprint(), AuthenticatorKey::from_jwk(&okp(&other)).expect("key").thumbprint());
        prop_assert!(key.verify(b"message", pair.sign(b"message").as_ref()));
    }

    /// Multiples of the base point, alone and with a part of small order.
    #[test]
    fn ed25519_torsion(scalar in 17..u64::MAX, torsion in 0_usize..8) {
        let point = EdwardsPoint::mul_base(&Scalar::from(scalar)) + EIGHT_TORSION[torsion];
        let expected = if torsion == 0 { Ok(()) } else { Err(NOT_PRIME_ORDER) };
        prop_assert_eq!(read(&okp(point.compress().as_bytes())), expected);
    }
}
