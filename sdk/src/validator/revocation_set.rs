//! Revocation set: the feed's events as a pure fold, and the check of a token against them. No clock, no network.

use std::collections::HashMap;
use std::hash::Hash;

use super::ValidationError;
use crate::jose::access_token::{AccessTokenClaims, ActionDetail, TTL_MAX_S};
use crate::model::{ActionName, AgentId, JournalPosition, TaskId, Timestamp, TokenId};
use crate::proto::convert;
use crate::proto::v1::{self, revocation_event::Selector, watch_revocations_response::Message};

/// Why the feed cannot be continued: the watch restarts without a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Gap {
    #[error("an event is missing")]
    Missed,
    #[error("an event or heartbeat is before the last position")]
    Backwards,
    #[error("the journal has another epoch")]
    Epoch,
    #[error("a message cannot be read")]
    Unknown,
    #[error("too many revocations to keep")]
    Full,
}

/// The event that the next one must name as the one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum EventChain {
    /// A start: the first event may name one that is too old to matter.
    #[default]
    Any,
    After(Option<u64>),
}

impl EventChain {
    /// Checks the event that a message names as the last before it.
    fn check(self, last_event: Option<u64>) -> Result<(), Gap> {
        match self {
            Self::Any => Ok(()),
            Self::After(last) if last_event == last => Ok(()),
            Self::After(_) => Err(Gap::Missed),
        }
    }
}

/// Every revocation that can still matter. A revocation is never undone, so those known before a resync stay true after it.
#[derive(Debug, Default)]
pub(super) struct RevocationSet {
    tasks: HashMap<TaskId, Timestamp>,
    tokens: HashMap<TokenId, Timestamp>,
    /// The newest event for each agent: every token decided before it is revoked.
    agents: HashMap<AgentId, (JournalPosition, Timestamp)>,
    /// The same for each action.
    actions: HashMap<ActionName, (JournalPosition, Timestamp)>,
    /// The newest event for all tokens: every token decided before it is revoked. Never pruned.
    everything: Option<JournalPosition>,
    chain: EventChain,
    position: Option<JournalPosition>,
    complete: bool,
    last_message_at: Option<Timestamp>,
    pruned_at: Option<Timestamp>,
}

impl RevocationSet {
    /// Applies a message of the feed. After an error the set is incomplete until a new watch reaches the end of the journal.
    pub(super) fn apply(
        &mut self,
        message: v1::WatchRevocationsResponse,
        now: Timestamp,
    ) -> Result<(), Gap> {
        let applied = match message.message {
            Some(Message::Event(event)) => self.event(event, now),
            Some(Message::Heartbeat(heartbeat)) => self.heartbeat(heartbeat, now),
            Some(Message::Resync(_)) => {
                self.restart();
                Ok(())
            }
            None => Err(Gap::Unknown),
        };
        match applied {
            Ok(()) => self.last_message_at = Some(now),
            Err(_) => self.restart(),
        }
        applied
    }

    /// Drops the position, not the revocations: the set is incomplete until a heartbeat ends a new start.
    pub(super) fn restart(&mut self) {
        self.chain = EventChain::Any;
        self.position = None;
        self.complete = false;
    }

    fn event(&mut self, event: v1::RevocationEvent, now: Timestamp) -> Result<(), Gap> {
        let at = JournalPosition {
            epoch: event.epoch,
            index: event.index,
        };
        if let Some(read) = self.position {
            if at.epoch != read.epoch {
                return Err(Gap::Epoch);
            }
            if at <= read {
                return Err(Gap::Backwards);
            }
        }
        self.chain.check(event.previous)?;
        // A selector that this validator does not know may end any token.
        match event.selector.ok_or(Gap::Unknown)? {
            Selector::Tasks(list) => insert(&mut self.tasks, &list.task_ids, TaskId::parse, now)?,
            Selector::Tokens(list) => insert(&mut self.tokens, &list.jtis, TokenId::parse, now)?,
            Selector::AgentId(id) => {
                insert_scoped(&mut self.agents, &[id], AgentId::parse, at, now)?;
            }
            Selector::Agents(list) => {
                insert_scoped(&mut self.agents, &list.agent_ids, AgentId::parse, at, now)?;
            }
            Selector::Action(name) => {
                insert_scoped(&mut self.actions, &[name], ActionName::parse, at, now)?;
            }
            Selector::All(v1::AllTokens {}) => {
                self.everything = self.everything.max(Some(at));
            }
        }
        let broad = self.agents.len() + self.actions.len();
        if self.tasks.len() + self.tokens.len() + broad > REVOCATIONS_MAX {
            return Err(Gap::Full);
        }
        self.chain = EventChain::After(Some(at.index));
        self.position = Some(at);
        Ok(())
    }

    fn heartbeat(&mut self, heartbeat: v1::RevocationHeartbeat, now: Timestamp) -> Result<(), Gap> {
        let through = convert::position(heartbeat.position.ok_or(Gap::Unknown)?);
        if let Some(read) = self.position {
            if through.epoch != read.epoch {
                return Err(Gap::Epoch);
            }
            if through < read {
                return Err(Gap::Backwards);
            }
        }
        self.chain.check(heartbeat.last_event)?;
        self.chain = EventChain::After(heartbeat.last_event);
        self.position = Some(through);
        self.complete = true;
        self.prune(now);
        Ok(())
    }

    /// Drops revocations older than the longest lifetime of a token.
    pub(super) fn prune(&mut self, now: Timestamp) {
        if self
            .pruned_at
            .is_some_and(|at| (0..PRUNE_INTERVAL_MS).contains(&now.since(at)))
        {
            return;
        }
        self.pruned_at = Some(now);
        let keep = |at: &Timestamp| now.since(*at) <= KEEP_MS;
        self.tasks.retain(|_, at| keep(at));
        self.tokens.retain(|_, at| keep(at));
        self.agents.retain(|_, (_, at)| keep(at));
        self.actions.retain(|_, (_, at)| keep(at));
    }

    /// Whether every revocation up to [`RevocationSet::position`] is known.
    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }

    /// The last journal position received: where the next watch continues.
    pub(super) fn position(&self) -> Option<JournalPosition> {
        self.position
    }

    /// Whether a revocation may have been missed: incomplete, or no message for too long. A clock that jumps counts as silence.
    pub(super) fn is_stale(&self, now: Timestamp, max_silence_ms: u32) -> bool {
        let silent = self
            .last_message_at
            .is_none_or(|at| now.since(at).unsigned_abs() > u64::from(max_silence_ms));
        silent || !self.complete
    }

    /// Checks that no known event revokes the token.
    pub(super) fn check(
        &self,
        claims: &AccessTokenClaims,
        now: Timestamp,
        max_silence_ms: u32,
    ) -> Result<(), ValidationError> {
        let Some(read) = self
            .position
            .filter(|_| !self.is_stale(now, max_silence_ms))
        else {
            return Err(ValidationError::Stale);
        };
        // Of an epoch that the feed has not reached yet: its revocations are unknown here.
        if claims.epoch > read.epoch {
            return Err(ValidationError::Stale);
        }
        let decided = JournalPosition {
            epoch: claims.epoch,
            index: claims.pos,
        };
        let before =
            |event: Option<&(JournalPosition, Timestamp)>| event.is_some_and(|(e, _)| decided < *e);
        let [ActionDetail { action, .. }] = &claims.authorization_details;
        // A new epoch of the journal revokes every token of earlier epochs.
        let is_revoked = claims.epoch < read.epoch
            || self.tasks.contains_key(&claims.txn)
            || self.tokens.contains_key(&claims.jti)
            || before(self.agents.get(&claims.client_id))
            || before(self.actions.get(action))
            || self.everything.is_some_and(|event| decided < event);
        if is_revoked {
            Err(ValidationError::Revoked)
        } else {
            Ok(())
        }
    }
}

fn insert<T: Eq + Hash>(
    known: &mut HashMap<T, Timestamp>,
    ids: &[String],
    parse: impl Fn(&str) -> Result<T, crate::model::ParseError>,
    now: Timestamp,
) -> Result<(), Gap> {
    for id in ids {
        known.insert(parse(id).map_err(|_| Gap::Unknown)?, now);
    }
    Ok(())
}

fn insert_scoped<T: Eq + Hash>(
    known: &mut HashMap<T, (JournalPosition, Timestamp)>,
    ids: &[String],
    parse: impl Fn(&str) -> Result<T, crate::model::ParseError>,
    at: JournalPosition,
    now: Timestamp,
) -> Result<(), Gap> {
    for id in ids {
        let id = parse(id).map_err(|_| Gap::Unknown)?;
        let newest = known.entry(id).or_insert((at, now));
        *newest = (newest.0.max(at), now);
    }
    Ok(())
}

/// How long a revocation is kept, in milliseconds: the longest lifetime of a token, and five minutes of clock skew.
const KEEP_MS: i64 = (TTL_MAX_S + 300) * 1_000;
const PRUNE_INTERVAL_MS: i64 = 10_000;
/// Most revocations kept at once; above it every token is rejected.
const REVOCATIONS_MAX: usize = 1_000_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jose::access_token::{ActionDetail, Confirmation};
    use crate::model::{Action, ActionName, Audience, Digest, SpiffeId, Target, Thumbprint};

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
    const SILENCE_MS: u32 = 5_000;

    fn claims(epoch: u64, pos: u64) -> AccessTokenClaims {
        let target = Target::parse("Account", "ann").expect("target");
        let (name, audience) = (
            ActionName::parse("a").expect("name"),
            Audience::parse("aud").expect("aud"),
        );
        let action =
            Action::new(name, audience.clone(), target, Default::default()).expect("action");
        let (record, _) = action.on_record(&Default::default(), &mut || [0; 16]);
        AccessTokenClaims {
            iss: "i".to_owned(),
            sub: SpiffeId::parse("spiffe://d/a").expect("id"),
            aud: audience,
            exp: NOW.secs() + 300,
            // Selectors compare positions, not times: this time is after every event here.
            iat: NOW.secs() + 200,
            nbf: NOW.secs(),
            jti: TokenId::from_random([1; 16]),
            client_id: AgentId::parse("ci").expect("agent"),
            cnf: Confirmation {
                jkt: Thumbprint(Digest::sha256(b"key")),
            },
            authorization_details: [ActionDetail::from(&record)],
            txn: TaskId::from_random([2; 16]),
            epoch,
            pos,
            uses: None,
            approval: None,
        }
    }

    fn event(
        index: u64,
        prev: Option<u64>,
        selector: Option<Selector>,
    ) -> v1::WatchRevocationsResponse {
        let event = v1::RevocationEvent {
            epoch: 1,
            index,
            previous: prev,
            selector,
        };
        v1::WatchRevocationsResponse {
            message: Some(Message::Event(event)),
        }
    }

    fn heartbeat(epoch: u64, index: u64, last_event: Option<u64>) -> v1::WatchRevocationsResponse {
        let read_through = Some(v1::Position { epoch, index });
        v1::WatchRevocationsResponse {
            message: Some(Message::Heartbeat(v1::RevocationHeartbeat {
                position: read_through,
                last_event,
            })),
        }
    }

    fn agent(id: &str) -> Option<Selector> {
        Some(Selector::AgentId(id.to_owned()))
    }

    fn task(byte: u8) -> Option<Selector> {
        Some(Selector::Tasks(v1::TaskList {
            task_ids: vec![TaskId::from_random([byte; 16]).to_string()],
        }))
    }

    fn token(byte: u8) -> Option<Selector> {
        Some(Selector::Tokens(v1::TokenList {
            jtis: vec![TokenId::from_random([byte; 16]).to_string()],
        }))
    }

    #[test]
    fn scoped_events_revoke_earlier_decisions() {
        let list = |ids: &[&str]| {
            let agent_ids = ids.iter().map(|id| (*id).to_owned()).collect();
            Some(Selector::Agents(v1::AgentList { agent_ids }))
        };
        for (selector, hits) in [
            (list(&["other", "ci"]), true),
            (list(&["other"]), false),
            (Some(Selector::Action("a".to_owned())), true),
            (Some(Selector::Action("b".to_owned())), false),
            (Some(Selector::All(v1::AllTokens {})), true),
        ] {
            let mut revoked = started();
            let context = format!("{selector:?}");
            revoked
                .apply(event(20, Some(5), selector), NOW)
                .expect("applies");
            revoked
                .apply(heartbeat(1, 30, Some(20)), NOW)
                .expect("applies");
            let judged = |pos| revoked.check(&claims(1, pos), NOW, SILENCE_MS).is_err();
            assert_eq!(
                (judged(19), judged(20), judged(25)),
                (hits, false, false),
                "{context}"
            );
        }
    }

    #[test]
    fn freeze_all_is_permanent() {
        let mut revoked = started();
        let everything = Some(Selector::All(v1::AllTokens {}));
        revoked
            .apply(event(20, Some(5), everything), NOW)
            .expect("applies");
        let late = NOW.plus_millis(KEEP_MS + PRUNE_INTERVAL_MS + 1);
        revoked
            .apply(heartbeat(1, 30, Some(20)), late)
            .expect("applies");
        assert!(revoked.check(&claims(1, 19), late, SILENCE_MS).is_err());
        // Malformed ids of a broad selector are a gap, like any other.
        let odd = Some(Selector::Agents(v1::AgentList {
            agent_ids: vec!["a/b".to_owned()],
        }));
        assert_eq!(
            revoked.apply(event(31, Some(20), odd), late),
            Err(Gap::Unknown)
        );
    }

    fn started() -> RevocationSet {
        let mut revoked = RevocationSet::default();
        revoked
            .apply(heartbeat(1, 10, Some(5)), NOW)
            .expect("heartbeat");
        revoked
    }

    fn judge(revoked: &RevocationSet, claims: &AccessTokenClaims) -> Result<(), &'static str> {
        match revoked.check(claims, NOW, SILENCE_MS) {
            Ok(()) => Ok(()),
            Err(ValidationError::Revoked) => Err("revoked"),
            Err(ValidationError::Stale) => Err("stale"),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn incomplete_feed_is_stale() {
        let mut revoked = RevocationSet::default();
        assert_eq!(judge(&revoked, &claims(1, 9)), Err("stale"));
        revoked
            .apply(event(8, Some(3), task(9)), NOW)
            .expect("event");
        assert_eq!(judge(&revoked, &claims(1, 9)), Err("stale"));
        revoked
            .apply(heartbeat(1, 10, Some(8)), NOW)
            .expect("heartbeat");
        assert_eq!(judge(&revoked, &claims(1, 9)), Ok(()));
        assert_eq!(
            revoked.position(),
            Some(JournalPosition {
                epoch: 1,
                index: 10
            })
        );
    }

    #[test]
    fn selectors_match_their_tokens() {
        let good = claims(1, 9);
        for (selector, is_revoked) in [
            (task(2), true),
            (task(9), false),
            (token(1), true),
            (token(9), false),
        ] {
            let mut revoked = started();
            revoked
                .apply(event(11, Some(5), selector.clone()), NOW)
                .expect("event");
            assert_eq!(judge(&revoked, &good).is_err(), is_revoked, "{selector:?}");
        }
    }

    #[test]
    fn agent_events_compare_positions_not_times() {
        let mut revoked = started();
        revoked
            .apply(event(20, Some(5), agent("ci")), NOW)
            .expect("event");
        assert_eq!(judge(&revoked, &claims(1, 19)), Err("revoked"));
        assert_eq!(judge(&revoked, &claims(1, 20)), Ok(()));
        assert_eq!(judge(&revoked, &claims(1, 21)), Ok(()));
        let other = AccessTokenClaims {
            client_id: AgentId::parse("cd").expect("agent"),
            ..claims(1, 1)
        };
        assert_eq!(judge(&revoked, &other), Ok(()));
        revoked
            .apply(event(30, Some(20), agent("ci")), NOW)
            .expect("event");
        assert_eq!(judge(&revoked, &claims(1, 21)), Err("revoked"));
    }

    #[test]
    fn feed_gap_rejects_until_resync() {
        let gaps = [
            (event(12, Some(11), task(9)), Gap::Missed),
            (event(12, None, task(9)), Gap::Missed),
            (event(10, Some(5), task(9)), Gap::Backwards),
            (event(3, Some(5), task(9)), Gap::Backwards),
            (heartbeat(1, 12, Some(11)), Gap::Missed),
            (heartbeat(1, 12, None), Gap::Missed),
            (heartbeat(1, 9, Some(5)), Gap::Backwards),
            (heartbeat(2, 12, Some(5)), Gap::Epoch),
            (event(12, Some(5), None), Gap::Unknown),
            (event(12, Some(5), agent("")), Gap::Unknown),
            (
                event(
                    12,
                    Some(5),
                    Some(Selector::Tasks(v1::TaskList {
                        task_ids: vec!["task_".to_owned()],
                    })),
                ),
                Gap::Unknown,
            ),
            (v1::WatchRevocationsResponse { message: None }, Gap::Unknown),
        ];
        for (message, gap) in gaps {
            let mut revoked = started();
            assert_eq!(revoked.apply(message.clone(), NOW), Err(gap), "{message:?}");
            assert_eq!(judge(&revoked, &claims(1, 9)), Err("stale"));
            assert_eq!(revoked.position(), None, "no position to continue from");
            revoked
                .apply(event(12, Some(11), task(2)), NOW)
                .expect("a start takes any prev");
            assert_eq!(judge(&revoked, &claims(1, 9)), Err("stale"));
            revoked
                .apply(heartbeat(1, 13, Some(12)), NOW)
                .expect("heartbeat");
            assert_eq!(judge(&revoked, &claims(1, 9)), Err("revoked"));
        }
    }

    #[test]
    fn resync_keeps_revocations_and_drops_position() {
        let mut revoked = started();
        revoked
            .apply(event(11, Some(5), task(2)), NOW)
            .expect("event");
        let resync = v1::RevocationResync {
            from: Some(v1::Position { epoch: 1, index: 4 }),
        };
        revoked
            .apply(
                v1::WatchRevocationsResponse {
                    message: Some(Message::Resync(resync)),
                },
                NOW,
            )
            .expect("resync");
        assert_eq!((revoked.is_complete(), revoked.position()), (false, None));
        revoked
            .apply(heartbeat(1, 13, Some(12)), NOW)
            .expect("heartbeat");
        assert_eq!(judge(&revoked, &claims(1, 9)), Err("revoked"));
    }

    #[test]
    fn epoch_change_forces_resync() {
        let mut revoked = RevocationSet::default();
        revoked
            .apply(heartbeat(2, 3, None), NOW)
            .expect("heartbeat");
        assert_eq!(judge(&revoked, &claims(1, 9_999)), Err("revoked"));
        assert_eq!(judge(&revoked, &claims(2, 0)), Ok(()));
        assert_eq!(judge(&revoked, &claims(3, 0)), Err("stale"));
    }

    #[test]
    fn feed_staleness() {
        let revoked = started();
        for (ms, stale) in [(0, false), (5_000, false), (5_001, true), (-5_001, true)] {
            assert_eq!(
                revoked.is_stale(NOW.plus_millis(ms), SILENCE_MS),
                stale,
                "{ms}"
            );
        }
    }

    #[test]
    fn revocations_are_kept_for_the_longest_token_lifetime() {
        let mut revoked = started();
        for (index, prev, selector) in [(11, 5, task(2)), (12, 11, token(1)), (13, 12, agent("ci"))]
        {
            revoked
                .apply(event(index, Some(prev), selector), NOW)
                .expect("event");
        }
        revoked.prune(NOW.plus_secs(TTL_MAX_S + 60));
        assert_eq!(
            (
                revoked.tasks.len(),
                revoked.tokens.len(),
                revoked.agents.len()
            ),
            (1, 1, 1)
        );
        revoked.prune(NOW.plus_secs(TTL_MAX_S + 301));
        assert_eq!(
            (
                revoked.tasks.len(),
                revoked.tokens.len(),
                revoked.agents.len()
            ),
            (0, 0, 0)
        );
    }
}
