//! Broker client for agents, approvers and operators, with DPoP proofs, nonces, retries and evidence.
//!
//! In: a broker's URL (and how to connect to it), keys, evidence, and types of the model. Out: plain values, or an [`Error`].
//! Trusts: its own keys; of the broker's responses only their form, and of a vote's statement nothing that the approver did
//! not see ([`vote`]).
//! Refuses: to sign a statement that differs from the card; URLs that a proof could not name; plain http to another host, unless
//! allowed.
//! Never: shows a token, evidence or a key in an error or in `Debug`, stores a token, or retries a call that is not idempotent.

mod agent;
mod approver;
mod channel;
mod connect_error;
mod error;
mod evidence;
#[cfg(all(feature = "validator", not(feature = "internals")))]
pub(crate) mod http;
#[cfg(feature = "internals")]
pub mod http;
mod operator;
mod policy_chunks;
mod responses;
mod task_handle;
#[cfg(test)]
mod tests;
mod token_outcome;
mod token_watch;
mod transport;
pub mod vote;
mod watch;
mod workload_api;

pub use agent::{AgentClient, OpenTaskRequest};
pub use approver::{ApproverClient, InboxWatcher};
pub(crate) use channel::{CallOptions, RpcMethod, backoff_ms, methods};
pub use channel::{Endpoint, Identity};
pub use error::{Error, RefusedCall};
pub use evidence::{EvidenceError, EvidenceSource};
pub use operator::OperatorClient;
pub use responses::*;
pub use task_handle::{TaskHandle, TokenRequest};
pub use token_outcome::{
    AccessToken, ApprovedRecommendation, Denial, DpopHeaders, PendingApproval, TokenOutcome,
};
pub use token_watch::TokenWatcher;
pub use transport::ConnectOptions;
#[cfg(all(feature = "validator", not(feature = "internals")))]
pub(crate) use transport::{Protocol, Transport};
#[cfg(feature = "internals")]
pub use transport::{Protocol, Transport};
pub use watch::AccessRequestWatcher;
pub use workload_api::WorkloadApi;

use crate::model::ParseError;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::{SecureRandom as _, SystemRandom};

/// A random name of 128 bits that the broker takes as an idempotency key, a use id or a proof's `jti`: `r` and base64url.
pub fn random_name() -> Result<String, Error> {
    Ok(format!("r{}", URL_SAFE_NO_PAD.encode(random::<16>()?)))
}

/// A field that the response must have.
fn required<T>(field: &'static str, value: Option<T>) -> Result<T, Error> {
    value.ok_or_else(|| Error::Answer(ParseError::new(field, "is required")))
}

pub(crate) fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| Error::NoRandomness)?;
    Ok(bytes)
}
