//! Vectors of the revocation feed: messages, and tokens before and after them.

use serde_json::{Value, json};

use super::Former;

fn event(index: u64, previous: Option<u64>, selector: &str, value: Value) -> Value {
    event_of(1, index, previous, selector, value)
}

fn event_of(epoch: u64, index: u64, previous: Option<u64>, selector: &str, value: Value) -> Value {
    let mut event = json!({ "epoch": epoch.to_string(), "index": index.to_string() });
    if let Some(previous) = previous {
        event["previous"] = json!(previous.to_string());
    }
    event[selector] = value;
    json!({ "event": event })
}

fn heartbeat(index: u64, last_event: Option<u64>) -> Value {
    heartbeat_of(1, index, last_event)
}

fn heartbeat_of(epoch: u64, index: u64, last_event: Option<u64>) -> Value {
    let position = json!({ "epoch": epoch.to_string(), "index": index.to_string() });
    let mut heartbeat = json!({ "position": position });
    if let Some(last) = last_event {
        heartbeat["last_event"] = json!(last.to_string());
    }
    json!({ "heartbeat": heartbeat })
}

fn resync(index: u64) -> Value {
    json!({ "resync": { "from": { "epoch": "1", "index": index.to_string() } } })
}

const TASK: &str = "task_BQUFBQUFBQUFBQUFBQUFBQ";
const JTI: &str = "tok_BAQEBAQEBAQEBAQEBAQEBA";

/// The claims that the feed's selectors look at.
fn token(epoch: u64, pos: u64, expect: &str) -> Value {
    json!({ "txn": TASK, "jti": JTI, "client_id": "triage", "action": "account.disable", "epoch": epoch, "pos": pos,
        "expect": expect })
}

fn with(mut token: Value, name: &str, value: &str) -> Value {
    token[name] = json!(value);
    token
}

/// Sequences of messages.
pub fn revocation_feed(_former: &Former) -> Value {
    let tasks = |ids: &[&str]| json!({ "task_ids": ids });
    let other = "task_AAAAAAAAAAAAAAAAAAAAAA";
    let of_triage = || event(50, None, "agent_id", json!("triage"));
    let judged = |pos: u64, expect: &str| vec![token(1, pos, expect)];
    let start = |messages: Vec<Value>| [vec![resync(0)], messages].concat();
    let table: Vec<(&str, Vec<Value>, u64, Vec<Value>)> = vec![
        ("nothing yet", vec![], 0, judged(41, "unknown")),
        (
            "an empty feed",
            start(vec![heartbeat(60, None)]),
            0,
            judged(41, "accepted"),
        ),
        (
            "silence for five seconds",
            start(vec![heartbeat(60, None)]),
            5_000,
            judged(41, "accepted"),
        ),
        (
            "silence for longer",
            start(vec![heartbeat(60, None)]),
            5_001,
            judged(41, "unknown"),
        ),
        (
            "silence for longer, after a revocation",
            start(vec![
                event(50, None, "tasks", tasks(&[TASK])),
                heartbeat(60, Some(50)),
            ]),
            5_001,
            judged(41, "unknown"),
        ),
        (
            "a new journal, whose epoch is 0",
            vec![
                json!({ "resync": { "from": {} } }),
                json!({ "heartbeat": { "position": { "index": "60" } } }),
            ],
            0,
            vec![token(0, 41, "accepted"), token(1, 41, "unknown")],
        ),
        (
            "an event before the first heartbeat",
            start(vec![event(50, None, "tasks", tasks(&[other]))]),
            0,
            judged(41, "unknown"),
        ),
        (
            "a task",
            start(vec![
                event(50, None, "tasks", tasks(&[other, TASK])),
                heartbeat(60, Some(50)),
            ]),
            0,
            vec![
                token(1, 41, "revoked"),
                token(1, 70, "revoked"),
                with(
                    token(1, 41, "accepted"),
                    "txn",
                    "task_AQEBAQEBAQEBAQEBAQEBAQ",
                ),
            ],
        ),
        (
            "a token",
            start(vec![
                event(50, None, "tokens", json!({ "jtis": [JTI] })),
                heartbeat(60, Some(50)),
            ]),
            0,
            vec![
                token(1, 41, "revoked"),
                with(
                    token(1, 41, "accepted"),
                    "jti",
                    "tok_AQEBAQEBAQEBAQEBAQEBAQ",
                ),
            ],
        ),
        (
            "an agent, up to a position",
            start(vec![of_triage(), heartbeat(60, Some(50))]),
            0,
            vec![
                token(1, 41, "revoked"),
                token(1, 49, "revoked"),
                token(1, 50, "accepted"),
                token(1, 55, "accepted"),
                with(token(1, 41, "accepted"), "client_id", "reporter"),
            ],
        ),
        (
            "several agents",
            start(vec![
                event(
                    50,
                    None,
                    "agents",
                    json!({ "agent_ids": ["reporter", "triage"] }),
                ),
                heartbeat(60, Some(50)),
            ]),
            0,
            vec![token(1, 49, "revoked"), token(1, 50, "accepted")],
        ),
        (
            "an action, up to a position",
            start(vec![
                event(50, None, "action", json!("account.disable")),
                heartbeat(60, Some(50)),
            ]),
            0,
            vec![
                token(1, 49, "revoked"),
                token(1, 50, "accepted"),
                with(token(1, 49, "accepted"), "action", "case.read"),
            ],
        ),
        (
            "all tokens, up to a position",
            start(vec![
                event(50, None, "all", json!({})),
                heartbeat(60, Some(50)),
            ]),
            0,
            vec![token(1, 49, "revoked"), token(1, 50, "accepted")],
        ),
        (
            "the newest event of an agent counts",
            start(vec![
                of_triage(),
                event(55, Some(50), "agent_id", json!("triage")),
                heartbeat(60, Some(55)),
            ]),
            0,
            vec![token(1, 52, "revoked"), token(1, 55, "accepted")],
        ),
        (
            "an event after a heartbeat counts at once",
            start(vec![
                heartbeat(60, None),
                event(61, None, "tasks", tasks(&[TASK])),
            ]),
            0,
            judged(41, "revoked"),
        ),
        (
            "the first event of a start may name an older one",
            start(vec![
                event(50, Some(12), "tasks", tasks(&[other])),
                heartbeat(60, Some(50)),
            ]),
            0,
            judged(41, "accepted"),
        ),
        (
            "a gap between events",
            start(vec![
                heartbeat(45, Some(40)),
                event(50, Some(47), "tasks", tasks(&[other])),
            ]),
            0,
            judged(41, "unknown"),
        ),
        (
            "an event without `previous` after a known one",
            start(vec![
                heartbeat(45, Some(40)),
                event(50, None, "tasks", tasks(&[other])),
            ]),
            0,
            judged(41, "unknown"),
        ),
        (
            "a gap before a heartbeat",
            start(vec![of_triage(), heartbeat(60, Some(55))]),
            0,
            judged(55, "unknown"),
        ),
        (
            "an event of the past",
            start(vec![
                heartbeat(60, None),
                event(60, None, "tasks", tasks(&[other])),
            ]),
            0,
            judged(41, "unknown"),
        ),
        (
            "a heartbeat of the past",
            start(vec![heartbeat(60, None), heartbeat(59, None)]),
            0,
            judged(41, "unknown"),
        ),
        (
            "the same heartbeat again",
            start(vec![heartbeat(60, None), heartbeat(60, None)]),
            0,
            judged(41, "accepted"),
        ),
        (
            "a heartbeat without `last_event` after a known one",
            start(vec![heartbeat(60, Some(40)), heartbeat(61, None)]),
            0,
            judged(41, "unknown"),
        ),
        (
            "a heartbeat without a position",
            start(vec![heartbeat(60, None), json!({ "heartbeat": {} })]),
            0,
            judged(41, "unknown"),
        ),
        (
            "a heartbeat of another epoch in mid-stream",
            start(vec![heartbeat(60, None), heartbeat_of(2, 61, None)]),
            0,
            judged(41, "unknown"),
        ),
        (
            "an event of another epoch in mid-stream",
            start(vec![
                heartbeat(60, None),
                event_of(2, 61, None, "tasks", tasks(&[other])),
            ]),
            0,
            judged(41, "unknown"),
        ),
        (
            "an event of an earlier epoch in mid-stream",
            start(vec![
                heartbeat(60, None),
                event_of(0, 61, None, "tasks", tasks(&[other])),
            ]),
            0,
            judged(41, "unknown"),
        ),
        (
            "an unknown selector",
            start(vec![
                heartbeat(45, None),
                json!({ "event": { "epoch": "1", "index": "50" } }),
            ]),
            0,
            judged(41, "unknown"),
        ),
        (
            "an unknown message",
            start(vec![heartbeat(60, None), json!({})]),
            0,
            judged(41, "unknown"),
        ),
        (
            "a list with an id that is none",
            start(vec![
                heartbeat(45, None),
                event(50, None, "tasks", tasks(&[other, "task_x"])),
            ]),
            0,
            judged(41, "unknown"),
        ),
        (
            "after a gap, a new start",
            start(vec![
                heartbeat(45, Some(40)),
                event(50, Some(47), "tasks", tasks(&[other])),
                resync(0),
                event(47, Some(40), "tasks", tasks(&[TASK])),
                event(50, Some(47), "tasks", tasks(&[other])),
                heartbeat(60, Some(50)),
            ]),
            0,
            judged(41, "revoked"),
        ),
        (
            "a resync keeps what is revoked, and waits for a heartbeat",
            start(vec![
                event(50, None, "tasks", tasks(&[TASK])),
                heartbeat(60, Some(50)),
                resync(55),
            ]),
            0,
            judged(41, "unknown"),
        ),
        (
            "revoked before a resync is revoked after it",
            start(vec![
                event(50, None, "tasks", tasks(&[TASK])),
                heartbeat(60, Some(50)),
                resync(55),
                heartbeat(61, None),
            ]),
            0,
            judged(41, "revoked"),
        ),
        (
            "a newer epoch revokes the tokens of older ones",
            vec![resync(0), heartbeat_of(2, 5, None)],
            0,
            vec![
                token(1, 41, "revoked"),
                token(2, 0, "accepted"),
                token(2, 9, "accepted"),
                token(3, 0, "unknown"),
            ],
        ),
        (
            "an epoch that is not read yet cannot be judged, whatever is known",
            start(vec![
                event(50, None, "tasks", tasks(&[TASK])),
                heartbeat(60, Some(50)),
            ]),
            0,
            vec![token(1, 41, "revoked"), token(2, 0, "unknown")],
        ),
    ];
    let vectors: Vec<Value> = table
        .into_iter()
        .map(|(name, messages, silence, tokens)| {
            json!({ "name": name, "messages": messages, "silence_ms": silence, "tokens": tokens })
        })
        .collect();
    json!({
        "comment": "A resource server starts without a position, receives `messages` (dipylon.v1.WatchRevocationsResponse in \
            ProtoJSON) at one moment, then none for `silence_ms` milliseconds. At that moment each token (of the given claims; `action` is \
            that of its authorization_details) must be accepted, refused as revoked, or refused because it cannot be judged \
            (`unknown`: out of touch). 64-bit integers are texts, and a \
            zero may be left out. Silence is tolerated for five seconds. After a gap the server drops its position and watches \
            again; further messages are of that watch.",
        "vectors": vectors,
    })
}
