// One word of gate 2, one reissue.
use dipylon::mint::TokenIssuer;
use dipylon_sdk::model::Timestamp;

fn twice(bench: &Bench, order: dipylon::approve::Reapproved, now: Timestamp) {
    let _one = bench.reissue(order, 1, now);
    let _two = bench.reissue(order, 1, now);
}

fn main() {}
