//! Dipylon, a just-in-time credential broker: an agent proves its identity, requests one action, and, if rules or approvers
//! allow that action, gets a token for that action alone, valid for minutes and revoked with its task.
//!
//! ```text
//! entry points     serve (grpc · http · console)   cli   client · validator     parse, authorize the call, translate; decide nothing
//! application      broker                                                       the only place where the layers below meet
//! infrastructure   journal · clock · keys · config · telemetry                  the only places that touch the world
//! domain           verify ═► approve ═► mint     state     audit                pure: values in, values out; `now` is an argument
//! foundations      jose · policy (Cedar) · rate_limit · webauthn · cache        tools of both gates
//! types            model · card · proto                                         ids, requests, entries; the wire
//! ```
//!
//! One action, end to end: [`serve`] parses a call and passes it to the [`broker`]; [`verify`] makes `Attested`,
//! `Possession`, `Authenticated` and `Verified` (gate 1); [`approve`] turns `Verified` and an action into `Approved`, pending or
//! denied (gate 2); [`mint`] turns `Approved` into a signed token and the entry that must be durable first; the
//! [`journal`] appends the entry if all that its round of [`state`] read is still current and the entry is legal in the state
//! before it; [`state`] applies it; only then is the token returned.
//!
//! Dependencies: `model` uses nothing above it, `card` only the model, `proto` both: the broker makes the card, the wire
//! carries it, and every client renders it with the same code. `jose` and `policy` use `model` (`policy` parses registered
//! keys with `jose`), `webauthn` uses `jose` for signatures of passkeys. `state` applies the journal's `Committed`, keeps
//! what `policy` and `jose` parsed of it, and hands it to decisions in rounds; its registry says whose each key is and
//! whether it lives. `verify` uses a round of `state` and the foundations, `approve` the type `Verified`, `webauthn` and the facts of `card` too,
//! `mint` the types of both. The journal checks each entry with the fold that `state` implements, and is verified by `audit`,
//! which also verifies receipts of tokens; votes and approvals on record are verified by `approve`, with the functions that
//! counted them. The broker uses everything below it; `serve` the broker, `card`, `proto` and the limits in `config`;
//! `client` and `validator` the model, `jose`, `proto` and the clock, `client` the card too; `cli` the libraries, for `audit
//! verify` `approve` and a `state` of its own, for `serve` and what the host's owner decides the broker. The broker and `serve` use
//! `rate_limit` and `telemetry`.
//!
//! Invariants: nothing under `card`, `verify`, `approve`, `mint`, `policy`, `jose`, `webauthn`, `state` or `audit` performs
//! I/O or reads a clock; no tonic type below `serve`; no token without both gates; no cache of decisions; no key of two
//! holders, and no dead key that acts; no message field that names the caller; no token, evidence or private key in any
//! entry, log or error.

pub mod approve;
pub mod audit;
pub mod broker;
mod cache;
pub mod cli;
pub mod config;
pub mod journal;
pub mod keys;
pub mod mint;
pub mod policy;
pub mod rate_limit;
pub mod serve;
pub mod state;
pub mod telemetry;
pub mod verify;
pub mod webauthn;

#[allow(
    unused_imports,
    reason = "one alias for each module of the SDK that the broker shares"
)]
pub(crate) use dipylon_sdk::{card, client, clock, jose, model, proto, validator};
