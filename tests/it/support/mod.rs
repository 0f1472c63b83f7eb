//! Test support: a broker in this process with real keys, a real journal and a manual clock. Fakes stand only for the
//! outside world: the trust domain's signer and the people.

pub mod actions;
pub mod agent_in_task;
pub mod broker_deployment;
pub mod certificate_authority;
pub mod cli_deployment;
pub mod environment;
pub mod invariants;
pub mod jwt_crosscheck;
pub mod key_invariants;
pub mod many_rules;
pub mod own_key;
pub mod passkey_votes;
pub mod raw_http;
pub mod record_streams;
pub mod recovery;
pub mod requirement;
pub mod rounds;
pub mod served_broker;
pub mod software_authenticator;
pub mod stats_recount;
pub mod test_broker;
pub mod test_broker_calls;
pub mod transport_server;
pub mod wait;
pub mod weak_keys;

use dipylon_sdk::model::{HttpOrigin, Timestamp};

pub use actions::{action, disable, read_case};
pub use environment::{NO_LIMITS, TestEnvironment, silence, soc, write_policy};
pub use test_broker::{TestBroker, open_as, settings};
pub use test_broker_calls::{ExpectReply, TestAgent, first_inbox_page, refused};

pub const URL: &str = "http://127.0.0.1:7700";
pub const CONSOLE: &str = "http://localhost:7700";
pub const DOMAIN: &str = "soc.example";
pub const IDP: &str = "https://idp.soc.example";
pub const CASES: &str = "https://cases.soc.example";

pub const START: Timestamp = Timestamp::from_secs(1_800_000_000);

/// An origin of a test.
pub fn origin(url: &str) -> HttpOrigin {
    HttpOrigin::parse("url", url).expect("an origin")
}

pub fn rand_u64() -> u64 {
    use std::hash::{BuildHasher as _, Hasher as _};
    std::collections::hash_map::RandomState::new()
        .build_hasher()
        .finish()
}
