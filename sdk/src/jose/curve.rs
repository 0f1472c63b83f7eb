//! Whether a public point lies on P-256 or P-384 (SEC 1 §3.2.2.1): ring refuses a point off its curve only when it
//! verifies, and a key must be refused when it is registered. Public values only, so nothing here is constant-time.

/// A number in 64-bit limbs, the most significant first: so the order of arrays is the order of numbers.
type Limbs<const N: usize> = [u64; N];

struct Curve<const N: usize> {
    /// The field's prime.
    p: Limbs<N>,
    /// The constant term of y² = x³ − 3x + b.
    b: Limbs<N>,
}

/// SP 800-186 §3.2.1.3.
const P256: Curve<4> = Curve {
    p: [0xffff_ffff_0000_0001, 0, 0x0000_0000_ffff_ffff, u64::MAX],
    b: [
        0x5ac6_35d8_aa3a_93e7,
        0xb3eb_bd55_7698_86bc,
        0x651d_06b0_cc53_b0f6,
        0x3bce_3c3e_27d2_604b,
    ],
};

/// SP 800-186 §3.2.1.4.
const P384: Curve<6> = Curve {
    p: [
        u64::MAX,
        u64::MAX,
        u64::MAX,
        0xffff_ffff_ffff_fffe,
        0xffff_ffff_0000_0000,
        0x0000_0000_ffff_ffff,
    ],
    b: [
        0xb331_2fa7_e23e_e7e4,
        0x988e_056b_e3f8_2d19,
        0x181d_9c6e_fe81_4112,
        0x0314_088f_5013_875a,
        0xc656_398d_8a2e_d19d,
        0x2a85_c8ed_d3ec_2aef,
    ],
};

/// Whether (x, y), big-endian, is a point of P-256.
pub(super) fn on_p256(x: &[u8], y: &[u8]) -> bool {
    P256.holds(x, y)
}

/// Whether (x, y), big-endian, is a point of P-384.
pub(super) fn on_p384(x: &[u8], y: &[u8]) -> bool {
    P384.holds(x, y)
}

impl<const N: usize> Curve<N> {
    fn holds(&self, x: &[u8], y: &[u8]) -> bool {
        let (Some(x), Some(y)) = (self.element(x), self.element(y)) else {
            return false;
        };
        // y² + 3x = x³ + b: the same equation without a subtraction.
        let left = self.add(&self.mul(&y, &y), &self.add(&x, &self.add(&x, &x)));
        let right = self.add(&self.mul(&self.mul(&x, &x), &x), &self.b);
        left == right
    }

    /// Exactly N limbs, below the prime.
    fn element(&self, bytes: &[u8]) -> Option<Limbs<N>> {
        let (chunks, rest) = bytes.as_chunks::<8>();
        if chunks.len() != N || !rest.is_empty() {
            return None;
        }
        let mut out = [0; N];
        for (limb, chunk) in out.iter_mut().zip(chunks) {
            *limb = u64::from_be_bytes(*chunk);
        }
        (out < self.p).then_some(out)
    }

    fn add(&self, a: &Limbs<N>, b: &Limbs<N>) -> Limbs<N> {
        let mut sum = [0; N];
        let mut carry = false;
        for ((out, a), b) in sum.iter_mut().zip(a).zip(b).rev() {
            let (s, c1) = a.overflowing_add(*b);
            let (s, c2) = s.overflowing_add(u64::from(carry));
            *out = s;
            carry = c1 || c2;
        }
        if !carry && sum < self.p {
            return sum;
        }
        let mut borrow = false;
        for (out, p) in sum.iter_mut().zip(&self.p).rev() {
            let (d, b1) = out.overflowing_sub(*p);
            let (d, b2) = d.overflowing_sub(u64::from(borrow));
            *out = d;
            borrow = b1 || b2;
        }
        sum
    }

    /// Double and add: slow, short, and run only when a key is registered.
    fn mul(&self, a: &Limbs<N>, b: &Limbs<N>) -> Limbs<N> {
        let mut out = [0; N];
        for limb in a {
            for bit in (0..u64::BITS).rev() {
                out = self.add(&out, &out);
                if (limb >> bit) & 1 == 1 {
                    out = self.add(&out, b);
                }
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use ring::rand::SystemRandom;
    use ring::signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair,
        KeyPair as _,
    };

    use super::*;

    #[test]
    fn made_points_hold_and_changed_ones_do_not() {
        let rng = SystemRandom::new();
        for (alg, half, check) in [
            (
                &ECDSA_P256_SHA256_FIXED_SIGNING,
                32,
                on_p256 as fn(&[u8], &[u8]) -> bool,
            ),
            (&ECDSA_P384_SHA384_FIXED_SIGNING, 48, on_p384),
        ] {
            for _ in 0..8 {
                let pkcs8 = EcdsaKeyPair::generate_pkcs8(alg, &rng).unwrap();
                let pair = EcdsaKeyPair::from_pkcs8(alg, pkcs8.as_ref(), &rng).unwrap();
                let mut point = pair.public_key().as_ref()[1..].to_vec();
                assert!(check(&point[..half], &point[half..]));
                point[half] ^= 1;
                assert!(!check(&point[..half], &point[half..]));
            }
        }
        assert!(!on_p256(&[0; 32], &[0; 32]));
        assert!(!on_p256(&[0xff; 32], &[0xff; 32]), "not reduced");
        assert!(!on_p256(&[0; 31], &[0; 32]));
    }
}
