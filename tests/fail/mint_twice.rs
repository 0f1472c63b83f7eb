// One approval, one mint: using `Approved` a second time does not compile.
use dipylon::approve::Approved;
use dipylon::mint::{GrantContext, TokenIssuer};
use dipylon_sdk::model::Timestamp;

fn twice(issuer: &TokenIssuer, approved: Approved<'_>, first: GrantContext, second: GrantContext, now: Timestamp) {
    let _one = issuer.mint(approved, first, now, &mut || [0; 16]);
    let _two = issuer.mint(approved, second, now, &mut || [0; 16]);
}

fn main() {}
