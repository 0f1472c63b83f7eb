// One decision of gate 2, one reissue.
use dipylon::approve::Reapproved;
use dipylon::mint::TokenIssuer;
use dipylon_sdk::model::Timestamp;

fn twice(issuer: &TokenIssuer, reapproved: Reapproved<'_>, now: Timestamp) {
    let _one = issuer.reissue(reapproved, now);
    let _two = issuer.reissue(reapproved, now);
}

fn main() {}
