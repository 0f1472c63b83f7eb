use std::collections::BTreeMap;
use std::sync::Arc;

use crate::broker::{Broker, CallContext, Refusal};
use crate::model::*;
use crate::state::Grant;

/// A token that is good now.
#[derive(Debug, Clone)]
pub struct LiveToken {
    /// Its id; what revokes it.
    pub jti: TokenId,
    /// Who has it.
    pub agent: AgentId,
    /// Who answers for the agent, as of the opening of its task.
    pub owner: PersonId,
    /// In which task.
    pub task: TaskId,
    /// For what.
    pub action: ActionName,
    /// On what.
    pub target: Target,
    /// Where.
    pub audience: Audience,
    /// When it was given.
    pub issued_at: Timestamp,
    /// When it dies by itself.
    pub expires_at: Timestamp,
    /// Uses that are left; `None` when its life is the only limit.
    pub uses_left: Option<u32>,
    /// The step-up profiles people approved it under; empty when rules alone did.
    pub profiles: Vec<ProfileName>,
}

/// Most rows of a page.
pub const PAGE_MAX: usize = 100;
/// Grants that are looked at before others are let on.
const STRETCH: usize = 4_096;

impl Broker {
    /// Tokens that are good now, the next to expire first, after the one named. Walks every grant of every open task, and
    /// lets others on in between; at most [`PAGE_MAX`] rows.
    pub async fn live_tokens(
        &self,
        call: &CallContext,
        after: Option<TokenId>,
        max: usize,
    ) -> Result<Vec<LiveToken>, Refusal> {
        let now = self.now();
        self.authenticate_reader(call, now)?;
        let max = max.min(PAGE_MAX);
        let place = |grant: &Grant| (grant.issued.exp, grant.issued.jti);
        let after = match after {
            None => None,
            Some(jti) => Some(place(&*self.state.grant(&jti).ok_or_else(|| {
                let told = "page_token: no such token";
                self.refuse(call.method, Reason::NotFound, told)
            })?)),
        };
        let mut page: BTreeMap<(i64, TokenId), Arc<Grant>> = BTreeMap::new();
        let mut looked = 0_usize;
        for task in self.state.open_tasks() {
            for grant in self.state.grants_of(&task.opened.task) {
                let place = place(&grant);
                let wanted = after.is_none_or(|after| place > after)
                    && (page.len() < max || page.last_key_value().is_some_and(|(l, _)| place < *l));
                if wanted && self.dead(&grant, now).is_none() && !grant.spent() {
                    page.insert(place, grant);
                    if page.len() > max {
                        page.pop_last();
                    }
                }
                looked = looked.saturating_add(1);
                if looked.is_multiple_of(STRETCH) {
                    tokio::task::yield_now().await;
                }
            }
        }
        let row = |grant: Arc<Grant>| {
            let issued = &grant.issued;
            let task = self.state.task(&issued.task)?;
            let spent = u32::try_from(grant.uses.len()).unwrap_or(u32::MAX);
            let approval = issued.approval.as_ref();
            Some(LiveToken {
                jti: issued.jti,
                agent: issued.agent.clone(),
                owner: task.opened.owner.clone(),
                task: issued.task,
                action: issued.action.action.clone(),
                target: issued.action.target.clone(),
                audience: issued.action.audience.clone(),
                issued_at: Timestamp::from_secs(issued.iat),
                expires_at: Timestamp::from_secs(issued.exp),
                uses_left: issued.uses.map(|uses| uses.saturating_sub(spent)),
                profiles: approval.map(|a| a.profiles.clone()).unwrap_or_default(),
            })
        };
        Ok(page.into_values().filter_map(row).collect())
    }
}
