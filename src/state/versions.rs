//! Stream versions: how a reader takes a value and its version in one piece, without a lock.
//!
//! The one writer marks the streams of an entry, changes the records, then publishes the new versions. A reader takes the version of a
//! stream before the record. A stream that it finds marked ends its round; a stream that moves after the reader took its version makes
//! the append conflict, and an answer not hold. So no decision rests on a record that is newer or older than the version it names.

use serde_json::{Value, json};

use super::concurrent_map::CopyMap;
use super::sorted;
use crate::model::{Stream, Version};

/// The version of every stream that an entry has advanced.
#[derive(Debug, Default)]
pub(super) struct Versions(CopyMap<Stream, Version>);

/// The mark of a stream while the records under it change: no append expects it.
pub(super) const MOVING: Version = Version::MAX;

impl Versions {
    /// The version of a stream; 0 for one that no entry has advanced, [`MOVING`] while one does.
    pub(super) fn get(&self, stream: &Stream) -> Version {
        self.0.get(stream).unwrap_or(0)
    }

    /// Marks the streams that an entry advances.
    pub(super) fn begin(&self, write_set: &[(Stream, Version)]) {
        for (stream, _) in write_set {
            self.0.insert(stream.clone(), MOVING);
        }
    }

    /// Publishes the version that an entry gives its streams.
    pub(super) fn publish(&self, write_set: &[(Stream, Version)], version: Version) {
        for (stream, _) in write_set {
            self.0.update(stream, |_| version);
        }
    }

    pub(super) fn canonical_snapshot(&self) -> Value {
        let row = |(stream, version): (Stream, Version)| json!([stream, version]);
        sorted(self.0.all()).into_iter().map(row).collect()
    }
}
