//! Bounded waits for conditions and events. The bound is generous: it ends a hanging test, and decides no assertion.

use std::time::Duration;

/// Limit for conditions that must hold eventually.
const GENEROUS: Duration = Duration::from_secs(60);

/// Waits until a condition holds; the test fails if it never does.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..GENEROUS.as_millis() / 10 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("timed out: {what}");
}

pub async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(GENEROUS, future).await {
        Ok(value) => value,
        Err(_) => panic!("timed out: {what}"),
    }
}
