//! People, roles, groups and keys that a bundle or an invitation adds count for access requests opened after it.

use std::collections::BTreeMap;

use dipylon_sdk::model::*;

use super::{HIGH, TWO, World, environment_of_keys};
use crate::support::agent_in_task::person_id;
use crate::support::environment::around_person;
use crate::support::own_key::OwnKey;
use crate::support::passkey_votes::approve;
use crate::support::*;

type Files = BTreeMap<String, String>;

/// The bundle in which the table of lee is another one.
fn with_lee(env: &TestEnvironment, from: &str, to: &str) -> Files {
    env.policy_with("people.toml", |text| {
        let (before, lee, after) = around_person(text, "lee");
        assert!(lee.contains(from));
        format!("{before}{}{after}", lee.replace(from, to))
    })
}

/// How lee is before the access request is opened, and what adds a vote after it.
struct Case {
    name: &'static str,
    before: Option<fn(&TestEnvironment) -> Files>,
    after: fn(&TestEnvironment) -> Files,
    returning: &'static [&'static str],
    why: &'static str,
}

const CASES: [Case; 5] = [
    Case {
        name: "a group",
        before: Some(|env| with_lee(env, "[\"security\"]", "[]")),
        after: |env| env.policy.clone(),
        returning: &[],
        why: "became an approver of this group after",
    },
    Case {
        name: "a role",
        before: Some(|env| with_lee(env, "roles = [\"approver\"]", "roles = []")),
        after: |env| env.policy.clone(),
        returning: &[],
        why: "became an approver of this group after",
    },
    Case {
        name: "a role given back",
        before: Some(|env| with_lee(env, "roles = [\"approver\"]", "roles = []")),
        after: |env| env.policy.clone(),
        returning: &["lee"],
        why: "became an approver of this group after",
    },
    Case {
        name: "the person, returning",
        before: Some(|env| env.without_person("lee")),
        after: |env| env.policy.clone(),
        returning: &["lee"],
        why: "became an approver of this group after",
    },
    Case {
        name: "the person, with a key that no entry has named",
        before: None,
        after: |env| env.policy.clone(),
        returning: &[],
        why: "became an approver of this group after",
    },
];

/// Whether lee's vote counts, and why not.
async fn vote(world: &World, id: AccessRequestId) -> Result<(), String> {
    let voted = world.b.vote("lee", id, TWO, Verdict::Approve).await;
    voted.map(drop).map_err(|refusal| {
        assert_eq!(refusal.reason, Reason::NotEligible, "{}", refusal.message);
        refusal.message
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_bundle_adds_counts_for_later_requests() {
    for case in CASES {
        let mut env = environment_of_keys();
        env.add_key("yan");
        let full = env.policy.clone();
        if case.before.is_none() {
            env.policy = env.without_person("lee");
        }
        let mut world = World::new(env).await;
        if let Some(before) = case.before {
            let files = before(&world.b.env);
            world.b.apply_policy(files).await.expect("in force");
        }
        let id = world.request(HIGH, "r-1").await;
        let files = match case.before {
            Some(_) => (case.after)(&world.b.env),
            None => full,
        };
        let applied = world.b.apply_returning(files, case.returning).await;
        applied.expect(case.name);
        for is_restarted in [false, true] {
            if is_restarted {
                world = world.restart().await;
            }
            let why = vote(&world, id).await.expect_err(case.name);
            assert!(why.contains(case.why), "{}: {why}", case.name);
        }
        // The agent cancels it and asks again.
        world.cancel(id).await;
        let again = world.request(HIGH, "r-2").await;
        vote(&world, again).await.expect(case.name);
        world.b.check_invariants();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn key_that_was_added_counts_for_later_requests() {
    let mut world = World::new(environment_of_keys()).await;
    let second = OwnKey::generate();
    let id = world.request(HIGH, "r-1").await;
    let files = world
        .b
        .env
        .policy_with("people.toml", |text| format!("{text}{}", second.row("lee")));
    world.b.apply_policy(files).await.expect("in force");
    let zoe = world.enrol("zoe").await;
    world.confirm("maria", &zoe).await;
    world = world.restart().await;
    let zoe = world.sign_in_again(zoe).await;
    world
        .assert_not_eligible(&zoe, id, "the key was added after the access request")
        .await;
    let ask = dipylon::broker::VoteInput {
        profile: ProfileName::parse(TWO).expect("profile"),
        ..approve()
    };
    let refusal = world
        .b
        .vote_with(&second.key, id, ask)
        .await
        .expect_err("too new");
    assert_eq!(refusal.reason, Reason::NotEligible);
    assert!(
        refusal.message.contains("vote with an older key"),
        "{}",
        refusal.message
    );
    // The person's older key counts.
    world.b.approve("lee", id, TWO).await;
    assert_eq!(world.counted(id), ["lee"]);
    world.cancel(id).await;
    let again = world.request(HIGH, "r-2").await;
    world.vote(&zoe, again).await.expect("counts");
    let ask = dipylon::broker::VoteInput {
        profile: ProfileName::parse(TWO).expect("profile"),
        ..approve()
    };
    world
        .b
        .vote_with(&second.key, again, ask)
        .await
        .expect("counts");
    world.ask(HIGH, "r-2").await.token();
    assert!(
        world
            .b
            .broker
            .show()
            .person(&person_id("zoe"))
            .key_since(world.b.newest_passkey("zoe"))
            > 0
    );
    world.b.check_invariants();
}
