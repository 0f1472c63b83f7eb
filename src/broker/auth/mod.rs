//! Authentication of callers: keys, sessions, passkeys and invitations, one-time codes, replay protection.

pub(in crate::broker) mod authentication;
pub(in crate::broker) mod enrolment;
pub(in crate::broker) mod one_time_code;
pub(in crate::broker) mod replay_cache;
pub(in crate::broker) mod session;
