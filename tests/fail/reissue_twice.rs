// One decision of gate 2, one reissue.
use dipylon::approve::Reapproved;
use dipylon::mint::TokenIssuer;
use dipylon_sdk::model::Timestamp;

fn twice(issuer: &TokenIssuer, reapproved: Reapproved, now: Timestamp) {
    let _one = issuer.reissue(reapproved, 1, now);
    let _two = issuer.reissue(reapproved, 1, now);
}

fn main() {}
