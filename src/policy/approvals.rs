//! Limits on access requests: `[approvals]` in `people.toml`.

use super::toml_reader::TableReader;
use crate::model::{ParseError, Risk, parse_duration};

/// Limits on access requests, and the consequences of denials: `[approvals]` in `people.toml`. They bound approval fatigue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApprovalLimits {
    /// Access requests that enter one person's inbox in a minute; further ones wait. 1 to 100,000.
    pub asks_per_minute: u32,
    /// Pending access requests of one agent. 1 to 10,000.
    pub pending_per_agent: u32,
    /// Pending access requests of all agents of one owner. 1 to 100,000.
    pub pending_per_owner: u32,
    /// Access requests that one agent may open in a minute, decided ones included, up to 256; 0 = off.
    pub opens_per_minute: u32,
    /// Seconds a person must have viewed a high-risk card before their approval is accepted; 0 = off.
    pub dwell_s: u32,
    /// Seconds after a denial until the agent may open an access request again, for the first denial, the second and so on;
    /// the last holds for all further ones. Denials older than [`ApprovalLimits::DENIAL_WINDOW_S`] do not count.
    pub back_off_s: Vec<u32>,
    /// Denials within [`ApprovalLimits::quarantine_within_s`] that suspend the agent; 0 = off.
    pub quarantine: u32,
    /// The window of `quarantine`, in seconds.
    pub quarantine_within_s: u32,
    /// A vote by a registered key counts for actions whose risk is below this one; with `low` it never counts. Others take a
    /// vote by passkey.
    pub key_votes_below: Risk,
    /// The risk of an action from which on a passkey counts only once another person than its inviter has confirmed it; an action
    /// without `@risk` counts as high. Below it an unconfirmed passkey counts as its inviter's hand.
    pub confirm_at_or_above: Risk,
}

impl Default for ApprovalLimits {
    fn default() -> Self {
        Self {
            asks_per_minute: 5,
            pending_per_agent: 5,
            pending_per_owner: 20,
            opens_per_minute: 10,
            dwell_s: 3,
            back_off_s: vec![60, 300, 1_800],
            quarantine: 3,
            quarantine_within_s: 600,
            key_votes_below: Risk::High,
            confirm_at_or_above: Risk::High,
        }
    }
}

impl ApprovalLimits {
    /// Seconds for which a denial counts for the back-off.
    pub const DENIAL_WINDOW_S: i64 = 3_600;

    /// Reads the table; absent keys keep their defaults.
    pub(super) fn read(mut fields: TableReader<'_, '_>) -> Self {
        let or = Self::default();
        let read = Self {
            asks_per_minute: fields
                .number("asks_per_minute", 1..=100_000)
                .unwrap_or(or.asks_per_minute),
            pending_per_agent: fields
                .number("pending_per_agent", 1..=10_000)
                .unwrap_or(or.pending_per_agent),
            pending_per_owner: fields
                .number("pending_per_owner", 1..=100_000)
                .unwrap_or(or.pending_per_owner),
            opens_per_minute: fields
                .number("opens_per_minute", 0..=OPENS_MAX)
                .unwrap_or(or.opens_per_minute),
            dwell_s: fields.optional("dwell", dwell).unwrap_or(or.dwell_s),
            back_off_s: match fields.get("back_off") {
                Some(_) => {
                    // A set is sorted: the delays increase.
                    let delays =
                        fields.text_set("back_off", |text| parse_duration("back_off", text));
                    delays.into_iter().collect()
                }
                None => or.back_off_s,
            },
            quarantine: fields
                .number("quarantine", 0..=QUARANTINE_MAX)
                .unwrap_or(or.quarantine),
            quarantine_within_s: fields
                .optional("quarantine_within", |text| {
                    parse_duration("quarantine_within", text)
                })
                .unwrap_or(or.quarantine_within_s),
            key_votes_below: fields
                .optional("key_votes_below", Risk::parse)
                .unwrap_or(or.key_votes_below),
            confirm_at_or_above: fields
                .optional("confirm_at_or_above", Risk::parse)
                .unwrap_or(or.confirm_at_or_above),
        };
        fields.finish();
        read
    }
}

/// Largest `opens_per_minute`: state keeps that many.
const OPENS_MAX: u32 = 256;
/// Largest `quarantine`: state keeps that many denials.
const QUARANTINE_MAX: u32 = 32;
/// Longest dwell, in seconds: well below the two minutes a statement waits for its signature.
const DWELL_MAX_S: u32 = 60;

fn dwell(text: &str) -> Result<u32, ParseError> {
    if text == "off" {
        return Ok(0);
    }
    match parse_duration("dwell", text)? {
        seconds if seconds <= DWELL_MAX_S => Ok(seconds),
        _ => Err(ParseError::new("dwell", "must be \"off\" or at most 60s")),
    }
}
