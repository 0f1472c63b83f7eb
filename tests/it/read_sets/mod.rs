//! What a decision read, its append rests on: whatever comes between the last read of a call and its append, the call ends as if it
//! had come first.

mod between;
mod world;

use std::collections::BTreeMap;

use dipylon_sdk::model::*;
use tokio::task::JoinSet;

use between::{BETWEEN, Between};
use world::{CALLS, Call, World};

/// Each call with each thing that may come between its last read and its append: either the call is asked anew, or it ends as it does
/// when the thing came before it, in a world of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_between_is_as_if_it_came_first() {
    // Calls that pass a gate meet everything; orders meet what shares a stream with some order.
    let met = |call: &'static Call| {
        let all = BETWEEN.iter();
        all.filter(move |between| call.passes_gate || between.meets_orders)
            // Calls about one thing take turns, and an apply waits for the one before it: they are never between each other.
            .filter(move |between| !call.waits_for(between))
            .map(move |between| (call, between))
    };
    let mut pairs = CALLS.iter().flat_map(met);
    let mut running = JoinSet::new();
    let mut asked_anew: BTreeMap<&str, usize> = BTreeMap::new();
    let mut different = Vec::new();
    loop {
        while running.len() < 4
            && let Some((call, between)) = pairs.next()
        {
            running.spawn(async move { (call, interposed(call, between).await) });
        }
        let Some(done) = running.join_next().await else {
            break;
        };
        let (call, ended) = done.expect("runs");
        match ended {
            Ended::AskedAnew => *asked_anew.entry(call.name).or_default() += 1,
            Ended::AsIfFirst => {}
            Ended::Otherwise(how) => different.push(how),
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
    // The table is not idle.
    for call in CALLS {
        let anew = asked_anew.get(call.name).copied().unwrap_or(0);
        assert!(anew >= call.anew_at_least, "{}: {anew}", call.name);
    }
}

enum Ended {
    AskedAnew,
    AsIfFirst,
    Otherwise(String),
}

async fn interposed(call: &'static Call, between: &'static Between) -> Ended {
    let world = World::build().await;
    world.interpose(call, between);
    let late = call.run(&world).await;
    let name = format!("{} before {}", between.name, call.name);
    if between.name == "nothing" {
        assert_eq!(late, call.alone, "{}", call.name);
    }
    match world.rounds_after_the_hook() {
        None => Ended::Otherwise(format!("{name}: the call ended without a round: {late}")),
        Some(0) => {
            let world = World::build().await;
            between.run(&world).await;
            let first = call.run(&world).await;
            match first == late {
                true => Ended::AsIfFirst,
                false => Ended::Otherwise(format!("{name}: {first}, between: {late}")),
            }
        }
        Some(_) => Ended::AskedAnew,
    }
}

/// The outcome of a call, in one word.
pub fn outcome<T>(
    result: Result<T, dipylon::broker::Refusal>,
    word: impl FnOnce(T) -> String,
) -> String {
    match result {
        Ok(value) => word(value),
        // Before the round a caller whose key is gone is a stranger; in it, no longer permitted.
        Err(refusal)
            if matches!(
                refusal.reason,
                Reason::NotAuthenticated | Reason::NotPermitted
            ) =>
        {
            "refused: caller".to_owned()
        }
        Err(refusal) => format!("refused: {}", refusal.reason.as_str()),
    }
}

impl Call {
    fn waits_for(&self, between: &Between) -> bool {
        let pairs = [
            ("a policy bundle", "rules"),
            ("a token again", "a token again"),
            ("a use", "a use"),
            ("a yes", "a yes"),
            ("a yes", "a no"),
        ];
        let same =
            |(call, other): &(&str, &str)| self.name == *call && between.name.starts_with(other);
        pairs.iter().any(same)
    }

    async fn run(&self, world: &World) -> String {
        (self.run)(world.clone()).await
    }
}
