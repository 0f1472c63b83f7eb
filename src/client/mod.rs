//! What agents, approvers and operators link: calls with proofs, nonces, retries and evidence taken care of.
//!
//! In: a broker's URL (and, where it is not the network's, the way to it), keys, evidence, and words of the model. Out: typed answers, or an [`Error`].
//! Trusts: its own keys; of the broker's answers only their form, and of a vote's statement nothing that the approver did
//! not see ([`ballot`]).
//! Refuses: to sign a statement that says anything else than the card; URLs that a proof could not name.
//! Never: shows a token, evidence or a key in an error or in `Debug`, stores a token, or retries what could happen twice.

mod agent;
mod answer;
pub mod ballot;
mod channel;
mod error;
mod evidence;
pub(crate) mod http;
mod person;
mod route;
#[cfg(test)]
mod tests;
mod watch;
mod workload_api;

pub use agent::{Agent, OpenTask, Task, TokenOrder};
pub use answer::{Denied, Headers, Outcome, Pending, Token};
pub use channel::{Endpoint, Identity};
pub(crate) use channel::{Order, methods, pause_ms};
pub use error::{Error, Refused};
pub use evidence::{EvidenceError, EvidenceSource};
pub use person::Person;
pub use route::Reach;
pub(crate) use route::{Protocol, Route};
pub use watch::Watch;
pub use workload_api::WorkloadApi;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::{SecureRandom as _, SystemRandom};

/// 128 random bits, base64url: a proof's `jti`, an idempotency key.
pub(crate) fn random_name() -> Result<String, Error> {
    Ok(URL_SAFE_NO_PAD.encode(random::<16>()?))
}

pub(crate) fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| Error::NoRandomness)?;
    Ok(bytes)
}
