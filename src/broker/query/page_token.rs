//! Page tokens: opaque positions in lists. A token is good for the list and the filter it was issued for, until the broker
//! restarts; every other one is refused.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::broker::Broker;
use crate::model::ParseError;

/// Issues and reads page tokens: a cursor after its MAC under a key of this process.
pub struct PageTokens {
    key: hmac::Key,
}

/// Bytes of the MAC at the beginning of a token.
const MAC_BYTES: usize = 16;
/// Longest token that is decoded, in bytes: cursors name one row.
const TOKEN_BYTES_MAX: usize = 1_024;
/// No other MAC here begins like this.
const TAG: &[u8] = b"dipylon/page/v1\0";

impl Broker {
    /// The page tokens of this process.
    pub const fn page_tokens(&self) -> &PageTokens {
        &self.page_tokens
    }
}

impl PageTokens {
    pub(in crate::broker) fn new(boot_key: &[u8; 32]) -> Self {
        Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, boot_key),
        }
    }

    /// The token of the page after the row at `cursor`. `list` names the list, `filter` all that selects its rows.
    pub fn issue<C: Serialize>(&self, list: &str, filter: &str, cursor: &C) -> String {
        // Cursors are plain records of ids and numbers, which serialize; an empty one would be refused when it is read.
        let cursor = serde_json::to_vec(cursor).unwrap_or_default();
        let mac = self.mac(list, filter, &cursor);
        let mac = mac.as_ref().iter().take(MAC_BYTES).copied();
        URL_SAFE_NO_PAD.encode(mac.chain(cursor).collect::<Vec<u8>>())
    }

    /// The cursor of a token; `None` for the empty one, which asks for the first page.
    pub fn read<C: DeserializeOwned>(
        &self,
        list: &str,
        filter: &str,
        token: &str,
    ) -> Result<Option<C>, ParseError> {
        if token.is_empty() {
            return Ok(None);
        }
        self.verified_cursor(list, filter, token)
            .and_then(|cursor| serde_json::from_slice(&cursor).ok())
            .map(Some)
            .ok_or_else(|| {
                ParseError::new(
                    "page_token",
                    "expected the token of the previous page of this list, with the same filter and from this run of the \
                     broker, got another one; start again without a token",
                )
            })
    }

    fn verified_cursor(&self, list: &str, filter: &str, token: &str) -> Option<Vec<u8>> {
        if token.len() > TOKEN_BYTES_MAX {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let (mac, cursor) = bytes.split_at_checked(MAC_BYTES)?;
        let full = self.mac(list, filter, cursor);
        // Constant time, as for every MAC.
        let differs = mac
            .iter()
            .zip(full.as_ref())
            .fold(0, |diff, (a, b)| diff | (a ^ b));
        (differs == 0).then(|| cursor.to_vec())
    }

    fn mac(&self, list: &str, filter: &str, cursor: &[u8]) -> hmac::Tag {
        let mut mac = hmac::Context::with_key(&self.key);
        mac.update(TAG);
        // With its length before it, no part can be taken for another.
        for part in [list.as_bytes(), filter.as_bytes(), cursor] {
            mac.update(&part.len().to_be_bytes());
            mac.update(part);
        }
        mac.sign()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// A token reads back where it was issued and nowhere else, and no change of it is accepted.
        #[test]
        fn token_is_bound_to_list_filter_and_process(
            lists in ("[a-zA-Z]{0,12}", "[a-zA-Z]{0,12}"),
            filters in (".{0,12}", ".{0,12}"),
            cursor in (any::<i64>(), ".{0,40}"),
            flip in any::<prop::sample::Index>(),
            garbage in ".{1,60}",
        ) {
            let (ours, others) = (PageTokens::new(&[1; 32]), PageTokens::new(&[2; 32]));
            let token = ours.issue(&lists.0, &filters.0, &cursor);
            let read = |tokens: &PageTokens, list: &str, filter: &str, token: &str| {
                tokens.read::<(i64, String)>(list, filter, token)
            };
            prop_assert_eq!(read(&ours, &lists.0, &filters.0, &token), Ok(Some(cursor)));
            prop_assert!(read(&others, &lists.0, &filters.0, &token).is_err());
            prop_assert!(lists.0 == lists.1 || read(&ours, &lists.1, &filters.0, &token).is_err());
            prop_assert!(filters.0 == filters.1 || read(&ours, &lists.0, &filters.1, &token).is_err());
            prop_assert!(read(&ours, &lists.0, &filters.0, &garbage).is_err());
            let mut bytes = token.clone().into_bytes();
            let place = flip.index(bytes.len());
            bytes[place] = if bytes[place] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(bytes).expect("ascii");
            prop_assert!(changed == token || read(&ours, &lists.0, &filters.0, &changed).is_err());
            prop_assert!(read(&ours, &lists.0, &filters.0, &(token.clone() + "A")).is_err());
            // A cursor of another shape is refused, not misread.
            prop_assert!(ours.read::<u64>(&lists.0, &filters.0, &token).is_err());
        }
    }

    #[test]
    fn empty_token_is_the_first_page() {
        let tokens = PageTokens::new(&[1; 32]);
        assert_eq!(tokens.read::<u64>("list", "", ""), Ok(None));
        let long = "A".repeat(TOKEN_BYTES_MAX + 1);
        assert!(tokens.read::<u64>("list", "", &long).is_err());
    }
}
