//! Governance: policy bundles, suspending agents, freezes, and revocations not yet recorded.

pub(in crate::broker) mod agents;
mod append;
pub(in crate::broker) mod bootstrap;
pub(in crate::broker) mod freeze;
pub(in crate::broker) mod pending_revocation;
pub(in crate::broker) mod policy;
