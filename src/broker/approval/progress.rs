//! Approval progress: the profiles an access request needs, and the votes each has.

use std::collections::BTreeMap;

use crate::approve::{silence, votes};
use crate::broker::Broker;
use crate::card::CardDelay;
use crate::model::*;
use crate::policy::ActivePolicy;
use crate::state::{AccessRequest, Read, Recorded};

/// A step-up profile and the votes it has.
#[derive(Debug, Clone)]
pub struct ProfileState {
    /// Name and digest.
    pub profile: ProfileRef,
    /// The group whose members may approve.
    pub group: String,
    /// Approvals it needs.
    pub quorum: u32,
    /// The approvers whose votes count now, each with how the vote is signed.
    pub approvers: BTreeMap<PersonId, VoteMethod>,
    /// How votes on this request are signed; absent when the profile is no longer defined.
    pub method: Option<VoteMethod>,
}

/// Whether every profile has its quorum.
pub(in crate::broker) fn quorum_reached(needs: &[ProfileState]) -> bool {
    needs.iter().all(|n| {
        n.quorum > 0 && n.approvers.len() >= usize::try_from(n.quorum).unwrap_or(usize::MAX)
    })
}

impl Broker {
    /// What time alone changes in what an access request still needs; nothing once somebody said no to another request of its agent.
    pub(in crate::broker) fn delay_of(
        &self,
        read: &Read,
        request: &AccessRequest,
        rules: &ActivePolicy,
        needs: &[ProfileState],
    ) -> Option<CardDelay> {
        let (at, delay) = (request.delayed_until()?, request.delay()?);
        let is_missing = |need: &&ProfileRef| {
            let mut states = needs.iter().filter(|state| state.profile == **need);
            !states.any(|state| quorum_reached(std::slice::from_ref(state)))
        };
        let left = delay.needs.iter().filter(is_missing);
        silence::is_unopposed(request, self.voter_context(read, rules)).then(|| CardDelay {
            at,
            needs: left.map(|need| need.name.clone()).collect(),
        })
    }

    /// The profiles an access request needs, and the votes each has, by today's registrations.
    pub(in crate::broker) fn approval_progress(
        &self,
        read: &Read,
        request: &Recorded<'_, AccessRequest>,
        rules: &ActivePolicy,
        now: Timestamp,
    ) -> Vec<ProfileState> {
        let tally = votes::tally(request, self.voter_context(read, rules), now);
        let action = &request.opened.action.action;
        let state = |need: &ProfileRef| {
            let target = &request.opened.action.target;
            let defined = rules.bundle.profile_about(&need.name, target);
            ProfileState {
                profile: need.clone(),
                group: defined
                    .as_ref()
                    .map(|p| p.group.to_string())
                    .unwrap_or_default(),
                quorum: defined.as_ref().map_or(0, |p| p.quorum),
                method: defined.map(|p| rules.bundle.vote_method(&p, action)),
                approvers: tally.counted.get(&need.name).cloned().unwrap_or_default(),
            }
        };
        request.required_profiles().iter().map(state).collect()
    }
}
