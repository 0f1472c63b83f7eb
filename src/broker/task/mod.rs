//! Tasks: opening, heartbeats, ending.

pub(in crate::broker) mod end;
pub(in crate::broker) mod keep_alive;
pub(in crate::broker) mod open;
mod outage;
pub(in crate::broker) mod show;
