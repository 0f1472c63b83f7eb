//! Message limits that the listeners share.

/// Longest message either way, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;
