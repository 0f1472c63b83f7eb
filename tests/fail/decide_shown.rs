// What a page shows decides nothing: gate 2 takes an access request that its round has read.
use dipylon::approve::{DecisionContext, TokenTerms, decide};
use dipylon::state::{AccessRequest, Shown};
use dipylon::verify::Verified;
use dipylon_sdk::model::DecisionId;

fn approve(verified: Verified<'_>, terms: &TokenTerms, shown: &Shown<AccessRequest>, context: DecisionContext<'_>, id: DecisionId) {
    let _decision = decide(verified, terms, Some(shown), false, context, id);
}

fn main() {}
