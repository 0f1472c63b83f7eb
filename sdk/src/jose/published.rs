//! Keys whose private half stands in a specification, or is a small number: anyone can sign with them, and the negative of each.

use crate::model::KeyIdentity;

/// Whether anyone can sign with the keys of this identity.
pub(super) fn contains(identity: &KeyIdentity) -> bool {
    PUBLISHED
        .binary_search(&identity.to_string().as_str())
        .is_ok()
}

/// Identities in ascending order, each with where its private key stands. `published_keys.json` has the keys.
const PUBLISHED: [&str; 74] = [
    // P-256, the private key 15
    "0cqv2CtLdbk27GRav31fJiGMyv8y8_edSDo4v-i-8wU",
    // RFC 7520 section 5.2
    "1F6wRJY_T0r12WCgDhL7hEdM_An5aQxkZL-HIiZo_7g",
    // RFC 9500 section 2.3
    "1wWW7qtN479phvpDvPkan2Adi-59ZvfjZX8zWqdXRi8",
    // P-384, the private key 3
    "3B-DAAYJiLDYdIbRwqxpQXicaKIChKdX08HKrUc6g_s",
    // RFC 7517 appendix A.2, RSA
    "6auHNiQiuEwpiAyYiyiot8OmfMfEafHDWjrvxn2TmFI",
    // Ed25519, the scalar 2
    "7Bxz7cjwWmSKMwiWkFa2Sj6rJbRnIfmnSEZHMGgEV64",
    // P-384, the private key 5
    "7WwYr6qcxp0BkynjDJfYgPU0yW9pkZycRXBCOWRLjxc",
    // P-384, the private key 16
    "8qkNfixF7wedPe-GuSBnNkvSjVXkpciLJmo4sHpXzYA",
    // P-384, the private key 1
    "9HwDiCwG2E3VkQOEmHf61NqM_GVC4gwwgEoUCBk3Quc",
    // Ed25519, the scalar 5
    "9nt3fu1iAOjLkNLor5Q8YOSn0UVjoF6VgB-5EagYx7w",
    // P-256, the private key 11
    "Bmj9Xpdett0UMclJNwTMzCgVNIZiw0IsUY6HTc-ywFs",
    // P-384, the private key 8
    "CAEaPXu5aMRRV7s7zWCqbdrGQ4-qgdz4OJA3JsKjFz4",
    // Ed25519, the scalar 1
    "GaYQEthYbfu_8EdB1CNOFdLKUMb8xxT2qHL9pLR2rGU",
    // P-384, the private key 13
    "HFdwc2dhStNNsILrxvV5AZFkZJ_k0yClDQsiuHVD8Xo",
    // P-256, the private key 2
    "HdCuWko5AqxGKm373cCPexBNtW0BcyNvoC5LpIA2sI8",
    // Ed25519, the scalar 16
    "HknkvpORYEwdPhqV_gwNiRpAIPTiLBFmBFHU5eb9mK0",
    // P-256, the private key 9
    "I66HXQS90RkVzWIxxWCPOHp8W4czUwvGJsYNYsLqtmw",
    // Ed25519, the scalar 4
    "Ima-Y0IfpHLc6bRcSKpfXl7To2NAOZO7xW2AEZjRmQk",
    // P-256, the private key 8
    "IuObtlyKjbvirQ8KRaR70dy3CyY3sWAZ7z40LHKDhyw",
    // P-256, the private key 10
    "KwW2-OSmit7LffvHaOwFJ2UbipkrogEH6U4giuIx2dM",
    // RFC 9421 appendix B.1.3
    "LDuksgvVRRoFTvQn7hD2LTSM7HlKa7DWxWtZMrtDx7M",
    // RFC 9421 appendix B.1.1
    "MdXz1BgyT5ulMcMelaIlGc6ypwVyPMq0IPX_6MOrYE4",
    // P-256, the private key 7
    "MeX-fpiQQM4TLaLHlX0zqv-G6qaT0IY0qsUapg1JKeQ",
    // RFC 7520 section 5.5
    "N0sqZkUijNaNPx1c-nR9M1M-QNX4b-IZ5yZ2YsuOnbo",
    // RFC 7515 appendix A.2
    "NjJjbUeSaGNZNXIrqS6rx7PgJ6FVA22IWR3pnphpJxY",
    // Ed25519, the scalar 10
    "NjRk9OYoNCOe7NF_zkMyrSD3Wy7YjsXev9cIwXpKsUo",
    // RFC 6979 appendix A.2.6
    "OgxHlh3yV-53vDERhVrVLcHZ_4y8OhNefh2SaJtiVFw",
    // RFC 8032 section 7.1, TEST 1024
    "PZiskr1VluMajM3AcyzaDfzLeQyCR-vxbW8RpZZf0TE",
    // P-256, the private key 5
    "Pz_1vph2gmqHE9hJ69dyM3K-5Fkx1UTWN-HbT5RAeTU",
    // RFC 8032 section 7.1, TEST 3
    "RRyoc1y80vqEiQ1DZyxrESbp0d9JaYL6Yw-Abk2ZYrU",
    // Ed25519, the scalar 14
    "TDnqo4wZ4HZ0GbPSZGuOsod__KVqOmu2EjolhpQkuAQ",
    // RFC 7518 appendix C, Bob
    "U26wLqXtgzziMEW6puZw0xORRme2M-BESTNu0B07mXE",
    // Ed25519, the scalar 12
    "UB2vUz0pHoy0q5OV_zUKcNLZ2Ft7W09Q2CBhn7iH_ro",
    // RFC 7518 appendix C, Alice
    "Ug1fl3HPSg_XYD22qKmxBDLpxk3wuShQuTsJ8J_Es4s",
    // RFC 7520 section 3.4
    "WeusIOqYozIrPcrN4gpLdAw1Mv1nConH58H3IpqJo1A",
    // P-384, the private key 9
    "WhIJ6Ea5h4n-EG5Q7xy08uAApvUlMsjdnavto_VSFCM",
    // RFC 9421 appendix B.1.4
    "XlFxMRt7buOoHN212fzuoluYryZKOpQgQE24pYEXkGg",
    // RFC 7520 section 5.1
    "ZEU1lMHm1N4vTL0PW5G1b92FtiLYgLsgFh8MxQ1TOgo",
    // P-256, the private key 12
    "ZPD3XcIiMrpcNZFGS0yr_BwKhxddfA0FlOLEOJLfKpQ",
    // RFC 9500 section 2.1
    "adLQt8hzi81RvwtyaN29qlSbdlVIpq7QtPinnWvPDiI",
    // Ed25519, the scalar 3
    "crvdkk4urcfWfKsHQXIZBwMJaDWLm8hPZszFeRe4CbU",
    // RFC 7517 appendix A.2
    "cypyGAKoL_iXHyfsUCgE36XVm94sQ62zkATRe6vMgPs",
    // Ed25519, the scalar 13
    "d1z0HNn_LBb0tpyTR5J6obXMf92h2kvf1Bde4A8gaqg",
    // Ed25519, the scalar 15
    "d2OJxDmMmnss4Zn_Li1WySWnA9YpNU8mOb_Z0qFRhkA",
    // Ed25519, the scalar 7
    "d2Rv_zHHYv2__z2ZqdmCy4e0sZFeC7HcMHHdS4MWDhU",
    // P-256, the private key 1
    "d2sgZnDwMKo5KsilpxnXDBDL4VdLcs-2HKXWyX8AyLI",
    // Ed25519, the scalar 8
    "dExcce9F61gupQTByoRrpAjhPZUgYhlWFK85bjzBo6c",
    // P-384, the private key 2
    "dHFUZjF3dSTKnNV119_vfxzY87dW9bLru2PxXPiiXSE",
    // P-384, the private key 4
    "g82aJhcJ8l12ZtZ9gpfiEFIphD8rsVYpazMaoWiFJ3Q",
    // P-384, the private key 11
    "htnnkqeu-WyOXI7CtfIvgPuD7wpmHDOyOu4U-q7-FEE",
    // RFC 8032 section 7.1, TEST SHA(abc)
    "iZ0ycY5DVpWbBXybOnjav2qkTTvYew8tCx6bkhkO_aI",
    // P-384, the private key 14
    "jFvxG3chkzn4QO7tdhMoj7GvqfRvk2BDroJsYnS0Q-k",
    // P-384, the private key 15
    "kdUv7Pg6kdw4_cl627ZigEpKBQ6e0u05MayFZDHsEJY",
    // P-384, the private key 7
    "mjlzhrIMgq6slcroGFEMICg-ysOSLyFqMDGuHZ-gpW0",
    // RFC 9500 section 2.3, P-384
    "nf0fojig81ZrudKTPvqMD48C3RZbKQrh0RZG_R5KBMQ",
    // RFC 8032 section 7.1, TEST 1; RFC 8037 appendix A
    "oc-F1gGhenSh84-sQATM07w0usoYK9ktAWVz4CkglVQ",
    // P-256, the private key 14
    "pLBv8cgMM8aNSiVZKMxyZ9DOVllsIhULRQh5-NF75R8",
    // P-384, the private key 12
    "pOpznrKHlb_BfY9Hrnbp9OAPlwcWVXzVbVdfxmhPV7c",
    // RFC 7520 section 5.4
    "pbmN1Qht5UghcNZxpg_19x2CsRwFbFTfz9HfYvTSd7k",
    // the ES256 example of jwt.io
    "piB5El--nTani7Ok30RmDVivzWE-sKeW4oHkO2QlJ28",
    // P-384, the private key 6
    "qARgWImoQT5LEz33w7To5bIduWDDH72ig5Di7YjYKsE",
    // Ed25519, the scalar 9
    "rkt5IRxOJq4QXq-AdTBszlfOT1u3X_EmwcZ3yg0gxow",
    // P-256, the private key 6
    "rylemdEZI8rn4R-XbC0Qe2s7kz-Q9uBH06eiLHul5GU",
    // P-256, the private key 16
    "tdgApAdrPLUhfKY2iGTSi-IqjU3hZiH0CCXR_SDRD0w",
    // Ed25519, the scalar 11
    "uwQ-dbGUErKlXph-iWsMo7a_WbD6VTc-U2vj--xiq9I",
    // RFC 9421 appendix B.1.2
    "vG5H2CUQhcJxaz7jLI5Vyp84O7JttKTOhhpV652D0lA",
    // Ed25519, the scalar 6
    "wBV6L8tocA2gmCXHSZVsEIytUDw5_eMa0FQWBniV10Q",
    // P-256, the private key 4
    "wIWjbClPFtYuZmWXT6piGT2Y-O1B0BHsLPA_PixdQjU",
    // RFC 6979 appendix A.2.5
    "wfN1fOoeP56tgqJU5sTr6Jigqy7XelsHIrBHNaVORQE",
    // RFC 8032 section 7.1, TEST 2
    "y5uqYLiVnbV_Gro9TiRCjMMgGeiVXegRlXaW1d3znRA",
    // P-384, the private key 10
    "yTH1CWY97IZynVN7pd6oSwsJEJVOvMzoo-OWQmGhAPU",
    // P-256, the private key 13
    "yjNp7TyOcwERa45ndC0RvHZcAL1qXHN9YXKRfz8lDLc",
    // RFC 7515 appendix A.3
    "z8M-m6ZmLM-wTbN4BPy5-U_PAg5hS8kiH5AmtyQsR5o",
    // P-256, the private key 3
    "zYisE9yQD3TsDsn348lYc0Md6MpjQ72H_0AgSo7p36o",
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use curve25519_dalek::edwards::EdwardsPoint;
    use curve25519_dalek::scalar::Scalar;
    use ring::rand::SystemRandom;
    use ring::signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair,
        Ed25519KeyPair, KeyPair as _,
    };
    use serde_json::{Map, Value, json};

    use super::*;
    use crate::jose::jwk::Material;
    use crate::jose::{
        AuthenticatorKey, KeyError, KeySet, KeySetError, PublicKey, SigningKey, Usage, decode,
    };

    fn keys() -> Vec<(String, Map<String, Value>)> {
        let file: Value = serde_json::from_str(include_str!("published_keys.json")).expect("JSON");
        let keys = file.as_array().expect("an array").iter();
        keys.map(|key| {
            let source = key["source"].as_str().expect("text").to_owned();
            (source, key["jwk"].as_object().expect("an object").clone())
        })
        .collect()
    }

    fn bytes(jwk: &Map<String, Value>, member: &str) -> Vec<u8> {
        decode(jwk[member].as_str().expect("text")).expect("base64url")
    }

    fn public(mut jwk: Map<String, Value>) -> Value {
        jwk.remove("d");
        Value::Object(jwk)
    }

    #[test]
    fn table_holds_exactly_the_published_keys() {
        assert!(PUBLISHED.is_sorted());
        let identities: BTreeSet<String> = keys()
            .iter()
            .map(|(source, jwk)| {
                let kty = jwk["kty"].as_str();
                let read = Material::read(jwk, kty, Usage::Signature);
                let (material, _) = read.expect(source).expect("a known type");
                material.identity().to_string()
            })
            .collect();
        assert_eq!(
            identities,
            PUBLISHED.iter().map(|text| (*text).to_owned()).collect()
        );
    }

    /// Each private key is that of its public key. Of the moduli the factors are in their specifications.
    #[test]
    fn private_keys_are_known() {
        let random = SystemRandom::new();
        for (source, jwk) in keys() {
            match (jwk["kty"].as_str(), jwk.get("d")) {
                (Some("EC"), Some(_)) => {
                    let alg = match jwk["crv"].as_str() {
                        Some("P-256") => &ECDSA_P256_SHA256_FIXED_SIGNING,
                        _ => &ECDSA_P384_SHA384_FIXED_SIGNING,
                    };
                    let point = [&[4][..], &bytes(&jwk, "x"), &bytes(&jwk, "y")].concat();
                    let d = bytes(&jwk, "d");
                    EcdsaKeyPair::from_private_key_and_public_key(alg, &d, &point, &random)
                        .expect(&source);
                }
                (Some("OKP"), Some(_)) => {
                    let pair =
                        Ed25519KeyPair::from_seed_unchecked(&bytes(&jwk, "d")).expect(&source);
                    assert_eq!(pair.public_key().as_ref(), bytes(&jwk, "x"), "{source}");
                }
                (Some("OKP"), None) => {
                    let (_, scalar) = source.rsplit_once(' ').expect("a number");
                    let scalar = Scalar::from(scalar.parse::<u64>().expect("a number"));
                    let point = EdwardsPoint::mul_base(&scalar).compress();
                    assert_eq!(point.as_bytes()[..], bytes(&jwk, "x"), "{source}");
                }
                (kty, _) => assert_eq!(kty, Some("RSA"), "{source}"),
            }
        }
    }

    #[test]
    fn published_keys_are_refused_where_a_key_enters() {
        for (source, jwk) in keys() {
            let jwk = public(jwk);
            let mut entry = jwk.clone();
            entry["kid"] = json!("k");
            let set = json!({ "keys": [entry] }).to_string();
            let why = "its private key is published, so anyone can sign with it";
            assert_eq!(
                KeySet::parse(set.as_bytes(), Usage::Signature).err(),
                Some(KeySetError::Key(why)),
                "{source}"
            );
            if jwk["crv"] != "P-384" {
                assert_eq!(
                    AuthenticatorKey::from_jwk(&jwk).err(),
                    Some(KeyError::Published),
                    "{source}"
                );
            }
            if jwk["crv"] == "P-256" {
                assert_eq!(
                    PublicKey::from_jwk(&jwk),
                    Err(KeyError::Published),
                    "{source}"
                );
                let key = PublicKey::from_vector(&jwk).expect("on the curve");
                let [_, negated] = key.thumbprints();
                let other = key.negated();
                assert_eq!(other.thumbprint(), negated);
                assert_eq!(
                    PublicKey::from_jwk(&other.to_jwk()),
                    Err(KeyError::Published),
                    "the negative of {source}"
                );
            }
        }
        let fresh = SigningKey::generate().expect("key").0;
        assert!(!fresh.public().is_published());
    }
}
