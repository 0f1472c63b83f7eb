//! Approval: access requests, cards, votes, inboxes and the streams that follow them.

pub(in crate::broker) mod access_request;
pub(in crate::broker) mod card;
mod dwell;
mod history;
pub(in crate::broker) mod inbox;
pub(in crate::broker) mod notifier;
pub(in crate::broker) mod progress;
pub(in crate::broker) mod read_access;
pub(in crate::broker) mod vote;
pub(in crate::broker) mod vote_options;
pub(in crate::broker) mod watch;
