//! Disk baseline: the time of one durable append, without the broker.

use std::io::Write as _;
use std::time::Instant;

use super::Counts;
use super::closed_loop::{nanos, percentile};
use super::report::{Report, ms};
use super::setup::BenchSetup;

/// Bytes of one write: about one grant.
const WRITE_BYTES: usize = 2_048;

#[expect(
    clippy::disallowed_methods,
    reason = "a bench measures time; nothing is decided by it"
)]
pub fn probe(setup: &BenchSetup, counts: &Counts, report: &mut Report) {
    let path = setup.served.dir.with_file_name("probe");
    let mut file = std::fs::File::create(path).expect("file");
    let mut times = Vec::new();
    for _ in 0..counts.alone {
        let start = Instant::now();
        file.write_all(&[7; WRITE_BYTES]).expect("written");
        file.sync_data().expect("durable");
        times.push(nanos(start.elapsed()));
    }
    let shown = format!(
        "p50 {}   p99 {}",
        ms(percentile(&times, 50)),
        ms(percentile(&times, 99))
    );
    report.part("The disk");
    report.line("append 2 KiB and fdatasync", &shown);
}
