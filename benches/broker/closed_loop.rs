//! Closed-loop load generator: latencies, throughput and processor time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::report::ms;

/// One slice of load: each call's time, the wall time and the processor time.
pub struct Slice {
    /// (start after the slice's start, duration), in nanoseconds.
    pub calls: Vec<(u64, u64)>,
    pub began: Instant,
    wall: Duration,
    cpu_ms: Cpu,
}

/// Milliseconds of processor time of the broker's threads and of the load generator's.
#[derive(Debug, Clone, Copy, Default)]
struct Cpu {
    broker: u64,
    load: u64,
}

/// Makes the calls with `in_flight` of them at a time; returns when all are done.
#[expect(
    clippy::disallowed_methods,
    reason = "a bench measures time; nothing is decided by it"
)]
pub async fn closed<T, F, Fut>(work: Vec<T>, in_flight: usize, call: F) -> Slice
where
    T: Send + 'static,
    F: Fn(usize, T) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let queue = Arc::new(Mutex::new(work.into_iter()));
    let call = Arc::new(call);
    let before = cpu();
    let began = Instant::now();
    let mut callers = Vec::new();
    for caller in 0..in_flight {
        let (queue, call) = (queue.clone(), call.clone());
        callers.push(tokio::spawn(async move {
            let mut calls = Vec::new();
            loop {
                let Some(item) = queue.lock().expect("queue").next() else {
                    return calls;
                };
                let start = began.elapsed();
                call(caller, item).await;
                let took = began.elapsed().saturating_sub(start);
                calls.push((nanos(start), nanos(took)));
            }
        }));
    }
    let mut calls = Vec::new();
    for caller in callers {
        calls.extend(caller.await.expect("a caller"));
    }
    let wall = began.elapsed();
    let after = cpu();
    Slice {
        calls,
        began,
        wall,
        cpu_ms: Cpu {
            broker: after.broker.saturating_sub(before.broker),
            load: after.load.saturating_sub(before.load),
        },
    }
}

/// The slices of one measurement.
#[derive(Default)]
pub struct Tally {
    nanos: Vec<u64>,
    wall: Duration,
    cpu_ms: Cpu,
    rates: Vec<f64>,
}

impl Tally {
    pub fn add(&mut self, slice: Slice) {
        self.rates
            .push(slice.calls.len() as f64 / slice.wall.as_secs_f64());
        self.nanos.extend(slice.calls.iter().map(|(_, took)| *took));
        self.wall += slice.wall;
        self.cpu_ms.broker += slice.cpu_ms.broker;
        self.cpu_ms.load += slice.cpu_ms.load;
    }

    /// Adds the slices of another tally.
    pub fn merge(&mut self, other: Self) {
        self.rates.extend(other.rates);
        self.nanos.extend(other.nanos);
        self.wall += other.wall;
        self.cpu_ms.broker += other.cpu_ms.broker;
        self.cpu_ms.load += other.cpu_ms.load;
    }

    pub fn percentile(&self, per_cent: usize) -> u64 {
        percentile(&self.nanos, per_cent)
    }

    /// Microseconds of the broker's threads for one call.
    pub fn broker_us(&self) -> f64 {
        self.cpu_ms.broker as f64 * 1e3 / self.nanos.len().max(1) as f64
    }

    pub fn summary(&self) -> String {
        format!(
            "{:>7.0} ops/s   p50 {:>9}   p99 {:>9}   cpu {:>4.0} µs",
            self.nanos.len() as f64 / self.wall.as_secs_f64(),
            ms(self.percentile(50)),
            ms(self.percentile(99)),
            self.broker_us()
        )
    }
}

/// The median over pairs of slices of throughput relative to the ceiling's.
pub fn ratio(thing: &Tally, ceiling: &Tally) -> f64 {
    let mut pairs: Vec<f64> = thing
        .rates
        .iter()
        .zip(&ceiling.rates)
        .map(|(a, b)| a / b)
        .collect();
    pairs.sort_by(f64::total_cmp);
    pairs.get(pairs.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Nearest-rank percentile.
pub fn percentile(values: &[u64], per_cent: usize) -> u64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let place = (sorted.len() * per_cent).div_ceil(100).saturating_sub(1);
    sorted.get(place).copied().unwrap_or(0)
}

pub fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The ticks of this process's threads so far, by their names. A tick is 10 ms, so only sums over many slices say much.
fn cpu() -> Cpu {
    let mut by_name: BTreeMap<bool, u64> = BTreeMap::new();
    for task in std::fs::read_dir("/proc/self/task")
        .expect("linux")
        .flatten()
    {
        let (Ok(name), Ok(stat)) = (
            std::fs::read_to_string(task.path().join("comm")),
            std::fs::read_to_string(task.path().join("stat")),
        ) else {
            continue;
        };
        // proc(5): utime and stime are fields 14 and 15; the name before them may hold anything.
        let fields: Vec<u64> = stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split(' ')
            .skip(12)
            .take(2)
            .filter_map(|n| n.parse().ok())
            .collect();
        *by_name.entry(name.starts_with("load")).or_default() += fields.iter().sum::<u64>();
    }
    let ms = |load| by_name.get(&load).copied().unwrap_or(0) * TICK_MS;
    Cpu {
        broker: ms(false),
        load: ms(true),
    }
}

/// USER_HZ is 100 on every Linux.
const TICK_MS: u64 = 10;
