//! Chunks of policy bundles: the messages of an upload, and the files that the messages of a download make.

use std::collections::BTreeMap;

use super::responses::PolicyBundleContent;
use crate::model::{Digest, DigestPrefix, ParseError, PersonId, json};
use crate::proto::v1;

/// The last character boundary at or before `at`; `str::floor_char_boundary` needs a newer Rust than this crate.
fn char_boundary_below(text: &str, at: usize) -> usize {
    let boundaries = (0..=at.min(text.len())).rev();
    boundaries
        .into_iter()
        .find(|index| text.is_char_boundary(*index))
        .unwrap_or(0)
}

/// The files in chunks of at most [`CHUNK_BYTES_MAX`] bytes, split between characters; an empty file is one empty chunk.
pub(super) fn chunks(
    files: &BTreeMap<String, String>,
    returning: &[PersonId],
    base: Option<&Digest>,
) -> Vec<v1::ApplyPolicyBundleRequest> {
    let mut out = Vec::new();
    for (path, content) in files {
        let mut rest = content.as_str();
        loop {
            let (chunk, after) = rest.split_at(char_boundary_below(rest, CHUNK_BYTES_MAX));
            out.push(v1::ApplyPolicyBundleRequest {
                path: path.clone(),
                content: chunk.to_owned(),
                ..v1::ApplyPolicyBundleRequest::default()
            });
            if after.is_empty() {
                break;
            }
            rest = after;
        }
    }
    if let Some(first) = out.first_mut() {
        first.returning = returning.iter().map(PersonId::to_string).collect();
        first.base_version = base.map(Digest::to_string).unwrap_or_default();
    }
    out
}

/// The same for a plan of this many days.
pub(super) fn plan_chunks(
    files: &BTreeMap<String, String>,
    returning: &[PersonId],
    days: u32,
) -> Vec<v1::PlanPolicyBundleRequest> {
    let chunks = chunks(files, returning, None).into_iter();
    let chunk = |chunk: v1::ApplyPolicyBundleRequest| v1::PlanPolicyBundleRequest {
        path: chunk.path,
        content: chunk.content,
        days,
        returning: chunk.returning,
    };
    chunks.map(chunk).collect()
}

/// A policy bundle as its chunks arrive.
#[derive(Debug, Default)]
pub(super) struct BundleAssembly {
    version: Option<String>,
    files: BTreeMap<String, String>,
    bytes: usize,
}

impl BundleAssembly {
    /// Takes the next chunk.
    pub(super) fn add(&mut self, chunk: v1::GetPolicyBundleResponse) -> Result<(), ParseError> {
        let version = self.version.get_or_insert_with(|| chunk.version.clone());
        if *version != chunk.version {
            return Err(ParseError::new("version", "is another one in each message"));
        }
        let new_path = match self.files.contains_key(&chunk.path) {
            true => 0,
            false => chunk.path.len(),
        };
        self.bytes = self
            .bytes
            .saturating_add(chunk.content.len())
            .saturating_add(new_path);
        if self.bytes > BUNDLE_BYTES_MAX {
            return Err(ParseError::new("content", "is beyond 1 MiB in all"));
        }
        let file = self.files.entry(chunk.path).or_default();
        file.push_str(&chunk.content);
        Ok(())
    }

    /// The files, if they have the version that the broker names, and that was asked for.
    pub(super) fn finish(
        &mut self,
        asked: Option<&DigestPrefix>,
    ) -> Result<PolicyBundleContent, ParseError> {
        let files = std::mem::take(&mut self.files);
        let named = self.version.take().unwrap_or_default();
        let unreadable = |e: json::JsonError| ParseError::new("content", e.to_string());
        let canonical = json::canonical_of(&files).map_err(unreadable)?;
        let version = Digest::sha256(canonical.as_bytes());
        if version.to_string() != named {
            return Err(ParseError::new(
                "content",
                "has not the version that it is sent as",
            ));
        }
        if asked.is_some_and(|asked| !asked.matches(&version)) {
            return Err(ParseError::new(
                "version",
                "is another version than asked for",
            ));
        }
        Ok(PolicyBundleContent { version, files })
    }
}

/// Most bytes of one message of a policy upload: well below the broker's bound on a message.
const CHUNK_BYTES_MAX: usize = 32 * 1024;
/// Most bytes of the files of a policy bundle, paths included.
const BUNDLE_BYTES_MAX: usize = 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policy_upload_chunks_reassemble() {
        let files = BTreeMap::from([
            ("a.cedar".to_owned(), String::new()),
            ("b.cedar".to_owned(), "x".repeat(CHUNK_BYTES_MAX)),
            // Three bytes each: no chunk may split one.
            ("c.toml".to_owned(), "王".repeat(CHUNK_BYTES_MAX)),
        ]);
        let chunks = chunks(&files, &[], None);
        assert_eq!(chunks.len(), 1 + 1 + 4);
        assert!(
            chunks
                .iter()
                .all(|chunk| chunk.content.len() <= CHUNK_BYTES_MAX)
        );
        let mut back: BTreeMap<String, String> = BTreeMap::new();
        for chunk in chunks {
            back.entry(chunk.path).or_default().push_str(&chunk.content);
        }
        assert_eq!(back, files);
    }
}
