//! Pages of lists, and the bounds that keep every answer within one message.

use prost::Message;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::broker::PageTokens;
use crate::model::ParseError;
use crate::serve::authorization::MethodPolicy;

/// The page of a list that a request names.
pub(super) struct PageQuery<'a, C> {
    tokens: &'a PageTokens,
    list: &'static str,
    filter: String,
    rows_max: usize,
    /// The row before the page; `None` for the first page.
    pub(super) after: Option<C>,
}

/// Most rows of a page.
const PAGE_ROWS_MAX: u32 = 100;
/// Most bytes of a page's rows: below the longest message, with room for the rest of it.
pub(super) const PAGE_BYTES_MAX: usize = 48 * 1024;
/// Tag and length of one row or text, in bytes.
const FRAME_BYTES: usize = 6;

impl<'a, C: Serialize + DeserializeOwned> PageQuery<'a, C> {
    /// Reads `page_size` (0 for the maximum) and `page_token` of a request to a list. `filter` is all else that selects rows.
    pub(super) fn parse(
        tokens: &'a PageTokens,
        method: &MethodPolicy,
        filter: String,
        page_size: u32,
        page_token: &str,
    ) -> Result<Self, ParseError> {
        let rows_max = match page_size {
            0 => PAGE_ROWS_MAX,
            1..=PAGE_ROWS_MAX => page_size,
            _ => {
                return Err(ParseError::new(
                    "page_size",
                    format!("expected at most {PAGE_ROWS_MAX}, got {page_size}"),
                ));
            }
        };
        Ok(Self {
            after: tokens.read(method.name, &filter, page_token)?,
            list: method.name,
            filter,
            rows_max: rows_max as usize,
            tokens,
        })
    }

    /// Rows to read: one more than the page has, which tells whether there is another page.
    pub(super) const fn rows_to_read(&self) -> usize {
        self.rows_max + 1
    }

    /// As many of the rows as the page and a message hold, at least one if there is one; and the token of the next page,
    /// empty on the last.
    pub(super) fn page<S, R: Message>(
        &self,
        rows: &[S],
        to_wire: impl Fn(&S) -> R,
        cursor: impl Fn(&S) -> C,
    ) -> (Vec<R>, String) {
        let page = fit_page(rows.iter().take(self.rows_max).map(to_wire));
        let last = page.len().checked_sub(1).and_then(|last| rows.get(last));
        let next = match last.filter(|_| page.len() < rows.len()) {
            Some(last) => self.tokens.issue(self.list, &self.filter, &cursor(last)),
            None => String::new(),
        };
        (page, next)
    }
}

/// As many rows as a message can hold; at least one, if there is one.
pub(super) fn fit_page<R: Message>(rows: impl Iterator<Item = R>) -> Vec<R> {
    let mut bytes = 0;
    let mut page = Vec::new();
    for row in rows {
        bytes += row.encoded_len() + FRAME_BYTES;
        if bytes > PAGE_BYTES_MAX && !page.is_empty() {
            break;
        }
        page.push(row);
    }
    page
}

/// As many of the items, from the first, as fit into `bytes_max` bytes of a message.
pub(super) fn fit_items<T>(
    items: impl IntoIterator<Item = T>,
    bytes_max: usize,
    bytes_of: impl Fn(&T) -> usize,
) -> Vec<T> {
    let mut left = bytes_max;
    let fits = |item: &T| match left.checked_sub(bytes_of(item) + FRAME_BYTES) {
        Some(rest) => {
            left = rest;
            true
        }
        None => false,
    };
    items.into_iter().take_while(fits).collect()
}

/// As many texts as fit into `bytes_max` bytes of a message, and the number of the others.
pub(super) fn fit_texts<T: ToString>(
    texts: impl ExactSizeIterator<Item = T>,
    bytes_max: usize,
) -> (Vec<String>, usize) {
    let all = texts.len();
    let kept = fit_items(texts.map(|text| text.to_string()), bytes_max, String::len);
    let left_out = all - kept.len();
    (kept, left_out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn texts_fit_and_none_is_lost(
            texts in prop::collection::vec(".{0,40}", 0..40),
            bytes_max in 0_usize..600,
        ) {
            let (kept, left_out) = fit_texts(texts.iter(), bytes_max);
            prop_assert_eq!(kept.len() + left_out, texts.len());
            prop_assert_eq!(&kept[..], &texts[..kept.len()]);
            let bytes: usize = kept.iter().map(|text| text.len() + FRAME_BYTES).sum();
            prop_assert!(bytes <= bytes_max);
            let next = texts.get(kept.len());
            prop_assert!(next.is_none_or(|next| bytes + next.len() + FRAME_BYTES > bytes_max));
        }
    }
}
