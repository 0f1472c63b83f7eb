//! The list of active tokens.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::broker::{Broker, CallContext, Refusal};
use crate::model::*;
use crate::state::{Grant, Shown};

/// An active token, for lists.
#[derive(Debug, Clone)]
pub struct LiveToken {
    /// Its id, by which it is revoked.
    pub jti: TokenId,
    /// The agent that holds it.
    pub agent: AgentId,
    /// The agent's owner, as of the opening of its task.
    pub owner: PersonId,
    /// Its task.
    pub task: TaskId,
    /// The action it is for.
    pub action: ActionName,
    /// The target of the action.
    pub target: Target,
    /// The resource server it is for.
    pub audience: Audience,
    /// When it was issued.
    pub issued_at: Timestamp,
    /// When it expires.
    pub expires_at: Timestamp,
    /// Uses that are left; `None` when only its lifetime limits it.
    pub uses_left: Option<u32>,
    /// The step-up profiles it was approved under; empty when rules alone approved it.
    pub profiles: Vec<ProfileName>,
}

/// A token's place in the list, the next to expire first. It does not change, and it stays when the token is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TokenCursor {
    /// Unix seconds.
    exp: i64,
    jti: TokenId,
}

impl LiveToken {
    /// Its place in the list.
    pub const fn cursor(&self) -> TokenCursor {
        TokenCursor {
            exp: self.expires_at.secs(),
            jti: self.jti,
        }
    }
}

/// Grants scanned between two yields to other tasks.
const SCAN_YIELD_EVERY: usize = 4_096;

impl Broker {
    /// A page of active tokens, the next to expire first, after the place `after`; at most `max` rows. Scans every
    /// grant of every open task, and yields in between.
    pub async fn live_tokens(
        &self,
        call: &CallContext,
        after: Option<TokenCursor>,
        max: usize,
    ) -> Result<Vec<LiveToken>, Refusal> {
        let now = self.now();
        self.authenticate_reader(call, now)?;
        let mut page: BTreeMap<TokenCursor, Shown<Grant>> = BTreeMap::new();
        let mut scanned = 0_usize;
        for task in self.show().open_tasks() {
            for grant in self.show().grants_of_task(&task.opened.task) {
                let position = TokenCursor {
                    exp: grant.issued.exp,
                    jti: grant.issued.jti,
                };
                let is_after = after.is_none_or(|after| position > after)
                    && (page.len() < max
                        || page
                            .last_key_value()
                            .is_some_and(|(last, _)| position < *last));
                if is_after && self.shown_end_cause(&grant, now).is_none() && !grant.is_spent() {
                    page.insert(position, grant);
                    if page.len() > max {
                        page.pop_last();
                    }
                }
                scanned = scanned.saturating_add(1);
                if scanned.is_multiple_of(SCAN_YIELD_EVERY) {
                    tokio::task::yield_now().await;
                }
            }
        }
        let row = |grant: Shown<Grant>| {
            let issued = &grant.issued;
            let task = self.show().task(&issued.task)?;
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
