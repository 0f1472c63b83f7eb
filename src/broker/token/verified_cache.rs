//! Cache of verified tokens.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::jose::KeySet;
use crate::model::{Digest, KeyId, TokenId};

/// Tokens issued here whose signature and claims were verified, by SHA-256 of the whole token and bound to one key set.
/// Whether the grant is active, and for which audience, is never cached.
#[derive(Debug, Default)]
pub(in crate::broker) struct VerifiedTokenCache(Mutex<Generations>);

/// Two generations, so that eviction drops one of them.
#[derive(Debug, Default)]
struct Generations {
    keys: Option<Arc<KeySet>>,
    recent: HashMap<Digest, (TokenId, KeyId)>,
    previous: HashMap<Digest, (TokenId, KeyId)>,
}

/// Tokens of one generation; about 100 bytes each.
const GENERATION_MAX: usize = 65_536;

impl VerifiedTokenCache {
    /// The grant and signing key of a token that was verified under this key set.
    pub(in crate::broker) fn get(
        &self,
        keys: &Arc<KeySet>,
        text: &Digest,
    ) -> Option<(TokenId, KeyId)> {
        let cached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !cached.keys.as_ref().is_some_and(|of| Arc::ptr_eq(of, keys)) {
            return None;
        }
        cached
            .recent
            .get(text)
            .or_else(|| cached.previous.get(text))
            .cloned()
    }

    /// Adds a token that was verified.
    pub(in crate::broker) fn insert(
        &self,
        keys: &Arc<KeySet>,
        text: Digest,
        jti: TokenId,
        kid: KeyId,
    ) {
        let mut cached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !cached.keys.as_ref().is_some_and(|of| Arc::ptr_eq(of, keys)) {
            *cached = Generations {
                keys: Some(keys.clone()),
                ..Generations::default()
            };
        }
        if cached.recent.len() >= GENERATION_MAX {
            cached.previous = std::mem::take(&mut cached.recent);
        }
        cached.recent.insert(text, (jti, kid));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jose::SigningKey;

    fn keys() -> Arc<KeySet> {
        let key = SigningKey::generate().expect("key").0;
        let kid = KeyId::from_thumbprint(key.thumbprint());
        Arc::new(KeySet::from_keys([(kid, key.public())]).expect("set"))
    }

    #[test]
    fn cache_is_bound_to_the_key_set() {
        let (cache, ours, others) = (VerifiedTokenCache::default(), keys(), keys());
        let (text, jti) = (Digest::sha256(b"token"), TokenId::from_random([1; 16]));
        let kid = KeyId::parse("kid").expect("kid");
        assert_eq!(cache.get(&ours, &text), None);
        cache.insert(&ours, text, jti, kid.clone());
        assert_eq!(cache.get(&ours, &text), Some((jti, kid.clone())));
        assert_eq!(cache.get(&ours, &Digest::sha256(b"tokem")), None);
        assert_eq!(cache.get(&others, &text), None);
        cache.insert(&others, Digest::sha256(b"other"), jti, kid);
        assert_eq!(cache.get(&ours, &text), None, "the old keys are gone");
        assert_eq!(cache.get(&others, &text), None);
    }

    #[test]
    fn cache_size_is_bounded() {
        let (cache, keys) = (VerifiedTokenCache::default(), keys());
        let kid = KeyId::parse("kid").expect("kid");
        for n in 0..3 * GENERATION_MAX {
            let jti = TokenId::from_random([1; 16]);
            cache.insert(&keys, Digest::sha256(&n.to_be_bytes()), jti, kid.clone());
        }
        let cached = cache.0.lock().expect("lock");
        assert_eq!(
            cached.recent.len() + cached.previous.len(),
            2 * GENERATION_MAX
        );
    }
}
