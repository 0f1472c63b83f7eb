//! Operations of a random history, and their frequencies.

use std::collections::BTreeMap;

use dipylon::journal::CrashPoint;
use dipylon_sdk::model::*;
use proptest::prelude::*;

use crate::support::environment::around_person;
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
        /// One of [`Pool`], instead of the voter's registered key.
        key: Option<PoolKey>,
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
        /// One of the pool, instead of a new key.
        key: Option<PoolKey>,
    },
    /// Confirms the newest passkey of a person.
    Confirm {
        voter: usize,
        by: usize,
    },
    /// Revokes all keys of a person, or the newest passkey.
    RevokeKeys {
        voter: usize,
        all: bool,
        compromised: bool,
    },
    /// Signs in with a copy of a passkey, whose counter went back.
    CopiedPasskey {
        voter: usize,
    },
    /// Opens a task with a key of the pool.
    OpenWith {
        agent: usize,
        key: PoolKey,
    },
    /// Changes the registration of a person.
    People {
        voter: usize,
        change: PersonChange,
        returning: bool,
    },
    /// Requests, casts every vote that would count, requests again: the usual way through gate 2.
    StepUp {
        task: usize,
        action: usize,
        ttl: i64,
        request: u8,
        /// Before the second request a voter goes and comes again.
        gone: Option<Gone>,
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
    /// Sets a fact to this value, for so many seconds where it is not the normal one.
    Fact {
        fact: usize,
        value: bool,
        seconds: u32,
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

/// How a voter goes, and comes again with the same key.
#[derive(Debug, Clone, Copy)]
pub struct Gone {
    pub is_dropped: bool,
    pub returning: bool,
}

/// A key that people, services and agents may try to have, or its negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolKey {
    pub n: usize,
    pub is_negated: bool,
}

/// What a bundle changes for a person.
#[derive(Debug, Clone, Copy)]
pub enum PersonChange {
    Drop,
    Add(PoolKey),
    Role(bool),
    Key(PoolKey),
}

/// What a bundle registers of a person.
#[derive(Debug, Clone, Copy)]
pub struct Registration {
    pub is_registered: bool,
    pub is_approver: bool,
    pub key: PoolKey,
}

impl Registration {
    pub const fn changed(self, change: PersonChange) -> Self {
        match change {
            PersonChange::Drop => Self {
                is_registered: false,
                ..self
            },
            PersonChange::Add(key) => Self {
                is_registered: true,
                is_approver: true,
                key,
            },
            PersonChange::Role(is_approver) => Self {
                is_approver,
                ..self
            },
            PersonChange::Key(key) => Self { key, ..self },
        }
    }
}

/// The keys of the voters, a validator's, and three that are nobody's yet.
pub const POOL: usize = 7;

fn pool_key() -> impl Strategy<Value = PoolKey> {
    (0..POOL, prop::bool::weighted(0.3)).prop_map(|(n, is_negated)| PoolKey { n, is_negated })
}

fn gone() -> impl Strategy<Value = Gone> {
    (any::<bool>(), prop::bool::weighted(0.8)).prop_map(|(is_dropped, returning)| Gone {
        is_dropped,
        returning,
    })
}

fn person_change() -> impl Strategy<Value = PersonChange> {
    prop_oneof![
        3 => Just(PersonChange::Drop),
        3 => pool_key().prop_map(PersonChange::Add),
        1 => Just(PersonChange::Role(false)),
        3 => Just(PersonChange::Role(true)),
        3 => pool_key().prop_map(PersonChange::Key),
    ]
}

pub fn op() -> impl Strategy<Value = Op> {
    let any_index = || any::<prop::sample::Index>().prop_map(|i| i.index(64));
    let ttl = || prop_oneof![Just(1), Just(45), Just(300), Just(5_000)];
    prop_oneof![
        5 => (0..AGENTS.len(), 0..4_u8).prop_map(|(agent, request)| Op::Open { agent, request }),
        12 => (any_index(), 0..5_usize, ttl(), 0..20_u8, prop::bool::weighted(0.7))
            .prop_map(|(task, action, ttl, request, show)| Op::Request { task, action, ttl, request, show }),
        8 => (any_index(), 0..3_usize, prop::option::weighted(0.3, pool_key()), prop::bool::weighted(0.85), prop::option::weighted(0.3, 1..400_i64))
            .prop_map(|(request, voter, key, approve, max_ttl)| Op::Vote { request, voter, key, approve, max_ttl }),
        4 => (any_index(), 0..3_usize, prop::bool::weighted(0.85), prop::option::weighted(0.3, 1..400_i64))
            .prop_map(|(request, voter, approve, max_ttl)| Op::PasskeyVote { request, voter, approve, max_ttl }),
        3 => (0..3_usize, prop::option::weighted(0.4, pool_key())).prop_map(|(voter, key)| Op::Enrol { voter, key }),
        3 => (0..3_usize, 0..CONFIRMERS.len()).prop_map(|(voter, by)| Op::Confirm { voter, by }),
        2 => (0..3_usize, prop::bool::weighted(0.2), any::<bool>())
            .prop_map(|(voter, all, compromised)| Op::RevokeKeys { voter, all, compromised }),
        1 => (0..3_usize).prop_map(|voter| Op::CopiedPasskey { voter }),
        1 => (0..AGENTS.len(), pool_key()).prop_map(|(agent, key)| Op::OpenWith { agent, key }),
        // Maria owns an agent, and stays.
        6 => (0..3_usize, person_change(), any::<bool>()).prop_map(|(voter, change, returning)| {
            let voter = if matches!(change, PersonChange::Drop | PersonChange::Add(_)) { 2 } else { voter };
            Op::People { voter, change, returning }
        }),
        14 => (any_index(), 1..4_usize, ttl(), 0..20_u8, prop::option::weighted(0.15, gone()))
            .prop_map(|(task, action, ttl, request, gone)| Op::StepUp { task, action, ttl, request, gone }),
        10 => (any_index(), 0..3_u8).prop_map(|(token, use_id)| Op::Consume { token, use_id }),
        2 => any_index().prop_map(|task| Op::End { task }),
        1 => any_index().prop_map(|request| Op::Cancel { request }),
        1 => (0..2_usize).prop_map(|agent| Op::Suspend { agent }),
        3 => (0..2_usize).prop_map(|agent| Op::Resume { agent }),
        1 => (0..SCOPES.len()).prop_map(|scope| Op::Freeze { scope }),
        4 => (0..SCOPES.len()).prop_map(|scope| Op::Unfreeze { scope }),
        6 => (0..FACTS.len(), any::<bool>(), 1..600_u32).prop_map(|(fact, value, seconds)| Op::Fact { fact, value, seconds }),
        1 => any_index().prop_map(|token| Op::Revoke { token }),
        3 => any_index().prop_map(|task| Op::KeepAlive { task }),
        3 => prop_oneof![Just(0), 0..8_usize].prop_map(|which| Op::Rules { which }),
        4 => prop_oneof![6 => 0..5_000_u32, 3 => 0..200_000_u32, 1 => Just(1_000_000)].prop_map(|ms| Op::Advance { ms }),
        1 => Just(Op::Upkeep),
        5 => (0..4_usize, 0..4_u8, any::<u8>()).prop_map(|(step, after, cut)| Op::Crash { step, after, cut }),
        1 => Just(Op::Restart),
    ]
}

pub const AGENTS: [&str; 4] = ["triage", "reporter", "assistant", "responder"];
/// The one of them that executes what the assistant recommends.
pub const RESPONDER: usize = 3;

pub const SCOPES: [&str; 5] = [
    "all",
    "agent/triage",
    "owner/dana",
    "owner/maria",
    "action/account.disable",
];

/// Facts of the bundle with their normal values: what `lockdown` disallows ends.
pub const FACTS: [(&str, bool); 2] = [("lockdown", false), ("incident", false)];

/// The bundle of these histories: an example with facts.
pub fn environment() -> TestEnvironment {
    let mut env = TestEnvironment::new();
    let facts = "[fact.lockdown]\ntitle = \"Nobody's account is touched\"\nsafe = true\nnormal = false\nmax = \"1h\"\nends = true\n\
         [fact.incident]\ntitle = \"An incident is being handled\"\nsafe = false\nmax = \"1h\"\n";
    let rules = "@id(\"lockdown\") forbid (principal, action == Action::\"account.disable\", resource) when { context.facts.lockdown };\n\
         @id(\"isolating-is-short\") @max_ttl(\"1m\") forbid (principal, action == Action::\"host.isolate\", resource) \
         unless { context.facts.incident || context.ttl <= duration(\"1m\") };\n";
    let counts = "[count.notes]\ntitle = \"Notes of one agent\"\nof = \"tokens\"\nper = [\"agent\"]\nactions = [\"case.note\"]\nwithin = \"1m\"\n\
         [count.denials]\ntitle = \"Denials of one owner's agents\"\nof = \"denials\"\nper = [\"owner\"]\nwithin = \"5m\"\n\
         [count.uses]\ntitle = \"Uses of everybody\"\nof = \"uses\"\nper = [\"action\"]\nwithin = \"10m\"\n\
         [count.requests]\ntitle = \"Requests of one agent\"\nof = \"requests\"\nper = [\"agent\"]\nwithin = \"1h\"\n";
    let few = "@id(\"few-notes\") forbid (principal, action == Action::\"case.note\", resource) unless { context.counts.notes < 2 };\n\
         @id(\"trouble\") @step_up(\"one-security\") forbid (principal, action == Action::\"case.read\", resource) \
         unless { context.counts.denials < 2 || context.approvals.containsAny([StepUp::\"one-security\", StepUp::\"two-security\"]) };\n\
         @id(\"few-uses\") @max_ttl(\"1m\") forbid (principal, action == Action::\"account.disable\", resource) \
         unless { (context.counts.uses < 1 && context.counts.requests < 6) || context.ttl <= duration(\"1m\") };\n";
    let files = &mut env.policy;
    files.insert("facts.toml".to_owned(), facts.to_owned());
    files.insert("rules/90-facts.cedar".to_owned(), rules.to_owned());
    files.insert("counts.toml".to_owned(), counts.to_owned());
    files.insert("rules/91-counts.cedar".to_owned(), few.to_owned());
    files.remove("tests.toml");
    env
}

pub const VOTERS: [&str; 3] = ["dana", "maria", "lee"];

/// The operator invites everyone, and confirms nobody.
pub const CONFIRMERS: [&str; 4] = ["dana", "maria", "lee", "olga"];

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

/// A policy variant with other people.
pub fn with_people(
    env: &TestEnvironment,
    which: usize,
    people: &[Registration; 3],
    row: impl Fn(&str, PoolKey) -> String,
) -> BTreeMap<String, String> {
    let mut files = variant(env, which);
    let text = files.get_mut("people.toml").expect("people");
    for (id, person) in VOTERS.into_iter().zip(people) {
        let (before, table, after) = around_person(text, id);
        let table = match (person.is_registered, person.is_approver) {
            (false, _) => String::new(),
            (true, true) => table.to_owned(),
            (true, false) => table.replace("roles = [\"approver\"]", "roles = []"),
        };
        let row = match person.is_registered {
            true => row(id, person.key),
            false => String::new(),
        };
        *text = format!("{before}{table}{after}").replace(&env.own_key(id).row(id), &row);
    }
    files
}

/// Policy variants that are applied in turn.
fn variant(env: &TestEnvironment, which: usize) -> BTreeMap<String, String> {
    match which {
        0 => env.policy.clone(),
        1 => env.policy_with("rules/20-guardrails.cedar", |t| {
            format!("{t}\n@id(\"no-disabling\") forbid (principal, action == Action::\"account.disable\", resource) when {{ context.evidence.verified_age < duration(\"365d\") }};\n")
        }),
        2 => env.policy_with("rules/20-guardrails.cedar", |t| t.replace("10m", "1m")),
        3 => env.policy_with("people.toml", |t| t.replacen("good_for = \"10m\"", "good_for = \"9m\"", 1)),
        4 => env.policy_with("people.toml", |t| {
            t.replacen("name = \"Maria Moreau\"\ngroups = [\"security\"]", "name = \"Maria Moreau\"\ngroups = []", 1)
        }),
        5 => env.policy_with("people.toml", |t| t.replacen("method = \"key\"", "method = \"passkey\"", 1)),
        // Keys lift nothing, and nothing needs to be lifted.
        6 => {
            let mut files = env.policy_with("schema.cedarschema", |t| t.replace("@risk(\"medium\")", "@risk(\"high\")"));
            files.remove("rules/20-guardrails.cedar").expect("the file");
            files
        }
        _ => env.policy_with("agents.toml", |t| t.replacen("groups = [\"soc\"]", "groups = []", 1)),
    }
}
