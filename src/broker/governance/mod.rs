//! Governance: applying policy bundles, suspending agents, freeze_append, revocations that wait for the journal.

pub(in crate::broker) mod freeze;
pub(in crate::broker) mod pending_revocation;
pub(in crate::broker) mod policy;
