//! Trust snapshot: the keys of the configured trust domains.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::jose::KeySet;
use crate::model::TrustDomain;

/// An immutable snapshot of the trusted keys. A change makes a new one, after its entry is in the journal.
#[derive(Debug, Clone, Default)]
pub struct Trust {
    domains: BTreeMap<TrustDomain, Arc<TrustedDomain>>,
}

/// The keys of one trust domain.
#[derive(Debug)]
pub struct TrustedDomain {
    /// Keys for JWT-SVIDs.
    pub jwt_svid: KeySet,
}

impl Trust {
    /// The snapshot with one domain's keys replaced.
    #[must_use]
    pub fn with(&self, domain: TrustDomain, keys: TrustedDomain) -> Self {
        let mut domains = self.domains.clone();
        domains.insert(domain, Arc::new(keys));
        Self { domains }
    }

    /// The keys of a domain, compared byte by byte; `None` for one that is not configured.
    pub fn domain(&self, domain: &TrustDomain) -> Option<&Arc<TrustedDomain>> {
        self.domains.get(domain)
    }
}
