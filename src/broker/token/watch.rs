//! Token watch: tells the agent that uses a token when it has ended, so that no process goes on presenting a dead token.

use std::time::Duration;

use tokio::sync::watch;

use crate::broker::approval::inbox::HEARTBEAT;
use crate::broker::auth::authentication::WATCH_MAX_MS;
use crate::broker::{Broker, CallContext, JournalHead, Refusal};
use crate::model::*;

/// A watch of one token.
#[derive(Debug)]
pub struct TokenWatch {
    /// The agent that the token was issued to.
    pub agent: AgentId,
    /// Longest life of the watch, in milliseconds; then the caller proves its key again.
    pub life_ms: u64,
    jti: TokenId,
    head: watch::Receiver<JournalHead>,
    started: bool,
    ended: bool,
}

/// An event of a token watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenEvent {
    /// The token is active: at the start, and as a heartbeat.
    Active,
    /// The token has ended: no event follows.
    Ended(TokenEndCause),
}

/// Why a token ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenEndCause {
    /// Its own lifetime is over.
    Expired,
    /// It was ended before, by itself or with its task.
    Revoked(EndCause),
}

impl TokenEndCause {
    /// The name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Revoked(cause) => cause.as_str(),
        }
    }
}

impl Broker {
    /// Starts a watch of one of the task's tokens; another task's token and an unknown id get the same answer. Possession of
    /// the task key is enough, also after the task has ended.
    pub fn watch_token(
        &self,
        call: &CallContext,
        task: TaskId,
        jti: TokenId,
    ) -> Result<TokenWatch, Refusal> {
        let (task, _held) = self.task_possession(call, &task, None, None, self.now())?;
        let grant = self
            .show()
            .grant(&jti)
            .filter(|grant| grant.issued.task == task.opened.task)
            .ok_or_else(|| {
                let message = format!("the task has no token {jti}");
                self.refuse(call.method, Reason::NotFound, message)
            })?;
        Ok(TokenWatch {
            agent: grant.issued.agent.clone(),
            life_ms: WATCH_MAX_MS,
            jti,
            head: self.journal.head(),
            started: false,
            ended: false,
        })
    }

    /// Why a token has ended; `None` while it is active. Fails closed: a token without a grant has expired.
    async fn token_end(&self, jti: &TokenId) -> Option<TokenEndCause> {
        self.answer(|read| {
            let now = self.now();
            let Some(grant) = read.grant(jti) else {
                return Some(TokenEndCause::Expired);
            };
            let cause = self.end_cause(read, &grant, now)?;
            let lived_out = grant.ended.is_none() && now.secs() >= grant.issued.exp;
            Some(match lived_out {
                true => TokenEndCause::Expired,
                false => TokenEndCause::Revoked(cause),
            })
        })
        .await
    }

    /// The next moment at which time alone may end a token: its expiry, its task's deadline or missed heartbeat.
    fn token_due(&self, jti: &TokenId) -> Option<Timestamp> {
        let grant = self.show().grant(jti)?;
        let expires_at = Timestamp::from_secs(grant.issued.exp);
        let task = self.show().task(&grant.issued.task)?;
        let due = expires_at.min(task.opened.deadline);
        Some(task.lease.map_or(due, |lease| lease.until.min(due)))
    }
}

impl TokenWatch {
    /// The next event; `None` after the end, and when the broker or its journal stops.
    pub async fn next(&mut self, broker: &Broker) -> Option<TokenEvent> {
        if self.ended {
            return None;
        }
        let quiet = tokio::time::sleep(HEARTBEAT);
        let mut stopping = broker.stopping.subscribe();
        // Ends that this broker enforces before they are in the journal.
        let mut enforced = broker.pending_revocations.subscribe();
        let mut is_due = !std::mem::replace(&mut self.started, true);
        tokio::pin!(quiet);
        loop {
            // Before the state is read: later changes wake this watch again.
            if self.head.borrow_and_update().failed {
                return None;
            }
            enforced.mark_unchanged();
            let ends_by = || {
                let show = broker.show();
                (show.feed_last(), show.version(&Stream::Policy))
            };
            let seen = ends_by();
            if let Some(cause) = broker.token_end(&self.jti).await {
                self.ended = true;
                return Some(TokenEvent::Ended(cause));
            }
            if is_due {
                return Some(TokenEvent::Active);
            }
            let due = broker
                .token_due(&self.jti)
                .map_or(MIN_TIMER, |due| due.after(broker.now()));
            let due = tokio::time::sleep(due.max(MIN_TIMER));
            tokio::pin!(due);
            loop {
                tokio::select! {
                    // Said only after another look.
                    () = &mut quiet => {
                        is_due = true;
                        break;
                    }
                    () = &mut due => break,
                    changed = self.head.changed() => {
                        changed.ok()?;
                        // Most entries revoke nothing and change no rules.
                        if self.head.borrow_and_update().failed || ends_by() != seen {
                            break;
                        }
                    }
                    changed = enforced.changed() => {
                        changed.ok()?;
                        break;
                    }
                    _ = stopping.wait_for(|stopping| *stopping) => return None,
                }
            }
        }
    }
}

/// Shortest timer: clocks and timers round.
const MIN_TIMER: Duration = Duration::from_millis(1);
