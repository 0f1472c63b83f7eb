//! Client and validator for Dipylon, the just-in-time credential broker.
//!
//! [`client`] is for agents, approvers and operators: open a task, request a token for one action, vote.
//! [`validator`] is for resource servers: check a token offline, follow revocations, consume a single-use token.

#[cfg(any(feature = "client", feature = "validator"))]
pub mod client;
pub mod model;
#[cfg(feature = "validator")]
pub mod validator;

/// Declares modules that only the broker sees from outside, through the feature `internals`.
macro_rules! internal {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        #[cfg(feature = "internals")]
        $(#[$doc])*
        pub mod $name;
        #[cfg(not(feature = "internals"))]
        #[allow(dead_code, unused_imports, reason = "the broker uses the rest")]
        mod $name;
    )*};
}

internal! { proto }

pub mod card;
pub mod clock;
pub mod jose;
