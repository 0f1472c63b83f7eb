// One approval, one mint: the second use of a pass does not compile.
use dipylon::mint::{Bench, GrantContext};
use dipylon_sdk::model::Timestamp;

fn twice(bench: &Bench, order: dipylon::approve::Approved, first: GrantContext, second: GrantContext, now: Timestamp) {
    let _one = bench.mint(order, first, now, &mut || [0; 16]);
    let _two = bench.mint(order, second, now, &mut || [0; 16]);
}

fn main() {}
