#![doc = include_str!("../README.md")]
//!
//! # Modules
//!
//! [`client`] calls the broker; [`validator`] checks tokens offline; [`model`] has the types of both: ids, actions, reasons;
//! [`card`] is what an approver sees; [`jose`] has the keys; [`clock`] the time.

#![deny(missing_docs)]

pub mod card;
#[cfg(any(feature = "client", feature = "validator"))]
pub mod client;
pub mod clock;
#[cfg_attr(
    not(feature = "internals"),
    allow(dead_code, unused_imports, reason = "the broker uses the rest")
)]
pub mod jose;
pub mod model;
#[cfg(feature = "validator")]
pub mod validator;

// Shared with the broker, no promise of stability.
#[cfg(feature = "internals")]
pub mod proto;
#[cfg(not(feature = "internals"))]
#[allow(dead_code, unused_imports, reason = "the broker uses the rest")]
mod proto;
