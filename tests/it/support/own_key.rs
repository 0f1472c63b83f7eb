//! A P-256 key with its private half at hand, and its negative: the other key that the same holder has.

use dipylon_sdk::jose::SigningKey;

use super::software_authenticator::SoftwareAuthenticator;

/// Where `SigningKey::generate` puts the private key and the two coordinates in its PKCS#8 document (RFC 5958, RFC 5915).
const SCALAR: usize = 36;
const X: usize = 74;
const Y: usize = 106;
const LENGTH: usize = 138;

/// The order of the group of P-256 (SEC 2 §2.4.2).
const ORDER: [u8; 32] = hex("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551");
/// The prime of its field.
const PRIME: [u8; 32] = hex("ffffffff00000001000000000000000000000000ffffffffffffffffffffffff");

const fn hex(text: &str) -> [u8; 32] {
    let digits = text.as_bytes();
    let mut bytes = [0; 32];
    let mut n = 0;
    while n < 64 {
        let digit = match digits[n] {
            digit @ b'0'..=b'9' => digit - b'0',
            digit => digit - b'a' + 10,
        };
        bytes[n / 2] = bytes[n / 2] * 16 + digit;
        n += 1;
    }
    bytes
}

/// `from - what`, for a smaller `what`.
fn subtract(from: &[u8; 32], what: &[u8]) -> [u8; 32] {
    let mut difference = [0; 32];
    let mut borrow = false;
    for n in (0..32).rev() {
        let (step, first) = from[n].overflowing_sub(what[n]);
        let (step, second) = step.overflowing_sub(u8::from(borrow));
        difference[n] = step;
        borrow = first || second;
    }
    assert!(!borrow, "the smaller from the larger");
    difference
}

/// A key and its PKCS#8 document.
pub struct OwnKey {
    pub key: SigningKey,
    pub pkcs8: Vec<u8>,
}

impl OwnKey {
    pub fn generate() -> Self {
        let (key, pkcs8) = SigningKey::generate().expect("key");
        Self {
            key,
            pkcs8: pkcs8.to_vec(),
        }
    }

    pub fn of(pkcs8: &[u8]) -> Self {
        Self {
            key: SigningKey::from_pkcs8(pkcs8).expect("key"),
            pkcs8: pkcs8.to_vec(),
        }
    }

    /// The key at the negative of the point: n - d, with the same x and p - y.
    pub fn negated(&self) -> Self {
        assert_eq!(self.pkcs8.len(), LENGTH);
        let mut pkcs8 = self.pkcs8.clone();
        let scalar = subtract(&ORDER, &self.pkcs8[SCALAR..SCALAR + 32]);
        let y = subtract(&PRIME, &self.pkcs8[Y..Y + 32]);
        pkcs8[SCALAR..SCALAR + 32].copy_from_slice(&scalar);
        pkcs8[Y..Y + 32].copy_from_slice(&y);
        assert_eq!(pkcs8[X..Y], self.pkcs8[X..Y]);
        // Refused unless the point is that of the private key.
        Self::of(&pkcs8)
    }

    /// The key as a table of `people.toml`.
    pub fn row(&self, of: &str) -> String {
        row(of, &self.key)
    }

    /// The key in an authenticator.
    pub fn passkey(&self, rp_id: &str, user: &[u8]) -> SoftwareAuthenticator {
        SoftwareAuthenticator::of_key(&self.pkcs8, rp_id, user)
    }
}

/// A key as a table of `people.toml`.
pub fn row(of: &str, key: &SigningKey) -> String {
    let jwk = key.public().to_jwk();
    format!(
        "\n[[key]]\nof = \"{of}\"\njwk = {{ kty = \"EC\", crv = \"P-256\", x = {}, y = {} }}\n",
        jwk["x"], jwk["y"]
    )
}
