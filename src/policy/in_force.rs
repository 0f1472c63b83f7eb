use std::collections::{BTreeMap, HashMap};

use super::PolicyBundle;
use crate::jose::PublicKey;
use crate::model::{PersonId, ServiceId, SpiffeId, Thumbprint, Version};

/// A policy bundle and the version of its stream, in one piece: what decided and what it rested on never come apart.
#[derive(Debug)]
pub struct InForce {
    /// The bundle.
    pub bundle: PolicyBundle,
    /// Version of the policy stream.
    pub version: Version,
    by_key: HashMap<Thumbprint, Registered>,
    by_spiffe_id: BTreeMap<SpiffeId, Registered>,
}

/// A registered caller that is no agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Registered {
    /// An approver or operator.
    Person(PersonId),
    /// A validator or auditor.
    Service(ServiceId),
}

impl InForce {
    /// The bundle as of a version of its stream.
    pub fn new(bundle: PolicyBundle, version: Version) -> Self {
        let mut by_key = HashMap::new();
        let mut by_spiffe_id = BTreeMap::new();
        let people = bundle
            .people()
            .map(|p| (&p.keys, Registered::Person(p.id.clone())));
        let services = bundle
            .services()
            .map(|s| (&s.keys, Registered::Service(s.id.clone())));
        for (keys, who) in people.chain(services) {
            for key in keys {
                if let Ok(public) = PublicKey::from_jwk(&key.jwk) {
                    by_key.insert(public.thumbprint(), who.clone());
                }
            }
        }
        for service in bundle.services() {
            if let Some(id) = &service.spiffe_id {
                by_spiffe_id.insert(id.clone(), Registered::Service(service.id.clone()));
            }
        }
        Self {
            bundle,
            version,
            by_key,
            by_spiffe_id,
        }
    }

    /// Who registered this key. Loading refused a key that stands for two.
    pub fn by_key(&self, key: Thumbprint) -> Option<Registered> {
        self.by_key.get(&key).cloned()
    }

    /// The service with this attested identity, byte by byte.
    pub fn by_spiffe_id(&self, id: &SpiffeId) -> Option<Registered> {
        self.by_spiffe_id.get(id).cloned()
    }
}
