//! Journal entries: the envelope of an event, stored as canonical JSON.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::json::{self, JsonError};
use super::*;

/// One journal entry. Stored as canonical JSON, exactly as hashed; `index` is its Merkle leaf.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Version of the stored form: [`ENTRY_FORM`].
    pub v: u32,
    /// The incarnation of the journal: positions of different epochs do not compare.
    pub epoch: u64,
    /// Position in the journal, from 0 without gaps.
    pub index: u64,
    /// The writer's clock; never before that of the previous entry.
    pub at: Timestamp,
    /// Streams that this entry advances, with the versions they had before it.
    pub write_set: Vec<(Stream, Version)>,
    /// Streams that the decision read and no entry of its append advances, with the versions they had.
    pub read_set: Vec<(Stream, Version)>,
    /// Counts that this entry adds to, with their ceilings.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub claims: Vec<Claim>,
    /// The event.
    #[serde(flatten)]
    pub event: Event,
}

impl Entry {
    /// The exact bytes that are stored and hashed.
    pub fn canonical(&self) -> Result<String, JsonError> {
        json::canonical_of(self)
    }

    /// Parses stored bytes; refuses anything but the canonical form of a known entry.
    pub fn parse(text: &str) -> Result<Self, JsonError> {
        let mut value = json::parse(text.as_bytes())?;
        if let Some(form) = value.get("v").and_then(Value::as_u64)
            && form != u64::from(ENTRY_FORM)
        {
            return Err(JsonError::Form(form));
        }
        // serde cannot refuse unknown members beside a flattened enum, so envelope and event are parsed separately.
        let event = match &mut value {
            Value::Object(members) => {
                let (kind, body) = (members.remove("kind"), members.remove("body"));
                let mut event = serde_json::Map::new();
                event.extend(kind.map(|k| ("kind".to_owned(), k)));
                event.extend(body.map(|b| ("body".to_owned(), b)));
                serde_json::from_value(Value::Object(event))?
            }
            _ => return Err(JsonError::Number),
        };
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Envelope {
            v: u32,
            epoch: u64,
            index: u64,
            at: Timestamp,
            write_set: Vec<(Stream, Version)>,
            read_set: Vec<(Stream, Version)>,
            #[serde(default)]
            claims: Vec<Claim>,
        }
        let Envelope {
            v,
            epoch,
            index,
            at,
            write_set,
            read_set,
            claims,
        } = serde_json::from_value(value)?;
        let entry = Self {
            v,
            epoch,
            index,
            at,
            write_set,
            read_set,
            claims,
            event,
        };
        // One form of one entry: what may be absent is absent when it is empty.
        if entry.canonical()? != text {
            return Err(JsonError::NotCanonical);
        }
        Ok(entry)
    }
}

/// Version of the stored form of entries.
pub const ENTRY_FORM: u32 = 2;

/// Longest entry, in bytes of its canonical form; larger content is stored in blobs.
pub const ENTRY_BYTES_MAX: usize = 32 * 1024;
