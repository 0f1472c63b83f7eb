//! Named facts on record: the last setting of each, and the values that entries gave it.
//!
//! In: entries that set a fact or put a bundle in force. Out: the value of a fact at a moment, and which values it has had since an
//! entry. A value that is over by time needs no entry; a value that ended a token is never forgotten.

use crate::journal::Committed;
use crate::model::*;
use crate::policy::{DeclaredFact, PolicyBundle};

use super::State;
use super::records::AccessEvent;

/// The last setting of a named fact.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct FactSetting {
    /// The entry's body.
    pub set: FactSet,
    /// The operator's reason, unverified text; absent when none was given or retention dropped it.
    pub reason: Option<UntrustedText>,
    /// Index of the entry.
    pub index: u64,
    /// The entry's time.
    pub at: Timestamp,
}

impl FactSetting {
    /// Whether the fact has the value that it was set to, and not its normal one: its time is not over.
    pub fn stands(&self, declared: &DeclaredFact, now: Timestamp) -> bool {
        let set = &self.set;
        set.value != declared.normal
            && set.until.is_some_and(|until| now < until)
            && self.is_of(declared)
    }

    /// Whether a bundle that declares the fact so keeps the setting: the value is safe, or all is declared as it was.
    pub fn is_of(&self, declared: &DeclaredFact) -> bool {
        self.set.value == declared.safe || self.set.declared == declared.digest()
    }
}

/// The values that a fact has had by entries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct FactHistory {
    /// Index of the last entry by which it was false.
    pub last_false: Option<u64>,
    /// Index of the last entry by which it was true.
    pub last_true: Option<u64>,
}

impl FactHistory {
    /// The same with a value that the entry at this index gives it.
    pub const fn with(self, value: bool, index: u64) -> Self {
        match value {
            true => Self {
                last_true: Some(index),
                ..self
            },
            false => Self {
                last_false: Some(index),
                ..self
            },
        }
    }

    /// Whether an entry after this index gave it this value.
    pub fn had(self, value: bool, after: u64) -> bool {
        let last = match value {
            true => self.last_true,
            false => self.last_false,
        };
        last.is_some_and(|index| index > after)
    }
}

impl State {
    /// The value of a fact at a moment, and when it is its normal one again.
    pub(super) fn fact_value(
        &self,
        fact: &DeclaredFact,
        now: Timestamp,
    ) -> (bool, Option<Timestamp>) {
        let setting = self.facts.get(&fact.name);
        let standing = setting.filter(|setting| setting.stands(fact, now));
        standing.map_or((fact.normal, None), |setting| {
            (setting.set.value, setting.set.until)
        })
    }

    /// Remembers that the entry at this index gives a fact this value.
    fn note_fact(&self, name: &FactName, value: bool, index: u64) {
        self.fact_histories
            .update_or_default(name.clone(), |history| {
                *history = history.with(value, index)
            });
    }

    /// Keeps a setting. What others agreed to was for the fact as it was: the proposals about it end.
    pub(super) fn apply_fact_set(&self, f: &FactSet, committed: &Committed) {
        let entry = committed.entry();
        let reason = f.reason.and_then(|hash| committed.blob(&hash));
        let setting = FactSetting {
            set: f.clone(),
            reason: reason.and_then(|text| UntrustedText::from_blob(text)),
            index: entry.index,
            at: entry.at,
        };
        let before = self.facts.get(&f.fact).and_then(|before| before.set.until);
        self.note_fact(&f.fact, f.value, entry.index);
        if f.until.is_some() && f.until < before {
            // What was issued until then meets the normal value earlier.
            self.note_fact(&f.fact, !f.value, entry.index);
        }
        self.facts.insert(f.fact.clone(), setting);
        if let Some(id) = f.proposal {
            self.apply_access_event(id, AccessEvent::Applied, entry);
        }
        self.close_proposals(entry, |by| by.proposed.fact() == Some(&f.fact));
    }

    /// What a bundle in force makes of the settings, and the value that each of its facts has under it.
    pub(super) fn apply_declared_facts(&self, bundle: &PolicyBundle, entry: &Entry) {
        // INVARIANT (what a bundle takes back is gone): no later bundle brings a value back.
        for (name, setting) in self.facts.all() {
            let declared = bundle.fact(&name);
            if !declared.is_some_and(|declared| setting.is_of(declared)) {
                self.facts.remove(&name);
            }
        }
        for declared in bundle.facts() {
            let (value, _) = self.fact_value(declared, entry.at);
            self.note_fact(&declared.name, value, entry.index);
        }
    }
}
