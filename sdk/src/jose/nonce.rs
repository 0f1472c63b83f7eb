use ring::hmac;

use super::{decode_exactly, encode};
use crate::model::Timestamp;

/// Stateless server nonces for DPoP proofs (RFC 9449 §8): an expiry and its MAC under a key of this process. A nonce serves
/// many proofs until it expires; a restart invalidates all.
pub struct Nonces {
    key: hmac::Key,
}

/// Milliseconds a nonce lives.
const LIFE_MS: i64 = 60_000;
/// Bytes of the MAC that a nonce carries.
const MAC_BYTES: usize = 16;
/// Bytes of the expiry before it: milliseconds since 1970, most significant first.
const EXPIRY_BYTES: usize = 8;
const NONCE_BYTES: usize = EXPIRY_BYTES + MAC_BYTES;
/// No other MAC here begins like this.
const TAG: &[u8] = b"dipylon/nonce/v1\0";

impl Nonces {
    /// Nonces under a random key that is not stored.
    pub fn new(boot_key: &[u8; 32]) -> Self {
        Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, boot_key),
        }
    }

    /// A nonce that is valid for one minute from now.
    pub fn issue(&self, now: Timestamp) -> String {
        let expiry = now.plus_millis(LIFE_MS).millis().to_be_bytes();
        let mut bytes = [0; NONCE_BYTES];
        let mac = self.mac(&expiry);
        for (to, from) in bytes.iter_mut().zip(expiry.iter().chain(mac.as_ref())) {
            *to = *from;
        }
        encode(&bytes)
    }

    /// Until when the nonce is valid; `None` when it has expired or was not issued by this process.
    pub fn check(&self, nonce: &str, now: Timestamp) -> Option<Timestamp> {
        let bytes: [u8; NONCE_BYTES] = decode_exactly(nonce)?;
        let (expiry, mac) = bytes.split_first_chunk::<EXPIRY_BYTES>()?;
        let full = self.mac(expiry);
        // Constant time: the MAC is the secret that makes a nonce ours.
        let same = mac
            .iter()
            .zip(full.as_ref())
            .fold(0, |diff, (a, b)| diff | (a ^ b))
            == 0;
        let until = Timestamp::from_millis(i64::from_be_bytes(*expiry));
        (same && now < until).then_some(until)
    }

    /// The whole MAC; a nonce carries its first [`MAC_BYTES`].
    fn mac(&self, expiry: &[u8; EXPIRY_BYTES]) -> hmac::Tag {
        let mut mac = hmac::Context::with_key(&self.key);
        mac.update(TAG);
        mac.update(expiry);
        mac.sign()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonce_is_valid_for_a_minute_in_one_process() {
        let (ours, other) = (Nonces::new(&[1; 32]), Nonces::new(&[2; 32]));
        let now = Timestamp::from_secs(1_800_000_000);
        let nonce = ours.issue(now);
        assert_eq!(
            ours.check(&nonce, now.plus_millis(LIFE_MS - 1)),
            Some(now.plus_millis(LIFE_MS))
        );
        assert_eq!(ours.check(&nonce, now.plus_millis(LIFE_MS)), None);
        assert_eq!(other.check(&nonce, now), None);
        for place in 0..nonce.len() {
            let mut bent = nonce.clone().into_bytes();
            bent[place] = if bent[place] == b'A' { b'B' } else { b'A' };
            assert_eq!(
                ours.check(&String::from_utf8(bent).expect("ascii"), now),
                None,
                "place {place}"
            );
        }
        assert_eq!(ours.check("", now), None);
        assert_eq!(ours.check(&format!("{nonce}AAAA"), now), None, "longer");
        assert_eq!(ours.check(&nonce[..nonce.len() - 4], now), None);
    }
}
