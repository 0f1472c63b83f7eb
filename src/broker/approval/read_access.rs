//! Read access of people: which access requests and tasks a person may read. Cards, inboxes, their watches and timelines ask
//! this one rule, so that no answer names an access request or a task that the next answer does not find.
//!
//! Decides nothing else: a vote has rules of its own.

use crate::broker::{Broker, CallContext, Refusal};
use crate::model::*;
use crate::policy::{ActivePolicy, Role};
use crate::state::{AccessRequest, Read, Recorded, TaskRecord};

/// A record that a person asks to read.
#[derive(Debug, Clone, Copy)]
pub(in crate::broker) enum Readable<'a> {
    AccessRequest(&'a AccessRequest),
    Task(&'a TaskRecord),
}

impl Broker {
    /// Whether a person may read a record, by the registrations of today.
    ///
    /// An operator reads all. An approver reads an access request that needs a profile of one of their groups, that they voted on,
    /// or of an agent that they owned when it was opened; and a task of theirs, or with such an access request. What a former person of
    /// the same id voted on or owned is not theirs. A service that may only read is no person: its methods read all.
    pub(in crate::broker) fn may_read(
        &self,
        person: &PersonId,
        rules: &ActivePolicy,
        record: Readable<'_>,
    ) -> bool {
        let Some(registered) = rules.bundle.person(person) else {
            return false;
        };
        if registered.roles.contains(&Role::Operator) {
            return true;
        }
        let known = self.show().person(person);
        let is_theirs = |owner: &PersonId, at: Timestamp| owner == person && at >= known.since_at;
        match record {
            Readable::AccessRequest(request) => {
                let is_asked = |need: &ProfileRef| {
                    let target = &request.opened.action.target;
                    let profile = rules.bundle.profile_about(&need.name, target);
                    profile.is_some_and(|profile| profile.takes(registered))
                };
                is_theirs(request.opened.owner(), request.opened_at)
                    || request
                        .votes
                        .iter()
                        .any(|vote| is_theirs(&vote.cast.voter, vote.at))
                    || request.required_profiles().iter().any(is_asked)
            }
            Readable::Task(task) => {
                let requests = self.show().requests_of_task(&task.opened.task);
                is_theirs(&task.opened.owner, task.opened.opened_at)
                    || requests.iter().any(|request| {
                        self.may_read(person, rules, Readable::AccessRequest(request))
                    })
            }
        }
    }

    /// Whether there is an access request with this id that a person may read.
    pub(in crate::broker) fn may_read_request(
        &self,
        person: &PersonId,
        rules: &ActivePolicy,
        id: &AccessRequestId,
    ) -> bool {
        let request = self.show().access_request(id);
        request
            .is_some_and(|request| self.may_read(person, rules, Readable::AccessRequest(&request)))
    }

    /// Whether there is a task with this id that a person may read.
    pub(in crate::broker) fn may_read_task(
        &self,
        person: &PersonId,
        rules: &ActivePolicy,
        id: &TaskId,
    ) -> bool {
        let task = self.show().task(id);
        task.is_some_and(|task| self.may_read(person, rules, Readable::Task(&task)))
    }

    /// The access request with this id; one that the person may not read and an unknown id get the same answer.
    pub(in crate::broker) fn find_readable_request<'r>(
        &self,
        read: &'r Read,
        call: &CallContext,
        person: &PersonId,
        id: &AccessRequestId,
    ) -> Result<Recorded<'r, AccessRequest>, Refusal> {
        let rules = self.rules_in_force(read, call)?;
        read.access_request(id)
            .filter(|request| self.may_read(person, &rules, Readable::AccessRequest(request)))
            .ok_or_else(|| self.refuse_unknown_request(call, id))
    }
}
