//! Offline validation: the validator's check of token and proof, beside the two signature verifications it needs.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use dipylon_sdk::clock::Clock;
use dipylon_sdk::jose::{PublicKey, dpop};
use dipylon_sdk::validator::{PresentedToken, RequiredAction, Validator};

use super::Counts;
use super::calls::tokens;
use super::closed_loop::nanos;
use super::report::Report;
use super::setup::{BenchSetup, TaskHolder, unique_number};
use crate::support::{CASES, read_case};

const URL: &str = "https://cases.soc.example/cases/INC-8841";
const TASKS: usize = 16;

pub fn run(setup: &BenchSetup, counts: &Counts, report: &mut Report) {
    report.part("Offline validation, one thread");
    let holders = setup.tasks("triage", TASKS);
    let tokens = tokens(setup, &holders);
    let validator = setup.load.block_on(setup.served.validator("cases", CASES));
    let signer = PublicKey::from_jwk(&setup.served.broker.jwks()["keys"][0]).expect("key");
    let (mut whole, mut bare) = (Duration::ZERO, Duration::ZERO);
    let mut ratios = Vec::new();
    let done = counts.rounds * counts.crowd;
    for _ in 0..counts.rounds {
        let shown = present(&holders, &tokens, counts.crowd);
        let signatures = time(|| signatures(&holders, &signer, &shown));
        let checks = setup.load.block_on(check(&validator, &shown));
        ratios.push(checks.as_secs_f64() / signatures.as_secs_f64());
        whole += checks;
        bare += signatures;
    }
    ratios.sort_by(f64::total_cmp);
    let shown = |time: Duration| {
        let us = nanos(time) as f64 / 1e3 / done as f64;
        format!("{:>7.0} checks/s   {us:.1} µs each", 1e6 / us)
    };
    report.line("token, proof, revocations, action", &shown(whole));
    report.line("the two signatures alone", &shown(bare));
    report.ratio(
        "check / signatures",
        ratios[ratios.len() / 2],
        "at most 1.30",
    );
}

/// A token and a DPoP proof for one request, with the index of its task.
struct IssuedTokenWithProof {
    holder: usize,
    token: String,
    proof: String,
}

fn present(holders: &[TaskHolder], tokens: &[String], count: usize) -> Vec<IssuedTokenWithProof> {
    let places = (0..holders.len()).cycle().take(count);
    places
        .map(|place| {
            let token = tokens[place].clone();
            let claims = dpop::ProofClaims {
                htm: "GET",
                htu: URL,
                iat: Clock::system().now(),
                jti: &format!("proof-{:016x}", unique_number()),
                nonce: None,
                ath: Some(dpop::ath(&token)),
                action_digest: None,
                evidence_hash: None,
            };
            let proof = dpop::create(&holders[place].key, &claims).expect("proof");
            IssuedTokenWithProof {
                holder: place,
                token,
                proof: proof.expose_secret().to_owned(),
            }
        })
        .collect()
}

#[expect(
    clippy::disallowed_methods,
    reason = "a bench measures time; nothing is decided by it"
)]
async fn check(validator: &Validator, shown: &[IssuedTokenWithProof]) -> Duration {
    let action = read_case();
    let require = RequiredAction {
        action: action.name,
        target: action.target,
        parameters: Some(action.parameters),
    };
    let openings = BTreeMap::new();
    let start = Instant::now();
    for issued in shown {
        let presented = PresentedToken {
            token: &issued.token,
            dpop: Some(&issued.proof),
            method: "GET",
            url: URL,
            openings: &openings,
        };
        validator
            .check(&presented, &require)
            .await
            .expect("admitted");
    }
    start.elapsed()
}

/// The signature verifications that no check of a token and a proof can omit.
fn signatures(holders: &[TaskHolder], signer: &PublicKey, shown: &[IssuedTokenWithProof]) {
    for issued in shown {
        for (text, key) in [
            (&issued.token, signer),
            (&issued.proof, holders[issued.holder].key.public()),
        ] {
            let (signed, signature) = text.rsplit_once('.').expect("three parts");
            let mut bytes = [0; 64];
            URL_SAFE_NO_PAD
                .decode_slice(signature, &mut bytes)
                .expect("a signature");
            assert!(key.verify(signed.as_bytes(), &bytes), "verifies");
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a bench measures time; nothing is decided by it"
)]
fn time(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}
