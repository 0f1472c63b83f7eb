//! State that every console handler uses.

use std::sync::Arc;

use tokio::sync::watch;

use crate::broker::{Broker, Refusal};
use crate::model::{HttpOrigin, PersonId, Reason};
use crate::rate_limit::PerKeyLimit;
use crate::serve::admission::AdmissionControl;
use crate::serve::routes::Route;

/// The console over one broker.
pub(super) struct Console {
    pub(super) broker: Arc<Broker>,
    pub(super) admission: Arc<AdmissionControl>,
    /// The console's only origin.
    pub(super) origin: HttpOrigin,
    /// Event streams of each person.
    pub(super) streams: Arc<PerKeyLimit<PersonId>>,
    pub(super) stopped: watch::Receiver<bool>,
}

/// Event streams of one person at once: one for each window.
const STREAMS_PER_PERSON_MAX: usize = 16;
/// The reason word of cross-site requests in metrics.
const CROSS_SITE: &str = "CONSOLE_FOREIGN_ORIGIN";

impl Console {
    pub(super) fn new(
        broker: Arc<Broker>,
        admission: Arc<AdmissionControl>,
        stopped: watch::Receiver<bool>,
    ) -> Self {
        Self {
            origin: broker.settings().console_url.clone(),
            streams: Arc::new(PerKeyLimit::new(STREAMS_PER_PERSON_MAX)),
            broker,
            admission,
            stopped,
        }
    }

    /// Counts and refuses a cross-site request before its handler.
    pub(super) fn refuse_cross_site(&self, why: &'static str, route: &Route) -> Refusal {
        self.broker.metrics().refused(CROSS_SITE);
        Refusal {
            message: "The request did not come from a page of this console. Nothing was done."
                .to_owned(),
            ..self
                .broker
                .refuse_unauthenticated(route.name, Reason::NotPermitted, why)
        }
    }
}
