//! Records and streams, re-checked from a stored journal: an entry that changes what decisions read advances a stream under which
//! they read it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};

use dipylon::audit::JournalVerifier;
use dipylon::journal::{self, JournalReader};
use dipylon::state::{DecisionInput, State, StateFold};
use dipylon_sdk::model::Stream;

/// Replays a journal and asserts of every entry that no record changed under none of its streams.
pub fn check_streams(dir: &Path) {
    let inputs = |state: &State| -> BTreeMap<String, DecisionInput> {
        let all = state.show().decision_inputs().into_iter();
        all.map(|input| (input.name.clone(), input)).collect()
    };
    let state = Arc::new(State::with_bundles(super::invariants::PARSED.clone()));
    let before = Mutex::new(inputs(&state));
    let after = |committed: &journal::Committed| {
        let entry = committed.entry();
        let advanced: BTreeSet<&Stream> = entry.write_set.iter().map(|(s, _)| s).collect();
        let mut before = before.lock().expect("inputs");
        let now = inputs(&state);
        let names: BTreeSet<&String> = before.keys().chain(now.keys()).collect();
        for name in names {
            let (was, is) = (before.get(name), now.get(name));
            if was.map(|input| &input.value) == is.map(|input| &input.value) {
                continue;
            }
            let mut under = was.iter().chain(&is).flat_map(|input| &input.streams);
            assert!(
                under.any(|stream| advanced.contains(stream)),
                "entry {} ({}) changes {name} and advances none of its streams: {was:?}, {is:?}",
                entry.index,
                entry.event.kind()
            );
        }
        *before = now;
    };
    let mut fold = StateFold::new(Arc::clone(&state), after);
    let open = || JournalReader::open(dir).expect("journal");
    let mut verifier = JournalVerifier::default();
    journal::replay(&open(), &open(), &mut verifier, &mut fold, |_| Ok(())).expect("replays");
}
