//! Access requests: lookup, and the status of one now.

use std::sync::Arc;

use crate::approve::facts;
use crate::approve::votes::{self, VoidApproval};
use crate::broker::approval::progress::{ProfileState, quorum_reached};
use crate::broker::{Broker, CallContext, Refusal};
use crate::card::{AccessRequestStatus, CardDelay};
use crate::model::*;
use crate::policy::{ActivePolicy, Risk};
use crate::state::{AccessRequest, Read, Recorded, StoredStatus};

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
    /// What time alone changes in what it needs.
    pub delay: Option<CardDelay>,
    /// Approvals that do not count, because what they were given for has changed.
    pub void: Vec<VoidApproval>,
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
        self.task_possession(call, &task, None, None, now)?;
        self.preview(|read| {
            let rules = self.rules_in_force(read, call)?;
            let request = self.request_of_task(read, call, &task, &id)?;
            Ok(self.view(read, &request, &rules, now))
        })
    }

    /// The same view, for a caller who was authenticated before.
    pub fn view_of(&self, call: &CallContext, id: &AccessRequestId) -> Result<AccessView, Refusal> {
        self.preview(|read| {
            let rules = self.rules_in_force(read, call)?;
            let request = self.find_request(read, call, id)?;
            Ok(self.view(read, &request, &rules, self.now()))
        })
    }

    pub(in crate::broker) fn view(
        &self,
        read: &Read,
        request: &Recorded<'_, AccessRequest>,
        rules: &ActivePolicy,
        now: Timestamp,
    ) -> AccessView {
        let needs = self.approval_progress(read, request, rules, now);
        let expired = if request.has_approval() {
            AccessRequestStatus::ApprovalExpired
        } else {
            AccessRequestStatus::Expired
        };
        let status = match request.status {
            StoredStatus::Denied => AccessRequestStatus::Denied,
            StoredStatus::Consumed(_) | StoredStatus::Applied => AccessRequestStatus::Consumed,
            StoredStatus::Closed(CloseCause::Cancelled) => AccessRequestStatus::Cancelled,
            StoredStatus::Closed(CloseCause::Expired) => expired,
            StoredStatus::Closed(
                CloseCause::Policy | CloseCause::Frozen | CloseCause::NoEligibleApprover,
            ) => AccessRequestStatus::Ended,
            StoredStatus::Pending if !self.has_running_task(read, request, now) => {
                AccessRequestStatus::Ended
            }
            StoredStatus::Pending if !request.is_pending(now) => expired,
            StoredStatus::Pending if quorum_reached(&needs) => AccessRequestStatus::Approved,
            StoredStatus::Pending => AccessRequestStatus::Waiting,
        };
        let delay = match status {
            AccessRequestStatus::Waiting => self.delay_of(read, request, rules, &needs),
            _ => None,
        };
        AccessView {
            status,
            needs,
            title: facts::title(request, &rules.bundle),
            risk: facts::risk(request, &rules.bundle),
            delay,
            void: votes::void_approvals(request, &rules.bundle),
            request: Arc::clone(request.to_answer()),
        }
    }

    /// The next moment at which time alone may change the view of an access request: it expires, a vote on it does, or its task ends.
    pub(in crate::broker) fn next_change_by_time(
        &self,
        read: &Read,
        request: &Recorded<'_, AccessRequest>,
        now: Timestamp,
    ) -> Timestamp {
        let opened = &request.opened;
        let task = opened.task().and_then(|task| read.task(&task));
        let ends = task.iter().flat_map(|task| {
            let lease = task.lease.map(|lease| lease.until);
            lease.into_iter().chain([task.opened.deadline])
        });
        request
            .votes
            .iter()
            .map(|vote| vote.cast.not_after)
            .chain(ends)
            .chain(request.delayed_until())
            .filter(|at| *at > now)
            .fold(opened.expires_at, Timestamp::min)
    }

    /// The policy bundle in force; refuses the call when there is none.
    pub(in crate::broker) fn rules_in_force<'r>(
        &self,
        read: &'r Read,
        call: &CallContext,
    ) -> Result<Recorded<'r, ActivePolicy>, Refusal> {
        read.rules().ok_or_else(|| {
            let message = "no policy bundle is in force";
            self.refuse(call.method, Reason::DecisionUnavailable, message)
        })
    }

    pub(in crate::broker) fn find_request<'r>(
        &self,
        read: &'r Read,
        call: &CallContext,
        id: &AccessRequestId,
    ) -> Result<Recorded<'r, AccessRequest>, Refusal> {
        read.access_request(id)
            .ok_or_else(|| self.refuse_unknown_request(call, id))
    }

    pub(in crate::broker) fn refuse_unknown_request(
        &self,
        call: &CallContext,
        id: &AccessRequestId,
    ) -> Refusal {
        let message = format!("no access request {id}");
        self.refuse(call.method, Reason::NotFound, message)
    }

    pub(in crate::broker) fn request_of_task<'r>(
        &self,
        read: &'r Read,
        call: &CallContext,
        task: &TaskId,
        id: &AccessRequestId,
    ) -> Result<Recorded<'r, AccessRequest>, Refusal> {
        read.access_request(id)
            .filter(|r| r.opened.task() == Some(*task))
            .ok_or_else(|| {
                let message = format!("no access request {id} in this task");
                self.refuse(call.method, Reason::NotFound, message)
            })
    }

    /// Whether votes are still accepted.
    pub(in crate::broker) fn is_open_for_votes(
        &self,
        read: &Read,
        request: &Recorded<'_, AccessRequest>,
        now: Timestamp,
    ) -> bool {
        request.is_pending(now) && self.has_running_task(read, request, now)
    }

    fn has_running_task(&self, read: &Read, request: &AccessRequest, now: Timestamp) -> bool {
        // A proposal has no task: the entry that voids it closes it.
        let task = request.opened.task().map(|task| read.task(&task));
        task.is_none_or(|task| task.is_some_and(|task| self.is_running(&task, now)))
    }

    /// Whether the quorum was reached before this moment.
    pub(in crate::broker) fn was_decided_before(
        &self,
        read: &Read,
        request: &Recorded<'_, AccessRequest>,
        moment: Timestamp,
    ) -> bool {
        let before = moment.plus_millis(-1);
        read.rules().is_some_and(|rules| {
            let view = self.view(read, request, &rules, before);
            view.status == AccessRequestStatus::Approved
        })
    }
}
