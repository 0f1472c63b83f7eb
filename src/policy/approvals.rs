use std::collections::BTreeSet;

use super::table::Fields;
use crate::model::{ParseError, parse_duration};

/// How much people are asked, and what follows from their noes: `[approvals]` in `people.toml`. Fatigue is how step-up
/// fails, so all of it has a bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Approvals {
    /// Access requests that come into one person's inbox in a minute; more wait their turn. 1 to 100,000.
    pub asks_per_minute: u32,
    /// Access requests of one agent that may wait. 1 to 10,000.
    pub pending_per_agent: u32,
    /// Access requests of all agents of one owner that may wait. 1 to 100,000.
    pub pending_per_owner: u32,
    /// Access requests that one agent may open in a minute, whatever becomes of them, up to 256; 0 = off.
    pub opens_per_minute: u32,
    /// Seconds that a card of high risk must have been before a person's eyes before a yes of theirs is taken; 0 = off.
    pub dwell_s: u32,
    /// Seconds after a person's no until the agent may ask people again, for the first no, the second and so on; the last
    /// holds for all further ones. Noes older than [`Approvals::MEMORY_S`] are forgotten.
    pub back_off_s: Vec<u32>,
    /// So many noes within [`Approvals::quarantine_within_s`] take the agent out of service; 0 = off.
    pub quarantine: u32,
    /// Seconds.
    pub quarantine_within_s: u32,
}

impl Default for Approvals {
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
        }
    }
}

impl Approvals {
    /// Seconds after which a no no longer makes an agent wait.
    pub const MEMORY_S: i64 = 3_600;

    /// Reads the table; what it does not say keeps its default.
    pub(super) fn read(mut fields: Fields<'_, '_>) -> Self {
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
                    growing(fields.words("back_off", |text| parse_duration("back_off", text)))
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
        };
        fields.end();
        read
    }
}

/// Most openings in a minute: state remembers as many.
const OPENS_MAX: u32 = 256;
/// Most noes a quarantine may wait for: state remembers as many.
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

/// Distinct lengths, shortest first.
fn growing(lengths: BTreeSet<u32>) -> Vec<u32> {
    lengths.into_iter().collect()
}
