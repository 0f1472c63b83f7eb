//! Benchmark report: one line per measurement, with its ceiling, their ratio and the design goal.

use std::time::Instant;

pub struct Report {
    began: Instant,
}

impl Report {
    #[expect(
        clippy::disallowed_methods,
        reason = "a bench measures time; nothing is decided by it"
    )]
    pub fn begin() -> Self {
        println!("dipylon {}, {}", env!("CARGO_PKG_VERSION"), machine());
        println!("load average at the start: {}", load_average());
        println!(
            "ops/s and percentiles are of calls; cpu is of the broker's threads for one call\n"
        );
        Self {
            began: Instant::now(),
        }
    }

    pub fn part(&mut self, title: &str) {
        println!("\n{title}");
    }

    pub fn line(&mut self, what: &str, measured: &str) {
        println!("  {what:<44} {measured}");
    }

    /// A ratio beside the design goal.
    pub fn ratio(&mut self, what: &str, ratio: f64, goal: &str) {
        println!("  {what:<44} {ratio:.2}   (goal: {goal})");
    }

    pub fn end(self) {
        println!("\nload average at the end: {}", load_average());
        println!("took {:.0} s", self.began.elapsed().as_secs_f64());
    }
}

fn machine() -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map(|rest| rest.trim_start_matches([' ', '\t', ':']).to_owned())
        .unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let build = if cfg!(debug_assertions) {
        "debug build: numbers are meaningless"
    } else {
        "release build"
    };
    format!("{build}, {cores} cores of {model}")
}

fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// Milliseconds, three decimals below ten.
pub fn ms(nanos: u64) -> String {
    let ms = nanos as f64 / 1e6;
    if ms < 10.0 {
        format!("{ms:.3} ms")
    } else {
        format!("{ms:.1} ms")
    }
}
