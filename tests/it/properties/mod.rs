//! Property tests: INV-1 to INV-5 and INV-7 to INV-12 over random histories of requests, votes, policy changes, time, ends, crashes and
//! restarts. After each step [`crate::support::invariants`] checks the journal, which must hold all acknowledged work.

mod changes;
mod operations;
mod plans;
mod simulation;
mod untrusted_bytes;

use proptest::prelude::*;

use crate::properties::operations::{Op, op};
use crate::properties::simulation::Simulation;
use crate::support::record_streams::check_streams;
use crate::support::stats_recount::recount;

fn cases() -> u32 {
    std::env::var("DIPYLON_CASES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(24)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn journal_invariants_hold(ops in prop::collection::vec(op(), 20..60)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
        runtime.block_on(async {
            let mut run = Simulation::new().await;
            for agent in 0..2 {
                run.step(&Op::Open { agent, request: 9 }).await;
            }
            for op in &ops {
                run.step(op).await;
            }
            recount(&run.b().dir, run.b().broker.show());
            check_streams(&run.b().dir);
        });
    }
}
