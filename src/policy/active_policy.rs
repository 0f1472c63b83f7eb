//! The active policy: a bundle in effect, with its callers by key.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::PolicyBundle;
use crate::model::{PersonId, ServiceId, SpiffeId, Thumbprint};

/// A policy bundle in force, and the registered callers by what they call with.
#[derive(Debug)]
pub struct ActivePolicy {
    /// The bundle.
    pub bundle: Arc<PolicyBundle>,
    by_key: HashMap<Thumbprint, RegisteredCaller>,
    by_spiffe_id: BTreeMap<SpiffeId, RegisteredCaller>,
}

/// A registered person or service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegisteredCaller {
    /// An approver or operator.
    Person(PersonId),
    /// A validator or auditor.
    Service(ServiceId),
}

impl ActivePolicy {
    /// Indexes the callers of a bundle.
    pub fn new(bundle: Arc<PolicyBundle>) -> Self {
        let mut by_key = HashMap::new();
        let mut by_spiffe_id = BTreeMap::new();
        let people = bundle
            .people()
            .map(|p| (&p.keys, RegisteredCaller::Person(p.id.clone())));
        let services = bundle
            .services()
            .map(|s| (&s.keys, RegisteredCaller::Service(s.id.clone())));
        for (keys, caller) in people.chain(services) {
            for key in keys {
                by_key.insert(key.thumbprint(), caller.clone());
            }
        }
        for service in bundle.services() {
            if let Some(id) = &service.spiffe_id {
                by_spiffe_id.insert(id.clone(), RegisteredCaller::Service(service.id.clone()));
            }
        }
        Self {
            bundle,
            by_key,
            by_spiffe_id,
        }
    }

    /// The caller with this key. Loading refuses a key of two callers.
    pub fn by_key(&self, key: Thumbprint) -> Option<RegisteredCaller> {
        self.by_key.get(&key).cloned()
    }

    /// The service with this attested identity, byte by byte.
    pub fn by_spiffe_id(&self, id: &SpiffeId) -> Option<RegisteredCaller> {
        self.by_spiffe_id.get(id).cloned()
    }
}
