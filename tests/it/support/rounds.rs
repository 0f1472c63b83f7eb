//! The rounds of calls: what comes between the last read of one and its append, and how many there were.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use dipylon::journal::FaultInjection;

type Waiting = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The hook of a broker that may be told what comes between.
#[derive(Clone, Default)]
pub struct Rounds(Arc<Mutex<Hook>>);

#[derive(Default)]
struct Hook {
    next: Vec<(&'static str, Waiting)>,
    made: BTreeMap<&'static str, usize>,
}

impl Rounds {
    pub fn faults(&self) -> FaultInjection {
        let hook = self.0.clone();
        let before_append = move |method: &'static str| -> Waiting {
            let mut hook = hook.lock().expect("hook");
            *hook.made.entry(method).or_default() += 1;
            match hook.next.iter().position(|(of, _)| *of == method) {
                Some(found) => hook.next.remove(found).1,
                None => Box::pin(std::future::ready(())),
            }
        };
        FaultInjection {
            before_append: Some(Arc::new(before_append)),
            ..FaultInjection::default()
        }
    }

    /// Runs something between the last read of a method's next round and its append; several, in the rounds after it.
    pub fn interpose(&self, method: &'static str, what: impl Future<Output = ()> + Send + 'static) {
        let mut hook = self.0.lock().expect("hook");
        hook.next.push((method, Box::pin(what)));
    }

    /// Whether all of it has come.
    pub fn is_spent(&self) -> bool {
        self.0.lock().expect("hook").next.is_empty()
    }

    /// Rounds of a method so far.
    pub fn made(&self, method: &str) -> usize {
        let hook = self.0.lock().expect("hook");
        hook.made.get(method).copied().unwrap_or(0)
    }
}
