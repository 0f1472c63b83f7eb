//! Governance: policy bundles, named facts, suspending agents, freezes, and revocations not yet recorded.

pub(in crate::broker) mod agents;
pub(in crate::broker) mod bootstrap;
pub(in crate::broker) mod disallowed;
pub(in crate::broker) mod fact;
pub(in crate::broker) mod freeze;
pub(in crate::broker) mod pending_revocation;
pub(in crate::broker) mod plan;
pub(in crate::broker) mod policy;
pub(in crate::broker) mod proposal;
pub(in crate::broker) mod recovery;
pub(in crate::broker) mod restriction;
