//! Appends: the events that become entries together, and what their decision rests on.

use super::Blob;
use crate::model::{Claim, Entry, Event, Stream, Timestamp, Version};

/// The streams that a decision read, each with the version it had. Only a recording reader of state makes one that is not empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReadSet(Vec<(Stream, Version)>);

impl ReadSet {
    /// What a reader recorded: each stream once.
    pub(crate) const fn new(streams: Vec<(Stream, Version)>) -> Self {
        Self(streams)
    }

    /// Each stream with its version.
    pub fn iter(&self) -> impl Iterator<Item = &(Stream, Version)> {
        self.0.iter()
    }

    /// The version a stream had; `None` when it was not read.
    pub fn version_of(&self, stream: &Stream) -> Option<Version> {
        let read = self.0.iter().find(|(read, _)| read == stream)?;
        Some(read.1)
    }

    /// The same after an entry of the reader's own append: its streams have the versions that the entry gave them.
    pub(crate) fn advanced_by(mut self, entry: &Entry) -> Self {
        for (stream, version) in &mut self.0 {
            if entry
                .write_set
                .iter()
                .any(|(advanced, _)| advanced == stream)
            {
                *version = entry.index + 1;
            }
        }
        self
    }

    /// Without the counts: they change with every request, and none is worth to be asked again for.
    #[must_use]
    pub fn without_counts(mut self) -> Self {
        self.0
            .retain(|(stream, _)| !matches!(stream, Stream::Count(_)));
        self
    }

    /// Number of streams.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing was read.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// One event and the streams it advances, each with the version it had when the decision read it.
#[derive(Debug, Clone)]
pub(crate) struct NewEvent {
    pub(crate) event: Event,
    pub(crate) write_set: Vec<(Stream, Version)>,
    pub(crate) claims: Vec<Claim>,
}

/// Events that become entries together or not at all. Made by a round of [`crate::state::Read`], which recorded what it rests on.
#[derive(Debug, Clone)]
pub struct Append {
    pub(super) events: Vec<NewEvent>,
    pub(super) read_set: ReadSet,
    pub(super) not_after: Option<Timestamp>,
    pub(super) blobs: Vec<Blob>,
}

impl Append {
    /// An append of a round. A stream is advanced by one event at most. The read set has it too, at the version that was read.
    pub(crate) const fn new(
        events: Vec<NewEvent>,
        read_set: ReadSet,
        not_after: Option<Timestamp>,
        blobs: Vec<Blob>,
    ) -> Self {
        Self {
            events,
            read_set,
            not_after,
            blobs,
        }
    }

    /// An append of an event that rests on nothing and advances nothing, such as a count. The journal refuses every other kind.
    pub fn unread(event: Event) -> Self {
        let event = NewEvent {
            event,
            write_set: Vec::new(),
            claims: Vec::new(),
        };
        Self::new(vec![event], ReadSet::default(), None, Vec::new())
    }
}
