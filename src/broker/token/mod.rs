//! Tokens: requesting, issuing, denying, introspecting, watching, revoking, listing.

pub(in crate::broker) mod deny;
pub(in crate::broker) mod introspect;
pub(in crate::broker) mod issue;
pub(in crate::broker) mod list;
mod recommendation;
pub(in crate::broker) mod request;
pub(in crate::broker) mod revoke;
pub(in crate::broker) mod step_up;
pub(in crate::broker) mod verified_cache;
pub(in crate::broker) mod watch;
