//! Operations of a random history, and their frequencies.

use std::collections::BTreeMap;

use dipylon::journal::CrashPoint;
use dipylon_sdk::model::*;
use proptest::prelude::*;

use crate::support::*;

#[derive(Debug, Clone)]
pub enum Op {
    Open {
        agent: usize,
        request: u8,
    },
    Request {
        task: usize,
        action: usize,
        ttl: i64,
        request: u8,
        show: bool,
    },
    Vote {
        request: usize,
        voter: usize,
        approve: bool,
        max_ttl: Option<i64>,
    },
    /// With the newest passkey of a person, at the console.
    PasskeyVote {
        request: usize,
        voter: usize,
        approve: bool,
        max_ttl: Option<i64>,
    },
    Enrol {
        voter: usize,
    },
    /// Revokes all keys of a person, or the newest passkey.
    RevokeKeys {
        voter: usize,
        all: bool,
    },
    /// Requests, casts every vote that would count, requests again: the usual way through gate 2.
    StepUp {
        task: usize,
        action: usize,
        ttl: i64,
        request: u8,
    },
    Consume {
        token: usize,
        use_id: u8,
    },
    End {
        task: usize,
    },
    Cancel {
        request: usize,
    },
    Suspend {
        agent: usize,
    },
    Resume {
        agent: usize,
    },
    Freeze {
        scope: usize,
    },
    Unfreeze {
        scope: usize,
    },
    Revoke {
        token: usize,
    },
    KeepAlive {
        task: usize,
    },
    Rules {
        which: usize,
    },
    Advance {
        ms: u32,
    },
    Upkeep,
    Crash {
        step: usize,
        after: u8,
        cut: u8,
    },
    Restart,
}

pub fn op() -> impl Strategy<Value = Op> {
    let any_index = || any::<prop::sample::Index>().prop_map(|i| i.index(64));
    let ttl = || prop_oneof![Just(1), Just(45), Just(300), Just(5_000)];
    prop_oneof![
        3 => (0..2_usize, 0..4_u8).prop_map(|(agent, request)| Op::Open { agent, request }),
        12 => (any_index(), 0..5_usize, ttl(), 0..20_u8, prop::bool::weighted(0.7))
            .prop_map(|(task, action, ttl, request, show)| Op::Request { task, action, ttl, request, show }),
        8 => (any_index(), 0..3_usize, prop::bool::weighted(0.85), prop::option::weighted(0.3, 1..400_i64))
            .prop_map(|(request, voter, approve, max_ttl)| Op::Vote { request, voter, approve, max_ttl }),
        4 => (any_index(), 0..3_usize, prop::bool::weighted(0.85), prop::option::weighted(0.3, 1..400_i64))
            .prop_map(|(request, voter, approve, max_ttl)| Op::PasskeyVote { request, voter, approve, max_ttl }),
        3 => (0..3_usize).prop_map(|voter| Op::Enrol { voter }),
        2 => (0..3_usize, prop::bool::weighted(0.2)).prop_map(|(voter, all)| Op::RevokeKeys { voter, all }),
        14 => (any_index(), 1..4_usize, ttl(), 0..20_u8).prop_map(|(task, action, ttl, request)| Op::StepUp { task, action, ttl, request }),
        10 => (any_index(), 0..3_u8).prop_map(|(token, use_id)| Op::Consume { token, use_id }),
        2 => any_index().prop_map(|task| Op::End { task }),
        1 => any_index().prop_map(|request| Op::Cancel { request }),
        1 => (0..2_usize).prop_map(|agent| Op::Suspend { agent }),
        3 => (0..2_usize).prop_map(|agent| Op::Resume { agent }),
        1 => (0..SCOPES.len()).prop_map(|scope| Op::Freeze { scope }),
        4 => (0..SCOPES.len()).prop_map(|scope| Op::Unfreeze { scope }),
        1 => any_index().prop_map(|token| Op::Revoke { token }),
        3 => any_index().prop_map(|task| Op::KeepAlive { task }),
        3 => prop_oneof![Just(0), 0..7_usize].prop_map(|which| Op::Rules { which }),
        4 => prop_oneof![6 => 0..5_000_u32, 3 => 0..200_000_u32, 1 => Just(1_000_000)].prop_map(|ms| Op::Advance { ms }),
        1 => Just(Op::Upkeep),
        5 => (0..4_usize, 0..4_u8, any::<u8>()).prop_map(|(step, after, cut)| Op::Crash { step, after, cut }),
        1 => Just(Op::Restart),
    ]
}

pub const AGENTS: [&str; 2] = ["triage", "reporter"];

pub const SCOPES: [&str; 5] = [
    "all",
    "agent/triage",
    "owner/dana",
    "owner/maria",
    "action/account.disable",
];

pub const VOTERS: [&str; 3] = ["dana", "maria", "lee"];

pub const STEPS: [CrashPoint; 4] = [
    CrashPoint::Checked,
    CrashPoint::Written,
    CrashPoint::Committed,
    CrashPoint::Published,
];

pub fn actions() -> Vec<Action> {
    vec![
        read_case(),
        disable("ann"),
        disable("cara"),
        action("host.isolate", "Host", "web-1", IDP, &[]),
        action(
            "case.note",
            "Case",
            "INC-8841",
            CASES,
            &[("text", Param::Str("CANARY words".to_owned()))],
        ),
    ]
}

/// Policy variants that are applied in turn.
pub fn variant(env: &TestEnvironment, which: usize) -> BTreeMap<String, String> {
    match which {
        0 => env.policy.clone(),
        1 => env.policy_with("rules/20-guardrails.cedar", |t| {
            format!("{t}\n@id(\"no-disabling\") forbid (principal, action == Action::\"account.disable\", resource);\n")
        }),
        2 => env.policy_with("rules/20-guardrails.cedar", |t| t.replace("10m", "1m")),
        3 => env.policy_with("people.toml", |t| t.replacen("good_for = \"10m\"", "good_for = \"9m\"", 1)),
        4 => env.policy_with("people.toml", |t| {
            t.replacen("name = \"Maria Moreau\"\ngroups = [\"security\"]", "name = \"Maria Moreau\"\ngroups = []", 1)
        }),
        5 => env.policy_with("people.toml", |t| t.replacen("method = \"key\"", "method = \"passkey\"", 1)),
        _ => env.policy_with("agents.toml", |t| t.replacen("groups = [\"soc\"]", "groups = []", 1)),
    }
}
