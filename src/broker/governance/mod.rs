//! Governance: applying policy bundles, suspending agents, freezing, revocations that wait for the journal.

pub(in crate::broker) mod freeze;
pub(in crate::broker) mod pending_revocation;
pub(in crate::broker) mod policy;
