use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::jose::KeySet;
use crate::model::{Digest, KeyId, TokenId};

/// Tokens of ours that were read: exactly these bytes verified under one of these keys and say what their grant says. That
/// never changes, so it is not worked out twice; whether the grant lives, and for whom, is asked each time.
///
/// Known by the SHA-256 of the whole token: another signature, header or claim is another name.
#[derive(Debug, Default)]
pub(in crate::broker) struct Readings(Mutex<Generations>);

/// Two generations, so that forgetting is dropping one of them.
#[derive(Debug, Default)]
struct Generations {
    keys: Option<Arc<KeySet>>,
    young: HashMap<Digest, (TokenId, KeyId)>,
    old: HashMap<Digest, (TokenId, KeyId)>,
}

/// Tokens of one generation; about 100 bytes each.
const GENERATION_MAX: usize = 65_536;

impl Readings {
    /// The grant and signing key of a token that was read under these very keys; under others nothing was.
    pub(in crate::broker) fn of(
        &self,
        keys: &Arc<KeySet>,
        text: &Digest,
    ) -> Option<(TokenId, KeyId)> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !kept.keys.as_ref().is_some_and(|of| Arc::ptr_eq(of, keys)) {
            return None;
        }
        kept.young.get(text).or_else(|| kept.old.get(text)).cloned()
    }

    /// Notes that a token was read.
    pub(in crate::broker) fn note(
        &self,
        keys: &Arc<KeySet>,
        text: Digest,
        jti: TokenId,
        kid: KeyId,
    ) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !kept.keys.as_ref().is_some_and(|of| Arc::ptr_eq(of, keys)) {
            *kept = Generations {
                keys: Some(keys.clone()),
                ..Generations::default()
            };
        }
        if kept.young.len() >= GENERATION_MAX {
            kept.old = std::mem::take(&mut kept.young);
        }
        kept.young.insert(text, (jti, kid));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jose::SigningKey;

    fn keys() -> Arc<KeySet> {
        let key = SigningKey::generate().expect("key").0;
        let kid = KeyId::of(key.thumbprint());
        Arc::new(KeySet::from_keys([(kid, key.public())]).expect("set"))
    }

    #[test]
    fn nothing_was_read_under_other_keys() {
        let (readings, ours, others) = (Readings::default(), keys(), keys());
        let (text, jti) = (Digest::of(b"token"), TokenId::from_random([1; 16]));
        let kid = KeyId::parse("kid").expect("kid");
        assert_eq!(readings.of(&ours, &text), None);
        readings.note(&ours, text, jti, kid.clone());
        assert_eq!(readings.of(&ours, &text), Some((jti, kid.clone())));
        assert_eq!(readings.of(&ours, &Digest::of(b"tokem")), None);
        assert_eq!(readings.of(&others, &text), None);
        readings.note(&others, Digest::of(b"other"), jti, kid);
        assert_eq!(readings.of(&ours, &text), None, "the old keys are gone");
        assert_eq!(readings.of(&others, &text), None);
    }

    #[test]
    fn memory_is_bounded() {
        let (readings, keys) = (Readings::default(), keys());
        let kid = KeyId::parse("kid").expect("kid");
        for n in 0..3 * GENERATION_MAX {
            let jti = TokenId::from_random([1; 16]);
            readings.note(&keys, Digest::of(&n.to_be_bytes()), jti, kid.clone());
        }
        let kept = readings.0.lock().expect("lock");
        assert_eq!(kept.young.len() + kept.old.len(), 2 * GENERATION_MAX);
    }
}
