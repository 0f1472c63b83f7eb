//! Verified token cache: tokens issued here whose signature was verified before.

use std::sync::{Arc, Mutex, PoisonError};

use crate::cache::GenerationalCache;
use crate::jose::KeySet;
use crate::model::{Digest, KeyId, TokenId};

/// Tokens issued here whose signature and claims were verified, by SHA-256 of the whole token and bound to one key set.
/// Whether the grant is active, and for which audience, is never cached.
#[derive(Debug, Default)]
pub(in crate::broker) struct VerifiedTokenCache(Mutex<Option<TokensOfKeySet>>);

#[derive(Debug)]
struct TokensOfKeySet {
    keys: Arc<KeySet>,
    tokens: GenerationalCache<Digest, (TokenId, KeyId)>,
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
        let cached = cached.as_ref().filter(|c| Arc::ptr_eq(&c.keys, keys))?;
        cached.tokens.get(text).cloned()
    }

    /// Adds a token that was verified; another key set empties the cache.
    pub(in crate::broker) fn insert(
        &self,
        keys: &Arc<KeySet>,
        text: Digest,
        jti: TokenId,
        kid: KeyId,
    ) {
        let mut cached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = cached.take().filter(|c| Arc::ptr_eq(&c.keys, keys));
        let cached = cached.insert(kept.unwrap_or_else(|| TokensOfKeySet {
            keys: keys.clone(),
            tokens: GenerationalCache::new(GENERATION_MAX),
        }));
        cached.tokens.insert(text, (jti, kid), 1);
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
        let (recent, previous) = cached.as_ref().expect("tokens").tokens.len();
        assert_eq!(recent + previous, 2 * GENERATION_MAX);
    }
}
