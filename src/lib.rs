//! Dipylon, a just-in-time credential broker: an agent proves what it is, names the one action it wants, and, only if
//! rules or people say yes to that action, gets a token that works for that action, for minutes, and dies with the task.
//!
//! ```text
//!  roof     serve (grpc, http, console)   cli (and the demo)   client   validator   parse, guard, translate; decide nothing
//!  3rd      broker: the broker                                                  the only place where rooms meet
//!  2nd      journal   clock   keys   config   telemetry                       the only places that touch the world
//!  1st      verify ══► approve ══► mint        state      audit               pure: value in, value out
//!  cellar   jose   rules   rates   webauthn                                   strict JOSE, Cedar, how much from whom, passkeys
//!  ground   model   card                           proto                      the words everyone speaks; the wire's words
//! ```
//!
//! One action, end to end: [`serve`] parses a call and hands it to the [`broker`]; [`verify`] makes `Attested`,
//! `Possession`, `Authenticated` and `Verified` (gate 1); [`approve`] turns `Verified` and an action into `Approved`, pending or
//! denied (gate 2); [`mint`] turns `Approved` into a signed token and the entry that must be durable first; the
//! [`journal`] appends it if nothing it rests on has moved; [`state`] folds it; only then does the token leave.
//!
//! Who may use whom: `model` uses nothing above it, `card` the model alone, `proto` both: the broker makes the card, the wire
//! carries it, and whoever reads it renders it with the same code. `jose` and `rules` use `model` (`rules` asks `jose`
//! whether a registered key is one), `webauthn` uses `jose` for what a passkey signed. `verify` uses the cellar, `approve`
//! the type `Verified`, two of state's records and `webauthn`, `mint` the types of `approve`. `state` folds the journal's
//! `Committed`, the journal walks with `audit`, which checks votes again with the cellar. The broker uses everything
//! below it; `serve` the broker, `card`, `proto` and the bounds in `config`; `client` and `validator` the model, `jose`,
//! `proto` and the clock, `client` the card too; `cli` the libraries, and for `serve` the broker. The broker and `serve` ask
//! `rates` how much and tell `telemetry` what happened.
//!
//! Absent on purpose: nothing under `card`, `verify`, `approve`, `mint`, `rules`, `jose`, `webauthn`, `state` or `audit`
//! performs I/O or reads a clock; no tonic type below `serve`; no way to a signature but through both gates; no cache of
//! decisions; no field of a message that says who is calling; no token, evidence or private key in any entry, log or error.

pub mod approve;
pub mod audit;
pub mod broker;
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
