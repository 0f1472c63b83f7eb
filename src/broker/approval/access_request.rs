//! Access requests: lookup, and the status of one now.

use std::sync::Arc;

use crate::broker::approval::progress::{ProfileState, quorum_reached};
use crate::broker::{Broker, CallContext, Refusal};
use crate::card::AccessRequestStatus;
use crate::model::*;
use crate::policy::{ActivePolicy, Risk};
use crate::state::{AccessRequest, StoredStatus};

/// An access request and its status.
#[derive(Debug, Clone)]
pub struct AccessView {
    /// The request as recorded.
    pub request: Arc<AccessRequest>,
    /// Its status now.
    pub status: AccessRequestStatus,
    /// The progress of each profile it needs.
    pub needs: Vec<ProfileState>,
    /// The catalogue's title.
    pub title: String,
    /// The catalogue's risk.
    pub risk: Option<Risk>,
}

impl Broker {
    /// One access request, for its agent.
    pub fn get_access_request(
        &self,
        call: &CallContext,
        task: TaskId,
        id: AccessRequestId,
    ) -> Result<AccessView, Refusal> {
        let now = self.now();
        let (task, _held) = self.task_possession(call, &task, None, None, now)?;
        let request = self.request_of_task(call, &task.opened.task, &id)?;
        let rules = self.rules(call)?;
        Ok(self.view(request, &rules, now))
    }

    /// The same view, for a caller who was authenticated before.
    pub fn view_of(&self, call: &CallContext, id: &AccessRequestId) -> Result<AccessView, Refusal> {
        let rules = self.rules(call)?;
        let request = self.find_request(call, id)?;
        Ok(self.view(request, &rules, self.now()))
    }

    pub(in crate::broker) fn view(
        &self,
        request: Arc<AccessRequest>,
        rules: &ActivePolicy,
        now: Timestamp,
    ) -> AccessView {
        let needs = self.approval_progress(&request, rules, now);
        let running = self
            .state
            .task(&request.opened.task)
            .is_some_and(|t| self.is_running(&t, now));
        let expired = if request.has_approval() {
            AccessRequestStatus::ApprovalExpired
        } else {
            AccessRequestStatus::Expired
        };
        let status = match request.status {
            StoredStatus::Denied => AccessRequestStatus::Denied,
            StoredStatus::Consumed(_) => AccessRequestStatus::Consumed,
            StoredStatus::Closed(CloseCause::Cancelled) => AccessRequestStatus::Cancelled,
            StoredStatus::Closed(CloseCause::Expired) => expired,
            StoredStatus::Closed(CloseCause::Policy | CloseCause::Frozen) => {
                AccessRequestStatus::Ended
            }
            StoredStatus::Pending if !running => AccessRequestStatus::Ended,
            StoredStatus::Pending if !request.is_pending(now) => expired,
            StoredStatus::Pending if quorum_reached(&needs) => AccessRequestStatus::Approved,
            StoredStatus::Pending => AccessRequestStatus::Waiting,
        };
        let catalogue = rules.bundle.action(&request.opened.action.action);
        AccessView {
            status,
            needs,
            title: catalogue.map(|a| a.title.clone()).unwrap_or_default(),
            risk: catalogue.and_then(|a| a.risk),
            request,
        }
    }

    pub(in crate::broker) fn find_request(
        &self,
        call: &CallContext,
        id: &AccessRequestId,
    ) -> Result<Arc<AccessRequest>, Refusal> {
        self.state.access_request(id).ok_or_else(|| {
            self.refuse(
                call.method,
                Reason::NotFound,
                format!("no access request {id}"),
            )
        })
    }

    pub(in crate::broker) fn request_of_task(
        &self,
        call: &CallContext,
        task: &TaskId,
        id: &AccessRequestId,
    ) -> Result<Arc<AccessRequest>, Refusal> {
        self.state
            .access_request(id)
            .filter(|r| r.opened.task == *task)
            .ok_or_else(|| {
                self.refuse(
                    call.method,
                    Reason::NotFound,
                    format!("no access request {id} in this task"),
                )
            })
    }

    /// Whether votes are still accepted.
    pub(in crate::broker) fn is_open_for_votes(
        &self,
        request: &AccessRequest,
        now: Timestamp,
    ) -> bool {
        let task = self.state.task(&request.opened.task);
        request.is_pending(now) && task.is_some_and(|task| self.is_running(&task, now))
    }

    /// Whether the quorum was reached before this moment.
    pub(in crate::broker) fn was_decided_before(
        &self,
        request: &AccessRequest,
        moment: Timestamp,
    ) -> bool {
        let before = moment.plus_millis(-1);
        self.projections.rules().is_some_and(|rules| {
            let view = self.view(Arc::new(request.clone()), &rules, before);
            view.status == AccessRequestStatus::Approved
        })
    }
}
